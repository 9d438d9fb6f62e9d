"""Confidences that mean what they say: objectives, calibrators of trained models, and calibration errors."""

from __future__ import annotations

from lossary.calibration.correctness import (
    CorrectnessAwareCalibrator,
    CorrectnessAwareLoss,
    correctness_aware_loss,
    image_transforms,
    transform_agreement_features,
)
from lossary.calibration.errors import (
    ReliabilityBins,
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
from lossary.calibration.perturbation import (
    AdaptiveLabelPerturbation,
    LabelPerturbationState,
    SelfCalibratingBCELoss,
    adaptive_label_perturbation_loss,
    adaptive_perturbation_update,
    label_smoothing_target,
    self_calibrating_bce_loss,
    stochastic_label_perturbation,
)
from lossary.calibration.scaling import IsotonicScaling, PlattScaling, TemperatureScaling, VectorScaling

__all__ = [
    "AdaptiveLabelPerturbation",
    "CorrectnessAwareCalibrator",
    "CorrectnessAwareLoss",
    "IsotonicScaling",
    "LabelPerturbationState",
    "PlattScaling",
    "ReliabilityBins",
    "SelfCalibratingBCELoss",
    "TemperatureScaling",
    "VectorScaling",
    "adaptive_calibration_error",
    "adaptive_label_perturbation_loss",
    "adaptive_perturbation_update",
    "classwise_calibration_error",
    "correctness_aware_loss",
    "correctness_brier",
    "dense_ece",
    "dense_overconfidence_error",
    "expected_calibration_error",
    "image_transforms",
    "ks_calibration_error",
    "label_smoothing_target",
    "maximum_calibration_error",
    "overconfidence_error",
    "reliability_bins",
    "reliability_curve",
    "reliability_diagram",
    "self_calibrating_bce_loss",
    "stochastic_label_perturbation",
    "transform_agreement_features",
]
