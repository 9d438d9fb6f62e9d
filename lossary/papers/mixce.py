"""MixCE (Zhang et al. 2023): does believing one's own tokens bring a model nearer to the law of its data?"""

from __future__ import annotations

import functools
import re

import torch
from torch import Tensor, nn

from lossary.core import seeding
from lossary.language import BigramSource, gumbel_rollout, mixce_loss, mixce_star_loss, transition_metrics
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run

CARD = Paper(
    slug="mixce",
    title="MixCE: Training Autoregressive Language Models by Mixing Forward and Reverse Cross-Entropies",
    authors="Shiyue Zhang, Shijie Wu, Ozan Irsoy, Steven Lu, Mohit Bansal, Mark Dredze, David Rosenberg",
    arxiv="2305.16958",
    year=2023,
    family="language",
    provides=(
        "mixce_loss",
        "MixCELoss",
        "linear_mixce_loss",
        "LinearMixCELoss",
        "mixce_star_loss",
        "MixCEStarLoss",
        "gumbel_rollout",
        "BigramSource",
        "transition_metrics",
    ),
    formula="L = -(eta + (1 - eta) q) log q, the weight constant to the gradient",
    call="from lossary.language import MixCELoss\nloss = MixCELoss(mixing_ratio=0.5)(logits, labels)",
    claim="Trained on samples of a known bigram law, MixCE comes nearer to the law than maximum likelihood does, and "
    "gives less to what is impossible.",
    use_when="a language model that is trained already should write well in plain sampling, without top-p",
    avoid_when="rare tokens have to be learnt, or training starts from scratch",
    golden=3,
    metric="avg_js",
    direction="lower",
    margin=0.0,
    baseline="eta=1",
    method="eta=0.5",
    seeds=4,
    limits=(
        "The synthetic part alone, with 20 tokens and 2,000 texts instead of 50,000; no dropout, and the last weights "
        "instead of the best on held-out texts. MAUVE, coherence and diversity of GPT-2 on real text are not run. "
        "Letters of Shakespeare's words stand in for the paper's transitions of WebText."
    ),
)

ETAS = (1.0, 0.5, 0.1, 0.01)
OF_LETTERS = (1.0, 0.5)
STAR = "MixCE*, eta=0.5"
TEXTS, BATCH, LONGEST = 2000, 400, 10


def reproduce(run: Run) -> Evidence:
    """A random law over 20 tokens, half of its transitions impossible, and 2,000 of its texts; a network for each eta.

    Embedding and layer of width 50, Adam at 1e-2 with weight decay 1e-4, 30 epochs in batches of 400 texts. eta = 1 is
    maximum likelihood; MixCE* knows the law and scores the first 10 tokens of samples by it. In the full form a second
    law: that of the letters in the words of tinyshakespeare, learnt from 2,000 words.
    """
    epochs = run.pick(30, 2)
    laws = ["random"] if run.quick else ["random", "letters"]
    for seed, arm in run.trials([*(f"eta={eta:g}" for eta in ETAS), STAR]):
        eta = float(arm.rpartition("=")[2])
        results = {}
        for law in laws if arm != STAR and eta in OF_LETTERS else laws[:1]:
            for name, value in _learn(seed, law, eta, star=arm == STAR, epochs=epochs).items():
                results[name if law == "random" else f"{name}, {law}"] = value
        run.record(arm, **results)
    arms = [f"eta={eta:g}" for eta in ETAS]
    curves = {name: [run.mean(arm, name) for arm in arms] for name in ("avg_zeros", "avg_js")}
    notes = [f"{name} at eta {', '.join(arm[4:] for arm in arms)}: {_listed(curve)}." for name, curve in curves.items()]
    notes.append(
        f"MixCE*, which knows the law, at eta 0.5: avg_zeros {run.mean(STAR, 'avg_zeros'):.2e}, "
        f"avg_js {run.mean(STAR, 'avg_js'):.2e}."
    )
    if not run.quick:
        notes += [
            f"Letters of Shakespeare's words, {name} at eta {', '.join(f'{eta:g}' for eta in OF_LETTERS)}: "
            f"{_listed([run.mean(f'eta={eta:g}', f'{name}, letters') for eta in OF_LETTERS])}."
            for name in curves
        ]
    return run.conclude(
        series=[Series("Precision against recall", "eta", "mean over seeds", ETAS, curves)],
        notes=notes,
    )


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.2e}" for value in values)


@functools.cache
def _world(seed: int, law: str) -> tuple[BigramSource, Tensor]:
    """The source and its texts."""
    source = _letters() if law == "letters" else BigramSource.random(20, generator=seeding.generator(seed, "law"))
    return source, source.sample(TEXTS, 100, seeding.generator(seed, "texts"))


def _learn(seed: int, law: str, eta: float, *, star: bool, epochs: int) -> dict[str, float]:
    source, texts = _world(seed, law)
    generator = seeding.generator(seed, "batches")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, "init"))
        model = _Bigram(source.vocab_size)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-4, fused=True)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(TEXTS, generator=generator), BATCH):
            optimizer.zero_grad()
            if star:
                forward = _on_texts(model, texts[rows], 1.0)
                samples = gumbel_rollout(model.step, model.begin(len(rows)), LONGEST, generator=generator)
                loss = mixce_star_loss(forward, -source.log_prob(samples).mean(), mixing_ratio=eta)
            else:
                loss = _on_texts(model, texts[rows], eta)
            torch.autograd.backward(loss)
            optimizer.step()
    with torch.no_grad():
        learned = nn.functional.pad(model.logits().softmax(1), (1, 0))
    return {name: float(value) for name, value in transition_metrics(learned, source.transition, source.first).items()}


def _on_texts(model: _Bigram, texts: Tensor, eta: float) -> Tensor:
    """The sum over the tokens of a text, averaged over texts.

    Tokens with the same token before them have the same loss: it is taken once for each pair and weighed by its count.
    """
    vocab = model.vocab
    before = torch.cat([torch.zeros_like(texts[:, :1]), texts[:, :-1] + 1], 1)
    said = texts >= 0
    count = torch.bincount(before[said] * vocab + texts[said], minlength=(vocab + 1) * vocab).reshape(-1, vocab)
    pairs = model.logits().unsqueeze(1).expand(-1, vocab, -1), torch.arange(vocab).expand(vocab + 1, -1)
    return mixce_loss(*pairs, mixing_ratio=eta, sample_weight=count, reduction="sum", normalizer=len(texts))


class _Bigram(nn.Module):
    """The paper's network: from the token before (0 begins a text) to the logits of the next."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab
        self.embedding = nn.Parameter(torch.randn(vocab + 1, 50))
        self.layers = nn.Sequential(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, vocab))

    def logits(self) -> Tensor:
        """Of every token that may come before."""
        logits: Tensor = self.layers(self.embedding)
        return logits

    def begin(self, count: int) -> Tensor:
        """One-hots of what begins texts."""
        return torch.eye(self.vocab + 1)[:1].expand(count, -1)

    def step(self, before: Tensor) -> Tensor:
        """Of one-hots, with the token that begins texts or without."""
        logits: Tensor = self.layers(before @ self.embedding[-before.shape[-1] :])
        return logits


def _letters() -> BigramSource:
    """The law of letters in the words of tinyshakespeare; the end of a word ends a text."""
    from lossary.datasets import path

    words = re.findall("[a-z]+", path("tinyshakespeare").read_text().lower())
    count = torch.zeros(27, 27, dtype=torch.float64)
    first = torch.zeros(27, dtype=torch.float64)
    tokens = torch.tensor([ord(letter) - ord("a") if letter.isalpha() else 26 for letter in " ".join([*words, ""])])
    count.index_put_((tokens[:-1], tokens[1:]), torch.ones(len(tokens) - 1, dtype=torch.float64), accumulate=True)
    first[:] = count[26] / count[26].sum()
    count[26] = 0.0
    return BigramSource(count / count.sum(1, keepdim=True).clamp(min=1), first, eos=26)
