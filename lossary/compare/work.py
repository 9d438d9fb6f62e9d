"""One unit of work: a stack of fits, described by names and numbers and answered by a table of results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lossary.compare.calibrate import fit_calibrator
from lossary.compare.candidates import get_candidate
from lossary.compare.journal import FitRecord, Outputs, best_of, trials_of
from lossary.compare.load import Table
from lossary.compare.preprocess import make_preprocessor
from lossary.compare.splits import Split
from lossary.compare.train import Fit, Fold, Member, Training, train_stack

OnEpoch = Callable[[int, int], None]
"""Called with (epochs done, members still training)."""


@dataclass(frozen=True)
class StackJob:
    """One round of trials of one candidate on the inner folds of one outer split.

    Attributes:
        candidate: Name of the candidate.
        split: Index of the outer split.
        round: Round of trials, from 0.
        first_trial: Number of the first trial.
        settings: Settings of each trial.
        folds: Folders of the preprocessed inner folds.
        training: How to train.
        keep_weights: Whether the best trial's weights come back too.
    """

    candidate: str
    split: int
    round: int
    first_trial: int
    settings: tuple[dict[str, float], ...]
    folds: tuple[Path, ...]
    training: Training
    keep_weights: bool = False

    @property
    def num_fits(self) -> int:
        """Number of fits in the stack."""
        return len(self.settings) * len(self.folds)


def train_job(job: StackJob, on_epoch: OnEpoch | None = None) -> list[FitRecord]:
    """Train a stack; the fits come back by trial and inner fold, the best trial's with their outputs.

    Only the best trial of a stack can ever be chosen, so only its fits are calibrated and keep their logits.
    """
    candidate = get_candidate(job.candidate, job.training.task)
    folds = [_load_fold(folder, key=(job.split, inner)) for inner, folder in enumerate(job.folds)]
    places = [(trial, inner) for trial in range(len(job.settings)) for inner in range(len(folds))]
    members = [Member(fold=inner, settings=job.settings[trial]) for trial, inner in places]
    fits = train_stack(candidate, folds, members, job.training, keep_weights=job.keep_weights, on_epoch=on_epoch)
    records = [
        FitRecord(
            trial=job.first_trial + trial,
            inner=inner,
            settings=dict(job.settings[trial]),
            score=math.inf if math.isnan(fit.score) else float(fit.score),
            best_epoch=int(fit.best_epoch),
            epochs=int(fit.epochs),
            at_cap=bool(fit.at_cap),
            seconds=float(fit.seconds),
            outputs=None,
        )
        for (trial, inner), fit in zip(places, fits, strict=True)
    ]
    best = best_of(trials_of(records))
    if not math.isfinite(best.score):
        return records
    for index, record in enumerate(records):
        if record.trial == best.number:
            outputs = _outputs(fits[index], folds[record.inner], job.training)
            records[index] = dataclasses.replace(record, outputs=outputs)
    return records


def _outputs(fit: Fit, fold: Fold, training: Training) -> Outputs:
    calibrator = fit_calibrator(fit.validation_logits, fold.y_val, task=training.task, kind=training.calibrate)
    return Outputs(fit.validation_logits, fit.test_logits, calibrator, fit.weights)


class FoldStore:
    """Preprocessed inner folds as ``.npy`` files, which every worker maps instead of copying.

    A preprocessor sees the training rows of its own inner fold and nothing else.

    Args:
        table: The data.
        folder: Where the files go.
    """

    def __init__(self, table: Table, folder: Path) -> None:
        self._table, self._folder = table, folder

    def folders(self, split: Split) -> tuple[Path, ...]:
        """Folders of the inner folds of a split, made when first asked for."""
        return tuple(self._folder_of(split, inner, *rows) for inner, rows in enumerate(split.inner))

    def _folder_of(
        self, split: Split, inner: int, train: npt.NDArray[np.int64], validation: npt.NDArray[np.int64]
    ) -> Path:
        folder = self._folder / f"{split.index}-{inner}"
        if not folder.exists():
            features, target = self._table.features, self._table.seen_target
            preprocessor = make_preprocessor(features.iloc[train]).fit(features.iloc[train])
            folder.mkdir(parents=True)
            for name, rows in (("train", train), ("val", validation), ("test", split.test)):
                # scikit-learn refuses to transform no rows at all, which is what best/ has for test.
                x = preprocessor.transform(features.iloc[rows if len(rows) else train[:1]])[: len(rows)]
                np.save(folder / f"x_{name}.npy", x)
            np.save(folder / "y_train.npy", target[train])
            np.save(folder / "y_val.npy", target[validation])
        return folder


def _load_fold(folder: Path, key: tuple[int, ...]) -> Fold:
    names = ("x_train", "y_train", "x_val", "y_val", "x_test")
    return Fold(key=key, **{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names})
