"""What a reproduction saw, with its verdict by the rule of the card."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from lossary.papers._paper import Paper

Verdict = Literal["supported", "contradicted", "not seen at this scale", "not judged (quick form)"]


@dataclasses.dataclass(frozen=True)
class Series:
    """Numbers worth a picture beside the verdict: y (one list for each name) against x."""

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    y: Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The outcome of a reproduction.

    Attributes:
        slug: The paper.
        claim: Its claim.
        verdict: By the card's rule.
        metric: What the verdict is about.
        baseline: Arm that the method is held against.
        method: Arm that the claim is about.
        differences: Improvement of the method over the baseline by seed; positive is better.
        mean: Their mean.
        low: Lower end of its 95% interval (Student's t over seeds).
        high: Upper end.
        margin: What the interval had to exceed.
        arms: For each arm and metric its values by seed.
        series: Numbers worth a picture.
        notes: What else was seen, in sentences.
        limits: What the small scale cannot show.
        quick: Whether this is the quick form, which proves that it runs and no more.
        seeds: The seeds.
        seconds: Wall time.
        command: What to type to repeat it.
        versions: Versions of what bears on the numbers.
    """

    slug: str
    claim: str
    verdict: Verdict
    metric: str
    baseline: str
    method: str
    differences: Sequence[float]
    mean: float
    low: float
    high: float
    margin: float
    arms: Mapping[str, Mapping[str, Sequence[float]]]
    series: Sequence[Series]
    notes: Sequence[str]
    limits: str
    quick: bool
    seeds: Sequence[int]
    seconds: float
    command: str
    versions: Mapping[str, str]

    def to_json(self) -> str:
        """The evidence as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Evidence:
        """Read what :meth:`to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**{**fields, "series": [Series(**series) for series in fields["series"]]})

    def figure(self) -> go.Figure:
        """The differences by seed with their interval, and the series beside them."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        titles = [f"{self.metric}: {self.method} over {self.baseline}", *(series.title for series in self.series)]
        figure = make_subplots(rows=1, cols=len(titles), subplot_titles=titles)
        interval = {"type": "data", "symmetric": False, "array": [self.high - self.mean]}
        interval["arrayminus"] = [self.mean - self.low]
        figure.add_scatter(
            x=[0.0] * len(self.differences), y=list(self.differences), mode="markers", name="seeds", opacity=0.5
        )
        figure.add_scatter(x=[0.3], y=[self.mean], error_y=interval, mode="markers", name="mean, 95% interval")
        figure.add_hline(y=0, line_color="gray", row=1, col=1)
        figure.add_hline(y=self.margin, line_dash="dot", annotation_text="margin", row=1, col=1)
        figure.update_xaxes(showticklabels=False, range=[-0.5, 0.8], row=1, col=1)
        for column, series in enumerate(self.series, start=2):
            for name, values in series.y.items():
                figure.add_trace(
                    go.Scatter(x=list(series.x), y=list(values), name=name, mode="lines+markers"), row=1, col=column
                )
            figure.update_xaxes(title=series.x_label, row=1, col=column)
            figure.update_yaxes(title=series.y_label, row=1, col=column)
        figure.update_layout(
            title=f"{self.slug}: {self.verdict}", template="plotly_white", width=420 * len(titles) + 160
        )
        return figure

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write ``<slug>.json`` and the figure ``<slug>.html`` into a folder; returns both paths."""
        folder.mkdir(parents=True, exist_ok=True)
        record, picture = folder / f"{self.slug}.json", folder / f"{self.slug}.html"
        record.write_text(self.to_json())
        self.figure().write_html(picture, include_plotlyjs=True)
        return record, picture


def judge(
    paper: Paper, arms: Mapping[str, Mapping[str, Sequence[float]]]
) -> tuple[Verdict, list[float], float, float, float]:
    """Verdict, differences by seed, their mean and 95% interval.

    *Supported* if the interval lies beyond the margin, *contradicted* if it excludes zero on the other side, else *not
    seen at this scale*. One seed has no interval and so shows nothing.
    """
    from scipy import stats

    sign = 1.0 if paper.direction == "higher" else -1.0
    pairs = zip(arms[paper.method][paper.metric], arms[paper.baseline][paper.metric], strict=True)
    differences = [sign * (method - baseline) for method, baseline in pairs]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return "not seen at this scale", differences, mean, -math.inf, math.inf
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    low, high = mean - half, mean + half
    if low > paper.margin:
        return "supported", differences, mean, low, high
    return ("contradicted" if high < 0 else "not seen at this scale"), differences, mean, low, high
