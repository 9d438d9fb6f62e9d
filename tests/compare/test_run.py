"""Whole runs: the same numbers however they go, nothing lost when killed, and no bit of a split from its test fold."""

import contextlib
import dataclasses
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

import lossary.compare
from lossary.compare import plan, pool, run
from lossary.compare.candidates import get_candidate
from lossary.compare.journal import Journal, best_of, trials_of
from lossary.compare.load import Table, load_table
from lossary.compare.options import Options
from lossary.compare.progress import Progress
from lossary.compare.results import Comparison
from lossary.compare.splits import Split, make_splits
from lossary.core.errors import UserError
from tests.compare.conftest import few_epochs, small_frame

OPTIONS = Options(target=("label",), objectives=("focal",), folds=2, repeats=2, trials=2, model="linear")


@pytest.fixture(autouse=True)
def short(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fits end early, but in slow tests."""
    with contextlib.nullcontext() if "slow" in request.keywords else few_epochs():
        yield


def compared(out: Path | None, options: Options = OPTIONS, **more: Any) -> Comparison:
    return run.compare_table(load_table(small_frame(), "label", folds=2), options, out=out, **more)


def numbers(comparison: Comparison) -> pd.DataFrame:
    """Every fit without what the clock decides."""
    return comparison.fits.drop(columns="seconds")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A run that nothing interrupts, by three workers; nobody may change it or its folder."""
    with few_epochs(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "most_workers", lambda device: 3)
        return compared(tmp_path_factory.mktemp("whole") / "out")


def test_what_it_leaves(finished: Comparison) -> None:
    assert finished.out is not None
    names = {path.name for path in finished.out.iterdir()}
    assert {"report.html", "results.parquet", "best", "journal.sqlite"} <= names
    assert "work" not in names
    fits = pd.read_parquet(finished.out / "results.parquet")
    assert len(fits) == len(finished.fits) == 4 * 2 * 3 * len(finished.candidates)
    assert {c.name for c in finished.candidates} >= {"cross_entropy", "ldam", "cosine_cross_entropy"}
    for result in finished.candidates:
        assert sorted(result.rows[0]) == list(range(160))
        np.testing.assert_allclose(result.probabilities[0].sum(1), 1)
        assert {"judged", "as_trained"} == set(result.metrics["form"])
    chosen = finished.fits[finished.fits["chosen"]]
    for (_, _), fits in finished.fits.groupby(["candidate", "split"]):
        trials = fits.groupby("trial")["score"].mean()
        assert set(fits.loc[fits["chosen"], "trial"]) == {trials.idxmin()}
    assert len(chosen) == 2 * 3 * len(finished.candidates)


def test_the_journal_of_a_finished_run_is_all_it_needs(whole: Comparison, tmp_path: Path) -> None:
    assert whole.out is not None
    out = Path(shutil.copytree(whole.out, tmp_path / "out"))
    started: list[Any] = []

    class Watch(Progress):
        def stack_started(self, job: Any) -> None:
            started.append(job)

    again = compared(out, progress=Watch())
    assert not started
    pd.testing.assert_frame_equal(whole.fits, again.fits)
    assert whole.judgement == again.judgement


def test_killed_twice_and_resumed_equals_uninterrupted(whole: Comparison, tmp_path: Path, kept_workers: type) -> None:
    assert whole.out is not None
    total = _stacks(whole.out)
    for after in (total // 4, total // 2):
        process = multiprocessing.get_context("fork").Process(
            target=_compare_until_killed, args=(tmp_path / "out", after, kept_workers)
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert 0 < _stacks(tmp_path / "out") < total
    pd.testing.assert_frame_equal(numbers(whole), numbers(compared(tmp_path / "out")))
    one, other = (pd.read_parquet(folder / "results.parquet") for folder in (whole.out, tmp_path / "out"))
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), other.drop(columns="seconds"))


def _compare_until_killed(out: Path, stacks: int, new_worker: type) -> None:
    """A run that is killed while its worker is at the stack after these."""

    class Killed(Progress):
        def stack_started(self, job: Any) -> None:
            if _stacks(out) == stacks:
                os.kill(os.getpid(), signal.SIGKILL)

    pool._Worker = new_worker  # type: ignore[misc]
    plan.most_workers = lambda device: 1
    compared(out, progress=Killed())


@pytest.mark.slow
def test_the_command_killed_twice_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """Wherever it stands when it is killed."""
    small_frame().to_csv(tmp_path / "table.csv", index=False)
    out = tmp_path / "out"
    words = ["--target", "label", "--objectives", "focal", "--folds", "2", "--trials", "2", "--model", "linear"]
    command = [sys.executable, "-m", "lossary", "compare", str(tmp_path / "table.csv"), *words]
    whole = subprocess.run([*command, "--out", str(tmp_path / "whole")], capture_output=True, text=True, check=True)
    assert "no reason" in whole.stdout or "Use " in whole.stdout
    total = _stacks(tmp_path / "whole")
    for moment in (0.2, 0.6):
        process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and _stacks(out) < moment * total:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert 0 < _stacks(out) < total
    subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=True)
    one, other = (
        pd.read_parquet(folder / "results.parquet").drop(columns="seconds") for folder in (tmp_path / "whole", out)
    )
    pd.testing.assert_frame_equal(one, other)


def _stacks(folder: Path) -> int:
    """Stacks in a journal that somebody may be writing to."""
    import sqlite3

    try:
        database = sqlite3.connect(f"file:{folder / 'journal.sqlite'}?mode=ro", uri=True, timeout=5)
        (count,) = database.execute("SELECT COUNT(*) FROM stacks").fetchone()
        database.close()
    except sqlite3.OperationalError:
        return 0
    return int(count)


def test_the_number_of_workers_does_not_matter(
    whole: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    alone = compared(tmp_path / "alone")
    assert (alone.plan.workers, whole.plan.workers) == (1, 3)
    pd.testing.assert_frame_equal(numbers(alone), numbers(whole))


def test_nothing_of_a_split_depends_on_its_test_fold(
    whole: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other features and labels in an outer test fold change no bit of what that split will be judged with."""
    table = whole.table
    splits = make_splits(table, folds=2, repeats=2, seed=0)
    test = splits[1].test
    generator = np.random.default_rng(1)
    features = table.features.copy()
    for name in features:
        values = features[name].to_numpy(copy=True)
        values[test] = values[generator.permutation(len(values))[: len(test)]]
        features[name] = values
    features.loc[test, "a"] += 5.0
    features["colour"] = features["colour"].astype(object)
    features.loc[test, "colour"] = generator.choice(["mauve", "lilac", "teal"], len(test))
    target = table.target.copy()
    target[test] = generator.integers(0, 3, len(test))
    changed = dataclasses.replace(table, features=features, target=target, fingerprint="other")

    def fixed(*args: Any, repeats: int, **kwargs: Any) -> list[Split]:
        return [split for split in splits if split.repeat < repeats]

    monkeypatch.setattr(run, "make_splits", fixed)
    run.compare_table(changed, OPTIONS, out=tmp_path / "changed")
    kept = _everything_but_the_test_logits(tmp_path / "changed", changed, splits[1])
    assert whole.out is not None
    out = Path(shutil.copytree(whole.out, tmp_path / "out"))
    assert kept == _everything_but_the_test_logits(out, table, splits[1])


def _everything_but_the_test_logits(folder: Path, table: Table, split: Split) -> list[Any]:
    from lossary.compare.candidates import get_candidate
    from lossary.compare.collect import _predict
    from lossary.compare.identity import identity
    from lossary.compare.preprocess import make_preprocessor

    found: list[Any] = []
    with Journal(folder, identity(table, OPTIONS, "cpu")) as journal:
        for name in ("cross_entropy", "focal"):
            fits = journal.fits(name, split.index)
            found += [(fit.settings, fit.score, fit.best_epoch, fit.epochs) for fit in fits]
            best = best_of(trials_of(fits))
            for outputs in journal.outputs(name, split.index, best.number):
                found += [outputs.validation_logits.tobytes(), outputs.calibrator]
            found.append(_predict(get_candidate(name, table.task), split, best.number, table, journal).rules)
    for train, validation in split.inner:
        rows = table.features.iloc[train]
        found.append(make_preprocessor(rows).fit(rows).transform(table.features.iloc[validation]).tobytes())
    return found


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "out", {"data": "x"}), pytest.raises(UserError, match="Another lossary compare"):
        compared(tmp_path / "out")


def test_another_comparison_is_refused_by_name_and_can_be_started_over(tmp_path: Path) -> None:
    compared(tmp_path / "out", dataclasses.replace(OPTIONS, repeats=1))
    with pytest.raises(UserError, match=r"--seed was 0, is 1.*\n.*--fresh"):
        compared(tmp_path / "out", dataclasses.replace(OPTIONS, repeats=1, seed=1))
    again = compared(tmp_path / "out", dataclasses.replace(OPTIONS, repeats=1, seed=1), fresh=True)
    assert again.options.seed == 1


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(UserError, match=r"already holds report\.html"):
        compared(tmp_path, fresh=True)
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_repeat_that_the_budget_cuts_is_dropped_for_all_and_gone_on_with(
    whole: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock jumps to the end of the budget within the second repeat."""
    monkeypatch.setattr("lossary.compare.plan.most_workers", lambda device: 1)
    jumped, real = [0.0], time.monotonic
    finished: list[Any] = []

    class Jump(Progress):
        def stack_finished(self, job: Any, fits: Any) -> None:
            finished.append(job)
            jumped[0] = 10_000.0 if len(finished) == 6 else 0.0

    monkeypatch.setattr(time, "monotonic", lambda: real() + jumped[0])
    out = tmp_path / "out"
    cut = compared(out, dataclasses.replace(OPTIONS, budget=10_000.0), progress=Jump())
    assert [job.split for job in finished] == [0, 0, 1, 1, 2, 2]
    assert cut.plan.repeats == 2
    assert all(len(result.rows) == 1 for result in cut.candidates), "the second repeat is left out for every candidate"
    assert any("within repeat 2 of 2" in note for note in cut.notes)
    assert any("before best/ was trained" in note for note in cut.notes)
    assert (out / "report.html").exists()
    assert not (out / "best").exists()
    jumped[0] = 0.0
    mended = compared(out, dataclasses.replace(OPTIONS, budget=20_000.0))
    assert (out / "best").exists()
    pd.testing.assert_frame_equal(numbers(mended), numbers(whole))


@pytest.mark.slow
def test_a_budget_covers_the_command(tmp_path: Path) -> None:
    """By the real clock, and so only on a machine that does nothing else."""
    options = dataclasses.replace(OPTIONS, trials=16, repeats=5, budget=25.0, model="mlp")
    start = time.monotonic()
    comparison = compared(tmp_path / "out", options)
    assert time.monotonic() - start <= 1.1 * 25 + 5
    assert any("--budget" in note for note in (*comparison.plan.notes, *comparison.notes))
    assert comparison.plan.trials < 16 or comparison.plan.repeats < 5
    assert (tmp_path / "out" / "report.html").exists()


def test_a_worker_that_dies_is_named_and_the_rest_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Murder(Progress):
        def stack_finished(self, job: Any, fits: Any) -> None:
            for child in _children():
                child.kill()
                while child.status() != psutil.STATUS_ZOMBIE:
                    time.sleep(0.01)

    options = dataclasses.replace(OPTIONS, repeats=1)
    with pytest.raises(UserError, match=r"killed by signal 9(.|\n)*What was finished is kept"):
        compared(tmp_path / "out", options, progress=Murder())
    assert _stacks(tmp_path / "out") == 1
    compared(tmp_path / "out", options)


def _children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "pool" in " ".join(child.cmdline())]


@pytest.mark.usefixtures("new_workers")
def test_users_own_objective_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch.nn.functional as F\n"
        "def smooth(output, target):\n    return F.cross_entropy(output, target, label_smoothing=0.1)\n"
        "def stubborn(output, target):\n"
        "    return F.cross_entropy(output, target) * (output.detach().sum().item() * 0 + 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(plan, "most_workers", lambda device: 1)
    options = dataclasses.replace(OPTIONS, objectives=("mine:smooth", "mine:stubborn"), repeats=1)
    results = {result.name: result for result in compared(None, options).candidates}
    assert not results["mine:smooth"].loop
    assert results["mine:stubborn"].loop  # .item() is what vmap refuses
    plain = results["cross_entropy"].metrics["value"].to_numpy()
    np.testing.assert_allclose(results["mine:stubborn"].metrics["value"].to_numpy(), plain, rtol=1e-4, atol=1e-4)


def test_python_form_several_labels() -> None:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(200, 4))
    y = (X[:, :3] + generator.normal(size=(200, 3)) > 0.5).astype(int)
    comparison = lossary.compare.compare(X, y, objectives="asymmetric", folds=2, repeats=1, trials=1, model="linear")
    assert comparison.table.task == "multilabel"
    assert comparison.out is None
    assert comparison.judgement.recommended in ("cross_entropy", "asymmetric", "weighted_cross_entropy")
    assert comparison.candidates[0].probabilities[0].shape == (200, 3)


def test_memory_counts_the_largest_candidate() -> None:
    table = load_table("breast_cancer")
    split = make_splits(table, folds=5, repeats=1, seed=0)[0]
    plain, linked = (get_candidate(name, table.task) for name in ("cross_entropy", "legendretron"))
    needs = [run._bytes(table, "mlp", found, split, 30) for found in ([plain], [plain, linked], [linked, plain])]
    assert needs[0]["trial_bytes"] < needs[1]["trial_bytes"] == needs[2]["trial_bytes"]
    assert needs[0]["data_bytes"] == needs[1]["data_bytes"]
