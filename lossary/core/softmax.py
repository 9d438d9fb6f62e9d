"""Losses of a row that are functions of all its probabilities, with their derivative from the same pass.

As :mod:`lossary.core.slopes` for elementwise losses: the derivative is formed beside the value, while a row is in the
processor's cache, and one tensor is stored, where differentiating the value's graph stores and reads one for each
operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from lossary.core import others
from lossary.core.checks import is_plain, is_transformed
from lossary.core.slopes import BLOCK


class Softmax(NamedTuple):
    """Of logits ``(N, C, ...)``, each number with all digits near 0 and near 1.

    Attributes:
        log_p: Log of p.
        p: Probability.
        miss: 1 - p, at least the smallest normal number.
        label: The class of each row, with a class axis of 1.
        dim: The class axis.
    """

    log_p: Tensor
    p: Tensor
    miss: Tensor
    label: Tensor
    dim: int

    def is_label(self) -> Tensor:
        """As log_p, 1 at the label and 0 elsewhere."""
        return others.is_class(self.log_p, self.label, self.dim).to(self.log_p.dtype)

    def replaced(self, values: Tensor, own: Tensor) -> Tensor:
        """Values of all classes with ``own``, which has a class axis of 1, at the label."""
        return others.replaced(values, self.label, self.dim, own.squeeze(self.dim))


Formula = Callable[[Softmax, Softmax], tuple[Tensor, Tensor]]


def with_softmax(
    formula: Formula, logits: Tensor, label: Tensor, dim: int, hyperparameters: Sequence[object] = ()
) -> Tensor:
    """Value ``(N, ...)`` of a formula in the probabilities of a row.

    Where its derivative does not serve (something else has a gradient, too, or a transform of ``torch.func`` is at
    work), the value's own graph is differentiated, which must give the same.

    Args:
        formula: From the softmax, of all classes and of the label, ``(N, 1, ...)``, to the value, which has a class
            axis of 1, too, and its derivatives in all log p.
        logits: ``(N, C, ...)``.
        label: Of each row, with a class axis of 1.
        dim: The class axis.
        hyperparameters: What else the formula uses, numbers and tensors.
    """
    learned = any(isinstance(h, Tensor) and h.requires_grad for h in hyperparameters)
    if is_transformed() or forward_ad._current_level >= 0 or learned:
        log_p, miss = others.exact_softmax(logits, dim)
        miss = miss.clamp(min=torch.finfo(miss.dtype).tiny)  # no infinite slope at 0
        own_log_p, own_miss = (others.at_class(values, label, dim).unsqueeze(dim) for values in (log_p, miss))
        own = Softmax(own_log_p, own_log_p.exp(), own_miss, label, dim)
        return formula(Softmax(log_p, log_p.exp(), miss, label, dim), own)[0].squeeze(dim)
    fit_blocks = is_plain(logits, label) and logits.device.type == "cpu" and logits.ndim == 2
    return _WithSoftmax.apply(formula, fit_blocks, logits, label, dim)[0]  # type: ignore[no-untyped-call, no-any-return]


def share_of_label(term: Callable[[Softmax], tuple[Tensor, Tensor]]) -> Formula:
    """The label's term over the sum of all classes', given the term and its derivative in log p, elementwise."""

    def formula(of: Softmax, own: Softmax) -> tuple[Tensor, Tensor]:
        value, slope = term(of)
        total = value.sum(of.dim, keepdim=True)
        share = term(own)[0] / total
        return share, (of.is_label() - share) * (slope / total)

    return formula


class _WithSoftmax(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(formula: Formula, fit_blocks: bool, logits: Tensor, label: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        if not fit_blocks:
            return _value_and_slope(formula, logits, label, dim)
        rows = max(1, BLOCK * torch.get_num_threads() // max(1, logits.shape[1]))
        value, slope = logits.new_empty(logits.shape[0]), torch.empty_like(logits)
        for block in range(0, logits.shape[0], rows):
            part = slice(block, block + rows)
            value[part], slope[part] = _value_and_slope(formula, logits[part], label[part], dim)
        return value, slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.formula, _, logits, label, ctx.dim = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], logits, label)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        slope, logits, label = ctx.saved_tensors
        if upstream[0] is None:
            return (None,) * 5
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # to be differentiated again
            slope = _value_and_slope(ctx.formula, logits, label, ctx.dim)[1]
        return None, None, upstream[0].unsqueeze(ctx.dim) * slope, None, None


def _value_and_slope(formula: Formula, logits: Tensor, label: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """By the sum s of exp(x - max x) without a best class, whose term is 1: log p is x - max x - log(1 + s)."""
    fall, _, is_best, rest = others.sum_without_best(logits, dim)
    of, own = (_softmax(fallen, rest, label, dim) for fallen in (fall, fall.gather(dim, label)))
    value, slope = formula(of, own)
    # Only a best class can have p above 1/2; in its sum over the others its own slope must not vanish by cancelling.
    best = slope * is_best
    worse = slope - best
    of_others = (worse.sum(dim, keepdim=True) - worse) + (best.sum(dim, keepdim=True) - best)
    return value.squeeze(dim), slope * of.miss - of.p * of_others


def _softmax(fall: Tensor, rest: Tensor, label: Tensor, dim: int) -> Softmax:
    power, one_over = torch.exp(fall), 1 / (1 + rest)
    miss = ((rest + (1 - power)) * one_over).clamp(min=torch.finfo(fall.dtype).tiny)
    return Softmax(fall - torch.log1p(rest), power * one_over, miss, label, dim)
