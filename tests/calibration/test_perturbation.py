"""ASLP: what the loss reduces to, its draws, the rule of the levels and what keeps them."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.calibration import (
    AdaptiveLabelPerturbation,
    SelfCalibratingBCELoss,
    adaptive_label_perturbation_loss,
    adaptive_perturbation_update,
    label_smoothing_target,
    self_calibrating_bce_loss,
    stochastic_label_perturbation,
)
from tests.classification.strategies import label_batches

Batch = tuple[Tensor, Tensor]
BETA = st.floats(0.1, 4.0)
LEVEL = st.floats(0.0, 1.0)


def maps(rows: int = 4, scale: float = 2.0, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    input = scale * torch.randn(rows, 1, 3, 3, generator=generator, dtype=torch.float64)
    return input, torch.randint(2, input.shape, generator=generator).double()


# --- the loss -------------------------------------------------------------------------------------------------------


@given(label_batches(soft=True), BETA)
def test_without_perturbation_it_is_binary_cross_entropy(batch: Batch, beta: float) -> None:
    input, y = batch
    torch.testing.assert_close(
        self_calibrating_bce_loss(input, y, 0.0, beta=beta), F.binary_cross_entropy_with_logits(input, y)
    )


@given(label_batches(), BETA, LEVEL)
def test_it_is_cross_entropy_and_a_pull_to_one_half(batch: Batch, beta: float, alpha: float) -> None:
    input, y = batch
    strength = alpha * beta
    pull = F.softplus(input) + F.softplus(-input)  # -log(p (1 - p))
    expected = (1 - 2 * strength) * F.binary_cross_entropy_with_logits(input, y, reduction="none") + strength * pull
    value = self_calibrating_bce_loss(input, y, alpha, beta=beta, reduction="none")
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(value, self_calibrating_bce_loss(input, y, strength / 8, beta=8.0, reduction="none"))


@given(label_batches(), BETA, LEVEL)
def test_gradient_is_probability_less_expected_label(batch: Batch, beta: float, alpha: float) -> None:
    input, y = batch
    gradient = torch.func.grad(lambda z: self_calibrating_bce_loss(z, y, alpha, beta=beta, reduction="sum"))(input)
    torch.testing.assert_close(gradient, input.sigmoid() - ((1 - 2 * alpha * beta) * y + alpha * beta))


@given(label_batches(soft=True), LEVEL)
def test_certain_and_mild_perturbation_is_label_smoothing(batch: Batch, epsilon: float) -> None:
    input, y = batch
    smooth = label_smoothing_target(y, epsilon)
    torch.testing.assert_close(smooth, (1 - epsilon) * y + epsilon / 2)
    torch.testing.assert_close(
        self_calibrating_bce_loss(input, y, 1.0, beta=epsilon / 2), F.binary_cross_entropy_with_logits(input, smooth)
    )
    torch.testing.assert_close(stochastic_label_perturbation(y, 1.0, beta=epsilon / 2), smooth)


def test_half_strength_teaches_one_half() -> None:
    z = torch.zeros(2, dtype=torch.float64)
    y = torch.tensor([1.0, 0.0], dtype=torch.float64)
    gradient = torch.func.grad(lambda z: self_calibrating_bce_loss(z, y, 0.25, beta=2.0))(z)
    torch.testing.assert_close(gradient, torch.zeros(2, dtype=torch.float64))


def test_minimum_is_the_expected_confidence() -> None:
    y = torch.ones(1, dtype=torch.float64)
    z = torch.tensor([0.9], dtype=torch.float64).logit()
    gradient = torch.func.grad(lambda z: self_calibrating_bce_loss(z, y, 0.05, beta=2.0))(z)
    torch.testing.assert_close(gradient, torch.zeros_like(z), atol=1e-12, rtol=0)


def test_mean_over_draws_is_the_loss() -> None:
    input, y = maps()
    alpha = torch.tensor([0.0, 0.1, 0.2, 0.24], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack(
        [
            F.binary_cross_entropy_with_logits(
                input, stochastic_label_perturbation(y, alpha, beta=2.0, generator=generator)
            )
            for _ in range(4000)
        ]
    )
    expected = self_calibrating_bce_loss(input, y, alpha, beta=2.0)
    assert (draws.mean() - expected).abs() < 4 * draws.std() / math.sqrt(len(draws))


def test_a_sample_shares_its_draw() -> None:
    _, y = maps()
    noise = torch.tensor([0.05, 0.15, 0.1, 0.9], dtype=torch.float64)
    perturbed = stochastic_label_perturbation(y, 0.1, beta=1.0, noise=noise)
    assert torch.equal(perturbed[0], 1 - y[0])
    assert torch.equal(perturbed[1:], y[1:])  # a draw equal to the level does not count
    beyond = stochastic_label_perturbation(y, 0.1, beta=2.0, noise=noise)[0]
    assert set(beyond.flatten().tolist()) == {-1.0, 2.0}


# --- the rule of the levels -----------------------------------------------------------------------------------------


@given(label_batches(bound=12.0), BETA, st.floats(0.0, 0.1), st.floats(0.0, 100.0), LEVEL)
def test_levels_follow_the_rule(batch: Batch, beta: float, eta: float, regularization: float, accuracy: float) -> None:
    """As in the original: K - 2 B from clamped probabilities; here in closed form."""
    input, y = batch
    alpha = torch.linspace(0, 0.9 / (2 * beta), len(input), dtype=torch.float64)
    p = input.sigmoid().clamp(1e-7, 1 - 1e-7)
    b, k = F.binary_cross_entropy(p, y, reduction="none"), -(p * (1 - p)).log()
    assert (k >= math.log(4) - 1e-12).all()
    torch.testing.assert_close(k - 2 * b, (2 * y - 1) * input, atol=1e-6, rtol=1e-6)
    moved = alpha + eta * ((k - 2 * b) / beta + regularization * (1 - accuracy - beta * alpha).clamp(max=0))
    cap = 1 / (2 * beta)
    expected = torch.where(moved < 0, 0.0, torch.where(moved >= cap, cap - 0.01, moved))
    found = adaptive_perturbation_update(
        alpha, input, y, beta=beta, eta=eta, regularization=regularization, accuracy=accuracy
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@given(label_batches(bound=8.0), st.floats(0.2, 2.0), st.floats(0.0, 0.4))
def test_first_term_is_the_slope_of_the_loss(batch: Batch, beta: float, share: float) -> None:
    """Its derivative in alpha is beta (K - 2 B)."""
    input, y = batch
    alpha = torch.tensor(share / (2 * beta), dtype=torch.float64)
    slope = torch.func.grad(lambda a: self_calibrating_bce_loss(input, y, a, beta=beta))(alpha)
    torch.testing.assert_close(slope, beta * ((2 * y - 1) * input).mean())


def test_limits_are_reached_exactly() -> None:
    y = torch.tensor([[1.0, 0.0]]).double()
    right = torch.tensor([[1e4, -1e4]]).double()
    level = torch.tensor([0.1]).double()
    words = {"beta": 2.0, "eta": 0.1, "accuracy": 0.5}
    assert adaptive_perturbation_update(level, right, y, **words).item() == 0.25 - 0.01
    assert adaptive_perturbation_update(level, -right, y, **words).item() == 0
    nothing = adaptive_perturbation_update(level, right * math.nan, y, **words)
    assert nothing.item() == level.item()


def test_regulariser_binds_above_the_error_rate_alone() -> None:
    input, y = torch.zeros(2, 4).double(), torch.ones(2, 4).double()
    level = torch.tensor([0.04, 0.06]).double()
    moved = adaptive_perturbation_update(level, input, y, beta=2.0, eta=0.01, regularization=10.0, accuracy=0.9)
    torch.testing.assert_close(moved, torch.tensor([0.04, 0.06 - 0.01 * 10 * 0.02]).double())


def test_conservative_variant_holds_the_accuracy() -> None:
    """Levels rise with the margin while the accuracy holds, and are pulled down by its loss."""
    input, y = torch.full((1, 4), 2.0).double(), torch.ones(1, 4).double()
    level = torch.tensor([0.1]).double()
    words = {"beta": 2.0, "eta": 0.01, "regularization": 10.0, "preserved_accuracy": 0.9}
    held = adaptive_perturbation_update(level, input, y, accuracy=0.95, **words)
    lost = adaptive_perturbation_update(level, input, y, accuracy=0.8, **words)
    torch.testing.assert_close(held, level + 0.01)
    torch.testing.assert_close(lost, level + 0.01 * (1 - 10 * 0.1))


def test_levels_under_vmap_and_compile() -> None:
    input, y = maps()
    inputs, levels = torch.stack([input, -input]), torch.rand(2, 4, dtype=torch.float64) / 5

    def step(level: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self_calibrating_bce_loss(z, y, level), adaptive_perturbation_update(level, z, y, accuracy=0.9)

    together = torch.func.vmap(step)(levels, inputs)
    for member in range(2):
        torch.testing.assert_close(tuple(part[member] for part in together), step(levels[member], inputs[member]))
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(levels[0], input), step(levels[0], input))
    loss, state = adaptive_label_perturbation_loss(input.requires_grad_(), y, levels[0], accuracy=0.9)
    torch.testing.assert_close((loss, state.alpha), step(levels[0], input))
    assert loss.requires_grad
    assert not state.alpha.requires_grad


def test_without_an_accuracy_nothing_pulls() -> None:
    input, y = torch.full((1, 4), 2.0).double(), torch.ones(1, 4).double()
    _, state = adaptive_label_perturbation_loss(input, y, 0.2, eta=0.01)
    torch.testing.assert_close(state.alpha, torch.tensor([0.21]).double())
    moved = adaptive_perturbation_update(torch.tensor([0.2]).double(), input, y, eta=0.01, accuracy=None)
    torch.testing.assert_close(moved, state.alpha)


# --- the levels of a data set ---------------------------------------------------------------------------------------


def test_levels_rest_in_the_warm_up_and_then_move() -> None:
    input, y = maps()
    aslp = AdaptiveLabelPerturbation(10, eta=0.01, warmup_epochs=2).double()
    index = torch.tensor([7, 0, 3, 9])
    for accuracy in (0.8, 0.9):
        aslp(input, y, index)
        assert (aslp.alpha == 0).all()
        aslp.set_accuracy(accuracy)
    loss = aslp(input, y, index)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(input, y))
    expected = adaptive_perturbation_update(torch.zeros(4).double(), input, y, eta=0.01, accuracy=aslp.accuracy)
    torch.testing.assert_close(aslp.alpha[index], expected)
    assert (expected > 0).any()
    assert aslp.alpha.count_nonzero() == expected.count_nonzero()
    torch.testing.assert_close(aslp(input, y, index), self_calibrating_bce_loss(input, y, expected))
    noise = torch.tensor([0.0, 0.99, 0.0, 0.99]).double()
    torch.testing.assert_close(
        aslp.perturb(y, index, noise=noise), stochastic_label_perturbation(y, aslp.alpha[index], noise=noise)
    )
    before = aslp.alpha.clone()
    aslp.eval()(input, y, index)
    assert torch.equal(aslp.alpha, before)
    twin = AdaptiveLabelPerturbation(10, eta=0.01, warmup_epochs=2).double()
    twin.load_state_dict(aslp.state_dict())
    assert (twin.epoch, twin.accuracy) == (2, 0.9)
    torch.testing.assert_close(twin(input, y, index), aslp(input, y, index))


def test_conservative_module_remembers_the_warm_up() -> None:
    aslp = AdaptiveLabelPerturbation(2, warmup_epochs=2, preserve_accuracy=True).double()
    for accuracy in (0.9, 0.8, 0.99):
        aslp.set_accuracy(accuracy)
    assert aslp.preserved_accuracy is not None
    assert aslp.preserved_accuracy.item() == 0.9
    input, y = maps(2)
    aslp.update(torch.tensor([0, 1]), input, y)
    expected = adaptive_perturbation_update(
        torch.zeros(2).double(), input, y, accuracy=0.99, preserved_accuracy=aslp.preserved_accuracy
    )
    torch.testing.assert_close(aslp.alpha, expected)


def test_module_under_functional_call_vmap_and_compile() -> None:
    input, y = maps(3)
    index = torch.arange(3)
    aslp = AdaptiveLabelPerturbation(3, warmup_epochs=0).double()
    aslp.set_accuracy(0.9)
    levels = torch.tensor([[0.0, 0.1, 0.2], [0.05, 0.0, 0.1]], dtype=torch.float64)

    def step(alpha: Tensor) -> tuple[Tensor, Tensor]:
        buffers = {**dict(aslp.named_buffers()), "alpha": alpha}
        loss = torch.func.functional_call(aslp, buffers, (input, y, index))
        return loss, buffers["alpha"]

    together = torch.func.vmap(step)(levels)
    for member in range(2):
        torch.testing.assert_close(together[0][member], self_calibrating_bce_loss(input, y, levels[member]))
        moved = adaptive_perturbation_update(levels[member], input, y, accuracy=0.9)
        torch.testing.assert_close(together[1][member], moved)
    torch._dynamo.reset()
    torch.compile(aslp, fullgraph=True, backend="aot_eager")(input, y, index)
    torch.testing.assert_close(
        aslp.alpha, adaptive_perturbation_update(torch.zeros(3).double(), input, y, accuracy=0.9)
    )


def test_module_takes_its_level_at_the_call() -> None:
    input, y = maps()
    alpha = torch.tensor([0.0, 0.1, 0.2, 0.1]).double()
    loss = SelfCalibratingBCELoss(beta=1.5)
    torch.testing.assert_close(loss(input, y), F.binary_cross_entropy_with_logits(input, y))
    torch.testing.assert_close(loss(input, y, alpha), self_calibrating_bce_loss(input, y, alpha, beta=1.5))


def test_bad_input() -> None:
    input, y = maps()
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        self_calibrating_bce_loss(input, y, 1.5)
    with pytest.raises(ValueError, match=r"alpha has shape \(3,\); wanted \(4,\)"):
        self_calibrating_bce_loss(input, y, torch.zeros(3))
    with pytest.raises(ValueError, match=r"noise has shape \(2,\)"):
        stochastic_label_perturbation(y, 0.1, noise=torch.zeros(2))
    with pytest.raises(ValueError, match="beta is 0"):
        adaptive_perturbation_update(torch.zeros(4), input, y, beta=0.0, accuracy=0.9)
    with pytest.raises(ValueError, match="value is 93"):
        AdaptiveLabelPerturbation(3).set_accuracy(93)


def test_the_pull_has_all_digits_of_a_number() -> None:
    """An accuracy that passed through float32 moved levels by 1e-7 and more."""
    input, target = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    level = torch.tensor([0.2], dtype=torch.float64)
    moved = adaptive_perturbation_update(level, input, target, eta=0.002, regularization=25.0, accuracy=0.9)
    torch.testing.assert_close(moved, level + 0.05 * (0.1 - 0.4), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_levels_are_drawn_as_often_as_they_say_in_half_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = stochastic_label_perturbation(torch.ones(200_000, dtype=dtype), 0.001, beta=1.0, generator=generator)
    assert drawn.dtype == dtype
    assert (drawn == 0).double().mean().item() == pytest.approx(0.001, rel=0.3)


def test_numbers_are_checked_where_levels_are_made() -> None:
    for words in ({"eta": math.nan}, {"regularization": -1.0}):
        with pytest.raises(ValueError, match=next(iter(words))):
            AdaptiveLabelPerturbation(3, **words)
    aslp = AdaptiveLabelPerturbation(3)
    input, target = maps(2)
    torch.testing.assert_close(
        aslp(input, target, torch.tensor([2, 0], dtype=torch.uint8)), aslp(input, target, torch.tensor([2, 0]))
    )
