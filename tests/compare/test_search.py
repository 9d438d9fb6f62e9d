"""Proposals: pure, fair and inside the space."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
import torch

from lossary.compare.candidates import Candidate, Dimension
from lossary.compare.search import edge_sentences, propose


def candidate(name: str = "first", space: tuple[Dimension, ...] = ()) -> Candidate:
    return Candidate(
        name=name, title=name, why="", objective=lambda output, target, parts: torch.zeros(()), space=space
    )


GAMMA = Dimension("gamma", 0.0, 5.0)
START = Dimension("start_epoch", 5, 40, step=1)
SCALE = Dimension("scale", 4.0, 30.0, log=True)


def sobol(of: Candidate, *, split: int = 0, seed: int = 0, count: int = 8) -> list[dict[str, float]]:
    return propose(of, seed=seed, split=split, round=0, trials_done=[], count=count)


def scored(settings: list[dict[str, float]]) -> list[tuple[dict[str, float], float]]:
    """A bowl around a learning rate of 3e-3, gamma 1 and scale 10."""
    return [
        (
            point,
            math.log10(point["learning_rate"] / 3e-3) ** 2
            + (point.get("gamma", 1.0) - 1) ** 2 / 10
            + math.log10(point.get("scale", 10.0) / 10) ** 2,
        )
        for point in settings
    ]


def test_first_round_has_the_same_learning_rates_and_weight_decays_for_every_candidate() -> None:
    plain, rich = sobol(candidate("plain")), sobol(candidate("rich", (GAMMA, START, SCALE)))
    assert [tuple(p.values()) for p in plain] == [(p["learning_rate"], p["weight_decay"]) for p in rich]


def test_first_round_differs_by_split_and_seed_and_own_dimensions_by_candidate() -> None:
    base = sobol(candidate("rich", (GAMMA,)))
    assert sobol(candidate("rich", (GAMMA,)), split=1) != base
    assert sobol(candidate("rich", (GAMMA,)), seed=1) != base
    other = sobol(candidate("other", (GAMMA,)))
    assert [p["gamma"] for p in other] != [p["gamma"] for p in base]


@pytest.mark.parametrize("split", range(5))
def test_first_round_fills_every_dimension_and_every_pair(split: int) -> None:
    points = sobol(candidate("rich", (GAMMA,)), split=split)
    rates = [math.log(p["learning_rate"] / 1e-4) / math.log(300) for p in points]
    gammas = [p["gamma"] / 5 for p in points]
    assert sorted(int(u * 8) for u in rates) == list(range(8))
    assert sorted(int(u * 8) for u in gammas) == list(range(8))
    # One and the same sequence for both would put all points in two of the four quadrants.
    quadrants = {(rate < 0.5, gamma < 0.5) for rate, gamma in zip(rates, gammas, strict=True)}
    assert len(quadrants) == 4


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_first_round_gives_as_many_as_wanted(count: int) -> None:
    assert sobol(candidate(), count=count) == sobol(candidate())[:count]


def test_all_rounds_stay_in_the_space() -> None:
    rich = candidate("rich", (GAMMA, START, SCALE))
    done: list[tuple[dict[str, float], float]] = []
    for round in range(4):
        proposed = propose(rich, seed=3, split=2, round=round, trials_done=done, count=8)
        assert len(proposed) == 8
        done += scored(proposed)
    for settings, _ in done:
        assert list(settings) == ["learning_rate", "weight_decay", "gamma", "start_epoch", "scale"]
        for dimension in rich.dimensions:
            assert dimension.low <= settings[dimension.name] <= dimension.high
        assert settings["start_epoch"] == int(settings["start_epoch"])


def test_later_rounds_are_a_pure_function_of_the_trials() -> None:
    rich = candidate("rich", (GAMMA, START))
    done = scored(sobol(rich))
    first = propose(rich, seed=0, split=0, round=1, trials_done=done, count=8)
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    assert propose(rich, seed=0, split=0, round=1, trials_done=done, count=8) == first
    assert propose(rich, seed=0, split=1, round=1, trials_done=done, count=8) != first
    changed = [(settings, -score) for settings, score in done]
    assert propose(rich, seed=0, split=0, round=1, trials_done=changed, count=8) != first


def test_later_rounds_find_better_settings_than_more_of_the_first_would() -> None:
    rich = candidate("rich", (GAMMA, SCALE))
    learnt, more = [], []
    for seed in range(10):
        done = scored(sobol(rich, seed=seed))
        for round in (1, 2, 3):
            done += scored(propose(rich, seed=seed, split=0, round=round, trials_done=done, count=8))
        learnt.append(min(score for _, score in done))
        more.append(min(score for _, score in scored(sobol(rich, seed=seed, count=32))))
    assert np.mean(learnt) < 0.7 * np.mean(more)


def test_diverged_trials_are_bad_not_fatal() -> None:
    points = sobol(candidate())
    done = [(p, math.inf if p["learning_rate"] > 3e-3 else 1.0) for p in points]
    proposed = propose(candidate(), seed=0, split=0, round=1, trials_done=done, count=8)
    assert len(proposed) == 8
    assert propose(candidate(), seed=0, split=0, round=1, trials_done=[(p, math.inf) for p in points], count=8)


def test_the_caller_keeps_its_optuna_verbosity(capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    propose(candidate(), seed=0, split=0, round=1, trials_done=scored(sobol(candidate())), count=2)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert capfd.readouterr().err == ""


def test_edges_are_named_with_their_end_and_count() -> None:
    rich = candidate("rich", (GAMMA,))
    middle = {"learning_rate": 1e-3, "weight_decay": 1e-3, "gamma": 2.0}
    assert edge_sentences(rich, [middle]) == []
    sentences = edge_sentences(rich, [middle | {"gamma": 4.95}, middle | {"learning_rate": 1.05e-4}, middle])
    assert sentences == [
        "The best learning_rate lay at the lower end of its range (0.0001) in 1 of 3 splits.",
        "The best gamma lay at the upper end of its range (5) in 1 of 3 splits.",
    ]
