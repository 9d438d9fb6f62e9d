"""Objectives of language models, many of them on a linear head whose logits are never stored."""

from __future__ import annotations

from lossary.language.bleu import (
    BleuStats,
    corpus_bleu_stats,
    sentence_bleu,
)
from lossary.language.cross_entropy import (
    PRESETS,
    LinearCrossEntropyLoss,
    linear_cross_entropy,
    z_loss,
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
from lossary.language.simpson import (
    BundledDiceLoss,
    PopulationDiceLoss,
    bundle_order,
    bundled_dice_loss,
    population_dice_loss,
    simpsons_bias,
)

__all__ = [
    "BleuStats",
    "BundledDiceLoss",
    "LinearCrossEntropyLoss",
    "LinearEntropyRegularizedCrossEntropyLoss",
    "LinearFocalLoss",
    "LinearPoly1CrossEntropyLoss",
    "MinimumRiskLoss",
    "PRESETS",
    "PopulationDiceLoss",
    "ReinforceLoss",
    "bundle_order",
    "bundled_dice_loss",
    "corpus_bleu_stats",
    "linear_cross_entropy",
    "linear_entropy_regularized_cross_entropy_loss",
    "linear_focal_loss",
    "linear_poly1_cross_entropy_loss",
    "linear_sequence_logps",
    "minimum_risk_loss",
    "population_dice_loss",
    "reinforce_loss",
    "sentence_bleu",
    "sequence_logps",
    "simpsons_bias",
    "z_loss",
]
