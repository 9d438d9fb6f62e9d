"""Cringe losses: limits, gradients, the expectation over draws, the head that stores no logits, rounds of training."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lossary.preference import (
    CringeLoss,
    IterativePreferenceTrainer,
    LinearCringeLoss,
    LinearPairwiseCringeLoss,
    PairwiseCringeLoss,
    cringe_contrast,
    cringe_loss,
    linear_cringe_loss,
    linear_pairwise_cringe_loss,
    pairwise_cringe_gate,
    pairwise_cringe_loss,
)

SEEDS = st.integers(0, 10_000)


def tokens(seed: int = 0, rows: int = 3, length: int = 4, vocab: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, vocab, generator=generator, dtype=torch.float64)
    return logits, torch.randint(vocab, (rows, length), generator=generator)


@given(SEEDS)
def test_good_sequences_have_cross_entropy_and_bad_ones_none(seed: int) -> None:
    logits, target = tokens(seed)
    good = torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(
        cringe_loss(logits, target, good), F.cross_entropy(logits.flatten(0, 1), target.flatten())
    )
    assert cringe_loss(logits, target, ~good, alpha=0.0) == 0
    bad = cringe_loss(logits, target, ~good, k=1, alpha=0.5, reduction="none")
    torch.testing.assert_close(bad, 0.5 * cringe_contrast(logits, target, k=1))
    mixed = torch.tensor([True, False, True])
    by_token = mixed.unsqueeze(1).expand(3, 4)
    torch.testing.assert_close(cringe_loss(logits, target, mixed, k=1), cringe_loss(logits, target, by_token, k=1))


@given(SEEDS)
def test_the_contrast_is_with_the_best_other_token(seed: int) -> None:
    logits, target = tokens(seed)
    logits.requires_grad_()
    others = logits.detach().scatter(-1, target.unsqueeze(-1), -math.inf)
    best, place = others.max(-1)
    bad = logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    value = cringe_contrast(logits, target, k=1)
    torch.testing.assert_close(value, F.softplus(bad - best))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    slope = (bad - best).sigmoid().detach().unsqueeze(-1)
    wanted = torch.zeros_like(logits).scatter(-1, target.unsqueeze(-1), slope).scatter(-1, place.unsqueeze(-1), -slope)
    torch.testing.assert_close(gradient, wanted)
    (half,) = torch.autograd.grad(cringe_contrast(logits, target, k=1, detach_positive=True).sum(), logits)
    torch.testing.assert_close(half, wanted.clamp(min=0))


@given(SEEDS, st.integers(2, 8))
def test_the_mean_over_draws_is_the_softmax_weighted_sum(seed: int, k: int) -> None:
    """A fine grid of uniform numbers enumerates the candidates by their probability."""
    logits, target = tokens(seed, rows=1, length=1)
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    repeated = logits.expand(1, 20_000, 6)
    drawn = cringe_contrast(repeated, target.expand(1, 20_000), k=k, noise=grid[None])
    others = logits[0, 0].scatter(0, target[0], -math.inf).topk(min(k, 5)).values
    wanted = (others.softmax(0) * F.softplus(logits[0, 0, target[0, 0]] - others)).sum()
    torch.testing.assert_close(drawn.mean(), wanted, rtol=1e-3, atol=1e-3)
    generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
    first, second = (cringe_contrast(repeated, target.expand(1, 20_000), k=k, generator=g) for g in generators)
    assert torch.equal(first, second)
    torch.testing.assert_close(first.mean(), wanted, rtol=0.05, atol=0.02)


def test_masked_vocabulary_is_never_drawn() -> None:
    logits = torch.tensor([[1.0, 0.0, -math.inf, -math.inf]]).requires_grad_()
    for target in (0, 1, 2):
        value = cringe_contrast(logits, torch.tensor([target]), k=3, noise=torch.tensor([0.999999]))
        assert value.isfinite().all()
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert gradient.isfinite().all()
    assert cringe_contrast(logits, torch.tensor([2]), k=3) == 0  # cannot be less likely than it is
    alone = torch.tensor([[1.0, -math.inf]])
    assert cringe_contrast(alone, torch.tensor([0]), k=1) == 0
    assert cringe_contrast(torch.tensor([[1.0]]), torch.tensor([0])) == 0


def binary(chosen: tuple[Any, Any], rejected: tuple[Any, Any], alpha: float, noise: Any = None) -> torch.Tensor:
    logits, target = (torch.cat(parts) for parts in zip(chosen, rejected, strict=True))
    good = torch.arange(len(target)) < len(chosen[1])
    noise = None if noise is None else torch.cat([noise, noise])
    each = cringe_loss(logits, target, good, alpha=alpha, k=2, noise=noise, reduction="none").sum(-1)
    return sum(each.chunk(2))  # type: ignore[return-value]


@given(SEEDS, st.floats(0.1, 3.0))
def test_limits_of_the_gate(seed: int, alpha: float) -> None:
    chosen, rejected = tokens(seed), tokens(seed + 1)
    noise = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    options: dict[str, Any] = {"alpha": alpha, "k": 2, "noise": noise, "reduction": "none"}
    both = binary(chosen, rejected, alpha, noise)
    torch.testing.assert_close(pairwise_cringe_loss(*chosen, *rejected, tau=1e9, **options), both / 2)
    torch.testing.assert_close(pairwise_cringe_loss(*chosen, *rejected, margin=1e6, **options), both)
    assert (pairwise_cringe_loss(*chosen, *rejected, margin=-1e6, **options) == 0).all()
    gate, gap = pairwise_cringe_gate(*chosen, *rejected, margin=0.3, tau=2.0)
    torch.testing.assert_close(gate, ((0.3 - gap) / 2).sigmoid())
    torch.testing.assert_close(pairwise_cringe_gate(*rejected, *chosen).gap, -gap)
    torch.testing.assert_close(pairwise_cringe_loss(*chosen, *rejected, margin=0.3, tau=2.0, **options), gate * both)


def test_a_detached_gate_and_lengths() -> None:
    chosen, rejected = tokens(0), tokens(1, length=5)
    logits = chosen[0].requires_grad_()
    options: dict[str, Any] = {"k": 1, "reduction": "sum"}
    value = pairwise_cringe_loss(*chosen, *rejected, detach_gate=True, **options)
    (gradient,) = torch.autograd.grad(value, logits)
    gate = pairwise_cringe_gate(*chosen, *rejected).gate.detach()
    slope = logits.softmax(-1).scatter_add(-1, chosen[1].unsqueeze(-1), -torch.ones(3, 4, 1, dtype=torch.float64))
    torch.testing.assert_close(gradient, (gate[:, None, None] * slope).detach())
    whole = torch.autograd.grad(pairwise_cringe_loss(*chosen, *rejected, **options), logits)[0]
    assert not torch.allclose(whole, gradient)
    per_token = pairwise_cringe_gate(*chosen, *rejected, length_normalize=True).gap
    logps = [
        logits.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1).mean(-1)
        for logits, target in (chosen, rejected)
    ]
    torch.testing.assert_close(per_token, logps[0] - logps[1])


def test_a_pair_without_tokens_does_not_count() -> None:
    chosen, rejected = tokens(0), tokens(1)
    for _, target in (chosen, rejected):
        target[0] = -100
    losses = pairwise_cringe_loss(*chosen, *rejected, k=1, reduction="none")
    assert losses[0] == 0
    torch.testing.assert_close(pairwise_cringe_loss(*chosen, *rejected, k=1), losses[1:].mean())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_the_head_gives_the_same_numbers(backend: Any, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    head, bias, inputs = draw(9, 5), draw(9), [draw(3, 6, 5), draw(3, 6, 5)]
    targets = [torch.randint(9, (3, 6), generator=generator) for _ in range(2)]
    targets[0][0, :2] = targets[1][1, 4:] = -100
    inputs[0][0, 0] = math.nan  # shifted: predicts target 1, which is ignored
    noise, weight = torch.rand(3, 5, generator=generator, dtype=torch.float64), draw(9).exp()
    leaves = [tensor.requires_grad_() for tensor in (*inputs, head, bias)]
    good = torch.tensor([True, False, False])
    logits = [F.linear(input, head, bias)[:, :-1] for input in inputs]
    words = [target[:, 1:] for target in targets]
    options: dict[str, Any] = {"k": k, "noise": noise, "alpha": 0.7}
    pairs = [
        (
            linear_cringe_loss(
                inputs[0], head, targets[0], good, bias, shift=1, weight=weight, backend=backend, **options
            ),
            cringe_loss(logits[0], words[0], good, weight=weight, **options),
        ),
        (
            linear_pairwise_cringe_loss(
                inputs[0], head, targets[0], inputs[1], targets[1], bias, shift=1, tau=3.0, backend=backend, **options
            ),
            pairwise_cringe_loss(logits[0], words[0], logits[1], words[1], tau=3.0, **options),
        ),
    ]
    for mine, wanted in pairs:
        torch.testing.assert_close(mine, wanted)
        got = torch.autograd.grad(mine, leaves, allow_unused=True)
        torch.testing.assert_close(got[0], torch.autograd.grad(wanted, leaves[0], retain_graph=True)[0])
        assert got[2].isfinite().all()  # what an ignored row holds stays there


def test_modules() -> None:
    logits, target = tokens()
    input, head = torch.randn(3, 4, 5), torch.randn(6, 5)
    good = torch.tensor([True, False, True])
    noise = torch.rand(3, 4)
    torch.testing.assert_close(
        CringeLoss(0.5, 3)(logits, target, good, noise=noise),
        cringe_loss(logits, target, good, alpha=0.5, k=3, noise=noise),
    )
    torch.testing.assert_close(
        LinearCringeLoss(k=3)(input, head, target, good, noise=noise),
        linear_cringe_loss(input, head, target, good, k=3, noise=noise),
    )
    torch.testing.assert_close(
        PairwiseCringeLoss(tau=2.0)(logits, target, logits, target, noise=noise),
        pairwise_cringe_loss(logits, target, logits, target, tau=2.0, noise=noise),
    )
    torch.testing.assert_close(
        LinearPairwiseCringeLoss(tau=2.0)(input, head, target, input, target, noise=noise),
        linear_pairwise_cringe_loss(input, head, target, input, target, tau=2.0, noise=noise),
    )


def test_rounds_of_sampling_and_training() -> None:
    """A policy over numbers learns by DPO-free updates to say the larger of two."""
    policy = torch.zeros(4, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([policy], 0.1)

    def sample(prompts: Any, count: int) -> list[list[int]]:
        return [torch.multinomial(policy.softmax(0), count, True, generator=generator).tolist() for _ in prompts]

    def update(pairs: Any) -> float:
        chosen, rejected = (torch.tensor([[getattr(pair, side)] for pair in pairs]) for side in ("chosen", "rejected"))
        logits = policy.expand(len(pairs), 1, 4)
        for _ in range(10):
            loss = pairwise_cringe_loss(logits, chosen, logits, rejected, margin=2.0, generator=generator)
            optimizer.zero_grad()
            loss.backward(retain_graph=True)
            optimizer.step()
            logits = policy.expand(len(pairs), 1, 4)
        return loss.item()

    trainer = IterativePreferenceTrainer(sample, lambda prompt, response: float(response), update)
    losses = [trainer.round(["a number"] * 4, 6) for _ in range(4)]
    assert policy.argmax() == 3
    assert losses[-1] < losses[0]
    means = [record["mean_reward"] for record in trainer.history]
    assert means[-1] > means[0]
    assert len(trainer.pairs) == sum(record["new_pairs"] for record in trainer.history)
    even = IterativePreferenceTrainer(sample, lambda prompt, response: 1.0, len)
    assert even.round(["a number"], 2) == 0
    with pytest.raises(ValueError, match="num_samples is 1"):
        trainer.round(["a number"], 1)
    with pytest.raises(ValueError, match="prompts is empty"):
        trainer.round([], 2)
    short = IterativePreferenceTrainer(lambda prompts, count: [[1]], lambda prompt, response: 1.0, len)
    with pytest.raises(ValueError, match=r"policy_sampler gave \[1\] responses; wanted 2 for each of 1 prompts"):
        short.round(["a number"], 2)


def test_errors() -> None:
    logits, target = tokens()
    good = torch.ones(3, dtype=torch.bool)
    for call, error, message in (
        (lambda: cringe_loss(logits, target, good.long()), TypeError, "is_positive is torch.int64; wanted"),
        (lambda: cringe_loss(logits, target, good[:2]), ValueError, r"is_positive has shape \(2,\); wanted \(3,\)"),
        (lambda: cringe_loss(logits, target, good, k=0), ValueError, "k is 0; wanted a positive integer"),
        (lambda: cringe_loss(logits, target, good, alpha=-1.0), ValueError, "alpha is -1"),
        (lambda: cringe_loss(logits, target, good, noise=torch.rand(3)), ValueError, "noise has shape"),
        (lambda: pairwise_cringe_loss(logits, target, logits, target, tau=0.0), ValueError, "tau is 0"),
        (lambda: pairwise_cringe_loss(logits, target, logits[:2], target[:2]), ValueError, "wanted 3 rows"),
        (lambda: pairwise_cringe_loss(logits[0], target[0], logits, target), ValueError, r"wanted \(B, T, V\)"),
    ):
        with pytest.raises(error, match=message):
            call()
