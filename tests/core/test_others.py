"""Log-odds and margins of a class: both ends, what is missing, and a derivative that agrees with the formula's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lossary.classification import focal_loss, normalized_focal_loss, sigmoid_focal_loss
from lossary.core import others

SHAPES = [((5, 7), 1), ((3, 4, 2, 2), 1), ((2, 3, 6), 2), ((6,), 0)]


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("function", [others.log_odds, others.margin])
def test_the_derivative_written_out_is_that_of_the_formula(function, shape, dim) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
    label = torch.randint(shape[dim], [1 if axis == dim else n for axis, n in enumerate(shape)], generator=generator)
    value = function(logits, label, dim)
    (gradient,) = torch.autograd.grad(value.sin().sum(), logits)
    formula = torch.func.grad(lambda z: function(z, label, dim).sin().sum())(logits.detach())
    torch.testing.assert_close(gradient, formula)
    assert torch.autograd.gradcheck(lambda z: function(z, label, dim), logits)
    assert torch.autograd.gradgradcheck(lambda z: function(z, label, dim), logits)
    _, tangent = torch.func.jvp(lambda z: function(z, label, dim), (logits.detach(),), (torch.ones_like(logits),))
    torch.testing.assert_close(tangent, torch.zeros_like(tangent))  # both ignore what all logits share


def test_log_odds_give_both_logs_at_both_ends() -> None:
    logits = torch.tensor([[40.0, 0.0, 0.0], [-40.0, 0.0, 0.0], [18.0, 0.0, -200.0]])
    odds = others.log_odds(logits, torch.zeros(3, 1, dtype=torch.long), 1)
    for row, found in zip(logits.tolist(), odds, strict=True):
        own, rest = math.exp(row[0]), math.fsum(map(math.exp, row[1:]))
        assert F.logsigmoid(found).item() == pytest.approx(-math.log1p(rest / own), rel=1e-5)
        assert F.logsigmoid(-found).item() == pytest.approx(-math.log1p(own / rest), rel=1e-5)


@pytest.mark.parametrize("function", [others.log_odds, others.margin])
def test_excluded_classes(function) -> None:
    logits = torch.tensor([[1.0, -math.inf], [-math.inf, 1.0], [-math.inf, -math.inf]])
    label = torch.zeros(3, 1, dtype=torch.long)
    for value in (function(logits, label, 1), torch.func.vmap(lambda z, t: function(z, t, 0))(logits, label)):
        assert value[0] == math.inf
        assert value[1] == -math.inf
        assert value[2].isnan()


def test_several_best_share_the_gradient_of_a_margin() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(others.margin(logits, torch.tensor([[1]]), 1), logits)
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, 1.0, -0.5]]))


@pytest.mark.parametrize(
    "objective",
    [
        focal_loss,
        normalized_focal_loss,
        lambda z, t: sigmoid_focal_loss(z, (t.unsqueeze(-1) == torch.arange(5)).float()),
    ],
)
def test_transforms_within_compile(objective) -> None:
    logits, label = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(18).reshape(3, 6) % 5
    for transformed in (
        torch.func.vmap(torch.func.grad(objective)),
        torch.func.vmap(objective),
        torch.func.grad(lambda z, t: objective(z[0], t[0])),
    ):
        compiled = torch.compile(transformed, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(logits, label), transformed(logits, label))
