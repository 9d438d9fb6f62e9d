"""The soft maximum of a class's gaps to the others, between their maximum and their mean by a temperature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossary.core import checks
from lossary.core.others import at_class, replaced


def soft_maximum_of_gaps(x: Tensor, label: Tensor, margin: Tensor | float, temperature: Tensor, dim: int) -> Tensor:
    """Temperature times the log of the mean of exp(gap / temperature), all digits at high temperatures, too.

    The gap of a class is x_k - x_y + margin, 0 at the label. Eager, where no other gradient than that in x is wanted,
    the derivative is written out; it is the same.

    Args:
        x: ``(N, C, ...)``.
        label: The class of each row ``(N, 1, ...)``.
        margin: A number.
        temperature: Positive; one for all, or one for each row ``(N, 1, ...)``.
        dim: The class axis.

    Returns:
        ``(N, ...)``.
    """
    tensors = [value for value in (temperature, margin) if isinstance(value, Tensor)]
    if checks.is_plain(x, label, *tensors) and not any(tensor.requires_grad for tensor in tensors):
        return _SoftMaximum.apply(x, label, margin, temperature, dim)[0]  # type: ignore[no-untyped-call, no-any-return]
    return _soft_maximum(_gaps(x, label, margin, dim), temperature, dim)


def _soft_maximum(gaps: Tensor, temperature: Tensor, dim: int) -> Tensor:
    top = gaps.detach().amax(dim, keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0)
    fall = (gaps - top) / temperature
    mean = fall.exp().mean(dim, keepdim=True)
    log_mean = mean.log()
    exact = torch.log1p(torch.expm1(fall.detach()).mean(dim, keepdim=True))
    log_mean = log_mean + torch.where((mean > 0.5) & mean.isfinite(), exact - log_mean, 0.0).detach()
    return (top + temperature * log_mean).squeeze(dim)


def _exact(log_mean: Tensor, gaps: Tensor, top: Tensor, temperature: Tensor, dim: int) -> Tensor:
    """A high temperature divides away what the logarithm of the mean sees, though not its derivative."""
    high = (log_mean > -0.69) & log_mean.isfinite()
    if checks.may_read_values(high) and not high.any():
        return log_mean
    return torch.where(high, torch.log1p(torch.expm1((gaps - top) / temperature).mean(dim, keepdim=True)), log_mean)


def _gaps(x: Tensor, label: Tensor, margin: Tensor | float, dim: int) -> Tensor:
    return replaced(x - at_class(x, label, dim).unsqueeze(dim) + margin, label, dim, 0.0)


class _SoftMaximum(torch.autograd.Function):
    """Saves the softmax of the gaps, without the class, which is the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, label: Tensor, margin: Tensor | float, temperature: Tensor, dim: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        gaps = (x - x.gather(dim, label) + margin).scatter_(dim, label, 0.0)
        top = gaps.amax(dim, keepdim=True)
        others = (gaps / temperature).softmax(dim)
        log_mean = -(x.shape[dim] * others.amax(dim, keepdim=True)).log()
        value = top + temperature * _exact(log_mean, gaps, top, temperature, dim)
        others = others.scatter_(dim, label, 0.0)
        return torch.where(top.isfinite(), value, top).squeeze(dim), others, others.sum(dim, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, label, ctx.margin, temperature, ctx.dim = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, label, temperature, *output[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, label, temperature, others, sum_of_others = ctx.saved_tensors
        if upstream[0] is None:
            return (None,) * 5
        slope = upstream[0].unsqueeze(ctx.dim)
        if torch.is_grad_enabled():  # to be differentiated again
            p = (_gaps(x, label, ctx.margin, ctx.dim) / temperature).softmax(ctx.dim)
            others = replaced(p, label, ctx.dim, 0.0)
            sum_of_others = others.sum(ctx.dim, keepdim=True)
        gradient = replaced(slope * others, label, ctx.dim, -upstream[0] * sum_of_others.squeeze(ctx.dim))
        return gradient, None, None, None, None
