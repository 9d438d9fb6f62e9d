"""Larger and averaged models from trained ones: depth up-scaling and linear merging."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def depth_upscale_indices(num_layers: int, drop_last: int, drop_first: int) -> list[int]:
    r"""Which layer of a trained model each layer of the deeper one is copied from.

    Reach for it to grow a language model whose layers are not in an ``nn.ModuleList``; :func:`depth_upscale` copies
    those that are.

    Formula:
        .. math:: 0, \dots, n - a - 1, \; b, \dots, n - 1

        with n layers, a = ``drop_last`` and b = ``drop_first``: 2n - a - b layers.

    Args:
        num_layers: Layers of the trained model.
        drop_last: How many of the last layers the first copy does without.
        drop_first: How many of the first layers the second copy does without.

    Returns:
        The indices in order.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> depth_upscale_indices(6, drop_last=2, drop_first=1)
        [0, 1, 2, 3, 1, 2, 3, 4, 5]
        >>> len(depth_upscale_indices(32, 7, 7))
        50

    Source:
        Ociepa, Flis, Kinas, Wróbel, Gwoździej: Bielik 11B v2 Technical Report (arXiv 2505.02410); Kim et al.: SOLAR
        10.7B (arXiv 2312.15166).
    """
    if num_layers < 1:
        raise ValueError(f"num_layers is {num_layers}; wanted 1 or more.")
    for name, value in (("drop_last", drop_last), ("drop_first", drop_first)):
        if not 0 <= value <= num_layers:
            raise ValueError(f"{name} is {value}; wanted an integer from 0 to {num_layers}, the number of layers.")
    return [*range(num_layers - drop_last), *range(drop_first, num_layers)]


def depth_upscale(layers: nn.ModuleList, drop_last: int, drop_first: int) -> nn.ModuleList:
    r"""A deeper stack from a trained one: its first layers, then its last ones, which overlap.

    Reach for it to start a larger language model from a smaller one instead of from scratch, then train on: at first
    it is worse than the one it came from. Embedding, last norm and head are kept as they are. Layers that know their
    place (``layer_idx`` of Hugging Face models, for their cache) are told the new one; set the number of layers in the
    configuration yourself.

    Formula:
        .. math:: f_0, \dots, f_{n - a - 1}, \; f_b, \dots, f_{n - 1}

    Args:
        layers: Layers of the trained model.
        drop_last: As in :func:`depth_upscale_indices`.
        drop_first: As there.

    Returns:
        New layers that share nothing with the old ones nor with each other.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> len(depth_upscale(nn.ModuleList(nn.Linear(4, 4) for _ in range(6)), drop_last=2, drop_first=1))
        9

    Source:
        Ociepa et al.: Bielik 11B v2 Technical Report (arXiv 2505.02410); Kim et al.: SOLAR 10.7B (arXiv 2312.15166).
    """
    indices = depth_upscale_indices(len(layers), drop_last, drop_first)
    deeper = nn.ModuleList(copy.deepcopy(layers[index]) for index in indices)
    for place, layer in enumerate(deeper):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place  # type: ignore[assignment]
    return deeper


def merge_state_dicts(
    state_dicts: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    r"""Weighted average of the parameters of several models of one architecture.

    Reach for it to join models that were tuned from the same one, such as checkpoints or runs on different data: no
    training, and often better than each. Not for models of different origin, whose parameters do not correspond.

    Formula:
        .. math:: \theta = \frac{\sum_k a_k \theta_k}{\sum_k a_k}

    Args:
        state_dicts: States of the models, with the same names and shapes.
        weights: The a, with a sum that is not 0; equal where they are None.

    Returns:
        The merged state in the first one's dtypes, summed in float32 or wider. What is no floating point, such as a
        counter, is the first one's.

    Raises:
        ValueError: There is no state, a name or shape differs, or the weights are too few, too many or sum to 0.

    Example:
        >>> merge_state_dicts([{"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}], weights=[3, 1])
        {'w': tensor([1.])}

    Source:
        Ociepa et al.: Bielik 11B v2 Technical Report (arXiv 2505.02410), linear merge; Wortsman et al.: Model soups
        (ICML 2022, arXiv 2203.05482).
    """
    if not state_dicts:
        raise ValueError("state_dicts is empty; wanted one or more.")
    weights = [1.0] * len(state_dicts) if weights is None else [float(weight) for weight in weights]
    if len(weights) != len(state_dicts):
        raise ValueError(f"weights has {len(weights)} numbers; wanted {len(state_dicts)}, one for each state.")
    total = math.fsum(weights)
    if total == 0 or not math.isfinite(total):
        raise ValueError(f"weights sum to {total:g}; wanted a finite sum other than 0.")
    first, *others = state_dicts
    for number, other in enumerate(others, start=2):
        if other.keys() != first.keys():
            name = min(other.keys() ^ first.keys())
            raise ValueError(
                f"state {number} of state_dicts differs from the first in {name!r}; wanted the same names."
            )
    merged = {}
    for name, value in first.items():
        parts = [state[name] for state in state_dicts]
        for part in parts:
            if part.shape != value.shape:
                raise ValueError(f"{name!r} has shapes {tuple(value.shape)} and {tuple(part.shape)}; wanted one shape.")
        if not value.is_floating_point():
            merged[name] = value.clone()
            continue
        wide = torch.promote_types(value.dtype, torch.float32)
        summed = torch.zeros_like(value, dtype=wide)
        for weight, part in zip(weights, parts, strict=True):
            summed = summed + weight / total * part.to(value.device, wide)
        merged[name] = summed.to(value.dtype)
    return merged
