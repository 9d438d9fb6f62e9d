"""Objectives of language models, many of them on a linear head whose logits are never stored."""

from __future__ import annotations

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
from lossary.language.exact_transformers import (
    ExactFirstTransformer,
    ExactParityTransformer,
    first_data,
    length_profile,
    parity_data,
)
from lossary.language.linear import (
    LinearEntropyRegularizedCrossEntropyLoss,
    LinearFocalLoss,
    LinearPoly1CrossEntropyLoss,
    linear_entropy_regularized_cross_entropy_loss,
    linear_focal_loss,
    linear_poly1_cross_entropy_loss,
)
from lossary.language.log_length import (
    LogLengthAttention,
    LogLengthTransformerEncoderLayer,
    log_length_attention,
)
from lossary.language.markov import MarkovSource, SwitchingSource
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
from lossary.language.tokenizers import (
    BPETokenizer,
    DictionaryTokenizer,
    LZWTokenizer,
    fixed_length_tokenizer,
    tokenization_gap,
    unigram_cross_entropy,
)

__all__ = [
    "BPETokenizer",
    "CrammingOptimizer",
    "CrammingResult",
    "DictionaryTokenizer",
    "ExactFirstTransformer",
    "ExactParityTransformer",
    "LZWTokenizer",
    "LinearCrossEntropyLoss",
    "LinearEntropyRegularizedCrossEntropyLoss",
    "LinearFocalLoss",
    "LinearPoly1CrossEntropyLoss",
    "LogLengthAttention",
    "LogLengthTransformerEncoderLayer",
    "MarkovSource",
    "MemoryTokens",
    "MinimumRiskLoss",
    "PRESETS",
    "ReinforceLoss",
    "SwitchingSource",
    "cramming_metrics",
    "decode_from_memory",
    "decoding_capacity",
    "first_data",
    "fixed_length_tokenizer",
    "information_gain",
    "length_profile",
    "linear_cross_entropy",
    "linear_entropy_regularized_cross_entropy_loss",
    "linear_focal_loss",
    "linear_poly1_cross_entropy_loss",
    "linear_sequence_logps",
    "log_length_attention",
    "minimum_risk_loss",
    "parity_data",
    "reinforce_loss",
    "sequence_logps",
    "theoretical_capacity",
    "token_gain",
    "tokenization_gap",
    "unigram_cross_entropy",
    "z_loss",
]
