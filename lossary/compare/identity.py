"""Everything that the numbers of a comparison depend on, by name."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
from pathlib import Path

import torch

import lossary
from lossary.compare.load import Table
from lossary.compare.options import Options
from lossary.core.errors import UserError

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "optuna")
OPTIONS = (
    "target",
    "task",
    "objectives",
    "metric",
    "model",
    "folds",
    "repeats",
    "trials",
    "groups",
    "calibrate",
    "merge_rare",
    "seed",
    "label_noise",
    "imbalance",
)
"""Options that bear on what is trained. Budget and memory act through the plan alone, which a resumed run follows;
``min_effect`` acts on the verdicts, which are made anew from the journal each time."""


def identity(table: Table, options: Options, device: str) -> dict[str, str]:
    """Name every input of the numbers: two runs of equal identity and plan give equal numbers.

    Args:
        table: The data.
        options: What was asked for.
        device: ``cpu`` or ``cuda``, as resolved.

    Raises:
        UserError: The user's own code is not found.
    """
    words = {f"--{name.replace('_', '-')}": _word(getattr(options, name)) for name in OPTIONS}
    code = {f"the code of {name}": _code_hash(name) for name in (*options.objectives, options.model) if ":" in name}
    return {"data": table.fingerprint, **words, "device": _device_name(device), **versions(), **code}


def versions() -> dict[str, str]:
    """Versions of Lossary, Python and the libraries that the numbers depend on."""
    return {
        "lossary": lossary.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _word(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _device_name(device: str) -> str:
    if device == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return f"{device} {torch.cuda.get_device_name(device)}"


def _code_hash(name: str) -> str:
    """SHA-256 of the file that holds ``package.module:callable``."""
    module = name.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise UserError(f"No module {module!r} for {name!r} is found; is its folder on PYTHONPATH?")
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
