"""Objectives over real targets."""

from __future__ import annotations

from lossary.regression.quantile import QuantileLoss, quantile_loss
from lossary.regression.robust import BerHuLoss, LogCoshLoss, berhu_loss, log_cosh_loss

__all__ = ["BerHuLoss", "LogCoshLoss", "QuantileLoss", "berhu_loss", "log_cosh_loss", "quantile_loss"]
