"""Libraries that the base install does without, imported where they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

_PACKAGES = {"sklearn": "scikit-learn"}


def optional(module: str, *, needed_by: str) -> ModuleType:
    """Import a module of a library that need not be there.

    Raises:
        ImportError: It is not there; the message says what needs it and how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        root = module.partition(".")[0]
        package = _PACKAGES.get(root, root)
        raise ImportError(f"{needed_by} needs {package}, which is not installed: pip install {package}.") from missing
