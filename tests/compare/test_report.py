"""The report is one file without network, says everything, and lets no text of the data become markup."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lossary.compare import report, wording
from lossary.compare.candidates import get_candidate
from lossary.compare.metrics import METRICS, ece
from lossary.compare.report import figures
from lossary.compare.report.curves import objective_curves
from lossary.compare.results import Comparison
from tests.compare.fake_comparison import fake_comparison, with_value

BINARY = ["cross_entropy", "weighted_cross_entropy", "focal", "poly1", "squentropy"]
MANY = [*BINARY, "active_passive", "ldam_drw", "cosine_cross_entropy", "asymmetric", "rescaled_square", "ldam"]
MULTILABEL = ["cross_entropy", "weighted_cross_entropy", "focal", "poly1", "asymmetric"]
REFUSING = "tests.compare.fake_comparison:needs_seven_classes"
HOSTILE = "</script><script>alert('x')</script> <b onload=\"x\">&amp; {{ 7 * 7 }}"

COMPARISONS = {
    "binary": lambda: fake_comparison("binary", BINARY, ["no", "yes"], shares=[0.9, 0.1]),
    "seven classes by macro-F1": lambda: fake_comparison("multiclass", MANY, range(7), metric="f1"),
    "thirty classes": lambda: fake_comparison("multiclass", BINARY, [f"class {'long ' * 20}{k}" for k in range(30)]),
    "multilabel": lambda: fake_comparison("multilabel", MULTILABEL, ["a", "b", "c"]),
    "two candidates, one split": lambda: fake_comparison("binary", BINARY[:2], [0, 1], folds=2, repeats=1, splits=1),
    "the user's own": lambda: fake_comparison("binary", ["cross_entropy", REFUSING], ["no", "yes"]),
}


class Page(HTMLParser):
    """Tags and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.content: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img"):
            self._open.append(tag)
            self.content.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.content[tag][-1] += data

    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.tags if "id" in attributes]

    @functools.cached_property
    def text(self) -> str:
        return " ".join(self.content["main"][0].split())


def render(comparison: Comparison, folder: Path) -> Page:
    path = folder / "report.html"
    report.write_report(comparison, path)
    return Page(path.read_text(encoding="utf-8"))


@functools.cache
def page_of(name: str) -> Page:
    with tempfile.TemporaryDirectory() as folder:
        return render(COMPARISONS[name](), Path(folder))


@pytest.fixture(params=COMPARISONS)
def page(request: pytest.FixtureRequest) -> Page:
    return page_of(request.param)


class TestEveryPage:
    def test_has_every_section_in_order_and_each_begins_with_a_sentence(self, page: Page) -> None:
        assert [id for id in page.ids() if id in report.SECTIONS] == list(report.SECTIONS)
        leads = [number for number, (tag, attributes) in enumerate(page.tags) if attributes.get("class") == "lead"]
        assert len(leads) == len(report.SECTIONS) - 1  # the first begins with the answer itself
        for lead in leads:
            assert [tag for tag, _ in page.tags[lead - 2 : lead]] == ["section", "h2"]

    def test_needs_no_network(self, page: Page) -> None:
        for tag, attributes in page.tags:
            assert tag not in ("link", "img", "iframe", "object", "embed", "base")
            assert not {"src", "srcset", "action", "data"} & attributes.keys()
            assert (attributes.get("href") or "#").startswith("#")
            assert "url(" not in (attributes.get("style") or "")
        (style,) = page.content["style"]
        assert "url(" not in style
        assert "@import" not in style
        policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert str(policy).startswith("default-src 'none'")

    def test_ids_are_unique_and_links_arrive(self, page: Page) -> None:
        ids = page.ids()
        assert len(ids) == len(set(ids))
        assert {a["href"] for tag, a in page.tags if tag == "a"} == {f"#{id}" for id in report.SECTIONS}

    def test_every_figure_has_its_place(self, page: Page) -> None:
        places = {a["id"] for _, a in page.tags if a.get("class") == "figure"}
        assert set(data(page)["figures"]) == places
        assert all(a["aria-label"] for _, a in page.tags if a.get("class") == "figure")

    def test_every_colour_has_a_dark_one(self, page: Page) -> None:
        assert colours([data(page)["figures"], data(page)["theme"]]) <= set(data(page)["dark"])

    def test_shows_no_number_that_is_none(self, page: Page) -> None:
        words = page.text.replace("needs_seven", "").split()
        assert not {"nan", "NaN", "nan%", "inf", "None", "+nan", "-inf"} & set(words)


def data(page: Page) -> dict[str, Any]:
    return json.loads(next(script for script in page.content["script"] if script.startswith("{")))


def colours(value: Any) -> set[str]:
    """Every ``#rrggbb`` in a figure."""
    if isinstance(value, str):
        return {value} if value.startswith("#") else set()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return set().union(*map(colours, items))


class TestText:
    @pytest.fixture
    def hostile(self, tmp_path: Path) -> Page:
        comparison = fake_comparison(
            "binary",
            BINARY[:3],
            ["no", HOSTILE],
            shares=[0.9, 0.1],
            name=HOSTILE,
            warnings=(f"Column {HOSTILE!r} is constant.",),
        )
        first = dataclasses.replace(comparison.candidates[1], title=HOSTILE)
        candidates = [comparison.candidates[0], first, *comparison.candidates[2:]]
        return render(dataclasses.replace(comparison, candidates=candidates, notes=[HOSTILE]), tmp_path)

    def test_of_the_data_stays_text(self, hostile: Page) -> None:
        assert len(hostile.content["script"]) == 3  # data, plotly.js, page.js
        assert not any("onload" in attributes for _, attributes in hostile.tags)
        assert hostile.text.count(HOSTILE) >= 5
        assert HOSTILE in hostile.content["title"][0]

    def test_of_the_data_is_no_markup_in_figures(self, hostile: Page) -> None:
        assert "&lt;b onload" in json.dumps(data(hostile)["figures"])
        assert "<b onload" not in json.dumps(data(hostile)["figures"])

    def test_of_a_number_says_how_much(self) -> None:
        assert [wording.number(x) for x in (0.12345, -0.5, 0.000123, 0.0, math.nan, math.inf)] == [
            "0.1235", "\N{MINUS SIGN}0.5000", "0.00012", "0.0000", "\N{EN DASH}", "\N{EN DASH}",
        ]  # fmt: skip
        assert [wording.signed(x) for x in (0.5, -0.5)] == ["+0.5000", "\N{MINUS SIGN}0.5000"]
        assert [wording.percent(x) for x in (0.01, 0.034, 0.5, 0.0, -0.0001)] == ["1%", "3.4%", "50%", "0%", "0%"]
        assert wording.percent(0.034, sign=True) == "+3.4%"
        assert [wording.duration(x) for x in (4.4, 65, 7500)] == ["4 s", "1 min 05 s", "2 h 05 min"]
        assert [wording.listing(x) for x in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
            "",
            "a",
            "a and b",
            "a, b and c",
        ]


class TestContents:
    def test_begin_with_the_answer(self) -> None:
        page = page_of("binary")
        assert page.content["h1"] == [COMPARISONS["binary"]().judgement.sentence]
        assert METRICS["log_loss"].rewards in page.text
        assert METRICS["log_loss"].alternatives in page.text

    def test_warn_of_the_cap_above_a_fifth(self) -> None:
        assert "Training of Focal loss was often cut off" in page_of("binary").text
        assert page_of("binary").text.count("above 20%") == 1
        assert "above 20%" not in page_of("the user's own").text

    def test_name_the_plain_loop_and_what_could_not_be_drawn(self) -> None:
        page = page_of("the user's own")
        assert "needs_seven_classes cannot be vectorised" in page.text
        assert "It could not be drawn for two classes. RuntimeError" in page.text

    def test_say_that_one_split_is_no_test(self) -> None:
        page = page_of("two candidates, one split")
        assert "there is no test here" in page.text
        assert "simultaneous" not in page.text
        assert "1 of 2 repeats did not finish in time and were dropped" in page.text

    def test_give_the_command_back(self, tmp_path: Path) -> None:
        page = render(fake_comparison("binary", BINARY[:2], [0, 1], name="a b.csv", metric="f1", folds=3), tmp_path)
        assert "lossary compare 'a b.csv' --target y --metric f1 --folds 3 --budget 600" in page.content["pre"]

    def test_point_to_best_only_where_it_is(self, tmp_path: Path) -> None:
        comparison = fake_comparison("binary", BINARY[:2], [0, 1], out=tmp_path)
        assert "lossary predict" not in render(comparison, tmp_path).text
        (tmp_path / "best").mkdir()
        assert f"lossary predict {tmp_path}/best" in render(comparison, tmp_path).text

    def test_show_diverged_trials(self, tmp_path: Path) -> None:
        comparison = fake_comparison("binary", BINARY[:2], [0, 1])
        trials = comparison.candidates[1].trials.assign(score=math.inf)
        broken = dataclasses.replace(comparison.candidates[1], trials=trials, settings=[])
        page = render(dataclasses.replace(comparison, candidates=[comparison.candidates[0], broken]), tmp_path)
        assert f"{wording.NOTHING} in the end; {len(trials)} trials diverged" in page.text

    def test_of_an_earlier_report_outlive_a_failure(self, tmp_path: Path) -> None:
        path = tmp_path / "report.html"
        path.write_text("earlier")
        comparison = fake_comparison("binary", BINARY[:2], [0, 1])
        with pytest.raises(KeyError):
            report.write_report(dataclasses.replace(comparison, judgement=no_verdicts(comparison)), path)
        assert [file.read_text() for file in tmp_path.iterdir()] == ["earlier"]


def no_verdicts(comparison: Comparison) -> Any:
    return dataclasses.replace(comparison.judgement, verdicts={})


class TestTunedThreshold:
    @pytest.fixture
    def comparison(self) -> Comparison:
        """By macro-F1: focal gains 0.1 untuned; how much cross-entropy gains by tuning is up to the test."""
        comparison = fake_comparison("binary", ["cross_entropy", "focal"], [0, 1], metric="f1")
        for candidate, form, value in ((0, "as_trained", 0.5), (1, "as_trained", 0.6), (1, "judged", 0.6)):
            comparison = with_value(comparison, candidate, "f1", form, value)
        return comparison

    def test_that_gives_the_same_gain_is_said(self, comparison: Comparison, tmp_path: Path) -> None:
        comparison = with_value(comparison, 0, "f1", "judged", 0.6)
        (tuning,) = wording.tunings(comparison)
        assert tuning.matched == ["Focal loss"]
        assert tuning.gain == pytest.approx(0.1)
        page = render(comparison, tmp_path)
        assert page.text.count("the same gain as Focal loss without tuning") == 2  # with the answer, and in its section

    def test_that_gives_less_is_no_rival(self, comparison: Comparison) -> None:
        (tuning,) = wording.tunings(with_value(comparison, 0, "f1", "judged", 0.55))
        assert tuning.matched == []
        assert "matches no other" in tuning.sentence

    def test_is_no_rival_of_what_gains_more_once_tuned_too(self, comparison: Comparison) -> None:
        comparison = with_value(with_value(comparison, 0, "f1", "judged", 0.6), 1, "f1", "judged", 0.65)
        assert wording.tunings(comparison)[0].matched == []

    def test_is_shown_for_all_decision_metrics_where_the_primary_needs_none(self) -> None:
        comparison = fake_comparison("binary", BINARY, [0, 1])
        assert [t.metric.name for t in wording.tunings(comparison)] == ["accuracy", "balanced_accuracy", "f1"]


class TestFigures:
    @pytest.mark.parametrize(("task", "classes"), [("binary", 2), ("multiclass", 5), ("multilabel", 3)])
    def test_reliability_bins_are_those_of_ece(self, task: Any, classes: int) -> None:
        comparison = fake_comparison(task, ["cross_entropy"], range(classes))
        result, target = comparison.candidates[0], comparison.table.target
        bins = figures.reliability_bins(result.raw_probabilities[:1], [target])
        gap = (bins["confidence"] - bins["observed"]).abs()
        assert bins["count"].sum() == target.size
        expected = ece(np.log(result.raw_probabilities[0]), target, task=task)
        assert (gap * bins["count"]).sum() / target.size == pytest.approx(expected)

    def test_candidates_differ_in_colour_or_filling_and_cross_entropy_is_grey(self) -> None:
        styles = [figures.Style(index) for index in range(15)]
        assert styles[0].color == figures.GREY
        assert len({(style.color, style.hollow) for style in styles}) == 15
        assert figures.GREY not in {style.color for style in styles[1:]}

    def test_the_forest_draws_what_decides(self) -> None:
        comparison = fake_comparison("binary", BINARY, [0, 1])
        rows = [
            (c.title, figures.Style(i), comparison.judgement.verdicts[c.name])
            for i, c in enumerate(comparison.candidates)
        ]
        drawn = figures.forest(rows, margin=0.004, metric="log-loss")
        lines = [tuple(trace.x) for trace in drawn.data if trace.mode == "lines"]
        assert lines == [(v.low, v.high) for _, _, v in rows[1:]]
        band, zero = drawn.layout.shapes
        assert (band.x0, band.x1, zero.x0) == (-0.004, 0.004, 0)
        assert {v.verdict for _, _, v in rows} <= {note.text for note in drawn.layout.annotations}

    def test_best_so_far_is_the_median_over_splits_and_skips_diverged_trials(self) -> None:
        trials = pd.DataFrame(
            {"split": [0, 0, 0, 1, 1, 1], "trial": [0, 1, 2] * 2, "score": [3, math.inf, 1, math.inf, 5, 7]}
        )
        assert figures.best_so_far(trials, higher=False).tolist() == [3, 4, 3]
        assert figures.best_so_far(trials, higher=True).tolist() == [3, 4, 5]


class TestCurves:
    def test_of_cross_entropy_are_its_formula(self) -> None:
        table = fake_comparison("binary", ["cross_entropy"], [0, 1], shares=[0.9, 0.1]).table
        (curve,) = objective_curves(get_candidate("cross_entropy", "binary"), {}, table, epoch=0)
        assert curve.label == "any row"
        loss = np.log1p(np.exp(-curve.margin))
        np.testing.assert_allclose(curve.loss, loss - loss.min(), atol=2e-3)
        np.testing.assert_allclose(curve.gradient, -1 / (1 + np.exp(curve.margin)), atol=1e-4)
        assert (curve.margin[0], curve.margin[-1]) == (-8, 8)

    def test_of_class_weights_weigh_each_class_by_its_rarity(self) -> None:
        table = fake_comparison("multiclass", ["cross_entropy"], "abc", rows=1000, shares=[0.6, 0.3, 0.1]).table
        counts = np.bincount(table.target)
        frequent, rare = objective_curves(get_candidate("weighted_cross_entropy", "multiclass"), {}, table, epoch=0)
        assert (frequent.label, rare.label) == ("a row of class a", "a row of class c")
        np.testing.assert_allclose(rare.gradient / frequent.gradient, counts[0] / counts[2], rtol=1e-3)

    def test_of_margins_are_shifted_and_deferred_weights_are_those_of_the_epoch(self) -> None:
        table = fake_comparison("binary", ["cross_entropy"], [0, 1], rows=1000, shares=[0.9, 0.1]).table
        settings = {"scale": 10.0, "max_margin": 0.5, "start_epoch": 20.0}
        candidate = get_candidate("ldam_drw", "binary")
        early, late = (objective_curves(candidate, settings, table, epoch=epoch)[1] for epoch in (0, 40))
        half = early.margin[np.abs(early.gradient + 0.5).argmin()]
        assert half == pytest.approx(5, abs=0.2)  # the rarest class's margin, times the scale
        assert (late.gradient / early.gradient).min() > 2

    def test_of_a_label_are_drawn_for_its_presence_and_absence(self) -> None:
        table = fake_comparison("multilabel", ["cross_entropy"], ["a", "b"]).table
        settings = {"gamma_neg": 4.0, "gamma_pos": 0.0, "clip": 0.05}
        absent, present = objective_curves(get_candidate("asymmetric", "multilabel"), settings, table, epoch=0)
        assert (absent.label, present.label) == ("a row without b", "a row with b")
        np.testing.assert_allclose(present.gradient, -1 / (1 + np.exp(present.margin)), atol=1e-3)
        assert absent.gradient[-1] == 0  # clipped
