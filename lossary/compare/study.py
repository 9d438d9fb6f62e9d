"""The same comparison at growing levels of a handicap: wrong labels, or rare classes, in the training data."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lossary.compare.candidates import choose
from lossary.compare.collect import split_scores
from lossary.compare.handicap import flip_labels, thin_classes
from lossary.compare.judge import Judgement, judge
from lossary.compare.load import Table
from lossary.compare.metrics import METRICS
from lossary.compare.options import Options
from lossary.compare.plan import REPORT_SECONDS
from lossary.compare.progress import Progress
from lossary.compare.results import Comparison
from lossary.compare.run import compare_table
from lossary.core.errors import UserError

Handicap = Literal["label_noise", "imbalance"]

REPORT, RECORD = "report.html", "study.json"
WORTH_SEEING = {"label_noise": ("accuracy", "log_loss"), "imbalance": ("balanced_accuracy", "log_loss")}
"""What a study is judged by beside the primary metric."""


@dataclass(frozen=True)
class Level:
    """One comparison of a study.

    Attributes:
        level: Share of wrong labels, or rows of the most frequent class for one of the rarest.
        name: The level in words.
        folder: Name of its folder beside the study's report.
        comparison: What was seen.
        judgements: By metric, the verdicts at this level; those of one level hold for all its metrics together.
    """

    level: float
    name: str
    folder: str
    comparison: Comparison
    judgements: dict[str, Judgement]


@dataclass(frozen=True)
class Study:
    """A finished study.

    Attributes:
        handicap: What was varied.
        table: The data, as given.
        options: What was asked for.
        levels: The comparisons, by growing handicap.
        metrics: Names of the metrics that are judged, the primary one first.
        out: Output folder; None if nothing was written.
        seconds: Wall time.
    """

    handicap: Handicap
    table: Table
    options: Options
    levels: list[Level]
    metrics: tuple[str, ...]
    out: Path | None
    seconds: float

    @property
    def sentence(self) -> str:
        """The answer in a sentence."""
        found = [
            f"{level.name}: {_title(level.comparison, level.judgements[self.metrics[0]].recommended)}"
            for level in self.levels
            if level.judgements[self.metrics[0]].recommended != "cross_entropy"
        ]
        metric = METRICS[self.metrics[0]].title
        if not found:
            return f"At no level do the data show a reason to leave cross-entropy (judged by {metric})."
        return f"Better than cross-entropy by {metric}, where anything is: {'; '.join(found)}."


def run_study(
    table: Table,
    options: Options,
    handicap: Handicap,
    levels: Sequence[float],
    *,
    out: Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    started: float | None = None,
) -> Study:
    """Compare the same objectives on the same splits at each level of a handicap.

    Args:
        table: The data.
        options: What to do at each level.
        handicap: ``label_noise`` flips training and validation labels, ``imbalance`` thins training and validation rows
            to a ratio of classes; test folds stay as they are.
        levels: Shares of wrong labels in [0, 1), or ratios of at least 1.
        out: Output folder, with a folder for each level; None writes nothing.
        fresh: Start over in that folder.
        progress: Is told what happens.
        started: ``time.monotonic()`` when the command began, from which a budget counts; None is now.

    Raises:
        UserError: The levels, the data, the options and the folder do not go together.
    """
    started = time.monotonic() if started is None else started
    if not levels:
        raise UserError(f"--{handicap.replace('_', '-')} names no level.")
    ordered = sorted(set(levels))
    each = {level: _at_level(options, handicap, level) for level in ordered}
    if out is not None:
        _claim(out)
    objectives = _objectives(table, options, handicap, ordered)
    metrics = tuple(dict.fromkeys((options.metric, *WORTH_SEEING[handicap])))
    done = []
    for place, level in enumerate(ordered):
        now, budget = time.monotonic(), options.budget
        if budget is not None:  # what is left, evenly; the report of the study comes out of it too
            budget = max((started + budget - REPORT_SECONDS - now) / (len(ordered) - place), 10.0)
        name, folder = _words(handicap, level)
        if progress is not None:
            progress.study_level(name, place, len(ordered))
        comparison = compare_table(
            table,
            dataclasses.replace(each[level], objectives=objectives, budget=budget),
            out=None if out is None else out / folder,
            fresh=fresh,
            progress=progress,
            started=now,
            best=False,
        )
        done.append(Level(level, name, folder, comparison, _judged(comparison, metrics)))
    study = Study(handicap, table, options, done, metrics, out, time.monotonic() - started)
    if out is not None:
        from lossary.compare.report.study import write_study

        (out / RECORD).write_text(json.dumps(_record(study), indent=1) + "\n")
        write_study(study, out / REPORT)
    return study


def _claim(out: Path) -> None:
    """Mark a folder as a study's, or refuse it."""
    if (out / REPORT).exists() and not (out / RECORD).exists():
        raise UserError(
            f"{out} already holds {REPORT}, which is no study's.\n"
            "Nothing is overwritten: choose another folder with --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    if not (out / RECORD).exists():
        (out / RECORD).write_text("{}\n")


def _at_level(options: Options, handicap: Handicap, level: float) -> Options:
    if handicap == "label_noise":
        return dataclasses.replace(options, label_noise=level)
    return dataclasses.replace(options, imbalance=level)


def _objectives(table: Table, options: Options, handicap: Handicap, levels: Sequence[float]) -> tuple[str, ...]:
    """Names of all candidates that any level would choose, so that every level has the same."""
    names: dict[str, None] = {}
    for level in levels:
        seen = table
        if handicap == "label_noise":
            seen = flip_labels(table, level, options.seed)
        else:
            rows = thin_classes(np.arange(len(table.target)), table, level, options.seed)
            seen = dataclasses.replace(table, target=table.target[rows])
        names |= {candidate.name: None for candidate, _ in choose(options.objectives, seen)}
    return tuple(names)


def _judged(comparison: Comparison, metrics: Sequence[str]) -> dict[str, Judgement]:
    return {
        metric: judge(
            {result.name: split_scores(result, metric) for result in comparison.candidates},
            folds=comparison.plan.folds,
            higher_is_better=METRICS[metric].higher_is_better,
            min_effect=comparison.options.min_effect,
            baseline=comparison.candidates[0].name,
            tests=len(metrics),
            seed=comparison.options.seed,
        )
        for metric in metrics
    }


def _words(handicap: Handicap, level: float) -> tuple[str, str]:
    """A level in words, and the name of its folder."""
    if handicap == "label_noise":
        return f"{100 * level:g}% of the labels wrong", f"noise-{100 * level:g}"
    return f"{level:g} : 1 between classes", f"imbalance-{level:g}"


def _title(comparison: Comparison, name: str) -> str:
    return next(result.title for result in comparison.candidates if result.name == name)


def _record(study: Study) -> dict[str, object]:
    """What ``study.json`` holds: every verdict."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "handicap": study.handicap,
        "metrics": study.metrics,
        "levels": [
            {
                "level": level.level,
                "folder": level.folder,
                "verdicts": {
                    metric: {
                        name: {
                            "mean": number(verdict.mean),
                            "difference": number(verdict.difference),
                            "low": number(verdict.low),
                            "high": number(verdict.high),
                            "verdict": verdict.verdict,
                        }
                        for name, verdict in judgement.verdicts.items()
                    }
                    for metric, judgement in level.judgements.items()
                },
            }
            for level in study.levels
        ],
    }
