"""Which settings to try next: a pure function of the trials so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from scipy.stats import qmc

from lossary.compare.candidates import Candidate, Dimension
from lossary.core.seeding import derive

Settings = dict[str, float]

EDGE = 0.02
"""Share of a range, at either end, that counts as its edge."""


def propose(
    candidate: Candidate,
    *,
    seed: int,
    split: int,
    round: int,
    trials_done: Sequence[tuple[Mapping[str, float], float]],
    count: int,
) -> list[Settings]:
    """Propose the settings of one round of trials.

    Round 0 is a scrambled Sobol sequence whose learning rates and weight decays are the same for every candidate of
    a split. Later rounds come from a tree-structured Parzen estimator that is made anew for the round and shown all
    earlier trials in order, so that a resumed run proposes what an uninterrupted one would.

    Args:
        candidate: Whose space is searched.
        seed: Seed of the run.
        split: Index of the outer split.
        round: Round, from 0.
        trials_done: (settings, score) of every earlier trial of this candidate and split, in order; lower scores are
            better, infinite ones mean that the fit diverged.
        count: Number of settings wanted.

    Returns:
        ``count`` settings, each with every dimension of the candidate.
    """
    if round == 0:
        return _sobol(candidate, seed=seed, split=split, count=count)
    return _parzen(candidate, derive(seed, "search", candidate.name, split, round), trials_done, count)


def edge_sentences(candidate: Candidate, chosen: Sequence[Mapping[str, float]]) -> list[str]:
    """Say which dimensions have their best value at an end of the searched range, and in how many splits.

    Args:
        candidate: Whose space was searched.
        chosen: The chosen settings of each split.
    """
    sentences = []
    for dimension in candidate.dimensions:
        positions = [_position(dimension, settings[dimension.name]) for settings in chosen]
        ends = [
            ("lower", dimension.low, [p <= EDGE for p in positions]),
            ("upper", dimension.high, [p >= 1 - EDGE for p in positions]),
        ]
        for end, value, at_end in ends:
            if any(at_end):
                sentences.append(
                    f"The best {dimension.name} lay at the {end} end of its range ({value:g}) "
                    f"in {sum(at_end)} of {len(chosen)} splits."
                )
    return sentences


def _sobol(candidate: Candidate, *, seed: int, split: int, count: int) -> list[Settings]:
    # Columns of two engines, each column scrambled on its own, are one scrambled sequence over the whole space as long
    # as no dimension of the underlying sequence is used twice: the candidate's own columns start where the shared end.
    dimensions = candidate.dimensions
    power = math.ceil(math.log2(count))
    shared = qmc.Sobol(d=2, rng=derive(seed, "search", split)).random_base2(power)
    own = qmc.Sobol(d=len(dimensions), rng=derive(seed, "search", candidate.name, split)).random_base2(power)
    points = np.concatenate([shared, own[:, 2:]], axis=1)[:count]
    return [{d.name: _value(d, u) for d, u in zip(dimensions, point, strict=True)} for point in points.tolist()]


def _parzen(
    candidate: Candidate, seed: int, trials_done: Sequence[tuple[Mapping[str, float], float]], count: int
) -> list[Settings]:
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        d.name: optuna.distributions.FloatDistribution(d.low, d.high, log=d.log, step=d.step)
        for d in candidate.dimensions
    }
    # A diverged trial is as bad as the worst that did not: the estimator looks at the order of the scores alone.
    worst = max((score for _, score in trials_done if math.isfinite(score)), default=0.0)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        sampler = optuna.samplers.TPESampler(
            seed=seed % 2**32, n_startup_trials=1, multivariate=True, constant_liar=True
        )
        study = optuna.create_study(sampler=sampler)
        for settings, score in trials_done:
            value = score if math.isfinite(score) else worst
            study.add_trial(optuna.trial.create_trial(params=dict(settings), distributions=distributions, value=value))
        return [dict(study.ask(distributions).params) for _ in range(count)]
    finally:
        optuna.logging.set_verbosity(verbosity)


def _value(dimension: Dimension, position: float) -> float:
    """The value at a position in [0, 1) of a range."""
    low, high = dimension.low, dimension.high
    if dimension.step is not None:
        steps = round((high - low) / dimension.step)
        return low + dimension.step * min(int(position * (steps + 1)), steps)
    if dimension.log:
        return float(min(max(low * (high / low) ** position, low), high))
    return low + (high - low) * position


def _position(dimension: Dimension, value: float) -> float:
    """The position in [0, 1] of a value in its range."""
    if dimension.log:
        return math.log(value / dimension.low) / math.log(dimension.high / dimension.low)
    return (value - dimension.low) / (dimension.high - dimension.low)
