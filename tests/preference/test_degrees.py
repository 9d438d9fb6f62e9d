"""SPO: RAKE, versions that lose content step by step, and degree losses beside any alignment loss."""

import collections
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lossary.preference import (
    HDPOLoss,
    PreferenceDegreeHead,
    SPOLoss,
    degrade_response,
    h_dpo_loss,
    preference_degree_loss,
    rake_keywords,
)
from tests.preference.test_h_dpo import pairs

STOP = {"the", "is", "of", "and", "a"}
WORDS = ["the", "is", "of", "Battery", "life", "screen", "new", ",", ".", "poor"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=15)


def test_punctuation_at_the_edges_of_words_ends_a_phrase() -> None:
    spaced = rake_keywords("( new screen ) , poor , battery life . state-of-the-art", stopwords=STOP)
    assert rake_keywords("(new screen), poor, battery life. State-of-the-art", stopwords=STOP) == spaced
    assert spaced[-1] == (1.0, "poor")
    assert (1.0, "state-of-the-art") in spaced
    assert rake_keywords("the of , .", stopwords=STOP) == rake_keywords("", stopwords=STOP) == []
    text = "new screen , poor"
    assert rake_keywords(text, stopwords=STOP, min_length=2) == [(4.0, "new screen")]
    assert rake_keywords(text, stopwords=STOP, max_length=1) == [(1.0, "poor")]
    with pytest.raises(ValueError, match="min_length is 2 and max_length 1"):
        rake_keywords(text, stopwords=STOP, min_length=2, max_length=1)


@given(TEXTS, st.integers(2, 6), st.sampled_from(["rake", "random"]), st.booleans())
def test_versions_lose_more_and_more(tokens: list[str], num_degrees: int, strategy: Any, as_text: bool) -> None:
    given: Any = " ".join(tokens) if as_text else tokens
    make = lambda: degrade_response(  # noqa: E731
        given, num_degrees=num_degrees, stopwords=STOP, strategy=strategy, generator=torch.Generator().manual_seed(0)
    )
    versions = make()
    assert versions == make()
    assert len(versions) == num_degrees
    assert versions[0] == given
    split = [version.split() if as_text else version for version in versions]
    counts = [collections.Counter(version) for version in split]
    for more, fewer in itertools.pairwise(counts):
        assert fewer <= more
    assert not tokens or all(split)


def test_the_first_phrases_go_first() -> None:
    text = "The new screen is poor, and the new screen of battery."
    phrases = [phrase for _, phrase in rake_keywords(text, stopwords=STOP)]
    assert phrases == ["new screen", "new screen", "poor", "battery"]
    versions = degrade_response(text, num_degrees=3, stopwords=STOP)
    assert versions == [text, "The is poor, and the of battery.", "The is, and the of battery."]
    random = degrade_response(text, num_degrees=3, stopwords=STOP, strategy="random")
    assert [len(version.split()) for version in random][1:] != [0, 0]
    assert [len(degrade_response(text.split(), num_degrees=3, stopwords=STOP)[1])] == [7]
    assert degrade_response("good good battery", stopwords=STOP)[1:] == ["good"] * 3
    assert degrade_response("the of", stopwords=STOP) == ["the of"] * 4
    with pytest.raises(ValueError, match="num_degrees is 1"):
        degrade_response(text, num_degrees=1, stopwords=STOP)
    with pytest.raises(ValueError, match="strategy is 'best'"):
        degrade_response(text, stopwords=STOP, strategy="best")  # type: ignore[call-overload]


def test_degree_loss_is_cross_entropy_and_zero_without_versions() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, -100, 1])
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    for reduction in ("none", "mean", "sum"):
        ours = preference_degree_loss(logits, target, weight=weight, reduction=reduction)
        torch.testing.assert_close(ours, F.cross_entropy(logits, target, weight=weight, reduction=reduction))
    torch.testing.assert_close(preference_degree_loss(torch.zeros(2, 4), target[:2]), torch.tensor(math.log(4)))
    for none in ((logits, torch.full((6,), -100)), (logits[:0], target[:0])):
        zero = preference_degree_loss(*none)
        assert zero == 0
        assert (torch.autograd.grad(zero, logits)[0] == 0).all()
        assert preference_degree_loss(*none, reduction="sum") == 0
        assert preference_degree_loss(*none, normalizer=3) == 0


def versions(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(5, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    degrees = torch.arange(4).expand(5, 4).clone()
    degrees[0], degrees[1, 2:] = -100, -100  # the first response has no versions
    return [logits[0], degrees, logits[1], torch.arange(4).expand(5, 4)]


def test_alignment_and_degrees_add_up() -> None:
    tensors, degree = pairs(0), versions(0)
    of_version = F.cross_entropy(degree[0].flatten(0, 1), degree[1].flatten(), reduction="none").reshape(5, 4)
    of_chosen = of_version.sum(1) / torch.tensor([1, 2, 4, 4, 4])
    of_rejected = F.cross_entropy(degree[2].flatten(0, 1), degree[3].flatten(), reduction="none").reshape(5, 4).mean(1)
    wanted = h_dpo_loss(*tensors, reduction="none") + 0.3 * (of_chosen + of_rejected)
    each = HDPOLoss(reduction="none")
    torch.testing.assert_close(SPOLoss(each, 0.3, reduction="none")(*tensors, *degree), wanted)
    torch.testing.assert_close(SPOLoss(each, 0.3, reduction="sum")(*tensors, *degree), wanted.sum())
    for alignment in (each, HDPOLoss(), h_dpo_loss):
        torch.testing.assert_close(SPOLoss(alignment, 0.3)(*tensors, *degree), wanted.mean())
    flat = [degree[0].flatten(0, 1), degree[1].flatten(), degree[2].flatten(0, 1), degree[3].flatten()]
    named = dict(
        zip(("chosen_degree_logits", "chosen_degrees", "rejected_degree_logits", "rejected_degrees"), flat, strict=True)
    )
    wanted = h_dpo_loss(*tensors) + 0.3 * (F.cross_entropy(*flat[:2]) + F.cross_entropy(*flat[2:]))
    torch.testing.assert_close(SPOLoss(h_dpo_loss, 0.3)(*tensors, **named), wanted)


def test_without_gamma_it_is_the_alignment_loss() -> None:
    tensors, degree = pairs(0), versions(0)
    tensors[0].requires_grad_()
    losses = SPOLoss(HDPOLoss(), gamma=0.0)(*tensors, *degree), h_dpo_loss(*tensors)
    assert losses[0] == losses[1]
    assert torch.equal(*(torch.autograd.grad(loss, tensors[0], retain_graph=True)[0] for loss in losses))


def test_bad_calls() -> None:
    tensors, degree = pairs(0), versions(0)
    with pytest.raises(TypeError, match="chosen_degree_logits is missing"):
        SPOLoss(HDPOLoss())(*degree[:2])
    with pytest.raises(ValueError, match=r"alignment_loss gives \(\) and versions \(5,\); with reduction='sum' wanted"):
        SPOLoss(HDPOLoss(), reduction="sum")(*tensors, *degree)
    with pytest.raises(ValueError, match="gamma is -1"):
        SPOLoss(HDPOLoss(), gamma=-1)


def test_head_takes_the_last_token_that_is_no_padding_and_passes_gradients_on() -> None:
    head = PreferenceDegreeHead(8, num_degrees=4)
    hidden = torch.randn(3, 5, 8, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    logits = head(hidden, mask)
    torch.testing.assert_close(logits, head(hidden[torch.arange(3), torch.tensor([2, 4, 4])]))
    torch.testing.assert_close(head(hidden), head(hidden[:, -1]))
    preference_degree_loss(logits, torch.tensor([0, 1, 2])).backward()
    assert head.weight.grad is not None
    assert head.weight.grad.any()
    assert hidden.grad is not None
    assert hidden.grad[0, 2].any()
    assert not hidden.grad[0, 4].any()
    with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 4\); wanted \(3, 5\)"):
        head(hidden, mask[:, :4])
