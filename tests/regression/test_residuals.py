"""Log-cosh, reverse Huber and quantile loss: limits, gradients, minimisers."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lossary.regression import berhu_loss, log_cosh_loss, quantile_loss

NUMBERS = st.floats(-50, 50, allow_subnormal=False)


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@given(NUMBERS)
def test_log_cosh_is_its_definition_with_the_gradient_tanh(residual: float) -> None:
    e = one(residual)
    torch.testing.assert_close(log_cosh_loss(e, one(0.0)), e.cosh().log()[0], rtol=1e-9, atol=1e-12)
    gradient = torch.func.grad(lambda x: log_cosh_loss(x, one(0.0)))(e)
    torch.testing.assert_close(gradient, e.tanh())


@given(st.floats(1e-12, 1e-3))
def test_small_residuals_are_squared(residual: float) -> None:
    """In float32 too, where |e| + log1p(exp(-2 |e|)) - log 2 cancels to nothing."""
    value = log_cosh_loss(torch.tensor([residual]), torch.tensor([0.0]))
    assert value.item() == pytest.approx(residual**2 / 2, rel=1e-5)


@pytest.mark.parametrize("residual", [90.0, 1e4, 1e30])
def test_large_residuals_are_absolute(residual: float) -> None:
    value = log_cosh_loss(torch.tensor([residual]), torch.tensor([0.0]))
    assert value.item() == pytest.approx(residual - math.log(2), rel=1e-6)


@given(NUMBERS, st.floats(0.01, 20))
def test_berhu_is_continuous_and_above_both_parts(residual: float, threshold: float) -> None:
    e, zero = one(residual), one(0.0)
    value = berhu_loss(e, zero, threshold=threshold)
    assert value >= abs(residual) - 1e-12
    torch.testing.assert_close(berhu_loss(one(threshold), zero, threshold=threshold), one(threshold)[0])
    slope = torch.func.grad(lambda x: berhu_loss(x, zero, threshold=threshold))(e).item()
    assert slope == pytest.approx(math.copysign(max(1.0, abs(residual) / threshold), residual) if residual else 0.0)


@given(st.lists(NUMBERS, min_size=2, max_size=6))
def test_the_median_is_half_the_absolute_error(values: list[float]) -> None:
    input = torch.tensor(values, dtype=torch.float64)
    target = input.flip(0)
    torch.testing.assert_close(quantile_loss(input, target, quantile=0.5), F.l1_loss(input, target) / 2)


@given(st.floats(0.01, 0.99), st.integers(1, 30))
def test_the_best_constant_is_the_empirical_quantile(q: float, size: int) -> None:
    target = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    best = min(target, key=lambda c: quantile_loss(c.expand(size), target, quantile=q))
    below, upto = (target < best).double().mean(), (target <= best).double().mean()
    assert below <= q + 1e-9
    assert upto >= q - 1e-9


def test_several_quantiles_are_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(5, 4, 3, generator=generator)
    target = torch.randn(5, 4, generator=generator)
    quantiles = [0.1, 0.5, 0.9]
    weight = torch.arange(5.0)
    together = quantile_loss(input, target, quantile=quantiles, reduction="none")
    for place, q in enumerate(quantiles):
        alone = quantile_loss(input[..., place], target, quantile=q, reduction="none")
        torch.testing.assert_close(together[..., place], alone)
    expected = (together * weight[:, None, None]).sum() / (weight.sum() * 12)
    for given_weight in (weight, weight[:, None].expand(5, 4)):
        value = quantile_loss(input, target, quantile=torch.tensor(quantiles), sample_weight=given_weight)
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    ("quantile", "message"),
    [
        (0.0, "quantile is 0.0"),
        ([0.5, 1.0], r"wanted numbers in \(0, 1\)"),
        ([0.1, 0.9], "target has shape"),
        (torch.full((1, 2), 0.5), r"quantile has shape \(1, 2\)"),
    ],
)
def test_bad_quantiles(quantile: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantile_loss(torch.zeros(3), torch.zeros(3), quantile=quantile)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold is 0"):
        berhu_loss(torch.zeros(3), torch.zeros(3), threshold=0)
