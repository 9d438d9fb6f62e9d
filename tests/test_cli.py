"""The command line: its words, its exit codes, and mistakes answered in one or two lines without a traceback."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lossary import cli, papers
from lossary.core.errors import UserError


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    monkeypatch.setattr(sys, "argv", ["lossary", *words])
    monkeypatch.setenv("COLUMNS", "300")
    try:
        cli.main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.fixture
def table(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.normal(size=(120, 3)), columns=["a", "b", "c"])
    frame["label"] = np.where(frame["a"] + generator.normal(size=120) > 0, "yes", "no")
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "lable"], "label"),
        (["--target", "label", "--objectives", "focall"], "focal"),
        (["--target", "label", "--objectives", "focal,focal"], "twice"),
        (["--target", "label", "--objectives", "no.such.module:loss"], "cannot be imported"),
        (["--target", "label", "--metric", "acuracy"], "accuracy"),
        (["--target", "label", "--metric", "ece"], "log_loss"),
        (["--target", "label", "--model", "mpl"], "mlp"),
        (["--target", "label", "--task", "multi"], "multiclass"),
        (["--target", "label", "--calibrate", "platt"], "temperature"),
        (["--target", "label", "--device", "tpu"], "cuda"),
        (["--target", "label", "--folds", "1"], "--folds is 1; wanted 2 or more"),
        (["--target", "label", "--repeats", "0"], "--repeats is 0"),
        (["--target", "label", "--trials", "0"], "--trials is 0"),
        (["--target", "label", "--budget", "soon"], "10m"),
        (["--target", "label", "--budget", "3s"], "--budget is 3"),
        (["--target", "label", "--memory", "much"], "4GB"),
        (["--target", "label", "--memory", "1MB"], "--memory"),
        (["--target", "label", "--min-effect", "150%"], "--min-effect"),
        (["--target", "label", "--min-effect", "x"], "1%"),
        (["--target", "label", "--seed", "-1"], "--seed"),
        (["--target", "label", "--merge-rare", "1"], "--merge-rare"),
        (["--target", "label", "--groups", "patient"], "patient"),
        (["--target", "label", "--groups", "label"], "label"),
        ([], "--target"),
    ],
)
def test_mistakes(table: Path, options: list[str], said: str, monkeypatch, capsys, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, _, error = run(monkeypatch, capsys, "compare", str(table), *options, "--out", str(out))
    assert code == 2
    assert said in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) <= 2, error
    assert not (out / "report.html").exists()


def test_missing_file(monkeypatch, capsys, tmp_path: Path) -> None:
    code, _, error = run(monkeypatch, capsys, "compare", str(tmp_path / "nothing.csv"), "--target", "y")
    assert code == 2
    assert "nothing.csv" in error
    assert len(error.strip().splitlines()) <= 2


def test_stopped_by_the_keyboard(monkeypatch, capsys) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lossary.papers.reproduce", interrupted)
    code, _, error = run(monkeypatch, capsys, "reproduce", "ldam")
    assert code == 130
    assert "goes on from there" in error


def test_papers(monkeypatch, capsys) -> None:
    code, output, _ = run(monkeypatch, capsys, "papers")
    assert code == 0
    assert "focal_loss" in output
    here = sum(entry.card is not None for entry in papers.catalogue())
    assert output.count("not here yet") == 119 - here
    code, output, _ = run(monkeypatch, capsys, "papers", "focal_loss")
    assert code == 0
    for part in ("Lin", "1708.02002", "Formula", "FocalLoss", "What this cannot show"):
        assert part in output
    code, _, error = run(monkeypatch, capsys, "papers", "focal")
    assert code == 2
    assert "Did you mean focal_loss" in error


def test_reproduce(monkeypatch, capsys, tmp_path: Path) -> None:
    words = ("reproduce", "poly_loss", "--quick", "--seeds", "1", "--out", str(tmp_path))
    code, output, _ = run(monkeypatch, capsys, *words)
    assert code == 0
    assert "not judged (quick form)" in output
    assert {path.name for path in tmp_path.iterdir()} == {"poly_loss.json", "poly_loss.html"}


def test_datasets(monkeypatch, capsys) -> None:
    code, output, _ = run(monkeypatch, capsys, "datasets")
    assert code == 0
    for name in ("breast_cancer", "digits_8", "cifar10"):
        assert name in output


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("600", 600), ("2 min", 120)])
def test_durations(text: str, value: float) -> None:
    assert cli.parse_seconds(text) == value


@pytest.mark.parametrize(("text", "value"), [("4GB", 4 * 10**9), ("500MB", 5 * 10**8), ("2GiB", 2**31)])
def test_sizes(text: str, value: int) -> None:
    assert cli.parse_bytes(text) == value


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.02", 0.02), ("0%", 0)])
def test_shares(text: str, value: float) -> None:
    assert cli.parse_share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "10 parsecs", "-5m"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(UserError, match="wanted something like 10m"):
        cli.parse_seconds(text)
