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
from lossary.language.topics import (
    BoundaryFocalLoss,
    BoundaryWeightedCrossEntropy,
    TopicSegmenter,
    boundaries_to_lengths,
    boundary_focal_loss,
    boundary_weighted_cross_entropy,
    lengths_to_boundaries,
    pk_score,
    segmentation_f1,
    window_diff,
)

__all__ = [
    "BleuStats",
    "BoundaryFocalLoss",
    "BoundaryWeightedCrossEntropy",
    "BundledDiceLoss",
    "LinearCrossEntropyLoss",
    "LinearEntropyRegularizedCrossEntropyLoss",
    "LinearFocalLoss",
    "LinearPoly1CrossEntropyLoss",
    "MinimumRiskLoss",
    "PRESETS",
    "PopulationDiceLoss",
    "ReinforceLoss",
    "TopicSegmenter",
    "boundaries_to_lengths",
    "boundary_focal_loss",
    "boundary_weighted_cross_entropy",
    "bundle_order",
    "bundled_dice_loss",
    "corpus_bleu_stats",
    "lengths_to_boundaries",
    "linear_cross_entropy",
    "linear_entropy_regularized_cross_entropy_loss",
    "linear_focal_loss",
    "linear_poly1_cross_entropy_loss",
    "linear_sequence_logps",
    "minimum_risk_loss",
    "pk_score",
    "population_dice_loss",
    "reinforce_loss",
    "segmentation_f1",
    "sentence_bleu",
    "sequence_logps",
    "simpsons_bias",
    "window_diff",
    "z_loss",
]
