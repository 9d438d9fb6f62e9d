"""Where topics end in a text: losses for rare boundaries, a segmenter over sentence vectors, and the two metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lossary.core import checks
from lossary.core.numerics import exp_scaled, product
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import ClassRows, token_rows
from lossary.core.types import Reduction


@objective(Kind.BOUNDARIES)
def boundary_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: Tensor | float = 2.0,
    alpha: Tensor | float | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Focal loss of whether a sentence is the last of its topic: sure ones fade.

    Reach for it to segment transcripts and other texts where few sentences end a topic. Give the last sentence of a
    document, which ends one in any case, the label ``ignore_index``.

    Formula:
        .. math:: L_i = -\alpha_{y_i} (1 - p_i)^\gamma \log p_i

        with :math:`\alpha_y` = alpha for boundaries and 1 - alpha for other sentences, or 1 for both.

    Args:
        input: Logits; class 0 is no boundary. There may be several kinds of boundary, classes 1 and up.
        target: Class indices.
        gamma: Focusing exponent, at least 0; 0 is cross-entropy.
        alpha: Weight of boundaries in [0, 1]; None balances nothing. It leaves the divisor of ``mean`` alone.
        ignore_index: Label of sentences that count for nothing.
        reduction: ``none``, ``mean`` over sentences or ``sum``.
        weight: Class weights as in PyTorch.
        sample_weight: Weights of sentences.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(..., 2)``, as ``(B, T, 2)``; target, sample_weight: ``(...)``.
        - weight: ``(2,)``; normalizer: a number or ``()``.

    Returns:
        ``(...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN as
        in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``gamma``, ``alpha`` or reduction is wrong.

    Example:
        >>> boundary_focal_loss(torch.tensor([[[2.0, 0.0], [2.0, 0.0]]]), torch.tensor([[0, 1]]))
        tensor(0.8259)

    Source:
        Ghosh, Kajal, Kamath, Shrivastava, Basu, Zeng, Srinivasan: Topic Segmentation of Semi-Structured and
        Unstructured Conversational Datasets
        using Language Models (arXiv 2310.17120), after Lin et al. (ICCV 2017, arXiv 1708.02002).
    """
    checks.check_in_range("gamma", gamma, 0.0)
    checks.check_in_range("alpha", 0.0 if alpha is None else alpha, 0.0, 1.0)
    rows = _sentence_rows(input, target, weight, ignore_index, sample_weight)
    log_p, log_miss = rows.log_p_and_miss()
    focal = product(exp_scaled(log_miss, gamma), -log_p)
    if alpha is not None:
        is_boundary = rows.on_support(torch.arange(rows.num_classes, device=focal.device).expand_as(rows.logits)) > 0
        focal = product(torch.where(is_boundary, alpha, 1 - alpha).to(focal.dtype), focal)
    return rows.reduce(rows.expect(focal), reduction=reduction, normalizer=normalizer)


class BoundaryFocalLoss(Objective):
    """Focal loss of boundaries; module form of :func:`boundary_focal_loss`.

    Example:
        >>> loss = BoundaryFocalLoss(gamma=2.0, alpha=0.75)
        >>> loss(torch.tensor([[[2.0, 0.0], [2.0, 0.0]]]), torch.tensor([[0, 1]]))
        tensor(0.6190)
    """

    function = boundary_focal_loss

    def __init__(
        self,
        gamma: Tensor | float = 2.0,
        alpha: Tensor | float | None = None,
        *,
        ignore_index: int = -100,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(gamma=gamma, alpha=alpha, ignore_index=ignore_index, weight=weight, reduction=reduction)


@objective(Kind.BOUNDARIES, example=lambda num_classes: {"weight": torch.ones(num_classes)})
def boundary_weighted_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | Sequence[float] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    sample_weight: Tensor | None = None,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy of boundaries with both classes given the same total weight.

    Reach for it where boundaries are rare and missing one is worse than inventing one: it finds more of them, wrong
    ones too. :func:`boundary_focal_loss` is more cautious.

    Formula:
        .. math:: L_i = -w_{y_i} \log p_i, \quad w_c = \frac{n}{C n_c}

        for n sentences, :math:`n_c` of them in class c of C = 2; a class without any has weight 0.

    Args:
        input: Logits; class 0 is no boundary. There may be several kinds of boundary, classes 1 and up.
        target: Class indices.
        weight: Weights of the classes in place of these, as in PyTorch. None counts the sentences of this call.
        ignore_index: Label of sentences that count for nothing.
        reduction: ``none``, ``mean`` or ``sum``. ``mean`` divides by the number of sentences where ``weight`` is None,
            else as PyTorch by their summed weights; ``normalizer=(target != -100).sum()`` is their number.
        sample_weight: Weights of sentences.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(..., 2)``, as ``(B, T, 2)``; target, sample_weight: ``(...)``.
        - weight: ``(2,)``; normalizer: a number or ``()``.

    Returns:
        ``(...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN as
        in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or reduction is wrong.

    Example:
        >>> input, target = torch.tensor([[[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]]), torch.tensor([[0, 0, 1]])
        >>> boundary_weighted_cross_entropy(input, target)
        tensor(1.1269)

    Source:
        Ghosh et al. (arXiv 2310.17120), the re-weighted baseline.
    """
    if weight is not None:
        weight = torch.as_tensor(weight, dtype=None if isinstance(weight, Tensor) else torch.float32)
        rows = _sentence_rows(input, target, weight, ignore_index, sample_weight)
        return rows.reduce(rows.expect(-rows.log_p()), reduction=reduction, normalizer=normalizer)
    rows = _sentence_rows(input, target, None, ignore_index, sample_weight)
    count = (rows.is_label() & rows.kept().unsqueeze(-1)).to(rows.logits.dtype).flatten(0, -2).sum(0)
    balanced = torch.where(count > 0, count.sum() / (rows.num_classes * count.clamp(min=1)), 0.0)
    loss = rows.expect(-rows.on_support(balanced.expand_as(rows.logits)) * rows.log_p())
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class BoundaryWeightedCrossEntropy(Objective):
    """Cross-entropy of boundaries, balanced; module form of :func:`boundary_weighted_cross_entropy`.

    Example:
        >>> loss = BoundaryWeightedCrossEntropy()
        >>> loss(torch.tensor([[[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]]), torch.tensor([[0, 0, 1]]))
        tensor(1.1269)
    """

    function = boundary_weighted_cross_entropy

    def __init__(
        self,
        weight: Tensor | Sequence[float] | None = None,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction)


class TopicSegmenter(nn.Module):
    """From the vectors of a document's sentences to whether each is the last of its topic.

    Reach for it on top of any sentence encoder, frozen or not, with :class:`BoundaryFocalLoss`.

    Args:
        input_size: D, width of the sentence vectors.
        hidden_size: Width of the LSTM in each direction, or of the transformer.
        num_layers: Layers.
        encoder: ``lstm``, in both directions, or ``transformer``.
        num_heads: Heads of the transformer.
        dropout: Share of inputs and of hidden numbers that training drops.

    Example:
        >>> segmenter = TopicSegmenter(384, 32, num_layers=1)
        >>> segmenter(torch.randn(2, 7, 384), torch.tensor([7, 5])[:, None] > torch.arange(7)).shape
        torch.Size([2, 7, 2])

    Source:
        Ghosh et al. (arXiv 2310.17120): a sequence encoder over sentence vectors, after Koshorek et al. (NAACL 2018).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 256,
        *,
        num_layers: int = 2,
        encoder: Literal["lstm", "transformer"] = "lstm",
        num_heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if encoder not in ("lstm", "transformer"):
            raise ValueError(f"encoder is {encoder!r}; wanted 'lstm' or 'transformer'.")
        self.drop = nn.Dropout(dropout)
        self.encoder: nn.Module
        if encoder == "lstm":
            between = dropout if num_layers > 1 else 0.0
            self.encoder = nn.LSTM(
                input_size, hidden_size, num_layers, batch_first=True, dropout=between, bidirectional=True
            )
            self.head = nn.Linear(2 * hidden_size, 2)
        else:
            layer = nn.TransformerEncoderLayer(
                hidden_size, num_heads, 4 * hidden_size, dropout, batch_first=True, norm_first=True
            )
            self.widen = nn.Linear(input_size, hidden_size)
            self.encoder = nn.TransformerEncoder(
                layer, num_layers, nn.LayerNorm(hidden_size), enable_nested_tensor=False
            )
            self.head = nn.Linear(hidden_size, 2)

    def forward(self, sentence_embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of no boundary and of a boundary after each sentence, ``(B, T, 2)``.

        Args:
            sentence_embeddings: ``(B, T, D)``.
            mask: ``(B, T)`` bool, True for sentences and False for the padding after them; None is no padding.

        Raises:
            ValueError: A shape is wrong.
        """
        if sentence_embeddings.ndim != 3:
            raise ValueError(f"sentence_embeddings has shape {tuple(sentence_embeddings.shape)}; wanted (B, T, D).")
        shape = sentence_embeddings.shape[:2]
        if mask is None:
            mask = torch.ones(shape, dtype=torch.bool, device=sentence_embeddings.device)
        checks.check_shape("mask", mask, shape, "True for sentences, False for padding")
        x = self.drop(torch.where(mask.unsqueeze(-1), sentence_embeddings, 0.0))
        if isinstance(self.encoder, nn.LSTM):
            lengths = mask.sum(1).clamp(min=1).cpu()
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            x, _ = nn.utils.rnn.pad_packed_sequence(self.encoder(packed)[0], batch_first=True, total_length=shape[1])
        else:
            x = self.widen(x)
            x = self.encoder(x + _positions(shape[1], x), src_key_padding_mask=~mask)
        logits: Tensor = self.head(self.drop(x))
        return logits

    @torch.no_grad()
    def segment(self, embeddings: Tensor, *, threshold: float = 0.5) -> list[int]:
        """Numbers of the sentences after which a new topic begins; never the last.

        Args:
            embeddings: Sentence vectors of one document ``(T, D)``.
            threshold: Probability above which there is a boundary; tune it on documents kept apart.

        Raises:
            ValueError: A shape or ``threshold`` is wrong.
        """
        checks.check_in_range("threshold", threshold, 0.0, 1.0)
        if embeddings.ndim != 2:
            raise ValueError(f"embeddings has shape {tuple(embeddings.shape)}; wanted (T, D), one document.")
        training = self.training
        try:
            probability = self.eval()(embeddings.unsqueeze(0))[0].softmax(-1)[:, 1]
        finally:
            self.train(training)
        found: list[int] = (probability[:-1] > threshold).nonzero()[:, 0].tolist()
        return found


def pk_score(reference: Tensor, hypothesis: Tensor, *, window_size: int | None = None) -> Tensor:
    r"""Share of windows that hold a boundary in one segmentation and none in the other; lower is better.

    Reach for it beside :func:`window_diff`, which also sees how many boundaries there are. The last sentence ends a
    segment in any case: pass both without it.

    Formula:
        .. math:: P_k = \frac{1}{T - k + 1} \sum_i \big[ [\textstyle\sum_{j < k} r_{i+j} > 0] \ne
            [\sum_{j < k} h_{i+j} > 0] \big]

    Args:
        reference: 1 where a segment ends after the sentence, else 0.
        hypothesis: The same of the segmentation to judge.
        window_size: k; None is half the mean distance of boundaries, ``round(T / (2 * boundaries))``, of T / 2 if the
            reference has none; at least 1.

    Shape:
        - reference, hypothesis: ``(T,)``.

    Returns:
        ``()``, float64, in [0, 1].

    Raises:
        ValueError: A shape or value is wrong, or ``window_size`` is not in 1 to T.

    Example:
        >>> pk_score(torch.tensor([0, 0, 1, 0, 0, 0]), torch.tensor([0, 0, 0, 1, 0, 0]), window_size=2)
        tensor(0.4000, dtype=torch.float64)

    Source:
        Beeferman, Berger, Lafferty: Statistical Models for Text Segmentation (1999); NLTK's windows.
    """
    ours, theirs = _windows(reference, hypothesis, window_size)
    return ((ours > 0) != (theirs > 0)).double().mean()


def window_diff(reference: Tensor, hypothesis: Tensor, *, window_size: int | None = None) -> Tensor:
    r"""Share of windows whose numbers of boundaries differ between two segmentations; lower is better.

    Reach for it beside :func:`pk_score`, which it is never below.

    Formula:
        .. math:: \frac{1}{T - k + 1} \sum_i \big[ \textstyle\sum_{j < k} r_{i+j} \ne \sum_{j < k} h_{i+j} \big]

    Args:
        reference: 1 where a segment ends after the sentence, else 0.
        hypothesis: The same of the segmentation to judge.
        window_size: k, as in :func:`pk_score`.

    Shape:
        - reference, hypothesis: ``(T,)``.

    Returns:
        ``()``, float64, in [0, 1].

    Raises:
        ValueError: A shape or value is wrong, or ``window_size`` is not in 1 to T.

    Example:
        >>> window_diff(torch.tensor([0, 0, 1, 0, 0, 0]), torch.tensor([0, 1, 1, 0, 0, 0]), window_size=2)
        tensor(0.4000, dtype=torch.float64)

    Source:
        Pevzner, Hearst: A Critique and Improvement of an Evaluation Metric for Text Segmentation (2002).
    """
    ours, theirs = _windows(reference, hypothesis, window_size)
    return (ours != theirs).double().mean()


def segmentation_f1(reference: Tensor, hypothesis: Tensor) -> Tensor:
    """F1 of the places of boundaries, which must agree exactly.

    Args:
        reference: 1 where a segment ends after the sentence, else 0.
        hypothesis: The same of the segmentation to judge.

    Shape:
        - reference, hypothesis: ``(T,)``.

    Returns:
        ``()``, float64, in [0, 1]; 1 where neither has a boundary.

    Raises:
        ValueError: A shape or value is wrong.

    Example:
        >>> segmentation_f1(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1, 0]))
        tensor(0.5000, dtype=torch.float64)

    Source:
        Ghosh et al. (arXiv 2310.17120).
    """
    r, h = _boundaries(reference, hypothesis)
    total = r.sum() + h.sum()
    return torch.where(total == 0, 1.0, 2 * (r * h).sum().double() / total.clamp(min=1))


def boundaries_to_lengths(boundaries: Tensor) -> list[int]:
    """Numbers of sentences of the segments; the last sentence ends one whether it is marked or not.

    Args:
        boundaries: 1 where a segment ends after the sentence, else 0, ``(T,)``.

    Raises:
        ValueError: A shape or value is wrong.

    Example:
        >>> boundaries_to_lengths(torch.tensor([0, 0, 1, 0, 0]))
        [3, 2]
    """
    (ends,) = _boundaries(boundaries)
    places = [place + 1 for place in ends.nonzero()[:, 0].tolist()]
    if len(ends) and (not places or places[-1] != len(ends)):
        places.append(len(ends))
    return [end - start for start, end in zip([0, *places], places, strict=False)]


def lengths_to_boundaries(lengths: Sequence[int]) -> Tensor:
    """The 0/1 vector of segments with these numbers of sentences; the last sentence is marked.

    Args:
        lengths: Numbers of sentences, each at least 1.

    Raises:
        ValueError: A length is below 1.

    Example:
        >>> lengths_to_boundaries([3, 2])
        tensor([0, 0, 1, 0, 1])
    """
    if any(length < 1 for length in lengths):
        raise ValueError(f"lengths is {list(lengths)}; wanted at least 1 each.")
    boundaries = torch.zeros(sum(lengths), dtype=torch.int64)
    boundaries[torch.tensor(lengths, dtype=torch.int64).cumsum(0) - 1] = 1
    return boundaries


def _sentence_rows(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, sample_weight: Tensor | None
) -> ClassRows:
    checks.check_floating("input", input)
    return token_rows(input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight)


def _positions(length: int, like: Tensor) -> Tensor:
    """Sines and cosines of places ``(length, width)``."""
    width = like.shape[-1]
    place = torch.arange(length, device=like.device, dtype=like.dtype).unsqueeze(1)
    speed = torch.exp(-math.log(10_000) * torch.arange(0, width, 2, device=like.device, dtype=like.dtype) / width)
    return torch.stack([(place * speed).sin(), (place * speed).cos()], -1).flatten(1)[:, :width]


def _windows(reference: Tensor, hypothesis: Tensor, window_size: int | None) -> tuple[Tensor, Tensor]:
    """Numbers of boundaries in every window of both."""
    r, h = _boundaries(reference, hypothesis)
    length, count = len(r), int(r.sum())
    if window_size is None:
        window_size = max(1, round(length / (2 * count) if count else length / 2))
    if isinstance(window_size, bool) or not isinstance(window_size, int) or not 1 <= window_size <= length:
        raise ValueError(f"window_size is {window_size!r}; wanted an integer from 1 to the length, {length}.")
    return r.unfold(0, window_size, 1).sum(1), h.unfold(0, window_size, 1).sum(1)


def _boundaries(*vectors: Tensor) -> list[Tensor]:
    for name, vector in zip(("reference", "hypothesis"), vectors, strict=False):
        if not isinstance(vector, Tensor):
            raise TypeError(f"{name} is {type(vector).__name__}; wanted a tensor.")
        if vector.ndim != 1 or vector.shape != vectors[0].shape:
            raise ValueError(f"{name} has shape {tuple(vector.shape)}; wanted (T,), both the same.")
        if ((vector != 0) & (vector != 1)).any():
            raise ValueError(f"{name} contains {vector[(vector != 0) & (vector != 1)][0]}; wanted 0 and 1.")
    return [vector.long() for vector in vectors]
