"""Dice losses for text: the formulas of paper and public code, F1 as their limit, masks, hard negatives."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from torch import Tensor

from lossary.classification import (
    SelfAdjustingDiceLoss,
    nlp_dice_loss,
    self_adjusting_dice_loss,
    tversky_nlp_loss,
)
from tests.classification.strategies import class_batches, label_batches

ALPHA = st.floats(0.0, 2.0)
SMOOTH = st.floats(1e-3, 2.0)


@given(class_batches(bound=5.0), ALPHA, SMOOTH, st.booleans())
def test_formulas_of_classes(batch: tuple[Tensor, Tensor], alpha: float, smooth: float, soft: bool) -> None:
    input, target = batch
    p, y = input.softmax(1), F.one_hot(target, input.shape[1]).double()
    if soft:
        target = y = input.roll(1, 1).softmax(1)
    f = (1 - p).pow(alpha) * p
    options = {"alpha": alpha, "smooth": smooth, "reduction": "none"}
    close = {"atol": 1e-7, "rtol": 1e-6}
    paper = (1 - (2 * f * y + smooth) / (f + y + smooth)).sum(1)
    torch.testing.assert_close(self_adjusting_dice_loss(input, target, variant="paper", **options), paper, **close)
    square = (1 - (2 * f * y + smooth) / (f**2 + y**2 + smooth)).sum(1)
    torch.testing.assert_close(self_adjusting_dice_loss(input, target, **options), square, **close)
    of_batch = (1 - (2 * f * y + smooth) / ((f + y).sum(0) + smooth)).sum(1)
    linear = self_adjusting_dice_loss(input, target, square_denominator=False, **options)
    torch.testing.assert_close(linear, of_batch, **close)
    dense = input.T.reshape(1, input.shape[1], -1)
    targets = target.T.reshape(1, input.shape[1], -1) if soft else target[None]
    for square_denominator, expected in ((True, square), (False, of_batch)):
        loss = self_adjusting_dice_loss(dense, targets, square_denominator=square_denominator, **options)
        torch.testing.assert_close(loss, expected[None], **close)


@given(label_batches(bound=8.0), ALPHA, SMOOTH)
def test_formulas_of_yes_and_no(batch: tuple[Tensor, Tensor], alpha: float, smooth: float) -> None:
    input, y = batch
    p = input.sigmoid()
    f = (1 - p).pow(alpha) * p
    options = {"alpha": alpha, "smooth": smooth}
    per_entry = 1 - (2 * f * y + smooth) / (f + y + smooth)
    close = {"atol": 1e-7, "rtol": 1e-6}
    torch.testing.assert_close(
        self_adjusting_dice_loss(input, y, variant="paper", reduction="none", **options), per_entry, **close
    )
    for square, sizes in ((True, f**2 + y**2), (False, f + y)):
        expected = 1 - (2 * (f * y).sum() + smooth) / (sizes.sum() + smooth)
        for shape, target in ((input, y), (input[:, None], y.long()), (input[:, None], y[:, None].long())):
            loss = self_adjusting_dice_loss(shape, target, square_denominator=square, **options)
            torch.testing.assert_close(loss, expected, **close)
    torch.testing.assert_close(
        nlp_dice_loss(input, y, smooth=smooth), self_adjusting_dice_loss(input, y, smooth=smooth)
    )


@given(label_batches(), SMOOTH, st.floats(0.0, 2.0), st.floats(0.0, 2.0))
def test_tversky(batch: tuple[Tensor, Tensor], smooth: float, alpha: float, beta: float) -> None:
    input, y = batch
    p = input.sigmoid()
    dice = 1 - (2 * (p * y).sum() + 2 * smooth) / (p.sum() + y.sum() + 2 * smooth)
    torch.testing.assert_close(tversky_nlp_loss(input, y, smooth=smooth), dice)
    hits = (p * y).sum()
    expected = 1 - (hits + smooth) / (hits + alpha * (p * (1 - y)).sum() + beta * ((1 - p) * y).sum() + smooth)
    torch.testing.assert_close(tversky_nlp_loss(input, y, alpha=alpha, beta=beta, smooth=smooth), expected)


@pytest.mark.parametrize("seed", range(3))
def test_sure_predictions_give_f1(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    y, guess = (torch.rand(2, 50, generator=generator) < 0.4).double()
    f1 = f1_score(y.numpy(), guess.numpy())
    input = 40 * (2 * guess - 1)
    for loss in (
        self_adjusting_dice_loss(input, y, smooth=1e-9),
        nlp_dice_loss(input, y, smooth=0.0),
        tversky_nlp_loss(input, y, smooth=0.0),
    ):
        assert loss.item() == pytest.approx(1 - f1, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.01, 0.5, 1.0, 2.0])
def test_damping_turns_the_gradient_beyond_its_peak(alpha: float) -> None:
    """f = (1 - p)^alpha p falls beyond p = 1 / (1 + alpha): an easy positive is pushed down there."""
    peak = 1 / (1 + alpha)
    for p in (0.9 * peak, 0.9 * peak + 0.1):
        input = torch.tensor([p]).double().logit().requires_grad_()
        self_adjusting_dice_loss(input, torch.ones(1), alpha=alpha, variant="paper").backward()
        assert (input.grad < 0) == (p < peak)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("variant", ["official", "paper"])
def test_sure_rows_have_finite_gradients(alpha: float, variant: str) -> None:
    """The slope of (1 - p)^alpha is infinite at p = 1 for alpha < 1."""
    for input, target in (
        (torch.tensor([[1e4, 0.0], [-1e4, 0.0]]), torch.tensor([0, 0])),
        (torch.tensor([1e4, -1e4, 200.0]), torch.tensor([1.0, 1.0, 0.0])),
    ):
        input.requires_grad_()
        self_adjusting_dice_loss(input, target, alpha=alpha, variant=variant).backward()
        assert input.grad.isfinite().all()


def test_masked_rows_contribute_nothing_but_stay_in_the_mean() -> None:
    torch.manual_seed(0)
    input, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    mask = torch.tensor([1, 1, 0, 0, 1, 1])
    poisoned = torch.where(mask[:, None] == 1, input, 1e4).requires_grad_()
    loss = self_adjusting_dice_loss(poisoned, target, mask, reduction="none")
    kept = self_adjusting_dice_loss(input[mask == 1], target[mask == 1], reduction="none")
    torch.testing.assert_close(loss[mask == 1], kept)
    assert (loss[mask == 0] == 0).all()
    mean = SelfAdjustingDiceLoss()(poisoned, target, mask)
    torch.testing.assert_close(mean, kept.sum() / 6)
    mean.backward()
    assert (poisoned.grad[mask == 0] == 0).all()
    assert self_adjusting_dice_loss(input, target, torch.zeros(6)) == 0
    yes_no = (target == 1).float()
    for variant in ("official", "paper"):
        loss = lambda z, t, m=None, variant=variant: self_adjusting_dice_loss(z, t, m, variant=variant)  # noqa: E731
        assert loss(input[:, :1], yes_no[:, None], torch.zeros(6)) == 0
        assert loss(input[:, 0], yes_no, torch.zeros(6)) == 0
    torch.testing.assert_close(
        self_adjusting_dice_loss(input[:, 0], yes_no, mask),
        self_adjusting_dice_loss(input[mask == 1, 0], yes_no[mask == 1]),
    )


def test_ignored_rows_of_yes_and_no() -> None:
    input, target = torch.tensor([0.5, torch.nan, -1.0, 2.0]), torch.tensor([1, -100, 0, 0])
    kept = torch.tensor([True, False, True, True])
    for variant in ("official", "paper"):
        leaf = input.clone().requires_grad_()
        value = self_adjusting_dice_loss(leaf, target, variant=variant)
        torch.testing.assert_close(value, self_adjusting_dice_loss(input[kept], target[kept].float(), variant=variant))
        value.backward()
        assert leaf.grad[1] == 0
        assert leaf.grad.isfinite().all()


def test_sets_without_anything() -> None:
    for loss in (nlp_dice_loss, tversky_nlp_loss):
        assert loss(torch.zeros(0), torch.zeros(0), smooth=0.0) == 0
        input = torch.full((3,), -200.0, requires_grad=True)  # p is 0 in float32
        value = loss(input, torch.zeros(3), smooth=0.0)
        value.backward()
        assert value == 0
        assert input.grad.isfinite().all()


def test_hard_negatives_of_yes_and_no() -> None:
    """Two positives at ratio 1.5: the three most probable negatives stay."""
    input = torch.tensor([0.2, 3.0, -1.0, 2.0, -3.0, 1.0, -0.5])
    target = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    kept = torch.tensor([0, 1, 2, 3, 5])
    mined = self_adjusting_dice_loss(input, target, ohem_ratio=1.5)
    torch.testing.assert_close(mined, self_adjusting_dice_loss(input[kept], target[kept]))
    torch.testing.assert_close(
        self_adjusting_dice_loss(input, target, ohem_ratio=100.0), self_adjusting_dice_loss(input, target)
    )
    mask = torch.tensor([1, 0, 1, 1, 1, 1, 1])
    masked = self_adjusting_dice_loss(input, target, mask, ohem_ratio=1.5)
    kept = torch.tensor([0, 2, 3, 5, 6])
    torch.testing.assert_close(masked, self_adjusting_dice_loss(input[kept], target[kept]))
    together = torch.func.vmap(lambda z, t: self_adjusting_dice_loss(z, t, ohem_ratio=1.5))(
        torch.stack([input, input.flip(0)]), torch.stack([target, target.flip(0)])
    )
    torch.testing.assert_close(together, mined.expand(2))


def test_hard_negatives_of_classes() -> None:
    """For each class its rows stay, and of the others the most probable that are taken for it."""
    torch.manual_seed(1)
    input, target = 2 * torch.randn(24, 3), torch.arange(24) % 3
    ratio = 0.8  # 8 rows of a class: floor(0.8 * 8 / 3) = 2 negatives
    p, y = input.softmax(1), F.one_hot(target, 3).float()
    expected = torch.zeros(24)
    for k in range(3):
        negatives = sorted((row for row in range(24) if target[row] != k), key=lambda row, k=k: -p[row, k])[:2]
        kept = torch.tensor([target[row] == k or (row in negatives and p[row].argmax() == k) for row in range(24)])
        f, label = kept * p[:, k], kept * y[:, k]
        expected += 1 - (2 * f * label + 1e-4) / (f**2 + label**2 + 1e-4)
    mined = self_adjusting_dice_loss(input, target, ohem_ratio=ratio, reduction="none")
    torch.testing.assert_close(mined, expected)
    few = self_adjusting_dice_loss(input, target, ohem_ratio=0.1, reduction="none")
    torch.testing.assert_close(few, self_adjusting_dice_loss(input, target, reduction="none"))
    dense = input.T.reshape(1, 3, 6, 4)
    torch.testing.assert_close(
        self_adjusting_dice_loss(dense, target.reshape(1, 6, 4), ohem_ratio=ratio, reduction="none"),
        expected.reshape(1, 6, 4),
    )


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_hard_negatives_are_the_most_probable_however_damped(alpha: float) -> None:
    """(1 - p)^alpha p falls where p is high: the order is that of p."""
    input = torch.tensor([0.2, 6.0, -1.0, 2.0, -3.0, 40.0, 20.0])
    target = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    kept = torch.tensor([0, 1, 2, 5, 6])
    mined = self_adjusting_dice_loss(input, target, ohem_ratio=1.5, alpha=alpha)
    torch.testing.assert_close(mined, self_adjusting_dice_loss(input[kept], target[kept], alpha=alpha))
    classes = torch.stack([torch.zeros(7), input], 1)
    labels = target.long()  # class 1: floor(1.0 * 2 / 2) = 1 negative; class 0: floor(1.0 * 5 / 2) = 2
    mined = self_adjusting_dice_loss(classes, labels, ohem_ratio=1.0, alpha=alpha, smooth=1.0, reduction="none")
    p, y = classes.softmax(1), F.one_hot(labels, 2)
    kept = (y == 1) | torch.tensor(
        [[False, False], [False, False], [True, False]] + 2 * [[False, False]] + [[False, True], [False, False]]
    )
    f, y = kept * (1 - p) ** alpha * p, kept * y
    torch.testing.assert_close(mined, (1 - (2 * f * y + 1) / (f**2 + y**2 + 1)).sum(1))


def test_yes_and_no_of_several_columns_and_small_integers() -> None:
    input, target = torch.randn(4, 2), torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]])
    mask = torch.tensor([1, 0, 1, 1])
    expected = self_adjusting_dice_loss(input[mask == 1], target[mask == 1], binary=True)
    torch.testing.assert_close(self_adjusting_dice_loss(input, target, mask, binary=True), expected)
    for dtype in (torch.uint8, torch.bool, torch.float16):
        loss = self_adjusting_dice_loss(input, target.to(dtype), mask, binary=True)
        torch.testing.assert_close(loss, expected)
    with pytest.raises(ValueError, match="target contains 156"):
        self_adjusting_dice_loss(input[:, 0], torch.tensor([1, 0, 156, 0], dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"input has dtype torch\.int64"):
        self_adjusting_dice_loss(target[:, 0], target[:, 0])
    with pytest.raises(TypeError, match=r"mask is \[1, 0, 1, 1\] of type list"):
        self_adjusting_dice_loss(input[:, 0], target[:, 0], mask.tolist())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, t: self_adjusting_dice_loss(z, t, alpha=-1.0), "alpha is -1.0"),
        (lambda z, t: self_adjusting_dice_loss(z, t, smooth=-1.0), "smooth is -1.0"),
        (lambda z, t: self_adjusting_dice_loss(z, t, variant="own"), "variant is 'own'"),
        (lambda z, t: self_adjusting_dice_loss(z, t, ohem_ratio=-0.1), "ohem_ratio is -0.1"),
        (lambda z, t: self_adjusting_dice_loss(z, t, torch.ones(3)), r"mask has shape \(3,\); wanted \(2,\)"),
        (lambda z, t: self_adjusting_dice_loss(z[:, 0], t, normalizer=2.0), "normalizer"),
        (lambda z, t: self_adjusting_dice_loss(z[:, 0], t, reduction="max"), "reduction is 'max'"),
        (lambda z, t: self_adjusting_dice_loss(z[:, 0], 2 * t), "target contains 2"),
        (lambda z, t: tversky_nlp_loss(z[:, 0], t.float(), beta=-1.0), "beta is -1.0"),
    ],
)
def test_refuses(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3), torch.tensor([0, 1]))
