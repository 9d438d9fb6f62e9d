"""Numbers and findings in words, the same in the terminal and in the report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lossary.compare.metrics import METRICS, Metric

if TYPE_CHECKING:
    from lossary.compare.results import CandidateResult, Comparison

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
"""Stands where there is no number."""


def number(value: float) -> str:
    """Four decimals; of what is below 0.001, two digits; a dash for NaN and infinity."""
    if not math.isfinite(value):
        return NOTHING
    size = abs(value)
    if size == 0 or size >= 0.001:
        text = f"{value:.4f}"
    else:
        text = f"{value:.{1 - math.floor(math.log10(size))}f}" if size >= 1e-6 else f"{value:.1e}"
    return text.replace("-", MINUS)


def count(number: int, word: str) -> str:
    """A number of things, with thousands separated: 1 trial, 1,200 rows."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def signed(value: float) -> str:
    """A number with its sign, also where it is positive."""
    return f"+{number(value)}" if math.isfinite(value) and value >= 0 else number(value)


def interval(low: float, high: float) -> str:
    """Both ends of an interval, or a dash."""
    return f"{signed(low)} to {signed(high)}" if math.isfinite(low) and math.isfinite(high) else NOTHING


def percent(share: float, *, sign: bool = False) -> str:
    """A share in percent, with one decimal under 10% unless that is 0; with its sign if wanted."""
    if not math.isfinite(share):
        return NOTHING
    rounded = round(100 * share, 0 if round(abs(share), 3) >= 0.1 else 1) + 0.0
    return f"{rounded:{'+' if sign and rounded else ''}g}%".replace("-", MINUS)


def duration(seconds: float) -> str:
    """Seconds as 42 s, 3 min 05 s or 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def listing(words: Sequence[str]) -> str:
    """``a``, ``a and b`` or ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def sentence_case(text: str) -> str:
    """The text with its first letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]


def ranked(comparison: Comparison) -> list[CandidateResult]:
    """The candidates, the best first; what has no difference last."""

    def place(result: CandidateResult) -> float:
        difference = comparison.judgement.verdicts[result.name].difference
        return -difference if math.isfinite(difference) else math.inf

    return sorted(comparison.candidates, key=place)


@dataclasses.dataclass(frozen=True)
class Rival:
    """One candidate beside cross-entropy with a tuned threshold, on one decision metric.

    Attributes:
        title: Of the candidate.
        plain_gain: Its gain over cross-entropy, both with argmax or 0.5; positive is better.
        tuned_gain: Its gain over cross-entropy, both tuned.
        matched: Whether it gains without tuning, cross-entropy gains as much by tuning alone, and nothing is left once
            both are tuned; differences below ``--min-effect`` do not count.
    """

    title: str
    plain_gain: float
    tuned_gain: float
    matched: bool


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What a tuned threshold does for cross-entropy, and which candidates' gains it matches.

    Attributes:
        metric: The decision metric.
        gain: Of cross-entropy by tuning alone; positive is better.
        rivals: Every other candidate.
    """

    metric: Metric
    gain: float
    rivals: list[Rival]

    @property
    def matched(self) -> list[str]:
        """Titles of the candidates whose gain a tuned threshold on cross-entropy gives too."""
        return [rival.title for rival in self.rivals if rival.matched]

    @property
    def sentence(self) -> str:
        """The finding."""
        gain = f"{self.metric.title} by {signed(self.gain)}"
        if self.matched:
            return (
                f"A tuned threshold on cross-entropy changes {gain}: "
                f"the same gain as {listing(self.matched)} without tuning."
            )
        return f"A tuned threshold on cross-entropy changes {gain}; that matches no other objective's gain."


def tunings(comparison: Comparison) -> list[Tuning]:
    """What tuned thresholds do: on the primary metric if it judges decisions, else on every metric that does."""
    primary = comparison.metric
    metrics = [primary] if primary.kind == "decision" else [m for m in METRICS.values() if m.kind == "decision"]
    return [_tuning(comparison, metric) for metric in metrics]


def _tuning(comparison: Comparison, metric: Metric) -> Tuning:
    def mean(candidate: CandidateResult, form: str) -> float:
        frame = candidate.metrics
        return float(frame.loc[(frame["metric"] == metric.name) & (frame["form"] == form), "value"].mean())

    sign = 1 if metric.higher_is_better else -1
    baseline, *others = comparison.candidates
    gain = sign * (mean(baseline, "judged") - mean(baseline, "as_trained"))
    small = comparison.options.min_effect * abs(mean(baseline, "judged"))
    rivals = []
    for candidate in others:
        plain, tuned = (sign * (mean(candidate, form) - mean(baseline, form)) for form in ("as_trained", "judged"))
        matched = plain >= small and gain >= plain - small and tuned < small
        rivals.append(Rival(candidate.title, plain, tuned, matched))
    return Tuning(metric, gain, rivals)
