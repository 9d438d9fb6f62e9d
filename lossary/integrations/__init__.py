"""Adapters to other libraries: no mathematics of their own."""

from __future__ import annotations

from lossary.integrations.hugging_face import use_linear_head

__all__ = ["use_linear_head"]
