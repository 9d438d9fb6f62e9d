"""Cross-entropy and Kullback-Leibler divergence between two softmaxes; compiled, with their derivatives written out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core import checks, numerics
from lossary.core.others import VANISHED, share


def cross_entropy(logits: Tensor, target_logits: Tensor, dim: int) -> Tensor:
    """Minus the sum of t log p for p = softmax(logits), t = softmax(target_logits), constants to the gradient.

    A t of 0 counts for nothing, whatever log p is.
    """
    if torch.compiler.is_compiling() and not checks.is_transformed():
        return _Compiled.apply(logits, target_logits.detach(), dim, False)[0]  # type: ignore[no-untyped-call, no-any-return]
    return -numerics.weighted_sum(target_logits.detach().softmax(dim), F.log_softmax(logits, dim), dim)


def kl(logits: Tensor, target_logits: Tensor, dim: int) -> Tensor:
    """Sum of t (log t - log p), as above, differentiated in both."""
    if torch.compiler.is_compiling() and not checks.is_transformed():
        return _Compiled.apply(logits, target_logits, dim, True)[0]  # type: ignore[no-untyped-call, no-any-return]
    log_p, log_t = F.log_softmax(logits, dim), F.log_softmax(target_logits, dim)
    t = log_t.exp()
    return (numerics.product(t, log_t) - numerics.product(t, log_p)).sum(dim)


class _Compiled(torch.autograd.Function):
    """Takes the exponentials again. Rows of slope 0 get a gradient of 0 whatever their logits are."""

    @staticmethod
    def forward(logits: Tensor, target_logits: Tensor, dim: int, is_kl: bool) -> tuple[Tensor, ...]:
        tops = [x.amax(dim, keepdim=True) for x in (logits, target_logits)]
        fall, target_fall = logits - tops[0], target_logits - tops[1]
        # As in others.log_likelihood, to be one with it where both are taken.
        powers = [x.clamp(min=VANISHED).exp() for x in (fall, target_fall)]
        log_sums = [x.sum(dim, keepdim=True).log() for x in powers]
        gap = target_fall - fall if is_kl else -fall
        weighted = torch.where(target_fall > VANISHED, powers[1] * gap, 0.0)
        mean = weighted.sum(dim, keepdim=True) / powers[1].sum(dim, keepdim=True)
        offset = log_sums[0] - log_sums[1] if is_kl else log_sums[0]
        value = mean + offset
        return value.squeeze(dim), value.clone(), *tops, *log_sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, bool], output: tuple[Tensor, ...]) -> None:
        logits, target_logits, ctx.dim, ctx.is_kl = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(logits, target_logits, *output[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, target_logits, value, top, target_top, log_sum, target_log_sum = ctx.saved_tensors
        slope = upstream[0].unsqueeze(ctx.dim)
        slope = torch.where(value.isnan() & (slope != 0), value, slope)  # a NaN among the logits stays
        log_p, log_t = logits - top - log_sum, target_logits - target_top - target_log_sum
        t = share(log_t)
        gradient = slope * (share(log_p) - t)
        if not ctx.is_kl:
            return gradient, None, None, None
        # An infinite divergence sends the target no gradient.
        finite = value.abs() < torch.inf
        target_slope = torch.where(finite | value.isnan(), slope, 0.0)
        gap = (log_t - log_p).clamp(max=1e30) - torch.where(finite, value, 0.0)
        return gradient, target_slope * torch.where((t > 0) & (slope != 0), t * gap, 0.0), None, None
