"""Objectives on pairs of a chosen and a rejected response, for aligning language models."""

from __future__ import annotations

from lossary.preference.h_dpo import (
    HDPOLoss,
    h_dpo_divergence,
    h_dpo_loss,
    h_dpo_rewards,
)

__all__ = [
    "HDPOLoss",
    "h_dpo_divergence",
    "h_dpo_loss",
    "h_dpo_rewards",
]
