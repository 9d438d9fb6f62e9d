"""Lossary: the home of training objectives for PyTorch.

Families of objectives are packages (``lossary.classification``); ``lossary.compare`` finds the objective that suits
your data; ``lossary.papers`` holds what each paper claims and what was seen. All load lazily.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossary.core.catalogue import catalogue as catalogue
    from lossary.core.catalogue import find as find
    from lossary.core.composition import WeightedSum as WeightedSum
    from lossary.core.objective import Objective as Objective
    from lossary.core.objective import Registered

__version__ = "0.1.0"

FAMILIES = (
    "calibration",
    "classification",
    "distillation",
    "embedding",
    "generative",
    "information",
    "language",
    "preference",
    "regression",
    "retrieval",
    "segmentation",
)
_ROOMS = (*FAMILIES, "compare", "core", "datasets", "integrations", "kernels", "papers")
_NAMES = {
    "Objective": "lossary.core.objective",
    "WeightedSum": "lossary.core.composition",
    "catalogue": "lossary.core.catalogue",
    "find": "lossary.core.catalogue",
}

__all__ = ["FAMILIES", "Objective", "WeightedSum", "__version__", "catalogue", "find", "objectives"]


def objectives() -> dict[str, Registered]:
    """Every public objective by name.

    Example:
        >>> import lossary
        >>> lossary.objectives()["focal_loss"].family
        'classification'
    """
    from lossary.core.objective import registered

    for family in FAMILIES:
        importlib.import_module(f"lossary.{family}")
    return registered()


def __getattr__(name: str) -> ModuleType | Any:
    if name in _ROOMS:
        return importlib.import_module(f"lossary.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'lossary' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS, *_NAMES})
