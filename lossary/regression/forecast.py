"""Forecasting over bins: series to tokens and back, forecasts from distributions, and how they are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lossary.core.checks import check_floating, check_in_range, check_shape
from lossary.regression.wasserstein import bin_positions

DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class MeanScaleQuantizer:
    """Scales each series by its mean absolute value and cuts it into evenly spaced bins (the tokens of Chronos).

    Reach for it to train a classifier or a language model on series of numbers.

    Formula:
        s = mean \\|x\\| over observed values (1 if that is not positive); the token of x is the bin of x / s, counted
        from ``num_special_tokens + 1``; outer bins reach to infinity.

    Args:
        low: Centre of the first bin.
        high: Centre of the last bin.
        num_tokens: Size of the vocabulary; it has ``num_tokens - num_special_tokens - 1`` bins.
        num_special_tokens: Ids below are special; the id ``num_special_tokens`` itself is never used.
        pad_id: Token of missing values (NaN).
        eos_id: Token that ends a sequence.

    Attributes:
        centers: Centres of the bins, float32.
        boundaries: Their midpoints, with -1e20 and 1e20 at the ends.

    Raises:
        ValueError: There is no room for two bins, or ``low`` is not below ``high``.

    Example:
        >>> quantizer = MeanScaleQuantizer(num_tokens=16)
        >>> ids, mask, scale = quantizer(torch.tensor([[1.0, 2.0, float("nan"), 3.0]]))
        >>> ids, scale
        (tensor([[ 9,  9,  0, 10]]), tensor([2.]))
        >>> quantizer.decode(ids, scale)[0, 0]
        tensor(0.)

    Source:
        Ansari et al.: Chronos: Learning the Language of Time Series (TMLR 2024, arXiv 2403.07815), as used by Chernov
        (arXiv 2409.15367).
    """

    def __init__(
        self,
        low: float = -15.0,
        high: float = 15.0,
        num_tokens: int = 4096,
        num_special_tokens: int = 2,
        pad_id: int = 0,
        eos_id: int = 1,
    ) -> None:
        bins = num_tokens - num_special_tokens - 1
        if bins < 2:
            raise ValueError(f"num_tokens is {num_tokens}; wanted at least {num_special_tokens + 3}.")
        if not low < high:
            raise ValueError(f"low is {low} and high is {high}; wanted low < high.")
        self.num_tokens = num_tokens
        self.num_special_tokens = num_special_tokens
        self.pad_id = pad_id
        self.eos_id = eos_id
        self.centers = torch.linspace(low, high, bins, dtype=torch.float32)
        ends = torch.tensor([1e20])
        self.boundaries = torch.cat([-ends, (self.centers[1:] + self.centers[:-1]) / 2, ends])

    def __call__(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens ``(B, T)`` int64, mask of observed values ``(B, T)`` and scale ``(B,)`` of series ``(B, T)``."""
        check_floating("context", context)
        if context.ndim != 2:
            raise ValueError(f"context has shape {tuple(context.shape)}; wanted series (B, T), NaN where missing.")
        context = context.float()
        mask = ~context.isnan()
        scale = context.abs().nansum(-1) / mask.sum(-1)
        scale = torch.where(scale > 0, scale, 1.0)
        return self.encode(context, scale), mask, scale

    def encode(self, values: Tensor, scale: Tensor) -> Tensor:
        """Tokens of values ``(B, ...)``, such as the future of series with the scale ``(B,)``; NaN gives ``pad_id``."""
        check_shape("scale", scale, values.shape[:1], "one scale for each row of values")
        scaled = values.float() / _per_row(scale, values)
        ids = torch.bucketize(scaled, self.boundaries.to(values.device), right=True) + self.num_special_tokens
        return torch.where(values.isnan(), self.pad_id, ids.clamp(0, self.num_tokens - 1))

    def decode(self, ids: Tensor, scale: Tensor) -> Tensor:
        """Values of tokens ``(B, ...)``: centres of their bins times the scale ``(B,)``."""
        check_shape("scale", scale, ids.shape[:1], "one scale for each row of ids")
        index = (ids - self.num_special_tokens - 1).clamp(0, len(self.centers) - 1)
        return self.centers.to(ids.device)[index] * _per_row(scale, ids)

    def append_eos(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and mask ``(B, T + 1)`` with ``eos_id`` at the end, observed."""
        end = ids.new_full((len(ids), 1), self.eos_id)
        return torch.cat([ids, end], 1), torch.cat([mask, torch.ones_like(end, dtype=torch.bool)], 1)


class Forecast(NamedTuple):
    """What a distribution says about a value.

    Attributes:
        mean: ``(N, ...)``.
        median: ``(N, ...)``.
        quantiles: ``(N, ..., Q)``.
    """

    mean: Tensor
    median: Tensor
    quantiles: Tensor


def forecast_from_samples(samples: Tensor, *, quantile_levels: Sequence[float] = DECILES) -> Forecast:
    """Mean, median and quantiles of sampled futures, quantiles interpolated between samples.

    Args:
        samples: ``(N, S, ...)`` with S samples of each future.
        quantile_levels: Q levels in [0, 1].

    Returns:
        A :class:`Forecast`.

    Raises:
        TypeError: ``samples`` is not floating point.
        ValueError: ``samples`` has no axis of samples, or a level is out of range.

    Example:
        >>> samples = torch.arange(11.0).reshape(1, 11, 1)
        >>> forecast_from_samples(samples, quantile_levels=[0.1, 0.9]).quantiles
        tensor([[[1., 9.]]])

    Source:
        Ansari et al. (TMLR 2024, arXiv 2403.07815), section 5.
    """
    check_floating("samples", samples)
    if samples.ndim < 2 or samples.shape[1] == 0:
        raise ValueError(f"samples has shape {tuple(samples.shape)}; wanted (N, S, ...) with S >= 1 samples.")
    samples = samples.to(torch.promote_types(samples.dtype, torch.float32))
    levels = torch.tensor([0.5, *_levels(quantile_levels)], dtype=samples.dtype, device=samples.device)
    quantiles = torch.quantile(samples, levels, dim=1).movedim(0, -1)
    return Forecast(samples.mean(1), quantiles[..., 0], quantiles[..., 1:])


def forecast_from_bins(
    input: Tensor,
    centers: Tensor | None = None,
    *,
    quantile_levels: Sequence[float] = DECILES,
    num_special_tokens: int = 0,
) -> Forecast:
    """Mean, median and quantiles of a predicted distribution over bins.

    A quantile is the first centre at which the cumulative probability reaches the level. The median is the best point
    forecast for absolute errors, the mean for squared ones.

    Args:
        input: Logits ``(N, B, ...)``.
        centers: Positions of the bins ``(B - num_special_tokens,)``, increasing; None takes 0, 1, 2, ...
        quantile_levels: Q levels in [0, 1].
        num_special_tokens: Leading classes without a position; probabilities are taken over the others alone.

    Returns:
        A :class:`Forecast`.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or level is wrong.

    Example:
        >>> logits = torch.tensor([[0.1, 0.2, 0.4, 0.3]]).log()
        >>> forecast_from_bins(logits, quantile_levels=[0.1, 0.9])
        Forecast(mean=tensor([1.9000]), median=tensor([2.]), quantiles=tensor([[0., 3.]]))

    Source:
        Chernov (arXiv 2409.15367); Ansari et al. (TMLR 2024, arXiv 2403.07815).
    """
    check_floating("input", input)
    if input.ndim < 2:
        raise ValueError(f"input has shape {tuple(input.shape)}; wanted logits (N, B, ...).")
    logits = input.movedim(1, -1)[..., num_special_tokens:]
    bins = logits.shape[-1]
    if not 1 <= bins <= input.shape[1]:
        raise ValueError(f"num_special_tokens is {num_special_tokens}; wanted 0 to {input.shape[1] - 1}.")
    positions = bin_positions(centers, bins, input.new_empty(0, dtype=torch.promote_types(input.dtype, torch.float32)))
    probability = logits.double().softmax(-1)
    # Half a unit in the last place of float32 forgives a cumulative 0.49999999 its distance from 0.5.
    cumulative = probability.cumsum(-1) + 2**-25
    index = [(cumulative < level).sum(-1).clamp(max=bins - 1) for level in (0.5, *_levels(quantile_levels))]
    quantiles = positions[torch.stack(index, -1)]
    mean = (probability * positions.double()).sum(-1).to(positions.dtype)
    return Forecast(mean, quantiles[..., 0], quantiles[..., 1:])


def mase(forecast: Tensor, target: Tensor, context: Tensor, *, seasonality: int = 1) -> Tensor:
    """Mean absolute scaled error: absolute error in units of the seasonal naive forecast's error on the context.

    Args:
        forecast: Point forecasts ``(N, H)``, best medians.
        target: What came ``(N, H)``, NaN where missing.
        context: The series before ``(N, T)``, T > ``seasonality``, NaN where missing.
        seasonality: Period of the naive forecast.

    Returns:
        ``(N,)``, one for each series; infinite where the context repeats itself exactly.

    Raises:
        ValueError: A shape or ``seasonality`` is wrong.

    Example:
        >>> context = torch.tensor([[1.0, 2.0, 3.0, 5.0]])
        >>> mase(torch.tensor([[5.0, 6.0]]), torch.tensor([[6.0, 8.0]]), context)
        tensor([1.1250])

    Source:
        Hyndman, Koehler: Another look at measures of forecast accuracy (International Journal of Forecasting 2006).
    """
    check_shape("target", target, forecast.shape, "as forecast")
    if not 1 <= seasonality < context.shape[-1]:
        raise ValueError(f"seasonality is {seasonality}; wanted 1 to {context.shape[-1] - 1} (context is longer).")
    naive = (context[..., seasonality:] - context[..., :-seasonality]).abs().nanmean(-1)
    return (forecast - target).abs().nanmean(-1) / naive


def weighted_quantile_loss(quantiles: Tensor, target: Tensor, quantile_levels: Sequence[float] = DECILES) -> Tensor:
    """Twice the pinball loss over all values, in units of their summed size, averaged over levels.

    Args:
        quantiles: Predicted quantiles ``(..., Q)``.
        target: What came ``(...)``, NaN where missing.
        quantile_levels: The Q levels.

    Returns:
        ``()``.

    Raises:
        ValueError: A shape or level is wrong.

    Example:
        >>> weighted_quantile_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([2.0]), [0.1, 0.9])
        tensor(0.1000)

    Source:
        Ansari et al. (TMLR 2024, arXiv 2403.07815), section 5 (WQL over deciles).
    """
    check_shape("quantiles", quantiles, (*target.shape, len(quantile_levels)), "a quantile for each target and level")
    levels = torch.tensor(_levels(quantile_levels), dtype=quantiles.dtype, device=quantiles.device)
    miss = target.unsqueeze(-1) - quantiles
    pinball = torch.maximum(levels * miss, (levels - 1) * miss)
    return 2 * (pinball.nansum(list(range(target.ndim))) / target.abs().nansum()).mean()


def _levels(quantile_levels: Sequence[float]) -> list[float]:
    for level in quantile_levels:
        check_in_range("quantile_levels", level, 0.0, 1.0)
    return [float(level) for level in quantile_levels]


def _per_row(scale: Tensor, values: Tensor) -> Tensor:
    return scale.reshape([-1] + [1] * (values.ndim - 1))
