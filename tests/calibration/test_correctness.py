"""Correctness-aware calibration: the loss by hand, its gradient, its bound; features, transforms and the calibrator."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.calibration import (
    CorrectnessAwareCalibrator,
    CorrectnessAwareLoss,
    correctness_aware_loss,
    expected_calibration_error,
    image_transforms,
    transform_agreement_features,
)
from tests.classification.strategies import class_batches

Batch = tuple[Tensor, Tensor]
NORM = st.sampled_from(["l2", "l1"])


def gaps(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    correct = (input.argmax(1) == target).double()
    return input.softmax(1).amax(1) - correct, correct


def two_kinds(rows: int = 12, seed: int = 0) -> Batch:
    """Logits with right and wrong predictions."""
    generator = torch.Generator().manual_seed(seed)
    input = 2 * torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    target = input.argmax(1)
    target[::3] = (target[::3] + 1) % 4
    return input, target


# --- the loss -------------------------------------------------------------------------------------------------------


@given(class_batches(bound=8.0), NORM)
def test_by_definition(batch: Batch, norm: str) -> None:
    input, target = batch
    gap, correct = gaps(input, target)
    loss = gap.square() if norm == "l2" else gap.abs()
    plain = correctness_aware_loss(input, target, balanced=False, norm=norm)  # type: ignore[arg-type]
    torch.testing.assert_close(plain, loss.mean())
    a = correct.mean()
    weight = torch.where(correct == 1, 1 - a, a)
    expected = loss.mean() if weight.sum() == 0 else (weight * loss).sum() / weight.sum()
    torch.testing.assert_close(correctness_aware_loss(input, target, norm=norm), expected)  # type: ignore[arg-type]


def test_half_right_needs_no_balance_and_order_is_nothing() -> None:
    input, target = two_kinds()
    target = torch.where(torch.arange(12) % 2 == 0, input.argmax(1), (input.argmax(1) + 1) % 4)
    torch.testing.assert_close(
        correctness_aware_loss(input, target), correctness_aware_loss(input, target, balanced=False)
    )
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        correctness_aware_loss(input[order], target[order]), correctness_aware_loss(input, target)
    )


@given(class_batches(bound=8.0))
def test_gradient_goes_through_the_confidence_alone(batch: Batch) -> None:
    """The slope of s in logit k is s ([k = predicted] - p_k)."""
    input, target = batch
    gap, _ = gaps(input, target)
    p = input.softmax(1)
    slope = p.amax(1, keepdim=True) * (F.one_hot(input.argmax(1), input.shape[1]) - p)
    gradient = torch.func.grad(lambda z: correctness_aware_loss(z, target, balanced=False, reduction="sum"))(input)
    torch.testing.assert_close(gradient, 2 * gap[:, None] * slope)


@given(class_batches(bound=8.0), st.integers(1, 25))
def test_l1_bounds_the_calibration_error_of_any_binning(batch: Batch, bins: int) -> None:
    input, target = batch[0].round(decimals=6), batch[1]  # the error breaks ties of probabilities, the loss of logits
    bound = correctness_aware_loss(input, target, balanced=False, norm="l1")
    assert expected_calibration_error(input, target, bins) <= bound + 1e-9


def test_best_temperature_of_a_wrong_prediction_is_none() -> None:
    """Its loss falls to (1/C)^2 as T grows, that of a right one to 0 as T shrinks."""
    input = torch.tensor([[3.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    wrong, right = torch.tensor([1]), torch.tensor([0])
    values = [correctness_aware_loss(input / t, wrong).item() for t in (0.1, 1.0, 10.0, 1e6)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(1 / 16, rel=1e-4)
    assert correctness_aware_loss(input / 0.01, right).item() == pytest.approx(0, abs=1e-12)


def test_given_accuracy_shards_add_up() -> None:
    input, target = two_kinds()
    a = (input.argmax(1) == target).double().mean()
    whole = correctness_aware_loss(input, target)
    parts = [
        correctness_aware_loss(input[rows], target[rows], accuracy=a, normalizer=12)
        for rows in (slice(0, 5), slice(5, 12))
    ]
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(correctness_aware_loss(input, target, accuracy=a.item()), whole)


def test_one_kind_alone_is_not_balanced() -> None:
    input, _ = two_kinds()
    right = input.argmax(1)
    for target in (right, (right + 1) % 4):
        loss = CorrectnessAwareLoss(norm="l1")(input, target)
        torch.testing.assert_close(loss, gaps(input, target)[0].abs().mean())


# --- features -------------------------------------------------------------------------------------------------------


def test_features_by_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, copies = torch.randn(5, 6, generator=generator), torch.randn(5, 3, 6, generator=generator)
    features = transform_agreement_features(logits, copies, k=4)
    top = logits.argsort(1, descending=True)[:, :4]
    for t in range(3):
        torch.testing.assert_close(features[:, 4 * t : 4 * t + 4], copies[:, t].softmax(1).gather(1, top))
    torch.testing.assert_close(transform_agreement_features(logits, list(copies.unbind(1)), k=4), features)
    assert (features >= 0).all()
    assert (features.view(5, 3, 4).sum(2) <= 1 + 1e-6).all()
    same = transform_agreement_features(logits, [logits], k=6)
    torch.testing.assert_close(same, logits.softmax(1).sort(1, descending=True).values)


def test_image_transforms() -> None:
    images = torch.rand(3, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    rotate, grey, change = image_transforms(generator=torch.Generator().manual_seed(1))
    for transform in (rotate, grey, change):
        out = transform(images)
        assert out.shape == images.shape
        assert out.min() >= 0
        assert out.max() <= 1
        assert not torch.equal(out, images)
    assert (grey(images).std(1) < 1e-6).all()
    constant = torch.full((2, 1, 8, 8), 0.4)
    torch.testing.assert_close(rotate(constant), constant)
    still = image_transforms(max_angle=0.0, jitter=0.0)
    torch.testing.assert_close(still[0](images), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(still[2](images), images, atol=1e-6, rtol=0)
    quarter = image_transforms(1, max_angle=90.0, generator=torch.Generator().manual_seed(0))
    assert len(quarter) == 1
    first, second = (image_transforms(generator=torch.Generator().manual_seed(2))[2](images) for _ in range(2))
    assert torch.equal(first, second)


def test_rotation_keeps_the_shape_of_what_is_rotated() -> None:
    """On an oblong image a line through the centre turns by the angle drawn, and is not sheared."""
    images = torch.zeros(200, 1, 21, 41)
    images[:, :, 10, 6:35] = 1
    rotate = image_transforms(1, max_angle=20.0, generator=torch.Generator().manual_seed(0))[0]
    out = rotate(images)[:, 0]
    y, x = torch.arange(21.0)[:, None] - 10, torch.arange(41.0) - 20
    total = out.sum((1, 2))
    spread = (out * x * y).sum((1, 2)) / total, (out * (x * x - y * y)).sum((1, 2)) / total
    angle = 0.5 * torch.atan2(2 * spread[0], spread[1])
    draws = (2 * torch.rand(200, generator=torch.Generator().manual_seed(0)) - 1) * 20 * torch.pi / 180
    torch.testing.assert_close(angle.abs(), draws.abs(), atol=0.03, rtol=0)


# --- the calibrator -------------------------------------------------------------------------------------------------


def test_forward_divides_by_a_bounded_temperature() -> None:
    calibrator = CorrectnessAwareCalibrator(3, min_temperature=0.5, max_temperature=2.0)
    logits, features = torch.randn(50, 4), 10 * torch.randn(50, 3)
    temperature = calibrator.temperature_of(features)
    assert temperature.min() >= 0.5
    assert temperature.max() <= 2
    torch.testing.assert_close(calibrator(logits, features), logits / temperature[:, None])
    assert torch.equal(calibrator(logits, features).argmax(1), logits.argmax(1))


def test_two_groups_get_their_temperatures() -> None:
    """Equal logits, right in one group and wrong in the other, which the feature tells apart."""
    torch.manual_seed(0)
    logits = torch.tensor([[2.0, 0.0, 0.0]]).expand(200, 3)
    features = (torch.arange(200) % 2).float()[:, None]
    target = (torch.arange(200) % 2).long()
    calibrator = CorrectnessAwareCalibrator(1, hidden=5, init_temperature=1.0)
    calibrator.fit(logits, features, target, epochs=300, lr=0.03, generator=torch.Generator().manual_seed(0))
    right, wrong = calibrator.temperature_of(torch.tensor([[0.0], [1.0]]))
    assert right < 0.7
    assert wrong > 3


def test_fit_follows_its_arguments() -> None:
    logits, target = two_kinds(40)
    features = torch.rand(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = CorrectnessAwareCalibrator(2, init_temperature=1.0).double()

    def fitted(**words: object) -> Tensor:
        twin = CorrectnessAwareCalibrator(2, init_temperature=1.0).double()
        twin.load_state_dict(start.state_dict())
        generator = torch.Generator().manual_seed(3)
        return twin.fit(logits, features, target, lr=0.01, generator=generator, **words)(logits, features)

    base = fitted(batch_size=16)
    assert torch.equal(fitted(batch_size=16), base)
    for words in ({"batch_size": 40}, {"balanced": False}, {"norm": "l1"}, {"loss": F.cross_entropy}, {"epochs": 2}):
        assert not torch.equal(fitted(**{"batch_size": 16, **words}), base)


def test_a_start_without_gradient_is_reported() -> None:
    logits, target = two_kinds()
    calibrator = CorrectnessAwareCalibrator(2).double()
    torch.nn.init.constant_(calibrator.temperature.bias, -5.0)
    with pytest.warns(UserWarning, match="100% of the temperatures start outside"):
        calibrator.fit(logits, torch.rand(12, 2).double(), target, epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CorrectnessAwareCalibrator(2, init_temperature=1.0).double().fit(logits, torch.rand(12, 2).double(), target)


def test_bad_input() -> None:
    logits, target = two_kinds()
    with pytest.raises(ValueError, match="norm is 'l3'"):
        correctness_aware_loss(logits, target, norm="l3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="accuracy is 2"):
        correctness_aware_loss(logits, target, accuracy=2.0)
    with pytest.raises(ValueError, match="k is 5"):
        transform_agreement_features(logits, [logits], k=5)
    with pytest.raises(ValueError, match="transformed_logits has shape"):
        transform_agreement_features(logits, [logits[:, :3]], k=2)
    with pytest.raises(ValueError, match="init_temperature is 20"):
        CorrectnessAwareCalibrator(2, init_temperature=20.0)
    with pytest.raises(ValueError, match="images have shape"):
        image_transforms()[1](torch.zeros(2, 4, 8, 8))


def test_a_given_accuracy_keeps_its_digits() -> None:
    input, target = two_kinds()
    gap, correct = gaps(input, target)
    wanted = (torch.where(correct > 0, 0.7, 0.3).double() * gap**2).mean() / 0.42
    torch.testing.assert_close(correctness_aware_loss(input, target, accuracy=0.3), wanted, rtol=1e-7, atol=0)
    per_row = correctness_aware_loss(input, target, accuracy=0.3, reduction="none")
    exact = torch.tensor([0.7 if right else 0.3 for right in correct], dtype=torch.float64) * gap**2 / 0.42
    torch.testing.assert_close(per_row, exact, rtol=1e-12, atol=0)


def test_calibrators_take_any_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, copies = torch.randn(20, 5, generator=generator), torch.randn(20, 3, 5, generator=generator)
    target = torch.randint(5, (20,), generator=generator)
    half = transform_agreement_features(logits.bfloat16(), copies.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(
        half, transform_agreement_features(logits.bfloat16().float(), copies.bfloat16().float()), rtol=1e-6, atol=0
    )
    calibrator = CorrectnessAwareCalibrator(12, init_temperature=1.0)
    for dtype in (torch.bfloat16, torch.float64):
        features = half.to(dtype)
        assert calibrator.fit(logits.to(dtype), features, target)(logits.to(dtype), features).isfinite().all()


def test_rows_of_a_calibrator_that_do_not_fit_say_so() -> None:
    calibrator, logits, features = CorrectnessAwareCalibrator(3), torch.randn(6, 4), torch.rand(6, 3)
    target = torch.zeros(6, dtype=torch.long)
    with pytest.raises(ValueError, match=r"features has shape \(6, 2\)"):
        calibrator(logits, features[:, :2])
    with pytest.raises(ValueError, match=r"features has shape \(1, 3\)"):
        calibrator(logits, features[:1])
    with pytest.raises(ValueError, match=r"target has shape \(5,\)"):
        calibrator.fit(logits, features, target[:5])
    with pytest.raises(ValueError, match="transformed_logits"):
        transform_agreement_features(logits, [])
