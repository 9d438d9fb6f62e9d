"""Tokens decode to within half a bin, and forecasts and their scores are what they are named after."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary.regression import (
    MeanScaleQuantizer,
    forecast_from_bins,
    forecast_from_samples,
    mase,
    weighted_quantile_loss,
)


@given(st.integers(0, 1000), st.integers(10, 5000), st.floats(0.01, 1000.0))
def test_decoding_is_within_half_a_bin(seed: int, tokens: int, unit: float) -> None:
    quantizer = MeanScaleQuantizer(num_tokens=tokens)
    context = unit * torch.randn(3, 20, generator=torch.Generator().manual_seed(seed))
    ids, mask, scale = quantizer(context)
    assert mask.all()
    torch.testing.assert_close(scale, context.abs().mean(1))
    assert (ids > quantizer.num_special_tokens).all()
    half = 30 / (tokens - 4) / 2 * scale.unsqueeze(1)
    assert ((quantizer.decode(ids, scale) - context).abs() <= half * (1 + 1e-3)).all()


def test_missing_and_constant_and_far_values() -> None:
    quantizer = MeanScaleQuantizer(num_tokens=32, pad_id=0)
    nan = float("nan")
    ids, mask, scale = quantizer(torch.tensor([[nan, 2.0, 4.0], [0.0, 0.0, 0.0], [nan, nan, nan]]))
    assert scale.tolist() == [3.0, 1.0, 1.0]
    assert mask.tolist() == [[False, True, True], [True] * 3, [False] * 3]
    assert (ids[~mask] == 0).all()
    assert (quantizer.decode(ids, scale)[1].abs() < 1e-5).all()
    far = quantizer.encode(torch.tensor([[-1e6, 1e6]]), torch.ones(1))
    assert far.tolist() == [[3, 31]]  # id 2 is never used
    longer, seen = quantizer.append_eos(ids, mask)
    assert longer[:, -1].tolist() == [1, 1, 1]
    assert seen[:, -1].all()


def test_bins_have_the_quantiles_of_their_distribution() -> None:
    probability = torch.tensor([[0.1, 0.2, 0.4, 0.2, 0.1]])
    centers = torch.tensor([-2.0, -1.0, 0.0, 2.0, 5.0])
    forecast = forecast_from_bins(probability.log(), centers, quantile_levels=[0.05, 0.1, 0.11, 0.5, 0.9, 1.0])
    assert forecast.quantiles.tolist() == [[-2.0, -2.0, -1.0, 0.0, 2.0, 5.0]]
    assert forecast.median.tolist() == [0.0]
    torch.testing.assert_close(forecast.mean, torch.tensor([0.5]))
    special = torch.cat([torch.full((1, 2), 9.0), probability.log()], 1).unsqueeze(-1).expand(1, 7, 3)
    three = forecast_from_bins(special, centers, num_special_tokens=2)
    assert three.quantiles.shape == (1, 3, 9)
    torch.testing.assert_close(three.mean, torch.full((1, 3), 0.5))


def test_samples_have_numpys_quantiles() -> None:
    samples = torch.randn(2, 50, 3, dtype=torch.float64)
    forecast = forecast_from_samples(samples, quantile_levels=[0.1, 0.8])
    expected = np.moveaxis(np.quantile(samples.numpy(), [0.1, 0.8], axis=1), 0, -1)
    torch.testing.assert_close(forecast.quantiles, torch.from_numpy(expected))
    torch.testing.assert_close(forecast.median, torch.from_numpy(np.median(samples.numpy(), axis=1)))


def test_scores() -> None:
    series = torch.randn(4, 30, dtype=torch.float64).cumsum(1)
    context, target = series[:, :24], series[:, 24:]
    naive = context[:, -1:].expand(-1, 6)
    by_hand = (target - naive).abs().mean(1) / context.diff(dim=1).abs().mean(1)
    torch.testing.assert_close(mase(naive, target, context), by_hand)
    assert (mase(target, target, context, seasonality=7) == 0).all()
    # Of a point forecast every quantile misses by the same: the deciles' weights average to 1/2.
    points = naive.unsqueeze(-1).expand(-1, -1, 9)
    torch.testing.assert_close(
        weighted_quantile_loss(points, target), (target - naive).abs().sum() / target.abs().sum()
    )
    missing = target.clone()
    missing[0, 2:] = torch.nan
    assert mase(naive, missing, context).isfinite().all()
    assert weighted_quantile_loss(points, missing).isfinite()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="num_tokens is 4; wanted at least 5"):
        MeanScaleQuantizer(num_tokens=4)
    with pytest.raises(ValueError, match="low is 2 and high is 1"):
        MeanScaleQuantizer(low=2, high=1)
    with pytest.raises(ValueError, match=r"context has shape \(3,\)"):
        MeanScaleQuantizer()(torch.zeros(3))
    with pytest.raises(ValueError, match="seasonality is 5; wanted 1 to 4"):
        mase(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 5), seasonality=5)
    with pytest.raises(ValueError, match=r"quantile_levels is 1\.5"):
        forecast_from_bins(torch.zeros(1, 5), quantile_levels=[1.5])
    with pytest.raises(ValueError, match="quantiles has shape"):
        weighted_quantile_loss(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="samples has shape"):
        forecast_from_samples(torch.zeros(3))
