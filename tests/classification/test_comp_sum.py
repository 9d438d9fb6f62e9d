"""Comp-sum losses: the losses they contain, their gradient, their bounds by brute force, and the adversarial form."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor, nn

from lossary.classification import (
    AdversarialCompSum,
    comp_sum_bound,
    comp_sum_loss,
    comp_sum_minimal_risk,
    comp_sum_transform,
    generalized_cross_entropy_loss,
    margin_vector,
    mean_absolute_error_loss,
    pgd_attack,
    smooth_adversarial_comp_sum_loss,
)
from tests.classification.strategies import class_batches

TAU = st.floats(0.0, 3.0)
TAUS = (0.0, 0.3, 0.9, 0.999, 1.0, 1.001, 1.5, 1.9, 2.0, 3.0)


@given(class_batches())
def test_members_of_the_family(batch: tuple[Tensor, Tensor]) -> None:
    input, target = batch
    weight = torch.linspace(0.5, 2.0, input.shape[1], dtype=torch.float64)
    options = {"weight": weight, "label_smoothing": 0.2}
    torch.testing.assert_close(comp_sum_loss(input, target, **options), F.cross_entropy(input, target, **options))
    torch.testing.assert_close(comp_sum_loss(input, target, tau=2.0), mean_absolute_error_loss(input, target))
    torch.testing.assert_close(
        comp_sum_loss(input, target, tau=1.7), generalized_cross_entropy_loss(input, target, q=0.7)
    )
    gaps = (input - input.gather(1, target[:, None])).exp().sum(1) - 1
    torch.testing.assert_close(
        comp_sum_loss(input, target, tau=0.0, reduction="none"), gaps, rtol=1e-7, atol=1e-6 * input.shape[1]
    )


@given(class_batches(), TAU)
def test_gradient_is_that_of_cross_entropy_times_a_power(batch: tuple[Tensor, Tensor], tau: float) -> None:
    input, target = batch
    p = input.softmax(1)
    p_y = p.gather(1, target[:, None])
    gradient = torch.func.grad(lambda z: comp_sum_loss(z, target, tau=tau, reduction="sum"))(input)
    torch.testing.assert_close(gradient, p_y ** (tau - 1) * (p - F.one_hot(target, input.shape[1])))
    torch.testing.assert_close(gradient.sum(1) / (1 + gradient.abs().sum(1)), torch.zeros(len(input)).double())


@given(class_batches(bound=5.0), TAU, st.floats(0.0, 1.0))
def test_falls_in_tau_and_is_bounded_above_one(batch: tuple[Tensor, Tensor], tau: float, more: float) -> None:
    input, target = batch
    lower, upper = (comp_sum_loss(input, target, tau=t, reduction="none") for t in (tau + more, tau))
    assert (lower <= upper * (1 + 1e-12) + 1e-12).all()
    assert tau <= 1 or (upper <= 1 / (tau - 1)).all()


def test_tau_is_smooth_at_one() -> None:
    """Value and slope, also where tau is learned and sits at exactly 1."""
    input, target = torch.tensor([[3.0, -1.0, 0.5], [0.0, 40.0, 1.0]], dtype=torch.float64), torch.tensor([1, 0])
    value_and_slope = torch.func.grad_and_value(lambda tau: comp_sum_loss(input, target, tau=tau))
    slope, value = value_and_slope(torch.tensor(1.0, dtype=torch.float64))
    log_p = input.log_softmax(1).gather(1, target[:, None])
    torch.testing.assert_close(slope, -log_p.square().mean() / 2)
    for tau in (1 - 1e-7, 1 + 1e-7):
        near = comp_sum_loss(input, target, tau=torch.tensor(tau, dtype=torch.float64))
        torch.testing.assert_close(near, value + (tau - 1) * slope, rtol=1e-9, atol=0)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("tau", [1.0, 1.001, 1.5, 2.0, 3.0])
def test_an_impossible_label_has_its_limit(tau: float, as_tensor: bool) -> None:
    input = torch.tensor([[-torch.inf, 0.0, 1.0]], requires_grad=True)
    value = comp_sum_loss(input, torch.tensor([0]), tau=torch.tensor(tau) if as_tensor else tau)
    assert value.item() == (pytest.approx(1 / (tau - 1), rel=1e-4) if tau > 1 else math.inf)
    if tau > 1:
        value.backward()
        assert (input.grad == 0).all()


# --- the bounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", TAUS)
def test_transform_is_zero_at_zero_increasing_and_convex(tau: float) -> None:
    beta = np.linspace(0, 1, 201)
    value = comp_sum_transform(beta, tau, 7)
    assert value[0] == 0
    assert (np.diff(value) > 0).all()
    assert (np.diff(value, 2) > -1e-12).all()
    torch.testing.assert_close(comp_sum_transform(torch.tensor(beta), tau, 7), torch.tensor(value))
    assert comp_sum_transform(0.5, tau, 7) == pytest.approx(value[100])
    np.testing.assert_allclose(comp_sum_bound(value, tau, 7), beta, atol=1e-9)
    assert comp_sum_bound(1e9, tau, 7) == 1


def test_transform_is_continuous_in_tau() -> None:
    beta = np.linspace(0.01, 1, 100)
    at_one = (1 + beta) / 2 * np.log1p(beta) + np.where(
        beta < 1, (1 - beta) / 2 * np.log1p(-np.minimum(beta, 0.999)), 0
    )
    keep = (beta <= 0.999) | (beta == 1)
    np.testing.assert_allclose(comp_sum_transform(beta, 1.0, 5)[keep], at_one[keep], rtol=1e-9)
    for tau in (1 - 1e-9, 1 + 1e-9, 0.9 - 1e-12, 1.1 + 1e-12):
        nearest = min((1.0, 0.9, 1.1), key=lambda x: abs(x - tau))
        np.testing.assert_allclose(comp_sum_transform(beta, tau, 5), comp_sum_transform(beta, nearest, 5), rtol=1e-7)
    np.testing.assert_allclose(comp_sum_transform(beta, 2 - 1e-6, 5), comp_sum_transform(beta, 2.0, 5), rtol=1e-4)


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("beta", [np.float32(0.5), np.float64(0.5), np.full(2, 0.5, np.float32), torch.full((2,), 0.5)])
def test_transform_gives_back_what_came(tau: float, beta: Any) -> None:
    value = comp_sum_transform(beta, tau, 3)
    assert type(value) is type(beta)
    assert value.dtype == beta.dtype
    np.testing.assert_allclose(value, comp_sum_transform(0.5, tau, 3), rtol=1e-6)


@pytest.mark.parametrize("tau", [0.0, 0.4, 0.95, 1.0])
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_transform_is_the_least_regret_of_two_classes(tau: float, beta: float) -> None:
    """With label probabilities (1 +- beta) / 2 the cheapest wrong scores, a tie, cost T more than the best scores."""
    q = torch.tensor([(1 + beta) / 2, (1 - beta) / 2], dtype=torch.float64)

    def risk(gap: float) -> float:
        input = torch.tensor([[gap, 0.0], [gap, 0.0]], dtype=torch.float64)
        return float(q @ comp_sum_loss(input, torch.tensor([0, 1]), tau=tau, reduction="none"))

    best = optimize.minimize_scalar(risk, bounds=(0, 20), method="bounded", options={"xatol": 1e-10}).fun
    assert best == pytest.approx(float(comp_sum_minimal_risk(q, tau=tau)), abs=1e-8)
    assert risk(0.0) - best == pytest.approx(comp_sum_transform(beta, tau, 2), abs=1e-8)


@given(class_batches(bound=3.0), st.sampled_from(TAUS))
def test_bound_holds(batch: tuple[Tensor, Tensor], tau: float) -> None:
    """For any scores and label probabilities: excess error <= Gamma(excess loss)."""
    input, _ = batch
    classes = input.shape[1]
    q = input.roll(1, 1).softmax(1)
    scores = input[:1].expand(classes, -1)
    losses = comp_sum_loss(scores, torch.arange(classes), tau=tau, reduction="none")
    excess = q @ losses - comp_sum_minimal_risk(q, tau=tau)
    assert (excess >= -1e-9).all()
    error_excess = q.amax(1) - q[:, input[0].argmax()]
    assert (error_excess <= comp_sum_bound(excess.clamp(min=0), tau, classes) + 1e-6).all()


# --- adversarial ----------------------------------------------------------------------------------------------------


@given(class_batches(bound=4.0), TAU, st.floats(0.5, 3.0))
def test_smooth_loss_bounds_the_worst_margin_loss(batch: tuple[Tensor, Tensor], tau: float, rho: float) -> None:
    input, target = batch
    moved = input + 0.7 * input.roll(1, 1).sin()
    smooth = smooth_adversarial_comp_sum_loss(input, moved, target, tau=tau, rho=rho, reduction="none")
    margins = (1 - margin_vector(moved, target) / rho).clamp(0, 1).sum(1)
    worst = margins.log1p() if tau == 1 else torch.expm1((1 - tau) * margins.log1p()) / (1 - tau)
    assert (smooth >= worst - 1e-9).all()
    unmoved = smooth_adversarial_comp_sum_loss(input, input, target, tau=tau, rho=rho)
    torch.testing.assert_close(unmoved, comp_sum_loss(input / rho, target, tau=tau))


@given(class_batches(bound=4.0), st.floats(0.0, 3.0))
def test_penalty_is_the_norm_of_the_margins_shift(batch: tuple[Tensor, Tensor], nu: float) -> None:
    input, target = batch
    moved = input.flip(1)
    shift = (margin_vector(moved, target) - margin_vector(input, target)).norm(dim=1)
    smooth = smooth_adversarial_comp_sum_loss(input, moved, target, nu=nu, reduction="none")
    torch.testing.assert_close(smooth, F.cross_entropy(input, target, reduction="none") + nu * shift)


def test_margins_that_do_not_move_have_no_gradient() -> None:
    input = torch.randn(3, 4, requires_grad=True)
    still = input.detach().clone().requires_grad_()
    smooth_adversarial_comp_sum_loss(input, still, torch.tensor([0, 1, 2])).backward()
    assert (still.grad == 0).all()
    assert input.grad.isfinite().all()


def test_margin_vector_skips_the_label() -> None:
    input = torch.tensor([[1.0, 5.0, 2.0, 0.0]])
    for label, others in enumerate([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]):
        torch.testing.assert_close(margin_vector(input, torch.tensor([label])), input[:, [label]] - input[:, others])
    dense = input.reshape(1, 4, 1).expand(1, 4, 2)
    torch.testing.assert_close(
        margin_vector(dense, torch.tensor([[1, 3]])),
        torch.stack([margin_vector(input, torch.tensor([label])) for label in (1, 3)], 2),
    )


class Noisy(nn.Sequential):
    """A model whose training mode shows: it has dropout and batch statistics."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attack_stays_in_the_ball_and_raises_the_loss(norm: str) -> None:
    torch.manual_seed(0)
    model, x, y = Noisy(), torch.rand(16, 6), torch.randint(3, (16,))
    model[0].eval()  # modes differ within the model
    modes = [module.training for module in model.modules()]
    statistics = model[1].running_mean.clone()
    loss = lambda logits: F.cross_entropy(logits, y, reduction="none")  # noqa: E731
    options = {"epsilon": 0.3, "step_size": 0.1, "norm": norm, "clip_range": (0.0, 1.0)}
    worse = pgd_attack(model, x, loss, steps=10, generator=torch.Generator().manual_seed(1), **options)
    again = pgd_attack(model, x, loss, steps=10, generator=torch.Generator().manual_seed(1), **options)
    assert torch.equal(worse, again)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model[1].running_mean, statistics)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not worse.requires_grad
    assert (worse >= 0).all()
    assert (worse <= 1).all()
    distance = (worse - x).abs().amax(1) if norm == "linf" else (worse - x).norm(dim=1)
    assert (distance <= 0.3 + 1e-6).all()
    model.eval()
    with torch.no_grad():
        assert (loss(model(worse)) > loss(model(x))).float().mean() > 0.9
    start = pgd_attack(model, x, loss, steps=0, generator=torch.Generator().manual_seed(1), **options)
    assert not torch.equal(start, x)
    assert torch.equal(pgd_attack(model, x, loss, steps=0, random_start=False, **options), x)


def test_attack_of_a_linear_model_is_the_corner() -> None:
    weight = torch.tensor([1.0, -2.0, 0.5])
    x = torch.zeros(2, 3)
    corner = pgd_attack(lambda x: x @ weight, x, lambda z: z, epsilon=0.2, step_size=0.1, steps=5)
    torch.testing.assert_close(corner, 0.2 * weight.sign().expand(2, 3))
    pole = pgd_attack(lambda x: x @ weight, x, lambda z: z, epsilon=0.2, step_size=0.1, steps=40, norm="l2")
    torch.testing.assert_close(pole, 0.2 * (weight / weight.norm()).expand(2, 3), atol=1e-3, rtol=0)
    end = pgd_attack(lambda x: -x, torch.zeros(2), lambda z: z, epsilon=0.2, step_size=0.1, steps=5, norm="l2")
    torch.testing.assert_close(end, torch.full((2,), -0.2))  # an input may be one number


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -1.0}, "epsilon is -1.0"),
        ({"steps": -1}, "steps is -1"),
        ({"norm": "l1"}, "norm is 'l1'; wanted 'linf' or 'l2'"),
        ({"clip_range": (1.0, 0.0)}, "clip_range"),
    ],
)
def test_attack_refuses(options: dict, message: str) -> None:
    arguments = {"epsilon": 0.1, "step_size": 0.1, "steps": 1, **options}
    with pytest.raises(ValueError, match=message):
        pgd_attack(nn.Linear(2, 2), torch.zeros(1, 2), lambda z: z, **arguments)


def test_adversarial_training_step() -> None:
    torch.manual_seed(0)
    model, x, y = Noisy(), torch.rand(16, 6), torch.randint(3, (16,))
    generator = torch.Generator().manual_seed(1)
    trainer = AdversarialCompSum(model, epsilon=0.2, step_size=0.05, steps=8, clip_range=(0, 1), generator=generator)
    perturbed = trainer.perturb(x, y)
    assert ((perturbed - x).abs() <= 0.2 + 1e-6).all()
    model.eval()
    with torch.no_grad():
        clean = margin_vector(model(x), y)
        shift = (margin_vector(model(perturbed), y) - clean).norm(dim=1)
        random = x + 0.2 * (2 * torch.rand(x.shape) - 1)
        by_chance = (margin_vector(model(random.clamp(0, 1)), y) - clean).norm(dim=1)
    assert (shift > by_chance).float().mean() > 0.9
    model.train()
    trainer.loss(x, y).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="tau is -1"):
        comp_sum_loss(torch.zeros(1, 2), torch.tensor([0]), tau=-1)
    with pytest.raises(ValueError, match="beta has values outside"):
        comp_sum_transform(1.5, 1.0, 3)
    with pytest.raises(ValueError, match="num_classes is 1"):
        comp_sum_transform(0.5, 1.0, 1)
    with pytest.raises(ValueError, match="adversarial_input has shape"):
        smooth_adversarial_comp_sum_loss(torch.zeros(1, 2), torch.zeros(2, 2), torch.tensor([0]))
