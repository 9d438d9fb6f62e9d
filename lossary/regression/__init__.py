"""Objectives over real targets."""

from __future__ import annotations

from lossary.regression.forecast import (
    Forecast,
    MeanScaleQuantizer,
    forecast_from_bins,
    forecast_from_samples,
    mase,
    weighted_quantile_loss,
)
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
from lossary.regression.wasserstein import WassersteinBinLoss, wasserstein_bin_loss

__all__ = [
    "CategoricalTDLoss",
    "CategoricalValueHead",
    "Forecast",
    "HLGaussLoss",
    "MeanScaleQuantizer",
    "TwoHotLoss",
    "WassersteinBinLoss",
    "atom_mean",
    "categorical_projection",
    "categorical_td_loss",
    "forecast_from_bins",
    "forecast_from_samples",
    "histogram_mean",
    "hl_gauss_loss",
    "hl_gauss_target",
    "mase",
    "two_hot_loss",
    "two_hot_target",
    "wasserstein_bin_loss",
    "weighted_quantile_loss",
]
