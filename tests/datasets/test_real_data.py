"""Every data set of the registry, from the folder LOSSARY_DATA."""

from __future__ import annotations

import os

import numpy as np
import pytest

from lossary.datasets import Dataset, decode_audio, decode_images, describe, load, names, path

pytestmark = pytest.mark.skipif(
    not os.environ.get("LOSSARY_DATA"), reason="LOSSARY_DATA names no folder with the published files"
)
PUBLISHED = [name for name in names() if not describe(name).bundled]


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_loads_as_described(name: str) -> None:
    entry, data = describe(name), load(name)
    assert len(data.frame) == entry.rows
    assert data.frame.columns.is_unique
    assert data.target is None or data.target in data.frame
    assert all(path(name, file.name).is_file() for file in entry.files)
    if entry.kind == "classification":
        assert data.frame[data.target].notna().all()
        CHECKS_BY_SHARE.get(name, lambda data: None)(data)


def share(column: str, label: object, expected: float) -> object:
    """A check that a label has this share of the rows."""

    def check(data: Dataset) -> None:
        assert data.target == column
        assert (data.frame[column] == label).mean() == pytest.approx(expected, abs=0.005)

    return check
