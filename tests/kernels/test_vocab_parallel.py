"""A vocabulary spread over 2 and 4 processes gives what one process gives: values, gradients, samples, top entries."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lossary.kernels import STATISTICS, VocabParallel, linear_head
from lossary.language import (
    linear_cross_entropy,
    linear_cross_entropy_with_number_token_loss,
    linear_focal_loss,
    linear_power_law_decay_loss,
)
from tests.processes import run_ranks

VOCAB = 13  # three ranks of four hold 4 entries, the last 1
NAMES = tuple(name for name in STATISTICS if name != "target_logit")


def problem() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    target = torch.randint(VOCAB, (3, 4), generator=generator)
    target[0, 1] = -100
    return {
        "input": draw(3, 4, 5),
        "weight": draw(VOCAB, 5),
        "target": target,
        "bias": draw(VOCAB),
        "classes": draw(VOCAB) ** 2,
    }


def objectives(
    input: Tensor, weight: Tensor, bias: Tensor, given: dict[str, Tensor], ranks: VocabParallel | None
) -> dict[str, Any]:
    target, classes = given["target"], given["classes"]
    options: dict[str, Any] = {"softcap": 4.0, "vocab_parallel": ranks}
    rows = linear_head(
        *(input, weight, target, bias),
        weight=classes,
        statistics=NAMES,
        top_k=3,
        noise=torch.linspace(0.01, 0.99, 24).reshape(3, 4, 2),
        **options,
    )
    temperature = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    tempered = linear_cross_entropy(input, weight, target, bias, temperature=temperature, vocab_parallel=ranks)
    (of_temperature,) = torch.autograd.grad(tempered, temperature)
    smooth = {"label_smoothing": 0.1, "weight": classes, "z_loss_weight": 1e-2}
    return {
        **rows,
        "cross-entropy": linear_cross_entropy(input, weight, target, bias, **smooth, **options),
        "focal": linear_focal_loss(input, weight, target, bias, alpha=classes, vocab_parallel=ranks),
        "numbers": linear_cross_entropy_with_number_token_loss(
            *(input, weight, target, torch.tensor([*range(5), *[math.nan] * (VOCAB - 5)]).double()),
            linear_bias=bias,
            reweigh=True,
            **options,
        ),
        "decay": linear_power_law_decay_loss(input, weight, target, classes, linear_bias=bias, **options),
        "of temperature": of_temperature + 0.0 * (input.sum() + weight.sum() + bias.sum()),
        "chosen": rows["top_log_prob"].square().sum() + rows["sample_log_prob"].sum(),
    }


def results(given: dict[str, Tensor], columns: slice, ranks: VocabParallel | None) -> dict[str, list[Tensor]]:
    leaves = [given["input"].clone(), given["weight"][columns].clone(), given["bias"][columns].clone()]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    values = objectives(*leaves, given, ranks)
    differentiable = {name: value for name, value in values.items() if value.is_floating_point()}
    return {
        name: [value.detach(), *torch.autograd.grad(value.square().sum(), leaves, retain_graph=True)]
        for name, value in differentiable.items()
    } | {name: [value] for name, value in values.items() if name not in differentiable}


def one_rank(rank: int, world: int, folder: str) -> None:
    given = problem()
    ranks = VocabParallel.even(VOCAB)
    torch.save((ranks.columns, results(given, ranks.columns, ranks)), f"{folder}/{rank}.pt")
    if world == 2:
        torch.save(of_dtensor(given), f"{folder}/dtensor{rank}.pt")


def of_dtensor(given: dict[str, Tensor]) -> list[Tensor]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    weight = distribute_tensor(given["weight"], mesh, [Shard(0)]).requires_grad_()
    bias = distribute_tensor(given["bias"], mesh, [Shard(0)]).requires_grad_()
    input = given["input"].clone().requires_grad_()
    loss = linear_cross_entropy(input, weight, given["target"], bias, softcap=4.0)
    loss.backward()
    whole = distribute_tensor(given["weight"], mesh, [Replicate()])
    same = linear_cross_entropy(input, whole, given["target"], given["bias"], softcap=4.0)
    with pytest.raises(ValueError, match=r"wanted Shard\(0\), over the vocabulary"):
        linear_cross_entropy(input, distribute_tensor(given["weight"], mesh, [Shard(1)]), given["target"])
    return [loss.detach(), same.detach(), input.grad, weight.grad.full_tensor(), bias.grad.full_tensor()]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_equal_one_process(world: int, tmp_path: Any) -> None:
    run_ranks(one_rank, world, tmp_path, world, str(tmp_path))
    given = problem()
    alone = results(given, slice(0, VOCAB), None)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(world)]
    for name, (value, *gradients) in alone.items():
        for columns, part in parts:
            torch.testing.assert_close(part[name][0], value, msg=lambda text, n=name: f"{n}: {text}")
            if gradients:
                wanted = [gradients[0], gradients[1][columns], gradients[2][columns]]
                torch.testing.assert_close(part[name][1:], wanted, msg=lambda text, n=name: f"gradients of {n}: {text}")
    if world == 2:
        leaves = [given[name].clone().requires_grad_() for name in ("input", "weight", "bias")]
        loss = linear_cross_entropy(leaves[0], leaves[1], given["target"], leaves[2], softcap=4.0)
        wanted = [loss.detach(), loss.detach(), *torch.autograd.grad(loss, leaves)]
        for rank in range(2):
            torch.testing.assert_close(torch.load(tmp_path / f"dtensor{rank}.pt"), wanted)


def test_a_part_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="start is 8 and stop 12; wanted 0 <= start <= stop <= vocab_size"):
        VocabParallel(10, 8, 12)
