"""What losses of independent yes/no labels share, each number exact at both ends and formed once.

Everything follows from two sigmoids and one log(1 + exp(-|z|)), compiled from one exponential. As they are, nothing
is selected by masks, which cost more than all of these.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.checks import may_read_values
from lossary.core.numerics import product
from lossary.core.slopes import is_given

_BOUND = {torch.float32: 80.0, torch.float64: 700.0}
"""Beyond this logit a probability differs from 0 or 1 by less than 1e-34: it stays there, and stays above 0."""


class YesNo(NamedTuple):
    """Of logits z with targets y in [0, 1].

    Attributes:
        yes: y (1 - p), the miss probability of the positive side; p is sigmoid(z).
        no: (1 - y) p, that of the negative side. The derivative of cross-entropy in z is ``no - yes``.
        p: Probability.
        not_p: 1 - p.
        log_likely: -log of the larger one of p and 1 - p.
    """

    yes: Tensor
    no: Tensor
    p: Tensor
    not_p: Tensor
    log_likely: Tensor


def yes_no(z: Tensor, y: Tensor) -> YesNo:
    """Probabilities of both sides."""
    p, not_p = probabilities(z)
    return YesNo(y * not_p, (1 - y) * p, p, not_p, _log1p(_odds(z)))


def probabilities(z: Tensor) -> tuple[Tensor, Tensor]:
    """p and 1 - p."""
    if not (torch.compiler.is_compiling() and is_given()):  # two sigmoids take fewer passes
        bounded = _bounded(z)
        return bounded.sigmoid(), (-bounded).sigmoid()
    odds = _odds(z)
    likely = 1 / (1 + odds)
    unlikely = odds * likely
    return torch.where(z < 0, unlikely, likely), torch.where(z < 0, likely, unlikely)


def softplus(z: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 + exp(z)) = -log(1 - p), and its derivative p."""
    if not (torch.compiler.is_compiling() and is_given()):
        return -F.logsigmoid(-z), z.sigmoid()
    return _positive(z) + _log1p(_odds(z)), probabilities(z)[0]


def softplus_pair(z: Tensor, log_likely: Tensor) -> tuple[Tensor, Tensor]:
    """-log p and -log(1 - p): log(1 + exp(-z)) and log(1 + exp(z))."""
    return log_likely + _positive(-z), log_likely + _positive(z)


def cross_entropy(z: Tensor, y: Tensor, log_likely: Tensor) -> Tensor:
    """-y log p - (1 - y) log(1 - p); a side without target mass gives 0 even where it is infinite."""
    loss = torch.addcmul(_positive(z), y, z, value=-1) + log_likely
    if may_read_values(loss) and math.isfinite(loss.detach().sum()):  # no side is infinite
        return loss
    return log_likely + product(y, _positive(-z)) + product(1 - y, _positive(z))


def sigmoid_focal(
    z: Tensor, y: Tensor, alpha: Tensor | float | None, gamma: Tensor | float, epsilon: Tensor | float | None = None
) -> tuple[Tensor, Tensor]:
    """Focal loss ``alpha_t m^gamma c``, with ``epsilon`` that of PolyLoss, and its derivative in z.

    m is the miss probability, c cross-entropy; without ``alpha`` both sides weigh 1. ``epsilon`` adds
    ``epsilon m^(gamma + 1)``, which ``alpha`` does not weigh.
    """
    yes, no, p, not_p, log_likely = yes_no(z, y)
    miss, loss = yes + no, cross_entropy(z, y, log_likely)
    focusing = miss**gamma
    weight = focusing if alpha is None else focusing * ((1 - alpha) + (2 * alpha - 1) * y)
    rise = (1 - 2 * y) * (p * not_p / miss)  # the derivative of log m
    # Where cross-entropy is above 100, (p not_p) is below e^-80: no infinity must meet it.
    value, slope = product(weight, loss), weight * (rise * (gamma * loss.clamp(max=100)) + (no - yes))
    if epsilon is None:
        return value, slope
    extra = epsilon * (focusing * miss)
    return value + extra, slope + (gamma + 1) * (extra * rise)


def _bounded(z: Tensor) -> Tensor:
    return z.clamp(-_BOUND[z.dtype], _BOUND[z.dtype])


def _odds(z: Tensor) -> Tensor:
    """Of the unlikely side: exp(-|z|)."""
    return torch.exp(-_bounded(z).abs())


def _positive(z: Tensor) -> Tensor:
    """As relu, with the derivative 1/2 at 0, which with that of |z|, 0, makes the right one."""
    return torch.maximum(z, z.new_zeros(()))


def _log1p(x: Tensor) -> Tensor:
    """log(1 + x) for x in [0, 1]."""
    if not torch.compiler.is_compiling() or x.dtype != torch.float32:
        return torch.log1p(x)
    # 2 artanh(x / (2 + x)), to all digits of float32, takes a third of the time of log1p.
    root = x / (2 + x)
    square = root * root
    return root * (2 + square * (0.66666322 + square * (0.40024595 + square * (0.27965158 + square * 0.28157778))))
