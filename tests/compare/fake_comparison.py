"""Comparisons made of random numbers, for whatever shows one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from lossary.compare.candidates import get_candidate
from lossary.compare.judge import Judgement, Verdict
from lossary.compare.load import Table
from lossary.compare.metrics import METRICS
from lossary.compare.options import Options, Task
from lossary.compare.plan import Plan
from lossary.compare.results import CandidateResult, Comparison

NAN = float("nan")


def fake_comparison(
    task: Task,
    candidates: Sequence[str],
    classes: Sequence[Any],
    *,
    metric: str = "log_loss",
    folds: int = 5,
    repeats: int = 2,
    splits: int | None = None,
    rows: int = 600,
    trials: int = 16,
    shares: Sequence[float] | None = None,
    seed: int = 0,
    name: str = "fake",
    warnings: tuple[str, ...] = (),
    out: Path | None = None,
    objectives: tuple[str, ...] = ("auto",),
) -> Comparison:
    """A comparison in which the third candidate is best.

    ``splits`` is the number of judged splits, ``folds * repeats`` unless given.
    """
    rng = np.random.default_rng(seed)
    num, splits = len(classes), splits or folds * repeats
    if task == "multilabel":
        target: Any = (rng.random((rows, num)) < np.linspace(0.4, 0.05, num)).astype(np.float32)
    else:
        target = rng.choice(num, size=rows, p=shares)
        target[:num] = np.arange(num)
    higher = METRICS[metric].higher_is_better
    sign = 1 if higher else -1
    results, verdicts = [], {}
    for place, candidate in enumerate(candidates):
        gain = {0: 0.0, 2: 0.03}.get(place, -0.004 * place + 0.01)
        results.append(_result(rng, candidate, task, classes, target, gain, metric, folds, repeats, splits, trials))
        verdicts[candidate] = _verdict(candidate, place, 0.4 + sign * gain, gain, tested=splits > 1)
    recommended = candidates[2] if len(candidates) > 2 and splits > 1 else candidates[0]
    title = get_candidate(recommended, task).title
    fits = pd.DataFrame({"candidate": list(candidates) * 60, "inner": 0, "score": 0.4, "at_cap": False, "seconds": 0.9})
    return Comparison(
        table=Table(
            name=name,
            features=pd.DataFrame(rng.normal(size=(rows, 11))),
            target=target,
            task=task,
            classes=tuple(classes),
            target_names=("y",),
            groups=None,
            warnings=warnings,
            fingerprint="0123456789abcdef" * 4,
        ),
        options=Options(
            target=("y",), metric=metric, folds=folds, repeats=repeats, objectives=objectives, budget=600.0
        ),
        plan=Plan(
            trials=trials,
            repeats=2,
            folds=folds,
            row_cap=400,
            batch_size=64,
            max_epochs=120,
            patience=12,
            workers=2,
            device="cpu",
            candidates=tuple(candidates),
            seconds_per_fit=0.2,
            estimated_seconds=500.0,
            notes=("To keep within --budget 600 s: 8 trials a candidate and split instead of 16.",),
        ),
        candidates=results,
        judgement=Judgement(
            verdicts=verdicts,
            recommended=recommended,
            tied=(),
            sentence=f"Use {title}: it lowers log-loss by 7.5% against cross-entropy, and nothing here does better."
            if recommended != candidates[0]
            else "The data show no reason to leave cross-entropy.",
            detectable=0.012 if splits > 1 else NAN,
        ),
        metric=METRICS[metric],
        fits=fits,
        notes=["Repeat 3 was not finished within the budget and is left out for all."],
        out=out,
        seconds=431.0,
        versions={"lossary": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
    )


def with_value(comparison: Comparison, candidate: int, metric: str, form: str, value: float) -> Comparison:
    """The comparison with one metric of one candidate set to a value on every split."""
    results = list(comparison.candidates)
    frame = results[candidate].metrics.copy()
    frame.loc[(frame["metric"] == metric) & (frame["form"] == form), "value"] = value
    results[candidate] = dataclasses.replace(results[candidate], metrics=frame)
    return dataclasses.replace(comparison, candidates=results)


def needs_seven_classes(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """An objective of the user's own that fails on two classes."""
    return F.cross_entropy(output, target, weight=torch.ones(7))


def _verdict(name: str, place: int, mean: float, gain: float, *, tested: bool) -> Verdict:
    half = 0.006 + 0.002 * place
    words = {0: "baseline", 1: "equivalent", 2: "better", 4: "worse"}
    return Verdict(
        name=name,
        mean=mean,
        difference=gain,
        low=gain - half if tested and place else NAN,
        high=gain + half if tested and place else NAN,
        gain=gain / 0.4,
        verdict=words.get(place, "undecided") if tested or not place else "undecided",
        probability_best=(0.8 if place == 2 else 0.03) if tested else NAN,
        detectable=half * 1.5 if tested and place else NAN,
    )


def _result(
    rng: np.random.Generator,
    name: str,
    task: Task,
    classes: Sequence[Any],
    target: Any,
    gain: float,
    metric: str,
    folds: int,
    repeats: int,
    splits: int,
    trials: int,
) -> CandidateResult:
    candidate = get_candidate(name, task)
    rows = np.arange(len(target))
    draws = [
        {"split": split, "repeat": split // folds, "fold": split % folds, "round": trial // 8, "trial": trial}
        | {d.name: _draw(rng, d) for d in candidate.dimensions}
        for split in range(splits)
        for trial in range(trials)
    ]
    frame = pd.DataFrame(draws)
    score = 0.4 - gain + 0.15 * rng.exponential(size=len(frame)) ** 2 / (1 + 0.2 * frame["trial"])
    frame["score"] = np.where(rng.random(len(frame)) < 0.02, np.inf, score)
    chosen = frame.loc[frame.groupby("split")["score"].idxmin()].drop(columns=["repeat", "fold", "round"])
    if task == "multilabel":
        sharp = 1 / (1 + np.exp(-rng.normal(3 * target - 2, 1.5)))
        calibrated = 0.1 + 0.8 * sharp
    else:
        logits = rng.normal(size=(len(target), len(classes))) + 2.5 * np.eye(len(classes))[target]
        sharp, calibrated = (np.exp(t * logits) / np.exp(t * logits).sum(1, keepdims=True) for t in (2.0, 1.0))
    values = []
    for place, key in enumerate(METRICS):
        for form in ("judged", "as_trained"):
            for split in range(splits):
                value = 0.4 + 0.03 * place + gain + rng.normal(scale=0.01) + (0.05 if form == "as_trained" else 0)
                value = NAN if key == "auroc" and split == 1 else value
                values.append(
                    {
                        "split": split,
                        "repeat": split // folds,
                        "fold": split % folds,
                        "metric": key,
                        "form": form,
                        "value": value,
                    }
                )
    names = [str(label) for label in classes]
    counts = target.sum(0) if task == "multilabel" else np.bincount(target, minlength=len(classes))
    return CandidateResult(
        name=name,
        title=candidate.title,
        why=candidate.why,
        paper=candidate.paper,
        control=candidate.control,
        settings=chosen.to_dict("records"),
        trials=frame,
        metrics=pd.DataFrame(values),
        share_at_cap=0.31 if name == "focal" else 0.02,
        edges=["The best gamma lay at the upper end of its range (5) in 3 of 10 splits."] if name == "focal" else [],
        probabilities=[calibrated] * repeats,
        raw_probabilities=[sharp] * repeats,
        rows=[rows] * repeats,
        recall=pd.DataFrame(
            {
                "class": names,
                "judged": rng.uniform(0.3, 1, len(names)),
                "argmax": rng.uniform(0.3, 1, len(names)),
                "support": counts.astype(int),
            }
        ),
        loop=":" in name,
    )


def _draw(rng: np.random.Generator, dimension: Any) -> float:
    u = rng.random()
    if dimension.step:
        return float(round(dimension.low + u * (dimension.high - dimension.low)))
    if dimension.log:
        return float(dimension.low * (dimension.high / dimension.low) ** u)
    return float(dimension.low + u * (dimension.high - dimension.low))
