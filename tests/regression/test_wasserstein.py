"""Wasserstein distance over bins against SciPy, its gradient in closed form, and what it reduces to."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from torch import Tensor

from lossary.regression import wasserstein_bin_loss

SEED = st.integers(0, 10_000)
ORDER = st.sampled_from([1, 1.5, 2, 3])


def batch(seed: int, rows: int = 3, bins: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and increasing centres."""
    generator = torch.Generator().manual_seed(seed)
    input = 2 * torch.randn(rows, bins, generator=generator, dtype=torch.float64)
    target = torch.randint(bins, (rows,), generator=generator)
    return input, target, torch.rand(bins, generator=generator, dtype=torch.float64).cumsum(0) - 1


@given(SEED)
def test_order_one_is_scipys(seed: int) -> None:
    input, target, centers = batch(seed)
    y = batch(seed + 1)[0].softmax(1)
    points = wasserstein_bin_loss(input, target, centers, reduction="none")
    spread = wasserstein_bin_loss(input, y, centers, reduction="none")
    for row, q in enumerate(input.softmax(1).numpy()):
        at = [centers[target[row]].item()]
        assert points[row].item() == pytest.approx(wasserstein_distance(centers, at, q, [1.0]))
        assert spread[row].item() == pytest.approx(wasserstein_distance(centers, centers, q, y[row].numpy()))


@given(SEED, ORDER)
def test_any_order_is_the_quantile_coupling(seed: int, p: float) -> None:
    """Against the quantile functions of both distributions on a fine grid of levels."""
    input, _, centers = batch(seed, rows=1)
    y = batch(seed + 1, rows=1)[0].softmax(1)
    levels = (np.arange(20_000) + 0.5) / 20_000
    F_inverse, G_inverse = (
        centers.numpy()[np.searchsorted(d[0].cumsum(0).numpy(), levels).clip(max=5)] for d in (input.softmax(1), y)
    )
    expected = (np.abs(F_inverse - G_inverse) ** p).mean()
    assert wasserstein_bin_loss(input, y, centers, p=p).item() == pytest.approx(expected, rel=1e-2, abs=1e-5)


@given(SEED, ORDER, st.booleans())
def test_a_point_may_be_a_label_or_a_distribution(seed: int, p: float, root: bool) -> None:
    input, target, centers = batch(seed)
    one_hot = F.one_hot(target, 6).double()
    options = {"p": p, "root": root, "cross_entropy_weight": 0.3, "weight": torch.linspace(0.5, 2, 6).double()}
    torch.testing.assert_close(
        wasserstein_bin_loss(input, one_hot, centers, reduction="none", **options),
        wasserstein_bin_loss(input, target, centers, reduction="none", **options),
    )


@given(SEED, ORDER)
def test_gradient_in_closed_form(seed: int, p: float) -> None:
    input, target, centers = batch(seed)
    gradient, loss = torch.func.grad_and_value(
        lambda z: wasserstein_bin_loss(z, target, centers, p=p, reduction="sum")
    )(input)
    cost = (centers - centers[target].unsqueeze(1)).abs() ** p
    q = input.softmax(1)
    torch.testing.assert_close(loss, (q * cost).sum())
    torch.testing.assert_close(gradient, q * (cost - (q * cost).sum(1, keepdim=True)))
    torch.testing.assert_close(gradient.sum(1), torch.zeros(3, dtype=torch.float64))


@given(SEED, ORDER, st.floats(-5, 5), st.floats(0.1, 10))
def test_follows_shift_and_scale_of_the_centres(seed: int, p: float, shift: float, scale: float) -> None:
    input, target, centers = batch(seed)
    for t in (target, input.roll(1, 0).softmax(1)):
        moved = wasserstein_bin_loss(input, t, shift + scale * centers, p=p, root=True)
        torch.testing.assert_close(moved, scale * wasserstein_bin_loss(input, t, centers, p=p, root=True))


@given(SEED, ORDER)
def test_is_a_distance(seed: int, p: float) -> None:
    x, y, z = (batch(seed + k, rows=2)[0] for k in range(3))
    centers = batch(seed)[2]

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return wasserstein_bin_loss(a, b.softmax(1), centers, p=p, root=True, reduction="none")

    torch.testing.assert_close(distance(x, y), distance(y, x))
    assert (distance(x, x) < 1e-6).all()
    assert (distance(x, z) <= distance(x, y) + distance(y, z) + 1e-9).all()


@pytest.mark.parametrize("p", [1, 2])
def test_zero_only_at_a_point_on_the_target(p: int) -> None:
    """There the root's slope is infinite; its gradient is 0, not NaN."""
    input = torch.full((1, 4), -torch.inf, dtype=torch.float64).index_fill(1, torch.tensor([2]), 0.0).requires_grad_()
    loss = wasserstein_bin_loss(input, torch.tensor([2]), p=p, root=True)
    assert loss == 0
    (gradient,) = torch.autograd.grad(loss, input)
    assert (gradient == 0).all()
    assert wasserstein_bin_loss(input, torch.tensor([1]), p=p) == 1


def test_two_equidistant_bins_give_the_miss_probability() -> None:
    input = torch.randn(5, 2, dtype=torch.float64)
    target = torch.tensor([0, 1, 1, 0, 1])
    miss = 1 - input.softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(wasserstein_bin_loss(input, target, reduction="none"), miss)


@pytest.mark.parametrize(("p", "best"), [(1, 0), (2, 1)])
def test_the_best_single_prediction_is_the_median_or_the_mean(p: int, best: int) -> None:
    """Labels 0, 0, 2 on centres 0, 1, 3: the median is 0, the mean 1."""
    labels, centers = torch.tensor([0, 0, 2]), torch.tensor([0.0, 1.0, 3.0])
    vertices = torch.where(torch.eye(3, dtype=torch.bool), 0.0, -torch.inf)  # linear in q: best at a single bin
    losses = [wasserstein_bin_loss(z.expand(3, 3), labels, centers, p=p) for z in vertices]
    assert torch.stack(losses).argmin() == best
    uniform = torch.zeros(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(wasserstein_bin_loss(uniform.expand(3, 3), labels, centers, p=p), uniform)
    assert gradient.argmin() == best


def test_special_tokens_learn_by_cross_entropy() -> None:
    input, _, _ = batch(0, rows=4, bins=7)
    target = torch.tensor([0, 1, 3, 6])
    centers = torch.tensor([0.0, 1.0, 3.0, 4.0, 8.0], dtype=torch.float64)
    loss = wasserstein_bin_loss(input, target, centers, num_special_tokens=2, reduction="none")
    torch.testing.assert_close(loss[:2], F.cross_entropy(input[:2], target[:2], reduction="none"))
    torch.testing.assert_close(loss[2:], wasserstein_bin_loss(input[2:, 2:], target[2:] - 2, centers, reduction="none"))


def test_mixes_with_cross_entropy() -> None:
    input, target, centers = batch(0)
    mixed = wasserstein_bin_loss(input, target, centers, cross_entropy_weight=0.7)
    torch.testing.assert_close(
        mixed, wasserstein_bin_loss(input, target, centers) + 0.7 * F.cross_entropy(input, target)
    )


def test_distributions_go_through_gradcheck_compile_and_vmap() -> None:
    input, _, centers = batch(3)
    y = batch(4)[0].softmax(1)
    for p in (1, 2):
        call = lambda z, t, p=p: wasserstein_bin_loss(z, t, centers, p=p, reduction="none")  # noqa: E731
        assert torch.autograd.gradcheck(lambda z, call=call: call(z, y), input.clone().requires_grad_())
        torch.testing.assert_close(torch.func.vmap(call)(input, y), call(input, y))
        torch._dynamo.reset()
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(input, y), call(input, y))
    image = input.T.reshape(1, 6, 3)
    torch.testing.assert_close(
        wasserstein_bin_loss(image, y.T.reshape(1, 6, 3), centers, reduction="none")[0],
        wasserstein_bin_loss(input, y, centers, reduction="none"),
    )


def test_bad_arguments() -> None:
    input, target, centers = batch(0)
    with pytest.raises(ValueError, match=r"p is 0\.5; wanted"):
        wasserstein_bin_loss(input, target, p=0.5)
    with pytest.raises(ValueError, match=r"centers has shape \(5,\); wanted \(6,\)"):
        wasserstein_bin_loss(input, target, centers[:5])
    with pytest.raises(ValueError, match="num_special_tokens is 6; wanted 0 to 5"):
        wasserstein_bin_loss(input, target, num_special_tokens=6)
    with pytest.raises(ValueError, match="num_special_tokens is for class indices"):
        wasserstein_bin_loss(input, input.softmax(1), num_special_tokens=1)


def test_high_orders_do_not_overflow() -> None:
    input, target, spread = torch.zeros(1, 4), torch.tensor([0]), torch.tensor([[0.5, 0.0, 0.0, 0.5]])
    torch.testing.assert_close(wasserstein_bin_loss(input, target, p=200, root=True), torch.tensor(3 * 4 ** (-1 / 200)))
    assert wasserstein_bin_loss(input, spread, p=200, root=True).isfinite()


def test_the_order_may_be_a_tensor() -> None:
    input, target, centers = batch(0)
    y, orders = batch(1)[0].softmax(1), torch.tensor([1.0, 2.0, 2.5], dtype=torch.float64)
    for goal in (target, y):
        for root in (False, True):

            def loss(p: Tensor, goal: Tensor = goal, root: bool = root) -> Tensor:
                return wasserstein_bin_loss(input, goal, centers, p=p, root=root)

            expected = torch.stack(
                [wasserstein_bin_loss(input, goal, centers, p=p, root=root) for p in orders.tolist()]
            )
            torch.testing.assert_close(torch.func.vmap(loss)(orders), expected)


def test_centers_are_increasing_and_may_be_whole_numbers() -> None:
    input, target, _ = batch(0)
    torch.testing.assert_close(
        wasserstein_bin_loss(input, target, torch.arange(6)), wasserstein_bin_loss(input, target)
    )
    with pytest.raises(ValueError, match="centers fall at bin 2; wanted increasing"):
        wasserstein_bin_loss(input, target, torch.tensor([0.0, 2.0, 1.0, 3.0, 4.0, 5.0]))
