"""``report.html``: one file that answers, shows why, and says how it was done, without any network."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.offline
from markupsafe import Markup

from lossary.compare import wording
from lossary.compare.candidates import Candidate, Dimension, get_candidate
from lossary.compare.collect import AT_CAP_WARNING
from lossary.compare.metrics import METRICS, Metric
from lossary.compare.options import Options
from lossary.compare.report import figures
from lossary.compare.report.curves import Curve, objective_curves, why_no_curve
from lossary.compare.report.figures import Style
from lossary.compare.results import CandidateResult, Comparison

if TYPE_CHECKING:
    from lossary.compare.judge import Verdict

SECTIONS = {
    "answer": "The answer",
    "metric": "What is rewarded",
    "verdicts": "The verdicts",
    "warnings": "What could spoil the answer",
    "metrics": "Every metric",
    "calibration": "Do probabilities mean what they say?",
    "recall": "Who is found, class by class",
    "curves": "What each objective asks for",
    "search": "The search for settings",
    "threshold": "Would a tuned threshold do?",
    "training": "Did training come to an end?",
    "plan": "What was run",
    "how": "How it was done",
    "versions": "To run it again",
}
"""Identifier and heading of each section, in order."""


def write_report(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Write a comparison as one HTML file that needs nothing else: no network, no other file.

    The file is written aside and renamed, so that a broken write leaves an earlier report as it was.

    Args:
        comparison: What to report.
        path: File to write.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(_render(comparison), encoding="utf-8")
    aside.replace(path)


class Plots:
    """The figures of a page by the id of their place."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}

    def add(self, place: str, figure: go.Figure) -> str:
        """Keep a figure for a place of the page; returns the place."""
        drawn = figure.to_plotly_json()
        drawn["layout"].pop("template", None)  # Plotly's own; the page has one for all figures
        self.figures[place] = drawn
        return place


def frame(title: str, sections: Mapping[str, str], plots: Plots) -> dict[str, Any]:
    """What the frame of a page (``base.html``) is filled with."""
    folder = Path(__file__).parent
    return {
        "title": title,
        "sections": sections,
        "figures": plots.figures,
        "theme": figures.THEME,
        "dark": figures.DARK,
        # Files of this package and plotly.js: trusted as they are.
        "css": Markup((folder / "page.css").read_text(encoding="utf-8")),
        "script": Markup((folder / "page.js").read_text(encoding="utf-8")),
        "plotly": Markup(plotly.offline.get_plotlyjs()),
    }


def render(template: str, frame: Mapping[str, Any], **values: Any) -> str:
    """Fill a template of this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (wording.number, wording.signed, wording.percent, wording.duration, wording.listing, wording.sentence_case)
    environment.filters |= {word.__name__: word for word in words}
    environment.globals["interval"] = wording.interval
    return environment.get_template(template).render(**frame, **values)


def _render(comparison: Comparison) -> str:
    views = _views(comparison)
    by_name = {view.name: view for view in views}
    ranked = [by_name[result.name] for result in wording.ranked(comparison)]
    plots = Plots()
    return render(
        "page.html",
        frame(f"{comparison.table.name}: which objective?", SECTIONS, plots),
        comparison=comparison,
        table=comparison.table,
        options=comparison.options,
        plan=comparison.plan,
        metric=comparison.metric,
        judgement=comparison.judgement,
        views=views,
        by_name=by_name,
        ranked=ranked,
        splits=len(comparison.candidates[0].settings),
        repeats=len(comparison.candidates[0].rows),
        inner_folds=comparison.fits["inner"].nunique(),
        margin=_margin(comparison),
        diverged=int(np.isinf(comparison.fits["score"]).sum()),
        cap_warning=AT_CAP_WARNING,
        has_best=comparison.out is not None and (comparison.out / "best").is_dir(),
        command=_command(comparison.options, comparison.table.name),
        forest=plots.add("forest", _forest(comparison, ranked)),
        metric_tables=_metric_tables(comparison, views),
        reliability=_reliability(comparison, views, plots),
        recall=_recall(views),
        curves=_curves(comparison, views, plots),
        histories=_histories(comparison, views, plots),
        ranges=_ranges(comparison, views),
        tunings=wording.tunings(comparison),
    )


@dataclasses.dataclass(frozen=True)
class View:
    """A candidate as the page shows it."""

    result: CandidateResult
    verdict: Verdict
    candidate: Candidate
    style: Style

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return self.result.name

    @property
    def title(self) -> str:
        """Its name for people."""
        return self.result.title


def _views(comparison: Comparison) -> list[View]:
    verdicts, task = comparison.judgement.verdicts, comparison.table.task
    return [
        View(result, verdicts[result.name], get_candidate(result.name, task), Style(index))
        for index, result in enumerate(comparison.candidates)
    ]


def _margin(comparison: Comparison) -> float:
    """The smallest difference that matters, in units of the metric."""
    return comparison.options.min_effect * abs(comparison.judgement.verdicts[comparison.candidates[0].name].mean)


def _forest(comparison: Comparison, ranked: Sequence[View]) -> go.Figure:
    rows = [(view.title, view.style, view.verdict) for view in ranked]
    return figures.forest(rows, margin=_margin(comparison), metric=comparison.metric.title)


@dataclasses.dataclass(frozen=True)
class MetricTable:
    """Means of one metric over splits; ``rows`` are (view, judged, as trained, spread over splits, is best)."""

    metric: Metric
    primary: bool
    rows: list[tuple[View, float, float, float, bool]]


def _metric_tables(comparison: Comparison, views: Sequence[View]) -> list[MetricTable]:
    present = set(comparison.candidates[0].metrics["metric"])
    names = sorted((name for name in METRICS if name in present), key=lambda name: name != comparison.metric.name)
    return [_metric_table(METRICS[name], views, primary=name == comparison.metric.name) for name in names]


def _metric_table(metric: Metric, views: Sequence[View], *, primary: bool) -> MetricTable:
    judged, raw, spread = (
        [_over_splits(view, metric, form, how) for view in views]
        for form, how in (("judged", "mean"), ("as_trained", "mean"), ("judged", "std"))
    )
    known = [mean for mean in judged if math.isfinite(mean)]
    best = (max if metric.higher_is_better else min)(known, default=math.nan)
    rows = list(zip(views, judged, raw, spread, [mean == best for mean in judged], strict=True))
    return MetricTable(metric, primary, rows)


def _over_splits(view: View, metric: Metric, form: str, how: str) -> float:
    metrics = view.result.metrics
    values = metrics.loc[(metrics["metric"] == metric.name) & (metrics["form"] == form), "value"]
    return float(values.agg(how))


def _reliability(comparison: Comparison, views: Sequence[View], plots: Plots) -> list[tuple[View, str, float, float]]:
    """(view, figure, ECE as trained, ECE calibrated) of every candidate."""
    ece = _metric_table(METRICS["ece"], views, primary=False)
    return [
        (
            view,
            plots.add(f"reliability-{index}", figures.reliability(view.result, comparison.table.target, view.style)),
            raw,
            calibrated,
        )
        for index, (view, calibrated, raw, _, _) in enumerate(ece.rows)
    ]


@dataclasses.dataclass(frozen=True)
class RecallCell:
    """Recall of one class by one candidate; ``tint`` is its difference to cross-entropy, from -1 to 1, as a colour."""

    judged: float
    argmax: float
    tint: float


def _recall(views: Sequence[View]) -> list[tuple[Any, int, list[RecallCell]]]:
    """(class, rows, a cell for every candidate) of every class."""
    rows = []
    for place, (label, support) in enumerate(views[0].result.recall[["class", "support"]].itertuples(index=False)):
        cells = []
        for view in views:
            here, base = (candidate.result.recall.iloc[place] for candidate in (view, views[0]))
            tint = float(np.nan_to_num(np.clip((here["judged"] - base["judged"]) / 0.2, -1, 1)))
            cells.append(RecallCell(float(here["judged"]), float(here["argmax"]), tint))
        rows.append((label, int(support), cells))
    return rows


@dataclasses.dataclass(frozen=True)
class CurvePanel:
    """A candidate's curve: its figure, or why there is none."""

    view: View
    settings: dict[str, float]
    figure: str | None
    labels: list[str]
    problem: str = ""


def _curves(comparison: Comparison, views: Sequence[View], plots: Plots) -> list[CurvePanel]:
    panels: list[CurvePanel] = []
    baseline: list[Curve] = []
    for index, view in enumerate(views):
        settings = _median_settings(view)
        shown = {dimension.name: settings[dimension.name] for dimension in view.candidate.space if settings}
        if reason := why_no_curve(view.candidate):
            panels.append(CurvePanel(view, shown, None, [], reason))
            continue
        try:
            drawn = objective_curves(view.candidate, settings, comparison.table, epoch=comparison.plan.max_epochs - 1)
        except Exception as error:  # a user's own objective may raise anything when it meets two classes
            problem = f"It could not be drawn for two classes. {type(error).__name__}: {error}"
            panels.append(CurvePanel(view, shown, None, [], problem))
            continue
        baseline = baseline or drawn
        place = plots.add(f"curve-{index}", figures.curves(drawn, baseline, view.style))
        panels.append(CurvePanel(view, shown, place, [curve.label for curve in drawn]))
    return panels


def _median_settings(view: View) -> dict[str, float]:
    if not view.result.settings:
        return {}
    chosen = pd.DataFrame(view.result.settings)
    return {dimension.name: float(chosen[dimension.name].median()) for dimension in view.candidate.dimensions}


def _histories(comparison: Comparison, views: Sequence[View], plots: Plots) -> list[tuple[View, str, float, int]]:
    """(view, figure, median of the best scores, trials that diverged) of every candidate."""
    higher = comparison.metric.higher_is_better
    trials = {view.name: _in_metric_units(view.result.trials, higher) for view in views}
    scores = pd.concat(list(trials.values()))["score"]
    finite = scores[np.isfinite(scores)]
    # The worst tenth would flatten all the others; it stays outside the frame.
    low, high = finite.quantile([0.1, 1.0] if higher else [0.0, 0.9]) if len(finite) else (0.0, 1.0)
    pad = 0.05 * (high - low) or 0.05
    return [
        (
            view,
            plots.add(
                f"history-{index}",
                figures.history(
                    trials[view.name],
                    trials[views[0].name],
                    view.style,
                    score_range=(low - pad, high + pad),
                    higher=higher,
                ),
            ),
            float(figures.best_so_far(trials[view.name], higher=higher).iloc[-1]),
            int((~np.isfinite(trials[view.name]["score"])).sum()),
        )
        for index, view in enumerate(views)
    ]


def _in_metric_units(trials: pd.DataFrame, higher: bool) -> pd.DataFrame:
    """Trial scores are lower-is-better throughout the search; turn them back."""
    return trials.assign(score=-trials["score"]) if higher else trials


@dataclasses.dataclass(frozen=True)
class Range:
    """A searched dimension: its median over splits and where in the range each choice lay, in percent."""

    dimension: Dimension
    median: float
    positions: list[float]


def _ranges(comparison: Comparison, views: Sequence[View]) -> list[tuple[View, list[Range]]]:
    return [
        (
            view,
            [
                Range(
                    dimension,
                    _median_settings(view)[dimension.name],
                    [_position(dimension, settings[dimension.name]) for settings in view.result.settings],
                )
                for dimension in view.candidate.dimensions
                if view.result.settings
            ],
        )
        for view in views
    ]


def _position(dimension: Dimension, value: float) -> float:
    """Where a value lies in its range, in percent of the range as it is searched."""
    low, high, at = (math.log(x) if dimension.log else x for x in (dimension.low, dimension.high, value))
    return 100 * (at - low) / (high - low)


def _command(options: Options, data: str) -> str:
    """The command line that asks for the same, without what is the default."""
    words = ["lossary", "compare", data]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        if field.name == "label_noise":  # a percentage on the command line
            value = 100 * value
        text = ",".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)
        words += [f"--{field.name.replace('_', '-')}", text]
    return shlex.join(words)
