"""A few seconds of training, timed: what the plan of a budget stands on."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

from lossary.compare.pool import EpochDone, Pool
from lossary.compare.work import StackJob

FEW_EPOCHS = 10


def time_stacks(pool: Pool, jobs: Sequence[StackJob], seconds: float) -> list[float]:
    """Expected seconds of each stack, from training them for a short while.

    Every stack trains for a few epochs, to see what an epoch costs; then the first goes on to its end if there is
    time, to see how soon fits stop. What there was no time to see is taken at its worst.

    Args:
        pool: Idle workers; idle again afterwards.
        jobs: Stacks of a full round, cross-entropy's first.
        seconds: Time for all of them together.

    Raises:
        StackFailedError: A stack raised, or its process died.
    """
    watches = [_Watch(_few_epochs(job)) for job in jobs]
    whole = _Watch(jobs[0])
    waiting = [*watches, whole]
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
    pool.stop()

    pace = [watch.seconds_per_epoch for watch in watches]
    slowest = max((value for value in pace if value is not None), default=seconds)
    epochs = jobs[0].training.max_epochs
    if whole.seconds is not None and pace[0] is not None:
        epochs = math.ceil(whole.seconds / pace[0])
    return [(slowest if value is None else value) * epochs for value in pace]


class _Watch:
    """When the epochs of a job were seen, and when it ended."""

    def __init__(self, job: StackJob) -> None:
        self.job, self.ended = job, math.nan
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
