"""Metrics against scikit-learn, and the batched criteria of early stopping against them."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_expit, log_softmax
from sklearn import metrics as sk

from lossary.compare.decide import DecisionRule, tune_decision
from lossary.compare.metrics import METRICS, ece, evaluate, stacked_criterion

Sample = tuple[Any, Any, Any]


def sample(task: str, *, rows: int = 120, ties: bool = False, seed: int = 0) -> Sample:
    """Logits ``(3, n, C)``, their log-probabilities, and targets."""
    generator = np.random.default_rng(seed)
    classes = {"binary": 2, "multiclass": 4, "multilabel": 3}[task]
    if task == "multilabel":
        target: Any = (generator.random((rows, classes)) < 0.3).astype(np.float32)
        logits = generator.normal(size=(3, rows, classes)) + 1.5 * target - 1
    else:
        target = generator.choice(classes, rows, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
        logits = generator.normal(size=(3, rows, classes)) + np.eye(classes)[target]
    if ties:
        logits = np.round(logits)
    return logits, log_expit(logits) if task == "multilabel" else log_softmax(logits, axis=2), target


TASKS = ["binary", "multiclass", "multilabel"]


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_evaluate_is_scikit_learns(task: Any) -> None:
    _, log_p, target = sample(task)
    log_p = log_p[0]
    decisions, p = log_p.argmax(1), np.exp(log_p)
    values = evaluate(log_p, decisions, target, task=task)
    one_hot = np.eye(p.shape[1])[target]
    columns = [1] if task == "binary" else range(p.shape[1])
    expected = {
        "log_loss": sk.log_loss(target, p),
        "brier": np.square(p - one_hot).sum(1).mean(),
        "accuracy": sk.accuracy_score(target, decisions),
        "balanced_accuracy": sk.balanced_accuracy_score(target, decisions),
        "f1": sk.f1_score(target, decisions, average="macro"),
        "auroc": np.mean([sk.roc_auc_score(one_hot[:, c], p[:, c]) for c in columns]),
        "average_precision": np.mean([sk.average_precision_score(one_hot[:, c], p[:, c]) for c in columns]),
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value), name


def test_evaluate_multilabel_is_scikit_learns() -> None:
    _, log_p, target = sample("multilabel")
    log_p = log_p[0]
    p, decisions = np.exp(log_p), (log_p > np.log(0.5)).astype(int)
    values = evaluate(log_p, decisions, target, task="multilabel")
    assert values["log_loss"] == pytest.approx(np.mean([sk.log_loss(target[:, c], p[:, c]) for c in range(3)]))
    assert values["brier"] == pytest.approx(np.mean([sk.brier_score_loss(target[:, c], p[:, c]) for c in range(3)]))
    assert values["f1"] == pytest.approx(sk.f1_score(target, decisions, average="macro"))
    assert values["auroc"] == pytest.approx(sk.roc_auc_score(target, p))
    assert values["average_precision"] == pytest.approx(sk.average_precision_score(target, p))
    assert values["accuracy"] == pytest.approx((decisions == target).mean())


def test_a_class_absent_from_the_fold_is_left_out_and_counted() -> None:
    _, log_p, target = sample("multiclass")
    kept = target != 2
    log_p, target = log_p[0][kept], target[kept]
    values = evaluate(log_p, log_p.argmax(1), target, task="multiclass")
    assert values["absent_classes"] == 1
    present = [0, 1, 3]
    expected = np.mean([sk.roc_auc_score(target == c, np.exp(log_p[:, c])) for c in present])
    assert values["auroc"] == pytest.approx(expected)
    f1 = sk.f1_score(target, log_p.argmax(1), labels=present, average="macro", zero_division=0.0)
    assert values["f1"] == pytest.approx(f1)
    assert values["balanced_accuracy"] == pytest.approx(
        sk.recall_score(target, log_p.argmax(1), labels=present, average="macro")
    )


@pytest.mark.parametrize("metric", [name for name in METRICS if METRICS[name].primary])
@pytest.mark.parametrize(
    # Rounding breaks ties among probabilities of several classes, so those are tried without.
    ("task", "ties"),
    [("binary", False), ("binary", True), ("multiclass", False), ("multilabel", False), ("multilabel", True)],
)
def test_criterion_is_the_metric(task: Any, metric: str, ties: bool) -> None:
    """Without a calibrator, and with the decision rule tuned on the same rows; lower is better."""
    logits, log_p, target = sample(task, ties=ties)
    got = stacked_criterion(metric, torch.tensor(logits), torch.tensor(target), task=task, calibrate="none")
    sign = -1 if METRICS[metric].higher_is_better else 1
    for k in range(3):
        scores, decisions = log_p[k], np.zeros(0)
        if METRICS[metric].kind == "ranking":  # ties must be ties on both sides
            scores = torch.log_softmax(torch.tensor(logits[k]), 1).numpy() if task != "multilabel" else scores
        if METRICS[metric].kind == "decision":
            if task != "multilabel":
                scores = torch.log_softmax(torch.tensor(logits[k]), 1).numpy()
            decisions = tune_decision(scores, target, task=task, metric=metric).decide(scores)
        value = evaluate(scores, decisions, target, task=task, metrics=[metric])[metric]
        assert sign * got[k].item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("metric", ["log_loss", "brier"])
@pytest.mark.parametrize("task", TASKS)
def test_criterion_after_calibration_forgives_scale_and_bias(task: Any, metric: str) -> None:
    logits, _, target = sample(task, rows=400)
    z = torch.tensor(logits)
    shift = torch.linspace(-1, 1, z.shape[2], dtype=z.dtype)
    plain, skewed = (
        stacked_criterion(metric, moved, torch.tensor(target), task=task, calibrate="temperature")
        for moved in (z, 5 * z + shift)
    )
    torch.testing.assert_close(plain, skewed, rtol=0.01, atol=1e-3)


def test_members_do_not_depend_on_each_other() -> None:
    logits, _, target = sample("multiclass")
    z, y = torch.tensor(logits), torch.tensor(target)
    for metric in METRICS:
        if METRICS[metric].primary:
            together = stacked_criterion(metric, z, y, task="multiclass", calibrate="temperature")
            alone = [
                stacked_criterion(metric, z[k : k + 1], y, task="multiclass", calibrate="temperature") for k in range(3)
            ]
            torch.testing.assert_close(together, torch.cat(alone))


def test_ece_by_hand() -> None:
    log_p = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.35, 0.65]]))
    target = np.array([0, 1, 1, 1])
    assert ece(log_p, target, task="binary") == pytest.approx((2 * abs(0.9 - 0.5) + 2 * abs(0.65 - 1)) / 4)
    calibrated = np.log(np.full((1000, 2), 0.5))
    assert ece(calibrated, np.arange(1000) % 2, task="binary") == pytest.approx(0)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "f1"])
def test_tuned_threshold_is_the_best_there_is(metric: str) -> None:
    _, log_p, target = sample("binary", rows=60)
    for k in range(3):
        rule = tune_decision(log_p[k], target, task="binary", metric=metric)
        value = evaluate(log_p[k], rule.decide(log_p[k]), target, task="binary", metrics=[metric])[metric]
        gap = log_p[k][:, 1] - log_p[k][:, 0]
        every = [
            evaluate(log_p[k], (gap > cut).astype(int), target, task="binary", metrics=[metric])[metric]
            for cut in [*gap, -99]
        ]
        assert value == pytest.approx(max(every))


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "f1"])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_tuning_never_loses_and_gains_where_it_can(task: Any, metric: str) -> None:
    gains = []
    for seed in range(5):
        _, log_p, target = sample(task, seed=seed)
        plain = log_p[0].argmax(1) if task == "multiclass" else (log_p[0] > np.log(0.5)).astype(int)
        rule = tune_decision(log_p[0], target, task=task, metric=metric)
        before, after = (
            evaluate(log_p[0], d, target, task=task, metrics=[metric])[metric] for d in (plain, rule.decide(log_p[0]))
        )
        gains.append(after - before)
    assert min(gains) >= 0
    assert max(gains) > 0


def test_the_plain_rule_stays_where_nothing_is_better() -> None:
    log_p = np.log(np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]))
    rule = tune_decision(log_p, np.array([0, 0, 1]), task="binary", metric="f1")
    assert rule.offsets == (0.0, 0.0)
    assert DecisionRule.from_json(rule.to_json()) == rule
