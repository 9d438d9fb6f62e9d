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
from lossary.preference import cringe_loss, pairwise_cringe_loss

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
        "linear_pairwise_cringe_loss",
        "LinearPairwiseCringeLoss",
        "PreferencePair",
        "IterativePreferenceTrainer",
        "lossary.integrations.PairwiseCringeTrainer",
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
        "14,000 words stands in, which repeats itself at every turn. Win rates cannot be shown."
    ),
)

VOCABULARY, PROMPT, ANSWER = 1000, 12, 24
BATCH = 16
ARMS = ("binary Cringe", "Pairwise Cringe", "DPO")


def reproduce(run: Run) -> Evidence:
    """A word-level network (2 layers, 96 wide) on the descriptions of scikit-learn's data sets, 300 steps of Adam 1e-3.

    Its greedy continuations of 12 words of the text by 24 that hold a repeated 3-gram are the worse responses, the
    text's own the better ones. Each objective then trains it for 60 steps of 16 pairs, Adam 3e-4 (k = 5; b = 0 and
    tau = 10 for the gate, beta = 0.1 for DPO). Repetition is the share of 3-grams of greedy continuations of held-out
    text that were there before, perplexity that of the held-out text.
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
    """Word numbers of the descriptions, rare words as 0: the first 85% and the rest."""
    from sklearn import datasets

    names = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")
    text = " ".join(getattr(datasets, f"load_{name}")().DESCR.lower() for name in names)
    for name in ("california_housing", "covtype", "kddcup99", "lfw", "olivetti_faces", "rcv1", "twenty_newsgroups"):
        text += " " + datasets.descr_text(name) if hasattr(datasets, "descr_text") else ""
    words = re.findall(r"[a-z]+|\d+|[^\sa-z\d]", text)
    known = {word: number for number, (word, _) in enumerate(Counter(words).most_common(VOCABULARY - 1), 1)}
    numbers = torch.tensor([known.get(word, 0) for word in words])
    cut = int(0.85 * len(numbers))
    return numbers[:cut], numbers[cut:]
