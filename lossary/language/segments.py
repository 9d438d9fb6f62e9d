"""Sums over the parts of a row of tokens: packed sequences, steps of a proof."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.checks import check_indices, check_shape, may_read_values


def segment_index(segment: Tensor | None, keep: Tensor, shift: int = 0) -> Tensor:
    """Number of its segment for each token, 0 where it does not count; 0 for all where none are given.

    Args:
        segment: Numbers in [0, T) ``(..., T)``; the first ``shift`` tokens are targets of nothing.
        keep: Which tokens count ``(..., T - shift)``.
        shift: Token i predicts target i + shift.

    Raises:
        TypeError: ``segment`` does not hold integers.
        ValueError: Its shape is wrong, or a number lies outside [0, T).
    """
    if segment is None:
        return torch.zeros_like(keep, dtype=torch.long)
    length = keep.shape[-1] + shift
    check_shape("segment", segment, (*keep.shape[:-1], length), "the number of its segment for each token")
    if segment.is_floating_point() or segment.dtype == torch.bool:
        raise TypeError(f"segment has dtype {segment.dtype}; wanted integers.")
    index = torch.where(keep, segment[..., shift:], 0).long()
    if may_read_values(index):
        check_indices("segment", index, length)
    return index


def segment_sums(values: Tensor, index: Tensor, shift: int = 0) -> Tensor:
    """Sums of ``values (..., T - shift)`` over segments: ``(..., T)``, 0 for numbers that no token has."""
    return F.pad(torch.zeros_like(values), (0, shift)).scatter_add(-1, index, values)
