"""EISL: brute force, the convolution of the paper, cross-entropy at full length, shifts, padding, packing, noise."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.language import (
    EISLLoss,
    LinearEISLLoss,
    eisl_loss,
    eisl_with_cross_entropy,
    linear_eisl_loss,
    linear_eisl_with_cross_entropy,
    ngram_match_scores,
)


def problem(output: int = 6, target: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, output, 7, generator=generator, dtype=torch.float64)
    return logits, torch.randint(7, (3, target), generator=generator)


def by_hand(log_p: Tensor, target: list[int], n: int, noise: Tensor | None = None) -> float:
    """One row, one n, in three loops."""
    terms = []
    for j in range(len(target) - n + 1):
        scores = [sum(float(log_p[i + k, target[j + k]]) for k in range(n)) / n for i in range(len(log_p) - n + 1)]
        chances = [math.exp(s + (0.0 if noise is None else float(noise[i, j]))) for i, s in enumerate(scores)]
        terms.append(sum(c * s for c, s in zip(chances, scores, strict=True)) / sum(chances))
    return -sum(terms) / len(terms)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_brute_force(n: int) -> None:
    logits, target = problem()
    noise = torch.randn(3, 1, 6, 5, dtype=torch.float64)
    log_p = logits.log_softmax(-1)
    for given in (None, noise):
        expected = [by_hand(log_p[b], target[b].tolist(), n, None if given is None else given[b, 0]) for b in range(3)]
        value = eisl_loss(logits, target, ngrams=(n,), noise=given, reduction="none")
        torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


def test_scores_are_the_convolution_of_the_paper() -> None:
    logits, target = problem()
    log_p = logits.log_softmax(-1).gather(2, target.unsqueeze(1).expand(-1, 6, -1))
    for n in (1, 2, 5):
        diagonal = torch.eye(n, dtype=torch.float64).view(1, 1, n, n)
        expected = F.conv2d(log_p.unsqueeze(1), diagonal).squeeze(1) / n
        scores = ngram_match_scores(logits, target, n)
        torch.testing.assert_close(scores, expected)
        loss = eisl_loss(logits, target, ngrams=(n,), reduction="none")
        assert (loss >= -scores.amax(1).mean(1) - 1e-12).all()
        assert (loss <= -scores.mean((1, 2)) + 1e-12).all()
    target[0, 1] = -100
    assert ngram_match_scores(logits, target, 2)[0].isinf().any(0).tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match="n is 6; wanted an integer from 1 to 5"):
        ngram_match_scores(logits, target, 6)


def test_full_length_is_cross_entropy() -> None:
    logits, target = problem(5, 5)
    logits.requires_grad_()
    expected = F.cross_entropy(logits.flatten(0, 1), target.flatten())
    for ngrams in ((5,), (0,), (9,), (-7,)):
        value = eisl_loss(logits, target, ngrams=ngrams)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(loss, logits, retain_graph=True) for loss in (value, expected))
        )


def test_lists_of_ngrams() -> None:
    logits, target = problem()
    one = {n: eisl_loss(logits, target, ngrams=(n,)) for n in (1, 2, 3, 5)}
    torch.testing.assert_close(eisl_loss(logits, target, ngrams=[1, 2, 3]), (one[1] + one[2] + one[3]) / 3)
    torch.testing.assert_close(eisl_loss(logits, target, ngrams=(2, 2, -1, 6)), (one[2] + one[5]) / 2)
    for weights in ([0.8, 0.2], torch.tensor([0.8, 0.2])):
        loss = EISLLoss((1, 2), weights=weights)
        torch.testing.assert_close(loss(logits, target), 0.8 * one[1] + 0.2 * one[2])
    with pytest.raises(ValueError, match="weights has 1 numbers"):
        eisl_loss(logits, target, ngrams=(1, 2), weights=[1.0])
    with pytest.raises(ValueError, match="ngrams is"):
        eisl_loss(logits, target, ngrams=(1.5,))  # type: ignore[arg-type]


def test_shifts_cost_little() -> None:
    """What is said one position late or early is as good as right, but for what is cut off."""
    target = torch.tensor([[3, 1, 4, 0, 5]])
    said = {"right": [3, 1, 4, 0, 5], "late": [6, 3, 1, 4, 0], "early": [1, 4, 0, 5, 6], "longer": [3, 1, 4, 0, 5, 6]}
    output = {name: 30.0 * F.one_hot(torch.tensor([row]), 7) for name, row in said.items()}
    loss = {name: eisl_loss(logits, target, ngrams=(2,)) for name, logits in output.items()}
    assert max(loss["right"], loss["longer"]) < 1e-3
    for name in ("late", "early"):  # one of four pairs is cut off and matches nowhere
        assert 10 / 4 - 1e-3 < loss[name] <= 20 / 4
        assert F.cross_entropy(output[name][0], target[0]) > 25
    assert eisl_loss(output["late"], target[:, :4], ngrams=(2,)) < 1e-3


def test_below_the_floor_nothing_is_learnt() -> None:
    logits = torch.tensor([[[0.0, -30.0], [0.0, -5.0]]], requires_grad=True)
    loss = eisl_loss(logits, torch.tensor([[1, 1]]), ngrams=(2,))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[0, 0] == 0).all()
    assert (gradient[0, 1] != 0).all()
    lower = eisl_loss(logits, torch.tensor([[1, 1]]), ngrams=(2,), log_prob_min=-40.0)
    assert (torch.autograd.grad(lower, logits)[0][0, 0] != 0).all()
    impossible = torch.tensor([[[0.0, -torch.inf]]], requires_grad=True)
    value = eisl_loss(impossible, torch.tensor([[1]]), ngrams=(1,))
    assert value == 20
    assert (torch.autograd.grad(value, impossible)[0] == 0).all()


@pytest.mark.parametrize("linear", [False, True])
def test_padding_is_as_if_it_were_not_there(linear: bool) -> None:
    """Each row alone, cut to its lengths, has the same loss and gradient; rows too short for one n use the others."""
    generator = torch.Generator().manual_seed(0)
    input, head = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((3, 6, 4), (7, 4)))
    _, target = problem()
    lengths = [(6, 5), (4, 3), (3, 2)]
    mask = torch.arange(6) < torch.tensor(lengths)[:, :1]
    padded = torch.where(torch.arange(5) < torch.tensor(lengths)[:, 1:], target, -100)
    input = torch.where(mask.unsqueeze(2), input, torch.nan).requires_grad_()

    def loss(input: Tensor, target: Tensor, **words: Any) -> Tensor:
        words |= {"ngrams": (1, 2, 3), "reduction": "none"}
        return linear_eisl_loss(input, head, target, **words) if linear else eisl_loss(input @ head.T, target, **words)

    together = loss(input, padded, output_mask=mask)
    alone = torch.cat([loss(input[b : b + 1, :i], target[b : b + 1, :j]) for b, (i, j) in enumerate(lengths)])
    torch.testing.assert_close(together, alone)
    (gradient,) = torch.autograd.grad(together.sum(), input, retain_graph=True)
    assert (gradient[~mask] == 0).all()
    torch.testing.assert_close(gradient[mask], torch.autograd.grad(alone.sum(), input)[0][mask])
    with pytest.raises(TypeError, match="output_mask has dtype"):
        loss(input, padded, output_mask=mask.long())


def test_packed_rows() -> None:
    """N-grams neither cross the border of two sequences nor match in the other one."""
    logits, target = problem(7, 7)
    segment = torch.tensor([0, 0, 0, 0, 1, 1, 1]).expand(3, -1)
    packed = eisl_loss(logits, target, segment=segment, reduction="none")
    parts = [eisl_loss(logits[:, s], target[:, s], reduction="none") for s in (slice(0, 4), slice(4, 7))]
    torch.testing.assert_close(packed, (3 * parts[0] + 2 * parts[1]) / 5)  # so many n-grams each
    with pytest.raises(ValueError, match="segment has shape"):
        eisl_loss(logits, target[:, 1:], segment=segment)


def test_noise_is_drawn_or_given() -> None:
    logits, target = problem()
    drawn = [eisl_loss(logits, target, gumbel=True, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert drawn[0] == drawn[1] != eisl_loss(logits, target)
    noise = -torch.empty(4000, 1, 6, 5).exponential_(generator=torch.Generator().manual_seed(1)).log()
    many = eisl_loss(logits[:1].expand(4000, -1, -1), target[:1].expand(4000, -1), noise=noise)
    again = eisl_loss(
        logits[:1].expand(4000, -1, -1),
        target[:1].expand(4000, -1),
        gumbel=True,
        generator=torch.Generator().manual_seed(2),
    )
    torch.testing.assert_close(many, again, rtol=0.02, atol=0)
    torch.testing.assert_close(
        EISLLoss()(logits, target, noise=noise[:3]), eisl_loss(logits, target, noise=noise[:3].double())
    )
    with pytest.raises(ValueError, match="noise has shape"):
        eisl_loss(logits, target, ngrams=(1, 2), noise=noise[:3])


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_linear_form(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    input, head, bias = (torch.randn(*s, generator=generator).double() for s in ((3, 6, 4), (7, 4), (7,)))
    _, target = problem()
    target[1, 3:] = -100
    input, words = scale * input, {"ngrams": (1, 2), "reduction": "none"}
    leaves = [tensor.requires_grad_() for tensor in (input, head, bias)]
    ours = linear_eisl_loss(input, head, target, bias, **words)
    theirs = eisl_loss(F.linear(input, head, bias), target, **words)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), leaves) for loss in (ours, theirs)))
    single = [tensor.detach().float() for tensor in leaves]
    for backend in ("cpu", "reference"):
        float32 = linear_eisl_loss(single[0], single[1], target, single[2], backend=backend, **words)
        plain = eisl_loss(F.linear(*single), target, **words)
        torch.testing.assert_close(float32, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(LinearEISLLoss((1, 2), reduction="none")(input, head, target, bias), ours)


def test_with_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    input, head = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((3, 5, 4), (7, 4)))
    _, target = problem()
    logits = input @ head.T
    value = eisl_with_cross_entropy(logits, target, ngram_factor=0.7, ce_factor=0.2, ngrams=(2, 3))
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), target.flatten())
    torch.testing.assert_close(value, 0.7 * eisl_loss(logits, target, ngrams=(2, 3)) + 0.2 * cross_entropy)
    target[0, 2:], target[1] = -100, -100
    words: dict[str, Any] = {"ngram_factor": 0.7, "ce_factor": 0.2, "ngrams": (2, 3)}
    both = [
        form(*given, **words, label_smoothing=smoothing, reduction="none")
        for smoothing in (0.1, 0.0)
        for form, given in (
            (eisl_with_cross_entropy, (logits, target)),
            (linear_eisl_with_cross_entropy, (input, head, target)),
        )
    ]
    torch.testing.assert_close(both[0], both[1])
    torch.testing.assert_close(both[2], both[3])
    torch.testing.assert_close(eisl_with_cross_entropy(logits, target, **words), both[2][[0, 2]].mean())
    smooth = eisl_with_cross_entropy(logits[2:], target[2:], ngram_factor=0, ce_factor=1, label_smoothing=0.1)
    torch.testing.assert_close(smooth, F.cross_entropy(logits[2], target[2], label_smoothing=0.1))


def test_shapes_that_are_wrong() -> None:
    logits, target = problem()
    with pytest.raises(ValueError, match=r"logits has shape .*; wanted \(B, To, V\)"):
        eisl_loss(logits[0], target)
    with pytest.raises(ValueError, match=r"target has shape \(2, 5\); wanted \(3, Tt\)"):
        eisl_loss(logits, target[:2])
    with pytest.raises(ValueError, match="input has shape"):
        linear_eisl_loss(logits, torch.zeros(9, 4, dtype=torch.float64), target)
    with pytest.raises(ValueError, match="target contains 8"):
        eisl_loss(logits, target + 8 - target)
    assert eisl_loss(logits, target[:, :0], reduction="none").tolist() == [0, 0, 0]
