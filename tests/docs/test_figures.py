"""Curves are the objectives' own, and charts show what they are given."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch.nn import functional as F

from docs.generator import charts, curves, shelf
from lossary.classification import focal_loss, sigmoid_focal_loss
from lossary.core.objective import Kind, Registered


def drawing(name: str) -> curves.Drawing:
    drawn = curves.draw(shelf.registered()[name])
    assert drawn is not None
    return drawn


def registered(function: object, kind: Kind = Kind.CLASSES, **changes: object) -> Registered:
    fields: dict[str, object] = {"name": "x", "family": "x", "function": function, "kind": kind, "exempt": {}}
    fields |= {"example": lambda num: {}, "arguments": lambda input, target: {"input": input, "target": target}}
    fields |= dict.fromkeys(("unbounded", "stateful", "batch_level"), False)
    return Registered(**{**fields, **changes})  # type: ignore[arg-type]


class TestCurves:
    def test_of_classes_are_those_of_two_logits(self) -> None:
        drawn = drawing("focal_loss")
        (curve,) = drawn.curves
        margin = torch.tensor(drawn.margin)
        logits = torch.stack([margin / 2, -margin / 2], 1)
        expected = focal_loss(logits, torch.zeros(len(margin), dtype=torch.long), reduction="none")
        torch.testing.assert_close(torch.tensor(curve.loss), expected)
        torch.testing.assert_close(torch.tensor(drawn.baseline.loss), F.softplus(-margin))

    def test_of_labels_are_those_of_yes_and_no(self) -> None:
        drawn = drawing("sigmoid_focal_loss")
        yes, no = drawn.curves
        assert (yes.label, no.label) == ("a yes", "a no")
        margin = torch.tensor(drawn.margin)
        expected = sigmoid_focal_loss(-margin, torch.zeros_like(margin), reduction="none")
        torch.testing.assert_close(torch.tensor(no.loss), expected)

    def test_slopes_are_derivatives(self) -> None:
        drawn = drawing("poly1_cross_entropy_loss")
        step = drawn.margin[1] - drawn.margin[0]
        loss, slope = drawn.curves[0].loss, drawn.curves[0].gradient
        middle = len(loss) // 2
        assert (loss[middle + 1] - loss[middle - 1]) / (2 * step) == pytest.approx(slope[middle], rel=0.02)

    def test_variants_change_the_shape_and_not_the_height_alone(self) -> None:
        assert [curve.label for curve in drawing("focal_loss").variants] == ["gamma = 1", "gamma = 4"]
        assert drawing("squentropy_loss").variants == ()

    def test_of_steep_objectives_are_drawn_for_cosines(self) -> None:
        assert max(drawing("ldam_loss").margin) == curves.COSINE_REACH

    def test_every_objective_of_classes_and_labels_has_some(self) -> None:
        kinds = [Kind.CLASSES, Kind.LABELS]
        entries = [entry for entry in shelf.registered().values() if entry.kind in kinds]
        missing = [entry.name for entry in entries if curves.draw(entry) is None]
        assert len(missing) < len(entries) / 2, f"no curve of {missing}"

    @pytest.mark.parametrize(
        "function",
        [
            lambda input, target, *, reduction: F.cross_entropy(input, target, reduction=reduction) / len(input),
            lambda input, target, *, reduction: F.cross_entropy(input, target),
            lambda input, target, *, reduction: torch.full(target.shape, math.nan) + input.sum(1),
            lambda input, target, teacher, *, reduction: F.cross_entropy(input, target, reduction="none"),
            lambda input, target: F.cross_entropy(input, target),
        ],
        ids=["depends on the batch", "has no rows", "is not finite", "wants more", "has no reduction"],
    )
    def test_there_is_none_where_a_row_has_none(self, function: object) -> None:
        assert curves.draw(registered(function)) is None

    def test_there_is_none_of_an_unknown_kind(self) -> None:
        class Bins:
            name = "BINS"

        assert curves.draw(registered(F.cross_entropy, kind=Bins())) is None  # type: ignore[arg-type]


class TestCharts:
    def test_are_well_formed_and_named(self) -> None:
        chart = charts.lines(
            [charts.Line("<a>", [0, 1, 2], [0.0, 5.0, 2.0])], title='the "title" & <more>', x_label="<x>"
        )
        root = ElementTree.fromstring(chart)
        assert root.attrib["aria-label"] == 'the "title" & <more>'
        assert "<x>" in [text.text for text in root.iter("text")]

    def test_draw_a_gap_where_a_value_is_missing(self) -> None:
        chart = charts.lines([charts.Line("a", [0, 1, 2, 3, 4], [0.0, 1.0, math.nan, 1.0, 0.0])], title="t")
        (path,) = re.findall(r'class="line[^"]*" d="([^"]+)"', chart)
        assert (path.count("M"), path.count("L")) == (2, 2)

    def test_place_values_in_order(self) -> None:
        chart = charts.intervals([("row", [charts.Dots([1.0, 3.0], 2.0, 1.5, 2.5)])], title="t", x_label="x")
        places = [float(x) for x in re.findall(r'<circle class="seed[^"]*" cx="([\d.]+)"', chart)]
        (mean,) = (float(x) for x in re.findall(r'<circle class="dot[^"]*" cx="([\d.]+)"', chart))
        assert places[0] < mean < places[1]
        assert mean == pytest.approx(sum(places) / 2, abs=0.1)

    def test_of_nothing_are_nothing(self) -> None:
        assert charts.lines([], title="t") == ""
        assert charts.intervals([("a", [charts.Dots([], math.nan)])], title="t", x_label="x") == ""

    def test_of_one_value_have_a_scale(self) -> None:
        ElementTree.fromstring(charts.lines([charts.Line("a", [1], [2.0], dots=True)], title="t"))

    @pytest.mark.parametrize(
        ("low", "high", "ticks"),
        [
            (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (-8, 8, [-7.5, -5, -2.5, 0, 2.5, 5, 7.5]),
            (0.7, 0.91, [0.7, 0.75, 0.8, 0.85, 0.9]),
            (2, 2, [2]),
        ],
    )
    def test_ticks_are_round(self, low: float, high: float, ticks: list[float]) -> None:
        assert charts.nice_ticks(low, high) == pytest.approx(ticks)
