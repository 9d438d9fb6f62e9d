"""Affine calibration: the scales and biases of logits with the least log-loss, for many models at once.

Levenberg-Marquardt on (log scale, bias): the log-loss is convex in (scale, bias), a step is taken where it decreases
the objective and its damping relaxed, else damping grows, for each model on its own. A ``penalty`` adds that much times
(log scale)^2 / 2 and bias^2 / 2, which draws towards the identity and makes the minimum unique and finite, on rows that
are separated without error too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fit_logits(
    logits: Tensor, one_hot: Tensor, *, per_class: bool, biased: bool, penalty: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Scale and bias of the logits of mutually exclusive classes.

    Args:
        logits: ``(K, n, C)``, finite.
        one_hot: Target probabilities, ``(n, C)`` or ``(K, n, C)``.
        per_class: Whether every class has a scale of its own.
        biased: Whether every class has a bias.
        penalty: Weight of the pull to the identity.
        steps: Steps to take.

    Returns:
        scale ``(K, C)``, bias ``(K, C)``.
    """
    models, _, classes = logits.shape
    if not per_class:  # a shift common to a row's logits is nothing then, and without it their size means something
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
        return -(one_hot * log_p).sum((1, 2)) + penalty / 2 * parameters.square().sum(1), log_p

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
        slope = torch.cat(gradient, 1) + penalty * parameters
        curvature = curvature + penalty * eye
        damped = curvature + damping[:, None, None] * eye * curvature.diagonal(dim1=1, dim2=2)[:, None]
        step = torch.linalg.solve_ex(damped, slope[:, :, None]).result.squeeze(2).clamp(-3, 3)
        proposal = parameters - step
        new_value, new_log_p = evaluate(proposal)
        better = new_value <= value
        parameters = torch.where(better[:, None], proposal, parameters)
        value = torch.where(better, new_value, value)
        log_p = torch.where(better[:, None, None], new_log_p, log_p)
        damping = torch.where(better, damping / 10, damping * 10).clamp(1e-8, 1e8)
    scale, bias = split(parameters)
    return scale / size[:, None], bias


def fit_margins(margins: Tensor, yes: Tensor, *, biased: bool, penalty: float, steps: int) -> tuple[Tensor, Tensor]:
    """:func:`fit_logits` for the difference of two logits, in closed form.

    Two biases of one difference b are cheapest as -b/2 and b/2, so that their penalty is b^2/4.

    Args:
        margins: ``(K, n)``, finite.
        yes: Targets 0 or 1, ``(n,)`` or ``(K, n)``.
        biased: Whether there is a bias.
        penalty: Weight of the pull to the identity.
        steps: Steps to take.

    Returns:
        scale ``(K,)``, bias ``(K,)``.
    """
    models = len(margins)
    log_scale = (6 / _size(margins, 1)).clamp(max=1).log()  # logits are half their difference from their mean
    bias, damping = torch.zeros_like(log_scale), torch.ones_like(log_scale)
    sign = 1 - 2 * yes

    def evaluate(log_scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moved = margins * log_scale.exp()[:, None]  # the derivative in the log scale too
        z = moved + bias[:, None]
        value = F.softplus(z * sign).sum(1) + penalty / 2 * (log_scale.square() + bias.square() / 2)
        return value, moved, z.sigmoid()

    value, moved, p = evaluate(log_scale, bias)
    for _ in range(steps):
        residual, curvature = p - yes, p * (1 - p)
        weighted = curvature * moved
        slope_scale = (residual * moved).sum(1) + penalty * log_scale
        curve_scale = ((weighted * moved).sum(1) + penalty) * (1 + damping)
        if biased:
            slope_bias = residual.sum(1) + penalty / 2 * bias
            curve_bias = (curvature.sum(1) + penalty / 2) * (1 + damping)
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
