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

from lossary.core.checks import is_transformed

Formula = Callable[..., tuple[Tensor, Tensor]]


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
    return _WithSlope.apply(formula, x, *constants)[0]  # type: ignore[no-untyped-call, no-any-return]


class _WithSlope(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(formula: Formula, x: Tensor, *constants: Tensor) -> tuple[Tensor, Tensor]:
        return formula(x, *constants)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.formula = inputs[0]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], *inputs[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        slope, *inputs = ctx.saved_tensors
        if upstream[0] is None:
            return (None,) * (len(inputs) + 1)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # to be differentiated again
            slope = ctx.formula(*inputs)[1]
        return None, upstream[0] * slope, *[None] * (len(inputs) - 1)
