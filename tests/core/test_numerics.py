"""Values against exact arithmetic; gradients finite at the ends."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary.core import numerics


@given(st.floats(-700, -1e-300))
def test_log1mexp(x: float) -> None:
    value = numerics.log1mexp(torch.tensor(x, dtype=torch.float64))
    exact = math.log1p(-math.exp(x)) if x < -1 else math.log(-math.expm1(x))
    assert value.item() == pytest.approx(exact, rel=1e-13)


def test_log1mexp_ends() -> None:
    value = numerics.log1mexp(torch.tensor([0.0, -math.inf, -1e-30]))
    assert value[0] == -math.inf
    assert value[1] == 0
    assert value[2].item() == pytest.approx(math.log(1e-30))
    x = torch.tensor([-math.inf, -1e-30, -1e30], requires_grad=True)
    (gradient,) = torch.autograd.grad(numerics.log1mexp(x).sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -1e30, 0.0]))


def test_logsumexp_of_nothing() -> None:
    x = torch.tensor([[-math.inf, -math.inf], [0.0, -math.inf], [1.0, 2.0]], requires_grad=True)
    value = numerics.logsumexp(x, 1)
    torch.testing.assert_close(value, torch.logsumexp(x, 1))
    value[1:].sum().backward()
    torch.testing.assert_close(
        x.grad, torch.tensor([[0.0, 0.0], [1.0, 0.0], [1 / (1 + math.e), math.e / (1 + math.e)]])
    )


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 3.0])
def test_exp_scaled(power: float, tensor: bool) -> None:
    log_x = torch.tensor([0.0, -1.0, -200.0, -math.inf], dtype=torch.float64, requires_grad=True)
    value = numerics.exp_scaled(log_x, torch.tensor(power, dtype=torch.float64) if tensor else power)
    torch.testing.assert_close(value, torch.exp(log_x.detach()) ** power, rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad((value + log_x.clamp(min=-1e3)).sum(), log_x)
    torch.testing.assert_close(gradient, power * value.detach() + (log_x.detach() >= -1e3))


def test_exp_scaled_gradient_in_the_power() -> None:
    log_x = torch.tensor([-1.0, -math.inf])
    power = torch.tensor(0.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(numerics.exp_scaled(log_x, power).sum(), power)
    assert gradient.item() == -1


def test_product_silences_infinities() -> None:
    x = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    y = torch.tensor([math.inf, -math.inf, 3.0], requires_grad=True)
    value = numerics.product(x, y)
    assert value.tolist() == [0, -math.inf, 6]
    by_x, by_y = torch.autograd.grad(value, (x, y), torch.tensor([1.0, 0.0, 1.0]))
    assert by_x.tolist() == [0, 0, 3]
    assert by_y.tolist() == [0, 0, 2]


def test_logaddexp_of_nothing() -> None:
    x = torch.tensor([-math.inf, 0.0], requires_grad=True)
    value = numerics.logaddexp(x, torch.tensor([-math.inf, 0.0]))
    assert value.tolist() == [-math.inf, pytest.approx(math.log(2))]
    assert torch.autograd.grad(value[1], x)[0].tolist() == [0, 0.5]
