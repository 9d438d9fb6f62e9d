"""Every published data set, from the folder LOSSARY_DATA."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest

from lossary.core.errors import UserError
from lossary.datasets import decode_audio, decode_images, describe, load, names, path

pytestmark = pytest.mark.skipif(
    not os.environ.get("LOSSARY_DATA"), reason="LOSSARY_DATA names no folder with the published files"
)
PUBLISHED = [name for name in names() if describe(name).origin == "download"]


@pytest.mark.parametrize(
    "name", [name for name in PUBLISHED if describe(name).kind not in ("images", "audio", "model")]
)
def test_it_loads_as_described(name: str) -> None:
    entry, data = describe(name), load(name)
    assert len(data.frame) == entry.rows
    assert data.frame.columns.is_unique
    assert not any(str(column).startswith("Unnamed") for column in data.frame.columns)
    assert data.target is None or data.frame[data.target].notna().all()
    assert all(path(name, file.name).is_file() for file in entry.files)


# Class sizes as the documentation of each table states them: they show that no row became a header, and no column
# of a table without header got its neighbour's name.
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("adult", {"<=50K": 24720, ">50K": 7841}),
        ("banknote", {0: 762, 1: 610}),
        ("ecoli", {"cp": 143, "im": 77, "pp": 52, "imU": 35, "om": 20, "omL": 5, "imL": 2, "imS": 2}),
        ("german", {1: 700, 2: 300}),
        ("glass", {1: 70, 2: 76, 3: 17, 5: 13, 6: 9, 7: 29}),
        ("ionosphere", {"g": 225, "b": 126}),
        ("mammography", {-1: 10923, 1: 260}),
        ("oil_spill", {0: 896, 1: 41}),
        ("phoneme", {0: 3818, 1: 1586}),
        ("pima", {0: 500, 1: 268}),
        ("review_polarity", {"neg": 1000, "pos": 1000}),
        ("sonar", {"M": 111, "R": 97}),
        ("winequality_white", {3: 20, 4: 163, 5: 1457, 6: 2198, 7: 880, 8: 175, 9: 5}),
    ],
)
def test_class_sizes_are_the_published_ones(name: str, sizes: dict[object, int]) -> None:
    data = load(name)
    assert Counter(data.frame[data.target]) == sizes


@pytest.mark.parametrize(
    ("name", "column", "low", "high"),
    [
        ("abalone", "shell_weight", 0.0015, 1.005),
        ("german", "age", 19, 75),
        ("german", "amount", 250, 18424),
        ("glass", "RI", 1.5112, 1.5339),
        ("pima", "age", 21, 81),
        ("winequality_white", "alcohol", 8.0, 14.2),
    ],
)
def test_columns_have_their_documented_ranges(name: str, column: str, low: float, high: float) -> None:
    values = load(name).frame[column]
    assert (values.min(), values.max()) == pytest.approx((low, high), abs=1e-3)


def test_missing_values_are_missing() -> None:
    assert load("adult").frame["workclass"].isna().sum() == 1836


def test_series_have_dates() -> None:
    for name in (name for name in PUBLISHED if describe(name).kind == "series"):
        dates = load(name).frame.iloc[:, 0]
        assert dates.dtype.kind == "M"
        assert dates.is_monotonic_increasing


def test_cranfield_parts_fit_together() -> None:
    documents, queries, relevance = (load(name).frame for name in names() if name.startswith("cranfield"))
    assert documents["docno"].tolist() == list(range(1, 1401))
    assert set(relevance["docno"]) <= set(documents["docno"])
    assert set(relevance["query"]) == set(queries["query"])
    assert queries["number"].iloc[-1] == 365
    assert queries["text"].iloc[0].startswith("what similarity laws must be obeyed")


def test_movielens_parts_fit_together() -> None:
    ratings, films, users = (load(name).frame for name in names() if name.startswith("movielens"))
    assert set(ratings["item_id"]) == set(films["item_id"])
    assert set(ratings["user_id"]) == set(users["user_id"])
    assert set(ratings["rating"]) == {1, 2, 3, 4, 5}


def test_english_trees_have_one_root_a_sentence() -> None:
    frame = load("english_trees").frame
    assert set(frame["split"]) == {"dev", "test"}
    assert (frame["deprel"] == "root").sum() == frame["sentence"].nunique() == 2001 + 2077


def test_tinyshakespeare_is_whole() -> None:
    frame = load("tinyshakespeare").frame
    words = [word for speaker, speech in frame.itertuples(index=False) for word in f"{speaker}: {speech}".split()]
    assert words == path("tinyshakespeare").read_text().split()
    assert not frame["speaker"].str.contains(":").any()


def test_cifar10() -> None:
    frame = load("cifar10").frame
    assert Counter(zip(frame["split"], frame["label"], strict=True)) == {
        **{("train", label): 5000 for label in range(10)},
        **{("test", label): 1000 for label in range(10)},
    }
    images = decode_images(frame["image"].iloc[[0, 30_000, -1]])
    assert images.shape == (3, 32, 32, 3)
    assert images.std() > 10


def test_spoken_digits() -> None:
    frame = load("spoken_digits").frame
    assert Counter(frame["digit"]) == {digit: 300 for digit in range(10)}
    assert frame["speaker"].nunique() == 6
    recordings = decode_audio(frame["wav"].iloc[:20])
    assert all(500 < len(recording) < 20_000 for recording in recordings)
    assert np.abs(recordings[0]).max() > 1000


def test_topomortar() -> None:
    frame = load("topomortar").frame
    assert frame["split"].value_counts().to_dict() == {"train": 50, "val": 20, "test": 117}
    assert set(frame.loc[frame["split"] != "test", "group"]) == {"indistr"}
    assert frame["group"].notna().all()
    assert decode_images(frame["image"].iloc[:2]).shape == (2, 256, 256, 3)
    for mask in ("accurate", "noisy", "pseudo"):
        assert set(np.unique(decode_images(frame[mask].dropna().iloc[:2]))) <= {0, 1, 255}


def test_smollm2() -> None:
    pytest.importorskip("gguf", reason="gguf is not installed: the GGUF file of SmolLM2 was not read")
    try:
        frame = load("smollm2").frame
    except UserError as missing:
        pytest.skip(f"SmolLM2 is not there: {missing}")
    assert len(frame) == describe("smollm2").rows
    assert Counter(frame["type"]) == {"Q4_1": 210, "Q8_0": 1, "F32": 61}
    assert frame.set_index("tensor").at["token_embd.weight", "shape"] == (49152, 576)
