"""Calibrators: the minimum they claim, their limits, and their way through JSON."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from scipy.special import log_expit, log_softmax

from lossary.compare.calibrate import PENALTY, Calibrator, fit_affine, fit_calibrator


def sample(classes: int, rows: int, scale: float = 1.0) -> tuple[Any, Any]:
    generator = np.random.default_rng(classes)
    target = generator.integers(0, classes, rows)
    logits = scale * (2 * generator.normal(size=(rows, classes)) + 2 * np.eye(classes)[target] + np.arange(classes))
    return logits, target


def log_loss(calibrator: Calibrator, logits: Any, target: Any) -> float:
    return float(-calibrator.log_probabilities(logits)[np.arange(len(target)), target].mean())


@pytest.mark.parametrize("kind", ["temperature", "vector"])
@pytest.mark.parametrize("classes", [2, 4])
def test_is_the_minimum_of_the_penalised_log_loss(classes: int, kind: str) -> None:
    logits, target = sample(classes, 200)
    scales = classes if kind == "vector" else 1

    def objective(parameters: Any) -> float:
        scale, bias = np.exp(parameters[:scales]), parameters[scales:]
        centred = logits - logits.mean(1, keepdims=True)
        log_p = log_softmax(centred * scale + bias, axis=1)
        return float(-log_p[np.arange(len(target)), target].sum() + PENALTY / 2 * np.square(parameters).sum())

    best = optimize.minimize(objective, np.zeros(scales + classes), tol=1e-12)
    scale, bias = fit_affine(torch.tensor(logits)[None], torch.tensor(target), task="multiclass", kind=kind, steps=100)
    found = np.concatenate([scale[0].log().numpy(), bias[0].numpy()])
    assert objective(found) <= best.fun + 1e-6
    np.testing.assert_allclose(found, best.x, atol=1e-3)


def test_vector_is_applied_as_it_was_fitted() -> None:
    """A shift common to a row's logits changes nothing, and what is applied has the log-loss that was minimised."""
    logits, target = sample(4, 200)
    shift = 5 * np.random.default_rng(0).normal(size=(200, 1))
    plain, shifted = (fit_calibrator(z, target, task="multiclass", kind="vector") for z in (logits, logits + shift))
    np.testing.assert_allclose(shifted.log_probabilities(logits), plain.log_probabilities(logits), atol=1e-6)
    np.testing.assert_allclose(plain.log_probabilities(logits + shift), plain.log_probabilities(logits), atol=1e-9)
    one = fit_calibrator(logits, target, task="multiclass", kind="temperature")
    assert log_loss(plain, logits, target) <= log_loss(one, logits, target) + 1e-3


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2, 1e4])
def test_the_scale_of_the_logits_hardly_matters(scale: float) -> None:
    logits, target = sample(3, 600)
    plain = fit_calibrator(logits, target, task="multiclass", kind="temperature")
    scaled = fit_calibrator(scale * logits, target, task="multiclass", kind="temperature")
    assert log_loss(scaled, scale * logits, target) == pytest.approx(log_loss(plain, logits, target), abs=0.02)


def test_few_rows_of_a_class_leave_the_biases_alone() -> None:
    logits, target = sample(2, 200)
    target[:] = 0
    target[:19] = 1
    few = fit_calibrator(logits, target, task="binary", kind="temperature")
    assert few.bias == (0.0, 0.0)
    target[:20] = 1
    assert fit_calibrator(logits, target, task="binary", kind="temperature").bias != (0.0, 0.0)


def test_separable_rows_stay_finite() -> None:
    target = np.arange(100) % 2
    logits = 10 * (np.eye(2)[target] - 0.5)
    for scale in (1e-3, 1.0, 1e4):
        calibrator = fit_calibrator(scale * logits, target, task="binary", kind="temperature")
        assert np.isfinite(calibrator.scale).all()
        assert np.isfinite(calibrator.log_probabilities(scale * logits)).all()


def test_constant_logits_learn_the_shares() -> None:
    target = (np.arange(400) % 4 == 0).astype(int)
    calibrator = fit_calibrator(np.zeros((400, 2)), target, task="binary", kind="temperature")
    np.testing.assert_allclose(np.exp(calibrator.log_probabilities(np.zeros((1, 2))))[0], [0.75, 0.25], atol=0.01)


def test_non_finite_logits_are_left_alone() -> None:
    logits, target = sample(2, 50)
    logits[0, 0] = np.nan
    assert fit_calibrator(logits, target, task="binary", kind="temperature").kind == "none"


def test_labels_are_calibrated_one_by_one() -> None:
    generator = np.random.default_rng(0)
    target = (generator.random((500, 2)) < [0.1, 0.5]).astype(np.float32)
    logits = 3 * generator.normal(size=(500, 2)) + 3 * target
    both = fit_calibrator(logits, target, task="multilabel", kind="temperature")
    for label in range(2):
        alone = fit_calibrator(logits[:, [label]], target[:, [label]], task="multilabel", kind="temperature")
        assert both.scale[label] == pytest.approx(alone.scale[0], abs=1e-6)
        assert both.bias[label] == pytest.approx(alone.bias[0], abs=1e-6)
        p = np.exp(both.log_probabilities(logits))[:, label]
        assert p.mean() == pytest.approx(target[:, label].mean(), abs=0.01)


def test_isotonic_is_monotone_and_never_certain() -> None:
    logits, target = sample(2, 300)
    calibrator = fit_calibrator(logits, target, task="binary", kind="isotonic")
    line = np.stack([np.zeros(50), np.linspace(-30, 30, 50)], 1)
    p = np.exp(calibrator.log_probabilities(line))
    assert (np.diff(p[:, 1]) >= -1e-12).all()
    assert p.min() > 0
    np.testing.assert_allclose(p.sum(1), 1)


@pytest.mark.parametrize("kind", ["temperature", "vector", "isotonic", "none"])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_json_keeps_every_bit(kind: str, task: Any) -> None:
    logits, target = sample(3, 100)
    labels = np.eye(3)[target] if task == "multilabel" else target
    calibrator = fit_calibrator(logits, labels, task=task, kind=kind)
    again = Calibrator.from_json(json.loads(json.dumps(calibrator.to_json())))
    assert np.array_equal(again.log_probabilities(logits), calibrator.log_probabilities(logits))


def test_identity() -> None:
    logits, target = sample(3, 50)
    nothing = fit_calibrator(logits, target, task="multiclass", kind="none")
    np.testing.assert_allclose(nothing.log_probabilities(logits), log_softmax(logits, axis=1))
    labels = fit_calibrator(logits, np.eye(3)[target], task="multilabel", kind="none")
    np.testing.assert_allclose(labels.log_probabilities(logits), log_expit(logits))


def test_members_do_not_depend_on_each_other() -> None:
    logits, target = sample(3, 80)
    stack = torch.tensor(np.stack([logits, 1e3 * logits, logits[::-1]]))
    together = fit_affine(stack, torch.tensor(target), task="multiclass")
    for k in range(3):
        alone = fit_affine(stack[k : k + 1], torch.tensor(target), task="multiclass")
        torch.testing.assert_close([part[k] for part in together], [part[0] for part in alone])
