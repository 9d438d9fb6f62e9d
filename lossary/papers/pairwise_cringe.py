"""Pairwise Cringe (Xu et al. 2023): does the gate keep a model fluent while it unlearns to repeat itself?"""

from __future__ import annotations

import copy
import re
from collections import Counter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core import seeding
from lossary.language import sequence_logps
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.preference import cringe_loss, pairwise_cringe_gate, pairwise_cringe_loss

CARD = Paper(
    slug="pairwise_cringe",
    title="Some things are more CRINGE than others: Preference Optimization with the Pairwise Cringe Loss",
    authors="Jing Xu, Andrew Lee, Sainbayar Sukhbaatar, Jason Weston",
    arxiv="2312.16682",
    year=2023,
    family="preference",
    provides=(
        "cringe_loss",
        "CringeLoss",
        "linear_cringe_loss",
        "LinearCringeLoss",
        "cringe_contrast",
        "pairwise_cringe_loss",
        "PairwiseCringeLoss",
        "pairwise_cringe_gate",
        "CringeGate",
        "linear_pairwise_cringe_loss",
        "LinearPairwiseCringeLoss",
        "PreferencePair",
        "IterativePreferenceTrainer",
        "lossary.integrations.PairwiseCringeTrainer",
        "lossary.integrations.PreferenceCollator",
    ),
    formula="L = sigmoid((b - M) / tau) (L_CE(y_w) + alpha L_Cr(y_l)), M = log p(y_w) - log p(y_l)",
    call=(
        "from lossary.preference import CringeLoss\n"
        "loss = CringeLoss(k=5)(torch.randn(2, 6, 10), torch.randint(10, (2, 6)), torch.tensor([True, False]))"
    ),
    claim="Gated by the pair's margin, Cringe training unlearns repetition at less harm to fluency than ungated.",
    use_when="there are pairs of a better and a worse response, and no memory for a reference model",
    avoid_when="responses are long and tau small: the gate's own gradient is the loss over tau",
    golden=2,
    metric="perplexity",
    direction="lower",
    margin=0.0,
    baseline="binary Cringe",
    method="Pairwise Cringe",
    seeds=5,
    limits=(
        "The paper trains LLaMA-7B on preferences and GPT-2 against repetition; a word-level network of two layers on "
        "11,000 words stands in, which repeats itself at every turn. Win rates cannot be shown."
    ),
)

VOCABULARY, PROMPT, ANSWER = 1000, 12, 24
BATCH = 16
ARMS = ("binary Cringe", "Pairwise Cringe", "DPO")


def reproduce(run: Run) -> Evidence:
    """A word-level network of two layers on the 11,000 words of scikit-learn's descriptions of its data sets.

    It is 96 wide and trained for 300 steps of Adam 1e-3. Its greedy continuations of 12 words of the text by 24 that
    hold a repeated 3-gram are the worse responses, the text's own the better ones. Each objective then trains it for
    60 steps of 16 pairs, Adam 3e-4 (k = 5; b = 0 and tau = 10 for the gate; beta = 0.1 for DPO). Repetition is the
    share of 3-grams of greedy continuations of held-out text that were there before, perplexity that of the held-out
    text.
    """
    pretraining, steps = run.pick((300, 60), (4, 2))
    text, held_out = _text()
    for seed, arm in run.trials(["start", *ARMS]):
        if arm == "start":
            start = _pretrained(text, seed, pretraining)
            pairs = _pairs(start, text, seed, run.pick(256, 32))
            model, gates = start, (0.0, 0.0)
        else:
            model = copy.deepcopy(start)
            gates = _train(model, start, pairs, arm, seed, steps)
        run.record(arm, **_fluency(model, held_out, run.pick(64, 8)), gate_before=gates[0], gate_after=gates[1])
    measures = ("repetition", "perplexity")
    before, after = (run.mean("Pairwise Cringe", f"gate_{when}") for when in ("before", "after"))
    arms = ["start", *ARMS]
    return run.conclude(
        series=[
            Series(
                f"{measure.capitalize()} before training and after 60 steps",
                "steps",
                f"{measure}, mean over seeds",
                (0, 60),
                {arm: [run.mean("start", measure), run.mean(arm, measure)] for arm in ARMS},
            )
            for measure in measures
        ],
        notes=[
            *(
                f"{measure.capitalize()}: " + ", ".join(f"{arm} {run.mean(arm, measure):.3f}" for arm in arms) + "."
                for measure in measures
            ),
            f"The mean gate of the training pairs goes from {before:.3f} to {after:.3f} under Pairwise Cringe.",
        ],
    )


class Pairs(NamedTuple):
    """Prompts ``(N, P)`` with a better and a worse response, both ``(N, A)``."""

    prompt: Tensor
    chosen: Tensor
    rejected: Tensor


class _Words(nn.Module):
    """A causal transformer over words; logits of the next one."""

    def __init__(self, width: int = 96, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.place = nn.Embedding(PROMPT + ANSWER, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        length = words.shape[1]
        hidden = self.embed(words) + self.place.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        logits: Tensor = self.head(self.layers(hidden, mask=mask, is_causal=True))
        return logits


def _text() -> tuple[Tensor, Tensor]:
    """Pieces of text ``(N, P + A)`` as word numbers, rare words as 0: for training, and every seventh held out."""
    import importlib.resources

    folder = importlib.resources.files("sklearn.datasets") / "descr"
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(".rst"))
    text = " ".join((folder / name).read_text(encoding="utf-8").lower() for name in files)
    words = re.findall(r"[a-z]+|\d+|[^\sa-z\d]", text)
    known = {word: number for number, (word, _) in enumerate(Counter(words).most_common(VOCABULARY - 1), 1)}
    length = PROMPT + ANSWER
    pieces = torch.tensor([known.get(word, 0) for word in words][: len(words) // length * length]).reshape(-1, length)
    held_out = torch.arange(len(pieces)) % 7 == 0
    return pieces[~held_out], pieces[held_out]


def _pretrained(text: Tensor, seed: int, steps: int) -> _Words:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, "init"))
        model = _Words()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    generator = seeding.generator(seed, "batches")
    stream = text.reshape(-1)
    for _ in range(steps):
        starts = torch.randint(len(stream) - text.shape[1], (BATCH, 1), generator=generator)
        words = stream[starts + torch.arange(text.shape[1])]
        loss = F.cross_entropy(model(words)[:, :-1].flatten(0, 1), words[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
    return model


@torch.no_grad()
def _continued(model: _Words, prompt: Tensor) -> Tensor:
    """The most likely next words, one by one."""
    words = prompt
    for _ in range(ANSWER):
        words = torch.cat([words, model(words)[:, -1].argmax(-1, keepdim=True)], 1)
    return words[:, prompt.shape[1] :]


def _pairs(model: _Words, text: Tensor, seed: int, count: int) -> Pairs:
    """Pieces of the text as better responses, and the model's own that repeat a 3-gram (all, if none do) as worse."""
    rows = torch.randperm(len(text), generator=seeding.generator(seed, "pairs"))[:count]
    prompt, chosen = text[rows, :PROMPT], text[rows, PROMPT:]
    rejected = _continued(model, prompt)
    repeats = _repeated(rejected) > 0
    repeats = repeats | ~repeats.any()
    return Pairs(prompt[repeats], chosen[repeats], rejected[repeats])


def _train(model: _Words, start: _Words, pairs: Pairs, arm: str, seed: int, steps: int) -> tuple[float, float]:
    """Train by the objective of the arm; the mean gate of all pairs before and after."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-4, fused=True)
    generator, draws = seeding.generator(seed, "pair batches"), seeding.generator(seed, "draws")
    before = _gate(model, pairs)
    for _ in range(steps):
        rows = torch.randint(len(pairs.prompt), (BATCH,), generator=generator)
        batch = Pairs(*(part[rows] for part in pairs))
        logits, target = _answers(model, batch)
        if arm == "binary Cringe":
            good = torch.arange(len(target)) < len(rows)
            loss = cringe_loss(logits, target, good, generator=draws)
        elif arm == "Pairwise Cringe":
            better, worse = zip(logits.chunk(2), target.chunk(2), strict=True)
            loss = pairwise_cringe_loss(*better, *worse, tau=10.0, generator=draws)
        else:
            with torch.no_grad():
                reference = sequence_logps(*_answers(start, batch))
            better_logps, worse_logps = (sequence_logps(logits, target) - reference).chunk(2)
            loss = -F.logsigmoid(0.1 * (better_logps - worse_logps)).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
    return before, _gate(model, pairs)


def _answers(model: _Words, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Logits and words of the better responses, then of the worse ones."""
    answers = torch.cat([pairs.chosen, pairs.rejected])
    words = torch.cat([pairs.prompt.repeat(2, 1), answers], 1)
    return model(words)[:, PROMPT - 1 : -1], answers


@torch.no_grad()
def _gate(model: _Words, pairs: Pairs) -> float:
    logits, target = _answers(model, pairs)
    better, worse = zip(logits.chunk(2), target.chunk(2), strict=True)
    return pairwise_cringe_gate(*better, *worse, tau=10.0).gate.mean().item()


@torch.no_grad()
def _fluency(model: _Words, held_out: Tensor, count: int) -> dict[str, float]:
    target = held_out[:, 1:]
    cross_entropy = F.cross_entropy(model(held_out)[:, :-1].flatten(0, 1), target.flatten())
    answers = _continued(model, held_out[:count, :PROMPT])
    return {"repetition": _repeated(answers).mean().item(), "perplexity": cross_entropy.exp().item()}


def _repeated(words: Tensor) -> Tensor:
    """Share of the 3-grams of each row that stand further left in it too."""
    grams = words.unfold(1, 3, 1)
    same = (grams.unsqueeze(1) == grams.unsqueeze(2)).all(-1).tril(-1)
    return same.any(2).double().mean(1)
