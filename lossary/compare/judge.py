"""Which candidate is better than cross-entropy, by how much, and how sure that is.

Scores of J = folds x repeats splits are paired with the baseline's. Their training sets overlap, so the naive variance
of the mean is too small; the corrected standard error (Nadeau & Bengio 2003; for repeated cross-validation Bouckaert &
Frank 2004) is ::

    se = sqrt(s^2 (1/J + n_test/n_train)),   n_test/n_train = 1/(folds - 1)

with s^2 the sample variance of the J paired differences. Intervals are simultaneous over the m candidates: mean +-
t(J - 1, 1 - 0.05/(2 m)) se (Bonferroni). What is drawn is what decides.

The probability of being best comes from the joint posterior of all candidates' means: a multivariate t with J - 1
degrees of freedom, centred at the sample means, with scale matrix S (1/J + rho/(1 - rho)), rho = 1/folds, S the sample
covariance of the scores (Benavoli, Corani, Demsar & Zaffalon 2017, correlated t; here jointly).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

LEVEL = 0.05
POWER = 0.8
DRAWS = 20_000

Array = npt.NDArray[Any]
Word = Literal["better", "worse", "equivalent", "undecided", "baseline"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One candidate against the baseline; differences are signed so that positive is better.

    Attributes:
        name: The candidate.
        mean: Mean score over the splits.
        difference: Improvement over the baseline, in the metric's units.
        low: Lower end of its simultaneous 95% interval; -inf where there is none.
        high: Upper end.
        gain: ``difference`` relative to the baseline's mean.
        verdict: better, worse, equivalent or undecided; ``baseline`` for the baseline itself.
        probability_best: Posterior probability that it has the best mean of all; NaN where there is none.
        detectable: Smallest difference that this run would have found with 80% power; NaN where there is none.
    """

    name: str
    mean: float
    difference: float
    low: float
    high: float
    gain: float
    verdict: Word
    probability_best: float
    detectable: float


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The verdicts and the answer.

    Attributes:
        verdicts: One for each candidate, the baseline included.
        recommended: The candidate to use; the baseline where nothing speaks against it.
        tied: Candidates that cannot be told apart from a recommended one.
        sentence: The answer in words.
        detectable: The smallest difference that this run would have found for its most precise candidate.
    """

    verdicts: dict[str, Verdict]
    recommended: str
    tied: tuple[str, ...]
    sentence: str
    detectable: float


def judge(
    scores: Mapping[str, Array],
    *,
    folds: int,
    higher_is_better: bool,
    min_effect: float = 0.01,
    baseline: str = "cross_entropy",
    tests: int = 1,
    seed: int = 0,
) -> Judgement:
    """Judge the candidates on their scores by split.

    Args:
        scores: For each candidate its scores ``(J,)``, paired over the same splits.
        folds: Outer folds of one repeat.
        higher_is_better: Direction of the metric.
        min_effect: Smallest gain, relative to the baseline's mean, that is worth a recommendation.
        baseline: The candidate that the others are held against.
        tests: How many metrics are judged in this way; intervals hold for all of them together.
        seed: Seed of the posterior's draws.
    """
    sign = 1.0 if higher_is_better else -1.0
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    others = [name for name in scores if name != baseline]
    splits = len(scores[baseline])
    comparisons = tests * len(others)
    worth = min_effect * abs(means[baseline])
    best = _probability_best({name: sign * values for name, values in scores.items()}, folds, seed)
    verdicts = {}
    for name, values in scores.items():
        differences = sign * (np.asarray(values, dtype=np.float64) - scores[baseline])
        mean = float(np.mean(differences))
        low, high = interval(differences, folds=folds, comparisons=comparisons)
        word: Word = "baseline" if name == baseline else _word(low, high, worth)
        verdicts[name] = Verdict(
            name,
            means[name],
            mean,
            low,
            high,
            mean / abs(means[baseline]) if means[baseline] else 0.0,
            word,
            best[name],
            math.nan if name == baseline else detectable_difference(differences, folds=folds, comparisons=comparisons),
        )
    improvements = {name: sign * (np.asarray(scores[name]) - scores[baseline]) for name in others}
    recommended = recommend(improvements, folds=folds, worth=worth, tests=tests) or baseline
    tied = _tied(scores, recommended, comparisons, folds, sign) if recommended != baseline else ()
    detectable = min((v.detectable for v in verdicts.values() if not math.isnan(v.detectable)), default=math.nan)
    sentence = _sentence(verdicts, recommended, baseline, tied, splits)
    return Judgement(verdicts, recommended, tied, sentence, detectable)


def recommend(improvements: Mapping[str, Array], *, folds: int, worth: float, tests: int = 1) -> str | None:
    """The candidate to use instead of the baseline, or None.

    Of those whose interval lies above zero and whose mean improvement is worth it, the one that improves most.

    Args:
        improvements: For each candidate its improvements over the baseline by split ``(J,)``.
        folds: Outer folds.
        worth: Smallest improvement that is worth a recommendation.
        tests: How many metrics are judged together.
    """
    means = {name: float(np.mean(values)) for name, values in improvements.items()}
    worthy = [
        name
        for name, values in improvements.items()
        if means[name] >= worth and interval(values, folds=folds, comparisons=tests * len(improvements))[0] > 0
    ]
    return max(worthy, key=means.__getitem__, default=None)


def corrected_standard_error(differences: Array, folds: int) -> float:
    """Nadeau-Bengio standard error of the mean of paired differences ``(J,)``, J >= 2."""
    return float(np.sqrt(np.var(differences, ddof=1) * (1 / len(differences) + 1 / (folds - 1))))


def interval(differences: Array, *, folds: int, comparisons: int) -> tuple[float, float]:
    """Simultaneous 95% interval of the mean difference; infinite for one split, and where all differences are zero.

    Differences that are all equal but not zero have an interval of no width: every split said the same.
    """
    if len(differences) < 2 or not np.any(differences):
        return -math.inf, math.inf
    half = _quantile(len(differences), comparisons) * corrected_standard_error(differences, folds)
    return float(np.mean(differences)) - half, float(np.mean(differences)) + half


def detectable_difference(differences: Array, *, folds: int, comparisons: int) -> float:
    """The true difference whose interval would exclude zero in 80% of such runs; NaN without a variance."""
    if len(differences) < 2:
        return math.nan
    error = corrected_standard_error(differences, folds)
    if error == 0:
        return math.nan
    freedom, critical = len(differences) - 1, _quantile(len(differences), comparisons)
    shift = optimize.brentq(lambda x: stats.nct.sf(critical, freedom, x) - POWER, 0, 4 * critical + 10)
    return float(shift) * error


def _quantile(splits: int, comparisons: int) -> float:
    return float(stats.t.ppf(1 - LEVEL / (2 * max(comparisons, 1)), splits - 1))


def _word(low: float, high: float, worth: float) -> Word:
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "equivalent" if -worth <= low and high <= worth else "undecided"


def _probability_best(scores: Mapping[str, Array], folds: int, seed: int) -> dict[str, float]:
    table = np.stack([np.asarray(values, dtype=np.float64) for values in scores.values()])
    splits = table.shape[1]
    if splits < 2:
        return dict.fromkeys(scores, math.nan)
    generator = np.random.default_rng(seed)
    rho = 1 / folds
    covariance = np.atleast_2d(np.cov(table)) * (1 / splits + rho / (1 - rho))
    values, vectors = np.linalg.eigh(covariance)
    normal = generator.standard_normal((DRAWS, len(table))) * np.sqrt(values.clip(min=0))
    scale = np.sqrt((splits - 1) / generator.chisquare(splits - 1, size=(DRAWS, 1)))
    draws = table.mean(1) + (normal @ vectors.T) * scale
    # Equal candidates share a draw; rounding must not give it to one of them.
    top = draws.max(1, keepdims=True)
    best = draws >= top - 1e-12 * np.abs(top)
    return dict(zip(scores, (best / best.sum(1, keepdims=True)).mean(0).tolist(), strict=True))


def _tied(scores: Mapping[str, Array], recommended: str, comparisons: int, folds: int, sign: float) -> tuple[str, ...]:
    tied = []
    for name in scores:
        if name != recommended:
            low, high = interval(
                sign * (np.asarray(scores[recommended]) - scores[name]), folds=folds, comparisons=comparisons
            )
            if low <= 0 <= high:
                tied.append(name)
    return tuple(tied)


def _sentence(
    verdicts: Mapping[str, Verdict], recommended: str, baseline: str, tied: tuple[str, ...], splits: int
) -> str:
    if splits < 2:
        return "One split tells nothing about chance: no test was made, and cross-entropy stays the recommendation."
    if recommended == baseline:
        better = [v.name for v in verdicts.values() if v.verdict == "better"]
        small = f" ({', '.join(better)}: better, but by less than --min-effect)" if better else ""
        return f"The data show no reason to leave cross-entropy{small}."
    chosen = verdicts[recommended]
    rest = f" Not told apart from it: {', '.join(tied)}." if tied else ""
    return f"Use {recommended}: better than cross-entropy by {100 * chosen.gain:.1f}%.{rest}"
