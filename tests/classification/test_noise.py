"""Losses for wrong labels: normalisation, what it does to symmetric noise, limits, gradients in closed form."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossary.classification.focal import focal_loss
from lossary.classification.noise import (
    LOG_ZERO,
    ActivePassiveLoss,
    active_passive_loss,
    generalized_cross_entropy_loss,
    mean_absolute_error_loss,
    normalize_loss,
    normalized_cross_entropy_loss,
    normalized_focal_loss,
    normalized_generalized_cross_entropy_loss,
    normalized_mean_absolute_error_loss,
    normalized_reverse_cross_entropy_loss,
    reverse_cross_entropy_loss,
    symmetric_cross_entropy_loss,
)
from tests.classification.strategies import class_batches

Batch = tuple[Tensor, Tensor]
GAMMA = st.floats(0.0, 5.0)
Q = st.floats(0.01, 1.0)
COEFFICIENT = st.floats(0.0, 10.0)

NORMALIZED = [
    normalized_cross_entropy_loss,
    normalized_focal_loss,
    normalized_generalized_cross_entropy_loss,
    normalized_mean_absolute_error_loss,
    normalized_reverse_cross_entropy_loss,
    normalize_loss(focal_loss),
]
ACTIVE = {
    "nce": normalized_cross_entropy_loss,
    "nfl": normalized_focal_loss,
    "ngce": normalized_generalized_cross_entropy_loss,
    "ce": F.cross_entropy,
    "fl": focal_loss,
}
PASSIVE = {
    "rce": reverse_cross_entropy_loss,
    "mae": mean_absolute_error_loss,
    "nrce": normalized_reverse_cross_entropy_loss,
    "nmae": normalized_mean_absolute_error_loss,
}


# --- normalisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", NORMALIZED)
@given(class_batches())
def test_normalized_losses_lie_in_the_unit_interval_and_sum_to_one_over_labels(
    loss: Callable[..., Tensor], batch: Batch
) -> None:
    of_all = over_labels(loss, batch[0])
    assert ((of_all >= 0) & (of_all <= 1)).all()
    torch.testing.assert_close(of_all.sum(1), torch.ones(len(of_all), dtype=torch.float64))


@given(class_batches())
def test_mean_absolute_error_sums_to_the_number_of_wrong_labels(batch: Batch) -> None:
    of_all = over_labels(mean_absolute_error_loss, batch[0])
    torch.testing.assert_close(of_all.sum(1), torch.full_like(of_all[:, 0], of_all.shape[1] - 1))


@pytest.mark.parametrize("loss", NORMALIZED)
@given(class_batches(), st.floats(0.0, 1.0))
def test_symmetric_noise_moves_a_normalized_loss_affinely(
    loss: Callable[..., Tensor], batch: Batch, eta: float
) -> None:
    """The mean over noisy labels is (1 - eta C / (C - 1)) L + eta / (C - 1): the minimiser stays."""
    classes = batch[0].shape[1]
    clean, noisy = clean_and_noisy(loss, batch, eta)
    torch.testing.assert_close(noisy, (1 - eta * classes / (classes - 1)) * clean + eta / (classes - 1))


@given(class_batches(), st.floats(0.0, 1.0), COEFFICIENT, COEFFICIENT)
def test_symmetric_noise_moves_active_plus_passive_affinely(
    batch: Batch, eta: float, alpha: float, beta: float
) -> None:
    classes = batch[0].shape[1]
    clean, noisy = clean_and_noisy(
        lambda z, y, reduction: active_passive_loss(
            z, y, active="nfl", passive="mae", alpha=alpha, beta=beta, reduction=reduction
        ),
        batch,
        eta,
    )
    offset = eta / (classes - 1) * (alpha + beta * (classes - 1))
    torch.testing.assert_close(noisy, (1 - eta * classes / (classes - 1)) * clean + offset)


def test_symmetric_noise_bends_cross_entropy() -> None:
    """What normalisation is for: the sum over labels of cross-entropy depends on the logits."""
    input = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    confused, confident = over_labels(F.cross_entropy, input).sum(1)
    assert confident > confused + 3


@given(class_batches(), GAMMA, Q)
def test_generic_normalisation_equals_the_closed_forms(batch: Batch, gamma: float, q: float) -> None:
    input, target = batch
    pairs = [
        (F.cross_entropy, normalized_cross_entropy_loss, {}),
        (focal_loss, normalized_focal_loss, {"gamma": gamma}),
        (generalized_cross_entropy_loss, normalized_generalized_cross_entropy_loss, {"q": q}),
        (mean_absolute_error_loss, normalized_mean_absolute_error_loss, {}),
        (reverse_cross_entropy_loss, normalized_reverse_cross_entropy_loss, {}),
    ]
    for plain, closed, options in pairs:
        generic = normalize_loss(lambda z, y, *, reduction, f=plain, o=options: f(z, y, reduction=reduction, **o))
        torch.testing.assert_close(
            generic(input, target, reduction="none"), closed(input, target, reduction="none", **options)
        )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_generic_normalisation_takes_the_same_words(reduction: str) -> None:
    input = torch.linspace(-3, 3, 2 * 3 * 4).sin().reshape(2, 3, 4)
    target = torch.tensor([[0, 1, 2, 7], [2, 7, 0, 1]])
    options = {
        "weight": torch.tensor([0.5, 1.0, 2.0]),
        "sample_weight": torch.linspace(0.0, 2.0, 8).reshape(2, 4),
        "ignore_index": 7,
        "reduction": reduction,
    }
    for extra in ({}, {"normalizer": 3.0}):
        torch.testing.assert_close(
            normalize_loss(F.cross_entropy)(input, target, **options, **extra),
            normalized_cross_entropy_loss(input, target, **options, **extra),
        )


def test_one_class_cannot_be_normalized() -> None:
    for loss in NORMALIZED:
        with pytest.raises(ValueError, match="one class; wanted at least 2"):
            loss(torch.zeros(2, 1), torch.tensor([0, 0]), reduction="none")


# --- values and limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5, 100])
def test_values_where_all_classes_are_equal(classes: int) -> None:
    """Every normalised loss starts at 1 / C, however the loss was made."""
    input, target = torch.zeros(1, classes), torch.tensor([1])
    for loss in NORMALIZED:
        assert loss(input, target, reduction="mean").item() == pytest.approx(1 / classes)
    expected = {
        mean_absolute_error_loss: 1 - 1 / classes,
        reverse_cross_entropy_loss: 9.2103404 * (1 - 1 / classes),
        generalized_cross_entropy_loss: (1 - classes**-0.7) / 0.7,
        symmetric_cross_entropy_loss: 0.1 * math.log(classes) + 9.2103404 * (1 - 1 / classes),
        active_passive_loss: 1 / classes + 9.2103404 * (1 - 1 / classes),
    }
    for loss, value in expected.items():
        assert loss(input, target).item() == pytest.approx(value)


@given(class_batches(), st.booleans())
def test_normalized_focal_loss_without_focus_is_normalized_cross_entropy(batch: Batch, learned: bool) -> None:
    gamma = torch.tensor(0.0, dtype=torch.float64) if learned else 0.0
    torch.testing.assert_close(
        normalized_focal_loss(*batch, gamma=gamma, reduction="none"),
        normalized_cross_entropy_loss(*batch, reduction="none"),
    )


@given(class_batches())
def test_with_q_one_generalized_cross_entropy_is_the_mean_absolute_error(batch: Batch) -> None:
    input, target = batch
    miss = 1 - input.softmax(1).gather(1, target[:, None])[:, 0]
    for q in (1.0, torch.tensor(1.0, dtype=torch.float64)):
        torch.testing.assert_close(generalized_cross_entropy_loss(input, target, q=q, reduction="none"), miss)
        torch.testing.assert_close(
            normalized_generalized_cross_entropy_loss(input, target, q=q, reduction="none"),
            miss / (input.shape[1] - 1),
        )
    torch.testing.assert_close(mean_absolute_error_loss(input, target, reduction="none"), miss)


@given(class_batches())
def test_with_q_towards_zero_generalized_cross_entropy_is_cross_entropy(batch: Batch) -> None:
    """It lies below cross-entropy by at most q CE^2 / 2; its normalised form goes to that of cross-entropy."""
    expected = F.cross_entropy(*batch, reduction="none")
    for q in (0.0, torch.tensor(0.0, dtype=torch.float64)):
        torch.testing.assert_close(generalized_cross_entropy_loss(*batch, q=q, reduction="none"), expected)
    for q in (1e-1, 1e-3, 1e-6):
        below = expected - generalized_cross_entropy_loss(*batch, q=q, reduction="none")
        assert (below >= -1e-9).all()
        assert (below <= q * expected**2 / 2 + 1e-9).all()
    torch.testing.assert_close(
        normalized_generalized_cross_entropy_loss(*batch, q=1e-9, reduction="none"),
        normalized_cross_entropy_loss(*batch, reduction="none"),
    )


@given(class_batches(), st.floats(-20.0, -0.1))
def test_reverse_cross_entropy_is_a_multiple_of_the_mean_absolute_error(batch: Batch, log_zero: float) -> None:
    """By the definition too: -sum_k p_k log q_k, with log 1 = 0 and log 0 a constant."""
    input, target = batch
    miss = mean_absolute_error_loss(input, target, reduction="none")
    assert math.log(1e-4) == LOG_ZERO
    torch.testing.assert_close(reverse_cross_entropy_loss(input, target, reduction="none"), 9.210340371976182 * miss)
    log_q = torch.where(F.one_hot(target, input.shape[1]) == 1, 0.0, log_zero)
    torch.testing.assert_close(
        reverse_cross_entropy_loss(input, target, log_zero=log_zero, reduction="none"),
        -(input.softmax(1) * log_q).sum(1),
    )


@given(class_batches(), COEFFICIENT, COEFFICIENT)
def test_symmetric_cross_entropy_mixes_both_directions(batch: Batch, alpha: float, beta: float) -> None:
    cross_entropy = F.cross_entropy(*batch)
    torch.testing.assert_close(symmetric_cross_entropy_loss(*batch, alpha=1.0, beta=0.0), cross_entropy)
    torch.testing.assert_close(
        symmetric_cross_entropy_loss(*batch, alpha=alpha, beta=beta, log_zero=-4.0),
        alpha * cross_entropy + beta * reverse_cross_entropy_loss(*batch, log_zero=-4.0),
    )


# --- active plus passive --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("active", ACTIVE)
@pytest.mark.parametrize("passive", PASSIVE)
@given(batch=class_batches(), alpha=COEFFICIENT, beta=COEFFICIENT)
@settings(max_examples=15)  # of each pair
def test_active_plus_passive_is_linear_in_its_coefficients(
    active: str, passive: str, batch: Batch, alpha: float, beta: float
) -> None:
    """Names, and callables in their place, give alpha x active + beta x passive."""
    options = {"nfl": {"gamma": 0.5}, "fl": {"gamma": 0.5}, "ngce": {"q": 0.7}}.get(active, {})
    expected = alpha * ACTIVE[active](*batch, **options) + beta * PASSIVE[passive](*batch)
    torch.testing.assert_close(
        active_passive_loss(*batch, active=active, passive=passive, alpha=alpha, beta=beta), expected
    )

    def own(z: Tensor, y: Tensor, *, reduction: str) -> Tensor:
        return ACTIVE[active](z, y, reduction=reduction, **options)

    torch.testing.assert_close(
        ActivePassiveLoss(own, PASSIVE[passive], alpha=alpha, beta=beta)(*batch),
        expected,
    )


@given(class_batches(), GAMMA, Q)
def test_active_losses_take_gamma_and_q(batch: Batch, gamma: float, q: float) -> None:
    for active, expected in (
        ("nfl", normalized_focal_loss(*batch, gamma=gamma)),
        ("fl", focal_loss(*batch, gamma=gamma)),
        ("ngce", normalized_generalized_cross_entropy_loss(*batch, q=q)),
    ):
        torch.testing.assert_close(active_passive_loss(*batch, active=active, beta=0.0, gamma=gamma, q=q), expected)


def test_unknown_names_are_refused() -> None:
    batch = torch.zeros(1, 3), torch.tensor([0])
    with pytest.raises(ValueError, match=r"active is 'mae'; wanted one of nce, nfl, ngce, ce, fl, or a callable"):
        active_passive_loss(*batch, active="mae")
    with pytest.raises(ValueError, match=r"passive is 'nce'; wanted one of rce, mae, nrce, nmae, or a callable"):
        active_passive_loss(*batch, passive="nce")


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (normalized_focal_loss, {"gamma": -1.0}, "gamma is -1"),
        (active_passive_loss, {"gamma": -1.0}, "gamma is -1"),
        (active_passive_loss, {"q": 0.0}, r"q is 0.0; wanted a number in \(0, 1\]"),
        (normalized_generalized_cross_entropy_loss, {"q": 0.0}, r"q is 0.0; wanted a number in \(0, 1\]"),
        (generalized_cross_entropy_loss, {"q": 1.5}, r"q is 1.5; wanted a number in \[0, 1\]"),
        (reverse_cross_entropy_loss, {"log_zero": 0.0}, r"log_zero is 0.0; wanted a number in \(-inf, 0\)"),
        (symmetric_cross_entropy_loss, {"log_zero": 1.0}, "log_zero is 1"),
        (symmetric_cross_entropy_loss, {"alpha": -0.1}, "alpha is -0.1"),
        (symmetric_cross_entropy_loss, {"beta": -0.1}, "beta is -0.1"),
    ],
)
def test_hyperparameters_out_of_range(loss: Callable[..., Tensor], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(1, 3), torch.tensor([0]), **options)


# --- gradients ------------------------------------------------------------------------------------------------------


@given(class_batches(bound=8.0), Q, COEFFICIENT, COEFFICIENT)
def test_gradients_are_that_of_cross_entropy_times_a_factor(batch: Batch, q: float, alpha: float, beta: float) -> None:
    """With r = p - one-hot: p_y r, -A p_y r, p_y^q r and (alpha - beta A p_y) r."""
    input, target = batch
    p = input.softmax(1)
    of_label = p.gather(1, target[:, None])
    residual = p - F.one_hot(target, input.shape[1])
    for loss, options, factor in (
        (mean_absolute_error_loss, {}, of_label),
        (reverse_cross_entropy_loss, {}, -LOG_ZERO * of_label),
        (generalized_cross_entropy_loss, {"q": q}, of_label**q),
        (symmetric_cross_entropy_loss, {"alpha": alpha, "beta": beta}, alpha - beta * LOG_ZERO * of_label),
    ):
        torch.testing.assert_close(gradient_of(loss, batch, **options), factor * residual)


@given(class_batches(bound=8.0), GAMMA.filter(lambda gamma: gamma == 0 or gamma > 0.1), Q)
def test_gradients_of_the_normalized_losses(batch: Batch, gamma: float, q: float) -> None:
    """The quotient rule on f_y / sum_j f_j, with the derivative of f_j by p_j in closed form."""
    input = batch[0]
    p, log_p = input.softmax(1), input.log_softmax(1)
    miss = 1 - p
    for loss, options, f, slope in (
        (normalized_cross_entropy_loss, {}, -log_p, -1 / p),
        (
            normalized_focal_loss,
            {"gamma": gamma},
            -(miss**gamma) * log_p,
            gamma * miss ** (gamma - 1) * log_p - miss**gamma / p,
        ),
        (normalized_generalized_cross_entropy_loss, {"q": q}, 1 - p**q, -q * p ** (q - 1)),
        (normalized_mean_absolute_error_loss, {}, miss, -torch.ones_like(p)),
    ):
        expected = gradient_of_quotient(f, slope, p, batch[1])
        torch.testing.assert_close(gradient_of(loss, batch, **options), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bound", [1.0, 1e2, 1e6])
@given(data=st.data())
def test_gradient_of_normalized_cross_entropy_is_bounded(bound: float, data: st.DataObject) -> None:
    """By 1 / log C, since its divisor is at least C log C."""
    batch = data.draw(class_batches(bound=bound))
    gradient = gradient_of(normalized_cross_entropy_loss, batch)
    assert (gradient.abs() <= (1 + 1e-9) / math.log(batch[0].shape[1])).all()


@given(class_batches(), COEFFICIENT, COEFFICIENT)
def test_gradient_of_active_plus_passive_adds_up(batch: Batch, alpha: float, beta: float) -> None:
    torch.testing.assert_close(
        gradient_of(active_passive_loss, batch, alpha=alpha, beta=beta),
        alpha * gradient_of(normalized_cross_entropy_loss, batch)
        + beta * gradient_of(reverse_cross_entropy_loss, batch),
    )


# --- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [14.0, 18.0, 80.0])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(
    "loss",
    [
        generalized_cross_entropy_loss,
        normalized_generalized_cross_entropy_loss,
        normalized_focal_loss,
        mean_absolute_error_loss,
        reverse_cross_entropy_loss,
    ],
)
def test_float32_agrees_with_float64_where_a_class_is_certain(
    loss: Callable[..., Tensor], label: int, gap: float
) -> None:
    """1 - p from log-softmax is 5% off at a gap of 14 and 100% at 18; relative precision must survive both."""
    input, target = torch.tensor([[gap, 0.0, -1.0]]), torch.tensor([label])
    tiny = torch.finfo(torch.float32).tiny
    single, double = loss(input, target), loss(input.double(), target)
    assert double > 0
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=tiny)
    single, double = (gradient_of(loss, (z, target)) for z in (input, input.double()))
    # At a wrong label the gradient is a rounded difference of numbers near 1; at the right one it is itself tiny.
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=tiny if label == 0 else 1e-6)


def over_labels(loss: Callable[..., Tensor], input: Tensor) -> Tensor:
    """The loss of each row under each label ``(N, C)``."""
    rows, classes = input.shape
    return torch.stack([loss(input, torch.full((rows,), j), reduction="none") for j in range(classes)], 1)


def clean_and_noisy(loss: Callable[..., Tensor], batch: Batch, eta: float) -> tuple[Tensor, Tensor]:
    """The loss of each row, and its mean over labels that are wrong with probability eta, uniformly."""
    input, target = batch
    of_all, classes = over_labels(loss, input), input.shape[1]
    kept = F.one_hot(target, classes)
    probability = (1 - eta) * kept + eta / (classes - 1) * (1 - kept)
    return (kept * of_all).sum(1), (probability * of_all).sum(1)


def gradient_of_quotient(f: Tensor, slope: Tensor, p: Tensor, target: Tensor) -> Tensor:
    """Gradient by the logits of f_y / sum_j f_j, where ``slope`` is df_j / dp_j."""
    inward = slope * p  # df_j / dz_k = slope_j p_j ([j = k] - p_k)
    kept = F.one_hot(target, p.shape[1])
    numerator = (inward * kept).sum(1, keepdim=True) * (kept - p)
    denominator = inward - inward.sum(1, keepdim=True) * p
    total, of_label = f.sum(1, keepdim=True), (f * kept).sum(1, keepdim=True)
    return numerator / total - of_label * denominator / total**2


def gradient_of(loss: Callable[..., Tensor], batch: Batch, **options: float) -> Tensor:
    gradient: Tensor = torch.func.grad(lambda z: loss(z, batch[1], reduction="sum", **options))(batch[0])
    return gradient
