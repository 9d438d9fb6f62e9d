"""Weighted instruction loss against PyTorch, on logits and on a head; masks of dialogues and packed rows."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossary.language import (
    instruction_mask,
    linear_weighted_instruction_loss,
    shift_labels,
    weighted_instruction_loss,
)

SEEDS = st.integers(0, 10_000)


def sample(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(5, (3, 6), generator=generator)
    target[:, :2] = -100
    return logits.requires_grad_(), target, 0.1 + 0.9 * torch.rand(3, generator=generator, dtype=torch.float64)


@given(SEEDS)
def test_what_the_mean_divides_by(seed: int) -> None:
    logits, target, weight = sample(seed)
    plain = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").reshape(3, 6)
    spread = weight.unsqueeze(1).expand(3, 6) * (target != -100)
    by_token = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for given_weight, factor in ((weight, spread), (by_token, by_token * (target != -100))):
        rows = weighted_instruction_loss(logits, target, given_weight, reduction="none")
        torch.testing.assert_close(rows, factor * plain)
        tokens = weighted_instruction_loss(logits, target, given_weight)
        torch.testing.assert_close(tokens, rows.sum() / 12)
        torch.testing.assert_close(weighted_instruction_loss(logits, target, 0.3 * given_weight), 0.3 * tokens)
        weights = weighted_instruction_loss(logits, target, given_weight, normalize="weights")
        torch.testing.assert_close(weights, rows.sum() / factor.sum())
        scaled = weighted_instruction_loss(logits, target, 7 * given_weight, normalize="weights")
        torch.testing.assert_close(scaled, weights)
    for normalize in ("tokens", "weights"):
        call: dict[str, Any] = {"normalize": normalize}
        alike = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        torch.testing.assert_close(weighted_instruction_loss(logits, target, **call), alike)
        torch.testing.assert_close(
            weighted_instruction_loss(logits, target, torch.ones(3), **call), alike, check_dtype=False
        )


@given(SEEDS, st.sampled_from(["tokens", "weights"]))
def test_weight_0_drops_an_example(seed: int, normalize: Any) -> None:
    logits, target, weight = sample(seed)
    weight[1] = 0
    poisoned = logits.detach().clone()
    poisoned[1] = torch.nan
    poisoned.requires_grad_()
    dropped = weighted_instruction_loss(poisoned, target, weight, normalize=normalize)
    rest = weighted_instruction_loss(logits[[0, 2]], target[[0, 2]], weight[[0, 2]], normalize=normalize)
    torch.testing.assert_close(dropped, rest)
    (gradient,) = torch.autograd.grad(dropped, poisoned)
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all()
    nothing = weighted_instruction_loss(logits, target, torch.zeros(3), normalize=normalize)
    assert nothing == 0
    assert (torch.autograd.grad(nothing, logits)[0] == 0).all()


@given(SEEDS)
def test_gradient_in_closed_form_and_shards(seed: int) -> None:
    logits, target, weight = sample(seed)
    loss = weighted_instruction_loss(logits, target, weight)
    (gradient,) = torch.autograd.grad(loss, logits)
    keep = (target != -100).unsqueeze(-1)
    error = logits.softmax(-1) - F.one_hot(target.clamp(min=0), 5)
    torch.testing.assert_close(gradient, keep * weight.reshape(3, 1, 1) * error / 12)
    for normalize, total in (("tokens", torch.tensor(12.0)), ("weights", 4 * weight.sum())):
        call: dict[str, Any] = {"normalize": normalize}
        shards = [
            weighted_instruction_loss(logits[i], target[i], weight[i : i + 1].expand(6), normalizer=total, **call)
            for i in range(3)
        ]
        torch.testing.assert_close(sum(shards), weighted_instruction_loss(logits, target, weight, **call))


@settings(max_examples=10)
@given(SEEDS, st.sampled_from(["tokens", "weights"]), st.sampled_from([0, 1]), st.sampled_from([0.0, 0.2]))
def test_a_head_gives_the_same(seed: int, normalize: Any, shift: int, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((3, 6, 4), (5, 4), (5,))
    input, head, bias = (torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes)
    _, target, weight = sample(seed)
    logits, aligned = F.linear(input, head, bias), target
    if shift:
        logits, aligned = logits[:, :-1], target[:, 1:]
    options = {"normalize": normalize, "label_smoothing": smoothing, "class_weight": torch.rand(5).double()}
    by_token = torch.rand(3, 6, generator=generator, dtype=torch.float64)
    for reduction in ("none", "mean", "sum"):
        options["reduction"] = reduction
        for on_head, on_logits in ((weight, weight), (by_token, by_token[:, shift:]), (None, None)):
            ours = linear_weighted_instruction_loss(
                input, head, target, on_head, linear_bias=bias, shift=shift, **options
            )
            wanted = weighted_instruction_loss(logits, aligned, on_logits, **options)
            torch.testing.assert_close(ours, wanted)
            gradients = [
                torch.autograd.grad(loss.sum(), [input, head, bias], retain_graph=True) for loss in (ours, wanted)
            ]
            torch.testing.assert_close(*gradients)
    assert linear_weighted_instruction_loss(input, head, target, torch.zeros(3)) == 0


def test_bad_options() -> None:
    logits, target, weight = sample(0)
    with pytest.raises(ValueError, match="normalize is 'sum'; wanted 'tokens' or 'weights'"):
        weighted_instruction_loss(logits, target, weight, normalize="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weight has shape \(2,\); wanted \(3, 6\)"):
        weighted_instruction_loss(logits, target, weight[:2])
    with pytest.raises(ValueError, match="weight contains a negative number"):
        weighted_instruction_loss(logits, target, -weight)


# --- masks ------------------------------------------------------------------------------------------------------------


def tokens_of(text: str) -> Tensor:
    return torch.tensor([[ord(character) for character in text]])


@pytest.mark.parametrize(
    ("text", "scored"),
    [
        ("u:ask.a:yes.", "yes."),
        ("u:ask.a:yes.u:why.a:no.", "yes.no."),
        ("u:ask.a:cut of", "cut of"),  # an answer that was cut off at the end of the row
        ("u:a:.b.", "."),  # what looks like an opening opens
        ("u:ask.", ""),
        ("a:", ""),
        ("a:.a:.", ".."),
    ],
)
def test_answers_alone_are_scored(text: str, scored: str) -> None:
    labels = instruction_mask(tokens_of(text), [ord(c) for c in "a:"], [ord(".")])
    assert "".join(chr(label) for label in labels[labels != -100].tolist()) == scored
    open_end = instruction_mask(tokens_of(text), [ord(c) for c in "a:"], [ord(".")], score_end=False)
    assert "".join(chr(label) for label in open_end[open_end != -100].tolist()) == scored.replace(".", "")
    both = tokens_of(text + text)[0]
    batch = torch.stack([both, both])
    again = instruction_mask(batch, [ord(c) for c in "a:"], [ord(".")])
    assert torch.equal(again[0], again[1])


def test_ends_of_several_tokens() -> None:
    text = "a:yes</s>u:"
    start, end = ([ord(c) for c in marker] for marker in ("a:", "</s>"))
    for score_end, scored in ((True, "yes</s>"), (False, "yes")):
        labels = instruction_mask(tokens_of(text), start, end, score_end=score_end)
        assert "".join(chr(label) for label in labels[labels != -100].tolist()) == scored
    with pytest.raises(ValueError, match=r"end is \[\]; wanted the tokens of the marker"):
        instruction_mask(tokens_of(text), start, [])


def test_packed_and_padded_rows() -> None:
    """An answer that never ended does not reach into the next dialogue; nobody is predicted across the border."""
    first, second = "a:ye", "u:hi.a:o."
    packed = tokens_of(first + second + "__")
    position_ids = torch.tensor([[*range(len(first)), *range(len(second)), 0, 1]])
    attention_mask = torch.ones_like(packed)
    attention_mask[:, -2:] = 0
    markers = [ord(c) for c in "a:"], [ord(".")]
    labels = instruction_mask(packed, *markers, position_ids=position_ids, attention_mask=attention_mask)
    assert shift_labels(packed[:, :0]).shape == (1, 0)
    assert "".join(chr(label) for label in labels[labels != -100].tolist()) == "yeo."
    alone = [instruction_mask(tokens_of(text), *markers) for text in (first, second)]
    assert torch.equal(labels[:, :-2], torch.cat(alone, 1))
    everything = shift_labels(packed, position_ids=position_ids, attention_mask=attention_mask)
    apart = [shift_labels(tokens_of(text)) for text in (first, second)]
    assert torch.equal(everything, torch.cat([*apart, torch.full((1, 2), -100)], 1))
    logits = torch.randn(1, packed.shape[1], 256, generator=torch.Generator().manual_seed(0))
    target = shift_labels(labels, position_ids=position_ids)
    together = weighted_instruction_loss(logits, target, reduction="sum")
    parts = zip(logits[:, :-2].split([len(first), len(second)], 1), alone, strict=True)
    wanted = sum(weighted_instruction_loss(z, shift_labels(labels), reduction="sum") for z, labels in parts)
    torch.testing.assert_close(together, wanted)
