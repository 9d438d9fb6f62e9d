"""Calibrators of logits: the minima they claim, scikit-learn's own results, their ways with odd input."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from scipy.special import expit, log_softmax, logsumexp
from sklearn.base import clone, is_classifier
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

from lossary.calibration import (
    IsotonicScaling,
    PlattScaling,
    TemperatureScaling,
    VectorScaling,
    expected_calibration_error,
)
from tests.processes import run_clean

ALL = [TemperatureScaling, VectorScaling, PlattScaling, IsotonicScaling]


def sample(classes: int = 3, rows: int = 400, scale: float = 3.0) -> tuple[Any, Any]:
    generator = np.random.default_rng(classes)
    target = generator.integers(0, classes, rows)
    logits = generator.normal(size=(rows, classes)) + np.eye(classes)[target] + 0.3 * np.arange(classes)
    return scale * logits, target


def log_loss(log_p: Any, target: Any) -> float:
    return float(-log_p[np.arange(len(target)), target].mean())


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("scale", [1e-2, 3.0, 1e4])
def test_temperature_is_the_minimum(classes: int, scale: float) -> None:
    logits, target = sample(classes, scale=scale)
    best = optimize.minimize_scalar(
        lambda log_t: log_loss(log_softmax(logits / np.exp(log_t), axis=1), target),
        bounds=(np.log(scale) - 4, np.log(scale) + 4),
        options={"xatol": 1e-10},
    )
    scaling = TemperatureScaling().fit(logits, target)
    assert scaling.temperature_ == pytest.approx(np.exp(best.x), rel=1e-5)
    np.testing.assert_allclose(scaling.predict_log_proba(logits), log_softmax(logits / scaling.temperature_, axis=1))
    assert (scaling.predict(logits) == logits.argmax(1)).all()


def test_vector_is_the_minimum() -> None:
    logits, target = sample(3)

    def objective(parameters: Any) -> float:
        return log_loss(log_softmax(logits * np.exp(parameters[:3]) + parameters[3:], axis=1), target)

    best = optimize.minimize(objective, np.zeros(6), tol=1e-12)
    scaling = VectorScaling(penalty=0.0).fit(logits, target)
    assert log_loss(scaling.predict_log_proba(logits), target) == pytest.approx(best.fun, abs=1e-8)
    pulled = VectorScaling(penalty=1e6).fit(logits - logits.mean(1, keepdims=True), target)
    np.testing.assert_allclose(pulled.bias_, 0, atol=1e-3)


def test_platt_is_the_minimum_on_soft_targets() -> None:
    logits, target = sample(2)
    margin = logits[:, 1] - logits[:, 0]
    yes, no = target.sum(), len(target) - target.sum()
    soft = np.where(target == 1, (yes + 1) / (yes + 2), 1 / (no + 2))

    def objective(line: Any) -> float:
        p = expit(line[0] * margin + line[1])
        return float(-(soft * np.log(p) + (1 - soft) * np.log(1 - p)).sum())

    best = optimize.minimize(objective, np.array([0.1, 0.0]), tol=1e-12)
    scaling = PlattScaling().fit(logits, target)
    np.testing.assert_allclose([scaling.slope_[1], scaling.bias_[1]], best.x, rtol=1e-4)
    np.testing.assert_allclose(scaling.predict_proba(margin)[:, 1], expit(best.x[0] * margin + best.x[1]), rtol=1e-4)
    np.testing.assert_allclose(scaling.predict_proba(logits), scaling.predict_proba(margin))


def test_platt_and_isotonic_take_each_class_against_the_rest() -> None:
    logits, target = sample(3)
    k = 1
    margin = logits[:, k] - logsumexp(np.delete(logits, k, 1), axis=1)
    alone = PlattScaling().fit(margin, (target == k).astype(int))
    together = PlattScaling().fit(logits, target)
    np.testing.assert_allclose([together.slope_[k], together.bias_[k]], [alone.slope_[1], alone.bias_[1]], rtol=1e-5)
    p = np.exp(log_softmax(logits, axis=1))[:, k]
    theirs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p, target == k)
    ours = np.interp(p, *np.array(IsotonicScaling().fit(logits, target).knots_[k]).T)
    np.testing.assert_allclose(ours, (theirs.predict(p) * 400 + 0.5) / 401, atol=1e-12)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("classes", [2, 4])
def test_mends_an_over_confident_model(kind: Any, classes: int) -> None:
    logits, target = sample(classes, rows=4000)
    half = slice(0, 2000), slice(2000, 4000)
    scaling = kind().fit(logits[half[0]], target[half[0]])
    before = torch.tensor(logits[half[1]]), torch.tensor(target[half[1]])
    after = torch.tensor(scaling.predict_log_proba(logits[half[1]])), before[1]
    assert expected_calibration_error(*after) < 0.5 * expected_calibration_error(*before)
    np.testing.assert_allclose(scaling.predict_proba(logits).sum(1), 1)


@pytest.mark.parametrize("kind", ALL)
def test_tensors_and_arrays_alike(kind: Any) -> None:
    logits, target = sample()
    arrays = kind().fit(logits, target).predict_proba(logits)
    tensors = torch.tensor(logits, requires_grad=True), torch.tensor(target)
    found = kind().fit(*tensors).predict_proba(tensors[0])
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, arrays)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_separated_constant_and_missing_classes_stay_finite(kind: Any, scale: float) -> None:
    target = np.arange(60) % 2
    for logits in (scale * np.eye(3)[target], np.zeros((60, 3))):
        for labels in (target, np.zeros(60, dtype=int)):
            scaling = kind().fit(logits, labels)
            assert np.isfinite(scaling.predict_log_proba(np.zeros((1, 3)))).all()
            assert np.isfinite(scaling.predict_proba(logits)).all()


@pytest.mark.parametrize("kind", ALL)
def test_is_a_scikit_learn_estimator(kind: Any) -> None:
    logits, target = sample()
    scaling = kind()
    assert is_classifier(scaling)
    assert clone(scaling).get_params() == scaling.get_params()
    scores = cross_val_score(make_pipeline(kind()), logits, target, scoring="neg_log_loss", error_score="raise")
    assert np.isfinite(scores).all()
    assert repr(scaling) == f"{kind.__name__}()"
    with pytest.raises(ValueError, match=f"This {kind.__name__} is not fitted yet"):
        scaling.predict(logits)


def test_parameters_can_be_searched() -> None:
    logits, target = sample()
    search = GridSearchCV(VectorScaling(), {"penalty": [0.1, 10.0]}, scoring="neg_log_loss", error_score="raise")
    assert search.fit(logits, target).best_params_["penalty"] in (0.1, 10.0)
    assert repr(VectorScaling(penalty=3.0)) == "VectorScaling(penalty=3.0)"
    with pytest.raises(ValueError, match="no parameter 'strength'"):
        VectorScaling().set_params(strength=1)


def test_bad_input() -> None:
    logits, target = sample()
    scaling = TemperatureScaling()
    for bad, message in (
        ((logits, target + 1), "labels range from 1 to 3; wanted 0 to 2"),
        ((logits, target[:-1]), "labels have shape"),
        ((logits, target.astype(float)), "wanted class indices"),
        ((logits[:, :1], target), "wanted \\(n, C\\) with C >= 2"),
        ((np.where(logits > 5, np.nan, logits), target), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            scaling.fit(*bad)
    with pytest.raises(ValueError, match="logits have 2 classes; fitted were 3"):
        scaling.fit(logits, target).predict(logits[:, :2])


def test_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = sample()
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    monkeypatch.setitem(sys.modules, "sklearn.isotonic", None)
    TemperatureScaling().fit(logits, target)
    for kind in (PlattScaling, IsotonicScaling):
        with pytest.raises(ImportError, match=f"{kind.__name__} needs scikit-learn.*pip install scikit-learn"):
            kind().fit(logits, target)


def test_import_needs_torch_and_numpy_alone() -> None:
    code = (
        "import sys, lossary.calibration, lossary.classification\n"
        "assert not {'sklearn', 'plotly', 'scipy', 'pandas'} & set(sys.modules)"
    )
    run_clean(code)


def test_tables_and_columns_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    logits, target = sample()
    wanted = TemperatureScaling().fit(logits, target).temperature_
    table, column = pandas.DataFrame(np.asarray(logits)), pandas.Series(np.asarray(target))
    assert TemperatureScaling().fit(table, column).temperature_ == pytest.approx(wanted)
