"""``report.html`` of a study: how each objective bears a growing handicap."""

from __future__ import annotations

import dataclasses
import html
import math
import os
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from lossary.compare.judge import Verdict
from lossary.compare.metrics import METRICS, Metric
from lossary.compare.report import Plots, frame, render
from lossary.compare.report.figures import GREY, MUTED, Style
from lossary.compare.study import Study

SECTIONS = {
    "answer": "The answer",
    "means": "What each objective reaches",
    "differences": "Against cross-entropy",
    "numbers": "Every number",
    "how": "How it was done",
}


def write_study(study: Study, path: str | os.PathLike[str]) -> None:
    """Write a study as one HTML file that needs no network; it links to the report of each level beside it.

    The file is written aside and renamed.

    Args:
        study: What to report.
        path: File to write.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(_render(study), encoding="utf-8")
    aside.replace(path)


@dataclasses.dataclass(frozen=True)
class Row:
    """A candidate over the levels; ``verdicts`` are by metric, then by level, None where it was left out."""

    title: str
    style: Style
    verdicts: dict[str, list[Verdict | None]]


def _render(study: Study) -> str:
    plots = Plots()
    rows = _rows(study)
    metrics = [METRICS[name] for name in study.metrics]
    labels = [_tick(study, level.level) for level in study.levels]
    means = [(metric, plots.add(f"means-{metric.name}", _means(rows, labels, metric, study))) for metric in metrics]
    differences = [
        (
            metric,
            [
                (row, plots.add(f"difference-{metric.name}-{place}", _difference(row, labels, metric, span, study)))
                for place, row in enumerate(rows[1:])
            ],
        )
        for metric, span in ((metric, _span(rows, metric)) for metric in metrics)
    ]
    return render(
        "study.html",
        frame(f"{study.table.name}: {_subject(study)}", SECTIONS, plots),
        study=study,
        subject=_subject(study),
        rows=rows,
        metrics=metrics,
        means=means,
        differences=differences,
        labels=labels,
        cross_entropy=rows[0].title,
        splits=len(study.levels[0].comparison.candidates[0].settings),
    )


def _subject(study: Study) -> str:
    return "wrong labels" if study.handicap == "label_noise" else "rare classes"


def _tick(study: Study, level: float) -> str:
    return f"{100 * level:g}%" if study.handicap == "label_noise" else f"{level:g} : 1"


def _rows(study: Study) -> list[Row]:
    titles = {r.name: r.title for level in study.levels for r in level.comparison.candidates}
    return [
        Row(
            title,
            Style(index),
            {
                metric: [level.judgements[metric].verdicts.get(name) for level in study.levels]
                for metric in study.metrics
            },
        )
        for index, (name, title) in enumerate(titles.items())
    ]


def _axis_title(study: Study) -> str:
    if study.handicap == "label_noise":
        return "training and validation labels made wrong"
    return "training rows of the most frequent class for one of the rarest"


def _means(rows: Sequence[Row], labels: Sequence[str], metric: Metric, study: Study) -> go.Figure:
    """A line for each candidate; cross-entropy's is drawn last, on top."""
    figure = go.Figure()
    for row in [*rows[1:], rows[0]]:
        values = [math.nan if verdict is None else verdict.mean for verdict in row.verdicts[metric.name]]
        figure.add_scatter(
            x=list(labels),
            y=[None if math.isnan(value) else round(value, 6) for value in values],
            mode="lines+markers",
            name=html.escape(row.title),
            line={"color": row.style.color, "width": 2},
            marker={"color": row.style.color, "symbol": row.style.symbol, "size": 9},
            hovertemplate=f"{html.escape(row.title)}: %{{y:.4g}}<extra></extra>",
        )
    figure.update_xaxes(title_text=_axis_title(study), type="category")
    figure.update_yaxes(title_text=metric.title)
    figure.update_layout(height=360)
    return figure


def _span(rows: Sequence[Row], metric: Metric) -> tuple[float, float]:
    """Range of all intervals of a metric, the widest twentieth left out, so that panels can be compared."""
    ends = [
        end
        for row in rows[1:]
        for verdict in row.verdicts[metric.name]
        if verdict is not None
        for end in (verdict.low, verdict.high, verdict.difference)
        if math.isfinite(end)
    ]
    if not ends:
        return -1.0, 1.0
    ends.sort()
    cut = len(ends) // 20
    low, high = min(ends[cut], 0.0), max(ends[-1 - cut], 0.0)
    pad = 0.08 * (high - low) or 0.01
    return low - pad, high + pad


def _difference(row: Row, labels: Sequence[str], metric: Metric, span: tuple[float, float], study: Study) -> go.Figure:
    """A candidate's improvement over cross-entropy with its intervals; above zero is better."""
    figure = go.Figure()
    for label, verdict in zip(labels, row.verdicts[metric.name], strict=True):
        if verdict is None:
            continue
        if math.isfinite(verdict.low):
            figure.add_scatter(
                x=[label, label],
                y=[verdict.low, verdict.high],
                mode="lines",
                line={"color": row.style.color, "width": 3},
                hoverinfo="skip",
            )
        figure.add_scatter(
            x=[label],
            y=[verdict.difference],
            mode="markers",
            marker={"color": row.style.color, "symbol": row.style.symbol, "size": 10},
            hovertemplate=f"{html.escape(row.title)}: %{{y:+.4g}}, {verdict.verdict}<extra></extra>",
        )
    figure.add_hline(y=0, line={"color": GREY, "width": 1}, layer="below")
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=list(labels), color=MUTED)
    figure.update_yaxes(range=list(span))
    figure.update_layout(height=220)
    return figure
