"""Dice, Tversky and Lovász: their identities, hard predictions, absent classes, brute force."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.segmentation import dice_loss, lovasz_softmax_loss, tversky_loss

SEEDS = st.integers(0, 10_000)
CLASSES = st.sampled_from(["all", "present"])


def scene(seed: int, *, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    input = 2 * torch.randn(2, classes, 3, 4, generator=generator, dtype=torch.float64)
    return input, torch.randint(classes, (2, 3, 4), generator=generator)


@given(SEEDS, st.floats(0, 2), CLASSES)
def test_tversky_with_half_prices_is_dice(seed: int, smooth: float, classes: str) -> None:
    input, target = scene(seed)
    dice = dice_loss(input, target, smooth=smooth, classes=classes)
    torch.testing.assert_close(tversky_loss(input, target, smooth=smooth / 2, classes=classes), dice)
    p, y = input.softmax(1), torch.nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    by_class = 1 - (2 * (p * y).sum((2, 3)) + smooth) / (p.sum((2, 3)) + y.sum((2, 3)) + smooth)
    if (y.sum((2, 3)) > 0).all():
        torch.testing.assert_close(dice, by_class.mean())


@given(SEEDS, st.floats(0, 2), st.floats(0, 2))
def test_tversky_by_hand(seed: int, alpha: float, beta: float) -> None:
    input, target = scene(seed)
    p, y = input.softmax(1), torch.nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    tp, fp, fn = ((p * y).sum((2, 3)), (p * (1 - y)).sum((2, 3)), ((1 - p) * y).sum((2, 3)))
    expected = torch.where(tp > 0, 1 - tp / (tp + alpha * fp + beta * fn), 1.0)
    torch.testing.assert_close(tversky_loss(input, target, alpha=alpha, beta=beta, reduction="none"), expected.mean(1))
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    weighted = tversky_loss(input, target, alpha=alpha, beta=beta, weight=weight, reduction="none")
    torch.testing.assert_close(weighted, (expected * weight).sum(1) / weight.sum())


@given(SEEDS)
def test_probability_targets_equal_their_classes(seed: int) -> None:
    input, target = scene(seed)
    soft = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    torch.testing.assert_close(dice_loss(input, soft), dice_loss(input, target))


@given(SEEDS, CLASSES)
def test_hard_predictions_have_the_jaccard_loss(seed: int, classes: str) -> None:
    """The extension equals what it extends at the corners: one minus the intersection over union of hard masks."""
    input, target = scene(seed)
    guess = input.argmax(1)
    hard = 1e4 * torch.nn.functional.one_hot(guess, 3).movedim(-1, 1).double()
    values = []
    for image in range(2):
        by_class = []
        for label in range(3):
            a, b = guess[image] == label, target[image] == label
            if not b.any():
                if classes == "all":
                    by_class.append(float(a.any()))
                continue
            by_class.append(1 - ((a & b).sum() / (a | b).sum()).item())
        values.append(sum(by_class) / len(by_class))
    expected = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(
        lovasz_softmax_loss(hard, target, classes=classes, reduction="none"), expected, rtol=1e-6, atol=1e-9
    )
    right = 1e4 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    assert lovasz_softmax_loss(right, target, classes=classes) == 0
    assert dice_loss(right, target, classes="present") == 0


@given(SEEDS)
def test_lovasz_by_brute_force(seed: int) -> None:
    """Sort the errors of a class one by one and weigh each by what it adds to the Jaccard loss."""
    input, target = scene(seed)
    p = input.softmax(1)
    values = []
    for image in range(2):
        for label in range(3):
            truth = (target[image] == label).flatten().tolist()
            error = [abs(t - q) for t, q in zip(truth, p[image, label].flatten().tolist(), strict=True)]
            wrong: set[int] = set()
            value, before = 0.0, 0.0
            for place in sorted(range(12), key=lambda i: -error[i]):
                wrong.add(place)
                kept = sum(t for i, t in enumerate(truth) if i not in wrong)
                union = sum(truth) + sum(1 for i in wrong if not truth[i])
                after = 1 - kept / union
                value += error[place] * (after - before)
                before = after
            values.append(value)
    assert lovasz_softmax_loss(input, target).item() == pytest.approx(sum(values) / 6)


@given(SEEDS)
def test_a_batch_as_one_image(seed: int) -> None:
    input, target = scene(seed)
    together = lovasz_softmax_loss(input, target, per_image=False, reduction="none")
    row = torch.cat([input[0], input[1]], 1)[None], torch.cat([target[0], target[1]], 0)[None]
    torch.testing.assert_close(together, lovasz_softmax_loss(*row, reduction="none"))


def test_absent_classes() -> None:
    input, target = torch.zeros(1, 3, 4), torch.tensor([[0, 0, 1, 1]])
    by_all, present = (dice_loss(input, target, classes=classes) for classes in ("all", "present"))
    torch.testing.assert_close(by_all, (2 * present + 1) / 3)  # the third has a loss of 1
    gone = torch.tensor([[[0.0] * 4, [0.0] * 4, [-1e4] * 4]])  # not even predicted, to the last bit
    assert dice_loss(gone, target).isfinite()
    torch.testing.assert_close(lovasz_softmax_loss(gone, target), 2 / 3 * lovasz_softmax_loss(gone[:, :2], target))


def test_bad_regions() -> None:
    for loss in (dice_loss, tversky_loss, lovasz_softmax_loss):
        with pytest.raises(ValueError, match="classes is 'some'"):
            loss(torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=torch.int64), classes="some")
        with pytest.raises(ValueError, match=r"wanted \(N, C, d1, ...\)"):
            loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
