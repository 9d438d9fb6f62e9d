"""Training data made worse on purpose: wrong labels and rare classes, to see which objective bears them.

Both touch inner training and inner validation rows alone; test rows stay as they are.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lossary.core.errors import UserError
from lossary.core.seeding import derive

if TYPE_CHECKING:
    from lossary.compare.load import Table

FEWEST = 8
"""Training rows that every class keeps."""


def flip_labels(table: Table, share: float, seed: int) -> Table:
    """A table in which each training label is wrong with the probability ``share``, on the same rows for everybody.

    A wrong label is any other class with equal probability (symmetric noise); several labels flip one by one. Which
    labels flip at a smaller share flip at a larger one too.

    Args:
        table: The table; its ``target``, by which is tested, stays.
        share: Probability of a wrong label, in [0, 1).
        seed: Seed.
    """
    if share == 0:
        return table
    numbers = np.random.default_rng(derive(seed, "label noise"))
    flipped = numbers.random(table.target.shape) < share
    if table.task == "multilabel":
        noisy = np.where(flipped, 1 - table.target, table.target)
    else:
        steps = numbers.integers(1, table.num_outputs, size=table.target.shape)
        noisy = np.where(flipped, (table.target + steps) % table.num_outputs, table.target)
    return dataclasses.replace(table, training_target=noisy.astype(table.target.dtype))


def thin_classes(rows: npt.NDArray[np.int64], table: Table, ratio: float, seed: int) -> npt.NDArray[np.int64]:
    """Rows of which the most frequent class has ``ratio`` times as many as the rarest.

    The order of the classes by frequency in the whole table stays, the same in every split, and the classes between
    fall geometrically. As many rows are kept as that allows.

    Args:
        rows: Outer training rows.
        table: The table.
        ratio: Rows of the most frequent class for one of the rarest, at least 1.
        seed: Seed of the choice of rows.

    Raises:
        UserError: The table has several labels, or the rarest class would keep fewer than 8 rows.
    """
    if table.task == "multilabel":
        raise UserError("--imbalance is for tasks of one class a row; this table has several labels.")
    labels = table.target[rows]
    counts = np.bincount(labels, minlength=table.num_outputs)
    # By the whole table: where two classes are as frequent, a row more or less in a split must not swap them.
    ranked = np.argsort(-np.bincount(table.target, minlength=table.num_outputs), kind="stable")
    falls = ratio ** -(np.arange(len(ranked)) / max(len(ranked) - 1, 1))
    most = float((counts[ranked] / falls).min())
    wanted = np.floor(most * falls + 1e-9).astype(np.int64)
    if wanted.min() < FEWEST:
        possible = _largest_ratio(counts[ranked])
        remedy = f"a smaller ratio (these rows allow {possible:g})" if possible >= 1 else "--merge-rare"
        raise UserError(
            f"--imbalance {ratio:g} would leave {int(wanted.min())} training rows of the class "
            f"{table.class_names[int(ranked[int(wanted.argmin())])]!r}; wanted {FEWEST} or more.\n"
            f"Use {remedy}, or more --folds, which leave more rows to train on."
        )
    shuffled = np.random.default_rng(derive(seed, "imbalance")).permutation(rows)
    kept: list[Any] = [
        shuffled[table.target[shuffled] == label][:count] for label, count in zip(ranked, wanted, strict=True)
    ]
    return np.sort(np.concatenate(kept))


def _largest_ratio(counts: npt.NDArray[np.int64]) -> float:
    """The largest ratio that leaves the rarest class 8 rows, rounded down; 0 if none does. Most frequent first."""
    last = len(counts) - 1
    if counts[last] < FEWEST:
        return 0.0
    # A class between may be too small to keep its place above: most * ratio^(-i / last) <= count of class i.
    bounds = [(counts[place] / FEWEST) ** (last / (last - place)) for place in range(last)]
    return math.floor(10 * min(bounds, default=1.0)) / 10
