"""What is to be predicted: labels, classes and their codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lossary.compare.options import Task
from lossary.compare.preprocess import column_kind, read_numbers, to_kind
from lossary.core.errors import UserError

MERGED = "other (merged)"
"""The class that ``merge_rare`` makes."""

_YES, _NO = {"1", "yes", "true", "y", "t"}, {"0", "no", "false", "n", "f"}


@dataclasses.dataclass(frozen=True)
class Target:
    """Labels as numbers.

    Attributes:
        codes: Class codes (n,) int64; multi-label 0 and 1 (n, L) float32.
        classes: Labels in the order of the codes; multi-label the names of the columns.
        task: The task.
    """

    codes: npt.NDArray[Any]
    classes: tuple[Any, ...]
    task: Task


def read_labels(column: pd.Series[Any]) -> pd.Series[Any]:
    """Labels as Python objects, None where missing: all of one type among int, float, bool and str.

    Whole floats are integers, which they become in a column that has gaps. Text is numbers only if that is how the
    numbers are written, so that predictions are written as the labels were.
    """
    if pd.api.types.is_bool_dtype(column.dtype):
        values = [None if pd.isna(value) else bool(value) for value in column]
    elif column_kind(column) == "number":
        values = _numbers(column.to_numpy(np.float64, na_value=np.nan))
    else:
        words = to_kind(column, "category")
        known = pd.Series(words.dropna().unique(), dtype=object)
        numbers = read_numbers(known)
        if all(isinstance(value, bool) for value in column.dropna()):
            return read_labels(column.astype("boolean"))
        if len(known) and (known == numbers.map(_shortest)).all():
            values = _numbers(read_numbers(words).to_numpy())
        else:
            values = [None if pd.isna(word) else word for word in words]
    return pd.Series(values, index=column.index, name=column.name, dtype=object)


def make_target(labels: pd.DataFrame, *, task: str = "auto", merge_rare: int | None = None, folds: int = 5) -> Target:
    """Find the task, the classes and the codes of complete labels.

    Args:
        labels: Columns of :func:`read_labels` without missing values; several make a multi-label task.
        task: ``auto``, or the task as the user sees it.
        merge_rare: Merge classes with fewer rows than this into one.
        folds: Outer folds: each class must have twice as many rows.

    Raises:
        UserError: The labels are continuous, constant, of too many or too rare classes, or not yes/no where they
            must be.
    """
    if labels.shape[1] > 1 or task == "multilabel":
        if task not in ("auto", "multilabel"):
            raise UserError(
                f"--task {task} wants one target column; {labels.shape[1]} are given. Use --task multilabel."
            )
        columns = [_indicator(labels[name], folds) for name in labels]
        return Target(np.stack(columns, axis=1), tuple(map(str, labels)), "multilabel")
    column = labels.iloc[:, 0]
    if task == "auto":
        _refuse_continuous(column)
    if merge_rare is not None:
        column = _merged(column, merge_rare)
    counts = column.value_counts()
    _refuse_rare(column, counts, folds, merge_rare)
    if task == "binary" and len(counts) > 2:
        raise UserError(
            f"--task binary: the target {str(column.name)!r} has {len(counts)} classes. Use --task multiclass."
        )
    classes = sorted(set(counts.index) - {MERGED}) + [MERGED] * (MERGED in counts.index)
    codes = column.map({label: code for code, label in enumerate(classes)}).to_numpy(np.int64)
    kind: Task = "binary" if len(classes) == 2 and task != "multiclass" else "multiclass"
    return Target(codes, tuple(classes), kind)


def label_codes(frame: pd.DataFrame, targets: Sequence[str], classes: Sequence[Any], task: Task) -> npt.NDArray[Any]:
    """Codes of the labels of new rows: (n,) int64, multi-label 0 and 1 (n, L) float32.

    A label that training did not have goes to the class of merged ones, if there is one.

    Args:
        frame: As read; the target columns have no missing values.
        targets: Names of the target columns.
        classes: Classes of :class:`Target`.
        task: The task.

    Raises:
        UserError: A label is unknown.
    """
    if task == "multilabel":
        return np.stack([_yes_or_no(read_labels(frame[name])) for name in targets], axis=1)
    known = {_key(label): code for code, label in enumerate(classes)}
    labels = read_labels(frame[targets[0]])
    codes = [known.get(_key(label), known.get(MERGED)) for label in labels]
    if None in codes:
        shown = ", ".join(repr(label) for label in list(classes)[:8])
        raise UserError(
            f"The label {labels.iloc[codes.index(None)]!r} (row {codes.index(None) + 1}) is unknown.\n"
            f"The model knows {shown}."
        )
    return np.array(codes, dtype=np.int64)


def _key(label: Any) -> Any:
    """Equal for labels that are written alike: 1, 1.0 and "1", True and "True"."""
    return _shortest(label) if isinstance(label, float) else str(label)


def _shortest(number: float) -> str:
    return str(int(number)) if np.isfinite(number) and number == int(number) else repr(float(number))


def _numbers(values: npt.NDArray[np.float64]) -> list[Any]:
    return [None if np.isnan(value) else int(value) if value.is_integer() else float(value) for value in values]


def _refuse_continuous(column: pd.Series[Any]) -> None:
    distinct, rows, name = column.nunique(), len(column), str(column.name)
    numbers = read_numbers(column)  # labels may be text that only looks like numbers, such as 0.50
    number, fractional = bool(numbers.notna().all()), bool((numbers % 1 != 0).any())
    if number and ((fractional and distinct > 20) or (distinct > 50 and distinct > 0.05 * rows)):
        raise UserError(
            f"The target {name!r} is continuous: {distinct} different numbers in {rows} rows; wanted classes.\n"
            "Cut it into classes first, for example with pandas.qcut; if they are classes, say --task multiclass."
        )
    if not number and distinct > 50 and distinct > 0.5 * rows:
        raise UserError(
            f"The target {name!r} has {distinct} different words in {rows} rows, such as {column.iloc[0]!r}.\n"
            "It names rows rather than classes: is another column meant?"
        )


def _merged(column: pd.Series[Any], least: int) -> pd.Series[Any]:
    counts = column.value_counts()
    rare = counts.index[counts < least]
    if len(rare) == len(counts) > 1:
        raise UserError(
            f"--merge-rare {least} merges all {len(counts)} classes of {str(column.name)!r} into one.\n"
            f"Lower it: the largest class has {counts.iloc[0]} rows."
        )
    return column.where(~column.isin(rare), MERGED)


def _refuse_rare(column: pd.Series[Any], counts: pd.Series[Any], folds: int, merge_rare: int | None) -> None:
    name, least, fewest = str(column.name), 2 * folds, int(counts.min())
    if len(counts) == 1:
        raise UserError(f"The target {name!r} has a single class, {counts.index[0]!r}; wanted two or more.")
    if fewest >= least:
        return
    rare = counts[counts < least]
    remedies = [f"use --folds {fewest // 2}"] if fewest >= 4 else []
    if merge := _merge_remedy(counts.sort_values(), least):
        remedies.append(f"use --merge-rare {merge} (rare classes become one)")
    remedies.append(f"leave {'its' if len(rare) == 1 else 'their'} rows out")
    remedy = ", or ".join(remedies)
    shown = ", ".join(f"{label!r} has {count}" for label, count in rare.sort_values()[:3].items())
    more = f" and {len(rare) - 3} more" if len(rare) > 3 else ""
    raise UserError(
        f"Some classes of {name!r} have fewer than {least} rows, too few for {folds} folds: {shown}{more}.\n"
        f"{remedy[0].upper()}{remedy[1:]}."
    )


def _merge_remedy(ascending: pd.Series[Any], least: int) -> int | None:
    """The smallest ``merge_rare`` after which two or more classes are left and each has ``least`` rows, if moderate."""
    for place in range(1, len(ascending) - 1):
        bound = max(int(ascending.iloc[place]) + 1, least)
        merged = ascending[ascending < bound]
        if merged.sum() >= least and len(merged) < len(ascending) and bound <= 10 * least:
            return bound
    return None


def _indicator(column: pd.Series[Any], folds: int) -> npt.NDArray[np.float32]:
    name = str(column.name)
    values = _yes_or_no(column)
    yes = int(values.sum())
    if yes in (0, len(values)):
        raise UserError(f"The label {name!r} is {column.iloc[0]!r} in every row. Leave it out of the target columns.")
    if min(yes, len(values) - yes) < 2 * folds:
        few, what = (yes, "yes") if yes < len(values) - yes else (len(values) - yes, "no")
        remedy = f"Use --folds {few // 2}, or leave" if few >= 4 else "Leave"
        raise UserError(
            f"The label {name!r} is {what} in {few} row{'s' * (few > 1)}; wanted {2 * folds} for {folds} folds.\n"
            f"{remedy} it out of the target columns."
        )
    return values


def _yes_or_no(labels: pd.Series[Any]) -> npt.NDArray[np.float32]:
    text = labels.map(lambda label: str(label).lower())
    odd = labels[~text.isin(_YES | _NO)]
    if len(odd):
        raise UserError(
            f"The label {str(labels.name)!r} holds {odd.iloc[0]!r} (row {odd.index[0] + 1}).\n"
            f"With several target columns each must be 0/1, yes/no or true/false."
        )
    return np.asarray(text.isin(_YES), dtype=np.float32)
