"""Squentropy and the rescaled square loss: their sums written out, gradients in closed form, shape of the minimum."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.classification.squentropy import rescaled_square_loss, squentropy_loss
from tests.classification.strategies import class_batches


@given(class_batches())
def test_cross_entropy_plus_mean_square_of_wrong_logits(batch: tuple[Tensor, Tensor]) -> None:
    input, target = batch
    expected = [
        F.cross_entropy(z, y) + torch.stack([z[k] ** 2 for k in range(len(z)) if k != y]).mean()
        for z, y in zip(input, target, strict=True)
    ]
    torch.testing.assert_close(squentropy_loss(input, target, reduction="none"), torch.stack(expected))


@given(class_batches(classes=2))
def test_two_classes(batch: tuple[Tensor, Tensor]) -> None:
    input, target = batch
    other = input.gather(1, 1 - target[:, None])
    expected = F.cross_entropy(input, target) + other.square().mean()
    torch.testing.assert_close(squentropy_loss(input, target), expected)


@given(class_batches())
def test_gradient(batch: tuple[Tensor, Tensor]) -> None:
    input, target = batch
    one_hot = F.one_hot(target, input.shape[1]).double()
    expected = input.softmax(1) - one_hot + 2 * (1 - one_hot) * input / (input.shape[1] - 1)
    gradient = torch.func.grad(lambda z: squentropy_loss(z, target, reduction="sum"))(input)
    torch.testing.assert_close(gradient, expected)


@given(st.integers(2, 10))
def test_at_zero(classes: int) -> None:
    assert squentropy_loss(torch.zeros(1, classes), torch.tensor([1])).item() == pytest.approx(math.log(classes))


@given(class_batches(), st.randoms())
def test_classes_may_be_renamed(batch: tuple[Tensor, Tensor], random) -> None:
    input, target = batch
    order = list(range(input.shape[1]))
    random.shuffle(order)
    renamed = torch.tensor([order.index(int(label)) for label in target])
    torch.testing.assert_close(squentropy_loss(input[:, order], renamed), squentropy_loss(input, target))


@given(class_batches(), st.floats(-5.0, 5.0))
def test_a_common_offset_matters(batch: tuple[Tensor, Tensor], offset: float) -> None:
    input, target = batch
    wrong = F.one_hot(target, input.shape[1]) == 0
    change = (wrong * (2 * offset * input + offset**2)).sum(1) / (input.shape[1] - 1)
    before, after = (squentropy_loss(z, target, reduction="none") for z in (input, input + offset))
    torch.testing.assert_close(after - before, change)


@given(class_batches(), st.floats(0.0, 1.0))
def test_convex(batch: tuple[Tensor, Tensor], share: float) -> None:
    one, target = batch
    other = one.roll(1, 1).flip(0)
    ends = [squentropy_loss(z, target) for z in (one, other)]
    between = squentropy_loss(share * one + (1 - share) * other, target)
    assert between <= share * ends[0] + (1 - share) * ends[1] + 1e-9


@pytest.mark.parametrize("label_logit", [0.0, 2.0, 6.0])
def test_wrong_logits_settle_just_below_zero(label_logit: float) -> None:
    """For a fixed logit of the label the minimum solves p_k = -2 z_k / (C - 1): wrong logits do not drift off."""
    wrong = torch.linspace(-1, 1, 4, dtype=torch.float64)
    label = torch.tensor([label_logit], dtype=torch.float64)

    def loss(wrong: Tensor) -> Tensor:
        return squentropy_loss(torch.cat([label, wrong])[None], torch.tensor([0]))

    for _ in range(200):
        wrong = wrong - torch.func.grad(loss)(wrong)
    p = torch.cat([label, wrong]).softmax(0)[1:]
    torch.testing.assert_close(p, -2 * wrong / 4)
    assert (wrong < 0).all()
    assert (wrong > -4 / (2 * 5)).all()


def test_dominant_logit_of_the_label_cancels_nothing() -> None:
    input = torch.tensor([[1e4, 0.01, -0.02]])
    torch.testing.assert_close(squentropy_loss(input, torch.tensor([0])), torch.tensor((1e-4 + 4e-4) / 2))


def test_squares_beyond_float16() -> None:
    input = torch.tensor([[0.0, 300.0]], dtype=torch.float16)
    assert squentropy_loss(input, torch.tensor([1])).item() == 0
    assert squentropy_loss(input, torch.tensor([0])).item() == pytest.approx(300 + 300**2)
    assert rescaled_square_loss(input, torch.tensor([0])).item() == pytest.approx((1 + 300**2) / 2)


def test_one_class_and_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="one class; wanted at least 2"):
        squentropy_loss(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))
    for loss in (squentropy_loss, rescaled_square_loss):
        with pytest.raises(ValueError, match="not defined for probabilities"):
            loss(torch.zeros(3, 2), torch.full((3, 2), 0.5))


@given(class_batches(), st.floats(0.0, 20.0), st.floats(-5.0, 20.0))
def test_rescaled_square_and_its_gradient(batch: tuple[Tensor, Tensor], scale: float, target_value: float) -> None:
    input, target = batch
    one_hot = F.one_hot(target, input.shape[1]).double()
    factor = torch.where(one_hot == 1, scale, 1.0)
    distance = input - target_value * one_hot
    options = {"scale": scale, "target_value": target_value, "reduction": "none"}
    torch.testing.assert_close(rescaled_square_loss(input, target, **options), (factor * distance**2).mean(1))
    gradient = torch.func.grad(lambda z: rescaled_square_loss(z, target, **options).sum())(input)
    torch.testing.assert_close(gradient, 2 * factor * distance / input.shape[1])


@given(class_batches())
def test_square_without_rescaling_is_the_mean_squared_error(batch: tuple[Tensor, Tensor]) -> None:
    input, target = batch
    expected = F.mse_loss(input, F.one_hot(target, input.shape[1]).double())
    torch.testing.assert_close(rescaled_square_loss(input, target), expected)
