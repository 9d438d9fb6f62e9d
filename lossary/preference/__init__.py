"""Objectives on pairs of a chosen and a rejected response, for aligning language models."""

from __future__ import annotations

from lossary.preference.cringe import (
    CringeGate,
    CringeLoss,
    LinearCringeLoss,
    LinearPairwiseCringeLoss,
    PairwiseCringeLoss,
    cringe_contrast,
    cringe_loss,
    linear_cringe_loss,
    linear_pairwise_cringe_loss,
    pairwise_cringe_gate,
    pairwise_cringe_loss,
)
from lossary.preference.degrees import (
    PreferenceDegreeHead,
    PreferenceDegreeLoss,
    SPOLoss,
    degrade_response,
    preference_degree_loss,
    rake_keywords,
)
from lossary.preference.dpo_positive import (
    DPOPositiveLoss,
    dpo_positive_loss,
)
from lossary.preference.h_dpo import (
    HDPOLoss,
    h_dpo_divergence,
    h_dpo_loss,
    h_dpo_rewards,
)
from lossary.preference.iterative import IterativePreferenceTrainer, PreferencePair

__all__ = [
    "CringeGate",
    "CringeLoss",
    "DPOPositiveLoss",
    "HDPOLoss",
    "IterativePreferenceTrainer",
    "LinearCringeLoss",
    "LinearPairwiseCringeLoss",
    "PairwiseCringeLoss",
    "PreferenceDegreeHead",
    "PreferenceDegreeLoss",
    "PreferencePair",
    "SPOLoss",
    "cringe_contrast",
    "cringe_loss",
    "degrade_response",
    "dpo_positive_loss",
    "h_dpo_divergence",
    "h_dpo_loss",
    "h_dpo_rewards",
    "linear_cringe_loss",
    "linear_pairwise_cringe_loss",
    "pairwise_cringe_gate",
    "pairwise_cringe_loss",
    "preference_degree_loss",
    "rake_keywords",
]
