"""What losses of independent yes/no labels share, each number exact at both ends and formed once.

Everything follows from two sigmoids and one log(1 + exp(-|z|)); nothing is selected by masks, which cost an eager call
more than all of these.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lossary.core.numerics import product

BOUND = 80.0
"""Beyond this logit a probability differs from 0 or 1 by less than 1e-34: it stays there, and stays above 0."""


class YesNo(NamedTuple):
    """Of logits z with targets y in [0, 1].

    Attributes:
        yes: y (1 - p), the miss probability of the positive side; p is sigmoid(z).
        no: (1 - y) p, that of the negative side. The derivative of cross-entropy in z is ``no - yes``.
        p: Probability.
        not_p: 1 - p.
    """

    yes: Tensor
    no: Tensor
    p: Tensor
    not_p: Tensor


def yes_no(z: Tensor, y: Tensor) -> YesNo:
    """Probabilities of both sides."""
    bounded = z.clamp(-BOUND, BOUND)
    if torch.compiler.is_compiling():  # one exponential; as they are, two sigmoids take fewer passes
        odds_against = torch.exp(-bounded)
        p = 1 / (1 + odds_against)
        not_p = odds_against * p
    else:
        p, not_p = bounded.sigmoid(), (-bounded).sigmoid()
    return YesNo(y * not_p, (1 - y) * p, p, not_p)


def softplus_pair(z: Tensor) -> tuple[Tensor, Tensor]:
    """-log p and -log(1 - p): log(1 + exp(-z)) and log(1 + exp(z))."""
    common = _log1p(torch.exp(-z.abs()))
    return common + _positive(-z), common + _positive(z)


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """-y log p - (1 - y) log(1 - p); a side without target mass gives 0 even where it is infinite."""
    return _log1p(torch.exp(-z.abs())) + product(y, _positive(-z)) + product(1 - y, _positive(z))


def sigmoid_focal(
    z: Tensor, y: Tensor, alpha: Tensor | float | None, gamma: Tensor | float, epsilon: Tensor | float | None = None
) -> tuple[Tensor, Tensor]:
    """Focal loss ``alpha_t m^gamma c``, with ``epsilon`` that of PolyLoss, and its derivative in z.

    m is the miss probability, c cross-entropy; without ``alpha`` both sides weigh 1. ``epsilon`` adds
    ``epsilon m^(gamma + 1)``, which ``alpha`` does not weigh.
    """
    yes, no, p, not_p = yes_no(z, y)
    miss, loss = yes + no, cross_entropy(z, y)
    balance = 1.0 if alpha is None else (1 - alpha) + (2 * alpha - 1) * y
    focusing = miss**gamma
    miss_slope = (1 - 2 * y) * p * not_p
    # Where cross-entropy is above 100, (p not_p) is below e^-80: no infinity must meet it.
    slope = balance * (gamma * miss_slope / miss * loss.clamp(max=100) + (no - yes))
    value = product(balance * focusing, loss)
    if epsilon is None:
        return value, focusing * slope
    return value + epsilon * focusing * miss, focusing * (slope + epsilon * (gamma + 1) * miss_slope)


def _positive(z: Tensor) -> Tensor:
    """As relu, with the derivative 1/2 at 0, which with that of |z|, 0, makes the right one."""
    return torch.maximum(z, z.new_zeros(()))


def _log1p(x: Tensor) -> Tensor:
    """log(1 + x) for x in [0, 1]."""
    if not torch.compiler.is_compiling() or x.dtype != torch.float32:
        return torch.log1p(x)
    # 2 artanh(x / (2 + x)), all digits of float32 in a quarter of the time that log1p takes within a loop.
    root = x / (2 + x)
    square, series = root * root, torch.zeros_like(x)
    for power in range(15, 0, -2):
        series = series * square + 2 / power
    return root * series
