"""Input that cannot be used: one or two lines that say what came and how to mend it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lossary.compare.load import Table, load_table, table_from_arrays
from lossary.compare.splits import final_split, make_splits
from lossary.core.errors import UserError

ROWS = 60


def good() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "height": rng.normal(size=ROWS).round(3),
            "colour": rng.choice(["red", "green", "blue"], size=ROWS),
            "speaker": np.arange(ROWS) % 12,
            "hit": np.arange(ROWS) % 2,
            "yes": np.where(np.arange(ROWS) % 3 == 0, "no", "yes"),
            "kind": np.array(["a", "b", "c"])[np.arange(ROWS) % 3],
        }
    )


def csv(frame: pd.DataFrame, folder: Path, **options: Any) -> Path:
    path = folder / "table.csv"
    frame.to_csv(path, index=False, **options)
    return path


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def with_values(column: str, values: Any) -> pd.DataFrame:
    frame = good()
    frame[column] = values
    return frame


def some_replaced(column: str, value: Any, rows: list[int]) -> pd.DataFrame:
    frame = good().astype({column: object})
    frame.loc[rows, column] = value
    return frame


CASES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    # Files
    "missing file": (lambda d: load_table(csv(good(), d).with_name("tabel.csv"), "hit"), ["no file", "table.csv"]),
    "missing name": (lambda d: load_table("breast_cancr", "hit"), ["neither a file", "breast_cancer"]),
    "folder": (lambda d: load_table(d, "hit"), ["is a folder", ".csv"]),
    "unknown suffix": (lambda d: load_table(write(d, "table.dat", "a,b\n1,2\n"), "b"), [".parquet", "Convert"]),
    "spreadsheet": (lambda d: load_table(write(d, "table.xlsx", b"PK"), "b"), ["Save the sheet as CSV"]),
    "empty file": (lambda d: load_table(write(d, "table.csv", ""), "b"), ["is empty", "wanted"]),
    "blank file": (lambda d: load_table(write(d, "table.csv", " \n\n"), "b"), ["is blank", "wanted"]),
    "names only": (lambda d: load_table(write(d, "table.csv", "a,b\n"), "b"), ["no rows", "wanted"]),
    "latin-1": (
        lambda d: load_table(write(d, "table.csv", "a,b\n1,2\nMünchen,3\n".encode("latin1")), "b"),
        ["not UTF-8", "byte 9 (line 3)", "0xFC", "iconv"],
    ),
    "utf-16": (lambda d: load_table(write(d, "t.csv", "a,b\n1,2\n".encode("utf-16")), "b"), ["iconv -f utf-16"]),
    "binary file": (lambda d: load_table(write(d, "t.csv", b"a,b\n\0\0,1\n"), "b"), ["zero bytes", "suffix"]),
    "long row": (
        lambda d: load_table(write(d, "t.csv", "a,b\n1,2\n3,4\n1,2,3\n"), "b"),
        ["Line 4", "3 fields", "Mend"],
    ),
    "short row": (lambda d: load_table(write(d, "t.csv", "a,b\n1,2\n3\n"), "b"), ["Line 3", "1 fields", "Mend"]),
    "unclosed quote": (lambda d: load_table(write(d, "t.csv", 'a,b\n1,2\n"3,4\n5,6\n'), "b"), ["Line 3", "quote"]),
    "broken gzip": (
        lambda d: load_table(write(d, "t.csv.gz", gzip.compress(b"a,b\n1,2\n" * 99)[:-20]), "b"),
        ["cannot be unpacked", "Get it anew"],
    ),
    "broken JSON": (
        lambda d: load_table(write(d, "t.jsonl", '{"a": 1, "b": 2}\n\n{"a": 1,\n'), "b"),
        ["Line 3", "not JSON", "one JSON object"],
    ),
    "JSON without names": (lambda d: load_table(write(d, "t.jsonl", "[1, 2]\n"), "b"), ["Line 1", "wanted an object"]),
    "broken Parquet": (lambda d: load_table(write(d, "t.parquet", b"PAR1 and so on"), "b"), ["damaged", "Parquet"]),
    "broken Feather": (lambda d: load_table(write(d, "t.feather", b"what is this?"), "b"), ["damaged", "Feather"]),
    "names twice": (
        lambda d: load_table(write(d, "t.csv", "a,b,a\n1,2,3\n"), "b"),
        ["2 columns called 'a'", "0, 2", "of its own"],
    ),
    "names twice in a frame": (lambda d: load_table(pd.concat([good(), good()], axis=1), "hit"), ["of its own"]),
    # Which columns
    "no target": (lambda d: load_table(csv(good(), d), ()), ["Which column", "--target NAME", "'height'"]),
    "unknown target": (lambda d: load_table(csv(good(), d), "Hits"), ["no column 'Hits'", "'hit'"]),
    "unlike any name": (lambda d: load_table(csv(good(), d), "qqq"), ["no column 'qqq'", "The columns are 'height'"]),
    "first row is data": (
        lambda d: load_table(csv(good(), d, header=False), "hit"),
        ["first row is data", "column_0 to column_5", "--target -1"],
    ),
    "number too large": (lambda d: load_table(csv(good(), d), "6"), ["--target 6", "0 to 5"]),
    "unknown groups": (lambda d: load_table(good(), "hit", groups="Speakers"), ["--groups", "'speaker'"]),
    "target as groups": (lambda d: load_table(good(), "hit", groups="hit"), ["both the target and the groups"]),
    "target twice": (lambda d: load_table(good(), ["hit", "-3"]), ["twice"]),
    "target alone": (lambda d: load_table(good()[["hit"]], "hit"), ["no column beside 'hit'", "at least one feature"]),
    "unknown separator": (
        lambda d: load_table(write(d, "t.csv", "a b\n" + "1 2\n" * 30 + "2 1\n" * 30), "0"),
        ["no column beside", "separated by commas"],
    ),
    # Targets
    "single class": (lambda d: load_table(with_values("hit", 1), "hit"), ["single class", "wanted two"]),
    "target without values": (lambda d: load_table(with_values("hit", None), "hit"), ["No row has a value", "another"]),
    "continuous": (lambda d: load_table(good(), "height"), ["continuous", "--task multiclass"]),
    "continuous integers": (
        lambda d: load_table(with_values("hit", np.arange(ROWS) * 7), "hit"),
        ["continuous", "60 different numbers", "qcut"],
    ),
    "names as classes": (
        lambda d: load_table(with_values("hit", [f"row {i}" for i in range(ROWS)]), "hit"),
        ["60 different words", "is another column meant"],
    ),
    "one rare class": (
        lambda d: load_table(some_replaced("kind", "d", [0, 1, 2, 3, 4, 5]), "kind"),
        ["'d' has 6", "fewer than 10 rows", "--folds 3", "leave its rows out"],
    ),
    "rare classes": (
        lambda d: load_table(with_values("kind", ["a"] * 40 + ["b"] * 8 + ["c"] * 9 + ["d"] * 3), "kind"),
        ["'d' has 3, 'b' has 8, 'c' has 9", "--merge-rare 10"],
    ),
    "rare when merged": (
        lambda d: load_table(with_values("kind", ["a"] * 55 + ["b"] * 3 + ["c"] * 2), "kind", merge_rare=5),
        ["'other (merged)' has 5", "--folds 2"],
    ),
    "all merged": (lambda d: load_table(good(), "kind", merge_rare=21), ["--merge-rare 21 merges all 3", "Lower it"]),
    "three classes called binary": (lambda d: load_table(good(), "kind", task="binary"), ["--task multiclass"]),
    "several called binary": (lambda d: load_table(good(), ["hit", "yes"], task="binary"), ["--task multilabel"]),
    "labels not yes or no": (lambda d: load_table(good(), ["hit", "kind"]), ["'kind' holds 'a' (row 1)", "yes/no"]),
    "constant label": (
        lambda d: load_table(with_values("hit", 0), ["hit", "yes"]),
        ["'hit' is 0 in every row", "Leave it out"],
    ),
    "rare label": (
        lambda d: load_table(with_values("hit", [1] * 5 + [0] * 55), ["hit", "yes"]),
        ["'hit' is yes in 5 rows", "--folds 2"],
    ),
    "label nearly everywhere": (
        lambda d: load_table(with_values("hit", [0] + [1] * 59), ["hit", "yes"]),
        ["no in 1 row"],
    ),
    # Features
    "one row": (lambda d: load_table(good().iloc[:1], "hit"), ["1 row;", "wanted"]),
    "no values": (
        lambda d: load_table(csv(with_values("height", ["NA", "?", ""] * 20), d), "hit"),
        ["'height' has no values", "Remove it"],
    ),
    "numbers and words": (
        lambda d: load_table(csv(some_replaced("height", "oops", [3, 9]), d), "hit"),
        ["'height' mixes numbers with words", "'oops' (row 4)", "2 of 60", "empty"],
    ),
    "numbers with units": (
        lambda d: load_table(csv(some_replaced("height", "12kg", [3]), d), "hit"),
        ["'12kg' (row 4)", "empty"],
    ),
    "infinite": (lambda d: load_table(some_replaced("height", np.inf, [3]), "hit"), ["1 infinite value", "empty"]),
    "infinite in a file": (
        lambda d: load_table(csv(some_replaced("height", "-inf", [3, 5]), d), "hit"),
        ["'height' has 2 infinite values", "empty"],
    ),
    "decimal commas": (
        lambda d: load_table(csv(good(), d, sep=";", decimal=","), "hit"),
        ["'height'", "decimal comma", "point"],
    ),
    "day first": (
        lambda d: load_table(with_values("height", [f"{day % 28 + 1}/11/2020" for day in range(ROWS)]), "hit"),
        ["'height'", "day first", "2016-12-31"],
    ),
    "lists": (lambda d: load_table(with_values("height", [[1, 2]] * ROWS), "hit"), ["list values", "Remove it"]),
    "bytes": (lambda d: load_table(with_values("height", [b"jpeg"] * ROWS), "hit"), ["bytes values", "Remove it"]),
    "complex numbers": (lambda d: load_table(with_values("height", 1j), "hit"), ["complex", "two columns"]),
    # Arrays
    "too few labels": (
        lambda d: table_from_arrays(np.ones((4, 2)), np.ones(3)),
        ["y has 3 rows and X has 4", "one for each row"],
    ),
    "too few groups given": (
        lambda d: table_from_arrays(np.ones((4, 2)), np.ones(4), groups=[1]),
        ["groups has 1 rows", "one for each row"],
    ),
    "flat features": (lambda d: table_from_arrays(np.ones(4), np.ones(4)), ["shape (4,)", "(rows, columns)"]),
    # Splits
    "few groups": (lambda d: load_table(good().assign(speaker=good()["hit"]), "kind", groups="speaker"), ["2 groups"]),
    "class in two groups": (
        lambda d: splits(
            load_table(some_replaced("kind", "d", list(range(0, 60, 12)) * 2), "kind", groups="speaker", folds=2)
        ),
        ["'d'", "1 groups", "another --groups"],
    ),
    "equal features": (
        lambda d: splits(load_table(good()[["hit", "yes"]], "yes")),
        ["only 2 kinds of rows", "Add features"],
    ),
}  # fmt: skip


def splits(table: Table) -> None:
    make_splits(table, folds=5, repeats=1, seed=0)


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 25


@pytest.mark.parametrize("case", CASES)
def test_the_message_says_what_and_how_to_mend_it(case: str, tmp_path: Path) -> None:
    act, said = CASES[case]
    with pytest.raises(UserError) as caught:
        act(tmp_path)
    message = str(caught.value)
    lines = message.splitlines()
    assert 1 <= len(lines) <= 2
    assert max(map(len, lines)) <= 240
    for part in said:
        assert part in message


def test_the_good_table_loads_and_splits(tmp_path: Path) -> None:
    """What the cases above break is good otherwise."""
    for target in ("hit", "yes", "kind", ["hit", "yes"]):
        table = load_table(csv(good(), tmp_path), target)
        make_splits(table, folds=5, repeats=1, seed=0)
        final_split(table, seed=0)
    assert load_table(good(), "hit", groups="speaker").groups is not None
