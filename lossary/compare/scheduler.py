"""Which stack is trained next: every chain of rounds, in the order of the plan, on all workers at once."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lossary.compare.candidates import Candidate
from lossary.compare.journal import Journal, trials_of
from lossary.compare.plan import Plan
from lossary.compare.pool import EpochDone, Pool, StackFailedError
from lossary.compare.progress import Progress
from lossary.compare.search import propose
from lossary.compare.splits import Split
from lossary.compare.train import Training
from lossary.compare.work import FoldStore, StackJob
from lossary.core.errors import UserError


@dataclass(frozen=True)
class Chain:
    """The rounds of one candidate on one split: each needs the one before it."""

    candidate: Candidate
    split: Split


@dataclass(frozen=True)
class Scheduler:
    """Trains chains and writes their stacks to the journal.

    What a stack is depends on the plan and on the earlier rounds of its own chain, so neither the number of workers
    nor the order in which stacks end changes a result.
    """

    plan: Plan
    training: Training
    journal: Journal
    store: FoldStore
    pool: Pool
    progress: Progress

    def train(
        self, title: str, chains: Sequence[Chain], *, deadline: Callable[[], float], keep_weights: bool = False
    ) -> bool:
        """Train what the journal lacks of the chains, repeat by repeat and round by round.

        Args:
            title: What the progress display calls this.
            chains: What to train; where repeat and round are equal, the earlier chain goes first.
            deadline: Gives the ``time.monotonic()`` at which running stacks are ended and the rest is given up; asked
                again after each stack.
            keep_weights: Whether the journal keeps the weights of each stack's best trial.

        Returns:
            Whether every chain is complete.

        Raises:
            UserError: A stack failed or its process died; finished stacks stay in the journal.
        """
        ready = self._unfinished(title, chains)
        running: dict[tuple[str, int], int] = {}
        end = deadline()
        try:
            while ready or running:
                left = end - time.monotonic()
                if left <= 0:
                    self.pool.stop()
                    return False
                while ready and self.pool.idle:
                    _, round, index = heapq.heappop(ready)
                    job = self.job(chains[index], round, keep_weights=keep_weights)
                    self.pool.submit(job)
                    self.progress.stack_started(job)
                    running[job.candidate, job.split] = index
                for event in self.pool.events(left if math.isfinite(left) else None):
                    job = event.job
                    if isinstance(event, EpochDone):
                        self.progress.epoch(job, event.epochs, event.active)
                        continue
                    self.journal.write_stack(job.candidate, job.split, job.round, event.fits)
                    self.progress.stack_finished(job, event.fits)
                    end = deadline()
                    index = running.pop((job.candidate, job.split))
                    if job.round + 1 < self.plan.rounds:
                        heapq.heappush(ready, (chains[index].split.repeat, job.round + 1, index))
        except StackFailedError as failure:
            raise self._explained(failure) from failure
        return True

    def job(self, chain: Chain, round: int, *, keep_weights: bool = False) -> StackJob:
        """The stack of one round of a chain, whose earlier rounds are in the journal."""
        candidate, split, trials = chain.candidate, chain.split, self.plan.trials_of(round)
        done = trials_of(self.journal.fits(candidate.name, split.index))
        settings = propose(
            candidate,
            seed=self.training.seed,
            split=split.index,
            round=round,
            trials_done=[(trial.settings, trial.score) for trial in done],
            count=len(trials),
        )
        return StackJob(
            candidate=candidate.name,
            split=split.index,
            round=round,
            first_trial=trials.start,
            settings=tuple(settings),
            folds=self.store.folders(split),
            training=self.training,
            keep_weights=keep_weights,
        )

    def _unfinished(self, title: str, chains: Sequence[Chain]) -> list[tuple[int, int, int]]:
        """A heap of (repeat, next round, place in ``chains``) of the chains that are not complete."""
        rounds_done = self.journal.rounds_done()
        ready, total, done = [], 0, 0
        for index, chain in enumerate(chains):
            round, inner = rounds_done.get((chain.candidate.name, chain.split.index), 0), len(chain.split.inner)
            total += self.plan.trials * inner
            done += min(round * self.plan.round_size, self.plan.trials) * inner
            if round < self.plan.rounds:
                ready.append((chain.split.repeat, round, index))
        heapq.heapify(ready)
        self.progress.phase(title, total, done)
        return ready

    def _explained(self, failure: StackFailedError) -> UserError:
        repeat, fold = divmod(failure.job.split, self.plan.folds)
        where = "all rows" if failure.job.split < 0 else f"repeat {repeat + 1}, fold {fold + 1}"
        remedy = "lower --memory or mend the cause" if failure.died else "mend the cause"
        return UserError(
            f"{failure.job.candidate} on {where}: {failure}\n"
            f"What was finished is kept: {remedy} and run the same command again."
        )
