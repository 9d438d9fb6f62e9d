"""Cramming (Kuratov et al. 2025): does one input vector make a frozen language model reproduce a text?"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn

from lossary.core import seeding
from lossary.language import (
    CrammingOptimizer,
    CrammingResult,
    cramming_metrics,
    decode_from_memory,
    information_gain,
    theoretical_capacity,
    token_gain,
)
from lossary.papers import _smollm2
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run

CARD = Paper(
    slug="cramming",
    title="Cramming 1568 Tokens into a Single Vector and Back Again: Exploring the Limits of Embedding Space Capacity",
    authors="Yuri Kuratov, Mikhail Arkhipov, Aydar Bulatov, Mikhail Burtsev",
    arxiv="2502.13063",
    year=2025,
    family="language",
    provides=(
        "CrammingOptimizer",
        "CrammingResult",
        "MemoryTokens",
        "cramming_metrics",
        "decode_from_memory",
        "token_gain",
        "information_gain",
        "theoretical_capacity",
        "decoding_capacity",
    ),
    formula="m* = argmin_m mean_i -log p(t_i | m, t_1 .. t_i-1), the model frozen",
    call=(
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "from lossary.language import CrammingOptimizer, decode_from_memory\n"
        "model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=100))  # or a trained one\n"
        "result = CrammingOptimizer(model, num_memory=1, max_steps=10).fit(torch.tensor([[5, 7, 2, 9]]))\n"
        "print(result.best_accuracy, decode_from_memory(model, result.memory, length=4))"
    ),
    claim="One input vector, found by gradient descent for a text, makes a frozen language model reproduce what it "
    "does not predict by itself.",
    use_when="you ask how much a language model's input vectors can carry, or want a bound for an encoder",
    avoid_when="texts are to be compressed in use: every text takes hundreds of steps through the model",
    golden=2,
    metric="accuracy",
    direction="higher",
    margin=0.25,
    baseline="plain",
    method="one vector",
    seeds=3,
    limits="Texts of 8 and 16 tokens and at most 120 steps through a model of 135M parameters whose weights have 4 "
    "bits; the paper crams up to 1,568 tokens into models of up to 8B parameters in up to 5,000 steps.",
)

TEXTS = ("breast_cancer.rst", "diabetes.rst", "wine_data.rst")
"""Of scikit-learn's descriptions of data sets, a seed each."""
FITS = {  # tokens, vectors, most steps
    "one vector": (8, 1, 120),
    "random words": (8, 1, 120),
    "one vector, 16 tokens": (16, 1, 60),
    "two vectors, 16 tokens": (16, 2, 60),
}


def reproduce(run: Run) -> Evidence:
    """Cram 8 tokens of three texts into a vector of SmolLM2-135M, and 16 into one and into two vectors.

    A seed is a text, from its 400th character; "random words" are 8 words of the model's vocabulary. AdamW as in the
    paper, the first token scored; the plain model's first token is not, since nothing predicts it.
    """
    model, tokenizer = (_StandIn(), None) if run.quick else _smollm2.load()
    fits: dict[str, list[CrammingResult]] = {}
    exact = tried = 0
    for seed, arm in run.trials(["plain", *FITS]):
        if arm == "plain":
            run.record(arm, accuracy=_plain(model, _tokens(tokenizer, seed, "one vector"))["accuracy"])
            continue
        length, vectors, steps = FITS[arm]
        if arm not in fits:  # all texts side by side: the model is read from memory once
            texts = torch.stack([_tokens(tokenizer, each, arm) for each in run.seeds])
            optimizer = CrammingOptimizer(
                model,
                num_memory=vectors,
                max_steps=run.pick(steps, 10),
                generator=seeding.generator("memory", vectors),
            )
            fits[arm] = optimizer.fit_many(texts)
        result, ids = fits[arm][list(run.seeds).index(seed)], _tokens(tokenizer, seed, arm)
        plain = _plain(model, ids)
        run.record(
            arm,
            accuracy=result.best_accuracy,
            steps=result.steps,
            plain=plain["accuracy"],
            **{
                "token gain": token_gain(result.best_accuracy, plain["accuracy"], length),
                "information gain": information_gain(result.best_loss, plain["loss"], length),
                "plain nats": length * plain["loss"],
            },
        )
        if result.best_accuracy == 1:
            tried += 1
            exact += int(torch.equal(decode_from_memory(model, result.memory, length), ids))
    if run.quick:
        return run.conclude()
    weight = model.get_input_embeddings().weight
    capacity = theoretical_capacity(weight.shape[1], 16, weight.shape[0])
    shown = ["plain", *FITS]
    return run.conclude(
        series=[
            Series(
                "Tokens reproduced",
                " | ".join(shown),
                "accuracy",
                list(range(len(shown))),
                {TEXTS[seed]: [run.values(arm, "accuracy")[place] for arm in shown] for place, seed in _places(run)},
            )
        ],
        notes=[
            *(
                f"{arm}: accuracy {_listed(run.values(arm, 'accuracy'))} after {_listed(run.values(arm, 'steps'), 0)} "
                f"steps, plain {_listed(run.values(arm, 'plain'))}; "
                f"{_listed(run.values(arm, 'information gain'), 1)} nats of "
                f"{_listed(run.values(arm, 'plain nats'), 1)} gained, "
                f"{_listed(run.values(arm, 'token gain'), 1)} tokens."
                for arm in FITS
            ),
            f"Greedy decoding from the vectors gave back {exact} of the {tried} texts whose accuracy was 1.",
            f"A vector of 16-bit numbers could name {capacity:.0f} tokens.",
            "SHA-256 of the texts: " + ", ".join(f"{name} {_digest(name)}" for name in TEXTS) + ".",
        ],
    )


def _places(run: Run) -> list[tuple[int, int]]:
    return [(place, seed) for place, seed in enumerate(run.seeds) if seed < len(TEXTS)]


def _tokens(tokenizer: Any, seed: int, arm: str) -> Tensor:
    length = FITS[arm][0]
    generator = seeding.generator(seed, "random words")
    if tokenizer is None:
        return torch.randint(50, (length,), generator=generator)
    if arm == "random words":
        words = sorted(word for word in tokenizer.get_vocab() if word[0] == "Ġ" and word[1:].isalpha())
        drawn = torch.randint(len(words), (length,), generator=generator).tolist()
        return torch.tensor(tokenizer.convert_tokens_to_ids([words[word] for word in drawn]))
    return torch.tensor(
        tokenizer(_text(TEXTS[seed % len(TEXTS)])[400 + 400 * (seed // len(TEXTS)) :])["input_ids"][:length]
    )


def _text(name: str) -> str:
    return (files("sklearn.datasets.descr") / name).read_text(encoding="utf-8")


def _digest(name: str) -> str:
    return hashlib.sha256(_text(name).encode()).hexdigest()[:16]


def _plain(model: Any, ids: Tensor) -> dict[str, float]:
    with torch.no_grad():
        output = model(inputs_embeds=model.get_input_embeddings()(ids.unsqueeze(0)))
    metrics = cramming_metrics(output.logits, ids.unsqueeze(0), num_memory=0)
    return {name: value.item() for name, value in metrics.items()}


def _listed(values: list[float], digits: int = 3) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


class _StandIn(nn.Module):
    """A small causal model without training, for the quick form."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.derive("stand-in"))
            self.words = nn.Embedding(50, 16)
            self.body = nn.GRU(16, 32, batch_first=True)
            self.head = nn.Linear(32, 50)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.words

    def forward(self, inputs_embeds: Tensor) -> Any:
        return _Output(self.head(self.body(inputs_embeds)[0]))


class _Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
