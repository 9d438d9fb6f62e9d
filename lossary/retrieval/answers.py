"""Measures of retrieval-augmented generation, from a judge's verdicts and from embeddings.

The verdicts (is this passage relevant, is this statement supported) come from people or from a language model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.checks import check_in_range
from lossary.core.values import widened


def context_precision(relevance: Tensor) -> Tensor:
    r"""Whether the relevant passages come first: mean precision at the ranks of relevant ones.

    Formula:
        .. math:: \frac{\sum_k r_k\, P@k}{\sum_k r_k}, \quad P@k = \frac{1}{k} \sum_{j \le k} r_j

    Args:
        relevance: Verdicts r on the passages in the order of their ranks ``(..., K)``: bool, or 0 and 1.

    Returns:
        ``(...)``; 0 where nothing is relevant.

    Raises:
        ValueError: The shape is ``()``.

    Example:
        >>> context_precision(torch.tensor([1, 0, 1]))
        tensor(0.8333)

    Source:
        Terven et al.: Loss Functions and Metrics in Deep Learning (arXiv 2307.02694), retrieval-augmented generation;
        Es et al.: RAGAS (2023, arXiv 2309.15217).
    """
    r = _verdicts("relevance", relevance)
    rank = torch.arange(1, r.shape[-1] + 1, dtype=r.dtype, device=r.device)
    return (r * r.cumsum(-1) / rank).sum(-1) / r.sum(-1).clamp(min=1)


def context_recall(supported: Tensor) -> Tensor:
    """Share of the reference answer's statements that the retrieved passages support.

    Args:
        supported: Verdicts on the statements ``(..., K)``: bool, or 0 and 1.

    Returns:
        ``(...)``; NaN without statements.

    Raises:
        ValueError: The shape is ``()``.

    Example:
        >>> context_recall(torch.tensor([True, True, False, True]))
        tensor(0.7500)

    Source:
        Terven et al. (arXiv 2307.02694), retrieval-augmented generation; Es et al. (2023, arXiv 2309.15217).
    """
    return _verdicts("supported", supported).mean(-1)


def faithfulness(supported: Tensor) -> Tensor:
    """Share of the given answer's statements that the retrieved passages support.

    Args:
        supported: Verdicts on the statements ``(..., K)``: bool, or 0 and 1.

    Returns:
        ``(...)``; NaN without statements.

    Raises:
        ValueError: The shape is ``()``.

    Example:
        >>> faithfulness(torch.tensor([True, False]))
        tensor(0.5000)

    Source:
        Terven et al. (arXiv 2307.02694), retrieval-augmented generation; Es et al. (2023, arXiv 2309.15217).
    """
    return _verdicts("supported", supported).mean(-1)


def answer_relevance(question_embedding: Tensor, generated_question_embeddings: Tensor) -> Tensor:
    r"""Whether an answer speaks to the question: mean cosine with questions that were generated from the answer.

    Formula:
        .. math:: \frac{1}{G} \sum_g \cos(q, \hat q_g)

    Args:
        question_embedding: Embedding of the question ``(..., D)``.
        generated_question_embeddings: Embeddings of the generated ones ``(..., G, D)``.

    Returns:
        ``(...)``, in [-1, 1].

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape is wrong.

    Example:
        >>> answer_relevance(torch.tensor([1.0, 0.0]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor(0.5000)

    Source:
        Terven et al. (arXiv 2307.02694), retrieval-augmented generation; Es et al. (2023, arXiv 2309.15217).
    """
    question, generated = widened(
        question_embedding=question_embedding, generated_question_embeddings=generated_question_embeddings
    )
    if generated.ndim != question.ndim + 1 or generated.shape[:-2] + generated.shape[-1:] != question.shape:
        raise ValueError(
            f"generated_question_embeddings has shape {tuple(generated.shape)}; wanted (..., G, D) for a "
            f"question_embedding of {tuple(question.shape)}."
        )
    return F.cosine_similarity(question.unsqueeze(-2), generated, dim=-1).mean(-1)


def answer_correctness(
    tp: Tensor | float,
    fp: Tensor | float,
    fn: Tensor | float,
    similarity: Tensor | float,
    *,
    weights: tuple[float, float] = (0.75, 0.25),
) -> Tensor:
    r"""Agreement of an answer with the reference: F1 of its statements mixed with similarity of meaning.

    Formula:
        .. math:: \frac{w_1 F_1 + w_2 s}{w_1 + w_2}, \quad F_1 = \frac{TP}{TP + (FP + FN) / 2}

    Args:
        tp: Number of statements in both.
        fp: Number in the answer alone.
        fn: Number in the reference alone.
        similarity: The s, of their embeddings, in [0, 1].
        weights: The two weights, not both 0.

    Returns:
        The common shape of the arguments; F1 is 0 without any statement.

    Raises:
        ValueError: A weight is negative, or both are 0.

    Example:
        >>> answer_correctness(2, 1, 1, 0.8)
        tensor(0.7000)

    Source:
        Terven et al. (arXiv 2307.02694), retrieval-augmented generation; the weights are those of the RAGAS package.
    """
    for weight in weights:
        check_in_range("weights", weight, 0.0)
    if sum(weights) == 0:
        raise ValueError(f"weights is {weights}; wanted at least one above 0.")
    dtype = similarity.dtype if isinstance(similarity, Tensor) else torch.get_default_dtype()
    true, extra, missing, alike = (torch.as_tensor(number, dtype=dtype) for number in (tp, fp, fn, similarity))
    size = true + (extra + missing) / 2
    f1 = torch.where(size == 0, 0.0, true / torch.where(size == 0, 1.0, size))
    return (weights[0] * f1 + weights[1] * alike) / sum(weights)


def _verdicts(name: str, verdicts: Tensor) -> Tensor:
    if not isinstance(verdicts, Tensor) or verdicts.ndim == 0:
        raise ValueError(f"{name} is {verdicts!r}; wanted a tensor (..., K).")
    return verdicts if verdicts.is_floating_point() else verdicts.to(torch.get_default_dtype())
