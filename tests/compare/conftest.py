"""A small comparison, run once for the tests of what it leaves behind."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lossary.compare.load import load_table
from lossary.compare.options import Options
from lossary.compare.results import Comparison
from lossary.compare.run import compare_table


def small_frame(rows: int = 160, seed: int = 0) -> pd.DataFrame:
    """Numbers with gaps, words, dates and yes/no, and a label that depends on them."""
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(generator.normal(size=(rows, 3)), columns=["a", "b", "c"])
    frame["colour"] = generator.choice(["red", "green", "blue"], rows)
    frame["when"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(generator.integers(0, 700, rows), unit="D")
    frame["smokes"] = generator.random(rows) < 0.5
    frame.loc[::17, "b"] = np.nan
    signal = frame["a"] + (frame["colour"] == "red") + generator.normal(size=rows)
    frame["label"] = np.where(signal > 1, "yes", np.where(signal > -0.5, "perhaps", "no"))
    return frame


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison with its output folder; nobody may change either."""
    options = Options(
        target=("label",), objectives=("ldam",), metric="f1", folds=2, repeats=1, trials=4, model="linear"
    )
    table = load_table(small_frame(), "label", folds=2)
    return compare_table(table, options, out=tmp_path_factory.mktemp("finished") / "out")


@pytest.fixture
def best(finished: Comparison, tmp_path: Path) -> Path:
    """A copy of its best/ to do anything with."""
    import shutil

    assert finished.out is not None
    return Path(shutil.copytree(finished.out / "best", tmp_path / "best"))
