"""Topic segmentation (Ghosh et al. 2023): do focal losses find the ends of topics better than cross-entropy?"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core import seeding
from lossary.language import (
    TopicSegmenter,
    boundary_focal_loss,
    boundary_weighted_cross_entropy,
    lengths_to_boundaries,
    pk_score,
    segmentation_f1,
    window_diff,
)
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run

CARD = Paper(
    slug="topic_segmentation",
    title=("Topic Segmentation of Semi-Structured and Unstructured Conversational Datasets using Language Models"),
    authors=(
        "Reshmi Ghosh, Harjeet Singh Kajal, Sharanya Kamath, Dhuri Shrivastava, Samyadeep Basu, Hansi Zeng, "
        "Soundararajan Srinivasan"
    ),
    arxiv="2310.17120",
    year=2023,
    family="language",
    provides=(
        "boundary_focal_loss",
        "BoundaryFocalLoss",
        "boundary_weighted_cross_entropy",
        "BoundaryWeightedCrossEntropy",
        "TopicSegmenter",
        "pk_score",
        "window_diff",
        "segmentation_f1",
        "boundaries_to_lengths",
        "lengths_to_boundaries",
    ),
    formula="L = -alpha_y (1 - p_y)^gamma log p_y for each sentence; y = 1 where a topic ends",
    call=(
        "from lossary.language import BoundaryFocalLoss, TopicSegmenter\n"
        "segmenter = TopicSegmenter(384, 32, num_layers=1)\n"
        "loss = BoundaryFocalLoss(gamma=2.0)(segmenter(torch.randn(2, 9, 384)), torch.randint(2, (2, 9)))"
    ),
    claim="Focal loss finds the ends of topics better than cross-entropy (lower Pk).",
    use_when="few sentences end a topic and false alarms cost as much as misses",
    avoid_when="every boundary must be found: balanced cross-entropy finds more of them, at more false alarms",
    golden=4,
    metric="Pk",
    direction="lower",
    margin=0.0,
    baseline="CE",
    method="focal, gamma=2",
    seeds=5,
    limits=(
        "The paper fine-tunes RoBERTa on chats and meetings after Wiki-727K; docstrings of Python's library under a "
        "frozen small encoder stand in, so that neither that pre-training nor its corpora are repeated. The text is "
        "that of the Python that runs it."
    ),
)

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "CE": lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()),
    "weighted CE": boundary_weighted_cross_entropy,
    "focal, gamma=2": boundary_focal_loss,
    "focal, gamma=2, alpha=0.75": lambda z, y: boundary_focal_loss(z, y, alpha=0.75),
    "focal, gamma=5": lambda z, y: boundary_focal_loss(z, y, gamma=5.0),
}
STRUCTURED = "CE, trained on structured text"
MODULES = (
    "turtle",
    "_pydecimal",
    "typing",
    "difflib",
    "logging.__init__",
    "ipaddress",
    "inspect",
    "statistics",
    "threading",
    "xml.etree.ElementTree",
    "email.message",
    "mailbox",
    "tarfile",
    "codecs",
    "smtplib",
    "configparser",
    "http.cookiejar",
    "shutil",
    "pdb",
    "imaplib",
    "urllib.request",
    "subprocess",
    "bdb",
    "http.server",
    "asyncio.events",
    "collections.__init__",
    "traceback",
    "enum",
    "ssl",
    "optparse",
    "ftplib",
    "json.__init__",
    "pickletools",
    "argparse",
    "random",
    "calendar",
)
PER_MODULE = 50


def reproduce(run: Run) -> Evidence:
    """The first 50 docstring sentences of each of 36 modules under a frozen all-MiniLM-L6-v2; topics are modules.

    A document is 3 to 6 runs of 3 to 11 consecutive sentences of different modules: 60 for training of one half of the
    modules, 60 for the test of the other, dealt anew for each seed. A bi-LSTM of 64, Adam 2e-3, 12 epochs of batches of
    6, dropout 0.3. Pk, WindowDiff (windows of half a mean topic) and F1 of boundaries without the last sentence. Beside
    it a segmenter trained on structured text, sections of 12 to 20 sentences in the modules' order.
    """
    modules = _modules(run.pick(36, 8), run.pick(PER_MODULE, 12))
    count, epochs = run.pick((60, 12), (6, 1))
    arms = ["no boundary", *LOSSES, STRUCTURED]
    for seed, arm in run.trials(arms):
        order = torch.randperm(len(modules), generator=seeding.generator(seed, "split")).tolist()
        halves = [[modules[place] for place in order[part::2]] for part in (0, 1)]
        test = [_document(halves[1], seeding.generator(seed, "test", number)) for number in range(count)]
        if arm == "no boundary":
            guesses = [torch.zeros(len(document.target), dtype=torch.int64) for document in test]
        else:
            make = _section if arm == STRUCTURED else _document
            train = [make(halves[0], seeding.generator(seed, "train", number)) for number in range(count)]
            guesses = _guesses(_train(train, LOSSES.get(arm, LOSSES["CE"]), seed, epochs=epochs), test)
        run.record(arm, **_scores(test, guesses))
    gammas = {0.0: "CE", 2.0: "focal, gamma=2", 5.0: "focal, gamma=5"}
    y = {metric: [run.mean(arm, metric) for arm in gammas.values()] for metric in ("Pk", "WindowDiff", "boundary F1")}
    return run.conclude(
        series=[Series("What gamma does", "gamma", "mean over seeds", tuple(gammas), y)],
        notes=[
            f"{metric}: " + ", ".join(f"{arm} {run.mean(arm, metric):.3f}" for arm in arms) + "."
            for metric in ("Pk", "WindowDiff", "boundary F1")
        ],
    )


class Document(NamedTuple):
    """Sentence vectors ``(T, D)``, and 1 for the last sentence of each topic ``(T,)``."""

    x: Tensor
    target: Tensor


def _modules(count: int, per_module: int) -> list[Tensor]:
    """Vectors of the first sentences of each module's docstrings."""
    from lossary.datasets import encode_sentences

    texts = [_sentences(name)[:per_module] for name in MODULES[:count]]
    vectors = encode_sentences([sentence for text in texts for sentence in text])
    return list(torch.split(vectors, [len(text) for text in texts]))


def _sentences(module: str) -> list[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    tree = ast.parse((library / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    sentences = [part for text in docstrings for part in re.split(r"(?<=[.!?])\s+|\n\n+", text)]
    sentences = [" ".join(sentence.split()) for sentence in sentences]
    return [sentence for sentence in sentences if 5 <= len(re.findall(r"[A-Za-z]{2,}", sentence)) <= 40]


def _document(modules: Sequence[Tensor], generator: torch.Generator) -> Document:
    """Short runs of different modules, in any order."""
    topics = int(torch.randint(3, min(6, len(modules)) + 1, (), generator=generator))
    chosen = torch.randperm(len(modules), generator=generator)[:topics].tolist()
    lengths = torch.randint(3, 12, (topics,), generator=generator).tolist()
    return _joined([modules[place] for place in chosen], lengths, generator)


def _section(modules: Sequence[Tensor], generator: torch.Generator) -> Document:
    """Long runs of modules that follow each other."""
    topics = int(torch.randint(2, 4, (), generator=generator))
    first = int(torch.randint(len(modules) - topics + 1, (), generator=generator))
    lengths = torch.randint(12, 21, (topics,), generator=generator).tolist()
    return _joined(modules[first : first + topics], lengths, generator)


def _joined(modules: Sequence[Tensor], lengths: Sequence[int], generator: torch.Generator) -> Document:
    parts = []
    for module, length in zip(modules, lengths, strict=True):
        start = int(torch.randint(max(1, len(module) - length + 1), (), generator=generator))
        parts.append(module[start : start + length])
    return Document(torch.cat(parts), lengths_to_boundaries([len(part) for part in parts]))


def _train(documents: Sequence[Document], loss: Loss, seed: int, *, epochs: int) -> TopicSegmenter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, "init"))  # dropout draws from it too
        model = TopicSegmenter(documents[0].x.shape[1], 64, num_layers=1, dropout=0.3)
        optimizer = torch.optim.Adam(model.parameters(), 2e-3, fused=True)
        generator = seeding.generator(seed, "batches")
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(documents), generator=generator), 6):
                x, target, mask = _padded([documents[row] for row in rows.tolist()])
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss(model(x, mask), target))
                optimizer.step()
    return model.eval()


def _padded(documents: Sequence[Document]) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, labels and mask; padding and the last sentence of a document, which ends a topic anyhow, are ignored."""
    pad = torch.nn.utils.rnn.pad_sequence
    x = pad([document.x for document in documents], batch_first=True)
    targets = [torch.cat([document.target[:-1], torch.tensor([-100])]) for document in documents]
    lengths = torch.tensor([len(target) for target in targets])
    return x, pad(targets, batch_first=True, padding_value=-100), torch.arange(x.shape[1]) < lengths.unsqueeze(1)


def _guesses(model: TopicSegmenter, documents: Sequence[Document]) -> list[Tensor]:
    return [
        torch.zeros(len(document.target), dtype=torch.int64).index_fill(0, torch.tensor(places, dtype=torch.int64), 1)
        for document in documents
        for places in [model.segment(document.x)]
    ]


def _scores(documents: Sequence[Document], guesses: Sequence[Tensor]) -> dict[str, float]:
    scores: dict[str, list[float]] = {"Pk": [], "WindowDiff": []}
    for document, guess in zip(documents, guesses, strict=True):
        truth = document.target[:-1]
        window = max(1, round(len(document.target) / (2 * (int(truth.sum()) + 1))))
        scores["Pk"].append(float(pk_score(truth, guess[:-1], window_size=window)))
        scores["WindowDiff"].append(float(window_diff(truth, guess[:-1], window_size=window)))
    every = [torch.cat([part[:-1] for part in parts]) for parts in ([d.target for d in documents], guesses)]
    return {name: sum(values) / len(values) for name, values in scores.items()} | {
        "boundary F1": float(segmentation_f1(*every))
    }
