"""Angular margins: cosine cross-entropy without one, by hand with one, ends of the range, both orders of arguments."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.embedding import (
    ArcFaceLoss,
    CenterLoss,
    arcface_loss,
    barlow_twins_loss,
    center_loss,
    cosface_loss,
    sphereface_loss,
)

SEEDS = st.integers(0, 10_000)


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    input, weight = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (6, 3))
    return input, torch.randint(3, (6,), generator=generator), weight


@given(SEEDS, st.floats(0.1, 64))
def test_without_margin_all_are_cosine_cross_entropy(seed: int, scale: float) -> None:
    input, target, weight = batch(seed)
    cosine = F.normalize(input) @ F.normalize(weight).T
    expected = F.cross_entropy(scale * cosine, target)
    torch.testing.assert_close(arcface_loss(input, target, weight, margin=0.0, scale=scale), expected)
    torch.testing.assert_close(cosface_loss(input, target, weight, margin=0.0, scale=scale), expected)
    unit = F.normalize(input)
    torch.testing.assert_close(sphereface_loss(unit, target, weight, margin=1, scale=scale), expected)


@given(SEEDS, st.floats(0, math.pi), st.integers(1, 6))
def test_margins_by_hand(seed: int, margin: float, times: int) -> None:
    input, target, weight = batch(seed)
    cosine = F.normalize(input) @ F.normalize(weight).T
    own = F.one_hot(target, 3).bool()
    theta = cosine.clamp(-1, 1).acos()
    arc = torch.where(theta <= math.pi - margin, (theta + margin).cos(), cosine - margin * math.sin(margin))
    fold = (times * theta / math.pi).floor()
    sphere = (-1) ** fold * (times * theta).cos() - 2 * fold
    for call, replaced, factor in (
        (lambda: arcface_loss(input, target, weight, margin=margin, scale=8.0), arc, 8.0),
        (lambda: sphereface_loss(input, target, weight, margin=times), sphere, input.norm(dim=1, keepdim=True)),
    ):
        expected = F.cross_entropy(factor * torch.where(own, replaced, cosine), target)
        torch.testing.assert_close(call(), expected, rtol=1e-6, atol=1e-8)
    cos = F.cross_entropy(8 * (cosine - 0.35 * own), target)
    torch.testing.assert_close(cosface_loss(input, target, weight, scale=8.0), cos)


@given(SEEDS)
def test_labels_and_directions_come_in_either_order(seed: int) -> None:
    input, target, weight = batch(seed)
    for loss in (arcface_loss, cosface_loss, sphereface_loss):
        torch.testing.assert_close(loss(input, weight, target), loss(input, target, weight))


@pytest.mark.parametrize("loss", [arcface_loss, cosface_loss, sphereface_loss])
def test_embeddings_on_their_direction_and_against_it(loss) -> None:
    weight = torch.eye(3)
    input = torch.stack([weight[0], -weight[0], torch.zeros(3)]).requires_grad_()
    value = loss(input, torch.zeros(3, dtype=torch.int64), weight, reduction="none")
    (gradient,) = torch.autograd.grad(value.sum(), input)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", [arcface_loss, cosface_loss, sphereface_loss])
def test_an_embedding_of_zero_has_a_gradient_of_ordinary_size(loss) -> None:
    input = torch.zeros(1, 2, dtype=torch.float16, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(input, torch.tensor([0]), torch.eye(2).half()), input)
    assert gradient.abs().max() < 100


@pytest.mark.parametrize("times", [2, 3, 4])
def test_the_multiplied_angle_falls_all_the_way(times: int) -> None:
    theta = torch.linspace(0, math.pi, 400, dtype=torch.float64)
    circle = torch.stack([theta.cos(), theta.sin()], 1)
    weight = torch.eye(2, dtype=torch.float64)
    value = sphereface_loss(circle, torch.zeros(400, dtype=torch.int64), weight, margin=times, reduction="none")
    own = torch.where(theta.cos() > -2, circle[:, 1] - (value.exp() - 1).log(), 0)  # logit of the label
    assert (own.diff() <= 1e-9).all()


def test_a_larger_margin_is_a_larger_loss() -> None:
    input, target, weight = batch(0)
    values = [cosface_loss(input, target, weight, margin=m).item() for m in (0.0, 0.2, 0.4)]
    assert values == sorted(values)


def test_ignored_rows_send_no_nan_to_the_directions() -> None:
    input, target, weight = batch(0)
    input[0], target[0] = math.nan, -100
    weight.requires_grad_()
    for loss in (arcface_loss, cosface_loss, sphereface_loss):
        (gradient,) = torch.autograd.grad(loss(input, target, weight), weight)
        assert gradient.isfinite().all()


def test_a_head_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 4, generator=generator)
    target = torch.randint(3, (200,), generator=generator)
    input = centres[target] + 0.3 * torch.randn(200, 4, generator=generator)
    torch.manual_seed(0)
    head = ArcFaceLoss(3, 4, scale=8.0)
    optimizer = torch.optim.Adam(head.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        head(input, target).backward()
        optimizer.step()
    guess = (F.normalize(input) @ F.normalize(head.weight).T).argmax(1)
    assert (guess == target).double().mean() > 0.9


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y, w: arcface_loss(x, y, w, margin=4.0), ValueError, "margin is 4.0"),
        (lambda x, y, w: sphereface_loss(x, y, w, margin=1.5), ValueError, "whole number"),
        (lambda x, y, w: arcface_loss(x, y, w[:, :2]), ValueError, r"weight has shape .*a direction a class"),
        (lambda x, y, w: arcface_loss(x[None], y, w), ValueError, "input has shape"),
        (lambda x, y, w: arcface_loss(x, y, y), TypeError, "weight has dtype"),
        (lambda x, y, w: center_loss(x, y, w[:, :2]), ValueError, "centers has shape"),
        (lambda x, y, w: center_loss(x[None], y, w), ValueError, "input has shape"),
        (lambda x, y, w: barlow_twins_loss(x[0], x[0]), ValueError, "input has shape"),
    ],
)
def test_bad_arguments(call, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call(*batch(0))


# --- centres and Barlow Twins -----------------------------------------------------------------------------------------


@given(SEEDS, st.floats(0, 1))
def test_centres_by_hand(seed: int, alpha: float) -> None:
    input, target, centers = batch(seed)
    target[0] = -100
    loss, moved = center_loss(input, target, centers, alpha=alpha)
    kept = [i for i in range(6) if target[i] >= 0]
    expected = sum(((input[i] - centers[target[i]]) ** 2).sum() / 2 for i in kept) / len(kept)
    torch.testing.assert_close(loss, expected)
    for label in range(3):
        own = [i for i in kept if target[i] == label]
        step = sum((centers[label] - input[i] for i in own), torch.zeros(4)) / (1 + len(own))
        torch.testing.assert_close(moved[label], centers[label] - alpha * step)


def test_centres_reach_the_means_and_stay_put_in_evaluation() -> None:
    input, target, _ = batch(1)
    loss = CenterLoss(3, 4).double()
    for _ in range(200):
        loss(input, target)
    for label in target.unique():
        torch.testing.assert_close(loss.centers[label], input[target == label].mean(0), rtol=1e-4, atol=1e-4)
    before = loss.centers.clone()
    loss.eval()(input, target)
    assert torch.equal(loss.centers, before)


@given(SEEDS, st.floats(0, 1))
def test_barlow_twins_by_hand(seed: int, lam: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(8, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    c = torch.corrcoef(torch.cat([a, b], 1).T)[:3, 3:]
    expected = (1 - c.diagonal()).square().sum() + lam * (c.square().sum() - c.diagonal().square().sum())
    torch.testing.assert_close(barlow_twins_loss(a, b, lam=lam, eps=0.0), expected)
    torch.testing.assert_close(barlow_twins_loss(3 * a + 1, b, lam=lam, eps=0.0), expected)
