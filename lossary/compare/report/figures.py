"""The figures of the report, in its light colours; the page exchanges them for dark ones."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from lossary import calibration
from lossary.compare.report.curves import Curve

if TYPE_CHECKING:
    from lossary.compare.judge import Verdict
    from lossary.compare.results import CandidateResult

INK, MUTED, GRID, BAND = "#1c2128", "#626c77", "#e4e7eb", "#eef1f4"
GREY = "#737c87"
"""Cross-entropy's colour."""
HUES = ("#0072b2", "#d55e00", "#009e73", "#b5528c", "#56b4e9", "#e69f00", "#7a4b1f")
"""Okabe and Ito's colours, told apart by colour-blind readers; their yellow, too pale on white, is brown here."""
DARK = {
    INK: "#e8eaed",
    MUTED: "#9ba5b0",
    GRID: "#2f353d",
    BAND: "#262c34",
    GREY: "#a3acb7",
    "#0072b2": "#4ea3f0",
    "#d55e00": "#ff8b45",
    "#009e73": "#2bc79a",
    "#b5528c": "#e796c8",
    "#56b4e9": "#9fdcff",
    "#e69f00": "#f2c14e",
    "#7a4b1f": "#c8a27c",
}
"""What each colour becomes on a dark page."""
_AXIS = {
    "fixedrange": True,
    "automargin": True,
    "gridcolor": GRID,
    "zerolinecolor": GRID,
    "linecolor": GRID,
    "tickfont": {"color": MUTED, "size": 11},
    "title": {"font": {"color": MUTED, "size": 12}, "standoff": 6},
}
THEME = {
    "layout": {
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "showlegend": False,
        "dragmode": False,
        "hoverlabel": {"bgcolor": BAND, "bordercolor": GRID, "font": {"color": INK}},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
}
"""Plotly template of all figures, once in the page: no frame, no legend, no zooming, so that a finger can scroll."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "star")
BINS = 15
DOTS = 1_000
"""Most trials of a candidate that are drawn."""
TITLE_WIDTH = 44
"""Characters of a title that fit above its interval on a phone."""


class Style:
    """Colour and symbol of a candidate, the same in every figure: cross-entropy is grey, hollow symbols come second.

    Args:
        index: Place of the candidate; 0 is cross-entropy.
    """

    def __init__(self, index: int) -> None:
        place = (index - 1) % len(HUES)
        self.color = HUES[place] if index else GREY
        self.hollow = index > len(HUES)
        self.symbol = ("circle" if not index else SYMBOLS[place]) + ("-open" if self.hollow else "")
        self.variable = f"--c-{self.color[1:]}"
        """CSS variable that holds the colour."""


def forest(verdicts: Sequence[tuple[str, Style, Verdict]], *, margin: float, metric: str) -> go.Figure:
    """Intervals of the difference to cross-entropy; the band is what is too small to matter.

    Args:
        verdicts: (title, style, verdict), the best first.
        margin: Half-width of the band, in units of the metric.
        metric: Its title.
    """
    figure = go.Figure()
    for place, (title, style, verdict) in enumerate(verdicts):
        if math.isfinite(verdict.low) and math.isfinite(verdict.high) and verdict.verdict != "baseline":
            figure.add_scatter(
                x=[verdict.low, verdict.high],
                y=[place, place],
                mode="lines",
                line={"color": style.color, "width": 3},
                hoverinfo="skip",
            )
        figure.add_scatter(
            x=_finite([verdict.difference]),
            y=[place],
            mode="markers",
            marker={"color": style.color, "symbol": style.symbol, "size": 12},
            name=html.escape(title),
            hovertemplate=f"{html.escape(title)}: %{{x:+.4g}}<extra></extra>",
        )
        for text, x, anchor, color in (
            (f"<b>{html.escape(_shorten(title))}</b>", 0, "left", INK),
            (verdict.verdict, 1, "right", MUTED),
        ):
            figure.add_annotation(
                text=text,
                x=x,
                y=place,
                xref="x domain",
                xanchor=anchor,
                yanchor="bottom",
                yshift=8,
                showarrow=False,
                font={"color": color},
            )
    figure.add_vrect(x0=-margin, x1=margin, fillcolor=BAND, line_width=0, layer="below")
    figure.add_vline(x=0, line={"color": GREY, "width": 1.5}, layer="below")
    for text, anchor, shift in (("worse ←", "right", -10), ("→ better", "left", 10)):
        figure.add_annotation(
            text=text,
            x=0,
            y=1,
            yref="y domain",
            xanchor=anchor,
            yanchor="bottom",
            xshift=shift,
            yshift=4,
            showarrow=False,
            font={"color": MUTED},
        )
    figure.update_layout(height=90 + 58 * len(verdicts), margin_t=30)
    ends = [x for _, _, v in verdicts for x in (v.low, v.high, v.difference) if math.isfinite(x)] + [-margin, margin]
    pad = 0.04 * (max(ends) - min(ends))
    figure.update_xaxes(
        title_text=f"difference to cross-entropy in {metric}", zeroline=False, range=[min(ends) - pad, max(ends) + pad]
    )
    figure.update_yaxes(visible=False, range=[len(verdicts) - 0.6, -0.8])
    return figure


def reliability(result: CandidateResult, target: npt.NDArray[Any], style: Style) -> go.Figure:
    """How often predictions of a confidence were right, over all repeats, with the number of predictions below."""
    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.76, 0.24], vertical_spacing=0.06)
    forms: tuple[tuple[str, list[npt.NDArray[Any]], bool], ...] = (
        ("as trained", result.raw_probabilities, True),
        ("calibrated", result.probabilities, False),
    )
    low = 0.0 if target.ndim == 2 else 1.0
    for name, probabilities, raw in forms:
        bins = reliability_bins(probabilities, [target[rows] for rows in result.rows])
        if not len(bins):
            continue
        low = min(low, math.floor(float(bins["confidence"].min()) * BINS) / BINS)
        figure.add_scatter(
            x=bins["confidence"].tolist(),
            y=bins["observed"].tolist(),
            mode="lines+markers",
            name=name,
            line={
                "color": MUTED if raw else style.color,
                "width": 1.2 if raw else 2.2,
                "dash": "dot" if raw else "solid",
            },
            marker={"size": 5 if raw else 6, "symbol": "circle-open" if raw else "circle"},
            customdata=bins["count"].tolist(),
            hovertemplate=f"{name}: said %{{x:.3f}}, was %{{y:.3f}} (%{{customdata}} predictions)<extra></extra>",
            row=1,
            col=1,
        )
        figure.add_bar(
            x=bins["center"].tolist(),
            y=bins["count"].tolist(),
            width=[0.4 / BINS] * len(bins),
            offset=[(-0.4 if raw else 0.0) / BINS] * len(bins),
            marker={"color": MUTED if raw else style.color},
            hovertemplate=f"{name}: %{{y}} predictions<extra></extra>",
            row=2,
            col=1,
        )
    figure.add_shape(
        type="line", x0=low, y0=low, x1=1, y1=1, line={"color": GREY, "width": 1}, layer="below", row=1, col=1
    )
    pad = 0.03 * (1 - low)
    figure.update_xaxes(range=[low - pad, 1 + pad])
    figure.update_xaxes(title_text="probability said", row=2, col=1)
    figure.update_yaxes(
        title_text="share right" if target.ndim == 1 else "share present", range=[-0.03, 1.03], row=1, col=1
    )
    figure.update_yaxes(title_text="count", nticks=3, row=2, col=1)
    figure.update_layout(height=300, barmode="overlay", bargap=0)
    return figure


def reliability_bins(probabilities: Sequence[npt.NDArray[Any]], targets: Sequence[npt.NDArray[Any]]) -> pd.DataFrame:
    """Confidence against truth in 15 bins of equal width.

    Args:
        probabilities: Per repeat ``(n, C)``.
        targets: Per repeat ``(n,)`` codes, whose confidence is the largest probability; or ``(n, L)`` of 0 and 1, where
            every label counts for itself.

    Returns:
        Columns center, confidence (mean), observed (mean) and count of the bins that are not empty.
    """
    if targets[0].ndim == 2:
        confidence = np.concatenate([p.ravel() for p in probabilities])
        right = np.concatenate([t.ravel() for t in targets]).astype(float)
    else:
        confidence = np.concatenate([p.max(1) for p in probabilities])
        right = np.concatenate([p.argmax(1) == t for p, t in zip(probabilities, targets, strict=True)]).astype(float)
    known = np.isfinite(confidence)
    found = calibration.reliability_bins(
        torch.from_numpy(confidence[known]).clamp(max=1), torch.from_numpy(right[known]), BINS
    )
    frame = pd.DataFrame(
        {
            "center": (found.edges[:-1] + found.edges[1:]).numpy() / 2,
            "confidence": found.confidence.numpy(),
            "observed": found.accuracy.numpy(),
            "count": found.count.long().numpy(),
        }
    )
    return frame[frame["count"] > 0].reset_index(drop=True)


def curves(drawn: Sequence[Curve], baseline: Sequence[Curve], style: Style) -> go.Figure:
    """An objective's curve, and its gradient below, on cross-entropy's in grey."""
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.08)
    lines = [(curve, GREY, 1.5) for curve in baseline[:1]]
    if drawn is not baseline:
        lines += [(curve, style.color, 2.5) for curve in drawn]
    for place, (curve, color, width) in enumerate(lines):
        for row, values in ((1, curve.loss), (2, curve.gradient)):
            figure.add_scatter(
                x=_rounded(curve.margin),
                y=_rounded(values),
                mode="lines",
                name="cross-entropy" if color == GREY else html.escape(curve.label),
                line={"color": color, "width": width, "dash": "dot" if place == 2 else "solid", "simplify": False},
                hovertemplate="%{y:.3g}",
                row=row,
                col=1,
            )
    figure.update_layout(height=300, hovermode="x unified")
    figure.update_xaxes(title_text="margin of the truth", row=2, col=1)
    figure.update_yaxes(title_text="loss", row=1, col=1)
    figure.update_yaxes(title_text="gradient", row=2, col=1)
    return figure


def history(
    trials: pd.DataFrame, baseline: pd.DataFrame, style: Style, *, score_range: tuple[float, float], higher: bool
) -> go.Figure:
    """Scores of all trials, and the best so far (median over splits) on cross-entropy's in grey.

    Args:
        trials: Columns split, trial and score, in the metric's own units.
        baseline: The same of cross-entropy.
        style: Of the candidate.
        score_range: Of the vertical axis, shared by all candidates.
        higher: Whether higher scores are better.
    """
    figure = go.Figure()
    finite = trials[np.isfinite(trials["score"])]
    finite = finite.sample(n=min(len(finite), DOTS), random_state=0)
    figure.add_scatter(
        x=(finite["trial"] + 1).tolist(),
        y=_rounded(finite["score"].to_numpy()),
        mode="markers",
        opacity=0.35,
        marker={"color": style.color, "size": 5},
        hovertemplate="trial %{x}: %{y:.4g}<extra></extra>",
    )
    for frame, color, width in ((baseline, GREY, 1.5), (trials, style.color, 2.5)):
        best = best_so_far(frame, higher=higher)
        figure.add_scatter(
            x=(best.index.to_numpy() + 1).tolist(),
            y=_rounded(best.to_numpy()),
            mode="lines",
            line={"color": color, "width": width, "shape": "hv"},
            hovertemplate="best of %{x} trials: %{y:.4g}<extra></extra>",
        )
    figure.update_layout(height=210)
    figure.update_xaxes(title_text="trial", rangemode="tozero")
    figure.update_yaxes(range=list(score_range))
    return figure


def best_so_far(trials: pd.DataFrame, *, higher: bool) -> pd.Series[float]:
    """The best score up to each trial, the median over splits; index trial."""
    scores = trials.pivot(index="trial", columns="split", values="score").replace([np.inf, -np.inf], np.nan)
    best = scores.cummax() if higher else scores.cummin()
    return best.ffill().median(axis=1)


def _rounded(values: npt.NDArray[Any]) -> list[float | None]:
    """Five digits are more than a screen has; what is not finite leaves a gap."""
    return _finite([float(f"{value:.5g}") for value in values])


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _shorten(text: str) -> str:
    return text if len(text) <= TITLE_WIDTH else text[: TITLE_WIDTH - 1].rstrip() + "…"
