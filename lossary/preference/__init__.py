"""Objectives on pairs of a chosen and a rejected response, for aligning language models."""

from __future__ import annotations

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

__all__ = [
    "DPOPositiveLoss",
    "HDPOLoss",
    "PreferenceDegreeHead",
    "PreferenceDegreeLoss",
    "SPOLoss",
    "degrade_response",
    "dpo_positive_loss",
    "h_dpo_divergence",
    "h_dpo_loss",
    "h_dpo_rewards",
    "preference_degree_loss",
    "rake_keywords",
]
