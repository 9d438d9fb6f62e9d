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

from lossary.core import checks, numerics
from lossary.core.sigmoid import yes_no

VANISHED = -80.0
"""Log of a share that adds nothing to 1 in any dtype, with room before numbers get slow to compute with."""

_LINEAR = 50.0
"""From here on log(1 + exp(x)) is x in any dtype."""


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


def scaled_log_likelihood(logits: Tensor, scale: Tensor, label: Tensor, dim: int) -> Tensor:
    """Log-softmax of finite logits times a positive scale ``(N, 1, ...)``, at a class; as log_likelihood."""
    if torch.compiler.is_compiling() and not checks.is_transformed():
        return _CompiledScaledLogLikelihood.apply(logits, scale, label, dim)[0]  # type: ignore[no-untyped-call, no-any-return]
    return at_class(F.log_softmax(scale * logits, dim), label, dim)


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


def one_vs_rest(logits: Tensor, label: Tensor, dim: int) -> Tensor:
    """Sum of logistic losses, of the class's logit and of minus each other one; as log_odds."""
    if torch.compiler.is_compiling() and not checks.is_transformed():
        return _CompiledOneVsRest.apply(logits, label, dim)[0]  # type: ignore[no-untyped-call, no-any-return]
    if checks.is_plain(logits, label):
        return _OneVsRest.apply(logits, label, dim)[0]  # type: ignore[no-untyped-call, no-any-return]
    wrong_way = replaced(logits, label, dim, -at_class(logits, label, dim))
    return F.softplus(wrong_way, threshold=_LINEAR).sum(dim)


def margin(logits: Tensor, label: Tensor, dim: int) -> Tensor:
    """A class's logit minus the best of the others, whose gradient is shared where several are best; as log_odds."""
    if torch.compiler.is_compiling() and not checks.is_transformed():
        return _CompiledMargin.apply(logits, label, dim)[0]  # type: ignore[no-untyped-call, no-any-return]
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


def margin_shift(logits: Tensor, moved: Tensor, label: Tensor, dim: int) -> Tensor:
    """Euclidean norm of the change of a class's margins over all others; as log_odds."""
    if (torch.compiler.is_compiling() and not checks.is_transformed()) or checks.is_plain(logits, moved, label):
        return _MarginShift.apply(logits, moved, label, dim)[0]  # type: ignore[no-untyped-call, no-any-return]
    return numerics.safe_norm(_margin_shifts(logits, moved, label, dim), dim)


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


def _margin_shifts(logits: Tensor, moved: Tensor, label: Tensor, dim: int) -> Tensor:
    """Changes of the margins, 0 at the class and where a class is excluded in both."""
    excluded = (logits == -math.inf) & (moved == -math.inf)
    shift = torch.where(excluded, 0.0, moved) - torch.where(excluded, 0.0, logits)
    return torch.where(excluded, 0.0, shift - shift.gather(dim, label))


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
        total = power(logits - best).sum(dim, keepdim=True) - power(own - best)
        logsumexp = best + total.log()
        empty = best == torch.finfo(best.dtype).min
        return (own - torch.where(empty, -math.inf, logsumexp)).squeeze(dim), logsumexp

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, label, logsumexp = ctx.saved_tensors
        slope = upstream[0].unsqueeze(ctx.dim)
        return replaced(-slope * share(logits - logsumexp), label, ctx.dim, upstream[0]), None, None


class _CompiledLogLikelihood(torch.autograd.Function):
    """As _CompiledLogOdds. Rows of slope 0 get a gradient of 0 whatever their logits are."""

    @staticmethod
    def forward(logits: Tensor, label: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        best = logits.amax(dim, keepdim=True)
        log_sum = (logits - best).clamp(min=VANISHED).exp().sum(dim, keepdim=True).log()
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
        spread = slope * share(logits - best - log_sum)
        return torch.where(is_class(logits, label, ctx.dim), slope, 0.0) - spread, None, None


class _CompiledScaledLogLikelihood(torch.autograd.Function):
    """As _CompiledLogLikelihood; the derivative in the scale is the logit's distance from the mean under softmax."""

    @staticmethod
    def forward(logits: Tensor, scale: Tensor, label: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        best = logits.amax(dim, keepdim=True)
        fall = logits - best
        p = power(scale * fall)
        total = p.sum(dim, keepdim=True)
        own, log_sum = logits.gather(dim, label) - best, total.log()
        excess = own - (p * fall).sum(dim, keepdim=True) / total
        return (scale * own - log_sum).squeeze(dim), best, log_sum, excess

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.dim = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        logits, scale, label, best, log_sum, excess = ctx.saved_tensors
        slope = upstream[0].unsqueeze(ctx.dim)
        p = share(scale * (logits - best) - log_sum)
        inner = slope * scale + 0 * log_sum  # a NaN among the logits stays
        own = torch.where(is_class(logits, label, ctx.dim), inner, 0.0)
        return own - inner * p, slope * excess, None, None


def sum_without_best(logits: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits less their largest, x; exp(x); 1 at best classes, 0 elsewhere; sum of exp(x) but for one best class."""
    fall = logits - logits.amax(dim, keepdim=True).detach()
    power, is_best = torch.exp(fall), (fall == 0).to(fall.dtype)
    return fall, power, is_best, (power - is_best).sum(dim, keepdim=True) + (is_best.sum(dim, keepdim=True) - 1)


def power(fall: Tensor) -> Tensor:
    """Exponential of numbers up to 0, none too small for the processor's speed."""
    return fall.clamp(min=VANISHED, max=0.0).exp()


def share(log_share: Tensor) -> Tensor:
    """Exponential of numbers up to 0; 0 where it vanishes or they are NaN."""
    return torch.where(log_share > VANISHED, log_share.clamp(min=VANISHED).exp(), 0.0)


class _ExactSoftmax(torch.autograd.Function):
    """By the sum s of exp(x - max x) without a best class, whose term is 1: log p is x - max x - log(1 + s)."""

    @staticmethod
    def forward(logits: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        fall, power, _, rest = sum_without_best(logits, dim)
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


class _CompiledMargin(_OfClass):
    """As _Margin, by loops over the logits. Rows of slope 0 get a gradient of 0 whatever their logits are."""

    @staticmethod
    def forward(logits: Tensor, label: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        best = _without(logits, label, dim).amax(dim, keepdim=True)
        others = torch.where(best == torch.finfo(best.dtype).min, -math.inf, best)
        return (logits.gather(dim, label) - others).squeeze(dim), best

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, label, best = ctx.saved_tensors
        slope = upstream[0].unsqueeze(ctx.dim)
        is_best = 1 - (best - _without(logits, label, ctx.dim)).sign()  # in numbers: it is stored
        shared = torch.where(slope == 0, 0.0, slope / is_best.sum(ctx.dim, keepdim=True))
        return replaced(-shared * is_best, label, ctx.dim, upstream[0]), None, None


class _OneVsRest(_OfClass):
    """Sets the class's number in place, where the formula's graph copies the logits there and back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, label: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        losses = F.softplus(logits, threshold=_LINEAR)
        losses = losses.scatter_(dim, label, F.softplus(-logits.gather(dim, label), threshold=_LINEAR))
        total = losses.sum(dim)
        return total, total.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None]:
        logits, label, _ = ctx.saved_tensors
        if upstream[0] is None:
            return None, None, None
        slope = upstream[0].unsqueeze(ctx.dim)
        at_label = -slope * (-logits.gather(ctx.dim, label)).sigmoid()
        return (slope * logits.sigmoid()).scatter(ctx.dim, label, at_label), None, None


class _CompiledOneVsRest(_OfClass):
    """Takes the exponentials again. Rows of slope 0 get a gradient of 0 whatever their logits are."""

    @staticmethod
    def forward(logits: Tensor, label: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        wrong_way = torch.where(is_class(logits, label, dim), -logits, logits)
        total = (wrong_way.clamp(min=0) + yes_no(wrong_way, wrong_way).log_likely).sum(dim)
        return total, total.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, label, total = ctx.saved_tensors
        slope = torch.where(total.isnan() & (upstream[0] != 0), total, upstream[0]).unsqueeze(ctx.dim)
        sign = torch.where(is_class(logits, label, ctx.dim), -1.0, 1.0)
        wrong_way = sign * logits
        odds = share(-wrong_way.abs())
        return (sign * slope) * (torch.where(wrong_way < 0, odds, 1.0) / (1 + odds)), None, None


class _MarginShift(torch.autograd.Function):
    """Masks only where something is infinite; compiled, the changes are formed again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, moved: Tensor, label: Tensor, dim: int) -> tuple[Tensor, ...]:
        shift = moved - logits
        shift = shift - shift.gather(dim, label)
        if not checks.may_read_values(shift) or not math.isfinite(shift.sum()):
            shift = _margin_shifts(logits, moved, label, dim)
        total, norm = shift.sum(dim), shift.square().sum(dim).sqrt()
        return norm, norm.clone(), total, norm.clone() if torch.compiler.is_compiling() else shift

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.dim = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, moved, label, norm, total, shift = ctx.saved_tensors
        if upstream[0] is None:
            return None, None, None, None
        if torch.compiler.is_compiling():
            shift = _margin_shifts(logits, moved, label, ctx.dim)
        elif torch.is_grad_enabled():  # to be differentiated again
            shift = _margin_shifts(logits, moved, label, ctx.dim)
            total, norm = shift.sum(ctx.dim), numerics.safe_norm(shift, ctx.dim)
        slope = upstream[0] / torch.where(norm == 0, 1.0, norm)
        gradient = replaced(slope.unsqueeze(ctx.dim) * shift, label, ctx.dim, -slope * total)
        return -gradient, gradient, None, None
