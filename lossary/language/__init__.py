"""Objectives over sequences of tokens."""

from __future__ import annotations

from lossary.language.sequence_risk import MinimumRiskLoss, ReinforceLoss, minimum_risk_loss, reinforce_loss

__all__ = ["MinimumRiskLoss", "ReinforceLoss", "minimum_risk_loss", "reinforce_loss"]
