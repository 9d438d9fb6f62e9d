"""Logit clipping: what it keeps and what it bounds, its gradient, its range and what it promises under noise."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

from lossary.classification import (
    FocalLoss,
    LogitClip,
    LogitClippedLoss,
    clip_logits,
    focal_loss,
    generalized_cross_entropy_loss,
    logit_clip_bounds,
    logit_clip_cross_entropy_loss,
    symmetric_noise_risk_gap,
)
from tests.classification.strategies import class_batches

MAX_NORM = st.floats(0.05, 30.0)
P = st.sampled_from([1.0, 1.5, 2.0, 3.0, math.inf])


@given(class_batches(), MAX_NORM, P, st.floats(1.0, 1e6))
def test_clipping(batch: tuple[Tensor, Tensor], max_norm: float, p: float, factor: float) -> None:
    input, _ = batch
    clipped = clip_logits(input, max_norm=max_norm, p=p)
    norm, after = (torch.linalg.vector_norm(z, p, 1) for z in (input, clipped))
    assert (after <= max_norm * (1 + 1e-9)).all()
    inside = norm <= max_norm
    assert torch.equal(clipped[inside], input[inside])
    torch.testing.assert_close(clipped * norm[:, None], input * after[:, None], atol=1e-9, rtol=1e-9)  # same direction
    torch.testing.assert_close(clip_logits(clipped, max_norm=max_norm, p=p), clipped)
    further = clip_logits(factor * input[~inside], max_norm=max_norm, p=p)
    torch.testing.assert_close(further, clipped[~inside])


@given(class_batches(), P)
def test_limits(batch: tuple[Tensor, Tensor], p: float) -> None:
    input, target = batch
    options = {"weight": torch.linspace(0.5, 2.0, input.shape[1]).double(), "label_smoothing": 0.1}
    wide = logit_clip_cross_entropy_loss(input, target, max_norm=1e6, p=p, **options)
    torch.testing.assert_close(wide, F.cross_entropy(input, target, **options))
    narrow = logit_clip_cross_entropy_loss(input, target, max_norm=1e-9, p=p)
    torch.testing.assert_close(narrow, torch.tensor(math.log(input.shape[1]), dtype=torch.float64), atol=1e-8, rtol=0)


@given(class_batches(), MAX_NORM, P)
def test_loss_lies_within_its_bounds(batch: tuple[Tensor, Tensor], max_norm: float, p: float) -> None:
    input, target = batch
    low, high = logit_clip_bounds(input.shape[1], max_norm, p)
    loss = logit_clip_cross_entropy_loss(1e3 * input, target, max_norm=max_norm, p=p, reduction="none")
    assert (loss >= low - 1e-9).all()
    assert (loss <= high + 1e-9).all()


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("max_norm", [0.5, 2.0])
def test_lower_bound_is_attained(classes: int, max_norm: float) -> None:
    input = torch.full((1, classes), -max_norm / math.sqrt(classes * (classes - 1)), dtype=torch.float64)
    input[0, 0] = max_norm * math.sqrt((classes - 1) / classes)
    value = logit_clip_cross_entropy_loss(input, torch.tensor([0]), max_norm=max_norm).item()
    assert value == pytest.approx(logit_clip_bounds(classes, max_norm)[0], abs=1e-12)


@given(class_batches(), st.floats(0.05, 2.0))
def test_only_the_direction_is_trained_beyond_the_ball(batch: tuple[Tensor, Tensor], max_norm: float) -> None:
    input, target = batch
    gradient = torch.func.grad(lambda z: logit_clip_cross_entropy_loss(z, target, max_norm=max_norm, reduction="sum"))(
        input
    )
    outside = input.norm(dim=1) > max_norm
    along = (gradient * input).sum(1) / (1 + gradient.norm(dim=1) * input.norm(dim=1))
    torch.testing.assert_close(along[outside], torch.zeros_like(along[outside]), atol=1e-9, rtol=0)
    plain = torch.func.grad(lambda z: F.cross_entropy(z, target, reduction="sum"))(input)
    torch.testing.assert_close(gradient[~outside], plain[~outside])


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_gradients_at_zero_of_first_and_second_order(p: float) -> None:
    input = torch.zeros(2, 3, dtype=torch.float64)
    input[1] = torch.tensor([3.0, -1.0, 0.5])
    clip = lambda z: clip_logits(z, max_norm=1.0, p=p)  # noqa: E731
    torch.testing.assert_close(torch.func.jacrev(clip)(input)[0, :, 0], torch.eye(3).double())
    second = torch.func.hessian(lambda z: clip(z).square().sum())(input)
    assert second.isfinite().all()
    assert torch.autograd.functional.hessian(lambda z: clip(z).square().sum(), input).isfinite().all()
    assert torch.autograd.gradcheck(clip, (input + 0.01).requires_grad_())


def test_extreme_logits_in_half_precision() -> None:
    input = torch.tensor([[3e4, -4e4], [3e-4, 4e-4]], dtype=torch.float16)
    clipped = clip_logits(input, max_norm=1.0)
    assert clipped.dtype == torch.float16
    torch.testing.assert_close(clipped[0], torch.tensor([0.6, -0.8], dtype=torch.float16), atol=1e-3, rtol=0)
    wide = torch.tensor([[1e30, -1e30], [-math.inf, 2.0]])
    expected = torch.tensor([[0.5**0.5, -(0.5**0.5)], [-1.0, 0.0]])
    torch.testing.assert_close(clip_logits(wide, max_norm=1.0), expected)
    dense = torch.randn(2, 3, 4)
    torch.testing.assert_close(clip_logits(dense, max_norm=0.5).norm(dim=1).amax(), torch.tensor(0.5))


def test_layer_clips_in_training() -> None:
    layer, input = LogitClip(1.0), torch.tensor([[3.0, 4.0]])
    assert layer(input).norm().item() == pytest.approx(1.0)
    assert layer.eval()(input) is input
    assert LogitClip(1.0, clip_in_eval=True).eval()(input).norm().item() == pytest.approx(1.0)
    assert "max_norm" in LogitClip(torch.tensor(2.0)).state_dict()


@given(class_batches(), MAX_NORM)
def test_any_loss_can_be_wrapped(batch: tuple[Tensor, Tensor], max_norm: float) -> None:
    input, target = batch
    clipped = clip_logits(input, max_norm=max_norm)
    focal = LogitClippedLoss(FocalLoss(gamma=2.0), max_norm).eval()
    torch.testing.assert_close(focal(input, target), focal_loss(clipped, target, gamma=2.0))
    torch.testing.assert_close(focal(input[0], target[0]), focal(input[:1], target[:1]))
    rows = LogitClippedLoss(generalized_cross_entropy_loss, max_norm)(input, target, reduction="none")
    torch.testing.assert_close(rows, generalized_cross_entropy_loss(clipped, target, reduction="none"))


@pytest.mark.parametrize("max_norm", [0.3, 2.0])
@pytest.mark.parametrize("noise_rate", [0.1, 0.4])
def test_noise_costs_no_more_than_promised(max_norm: float, noise_rate: float) -> None:
    """The best clipped scores for noisy labels, judged on clean ones: three classes, one input."""
    clean = torch.tensor([0.7, 0.25, 0.05]).double()
    noisy = (1 - noise_rate) * clean + noise_rate * (1 - clean) / 2

    def risk(z: Tensor, q: Tensor) -> Tensor:
        losses = logit_clip_cross_entropy_loss(z.expand(3, 3), torch.arange(3), max_norm=max_norm, reduction="none")
        return q @ losses

    def best(q: Tensor) -> Tensor:
        found = [
            optimize.minimize(lambda z: float(risk(torch.tensor(z), q)), start)
            for start in ([1.0, 0.0, -1.0], [0.1, 0.1, -0.2])
        ]
        return torch.tensor(min(found, key=lambda result: result.fun).x)

    gap = float(risk(best(noisy), clean) - risk(best(clean), clean))
    assert -1e-6 <= gap <= symmetric_noise_risk_gap(3, max_norm, noise_rate)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clip_logits(torch.zeros(1, 2), max_norm=0.0), "max_norm is 0.0"),
        (lambda: clip_logits(torch.zeros(1, 2), max_norm=1.0, p=0.5), "p is 0.5"),
        (lambda: clip_logits(torch.zeros(1, 2), max_norm=1.0, dim=2), r"dim is 2; wanted .* shape \(1, 2\)"),
        (lambda: clip_logits(torch.zeros(1, 2), max_norm=1.0, eps=0.0), "eps is 0.0"),
        (lambda: LogitClip(-1.0), "max_norm is -1.0"),
        (lambda: logit_clip_bounds(1, 1.0), "num_classes is 1"),
        (lambda: symmetric_noise_risk_gap(4, 1.0, 0.75), "noise_rate is 0.75"),
    ],
)
def test_refuses(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
