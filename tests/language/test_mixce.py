"""MixCE: its gradient in closed form, its bounds and limits, the rollout, the bigram law and its metrics."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lossary.language import (
    BigramSource,
    MixCELoss,
    gumbel_rollout,
    linear_mixce_loss,
    mixce_loss,
    mixce_star_loss,
    sequence_logps,
    transition_metrics,
)

SEEDS, ETAS = st.integers(0, 10_000), st.floats(0, 1)


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    return logits, torch.randint(6, (3, 4), generator=generator)


@given(SEEDS, ETAS)
def test_gradient_and_bounds(seed: int, eta: float) -> None:
    logits, target = problem(seed)
    logits.requires_grad_()
    loss = mixce_loss(logits, target, mixing_ratio=eta, reduction="none")
    cross_entropy = F.cross_entropy(logits.movedim(-1, 1), target, reduction="none")
    assert (loss <= cross_entropy + 1e-12).all()
    assert (loss >= eta * cross_entropy - 1e-12).all()
    weight = eta + (1 - eta) * (-cross_entropy.detach()).exp()
    torch.testing.assert_close(loss, weight * cross_entropy)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, (weight.unsqueeze(-1) * (logits.softmax(-1) - F.one_hot(target, 6))).detach())


def test_one_is_cross_entropy() -> None:
    logits, target = problem()
    target[0, 1:] = -100
    weight = torch.rand(6, dtype=torch.float64)
    ours = mixce_loss(logits, target, mixing_ratio=1.0, weight=weight)
    torch.testing.assert_close(ours, F.cross_entropy(logits.movedim(-1, 1), target, weight))


def test_tokens_that_are_impossible_to_the_model() -> None:
    """Without forward cross-entropy an impossible token teaches nothing; with it the loss is infinite."""
    logits = torch.tensor([[0.0, -torch.inf]], requires_grad=True)
    for eta, value in ((0.0, 0.0), (0.5, torch.inf)):
        loss = mixce_loss(logits, torch.tensor([1]), mixing_ratio=eta)
        assert loss == value
        assert not torch.autograd.grad(loss, logits)[0].isnan().any()


@pytest.mark.parametrize("weighting", ["token", "sequence"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_linear_form_and_weight_of_a_sequence(weighting: Any, eta: float) -> None:
    generator = torch.Generator().manual_seed(1)
    input, head = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((3, 4, 5), (6, 5)))
    _, target = problem()
    target[1, 2:] = -100
    words: dict[str, Any] = {"mixing_ratio": eta, "weighting": weighting}
    for shift in (0, 1):
        logits = (input @ head.T).requires_grad_()
        ours = mixce_loss(logits, target, shift=shift, **words)
        torch.testing.assert_close(linear_mixce_loss(input, head, target, shift=shift, **words), ours)
        single = linear_mixce_loss(input.float(), head.float(), target, shift=shift, **words)
        torch.testing.assert_close(single.double(), ours, rtol=1e-5, atol=1e-5)
        if weighting == "sequence":
            log_q = sequence_logps(logits, target, shift=shift)
            by_hand = -((eta + (1 - eta) * log_q.detach().exp()) * log_q).sum() / (target[:, shift:] != -100).sum()
            torch.testing.assert_close(ours, by_hand)
            torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (ours, by_hand)))
    module = MixCELoss(eta, weighting=weighting)
    torch.testing.assert_close(module(input @ head.T, target), mixce_loss(input @ head.T, target, **words))
    with pytest.raises(ValueError, match="weighting is 'text'"):
        mixce_loss(input @ head.T, target, weighting="text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mixing_ratio is 1.5; wanted a number in \[0, 1\]"):
        mixce_loss(input @ head.T, target, mixing_ratio=1.5)


def test_packed_sequences_have_their_own_weight() -> None:
    generator = torch.Generator().manual_seed(1)
    input, head = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((3, 4, 5), (6, 5)))
    _, target = problem()
    target[1, 3] = -100
    words: dict[str, Any] = {"weighting": "sequence", "reduction": "none"}
    segment = torch.tensor([[0, 2, 2, 2], [1, 1, 1, -7], [0, 0, 3, 3]])
    packed = mixce_loss(input @ head.T, target, segment=segment, **words)
    parts = [
        mixce_loss((input @ head.T)[row, part], target[row, part], **words)
        for row, cut in ((0, 1), (1, 4), (2, 2))
        for part in (slice(0, cut), slice(cut, 4))
    ]
    torch.testing.assert_close(packed.flatten(), torch.cat(parts))
    torch.testing.assert_close(linear_mixce_loss(input, head, target, segment=segment, **words), packed)
    shifted = mixce_loss(input @ head.T, target, segment=segment, shift=1, **words)
    torch.testing.assert_close(linear_mixce_loss(input, head, target, segment=segment, shift=1, **words), shifted)
    renamed = torch.tensor([[2, 2, 2], [1, 1, -7], [0, 1, 1]])  # the same, with numbers of a shorter row
    expected = mixce_loss((input @ head.T)[:, :-1], target[:, 1:], segment=renamed, **words)
    torch.testing.assert_close(shifted, expected)


def test_star_is_a_convex_combination() -> None:
    forward, reverse = torch.tensor([1.0, torch.inf]), torch.tensor([5.0, 2.0])
    assert mixce_star_loss(forward, reverse, mixing_ratio=0.0, reduction="none").tolist() == [5.0, 2.0]
    assert mixce_star_loss(forward[:1], reverse[:1], mixing_ratio=0.25) == 4.0


def test_rollout_is_a_sample_with_a_gradient() -> None:
    """Frequencies are those of the softmax; values are one-hots, and the gradient is the soft sample's."""
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    drawn = gumbel_rollout(lambda before: logits.expand(4000, -1), None, 2, generator=generator)
    assert drawn.shape == (4000, 2, 3)
    assert ((drawn == 0) | (drawn == 1)).all()
    torch.testing.assert_close(drawn.mean((0, 1)), logits.softmax(0), atol=0.02, rtol=0)
    noise = torch.randn(2, 3, dtype=torch.float64)
    weight = torch.randn(2, 3, dtype=torch.float64)
    values = [
        (gumbel_rollout(lambda before: logits, None, 2, tau=0.7, hard=hard, noise=noise) * weight).sum()
        for hard in (True, False)
    ]
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in values))
    torch.testing.assert_close(values[1], (((logits + noise) / 0.7).softmax(-1) * weight).sum())
    with pytest.raises(ValueError, match="noise has shape"):
        gumbel_rollout(lambda before: logits, None, 2, noise=noise[:1])
    with pytest.raises(ValueError, match="max_length is 0"):
        gumbel_rollout(lambda before: logits, None, 0)


def source(seed: int = 0) -> BigramSource:
    return BigramSource.random(6, generator=torch.Generator().manual_seed(seed))


def test_random_sources() -> None:
    law = source()
    assert law.eos == 5
    torch.testing.assert_close(law.transition.sum(1), torch.tensor([1.0] * 5 + [0.0], dtype=torch.float64))
    assert (law.transition[:5, 5] > 0).all(), "every text can end"
    many = BigramSource.random(100, 0.3, torch.Generator().manual_seed(0)).transition[:-1, :-1]
    assert abs((many == 0).double().mean() - 0.3) < 0.02
    dense = BigramSource.random(200, 0.0, torch.Generator().manual_seed(0)).transition[:-1]
    # Of Dirichlet(1/2) over V entries: mean 1/V, second moment 3 / (V (V + 2)).
    torch.testing.assert_close(dense.square().mean().item(), 3 / (200 * 202), rtol=0.03, atol=0)


def test_texts_have_the_frequencies_of_the_law() -> None:
    law = source(3)
    texts = law.sample(40_000, 30, torch.Generator().manual_seed(0))
    assert ((texts == law.eos).sum(1) == 1).all(), "all end once"
    before, after = texts[:, :-1], texts[:, 1:]
    said = (after >= 0) & (torch.arange(1, texts.shape[1]) < 20)  # the last token is an end by force
    count = torch.zeros(6, 6, dtype=torch.float64)
    count.index_put_((before[said], after[said]), torch.ones(int(said.sum()), dtype=torch.float64), accumulate=True)
    torch.testing.assert_close((count / count.sum(1, keepdim=True))[:5], law.transition[:5], atol=0.02, rtol=0)
    assert (count[law.transition == 0] == 0).all()
    first = torch.bincount(texts[:, 0], minlength=6) / 40_000
    torch.testing.assert_close(first.double(), law.first, atol=0.02, rtol=0)


def test_probabilities_of_texts() -> None:
    """All texts of up to two tokens and the chance of longer ones sum to 1; one-hots and padding give the same."""
    law = source()
    ended = [law.log_prob(torch.tensor([[5, 3]])), *(law.log_prob(torch.tensor([[i, 5, -100]])) for i in range(5))]
    longer = sum(law.first[i] * law.transition[i, :5].sum() for i in range(5))
    torch.testing.assert_close(torch.stack(ended).exp().sum() + longer, torch.tensor(1.0, dtype=torch.float64))
    texts = law.sample(50, 8, torch.Generator().manual_seed(0))
    inside = texts.clamp(min=0)
    by_hand = torch.zeros(50, dtype=torch.float64)
    for row, text in enumerate(texts.tolist()):
        said = text[: text.index(5) + 1]
        by_hand[row] = law.first[said[0]].log()
        for one, other in itertools.pairwise(said):
            by_hand[row] += (law.transition[one, other] + 1e-30).log()
    torch.testing.assert_close(law.log_prob(texts), by_hand)
    one_hots = F.one_hot(inside, 6).double().requires_grad_()
    value = law.log_prob(one_hots)
    torch.testing.assert_close(value, by_hand)
    (gradient,) = torch.autograd.grad(value.sum(), one_hots)
    torch.testing.assert_close(gradient[0, 0], law.first.log())
    impossible = (law.transition[:5, :5] == 0).nonzero()[0].tolist()
    assert law.log_prob(torch.tensor([impossible]))[0] == pytest.approx(float(law.first[0].log()) - 69.08, abs=0.01)


def test_sources_that_are_none() -> None:
    with pytest.raises(ValueError, match="transition has shape"):
        BigramSource(torch.ones(2, 3), torch.ones(3), 2)
    with pytest.raises(ValueError, match="first has shape"):
        BigramSource(torch.ones(3, 3), torch.ones(2), 2)
    with pytest.raises(ValueError, match="eos is 3"):
        BigramSource([[0.0] * 3] * 3, [1 / 3] * 3, 3)


def test_metrics_of_the_truth_and_of_nothing_known() -> None:
    law = source()
    truth = F.pad(torch.cat([law.first[None], law.transition]), (1, 0))
    exact = transition_metrics(truth, law.transition, law.first)
    assert exact == {"avg_zeros": 0.0, "avg_js": pytest.approx(0.0, abs=1e-12)}
    flat = transition_metrics(torch.full((7, 7), 1 / 7), law.transition.numpy(), law.first.tolist())
    assert flat["avg_zeros"] == pytest.approx(1 / 7)
    assert flat["avg_js"] > 0.05
    with pytest.raises(ValueError, match="learned has shape"):
        transition_metrics(torch.ones(6, 6), law.transition, law.first)
