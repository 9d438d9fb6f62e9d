"""Studies: handicaps touch training alone and nest; levels share candidates and budget; the page says it all."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import lossary.compare
from lossary import cli
from lossary.compare import run, study
from lossary.compare.handicap import flip_labels, thin_classes
from lossary.compare.load import Table, load_table
from lossary.compare.options import Options
from lossary.compare.report import write_report
from lossary.compare.splits import make_splits
from lossary.compare.study import run_study
from lossary.compare.table import print_study
from lossary.core.errors import UserError
from tests.compare.conftest import few_epochs, small_frame
from tests.compare.fake_comparison import fake_comparison
from tests.compare.test_report import HOSTILE, Page

NAMES = ["cross_entropy", "weighted_cross_entropy", "focal", "generalized_cross_entropy"]


def table(rows: int = 400, shares: tuple[float, ...] = (0.5, 0.3, 0.2), seed: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(rows, 3)), columns=["a", "b", "c"])
    frame["label"] = rng.choice(["x", "y", "z"][: len(shares)], rows, p=shares)
    return load_table(frame, "label")


def labels() -> Table:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(500, 2)), columns=["a", "b"])
    for name in ("p", "q"):
        frame[name] = rng.random(500) < 0.3
    return load_table(frame, ["p", "q"])


@pytest.mark.parametrize("data", [table(), labels()], ids=["classes", "labels"])
def test_flipped_labels_are_wrong_at_their_rate_and_nest(data: Table) -> None:
    assert flip_labels(data, 0.0, 0) is data
    few, many = (flip_labels(data, share, 0) for share in (0.1, 0.4))
    for noisy, share in ((few, 0.1), (many, 0.4)):
        np.testing.assert_array_equal(noisy.target, data.target)
        assert (noisy.seen_target != data.target).mean() == pytest.approx(share, abs=0.05)
        assert noisy.seen_target.dtype == data.target.dtype
        assert noisy.seen_target.min() >= 0
        assert noisy.seen_target.max() < max(data.num_outputs, 2)
    wrong = few.seen_target != data.target
    np.testing.assert_array_equal(many.seen_target[wrong], few.seen_target[wrong])
    assert (flip_labels(data, 0.4, 1).seen_target != many.seen_target).any()


def test_wrong_labels_are_any_other_class_alike() -> None:
    data = table(6000)
    noisy = flip_labels(data, 0.5, 0).seen_target
    for label in range(3):
        others = noisy[(data.target == label) & (noisy != label)]
        shares = np.bincount(others, minlength=3) / len(others)
        assert shares[label] == 0
        assert np.delete(shares, label) == pytest.approx([0.5, 0.5], abs=0.05)


@pytest.mark.parametrize("ratio", [1, 4, 9])
def test_thinned_classes_have_the_ratio_in_their_order(ratio: float) -> None:
    data = table()
    rows = np.arange(50, 400)
    kept = thin_classes(rows, data, ratio, seed=0)
    assert set(kept) <= set(rows)
    assert len(set(kept)) == len(kept)
    counts = np.bincount(data.target[kept], minlength=3)
    before = np.bincount(data.target[rows], minlength=3)
    ranked = np.argsort(-before)
    assert (np.diff(counts[ranked]) <= 0).all()
    assert counts[ranked[0]] / counts[ranked[-1]] == pytest.approx(ratio, rel=0.1)
    assert counts[ranked[1]] == pytest.approx(np.sqrt(counts[ranked[0]] * counts[ranked[-1]]), rel=0.1)
    assert ((counts >= before - 1) | (counts == counts.max())).any(), "as many rows as the ratio allows"
    np.testing.assert_array_equal(kept, thin_classes(rows, data, ratio, seed=0))


def test_thinning_says_what_is_impossible() -> None:
    with pytest.raises(UserError, match=r"(?s)--imbalance 100 would leave \d+ training rows.*smaller ratio"):
        thin_classes(np.arange(400), table(), 100, seed=0)
    with pytest.raises(UserError, match="several labels"):
        thin_classes(np.arange(500), labels(), 2, seed=0)


@pytest.mark.parametrize("shares", [(0.5, 0.3, 0.2), (0.7, 0.05, 0.25), (0.7, 0.3)])
def test_the_ratio_that_is_offered_is_the_largest(shares: tuple[float, ...]) -> None:
    data, rows = table(2000, shares), np.arange(300)
    with pytest.raises(UserError) as raised:
        thin_classes(rows, data, 1e6, seed=0)
    possible = float(str(raised.value).partition("these rows allow ")[2].partition(")")[0])
    counts = np.bincount(data.target[thin_classes(rows, data, possible, seed=0)])
    assert counts.min() == 8
    with pytest.raises(UserError):
        thin_classes(rows, data, 1.3 * possible, seed=0)


def test_the_rare_class_is_the_same_in_every_split() -> None:
    """Also where classes are as frequent, so that a row more or less decides which is first in a training part."""
    frame = pd.DataFrame({"a": np.arange(302.0), "label": ["x", "y"] * 151})
    splits = make_splits(load_table(frame, "label"), folds=3, repeats=3, seed=0, imbalance=5)
    target = load_table(frame, "label").target
    assert {int(np.bincount(target[split.train]).argmin()) for split in splits} == {1}


def test_thinned_splits_keep_their_test_folds() -> None:
    data = table(2000)
    plain, thinned = (make_splits(data, folds=5, repeats=2, seed=0, imbalance=ratio) for ratio in (None, 10))
    for one, other in zip(plain, thinned, strict=True):
        np.testing.assert_array_equal(one.test, other.test)
        assert set(other.train) < set(one.train)
        for train, validation in other.inner:
            assert set(train) | set(validation) <= set(other.train)
            counts = np.bincount(data.target[train])
            assert counts.max() / counts.min() == pytest.approx(10, rel=0.3)


def test_only_training_and_validation_see_wrong_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test rows are scored by their given labels, and level 0 is the plain comparison."""
    data = load_table(small_frame(), "label", folds=2)
    options = Options(target=("label",), objectives=("focal",), folds=2, repeats=1, trials=1, model="linear")
    seen: list[Any] = []
    evaluate = run.collect.__globals__["evaluate"]
    monkeypatch.setitem(
        run.collect.__globals__,
        "evaluate",
        lambda log_p, decisions, target, **words: seen.append(target) or evaluate(log_p, decisions, target, **words),
    )
    with few_epochs(80, 10):
        found = run_study(data, options, "label_noise", [0.4, 0.0])
    assert [level.level for level in found.levels] == [0.0, 0.4]
    splits = make_splits(data, folds=2, repeats=1, seed=0)
    for target in seen:
        assert any(np.array_equal(target, data.target[split.test]) for split in splits)
    noisy = found.levels[1].comparison.table
    assert (noisy.seen_target != data.target).any()
    chosen = found.levels[0].comparison.options.objectives
    with few_epochs(80, 10):
        plain = run.compare_table(data, dataclasses.replace(options, objectives=chosen))
    pd.testing.assert_frame_equal(
        plain.fits.drop(columns="seconds"), found.levels[0].comparison.fits.drop(columns="seconds")
    )
    assert (found.levels[1].comparison.fits["score"] > found.levels[0].comparison.fits["score"]).mean() > 0.7


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """``compare_table`` without training; what it was called with."""
    calls: list[dict[str, Any]] = []

    def compare_table(data: Table, options: Options, **words: Any) -> Any:
        calls.append({"table": data, "options": options, **words})
        made = fake_comparison("multiclass", NAMES, ["x", "y", "z"], seed=len(calls), out=words["out"])
        return dataclasses.replace(made, options=options)

    monkeypatch.setattr(study, "compare_table", compare_table)
    return calls


def test_levels_share_candidates_splits_and_what_is_left_of_the_budget(
    faked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = Options(target=("label",), budget=608.0)
    found = run_study(table(), options, "imbalance", [9, 1, 3], out=tmp_path / "out")
    assert [call["options"].imbalance for call in faked] == [1, 3, 9]
    assert len({call["options"].objectives for call in faked}) == 1
    assert "weighted_cross_entropy" in faked[0]["options"].objectives, "imbalanced at the last level"
    assert [call["options"].budget for call in faked] == pytest.approx([200, 300, 600], abs=2)
    assert [call["out"].name for call in faked] == ["imbalance-1", "imbalance-3", "imbalance-9"]
    assert not any(call["best"] for call in faked)
    assert found.metrics == ("log_loss", "balanced_accuracy")
    record = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [level["level"] for level in record["levels"]] == [1, 3, 9]
    assert set(record["levels"][0]["verdicts"]["balanced_accuracy"]) == set(NAMES)


def test_intervals_hold_for_all_metrics_of_a_level_together(faked: list[dict[str, Any]]) -> None:
    found = run_study(table(), Options(target=("label",), metric="f1"), "label_noise", [0.2])
    assert found.metrics == ("f1", "accuracy", "log_loss")
    level = found.levels[0]
    alone = lossary.compare.judge.judge(
        {r.name: study.split_scores(r, "accuracy") for r in level.comparison.candidates}, folds=5, higher_is_better=True
    )
    for name in NAMES[1:]:
        one, many = alone.verdicts[name], level.judgements["accuracy"].verdicts[name]
        assert many.high - many.low > 1.1 * (one.high - one.low)


def test_the_page_and_the_terminal_say_it(faked: list[dict[str, Any]], tmp_path: Path) -> None:
    data = dataclasses.replace(table(), name=HOSTILE)
    found = run_study(data, Options(target=("label",)), "label_noise", [0.0, 0.1, 0.4], out=tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text())
    text = " ".join(" ".join(parts) for tag, parts in page.content.items() if tag not in ("script", "style"))
    assert found.sentence in text.replace("\n", " ")
    assert "calibrated on the noisy rows" in text
    made = write_report_of(dataclasses.replace(found.levels[2].comparison, options=found.options), tmp_path, 0.4, None)
    assert "40% of the labels of training and inner validation rows were made wrong" in made
    assert "test labels are as given" in made
    assert "calibrated on the noisy rows" in made
    made = write_report_of(dataclasses.replace(found.levels[2].comparison, options=found.options), tmp_path, 0.0, 9)
    assert "had 9 times as many rows as the rarest" in made
    assert "made wrong" not in write_report_of(found.levels[2].comparison, tmp_path, 0.0, None)
    assert "test labels are as given" in text
    links = {attributes.get("href") for tag, attributes in page.tags if tag == "a"}
    assert {"noise-0/report.html", "noise-10/report.html", "noise-40/report.html"} <= links
    assert not [a for _, a in page.tags if any(str(v).startswith("http") for k, v in a.items() if k in ("src", "href"))]
    figures = [a["id"] for _, a in page.tags if a.get("class") == "figure"]
    assert len(figures) == 2 + 2 * 3
    drawn = json.loads(next(part for part in page.content["script"] if '"figures"' in part))
    assert set(drawn["figures"]) == set(figures)
    assert len(page.content["script"]) == 3, "nothing of the data is markup"
    output = io.StringIO()
    print_study(found, Console(file=output, width=80), report=tmp_path / "out" / "report.html")
    assert "40%" in output.getvalue()
    assert max(map(len, output.getvalue().split("Report:")[0].splitlines())) <= 80


def write_report_of(comparison: Any, folder: Path, label_noise: float, imbalance: float | None) -> str:
    options = dataclasses.replace(comparison.options, label_noise=label_noise, imbalance=imbalance)
    write_report(dataclasses.replace(comparison, options=options), folder / "level.html")
    return " ".join((folder / "level.html").read_text().split())


def test_a_folder_of_another_kind_is_left_alone(faked: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(UserError, match=r"report\.html, which is no study's"):
        run_study(table(), Options(target=("label",)), "label_noise", [0.1], out=tmp_path)
    assert not faked
    assert (tmp_path / "report.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--label-noise", "0,ten"], "--label-noise is '0,ten'"),
        (["--label-noise", "0,100"], "--label-noise is 100%"),
        (["--imbalance", "0.5"], "--imbalance is 0.5"),
        (["--imbalance", "1000"], "--imbalance 1000 would leave"),
        (["--imbalance", "2", "--label-noise", "10"], "one at a time"),
    ],
)
def test_mistakes(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small_frame().to_csv("table.csv", index=False)
    monkeypatch.setattr("sys.argv", ["lossary", "compare", "table.csv", "--target", "label", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_python_form_wants_one_handicap() -> None:
    with pytest.raises(UserError, match="one of them"):
        lossary.compare.compare_levels(np.zeros((9, 2)), np.arange(9) % 2)
