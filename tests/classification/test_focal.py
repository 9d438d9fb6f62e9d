"""Focal loss: what it reduces to, how much it damps, its gradients in closed form, and the prior of the bias."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lossary.classification.focal import focal_loss, focal_star_loss, prior_bias_, sigmoid_focal_loss
from tests.classification.strategies import class_batches, label_batches

GAMMA = st.floats(0.0, 5.0)


@given(label_batches(soft=True))
def test_sigmoid_form_without_focus_is_binary_cross_entropy(batch: tuple[Tensor, Tensor]) -> None:
    input, target = batch
    expected = F.binary_cross_entropy_with_logits(input, target)
    torch.testing.assert_close(sigmoid_focal_loss(input, target, alpha=None, gamma=0.0), expected)
    torch.testing.assert_close(sigmoid_focal_loss(input, target, alpha=0.5, gamma=0.0), expected / 2)


@given(class_batches(), st.floats(0.0, 1.0), st.booleans())
def test_softmax_form_without_focus_is_cross_entropy(
    batch: tuple[Tensor, Tensor], smoothing: float, probabilities: bool
) -> None:
    input, target = batch
    weight = torch.linspace(0.5, 2.0, input.shape[1], dtype=torch.float64)
    if probabilities:
        target = input.roll(1, 0).softmax(1)
    options = {"weight": weight, "label_smoothing": smoothing}
    torch.testing.assert_close(
        focal_loss(input, target, gamma=0.0, **options), F.cross_entropy(input, target, **options)
    )


@pytest.mark.parametrize(("p", "factor"), [(0.9, 100), (0.968, 977), (0.5, 4), (0.2, 1.5625)])
def test_damping_of_easy_examples(p: float, factor: float) -> None:
    """Gamma 2 divides the loss by 100 at p = 0.9, by about 1,000 at 0.968, by at most 4 up to 0.5."""
    logit = torch.tensor([math.log(p / (1 - p))], dtype=torch.float64)
    plain, focal = (sigmoid_focal_loss(logit, torch.ones(1), alpha=None, gamma=gamma) for gamma in (0.0, 2.0))
    assert (plain / focal).item() == pytest.approx(factor, rel=1e-3)


@given(label_batches(), GAMMA)
def test_sigmoid_gradient(batch: tuple[Tensor, Tensor], gamma: float) -> None:
    input, target = batch
    p, q = input.sigmoid(), (-input).sigmoid()
    positive = q**gamma * (gamma * p * F.logsigmoid(input) - q)
    negative = p**gamma * (p - gamma * q * F.logsigmoid(-input))
    gradient = gradient_of(lambda z: sigmoid_focal_loss(z, target, alpha=None, gamma=gamma, reduction="sum"), input)
    torch.testing.assert_close(gradient, torch.where(target == 1, positive, negative))


@given(class_batches(), GAMMA)
def test_softmax_gradient(batch: tuple[Tensor, Tensor], gamma: float) -> None:
    """The gradient of cross-entropy times (1 - p)^gamma - gamma p (1 - p)^(gamma - 1) log p."""
    input, target = batch
    p = input.softmax(1)
    one_hot = F.one_hot(target, input.shape[1]).double()
    of_label = (p * one_hot).sum(1, keepdim=True)
    miss = (p * (1 - one_hot)).sum(1, keepdim=True)
    log_p = -F.cross_entropy(input, target, reduction="none").unsqueeze(1)
    factor = miss**gamma - gamma * of_label * miss ** (gamma - 1) * log_p
    gradient = gradient_of(lambda z: focal_loss(z, target, gamma=gamma, reduction="sum"), input)
    torch.testing.assert_close(gradient, factor * (p - one_hot), rtol=1e-6, atol=1e-9)


@given(label_batches(), GAMMA)
def test_two_classes_equal_the_sigmoid_form_on_their_difference(batch: tuple[Tensor, Tensor], gamma: float) -> None:
    input, target = batch
    two = torch.stack([torch.full_like(input, 0.7), input + 0.7], 1)
    torch.testing.assert_close(
        focal_loss(two, target.long(), gamma=gamma), sigmoid_focal_loss(input, target, alpha=None, gamma=gamma)
    )


@given(label_batches(soft=True), st.floats(0.0, 1.0), GAMMA)
def test_soft_targets_mix_probability_weight_and_cross_entropy(
    batch: tuple[Tensor, Tensor], alpha: float, gamma: float
) -> None:
    input, y = batch
    p = input.sigmoid()
    miss = y * (-input).sigmoid() + (1 - y) * p
    alpha_t = alpha * y + (1 - alpha) * (1 - y)
    expected = alpha_t * miss**gamma * F.binary_cross_entropy_with_logits(input, y, reduction="none")
    torch.testing.assert_close(sigmoid_focal_loss(input, y, alpha=alpha, gamma=gamma, reduction="none"), expected)


def test_alpha_of_zero_is_a_weight_of_zero() -> None:
    """Other implementations mean "no balancing" by it; even an infinite loss is silenced."""
    input, target = torch.tensor([-1.0, -math.inf, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    balanced, plain = (sigmoid_focal_loss(input, target, alpha=alpha, reduction="none") for alpha in (0.0, None))
    torch.testing.assert_close(balanced, torch.where(target == 1, 0.0, plain))
    torch.testing.assert_close(
        focal_loss(torch.tensor([[-math.inf, 0.0]]), torch.tensor([0]), alpha=torch.tensor([0.0, 1.0])),
        torch.tensor(0.0),
    )


@given(class_batches(), GAMMA)
def test_alpha_leaves_the_divisor_alone_and_weight_does_not(batch: tuple[Tensor, Tensor], gamma: float) -> None:
    input, target = batch
    alpha = torch.linspace(0.0, 2.0, input.shape[1], dtype=torch.float64)
    weight = alpha + 0.5
    rows = focal_loss(input, target, gamma=gamma, reduction="none")
    torch.testing.assert_close(focal_loss(input, target, gamma=gamma, alpha=alpha), (alpha[target] * rows).mean())
    torch.testing.assert_close(
        focal_loss(input, target, gamma=gamma, alpha=alpha, weight=weight),
        (alpha[target] * weight[target] * rows).sum() / weight[target].sum(),
    )


def test_detector_divides_by_the_number_of_objects() -> None:
    input = torch.linspace(-4, 4, 12).reshape(3, 4)
    target = torch.zeros(3, 4)
    target[1, 2] = target[2, 0] = 1
    total = sigmoid_focal_loss(input, target, reduction="sum")
    detector = sigmoid_focal_loss(input, target, reduction="sum", normalizer=target.sum().clamp(min=1))
    torch.testing.assert_close(detector, total / 2)


@given(label_batches(), GAMMA)
def test_gamma_may_be_learned_from_zero(batch: tuple[Tensor, Tensor], gamma: float) -> None:
    """The derivative in gamma is the loss times the logarithm of the miss probability."""
    input, target = batch
    log_miss = torch.where(target == 1, F.logsigmoid(-input), F.logsigmoid(input))
    exponent = torch.tensor(gamma, dtype=torch.float64)
    loss = sigmoid_focal_loss(input, target, gamma=exponent, reduction="none")
    gradient = gradient_of(lambda g: sigmoid_focal_loss(input, target, gamma=g, reduction="sum"), exponent)
    torch.testing.assert_close(gradient, (loss * log_miss).sum())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_finite_where_the_power_has_infinite_slope(gamma: float) -> None:
    """At logits of +-40 one side of the miss probability has long rounded to 0 in float32."""
    logits = torch.tensor([-40.0, 40.0])
    two = torch.stack([torch.zeros(2), logits], 1)
    for exponent in (gamma, torch.tensor(gamma)):
        for target in (torch.ones(2), torch.zeros(2)):
            value = sigmoid_focal_loss(logits, target, alpha=None, gamma=exponent, reduction="none")
            torch.testing.assert_close(value, torch.where(target == 1, -logits, logits).relu())
            torch.testing.assert_close(focal_loss(two, target.long(), gamma=exponent, reduction="none"), value)
            for gradient in (
                gradient_of(lambda z, t=target, g=exponent: sigmoid_focal_loss(z, t, alpha=None, gamma=g), logits),
                gradient_of(lambda z, t=target, g=exponent: focal_loss(z, t.long(), gamma=g), two),
            ):
                assert gradient.isfinite().all()


@given(label_batches(soft=True))
def test_star_form_with_steepness_one_is_binary_cross_entropy(batch: tuple[Tensor, Tensor]) -> None:
    input, target = batch
    torch.testing.assert_close(
        focal_star_loss(input, target, gamma=1.0, beta=0.0), F.binary_cross_entropy_with_logits(input, target)
    )


@given(label_batches(), st.floats(0.1, 5.0), st.floats(-2.0, 2.0))
def test_star_gradient(batch: tuple[Tensor, Tensor], gamma: float, beta: float) -> None:
    input, target = batch
    side = 2 * target - 1
    expected = side * (torch.sigmoid(gamma * side * input + beta) - 1)
    gradient = gradient_of(lambda z: focal_star_loss(z, target, gamma=gamma, beta=beta, reduction="sum"), input)
    torch.testing.assert_close(gradient, expected)


@given(st.floats(1e-6, 1 - 1e-6))
def test_prior_is_what_the_sigmoid_starts_at(prior: float) -> None:
    layer = nn.Linear(3, 2, dtype=torch.float64)
    assert prior_bias_(layer, prior) is layer
    torch.testing.assert_close(layer.bias.sigmoid(), torch.full((2,), prior, dtype=torch.float64))
    assert layer.bias.requires_grad


def test_prior_goes_to_the_last_layer_with_weights() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU()), nn.Flatten()
    )
    before = model[0].bias.clone()
    prior_bias_(model)
    torch.testing.assert_close(model[2][0].bias.sigmoid(), torch.full((5,), 0.01))
    assert torch.equal(model[0].bias, before)


def test_prior_tames_the_first_loss() -> None:
    background = torch.zeros(1000, 1)
    for bias, expected in ((0.0, math.log(2)), (prior_bias_(nn.Linear(1, 1)).bias.item(), -math.log(0.99))):
        loss = sigmoid_focal_loss(background + bias, background, alpha=None, gamma=0.0)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_prior_wants_a_bias_and_a_probability() -> None:
    with pytest.raises(ValueError, match=r"no linear or convolutional layer .*; wanted a layer with a bias"):
        prior_bias_(nn.ReLU())
    with pytest.raises(ValueError, match="bias=False"):
        prior_bias_(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False)))
    for prior in (0.0, 1.0):
        with pytest.raises(ValueError, match="prior"):
            prior_bias_(nn.Linear(2, 2), prior)


def test_hyperparameters_out_of_range() -> None:
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="gamma is -1"):
        sigmoid_focal_loss(one, one, gamma=-1)
    with pytest.raises(ValueError, match=r"alpha is 1.5; wanted a number in \[0, 1\]"):
        sigmoid_focal_loss(one, one, alpha=1.5)
    with pytest.raises(ValueError, match=r"gamma is 0.0"):
        focal_star_loss(one, one, gamma=0.0)
    with pytest.raises(ValueError, match=r"alpha has shape \(3,\); wanted \(2,\)"):
        focal_loss(torch.zeros(1, 2), torch.tensor([0]), alpha=torch.ones(3))


def gradient_of(loss: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    gradient: Tensor = torch.func.grad(loss)(input)
    return gradient
