"""Teaching a small model with a large one."""

from __future__ import annotations

from lossary.distillation.linear import linear_distillation

__all__ = ["linear_distillation"]
