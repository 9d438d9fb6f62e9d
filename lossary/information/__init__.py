"""What is learnt: representations, their geometry and their information."""

from __future__ import annotations

from lossary.information.collapse import NeuralCollapseObserver, nearest_mean_disagreement, neural_collapse_metrics
from lossary.information.unconstrained import (
    UnconstrainedFeatureModel,
    collapse_minimum,
    collapse_threshold,
    minority_collapse_size,
    unconstrained_feature_loss,
)

__all__ = [
    "NeuralCollapseObserver",
    "UnconstrainedFeatureModel",
    "collapse_minimum",
    "collapse_threshold",
    "minority_collapse_size",
    "nearest_mean_disagreement",
    "neural_collapse_metrics",
    "unconstrained_feature_loss",
]
