"""Adapters to other libraries: no mathematics of their own."""

from __future__ import annotations

from lossary.integrations.hugging_face import trainer_loss, use_linear_head

__all__ = ["trainer_loss", "use_linear_head"]
