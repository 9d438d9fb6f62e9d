"""The memory of a run: one SQLite file that survives a crash at any moment."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import itertools
import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from lossary.compare.calibrate import Calibrator
from lossary.compare.plan import Plan
from lossary.compare.splits import Split
from lossary.core.errors import UserError

JOURNAL, LOCK, WORK = "journal.sqlite", "journal.lock", "work"
RESULTS = ("report.html", "results.parquet", "best")
APPLICATION_ID = 0x4C4F5353  # "LOSS": how a file says that it is a journal of Lossary's
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE splits (split INTEGER PRIMARY KEY, repeat INTEGER NOT NULL, fold INTEGER NOT NULL, rows BLOB NOT NULL);
CREATE TABLE stacks (
    stack INTEGER PRIMARY KEY, candidate TEXT NOT NULL, split INTEGER NOT NULL, round INTEGER NOT NULL,
    UNIQUE (candidate, split, round)
);
CREATE TABLE fits (
    stack INTEGER NOT NULL REFERENCES stacks, trial INTEGER NOT NULL, inner INTEGER NOT NULL, settings TEXT NOT NULL,
    score REAL NOT NULL, best_epoch INTEGER NOT NULL, epochs INTEGER NOT NULL, at_cap INTEGER NOT NULL,
    seconds REAL NOT NULL, calibrator TEXT, logits BLOB, weights BLOB,
    PRIMARY KEY (stack, trial, inner)
);
"""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Outputs:
    """What a fit leaves behind for judging: float32 logits (rows, outputs), its calibrator, and weights if kept."""

    validation_logits: Array
    test_logits: Array
    calibrator: Calibrator
    weights: dict[str, Array] | None = None


@dataclass(frozen=True)
class FitRecord:
    """One fit as the journal keeps it; ``outputs`` is None for the trials of a stack that can never be chosen."""

    trial: int
    inner: int
    settings: dict[str, float]
    score: float
    best_epoch: int
    epochs: int
    at_cap: bool
    seconds: float
    outputs: Outputs | None


@dataclass(frozen=True)
class Trial:
    """One setting and its score: the mean over its inner folds, infinite if a fit diverged; lower is better."""

    number: int
    settings: dict[str, float]
    score: float


def trials_of(fits: Iterable[FitRecord]) -> list[Trial]:
    """The trials of a candidate on a split, from its fits in the order of trials."""
    grouped = ((number, list(group)) for number, group in itertools.groupby(fits, key=lambda fit: fit.trial))
    return [Trial(number, group[0].settings, fmean(fit.score for fit in group)) for number, group in grouped]


def best_of(trials: Iterable[Trial]) -> Trial:
    """The trial of the lowest score; of equal ones the earliest."""
    return min(trials, key=lambda trial: (trial.score, trial.number))


class Journal:
    """An open journal: the only writer of its folder until it is closed.

    Args:
        folder: Output folder; made if it is not there.
        identity: Everything that the numbers depend on, by name.
        fresh: Remove an earlier run of Lossary's from the folder first.

    Raises:
        UserError: Another process writes to the folder; it holds a run of another identity, results without a
            journal, or a file of that name that is no journal; or it cannot be written to.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], *, fresh: bool = False) -> None:
        self.folder = folder
        self._lock = _take_lock(folder)
        try:
            _refuse_foreign_files(folder)
            if fresh:
                remove_run(folder)
            self._database = _open(folder / JOURNAL)
            self._check_identity(dict(identity))
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
        os.close(self._lock)

    def plan(self) -> tuple[Plan, list[Split]] | None:
        """The plan and its splits, the split of ``best/`` (index -1) last; None before there is a plan."""
        row = self._database.execute("SELECT value FROM facts WHERE name = 'plan'").fetchone()
        if row is None:
            return None
        values = json.loads(row[0])
        plan = Plan(**values | {name: tuple(values[name]) for name in ("candidates", "notes")})
        rows = self._database.execute("SELECT * FROM splits ORDER BY split < 0, split")
        return plan, [_unpack_split(*row) for row in rows]

    def write_plan(self, plan: Plan, splits: Iterable[Split]) -> None:
        """Store the plan and its splits, once, before the first stack."""
        with self._writing() as database:
            database.execute("INSERT INTO facts VALUES ('plan', ?)", [json.dumps(dataclasses.asdict(plan))])
            for split in splits:
                row = (split.index, split.repeat, split.fold, _pack_split(split))
                database.execute("INSERT INTO splits VALUES (?, ?, ?, ?)", row)

    def write_stack(self, candidate: str, split: int, round: int, fits: Iterable[FitRecord]) -> None:
        """Store one trained stack in one transaction."""
        with self._writing() as database:
            insert = "INSERT INTO stacks (candidate, split, round) VALUES (?, ?, ?)"
            stack = database.execute(insert, (candidate, split, round)).lastrowid
            rows = ((stack, *_fit_columns(fit)) for fit in fits)
            database.executemany("INSERT INTO fits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def rounds_done(self) -> dict[tuple[str, int], int]:
        """Finished rounds of each (candidate, split) that has any."""
        rows = self._database.execute("SELECT candidate, split, COUNT(*) FROM stacks GROUP BY candidate, split")
        return {(candidate, split): rounds for candidate, split, rounds in rows}

    def fits(self, candidate: str, split: int) -> list[FitRecord]:
        """Every fit of a candidate on a split by trial and inner fold, without its outputs."""
        rows = self._database.execute(
            "SELECT trial, inner, settings, score, best_epoch, epochs, at_cap, seconds "
            "FROM fits JOIN stacks USING (stack) WHERE candidate = ? AND split = ? ORDER BY trial, inner",
            (candidate, split),
        )
        return [
            FitRecord(trial, inner, json.loads(settings), score, best_epoch, epochs, bool(at_cap), seconds, None)
            for trial, inner, settings, score, best_epoch, epochs, at_cap, seconds in rows
        ]

    def stack_seconds(self) -> float:
        """Mean seconds of a stack of the slowest candidate; 0 before the first stack."""
        rows = self._database.execute(
            "SELECT SUM(seconds) / COUNT(DISTINCT stack) FROM fits JOIN stacks USING (stack) GROUP BY candidate"
        )
        return max((seconds for (seconds,) in rows), default=0.0)

    def outputs(self, candidate: str, split: int, trial: int) -> list[Outputs]:
        """Outputs of the fits of one trial by inner fold; empty for a trial that its stack kept none of."""
        rows = self._database.execute(
            "SELECT logits, calibrator, weights FROM fits JOIN stacks USING (stack) "
            "WHERE candidate = ? AND split = ? AND trial = ? AND logits IS NOT NULL ORDER BY inner",
            (candidate, split, trial),
        )
        return [_unpack_outputs(*row) for row in rows]

    def _writing(self) -> _Transaction:
        return _Transaction(self._database, self.folder)

    def _check_identity(self, identity: dict[str, str]) -> None:
        row = self._database.execute("SELECT value FROM facts WHERE name = 'identity'").fetchone()
        if row is None:
            with self._writing() as database:
                database.execute("INSERT INTO facts VALUES ('identity', ?)", [json.dumps(identity)])
            return
        stored = json.loads(row[0])
        differing = [name for name in stored | identity if stored.get(name) != identity.get(name)]
        if differing:
            changes = "; ".join(
                f"{name} was {_shorten(stored.get(name))}, is {_shorten(identity.get(name))}" for name in differing
            )
            raise UserError(
                f"{self.folder} holds another comparison: {changes}.\n"
                "Choose another folder with --out, or start this one over with --fresh."
            )


def remove_run(folder: Path) -> None:
    """Remove what a run of Lossary's has written to ``folder``, and nothing else."""
    names = [*RESULTS, WORK, f"{JOURNAL}-journal", JOURNAL]  # the journal last: it marks the others as Lossary's
    for path in (folder / name for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class _Transaction:
    """A write transaction that reports a full or failing disk as the user's problem that it is."""

    def __init__(self, database: sqlite3.Connection, folder: Path) -> None:
        self._database, self._folder = database, folder

    def __enter__(self) -> sqlite3.Connection:
        self._database.execute("BEGIN IMMEDIATE")
        return self._database

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._database.execute("COMMIT")
            return
        self._database.rollback()
        if isinstance(error, sqlite3.OperationalError):
            raise UserError(
                f"Cannot write to {self._folder}: {error}.\n"
                "Finished work is kept; make room and run the same command again."
            ) from error


def _take_lock(folder: Path) -> int:
    """Hold the folder's lock until the returned descriptor is closed, or the process ends however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"Cannot write to the output folder {folder}: {error.strerror}. Choose one with --out."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise UserError(
            f"Another lossary compare is writing to {folder}. Wait for it, or choose another folder with --out."
        ) from error
    return lock


def _refuse_foreign_files(folder: Path) -> None:
    """Refuse to touch a folder whose files of our names are not ours."""
    journal = folder / JOURNAL
    if not journal.exists():
        foreign = [name for name in RESULTS if (folder / name).exists()]
        if foreign:
            raise UserError(
                f"{folder} already holds {' and '.join(foreign)}, and no journal that says Lossary wrote it.\n"
                "Nothing is overwritten: choose another folder with --out."
            )
        return
    if not journal.is_file() or (journal.stat().st_size and _application_id(journal) not in (0, APPLICATION_ID)):
        raise UserError(f"{journal} is not a journal of Lossary's. Choose another folder with --out.")


def _application_id(path: Path) -> int:
    """SQLite's application id from a file's header; -1 for a file that is no SQLite database."""
    with path.open("rb") as file:
        header = file.read(100)
    return int.from_bytes(header[68:72], "big") if header.startswith(b"SQLite format 3\0") else -1


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = DELETE")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA foreign_keys = ON")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        # One transaction: a process killed here leaves an empty file, which the next one fills.
        database.executescript(
            f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; {SCHEMA} COMMIT;"
        )
    elif version != SCHEMA_VERSION:
        database.close()
        raise UserError(
            f"{path} was written by another version of Lossary (journal format {version}, this one reads "
            f"{SCHEMA_VERSION}).\nChoose another folder with --out, or start over with --fresh."
        )
    return database


def _shorten(value: str | None) -> str:
    """Hashes by their first 12 digits, everything else whole."""
    if value is None:
        return "absent"
    return value[:12] if len(value) == 64 and not value.strip("0123456789abcdef") else value


def _fit_columns(fit: FitRecord) -> tuple[Any, ...]:
    outputs, logits, calibrator, weights = fit.outputs, None, None, None
    if outputs is not None:
        logits = _pack({"validation": outputs.validation_logits, "test": outputs.test_logits})
        calibrator = json.dumps(outputs.calibrator.to_json())
        weights = None if outputs.weights is None else _pack(outputs.weights)
    columns = (fit.trial, fit.inner, json.dumps(fit.settings), fit.score, fit.best_epoch, fit.epochs, fit.at_cap)
    return (*columns, fit.seconds, calibrator, logits, weights)


def _unpack_outputs(logits: bytes, calibrator: str, weights: bytes | None) -> Outputs:
    arrays = _unpack(logits)
    return Outputs(
        validation_logits=arrays["validation"],
        test_logits=arrays["test"],
        calibrator=Calibrator.from_json(json.loads(calibrator)),
        weights=None if weights is None else _unpack(weights),
    )


def _pack_split(split: Split) -> bytes:
    arrays = {"train": split.train, "test": split.test}
    for index, (train, validation) in enumerate(split.inner):
        arrays |= {f"train_{index}": train, f"validation_{index}": validation}
    return _pack(arrays)


def _unpack_split(index: int, repeat: int, fold: int, rows: bytes) -> Split:
    arrays = _unpack(rows)
    count = (len(arrays) - 2) // 2
    inner = tuple((arrays[f"train_{i}"], arrays[f"validation_{i}"]) for i in range(count))
    return Split(index=index, repeat=repeat, fold=fold, train=arrays["train"], test=arrays["test"], inner=inner)


def _pack(arrays: Mapping[str, Array]) -> bytes:
    """Arrays as a zlib-compressed ``.npz``, which keeps names, shapes and dtypes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    return buffer.getvalue()


def _unpack(blob: bytes) -> dict[str, Array]:
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        return dict(arrays.items())
