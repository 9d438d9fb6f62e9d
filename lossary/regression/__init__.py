"""Objectives over real targets."""

from __future__ import annotations

from lossary.regression.histogram import (
    CategoricalTDLoss,
    CategoricalValueHead,
    HLGaussLoss,
    TwoHotLoss,
    atom_mean,
    categorical_projection,
    categorical_td_loss,
    histogram_mean,
    hl_gauss_loss,
    hl_gauss_target,
    two_hot_loss,
    two_hot_target,
)

__all__ = [
    "CategoricalTDLoss",
    "CategoricalValueHead",
    "HLGaussLoss",
    "TwoHotLoss",
    "atom_mean",
    "categorical_projection",
    "categorical_td_loss",
    "histogram_mean",
    "hl_gauss_loss",
    "hl_gauss_target",
    "two_hot_loss",
    "two_hot_target",
]
