"""DPO-Positive: DPO without a penalty, the two places of the penalty, gradients in closed form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary.preference import DPOPositiveLoss, dpo_positive_loss, h_dpo_loss
from tests.preference.test_h_dpo import SEEDS, pairs

BETAS = st.floats(0.01, 1.0)


@given(SEEDS, BETAS)
def test_without_penalty_it_is_dpo(seed: int, beta: float) -> None:
    given = pairs(seed)
    loss = dpo_positive_loss(*given, chosen_beta=beta, penalty_lambda=0, reduction="none")
    torch.testing.assert_close(loss, h_dpo_loss(*given, beta=beta, reduction="none"))
    chosen, rejected, reference_chosen, reference_rejected = given
    likely = chosen.clamp(max=0) - 20 + 20 * (reference_chosen > -20)  # at least as likely as under the reference
    likely = torch.maximum(likely, reference_chosen + 0.1)
    loss = dpo_positive_loss(likely, rejected, reference_chosen, reference_rejected, chosen_beta=beta)
    torch.testing.assert_close(loss, h_dpo_loss(likely, rejected, reference_chosen, reference_rejected, beta=beta))


@given(SEEDS, BETAS, st.floats(0.1, 50))
def test_penalty_inside_and_outside(seed: int, beta: float, strength: float) -> None:
    inside = dpo_positive_loss(*pairs(seed), chosen_beta=beta, penalty_lambda=strength, penalty_inside=True)
    torch.testing.assert_close(
        inside, dpo_positive_loss(*pairs(seed), chosen_beta=beta, penalty_lambda=beta * strength)
    )


@given(SEEDS, BETAS, BETAS, st.floats(0, 50))
def test_gradients(seed: int, chosen_beta: float, rejected_beta: float, strength: float) -> None:
    given = [tensor.requires_grad_() for tensor in pairs(seed)]
    options = {"chosen_beta": chosen_beta, "rejected_beta": rejected_beta, "penalty_lambda": strength}
    loss = dpo_positive_loss(*given, **options, reduction="none")
    of_chosen, of_rejected, *of_reference = torch.autograd.grad(loss.sum(), given, allow_unused=True)
    miss = -torch.expm1(-loss.detach())  # sigmoid(-margin)
    below = given[0].detach() < given[2].detach()
    torch.testing.assert_close(of_chosen, -(chosen_beta + strength * below) * miss)
    torch.testing.assert_close(of_rejected, rejected_beta * miss)
    assert of_reference == [None, None]


def test_at_the_kink_and_far_out() -> None:
    chosen = torch.zeros(1, requires_grad=True)
    zero = torch.zeros(1)
    loss = dpo_positive_loss(chosen, zero, zero, zero, chosen_beta=0.5, penalty_lambda=50)
    assert torch.autograd.grad(loss, chosen)[0].item() == -(0.5 + 25) / 2  # half the penalty's slope
    far = dpo_positive_loss(zero - 10, zero, zero, zero, chosen_beta=0.5, penalty_lambda=50)
    assert far.item() == 505.0
    impossible = dpo_positive_loss(torch.tensor([-torch.inf]), zero, zero, zero, penalty_lambda=0)
    assert impossible == torch.inf


def test_ranges() -> None:
    for name, value in (("chosen_beta", 0), ("rejected_beta", -1.0), ("penalty_lambda", -1)):
        with pytest.raises(ValueError, match=f"{name} is {value}; wanted a number in"):
            DPOPositiveLoss(**{name: value})(*pairs(0))
