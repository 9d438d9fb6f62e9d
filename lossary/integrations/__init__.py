"""Adapters to other libraries: no mathematics of their own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lossary.integrations.hugging_face import use_linear_head

if TYPE_CHECKING:
    from lossary.integrations.cringe_trainer import PairwiseCringeTrainer as PairwiseCringeTrainer
    from lossary.integrations.cringe_trainer import PreferenceCollator as PreferenceCollator

_LAZY = {  # what is made of another library's classes, and so imports it
    "PairwiseCringeTrainer": "lossary.integrations.cringe_trainer",
    "PreferenceCollator": "lossary.integrations.cringe_trainer",
}

__all__ = ["PairwiseCringeTrainer", "PreferenceCollator", "use_linear_head"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'lossary.integrations' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
