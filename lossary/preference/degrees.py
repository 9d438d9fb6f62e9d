"""Self-supervised preference optimization: the model also learns how much key content a response has lost."""

from __future__ import annotations

import collections
import itertools
import math
import re
import string
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal, overload

import torch
from torch import Tensor, nn

from lossary.core.checks import check_in_range, check_reduction
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import class_rows
from lossary.core.types import Reduction

Strategy = Literal["rake", "random"]
_MISSING = -100
_NAMES = ("chosen_degree_logits", "chosen_degrees", "rejected_degree_logits", "rejected_degrees")


@objective(
    Kind.CLASSES,
    exempt={"empty_and_all_ignored": "a batch without versions costs 0, by definition; tested by hand"},
)
def preference_degree_loss(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = _MISSING,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""How badly a head tells how much key content was removed from each version of a response.

    Reach for it beside an alignment loss, on the logits of :class:`PreferenceDegreeHead`; :class:`SPOLoss` adds both.
    It is cross-entropy, with 0 instead of NaN for a batch in which no response has versions.

    Formula:
        .. math:: L = -\log \mathrm{softmax}(z)_j

    Args:
        input: Logits of the degrees.
        target: The degree j of each version, 0 for the response as it was.
        weight: Weights of degrees.
        ignore_index: Label of versions that do not exist.
        label_smoothing: Share of the target spread evenly over the degrees, in [0, 1].
        sample_weight: Weights of versions.
        reduction: ``none``, ``mean`` or ``sum`` over existing versions.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, K)`` or ``(N, K, ...)``, floating point; target: ``(N,)`` or ``(N, ...)``, integer.
        - weight: ``(K,)``; sample_weight: as target; normalizer: a number or ``()``.

    Returns:
        The target's shape for ``none``, else ``()``; float32 for half-precision input. ``mean`` is 0, with a graph,
        where there is no version.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, degree or reduction is wrong.

    Example:
        >>> preference_degree_loss(torch.zeros(3, 4), torch.tensor([0, 3, -100]))
        tensor(1.3863)

    Source:
        Li et al.: Self-supervised Preference Optimization (Findings of EMNLP 2024, arXiv 2409.17791).
    """
    rows = class_rows(
        input,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
    )
    loss = rows.expect(-rows.log_p())
    if reduction == "mean" and normalizer is None:
        count = rows.reduce(rows.label_weight().expand(loss.shape), reduction="sum", normalizer=None)
        normalizer = torch.where(count == 0, 1.0, count)
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class PreferenceDegreeLoss(Objective):
    """Cross-entropy of the degree of each version; module form of :func:`preference_degree_loss`.

    Example:
        >>> PreferenceDegreeLoss()(torch.zeros(3, 4), torch.tensor([0, 3, -100]))
        tensor(1.3863)
    """

    function = preference_degree_loss

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        ignore_index: int = _MISSING,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)


class SPOLoss(nn.Module):
    r"""Any alignment loss plus the degree losses of chosen and rejected responses.

    Reach for it where pairs say only which response is better, and by how much shall matter too. It costs a forward
    pass for every version; the head is dropped after training. The alignment loss sees the unmodified responses only.

    Formula:
        .. math:: L = L_\text{align}(y_w, y_l) + \gamma \left(L_\text{deg}(y_w) + L_\text{deg}(y_l)\right)

        where the degree loss of a response is the mean over its versions, 0 if it has none.

    Args:
        alignment_loss: Function or module on the tensors of the alignment, such as :class:`HDPOLoss`.
        gamma: Weight of the degree losses, at least 0. The default is ours; the paper is not known to name one.
        reduction: ``none``, ``mean`` or ``sum`` over pairs; the first and the last want an alignment loss that reduces
            nothing itself, and versions by response.

    Shape:
        - chosen_degree_logits, rejected_degree_logits: ``(N, J, K)``, J versions of each response, or ``(M, K)``, all
          versions of the batch, whose mean is taken.
        - chosen_degrees, rejected_degrees: ``(N, J)`` or ``(M,)``; -100 for versions that do not exist.

    Example:
        >>> from lossary.language import linear_sequence_logps
        >>> from lossary.preference import HDPOLoss
        >>> hidden, head = torch.eye(3).expand(4, 3, 3), torch.eye(3)  # two chosen, then two rejected responses
        >>> tokens = torch.tensor([[0, 1, 2], [0, 1, -100], [1, 2, 0], [2, 1, -100]])
        >>> chosen, rejected = linear_sequence_logps(hidden, head, tokens).chunk(2)
        >>> degrees = torch.arange(4).expand(2, 4)
        >>> SPOLoss(HDPOLoss(), gamma=0.5)(
        ...     chosen, rejected, chosen, rejected, torch.zeros(2, 4, 4), degrees, torch.zeros(2, 4, 4), degrees)
        tensor(2.0794)

    Source:
        Li et al.: Self-supervised Preference Optimization (Findings of EMNLP 2024, arXiv 2409.17791).
    """

    def __init__(
        self, alignment_loss: Callable[..., Tensor], gamma: Tensor | float = 1.0, *, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        check_in_range("gamma", gamma, 0.0)
        check_reduction(reduction)
        self.alignment_loss = alignment_loss
        self.gamma = gamma
        self.reduction = reduction

    def forward(self, *tensors: Tensor, **named: Tensor) -> Tensor:
        """The loss.

        Args:
            tensors: What the alignment loss is called with, then ``chosen_degree_logits``, ``chosen_degrees``,
                ``rejected_degree_logits`` and ``rejected_degrees``, unless these are given by name.
            named: Any of these by name; others go to the alignment loss.

        Raises:
            TypeError: One of the four is missing.
            ValueError: A shape is wrong.
        """
        missing = [name for name in _NAMES if name not in named]
        if len(tensors) < len(missing):
            raise TypeError(f"{missing[0]} is missing; wanted {', '.join(_NAMES)} after the tensors of the alignment.")
        split = len(tensors) - len(missing)
        named |= dict(zip(missing, tensors[split:], strict=True))
        of_chosen, of_rejected = (
            self._degree_loss(named.pop(f"{side}_degree_logits"), named.pop(f"{side}_degrees"))
            for side in ("chosen", "rejected")
        )
        alignment = self.alignment_loss(*tensors[:split], **named)
        if self.reduction == "mean":
            return alignment.mean() + self.gamma * (of_chosen.mean() + of_rejected.mean())
        if alignment.ndim == 0 or alignment.shape != of_chosen.shape:
            raise ValueError(
                f"alignment_loss gives {tuple(alignment.shape)} and versions {tuple(of_chosen.shape)}; with "
                f"reduction={self.reduction!r} wanted one loss for each pair from both."
            )
        loss = alignment + self.gamma * (of_chosen + of_rejected)
        return loss if self.reduction == "none" else loss.sum()

    def extra_repr(self) -> str:
        """Weight and reduction as they would be written in the call."""
        return f"gamma={self.gamma!r}, reduction={self.reduction!r}"

    @staticmethod
    def _degree_loss(logits: Tensor, degrees: Tensor) -> Tensor:
        """Mean over versions: of each response ``(N,)``, or of the batch ``()``."""
        if logits.ndim == 2:
            return preference_degree_loss(logits, degrees)
        loss = preference_degree_loss(logits.movedim(-1, 1), degrees, reduction="none")
        return loss.sum(-1) / (degrees != _MISSING).sum(-1).clamp(min=1)


class PreferenceDegreeHead(nn.Linear):
    """Linear layer from the hidden state of a version's last token to logits of its degree.

    Reach for it beside :class:`SPOLoss` during training; inference does without it.

    Args:
        hidden_size: Width of the model.
        num_degrees: Number of degrees.

    Example:
        >>> head = PreferenceDegreeHead(8, num_degrees=4)
        >>> head(torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])).shape
        torch.Size([2, 4])

    Source:
        Li et al.: Self-supervised Preference Optimization (Findings of EMNLP 2024, arXiv 2409.17791).
    """

    def __init__(self, hidden_size: int, num_degrees: int) -> None:
        super().__init__(hidden_size, num_degrees)

    def forward(self, input: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits of the degrees ``(N, K)``.

        Args:
            input: Pooled hidden states ``(N, H)``, or all of them ``(N, T, H)``, of which the last one that is no
                padding is taken.
            attention_mask: ``(N, T)``, 0 for padding on either side; without it nothing is padding.

        Raises:
            ValueError: The mask's shape is wrong.
        """
        if input.ndim == 3:
            last = torch.full(input.shape[:1], input.shape[1] - 1, device=input.device)
            if attention_mask is not None:
                if attention_mask.shape != input.shape[:2]:
                    raise ValueError(
                        f"attention_mask has shape {tuple(attention_mask.shape)}; wanted {tuple(input.shape[:2])}."
                    )
                last = last - attention_mask.long().flip(1).argmax(1)
            input = input.gather(1, last.reshape(-1, 1, 1).expand(-1, 1, input.shape[2])).squeeze(1)
        return super().forward(input.to(self.weight.dtype))


def rake_keywords(
    text: str, *, stopwords: Collection[str], min_length: int = 1, max_length: int | None = None
) -> list[tuple[float, str]]:
    r"""Key phrases of a text by RAKE, best first.

    Reach for it to see what :func:`degrade_response` takes away. It needs no training, only a list of stop words, such
    as ``sklearn.feature_extraction.text.ENGLISH_STOP_WORDS``.

    Formula:
        .. math:: s(\text{phrase}) = \sum_{w \in \text{phrase}} \frac{d(w)}{f(w)}

        over phrases between stop words, punctuation and line ends; f counts a word in all phrases, d adds for each of
        its occurrences the number of words of the phrase.

    Args:
        text: The text; case does not matter.
        stopwords: Words that end a phrase.
        min_length: Words that a phrase must have.
        max_length: Words that it may have; None for any number.

    Returns:
        Scores with phrases, in lower case, from the highest down (equal scores by phrase, from z to a); a phrase that
        occurs twice is there twice.

    Raises:
        ValueError: A length is wrong.

    Example:
        >>> rake_keywords("The battery life is good, the new screen very bright", stopwords={"the", "is", "very"})
        [(4.0, 'new screen'), (4.0, 'battery life'), (1.0, 'good'), (1.0, 'bright')]

    Source:
        Rose, Engel, Cramer, Cowley: Automatic Keyword Extraction from Individual Documents (Text Mining, 2010), as SPO
        (arXiv 2409.17791) uses it.
    """
    if min_length < 1 or (max_length is not None and max_length < min_length):
        raise ValueError(f"min_length is {min_length} and max_length {max_length}; wanted 1 or more, in this order.")
    pieces = [piece for piece, _, _ in _pieces(text)]
    phrases = [phrase for phrase, _ in _candidates(pieces, stopwords)]
    phrases = [p for p in phrases if min_length <= len(p) <= (len(p) if max_length is None else max_length)]
    scores = _scores(phrases)
    return sorted(((scores[phrase], " ".join(phrase)) for phrase in phrases), reverse=True)


@overload
def degrade_response(  # type: ignore[overload-overlap]  # a text is a sequence of texts
    tokens_or_text: str,
    *,
    num_degrees: int = 4,
    stopwords: Collection[str],
    strategy: Strategy = "rake",
    generator: torch.Generator | None = None,
) -> list[str]: ...


@overload
def degrade_response(
    tokens_or_text: Sequence[str],
    *,
    num_degrees: int = 4,
    stopwords: Collection[str],
    strategy: Strategy = "rake",
    generator: torch.Generator | None = None,
) -> list[list[str]]: ...


def degrade_response(
    tokens_or_text: str | Sequence[str],
    *,
    num_degrees: int = 4,
    stopwords: Collection[str],
    strategy: Strategy = "rake",
    generator: torch.Generator | None = None,
) -> list[str] | list[list[str]]:
    r"""Versions of a response that have lost more and more of its key content.

    Reach for it to make the inputs of the degree task; the place in the list is the degree. ``random`` removes as many
    words wherever they stand, to see whether it matters which ones go.

    Formula:
        .. math:: \text{version } j \text{ is without the first } \lceil j m / K \rceil \text{ of } m
            \text{ ranked phrases}

    Args:
        tokens_or_text: A text, or its words and punctuation marks.
        num_degrees: The number K of versions, 2 or more.
        stopwords: As in :func:`rake_keywords`.
        strategy: ``rake`` or ``random``.
        generator: Source of randomness for ``random``; torch's own where it is None.

    Returns:
        The K versions, each a text or a list of tokens as given; the first is the input. They are all the same where
        there is no key phrase. At least one token always stays.

    Raises:
        ValueError: ``num_degrees`` or ``strategy`` is wrong.

    Example:
        >>> degrade_response("The battery is good, the new screen bright", num_degrees=3, stopwords={"the", "is"})
        ['The battery is good, the new screen bright', 'The battery is good, the', 'The battery is, the']

    Source:
        Li et al.: Self-supervised Preference Optimization (Findings of EMNLP 2024, arXiv 2409.17791). How much each
        version loses is our choice: the paper's schedule could not be verified, and its code is not public.
    """
    if num_degrees < 2:
        raise ValueError(f"num_degrees is {num_degrees}; wanted 2 or more.")
    if strategy not in ("rake", "random"):
        raise ValueError(f"strategy is {strategy!r}; wanted 'rake' or 'random'.")
    spans = _pieces(tokens_or_text) if isinstance(tokens_or_text, str) else [(token, 0, 0) for token in tokens_or_text]
    removed = _removed([piece for piece, _, _ in spans], num_degrees, stopwords, strategy, generator)
    if isinstance(tokens_or_text, str):
        return [tokens_or_text if not gone else _without(tokens_or_text, spans, gone) for gone in removed]
    return [[token for place, token in enumerate(tokens_or_text) if place not in gone] for gone in removed]


def _removed(
    pieces: Sequence[str],
    num_degrees: int,
    stopwords: Collection[str],
    strategy: Strategy,
    generator: torch.Generator | None,
) -> list[set[int]]:
    """Places of the pieces that each version is without."""
    places: dict[tuple[str, ...], list[int]] = collections.defaultdict(list)
    candidates = _candidates(pieces, stopwords)
    for phrase, start in candidates:
        places[phrase] += range(start, start + len(phrase))
    scores = _scores([phrase for phrase, _ in candidates])
    ranking = sorted(scores, key=lambda phrase: (scores[phrase], " ".join(phrase)), reverse=True)
    words = [place for place, piece in enumerate(pieces) if not _ends_phrase(piece)]
    shuffled = [words[i] for i in torch.randperm(len(words), generator=generator)] if strategy == "random" else []
    removed = []
    for degree in range(num_degrees):
        gone = {
            place for phrase in ranking[: math.ceil(degree * len(ranking) / num_degrees)] for place in places[phrase]
        }
        if strategy == "random":
            gone = set(shuffled[: len(gone)])
        if len(gone) == len(pieces):
            gone.discard(min(gone, default=0))
        removed.append(gone)
    return removed


def _without(text: str, spans: Iterable[tuple[str, int, int]], gone: set[int]) -> str:
    """The text less some pieces, each with the space before it."""
    kept, end_before = [text[: len(text) - len(text.lstrip())]], 0
    for place, (_, start, end) in enumerate(spans):
        if place not in gone:
            kept.append(text[end_before if len(kept) > 1 else start : end])
        end_before = end
    return "".join(kept)


def _pieces(text: str) -> list[tuple[str, int, int]]:
    """Words, punctuation at their edges, and line ends, each with its place in the text."""
    found = []
    for chunk in re.finditer(r"\n|\S+", text):
        start, end = chunk.span()
        word = chunk.group().strip(string.punctuation)
        if not word or chunk.group() == "\n":
            inner = [(start + i, start + i + 1) for i in range(end - start)]
        else:
            first = start + chunk.group().index(word)
            last = first + len(word)
            inner = [*((i, i + 1) for i in range(start, first)), (first, last), *((i, i + 1) for i in range(last, end))]
        found += [(text[i:j], i, j) for i, j in inner]
    return found


def _ends_phrase(piece: str) -> bool:
    return not piece.strip(string.punctuation + string.whitespace)


def _candidates(pieces: Sequence[str], stopwords: Collection[str]) -> list[tuple[tuple[str, ...], int]]:
    """Runs of words between stop words, punctuation and line ends, in lower case, each with its first place."""
    stop = {word.lower() for word in stopwords}
    found = []
    inside = lambda item: not (_ends_phrase(item[1]) or item[1].lower() in stop)  # noqa: E731
    for is_phrase, run in itertools.groupby(enumerate(pieces), key=inside):
        if is_phrase:
            items = list(run)
            found.append((tuple(piece.lower() for _, piece in items), items[0][0]))
    return found


def _scores(phrases: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
    frequency: collections.Counter[str] = collections.Counter()
    degree: collections.Counter[str] = collections.Counter()
    for phrase in phrases:
        for word in phrase:
            frequency[word] += 1
            degree[word] += len(phrase)
    return {phrase: sum(degree[word] / frequency[word] for word in phrase) for phrase in phrases}
