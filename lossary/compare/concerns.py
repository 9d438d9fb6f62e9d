"""What about a table would spoil the answer without any error: said in sentences, decided by the user."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold
from sklearn.tree import DecisionTreeClassifier

from lossary.compare.preprocess import column_kind
from lossary.compare.target import Target

Array = npt.NDArray[Any]

FEWEST_ROWS = 50
"""In smaller tables values are different in every row by chance."""
LEAK = 0.99
"""Balanced accuracy above which one feature predicts the target alone."""
LEAK_ROWS = 2_000
NEAR = 1e-3
"""Rows within a grid of this many standard deviations in every number are near-duplicates."""
MANY_LEVELS = 100

_IDENTIFIER = re.compile(r"(?i:^|[\W_])(?i:id|nbr|uuid|guid|key)$|(?<=[a-z])I[dD]$")


def concerns(features: pd.DataFrame, target: Target, *, grouped: bool) -> list[str]:
    """Sentences about identifiers, leaks, duplicates, near-duplicates and useless columns.

    Args:
        features: Columns as :func:`~lossary.compare.preprocess.to_kind` has them.
        target: What is to be predicted.
        grouped: Whether rows are kept together by ``--groups`` already.
    """
    distinct = {str(name): column.nunique(dropna=False) for name, column in features.items()}
    return [
        *_constant(features, distinct),
        *_identifiers(features, distinct, grouped),
        *_many_levels(features, distinct),
        *_leaks(features, target, distinct),
        *_duplicates(features),
    ]


def _constant(features: pd.DataFrame, distinct: dict[str, int]) -> list[str]:
    found = [name for name, count in distinct.items() if count == 1]
    return [f"{_have(found)} the same value in every row and can tell nothing."] if found else []


def _identifiers(features: pd.DataFrame, distinct: dict[str, int], grouped: bool) -> list[str]:
    rows = len(features)
    if rows < FEWEST_ROWS:
        return []
    whole = [name for name in distinct if _is_whole(features[name])]
    unique = [name for name in whole if distinct[name] == rows]
    repeating = [name for name in whole if 0.1 * rows < distinct[name] < rows and _IDENTIFIER.search(name)]
    sentences = []
    if unique:
        sentences.append(
            f"{_have(unique)} a different value in every row, as identifiers do; "
            f"nothing learnt from that holds for new rows: consider leaving {_it(unique)} out."
        )
    if repeating and not grouped:
        sentences.append(
            f"{_have(repeating)} the name of an identifier, and values that repeat: if rows with the same value "
            f"belong together, give --groups {repeating[0]}, or scores flatter; if not, leave {_it(repeating)} out."
        )
    return sentences


def _is_whole(column: pd.Series[Any]) -> bool:
    kind = column_kind(column)
    return kind == "category" or (kind == "number" and bool((column.dropna() % 1 == 0).all()))


def _many_levels(features: pd.DataFrame, distinct: dict[str, int]) -> list[str]:
    words = [name for name in distinct if column_kind(features[name]) == "category"]
    found = [name for name in words if MANY_LEVELS < distinct[name] < len(features)]
    if not found:
        return []
    examples = ", ".join(repr(value) for value in features[found[0]].dropna().unique()[:3])
    return [
        f"{_have(found)} more than {MANY_LEVELS} different words ({found[0]!r} has {distinct[found[0]]:,}, such as "
        f"{examples}); only the most frequent are told apart."
    ]


def _leaks(features: pd.DataFrame, target: Target, distinct: dict[str, int]) -> list[str]:
    """Features with which a small tree predicts rows that it has not seen, on a sample of the table."""
    sample = np.random.default_rng(0).permutation(len(features))[:LEAK_ROWS]
    values = {name: _as_numbers(features[name].iloc[sample]) for name, count in distinct.items() if count > 1}
    labels = (
        {f"label {name!r}": codes for name, codes in zip(target.classes, target.codes[sample].T, strict=True)}
        if (target.task == "multilabel")
        else {"target": target.codes[sample]}
    )
    sentences = []
    for what, label in labels.items():
        if np.unique(label, return_counts=True)[1].min() < 4:
            continue
        halves = list(StratifiedKFold(2, shuffle=True, random_state=0).split(label, label))
        found = [name for name in values if _alone(values[name], label, halves) > LEAK]
        if found:
            predicts = "alone predicts" if len(found) == 1 else "each alone predict"
            sentences.append(
                f"{_columns(found)} {predicts} the {what} almost without error: is that known before the target is? "
                f"If not, leave {_it(found)} out."
            )
    return sentences


def _alone(values: Array, label: Array, folds: Sequence[tuple[Array, Array]]) -> float:
    """Balanced accuracy of a tree on one feature, cross-validated."""
    guess = np.empty_like(label)
    for train, test in folds:
        tree = DecisionTreeClassifier(min_samples_leaf=2, max_depth=8, random_state=0).fit(values[train], label[train])
        guess[test] = tree.predict(values[test])
    return float(balanced_accuracy_score(label, guess))


def _as_numbers(column: pd.Series[Any]) -> Array:
    """A column as (n, 1) numbers for a tree, which takes NaN."""
    kind = column_kind(column)
    if kind == "category":
        return np.asarray(pd.factorize(column, sort=True)[0][:, None], dtype=np.float64)
    if kind == "date":
        column = (column - pd.Timestamp(0)) / pd.Timedelta(days=1)
    return column.to_numpy(np.float64)[:, None]


def _duplicates(features: pd.DataFrame) -> list[str]:
    rows = len(features)
    copies = features.duplicated(keep=False)
    sentences = []
    if copies.mean() > 0.01:
        sentences.append(
            f"{int(copies.sum()):,} of {rows:,} rows have the same features as another row. Such rows stay on one side "
            "of every split, so that scores are for rows that are new."
        )
    # Points of few dimensions lie close by chance; rows that agree in many numbers do not.
    numbers = features.select_dtypes("number")
    numbers = numbers.loc[:, numbers.nunique() > 20]
    if numbers.shape[1] >= 4:
        grid = features.copy()
        grid[numbers.columns] = (numbers / numbers.std() / NEAR).round()
        near = int((grid.duplicated(keep=False) & ~copies).sum())
        if near > 0.01 * rows:
            sentences.append(
                f"{near:,} of {rows:,} rows are nearly equal to another (within {NEAR:g} standard deviations in every "
                "number). If they are copies, scores flatter: remove them, or give --groups."
            )
    return sentences


def _columns(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"Column{'s' if len(names) > 1 else ''} {shown}"


def _it(names: Sequence[str]) -> str:
    return "them" if len(names) > 1 else "it"


def _have(names: Sequence[str]) -> str:
    return f"{_columns(names)} {'have' if len(names) > 1 else 'has'}"
