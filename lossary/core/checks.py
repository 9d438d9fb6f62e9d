"""Errors that say which argument, what came and what was wanted.

Shapes and dtypes are always checked. Values (labels in range, probabilities in [0, 1]) are checked when that costs no
synchronisation: eagerly, on the CPU. :func:`may_read_values` is the one predicate that decides.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Sequence
from typing import get_args

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from lossary.core.types import Reduction


def is_concrete(tensor: Tensor) -> bool:
    """Whether the tensor holds numbers here and now: not while compiling, under functorch, on fake or meta tensors."""
    if torch.compiler.is_compiling():
        return False
    return not (torch._C._functorch.is_functorch_wrapped_tensor(tensor) or is_fake(tensor) or tensor.is_meta)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work, known while compiling, too."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_plain(*tensors: Tensor) -> bool:
    """Whether the tensors are computed on eagerly with reverse-mode derivatives at most, no transform around them.

    There an objective may use an ``autograd.Function`` that saves passes over its input; elsewhere the formula.
    """
    return all(map(is_concrete, tensors)) and forward_ad._current_level < 0


def may_read_values(*tensors: Tensor | None, waits: bool = False) -> bool:
    """Whether the values of the tensors can be looked at here and now.

    False while compiling, under functorch transforms, on fake and meta tensors and on accelerators, unless the caller
    ``waits`` for one anyway. The environment variable ``LOSSARY_CHECKS`` set to ``always`` adds accelerators, set to
    ``never`` drops all.
    """
    setting = os.environ.get("LOSSARY_CHECKS", "")
    if torch.compiler.is_compiling() or setting == "never":
        return False
    return all(
        is_concrete(tensor) and (waits or tensor.device.type == "cpu" or setting == "always")
        for tensor in tensors
        if tensor is not None
    )


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless ``reduction`` is none, mean or sum."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction is {reduction!r}; wanted 'none', 'mean' or 'sum'.")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` is a tensor of floating point."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {_kind(tensor)}; wanted a floating-point tensor.")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} has dtype {tensor.dtype}; wanted floating point, such as float32 or bfloat16.")


def check_shape(name: str, tensor: Tensor, wanted: Sequence[int], meaning: str) -> None:
    """Raise unless ``tensor`` is a tensor of exactly the shape ``wanted``, described by ``meaning``."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {_kind(tensor)}; wanted a tensor of shape {tuple(wanted)}, {meaning}.")
    if tuple(tensor.shape) != tuple(wanted):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; wanted {tuple(wanted)}, {meaning}.")


def check_in_range(
    name: str, value: object, low: float, high: float = float("inf"), *, low_open: bool = False, high_open: bool = False
) -> None:
    """Raise unless a Python number lies in the range; tensors pass (they may be batched, compiled or learned)."""
    if isinstance(value, Tensor):
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {_kind(value)}; wanted a number or a 0-d tensor.")
    below = value <= low if low_open else value < low
    above = value >= high if high_open else value > high
    if below or above or value != value:
        wanted = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open or high == float('inf') else ']'}"
        raise ValueError(f"{name} is {value!r}; wanted a number in {wanted}.")


def check_normalizer(normalizer: Tensor | float | None) -> None:
    """Raise unless ``normalizer`` is None, a positive number or a 0-d tensor."""
    if normalizer is None:
        return
    if isinstance(normalizer, Tensor):
        check_shape("normalizer", normalizer, (), "one divisor for the whole sum")
        return
    check_in_range("normalizer", normalizer, 0.0, low_open=True)


def check_class_vector(name: str, vector: Tensor | None, num_classes: int) -> None:
    """Raise unless ``vector`` is None or a tensor with one number for each class."""
    if vector is None:
        return
    check_floating(name, vector)
    check_shape(name, vector, (num_classes,), "one number for each class of input's class axis")


def check_labels(target: Tensor, num_classes: int, ignore_index: int) -> bool:
    """Whether every label lies in [0, num_classes) and none is ``ignore_index``; reads values.

    Raises ValueError if a label lies outside and is not ``ignore_index``.
    """
    if target.numel() == 0:
        return True
    low, high = torch.stack(target.aminmax()).tolist()  # one wait for a GPU
    if low >= 0 and high < num_classes:
        return not (low <= ignore_index <= high and (target == ignore_index).any())
    wrong = ((target < 0) | (target >= num_classes)) & (target != ignore_index)
    if wrong.any():
        label = int(target[wrong].flatten()[0])
        raise ValueError(
            f"target contains {label}; wanted class indices from 0 to {num_classes - 1} "
            f"(input has {num_classes} classes) or ignore_index={ignore_index}."
        )
    return False


def check_indices(name: str, index: Tensor, size: int) -> None:
    """Raise ValueError if an index lies outside [0, size); reads values."""
    wrong = (index < 0) | (index >= size)
    if wrong.any():
        raise ValueError(f"{name} contains {int(index[wrong].flatten()[0])}; wanted integers from 0 to {size - 1}.")


def check_unit_interval(name: str, tensor: Tensor) -> None:
    """Raise ValueError if a value lies outside [0, 1]; NaN passes, since it stays visible in the loss; reads values."""
    if tensor.is_floating_point() and tensor.numel():  # one pass says most; a NaN hides the rest
        low, high = tensor.aminmax()
        if low >= 0 and high <= 1:
            return
    wrong = (tensor < 0) | (tensor > 1)
    if wrong.any():
        raise ValueError(f"{name} contains {float(tensor[wrong].flatten()[0]):g}; wanted values in [0, 1].")


def _kind(value: object) -> str:
    return f"{reprlib.repr(value)} of type {type(value).__name__}"
