"""From tensors that are no logits (real values, boxes, images) to a reduced value; the counterpart of ``rows``."""

from __future__ import annotations

import torch
from torch import Tensor

from lossary.core import checks
from lossary.core.types import Reduction


def widened(**tensors: Tensor) -> list[Tensor]:
    """Check that the named tensors are of floating point and give them one dtype: the first's, halves as float32.

    Raises:
        TypeError: One is no tensor of floating point.
    """
    for name, tensor in tensors.items():
        checks.check_floating(name, tensor)
    dtype = next(iter(tensors.values())).dtype
    dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    return [tensor.to(dtype) for tensor in tensors.values()]


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context in which autocast leaves products and convolutions alone: objectives are at least float32 inside."""
    return torch.autocast(tensor.device.type, enabled=False)


def like_first(meaning: str, **tensors: Tensor) -> list[Tensor]:
    """:func:`widened` tensors that all have the first one's shape, described by ``meaning``.

    Raises:
        TypeError: One is no tensor of floating point.
        ValueError: A shape differs.
    """
    values = widened(**tensors)
    first = next(iter(tensors))
    for name, tensor in list(tensors.items())[1:]:
        checks.check_shape(name, tensor, tensors[first].shape, f"{meaning}, as {first}")
    return values


def reduce_values(
    values: Tensor,
    *,
    sample_weight: Tensor | None,
    reduction: Reduction,
    normalizer: Tensor | float | None,
    keep: Tensor | None = None,
) -> Tensor:
    """Reduce losses of any shape as PyTorch does; ``mean`` divides by their number or summed ``sample_weight``.

    Args:
        values: One loss for each row or entry.
        sample_weight: As values, or ``(N,)`` along their first axis.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.
        keep: As values; where it is False a loss is 0 and does not count.
    """
    checks.check_reduction(reduction)
    checks.check_normalizer(normalizer)
    weight = None
    if sample_weight is not None:
        if values.ndim > 1 and sample_weight.shape == values.shape[:1]:
            sample_weight = sample_weight.reshape([-1] + [1] * (values.ndim - 1))
        else:
            checks.check_shape("sample_weight", sample_weight, values.shape, "a weight for each loss, or (N,) for rows")
        weight = sample_weight.to(values.dtype).expand(values.shape)
        values = values * weight
    if keep is not None:
        values = torch.where(keep, values, 0.0)
    if reduction == "none":
        return values
    if normalizer is not None:
        return values.sum() / normalizer
    if reduction == "sum":
        return values.sum()
    if weight is None and keep is None:
        return values.mean()
    count = torch.ones_like(values) if weight is None else weight
    return values.sum() / (count if keep is None else torch.where(keep, count, 0.0)).sum()
