"""Adversarial pairs, the penalty, the Gaussian divergence, style, Fréchet distance: identities and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lossary.generative import (
    adversarial_losses,
    frechet_distance,
    gaussian_kl_loss,
    gradient_penalty,
    style_loss,
)

SEEDS = st.integers(0, 10_000)


def scores(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(5, generator=generator, dtype=torch.float64), 3 * torch.randn(
        7, generator=generator, dtype=torch.float64
    )


@given(SEEDS)
def test_adversarial_losses_by_hand(seed: int) -> None:
    real, fake = scores(seed)
    ones, zeros = torch.ones_like, torch.zeros_like
    bce = F.binary_cross_entropy_with_logits
    discriminator = bce(real, ones(real)) + bce(fake, zeros(fake))
    expected = {
        "minimax": (discriminator, -bce(fake, zeros(fake))),
        "non_saturating": (discriminator, bce(fake, ones(fake))),
        "least_squares": (
            F.mse_loss(real, ones(real)) / 2 + F.mse_loss(fake, zeros(fake)) / 2,
            F.mse_loss(fake, ones(fake)) / 2,
        ),
        "hinge": ((1 - real).relu().mean() + (1 + fake).relu().mean(), -fake.mean()),
        "wasserstein": (fake.mean() - real.mean(), -fake.mean()),
    }
    for kind, (first, second) in expected.items():
        losses = adversarial_losses(real, fake, kind=kind)
        torch.testing.assert_close(losses["discriminator"], first)
        torch.testing.assert_close(losses["generator"], second)


def test_extreme_scores_and_names() -> None:
    real, fake = torch.tensor([1e4, -1e4]), torch.tensor([1e4, -1e4])
    for kind in ("minimax", "non_saturating", "least_squares", "hinge", "wasserstein"):
        assert all(value.isfinite() for value in adversarial_losses(real, fake, kind=kind).values())
    assert adversarial_losses(real, fake, kind="lsgan") == adversarial_losses(real, fake, kind="least_squares")
    with pytest.raises(ValueError, match="kind is 'style'; wanted one of minimax"):
        adversarial_losses(real, fake, kind="style")


@given(SEEDS, st.floats(0.1, 5))
def test_the_penalty_of_a_linear_critic(seed: int, length: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    slope = F.normalize(torch.randn(6, generator=generator, dtype=torch.float64), dim=0) * length
    real, fake = (torch.randn(3, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    value = gradient_penalty(lambda x: x.flatten(1) @ slope, real, fake, generator=generator)
    assert value.item() == pytest.approx(10 * (length - 1) ** 2)


def test_the_penalty_looks_between_the_samples_and_trains_the_critic() -> None:
    real, fake, share = torch.tensor([[0.0], [4.0]]), torch.tensor([[2.0], [0.0]]), torch.tensor([0.25, 0.75])
    value = gradient_penalty(lambda x: (x**2).sum(1), real, fake, noise=share)
    places = [0.25 * 0 + 0.75 * 2, 0.75 * 4]
    assert value.item() == pytest.approx(10 * sum((2 * x - 1) ** 2 for x in places) / 2)
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(1, 8), nn.Softplus(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(critic.parameters(), 0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = gradient_penalty(critic, real, fake, noise=share)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.05 * values[0]
    assert gradient_penalty(lambda x: 0 * x.sum(1), real, fake).item() == 10.0  # a flat critic, no NaN
    with pytest.raises(ValueError, match="noise has shape"):
        gradient_penalty(critic, real, fake, noise=torch.ones(3))


@given(SEEDS)
def test_divergence_is_that_of_torch(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean, log_variance = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    one, other = torch.distributions.Normal(mean, (log_variance / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(one, other).sum(1)
    torch.testing.assert_close(gaussian_kl_loss(mean, log_variance, reduction="none"), expected)
    assert gaussian_kl_loss(torch.zeros(2, 3), torch.zeros(2, 3)) == 0
    torch.testing.assert_close(gaussian_kl_loss(mean[0], log_variance[0]), expected[0])
    wide = gaussian_kl_loss(mean.reshape(2, 2, 3), log_variance.reshape(2, 2, 3), reduction="none")
    torch.testing.assert_close(wide, expected.reshape(2, 2).sum(1))


@given(SEEDS)
def test_style_does_not_see_places(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features, other = (torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    moved = features.flatten(2)[..., torch.randperm(20, generator=generator)].reshape(features.shape)
    assert style_loss(features, moved).item() == pytest.approx(0.0, abs=1e-12)
    twice = torch.cat([features, features], 2)  # a larger image of the same texture
    assert style_loss(features, twice).item() == pytest.approx(0.0, abs=1e-12)
    gram = [torch.einsum("nchw,ndhw->ncd", side, side) / 60 for side in (features, other)]
    expected = (gram[0] - gram[1]).square().sum((1, 2))
    torch.testing.assert_close(style_loss(features, other, reduction="none"), expected)
    layers = style_loss([features, features[:, :2]], [other, other[:, :2]], reduction="none")
    torch.testing.assert_close(layers, expected + style_loss(features[:, :2], other[:, :2], reduction="none"))


def test_bad_features() -> None:
    features = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match="features has 1 layers and target 2"):
        style_loss([features], [features, features])
    with pytest.raises(ValueError, match="target has shape"):
        style_loss(features, torch.zeros(1, 3, 3, 3))
    with pytest.raises(ValueError, match="features has shape"):
        style_loss(features[0], features[0])


@given(SEEDS)
def test_frechet_distance(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    m1, m2 = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2))
    roots = [torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    s1, s2 = (root @ root.T for root in roots)
    distance = frechet_distance(m1, s1, m2, s2)
    assert frechet_distance(m1, s1, m1, s1).item() == pytest.approx(0.0, abs=1e-8)
    torch.testing.assert_close(distance, frechet_distance(m2, s2, m1, s1))
    eigenvalues = torch.linalg.eigvals(s1 @ s2).real.clamp(min=0)  # those of (S1 S2)^(1/2), squared
    expected = (m1 - m2).square().sum() + s1.trace() + s2.trace() - 2 * eigenvalues.sqrt().sum()
    torch.testing.assert_close(distance, expected)
    v1, v2 = (torch.rand(4, generator=generator, dtype=torch.float64) for _ in range(2))
    commuting = frechet_distance(m1, v1.diag(), m1, v2.diag())
    torch.testing.assert_close(commuting, (v1.sqrt() - v2.sqrt()).square().sum())


def test_frechet_distance_of_singular_covariances() -> None:
    one, other = torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 4.0]))
    assert frechet_distance(torch.zeros(2), one, torch.zeros(2), other).item() == pytest.approx(5.0)
    with pytest.raises(ValueError, match="cov2 has shape"):
        frechet_distance(torch.zeros(2), one, torch.zeros(2), torch.eye(3))
    assert math.isfinite(frechet_distance(torch.zeros(2), -1e-9 * one, torch.zeros(2), other).item())
