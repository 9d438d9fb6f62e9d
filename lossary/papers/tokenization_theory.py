"""Tokenization of Markov sources (Rajaraman et al. 2024): does a transformer need tokens to leave the unigram loss?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core import seeding
from lossary.language import (
    BPETokenizer,
    DictionaryTokenizer,
    LZWTokenizer,
    SwitchingSource,
    fixed_length_tokenizer,
    tokenization_gap,
)
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run

CARD = Paper(
    slug="tokenization_theory",
    title="Toward a Theory of Tokenization in LLMs",
    authors="Nived Rajaraman, Jiantao Jiao, Kannan Ramchandran",
    arxiv="2404.08335",
    year=2024,
    family="language",
    provides=(
        "MarkovSource",
        "SwitchingSource",
        "DictionaryTokenizer",
        "LZWTokenizer",
        "BPETokenizer",
        "fixed_length_tokenizer",
        "unigram_cross_entropy",
        "tokenization_gap",
    ),
    formula="loss per character = -sum_i log Q(t_i) / sum_i len(t_i) >= H = sum_s pi(s) H(P(.|s))",
    call=(
        "from lossary.language import LZWTokenizer, SwitchingSource, tokenization_gap\n"
        "source = SwitchingSource(order=2, p=0.1, q=0.1)\n"
        "gap = tokenization_gap(source, LZWTokenizer(dict_size=64), n_train=20_000, n_test=5_000)\n"
        'print(gap["loss"], "of", gap["entropy_rate"], "to", gap["unigram_loss"])'
    ),
    claim="On a Markov source of order 2 a transformer on characters stays at the unigram loss, and comes near the "
    "entropy rate with tokens in as many steps.",
    use_when="you ask what a tokenizer does to a model's loss, on texts whose entropy rate is known",
    avoid_when="the text is natural language and speed counts: train with Hugging Face's tokenizers instead",
    golden=3,
    metric="nats per character",
    direction="lower",
    margin=0.1,
    baseline="characters",
    method="BPE tokens",
    seeds=3,
    limits="One small transformer, one source and one learning rate; the paper tries many, and longer training. "
    "Equal steps of equally many tokens, so that a step sees more characters where tokens are longer.",
)

SOURCE = SwitchingSource(order=2, p=0.1, q=0.1)
WINDOW = 64
SIZES = (4, 16, 64, 256, 1024)


def reproduce(run: Run) -> Evidence:
    """A transformer (2 layers of 64, 4 heads) on 200,000 bits, 1,000 Adam steps of 8 windows of 64 tokens at 1e-3.

    Beside it unigram models over the same source, fitted to 200,000 bits and judged on 50,000.
    """
    tokenizers: dict[str, DictionaryTokenizer] = {
        "characters": DictionaryTokenizer(()),
        "BPE tokens": BPETokenizer(dict_size=64),
    }
    checks = run.pick(10, 2)
    curves: dict[str, list[list[float]]] = {arm: [] for arm in tokenizers}
    for seed, arm in run.trials([*tokenizers, "unigram models"]):
        if arm == "unigram models":
            run.record(arm, **_unigram_losses(seed, *run.pick((200_000, 50_000, SIZES), (4_000, 1_000, (16,)))))
        else:
            curve = _transformer(seed, tokenizers[arm], *run.pick((200_000, 1_000), (20_000, 20)), checks)
            curves[arm].append(curve)
            run.record(arm, **{"nats per character": curve[-1]})
    if run.quick:
        return run.conclude()
    rates = SOURCE.entropies()
    floor, plateau = rates["entropy_rate"], rates["unigram_entropy"]
    steps = [1_000 * check // checks for check in range(1, checks + 1)]
    learning = {arm: [sum(at) / len(at) for at in zip(*runs, strict=True)] for arm, runs in curves.items()}
    learning |= {"entropy rate": [floor] * checks, "unigram": [plateau] * checks}
    unigram = {
        kind: [run.mean("unigram models", f"{kind} {size}") for size in SIZES] for kind in ("LZW", "BPE", "fixed")
    }
    return run.conclude(
        series=[
            Series("Transformers on order 2", "step", "nats per character", steps, learning),
            Series(
                "Unigram models on order 2",
                " | ".join(map(str, SIZES)) + " tokens",
                "nats per character",
                list(range(len(SIZES))),
                unigram | {"entropy rate": [floor] * len(SIZES)},
            ),
        ],
        notes=[
            f"The entropy rate is {floor:.4f}, the unigram loss {plateau:.4f}. Transformers: "
            + ", ".join(f"{arm} {run.mean(arm, 'nats per character'):.4f}" for arm in tokenizers)
            + ".",
            *(
                f"Unigram model over {kind} tokens: "
                + ", ".join(f"{loss:.3f} with {size}" for size, loss in zip(SIZES, losses, strict=True))
                + "."
                for kind, losses in unigram.items()
            ),
            "Over characters alone: " + f"{run.mean('unigram models', 'characters'):.3f}. "
            "Fixed-length tokens are the 2^r strings of length r.",
        ],
    )


def _unigram_losses(seed: int, train: int, test: int, sizes: tuple[int, ...]) -> dict[str, float]:
    tokenizers: dict[str, DictionaryTokenizer] = {"characters": DictionaryTokenizer(())}
    for size in sizes:
        tokenizers[f"LZW {size}"] = LZWTokenizer(size)
        tokenizers[f"BPE {size}"] = BPETokenizer(dict_size=size)
        tokenizers[f"fixed {size}"] = fixed_length_tokenizer(size.bit_length() - 1)
    return {
        name: tokenization_gap(SOURCE, tokenizer, train, test, generator=seeding.generator(seed, "unigram"))["loss"]
        for name, tokenizer in tokenizers.items()
    }


def _transformer(seed: int, tokenizer: DictionaryTokenizer, length: int, steps: int, checks: int) -> list[float]:
    """Nats per character on a text of its own, at the end of each of ``checks`` parts of the training."""
    generator = seeding.generator(seed, "text")
    train, test = SOURCE.sample(length, generator), SOURCE.sample(length // 4, generator)
    ids = tokenizer.fit(train).encode(train)
    judged = tokenizer.encode(test)[: 128 * WINDOW]
    windows = judged[: len(judged) // WINDOW * WINDOW].reshape(-1, WINDOW)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, "init"))
        model = _Model(len(tokenizer.dictionary))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    curve = []
    for step in range(1, steps + 1):
        start = torch.randint(len(ids) - WINDOW, (8, 1), generator=generator)
        batch = ids[start + torch.arange(WINDOW + 1)]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if step % (steps // checks) == 0:
            with torch.no_grad():
                nats = F.cross_entropy(
                    model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten(), reduction="sum"
                ).item()
            curve.append(nats / tokenizer.lengths[windows[:, 1:]].sum().item())
    return curve


class _Model(nn.Module):
    def __init__(self, vocab: int, width: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.places = nn.Parameter(0.02 * torch.randn(WINDOW, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocab)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        hidden = self.body(self.tokens(ids) + self.places[: ids.shape[1]], mask=mask, is_causal=True)
        logits: Tensor = self.head(hidden)
        return logits
