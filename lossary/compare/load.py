"""Reading a table and finding out what is asked: columns, task, classes, and what would spoil the answer."""

from __future__ import annotations

import dataclasses
import difflib
import gzip
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lossary.compare.options import Task
from lossary.compare.preprocess import MISSING
from lossary.core.errors import UserError

Array = npt.NDArray[Any]
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".jsonl", ".parquet", ".feather")
MERGED = "other (merged)"
MOST_CLASSES = 100
YES_NO = ({0, 1}, {False, True}, {"0", "1"}, {"yes", "no"}, {"true", "false"}, {"y", "n"}, {"t", "f"})


@dataclasses.dataclass(frozen=True)
class Table:
    """A table ready to be compared on.

    Attributes:
        name: Its name.
        features: Feature columns in their order, index 0..n-1.
        target: Class codes ``(n,)`` int64; multi-label ``(n, L)`` float32 of 0 and 1.
        task: The task.
        classes: Original labels in the order of codes (binary: the second is the positive one); multi-label: the names
            of the label columns.
        target_names: Target columns.
        groups: Group codes ``(n,)`` int64, or None.
        warnings: What would spoil the answer, a sentence each.
        fingerprint: SHA-256 over everything above that bears on numbers.
    """

    name: str
    features: pd.DataFrame
    target: Array
    task: Task
    classes: tuple[Any, ...]
    target_names: tuple[str, ...]
    groups: npt.NDArray[np.int64] | None
    warnings: tuple[str, ...]
    fingerprint: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """Labels as text."""
        return tuple(str(label) for label in self.classes)

    @property
    def num_outputs(self) -> int:
        """Number of logits: classes, or labels."""
        return len(self.classes)


def load_table(
    data: str | Path | pd.DataFrame,
    target: str | Sequence[str],
    *,
    task: str = "auto",
    groups: str | None = None,
    merge_rare: int | None = None,
    folds: int = 5,
) -> Table:
    """Load a file, a bundled data set or a frame as a :class:`Table`.

    Raises:
        UserError: Anything about the data that stops a comparison, with the remedy.
    """
    targets = (target,) if isinstance(target, str) else tuple(target)
    if isinstance(data, pd.DataFrame):
        name, frame = "table", data
    else:
        name, frame, targets = _read(str(data), targets)
    return _table(name, frame, targets, task=task, groups=groups, merge_rare=merge_rare, folds=folds)


def table_from_arrays(
    X: Any,
    y: Any,
    *,
    groups: Any = None,
    task: str = "auto",
    merge_rare: int | None = None,
    folds: int = 5,
    name: str = "table",
) -> Table:
    """A :class:`Table` from features ``(n, f)`` and a target ``(n,)`` or ``(n, L)``, arrays or frames."""
    frame = X.reset_index(drop=True).copy() if isinstance(X, pd.DataFrame) else pd.DataFrame(np.asarray(X))
    frame.columns = [str(column) for column in frame.columns]
    labels = y.reset_index(drop=True).copy() if isinstance(y, pd.DataFrame | pd.Series) else np.asarray(y)
    labels = pd.DataFrame(labels)
    if len(labels) != len(frame):
        raise UserError(f"y has {len(labels)} rows and X {len(frame)}; wanted one label for each row.")
    names = [str(column) if labels.shape[1] > 1 else "target" for column in labels.columns]
    names = [f"label {column}" if column in frame else column for column in names]
    for column, values in zip(names, labels.columns, strict=True):
        frame[column] = labels[values].to_numpy()
    if groups is not None:
        frame["(groups)"] = np.asarray(groups)
    return _table(
        name,
        frame,
        tuple(names),
        task=task,
        groups=None if groups is None else "(groups)",
        merge_rare=merge_rare,
        folds=folds,
    )


def read_frame(path: Path) -> pd.DataFrame:
    """Read CSV, TSV, JSONL, Parquet or Feather by suffix.

    Raises:
        UserError: The file cannot be read, with what to do.
    """
    if not path.exists():
        raise UserError(f"There is no file {path}. `lossary datasets` lists data sets that load by name.")
    if path.is_dir():
        raise UserError(f"{path} is a folder; wanted a file ({', '.join(SUFFIXES)}).")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty.")
    kind = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    try:
        if kind in (".csv", ".csv.gz", ".tsv"):
            return _read_csv(path, "\t" if kind == ".tsv" else None)
        if kind == ".jsonl":
            return pd.read_json(path, lines=True)
        if kind == ".parquet":
            return pd.read_parquet(path)
        if kind == ".feather":
            return pd.read_feather(path)
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte {error.start} cannot be read.\n"
            f"Convert it first, for example: iconv -f latin1 -t utf-8 {path.name} > converted.csv"
        ) from error
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{path} holds no columns.") from error
    except Exception as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    raise UserError(f"{path} has an unknown kind {path.suffix!r}; wanted one of {', '.join(SUFFIXES)}.")


def label_codes(frame: pd.DataFrame, targets: Sequence[str], classes: Sequence[Any], task: Task) -> Array:
    """Codes of the labels of new rows: ``(n,)`` int64, multi-label 0/1 ``(n, L)`` float32.

    Raises:
        UserError: A label is unknown.
    """
    if task == "multilabel":
        return np.stack([_yes(frame[name]) for name in targets], axis=1).astype(np.float32)
    known = {label: code for code, label in enumerate(classes)}
    by_text = {str(label): code for label, code in known.items()}
    labels = [_plain(value) for value in frame[targets[0]].to_numpy()]
    codes = [known.get(label, by_text.get(str(label))) for label in labels]
    if None in codes:
        unknown = labels[codes.index(None)]
        raise UserError(f"The label {unknown!r} is unknown; the model knows {', '.join(map(repr, classes))}.")
    return np.array(codes, dtype=np.int64)


def _read_csv(path: Path, separator: str | None) -> pd.DataFrame:
    if separator is None:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            first = file.readline()
        separator = max((",", ";", "\t"), key=lambda s: (first.count(s), s == ","))
    frame = pd.read_csv(
        path, sep=separator, na_values=list(MISSING), keep_default_na=False, skipinitialspace=True, low_memory=False
    )
    header = [str(column) for column in pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str).iloc[0]]
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice and not _looks_like_data(header) and len(twice) + 2 < len(header) / 2:
        raise UserError(f"{path} has two columns named {twice[0]!r}. Give each column a name of its own.")
    return frame


def _looks_like_data(header: Sequence[str]) -> bool:
    def number(text: str) -> bool:
        try:
            float(text)
        except ValueError:
            return False
        return True

    return sum(number(text) for text in header) > len(header) / 2


def _read(data: str, targets: tuple[str, ...]) -> tuple[str, pd.DataFrame, tuple[str, ...]]:
    from lossary import datasets

    path = Path(data)
    known = {name.replace("-", "_") for name in datasets.names()}
    if not path.exists() and data.lower().replace("-", "_") in known:
        entry = datasets.describe(data)
        if entry.kind not in ("classification", "multi-label"):
            raise UserError(f"The data set {data!r} is of kind {entry.kind}; compare wants classes or yes/no labels.")
        loaded = datasets.load(data)
        default = (loaded.target,) if isinstance(loaded.target, str) else tuple(loaded.target or ())
        return entry.name, loaded.frame, targets or default
    frame = read_frame(path)
    if not targets:
        raise UserError(f"--target is missing: which column is to be predicted? {path.name} has {_some(frame)}.")
    missing = [name for name in targets if name not in frame.columns]
    if missing and all(name.lstrip("-").isdigit() for name in targets) and path.suffix in (".csv", ".tsv", ".gz"):
        header = [str(column) for column in frame.columns]
        frame = pd.read_csv(
            path,
            header=None,
            na_values=list(MISSING),
            keep_default_na=False,
            sep="\t" if path.suffix == ".tsv" else ",",
        )
        if not _looks_like_data(header):
            frame = frame.iloc[1:].reset_index(drop=True).infer_objects()
        frame.columns = [f"column_{i}" for i in range(frame.shape[1])]
        positions = [int(name) for name in targets]
        if any(not -frame.shape[1] <= place < frame.shape[1] for place in positions):
            raise UserError(
                f"--target {','.join(targets)}: {path.name} has {frame.shape[1]} columns, 0 to {frame.shape[1] - 1}."
            )
        targets = tuple(frame.columns[place] for place in positions)
    elif missing and _looks_like_data([str(column) for column in frame.columns]):
        raise UserError(
            f"There is no column {missing[0]!r}: the first line of {path.name} looks like data, not names.\n"
            f"Give the target by position, such as --target -1 for the last column."
        )
    stem = path.name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        stem = stem.removesuffix(suffix)
    return stem, frame, targets


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
    frame = frame.reset_index(drop=True)
    frame.columns = [str(column) for column in frame.columns]
    if frame.columns.duplicated().any():
        twice = frame.columns[frame.columns.duplicated()][0]
        raise UserError(f"There are two columns named {twice!r}. Give each column a name of its own.")
    for column in (*targets, *([groups] if groups else [])):
        if column not in frame:
            near = difflib.get_close_matches(column, list(frame.columns), n=3, cutoff=0.4)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {_some(frame)}."
            raise UserError(f"There is no column {column!r}. {hint}")
    if groups in targets:
        raise UserError(f"{groups!r} is both --target and --groups; wanted two columns.")
    if len(frame) < 2:
        raise UserError(f"The table has {len(frame)} row{'' if len(frame) == 1 else 's'}; wanted hundreds.")
    warnings: list[str] = []
    unlabelled = frame[list(targets)].isna().any(axis=1)
    if unlabelled.any():
        warnings.append(f"{int(unlabelled.sum())} rows without a target are left out.")
        frame = frame[~unlabelled].reset_index(drop=True)
    features = frame.drop(columns=[*targets, *([groups] if groups else [])])
    features = _features(features)
    if len(targets) > 1 or task == "multilabel":
        kind: Task = "multilabel"
        target, classes = _labels(frame, targets, folds), tuple(targets)
    else:
        target, classes = _classes(frame[targets[0]], targets[0], merge_rare, folds, task)
        kind = "binary" if len(classes) == 2 else "multiclass"
        if task == "binary" and kind != "binary":
            raise UserError(f"--task binary: {targets[0]!r} has {len(classes)} classes. Leave --task out.")
    codes = None if groups is None else pd.factorize(frame[groups])[0].astype(np.int64)
    if codes is not None and len(np.unique(codes)) < 2 * folds:
        raise UserError(f"--groups {groups}: {len(np.unique(codes))} groups are too few for {folds} folds.")
    warnings += _warnings(features, target, kind)
    return Table(
        name,
        features,
        target,
        kind,
        classes,
        targets,
        codes,
        tuple(warnings),
        _fingerprint(features, target, classes, codes),
    )


def _features(features: pd.DataFrame) -> pd.DataFrame:
    if features.shape[1] == 0:
        raise UserError("There are no columns beside the target; wanted at least one feature.")
    found: dict[str, pd.Series[Any]] = {}
    for name in map(str, features):
        column = features[name]
        if column.isna().all():
            raise UserError(f"The column {name!r} has no values at all. Remove it, or fill it.")
        if pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_datetime64_any_dtype(column.dtype):
            found[name] = column
        elif pd.api.types.is_numeric_dtype(column.dtype):
            infinite = int(np.isinf(column.to_numpy(dtype=np.float64, na_value=np.nan)).sum())
            if infinite:
                raise UserError(
                    f"The column {name!r} has {infinite} infinite values. Replace them, or leave them empty."
                )
            found[name] = column.astype(np.float64)
        else:
            found[name] = _text_column(column, name)
    return pd.DataFrame(found)


def _text_column(column: pd.Series[Any], name: str) -> pd.Series[Any]:
    text = column.where(column.isna(), column.astype(str).str.strip())
    known = text[text.notna()]
    number = pd.to_numeric(known, errors="coerce")
    share = float(number.notna().mean())
    if share == 1:
        return pd.to_numeric(text).astype(np.float64)
    if share > 0.5:
        odd = list(dict.fromkeys(known[number.isna()]))[:3]
        raise UserError(
            f"The column {name!r} mixes numbers with words: {', '.join(map(repr, odd))}.\n"
            f"Leave what is missing empty, or make every value a word."
        )
    if known.str.contains(r"\d{2,4}[-/.]\d{1,2}", regex=True).mean() > 0.95:
        dates = pd.to_datetime(text, errors="coerce", format="mixed")
        if dates.notna().sum() > 0.95 * len(known):
            return dates
    return text.astype(object)


def _classes(
    column: pd.Series[Any], name: str, merge_rare: int | None, folds: int, task: str
) -> tuple[Array, tuple[Any, ...]]:
    values = column.to_numpy()
    distinct = column.nunique()
    numeric = pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
    if distinct < 2:
        raise UserError(f"The target {name!r} has a single class, {column.iloc[0]!r}; wanted two or more.")
    fractional = numeric and bool((column % 1 != 0).any())
    if numeric and ((fractional and distinct > 10) or (distinct > 50 and distinct > 0.05 * len(column))):
        raise UserError(
            f"The target {name!r} is continuous ({distinct} distinct numbers); compare is for classes and labels.\n"
            f"Cut it into classes first, for example with pandas.qcut."
        )
    labels = pd.Series([_plain(value) for value in values])
    counts = labels.value_counts()
    if merge_rare is not None and (counts < merge_rare).any():
        rare = counts.index[counts < merge_rare]
        labels = labels.where(~labels.isin(rare), MERGED)
        counts = labels.value_counts()
    few = counts[counts < 2 * folds]
    if len(few):
        remedy = f"Use --folds {max(int(few.min()) // 2, 2)}, or " if few.min() >= 4 else "Use "
        raise UserError(
            f"{len(few)} of {len(counts)} classes of {name!r} have fewer than {2 * folds} rows, too few for {folds} "
            f"folds (class {_plain(few.index[-1])!r} has {int(few.min())}).\n"
            f"{remedy}--merge-rare {2 * folds} to merge rare classes into one."
        )
    if len(counts) < 2:
        raise UserError(f"The target {name!r} has a single class after merging; lower --merge-rare.")
    if len(counts) > MOST_CLASSES:
        raise UserError(f"The target {name!r} has {len(counts)} classes; compare takes up to {MOST_CLASSES}.")
    merged = [label for label in counts.index if label == MERGED]
    classes = sorted((label for label in counts.index if label != MERGED), key=lambda label: (str(type(label)), label))
    classes += merged
    return labels.map({label: code for code, label in enumerate(classes)}).to_numpy(dtype=np.int64), tuple(classes)


def _labels(frame: pd.DataFrame, targets: tuple[str, ...], folds: int) -> Array:
    columns = []
    for name in targets:
        values = frame[name].map(_lowered)
        distinct = set(values.unique())
        if len(distinct) < 2:
            raise UserError(f"The label {name!r} is the same in every row. Leave it out of --target.")
        if not any(distinct <= pair for pair in YES_NO):
            shown = ", ".join(repr(value) for value in list(distinct)[:3])
            raise UserError(f"The label {name!r} has values {shown}; for several targets each must be yes/no (0/1).")
        yes = _yes(frame[name])
        least = min(int(yes.sum()), int((~yes).sum()))
        if least < 2 * folds:
            raise UserError(
                f"The label {name!r} has {least} rows of one kind, too few for {folds} folds.\n"
                f"Use fewer --folds, or leave it out of --target."
            )
        columns.append(yes)
    return np.stack(columns, axis=1).astype(np.float32)


def _yes(column: pd.Series[Any]) -> npt.NDArray[np.bool_]:
    return column.map(_lowered).isin([1, True, "1", "yes", "true", "y", "t"]).to_numpy()


def _lowered(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else _plain(value)


def _plain(value: Any) -> Any:
    """NumPy scalars as Python's, whole floats as integers, so that labels read as they were written."""
    plain = value.item() if isinstance(value, np.generic) else value
    return int(plain) if isinstance(plain, float) and plain.is_integer() else plain


def _warnings(features: pd.DataFrame, target: Array, task: Task) -> list[str]:
    warnings = []
    rows = len(features)
    for name in features:
        column = features[name]
        distinct = column.nunique(dropna=False)
        whole = not pd.api.types.is_float_dtype(column.dtype) or bool((column.dropna() % 1 == 0).all())
        if distinct == 1:
            warnings.append(f"The column {name!r} is constant: it says nothing.")
        elif whole and distinct == rows and rows > 50:
            warnings.append(
                f"The column {name!r} is different in every row, like an identifier: consider leaving it out."
            )
        elif not pd.api.types.is_numeric_dtype(column.dtype) and distinct > 200:
            warnings.append(
                f"The column {name!r} has {distinct} different words; only the most frequent are kept apart."
            )
    warnings += _leaks(features, target, task)
    numeric = features.select_dtypes("number")
    if numeric.shape[1] == features.shape[1] and rows > 50:
        spread = numeric.std().replace(0, 1)
        near = pd.DataFrame((numeric / spread).round(1)).duplicated().mean() - features.duplicated().mean()
        if near > 0.05 and numeric.shape[1] > 3:
            warnings.append(f"{100 * near:.0f}% of the rows are nearly equal to another: scores may be flattering.")
    return warnings


def _leaks(features: pd.DataFrame, target: Array, task: Task) -> list[str]:
    """Features that alone predict the target."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    label = target[:, 0].astype(int) if task == "multilabel" else target
    sample = np.random.default_rng(0).permutation(len(label))[:2000]
    found = []
    if np.bincount(label[sample]).min(initial=len(label)) < 3:
        return []
    for name in features:
        column = features[name].iloc[sample]
        values = column if pd.api.types.is_numeric_dtype(column.dtype) else pd.Series(pd.factorize(column)[0])
        x = values.to_numpy(dtype=np.float64, na_value=-1e9).reshape(-1, 1)
        guess = cross_val_predict(DecisionTreeClassifier(max_depth=4), x, label[sample], cv=3)
        if balanced_accuracy_score(label[sample], guess) > 0.99:
            found.append(f"The column {name!r} alone predicts the target: is it known before the target is?")
    return found


def _fingerprint(features: pd.DataFrame, target: Array, classes: tuple[Any, ...], groups: Array | None) -> str:
    digest = hashlib.sha256()
    digest.update(repr([(name, str(features[name].dtype)) for name in features]).encode())
    digest.update(pd.util.hash_pandas_object(features, index=False).to_numpy().tobytes())
    digest.update(repr((classes, str(target.dtype), target.shape)).encode())
    digest.update(np.ascontiguousarray(target).tobytes())
    digest.update(b"" if groups is None else np.ascontiguousarray(groups).tobytes())
    return digest.hexdigest()


def _some(frame: pd.DataFrame) -> str:
    names = [repr(str(column)) for column in frame.columns]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
