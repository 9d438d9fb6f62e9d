"""The quantile (pinball) loss, whose minimiser is a quantile instead of the mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lossary.core.checks import check_in_range, check_shape, may_read_values
from lossary.core.objective import Kind, Objective, objective
from lossary.core.slopes import with_slope
from lossary.core.types import Reduction
from lossary.core.values import reduce_values, widened


@objective(Kind.PAIRS, example=lambda num_classes: {"quantile": 0.8})
def quantile_loss(
    input: Tensor,
    target: Tensor,
    *,
    quantile: Tensor | float | Sequence[float],
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Absolute residual, weighed by q where the prediction is too low and by 1 - q where it is too high.

    Reach for it to predict intervals (quantiles 0.1 and 0.9 span 80%) or where too little costs more than too much.
    Separate quantiles may cross; nothing here forbids it.

    Formula:
        .. math:: L = \max\big(q (y - x),\ (q - 1) (y - x)\big)

    Args:
        input: Predictions: one for each target, or one for each target and quantile.
        target: Real targets.
        quantile: The q in (0, 1), or several of them.
        sample_weight: Weights of targets, or ``(N,)`` of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of entries.

    Shape:
        - input: target's shape; ``(..., Q)`` for a target ``(...)`` where quantile is ``(Q,)``.
        - target: any shape, floating point.
        - quantile: a number, ``()`` or ``(Q,)``.
        - sample_weight: as target, or ``(N,)``; normalizer: a number or ``()``.

    Returns:
        Input's shape for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, ``quantile`` or reduction is wrong.

    Example:
        >>> quantile_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]), quantile=0.8, reduction="none")
        tensor([0.8000, 0.2000])
        >>> quantile_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([1.0]), quantile=[0.1, 0.9], reduction="none")
        tensor([[0.1000, 0.1000]])

    Source:
        Terven et al.: Loss Functions and Metrics in Deep Learning (arXiv 2307.02694), regression losses. As a metric it
        is ``sklearn.metrics.mean_pinball_loss``.
    """
    input, target = widened(input=input, target=target)
    several = isinstance(quantile, Sequence) or (isinstance(quantile, Tensor) and quantile.ndim > 0)
    q = torch.as_tensor(quantile, dtype=input.dtype, device=input.device)
    if several:
        _check_quantiles(q)
        check_shape("target", target, input.shape[:-1], "a real target for each row of quantiles in input")
        check_shape("input", input, (*target.shape, q.shape[0]), "a prediction for each target and quantile")
        target = target.unsqueeze(-1)
        if sample_weight is not None and sample_weight.shape == target.shape[:-1]:
            sample_weight = sample_weight.unsqueeze(-1).expand(input.shape)
    else:
        check_in_range("quantile", quantile, 0.0, 1.0, low_open=True, high_open=True)
        check_shape("target", target, input.shape, "a real target for each prediction, as input")

    def formula(residual: Tensor) -> tuple[Tensor, Tensor]:
        slope = q - (-residual.sign()).relu()  # q - 1 below 0; compiled, a mask takes many times as long
        return slope * residual, slope

    loss = with_slope(formula, target - input, hyperparameters=(q,))
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class QuantileLoss(Objective):
    """Absolute residual weighed by side; module form of :func:`quantile_loss`.

    Example:
        >>> QuantileLoss(quantile=0.8)(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
        tensor(0.5000)
    """

    function = quantile_loss

    def __init__(self, quantile: Tensor | float | Sequence[float], *, reduction: Reduction = "mean") -> None:
        super().__init__(quantile=quantile, reduction=reduction)


def _check_quantiles(q: Tensor) -> None:
    if q.ndim != 1:
        raise ValueError(f"quantile has shape {tuple(q.shape)}; wanted a number or (Q,).")
    if may_read_values(q) and not ((q > 0) & (q < 1)).all():
        raise ValueError(f"quantile is {q.tolist()}; wanted numbers in (0, 1).")
