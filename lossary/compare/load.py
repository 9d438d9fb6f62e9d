"""From a file, a bundled name or arrays to a table that can be compared on."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lossary import datasets
from lossary.compare.concerns import concerns
from lossary.compare.features import typed_features
from lossary.compare.options import Task
from lossary.compare.preprocess import to_kind
from lossary.compare.read import read_frame, suffix_of, unnamed
from lossary.compare.target import Target, label_codes, make_target, read_labels
from lossary.core.errors import UserError

__all__ = ["Table", "label_codes", "load_table", "read_frame", "table_from_arrays"]

FEWEST_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Table:
    """A table ready to be compared on.

    Attributes:
        name: Its name.
        features: Feature columns in their order, float64, datetime64 or objects (text); index 0..n-1.
        target: Class codes (n,) int64; multi-label 0 and 1 (n, L) float32.
        task: The task.
        classes: Labels in the order of the codes (binary: the second is the positive one); multi-label: the names of
            the label columns.
        target_names: Target columns.
        groups: Group codes (n,) int64, or None.
        warnings: What was assumed, and what would spoil the answer: a sentence each.
        fingerprint: SHA-256 over everything here that bears on numbers.
        training_target: What training and validation rows are said to be, where that is not ``target`` (as a study
            of wrong labels wants it); None where it is.
    """

    name: str
    features: pd.DataFrame
    target: npt.NDArray[Any]
    task: Task
    classes: tuple[Any, ...]
    target_names: tuple[str, ...]
    groups: npt.NDArray[np.int64] | None
    warnings: tuple[str, ...]
    fingerprint: str
    training_target: npt.NDArray[Any] | None = None

    @property
    def seen_target(self) -> npt.NDArray[Any]:
        """Labels as training and validation see them."""
        return self.target if self.training_target is None else self.training_target

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes as text."""
        return tuple(str(label) for label in self.classes)

    @property
    def num_outputs(self) -> int:
        """Number of logits: of classes, or of labels."""
        return len(self.classes)


def load_table(
    data: str | Path | pd.DataFrame,
    target: str | Sequence[str] = (),
    *,
    task: str = "auto",
    groups: str | None = None,
    merge_rare: int | None = None,
    folds: int = 5,
) -> Table:
    """Load a file, a bundled data set or a frame.

    Rows without a target are left out, and that is said. A column may be given by number where no column has that name:
    from 0, or from the end with -1; so a file without column names has its last column as target ``-1``.

    Args:
        data: Path, name of :func:`lossary.datasets.names`, or frame, whose index is ignored.
        target: The target column, or several for a multi-label task; () is the usual one of a bundled data set.
        task: ``auto`` finds it out.
        groups: Column whose rows stay on one side of every split; it is no feature.
        merge_rare: Merge classes with fewer rows than this into one.
        folds: Outer folds: each class must have twice as many rows.

    Raises:
        UserError: Anything about the data that stops a comparison, with the remedy.
    """
    targets = (target,) if isinstance(target, str) else tuple(target)
    if isinstance(data, pd.DataFrame):
        name, frame = "data", data
    elif _is_bundled(data):
        name, frame, targets = _bundled(str(data), targets)
    else:
        path = Path(data)
        if not path.suffix and not path.exists():
            near = difflib.get_close_matches(path.name.lower(), datasets.names(), n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UserError(
                f"{str(data)!r} is neither a file nor a bundled data set.{hint}\n`lossary datasets` lists those."
            )
        name, frame = path.name[: len(path.name) - len(suffix_of(path))], read_frame(path, names=targets)
    return _table(name, frame, targets, task=task, groups=groups, merge_rare=merge_rare, folds=folds)


def table_from_arrays(
    X: Any,
    y: Any,
    *,
    groups: Any = None,
    task: str = "auto",
    merge_rare: int | None = None,
    folds: int = 5,
    name: str = "data",
) -> Table:
    """A table from features and labels in memory.

    Args:
        X: Features (n, f), a frame or an array.
        y: Labels (n,); or (n, L) of 0 and 1, or yes and no, for a multi-label task.
        groups: Group of each row (n,).
        task: ``auto`` finds it out.
        merge_rare: Merge classes with fewer rows than this into one.
        folds: Outer folds.
        name: Name of the table.

    Raises:
        UserError: As :func:`load_table`; or the shapes do not agree.
    """
    features, labels = _as_frame(X, "X", "column"), _as_frame(y, "y", "label")
    if labels.shape[1] == 1:
        labels.columns = [labels.columns[0] if isinstance(y, pd.Series | pd.DataFrame) and y.ndim == 2 else "target"]
        if isinstance(y, pd.Series) and y.name is not None:
            labels.columns = [str(y.name)]
    parts = [features, labels]
    if groups is not None:
        parts.append(_as_frame(groups, "groups", "group").set_axis(["groups"], axis=1))
    for part, what in zip(parts[1:], ("y", "groups"), strict=False):
        if len(part) != len(features):
            raise UserError(f"{what} has {len(part)} rows and X has {len(features)}; wanted one for each row of X.")
        part.columns = [f"{column} ({what})" if column in features else column for column in part.columns]
    frame = pd.concat(parts, axis=1)
    return _table(
        name,
        frame,
        tuple(labels.columns),
        task=task,
        groups=None if groups is None else parts[2].columns[0],
        merge_rare=merge_rare,
        folds=folds,
    )


def _is_bundled(data: str | Path) -> bool:
    return not Path(data).exists() and str(data).lower().replace("-", "_") in datasets.names()


def _bundled(name: str, targets: tuple[str, ...]) -> tuple[str, pd.DataFrame, tuple[str, ...]]:
    entry = datasets.describe(name)
    if entry.kind not in ("classification", "multi-label"):
        raise UserError(
            f"The data set {name} is of the kind {entry.kind}; compare wants classification or multi-label data.\n"
            "`lossary datasets` lists all."
        )
    loaded = datasets.load(name)
    usual = (loaded.target,) if isinstance(loaded.target, str) else tuple(loaded.target or ())
    return entry.name, loaded.frame, targets or usual


def _as_frame(values: Any, what: str, prefix: str) -> pd.DataFrame:
    if isinstance(values, pd.DataFrame | pd.Series):
        frame = pd.DataFrame(values).reset_index(drop=True)
        frame.columns = [str(column) for column in frame.columns]
        return frame
    array = np.asarray(values)
    if array.ndim not in (1, 2) or (array.ndim == 1 and what == "X"):
        wanted = "(rows, columns)" if what == "X" else "(rows,) or (rows, labels)"
        raise UserError(f"{what} has the shape {array.shape}; wanted {wanted}.")
    frame = pd.DataFrame(array)
    frame.columns = [f"{prefix}_{place}" for place in range(frame.shape[1])]
    return frame.infer_objects()


def _table(
    name: str,
    frame: pd.DataFrame,
    targets: tuple[str, ...],
    *,
    task: str,
    groups: str | None,
    merge_rare: int | None,
    folds: int,
) -> Table:
    frame = frame.reset_index(drop=True).set_axis([str(column) for column in frame.columns], axis=1)
    if frame.columns.duplicated().any():
        twice = frame.columns[frame.columns.duplicated()][0]
        raise UserError(f"Two columns are called {twice!r}. Give each column a name of its own.")
    targets = tuple(_column(frame, column, "target") for column in _given(frame, targets))
    grouping = None if groups is None else _column(frame, groups, "groups")
    if grouping in targets:
        raise UserError(f"{grouping!r} is both the target and the groups; wanted two columns.")
    if len(set(targets)) < len(targets):
        raise UserError(f"--target names a column twice: {', '.join(targets)}.")

    remarks: list[str] = []
    if list(frame.columns) == unnamed(frame.shape[1]):
        last = frame.columns[-1]
        remarks.append(f"The data have no column names; the columns are called {frame.columns[0]} to {last}.")
    labels = pd.DataFrame({column: read_labels(frame[column]) for column in targets}, index=frame.index)
    frame, labels = _labelled(frame, labels, remarks)
    if len(frame) < FEWEST_ROWS:
        rows = f"{len(frame)} row{'s' if len(frame) != 1 else ''}"
        raise UserError(f"The table has {rows}; wanted {FEWEST_ROWS} or more, and hundreds to tell objectives apart.")
    found = make_target(labels, task=task, merge_rare=merge_rare, folds=folds)
    used = [*targets, *([] if grouping is None else [grouping])]
    if frame.shape[1] == len(used):
        raise UserError(
            f"There is no column beside {', '.join(map(repr, used))}; wanted at least one feature.\n"
            "If there should be more: a CSV file is separated by commas, semicolons, tabs or bars."
        )
    features, assumed = typed_features(frame.drop(columns=used))
    codes = None if grouping is None else _groups(frame[grouping], folds, remarks)
    warnings = [*remarks, *assumed, *concerns(features, found, grouped=grouping is not None)]
    fingerprint = _fingerprint(features, found, targets, codes)
    return Table(name, features, found.codes, found.task, found.classes, targets, codes, tuple(warnings), fingerprint)


def _given(frame: pd.DataFrame, targets: tuple[str, ...]) -> tuple[str, ...]:
    if not targets:
        raise UserError(
            f"Which column is to be predicted? Give --target NAME, or --target -1 for the last.\n"
            f"The columns are {_some(frame)}."
        )
    return targets


def _column(frame: pd.DataFrame, wanted: str, word: str) -> str:
    """The name of a column that is given by name or by number."""
    names = list(frame.columns)
    if wanted in names:
        return str(wanted)
    if re.fullmatch(r"-?\d+", wanted):
        if -len(names) <= int(wanted) < len(names):
            return str(names[int(wanted)])
        raise UserError(
            f"--{word} {wanted}: there are {len(names)} columns, 0 to {len(names) - 1} or -{len(names)} to -1."
        )
    if names == unnamed(len(names)):
        raise UserError(
            f"There is no column {wanted!r}: the first row is data, so columns are called {names[0]} to {names[-1]}.\n"
            f"Give a number, such as --{word} -1 for the last column, or put a row of names first."
        )
    lower = {name.lower(): name for name in names}
    near = [lower[name] for name in difflib.get_close_matches(wanted.lower(), lower, n=3, cutoff=0.5)]
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"The columns are {_some(frame)}."
    raise UserError(f"There is no column {wanted!r} for --{word}. {hint}")


def _labelled(frame: pd.DataFrame, labels: pd.DataFrame, remarks: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows that have all targets."""
    missing = labels.isna().any(axis=1)
    count = int(missing.sum())
    if count == len(frame):
        raise UserError(f"No row has a value in {', '.join(map(repr, labels))}. Is another column the target?")
    if not count:
        return frame, labels
    remarks.append(f"{count:,} of {len(frame):,} rows have no target and are left out.")
    return frame[~missing].reset_index(drop=True), labels[~missing].reset_index(drop=True)


def _groups(column: pd.Series[Any], folds: int, remarks: list[str]) -> npt.NDArray[np.int64]:
    """Group codes; a row without a group is one of its own."""
    codes = np.asarray(pd.factorize(to_kind(column, "category"))[0], dtype=np.int64)
    alone = codes < 0
    if alone.any():
        remarks.append(f"{int(alone.sum()):,} rows have no value in {str(column.name)!r}: each is a group of its own.")
        codes[alone] = codes.max() + 1 + np.arange(int(alone.sum()))
    count = len(np.unique(codes))
    if count < folds:
        remedy = f"--folds {count}" if count >= 3 else "another column"
        raise UserError(f"--groups {column.name}: {count} groups are too few for {folds} folds. Use {remedy}.")
    if count == len(codes):
        remarks.append(f"Every row has a value of its own in {str(column.name)!r}: --groups keeps nothing together.")
    return codes


def _fingerprint(
    features: pd.DataFrame, target: Target, names: tuple[str, ...], groups: npt.NDArray[np.int64] | None
) -> str:
    digest = hashlib.sha256(repr([(name, str(features[name].dtype)) for name in features]).encode())
    for name in features:
        digest.update(pd.util.hash_pandas_object(features[name], index=False).to_numpy().tobytes())
    digest.update(repr((names, target.classes, target.task, target.codes.shape)).encode())
    digest.update(np.ascontiguousarray(target.codes).tobytes())
    digest.update(repr(None if groups is None else groups.tolist()).encode())
    return digest.hexdigest()


def _some(frame: pd.DataFrame) -> str:
    names = [repr(name) for name in frame.columns]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
