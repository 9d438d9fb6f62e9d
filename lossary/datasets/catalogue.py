"""What a user calls: names, descriptions, the data itself, and its files."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lossary.core.errors import UserError
from lossary.datasets.files import locate
from lossary.datasets.registry import ENTRIES, Entry

if TYPE_CHECKING:
    import pandas as pd

_BY_NAME = {entry.name: entry for entry in ENTRIES}


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Attributes:
        entry: What is known about it: description, licence, origin.
        frame: The data, one row an example. Images and recordings are columns of encoded bytes, see
            :func:`~lossary.datasets.decode_images` and :func:`~lossary.datasets.decode_audio`.
        target: The column that is usually predicted, several for multi-label data, None where there is none.
    """

    entry: Entry
    frame: pd.DataFrame
    target: str | tuple[str, ...] | None


def names() -> list[str]:
    """The names that :func:`load` knows, bundled ones first.

    Example:
        >>> from lossary import datasets
        >>> datasets.names()[:3]
        ['breast_cancer', 'digits', 'digits_8']
    """
    return list(_BY_NAME)


def describe(name: str) -> Entry:
    """What is known about a data set without loading it.

    Args:
        name: One of :func:`names`; case and ``-`` for ``_`` do not matter.

    Raises:
        UserError: No data set has this name.

    Example:
        >>> from lossary import datasets
        >>> datasets.describe("digits_8").description
        'Handwritten digits, 8 x 8 pixels: an 8 or not (10% are)'
    """
    key = name.lower().replace("-", "_")
    if key not in _BY_NAME:
        near = difflib.get_close_matches(key, _BY_NAME, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"No data set is called {name!r}.{hint} `lossary datasets` lists all.")
    return _BY_NAME[key]


def load(name: str) -> Dataset:
    """Load a data set.

    Args:
        name: One of :func:`names`; case and ``-`` for ``_`` do not matter.

    Returns:
        The data as a DataFrame of its own: changing it changes nothing else.

    Raises:
        UserError: The name is unknown, or the data cannot be had or are not what was published.

    Example:
        >>> from lossary import datasets
        >>> iris = datasets.load("iris")
        >>> iris.frame.shape, iris.target
        ((150, 5), 'target')
    """
    entry = describe(name)
    return Dataset(entry, entry.read(*locate(entry.files)), entry.target)


def path(name: str, file: str | None = None) -> Path:
    """The verified file of a data set on disk, downloaded if need be.

    Args:
        name: One of :func:`names`.
        file: Which file, for data sets that have several.

    Raises:
        UserError: As :func:`load`; also if the set is bundled, or if ``file`` does not say which of several.
    """
    files = describe(name).files
    if not files:
        raise UserError(f"The data set {name} comes with scikit-learn and has no file of its own; use load({name!r}).")
    chosen = [each for each in files if file in (None, each.name)]
    if len(chosen) != 1:
        raise UserError(f"The data set {name} has the file(s) {', '.join(each.name for each in files)}: name one.")
    return locate(chosen)[0]
