"""Measures of answers: by hand, at their ends, in batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary.retrieval import (
    answer_correctness,
    answer_relevance,
    context_precision,
    context_recall,
    faithfulness,
)

VERDICTS = st.lists(st.booleans(), min_size=1, max_size=8)


@given(VERDICTS)
def test_precision_by_hand(verdicts: list[bool]) -> None:
    value = context_precision(torch.tensor(verdicts)).item()
    hits = [sum(verdicts[: k + 1]) / (k + 1) for k in range(len(verdicts)) if verdicts[k]]
    assert value == pytest.approx(sum(hits) / len(hits) if hits else 0.0)
    if any(verdicts):
        first = torch.tensor(sorted(verdicts, reverse=True))
        assert context_precision(first) == 1
        assert value <= 1


@given(VERDICTS)
def test_shares(verdicts: list[bool]) -> None:
    share = sum(verdicts) / len(verdicts)
    for measure in (context_recall, faithfulness):
        assert measure(torch.tensor(verdicts)).item() == pytest.approx(share)
        both = measure(torch.tensor([verdicts, [not verdict for verdict in verdicts]]))
        torch.testing.assert_close(both, torch.tensor([share, 1 - share]))
        assert measure(torch.zeros(0)).isnan()


def test_relevance() -> None:
    question = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    generated = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [0.0, -5.0]]])
    torch.testing.assert_close(answer_relevance(question, generated), torch.tensor([0.5, -1.0]))
    with pytest.raises(ValueError, match="generated_question_embeddings has shape"):
        answer_relevance(question, generated[..., :1])


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.floats(0, 1))
def test_correctness(tp: int, fp: int, fn: int, similarity: float) -> None:
    f1 = tp / (tp + (fp + fn) / 2) if tp + fp + fn else 0.0
    assert answer_correctness(tp, fp, fn, similarity).item() == pytest.approx(0.75 * f1 + 0.25 * similarity, abs=1e-6)
    assert answer_correctness(tp, fp, fn, similarity, weights=(1, 0)).item() == pytest.approx(f1)
    assert answer_correctness(1, 0, 0, 1.0) == 1


def test_bad_verdicts_and_weights() -> None:
    with pytest.raises(ValueError, match=r"relevance is \[1, 0\]; wanted a tensor"):
        context_precision([1, 0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wanted at least one above 0"):
        answer_correctness(1, 0, 0, 1.0, weights=(0.0, 0.0))
