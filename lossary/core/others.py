"""A class against the others: its log-odds, and its margin over the best of them.

Both are plain formulas with a pass or two over the logits. Where no transform stands in the way, their derivatives are
written out, from what the forward pass holds already; both give the same numbers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core import checks


def log_odds(logits: Tensor, label: Tensor, dim: int) -> Tensor:
    """Log of p / (1 - p) of a class: its logit over the logsumexp of the others' logits.

    ``logsigmoid`` of it is log p, and of its negative log(1 - p), each exact near 0 and near 1.

    Args:
        logits: ``(N, C, ...)``.
        label: The class of each row, with a class axis of 1: ``(N, 1, ...)``.
        dim: The class axis.

    Returns:
        ``(N, ...)``; infinite where there are no others.
    """
    if checks.is_plain(logits, label):
        return _LogOdds.apply(logits, label, dim)[0]  # type: ignore[no-untyped-call, no-any-return]
    return _log_odds(logits, label, dim)


def margin(logits: Tensor, label: Tensor, dim: int) -> Tensor:
    """A class's logit minus the best of the others, whose gradient is shared where several are best; as log_odds."""
    if checks.is_plain(logits, label):
        return _Margin.apply(logits, label, dim)[0]  # type: ignore[no-untyped-call, no-any-return]
    lowest = torch.finfo(logits.dtype).min
    others = _without(logits, label, dim).clamp(min=lowest)
    best = others.detach().amax(dim, keepdim=True)
    # 0 with the gradient of the maximum, shared among the best; in numbers, since compiled masks are stored and slow.
    is_best = 1 - (best - others.detach()).sign()
    moves = (is_best * (others - others.detach())).sum(dim) / is_best.sum(dim)
    best = best.squeeze(dim)
    return at_class(logits, label, dim) - torch.where(best == lowest, -math.inf, best) - moves


def is_class(logits: Tensor, label: Tensor, dim: int) -> Tensor:
    """``(N, C, ...)`` bool, by comparison: unlike a scatter it becomes a part of the loop that reads it."""
    classes = torch.arange(logits.shape[dim], device=label.device)
    return classes.reshape([-1] + [1] * (logits.ndim - 1 - dim)) == label


def replaced(values: Tensor, label: Tensor, dim: int, own: Tensor | float) -> Tensor:
    """Values ``(N, C, ...)`` with ``own``, a number or ``(N, ...)``, at the class."""
    own = own.unsqueeze(dim) if isinstance(own, Tensor) else values.new_full((), own)
    if torch.compiler.is_compiling():  # a part of the loop that reads it
        return torch.where(is_class(values, label, dim), own, values)
    return values.scatter(dim, label, own.expand_as(label))


def at_class(values: Tensor, label: Tensor, dim: int) -> Tensor:
    """Values ``(N, C, ...)`` at the class ``(N, ...)``."""
    if not values.is_floating_point():
        return values.gather(dim, label).squeeze(dim)
    # Unlike a gather, its gradient is written in one pass, and compiled becomes a part of what makes the values.
    if dim == values.ndim - 1 and dim > 1:
        return -F.nll_loss(values.flatten(0, -2), label.flatten(), reduction="none").reshape(values.shape[:-1])
    return -F.nll_loss(values.contiguous(), label.squeeze(dim), reduction="none")  # its derivative wants contiguity


def _log_odds(logits: Tensor, label: Tensor, dim: int) -> Tensor:
    logsumexp = torch.logsumexp(_without(logits, label, dim), dim)
    lowest = torch.finfo(logits.dtype).min
    return at_class(logits, label, dim) - torch.where(logsumexp == lowest, -math.inf, logsumexp)


def _without(logits: Tensor, label: Tensor, dim: int) -> Tensor:
    """Logits with the lowest number at the class: not -inf, of which nothing can be summed where it is all there is."""
    return torch.where(is_class(logits, label, dim), torch.finfo(logits.dtype).min, logits)


class _LogOdds(torch.autograd.Function):
    """Saves the softmax over the others, which is the gradient of their logsumexp."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, label: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        lowest = torch.finfo(logits.dtype).min  # see _without
        others = logits.scatter(dim, label, lowest)
        best = others.amax(dim, keepdim=True)
        share = others.softmax(dim)
        logsumexp = best - share.amax(dim, keepdim=True).log()
        odds = logits.gather(dim, label) - torch.where(best == lowest, -math.inf, logsumexp)
        return odds.squeeze(dim), share

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        logits, label, ctx.dim = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, label, output[1])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None]:
        logits, label, share = ctx.saved_tensors
        if upstream[0] is None:
            return None, None, None
        slope = upstream[0].unsqueeze(ctx.dim)
        if torch.is_grad_enabled():  # to be differentiated again
            share = _without(logits, label, ctx.dim).softmax(ctx.dim)
        return (-slope * share).scatter_(ctx.dim, label, slope), None, None


class _Margin(torch.autograd.Function):
    """Finds the best others again by comparing, which the maximum saves two passes for."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, label: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        best = logits.scatter(dim, label, -math.inf).amax(dim, keepdim=True)
        return (logits.gather(dim, label) - best).squeeze(dim), best

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        logits, label, ctx.dim = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, label, output[1])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None]:
        logits, label, best = ctx.saved_tensors
        if upstream[0] is None:
            return None, None, None
        slope = upstream[0].unsqueeze(ctx.dim)
        is_best = (logits == best).scatter_(ctx.dim, label, False)
        shared = slope / is_best.sum(ctx.dim, keepdim=True)
        return torch.where(is_best, -shared, 0.0).scatter_(ctx.dim, label, slope), None, None
