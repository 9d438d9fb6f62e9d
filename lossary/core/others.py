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

_VANISHED = -80.0
"""Log of a share that adds nothing to 1 in any dtype, with room before numbers get slow to compute with."""


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
    if torch.compiler.is_compiling() and not checks.is_transformed():
        return _CompiledLogOdds.apply(logits, label, dim)[0]  # type: ignore[no-untyped-call, no-any-return]
    if checks.is_plain(logits, label):
        return _LogOdds.apply(logits, label, dim)[0]  # type: ignore[no-untyped-call, no-any-return]
    return _log_odds(logits, label, dim)


def log_likelihood(logits: Tensor, label: Tensor, dim: int) -> Tensor:
    """Log-softmax at a class, as log_odds; compiled without a gradient that is 0 but there and summed over classes."""
    if torch.compiler.is_compiling() and not checks.is_transformed():
        return _CompiledLogLikelihood.apply(logits, label, dim)[0]  # type: ignore[no-untyped-call, no-any-return]
    return at_class(F.log_softmax(logits, dim), label, dim)


def exact_softmax(logits: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Logs of p and 1 - p itself of all classes, each with all digits near 0 and near 1; shaped as logits."""
    if torch.compiler.is_compiling() and not checks.is_transformed():
        return _ExactSoftmax.apply(logits, dim)  # type: ignore[no-untyped-call, no-any-return]
    log_p, log_miss = exact_log_softmax(logits, F.log_softmax(logits, dim), dim)
    return log_p, log_miss.exp()


def exact_log_softmax(logits: Tensor, log_p: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Logs of p and of 1 - p of all classes, each with all digits, given their log-softmax; shaped as logits."""
    # At most one class can have p > 1/2, so only that one needs the sum over the others; below, 1 - p is exact.
    top = log_p.detach().argmax(dim, keepdim=True)
    odds = log_odds(logits, top, dim)
    log_miss = torch.log1p(-replaced(log_p, top, dim, -1.0).exp())
    return replaced(log_p, top, dim, F.logsigmoid(odds)), replaced(log_miss, top, dim, F.logsigmoid(-odds))


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
    size = logits.shape[dim]
    if torch.compiler.is_compiling() and label.device.type == "cpu":
        # Numbers that are stored, which cummax alone is for: an arange would be counted out anew within that loop.
        classes = torch.arange(size, device=label.device, dtype=torch.int32).cummax(0).values
        label = label.to(torch.int32)
    else:
        classes = torch.arange(size, device=label.device)
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


class _OfClass(torch.autograd.Function):
    """Of ``(logits, label, dim)``; keeps these for the backward pass, and the second result, which has no gradient."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        logits, label, ctx.dim = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, label, output[1])


class _LogOdds(_OfClass):
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
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None]:
        logits, label, share = ctx.saved_tensors
        if upstream[0] is None:
            return None, None, None
        slope = upstream[0].unsqueeze(ctx.dim)
        if torch.is_grad_enabled():  # to be differentiated again
            share = _without(logits, label, ctx.dim).softmax(ctx.dim)
        return (-slope * share).scatter_(ctx.dim, label, slope), None, None


class _CompiledLogOdds(_OfClass):
    """Takes the exponentials again, a loop over the logits, and forms no number too small for the processor's speed."""

    @staticmethod
    def forward(logits: Tensor, label: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        best = _without(logits, label, dim).amax(dim, keepdim=True)
        own = logits.gather(dim, label)
        # The class's own term, at most 1, is in the sum and taken out again: the others' is 1 at least.
        total = _power(logits - best).sum(dim, keepdim=True) - _power(own - best)
        logsumexp = best + total.log()
        empty = best == torch.finfo(best.dtype).min
        return (own - torch.where(empty, -math.inf, logsumexp)).squeeze(dim), logsumexp

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, label, logsumexp = ctx.saved_tensors
        slope = upstream[0].unsqueeze(ctx.dim)
        return replaced(-slope * _share(logits - logsumexp), label, ctx.dim, upstream[0]), None, None


class _CompiledLogLikelihood(torch.autograd.Function):
    """As _CompiledLogOdds. Rows of slope 0 get a gradient of 0 whatever their logits are."""

    @staticmethod
    def forward(logits: Tensor, label: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        best = logits.amax(dim, keepdim=True)
        log_sum = (logits - best).clamp(min=_VANISHED).exp().sum(dim, keepdim=True).log()
        return (logits.gather(dim, label) - best - log_sum).squeeze(dim), best, log_sum

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, Tensor, Tensor]) -> None:
        logits, label, ctx.dim = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(logits, label, *output[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, label, best, log_sum = ctx.saved_tensors
        slope = upstream[0].unsqueeze(ctx.dim)
        slope = torch.where(slope == 0, 0.0, slope + 0 * log_sum)  # a NaN among the logits stays
        share = _share(logits - best - log_sum)
        return torch.where(is_class(logits, label, ctx.dim), slope, 0.0) - slope * share, None, None


def _power(fall: Tensor) -> Tensor:
    return fall.clamp(min=_VANISHED, max=0.0).exp()


def _share(log_share: Tensor) -> Tensor:
    """0 where it vanishes or is NaN."""
    return torch.where(log_share > _VANISHED, log_share.clamp(min=_VANISHED).exp(), 0.0)


class _ExactSoftmax(torch.autograd.Function):
    """By the sum s of exp(x - max x) without a best class, whose term is 1: log p is x - max x - log(1 + s)."""

    @staticmethod
    def forward(logits: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        fall = logits - logits.amax(dim, keepdim=True)
        power, is_best = torch.exp(fall), (fall == 0).to(fall.dtype)
        rest = (power - is_best).sum(dim, keepdim=True) + (is_best.sum(dim, keepdim=True) - 1)
        return fall - torch.log1p(rest), (rest + (1 - power)) / (1 + rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        ctx.dim = inputs[1]
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        log_p, miss = ctx.saved_tensors
        p = log_p.exp()
        slope = upstream[0] - p * upstream[1]  # in log p
        # At most one class has p above 1/2; in its sum over the others its own slope must not vanish by cancelling.
        likely = slope * (p > 0.5)
        rest = slope - likely
        others = rest.sum(ctx.dim, keepdim=True) - rest + (likely.sum(ctx.dim, keepdim=True) - likely)
        return slope * miss - p * others, None


class _Margin(_OfClass):
    """Finds the best others again by comparing, which the maximum saves two passes for."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, label: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        best = logits.scatter(dim, label, -math.inf).amax(dim, keepdim=True)
        return (logits.gather(dim, label) - best).squeeze(dim), best

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None]:
        logits, label, best = ctx.saved_tensors
        if upstream[0] is None:
            return None, None, None
        slope = upstream[0].unsqueeze(ctx.dim)
        is_best = (logits == best).scatter_(ctx.dim, label, False)
        shared = slope / is_best.sum(ctx.dim, keepdim=True)
        return torch.where(is_best, -shared, 0.0).scatter_(ctx.dim, label, slope), None, None
