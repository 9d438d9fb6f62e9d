"""Objectives that learn from preferences between responses."""

from __future__ import annotations

from lossary.preference.cringe import (
    CringeGate,
    CringeLoss,
    IterativePreferenceTrainer,
    LinearCringeLoss,
    LinearPairwiseCringeLoss,
    PairwiseCringeLoss,
    PreferencePair,
    cringe_contrast,
    cringe_loss,
    linear_cringe_loss,
    linear_pairwise_cringe_loss,
    pairwise_cringe_gate,
    pairwise_cringe_loss,
)

__all__ = [
    "CringeGate",
    "CringeLoss",
    "IterativePreferenceTrainer",
    "LinearCringeLoss",
    "LinearPairwiseCringeLoss",
    "PairwiseCringeLoss",
    "PreferencePair",
    "cringe_contrast",
    "cringe_loss",
    "linear_cringe_loss",
    "linear_pairwise_cringe_loss",
    "pairwise_cringe_gate",
    "pairwise_cringe_loss",
]
