"""Minimum risk and REINFORCE: bounds, limits, and the gradient of the expected reward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary.language import minimum_risk_loss, reinforce_loss

SEEDS = st.integers(0, 10_000)


@given(SEEDS, st.floats(1e-3, 10))
def test_risk_is_an_average_of_risks(seed: int, alpha: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs, risks = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    value = minimum_risk_loss(log_probs, risks, alpha=alpha, reduction="none")
    weight = log_probs.exp() ** alpha
    torch.testing.assert_close(value, (weight * risks).sum(1) / weight.sum(1))
    torch.testing.assert_close(minimum_risk_loss(log_probs + 7, risks, alpha=alpha, reduction="none"), value)
    assert (value <= risks.amax(1)).all()
    equal = minimum_risk_loss(torch.zeros(3, 4), risks.float())
    torch.testing.assert_close(equal, risks.float().mean())


def test_places_without_a_candidate_do_not_count() -> None:
    log_probs, risks = torch.tensor([[-1.0, -2.0, -torch.inf]]), torch.tensor([[0.1, 0.3, 9.0]])
    torch.testing.assert_close(minimum_risk_loss(log_probs, risks), minimum_risk_loss(log_probs[:, :2], risks[:, :2]))


@given(SEEDS, st.floats(-2, 2))
def test_gradient_is_that_of_the_expected_reward(seed: int, baseline: float) -> None:
    """Averaged over all samples by their probability, with any baseline."""
    generator = torch.Generator().manual_seed(seed)
    logits, rewards = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(2))

    def expected(z: torch.Tensor) -> torch.Tensor:
        return -(z.softmax(0) * rewards).sum()

    def estimated(z: torch.Tensor) -> torch.Tensor:
        p = z.softmax(0).detach()
        return reinforce_loss(z.log_softmax(0), rewards, baseline=baseline, sample_weight=p, reduction="sum")

    torch.testing.assert_close(torch.func.grad(estimated)(logits), torch.func.grad(expected)(logits))


def test_rewards_and_baselines_are_constants() -> None:
    log_probs, rewards = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 3.0], requires_grad=True)
    baseline = torch.tensor([2.0, 2.0], requires_grad=True)
    value = reinforce_loss(log_probs, rewards, baseline=baseline, reduction="none")
    assert not value.requires_grad
    assert value.tolist() == [-1.0, 2.0]
    with pytest.raises(ValueError, match="baseline has shape"):
        reinforce_loss(log_probs, rewards, baseline=torch.zeros(3))
    with pytest.raises(ValueError, match="log_probs has shape"):
        minimum_risk_loss(torch.tensor(0.0), torch.tensor(0.0))
