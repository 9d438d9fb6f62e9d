"""The plan: sensible schedules, and budgets that cut every candidate alike."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import pytest

from lossary.compare.options import Options
from lossary.compare.plan import Plan, best_seconds, first_plan, fit_budget, fit_memory, most_workers, schedule
from lossary.compare.wording import duration

GB = 10**9


def plan(**options: Any) -> Plan:
    made = first_plan(
        Options(target=("y",), **options), candidates=("cross_entropy", "focal"), rows=10_000, device="cpu"
    )
    return dataclasses.replace(made, workers=2)


def budgeted(seconds: float, *, rows: int = 12_500, **options: Any) -> Plan:
    """On stacks of 10 s each: 2 candidates x 5 folds x 2 repeats x 2 rounds on 2 workers are 200 s, before safety."""
    return fit_budget(plan(**options), seconds, spent=5.0, stack_seconds=[10.0, 10.0], overhead=0.3, rows=rows, inner=1)


@pytest.mark.parametrize("rows", [10, 31, 100, 400, 1_999, 2_000, 9_999, 10_000, 100_000, 10_000_000])
def test_schedule_is_possible_and_bounded(rows: int) -> None:
    batch_size, max_epochs, patience = schedule(rows)
    assert 1 <= batch_size <= rows
    assert patience < max_epochs
    steps = rows // batch_size * max_epochs
    assert max_epochs <= 200
    assert rows > 100_000 or steps <= 20_000


def test_schedule_grows_batches_and_shrinks_epochs_with_rows() -> None:
    sizes = [schedule(rows) for rows in (500, 3_000, 7_000, 20_000, 500_000)]
    assert [size[0] for size in sizes] == [32, 64, 128, 256, 256]
    epochs = [size[1] for size in sizes]
    assert epochs == sorted(epochs, reverse=True)


def test_without_pressure_nothing_is_cut() -> None:
    generous = budgeted(10_000)
    assert (generous.trials, generous.repeats, generous.row_cap, generous.notes) == (16, 2, None, ())
    assert 200 < generous.estimated_seconds < 400
    assert generous.seconds_per_fit == pytest.approx(20 / 16)


def test_a_budget_cuts_trials_then_repeats_then_rows() -> None:
    plans = [budgeted(seconds) for seconds in (10_000, 200, 120, 90, 70, 55, 40, 25)]
    sizes = [(p.trials, p.repeats, p.row_cap or 12_500) for p in plans]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) >= 6
    for trials, repeats, rows in sizes:
        assert trials in (16, 8, 4, 2, 1)
        assert repeats == 2 or trials == 1
        assert rows == 12_500 or repeats == 1
    for made in plans:
        assert made.estimated_seconds <= 10_000


def test_what_a_budget_cuts_is_said() -> None:
    cut, whole = budgeted(150).notes
    assert cut.startswith("To keep within --budget 150 s: ")
    assert "trials a candidate and split instead of 16" in cut
    assert whole == f"Without a budget it would take about {duration(budgeted(10_000).estimated_seconds)}."
    assert budgeted(40).notes[1].endswith("With one trial nothing is tuned.")


def test_stacks_of_few_members_are_cheaper_where_they_have_less_overhead() -> None:
    def estimate(overhead: float, inner: int, rows: int) -> float:
        made = fit_budget(
            plan(trials=2), 10_000, spent=0.0, stack_seconds=[10.0, 10.0], overhead=overhead, rows=rows, inner=inner
        )
        return made.estimated_seconds

    assert estimate(0.0, 1, 12_500) < estimate(0.5, 1, 12_500) < estimate(0.9, 1, 12_500)
    assert estimate(0.0, 3, 500) == pytest.approx(estimate(0.0, 1, 12_500)), "the same share of a full stack"


def test_a_budget_never_adds_trials() -> None:
    assert budgeted(10_000, trials=3).trials == 3
    assert budgeted(60, trials=3).trials in (1, 2)


def test_a_hopeless_budget_gets_the_smallest_plan() -> None:
    smallest = budgeted(10)
    assert (smallest.trials, smallest.repeats) == (1, 1)
    assert smallest.row_cap is not None
    assert smallest.row_cap < 2_000
    assert smallest.estimated_seconds > 10


def test_best_costs_a_chain_on_all_rows() -> None:
    assert best_seconds(plan(), 10.0) == pytest.approx(2 * 10.0 * 5 / 4)


def test_rounds_and_their_trials() -> None:
    made = plan(trials=11)
    assert made.rounds == 2
    assert list(made.trials_of(0)) == list(range(8))
    assert list(made.trials_of(1)) == [8, 9, 10]


def test_memory_takes_workers_first_then_trials_at_a_time() -> None:
    needs = {"data_bytes": GB // 2, "trial_bytes": GB // 10}
    assert fit_memory(plan(), 4 * GB, **needs) == plan()
    fewer = fit_memory(plan(), 2 * GB, **needs)
    assert (fewer.workers, fewer.round_size) == (1, 8)
    least = fit_memory(plan(), int(1.2 * GB), **needs)
    assert (least.workers, least.round_size) == (1, 2)
    assert least.rounds == 8
    assert "--memory" in least.notes[0]
    assert "2 trials at a time" in least.notes[0]


def test_one_worker_a_core_and_one_an_accelerator() -> None:
    assert 1 <= most_workers("cpu") <= (os.cpu_count() or 1)
    assert most_workers("cuda") == 1


def test_a_plan_survives_json() -> None:
    made = budgeted(150)
    values = json.loads(json.dumps(dataclasses.asdict(made)))
    assert Plan(**values | {name: tuple(values[name]) for name in ("candidates", "notes")}) == made
