"""From the journal to the comparison: everything that is judged is computed here, and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import log_expit, log_softmax, logsumexp
from sklearn.metrics import recall_score

from lossary.compare.candidates import Candidate
from lossary.compare.decide import DecisionRule, tune_decision
from lossary.compare.journal import Journal, best_of, trials_of
from lossary.compare.judge import judge
from lossary.compare.load import Table
from lossary.compare.metrics import METRICS, ece, evaluate
from lossary.compare.options import Options, Task
from lossary.compare.plan import Plan
from lossary.compare.results import CandidateResult, Comparison
from lossary.compare.search import edge_sentences
from lossary.compare.splits import Split
from lossary.core.errors import UserError

AT_CAP_WARNING = 0.2
"""Share of fits stopped by the cap on epochs above which a note warns."""

Array = npt.NDArray[Any]
Form = Literal["judged", "as_trained"]
FORMS: tuple[Form, ...] = ("judged", "as_trained")


def collect(
    table: Table,
    options: Options,
    plan: Plan,
    candidates: Sequence[Candidate],
    splits: Sequence[Split],
    journal: Journal,
    refusals: Mapping[str, str | None],
) -> Comparison:
    """Judge what the journal holds.

    Args:
        table: The data.
        options: What was asked for.
        plan: What was to be run.
        candidates: Its candidates, cross-entropy first.
        splits: Its outer splits; those of unfinished repeats are left out for every candidate.
        journal: What was run.
        refusals: By candidate, why ``torch.vmap`` refuses it, or None.

    Returns:
        The comparison; ``out``, ``seconds`` and ``versions`` are left empty.

    Raises:
        UserError: No repeat is finished, or cross-entropy diverged in every trial of a split.
    """
    kept = _finished_repeats(plan, candidates, splits, journal)
    notes = []
    if len(kept) < plan.repeats:
        notes.append(
            f"The budget ended within repeat {len(kept) + 1} of {plan.repeats}: that repeat is left out for every "
            "candidate. The same command with a larger --budget goes on with it."
        )
    splits = [split for split in splits if split.repeat in kept]
    fits = pd.concat([_fits(candidate, splits, plan, journal) for candidate in candidates], ignore_index=True)
    results = []
    for candidate in candidates:
        own = fits[fits["candidate"] == candidate.name]
        if np.isfinite(own.loc[own["chosen"], "score"]).all():
            loop = refusals[candidate.name] is not None
            results.append(_result(candidate, own, splits, table, options, journal, loop=loop))
            notes += _warnings(results[-1], plan, refusals[candidate.name])
        else:
            notes.append(f"{candidate.title} diverged in every trial of a split, and is left out.")
    if not results or results[0].name != candidates[0].name:
        raise UserError(
            "Cross-entropy diverged in every trial of a split, so there is nothing to compare with.\n"
            "Look for extreme values in the features, or allow more --trials."
        )
    metric = METRICS[options.metric]
    judgement = judge(
        {result.name: split_scores(result, metric.name) for result in results},
        folds=plan.folds,
        higher_is_better=metric.higher_is_better,
        min_effect=options.min_effect,
        baseline=candidates[0].name,
        seed=options.seed,
    )
    return Comparison(table, options, plan, results, judgement, metric, fits, notes, out=None, seconds=0.0, versions={})


def split_scores(result: CandidateResult, metric: str) -> Array:
    """A metric, as judged, of every split in their order (J,)."""
    metrics = result.metrics
    chosen = metrics[(metrics["metric"] == metric) & (metrics["form"] == "judged")]
    return chosen.sort_values("split")["value"].to_numpy(dtype=np.float64)


def _finished_repeats(
    plan: Plan, candidates: Sequence[Candidate], splits: Sequence[Split], journal: Journal
) -> list[int]:
    done = journal.rounds_done()
    places = [(candidate, split) for split in splits for candidate in candidates]
    lacking = [place for place in places if done.get((place[0].name, place[1].index), 0) < plan.rounds]
    finished = {split.repeat for split in splits} - {split.repeat for _, split in lacking}
    if not finished:
        raise UserError(
            f"The budget ended before the first of {plan.repeats} repeats was complete: "
            f"{len(places) - len(lacking)} of {len(places)} searches are finished, and kept.\n"
            "Run the same command again to go on, with a larger --budget or without one."
        )
    return sorted(finished)


def _fits(candidate: Candidate, splits: Sequence[Split], plan: Plan, journal: Journal) -> pd.DataFrame:
    """One row a fit; settings that a candidate does not have are missing."""
    rows = []
    for split in splits:
        fits = journal.fits(candidate.name, split.index)
        chosen = best_of(trials_of(fits)).number
        rows += [
            {
                "candidate": candidate.name,
                "split": split.index,
                "repeat": split.repeat,
                "fold": split.fold,
                "inner": fit.inner,
                "round": fit.trial // plan.round_size,
                "trial": fit.trial,
                **fit.settings,
                "score": fit.score,
                "epochs": fit.epochs,
                "best_epoch": fit.best_epoch,
                "at_cap": fit.at_cap,
                "seconds": fit.seconds,
                "chosen": fit.trial == chosen,
            }
            for fit in fits
        ]
    return pd.DataFrame(rows)


def _warnings(result: CandidateResult, plan: Plan, refusal: str | None) -> Iterator[str]:
    if result.share_at_cap > AT_CAP_WARNING:
        yield (
            f"{result.title}: {result.share_at_cap:.0%} of its fits were still improving at the cap of "
            f"{plan.max_epochs} epochs; it may be better than it looks."
        )
    if refusal is not None:
        yield f"{result.title} was trained by a plain loop, because torch.vmap refuses it ({refusal})."


def _result(
    candidate: Candidate,
    fits: pd.DataFrame,
    splits: Sequence[Split],
    table: Table,
    options: Options,
    journal: Journal,
    *,
    loop: bool,
) -> CandidateResult:
    names = [dimension.name for dimension in candidate.dimensions]
    keys = ["split", "repeat", "fold", "round", "trial"]
    firsts = dict.fromkeys((*names, "chosen"), "first")
    trials = fits.groupby(keys, as_index=False).agg({"score": "mean", **firsts})
    records = trials.loc[trials["chosen"], ["split", "trial", "score", *names]].to_dict("records")
    settings = [{str(name): value for name, value in record.items()} for record in records]
    predictions = [
        _predict(candidate, split, chosen["trial"], table, journal)
        for split, chosen in zip(splits, settings, strict=True)
    ]
    repeats = [
        [prediction for prediction in predictions if prediction.split.repeat == repeat]
        for repeat in sorted({split.repeat for split in splits})
    ]
    return CandidateResult(
        name=candidate.name,
        title=candidate.title,
        why=candidate.why,
        paper=candidate.paper,
        control=candidate.control,
        settings=settings,
        trials=trials.drop(columns="chosen"),
        metrics=pd.DataFrame([row for repeat in repeats for row in _metric_rows(repeat, table)]),
        share_at_cap=float(fits["at_cap"].mean()),
        edges=edge_sentences(candidate, settings),
        probabilities=[np.exp(_pooled(repeat, "judged")) for repeat in repeats],
        raw_probabilities=[np.exp(_pooled(repeat, "as_trained")) for repeat in repeats],
        rows=[_rows(repeat) for repeat in repeats],
        recall=_recall(predictions, table, options),
        loop=loop,
    )


@dataclass(frozen=True)
class _Prediction:
    """What a candidate says about the test rows of one split, before any label of theirs is looked at.

    Attributes:
        split: The split.
        log_probabilities: By form, (n, C) float64: the calibrated members averaged; the members as trained averaged.
        rules: By decision metric, the rule tuned for it on the inner validation rows.
    """

    split: Split
    log_probabilities: dict[Form, Array]
    rules: dict[str, DecisionRule]

    def decisions(self, form: Form, metric: str, task: Task) -> Array:
        """Decisions for a metric: by the rule tuned for it if ``judged``, otherwise argmax or 0.5."""
        log_probabilities = self.log_probabilities[form]
        if form == "judged" and metric in self.rules:
            return self.rules[metric].decide(log_probabilities)
        if task == "multilabel":
            return (log_probabilities > math.log(0.5)).astype(np.int64)
        return np.asarray(log_probabilities.argmax(axis=1))


def _predict(candidate: Candidate, split: Split, trial: int, table: Table, journal: Journal) -> _Prediction:
    """Average the members of a trial, each behind its own calibrator, and tune the decision rules.

    Of the table's labels only those of inner validation rows are read.
    """
    members = journal.outputs(candidate.name, split.index, trial)
    judged = [member.calibrator.log_probabilities(member.test_logits) for member in members]
    as_trained = [_raw_log_probabilities(member.test_logits, table.task) for member in members]
    validation = np.concatenate([m.calibrator.log_probabilities(m.validation_logits) for m in members])
    target = np.concatenate([table.seen_target[rows] for _, rows in split.inner])
    rules = {
        name: tune_decision(validation, target, task=table.task, metric=name)
        for name, metric in METRICS.items()
        if metric.kind == "decision"
    }
    return _Prediction(split, {"judged": _mean(judged), "as_trained": _mean(as_trained)}, rules)


def _raw_log_probabilities(logits: Array, task: Task) -> Array:
    wide = logits.astype(np.float64)
    return np.asarray(log_expit(wide) if task == "multilabel" else log_softmax(wide, axis=1))


def _mean(log_probabilities: Sequence[Array]) -> Array:
    """Log of the mean probability over members."""
    return np.asarray(logsumexp(np.stack(log_probabilities), axis=0)) - math.log(len(log_probabilities))


def _metric_rows(repeat: Sequence[_Prediction], table: Table) -> Iterator[dict[str, Any]]:
    """Every metric in both forms: ECE over the repeat, the others split by split."""
    task = table.task
    for form in FORMS:
        place: dict[str, Any] = {"split": -1, "repeat": repeat[0].split.repeat, "fold": -1, "form": form}
        value = ece(_pooled(repeat, form), table.target[_rows(repeat)], task=task)
        yield place | {"metric": "ece", "value": value}
        for prediction in repeat:
            split, target = prediction.split, table.target[prediction.split.test]
            place = {"split": split.index, "repeat": split.repeat, "fold": split.fold, "form": form}
            for name in METRICS:
                if name != "ece":
                    decisions = prediction.decisions(form, name, task)
                    scores = evaluate(prediction.log_probabilities[form], decisions, target, task=task, metrics=[name])
                    yield place | {"metric": name, "value": scores[name]}


def _recall(predictions: Sequence[_Prediction], table: Table, options: Options) -> pd.DataFrame:
    target = np.concatenate([table.target[prediction.split.test] for prediction in predictions])
    recalls = {}
    columns: dict[str, Form] = {"judged": "judged", "argmax": "as_trained"}
    for column, form in columns.items():
        decisions = np.concatenate([p.decisions(form, options.metric, table.task) for p in predictions])
        recalls[column] = recall_score(
            target, decisions, labels=range(table.num_outputs), average=None, zero_division=0.0
        )
    counts = (
        table.target.sum(axis=0)
        if table.task == "multilabel"
        else np.bincount(table.target, minlength=table.num_outputs)
    )
    return pd.DataFrame({"class": table.class_names, **recalls, "support": counts.astype(np.int64)})


def _pooled(repeat: Sequence[_Prediction], form: Form) -> Array:
    return np.concatenate([prediction.log_probabilities[form] for prediction in repeat])


def _rows(repeat: Sequence[_Prediction]) -> Array:
    return np.concatenate([prediction.split.test for prediction in repeat])
