"""What a table is read as: tasks, kinds of columns, targets by name and number, and what is warned of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lossary.compare.load import load_table, table_from_arrays
from lossary.compare.preprocess import column_kind
from tests.compare.conftest import small_frame

ROWS = 120


def frame(**columns: Any) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    base = {"x": rng.normal(size=ROWS).round(4), "z": rng.normal(size=ROWS).round(4), "y": np.arange(ROWS) % 2}
    return pd.DataFrame(base | columns)


def warned(data: pd.DataFrame, target: str = "y", **options: Any) -> str:
    return "\n".join(load_table(data, target, **options).warnings)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".jsonl", ".parquet", ".feather"])
def test_every_format_gives_the_same_table(suffix: str, tmp_path: Path) -> None:
    data = small_frame()
    data = data.assign(**data.select_dtypes("number").round(4))
    path = tmp_path / f"table{suffix}"
    if suffix.startswith((".csv", ".tsv")):
        data.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    elif suffix == ".jsonl":
        data.to_json(path, orient="records", lines=True, date_format="iso")
    else:
        getattr(data, f"to_{suffix[1:]}")(path)
    table, expected = load_table(path, "label"), load_table(data, "label")
    assert table.name == "table"
    pd.testing.assert_frame_equal(table.features, expected.features)
    np.testing.assert_array_equal(table.target, expected.target)
    assert table.fingerprint == expected.fingerprint


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(separator: str, tmp_path: Path) -> None:
    data = frame()
    data.to_csv(tmp_path / "t.csv", sep=separator, index=False)
    assert load_table(tmp_path / "t.csv", "y").fingerprint == load_table(data, "y").fingerprint


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "t.csv", index=False, encoding="utf-8-sig")
    assert list(load_table(tmp_path / "t.csv", "y").features) == ["x", "z"]


def test_a_file_without_names_takes_columns_by_number(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "t.csv", index=False, header=False)
    table = load_table(tmp_path / "t.csv", "-1")
    assert table.target_names == ("column_2",)
    assert list(table.features) == ["column_0", "column_1"]
    assert "no column names" in table.warnings[0]


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        ([0, 1], "binary", (0, 1)),
        ([1.0, 2.0], "binary", (1, 2)),
        (["no", "yes"], "binary", ("no", "yes")),
        ([True, False], "binary", (False, True)),
        (["a", "b", "c"], "multiclass", ("a", "b", "c")),
        ([3, 1, 2], "multiclass", (1, 2, 3)),
        (["10", "9", "8"], "multiclass", (8, 9, 10)),
    ],
)
def test_tasks_and_the_order_of_classes(values: list[Any], task: str, classes: tuple[Any, ...]) -> None:
    labels = [values[i % len(values)] for i in range(ROWS)]
    table = load_table(frame(y=labels), "y")
    assert table.task == task
    assert tuple(map(str, table.classes)) == tuple(map(str, classes))
    assert table.num_outputs == len(classes)
    assert [str(table.classes[code]) for code in table.target[:6]] == [
        str(int(v) if isinstance(v, float) else v) for v in labels[:6]
    ]


def test_several_targets_are_a_multilabel_task() -> None:
    table = load_table(frame(second=["yes", "no", "no"] * (ROWS // 3)), ["y", "second"])
    assert table.task == "multilabel"
    assert table.class_names == ("y", "second")
    assert table.target.dtype == np.float32
    np.testing.assert_array_equal(table.target[:3], [[0, 1], [1, 0], [0, 0]])


def test_labels_are_the_same_in_a_file_and_in_memory(tmp_path: Path) -> None:
    data = frame(y=["01", "1", "1.5"] * (ROWS // 3))
    data.to_csv(tmp_path / "t.csv", index=False)
    assert load_table(tmp_path / "t.csv", "y", task="multiclass").num_outputs == load_table(data, "y").num_outputs


def test_rows_without_a_target_are_left_out_and_said() -> None:
    labels = np.where(np.arange(ROWS) < 7, np.nan, np.arange(ROWS) % 2)
    table = load_table(frame(y=labels), "y")
    assert len(table.target) == len(table.features) == ROWS - 7
    assert "7 of 120 rows have no target" in table.warnings[0]


def test_rare_classes_are_merged() -> None:
    table = load_table(frame(y=["a"] * 60 + ["b"] * 40 + ["c"] * 12 + ["d"] * 8), "y", merge_rare=13)
    assert np.bincount(table.target).tolist() == [60, 40, 20]
    assert table.class_names[2] == "other (merged)"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "2.5", "NA", "?"], "number"),
        (["1", "2.5", "None", "-"], "number"),
        (["red", "green", "None", ""], "category"),
        ([True, False, None], "category"),
        ([1, 2, 3], "number"),
        (["2020-01-01", "2020-12-31 10:00", ""], "date"),
        (["31.12.2020", "1.1.2021"], "date"),
        (["12/31/2020", "1/13/2021"], "date"),
        (["A1", "B2", "7"], "category"),
        (pd.Categorical(["1", "2", "3"]), "category"),
    ],
)
def test_kinds_of_columns(values: Any, kind: str) -> None:
    column = pd.Series(values)
    column = column.iloc[np.arange(ROWS) % len(column)].reset_index(drop=True)
    table = load_table(frame(x=column), "y")
    assert column_kind(table.features["x"]) == kind


def test_missing_words_in_a_file_are_missing(tmp_path: Path) -> None:
    data = frame(x=[["1.5", "NA", "?", "", "null", "2"][i % 6] for i in range(ROWS)])
    data.to_csv(tmp_path / "t.csv", index=False)
    assert load_table(tmp_path / "t.csv", "y").features["x"].isna().mean() == pytest.approx(4 / 6)


def test_what_would_spoil_the_answer_is_said() -> None:
    labels = np.arange(ROWS) % 2
    assert warned(frame()) == ""
    assert "'row' has a different value in every row" in warned(frame(row=np.arange(ROWS) * 3))
    assert "'same' has the same value" in warned(frame(same=1.0))
    assert "alone predicts the target" in warned(frame(leak=labels * 2.0 + np.linspace(0, 0.5, ROWS)))
    assert "--groups patient_id" in warned(frame(patient_id=np.arange(ROWS) // 2))
    doubled = pd.concat([frame().iloc[:90], frame().iloc[:30]])
    assert "60 of 120 rows have the same features" in warned(doubled)
    rng = np.random.default_rng(0)
    wide = pd.DataFrame(rng.normal(size=(ROWS, 6)), columns=list("abcdef")).assign(y=labels)
    near = pd.concat([wide, wide.iloc[:40].assign(a=lambda d: d["a"] + 1e-9)])
    assert "nearly equal" in warned(near)
    assert "nearly equal" not in warned(wide)


def test_groups_are_no_feature() -> None:
    table = load_table(frame(who=np.arange(ROWS) // 4), "y", groups="who")
    assert "who" not in table.features
    assert table.groups is not None
    assert len(np.unique(table.groups)) == ROWS // 4
    lonely = load_table(frame(who=[None] * 20 + list(range(20)) * 5), "y", groups="who")
    assert lonely.groups is not None
    assert len(np.unique(lonely.groups)) == 40


def test_arrays_frames_and_lists_agree() -> None:
    data = frame()
    X, y = data[["x", "z"]], data["y"]
    tables = [
        table_from_arrays(X.to_numpy(), y.to_numpy()),
        table_from_arrays(X.to_numpy().tolist(), y.tolist()),
        table_from_arrays(X, y),
        load_table(data, "y"),
    ]
    for table in tables:
        np.testing.assert_array_equal(table.features.to_numpy(), X.to_numpy())
        np.testing.assert_array_equal(table.target, y)
    assert tables[0].fingerprint == tables[1].fingerprint
    assert tables[2].fingerprint == tables[3].fingerprint


def test_bundled_sets_have_a_usual_target() -> None:
    table = load_table("breast_cancer")
    assert table.task == "binary"
    assert table.features.shape == (569, 30)
    assert load_table("breast-cancer").fingerprint == table.fingerprint


def test_the_fingerprint_sees_values_names_and_labels() -> None:
    prints = {
        load_table(data, "y").fingerprint
        for data in (
            frame(),
            frame().rename(columns={"x": "w"}),
            frame().assign(x=lambda d: d["x"] + 1e-6),
            frame().assign(y=lambda d: 1 - d["y"]),
            frame().iloc[::-1],
        )
    }
    assert len(prints) == 5
    assert load_table(frame(), "y").fingerprint in prints


def test_a_json_line_may_leave_out_what_is_missing(tmp_path: Path) -> None:
    lines = [{"x": i / 7, "y": i % 2} | ({"z": 1.0 * i} if i % 3 else {}) for i in range(ROWS)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    table = load_table(tmp_path / "t.jsonl", "y")
    assert table.features["z"].isna().sum() == ROWS // 3
