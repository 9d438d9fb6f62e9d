"""What a run will do, fixed once before the first stack."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lossary.compare.options import Options
from lossary.compare.splits import SMALL
from lossary.compare.wording import count, duration

TRIALS_LADDER = (16, 8, 4, 2, 1)
ROUND_SIZE = 8
SMALLEST_CAP = 200
"""Fewest outer-training rows that a budget cuts a table to."""
REPORT_SECONDS = 8.0
"""Kept free at the end of a budget for the report."""
SAFETY = 1.2
"""Pilots run at the start, on an idle machine; whole runs have taken up to this much longer than they foretell."""
WORKER_BYTES = 400 * 10**6
"""A worker process before it holds any data: Python, torch and their buffers."""


@dataclass(frozen=True)
class Plan:
    """What a run does; written to the journal before the first stack and followed by every resumed run.

    Attributes:
        trials: Trials per candidate and split.
        repeats: Repeats of the outer cross-validation.
        folds: Outer folds.
        row_cap: Most outer-training rows of a split; None for all.
        batch_size: Rows per batch.
        max_epochs: Most epochs of a fit.
        patience: Epochs without a better criterion after which a fit stops.
        workers: Processes that train.
        device: ``cpu`` or ``cuda``.
        candidates: Names of the candidates, cross-entropy first.
        notes: Sentences for the first lines and the report.
        seconds_per_fit: Expected seconds of one fit on one worker; 0 without a budget.
        estimated_seconds: Expected seconds of the whole command; 0 without a budget.
        round_size: Trials that are proposed and trained together.
    """

    trials: int
    repeats: int
    folds: int
    row_cap: int | None
    batch_size: int
    max_epochs: int
    patience: int
    workers: int
    device: str
    candidates: tuple[str, ...]
    notes: tuple[str, ...]
    seconds_per_fit: float
    estimated_seconds: float
    round_size: int = ROUND_SIZE

    @property
    def rounds(self) -> int:
        """Rounds of trials per candidate and split."""
        return -(-self.trials // self.round_size)

    def trials_of(self, round: int) -> range:
        """Numbers of the trials of a round."""
        return range(round * self.round_size, min((round + 1) * self.round_size, self.trials))


def first_plan(options: Options, *, candidates: tuple[str, ...], rows: int, device: str) -> Plan:
    """The plan that has all the time and memory that it wants.

    Args:
        options: What was asked for.
        candidates: Names of the candidates, cross-entropy first.
        rows: Rows that one fit trains on.
        device: ``cpu`` or ``cuda``, as resolved.
    """
    batch_size, max_epochs, patience = schedule(rows)
    return Plan(
        trials=options.trials,
        repeats=options.repeats,
        folds=options.folds,
        row_cap=None,
        batch_size=batch_size,
        max_epochs=max_epochs,
        patience=patience,
        workers=most_workers(device),
        device=device,
        candidates=candidates,
        notes=(),
        seconds_per_fit=0.0,
        estimated_seconds=0.0,
    )


def schedule(rows: int) -> tuple[int, int, int]:
    """(batch size, most epochs, patience) for a fit on ``rows`` rows.

    The cap on epochs is a number of steps, so that the slowest learning rate of the search still gets there on small
    data and a stack stays short on large data.
    """
    batch_size = next((size for limit, size in ((2_000, 32), (5_000, 64), (10_000, 128)) if rows < limit), 256)
    batch_size = min(batch_size, rows)
    max_epochs = min(max(8_000 // (rows // batch_size), 20), 200)
    return batch_size, max_epochs, min(max(max_epochs // 10, 5), 20)


def most_workers(device: str) -> int:
    """Processes worth having: one per core that this process may use; one alone on an accelerator."""
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fit_memory(plan: Plan, memory: int, *, data_bytes: int, trial_bytes: int) -> Plan:
    """Reduce workers, then trials per stack, to what memory allows.

    Args:
        plan: The plan so far.
        memory: Bytes that training may hold over all workers.
        data_bytes: Bytes of a split's preprocessed folds in a worker.
        trial_bytes: Bytes of a trial's members in a worker.
    """

    def worker_bytes(trials: int) -> int:
        return WORKER_BYTES + data_bytes + trials * trial_bytes

    workers = max(min(plan.workers, memory // worker_bytes(plan.round_size)), 1)
    fitting = (size for size in (8, 4, 2, 1) if worker_bytes(size) <= memory)
    round_size = min(plan.round_size, next(fitting, 1))
    if (workers, round_size) == (plan.workers, plan.round_size):
        return plan
    note = f"To keep within --memory {memory / 1e9:g} GB: {workers} of {plan.workers} worker processes"
    note += "." if round_size == plan.round_size else f", {round_size} trials at a time instead of {plan.round_size}."
    return dataclasses.replace(plan, workers=workers, round_size=round_size, notes=(*plan.notes, note))


def fit_budget(
    plan: Plan, budget: float, *, spent: float, stack_seconds: Sequence[float], overhead: float, rows: int, inner: int
) -> Plan:
    """Reduce trials, then repeats, then rows, to what the budget allows: equally for every candidate.

    Args:
        plan: The plan so far.
        budget: Seconds of the whole command.
        spent: Seconds of it that have passed.
        stack_seconds: Of each candidate, seconds of a stack of a full round on all rows.
        overhead: Share of them that a stack costs however few its members are.
        rows: Outer-training rows of a split.
        inner: Inner folds of a split.
    """

    def expected(plan: Plan) -> float:
        stacks = [seconds * _share(plan, rows) * SAFETY for seconds in stack_seconds]
        return spent + _seconds(plan, stacks, overhead, rows, inner)

    *_, smallest = plans = list(_smaller_plans(plan, rows))
    smaller = next((plan for plan in plans if expected(plan) <= budget), smallest)
    changes = [
        f"{name} instead of {was}"
        for name, was, now in (
            (f"{count(smaller.trials, 'trial')} a candidate and split", plan.trials, smaller.trials),
            (count(smaller.repeats, "repeat"), plan.repeats, smaller.repeats),
            (f"at most {count(smaller.row_cap or rows, 'training row')}", f"{rows:,}", f"{smaller.row_cap or rows:,}"),
        )
        if now != was
    ]
    notes = [f"To keep within --budget {budget:g} s: {', '.join(changes)}."] if changes else []
    if changes:
        untuned = " With one trial nothing is tuned." if smaller.trials == 1 else ""
        notes.append(f"Without a budget it would take about {duration(expected(plan))}.{untuned}")
    fits = len(plan.candidates) * plan.round_size * inner
    return dataclasses.replace(
        smaller,
        notes=(*plan.notes, *notes),
        seconds_per_fit=sum(stack_seconds) / fits * _share(smaller, rows),
        estimated_seconds=expected(smaller),
    )


def best_seconds(plan: Plan, stack_seconds: float) -> float:
    """Expected seconds of the search for ``best/``: a chain of rounds on all rows.

    Args:
        plan: The plan.
        stack_seconds: Seconds of one stack of an outer split.
    """
    return plan.rounds * stack_seconds * plan.folds / (plan.folds - 1)


def _smaller_plans(plan: Plan, rows: int) -> Iterator[Plan]:
    """The plan, then ever smaller ones."""
    yield plan
    for trials in TRIALS_LADDER:
        if trials < plan.trials:
            plan = dataclasses.replace(plan, trials=trials)
            yield plan
    for repeats in reversed(range(1, plan.repeats)):
        plan = dataclasses.replace(plan, repeats=repeats)
        yield plan
    while rows * 0.7 >= SMALLEST_CAP:
        rows = int(rows * 0.7)
        plan = dataclasses.replace(plan, row_cap=rows)
        yield plan


def _seconds(plan: Plan, stack_seconds: Sequence[float], overhead: float, rows: int, inner: int) -> float:
    """Expected seconds from here to the end of the command; ``stack_seconds`` are those of the plan's rows."""
    small = min(plan.row_cap or rows, rows) < SMALL

    def share(trials: int) -> float:
        members = trials * (3 if small else inner)
        return (overhead + (1 - overhead) * members / (plan.round_size * inner)) if trials else 0.0

    full_rounds, rest = divmod(plan.trials, plan.round_size)
    rounds = full_rounds * share(plan.round_size) + share(rest)
    comparison = sum(stack_seconds) * rounds * plan.folds * plan.repeats / plan.workers + max(stack_seconds)
    best = max(stack_seconds) * rounds * plan.folds / (plan.folds - 1)
    return comparison + best + REPORT_SECONDS


def _share(plan: Plan, rows: int) -> float:
    return 1.0 if plan.row_cap is None else plan.row_cap / rows
