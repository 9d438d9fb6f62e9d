"""Outer and inner splits: what is trained on, what is chosen by, and what is judged on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from lossary.core.errors import UserError
from lossary.core.seeding import derive

if TYPE_CHECKING:
    from lossary.compare.load import Table

SMALL = 1_000
"""Under so many outer-training rows the inner split has three folds."""

Rows = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Split:
    """One outer split with its inner ones; all are sorted rows of the table.

    Attributes:
        index: repeat x folds + fold; -1 for the split of ``best/``.
        repeat: Repeat, from 0.
        fold: Fold, from 0.
        train: Outer training rows.
        test: Outer test rows.
        inner: Pairs of inner training and validation rows: one pair, or three under 1,000 training rows.
    """

    index: int
    repeat: int
    fold: int
    train: Rows
    test: Rows
    inner: tuple[tuple[Rows, Rows], ...]


def make_splits(table: Table, *, folds: int, repeats: int, seed: int, row_cap: int | None = None) -> list[Split]:
    """Repeated stratified K-fold; groups and exact duplicates stay on one side, outer and inner.

    Args:
        table: The data.
        folds: Outer folds.
        repeats: Repeats.
        seed: Seed.
        row_cap: Most outer training rows; more are thinned out, stratified.

    Raises:
        UserError: Groups keep a class out of a training part.
    """
    units = row_units(table)
    rows = np.arange(len(table.target))
    splits = []
    for repeat in range(repeats):
        parts = _k_fold(rows, table, units, folds, derive(seed, "outer", repeat))
        for fold, (train, test) in enumerate(parts):
            index = repeat * folds + fold
            train = _capped(train, table, units, row_cap, derive(seed, "cap", index))
            splits.append(Split(index, repeat, fold, train, test, _inner(train, table, units, seed, index)))
    return splits


def final_split(table: Table, *, seed: int, row_cap: int | None = None) -> Split:
    """The split of ``best/``: all rows for training, none for test."""
    units = row_units(table)
    train = _capped(np.arange(len(table.target)), table, units, row_cap, derive(seed, "cap", -1))
    return Split(-1, -1, -1, train, np.arange(0), _inner(train, table, units, seed, -1))


def row_units(table: Table) -> Rows:
    """For each row the number of its unit: rows of one group or exact duplicates of each other, transitively."""
    everything = table.features.assign(**{f"target {i}": column for i, column in enumerate(_columns(table.target))})
    duplicates = everything.groupby(list(everything.columns), dropna=False, sort=False).ngroup().to_numpy()
    if table.groups is None:
        return np.asarray(pd.factorize(duplicates)[0], dtype=np.int64)
    rows = len(duplicates)
    nodes = rows + np.concatenate([duplicates, duplicates.max() + 1 + table.groups])
    links = coo_array((np.ones(2 * rows), (np.tile(np.arange(rows), 2), nodes)), shape=(nodes.max() + 1,) * 2)
    return np.asarray(connected_components(links, directed=False)[1][:rows], dtype=np.int64)


def _inner(train: Rows, table: Table, units: Rows, seed: int, index: int) -> tuple[tuple[Rows, Rows], ...]:
    small = len(train) < SMALL
    parts = _k_fold(train, table, units, 3 if small else 5, derive(seed, "inner", index))
    return tuple(parts if small else parts[:1])


def _k_fold(rows: Rows, table: Table, units: Rows, folds: int, seed: int) -> list[tuple[Rows, Rows]]:
    """(training, test) rows of each fold, sorted, stratified by label and whole in units."""
    target, unit = table.target[rows], units[rows]
    state = seed % 2**32
    grouped = len(np.unique(unit)) < len(unit)
    if table.task == "multilabel":
        # Units are stratified by whether any of their rows has the label.
        names, first = np.unique(unit, return_inverse=True)
        labels = np.zeros((len(names), target.shape[1]))
        np.maximum.at(labels, first, target)
        splitter = MultilabelStratifiedKFold(folds, shuffle=True, random_state=state)
        parts = [(np.isin(first, a), np.isin(first, b)) for a, b in splitter.split(np.zeros(len(labels)), labels)]
    elif grouped and table.groups is not None:
        grouped_splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=state)
        parts = list(grouped_splitter.split(np.zeros(len(rows)), target, unit))
    elif grouped:  # units are duplicates, of one label each: stratifying the units is much faster
        names, first, member = np.unique(unit, return_index=True, return_inverse=True)
        splitter = StratifiedKFold(folds, shuffle=True, random_state=state).split(names, target[first])
        parts = [(np.isin(member, a), np.isin(member, b)) for a, b in splitter]
    else:
        parts = list(StratifiedKFold(folds, shuffle=True, random_state=state).split(np.zeros(len(rows)), target))
    found = [(np.sort(rows[train]), np.sort(rows[test])) for train, test in parts]
    for train, test in found:
        _check(train, test, table)
    return found


def _check(train: Rows, test: Rows, table: Table) -> None:
    for part, what in ((train, "training part"), (test, "held-out part")):
        if len(part) == 0:
            raise UserError(f"A {what} of a split would be empty: the groups are too large for so many folds.")
    if table.task == "multilabel":
        sums = table.target[train].sum(0)
        lacking = np.flatnonzero((sums == 0) | (sums == len(train)))
    else:
        lacking = np.flatnonzero(np.bincount(table.target[train], minlength=len(table.classes)) == 0)
    if len(lacking):
        raise UserError(
            f"Groups keep {table.class_names[lacking[0]]!r} out of a training part of the splits.\n"
            f"Use fewer --folds, other --groups, or --merge-rare N."
        )


def _capped(rows: Rows, table: Table, units: Rows, cap: int | None, seed: int) -> Rows:
    """At most ``cap`` rows, drawn class by class in proportion, at least two of each."""
    if cap is None or len(rows) <= cap:
        return rows
    generator = np.random.default_rng(seed)
    labels = table.target[rows]
    keys = labels if labels.ndim == 1 else np.unique(labels, axis=0, return_inverse=True)[1]
    kept = []
    for key in np.unique(keys):
        members = rows[keys == key]
        count = min(len(members), max(round(cap * len(members) / len(rows)), 8))
        kept.append(generator.permutation(members)[:count])
    return np.sort(np.concatenate(kept))


def _columns(target: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return [target] if target.ndim == 1 else list(target.T)
