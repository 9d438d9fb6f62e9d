"""Words that signatures share."""

from __future__ import annotations

from typing import Literal

Reduction = Literal["none", "mean", "sum"]
