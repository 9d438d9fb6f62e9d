"""Decision rules: from calibrated probabilities to decisions, tuned for a metric the same way for every candidate."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.compare.options import Task

Array = npt.NDArray[Any]
SWEEPS = 2
"""Rounds of coordinate ascent over the classes' offsets."""


@dataclasses.dataclass(frozen=True)
class DecisionRule:
    """Offsets on log-probabilities before the argmax, or for multi-label a threshold on each label's probability."""

    offsets: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()

    def decide(self, log_probabilities: Array) -> Array:
        """Class codes ``(n,)``, multi-label 0/1 ``(n, L)``."""
        if self.thresholds:
            return (np.exp(log_probabilities) > np.array(self.thresholds)).astype(np.int64)
        return np.asarray((log_probabilities + np.array(self.offsets)).argmax(1))

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DecisionRule:
        """Read what :meth:`to_json` gave."""
        return cls(*(tuple(float(x) for x in values[name]) for name in ("offsets", "thresholds")))


def tune_decision(log_probabilities: Array, target: Array, *, task: Task, metric: str) -> DecisionRule:
    """The decision rule that is best for a decision metric on these rows; the plain one unless another is better."""
    logits = torch.tensor(log_probabilities, dtype=torch.float64)[None]
    truth = torch.tensor(target)
    if task == "multilabel":
        thresholds, _ = best_thresholds(logits.exp(), truth, metric)
        return DecisionRule(thresholds=tuple(thresholds[0].tolist()))
    offsets, _ = best_offsets(logits, truth, metric)
    return DecisionRule(offsets=tuple(offsets[0].tolist()))


def best_thresholds(probability: Tensor, target: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Best threshold of each label ``(K, L)`` and the metric at them ``(K,)``; 0.5 unless another is better.

    Labels are independent: for each, every cut between neighbouring probabilities is tried.
    """
    p = probability.double()
    order = p.sort(dim=1, descending=True)
    yes = target.expand_as(p).double().gather(1, order.indices)
    nothing = torch.zeros_like(p[:, :1])
    hits = torch.cat([nothing, yes.cumsum(1)], 1)
    called = torch.arange(p.shape[1] + 1, dtype=p.dtype, device=p.device)[None, :, None]
    value = _of_label(metric, hits, called, yes.sum(1, keepdim=True), p.shape[1])
    edges = torch.cat([nothing + 1, order.values, nothing], 1)
    cut = (edges[:, :-1] + edges[:, 1:]) / 2
    cut[:, 0], cut[:, -1] = (1 + order.values[:, 0]) / 2, order.values[:, -1] / 2
    value = torch.where(edges[:, :-1] > edges[:, 1:], value, -math.inf)
    plain = (p > 0.5).sum(1, keepdim=True)
    plain_value = _of_label(metric, hits.gather(1, plain), plain, yes.sum(1, keepdim=True), p.shape[1])[:, 0]
    best = (value - 1e-9 * (cut - 0.5).abs()).argmax(1, keepdim=True)
    best_value, best_cut = value.gather(1, best)[:, 0], cut.gather(1, best)[:, 0]
    tuned = best_value > plain_value + 1e-12
    return torch.where(tuned, best_cut, 0.5), torch.where(tuned, best_value, plain_value).mean(1)


def _of_label(metric: str, hits: Tensor, called: Tensor, positives: Tensor, rows: int) -> Tensor:
    negatives = rows - positives
    if metric == "f1":
        return 2 * hits / (called + positives).clamp(min=1)
    if metric == "balanced_accuracy":
        return (hits / positives.clamp(min=1) + (negatives - called + hits) / negatives.clamp(min=1)) / 2
    return (2 * hits + negatives - called) / rows


def best_offsets(log_probability: Tensor, target: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Offsets of the classes ``(K, C)`` and the metric with them ``(K,)``; zeros unless others are better.

    Coordinate ascent: one class's offset after the other, over every cut between rows at which a decision changes.
    """
    models, _, classes = log_probability.shape
    offsets = torch.zeros(models, classes, dtype=log_probability.dtype, device=log_probability.device)
    counts = torch.bincount(target, minlength=classes).to(log_probability.dtype)
    truth = F.one_hot(target, classes).to(log_probability.dtype)
    decided = F.one_hot(log_probability.argmax(2), classes).to(log_probability.dtype)
    value = _of_classes(metric, (decided * truth).sum(1), decided.sum(1), counts)
    for turn in range(1 if classes == 2 else SWEEPS * classes):
        c = classes - 1 - turn % classes
        score = log_probability + offsets[:, None]
        others = score.clone()
        others[:, :, c] = -math.inf
        rival, rival_class = others.max(2)
        gap, order = (rival - log_probability[:, :, c]).sort(1)  # the class is decided where its offset exceeds the gap
        label = F.one_hot(target[order], classes).to(value.dtype)
        loses = F.one_hot(rival_class.gather(1, order), classes).to(value.dtype)
        none = torch.zeros_like(loses[:, :1])
        hits, called = _rest(loses * label), _rest(loses)  # with the first t rows decided for c
        won = torch.cat([none[:, :, c], label[:, :, c].cumsum(1)], 1)
        hits[:, :, c] += won
        called[:, :, c] += torch.arange(won.shape[1], dtype=won.dtype, device=won.device)
        values = _of_classes(metric, hits, called, counts)
        edges = torch.cat([gap[:, :1] - 2, gap, gap[:, -1:] + 2], 1)
        cut = (edges[:, :-1] + edges[:, 1:]) / 2
        values = torch.where(edges[:, :-1] < edges[:, 1:], values, -math.inf)
        best = (values - 1e-9 * (cut - offsets[:, c : c + 1]).abs().clamp(max=1e3)).argmax(1, keepdim=True)
        best_value = values.gather(1, best)[:, 0]
        better = best_value > value + 1e-12
        offsets[:, c] = torch.where(better, cut.gather(1, best)[:, 0], offsets[:, c])
        value = torch.where(better, best_value, value)
    return offsets, value


def _of_classes(metric: str, hits: Tensor, called: Tensor, counts: Tensor) -> Tensor:
    """The metric from hits and calls of each class ``(..., C)``; classes without rows are left out of the mean."""
    present = (counts > 0).to(hits.dtype)
    if metric == "accuracy":
        return hits.sum(-1) / counts.sum()
    each = hits / counts.clamp(min=1) if metric == "balanced_accuracy" else 2 * hits / (called + counts).clamp(min=1)
    return (each * present).sum(-1) / present.sum()


def _rest(x: Tensor) -> Tensor:
    """Sums of what is left after the first t of n rows ``(K, n, C)``, for t from 0 to n."""
    taken = torch.cat([torch.zeros_like(x[:, :1]), x.cumsum(1)], 1)
    return taken[:, -1:] - taken
