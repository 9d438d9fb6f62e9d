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
from lossary.regression.quantile import (
    QuantileLoss,
    quantile_loss,
)
from lossary.regression.robust import (
    BerHuLoss,
    LogCoshLoss,
    berhu_loss,
    log_cosh_loss,
)
from lossary.regression.wasserstein import (
    WassersteinBinLoss,
    wasserstein_bin_loss,
)

__all__ = [
    "BerHuLoss",
    "CategoricalTDLoss",
    "CategoricalValueHead",
    "Forecast",
    "HLGaussLoss",
    "LogCoshLoss",
    "MeanScaleQuantizer",
    "QuantileLoss",
    "TwoHotLoss",
    "WassersteinBinLoss",
    "atom_mean",
    "berhu_loss",
    "categorical_projection",
    "categorical_td_loss",
    "forecast_from_bins",
    "forecast_from_samples",
    "histogram_mean",
    "hl_gauss_loss",
    "hl_gauss_target",
    "log_cosh_loss",
    "mase",
    "quantile_loss",
    "two_hot_loss",
    "two_hot_target",
    "wasserstein_bin_loss",
    "weighted_quantile_loss",
]
