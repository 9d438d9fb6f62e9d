"""Elementwise formulas that give their derivative beside their value.

What a value and its derivative share (the exponential of a logit, a logarithm) is then computed once, and one tensor
is stored, where differentiating the value's graph stores and reads one for each operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from lossary.core.checks import is_plain, is_transformed

Formula = Callable[..., tuple[Tensor, Tensor]]

BLOCK = 2**15
"""Entries that one thread computes at once. What a formula makes on its way then stays in the processor's cache."""


def with_slope(formula: Formula, x: Tensor, *constants: Tensor, hyperparameters: Sequence[object] = ()) -> Tensor:
    """Value of a formula in x whose second result is the derivative in x.

    Where that does not serve (something else has a gradient, too, or a transform of ``torch.func`` is at work), the
    value's own graph is differentiated, which must give the same.

    Args:
        formula: ``(x, *constants)`` to value and derivative, elementwise.
        x: The tensor to differentiate in.
        constants: Tensors of x's shape.
        hyperparameters: What else the formula uses, numbers and 0-d tensors.
    """
    others = [*constants, *(h for h in hyperparameters if isinstance(h, Tensor))]
    if is_transformed() or forward_ad._current_level >= 0 or any(other.requires_grad for other in others):
        return formula(x, *constants)[0]
    in_blocks = _fit_blocks(x, *constants) and all(other.ndim == 0 for other in others[len(constants) :])
    return _WithSlope.apply(formula, in_blocks, x, *constants)[0]  # type: ignore[no-untyped-call, no-any-return]


def is_given() -> bool:
    """Whether a formula's own derivative is taken, so that what it computes is not differentiated."""
    return not torch.is_grad_enabled() and not is_transformed() and forward_ad._current_level < 0


class _WithSlope(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(formula: Formula, in_blocks: bool, x: Tensor, *constants: Tensor) -> tuple[Tensor, Tensor]:
        return _in_blocks(formula, x, *constants) if in_blocks else formula(x, *constants)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.formula = inputs[0]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], *inputs[2:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        slope, *inputs = ctx.saved_tensors
        if upstream[0] is None:
            return (None,) * (len(inputs) + 2)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # to be differentiated again
            slope = ctx.formula(*inputs)[1]
        return None, None, upstream[0] * slope, *[None] * (len(inputs) - 1)


def _in_blocks(formula: Formula, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative block by block: whole intermediate results would go through memory."""
    results = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    size = BLOCK * torch.get_num_threads()
    for value, slope, *block in zip(*(torch.split(x.view(-1), size) for x in (*results, *inputs)), strict=True):
        for result, made in zip((value, slope), formula(*block), strict=True):
            result.copy_(made)
    return results


def _fit_blocks(*inputs: Tensor) -> bool:
    """Whether the inputs are computed on as they are, by the CPU, and can be cut alike."""
    first = inputs[0]
    return is_plain(*inputs) and all(
        x.is_contiguous() and x.shape == first.shape and x.device.type == "cpu" for x in inputs
    )
