"""``best/``: the recommended objective trained on all rows, as three files that hold data and no code.

``model.safetensors`` holds the weights of the members (one for each inner fold), ``preprocess.skops`` their fitted
preprocessors, ``manifest.json`` everything else: columns, classes, calibrators, decision rule. Nothing is pickled.
Skops may load Lossary's and NumPy's types of a fixed list and scikit-learn's own, whatever the file says of itself.
Checksums find damage and mixed-up files; they do not prove who wrote them.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import skops.io
import torch
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save_file
from scipy.special import logsumexp

from lossary.compare.calibrate import Calibrator, fit_calibrator
from lossary.compare.candidates import Candidate, get_candidate
from lossary.compare.decide import DecisionRule, tune_decision
from lossary.compare.identity import versions
from lossary.compare.journal import Journal, best_of, trials_of
from lossary.compare.load import Table, label_codes, read_frame
from lossary.compare.metrics import METRICS, evaluate
from lossary.compare.models import BUILT_IN, LINKS, predict_output
from lossary.compare.options import Options, Task
from lossary.compare.preprocess import TRUSTED_TYPES, column_kind, make_preprocessor, to_kind
from lossary.compare.splits import Split
from lossary.core.errors import UserError

Array = npt.NDArray[Any]

FORMAT = 1
MODEL, PREPROCESS, MANIFEST = "model.safetensors", "preprocess.skops", "manifest.json"
FEWEST_LABELLED = 20


def build_best(
    table: Table, options: Options, candidate: Candidate, split: Split, journal: Journal, path: Path
) -> None:
    """Write ``best/`` from the trials of a candidate on all rows, which the journal holds with their weights.

    Args:
        table: The data.
        options: What was asked for.
        candidate: The recommended candidate.
        split: The split of all rows.
        journal: Where its trials are.
        path: The folder to write; replaced as a whole.
    """
    trial = best_of(trials_of(journal.fits(candidate.name, split.index)))
    members = journal.outputs(candidate.name, split.index, trial.number)
    if not members:
        raise UserError(f"Every fit of {candidate.name} on all rows diverged; best/ is not written.")
    features = table.features
    preprocessors = [make_preprocessor(features).fit(features.iloc[train]) for train, _ in split.inner]
    rule = DecisionRule()
    if METRICS[options.metric].kind == "decision":
        validation = np.concatenate([m.calibrator.log_probabilities(m.validation_logits) for m in members])
        target = np.concatenate([table.seen_target[rows] for _, rows in split.inner])
        rule = tune_decision(validation, target, task=table.task, metric=options.metric)
    weights = {
        f"{index}.{name}": np.ascontiguousarray(value)
        for index, member in enumerate(members)
        for name, value in (member.weights or {}).items()
    }
    manifest = {
        "format": FORMAT,
        "task": table.task,
        "targets": list(table.target_names),
        "classes": [_json_label(label) for label in table.classes],
        "columns": [{"name": name, "kind": column_kind(features[name])} for name in features],
        "candidate": candidate.name,
        "settings": {name: float(value) for name, value in trial.settings.items()},
        "model": options.model,
        "head": candidate.head,
        "link": candidate.link,
        "members": len(members),
        "metric": options.metric,
        "calibrate": options.calibrate,
        "calibrators": [member.calibrator.to_json() for member in members],
        "earlier_calibrators": [],
        "rule": rule.to_json(),
        "data": table.fingerprint,
        "versions": versions(),
    }

    def write(folder: Path) -> None:
        save_file(weights, folder / MODEL)
        skops.io.dump(preprocessors, folder / PREPROCESS)
        _write_manifest(folder, manifest)

    _replace_folder(path, write)


@dataclasses.dataclass(frozen=True)
class Best:
    """A model loaded from ``best/``; see :func:`load_best`."""

    path: Path
    manifest: dict[str, Any]
    weights: tuple[dict[str, Array], ...]
    preprocessors: tuple[Any, ...]
    calibrators: tuple[Calibrator, ...]
    rule: DecisionRule

    @property
    def task(self) -> Task:
        """The task."""
        task: Task = self.manifest["task"]
        return task

    @property
    def classes(self) -> tuple[Any, ...]:
        """Original labels in the order of the probability columns; multi-label: label columns."""
        return tuple(self.manifest["classes"])

    def logits(self, frame: pd.DataFrame) -> list[Array]:
        """Uncalibrated logits of each member ``(n, C)``."""
        features, _ = self.conform(frame)
        return [self._member_logits(index, features) for index in range(len(self.weights))]

    def log_probabilities(self, frame: pd.DataFrame) -> Array:
        """Log of the members' mean calibrated probability, float64 ``(n, C)``."""
        return _mean(
            [
                calibrator.log_probabilities(z)
                for calibrator, z in zip(self.calibrators, self.logits(frame), strict=True)
            ]
        )

    def predict_proba(self, frame: pd.DataFrame) -> Array:
        """Calibrated probabilities ``(n, C)`` in the order of ``classes``."""
        return np.exp(self.log_probabilities(frame))

    def predict(self, frame: pd.DataFrame) -> Array:
        """Original labels ``(n,)``, by the tuned decision rule if there is one; multi-label: 0/1 ``(n, L)``."""
        return self._decide(self.log_probabilities(frame))

    def conform(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
        """The columns that the model knows, in its order and kinds, and what was ignored.

        Raises:
            UserError: A column is missing, or holds what its kind does not allow.
        """
        frame = frame.rename(columns=str)
        wanted = {column["name"]: column["kind"] for column in self.manifest["columns"]}
        missing = [name for name in wanted if name not in frame.columns]
        if missing:
            raise UserError(
                f"The data lack {len(missing)} column{'s' if len(missing) > 1 else ''} that the model was trained on: "
                f"{', '.join(map(repr, missing[:8]))}{' ...' if len(missing) > 8 else ''}."
            )
        targets = self.manifest["targets"]
        extra = [name for name in frame.columns if name not in wanted and name not in targets]
        notes = [f"Ignored columns that the model does not know: {', '.join(map(repr, extra))}."] if extra else []
        return pd.DataFrame({name: to_kind(frame[name], kind) for name, kind in wanted.items()}), notes

    def _member_logits(self, index: int, features: pd.DataFrame) -> Array:
        outputs = len(self.classes)
        if len(features) == 0:
            return np.zeros((0, outputs), dtype=np.float32)
        x = self.preprocessors[index].transform(features)
        manifest = self.manifest
        output = predict_output(
            manifest["model"],
            manifest["head"],
            self.weights[index],
            x,
            out_features=outputs,
            link=manifest.get("link"),
        )
        # An objective of the user's own has the head's output as its logits: its code is not needed here.
        candidate = None if ":" in manifest["candidate"] else get_candidate(manifest["candidate"], self.task)
        if candidate is None or candidate.logits is None:
            return np.asarray(output)
        parts = {name: torch.tensor(value) for name, value in manifest["settings"].items()}
        return np.asarray(candidate.logits(torch.tensor(output), parts))

    def _decide(self, log_probabilities: Array) -> Array:
        if self.task == "multilabel":
            if self.rule.thresholds:
                return self.rule.decide(log_probabilities)
            return (log_probabilities > math.log(0.5)).astype(np.int64)
        codes = self.rule.decide(log_probabilities) if self.rule.offsets else log_probabilities.argmax(1)
        return np.array(self.classes, dtype=object)[codes]


def load_best(path: Path, *, model: str | None = None) -> Best:
    """Load ``best/``.

    Args:
        path: The folder.
        model: The ``--model`` of the comparison, where it was code of the user's own: that code runs only if it is
            named here too.

    Raises:
        UserError: A file is missing, damaged, of another folder, or asks for code that was not named.
    """
    manifest = _read_manifest(path)
    for name in (MODEL, PREPROCESS):
        if _file_hash(path / name) != manifest["sha256"].get(name):
            raise UserError(f"{path / name} is damaged or from another folder: its checksum differs from {MANIFEST}.")
    if ":" in manifest["model"] and model != manifest["model"]:
        raise UserError(
            f"This model needs your own code {manifest['model']!r}, which only runs if you name it:\n"
            f"--model {manifest['model']}"
        )
    try:
        preprocessors = skops.io.load(path / PREPROCESS, trusted=list(TRUSTED_TYPES))
        tensors = load_safetensors((path / MODEL).read_bytes())
        weights = [
            {name.partition(".")[2]: value for name, value in tensors.items() if name.partition(".")[0] == str(index)}
            for index in range(manifest["members"])
        ]
        best = Best(
            path,
            manifest,
            tuple(weights),
            tuple(preprocessors),
            tuple(Calibrator.from_json(values) for values in manifest["calibrators"]),
            DecisionRule.from_json(manifest["rule"]),
        )
        _check(best)
    except UserError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path} cannot be loaded: {lines[0]}") from error
    return best


def predict_file(best: Best, data: Path, out: Path, *, force: bool = False) -> list[str]:
    """Predict the rows of a file; returns notes for the user.

    The output has the predicted label and a probability for each class; multi-label a 0/1 and a probability for each
    label.

    Raises:
        UserError: The data do not suit the model, or ``out`` exists and ``force`` is False.
    """
    if out.exists() and (out.resolve() == data.resolve() or not force):
        hint = "Choose another -o." if out.resolve() == data.resolve() else "Choose another -o, or give --force."
        raise UserError(f"{out} exists and is not overwritten. {hint}")
    if not out.parent.is_dir():
        raise UserError(f"There is no folder {out.parent} to write {out.name} to.")
    frame = read_frame(data)
    _, notes = best.conform(frame)
    log_probabilities = best.log_probabilities(frame)
    columns: dict[str, Array] = {}
    decided, probability = best._decide(log_probabilities), np.exp(log_probabilities)
    if best.task == "multilabel":
        for index, label in enumerate(best.classes):
            columns[str(label)] = decided[:, index]
            columns[f"probability {label}"] = probability[:, index]
    else:
        columns[str(best.manifest["targets"][0])] = decided
        columns |= {f"probability {label}": probability[:, index] for index, label in enumerate(best.classes)}
    aside = out.with_name(f".{out.name}.part")
    pd.DataFrame(columns).to_csv(aside, index=False, quoting=csv.QUOTE_MINIMAL)
    aside.replace(out)
    return [*notes, f"{len(frame):,} predictions: {out}"]


def calibrate_file(best: Best, labelled: Path) -> list[str]:
    """Refit the calibrators of ``best/`` on labelled rows and store them; returns notes for the user.

    The earlier calibrators stay in the manifest.

    Raises:
        UserError: The file lacks a column or the target, has an unknown label, or fewer than 20 labelled rows.
    """
    frame = read_frame(labelled)
    targets = best.manifest["targets"]
    missing = [name for name in targets if name not in frame.columns]
    if missing:
        raise UserError(f"{labelled} lacks the target {missing[0]!r}, which a calibrator needs.")
    frame = frame[~frame[targets].isna().any(axis=1)].reset_index(drop=True)
    if len(frame) < FEWEST_LABELLED:
        raise UserError(f"{labelled} has {len(frame)} labelled rows; wanted {FEWEST_LABELLED} or more.")
    _, notes = best.conform(frame)
    target = label_codes(frame, targets, best.classes, best.task)
    kind = best.manifest["calibrate"] if best.manifest["calibrate"] != "none" else "temperature"
    logits = best.logits(frame)
    calibrators = [fit_calibrator(z, target, task=best.task, kind=kind) for z in logits]
    before, after = (
        evaluate(
            _mean([c.log_probabilities(z) for c, z in zip(used, logits, strict=True)]),
            target,
            target,
            task=best.task,
            metrics=["log_loss"],
        )["log_loss"]
        for used in (best.calibrators, calibrators)
    )
    manifest = {name: value for name, value in best.manifest.items() if name not in ("sha256", "digest")}
    earlier = {
        "calibrators": manifest["calibrators"],
        "replaced": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
    }
    manifest["earlier_calibrators"] = [*manifest["earlier_calibrators"], earlier]
    manifest["calibrators"] = [calibrator.to_json() for calibrator in calibrators]
    _write_manifest(best.path, manifest)
    return [
        *notes,
        f"Calibrator refitted on {len(frame):,} rows: log-loss {before:.4f} before, {after:.4f} after (on these rows).",
    ]


def _check(best: Best) -> None:
    """Everything must fit together: a mixed-up file is found here if not before."""
    members = best.manifest["members"]
    if not (len(best.preprocessors) == len(best.calibrators) == members and all(best.weights)):
        raise UserError(f"{best.path}: {MANIFEST} speaks of {members} members, the files of others.")
    link = best.manifest.get("link")
    if link is not None and link not in LINKS:
        raise UserError(f"{best.path}: {MANIFEST} names the link {link!r}; this version of Lossary has {[*LINKS]}.")
    for weights in best.weights:
        found = {name.removeprefix("link."): value.shape for name, value in weights.items() if name.startswith("link.")}
        # A user's model may have a part of that name.
        known = found if link is None and best.manifest["model"] not in BUILT_IN else {}
        if link is not None:
            state = LINKS[link].build(len(best.classes)).state_dict()
            known = {name: tuple(value.shape) or (1,) for name, value in state.items()}  # a number is kept as one entry
        if found != known:
            raise UserError(f"{best.path}: {MANIFEST} names the link {link!r}, {MODEL} holds other weights.")
    wanted = [column["name"] for column in best.manifest["columns"]]
    for preprocessor in best.preprocessors:
        if list(preprocessor.feature_names_in_) != wanted:
            raise UserError(f"{best.path}: {PREPROCESS} was made for other columns than {MANIFEST} names.")


def _mean(log_probabilities: Sequence[Array]) -> Array:
    return np.asarray(logsumexp(np.stack(log_probabilities), axis=0)) - math.log(len(log_probabilities))


def _json_label(label: Any) -> Any:
    return label if isinstance(label, str | int | float | bool) else str(label)


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    content = {**manifest, "sha256": {name: _file_hash(folder / name) for name in (MODEL, PREPROCESS)}}
    content["digest"] = _digest(content)
    aside = folder / f".{MANIFEST}.part"
    aside.write_text(json.dumps(content, indent=1) + "\n")
    aside.replace(folder / MANIFEST)


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise UserError(f"There is no folder {path}; wanted the best/ that a comparison wrote.")
    for name in (MODEL, PREPROCESS, MANIFEST):
        if not (path / name).is_file():
            raise UserError(f"{path} lacks {name}: it is not a complete best/ folder.")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        intact = isinstance(manifest, dict) and manifest.pop("digest", None) == _digest(manifest)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path / MANIFEST} is damaged: {str(error).splitlines()[0]}") from error
    if not intact:
        raise UserError(f"{path / MANIFEST} is damaged: its content does not match its digest.")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path} has format {manifest.get('format')}; this version of Lossary reads {FORMAT}.")
    return dict(manifest)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Write a folder aside and put it in place of the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        write(aside)
        aside.chmod(0o755)
        old = None
        if path.exists():
            old = path.with_name(f".{path.name}-old-{os.getpid()}")
            path.rename(old)
        aside.rename(path)
        if old is not None:
            shutil.rmtree(old)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
