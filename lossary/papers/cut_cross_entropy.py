"""Cut Your Losses (Wijmans et al. 2024): does the loss of a large vocabulary need its logits stored?"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core import seeding
from lossary.language import linear_cross_entropy
from lossary.papers._evidence import Evidence, Series
from lossary.papers._memory import memory_of
from lossary.papers._paper import Paper
from lossary.papers._run import Run

CARD = Paper(
    slug="cut_cross_entropy",
    title="Cut Your Losses in Large-Vocabulary Language Models",
    authors="Erik Wijmans, Brody Huval, Alexander Hertzberg, Vladlen Koltun, Philipp Krähenbühl",
    arxiv="2411.09009",
    year=2024,
    family="language",
    provides=(
        "linear_cross_entropy",
        "LinearCrossEntropyLoss",
        "z_loss",
        "linear_focal_loss",
        "LinearFocalLoss",
        "linear_poly1_cross_entropy_loss",
        "LinearPoly1CrossEntropyLoss",
        "linear_entropy_regularized_cross_entropy_loss",
        "LinearEntropyRegularizedCrossEntropyLoss",
        "linear_sequence_logps",
    ),
    formula="L = log sum_v exp(x . w_v) - x . w_t, its logits made by blocks and never stored",
    call=(
        "from lossary.language import linear_cross_entropy\n"
        "loss = linear_cross_entropy(hidden_states, lm_head.weight, tokens, shift=1)"
    ),
    claim="Loss and gradients of a large vocabulary need hardly any memory beyond the gradients, at no slow-down and "
    "with the same training curve.",
    use_when="the logits (tokens x vocabulary) are large beside the hidden states: language models, large catalogues",
    avoid_when="there are a few hundred classes, or an objective needs all logits at once",
    golden=5,
    metric="log2_memory",
    direction="lower",
    margin=3.0,
    baseline="logits stored",
    method="cut cross-entropy",
    seeds=3,
    limits=(
        "A CPU in float32, a head of width 256 and up to 131,072 entries: the paper's 24 GB are 400 MiB here. The "
        "metric is the binary logarithm of the bytes beyond the gradients, so the margin asks for less than an eighth; "
        "time and the training curve are reported beside it. Nothing here ran on a GPU."
    ),
)

ARMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "logits stored": lambda x, w, t: F.cross_entropy(F.linear(x, w), t),
    "torch, chunks by default": lambda x, w, t: F.linear_cross_entropy(x, w, t, options=_chunks(None)),
    "torch, chunks of 256": lambda x, w, t: F.linear_cross_entropy(x, w, t, options=_chunks(256)),
    "cut cross-entropy": lambda x, w, t: linear_cross_entropy(x, w, t),
    "cut, tiles made twice": lambda x, w, t: linear_cross_entropy(x, w, t, return_lse=True)[0],
}


def reproduce(run: Run) -> Evidence:
    """Random hidden states and head: memory and time of loss and gradients. Then a small language model, both ways.

    The model predicts words of tinyshakespeare from a vocabulary of 4,096 (the quick form: generated words), from equal
    weights and batches in both arms. Last, a confident model: what share of the head's gradient is filtered away.
    """
    rows, width, vocab = run.pick((1024, 256, 32_768), (128, 32, 2_048))
    repeats = run.pick(3, 1)
    for seed, arm in run.trials(list(ARMS)):
        x, w, t = _head(seed, rows, width, vocab)
        seconds = min(_seconds(ARMS[arm], x, w, t) for _ in range(repeats))
        run.record(arm, log2_memory=math.log2(_beyond_gradients(ARMS[arm], x, w, t)), seconds=seconds)
    vocabularies = run.pick([8_192, 32_768, 131_072], [1_024, 2_048])
    memory: dict[str, list[float]] = {arm: [] for arm in ("logits stored", "torch, chunks of 256", "cut cross-entropy")}
    for size in vocabularies:
        x, w, t = _head(0, rows, width, size)
        for arm, values in memory.items():
            values.append(_beyond_gradients(ARMS[arm], x, w, t) / 2**20)
    curves = {arm: _language_model(run, ARMS[arm]) for arm in ("logits stored", "cut cross-entropy")}
    curves["cut, filtered at 2^-12"] = _language_model(
        run, lambda x, w, t: linear_cross_entropy(x, w, t, filter_eps=2.0**-12, return_lse=True)[0]
    )
    stored, cut, filtered = (torch.tensor(curve) for curve in curves.values())
    ours = run.mean("cut cross-entropy", "seconds")
    times = ", ".join(f"{ours / run.mean(arm, 'seconds'):.2f} of {arm}" for arm in ARMS if arm != "cut cross-entropy")
    return run.conclude(
        series=[
            Series("Memory beyond the gradients", "vocabulary", "MiB", vocabularies, memory),
            Series("A small language model", "step", "loss", list(range(len(stored))), curves),
        ],
        notes=[
            f"Time of loss and gradients, as a share: {times}.",
            f"Largest difference of the training curves: {(cut - stored).abs().max():.1e} with nothing left out, "
            f"{(filtered - stored).abs().max():.1e} filtered at 2^-12, of a loss that falls from {stored[0]:.2f} to "
            f"{stored[-1]:.2f}.",
            _confident(run),
        ],
    )


def _chunks(rows: int | None) -> torch.nn.LinearCrossEntropyOptions:
    return torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)


def _head(seed: int, rows: int, width: int, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = seeding.generator(seed, "head")
    x = torch.randn(rows, width, generator=generator)
    w = torch.randn(vocab, width, generator=generator) / width**0.5
    return x.requires_grad_(), w.requires_grad_(), torch.randint(vocab, (rows,), generator=generator)


def _seconds(loss: Callable[..., Tensor], x: Tensor, w: Tensor, t: Tensor) -> float:
    x.grad = w.grad = None
    start = time.process_time()  # of this process alone, whatever else the machine does
    torch.autograd.backward(loss(x, w, t))
    return (time.process_time() - start) / torch.get_num_threads()


def _beyond_gradients(loss: Callable[..., Tensor], x: Tensor, w: Tensor, t: Tensor) -> int:
    """Bytes at the peak of loss and gradients, less the gradients themselves."""
    x.grad = w.grad = None
    memory = memory_of(lambda: torch.autograd.backward(loss(x, w, t)))
    return max(memory.peak - memory.kept, 1)


class _Model(nn.Module):
    """Two layers of attention over 32 words."""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab, width)
        self.places = nn.Parameter(0.02 * torch.randn(32, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        hidden: Tensor = self.body(self.words(tokens) + self.places[: tokens.shape[1]], mask=mask, is_causal=True)
        return hidden


def _language_model(run: Run, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[float]:
    tokens = run.pick(_shakespeare, _generated)()
    vocab, steps = int(tokens.max()) + 1, run.pick(150, 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive("language model"))
        model = _Model(vocab, 64)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    generator = seeding.generator("batches")
    curve = []
    for _ in range(steps):
        start = torch.randint(len(tokens) - 33, (16, 1), generator=generator)
        batch = tokens[start + torch.arange(33)]
        value = loss(model(batch[:, :-1]).flatten(0, 1), model.head.weight, batch[:, 1:].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
        curve.append(value.item())
    return curve


def _shakespeare() -> Tensor:
    """Words and marks of tinyshakespeare, the 4,095 most frequent and one for all others."""
    from lossary.datasets import path

    text = path("tinyshakespeare").read_text()
    return _numbered(re.findall(r"\w+|[^\w\s]", text.lower()), 4_096)


def _generated() -> Tensor:
    """A text of made-up words with Zipf's frequencies."""
    generator = seeding.generator("text")
    frequency = 1 / torch.arange(1.0, 513.0)
    return torch.multinomial(frequency, 4_000, replacement=True, generator=generator)


def _numbered(words: list[str], vocab: int) -> Tensor:
    known = {word: place for place, (word, _) in enumerate(Counter(words).most_common(vocab - 1), start=1)}
    return torch.tensor([known.get(word, 0) for word in words])


def _confident(run: Run) -> str:
    """Hidden states that point at their target's row of the head, as a trained model's do."""
    rows, width, vocab = run.pick((1024, 256, 32_768), (64, 32, 2_048))
    _, w, t = _head(0, rows, width, vocab)
    x = (20 * w.detach()[t]).requires_grad_()
    gradients = {}
    seconds = {}
    for eps in (None, 2.0**-12):
        seconds[eps] = _seconds(lambda x, w, t, eps=eps: linear_cross_entropy(x, w, t, filter_eps=eps), x, w, t)
        assert w.grad is not None
        gradients[eps] = w.grad
    exact, some = gradients[None], gradients[2.0**-12]
    left_out = (some == 0).all(1).double().mean().item()
    error = (exact - some).abs().max().item() / exact.abs().max().item()
    return (
        f"On a confident model, filtered at 2^-12, {left_out:.0%} of the head's rows are left out at an error of "
        f"{error:.0e} of the largest gradient, in {seconds[2.0**-12] / seconds[None]:.2f} times the time."
    )
