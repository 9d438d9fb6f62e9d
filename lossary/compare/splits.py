"""Outer and inner splits: what is trained on, what is chosen by, and what is judged on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lossary.compare.handicap import thin_classes
from lossary.core.errors import UserError
from lossary.core.seeding import derive

if TYPE_CHECKING:
    from lossary.compare.load import Table

Rows = npt.NDArray[np.int64]
Pair = tuple[Rows, Rows]

SMALL = 1_000
"""Under so many outer training rows the inner split has three folds."""
KEPT = 8
"""Rows of each class that a cap leaves in the training part, as far as there are so many."""


@dataclasses.dataclass(frozen=True)
class Split:
    """One outer split with its inner ones; all are sorted rows of the table.

    Attributes:
        index: repeat x folds + fold; -1 for the split of ``best/``.
        repeat: Repeat, from 0.
        fold: Fold, from 0.
        train: Outer training rows.
        test: Outer test rows.
        inner: Pairs of inner training and validation rows: one pair with about 20% for validation, or the three of a
            3-fold split under 1,000 outer training rows.
    """

    index: int
    repeat: int
    fold: int
    train: Rows
    test: Rows
    inner: tuple[Pair, ...]


def make_splits(
    table: Table,
    *,
    folds: int,
    repeats: int,
    seed: int,
    row_cap: int | None = None,
    imbalance: float | None = None,
) -> list[Split]:
    """Repeated K-fold, stratified by the labels; no unit of :func:`row_units` is ever cut, outer or inner.

    The splits are a function of the labels, the units and the seed.

    Args:
        table: The data.
        folds: Outer folds.
        repeats: Repeats.
        seed: Seed.
        row_cap: Most outer training rows; more are thinned out, stratified, before the inner split.
        imbalance: Rows of the most frequent class for one of the rarest, to which outer training rows are thinned.

    Raises:
        UserError: There are too few units, or every training part cannot have every class.
    """
    units = row_units(table)
    if (found := len(np.unique(units))) < folds:
        raise UserError(_too_few(table, found, folds))
    everything = np.arange(len(table.target))
    kept = len(everything) if imbalance is None else len(thin_classes(everything, table, imbalance, seed))
    three = _is_small(kept * (folds - 1) // folds, row_cap)
    splits = []
    for repeat in range(repeats):
        part = _deal(_indicators(table), units, folds, derive(seed, "outer", repeat))
        for fold in range(folds):
            index = repeat * folds + fold
            train = everything[part != fold]
            if imbalance is not None:
                train = thin_classes(train, table, imbalance, derive(seed, "imbalance", index))
            train = _thinned(train, table, row_cap, derive(seed, "cap", index))
            inner = _inner(train, table, units, three, derive(seed, "inner", index))
            splits.append(Split(index, repeat, fold, train, everything[part == fold], inner))
    return splits


def final_split(table: Table, *, seed: int, row_cap: int | None = None, imbalance: float | None = None) -> Split:
    """The split of ``best/``: all rows for training, none for test; index, repeat and fold are -1."""
    train = np.arange(len(table.target))
    if imbalance is not None:
        train = thin_classes(train, table, imbalance, derive(seed, "imbalance", -1))
    train = _thinned(train, table, row_cap, derive(seed, "cap", -1))
    three = _is_small(len(train), row_cap)
    return Split(
        -1, -1, -1, train, np.arange(0), _inner(train, table, row_units(table), three, derive(seed, "inner", -1))
    )


def row_units(table: Table) -> Rows:
    """For each row the number (n,) of its unit: rows of one group or of equal features, transitively.

    Copies are found by their features alone. Were a row with another label no copy, then of rows that agree in all
    features but not in the label one kind could be in training and the other in test, and what was learnt of them
    would be wrong there by construction (on ``bd_travel.csv`` a random forest's log-loss rises from 0.31 to 1.8).
    """
    copies = table.features.groupby(list(table.features), dropna=False, sort=False).ngroup().to_numpy(np.int64)
    if table.groups is None:
        return np.asarray(copies)
    rows = np.arange(len(copies))
    first_group = len(rows) + int(copies.max()) + 1
    nodes = np.concatenate([len(rows) + copies, first_group + table.groups])
    links = coo_array((np.ones(len(nodes)), (np.tile(rows, 2), nodes)), shape=(nodes.max() + 1,) * 2)
    return np.asarray(connected_components(links, directed=False)[1][: len(rows)], dtype=np.int64)


def _inner(train: Rows, table: Table, units: Rows, three: bool, seed: int) -> tuple[Pair, ...]:
    parts = min(3 if three else 5, len(np.unique(units[train])))
    if parts < (3 if three else 2):
        raise UserError(_too_few(table, len(np.unique(units)), 4))
    part = _deal(_indicators(table)[train], units[train], parts, seed)
    pairs = [(train[part != number], train[part == number]) for number in range(parts)]
    if not three:  # units may be large: of the parts, the one nearest to a fifth
        complete = [pair for pair in pairs if not len(_lacking(pair[0], table))] or pairs
        pairs = [min(complete, key=lambda pair: abs(len(pair[1]) - 0.2 * len(train)))]
    for rows, _ in pairs:
        for label in _lacking(rows, table)[:1]:
            raise UserError(_lacks(table, units, label))
    return tuple(pairs)


def _deal(labels: npt.NDArray[Any], units: Rows, parts: int, seed: int) -> Rows:
    """Deal rows to parts of equal size and equal labels, unit by unit: iterative stratification with whole units.

    The label with the fewest rows left is dealt first, its largest units first, each to the part that lacks most of
    that label and, among equals, most rows (Sechidis, Tsoumakas and Vlahavas, 2011, where every unit is one row). One
    class a row is the special case in which parts differ by one row of each class at most, if all units are single.

    Args:
        labels: 0/1 for each row and class or label (n, L).
        units: Unit of each row (n,).
        parts: Number of parts.
        seed: Seed.

    Returns:
        The part of each row (n,).
    """
    _, unit, size = np.unique(units, return_inverse=True, return_counts=True)
    counts = np.zeros((len(size), labels.shape[1]))
    np.add.at(counts, unit, labels)
    shuffled = np.random.default_rng(seed).permutation(len(size))
    left = counts.sum(axis=0)
    lack = np.tile(left / parts, (parts, 1))  # rows of each label that each part still wants
    room = np.full(parts, len(units) / parts)
    dealt_to = np.full(len(size), -1)
    while len(waiting := shuffled[dealt_to[shuffled] < 0]):
        if left.max() > 0:
            label = int(np.where(left > 0, left, np.inf).argmin())
            waiting, wanted, weight = waiting[counts[waiting, label] > 0], lack[:, label], counts[:, label]
            left -= counts[waiting].sum(axis=0)
        else:
            wanted, weight = room, size.astype(np.float64)
        alike = (size[waiting] == 1) & (counts[waiting].sum(axis=1) <= 1)
        others = waiting[~alike]
        for one in others[np.argsort(-weight[others], kind="stable")]:
            to = max(range(parts), key=lambda part: (wanted[part], room[part]))
            dealt_to[one] = to
            lack[to] -= counts[one]
            room[to] -= size[one]
        # Single rows that differ in nothing, nearly all rows of most tables, go in one step to where one by one would.
        singles = waiting[alike]
        after = wanted[:, None] - np.arange(len(singles))
        order = np.lexsort((np.repeat(-room, len(singles)), -after.ravel()))[: len(singles)]
        dealt_to[singles] = order // max(len(singles), 1)
        given = np.bincount(dealt_to[singles], minlength=parts)
        wanted -= given
        if wanted is not room:
            room -= given
    return np.asarray(dealt_to[unit], dtype=np.int64)


def _thinned(rows: Rows, table: Table, cap: int | None, seed: int) -> Rows:
    """At most ``cap`` rows, in proportion to the labels, but ``KEPT`` rows of each class or each label's yes and no."""
    if cap is None or len(rows) <= cap:
        return rows
    rows = np.random.default_rng(seed).permutation(rows)
    kinds = _indicators(table)[rows] == 1
    kept = np.zeros(len(rows), dtype=bool)
    for kind in (*kinds.T, *(~kinds).T):
        kept[np.flatnonzero(kind)[:KEPT]] = True
    rest = np.flatnonzero(~kept)
    rest = rest[np.lexsort(kinds[rest].T)]  # rows of the same labels side by side, so that even steps are proportional
    wanted = max(cap - int(kept.sum()), 0)
    kept[rest[np.arange(wanted) * len(rest) // max(wanted, 1)]] = True
    return np.sort(rows[kept])


def _is_small(rows: int, cap: int | None) -> bool:
    return min(rows, cap or rows) < SMALL


def _indicators(table: Table) -> npt.NDArray[Any]:
    """0/1 (n, L) for each class or label."""
    return table.target if table.task == "multilabel" else np.eye(len(table.classes))[table.target]


def _lacking(rows: Rows, table: Table) -> Rows:
    """Classes without a row here; labels that are the same in all rows."""
    sums = _indicators(table)[rows].sum(axis=0)
    constant = (sums == 0) | (sums == len(rows)) if table.task == "multilabel" else sums == 0
    return np.flatnonzero(constant)


def _lacks(table: Table, units: Rows, label: int) -> str:
    has = _indicators(table)[:, label] == 1
    found = len(np.unique(units[has]))
    remedies = ["--folds" if table.groups is None else "--folds, another --groups"]
    if table.task == "multiclass":
        remedies.append(f"--merge-rare {int(has.sum()) + 1}")
    what = "label" if table.task == "multilabel" else "class"
    return (
        f"A training part would miss the {what} {table.class_names[label]!r}: its {int(has.sum())} rows lie in "
        f"{found} {_name_of_units(table)}.\nUse fewer {', or '.join(remedies)}."
    )


def _too_few(table: Table, found: int, wanted: int) -> str:
    if table.groups is None:
        return f"The features tell only {found} kinds of rows apart, too few for splits; wanted {wanted}. Add features."
    return (
        f"There are {found} groups of rows, too few for splits; wanted {wanted}. Use fewer --folds, or other --groups."
    )


def _name_of_units(table: Table) -> str:
    return "sets of equal rows" if table.groups is None else "groups"
