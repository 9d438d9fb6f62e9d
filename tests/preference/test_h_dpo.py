"""H-DPO: DPO at alpha = 1, closed-form gradients, the optimum it has in theory, and what alpha does to entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.papers.h_dpo import fit_gaussian, fit_table, tabular_optimum
from lossary.preference import HDPOLoss, h_dpo_divergence, h_dpo_loss, h_dpo_rewards

SEEDS = st.integers(0, 10_000)
ALPHAS = st.floats(0.3, 2.0)


def pairs(seed: int, count: int = 5, scale: float = 20.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(-scale * torch.rand(4, count, generator=generator, dtype=torch.float64))


@given(SEEDS, st.floats(0.01, 2.0))
def test_alpha_one_is_dpo(seed: int, beta: float) -> None:
    chosen, rejected, reference_chosen, reference_rejected = pairs(seed)
    logits = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    loss = h_dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=beta, reduction="none")
    torch.testing.assert_close(loss, F.softplus(-logits, threshold=100))
    smooth = h_dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=beta, label_smoothing=0.3)
    torch.testing.assert_close(smooth, (0.7 * F.softplus(-logits) + 0.3 * F.softplus(logits)).mean())


@given(SEEDS, ALPHAS, st.floats(0.01, 2.0))
def test_it_is_dpo_on_scaled_policy_log_probabilities(seed: int, alpha: float, beta: float) -> None:
    chosen, rejected, *reference = pairs(seed)
    loss = h_dpo_loss(chosen, rejected, *reference, alpha=alpha, beta=beta)
    torch.testing.assert_close(loss, h_dpo_loss(alpha * chosen, alpha * rejected, *reference, beta=beta))


@given(SEEDS, ALPHAS)
def test_gradients_and_rewards(seed: int, alpha: float) -> None:
    given = [tensor.requires_grad_() for tensor in pairs(seed)]
    loss = h_dpo_loss(*given, alpha=alpha, beta=0.2, reduction="none")
    of_chosen, of_rejected, *of_reference = torch.autograd.grad(loss.sum(), given, allow_unused=True)
    chosen, rejected = h_dpo_rewards(*given, alpha=alpha, beta=0.2)
    assert not chosen.requires_grad
    torch.testing.assert_close(loss.detach(), -F.logsigmoid(chosen - rejected))
    torch.testing.assert_close(of_chosen, -alpha * 0.2 * torch.sigmoid(rejected - chosen))
    torch.testing.assert_close(of_rejected, -of_chosen)
    assert of_reference == [None, None]


@pytest.mark.parametrize("margin", [-3000.0, 3000.0])
def test_finite_in_both_tails(margin: float) -> None:
    chosen, zero = torch.tensor([margin], requires_grad=True), torch.zeros(1)
    loss = h_dpo_loss(chosen, zero, zero, zero, beta=1.0)
    (gradient,) = torch.autograd.grad(loss, chosen)
    assert loss.item() == max(0.0, -margin)
    assert gradient.item() == (-1.0 if margin < 0 else 0.0)


def test_half_precision_is_widened_before_anything_is_subtracted() -> None:
    chosen, rejected = (torch.tensor([value], dtype=torch.bfloat16) for value in (-800.0, -804.0))
    margin = torch.tensor([0.9 * 0.1 * 4.0 + 0.1 * 1.0])
    loss = h_dpo_loss(chosen, rejected, torch.tensor([-801.0]), torch.tensor([-800.0]), alpha=0.9)
    torch.testing.assert_close(loss, F.softplus(-margin).mean(), rtol=1e-4, atol=0)


@given(SEEDS, ALPHAS)
def test_divergence(seed: int, alpha: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    policy, reference = (torch.randn(3, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    log_p, log_reference = policy.log_softmax(1), reference.log_softmax(1)
    kl = F.kl_div(log_reference, log_p, reduction="none", log_target=True).sum(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    torch.testing.assert_close(h_dpo_divergence(policy, reference, reduction="none"), kl)
    value = h_dpo_divergence(policy, reference, alpha=alpha)
    torch.testing.assert_close(value, (kl + (1 - alpha) * entropy).mean())


def test_divergence_without_mass() -> None:
    inf = math.inf
    policy = torch.tensor([[0.0, 0.0, -inf]], requires_grad=True)
    value = h_dpo_divergence(policy, torch.zeros(1, 3))
    torch.testing.assert_close(value, torch.tensor(math.log(3 / 2)))
    assert torch.autograd.grad(value, policy)[0].isfinite().all()
    assert h_dpo_divergence(torch.zeros(1, 2), torch.tensor([[0.0, -inf]])) == inf
    with pytest.raises(ValueError, match=r"reference_logits has shape \(1, 3\); wanted \(1, 2\)"):
        h_dpo_divergence(torch.zeros(1, 2), torch.zeros(1, 3))


def test_the_optimum_is_that_of_the_theory() -> None:
    """Population loss over all pairs of 12 responses, labels of Bradley-Terry; its entropy rises with alpha."""
    entropies = []
    for alpha in (0.8, 0.9, 1.0, 1.1):
        generator = torch.Generator().manual_seed(0)
        reward, reference = (torch.randn(12, generator=generator, dtype=torch.float64) for _ in range(2))
        wanted = tabular_optimum(reward, reference, alpha=alpha, beta=0.3)
        policy = fit_table(reward, reference, alpha=alpha, beta=0.3)
        torch.testing.assert_close(policy, wanted, rtol=0, atol=1e-6)
        entropies.append(-(policy * policy.log()).sum().item())
    assert entropies == sorted(entropies)


@pytest.mark.parametrize(("alpha", "mean", "deviation"), [(1.0, -0.40, 1.93), (0.6, 2.00, 0.57)])
def test_a_small_alpha_seeks_a_mode(alpha: float, mean: float, deviation: float) -> None:
    """One Gaussian fitted to two: at alpha = 1 it covers both, at 0.6 it sits on one."""
    assert fit_gaussian(alpha) == pytest.approx((mean, deviation), abs=0.02)


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_ranges(name: str) -> None:
    for value in (0, -1.0):
        with pytest.raises(ValueError, match=rf"{name} is {value}; wanted a number in \(0"):
            h_dpo_loss(*pairs(0), **{name: value})
    with pytest.raises(ValueError, match="label_smoothing is 2"):
        HDPOLoss(label_smoothing=2)(*pairs(0))
