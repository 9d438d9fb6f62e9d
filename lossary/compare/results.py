"""What a comparison ends with: the numbers behind every sentence of the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import pandas as pd

if TYPE_CHECKING:
    from lossary.compare.judge import Judgement
    from lossary.compare.load import Table
    from lossary.compare.metrics import Metric
    from lossary.compare.options import Options
    from lossary.compare.plan import Plan


@dataclass(frozen=True)
class CandidateResult:
    """One candidate over the kept repeats.

    Attributes:
        name: Name of the candidate.
        title: Its title for tables.
        why: One line: when it suits.
        paper: Slug of the paper that it comes from, if any.
        control: Candidate that runs beside it because of its head, if any.
        settings: Chosen settings, one dictionary per split: ``split``, ``trial``, ``score`` and the settings.
        trials: Every trial: split, repeat, fold, round, trial, score (mean over inner folds) and the settings.
        metrics: Columns split, repeat, fold, metric, form (``judged`` or ``as_trained``) and value. ECE is taken on
            the pooled predictions of one repeat and has split and fold -1.
        share_at_cap: Share of the fits that were stopped by the cap on epochs.
        edges: Sentences about dimensions whose best value lies at an end of the searched range.
        probabilities: Per repeat, calibrated out-of-fold probabilities (n, C), float64.
        raw_probabilities: The same, as trained.
        rows: Per repeat, the rows of the table that ``probabilities`` belong to (n,).
        recall: Columns class, judged, argmax and support, over the kept repeats.
        loop: Whether the plain loop trained it because ``torch.vmap`` refuses its objective.
    """

    name: str
    title: str
    why: str
    paper: str | None
    control: str | None
    settings: list[dict[str, Any]]
    trials: pd.DataFrame
    metrics: pd.DataFrame
    share_at_cap: float
    edges: list[str]
    probabilities: list[npt.NDArray[Any]]
    raw_probabilities: list[npt.NDArray[Any]]
    rows: list[npt.NDArray[Any]]
    recall: pd.DataFrame
    loop: bool


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        table: The data.
        options: What was asked for.
        plan: What was run.
        candidates: Results in the order of the plan, cross-entropy first.
        judgement: Verdicts on the primary metric.
        metric: The primary metric.
        fits: One row a fit, as in ``results.parquet``.
        notes: Sentences that a reader must know beside the table.
        out: Output folder; None if nothing was written.
        seconds: Wall time of the command up to the report.
        versions: Versions of Lossary, Python and the libraries that the numbers depend on.
    """

    table: Table
    options: Options
    plan: Plan
    candidates: list[CandidateResult]
    judgement: Judgement
    metric: Metric
    fits: pd.DataFrame
    notes: list[str]
    out: Path | None
    seconds: float
    versions: dict[str, str]
