"""SPO (Li et al. 2024): does learning how much content is missing teach a policy degrees of preference?"""

from __future__ import annotations

import copy
import functools
import importlib.resources
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lossary.core import seeding
from lossary.language import linear_cross_entropy, linear_sequence_logps
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.preference import (
    PreferenceDegreeHead,
    SPOLoss,
    degrade_response,
    h_dpo_loss,
    rake_keywords,
)

CARD = Paper(
    slug="spo",
    title="Self-supervised Preference Optimization: Enhance Your Language Model with Preference Degree Awareness",
    authors="Jian Li, Haojing Huang, Yujia Zhang, Pengfei Xu, Xi Chen, Rui Song, Lida Shi, Jingwen Wang, Hao Xu",
    arxiv="2409.17791",
    year=2024,
    family="preference",
    provides=(
        "rake_keywords",
        "degrade_response",
        "PreferenceDegreeHead",
        "preference_degree_loss",
        "PreferenceDegreeLoss",
        "SPOLoss",
    ),
    formula="L = L_align(y_w, y_l) + gamma (L_deg(y_w) + L_deg(y_l))",
    call=(
        "from lossary.preference import HDPOLoss, PreferenceDegreeHead, SPOLoss\n"
        "versions, degrees = hidden_states, torch.tensor([0, 2])  # last layer of the versions; what each has lost\n"
        "degree_logits = PreferenceDegreeHead(32, num_degrees=4)(versions)\n"
        "loss = SPOLoss(HDPOLoss(), gamma=1.0)(\n"
        "    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps,\n"
        "    degree_logits, degrees, degree_logits, degrees,\n"
        ")"
    ),
    claim="Telling how much key content is missing, learnt beside DPO, makes rewards follow graded quality.",
    use_when="pairs say which response is better, and rewards shall also order responses by how much",
    avoid_when="training time is short: every response costs several forward passes more",
    golden=2,
    metric="Kendall's tau of reward and degree",
    direction="higher",
    margin=0.0,
    baseline="DPO",
    method="SPO",
    seeds=5,
    limits=(
        "The paper's win rates, judged by GPT-4 on summaries and dialogues of 7B models. Here a transformer of 2 "
        "layers learns some 150 sentences on data sets. The removal schedule, gamma and the pooling are our "
        "choices: no code is public."
    ),
)

ARMS = ("DPO", "SPO", "SPO, random removal")
DEGREES = 4
LENGTH = 32
UNKNOWN, BEGIN, END = 0, 1, 2


def reproduce(run: Run) -> Evidence:
    """Sentences of scikit-learn's descriptions of data sets, 70% for training; rejected ones lack their key phrases.

    A transformer of 2 layers and width 64 first learns the sentences, then 150 steps of 8 pairs. On held-out sentences:
    does the implicit reward fall with the share of key phrases removed (tau), does it prefer chosen to rejected
    (accuracy), and how well does a linear probe tell the degree from the last hidden state?
    """
    for seed, arm in run.trials(ARMS):
        run.record(arm, **_trained(seed, arm, steps=run.pick(150, 3), steps_before=run.pick(300, 5)))
    metrics = ("Kendall's tau of reward and degree", "accuracy on pairs", "accuracy of a probe")
    seen = {metric: [run.mean(arm, metric) for arm in ARMS] for metric in metrics}
    notes = [
        f"{metric}: " + ", ".join(f"{value:.3f} with {arm}" for arm, value in zip(ARMS, values, strict=True)) + "."
        for metric, values in seen.items()
    ]
    return run.conclude(series=[Series("Held-out sentences", " | ".join(ARMS), "mean", [0, 1, 2], seen)], notes=notes)


class Policy(nn.Module):
    """A small causal transformer; gives hidden states, and has a head."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.derive(seed, "init"))
            self.tokens, self.places = nn.Embedding(vocabulary, 64), nn.Embedding(LENGTH, 64)
            layers = [nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True, norm_first=True) for _ in range(2)]
            self.layers, self.norm = nn.ModuleList(layers), nn.LayerNorm(64)
            self.head = nn.Linear(64, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states of the last layer; padding is -100."""
        length = tokens.shape[1]
        x = self.tokens(tokens.clamp(min=0)) + self.places.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        hidden: Tensor = self.norm(x)
        return hidden

    def logps(self, tokens: Tensor) -> Tensor:
        """Log-probability of each sentence."""
        return linear_sequence_logps(self(tokens), self.head.weight, tokens, shift=1)


class Data(NamedTuple):
    """Sentences as tokens ``(N, T)`` and their versions ``(N, J, T)`` with degrees ``(N, J)``, all padded with -100."""

    chosen: Tensor
    rejected: Tensor
    chosen_versions: dict[str, Tensor]
    rejected_versions: dict[str, Tensor]
    degrees: Tensor


def _trained(seed: int, arm: str, *, steps: int, steps_before: int) -> dict[str, float]:
    train, test, reference = _before(seed, steps_before)
    strategy = "random" if arm.endswith("removal") else "rake"
    model = copy.deepcopy(reference)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, "degree head"))
        head = PreferenceDegreeHead(64, DEGREES)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], 5e-4, fused=True)
    generator = seeding.generator(seed, "pairs")
    with torch.no_grad():
        known = reference.logps(train.chosen), reference.logps(train.rejected)
    for _ in range(steps):
        rows = torch.randint(len(train.chosen), (8,), generator=generator)
        won, lost = model.logps(torch.cat([train.chosen[rows], train.rejected[rows]])).chunk(2)
        if arm == "DPO":
            loss = h_dpo_loss(won, lost, known[0][rows], known[1][rows])
        else:
            versions = torch.cat([train.chosen_versions[strategy][rows], train.rejected_versions[strategy][rows]])
            chosen, rejected = _degree_logits(model, head, versions).chunk(2)
            degrees = train.degrees[rows]
            loss = SPOLoss(h_dpo_loss)(won, lost, known[0][rows], known[1][rows], chosen, degrees, rejected, degrees)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        return _measured(model, reference, train, test)


def _measured(model: Policy, reference: Policy, train: Data, test: Data) -> dict[str, float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def reward(tokens: Tensor) -> Tensor:
        return model.logps(tokens) - reference.logps(tokens)

    versions = test.chosen_versions["rake"]
    rewards = reward(versions.flatten(0, 1)).reshape(versions.shape[:2])
    less, more = torch.combinations(torch.arange(DEGREES)).T
    differ = (versions[:, less] != versions[:, more]).any(2)
    signs = (rewards[:, less] - rewards[:, more]).sign()
    features = []
    for data in (train, test):
        tokens = data.chosen_versions["rake"].flatten(0, 1)
        features.append((_last_hidden(model, tokens).numpy(), data.degrees.clamp(min=0).flatten().numpy()))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(*features[0])
    return {
        "Kendall's tau of reward and degree": (signs[differ]).mean().item(),
        "accuracy on pairs": (reward(test.chosen) > reward(test.rejected)).double().mean().item(),
        "accuracy of a probe": probe.score(*features[1]),
    }


def _last_hidden(model: Policy, tokens: Tensor) -> Tensor:
    last = (tokens >= 0).sum(1) - 1
    hidden: Tensor = model(tokens)
    return hidden[torch.arange(len(tokens)), last]


def _degree_logits(model: Policy, head: PreferenceDegreeHead, versions: Tensor) -> Tensor:
    tokens = versions.flatten(0, 1)
    logits: Tensor = head(model(tokens), tokens >= 0)
    return logits.reshape(*versions.shape[:2], -1)


@functools.cache
def _before(seed: int, steps: int) -> tuple[Data, Data, Policy]:
    """Training and test data, and the policy that has learnt the training sentences."""
    sentences = _sentences()
    order = torch.randperm(len(sentences), generator=seeding.generator(seed, "split")).tolist()
    cut = int(0.7 * len(sentences))
    parts = [[sentences[i] for i in places] for places in (order[:cut], order[cut:])]
    vocabulary = {
        word: number for number, word in enumerate(sorted({w for s in parts[0] for w in s} | {"thing"}), start=3)
    }
    train, test = (_data(part, vocabulary, seed) for part in parts)
    model = Policy(len(vocabulary) + 3, seed)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, fused=True)
    generator = seeding.generator(seed, "sentences")
    for _ in range(steps):
        tokens = train.chosen[torch.randint(len(train.chosen), (16,), generator=generator)]
        loss = linear_cross_entropy(model(tokens), model.head.weight, tokens, shift=1)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
    return train, test, model


def _data(sentences: Sequence[Sequence[str]], vocabulary: dict[str, int], seed: int) -> Data:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS as STOP

    def encoded(words: Sequence[str]) -> Tensor:
        numbers = [BEGIN, *(vocabulary.get(word, UNKNOWN) for word in words), END]
        return torch.tensor(numbers + [-100] * (LENGTH - len(numbers)))

    def versions(words: list[str], strategy: str) -> Tensor:
        options = {"num_degrees": DEGREES, "stopwords": STOP, "generator": generator}
        return torch.stack([encoded(version) for version in degrade_response(words, strategy=strategy, **options)])  # type: ignore[call-overload]

    generator = seeding.generator(seed, "random removal")
    chosen = [list(words) for words in sentences]
    rejected = [_generic(words, STOP) for words in chosen]
    of_chosen, of_rejected = (
        {strategy: torch.stack([versions(words, strategy) for words in side]) for strategy in ("rake", "random")}
        for side in (chosen, rejected)
    )
    return Data(
        torch.stack([encoded(words) for words in chosen]),
        torch.stack([encoded(words) for words in rejected]),
        of_chosen,
        of_rejected,
        torch.arange(DEGREES).expand(len(chosen), -1),
    )


def _generic(words: list[str], stopwords: frozenset[str]) -> list[str]:
    """The sentence with the better half of its key phrases replaced by "thing"."""
    text = " ".join(words)
    phrases = [phrase for _, phrase in rake_keywords(text, stopwords=stopwords)]
    for phrase in phrases[: -(-len(phrases) // 2)]:
        text = re.sub(rf"(?<!\S){re.escape(phrase)}(?!\S)", "thing", text)
    return text.split()


@functools.cache
def _sentences() -> list[list[str]]:
    """Sentences of 8 to 28 words from scikit-learn's descriptions of its data sets."""
    found = []
    folder = importlib.resources.files("sklearn.datasets") / "descr"
    for file in sorted((f for f in folder.iterdir() if f.name.endswith(".rst")), key=lambda f: f.name):
        for paragraph in re.split(r"\n\s*\n", file.read_text(encoding="utf-8")):
            if re.search(r"[=|*_:]{2,}|\.\. ", paragraph):  # a table, a list or a directive
                continue
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
                words = re.findall(r"[a-z]+(?:[-'][a-z]+)*|[,;]", sentence.lower())
                if 8 <= len(words) <= 28:
                    found.append(words)
    return found
