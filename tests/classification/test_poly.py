"""PolyLoss: the losses it contains, its series and their remainders, its gradient in closed form."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.classification.focal import focal_loss, sigmoid_focal_loss
from lossary.classification.poly import (
    poly1_cross_entropy_loss,
    poly1_focal_loss,
    poly1_sigmoid_focal_loss,
    poly_cross_entropy_loss,
    poly_series_loss,
)
from tests.classification.strategies import class_batches, label_batches

EPSILON = st.floats(-1.0, 8.0)
GAMMA = st.floats(0.0, 5.0)
SHARE = st.floats(0.0, 1.0)


@given(class_batches(), SHARE, st.booleans())
def test_epsilon_zero_is_cross_entropy(batch: tuple[Tensor, Tensor], smoothing: float, probabilities: bool) -> None:
    input, target = batch
    if probabilities:
        target = input.roll(1, 0).softmax(1)
    weight = torch.linspace(0.5, 2.0, input.shape[1], dtype=torch.float64)
    options = {"weight": weight, "label_smoothing": smoothing}
    expected = F.cross_entropy(input, target, **options)
    torch.testing.assert_close(poly1_cross_entropy_loss(input, target, epsilon=0.0, **options), expected)
    torch.testing.assert_close(poly_cross_entropy_loss(input, target, epsilons=[0.0, 0.0], **options), expected)
    torch.testing.assert_close(poly1_focal_loss(input, target, epsilon=0.0, gamma=0.0, **options), expected)


@given(class_batches(), GAMMA)
def test_epsilon_zero_is_focal_loss(batch: tuple[Tensor, Tensor], gamma: float) -> None:
    input, target = batch
    alpha = torch.linspace(0.0, 1.0, input.shape[1], dtype=torch.float64)
    options = {"gamma": gamma, "alpha": alpha}
    torch.testing.assert_close(
        poly1_focal_loss(input, target, epsilon=0.0, **options), focal_loss(input, target, **options)
    )


@given(label_batches(soft=True), GAMMA, SHARE)
def test_epsilon_zero_is_sigmoid_focal_loss(batch: tuple[Tensor, Tensor], gamma: float, alpha: float) -> None:
    input, target = batch
    options = {"gamma": gamma, "alpha": alpha}
    torch.testing.assert_close(
        poly1_sigmoid_focal_loss(input, target, epsilon=0.0, **options), sigmoid_focal_loss(input, target, **options)
    )
    torch.testing.assert_close(
        poly1_sigmoid_focal_loss(input, target, epsilon=0.0, gamma=0.0, alpha=None),
        F.binary_cross_entropy_with_logits(input, target),
    )


@given(class_batches(), EPSILON)
def test_gradient_is_that_of_cross_entropy_boosted_by_the_probability(
    batch: tuple[Tensor, Tensor], epsilon: float
) -> None:
    input, target = batch
    p = input.softmax(1)
    boost = 1 + epsilon * p.gather(1, target[:, None])
    gradient = torch.func.grad(lambda z: poly1_cross_entropy_loss(z, target, epsilon=epsilon, reduction="sum"))(input)
    torch.testing.assert_close(gradient, boost * (p - F.one_hot(target, input.shape[1])))


@given(class_batches(), st.lists(EPSILON, min_size=1, max_size=4))
def test_epsilons_add_powers_of_the_miss_probability(batch: tuple[Tensor, Tensor], epsilons: list[float]) -> None:
    input, target = batch
    x = 1 - input.softmax(1).gather(1, target[:, None])[:, 0]
    added = poly_cross_entropy_loss(input, target, epsilons=epsilons, reduction="none") - F.cross_entropy(
        input, target, reduction="none"
    )
    torch.testing.assert_close(added, sum(e * x**j for j, e in enumerate(epsilons, start=1)), atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(
        poly_cross_entropy_loss(input, target, epsilons=epsilons[:1]),
        poly1_cross_entropy_loss(input, target, epsilon=epsilons[0]),
    )


@given(class_batches(bound=3.0), st.integers(1, 60))
def test_series_approaches_cross_entropy(batch: tuple[Tensor, Tensor], terms: int) -> None:
    """What is left out after J terms lies in [0, x^(J+1) / ((J+1) p)]."""
    input, target = batch
    p = input.softmax(1).gather(1, target[:, None])[:, 0]
    series = poly_series_loss(input, target, coefficients=[1 / j for j in range(1, terms + 1)], reduction="none")
    remainder = F.cross_entropy(input, target, reduction="none") - series
    assert (remainder >= -1e-12).all()
    assert (remainder <= (1 - p) ** (terms + 1) / ((terms + 1) * p) + 1e-12).all()


@given(class_batches(bound=3.0), st.integers(1, 60), st.integers(0, 4))
def test_shifted_series_approaches_focal_loss(batch: tuple[Tensor, Tensor], terms: int, gamma: int) -> None:
    input, target = batch
    p = input.softmax(1).gather(1, target[:, None])[:, 0]
    coefficients = [0.0] * gamma + [1 / j for j in range(1, terms + 1)]
    series = poly_series_loss(input, target, coefficients=coefficients, reduction="none")
    remainder = focal_loss(input, target, gamma=float(gamma), reduction="none") - series
    assert (remainder >= -1e-12).all()
    assert (remainder <= (1 - p) ** (gamma + terms + 1) / ((terms + 1) * p) + 1e-12).all()


@given(class_batches(), EPSILON, SHARE)
def test_targets_may_be_hard_smoothed_or_soft(batch: tuple[Tensor, Tensor], epsilon: float, smoothing: float) -> None:
    """Smoothing by hand, as the appendix has it: q = (1 - s) one-hot + s / C, and a miss of sum_k q_k (1 - p_k)."""
    input, target = batch
    classes = input.shape[1]
    one_hot = F.one_hot(target, classes).double()
    q = (1 - smoothing) * one_hot + smoothing / classes
    by_hand = -(q * input.log_softmax(1)).sum(1) + epsilon * (q * (1 - input.softmax(1))).sum(1)
    smoothed = poly1_cross_entropy_loss(input, target, epsilon=epsilon, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(smoothed, by_hand)
    torch.testing.assert_close(poly1_cross_entropy_loss(input, q, epsilon=epsilon, reduction="none"), by_hand)
    hard, soft = (poly1_cross_entropy_loss(input, t, epsilon=epsilon, reduction="none") for t in (target, one_hot))
    torch.testing.assert_close(hard, soft)


@given(label_batches(), EPSILON, GAMMA)
def test_two_classes_equal_the_sigmoid_form(batch: tuple[Tensor, Tensor], epsilon: float, gamma: float) -> None:
    input, target = batch
    two = torch.stack([torch.zeros_like(input), input], 1)
    torch.testing.assert_close(
        poly1_focal_loss(two, target.long(), epsilon=epsilon, gamma=gamma),
        poly1_sigmoid_focal_loss(input, target, epsilon=epsilon, gamma=gamma, alpha=None),
    )


@given(label_batches(), EPSILON, GAMMA, SHARE)
def test_alpha_weighs_the_focal_term_alone(
    batch: tuple[Tensor, Tensor], epsilon: float, gamma: float, alpha: float
) -> None:
    input, target = batch
    miss = torch.where(target == 1, -input, input).sigmoid()
    focal = sigmoid_focal_loss(input, target, gamma=gamma, alpha=alpha, reduction="none")
    torch.testing.assert_close(
        poly1_sigmoid_focal_loss(input, target, epsilon=epsilon, gamma=gamma, alpha=alpha, reduction="none"),
        focal + epsilon * miss ** (gamma + 1),
    )


def test_a_negative_epsilon_may_make_it_negative() -> None:
    value = poly1_cross_entropy_loss(torch.zeros(1, 2), torch.tensor([0]), epsilon=-4.0)
    torch.testing.assert_close(value, torch.tensor(0.5).log().neg() - 2)


@pytest.mark.parametrize("gap", [5.0, 14.0, 18.0, 60.0])
def test_float32_keeps_the_added_term(gap: float) -> None:
    """1 - p_t comes from the other classes: -expm1(log p) is 5% off at a gap of 14, and 0 from 17 on."""
    miss = poly_series_loss(torch.tensor([[gap, 0.0, 0.0]]), torch.tensor([0]), coefficients=[1.0])
    exact = 2 / (torch.tensor(gap, dtype=torch.float64).exp() + 2)
    torch.testing.assert_close(miss.double(), exact, rtol=1e-5, atol=0)


def test_no_coefficients_are_refused() -> None:
    input, target = torch.zeros(1, 2), torch.tensor([0])
    with pytest.raises(ValueError, match="epsilons is empty"):
        poly_cross_entropy_loss(input, target, epsilons=[])
    with pytest.raises(ValueError, match="coefficients is empty"):
        poly_series_loss(input, target, coefficients=[])
