"""A pilot on a pool whose clock is known: what it foretells is what the stacks would take."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from lossary.compare import pilot
from lossary.compare.journal import FitRecord
from lossary.compare.pilot import time_stacks
from lossary.compare.pool import EpochDone, StackDone
from lossary.compare.train import Training
from lossary.compare.work import StackJob

TRAINING = Training("binary", 2, "mlp", "log_loss", "temperature", 32, max_epochs=200, patience=20, seed=0)


class Clockwork:
    """A pool of two workers; an epoch of a stack takes ``fixed + each * members``, and fits stop after ``epochs``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fixed: float, each: float, epochs: int) -> None:
        self.now, self.fixed, self.each, self.epochs = 100.0, fixed, each, epochs
        self.running: list[tuple[StackJob, float, int]] = []
        self.stopped = False
        monkeypatch.setattr(pilot, "time", SimpleNamespace(monotonic=lambda: self.now))

    @property
    def idle(self) -> int:
        return 2 - len(self.running)

    def submit(self, job: StackJob) -> None:
        self.running.append((job, self.now, 0))

    def events(self, timeout: float) -> Iterator[EpochDone | StackDone]:
        due = [start + (done + 1) * self.epoch_of(job) for job, start, done in self.running]
        place = min(range(len(due)), key=due.__getitem__)
        if due[place] > self.now + timeout:
            self.now += timeout
            return
        self.now = due[place]
        job, start, done = self.running.pop(place)
        last = min(self.epochs, job.training.max_epochs)
        if done + 1 < last:
            self.running.insert(place, (job, start, done + 1))
            yield EpochDone(job, done + 1, job.num_fits)
        else:
            yield StackDone(job, [FitRecord(0, 0, {}, 0.5, last, last, False, 0.1, None)])

    def epoch_of(self, job: StackJob) -> float:
        return self.fixed + self.each * job.num_fits

    def stop(self) -> None:
        self.stopped = True


def jobs(*names: str) -> list[StackJob]:
    settings = tuple({"learning_rate": 1e-3} for _ in range(8))
    return [StackJob(name, 0, 0, 0, settings, (Path("0-0"),), TRAINING) for name in names]


def test_a_full_stack_and_what_of_it_is_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Clockwork(monkeypatch, fixed=0.02, each=0.01, epochs=50)
    pace = time_stacks(pool, jobs("cross_entropy", "focal"), 60.0)  # type: ignore[arg-type]
    assert pace.stack_seconds == pytest.approx((0.1 * 65, 0.1 * 65))  # the most patient member goes on for longer
    assert pace.overhead == pytest.approx(0.2)
    assert pool.stopped


def test_what_is_not_seen_is_taken_at_its_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Clockwork(monkeypatch, fixed=0.0, each=0.1, epochs=150)
    pace = time_stacks(pool, jobs("cross_entropy", "focal", "poly1"), 9.0)  # type: ignore[arg-type]
    assert pace.stack_seconds == pytest.approx((0.8 * 200,) * 3), "the end of no fit was seen: the cap on epochs"


def test_nothing_seen_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Clockwork(monkeypatch, fixed=30.0, each=0.0, epochs=50)
    pace = time_stacks(pool, jobs("cross_entropy", "focal"), 5.0)  # type: ignore[arg-type]
    assert pace.stack_seconds == (5.0 * 200,) * 2
    assert pace.overhead == pilot.OVERHEAD


def test_more_epochs_than_the_cap_are_not_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    short = [dataclasses.replace(job, training=dataclasses.replace(TRAINING, max_epochs=20)) for job in jobs("a")]
    pool = Clockwork(monkeypatch, fixed=0.0, each=0.1, epochs=50)
    assert time_stacks(pool, short, 60.0).stack_seconds == pytest.approx((0.8 * 20,))  # type: ignore[arg-type]
