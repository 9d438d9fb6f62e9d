"""A few seconds of training, timed: what the plan of a budget stands on."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lossary.compare.pool import EpochDone, Pool
from lossary.compare.work import StackJob

FEW_EPOCHS = 10
FEW_TRIALS = 2
LONGEST = 1.3
"""Epochs of a full round's most patient member, in those of a few trials'."""
OVERHEAD = 0.3


@dataclass(frozen=True)
class Pace:
    """What a pilot saw.

    Attributes:
        stack_seconds: Of each candidate, expected seconds of a stack of a full round.
        overhead: Share of them that a stack costs however few its members are.
    """

    stack_seconds: tuple[float, ...]
    overhead: float


def time_stacks(pool: Pool, jobs: Sequence[StackJob], seconds: float) -> Pace:
    """Train for a short while.

    A stack of a few trials of the first candidate trains to its end, to see how soon fits stop, and every candidate's
    full stack for a few epochs, to see what an epoch costs. What there was no time to see is taken at its worst.

    Args:
        pool: Idle workers; idle again afterwards.
        jobs: Stacks of a full round, cross-entropy's first.
        seconds: Time for all of them together.

    Raises:
        StackFailedError: A stack raised, or its process died.
    """
    watches = [_Watch(_few_epochs(job)) for job in jobs]
    whole = _Watch(dataclasses.replace(jobs[0], settings=jobs[0].settings[:FEW_TRIALS]))
    waiting = [whole, *watches]
    running: list[_Watch] = []
    end = time.monotonic() + seconds
    while (waiting or running) and time.monotonic() < end:
        while waiting and pool.idle:
            watch = waiting.pop(0)
            pool.submit(watch.job)
            running.append(watch)
        for event in pool.events(max(end - time.monotonic(), 0)):
            watch = next(watch for watch in running if watch.job is event.job)
            if isinstance(event, EpochDone):
                watch.see(event.epochs)
            else:
                watch.ended = time.monotonic()
                running.remove(watch)
                watch.epochs = max(fit.epochs for fit in event.fits)
    pool.stop()

    pace = [watch.seconds_per_epoch for watch in watches]
    slowest = max((value for value in pace if value is not None), default=seconds)
    most = jobs[0].training.max_epochs
    epochs = min(most, math.ceil(LONGEST * whole.epochs)) if whole.epochs else most
    return Pace(
        tuple((slowest if value is None else value) * epochs for value in pace),
        _overhead(pace[0], whole.seconds_per_epoch, len(whole.job.settings) / len(jobs[0].settings)),
    )


def _overhead(full: float | None, few: float | None, share: float) -> float:
    """Where the cost of a stack is o + (1 - o) x share of its members: o, from two measurements."""
    if full is None or few is None or share == 1:
        return OVERHEAD
    return min(max((few / full - share) / (1 - share), 0.0), 0.9)


class _Watch:
    """When the epochs of a job were seen, and when it ended, after how many."""

    def __init__(self, job: StackJob) -> None:
        self.job, self.ended, self.epochs = job, math.nan, 0
        self._seen: list[tuple[float, int]] = []

    def see(self, epochs: int) -> None:
        self._seen.append((time.monotonic(), epochs))

    @property
    def seconds(self) -> float | None:
        """Seconds from the first epoch to the end; None before the end."""
        return None if math.isnan(self.ended) else self.ended - self._seen[0][0]

    @property
    def seconds_per_epoch(self) -> float | None:
        """None before a second epoch was seen."""
        if len(self._seen) < 2:
            return self.seconds  # some epochs and the end: too much, but no more is known
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return (end - start) / (last - first)


def _few_epochs(job: StackJob) -> StackJob:
    few = min(FEW_EPOCHS, job.training.max_epochs)
    return dataclasses.replace(job, training=dataclasses.replace(job.training, max_epochs=few))
