"""Depth up-scaling and merging: which layers, nothing shared, and what must not change."""

import pytest
import torch
from torch import nn

from lossary.language import depth_upscale, depth_upscale_indices, merge_state_dicts


class Block(nn.Module):
    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(x).relu()


def test_indices() -> None:
    assert depth_upscale_indices(32, 7, 7) == [*range(25), *range(7, 32)]
    assert depth_upscale_indices(5, 5, 0) == depth_upscale_indices(5, 0, 5) == list(range(5))
    for wrong, message in (
        ((0, 0, 0), "num_layers is 0"),
        ((4, 5, 0), "drop_last is 5"),
        ((4, 0, -1), "drop_first is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            depth_upscale_indices(*wrong)


def test_layers_are_copies_that_know_their_place() -> None:
    layers = nn.ModuleList(Block(place) for place in range(4))
    deeper = depth_upscale(layers, 1, 2)
    assert [layer.layer_idx for layer in deeper] == list(range(5))
    for layer, index in zip(deeper, (0, 1, 2, 2, 3), strict=True):
        torch.testing.assert_close(layer.state_dict(), layers[index].state_dict())
    storages = [parameter.data_ptr() for parameter in [*layers.parameters(), *deeper.parameters()]]
    assert len(set(storages)) == len(storages)


def test_copies_of_empty_residual_blocks_change_nothing() -> None:
    layers = nn.ModuleList(Block(place) for place in range(4))
    for block in layers[1:3]:
        nn.init.zeros_(block.linear.weight)
        nn.init.zeros_(block.linear.bias)
    x = torch.randn(3, 4)
    run = lambda stack: nn.Sequential(*stack)(x)  # noqa: E731
    torch.testing.assert_close(run(depth_upscale(layers, 1, 1)), run(layers))


def test_merging() -> None:
    torch.manual_seed(0)
    one, other = (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict() for _ in range(2))
    torch.testing.assert_close(merge_state_dicts([one, one, one], [1, 2, 5]), one)
    merged = merge_state_dicts([one, other], [1, 3])
    torch.testing.assert_close(merged, merge_state_dicts([one, other], [0.5, 1.5]))
    torch.testing.assert_close(merged["0.weight"], 0.25 * one["0.weight"] + 0.75 * other["0.weight"])
    torch.testing.assert_close(merge_state_dicts([one, other])["0.bias"], (one["0.bias"] + other["0.bias"]) / 2)
    assert merged["1.num_batches_tracked"].dtype == torch.int64
    halves = merge_state_dicts([{"w": torch.full((2,), value, dtype=torch.bfloat16)} for value in (1.0, 2.0)])
    assert halves["w"].dtype == torch.bfloat16
    merged["0.weight"].zero_()
    assert one["0.weight"].any()


def test_states_that_do_not_merge() -> None:
    w = torch.zeros(2)
    for states, weights, message in (
        ([], None, "state_dicts is empty"),
        ([{"w": w}, {"v": w}], None, "state 2 of state_dicts differs from the first in 'v'"),
        ([{"w": w}, {"w": w[:1]}], None, r"'w' has shapes \(2,\) and \(1,\)"),
        ([{"w": w}], [1, 2], "weights has 2 numbers; wanted 1"),
        ([{"w": w}, {"w": w}], [1, -1], "weights sum to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_state_dicts(states, weights)
