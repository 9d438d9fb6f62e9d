"""Number token losses against SciPy's distance and closed forms, on logits and on a head; numbers of tokenizers."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from torch import Tensor

from lossary.language import (
    CrossEntropyWithNumberTokenLoss,
    LinearNumberTokenLoss,
    NumberTokenLoss,
    cross_entropy_with_number_token_loss,
    linear_cross_entropy_with_number_token_loss,
    linear_number_level_loss,
    linear_number_token_loss,
    linear_predict_numbers,
    number_level_loss,
    number_token_loss,
    number_values_from_tokenizer,
    number_values_from_vocab,
    predict_numbers,
)

SEEDS = st.integers(0, 10_000)
NAN = math.nan
KINDS = ["wasserstein", "mse", "mae", "huber"]
VALUES = torch.tensor([NAN, 0.5, 3.0, NAN, 100.0, -2.0, 3.0, NAN], dtype=torch.float64)
NUMBERS = [1, 2, 4, 5, 6]


def sample(seed: int) -> tuple[Tensor, Tensor]:
    """Logits and targets, the first of them a number and one ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    target = torch.randint(8, (2, 5), generator=generator)
    target[0, 0], target[1, 1] = 4, -100
    return logits, target


def restricted(logits: Tensor) -> Tensor:
    return logits[..., NUMBERS].softmax(-1)


@given(SEEDS)
def test_wasserstein_is_scipys_distance(seed: int) -> None:
    logits, target = sample(seed)
    loss = number_token_loss(logits, target, VALUES, reduction="none")
    q, v = restricted(logits), VALUES[NUMBERS]
    for b in range(2):
        for t in range(5):
            y = VALUES[target[b, t]] if target[b, t] >= 0 else torch.tensor(NAN)
            wanted = 0.0 if y.isnan() else wasserstein_distance(v, [float(y)], q[b, t], [1.0])
            assert float(loss[b, t]) == pytest.approx(wanted, abs=1e-9)
    # Jensen: the distance of the mean is never above the mean distance.
    assert (number_token_loss(logits, target, VALUES, kind="mae", reduction="none") <= loss + 1e-12).all()


@given(SEEDS, st.floats(0.0, 1.0))
def test_smoothed_targets_keep_the_true_gaps(seed: int, smoothing: float) -> None:
    logits, target = sample(seed)
    target = torch.where(target == 6, 2, target)
    loss = number_token_loss(logits, target, VALUES, label_smoothing=smoothing, reduction="none")
    q, v = restricted(logits), VALUES[NUMBERS]
    spread = torch.full((5,), smoothing / 5, dtype=torch.float64)
    for b in range(2):
        for t in range(5):
            if int(target[b, t]) in NUMBERS:
                wanted = wasserstein_distance(
                    v,
                    v,
                    q[b, t],
                    spread + (1 - smoothing) * F.one_hot(torch.tensor(NUMBERS.index(int(target[b, t]))), 5).double(),
                )
                assert float(loss[b, t]) == pytest.approx(wanted, abs=1e-8)
    mean = number_token_loss(logits, target, VALUES, label_smoothing=smoothing, kind="mse", reduction="none")
    y = (1 - smoothing) * VALUES[4] + smoothing * v.mean()
    torch.testing.assert_close(mean[0, 0], (q[0, 0] @ v - y).square())


@given(SEEDS)
def test_gradient_in_closed_form(seed: int) -> None:
    logits, target = sample(seed)
    logits.requires_grad_()
    loss = number_token_loss(logits, target, VALUES, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    q, distance = restricted(logits.detach())[0, 0], (VALUES[NUMBERS] - 100).abs()
    torch.testing.assert_close(gradient[0, 0, NUMBERS], q * (distance - loss.detach()[0, 0]))
    outside = [entry for entry in range(8) if entry not in NUMBERS]
    assert (gradient[..., outside] == 0).all()
    assert (gradient[1, 1] == 0).all()
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(2, 5, dtype=torch.float64), atol=1e-9, rtol=0)


@given(SEEDS, st.sampled_from(KINDS), st.booleans())
def test_the_order_of_the_vocabulary_does_not_matter(seed: int, kind: Any, reweigh: bool) -> None:
    logits, target = sample(seed)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    moved = torch.where(target >= 0, order.argsort()[target.clamp(min=0)], target)
    options = {"kind": kind, "reweigh": reweigh, "reduction": "none"}
    torch.testing.assert_close(
        number_token_loss(logits[..., order], moved, VALUES[order], **options),
        number_token_loss(logits, target, VALUES, **options),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_zero_at_certainty_and_without_numbers(kind: Any) -> None:
    target = torch.tensor([[4, 0, -100]])
    certain = F.one_hot(target.clamp(min=0), 8).double() * 1e4
    assert number_token_loss(certain, target, VALUES, kind=kind) == 0
    logits = torch.randn(1, 3, 8, requires_grad=True)
    nothing = number_token_loss(logits, torch.tensor([[0, 3, -100]]), VALUES, kind=kind)
    assert nothing == 0
    nothing.backward()
    assert (logits.grad == 0).all()
    assert number_token_loss(logits, target, VALUES, torch.zeros(1, 3), kind=kind) == 0


def test_a_mean_that_is_right_by_accident() -> None:
    """Half 0, half 9 for 4.5: the distances of the mean see nothing, Wasserstein does."""
    values = torch.tensor([0.0, 4.5, 9.0])
    logits = torch.tensor([[[0.0, -1e4, 0.0]]], requires_grad=True)
    for kind in ("mse", "mae", "huber"):
        assert number_token_loss(logits, torch.tensor([[1]]), values, kind=kind) == 0  # type: ignore[arg-type]
    assert number_token_loss(logits, torch.tensor([[1]]), values) == 4.5


@given(SEEDS, st.sampled_from(KINDS))
def test_reweighing(seed: int, kind: Any) -> None:
    logits, target = sample(seed)
    plain = number_token_loss(logits, target, VALUES, kind=kind, reduction="none")
    outside = torch.tensor([entry not in NUMBERS for entry in range(8)])
    options = {"kind": kind, "reweigh": True, "reduction": "none"}
    all_mass = number_token_loss(logits.masked_fill(outside, -1e9), target, VALUES, **options)
    torch.testing.assert_close(all_mass, plain)
    no_mass = number_token_loss(logits + 1e3 * outside, target, VALUES, **options)
    worst = {"wasserstein": 102.0, "mae": 102.0, "mse": 102.0**2, "huber": 101.5}[kind]
    counts = torch.isin(target, torch.tensor(NUMBERS))
    torch.testing.assert_close(no_mass, 1.01 * worst * counts.double())
    value = number_token_loss(logits, target, VALUES, **options)
    mass = predict_numbers(logits, VALUES)[1]
    torch.testing.assert_close(value[counts], (mass * plain + 1.01 * worst * (1 - mass))[counts])


@given(st.floats(1.1, 50.0))
def test_squashing(factor: float) -> None:
    values, entries = torch.tensor([0.0, 2.0, 3.0, 10.0]), torch.tensor([[0, 1, 3]])
    certain = 1e4 * F.one_hot(torch.tensor([[3, 2, 3]]), 4).double()
    loss = number_token_loss(certain, entries, values, squash_factor=factor, reduction="none")
    torch.testing.assert_close(loss, torch.tensor([[factor, 1.0, 0.0]], dtype=torch.float64), rtol=1e-5, atol=1e-5)
    two = torch.tensor([NAN, 1.0, 7.0])  # one distance alone: nothing to squash
    wrong = 1e4 * F.one_hot(torch.tensor([[2]]), 3).double()
    assert number_token_loss(wrong, torch.tensor([[1]]), two, squash_factor=factor) == 1
    text_only = torch.log(torch.tensor([[[1.0, 0.0, 0.0]]]))
    far = number_token_loss(text_only.clamp(min=-1e4), torch.tensor([[1]]), two, squash_factor=factor, reweigh=True)
    assert float(far) == pytest.approx(1.01)


@given(SEEDS)
def test_weights_count_in_the_mean(seed: int) -> None:
    logits, target = sample(seed)
    generator = torch.Generator().manual_seed(seed)
    loss_weights, sample_weight = torch.rand(2, 2, 5, generator=generator).double()
    rows = number_token_loss(logits, target, VALUES, reduction="none")
    total = torch.where(torch.isin(target, torch.tensor(NUMBERS)), loss_weights * sample_weight, 0.0)
    value = number_token_loss(logits, target, VALUES, loss_weights, sample_weight=sample_weight)
    torch.testing.assert_close(value, (rows * total).sum() / total.sum())
    both = cross_entropy_with_number_token_loss(logits, target, VALUES, loss_weights, ntl_weight=0.7)
    wanted = F.cross_entropy(logits.flatten(0, 1), target.flatten())
    torch.testing.assert_close(both, wanted + 0.7 * number_token_loss(logits, target, VALUES, loss_weights))
    parts = cross_entropy_with_number_token_loss(logits, target, VALUES, normalizer=9.0, number_normalizer=4.0)
    torch.testing.assert_close(parts, wanted + 0.3 * rows.sum() / 4)


@settings(max_examples=10)
@given(SEEDS, st.sampled_from(KINDS), st.booleans(), st.sampled_from([0, 1]))
def test_a_head_gives_the_same(seed: int, kind: Any, reweigh: bool, shift: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    leaves = [
        torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
        for size in ((2, 5, 4), (8, 4), (8,))
    ]
    input, head, bias = leaves
    _, target = sample(seed)
    weights = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    logits, aligned = F.linear(input, head, bias), target
    if shift:
        logits, aligned = logits[:, :-1], target[:, 1:]
    options = {"kind": kind, "reweigh": reweigh, "weight": torch.linspace(0.5, 2.0, 8, dtype=torch.float64)}
    on_head = {"linear_bias": bias, "shift": shift}
    pairs = [
        (
            linear_number_token_loss(input, head, target, VALUES, weights, **on_head, **options),
            number_token_loss(logits, aligned, VALUES, weights[:, shift:], **options),
        ),
        (
            linear_cross_entropy_with_number_token_loss(input, head, target, VALUES, weights, **on_head, **options),
            cross_entropy_with_number_token_loss(logits, aligned, VALUES, weights[:, shift:], **options),
        ),
    ]
    for ours, wanted in pairs:
        torch.testing.assert_close(ours, wanted)
        gradients = [torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True) for loss in (ours, wanted)]
        torch.testing.assert_close(*gradients)
    for ours, wanted in zip(
        linear_predict_numbers(input, head, VALUES, linear_bias=bias),
        predict_numbers(F.linear(input, head, bias), VALUES),
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("on_head", [False, True])
def test_the_module_knows_the_numbers_while_compiling(on_head: bool) -> None:
    """Neither the function, which then goes through the whole vocabulary, nor the module needs to look for them."""
    logits, target = sample(0)
    eye = torch.eye(8, dtype=torch.float64)
    module: Any = (LinearNumberTokenLoss if on_head else NumberTokenLoss)(VALUES, reweigh=True)
    function: Any = linear_number_token_loss if on_head else number_token_loss
    given = (logits, eye, target) if on_head else (logits, target)
    wanted = number_token_loss(logits, target, VALUES, reweigh=True)
    torch._dynamo.reset()
    for call in (module, lambda *tensors: function(*tensors, VALUES, reweigh=True)):
        torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(*given), wanted)


# --- whole numbers ----------------------------------------------------------------------------------------------------

DIGITS = torch.cat([torch.arange(10.0, dtype=torch.float64), torch.tensor([NAN, NAN], dtype=torch.float64)])
DOT, SPACE = 10, 11


def written(text: str) -> Tensor:
    return torch.tensor([[{".": DOT, " ": SPACE}.get(c) or ("0123456789".find(c) if c != "#" else -100) for c in text]])


@pytest.mark.parametrize(
    ("text", "float_level", "numbers"),
    [
        ("12 7.05", False, ["12", "7", "05"]),
        ("12 7.05", True, ["12", "705"]),
        ("1..2.34.", True, ["1", "234"]),
        (".5 3#4 ", True, ["5", "3", "4"]),
        ("9" * 45, False, ["9" * 45]),
        ("  .", True, []),
    ],
)
def test_runs_of_digits_are_numbers(text: str, float_level: bool, numbers: list[str]) -> None:
    target = written(text)
    logits = torch.randn(1, len(text), 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    digits = predict_numbers(logits, DIGITS)[0][0]
    expected = [float(digit) for digit, c in zip(digits, text, strict=True) if c in "0123456789"]
    wanted = []
    for number in numbers:
        here, expected = expected[: len(number)], expected[len(number) :]
        y, yhat = float(number), sum(digit * 10.0 ** (len(number) - 1 - place) for place, digit in enumerate(here))
        wanted.append(abs(yhat - y) / (abs(yhat) + abs(y)))
    options: dict[str, Any] = {"float_level": float_level, "dot_id": DOT}
    for dtype in (torch.float64, torch.float32):
        rows = number_level_loss(logits.to(dtype), target, DIGITS, reduction="none", **options)
        assert rows[rows != 0].tolist() == pytest.approx(wanted, rel=1e-5)
    mean = sum(wanted) / len(wanted) if wanted else 0.0
    assert float(number_level_loss(logits, target, DIGITS, **options)) == pytest.approx(mean)
    on_head = linear_number_level_loss(logits, torch.eye(12, dtype=torch.float64), target, DIGITS, **options)
    assert float(on_head) == pytest.approx(mean)
    _, mass = predict_numbers(logits, DIGITS)
    rows = number_level_loss(logits, target, DIGITS, reduction="none", **options)
    starts = rows != 0
    reweighed = number_level_loss(logits, target, DIGITS, reduction="none", reweigh=True, **options)
    torch.testing.assert_close(reweighed, torch.where(starts, mass * rows + 1.01 * (1 - mass), 0.0))


def test_whole_numbers_behave() -> None:
    logits = torch.randn(2, 6, 12, dtype=torch.float64, requires_grad=True)
    target = torch.stack([written("12 3.4")[0], written("7890. ")[0]])
    call = lambda z: number_level_loss(z, target, DIGITS, float_level=True, dot_id=DOT)  # noqa: E731
    assert torch.autograd.gradcheck(call, logits)
    torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(logits), call(logits))
    both = torch.stack([logits.detach(), -logits.detach()])
    torch.testing.assert_close(torch.func.vmap(call)(both), torch.stack([call(both[0]), call(both[1])]))
    certain = 1e4 * F.one_hot(target, 12).double()
    assert call(certain) == 0
    nothing = number_level_loss(logits, torch.full((2, 6), -100), DIGITS)
    assert nothing == 0
    nothing.backward()
    assert number_level_loss(logits[:, :0], target[:, :0], DIGITS) == 0
    weights = torch.ones(2, 6)
    weights[0] = 0
    torch.testing.assert_close(
        number_level_loss(logits, target, DIGITS, loss_weights=weights),
        number_level_loss(logits[1:], target[1:], DIGITS),
    )
    with pytest.raises(ValueError, match="dot_id is None; wanted the entry of the dot"):
        number_level_loss(logits, target, DIGITS, float_level=True)
    with pytest.raises(ValueError, match=r"wanted \(B, T, V\)"):
        number_level_loss(logits[0], target[0], DIGITS)


# --- tokenizers -------------------------------------------------------------------------------------------------------


def tokenizers_at_hand() -> dict[str, Any]:
    """A tokenizer of each make, trained on generated sums; each has numbers of several digits as tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    lines = [f"{a} plus {b} makes {a + b}" for a in range(0, 200, 7) for b in range(0, 50, 3)]
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "9"}  # a special token that looks like a number

    def trained(model: Any, trainer: Any, before: Any, decoder: Any) -> Any:
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer, tokenizer.decoder = before, decoder
        tokenizer.train_from_iterator(lines, trainer)
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)

    options: dict[str, Any] = {"special_tokens": ["[UNK]", "[PAD]"], "show_progress": False}
    return {
        "byte-level BPE": trained(
            models.BPE(),
            trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options),
            pre_tokenizers.ByteLevel(),
            decoders.ByteLevel(),
        ),
        "SentencePiece": trained(
            models.Unigram(),
            trainers.UnigramTrainer(vocab_size=150, unk_token="[UNK]", **options),
            pre_tokenizers.Metaspace(),
            decoders.Metaspace(),
        ),
        "WordPiece": trained(
            models.WordPiece(unk_token="[UNK]"),
            trainers.WordPieceTrainer(vocab_size=150, **options),
            pre_tokenizers.Whitespace(),
            decoders.WordPiece(),
        ),
        "BPE": trained(
            models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"),
            trainers.BpeTrainer(vocab_size=150, end_of_word_suffix="</w>", **options),
            pre_tokenizers.Whitespace(),
            decoders.BPEDecoder(),
        ),
    }


def test_numbers_of_any_tokenizer() -> None:
    """What each tokenizer writes for a token, without the marks of its make, says whether it is a number."""
    marks = {"byte-level BPE": "Ġ", "SentencePiece": "▁", "WordPiece": "##", "BPE": "</w>"}
    for make, tokenizer in tokenizers_at_hand().items():
        vocab = tokenizer.get_vocab()
        plain = {token: token.replace(marks[make], "") for token in vocab if token != "9"}
        digits = number_values_from_tokenizer(tokenizer, len(tokenizer) + 5)
        assert digits.shape == (len(tokenizer) + 5,)
        wanted = {entry: float(plain[t]) for t, entry in vocab.items() if plain.get(t, "") in list("0123456789")}
        found = {entry: float(digits[entry]) for entry in digits.isfinite().nonzero()[:, 0].tolist()}
        assert found == wanted
        assert {float(digit) for digit in range(1, 9)} <= set(found.values())
        every = number_values_from_tokenizer(tokenizer, digit_level=False)
        wanted = {entry: float(plain[t]) for t, entry in vocab.items() if plain.get(t, "").isdecimal()}
        assert {entry: float(every[entry]) for entry in every.isfinite().nonzero()[:, 0].tolist()} == wanted
        assert max(wanted.values()) > 9, f"{make} has no token of several digits"
        marked = number_values_from_tokenizer(tokenizer, digit_level=False, marked=False)
        assert marked.isfinite().sum() < every.isfinite().sum()
        module = NumberTokenLoss.from_tokenizer(tokenizer, digit_level=False, vocab_size=len(tokenizer) + 3)
        assert module.number_values.shape == (len(tokenizer) + 3,)
        tokens = torch.tensor([tokenizer("187 plus 39 makes 226")["input_ids"]])
        assert 0 < module(torch.zeros(*tokens.shape, len(tokenizer) + 3), tokens) < 300


def test_values_of_a_vocabulary() -> None:
    vocab = {"7": 0, "12": 1, "-3.5": 2, "1e3": 3, "inf": 4, "nan": 5, "Ġ4": 6, "٣": 7, "x": 9}
    torch.testing.assert_close(number_values_from_vocab(vocab, 11), torch.tensor([7.0] + [NAN] * 10), equal_nan=True)
    every = number_values_from_vocab(vocab, 11, digit_level=False)
    wanted = torch.tensor([7.0, 12.0, -3.5, 1000.0, NAN, NAN, NAN, 3.0, NAN, NAN, NAN])
    torch.testing.assert_close(every, wanted, equal_nan=True)
    with pytest.raises(ValueError, match="'nan' is entry 5 of the vocabulary; wanted 0 to 4"):
        number_values_from_vocab(vocab, 5)


def test_bad_options() -> None:
    logits, target = sample(0)
    for message, options in {
        "kind is 'l2'; wanted one of 'wasserstein', 'mse'": {"kind": "l2"},
        "squash_factor is 1.0; wanted a number in": {"squash_factor": 1.0},
        "squash_factor is 2.0; wanted None beside kind='mse'": {"squash_factor": 2.0, "kind": "mse"},
        "loss_weights contains -1; wanted weights of at least 0": {"loss_weights": torch.full((2, 5), -1.0)},
        "loss_weights has shape": {"loss_weights": torch.ones(2)},
    }.items():
        with pytest.raises(ValueError, match=message):
            number_token_loss(logits, target, VALUES, **options)
    with pytest.raises(ValueError, match=r"number_values has shape \(7,\); wanted \(8,\)"):
        number_token_loss(logits, target, VALUES[:7])


def test_a_module_of_both_losses_trains_to_the_number() -> None:
    """From equal logits its step moves mass to near numbers rather than far ones; cross-entropy alone does not."""
    values = torch.arange(10.0)
    for ntl_weight, nearer in ((0.0, False), (1.0, True)):
        logits = torch.zeros(1, 1, 10, requires_grad=True)
        CrossEntropyWithNumberTokenLoss(values, ntl_weight=ntl_weight)(logits, torch.tensor([[2]])).backward()
        assert bool(-logits.grad[0, 0, 3] > -logits.grad[0, 0, 9] + 1e-6) is nearer
