"""Running a reproduction: seeds and arms in order, progress, and the conclusion by the card's rule."""

from __future__ import annotations

import importlib
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

import lossary
from lossary.core.errors import UserError
from lossary.papers._catalogue import card
from lossary.papers._evidence import Evidence, Series, judge
from lossary.papers._paper import Paper

T = TypeVar("T")
QUICK_SEEDS = 2


class Run:
    """What ``reproduce(run)`` of a paper is given.

    Attributes:
        quick: Whether the quick form is wanted (<= 20 s): it proves that everything runs, and no more.
        seeds: The seeds to run.
    """

    def __init__(
        self, paper: Paper, *, seeds: int | None, quick: bool, progress: Callable[[int, int, str], None] | None
    ) -> None:
        self.paper = paper
        self.quick = quick
        self.seeds = range(seeds or (QUICK_SEEDS if quick else paper.seeds))
        self._progress = progress or (lambda done, total, what: None)
        self._records: dict[str, dict[str, list[float]]] = {}
        self._started = time.perf_counter()

    def pick(self, full: T, quick: T) -> T:
        """One of two values, by the form of the run."""
        return quick if self.quick else full

    def trials(self, arms: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Every (seed, arm), the arms of a seed side by side; reports progress."""
        total = len(self.seeds) * len(arms)
        done = 0
        for seed in self.seeds:
            for arm in arms:
                self._progress(done, total, f"seed {seed}, {arm}")
                yield seed, arm
                done += 1
        self._progress(total, total, "done")

    def record(self, arm: str, **metrics: float) -> None:
        """Note an arm's metrics for the seed in turn."""
        for metric, value in metrics.items():
            self._records.setdefault(arm, {}).setdefault(metric, []).append(float(value))

    def values(self, arm: str, metric: str) -> list[float]:
        """An arm's metric by seed."""
        return self._records[arm][metric]

    def mean(self, arm: str, metric: str) -> float:
        """Mean of an arm's metric over the seeds."""
        return sum(self.values(arm, metric)) / len(self.values(arm, metric))

    def conclude(self, *, series: Sequence[Series] = (), notes: Sequence[str] = ()) -> Evidence:
        """Judge the records by the card's rule."""
        verdict, differences, mean, low, high = judge(self.paper, self._records)
        options = (" --quick" if self.quick else "") + (
            f" --seeds {len(self.seeds)}"
            if len(self.seeds) != (QUICK_SEEDS if self.quick else self.paper.seeds)
            else ""
        )
        return Evidence(
            slug=self.paper.slug,
            claim=self.paper.claim,
            verdict="not judged (quick form)" if self.quick else verdict,
            metric=self.paper.metric,
            baseline=self.paper.baseline,
            method=self.paper.method,
            differences=differences,
            mean=mean,
            low=low,
            high=high,
            margin=self.paper.margin,
            arms=self._records,
            series=list(series),
            notes=list(notes),
            limits=self.paper.limits,
            quick=self.quick,
            seeds=list(self.seeds),
            seconds=round(time.perf_counter() - self._started, 1),
            command=f"lossary reproduce {self.paper.slug}{options}",
            versions={"lossary": lossary.__version__, "torch": torch.__version__, "python": platform.python_version()},
        )


def reproduce(
    slug: str,
    *,
    seeds: int | None = None,
    quick: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Evidence:
    """Re-run a paper's claim small, baseline and method side by side on the same splits.

    Args:
        slug: The paper.
        seeds: Number of seeds; None takes the card's.
        quick: The quick form (<= 20 s), which proves that everything runs and no more.
        progress: Called with (trials done, trials in all, what runs now).

    Returns:
        The evidence, with its verdict by the card's rule.

    Raises:
        UserError: There is no such paper, or ``seeds`` is below 1.
    """
    paper = card(slug)
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds is {seeds}; wanted 1 or more.")
    run = Run(paper, seeds=seeds, quick=quick, progress=progress)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small models: faster, and the same bits whatever the machine's cores
    try:
        evidence: Evidence = importlib.import_module(f"lossary.papers.{slug}").reproduce(run)
    finally:
        torch.set_num_threads(threads)
    return evidence
