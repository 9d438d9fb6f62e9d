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

Array = npt.NDArray[Any]

FEW = 20
"""Validation rows of a class under which no parameter of a class is fitted."""
PENALTY = 1.0
"""Weight of (log scale)^2 / 2 and bias^2 / 2 beside the summed log-loss: the pull of about one row."""
STEPS, FINAL_STEPS = 8, 100
"""Steps of a fit within training, and of the final one."""
KNOT_CLIP = 1e-4


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
    knots: tuple[tuple[tuple[float, float], ...], ...] = ()

    def log_probabilities(self, logits: Array) -> Array:
        """Calibrated log-probabilities of ``logits (n, C)``: float64 ``(n, C)``, multi-label log p of a yes."""
        wide = np.asarray(logits, dtype=np.float64)
        affine = wide * np.array(self.scale) + np.array(self.bias)
        log_p = np.asarray(log_expit(affine) if self.multilabel else log_softmax(affine, axis=1))
        if self.kind != "isotonic":
            return log_p
        columns = [np.interp(np.exp(log_p[:, c]), *np.array(knots).T) for c, knots in enumerate(self.knots)]
        probability = np.stack(columns, axis=1).clip(KNOT_CLIP, 1 - KNOT_CLIP)
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

    Levenberg-Marquardt on (log scale, bias): the log-loss is convex in (scale, bias), a step is taken where it
    decreases the objective and its damping relaxed, else damping grows, for each model on its own. The penalty draws
    towards the identity and makes the minimum unique and finite, on separable rows too.

    Args:
        logits: ``(K, n, C)``, finite.
        target: ``(n,)`` int64, multi-label ``(n, L)`` float.
        task: The task.
        kind: ``temperature`` has one scale and a bias per class, ``vector`` a scale per class too. Where a class has
            fewer than 20 rows there is one scale alone. Multi-label: scale and bias per label.
        steps: Steps to take.

    Returns:
        scale ``(K, 1)`` or ``(K, C)``, bias ``(K, C)``.
    """
    models, rows, classes = logits.shape
    if task == "multilabel":
        # Labels are independent: each is a model of its own.
        margins = logits.transpose(1, 2).reshape(-1, rows)
        yes = target.to(logits.dtype).T.expand(models, classes, rows).reshape(-1, rows)
        scale, bias = _two_classes(margins, yes, True, steps)
        return scale.view(models, classes), bias.view(models, classes)
    enough = bool((torch.bincount(target, minlength=classes) >= FEW).all())
    if classes == 2 and kind != "vector":
        scale, bias = _two_classes(logits[:, :, 1] - logits[:, :, 0], target.to(logits.dtype), enough, steps)
        return scale[:, None], torch.stack([-bias / 2, bias / 2], 1)
    one_hot = F.one_hot(target.long(), classes).to(logits.dtype).expand_as(logits)
    scale, bias = _levenberg(logits, one_hot, kind == "vector" and enough, enough, steps)
    return (scale if kind == "vector" else scale[:, :1]), bias


def _two_classes(margins: Tensor, yes: Tensor, biased: bool, steps: int) -> tuple[Tensor, Tensor]:
    """:func:`_levenberg` for the difference of two logits, in closed form: scale ``(K,)``, bias ``(K,)``.

    Two biases of one difference b are cheapest as -b/2 and b/2, so that their penalty is b^2/4.
    """
    models = len(margins)
    log_scale = (6 / _size(margins, 1)).clamp(max=1).log()  # logits are half their difference from their mean
    bias, damping = torch.zeros_like(log_scale), torch.ones_like(log_scale)
    sign = 1 - 2 * yes

    def evaluate(log_scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moved = margins * log_scale.exp()[:, None]  # the derivative in the log scale too
        z = moved + bias[:, None]
        value = F.softplus(z * sign).sum(1) + PENALTY / 2 * (log_scale.square() + bias.square() / 2)
        return value, moved, z.sigmoid()

    value, moved, p = evaluate(log_scale, bias)
    for _ in range(steps):
        residual, curvature = p - yes, p * (1 - p)
        weighted = curvature * moved
        slope_scale = (residual * moved).sum(1) + PENALTY * log_scale
        curve_scale = ((weighted * moved).sum(1) + PENALTY) * (1 + damping)
        if biased:
            slope_bias = residual.sum(1) + PENALTY / 2 * bias
            curve_bias = (curvature.sum(1) + PENALTY / 2) * (1 + damping)
            mixed = weighted.sum(1)
            determinant = curve_scale * curve_bias - mixed.square()
            step_scale = (curve_bias * slope_scale - mixed * slope_bias) / determinant
            step_bias = (curve_scale * slope_bias - mixed * slope_scale) / determinant
        else:
            step_scale, step_bias = slope_scale / curve_scale, torch.zeros(models).to(bias)
        new_scale, new_bias = log_scale - step_scale.clamp(-3, 3), bias - step_bias.clamp(-3, 3)
        new_value, new_moved, new_p = evaluate(new_scale, new_bias)
        better = new_value <= value
        log_scale, bias, value = (
            torch.where(better, new, old) for new, old in ((new_scale, log_scale), (new_bias, bias), (new_value, value))
        )
        moved, p = torch.where(better[:, None], new_moved, moved), torch.where(better[:, None], new_p, p)
        damping = torch.where(better, damping / 10, damping * 10).clamp(1e-8, 1e8)
    return log_scale.exp(), bias


def _size(logits: Tensor, *axes: int) -> Tensor:
    """Root mean square, above zero."""
    return logits.square().mean(axes).sqrt().clamp(min=torch.finfo(logits.dtype).tiny ** 0.5)


def _levenberg(logits: Tensor, one_hot: Tensor, per_class: bool, biased: bool, steps: int) -> tuple[Tensor, Tensor]:
    """Scale ``(K, C)`` and bias ``(K, C)`` by damped Gauss-Newton steps; every model has its own damping."""
    models, _, classes = logits.shape
    logits = logits - logits.mean(2, keepdim=True)
    size = _size(logits, 1, 2)
    unit = logits / size[:, None, None]
    scales = classes if per_class else 1
    parameters = torch.zeros(models, scales + (classes if biased else 0), dtype=logits.dtype, device=logits.device)
    # Started where logits have a root mean square of at most 3, not at the identity: a very confident model is in a
    # flat region there. The penalty still refers to the identity.
    parameters[:, :scales] = (3 / size).clamp(max=1).log()[:, None]
    damping = torch.ones(models, dtype=logits.dtype, device=logits.device)

    def split(parameters: Tensor) -> tuple[Tensor, Tensor]:
        scale = (parameters[:, :scales] + size.log()[:, None]).exp().expand(models, classes)
        bias = parameters[:, scales:] if biased else parameters.new_zeros(models, classes)
        return scale, bias

    def evaluate(parameters: Tensor) -> tuple[Tensor, Tensor]:
        scale, bias = split(parameters)
        log_p = torch.log_softmax(unit * scale[:, None] + bias[:, None], 2)
        return -(one_hot * log_p).sum((1, 2)) + PENALTY / 2 * parameters.square().sum(1), log_p

    value, log_p = evaluate(parameters)
    eye = torch.eye(parameters.shape[1], dtype=logits.dtype, device=logits.device)
    for _ in range(steps):
        p = log_p.exp()
        scale, _ = split(parameters)
        moved = unit * scale[:, None]  # derivative of the logits in the log scale(s)
        residual = p - one_hot
        gradient = [(residual * moved).sum(1) if per_class else (residual * moved).sum((1, 2))[:, None]]
        # Gauss-Newton: J^T (diag p - p p^T) J, with J = [moved, identity].
        if per_class:
            corner = torch.diag_embed((p * moved.square()).sum(1)) - (p * moved).mT @ (p * moved)
            side = torch.diag_embed((p * moved).sum(1)) - (p * moved).mT @ p
        else:
            mean = (p * moved).sum(2, keepdim=True)
            corner = (p * (moved - mean).square()).sum((1, 2))[:, None, None]
            side = (p * (moved - mean)).sum(1)[:, None]
        curvature = corner
        if biased:
            gradient.append(residual.sum(1))
            lower = torch.diag_embed(p.sum(1)) - p.mT @ p
            curvature = torch.cat([torch.cat([corner, side], 2), torch.cat([side.mT, lower], 2)], 1)
        slope = torch.cat(gradient, 1) + PENALTY * parameters
        curvature = curvature + PENALTY * eye
        damped = curvature + damping[:, None, None] * eye * curvature.diagonal(dim1=1, dim2=2)[:, None]
        step = torch.linalg.solve(damped, slope[:, :, None]).squeeze(2).clamp(-3, 3)
        proposal = parameters - step
        new_value, new_log_p = evaluate(proposal)
        better = new_value <= value
        parameters = torch.where(better[:, None], proposal, parameters)
        value = torch.where(better, new_value, value)
        log_p = torch.where(better[:, None, None], new_log_p, log_p)
        damping = torch.where(better, damping / 10, damping * 10).clamp(1e-8, 1e8)
    scale, bias = split(parameters)
    return scale / size[:, None], bias


def _isotonic(logits: Array, target: Array, *, multilabel: bool) -> tuple[tuple[tuple[float, float], ...], ...]:
    from sklearn.isotonic import IsotonicRegression

    probability = np.exp(Calibrator("none", multilabel).log_probabilities(logits))
    found = []
    for c in range(probability.shape[1]):
        yes = target[:, c] if multilabel else target == c
        regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(probability[:, c], yes)
        # An isotonic step may say 0 or 1 after a few rows; one imagined row of each kind keeps it honest.
        rows = len(yes)
        values = (regression.y_thresholds_ * rows + 0.5) / (rows + 1)
        found.append(tuple(zip(regression.X_thresholds_.tolist(), values.tolist(), strict=True)))
    return tuple(found)
