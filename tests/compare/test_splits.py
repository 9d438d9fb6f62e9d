"""Splits: disjoint, complete, stratified, and never through a group or between copies of a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossary.compare.load import Table, load_table
from lossary.compare.splits import Split, final_split, make_splits, row_units


def table(rows: int, classes: int = 3, *, copies: int = 1, groups: int | None = None, seed: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(rows, 2)), columns=["a", "b"])
    for start in range(0, rows - copies, copies):
        frame.iloc[start : start + copies] = frame.iloc[start].to_numpy()
    label = rng.permutation(np.arange(rows) % classes)
    frame["label"] = [f"class {value}" for value in label]
    if groups is not None:
        frame["who"] = rng.integers(0, groups, rows)
    return load_table(frame, "label", groups="who" if groups else None, folds=2)


def labels(several: int, rows: int = 300, seed: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(rows, 2)), columns=["a", "b"])
    names = [f"label {place}" for place in range(several)]
    for place, name in enumerate(names):
        frame[name] = rng.random(rows) < 0.6 / (1 + place)
    return load_table(frame, names, folds=5)


def check(split: Split, data: Table) -> None:
    everything = np.arange(len(data.target))
    np.testing.assert_array_equal(np.sort(np.concatenate([split.train, split.test])), everything)
    validated = []
    units = row_units(data)
    assert not set(units[split.train]) & set(units[split.test])
    for train, validation in split.inner:
        np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), split.train)
        assert not set(units[train]) & set(units[validation])
        validated.append(validation)
    if len(split.inner) == 3:
        np.testing.assert_array_equal(np.sort(np.concatenate(validated)), split.train)


@given(
    rows=st.integers(40, 150),
    classes=st.integers(2, 4),
    folds=st.integers(2, 5),
    seed=st.integers(0, 5),
)
def test_single_rows_are_dealt_evenly(rows: int, classes: int, folds: int, seed: int) -> None:
    data = table(rows, classes, seed=seed)
    splits = make_splits(data, folds=folds, repeats=2, seed=seed)
    assert [split.index for split in splits] == list(range(2 * folds))
    for split in splits:
        check(split, data)
    for repeat in range(2):
        counts = np.stack([np.bincount(data.target[s.test], minlength=classes) for s in splits if s.repeat == repeat])
        assert np.ptp(counts, axis=0).max() <= 1
        assert np.ptp(counts.sum(1)) <= 1


@pytest.mark.parametrize("options", [{"copies": 3}, {"groups": 30}])
def test_units_are_never_cut(options: dict[str, Any]) -> None:
    data = table(360, **options)
    for split in make_splits(data, folds=4, repeats=2, seed=0):
        check(split, data)
        assert 0.2 < len(split.test) / 360 < 0.3
        shares = np.bincount(data.target[split.test], minlength=3) / len(split.test)
        assert np.abs(shares - 1 / 3).max() < 0.1


def test_copies_with_other_labels_stay_together_too() -> None:
    data = table(200, copies=2)
    assert any(len(set(data.target[row_units(data) == unit])) > 1 for unit in range(50))
    for split in make_splits(data, folds=5, repeats=1, seed=0):
        check(split, data)


def test_groups_joined_by_a_copy_are_one_unit() -> None:
    frame = pd.DataFrame({"a": [0.0, 1, 1, 2, 3, 4, 5, 6] * 5, "label": [0, 1] * 20, "who": list(range(8)) * 5})
    frame.loc[8:, "a"] += np.arange(32) * 10
    data = load_table(frame, "label", groups="who", folds=2)
    units = row_units(data)
    assert units[1] == units[2] == units[9] == units[10]  # rows 1 and 2 are equal; 9 and 10 are of their groups
    assert units[0] != units[1]


def test_several_labels_are_stratified() -> None:
    data = labels(4)
    splits = make_splits(data, folds=5, repeats=1, seed=0)
    counts = np.stack([data.target[split.test].sum(0) for split in splits])
    assert np.ptp(counts, axis=0).max() <= 2
    for split in splits:
        check(split, data)


def test_three_inner_folds_under_a_thousand_rows() -> None:
    assert {len(split.inner) for split in make_splits(table(1200), folds=5, repeats=1, seed=0)} == {3}
    for split in make_splits(table(1300), folds=5, repeats=1, seed=0):
        ((train, validation),) = split.inner
        assert len(validation) / (len(train) + len(validation)) == pytest.approx(0.2, abs=0.01)


def test_repeats_and_seeds_differ_and_are_reproduced() -> None:
    data = table(100)

    def tests(seed: int) -> list[bytes]:
        return [split.test.tobytes() for split in make_splits(data, folds=2, repeats=2, seed=seed)]

    assert tests(0) == tests(0)
    assert len({*tests(0), *tests(1)}) == 8
    assert [s.test.tobytes() for s in make_splits(data, folds=2, repeats=1, seed=0)] == tests(0)[:2]


def test_splits_do_not_look_at_features() -> None:
    data = table(100)
    moved = load_table(pd.DataFrame(data.features * 7 + 1).assign(label=data.target), "label", folds=2)
    for one, other in zip(*(make_splits(d, folds=2, repeats=1, seed=3) for d in (data, moved)), strict=True):
        np.testing.assert_array_equal(one.test, other.test)
        np.testing.assert_array_equal(one.inner[0][0], other.inner[0][0])


def test_a_cap_thins_training_rows_in_proportion() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(4000, 2)), columns=["a", "b"])
    frame["label"] = np.where(np.arange(4000) < 40, "rare", np.where(np.arange(4000) < 1000, "some", "most"))
    data = load_table(frame, "label")
    for split in make_splits(data, folds=4, repeats=1, seed=0, row_cap=500):
        assert len(split.train) == 500
        assert len(split.test) == 1000
        counts: npt.NDArray[np.int64] = np.bincount(data.target[split.train])
        rare = data.class_names.index("rare")
        assert counts[rare] >= 8
        assert counts[data.class_names.index("most")] == pytest.approx(375, abs=8)
        np.testing.assert_array_equal(np.unique(np.concatenate([p for pair in split.inner for p in pair])), split.train)


def test_the_final_split_trains_on_everything() -> None:
    data = table(100)
    split = final_split(data, seed=0)
    assert (split.index, split.repeat, split.fold, len(split.test)) == (-1, -1, -1, 0)
    check(split, data)
