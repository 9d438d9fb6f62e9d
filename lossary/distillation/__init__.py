"""Learning from a teacher's predictions."""

from __future__ import annotations

from lossary.distillation.linear import (
    linear_distillation,
)
from lossary.distillation.self_distillation import (
    OptimalRegularization,
    SelfDistillationLoss,
    expected_parameter_error,
    optimal_regularization,
    optimal_xi,
    ridge_self_distillation,
    self_distill,
    self_distillation_loss,
    self_distillation_target,
)

__all__ = [
    "OptimalRegularization",
    "SelfDistillationLoss",
    "expected_parameter_error",
    "linear_distillation",
    "optimal_regularization",
    "optimal_xi",
    "ridge_self_distillation",
    "self_distill",
    "self_distillation_loss",
    "self_distillation_target",
]
