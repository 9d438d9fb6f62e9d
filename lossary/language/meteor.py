"""METEOR of a sentence: words in common, in as few pieces as possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lossary.core import checks

Text = str | Sequence[str]


def meteor_score(
    hyp: Text,
    ref: Text | list[Text],
    *,
    stem: Callable[[str], str] | None = None,
    alpha: float = 0.9,
    beta: float = 3.0,
    gamma: float = 0.5,
) -> float:
    r"""METEOR of one sentence, by words that are the same or have the same stem.

    Reach for it to judge single sentences, where BLEU's longer n-grams are rarely met. Synonyms, which need WordNet,
    are not matched: ``nltk.translate.meteor_score`` does that.

    Formula:
        .. math:: \Big(1 - \gamma \Big(\frac{c}{m}\Big)^\beta\Big) \frac{P R}{\alpha P + (1 - \alpha) R}, \quad
            P = \frac{m}{h}, \quad R = \frac{m}{r}

        for m matched words of h in the hypothesis and r in the reference, which lie in c pieces that are in one order
        and without gaps in both.

    Args:
        hyp: The hypothesis: a string, which is split at white space, or a sequence of words. Upper and lower case are
            one.
        ref: The reference, or a list of several, of which the best counts; a reference in words is a tuple.
        stem: Takes a word to its stem; words that are not matched as they are may then match by it. None for none.
        alpha: Weight of recall, in [0, 1].
        beta: How steeply pieces are punished, at least 0.
        gamma: The largest punishment, in [0, 1].

    Returns:
        A number in [0, 1]; 0 without a match.

    Raises:
        ValueError: A number is out of range, or there is no reference.

    Example:
        >>> round(meteor_score("the cat was sat on the mat", "the cat sat on the mat"), 4)
        0.9654
        >>> meteor_score("on the mat sat the cat", "the cat sat on the mat")
        0.5

    Source:
        Banerjee, Lavie: METEOR: An Automatic Metric for MT Evaluation (ACL workshop 2005); words are matched from the
        end, as in NLTK, with its defaults. Named by Terven et al. (arXiv 2307.02694), language metrics.
    """
    checks.check_in_range("alpha", alpha, 0.0, 1.0)
    checks.check_in_range("beta", beta, 0.0)
    checks.check_in_range("gamma", gamma, 0.0, 1.0)
    references = ref if isinstance(ref, list) else [ref]
    if not references:
        raise ValueError("ref is an empty list; wanted at least one reference.")
    words = _words(hyp)
    return max(_score(words, _words(reference), stem, alpha, beta, gamma) for reference in references)


def _score(
    hyp: list[str], ref: list[str], stem: Callable[[str], str] | None, alpha: float, beta: float, gamma: float
) -> float:
    matches: dict[int, int] = {}
    forms: list[Callable[[str], str]] = [str] if stem is None else [str, stem]
    for form in forms:
        _match([form(word) for word in hyp], [form(word) for word in ref], matches)
    if not matches:
        return 0.0
    precision, recall = len(matches) / len(hyp), len(matches) / len(ref)
    mean = precision * recall / (alpha * precision + (1 - alpha) * recall)
    pieces = sum(matches.get(place - 1) != other - 1 for place, other in matches.items())
    return float((1 - gamma * (pieces / len(matches)) ** beta) * mean)


def _match(hyp: list[str], ref: list[str], matches: dict[int, int]) -> None:
    """Add matches of places that have none yet, the last ones first."""
    for place in reversed(range(len(hyp))):
        if place not in matches:
            free = set(range(len(ref))) - set(matches.values())
            same = [other for other in free if ref[other] == hyp[place]]
            if same:
                matches[place] = max(same)


def _words(text: Text) -> list[str]:
    return [word.lower() for word in (text.split() if isinstance(text, str) else text)]
