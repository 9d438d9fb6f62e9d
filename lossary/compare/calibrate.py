"""Calibrators and decision rules, fitted on validation rows, the same way for every candidate."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.special import log_expit, log_softmax
from torch import Tensor

from lossary.compare.options import Task
from lossary.core.affine import fit_logits, fit_margins
from lossary.core.isotonic import Knots, fit_isotonic, isotonic

Array = npt.NDArray[Any]

FEW = 20
"""Validation rows of a class under which no parameter of a class is fitted."""
PENALTY = 1.0
"""Weight of (log scale)^2 / 2 and bias^2 / 2 beside the summed log-loss: the pull of about one row."""
STEPS, FINAL_STEPS = 8, 100
"""Steps of a fit within training, and of the final one."""


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """Maps the logits of one model to calibrated log-probabilities.

    Attributes:
        kind: ``temperature``, ``vector``, ``isotonic`` or ``none``.
        multilabel: Whether logits are independent yes/no labels.
        scale: What logits are multiplied by, one number or one for each class; of the affine kinds.
        bias: What is then added, one for each class.
        knots: For each class the (probability, calibrated probability) pairs of ``isotonic``.
    """

    kind: str
    multilabel: bool
    scale: tuple[float, ...] = (1.0,)
    bias: tuple[float, ...] = (0.0,)
    knots: tuple[Knots, ...] = ()

    def log_probabilities(self, logits: Array) -> Array:
        """Calibrated log-probabilities of ``logits (n, C)``: float64 ``(n, C)``, multi-label log p of a yes."""
        wide = np.asarray(logits, dtype=np.float64)
        if self.kind == "vector" and not self.multilabel:
            wide = wide - wide.mean(1, keepdims=True)  # as it was fitted
        affine = wide * np.array(self.scale) + np.array(self.bias)
        log_p = np.asarray(log_expit(affine) if self.multilabel else log_softmax(affine, axis=1))
        if self.kind != "isotonic":
            return log_p
        columns = [isotonic(np.exp(log_p[:, c]), knots) for c, knots in enumerate(self.knots)]
        probability = np.stack(columns, axis=1)
        if not self.multilabel:
            probability /= probability.sum(1, keepdims=True)
        return np.asarray(np.log(probability))

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Calibrator:
        """Read what :meth:`to_json` gave, or its round trip through JSON."""
        knots = tuple(tuple((float(x), float(y)) for x, y in pairs) for pairs in values["knots"])
        scale, bias = (tuple(float(x) for x in values[name]) for name in ("scale", "bias"))
        return cls(str(values["kind"]), bool(values["multilabel"]), scale, bias, knots)


def fit_calibrator(logits: Array, target: Array, *, task: Task, kind: str) -> Calibrator:
    """Fit a calibrator on validation rows in float64, to convergence.

    Args:
        logits: ``(n, C)``.
        target: ``(n,)`` class indices, multi-label ``(n, L)``.
        task: The task.
        kind: ``temperature``, ``vector``, ``isotonic`` or ``none``.
    """
    multilabel = task == "multilabel"
    if kind == "none" or not np.isfinite(logits).all():
        return Calibrator("none", multilabel)
    if kind == "isotonic":
        return Calibrator("isotonic", multilabel, knots=_isotonic(logits, target, multilabel=multilabel))
    scale, bias = fit_affine(
        torch.tensor(logits, dtype=torch.float64)[None], torch.tensor(target), task=task, kind=kind, steps=FINAL_STEPS
    )
    return Calibrator(kind, multilabel, tuple(scale[0].tolist()), tuple(bias[0].tolist()))


def fit_affine(
    logits: Tensor, target: Tensor, *, task: Task, kind: str = "temperature", steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """Scale and bias that minimise the penalised log-loss of ``scale * logits + bias``, for many models at once.

    Args:
        logits: ``(K, n, C)``, finite.
        target: ``(n,)`` int64, multi-label ``(n, L)`` float.
        task: The task.
        kind: ``temperature`` has one scale and a bias per class, ``vector`` a scale per class too. Where a class has
            fewer than 20 rows there is one scale alone. Multi-label: scale and bias per label.
        steps: Steps to take.

    Returns:
        scale ``(K, 1)`` or ``(K, C)``, bias ``(K, C)``; those of ``vector`` are for logits less their row's mean.
    """
    models, rows, classes = logits.shape
    if task == "multilabel":
        # Labels are independent: each is a model of its own.
        margins = logits.transpose(1, 2).reshape(-1, rows)
        yes = target.to(logits.dtype).T.expand(models, classes, rows).reshape(-1, rows)
        scale, bias = fit_margins(margins, yes, biased=True, penalty=PENALTY, steps=steps)
        return scale.view(models, classes), bias.view(models, classes)
    enough = bool((torch.bincount(target, minlength=classes) >= FEW).all())
    if classes == 2 and kind != "vector":
        margins = logits[:, :, 1] - logits[:, :, 0]
        scale, bias = fit_margins(margins, target.to(logits.dtype), biased=enough, penalty=PENALTY, steps=steps)
        return scale[:, None], torch.stack([-bias / 2, bias / 2], 1)
    one_hot = F.one_hot(target.long(), classes).to(logits.dtype).expand_as(logits)
    per_class = kind == "vector" and enough
    if kind == "vector":  # a shift common to a row's logits says nothing, but scales of their own would tell it apart
        logits = logits - logits.mean(2, keepdim=True)
    scale, bias = fit_logits(logits, one_hot, per_class=per_class, biased=enough, penalty=PENALTY, steps=steps)
    return (scale if kind == "vector" else scale[:, :1]), bias


def _isotonic(logits: Array, target: Array, *, multilabel: bool) -> tuple[Knots, ...]:
    probability = np.exp(Calibrator("none", multilabel).log_probabilities(logits))
    yes = target if multilabel else np.eye(probability.shape[1])[target]
    return tuple(fit_isotonic(probability[:, c], yes[:, c]) for c in range(probability.shape[1]))
