"""Hyp-OC: pairs, pseudo-negatives and the whole classifier."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lossary.classification import (
    HypOC,
    HypOCLoss,
    PseudoNegativeSampler,
    hyperbolic_pairwise_confusion_loss,
    poincare_distance,
    pseudo_negatives,
    to_poincare,
)


def ball(seed: int, rows: int = 6) -> torch.Tensor:
    return to_poincare(torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


@given(st.integers(0, 1000))
def test_pairs_are_first_and_second_half(seed: int) -> None:
    x = ball(seed)
    distance = poincare_distance(x[:3], x[3:], c=0.1)
    torch.testing.assert_close(hyperbolic_pairwise_confusion_loss(x), distance.sum() / 6)
    rows = hyperbolic_pairwise_confusion_loss(x, reduction="none")
    torch.testing.assert_close(rows, distance.repeat(2) / 2)
    public_code = hyperbolic_pairwise_confusion_loss(x, arc="arctan")
    radius = torch.tanh(math.sqrt(0.1) * distance / 2)
    torch.testing.assert_close(public_code, 2 / math.sqrt(0.1) * torch.atan(radius).sum() / 6)
    assert public_code <= hyperbolic_pairwise_confusion_loss(x)
    close = x.clone()
    close[3:] = close[:3] + 1e-5
    torch.testing.assert_close(
        hyperbolic_pairwise_confusion_loss(close, arc="arctan"), hyperbolic_pairwise_confusion_loss(close)
    )


def test_equal_pairs_cost_nothing_and_send_no_gradient() -> None:
    x = ball(0, 3).repeat(2, 1).requires_grad_()
    loss = hyperbolic_pairwise_confusion_loss(x)
    assert loss == 0
    (gradient,) = torch.autograd.grad(loss, x)
    assert (gradient == 0).all()


def test_transforms_and_nan() -> None:
    """What the contract asks of rows, asked of pairs."""
    batches = torch.stack([ball(seed) for seed in range(3)])
    gradient = torch.func.grad(hyperbolic_pairwise_confusion_loss)
    torch.testing.assert_close(torch.func.vmap(gradient)(batches), torch.stack([gradient(x) for x in batches]))
    x = ball(0).index_fill(0, torch.tensor([1]), math.nan)
    rows = hyperbolic_pairwise_confusion_loss(x, reduction="none")
    assert rows.isnan().tolist() == [False, True, False, False, True, False]
    whole = ball(1).requires_grad_()
    (expected,) = torch.autograd.grad(hyperbolic_pairwise_confusion_loss(whole), whole)
    shards = [whole[[0, 3]], whole[[1, 2, 4, 5]]]  # pairs stay together
    parts = sum(hyperbolic_pairwise_confusion_loss(shard, normalizer=6) for shard in shards)
    torch.testing.assert_close(torch.autograd.grad(parts, whole)[0], expected)


def test_pseudo_negatives_average_two_batches() -> None:
    sampler = PseudoNegativeSampler(2, alpha=0.8, std=0.0)
    first, second = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 10.0]])
    torch.testing.assert_close(sampler(first), 0.2 * torch.tensor([[2.0, 3.0]]).expand(2, 2))
    torch.testing.assert_close(sampler(second), torch.tensor([[0.8 * 2 + 2.0, 0.8 * 3 + 2.0]]))
    torch.testing.assert_close(sampler(first), 8.0 + 0.2 * torch.tensor([[2.0, 3.0]]).expand(2, 2))
    restored = PseudoNegativeSampler(2)
    restored.load_state_dict(sampler.state_dict())
    torch.testing.assert_close(restored.previous_mean, torch.tensor([2.0, 3.0]))
    sampler.reset()
    torch.testing.assert_close(sampler(second), torch.tensor([[2.0, 2.0]]))
    drawn, mean = pseudo_negatives(torch.zeros(20_000, 2), torch.ones(2), std=3.0)
    torch.testing.assert_close(drawn.mean(0), torch.full((2,), 0.8), atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.full((2,), 3.0), atol=0.1, rtol=0)
    assert mean.tolist() == [0, 0]
    together = torch.func.vmap(lambda f: pseudo_negatives(f, torch.ones(2), noise=torch.zeros(4, 2))[0])
    assert together(torch.randn(3, 4, 2)).shape == (3, 4, 2)


def test_loss_adds_confusion_to_cross_entropy() -> None:
    logits, x = torch.randn(10, 2, dtype=torch.float64), ball(0)
    labels = torch.tensor([0] * 6 + [1] * 4)
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(HypOCLoss(confusion_weight=0.0)(logits[:6], logits[6:], x), expected)
    both = HypOCLoss(confusion_weight=0.5)(logits[:6], logits[6:], x)
    torch.testing.assert_close(both, expected + 0.5 * hyperbolic_pairwise_confusion_loss(x))


@pytest.mark.parametrize("options", [{}, {"learn_base": True, "riemannian": True, "arc": "arctan"}])
def test_classifier_tells_outliers(options: dict) -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    genuine = 2 + 0.3 * torch.randn(41, 6, generator=generator)
    outliers = 3 * torch.randn(200, 6, generator=generator) - 2
    model = HypOC(6, hidden=(16,), dim=4, **options)
    model.fit(genuine, epochs=30, batch_size=8, learning_rate=1e-2, generator=generator)
    score = model.score(torch.cat([genuine, outliers]))
    assert ((score[:41].mean() < 0.5) and (score[41:].mean() > 0.5)).item()
    assert model(genuine).shape == (41, 2)
    torch.testing.assert_close(model(genuine).softmax(1)[:, 1], score[:41])


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"input has shape \(3, 2\); wanted points \(N, D\) with N even"):
        hyperbolic_pairwise_confusion_loss(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="arc is 'sinh'"):
        hyperbolic_pairwise_confusion_loss(torch.zeros(2, 2), arc="sinh")
    with pytest.raises(ValueError, match="alpha is 2"):
        PseudoNegativeSampler(2, alpha=2)
    with pytest.raises(ValueError, match=r"previous_mean has shape \(3,\)"):
        pseudo_negatives(torch.zeros(4, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="batch_size is 3"):
        HypOC(2, hidden=(4,), dim=2).fit(torch.zeros(4, 2), batch_size=3)
