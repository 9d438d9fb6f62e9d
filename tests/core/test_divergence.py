"""What compiled code has gradients written out for equals the formula, infinities and ignored rows included."""

import math

import pytest
import torch

from lossary.core.rows import ClassRows, class_rows

FORMULAS = {
    "cross_entropy_under": lambda rows, other: rows.cross_entropy_under(other),
    "kl_from": lambda rows, other: rows.kl_from(other),
    "one_vs_rest": lambda rows, other: rows.one_vs_rest(),
    "margin": lambda rows, other: rows.margin(),
    "margin_shift": lambda rows, other: rows.margin_shift(other),
    "log_p_of_scaled": lambda rows, other: rows.log_p_of_scaled(rows.logits, other.sigmoid().mean(1, keepdim=True)),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("hazard", ["none", "large", "ignored"])
def test_compiled_equals_the_formula(name: str, hazard: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, 3, 1, 2, 2])
    if hazard == "large":
        logits[0], other[0] = torch.tensor([1e4, 0.0, -1e4, 3.0]), torch.tensor([1e4, -50.0, -1e4, 3.0])
        logits[1], other[1] = -60 * logits[1], 60 * other[1]
    elif hazard == "ignored":
        logits[1], target[1] = math.nan, -100
        other[1, 2] = math.inf

    def loss(logits: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        rows: ClassRows = class_rows(logits, target)
        return rows.reduce(FORMULAS[name](rows, other).reshape(target.shape), reduction="mean", normalizer=None)

    torch._dynamo.reset()
    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_() for x in (logits, other)]
        value = function(*leaves)
        found.append((value, torch.autograd.grad(value, leaves, allow_unused=True)))
    torch.testing.assert_close(*(value for value, _ in found))
    for ours, theirs in zip(*(gradients for _, gradients in found), strict=True):
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs)
