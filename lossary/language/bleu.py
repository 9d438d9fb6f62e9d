"""BLEU of a corpus and of its sentences: the same counts, summed before the ratio or after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lossary.core import checks

Text = str | Sequence[str]


class BleuStats(NamedTuple):
    """What BLEU is made of, a row a sentence, all float64; made by :func:`corpus_bleu_stats`.

    Attributes:
        matches: ``(S, n)``: n-grams of the hypothesis that its reference has too, each at most as often as there.
        totals: ``(S, n)``: n-grams of the hypothesis.
        hypothesis_length: ``(S,)``: words of the hypothesis.
        reference_length: ``(S,)``: words of its reference, of several the one nearest in length.
    """

    matches: Tensor
    totals: Tensor
    hypothesis_length: Tensor
    reference_length: Tensor

    def corpus_bleu(self) -> Tensor:
        """BLEU of all sentences together, ``()``: counts are summed first. Nothing is smoothed."""
        matches, totals, hypothesis_length, reference_length = (part.sum(0) for part in self)
        return _bleu(matches, totals, hypothesis_length, reference_length, smooth=0.0)

    def sentence_bleu(self, smooth: float = 1.0) -> Tensor:
        """BLEU of each sentence ``(S,)``; ``smooth`` is added to the counts of n-grams longer than a word."""
        return _bleu(*self, smooth=smooth)


def corpus_bleu_stats(hyp: Sequence[Text], ref: Sequence[Text | list[Text]], *, max_n: int = 4) -> BleuStats:
    r"""Counts of n-grams of a corpus, from which both its BLEU and that of its sentences follow.

    Reach for it to see how far the mean sentence BLEU, which sequence-level training maximises, lies from the corpus
    BLEU that systems are judged by.

    Formula:
        .. math:: \mathrm{BLEU} = \exp\Big(\min(0, 1 - r / h) + \frac1n \sum_k \log \frac{m_k}{t_k}\Big)

        for lengths h of hypotheses and r of references, matches m and totals t; sums over sentences for the corpus.

    Args:
        hyp: Hypotheses: strings, which are split at white space, or sequences of words.
        ref: A reference for each, or a list of several. A list of strings is several references; a reference in words
            is a tuple.
        max_n: Longest n-grams.

    Returns:
        The counts, with methods ``corpus_bleu()`` and ``sentence_bleu(smooth)``.

    Raises:
        ValueError: The lengths differ, or ``max_n`` is below 1.

    Example:
        >>> stats = corpus_bleu_stats(["the cat sat on the mat", "a dog"], ["the cat sat on a mat", "the dog"])
        >>> stats.corpus_bleu(), stats.sentence_bleu().mean()
        (tensor(0.5000, dtype=torch.float64), tensor(0.6730, dtype=torch.float64))

    Source:
        Papineni et al.: BLEU (ACL 2002); the comparison is that of Yuan, Zhang, Huang, Liang: Simpson's Bias in NLP
        Training (AAAI 2021, arXiv 2103.11795).
    """
    if len(hyp) != len(ref):
        raise ValueError(f"hyp has {len(hyp)} sentences and ref {len(ref)}; wanted a reference for each.")
    if isinstance(max_n, bool) or not isinstance(max_n, int) or max_n < 1:
        raise ValueError(f"max_n is {max_n!r}; wanted a positive integer.")
    matches, totals, lengths = [], [], []
    for hypothesis, reference in zip(hyp, ref, strict=True):
        words = _words(hypothesis)
        references = [_words(each) for each in reference] if isinstance(reference, list) else [_words(reference)]
        found = [_clipped(words, references, n) for n in range(1, max_n + 1)]
        matches.append([matched for matched, _ in found])
        totals.append([total for _, total in found])
        nearest = min((abs(len(each) - len(words)), len(each)) for each in references)[1]
        lengths.append((len(words), nearest))
    length = torch.tensor(lengths, dtype=torch.float64).reshape(-1, 2)
    matched, counted = (torch.tensor(rows, dtype=torch.float64).reshape(-1, max_n) for rows in (matches, totals))
    return BleuStats(matched, counted, length[:, 0], length[:, 1])


def sentence_bleu(hyp: Text, ref: Text | list[Text], *, smooth: float = 1.0, max_n: int = 4) -> float:
    """BLEU of one sentence.

    Reach for it to reward or to rank single sentences; corpora are judged by ``corpus_bleu_stats(...).corpus_bleu()``,
    which is not its mean.

    Args:
        hyp: The hypothesis: a string, which is split at white space, or a sequence of words.
        ref: The reference, or a list of several; a reference in words is a tuple.
        smooth: Added to matches and totals of n-grams longer than a word, at least 0. Without it a sentence that lacks
            any common n-gram has 0.
        max_n: Longest n-grams.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: ``smooth`` is negative, or ``max_n`` below 1.

    Example:
        >>> round(sentence_bleu("the cat sat on the mat", "the cat sat on a mat"), 4)
        0.6389

    Source:
        Lin, Och: ORANGE: a Method for Evaluating Automatic Evaluation Metrics for Machine Translation (COLING 2004).
    """
    checks.check_in_range("smooth", smooth, 0.0)
    return float(corpus_bleu_stats([hyp], [ref], max_n=max_n).sentence_bleu(smooth))


def _bleu(
    matches: Tensor, totals: Tensor, hypothesis_length: Tensor, reference_length: Tensor, smooth: float
) -> Tensor:
    added = torch.full_like(matches, smooth)
    added[..., 0] = 0
    matches, totals = matches + added, totals + added
    precision = torch.where(totals > 0, matches / torch.where(totals > 0, totals, 1.0), 0.0)
    brevity = (1 - reference_length / hypothesis_length.clamp(min=1)).clamp(max=0)
    return torch.where(matches[..., 0] > 0, torch.exp(brevity + precision.log().mean(-1)), 0.0)


def _words(text: Text) -> list[str]:
    return text.split() if isinstance(text, str) else list(text)


def _clipped(words: list[str], references: list[list[str]], n: int) -> tuple[int, int]:
    """Matched and all n-grams."""
    counts = _grams(words, n)
    most: Counter[tuple[str, ...]] = Counter()
    for each in references:
        most |= _grams(each, n)
    return (counts & most).total(), counts.total()


def _grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))
