"""Calibration errors: by hand, against brute force, and their inequalities; the reliability diagram."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.calibration import (
    adaptive_calibration_error,
    classwise_calibration_error,
    correctness_brier,
    dense_ece,
    dense_overconfidence_error,
    expected_calibration_error,
    ks_calibration_error,
    maximum_calibration_error,
    overconfidence_error,
    reliability_bins,
    reliability_curve,
    reliability_diagram,
)
from tests.classification.strategies import class_batches

ERRORS = [
    expected_calibration_error,
    adaptive_calibration_error,
    classwise_calibration_error,
    maximum_calibration_error,
    overconfidence_error,
    ks_calibration_error,
    correctness_brier,
]


def batch(rows: int = 300, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (rows,), generator=generator)
    noise = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return 2 * noise + 2 * torch.nn.functional.one_hot(target, classes), target


def brute_force(confidence: np.ndarray, correct: np.ndarray, bins: int) -> float:
    error = 0.0
    for low, high in zip(np.arange(bins) / bins, np.arange(1, bins + 1) / bins, strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    return error


@pytest.mark.parametrize("bins", [1, 10, 15, 25])
def test_expected_error_is_that_of_brute_force(bins: int) -> None:
    logits, target = batch()
    top = logits.softmax(1).max(1)
    expected = brute_force(top.values.numpy(), (top.indices == target).numpy(), bins)
    assert expected_calibration_error(logits, target, bins).item() == pytest.approx(expected)
    p = logits.softmax(1).numpy()
    classwise = np.mean([brute_force(p[:, k], (target == k).numpy(), bins) for k in range(4)])
    assert classwise_calibration_error(logits, target, bins).item() == pytest.approx(classwise)


def test_bins_are_open_below_and_closed_above() -> None:
    bins = reliability_bins(torch.tensor([0.5, 0.75, 1.0]).double(), torch.tensor([1.0, 0.0, 1.0]), n_bins=4)
    assert bins.count.tolist() == [0, 1, 1, 1]
    assert bins.gap().tolist() == [0, -0.5, 0.75, 0]


def test_by_hand() -> None:
    logits = torch.tensor([[0.85, 0.15], [0.85, 0.15], [0.65, 0.35], [0.05, 0.95]]).double().log()
    target = torch.tensor([0, 1, 0, 1])
    assert expected_calibration_error(logits, target, 5).item() == pytest.approx((abs(2.65 - 2) + 0.35) / 4)
    assert expected_calibration_error(logits, target, 10).item() == pytest.approx((0.7 + 0.35 + 0.05) / 4)
    assert maximum_calibration_error(logits, target, 10).item() == pytest.approx(0.35)
    assert overconfidence_error(logits, target, 10).item() == pytest.approx(2 / 4 * 0.85 * 0.35)
    gaps = [0.15, 0.85, 0.35, 0.05]
    assert correctness_brier(logits, target).item() == pytest.approx(sum(gap**2 for gap in gaps) / 4)
    assert ks_calibration_error(logits, target).item() == pytest.approx(0.35 / 4)  # -0.35, then +0.7, then -0.05


@given(class_batches(bound=8.0), st.integers(1, 20))
def test_no_binning_exceeds_the_mean_gap(drawn: tuple[Tensor, Tensor], bins: int) -> None:
    logits, target = drawn
    top = logits.softmax(1).max(1)
    bound = (top.values - (top.indices == target).double()).abs().mean() + 1e-12
    for error in (expected_calibration_error, adaptive_calibration_error):
        assert error(logits, target, bins) <= bound
    assert ks_calibration_error(logits, target) <= bound
    assert expected_calibration_error(logits, target, 1) <= expected_calibration_error(logits, target, bins) + 1e-12


@pytest.mark.parametrize("error", ERRORS)
def test_order_of_rows_shape_and_ignored_rows_do_not_matter(error: Callable[..., Tensor]) -> None:
    logits, target = batch(240)
    logits[::3] = logits[0]  # ties
    value = error(logits, target)
    order = torch.randperm(240, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(error(logits[order], target[order]), value)
    torch.testing.assert_close(error(logits.reshape(24, 10, 4).movedim(-1, 1), target.reshape(24, 10)), value)
    more = torch.cat([logits, torch.full((5, 4), torch.nan)]), torch.cat([target, torch.full((5,), -100)])
    torch.testing.assert_close(error(*more), value)
    assert error(logits[:0], target[:0]).isnan()
    assert value.dtype == torch.float64
    assert not error(logits.requires_grad_(), target).requires_grad


def test_calibrated_confidences_have_small_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40_000, 5, generator=generator)
    target = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    for error in ERRORS[:3]:
        assert error(logits, target) < 0.02
        assert error(3 * logits, target) > 2 * error(logits, target)


def test_quantile_bins_are_equally_full_and_keep_ties_together() -> None:
    confidence = torch.rand(100, generator=torch.Generator().manual_seed(0))
    bins = reliability_bins(confidence, confidence > 0.5, n_bins=10, strategy="quantile")
    assert (bins.count == 10).all()
    assert bins.accuracy[-1] == 1
    tied = reliability_bins(torch.full((100,), 0.7), torch.arange(100) < 30, n_bins=10, strategy="quantile")
    assert sorted(tied.count.tolist()) == [0] * 9 + [100]
    assert (tied.share() * tied.gap().abs()).sum().item() == pytest.approx(0.4)


def test_ks_error_is_the_largest_partial_sum() -> None:
    logits, target = batch()
    top = logits.softmax(1).max(1)
    order = top.values.argsort()
    partial = (top.values - (top.indices == target).double())[order].cumsum(0).abs() / len(target)
    torch.testing.assert_close(ks_calibration_error(logits, target), partial.max())


def test_dense_errors() -> None:
    p = torch.tensor([[0.95, 0.1], [0.55, 0.45]]).double()
    y = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    assert dense_ece(p, y).item() == pytest.approx((0.05 + 0.9 + 2 * 0.55) / 4)
    assert dense_overconfidence_error(p, y).item() == pytest.approx((0.9 * 0.9 + 2 * 0.55 * 0.55) / 4)
    assert dense_ece(p, y.bool()) == dense_ece(p.flatten(), y.flatten())
    assert dense_ece(torch.full((4,), 0.501), torch.ones(4), threshold=128 / 255).item() == pytest.approx(0.501)


def test_curve_of_one_class_and_diagram() -> None:
    logits, target = batch()
    bins = reliability_curve(logits, target, 10, label=2)
    np.testing.assert_allclose((bins.share() * bins.confidence.nan_to_num()).sum(), logits.softmax(1)[:, 2].mean())
    np.testing.assert_allclose((bins.share() * bins.accuracy.nan_to_num()).sum(), (target == 2).double().mean())
    figure = reliability_diagram({"class 2": bins, "top": reliability_curve(logits, target)}, title="Two")
    drawn = [trace for trace in figure.data if trace.name == "class 2" and trace.type == "scatter"]
    np.testing.assert_allclose(drawn[0].x, bins.confidence[bins.count > 0])
    np.testing.assert_allclose(drawn[0].y, bins.accuracy[bins.count > 0])
    assert figure.layout.title.text == "Two"


def test_bad_input_and_a_missing_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = batch(6)
    with pytest.raises(ValueError, match="strategy is 'equal'"):
        reliability_curve(logits, target, strategy="equal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_bins is 0"):
        expected_calibration_error(logits, target, 0)
    with pytest.raises(ValueError, match="label is 4"):
        reliability_curve(logits, target, label=4)
    with pytest.raises(ValueError, match=r"confidence contains 1\.5"):
        reliability_bins(torch.tensor([1.5]), torch.tensor([True]))
    monkeypatch.setitem(sys.modules, "plotly.subplots", None)
    with pytest.raises(ImportError, match="reliability_diagram needs plotly"):
        reliability_diagram(reliability_curve(logits, target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_confidence_on_an_edge_belongs_below_it(dtype: torch.dtype) -> None:
    """In float32, too, where 0.8 is a little more than the number 0.8."""
    confidence = torch.arange(1, 11, dtype=dtype) / 10
    bins = reliability_bins(confidence, torch.ones(10), n_bins=10)
    assert bins.count.tolist() == [1.0] * 10
    grey = torch.tensor([51, 102, 153, 204], dtype=dtype) / 255  # of 8-bit images
    assert reliability_bins(grey, torch.ones(4), n_bins=5).count.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]
