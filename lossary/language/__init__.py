"""Objectives of language models, many of them on a linear head whose logits are never stored."""

from __future__ import annotations

from lossary.language.adaptive_rate import AdaptiveLRScheduler, adaptive_learning_rate
from lossary.language.cross_entropy import (
    PRESETS,
    LinearCrossEntropyLoss,
    linear_cross_entropy,
    z_loss,
)
from lossary.language.frequency import (
    LinearPowerLawDecayLoss,
    PowerLawDecayLoss,
    linear_power_law_decay_loss,
    power_law_decay_loss,
    power_law_decay_weights,
    token_frequencies,
)
from lossary.language.instruction import (
    LinearWeightedInstructionLoss,
    WeightedInstructionLoss,
    linear_weighted_instruction_loss,
    weighted_instruction_loss,
)
from lossary.language.linear import (
    LinearEntropyRegularizedCrossEntropyLoss,
    LinearFocalLoss,
    LinearPoly1CrossEntropyLoss,
    linear_entropy_regularized_cross_entropy_loss,
    linear_focal_loss,
    linear_poly1_cross_entropy_loss,
)
from lossary.language.linear_number_tokens import (
    LinearCrossEntropyWithNumberTokenLoss,
    LinearNumberTokenLoss,
    linear_cross_entropy_with_number_token_loss,
    linear_number_token_loss,
    linear_predict_numbers,
)
from lossary.language.number_level import linear_number_level_loss, number_level_loss
from lossary.language.number_tokens import (
    CrossEntropyWithNumberTokenLoss,
    NumberTokenLoss,
    cross_entropy_with_number_token_loss,
    number_token_loss,
)
from lossary.language.number_values import (
    number_values_from_tokenizer,
    number_values_from_vocab,
    predict_numbers,
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
from lossary.language.targets import instruction_mask, shift_labels

__all__ = [
    "AdaptiveLRScheduler",
    "CrossEntropyWithNumberTokenLoss",
    "LinearCrossEntropyLoss",
    "LinearCrossEntropyWithNumberTokenLoss",
    "LinearEntropyRegularizedCrossEntropyLoss",
    "LinearFocalLoss",
    "LinearNumberTokenLoss",
    "LinearPoly1CrossEntropyLoss",
    "LinearPowerLawDecayLoss",
    "LinearWeightedInstructionLoss",
    "MinimumRiskLoss",
    "NumberTokenLoss",
    "PRESETS",
    "PowerLawDecayLoss",
    "ReinforceLoss",
    "WeightedInstructionLoss",
    "adaptive_learning_rate",
    "cross_entropy_with_number_token_loss",
    "instruction_mask",
    "linear_cross_entropy",
    "linear_cross_entropy_with_number_token_loss",
    "linear_entropy_regularized_cross_entropy_loss",
    "linear_focal_loss",
    "linear_number_level_loss",
    "linear_number_token_loss",
    "linear_poly1_cross_entropy_loss",
    "linear_power_law_decay_loss",
    "linear_predict_numbers",
    "linear_sequence_logps",
    "linear_weighted_instruction_loss",
    "minimum_risk_loss",
    "number_level_loss",
    "number_token_loss",
    "number_values_from_tokenizer",
    "number_values_from_vocab",
    "power_law_decay_loss",
    "power_law_decay_weights",
    "predict_numbers",
    "reinforce_loss",
    "sequence_logps",
    "shift_labels",
    "token_frequencies",
    "weighted_instruction_loss",
    "z_loss",
]
