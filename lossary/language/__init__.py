"""Objectives of language models, many of them on a linear head whose logits are never stored."""

from __future__ import annotations

from lossary.language.cross_entropy import (
    PRESETS,
    LinearCrossEntropyLoss,
    linear_cross_entropy,
    z_loss,
)
from lossary.language.growing import (
    depth_upscale,
    depth_upscale_indices,
    merge_state_dicts,
)
from lossary.language.linear import (
    LinearEntropyRegularizedCrossEntropyLoss,
    LinearFocalLoss,
    LinearPoly1CrossEntropyLoss,
    linear_entropy_regularized_cross_entropy_loss,
    linear_focal_loss,
    linear_poly1_cross_entropy_loss,
)
from lossary.language.sequence import (
    linear_sequence_logps,
    sequence_logps,
)
from lossary.language.sequence_risk import (
    MinimumRiskLoss,
    ReinforceLoss,
    minimum_risk_loss,
    reinforce_loss,
)

__all__ = [
    "LinearCrossEntropyLoss",
    "LinearEntropyRegularizedCrossEntropyLoss",
    "LinearFocalLoss",
    "LinearPoly1CrossEntropyLoss",
    "MinimumRiskLoss",
    "PRESETS",
    "ReinforceLoss",
    "depth_upscale",
    "depth_upscale_indices",
    "linear_cross_entropy",
    "linear_entropy_regularized_cross_entropy_loss",
    "linear_focal_loss",
    "linear_poly1_cross_entropy_loss",
    "linear_sequence_logps",
    "merge_state_dicts",
    "minimum_risk_loss",
    "reinforce_loss",
    "sequence_logps",
    "z_loss",
]
