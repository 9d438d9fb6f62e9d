"""Log-space arithmetic whose values and gradients stay finite wherever the mathematics is."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.checks import is_transformed, may_read_values

_LOG_HALF = -math.log(2.0)


def log1mexp(x: Tensor) -> Tensor:
    """Log of 1 - exp(x) for x <= 0, accurate at both ends (Maechler 2012); -inf at 0, NaN above."""
    near_zero = x > _LOG_HALF
    by_expm1 = torch.log(-torch.expm1(torch.where(near_zero, x, _LOG_HALF)))
    by_log1p = torch.log1p(-torch.exp(torch.where(near_zero, _LOG_HALF, x)))
    return torch.where(near_zero, by_expm1, by_log1p)


def logsumexp(x: Tensor, dim: int) -> Tensor:
    """``torch.logsumexp`` whose gradient is 0, not NaN, in a slice that is -inf throughout (the value is -inf)."""
    empty = (x.detach() == -math.inf).all(dim, keepdim=True)
    value = torch.logsumexp(torch.where(empty, 0.0, x), dim)
    return torch.where(empty.squeeze(dim), -math.inf, value)


def exp_scaled(log_x: Tensor, power: Tensor | float) -> Tensor:
    """Raise x to ``power`` >= 0 (a number or a tensor) given log x <= 0.

    0 ** 0 is 1, and x = 0 (log x = -inf) gives 0 with gradient 0 for power > 0: the infinite slope of ``pow`` at 0 for
    power < 1 never meets a zero factor to make a NaN.
    """
    if not isinstance(power, Tensor):
        return torch.ones_like(log_x) if power == 0 else torch.exp(power * log_x)
    floor = log_x == -math.inf
    live = torch.exp(power * torch.where(floor, 0.0, log_x))
    return torch.where(floor & (power > 0), 0.0, live)


def product(x: Tensor, y: Tensor) -> Tensor:
    """Product x * y where a vanished factor x silences an infinite y, and an infinite y sends no gradient to x.

    0 * (+-inf) is 0 with gradient 0, as in (1 - p)^gamma * (-log p) and its limits.
    """
    plain = x * y
    if may_read_values(plain) and math.isfinite(plain.detach().sum()):  # no y is infinite, and no masks are needed
        return plain
    infinite = y.detach().abs() == math.inf  # isinf compiles to a call for each number
    silent = (x == 0) & infinite
    if not torch.is_grad_enabled() and not is_transformed():  # nothing sends gradients
        return torch.where(silent, 0.0, plain)
    return torch.where(silent, 0.0, torch.where(infinite, x.detach(), x) * torch.where(silent, 0.0, y))


def weighted_sum(weight: Tensor, x: Tensor, dim: int) -> Tensor:
    """Sum of ``weight`` * x along ``dim``, where a weight of 0 silences an infinite x."""
    total = (weight * x).sum(dim)
    if may_read_values(total) and not total.detach().isnan().any():  # no 0 met an infinity, and no masks are needed
        return total
    absent = weight == 0
    return torch.where(absent, 0.0, weight * torch.where(absent, 0.0, x)).sum(dim)


def logaddexp(x: Tensor, y: Tensor) -> Tensor:
    """``torch.logaddexp`` whose gradient is 0, not NaN, where both are -inf."""
    empty = (x == -math.inf) & (y == -math.inf)
    value = torch.logaddexp(torch.where(empty, 0.0, x), torch.where(empty, 0.0, y))
    return torch.where(empty, -math.inf, value)


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0, not infinite."""
    zero = x == 0
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, x)))


def safe_norm(x: Tensor, dim: int) -> Tensor:
    """Euclidean norm along ``dim`` whose gradient at the zero vector is 0, not NaN."""
    return safe_sqrt(x.square().sum(dim))


def log_softplus(x: Tensor) -> Tensor:
    """Log of log(1 + exp(x)): finite far below 0 too, where softplus itself underflows."""
    low = x < -15  # there softplus is u - u^2/2 + u^3/3 for u = exp(x), to the last bit of float64
    u = torch.where(low, x, -15.0).exp()
    return torch.where(low, x - u / 2 + 5 * u.square() / 24, torch.log(-F.logsigmoid(-torch.where(low, 0.0, x))))
