"""A comparison from data to verdict: the story of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lossary.compare.artifact import build_best
from lossary.compare.candidates import Candidate, choose, get_candidate
from lossary.compare.collect import collect
from lossary.compare.handicap import flip_labels
from lossary.compare.identity import identity, versions
from lossary.compare.journal import WORK, Journal
from lossary.compare.load import Table
from lossary.compare.metrics import METRICS
from lossary.compare.models import build_model
from lossary.compare.options import Options
from lossary.compare.pilot import time_stacks
from lossary.compare.plan import REPORT_SECONDS, Plan, best_seconds, first_plan, fit_budget, fit_memory
from lossary.compare.pool import Pool
from lossary.compare.progress import Progress
from lossary.compare.report import write_report
from lossary.compare.results import Comparison
from lossary.compare.scheduler import Chain, Scheduler
from lossary.compare.splits import Split, final_split, make_splits
from lossary.compare.train import Training, vmap_refuses
from lossary.compare.work import FoldStore
from lossary.core.errors import UserError

PILOT_ROWS = 50_000
PILOT_SHARE = 0.1
"""Share of a budget that the pilot may take."""


def compare_table(
    table: Table,
    options: Options,
    *,
    out: Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    started: float | None = None,
    best: bool = True,
) -> Comparison:
    """Compare objectives on a table.

    Args:
        table: The data.
        options: What to do.
        out: Output folder; a run that ended early there goes on where it stood. None writes nothing.
        fresh: Start over in that folder.
        progress: Is told what happens.
        started: ``time.monotonic()`` when the command began, from which a budget counts; None is now.
        best: Whether the recommended objective is trained on all rows into ``best/``.

    Raises:
        UserError: Data, options and folder do not go together; a stack failed; or the budget ended before there was
            anything to judge. Finished work stays in the folder.
    """
    started = time.monotonic() if started is None else started
    _check_metric(options.metric)
    table = flip_labels(table, options.label_noise, options.seed)
    end = math.inf if options.budget is None else started + options.budget - REPORT_SECONDS
    device = _device(options.device)
    progress = progress or Progress()
    chosen = choose(options.objectives, table)
    progress.planning(table, options, chosen)
    with (
        _output_folder(out) as folder,
        Journal(folder, identity(table, options, device), fresh=fresh) as journal,
        _work_folder(folder) as work,
        Pool() as pool,
    ):
        pool.resize(1)  # it imports torch while the first fold is preprocessed
        bench = _Bench(table, options, journal, work, pool, progress)
        plan, splits = journal.plan() or _make_plan(bench, [c for c, _ in chosen], device, started)
        *outer, everything = splits
        progress.planned(plan)
        pool.resize(plan.workers)

        candidates = [get_candidate(name, table.task) for name in plan.candidates]
        scheduler = bench.scheduler(plan, "folds")
        refusals = {candidate.name: vmap_refuses(candidate, scheduler.training) for candidate in candidates}
        chains = [Chain(candidate, split) for split in outer for candidate in candidates]
        best = best and out is not None

        def deadline() -> float:
            return end - best_seconds(plan, journal.stack_seconds()) if best else end

        scheduler.train("Comparing", chains, deadline=deadline)
        comparison = collect(table, options, plan, candidates, outer, journal, refusals)

        if best:
            assert out is not None
            chain = Chain(get_candidate(comparison.judgement.recommended, table.task), everything)
            if scheduler.train("Training best/", [chain], deadline=lambda: end, keep_weights=True):
                build_best(table, options, chain.candidate, everything, journal, out / "best")
            else:
                comparison.notes.append(
                    "The budget ended before best/ was trained. The same command with a larger --budget trains it."
                )
    comparison = dataclasses.replace(comparison, out=out, seconds=time.monotonic() - started, versions=versions())
    if out is not None:
        _write_fits(comparison.fits, out / "results.parquet")
        write_report(comparison, out / "report.html")
    return comparison


@dataclass(frozen=True)
class _Bench:
    """What a scheduler needs beside a plan."""

    table: Table
    options: Options
    journal: Journal
    work: Path
    pool: Pool
    progress: Progress

    def scheduler(self, plan: Plan, folder: str) -> Scheduler:
        """A scheduler of a plan that keeps its preprocessed folds in a folder of its own."""
        training = Training(
            task=self.table.task,
            num_outputs=self.table.num_outputs,
            model=self.options.model,
            metric=self.options.metric,
            calibrate=self.options.calibrate,
            batch_size=plan.batch_size,
            max_epochs=plan.max_epochs,
            patience=plan.patience,
            seed=self.options.seed,
            device=plan.device,
        )
        store = FoldStore(self.table, self.work / folder)
        return Scheduler(plan, training, self.journal, store, self.pool, self.progress)


def _make_plan(bench: _Bench, candidates: Sequence[Candidate], device: str, started: float) -> tuple[Plan, list[Split]]:
    """Fix the plan and its splits, and write both to the journal."""
    table, options = bench.table, bench.options

    def splits(repeats: int, row_cap: int | None) -> list[Split]:
        return make_splits(
            table,
            folds=options.folds,
            repeats=repeats,
            seed=options.seed,
            row_cap=row_cap,
            imbalance=options.imbalance,
        )

    first = splits(1, None)[0]
    rows = len(first.train)
    plan = first_plan(
        options,
        candidates=tuple(candidate.name for candidate in candidates),
        rows=len(first.inner[0][0]),
        device=device,
    )
    sample = first if rows <= PILOT_ROWS else splits(1, PILOT_ROWS)[0]
    pilot = bench.scheduler(plan, "pilot")
    width = np.load(pilot.store.folders(sample)[0] / "x_train.npy", mmap_mode="r").shape[1]
    plan = fit_memory(plan, options.memory, **_bytes(table, options.model, candidates, first, width))
    if options.budget is not None:
        bench.pool.resize(plan.workers)
        jobs = [pilot.job(Chain(candidate, sample), 0) for candidate in candidates]
        pace = time_stacks(bench.pool, jobs, PILOT_SHARE * options.budget)
        plan = fit_budget(
            plan,
            options.budget,
            spent=time.monotonic() - started,
            stack_seconds=[stack * rows / len(sample.train) for stack in pace.stack_seconds],
            overhead=pace.overhead,
            rows=rows,
            inner=len(first.inner),
        )
    everything = final_split(table, seed=options.seed, row_cap=plan.row_cap, imbalance=options.imbalance)
    chosen = [*splits(plan.repeats, plan.row_cap), everything]
    bench.journal.write_plan(plan, chosen)
    return plan, chosen


def _bytes(table: Table, model: str, candidates: Sequence[Candidate], split: Split, width: int) -> dict[str, int]:
    """Bytes of a split's folds in a worker, and of a trial's members beside them, whichever candidate has most."""
    kinds = {(candidate.head, candidate.link) for candidate in candidates}
    models = [build_model(model, width, table.num_outputs, head, link) for head, link in kinds]
    parameters = max(sum(p.numel() for p in module.parameters()) for module in models)
    data = trial = 0
    for train, validation in split.inner:
        data += 4 * width * (2 * len(train) + len(validation) + len(split.test))  # twice: in order, and shuffled
        # Weights, gradients, two moments and the best weights; logits in double precision with what they are judged by.
        trial += 4 * 5 * parameters + 8 * 4 * table.num_outputs * (len(validation) + len(split.test))
    return {"data_bytes": data, "trial_bytes": trial}


@contextlib.contextmanager
def _output_folder(out: Path | None) -> Iterator[Path]:
    """The output folder, or one that goes away if nothing is to be written."""
    if out is not None:
        yield out
    else:
        with tempfile.TemporaryDirectory(prefix="lossary-") as folder:
            yield Path(folder)


@contextlib.contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """An empty folder for what workers read, removed at the end; what a killed run left is removed first."""
    work = folder / WORK
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_metric(name: str) -> None:
    primary = [metric.name for metric in METRICS.values() if metric.primary]
    if name not in primary:
        near = difflib.get_close_matches(name, primary, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"--metric is {name!r}; wanted one of {', '.join(primary)}.{hint}")


def _device(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here. Leave --device out, or give cpu.")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _write_fits(fits: pd.DataFrame, path: Path) -> None:
    aside = path.with_name(f".{path.name}.part")
    fits.to_parquet(aside, index=False)
    aside.replace(path)
