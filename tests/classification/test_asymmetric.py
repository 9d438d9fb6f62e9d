"""Asymmetric losses: what they reduce to, where they vanish, gradients in closed form, and gamma_neg that adapts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from lossary.classification.asymmetric import (
    AdaptiveAsymmetricLoss,
    adaptive_asymmetric_loss,
    asymmetric_loss,
    asymmetric_softmax_loss,
)
from lossary.classification.focal import sigmoid_focal_loss
from tests.classification.strategies import class_batches, label_batches

GAMMA = st.floats(0.0, 5.0)
CLIP = st.floats(0.0, 0.5)


@given(label_batches(soft=True))
def test_without_focus_and_margin_is_binary_cross_entropy(batch: tuple[Tensor, Tensor]) -> None:
    input, target = batch
    torch.testing.assert_close(
        asymmetric_loss(input, target, gamma_neg=0.0, gamma_pos=0.0, clip=0.0),
        F.binary_cross_entropy_with_logits(input, target),
    )


@given(label_batches(soft=True), GAMMA)
def test_equal_exponents_without_margin_are_focal_loss(batch: tuple[Tensor, Tensor], gamma: float) -> None:
    input, target = batch
    torch.testing.assert_close(
        asymmetric_loss(input, target, gamma_neg=gamma, gamma_pos=gamma, clip=0.0),
        sigmoid_focal_loss(input, target, alpha=None, gamma=gamma),
    )


@given(label_batches(bound=10.0, soft=True), GAMMA, GAMMA, CLIP)
def test_formula_of_the_original_code(
    batch: tuple[Tensor, Tensor], gamma_neg: float, gamma_pos: float, clip: float
) -> None:
    input, y = batch
    p = input.sigmoid()
    not_p = (1 - p + clip).clamp(max=1)
    weight = (1 - p * y - not_p * (1 - y)) ** (gamma_pos * y + gamma_neg * (1 - y))
    expected = -weight * (y * p.log() + (1 - y) * not_p.log())
    torch.testing.assert_close(
        asymmetric_loss(input, y, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip, reduction="none"),
        expected,
        rtol=1e-6,
        atol=1e-9,
    )


@given(label_batches(), GAMMA, st.floats(0.001, 0.5), st.booleans())
def test_easy_negatives_have_neither_loss_nor_gradient(
    batch: tuple[Tensor, Tensor], gamma: float, clip: float, as_tensors: bool
) -> None:
    """Up to the margin itself, where a power below 1 has infinite slope."""
    input, _ = batch
    margin = torch.tensor(clip, dtype=torch.float64).logit()
    input = torch.cat([margin - 1e-12 - input.abs(), torch.tensor([-1e4, -torch.inf], dtype=torch.float64)])
    options: dict[str, Any] = {"gamma_neg": gamma, "gamma_pos": 1.0, "clip": clip}
    if as_tensors:
        options = {name: torch.tensor(value, dtype=torch.float64) for name, value in options.items()}
    zero = torch.zeros_like(input)
    assert torch.equal(asymmetric_loss(input, zero, reduction="none", **options), zero)
    assert torch.equal(gradient_of(lambda z: asymmetric_loss(z, zero, **options), input), zero)


@given(label_batches(bound=10.0), GAMMA, GAMMA, CLIP)
def test_gradient(batch: tuple[Tensor, Tensor], gamma_neg: float, gamma_pos: float, clip: float) -> None:
    input, target = batch
    p, q = input.sigmoid(), (-input).sigmoid()
    p_m = p - clip
    assume(((p_m <= 0) | (p_m > 1e-6)).all())  # off the kink
    live = torch.where(p_m > 0, p_m, 0.5)
    of_negative = p * q * live ** (gamma_neg - 1) * (live / (1 - live) - gamma_neg * torch.log1p(-live))
    of_positive = q**gamma_pos * (gamma_pos * p * F.logsigmoid(input) - q)
    expected = torch.where(target == 1, of_positive, torch.where(p_m > 0, of_negative, 0.0))
    options = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip}
    gradient = gradient_of(lambda z: asymmetric_loss(z, target, reduction="sum", **options), input)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


@given(label_batches(), GAMMA, GAMMA)
def test_detached_focusing_weighs_the_gradient_of_cross_entropy(
    batch: tuple[Tensor, Tensor], gamma_neg: float, gamma_pos: float
) -> None:
    input, target = batch
    p, q = input.sigmoid(), (-input).sigmoid()
    weight = torch.where(target == 1, q**gamma_pos, p**gamma_neg)
    options: dict[str, Any] = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": 0.0, "reduction": "sum"}
    gradient = gradient_of(lambda z: asymmetric_loss(z, target, detach_focusing=True, **options), input)
    torch.testing.assert_close(gradient, weight * (p - target))
    torch.testing.assert_close(
        asymmetric_loss(input, target, detach_focusing=True, **options), asymmetric_loss(input, target, **options)
    )


def test_likely_mislabelled_negatives_are_attenuated() -> None:
    """Over p the gradient of a negative is 0 up to the margin, rises to one peak, and falls towards p = 1."""
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    gradient = gradient_of(lambda z: asymmetric_loss(z, torch.zeros_like(z), reduction="sum"), p.logit())
    assert (gradient[p < 0.05] == 0).all()
    live = gradient[p > 0.0501]
    assert (live > 0).all()
    peak = int(live.argmax())
    assert (live.diff()[:peak] > 0).all()
    assert (live.diff()[peak:] < 0).all()
    assert 0.85 < p[p > 0.0501][peak] < 0.95


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 4.0])
def test_finite_at_huge_logits(gamma: float, clip: float) -> None:
    input = torch.tensor([-1e4, -100.0, -88.0, 88.0, 100.0, 1e4])
    for target in (torch.zeros(6), torch.ones(6), torch.full((6,), 0.3)):
        for exponent in (gamma, torch.tensor(gamma)):
            options: dict[str, Any] = {"gamma_neg": exponent, "gamma_pos": exponent, "clip": clip}
            value = asymmetric_loss(input, target, reduction="none", **options)
            exact = asymmetric_loss(input.double(), target, reduction="none", **options)
            torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-6)
            gradient = gradient_of(lambda z, t=target, o=options: asymmetric_loss(z, t, reduction="sum", **o), input)
            assert gradient.isfinite().all()


@given(class_batches(), st.floats(0.0, 1.0))
def test_softmax_form_without_focus_is_cross_entropy(batch: tuple[Tensor, Tensor], smoothing: float) -> None:
    input, target = batch
    weight = torch.linspace(0.5, 2.0, input.shape[1], dtype=torch.float64)
    expected = F.cross_entropy(input, target, weight=weight, label_smoothing=smoothing)
    for share in (smoothing, torch.tensor(smoothing, dtype=torch.float64)):
        value = asymmetric_softmax_loss(
            input, target, gamma_neg=0.0, gamma_pos=0.0, weight=weight, label_smoothing=share
        )
        torch.testing.assert_close(value, expected)


@given(class_batches(bound=10.0), GAMMA, GAMMA, st.floats(0.0, 1.0))
def test_softmax_formula(batch: tuple[Tensor, Tensor], gamma_neg: float, gamma_pos: float, smoothing: float) -> None:
    """Smoothing comes after the focusing weights."""
    input, target = batch
    one_hot = F.one_hot(target, input.shape[1]).double()
    p = input.softmax(1)
    focusing = torch.where(one_hot == 1, (1 - p) ** gamma_pos, p**gamma_neg)
    q = (1 - smoothing) * one_hot + smoothing / input.shape[1]
    options = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "label_smoothing": smoothing}
    torch.testing.assert_close(
        asymmetric_softmax_loss(input, target, reduction="none", **options),
        -(q * focusing * input.log_softmax(1)).sum(1),
        rtol=1e-6,
        atol=1e-9,
    )


def test_softmax_form_forgets_impossible_classes() -> None:
    """With focus an impossible wrong class costs nothing, where smoothed cross-entropy is infinite."""
    input, target = torch.tensor([[1.0, 0.0, -torch.inf]]), torch.tensor([0])
    assert F.cross_entropy(input, target, label_smoothing=0.3).isinf()
    log_p = input[0, :2].log_softmax(0)
    expected = -(0.8 * log_p[0] + 0.1 * log_p[1].exp() ** 4 * log_p[1])
    torch.testing.assert_close(asymmetric_softmax_loss(input, target, label_smoothing=0.3), expected)
    gradient = gradient_of(lambda z: asymmetric_softmax_loss(z, target, label_smoothing=0.3), input)
    assert gradient.isfinite().all()


# --- gamma_neg that adapts --------------------------------------------------------------------------------------------


@given(label_batches(soft=True), GAMMA, st.floats(-1.0, 1.0), st.floats(0.0, 1.0))
def test_state_follows_the_rule(
    batch: tuple[Tensor, Tensor], gamma_neg: float, target_gap: float, step_size: float
) -> None:
    """The loss is that of the old gamma_neg; the new one moves by the gap's error, down to 0 at most."""
    input, y = batch
    assume(1e-3 < y.mean() < 1 - 1e-3)
    p = input.sigmoid()
    gap = (y * p).sum() / y.sum() - ((1 - y) * (1 - p)).sum() / (1 - y).sum()
    loss, state = adaptive_asymmetric_loss(input, y, gamma_neg, target_gap=target_gap, step_size=step_size)
    torch.testing.assert_close(loss, asymmetric_loss(input, y, gamma_neg=gamma_neg))
    torch.testing.assert_close(state.probability_gap, gap)
    torch.testing.assert_close(state.gamma_neg, (gamma_neg + step_size * (target_gap - gap)).clamp(min=0))


def test_equal_scores_drive_gamma_neg() -> None:
    """With one score p for all the gap is 2 p - 1, whatever the share of positives; 0.1 is wanted."""
    target = (torch.arange(10) < 3).float()

    def moved(p: float, gamma_neg: float) -> float:
        _, state = adaptive_asymmetric_loss(torch.full((10,), p).logit(), target, gamma_neg, step_size=0.5)
        return state.gamma_neg.item()

    assert moved(0.2, 2.0) == pytest.approx(2.35)
    assert moved(0.8, 2.0) == pytest.approx(1.75)
    assert moved(0.55, 2.0) == pytest.approx(2.0)
    assert moved(0.8, 0.1) == 0


def test_undefined_gaps_leave_gamma_neg() -> None:
    input = torch.tensor([0.5, -0.5])
    for target in (torch.ones(2), torch.zeros(2)):
        _, state = adaptive_asymmetric_loss(input, target, gamma_neg=2.0)
        assert state.gamma_neg == 2
        assert state.probability_gap.isnan()
    loss, state = adaptive_asymmetric_loss(torch.tensor([torch.nan, 0.0]), torch.tensor([1.0, 0.0]), gamma_neg=2.0)
    assert loss.isnan()
    assert state.gamma_neg == 2


def test_state_needs_no_gradient_and_follows_sample_weight() -> None:
    input = torch.tensor([1.0, -1.0, 2.0, 0.3], requires_grad=True)
    target = torch.tensor([1.0, 0.0, 0.0, 1.0])
    weight = torch.tensor([1.0, 2.0, 0.0, 3.0])
    loss, state = adaptive_asymmetric_loss(input, target, sample_weight=weight)
    assert loss.requires_grad
    assert not any(tensor.requires_grad for tensor in state)
    times = weight.long()
    _, repeated = adaptive_asymmetric_loss(input.repeat_interleave(times), target.repeat_interleave(times))
    torch.testing.assert_close(state, repeated)


def test_module_adapts_in_training_alone() -> None:
    input, target = torch.tensor([1.0, -1.0, 0.5]), torch.tensor([1.0, 0.0, 0.0])
    module = AdaptiveAsymmetricLoss(gamma_neg=1.0)
    assert module.probability_gap.isnan()
    module.eval()(input, target)
    assert module.gamma_neg == 1
    expected, state = adaptive_asymmetric_loss(input, target, gamma_neg=1.0)
    torch.testing.assert_close(module.train()(input, target), expected)
    torch.testing.assert_close((module.gamma_neg, module.probability_gap), tuple(state))
    twin = AdaptiveAsymmetricLoss()
    twin.load_state_dict(module.state_dict())
    torch.testing.assert_close(twin(input, target), module(input, target))


def test_module_under_functional_call_vmap_and_compile() -> None:
    """Many states at once move as one by one; the module itself stays as it was."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 8, generator=generator)
    target = (torch.arange(8) < 3).float()
    gammas = torch.tensor([0.0, 1.0, 4.0])
    module = AdaptiveAsymmetricLoss()

    def step(gamma_neg: Tensor, input: Tensor) -> tuple[Tensor, Tensor]:
        buffers = {"gamma_neg": gamma_neg, "probability_gap": torch.tensor(0.0)}
        loss = torch.func.functional_call(module, buffers, (input, target))
        return loss, buffers["gamma_neg"]

    together = torch.func.vmap(step)(gammas, inputs)
    alone = [adaptive_asymmetric_loss(z, target, gamma) for gamma, z in zip(gammas, inputs, strict=True)]
    torch.testing.assert_close(together[0], torch.stack([loss for loss, _ in alone]))
    torch.testing.assert_close(together[1], torch.stack([state.gamma_neg for _, state in alone]))
    assert module.gamma_neg == 0

    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs[0], target), alone[0][0])
    torch.testing.assert_close(module.gamma_neg, alone[0][1].gamma_neg)


def test_training_reaches_the_gap() -> None:
    """One score for all, a tenth of them positive: cross-entropy settles at p = 0.1, a gap of 0.1 needs p = 0.55."""
    target = torch.zeros(100)
    target[:10] = 1
    score = torch.zeros((), requires_grad=True)
    loss = AdaptiveAsymmetricLoss(target_gap=0.1, clip=0.0)
    optimizer = torch.optim.Adam([score], 0.05)
    for _ in range(600):
        optimizer.zero_grad()
        loss(score.expand(100), target).backward()
        optimizer.step()
    assert score.sigmoid().item() == pytest.approx(0.55, abs=0.02)
    assert loss.probability_gap.item() == pytest.approx(0.1, abs=0.04)
    assert loss.gamma_neg > 1


def test_hyperparameters_out_of_range() -> None:
    one = torch.zeros(1)
    for name, value in (("gamma_neg", -1.0), ("gamma_pos", -1.0), ("clip", 1.0), ("clip", -0.1)):
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            asymmetric_loss(one, one, **{name: value})
    for name, value in (("gamma_neg", -1.0), ("target_gap", 2.0), ("step_size", -0.1)):
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            adaptive_asymmetric_loss(one, one, **{name: value})


def gradient_of(loss: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    gradient: Tensor = torch.func.grad(loss)(input)
    return gradient
