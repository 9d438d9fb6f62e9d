"""Objectives of language models, many of them on a linear head whose logits are never stored."""

from __future__ import annotations

from lossary.language.adaptive_rate import (
    AdaptiveLRScheduler,
    adaptive_learning_rate,
)
from lossary.language.bigram import (
    BigramSource,
    transition_metrics,
)
from lossary.language.bleu import (
    BleuStats,
    corpus_bleu_stats,
    sentence_bleu,
)
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
from lossary.language.cramming import (
    CrammingOptimizer,
    CrammingResult,
    MemoryTokens,
    cramming_metrics,
    decode_from_memory,
    decoding_capacity,
    information_gain,
    theoretical_capacity,
    token_gain,
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
from lossary.language.exact_transformers import (
    ExactFirstTransformer,
    ExactParityTransformer,
    first_data,
    length_profile,
    parity_data,
)
from lossary.language.frequency import (
    LinearPowerLawDecayLoss,
    PowerLawDecayLoss,
    linear_power_law_decay_loss,
    power_law_decay_loss,
    power_law_decay_weights,
    token_frequencies,
)
from lossary.language.growing import (
    depth_upscale,
    depth_upscale_indices,
    merge_state_dicts,
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
from lossary.language.log_length import (
    LogLengthAttention,
    LogLengthTransformerEncoderLayer,
    log_length_attention,
)
from lossary.language.markov import (
    MarkovSource,
    SwitchingSource,
)
from lossary.language.meteor import (
    meteor_score,
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
from lossary.language.number_level import (
    linear_number_level_loss,
    number_level_loss,
)
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
from lossary.language.simpson import (
    BundledDiceLoss,
    PopulationDiceLoss,
    bundle_order,
    bundled_dice_loss,
    population_dice_loss,
    simpsons_bias,
)
from lossary.language.targets import (
    instruction_mask,
    shift_labels,
)
from lossary.language.tokenizers import (
    BPETokenizer,
    DictionaryTokenizer,
    LZWTokenizer,
    fixed_length_tokenizer,
    tokenization_gap,
    unigram_cross_entropy,
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
    "AdaptiveLRScheduler",
    "BPETokenizer",
    "BigramSource",
    "BleuStats",
    "BoundaryFocalLoss",
    "BoundaryWeightedCrossEntropy",
    "BundledDiceLoss",
    "CrammingOptimizer",
    "CrammingResult",
    "CrossEntropyWithNumberTokenLoss",
    "DCOLoss",
    "DictionaryTokenizer",
    "EISLLoss",
    "ExactFirstTransformer",
    "ExactParityTransformer",
    "LZWTokenizer",
    "LinearCrossEntropyLoss",
    "LinearCrossEntropyWithNumberTokenLoss",
    "LinearDCOLoss",
    "LinearEISLLoss",
    "LinearEntropyRegularizedCrossEntropyLoss",
    "LinearFocalLoss",
    "LinearMixCELoss",
    "LinearNumberTokenLoss",
    "LinearPoly1CrossEntropyLoss",
    "LinearPowerLawDecayLoss",
    "LinearWeightedInstructionLoss",
    "LogLengthAttention",
    "LogLengthTransformerEncoderLayer",
    "MarkovSource",
    "MemoryTokens",
    "MinimumRiskLoss",
    "MixCELoss",
    "MixCEStarLoss",
    "NumberTokenLoss",
    "PRESETS",
    "PopulationDiceLoss",
    "PowerLawDecayLoss",
    "ReinforceLoss",
    "SwitchingSource",
    "TopicSegmenter",
    "WeightedInstructionLoss",
    "adaptive_learning_rate",
    "boundaries_to_lengths",
    "boundary_focal_loss",
    "boundary_weighted_cross_entropy",
    "bundle_order",
    "bundled_dice_loss",
    "corpus_bleu_stats",
    "cramming_metrics",
    "cross_entropy_with_number_token_loss",
    "dco_factor",
    "dco_loss",
    "dco_loss_from_logps",
    "decode_from_memory",
    "decoding_capacity",
    "depth_upscale",
    "depth_upscale_indices",
    "eisl_loss",
    "eisl_with_cross_entropy",
    "first_data",
    "fixed_length_tokenizer",
    "gumbel_rollout",
    "information_gain",
    "instruction_mask",
    "length_profile",
    "lengths_to_boundaries",
    "linear_cross_entropy",
    "linear_cross_entropy_with_number_token_loss",
    "linear_dco_loss",
    "linear_eisl_loss",
    "linear_eisl_with_cross_entropy",
    "linear_entropy_regularized_cross_entropy_loss",
    "linear_focal_loss",
    "linear_mixce_loss",
    "linear_number_level_loss",
    "linear_number_token_loss",
    "linear_poly1_cross_entropy_loss",
    "linear_power_law_decay_loss",
    "linear_predict_numbers",
    "linear_sequence_logps",
    "linear_weighted_instruction_loss",
    "log_length_attention",
    "merge_state_dicts",
    "meteor_score",
    "minimum_risk_loss",
    "mixce_loss",
    "mixce_star_loss",
    "ngram_match_scores",
    "number_level_loss",
    "number_token_loss",
    "number_values_from_tokenizer",
    "number_values_from_vocab",
    "parity_data",
    "pass_at_n",
    "pass_at_n_unbiased",
    "pk_score",
    "population_dice_loss",
    "power_law_decay_loss",
    "power_law_decay_weights",
    "predict_numbers",
    "reinforce_loss",
    "segmentation_f1",
    "sentence_bleu",
    "sequence_logps",
    "shift_labels",
    "simpsons_bias",
    "theoretical_capacity",
    "token_frequencies",
    "token_gain",
    "tokenization_gap",
    "transition_metrics",
    "unigram_cross_entropy",
    "weighted_instruction_loss",
    "window_diff",
    "z_loss",
]
