"""Self-distillation: the losses it contains, ridge in closed form, and the weight that Monte Carlo agrees is best."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lossary.distillation import (
    expected_parameter_error,
    optimal_regularization,
    optimal_xi,
    ridge_self_distillation,
    self_distill,
    self_distillation_loss,
    self_distillation_target,
)

SEED = st.integers(0, 10_000)
XI = st.floats(-2.0, 4.0)
RIDGE = st.floats(0.05, 20.0)


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(5, (4,), generator=generator)


def problem(seed: int, rows: int = 12, columns: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return features, torch.randn(columns, generator=generator, dtype=torch.float64)


@given(SEED, XI, st.floats(0.5, 4.0))
@settings(max_examples=30)
def test_mixes_imitation_and_labels(seed: int, xi: float, temperature: float) -> None:
    student, teacher, target = batch(seed)
    weight = torch.linspace(0.5, 2.0, 5, dtype=torch.float64)
    soft = (teacher / temperature).softmax(1)
    options = {"weight": weight, "reduction": "none"}
    loss = self_distillation_loss(student, teacher, target, xi=xi, temperature=temperature, **options)
    given_labels, imitation = (F.cross_entropy(student, t, **options) for t in (target, soft))
    torch.testing.assert_close(loss, xi * imitation + (1 - xi) * given_labels)
    smoothed = self_distillation_loss(student, teacher, target, xi=0.0, label_smoothing=0.3, weight=weight)
    torch.testing.assert_close(smoothed, F.cross_entropy(student, target, label_smoothing=0.3, weight=weight))


@given(SEED, XI)
@settings(max_examples=30)
def test_gradient_is_prediction_minus_target(seed: int, xi: float) -> None:
    student, teacher, target = batch(seed)
    gradient = torch.func.grad(lambda z: self_distillation_loss(z, teacher, target, xi=xi, reduction="sum"))(student)
    mixed = self_distillation_target(teacher, target, xi=xi)
    torch.testing.assert_close(gradient, student.softmax(1) - mixed)
    torch.testing.assert_close(mixed.sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(gradient.sum(1), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(F.cross_entropy(student, mixed), self_distillation_loss(student, teacher, target, xi=xi))


def test_a_sure_teacher_that_agrees_changes_nothing() -> None:
    student, _, target = batch(0)
    sure = 1e4 * F.one_hot(target, 5).double()
    losses = [self_distillation_loss(student, sure, target, xi=xi) for xi in (-1.0, 0.0, 0.5, 3.0)]
    torch.testing.assert_close(torch.stack(losses), F.cross_entropy(student, target).expand(4))


def test_the_teacher_is_constant_and_may_be_infinite_or_poisoned_where_ignored() -> None:
    student, teacher, target = batch(0)
    teacher = teacher.index_fill(1, torch.tensor([2]), -math.inf).requires_grad_()
    student = student.index_fill(1, torch.tensor([2]), -math.inf).requires_grad_()
    target = torch.tensor([0, 1, -100, 4])
    poisoned = torch.where(torch.arange(4).unsqueeze(1) == 2, math.nan, teacher)
    loss = self_distillation_loss(student, poisoned, target, xi=1.5)
    assert loss.isfinite()
    loss.backward()
    assert teacher.grad is None
    assert student.grad.isfinite().all()


@given(SEED, RIDGE, XI, st.booleans(), st.sampled_from([(12, 4), (3, 6)]))
@settings(max_examples=30)
def test_ridge_solves_the_normal_equations(
    seed: int, ridge: float, xi: float, several: bool, shape: tuple[int, int]
) -> None:
    features, parameter = problem(seed, *shape)
    values = features @ parameter + torch.arange(shape[0]).double().sin()
    values = torch.stack([values, values**2], 1) if several else values
    gram = features.T @ features + ridge * torch.eye(shape[1], dtype=torch.float64)
    teacher = torch.linalg.solve(gram, features.T @ values)
    student = torch.linalg.solve(gram, features.T @ (xi * features @ teacher + (1 - xi) * values))
    found = ridge_self_distillation(features, values, ridge=ridge, xi=xi)
    torch.testing.assert_close(found, {"teacher": teacher, "student": student})
    plain = ridge_self_distillation(features, values, ridge=ridge, xi=0.0)
    torch.testing.assert_close(plain["student"], plain["teacher"])


@given(SEED, RIDGE, st.floats(0.0, 5.0))
@settings(max_examples=30)
def test_optimal_xi_is_the_vertex_of_the_exact_quadratic(seed: int, ridge: float, noise: float) -> None:
    features, parameter = problem(seed)
    options = {"ridge": ridge, "noise_std": noise}
    error = [expected_parameter_error(features, parameter, xi=xi, **options) for xi in (0.0, 1.0, 2.0)]
    curvature = (error[0] - 2 * error[1] + error[2]) / 2
    vertex = (4 * error[1] - 3 * error[0] - error[2]) / 2 / (-2 * curvature)
    best = optimal_xi(features, parameter, **options)
    torch.testing.assert_close(best, vertex, rtol=1e-4, atol=1e-6)
    assert expected_parameter_error(features, parameter, xi=best, **options) <= error[0] + 1e-12


@pytest.mark.parametrize("shape", [(12, 4), (3, 6)])
def test_expected_error_agrees_with_monte_carlo(shape: tuple[int, int]) -> None:
    features, parameter = problem(1, *shape)
    generator = torch.Generator().manual_seed(0)
    noise = 2 * torch.randn(shape[0], 40_000, dtype=torch.float64, generator=generator)
    values = (features @ parameter).unsqueeze(1) + noise
    for xi in (0.0, 1.0, 2.5):
        student = ridge_self_distillation(features, values, ridge=1.5, xi=xi)["student"]
        drawn = (student - parameter.unsqueeze(1)).square().sum(0).mean()
        exact = expected_parameter_error(features, parameter, ridge=1.5, noise_std=2.0, xi=xi)
        torch.testing.assert_close(drawn, exact, rtol=0.02, atol=0)


def test_noise_moves_the_best_weight_from_below_zero_to_above_one() -> None:
    features, parameter = problem(2)
    best = [float(optimal_xi(features, parameter, ridge=1.0, noise_std=g)) for g in (0.0, 0.5, 2.0, 1e6)]
    assert best == sorted(best)
    assert best[0] < 0
    assert best[2] > 1
    s = torch.linalg.svdvals(features)
    v, d = s**2 / (s**2 + 1) ** 2, 1 / (s**2 + 1)
    assert best[3] == pytest.approx(float((v * d).sum() / (v * d**2).sum()), rel=1e-6)


def test_optimal_regularization_is_the_least_on_a_grid() -> None:
    features, parameter = problem(3)
    best = optimal_regularization(features, parameter, noise_std=2.0)
    ridges = torch.logspace(-3, 4, 400, dtype=torch.float64).tolist()
    errors = [float(expected_parameter_error(features, parameter, ridge=r, noise_std=2.0, xi=0.0)) for r in ridges]
    assert best.error <= min(errors) + 1e-9
    assert best.error == pytest.approx(min(errors), rel=1e-3)


def test_procedure_fits_each_student_on_the_one_before() -> None:
    X, y = torch.randn(8, 3), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    seen = []

    def fit(model: nn.Module, inputs: Tensor, target: Tensor) -> None:
        seen.append(target)
        assert inputs is X

    models = self_distill(lambda: nn.Linear(3, 4), fit, X, y, xi=1.5, rounds=2, temperature=2.0)
    assert len(models) == len(seen) == 3
    torch.testing.assert_close(seen[0], F.one_hot(y, 4).float())
    for teacher, target in zip(models[:2], seen[1:], strict=True):
        expected = self_distillation_target(teacher(X), y, xi=1.5, temperature=2.0)
        torch.testing.assert_close(target, expected)
        assert teacher.training
    with pytest.raises(ValueError, match="rounds is 0"):
        self_distill(lambda: nn.Linear(3, 4), fit, X, y, xi=1.0, rounds=0)


def test_bad_arguments() -> None:
    student, teacher, target = batch(0)
    with pytest.raises(ValueError, match=r"teacher_logits has shape \(4, 4\); wanted \(4, 5\)"):
        self_distillation_loss(student, teacher[:, :4], target)
    with pytest.raises(ValueError, match="temperature is 0"):
        self_distillation_loss(student, teacher, target, temperature=0)
    with pytest.raises(ValueError, match="it is not defined for probabilities"):
        self_distillation_loss(student, teacher, teacher.softmax(1))
    with pytest.raises(ValueError, match=r"values has shape \(3,\)"):
        ridge_self_distillation(teacher, torch.zeros(3), ridge=1.0, xi=1.0)
    with pytest.raises(ValueError, match="ridge is 0"):
        optimal_xi(teacher, torch.zeros(5), ridge=0.0, noise_std=1.0)
    with pytest.raises(ValueError, match=r"parameter has shape \(4,\)"):
        optimal_xi(teacher, torch.zeros(4), ridge=1.0, noise_std=1.0)
    with pytest.raises(ValueError, match="wanted 0 < low < high"):
        optimal_regularization(teacher, torch.zeros(5), noise_std=1.0, low=2.0, high=1.0)


@pytest.mark.parametrize("xi", [math.nan, math.inf, -math.inf])
def test_xi_is_finite(xi: float) -> None:
    student, teacher, target = batch(0)
    x, values = torch.randn(5, 2), torch.randn(5)
    for call in (
        lambda: self_distillation_loss(student, teacher, target, xi=xi),
        lambda: self_distillation_target(teacher, target, xi=xi),
        lambda: ridge_self_distillation(x, values, ridge=1.0, xi=xi),
        lambda: expected_parameter_error(x, values[:2], ridge=1.0, noise_std=1.0, xi=xi),
        lambda: self_distill(lambda: nn.Linear(2, 2), print, x, target[:4], xi=xi),
    ):
        with pytest.raises(ValueError, match=r"xi is .*; wanted a number in \(-inf, inf\)"):
            call()
