"""What is measured: scikit-learn's metrics at the end, the same criteria in batches for early stopping."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn import metrics as sk
from torch import Tensor

from lossary.calibration import reliability_bins
from lossary.compare.calibrate import fit_affine
from lossary.compare.decide import best_offsets, best_thresholds
from lossary.compare.options import Task

Array = npt.NDArray[Any]
BINS = 15


@dataclass(frozen=True)
class Metric:
    """A metric in words.

    Attributes:
        name: Name on the command line.
        title: Name for people.
        higher_is_better: Its direction.
        kind: What it is taken from: probabilities, decisions or rankings.
        primary: Whether it can be the primary metric.
        rewards: What it rewards, one sentence.
        alternatives: What to use instead on imbalanced data, one sentence; may be empty.
    """

    name: str
    title: str
    higher_is_better: bool
    kind: Literal["probability", "decision", "ranking"]
    primary: bool
    rewards: str
    alternatives: str


_RARE = "Where rare classes matter, balanced_accuracy, f1 or average_precision say more."
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "log_loss",
            "log-loss",
            False,
            "probability",
            True,
            "it rewards probabilities that are right, and punishes confident mistakes.",
            _RARE,
        ),
        Metric(
            "brier",
            "Brier score",
            False,
            "probability",
            True,
            "it rewards probabilities that are right, more mildly than log-loss.",
            _RARE,
        ),
        Metric(
            "accuracy",
            "accuracy",
            True,
            "decision",
            True,
            "it rewards right decisions, each row alike: rare classes hardly count.",
            _RARE,
        ),
        Metric(
            "balanced_accuracy",
            "balanced accuracy",
            True,
            "decision",
            True,
            "it rewards right decisions, each class alike, however rare.",
            "",
        ),
        Metric(
            "f1",
            "macro F1",
            True,
            "decision",
            True,
            "it rewards finding each class without false alarms, each class alike.",
            "",
        ),
        Metric(
            "auroc",
            "AUROC",
            True,
            "ranking",
            True,
            "it rewards ranking members of a class above the rest, whatever the probabilities.",
            "With few positives, average_precision is the stricter ranking.",
        ),
        Metric(
            "average_precision",
            "average precision",
            True,
            "ranking",
            True,
            "it rewards ranking the members of a class at the very top.",
            "",
        ),
        Metric(
            "ece",
            "calibration error",
            False,
            "probability",
            False,
            "it rewards confidences that match the share of right decisions.",
            "",
        ),
    )
}


def evaluate(
    log_probabilities: Array, decisions: Array, target: Array, *, task: Task, metrics: Iterable[str] | None = None
) -> dict[str, float]:
    """Scikit-learn's metrics of one test fold.

    A class without rows in the fold is left out of the means over classes and counted in ``absent_classes``.

    Args:
        log_probabilities: ``(n, C)`` float64; multi-label: log-probability of yes for each label.
        decisions: ``(n,)`` codes, multi-label 0/1 ``(n, L)``.
        target: The same shape as ``decisions``.
        task: The task.
        metrics: Names; all but ECE, which is for pooled predictions, if None.
    """
    wanted = [name for name in METRICS if name != "ece"] if metrics is None else list(metrics)
    probability = np.exp(log_probabilities)
    indicator = (
        target.astype(np.int64) if task == "multilabel" else np.eye(probability.shape[1], dtype=np.int64)[target]
    )
    present = np.flatnonzero((indicator.sum(0) > 0) & (indicator.sum(0) < len(indicator)))
    values: dict[str, float] = {"absent_classes": float(probability.shape[1] - len(present))}
    for name in wanted:
        values[name] = _value(name, log_probabilities, probability, decisions, target, indicator, present, task)
    return values


def ece(log_probabilities: Array, target: Array, *, task: Task, bins: int = BINS) -> float:
    """Expected calibration error over equal-width bins.

    Binned is the probability of the most likely class; multi-label, over all labels together, the probability of a yes.
    """
    probability = np.exp(log_probabilities)
    if task == "multilabel":
        confidence, right = probability.ravel(), target.ravel()
    else:
        confidence, right = probability.max(1), probability.argmax(1) == target
    found = reliability_bins(torch.from_numpy(confidence).clamp(max=1), torch.from_numpy(right), bins)
    return found.expected_error().item()


def stacked_criterion(metric: str, logits: Tensor, target: Tensor, *, task: Task, calibrate: str) -> Tensor:
    """The primary metric on validation rows of many models at once; lower is better.

    Probability metrics are taken after the calibrator (isotonic: after its affine stand-in, which is smooth), decision
    metrics after the decision rule that suits them best.

    Args:
        metric: Name of the primary metric.
        logits: ``(K, n, C)``, finite.
        target: ``(n,)`` int64, multi-label ``(n, L)`` float.
        task: The task.
        calibrate: Kind of calibrator.

    Returns:
        ``(K,)``.
    """
    kind = METRICS[metric].kind
    if kind == "probability":
        if calibrate != "none":
            vector = calibrate == "vector"
            scale, bias = fit_affine(logits, target, task=task, kind="vector" if vector else "temperature")
            if vector and task != "multilabel":
                logits = logits - logits.mean(2, keepdim=True)
            logits = logits * scale[:, None] + bias[:, None]
        return _stacked_probability(metric, logits, target, task)
    if kind == "decision":
        if task == "multilabel":
            return -best_thresholds(logits.sigmoid(), target, metric)[1]
        return -best_offsets(torch.log_softmax(logits.double(), 2), target, metric)[1]
    score = logits if task == "multilabel" else torch.softmax(logits.double(), 2)
    indicator = target if task == "multilabel" else F.one_hot(target, logits.shape[2])
    return -_stacked_ranking(metric, score, indicator.bool())


def _value(
    name: str, log_p: Array, p: Array, decisions: Array, target: Array, indicator: Array, present: Array, task: Task
) -> float:
    multilabel = task == "multilabel"
    if name == "log_loss":
        if multilabel:
            no = np.log1p(-np.minimum(p, 1 - 1e-15))
            return float(-(indicator * log_p + (1 - indicator) * no).mean())
        return float(-log_p[np.arange(len(target)), target].mean())
    if name == "brier":
        return float(np.square(p - indicator).mean() if multilabel else np.square(p - indicator).sum(1).mean())
    if name == "accuracy":
        return float((decisions == target).mean()) if multilabel else float(sk.accuracy_score(target, decisions))
    if name in ("auroc", "average_precision"):
        score = sk.roc_auc_score if name == "auroc" else sk.average_precision_score
        columns = present[present == 1] if task == "binary" else present
        return _mean(score(indicator[:, c], p[:, c]) for c in columns)
    if name == "balanced_accuracy" and not multilabel:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
            return float(sk.balanced_accuracy_score(target, decisions))
    chosen = decisions.astype(np.int64) if multilabel else np.eye(p.shape[1], dtype=np.int64)[decisions]
    if name == "balanced_accuracy":
        return _mean(sk.balanced_accuracy_score(indicator[:, c], chosen[:, c]) for c in present)
    with_rows = np.flatnonzero(indicator.sum(0) > 0)
    return _mean(sk.f1_score(indicator[:, c], chosen[:, c], zero_division=0.0) for c in with_rows)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else math.nan


def _stacked_probability(metric: str, logits: Tensor, target: Tensor, task: Task) -> Tensor:
    if task == "multilabel":
        truth = target.to(logits.dtype).expand_as(logits)
        if metric == "log_loss":
            return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((1, 2))
        return (logits.sigmoid() - truth).square().mean((1, 2))
    log_p = torch.log_softmax(logits, 2)
    if metric == "log_loss":
        return -log_p.gather(2, target.expand(len(logits), -1)[:, :, None]).mean((1, 2))
    return (log_p.exp() - F.one_hot(target, logits.shape[2])).square().sum(2).mean(1)


def _stacked_ranking(metric: str, score: Tensor, indicator: Tensor) -> Tensor:
    """Macro AUROC or average precision ``(K,)``; ties count half, or share their precision."""
    order = score.sort(dim=1, descending=True)
    hit = indicator.expand_as(score).gather(1, order.indices).double()
    last = torch.ones_like(hit, dtype=torch.bool)
    last[:, :-1] = order.values[:, 1:] != order.values[:, :-1]
    hits = hit.cumsum(1)
    rank = torch.arange(1, score.shape[1] + 1, dtype=torch.float64, device=score.device)[None, :, None]
    # Within a tie only its last place counts: the curve jumps over the tie as a whole.
    index = torch.where(last, rank.long() - 1, -1).cummax(1).values
    before = torch.where(index >= 0, hits.gather(1, index.clamp(min=0)), 0.0)
    shifted = torch.cat([torch.zeros_like(before[:, :1]), before[:, :-1]], 1)
    rank_before = torch.cat([torch.zeros_like(before[:, :1]), (index + 1)[:, :-1].double()], 1)
    gained = torch.where(last, hits - shifted, 0.0)
    positives = hits[:, -1]
    negatives = score.shape[1] - positives
    if metric == "average_precision":
        value = (gained * hits / rank).sum(1) / positives
    else:
        missed = torch.where(last, (rank - rank_before) - gained, 0.0)
        value = (missed * (hits + shifted) / 2).sum(1) / (positives * negatives)
    columns = [1] if score.shape[2] == 2 else list(range(score.shape[2]))
    defined = (positives > 0) & (negatives > 0)
    value, defined = value[:, columns], defined[:, columns]
    return torch.where(defined, value, 0.0).sum(1) / defined.sum(1)
