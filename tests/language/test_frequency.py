"""Power-law decay: PyTorch's weighted cross-entropy, its limits, its shares of the gradient, and tables of a corpus."""

import os
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossary.datasets import path
from lossary.language import (
    PowerLawDecayLoss,
    linear_power_law_decay_loss,
    power_law_decay_loss,
    power_law_decay_weights,
    token_frequencies,
)

SEEDS = st.integers(0, 10_000)
ALPHAS = st.floats(0.0, 2.0)


def sample(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(5, (2, 6), generator=generator)
    target[0, 2] = -100
    return logits.requires_grad_(), target, torch.randint(1, 1000, (5,), generator=generator)


@given(SEEDS, ALPHAS, st.floats(1e-7, 2.0))
def test_by_weights_it_is_torchs_weighted_cross_entropy(seed: int, alpha: float, epsilon: float) -> None:
    logits, target, frequency = sample(seed)
    weight = (frequency + epsilon).double() ** -alpha
    torch.testing.assert_close(
        power_law_decay_weights(frequency.double(), alpha=alpha, epsilon=epsilon), weight, rtol=1e-6, atol=0
    )
    ours = power_law_decay_loss(logits, target, frequency, alpha=alpha, epsilon=epsilon)
    wanted = F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight=weight)
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


@given(SEEDS, ALPHAS, st.floats(0.1, 100.0))
def test_only_ratios_of_frequencies_matter(seed: int, alpha: float, factor: float) -> None:
    logits, target, frequency = sample(seed)
    one = power_law_decay_loss(logits, target, frequency, alpha=alpha, epsilon=0.1)
    other = power_law_decay_loss(logits, target, factor * frequency, alpha=alpha, epsilon=0.1 * factor)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    plain = F.cross_entropy(logits.flatten(0, 1), target.flatten())
    torch.testing.assert_close(power_law_decay_loss(logits, target, frequency, alpha=0.0), plain)
    torch.testing.assert_close(power_law_decay_loss(logits, target, torch.full((5,), 7), alpha=alpha), plain)


@given(SEEDS)
def test_what_the_mean_divides_by(seed: int) -> None:
    logits, target, frequency = sample(seed)
    rows = power_law_decay_loss(logits, target, frequency, reduction="none")
    keep = target != -100
    weight = torch.where(keep, power_law_decay_weights(frequency.double())[target.clamp(min=0)], 0.0)
    p = logits.log_softmax(-1).gather(-1, target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(rows, -weight * p)
    for normalize, divisor in (("weights", weight.sum()), ("tokens", keep.sum()), ("sum", 1)):
        call: dict[str, Any] = {"normalize": normalize}
        torch.testing.assert_close(power_law_decay_loss(logits, target, frequency, **call), rows.sum() / divisor)
        torch.testing.assert_close(
            power_law_decay_loss(logits, target, frequency, normalizer=3.0, **call), rows.sum() / 3
        )
    ignored = power_law_decay_loss(logits, torch.full_like(target, -100), frequency)
    assert ignored == 0
    assert (torch.autograd.grad(ignored, logits)[0] == 0).all()


def test_equal_shares_of_the_gradient_at_alpha_1() -> None:
    """Where a text is the table's own, every word pulls with the same weight in all."""
    target = torch.tensor([[0] * 30 + [1] * 6 + [2] * 2 + [3]])
    logits = torch.zeros(1, 39, 4, dtype=torch.float64, requires_grad=True)
    loss = PowerLawDecayLoss.from_token_ids(target, 4, epsilon=1e-12, normalize="tokens")
    (gradient,) = torch.autograd.grad(loss(logits, target), logits)
    pull = [-gradient[target == word][:, word].sum().item() for word in range(4)]
    assert pull == pytest.approx([pull[0]] * 4)


@settings(max_examples=10)
@given(SEEDS, st.sampled_from(["weights", "tokens", "sum"]), st.sampled_from([0, 1]), st.sampled_from([0.0, 0.2]))
def test_a_head_gives_the_same(seed: int, normalize: Any, shift: int, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((2, 6, 4), (5, 4), (5,))
    input, head, bias = (torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes)
    _, target, frequency = sample(seed)
    logits, aligned = F.linear(input, head, bias), target
    if shift:
        logits, aligned = logits[:, :-1], target[:, 1:]
    options = {"normalize": normalize, "alpha": 0.7, "label_smoothing": smoothing, "weight": torch.rand(5).double()}
    for reduction in ("none", "mean", "sum"):
        options["reduction"] = reduction
        ours = linear_power_law_decay_loss(input, head, target, frequency, linear_bias=bias, shift=shift, **options)
        wanted = power_law_decay_loss(logits, aligned, frequency, **options)
        torch.testing.assert_close(ours, wanted)
        gradients = [torch.autograd.grad(loss.sum(), [input, head, bias], retain_graph=True) for loss in (ours, wanted)]
        torch.testing.assert_close(*gradients)
    nothing = linear_power_law_decay_loss(input, head, torch.full_like(target, -100), frequency)
    assert nothing == 0


def test_words_that_the_table_has_not_seen() -> None:
    logits, target = torch.zeros(1, 3, 4), torch.tensor([[0, 3, -100]])
    frequency = torch.tensor([100, 5, 2, 0])
    with pytest.warns(UserWarning, match=r"1 of the targets have frequency 0, and each weighs 2e\+07 times"):
        power_law_decay_loss(logits, target, frequency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({"epsilon": 1.0}, {"max_weight": 0.5}, {"alpha": 0.0}):
            power_law_decay_loss(logits, target, frequency, **options)
        power_law_decay_loss(logits[:, :1], target[:, :1], frequency)
    assert power_law_decay_weights(frequency, max_weight=0.3).tolist() == pytest.approx([0.01, 0.2, 0.3, 0.3])
    half = power_law_decay_loss(logits.bfloat16(), target, frequency, epsilon=1.0, reduction="none")
    torch.testing.assert_close(half, torch.tensor([[1 / 101, 1.0, 0.0]]) * torch.log(torch.tensor(4.0)))


@pytest.mark.skipif("LOSSARY_DATA" not in os.environ, reason="LOSSARY_DATA names no folder with the data")
def test_a_table_of_a_real_corpus() -> None:
    """Characters of Shakespeare, counted as they stream by, in pieces of any shape."""
    text = path("tinyshakespeare").read_text()[:200_000]
    entry = {character: place for place, character in enumerate(sorted(set(text)))}
    tokens = [entry[character] for character in text]
    counts = token_frequencies(iter(tokens), len(entry))
    assert counts.tolist() == [text.count(character) for character in entry]
    pieces = (torch.tensor(tokens[i : i + 1000]).reshape(-1, 10) for i in range(0, len(tokens), 1000))
    assert torch.equal(token_frequencies(pieces, len(entry)), counts)
    relative = token_frequencies([tokens], len(entry), relative=True)
    torch.testing.assert_close(relative, counts.double() / len(tokens))
    labels = torch.tensor(tokens[:100])
    labels[:40] = -100
    assert token_frequencies(labels, len(entry)).sum() == 60
    assert token_frequencies([], 3).tolist() == [0, 0, 0]
    loss = PowerLawDecayLoss.from_token_ids(pieces_of(tokens), len(entry), relative=True, alpha=0.5, epsilon=1e-6)
    torch.testing.assert_close(loss.frequency, relative)
    with pytest.raises(ValueError, match="token_ids contains 7; wanted 0 to 2 or ignore_index=-100"):
        token_frequencies([[0, 7]], 3)


def pieces_of(tokens: list[int]) -> Any:
    return (tokens[i : i + 777] for i in range(0, len(tokens), 777))


def test_bad_options() -> None:
    logits, target = torch.zeros(1, 2, 3), torch.tensor([[0, 1]])
    for message, options in {
        "normalize is 'mean'; wanted 'weights', 'tokens' or 'sum'": {"normalize": "mean"},
        "alpha is -1; wanted a number": {"alpha": -1},
        "epsilon is 0; wanted a number": {"epsilon": 0},
        r"frequency has shape \(2,\); wanted \(3,\)": {"frequency": torch.ones(2)},
        "frequency contains a negative number": {"frequency": torch.tensor([1.0, -1.0, 2.0])},
    }.items():
        with pytest.raises(ValueError, match=message):
            power_law_decay_loss(logits, target, **({"frequency": torch.ones(3)} | options))
