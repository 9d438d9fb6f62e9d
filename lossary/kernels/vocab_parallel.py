"""A vocabulary spread over ranks: each holds some rows of the head, all hold the same hidden states.

What ranks exchange is small: eight numbers for each row in the forward sweep (:func:`lossary.kernels.state.merge` makes
one of them, as it does of blocks), and in the backward sweep the sum of their gradients of the hidden states.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lossary.kernels import state
from lossary.kernels.cpu import ELSEWHERE


@dataclasses.dataclass(frozen=True)
class VocabParallel:
    """Where this rank's part of the vocabulary lies.

    Every rank of the group calls the objective with the same ``input`` and ``target``, and with its own rows of the
    head and bias (class weights stay whole). All get the same value, and the whole gradient of ``input``.

    Attributes:
        vocab_size: Size of the whole vocabulary.
        start: First entry that this rank holds.
        stop: One past its last.
        group: The ranks; None are all.
        reduce_input_grad: Sum the gradients of ``input`` over the ranks; False leaves that to the caller.

    Example:
        >>> VocabParallel(vocab_size=10, start=4, stop=8).columns
        slice(4, 8, None)
    """

    vocab_size: int
    start: int
    stop: int
    group: Any = None
    reduce_input_grad: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= self.vocab_size:
            raise ValueError(f"start is {self.start} and stop {self.stop}; wanted 0 <= start <= stop <= vocab_size.")

    @classmethod
    def even(cls, vocab_size: int, group: Any = None, *, reduce_input_grad: bool = True) -> VocabParallel:
        """The part of this rank where every rank but the last holds ceil(vocab_size / ranks) entries."""
        size = -(-vocab_size // dist.get_world_size(group))
        start, stop = (min((dist.get_rank(group) + more) * size, vocab_size) for more in (0, 1))
        return cls(vocab_size, start, stop, group, reduce_input_grad)

    @property
    def columns(self) -> slice:
        """The entries that this rank holds."""
        return slice(self.start, self.stop)

    def place(self, label: Tensor) -> Tensor:
        """Labels of the whole vocabulary as places in this rank's part."""
        return torch.where(self.holds(label), label - self.start, ELSEWHERE)

    def holds(self, label: Tensor) -> Tensor:
        """Whether labels are in this rank's part."""
        return (label >= self.start) & (label < self.stop)

    def merge(self, partial: Tensor) -> Tensor:
        """A partial ``(8, N)`` merged with those of the other ranks."""
        return state.merge(self.gather(partial))

    def gather(self, tensor: Tensor) -> Tensor:
        """A tensor of every rank, stacked."""
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.stack(parts)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks."""
        tensor = tensor.clone()
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def sum_gradients(self, tensor: Tensor) -> Tensor:
        """The tensor itself, whose gradients are summed over ranks."""
        function: Any = _SumGradients
        result: Tensor = function.apply(tensor, self) if self.reduce_input_grad else tensor
        return result

    def sum_values(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, whose gradient each rank has in full already."""
        function: Any = _SumValues
        result: Tensor = function.apply(tensor, self)
        return result


class _SumGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: VocabParallel) -> Tensor:
        ctx.ranks = ranks
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.ranks.sum(gradient), None


class _SumValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: VocabParallel) -> Tensor:
        return ranks.sum(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


def from_dtensor(weight: Any, bias: Any) -> tuple[Tensor, Tensor | None, VocabParallel | None]:
    """A ``DTensor`` head taken apart: this rank's rows of weight and bias, and where they lie.

    Raises:
        ValueError: The weight is neither replicated nor sharded over the vocabulary along one dimension of its mesh.
    """
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded = [place for place, placement in enumerate(weight.placements) if not placement.is_replicate()]
    if len(sharded) > 1 or any(not weight.placements[place].is_shard(0) for place in sharded):
        raise ValueError(
            f"linear_weight is a DTensor placed as {weight.placements}; wanted Shard(0), over the vocabulary, along "
            "one dimension of its mesh, and Replicate() along the others."
        )
    if isinstance(bias, DTensor):
        bias = bias.redistribute(placements=weight.placements).to_local()
    if not sharded:
        return weight.to_local(), bias, None
    shape, offset = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
    ranks = VocabParallel(weight.shape[0], offset[0], offset[0] + shape[0], weight.device_mesh.get_group(sharded[0]))
    if bias is not None and bias.shape[0] == weight.shape[0] and bias.shape[0] != shape[0]:
        bias = bias[ranks.columns]
    return weight.to_local(), bias, ranks
