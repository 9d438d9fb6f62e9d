"""Losses of the residual between square and absolute value: log-cosh and the reverse Huber loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lossary.core.checks import check_in_range
from lossary.core.objective import Kind, Objective, objective
from lossary.core.slopes import is_given, with_slope
from lossary.core.types import Reduction
from lossary.core.values import like_first, reduce_values


@objective(Kind.PAIRS)
def log_cosh_loss(
    input: Tensor,
    target: Tensor,
    *,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Logarithm of the hyperbolic cosine of the residual: a square near 0, an absolute value far from it.

    Reach for it where a few targets are far off and a smooth loss is wanted, without the threshold of
    ``torch.nn.HuberLoss``. Scale the targets: where square ends and absolute value begins is fixed at about 1.

    Formula:
        .. math:: L = \log\cosh(x - y) = |x - y| + \log(1 + e^{-2 |x - y|}) - \log 2

    Args:
        input: Predictions.
        target: Real targets.
        sample_weight: Weights of entries or rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of entries.

    Shape:
        - input, target: the same, any shape; floating point.
        - sample_weight: as input, or ``(N,)``; normalizer: a number or ``()``.

    Returns:
        Input's shape for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or reduction is wrong.

    Example:
        >>> log_cosh_loss(torch.tensor([0.1, 100.0]), torch.tensor([0.0, 0.0]), reduction="none")
        tensor([4.9917e-03, 9.9307e+01])

    Source:
        Terven et al.: Loss Functions and Metrics in Deep Learning (Artificial Intelligence Review 2025, arXiv
        2307.02694), regression losses. Implementations by ``cosh`` overflow at a residual of 89 in float32.
    """
    input, target = like_first("a real target for each entry", input=input, target=target)
    loss = with_slope(_log_cosh, input - target)
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class LogCoshLoss(Objective):
    """Logarithm of the hyperbolic cosine of the residual; module form of :func:`log_cosh_loss`.

    Example:
        >>> LogCoshLoss()(torch.tensor([100.0]), torch.tensor([0.0]))
        tensor(99.3069)
    """

    function = log_cosh_loss

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)


@objective(Kind.PAIRS)
def berhu_loss(
    input: Tensor,
    target: Tensor,
    *,
    threshold: Tensor | float = 1.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""The reverse Huber loss: absolute value near 0, a square beyond the threshold.

    Reach for it in depth estimation, where small residuals keep a gradient and large ones weigh most. It is not robust:
    targets that are far off dominate it.

    Formula:
        .. math:: L = |e| \text{ if } |e| \le c, \text{ else } \frac{e^2 + c^2}{2c}, \quad e = x - y

    Args:
        input: Predictions.
        target: Real targets.
        threshold: The c, positive. Depth networks take a fifth of the batch's largest residual:
            ``0.2 * (input - target).abs().max().detach()``.
        sample_weight: Weights of entries or rows, 0 where a depth is unknown.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of entries.

    Shape:
        - input, target: the same, any shape; floating point.
        - threshold: a number or ``()``; sample_weight: as input, or ``(N,)``; normalizer: a number or ``()``.

    Returns:
        Input's shape for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, ``threshold`` or reduction is wrong.

    Example:
        >>> berhu_loss(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0]), reduction="none")
        tensor([0.5000, 5.0000])

    Source:
        Terven et al. (arXiv 2307.02694), depth estimation losses; introduced to it by Laina, Rupprecht, Belagiannis,
        Tombari, Navab: Deeper Depth Prediction with Fully Convolutional Residual Networks (3DV 2016, arXiv 1606.00373).
    """
    check_in_range("threshold", threshold, 0.0, low_open=True)
    input, target = like_first("a real target for each entry", input=input, target=target)

    def formula(e: Tensor) -> tuple[Tensor, Tensor]:
        size = e.abs()
        return size + (size - threshold).relu().square() / (2 * threshold), e.sign() * (size / threshold).clamp(min=1)

    loss = with_slope(formula, input - target, hyperparameters=(threshold,))
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class BerHuLoss(Objective):
    """The reverse Huber loss; module form of :func:`berhu_loss`.

    Example:
        >>> BerHuLoss(threshold=1.0)(torch.tensor([3.0]), torch.tensor([0.0]))
        tensor(5.)
    """

    function = berhu_loss

    def __init__(self, threshold: Tensor | float = 1.0, *, reduction: Reduction = "mean") -> None:
        super().__init__(threshold=threshold, reduction=reduction)


def _log_cosh(x: Tensor) -> tuple[Tensor, Tensor]:
    """Log cosh x and its derivative: cosh x - 1 from e^|x| - 1, all digits kept; beyond 40 along the line."""
    if torch.compiler.is_compiling() and is_given() and x.dtype == torch.float32:
        return _log_cosh_single(x)
    size = x.abs()
    growth = torch.expm1(size.clamp(max=40))
    value = torch.log1p(growth.square() / (2 * growth + 2)) + (size - 40).relu()
    return value, torch.tanh(x)


def _log_cosh_single(x: Tensor) -> tuple[Tensor, Tensor]:
    """To the digits of float32 by one exponential: near 0 x^2 A(x^2) and x B(x^2), beyond by log(1 + e^(-2|x|))."""
    size = x.abs()
    near, square, decay = size < 0.75, (x * x).clamp(max=0.5625), torch.exp(-2 * size)
    far_value, far_slope = (size - math.log(2)) + decay * _series(decay, _LOG1P), 1 - 2 * decay / (1 + decay)
    value = torch.where(near, square * _series(square, _LOG_COSH), far_value)
    return value, torch.where(near, x * _series(square, _TANH), torch.copysign(far_slope, x))


def _series(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


# Least largest relative errors: 4e-9 and 3e-8 for |x| below 0.75; and 6e-9, absolute, for log(1 + x) below e^-1.5.
_LOG_COSH = (0.499999998, -0.0833330499, 0.0222161984, -0.0066986255, 0.00201405545, -0.000429667186)
_TANH = (0.999999971, -0.333329588, 0.133254047, -0.0533443776, 0.0195828139, -0.00471619588)
_LOG1P = (0.999998727, -0.499916479, 0.331537601, -0.232777091, 0.120651667)
