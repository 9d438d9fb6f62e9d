"""Retrieval: measures of answers that a model gives from what it has found."""

from __future__ import annotations

from lossary.retrieval.answers import (
    answer_correctness,
    answer_relevance,
    context_precision,
    context_recall,
    faithfulness,
)

__all__ = ["answer_correctness", "answer_relevance", "context_precision", "context_recall", "faithfulness"]
