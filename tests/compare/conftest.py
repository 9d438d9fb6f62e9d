"""A small comparison, run once for the tests of what it leaves behind."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lossary.compare import pool
from lossary.compare.artifact import build_best
from lossary.compare.candidates import get_candidate
from lossary.compare.journal import Journal
from lossary.compare.load import load_table
from lossary.compare.options import Options
from lossary.compare.results import Comparison
from lossary.compare.run import compare_table
from lossary.compare.splits import final_split
from lossary.compare.train import Training
from lossary.compare.work import FoldStore, StackJob, train_job


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


@contextlib.contextmanager
def few_epochs(most: int = 24, patience: int = 4) -> Iterator[None]:
    """Comparisons whose fits end early."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lossary.compare.plan.schedule", lambda rows: (32, most, patience))
        yield


@pytest.fixture(scope="session", autouse=True)
def kept_workers() -> Iterator[type]:
    """Idle workers go on from one comparison to the next, since a new one takes seconds to import torch; the class of
    those that do not.
    """
    idle: list[Any] = []
    new = pool._Worker

    def hire() -> Any:
        while idle:
            if (worker := idle.pop())._process.poll() is None:
                return worker
        worker = new()
        worker.kill = lambda: idle.append(worker) if worker.job is None else new.kill(worker)
        return worker

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_Worker", hire)
        yield new
    for worker in idle:
        new.kill(worker)


@pytest.fixture
def new_workers(kept_workers: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every comparison starts workers of its own, as it does outside of tests."""
    monkeypatch.setattr(pool, "_Worker", kept_workers)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison with its output folder; nobody may change either."""
    options = Options(
        target=("label",), objectives=("ldam",), metric="f1", folds=2, repeats=1, trials=4, model="linear"
    )
    table = load_table(small_frame(), "label", folds=2)
    with few_epochs(60, 10):
        return compare_table(table, options, out=tmp_path_factory.mktemp("finished") / "out")


@pytest.fixture
def best(finished: Comparison, tmp_path: Path) -> Path:
    """A copy of its best/ to do anything with."""
    import shutil

    assert finished.out is not None
    return Path(shutil.copytree(finished.out / "best", tmp_path / "best"))


@pytest.fixture(scope="session")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A best/ of a candidate with a learned link; nobody may change it. Logits of its validation rows lie beside it."""
    folder = tmp_path_factory.mktemp("linked")
    table = load_table(small_frame(), "label", folds=2)
    options = Options(target=("label",), model="linear")
    split = final_split(table, seed=0)
    training = Training("multiclass", 3, "linear", "log_loss", "temperature", 32, 3, 3, seed=0)
    settings = ({"learning_rate": 0.01, "weight_decay": 1e-4},)
    folds = FoldStore(table, folder / "folds").folders(split)
    fits = train_job(StackJob("legendretron", -1, 0, 0, settings, folds, training, keep_weights=True))
    with Journal(folder / "run", {}) as journal:
        journal.write_stack("legendretron", -1, 0, fits)
        build_best(table, options, get_candidate("legendretron", "multiclass"), split, journal, folder / "best")
    for inner, ((_, rows), fit) in enumerate(zip(split.inner, fits, strict=True)):
        assert fit.outputs is not None
        np.savez(folder / f"{inner}.npz", rows=rows, logits=fit.outputs.validation_logits)
    return folder / "best"
