"""Objectives of language models, many of them on a linear head whose logits are never stored."""

from __future__ import annotations

from lossary.language.bigram import BigramSource, transition_metrics
from lossary.language.coverage import (
    DCOLoss,
    LinearDCOLoss,
    dco_factor,
    dco_loss,
    dco_loss_from_logps,
    linear_dco_loss,
    pass_at_n,
    pass_at_n_unbiased,
)
from lossary.language.cross_entropy import (
    PRESETS,
    LinearCrossEntropyLoss,
    linear_cross_entropy,
    z_loss,
)
from lossary.language.eisl import (
    EISLLoss,
    LinearEISLLoss,
    eisl_loss,
    eisl_with_cross_entropy,
    linear_eisl_loss,
    linear_eisl_with_cross_entropy,
    ngram_match_scores,
)
from lossary.language.linear import (
    LinearEntropyRegularizedCrossEntropyLoss,
    LinearFocalLoss,
    LinearPoly1CrossEntropyLoss,
    linear_entropy_regularized_cross_entropy_loss,
    linear_focal_loss,
    linear_poly1_cross_entropy_loss,
)
from lossary.language.mixce import (
    LinearMixCELoss,
    MixCELoss,
    MixCEStarLoss,
    gumbel_rollout,
    linear_mixce_loss,
    mixce_loss,
    mixce_star_loss,
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
    "BigramSource",
    "DCOLoss",
    "EISLLoss",
    "LinearCrossEntropyLoss",
    "LinearDCOLoss",
    "LinearEISLLoss",
    "LinearEntropyRegularizedCrossEntropyLoss",
    "LinearFocalLoss",
    "LinearMixCELoss",
    "LinearPoly1CrossEntropyLoss",
    "MinimumRiskLoss",
    "MixCELoss",
    "MixCEStarLoss",
    "PRESETS",
    "ReinforceLoss",
    "dco_factor",
    "dco_loss",
    "dco_loss_from_logps",
    "eisl_loss",
    "eisl_with_cross_entropy",
    "gumbel_rollout",
    "linear_cross_entropy",
    "linear_dco_loss",
    "linear_eisl_loss",
    "linear_eisl_with_cross_entropy",
    "linear_entropy_regularized_cross_entropy_loss",
    "linear_focal_loss",
    "linear_mixce_loss",
    "linear_poly1_cross_entropy_loss",
    "linear_sequence_logps",
    "minimum_risk_loss",
    "mixce_loss",
    "mixce_star_loss",
    "ngram_match_scores",
    "pass_at_n",
    "pass_at_n_unbiased",
    "reinforce_loss",
    "sequence_logps",
    "transition_metrics",
    "z_loss",
]
