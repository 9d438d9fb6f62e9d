"""Histogram targets: what they sum to, decode to and reduce to, and where they go outside the interval."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.papers._memory import memory_of
from lossary.regression import (
    CategoricalValueHead,
    HLGaussLoss,
    TwoHotLoss,
    atom_mean,
    categorical_projection,
    categorical_td_loss,
    histogram_mean,
    hl_gauss_loss,
    hl_gauss_target,
    two_hot_loss,
    two_hot_target,
)

VALUE = st.floats(-3.0, 3.0, allow_subnormal=False)
BINS = st.integers(2, 40)
INTERVAL = {"min_value": -2.0, "max_value": 2.0}


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@given(VALUE, BINS, st.floats(0.1, 50.0))
def test_hl_gauss_is_the_renormalised_gaussian(y: float, bins: int, ratio: float) -> None:
    """Against differences of erf in float64, wherever these have digits."""
    width = 4.0 / bins
    edges = torch.linspace(-2, 2, bins + 1, dtype=torch.float64)
    cdf = torch.erf((edges - y) / (2**0.5 * ratio * width))
    mass, total = cdf.diff(), cdf[-1] - cdf[0]
    p = hl_gauss_target(one(y), num_bins=bins, sigma_ratio=ratio, **INTERVAL)[0]
    torch.testing.assert_close(p.sum(), torch.ones((), dtype=torch.float64))
    if total > 1e-6:
        torch.testing.assert_close(p, mass / total, atol=1e-9, rtol=1e-7)


@given(st.floats(-1.0, 1.0), st.floats(0.5, 1.0), st.integers(20, 60))
def test_hl_gauss_decodes_interior_values(y: float, ratio: float, bins: int) -> None:
    p = hl_gauss_target(one(y), num_bins=bins, sigma_ratio=ratio, **INTERVAL)
    assert (histogram_mean(p.log(), **INTERVAL) - y).abs() < 1e-2 * 4 / bins


@given(st.floats(-1.99, 1.99), BINS)
def test_hl_gauss_without_blur_is_cross_entropy_on_the_bin(y: float, bins: int) -> None:
    position = (y + 2) / 4 * bins
    if abs(position - round(position)) < 1e-3:
        return  # on an edge the mass is shared
    input = torch.randn(1, bins, generator=torch.Generator().manual_seed(bins), dtype=torch.float64)
    label = torch.tensor([int(position)])
    loss = hl_gauss_loss(input, one(y), sigma=1e-5, **INTERVAL)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(input, label))


def test_hl_gauss_at_the_ends_and_in_the_limits() -> None:
    edge = hl_gauss_target(one(2.0), num_bins=51, **INTERVAL)
    assert histogram_mean(edge.log(), **INTERVAL) < 2 - 4 / 51 / 2  # half a Gaussian: a documented bias
    flat = hl_gauss_target(one(0.7), num_bins=8, sigma=1e4, **INTERVAL)
    torch.testing.assert_close(flat, torch.full_like(flat, 1 / 8), atol=1e-6, rtol=0)
    middle = hl_gauss_target(one(0.0), num_bins=9, **INTERVAL)
    torch.testing.assert_close(middle, middle.flip(-1))


@pytest.mark.parametrize("y", [2.5, 5.0, 30.0, 1e4, 1e10, 1e30, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hl_gauss_far_outside_nears_the_edge_bin(y: float, dtype: torch.dtype) -> None:
    for sign, at in ((1, -1), (-1, 0)):
        p = hl_gauss_target(torch.tensor([sign * y], dtype=dtype), num_bins=10, **INTERVAL)[0]
        torch.testing.assert_close(p.sum(), torch.ones((), dtype=dtype))
        assert p[at] > (0.9 if y < 3 else 1 - 1e-6)
    clamped = hl_gauss_target(torch.tensor([y], dtype=dtype), num_bins=10, clamp=True, **INTERVAL)
    torch.testing.assert_close(clamped, hl_gauss_target(torch.tensor([2.0], dtype=dtype), num_bins=10, **INTERVAL))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hl_gauss_leaves_out_only_bins_without_a_share(dtype: torch.dtype) -> None:
    """A width that is a tensor is not known beforehand, so that all bins are computed."""
    y = torch.tensor([-1e4, -2.5, -2.0, -1.99, -1.0, 0.0, 0.013, 1.7, 2.0, 2.001, 3.0, torch.inf], dtype=dtype)
    input = torch.randn(len(y), 200, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for sigma in (0.003, 0.015, 0.05):
        some, whole = ({"sigma": sigma, **INTERVAL}, {"sigma": torch.tensor(sigma, dtype=torch.float64), **INTERVAL})
        here, there = (hl_gauss_target(y, num_bins=200, **given) for given in (some, whole))
        torch.testing.assert_close(here, there, rtol=0, atol=2 * torch.finfo(dtype).eps)
        here, there = (hl_gauss_loss(input, y, reduction="none", **given) for given in (some, whole))
        torch.testing.assert_close(here, there)


@given(VALUE, BINS)
def test_two_hot_decodes_exactly(y: float, bins: int) -> None:
    p = two_hot_target(one(y), num_bins=bins, **INTERVAL)
    assert (p > 0).sum() <= 2
    torch.testing.assert_close(p.sum(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(atom_mean(p.log(), **INTERVAL), one(y).clamp(-2, 2))


def test_two_hot_on_an_atom_is_one_hot() -> None:
    atoms = torch.linspace(-2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(two_hot_target(atoms, num_bins=9, **INTERVAL), torch.eye(9, dtype=torch.float64))


@given(VALUE, st.floats(-5, 5), st.floats(0.1, 10.0), BINS)
def test_targets_follow_shift_and_scale(y: float, shift: float, scale: float, bins: int) -> None:
    moved = {name: shift + scale * end for name, end in INTERVAL.items()}
    for target in (hl_gauss_target, two_hot_target):
        here = target(one(y), num_bins=bins, **INTERVAL)
        there = target(one(shift + scale * y), num_bins=bins, **moved)
        torch.testing.assert_close(here, there, atol=1e-8, rtol=1e-6)
    q = two_hot_target(one(y), num_bins=bins, **INTERVAL)
    torch.testing.assert_close(
        categorical_projection(q, one(0.3), one(0.9), **INTERVAL),
        categorical_projection(q, one(0.3 * scale + 0.1 * shift), one(0.9), **moved),
        atol=1e-8,
        rtol=1e-6,
    )


@given(VALUE, BINS, st.integers(0, 1000))
def test_gradient_and_minimum(y: float, bins: int, seed: int) -> None:
    """The gradient is softmax - p, and the least loss the entropy of p."""
    input = torch.randn(1, bins, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for loss, target in ((hl_gauss_loss, hl_gauss_target), (two_hot_loss, two_hot_target)):
        p = target(one(y), num_bins=bins, **INTERVAL)
        gradient = torch.func.grad(lambda z, loss=loss: loss(z, one(y), **INTERVAL))(input)
        torch.testing.assert_close(gradient, input.softmax(1) - p)
        torch.testing.assert_close(loss(p.log(), one(y), **INTERVAL), -torch.special.xlogy(p, p).sum())


@given(VALUE, st.floats(0.0, 1.0), BINS)
def test_projection(r: float, discount: float, bins: int) -> None:
    q = torch.randn(1, bins, generator=torch.Generator().manual_seed(bins), dtype=torch.float64).softmax(1)
    torch.testing.assert_close(
        categorical_projection(q, one(r), one(0.0), **INTERVAL), two_hot_target(one(r), num_bins=bins, **INTERVAL)
    )
    p = categorical_projection(q, one(r), one(discount), **INTERVAL)
    torch.testing.assert_close(p.sum(), torch.ones((), dtype=torch.float64))
    small = one(0.5 * r * (1 - discount))  # |r| + discount x 2 <= 2: nothing is clipped
    p = categorical_projection(q, small, one(discount), **INTERVAL)
    torch.testing.assert_close(atom_mean(p.log(), **INTERVAL), small + discount * atom_mean(q.log(), **INTERVAL))


def test_targets_carry_no_gradient() -> None:
    y = one(0.3).requires_grad_()
    q = torch.full((1, 5), 0.2, dtype=torch.float64, requires_grad=True)
    assert not hl_gauss_target(y, num_bins=5, **INTERVAL).requires_grad
    assert not two_hot_target(y, num_bins=5, **INTERVAL).requires_grad
    assert not categorical_projection(q, y, y, **INTERVAL).requires_grad


def test_nan_targets_stay_visible() -> None:
    nan, input = one(torch.nan), torch.zeros(1, 5, dtype=torch.float64)
    assert hl_gauss_loss(input, nan, **INTERVAL).isnan()
    assert two_hot_loss(input, nan, **INTERVAL).isnan()
    assert categorical_td_loss(input, input.softmax(1), nan, one(0.9), **INTERVAL).isnan()


def test_half_precision_targets_are_widened() -> None:
    half, exact = torch.tensor([0.7], dtype=torch.bfloat16), torch.tensor([0.69921875])
    for target in (hl_gauss_target, two_hot_target):
        p = target(half, num_bins=51, **INTERVAL)
        assert p.dtype == torch.float32
        torch.testing.assert_close(p, target(exact, num_bins=51, **INTERVAL))


@pytest.mark.parametrize("encoding", ["hl_gauss", "two_hot"])
@pytest.mark.parametrize("actions", [None, 3])
def test_value_head_learns(encoding: str, actions: int | None) -> None:
    torch.manual_seed(0)
    head = CategoricalValueHead(4, -2.0, 2.0, 21, out_features=actions, encoding=encoding)
    x = torch.randn(64, 4)
    y = (0.5 * x[:, 0]).clamp(-1.5, 1.5)
    if actions:
        y = y.unsqueeze(1).expand(-1, actions)
    optimizer = torch.optim.Adam(head.parameters(), 0.1)
    for _ in range(150):
        optimizer.zero_grad()
        head.loss(head(x), y).backward()
        optimizer.step()
    assert (head.decode(head(x)) - y).abs().mean() < 0.15


def test_bad_arguments() -> None:
    input, y = torch.zeros(2, 5), torch.zeros(2)
    with pytest.raises(ValueError, match=r"the interval is \[2.0, -2.0\]; wanted min_value < max_value"):
        hl_gauss_loss(input, y, min_value=2.0, max_value=-2.0)
    with pytest.raises(ValueError, match="input has 5 bins on its last axis; wanted num_bins=7"):
        hl_gauss_loss(input, y, num_bins=7, **INTERVAL)
    with pytest.raises(ValueError, match="sigma is 0"):
        hl_gauss_loss(input, y, sigma=0.0, **INTERVAL)
    with pytest.raises(ValueError, match="there are 1 bins; wanted at least 2"):
        two_hot_loss(input[:, :1], y, **INTERVAL)
    with pytest.raises(TypeError, match=r"target has dtype torch\.int64"):
        two_hot_loss(input, y.long(), **INTERVAL)
    with pytest.raises(ValueError, match=r"discount has shape \(3,\); wanted \(2,\)"):
        categorical_td_loss(input, input.softmax(1), y, torch.zeros(3), **INTERVAL)
    with pytest.raises(ValueError, match="num_bins is None"):
        HLGaussLoss(-1.0, 1.0).target(y)
    with pytest.raises(ValueError, match="num_bins is None"):
        TwoHotLoss(-1.0, 1.0).target(y)
    with pytest.raises(ValueError, match="encoding is 'c51'"):
        CategoricalValueHead(4, -1.0, 1.0, encoding="c51")


def test_projection_needs_the_memory_of_its_input() -> None:
    """Not that of all pairs of atoms, 12 GB here."""
    next_probs = torch.randn(100, 4000).softmax(-1)
    reward, discount = torch.randn(100), torch.rand(100)

    def project() -> Tensor:
        return categorical_projection(next_probs, reward, discount, min_value=-3.0, max_value=3.0)

    torch.testing.assert_close(project().sum(-1), torch.ones(100))
    assert memory_of(project).peak < 40 * 4 * next_probs.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [1e3, 1e6, 1e12, 1e300])
def test_hl_gauss_of_a_wide_gaussian_is_uniform(sigma: float, dtype: torch.dtype) -> None:
    """In float32 shares were differences of numbers near 1."""
    p = hl_gauss_target(torch.tensor([0.3, -2.0, 2.0], dtype=dtype), num_bins=7, sigma=sigma, **INTERVAL)
    assert p.dtype == dtype
    torch.testing.assert_close(p, torch.full_like(p, 1 / 7), rtol=1e-5, atol=0)


def test_a_discount_may_be_one_number() -> None:
    q, reward = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]]), torch.tensor([0.1, -0.2])
    wanted = categorical_projection(q, reward, torch.full((2,), 0.9), **INTERVAL)
    for discount in (0.9, torch.tensor(0.9)):
        torch.testing.assert_close(categorical_projection(q, reward, discount, **INTERVAL), wanted)
        assert categorical_td_loss(q, q, reward, discount, **INTERVAL).isfinite()


def test_an_endless_interval_says_so() -> None:
    with pytest.raises(ValueError, match="max_value is inf"):
        hl_gauss_loss(torch.zeros(1, 4), torch.zeros(1), min_value=0.0, max_value=torch.inf)
