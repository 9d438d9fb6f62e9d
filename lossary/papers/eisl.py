"""EISL (Liu et al. 2021): do n-grams that may match anywhere survive targets that are shifted?"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core import seeding
from lossary.language import eisl_loss
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import mlp

CARD = Paper(
    slug="eisl",
    title="Don't Take It Literally: An Edit-Invariant Sequence Loss for Text Generation",
    authors="Guangyi Liu, Zichao Yang, Tianhua Tao, Xiaodan Liang, Junwei Bao, Zhen Li, Xiaodong He, Shuguang Cui, "
    "Zhiting Hu",
    arxiv="2106.15078",
    year=2021,
    family="language",
    provides=(
        "eisl_loss",
        "EISLLoss",
        "linear_eisl_loss",
        "LinearEISLLoss",
        "eisl_with_cross_entropy",
        "linear_eisl_with_cross_entropy",
        "ngram_match_scores",
    ),
    formula="L = -mean_j sum_i W_ij S_ij, S the log-probability of n-gram j at position i, W its softmax over i",
    call="from lossary.language import EISLLoss\nloss = EISLLoss(ngrams=(2, 3))(logits, labels)",
    claim="Where most targets are shifted, training by n-grams that may match anywhere keeps its accuracy and "
    "cross-entropy does not.",
    use_when="targets have words inserted, dropped, repeated or moved, or all positions are predicted at once",
    avoid_when="the position of a token is what counts, or training starts from scratch",
    golden=3,
    metric="accuracy at 0.9",
    direction="higher",
    margin=0.1,
    baseline="cross-entropy",
    method="EISL, n=2",
    seeds=4,
    limits=(
        "Symbols are translated one by one, and noise is a shift by one or two with random symbols in the gap: the "
        "shuffles, repetitions and blanks of the paper, its translation of Multi30k and WMT18 (BLEU) and its transfer "
        "of style are not run. The real text is a cipher of Shakespeare's letters."
    ),
)

ARMS = {"cross-entropy": 0, "EISL, n=2": 2, "EISL, n=4": 4}
NOISES = (0.0, 0.5, 0.9)
LENGTH, ROWS, TEST_ROWS = 6, 800, 500


def reproduce(run: Run) -> Evidence:
    """Six symbols of twelve, translated one by one by a network of one hidden layer; some training targets are shifted.

    800 pairs, batches of 100, Adam at 1e-2, 16 epochs of which the first 4 are cross-entropy in every arm; clean test
    pairs. In the full form also with six letters of tinyshakespeare, 90% of the targets shifted. n = 4 at 0.9 alone.
    """
    noises, epochs = run.pick(NOISES, (0.9,)), run.pick(16, 6)
    for seed, arm in run.trials(list(ARMS)):
        results: dict[str, float] = {}
        for noise in noises if ARMS[arm] != 4 else noises[-1:]:
            tokens, whole = _train(seed, ARMS[arm], noise, text=False, epochs=epochs)
            results |= {f"accuracy at {noise:g}": tokens, f"whole sequences at {noise:g}": whole}
        if not run.quick and ARMS[arm] != 4:
            results["accuracy on letters at 0.9"], _ = _train(seed, ARMS[arm], 0.9, text=True, epochs=epochs)
        run.record(arm, **results)
    compared = (CARD.baseline, CARD.method)
    accuracy = {arm: [run.mean(arm, f"accuracy at {noise:g}") for noise in noises] for arm in compared}
    whole = ", ".join(f"{run.mean(arm, 'whole sequences at 0.9'):.3f} by {arm}" for arm in ARMS)
    notes = [
        f"{arm}: {', '.join(f'{value:.3f}' for value in values)} of tokens right with "
        f"{', '.join(f'{noise:g}' for noise in noises)} of the targets shifted."
        for arm, values in accuracy.items()
    ]
    notes.append(f"Whole sequences right with 0.9 of the targets shifted: {whole}.")
    if not run.quick:
        letters = ", ".join(f"{run.mean(arm, 'accuracy on letters at 0.9'):.3f} by {arm}" for arm in compared)
        notes.append(f"Letters of Shakespeare, 0.9 of the targets shifted: {letters} of tokens right.")
    return run.conclude(
        series=[Series("Shifted targets", "share of shifted targets", "accuracy of tokens", noises, accuracy)],
        notes=notes,
    )


def _train(seed: int, n: int, noise: float, *, text: bool, epochs: int) -> tuple[float, float]:
    """Accuracy of tokens and of whole sequences, trained with n-grams (cross-entropy for n = 0)."""
    generator = seeding.generator(seed, "pairs")
    vocab = 27 if text else 12
    source = (_letters if text else _symbols)(generator)
    truth = (7 * source + 3) % vocab
    target = _shifted(truth[:ROWS], noise, vocab, generator)
    x = F.one_hot(source, vocab).flatten(1).float()
    model = mlp((x.shape[1], 128, LENGTH * vocab), seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, fused=True)
    for epoch in range(epochs):
        for rows in torch.randperm(ROWS, generator=generator).split(100):
            logits = model(x[rows]).unflatten(1, (LENGTH, vocab))
            by_ngrams = n and epoch >= 4
            loss = eisl_loss(logits, target[rows], ngrams=(n,)) if by_ngrams else _cross_entropy(logits, target[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    with torch.no_grad():
        right = model(x[ROWS:]).unflatten(1, (LENGTH, vocab)).argmax(-1) == truth[ROWS:]
    return right.double().mean().item(), right.all(1).double().mean().item()


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def _shifted(truth: Tensor, noise: float, vocab: int, generator: torch.Generator) -> Tensor:
    """Targets of which a share is shifted left or right by one or two, the gap filled at random."""
    fill = torch.randint(vocab, (len(truth), LENGTH + 4), generator=generator)
    fill[:, 2 : LENGTH + 2] = truth
    step = torch.tensor([-2, -1, 1, 2])[torch.randint(4, (len(truth), 1), generator=generator)]
    step = torch.where(torch.rand(len(truth), 1, generator=generator) < noise, step, 0)
    return fill.gather(1, 2 + step + torch.arange(LENGTH))


def _symbols(generator: torch.Generator) -> Tensor:
    return torch.randint(12, (ROWS + TEST_ROWS, LENGTH), generator=generator)


def _letters(generator: torch.Generator) -> Tensor:
    """Pieces of tinyshakespeare; all that is no letter is one symbol."""
    from lossary.datasets import path

    text = re.sub("[^a-z]+", "{", path("tinyshakespeare").read_text().lower())
    symbols = torch.tensor(list(text.encode())) - ord("a")
    start = torch.randint(len(symbols) - LENGTH, (ROWS + TEST_ROWS, 1), generator=generator)
    return symbols[start + torch.arange(LENGTH)]
