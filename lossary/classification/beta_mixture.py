"""How likely a label is wrong, from its loss: a mixture of two beta distributions over the losses of a training set."""

from __future__ import annotations

import math
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lossary.core.checks import check_in_range
from lossary.core.estimator import Estimator

Array = npt.NDArray[Any]
Values = TypeVar("Values", Array, Tensor)

_INSIDE = 1e-4
"""Fitted values stay this far from 0 and 1, where a beta density may be infinite."""
_EDGE = 1e-12
"""So far stay values that are asked for; also what no density falls below in the expectation step."""


class BetaMixture(Estimator):
    r"""A mixture of two beta distributions, fitted by expectation and moment matching.

    Reach for it to part values in [0, 1] that heap up at the ends, as normalised losses do, where a mixture of
    Gaussians fits badly. For losses as they are use :class:`NoiseModel`.

    Formula:
        .. math:: p(t) = \sum_{k=0}^1 w_k \mathrm{Beta}(t; a_k, b_k), \quad
            a_k = m_k \Big(\frac{m_k (1 - m_k)}{v_k} - 1\Big), \quad b_k = a_k \frac{1 - m_k}{m_k}

        with the weighted mean :math:`m_k` and variance :math:`v_k` of each component. Matching moments is not the
        maximum of the likelihood, which may fall from step to step.

    Args:
        max_iter: Number of steps.
        init: Parameters (a, b) to begin with: two numbers a and two numbers b, by component.
        init_weights: Weights to begin with.

    Attributes:
        alphas: The a of each component ``(2,)`` float64; component 1 has the higher mean.
        betas: The b of each component ``(2,)`` float64.
        weights: Weight of each component ``(2,)`` float64.
        n_iter_: Steps taken.

    Example:
        >>> low, high = np.random.default_rng(0).beta([2.0, 8.0], [10.0, 2.0], (2000, 2)).T
        >>> mixture = BetaMixture(max_iter=20).fit(np.concatenate([low, high]))
        >>> mixture.predict(np.array([0.1, 0.9]))
        array([False,  True])

    Source:
        Arazo, Ortego, Albert, O'Connor, McGuinness: Unsupervised Label Noise Modeling and Loss Correction (ICML 2019,
        arXiv 1904.11238), section 3.1. Here variances and parameters have a floor, so that constant values give no NaN.
    """

    alphas: Array
    betas: Array
    weights: Array

    def __init__(
        self,
        max_iter: int = 10,
        *,
        init: tuple[tuple[float, float], tuple[float, float]] = ((1, 2), (2, 1)),
        init_weights: tuple[float, float] = (0.5, 0.5),
    ) -> None:
        self.max_iter = max_iter
        self.init = init
        self.init_weights = init_weights

    def fit(self, values: Array | Tensor, y: object = None) -> Self:
        """Fit to values in [0, 1], ``(n,)`` or ``(n, 1)``; ``y`` is there for scikit-learn's sake.

        Raises:
            ValueError: There are no values, or one is not in [0, 1], or a parameter is out of range.
        """
        check_in_range("max_iter", self.max_iter, 1)
        t = _numbers("values", values)
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"values run from {t.min()} to {t.max()}; wanted numbers in [0, 1].")
        t = t.clip(_INSIDE, 1 - _INSIDE)
        self.alphas, self.betas = (_start("init", start) for start in self.init)
        self.weights = _start("init_weights", self.init_weights)
        for _ in range(self.max_iter):
            share = np.exp(np.maximum(self._log_joint(t), math.log(_EDGE)))
            share /= share.sum(0)
            self.weights = share.mean(1)
            mean = (share @ t) / share.sum(1)
            variance = np.maximum((share * (t - mean[:, None]) ** 2).sum(1) / share.sum(1), 1e-8)
            self.alphas = np.maximum(mean * (mean * (1 - mean) / variance - 1), 1e-3)
            self.betas = np.maximum(self.alphas * (1 - mean) / mean, 1e-3)
        order = (self.alphas / (self.alphas + self.betas)).argsort(kind="stable")
        self.alphas, self.betas, self.weights = self.alphas[order], self.betas[order], self.weights[order]
        self.n_iter_ = self.max_iter
        return self

    def probability(self, x: Values) -> Values:
        """Density of the mixture at ``x``, any shape; a tensor for a tensor."""
        self._check_fitted()
        return _as_came(np.exp(self._log_joint(_inner(x))).sum(0), x)

    def posterior(self, x: Values, component: int = 1) -> Values:
        """Probability that ``x`` comes from a component; a density below 1e-12 counts as neither's."""
        self._check_fitted()
        if component not in (0, 1):
            raise ValueError(f"component is {component!r}; wanted 0 or 1.")
        joint = np.exp(self._log_joint(_inner(x)))
        return _as_came(joint[component] / (joint.sum(0) + _EDGE), x)

    def predict(self, x: Values) -> Values:
        """Whether component 1, of the higher values, is the likelier one."""
        likelier: Values = self.posterior(x, 1) > 0.5
        return likelier

    def predict_proba(self, x: Array | Tensor) -> Array:
        """Probabilities of both components ``(n, 2)``."""
        t = _numbers("x", x)
        return np.stack([self.posterior(t, 0), self.posterior(t, 1)], 1)

    def score_samples(self, x: Values) -> Values:
        """Log of the density at ``x``."""
        self._check_fitted()
        return _as_came(np.logaddexp(*self._log_joint(_inner(x))), x)

    def score(self, x: Array | Tensor, y: object = None) -> float:
        """Mean log-density of ``x``."""
        return float(self.score_samples(_numbers("x", x)).mean())

    def _log_joint(self, t: Array) -> Array:
        """Log of weight times density, components first."""
        return np.stack(
            [
                np.log(w)
                + (a - 1) * np.log(t)
                + (b - 1) * np.log1p(-t)
                + math.lgamma(a + b)
                - math.lgamma(a)
                - math.lgamma(b)
                for a, b, w in zip(self.alphas, self.betas, self.weights, strict=True)
            ]
        )


class LossNormalizer(Estimator):
    """Losses taken into (0, 1): the range between two percentiles is stretched, what lies beyond is clipped.

    Reach for it under :class:`BetaMixture`; :class:`NoiseModel` does both.

    Args:
        lower: Percentile that becomes 0.
        upper: Percentile that becomes 1.

    Attributes:
        low_: Loss at the lower percentile, and a hair more.
        high_: Loss at the upper percentile.

    Example:
        >>> LossNormalizer(0, 100).fit(np.array([0.0, 2.0])).transform(np.array([0.5, 1.0, 9.0])).round(3)
        array([0.25 , 0.5  , 0.999])

    Source:
        Arazo et al. (ICML 2019, arXiv 1904.11238) and its public code.
    """

    low_: float
    high_: float

    def __init__(self, lower: float = 5, upper: float = 95) -> None:
        self.lower = lower
        self.upper = upper

    def fit(self, losses: Array | Tensor, y: object = None) -> Self:
        """Find the percentiles of ``losses (n,)``.

        Raises:
            ValueError: There are no losses, one is not finite, or the percentiles are out of order.
        """
        if not 0 <= self.lower < self.upper <= 100:
            raise ValueError(f"lower is {self.lower} and upper {self.upper}; wanted 0 <= lower < upper <= 100.")
        low, high = np.percentile(_numbers("losses", losses), [self.lower, self.upper])
        self.low_, self.high_ = float(low) + 1e-5, float(high)
        return self

    def transform(self, losses: Values) -> Values:
        """Losses of any shape taken into [0.001, 0.999]; a tensor for a tensor."""
        self._check_fitted()
        t = (_array(losses) - self.low_) / (max(self.high_ - self.low_, 0.0) + 1e-6)
        return _as_came(np.where(t >= 1, 1 - 1e-3, np.where(t <= 0, 1e-3, t)), losses)


class NoiseModel(Estimator):
    """How likely each label is wrong, from the losses of a network that has fitted the right ones first.

    Reach for it after some epochs of training on labels of which many may be wrong, with the losses of the whole
    training set (in evaluation mode, without augmentation); fit it anew at each epoch. It needs neither clean labels
    nor the share of wrong ones. Once a network has memorised wrong labels, their losses tell nothing.

    Args:
        max_iter: Steps of the :class:`BetaMixture`.
        lower: Percentile of the losses that becomes 0; what lies below is left out of the fit.
        upper: Percentile that becomes 1; what lies above is left out.
        lookup: Number of points at which the posterior is tabulated. From its largest value on the table stays there:
            a loss that is larger still is no sign of a right label.

    Attributes:
        normalizer_: The fitted :class:`LossNormalizer`.
        mixture_: The fitted :class:`BetaMixture`.
        table_: Posterior of a wrong label by normalised loss ``(lookup,)``.

    Example:
        >>> losses = np.random.default_rng(0).gamma([1.0, 20.0], [0.1, 0.1], (500, 2)).T.flatten()
        >>> NoiseModel().fit(losses).noise_probability(np.array([0.05, 2.0])) > 0.5
        array([False,  True])

    Source:
        Arazo et al. (ICML 2019, arXiv 1904.11238), section 3.1, and its public code.
    """

    normalizer_: LossNormalizer
    mixture_: BetaMixture
    table_: Array

    def __init__(self, max_iter: int = 10, lower: float = 5, upper: float = 95, lookup: int = 100) -> None:
        self.max_iter = max_iter
        self.lower = lower
        self.upper = upper
        self.lookup = lookup

    def fit(self, losses: Array | Tensor, y: object = None) -> Self:
        """Fit to the losses ``(n,)`` of a training set.

        Raises:
            ValueError: There are no losses, one is not finite, or a parameter is out of range.
        """
        check_in_range("lookup", self.lookup, 2)
        losses = _numbers("losses", losses)
        normalizer = LossNormalizer(self.lower, self.upper).fit(losses)
        low, high = np.percentile(losses, [self.lower, self.upper])
        inlying = losses[(losses >= low) & (losses <= high)]
        self.mixture_ = BetaMixture(self.max_iter).fit(normalizer.transform(inlying))
        table = self.mixture_.posterior(np.linspace(0, 1, self.lookup))
        table[table.argmax() :] = table.max()
        self.normalizer_, self.table_ = normalizer, table
        return self

    def noise_probability(self, losses: Values) -> Values:
        """Probability in [0.0001, 0.9999] that a label is wrong, from its loss; shaped as ``losses``, NaN for NaN."""
        self._check_fitted()
        t = self.normalizer_.transform(_array(losses))
        place = np.floor(self.lookup * np.nan_to_num(t)).astype(np.int64).clip(0, self.lookup - 1)
        probability = self.table_[place].clip(_INSIDE, 1 - _INSIDE)
        return _as_came(np.where(np.isnan(t), np.nan, probability), losses)


def _start(name: str, numbers: Any) -> Array:
    """Two positive numbers to begin with, by component."""
    start = np.array(numbers, dtype=np.float64)
    if start.shape != (2,) or not bool((np.isfinite(start) & (start > 0)).all()):
        raise ValueError(f"{name} has {numbers!r}; wanted a positive number for each of two components.")
    return start


def _array(values: Array | Tensor) -> Array:
    return np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, dtype=np.float64)


def _numbers(name: str, values: Array | Tensor) -> Array:
    """Finite float64 numbers ``(n,)``."""
    numbers = _array(values)
    if numbers.shape[1:] not in ((), (1,)) or numbers.ndim == 0:
        raise ValueError(f"{name} has shape {numbers.shape}; wanted (n,) or (n, 1).")
    if numbers.size == 0 or not bool(np.isfinite(numbers).all()):
        raise ValueError(f"{name} holds {numbers.size} numbers, not all finite; wanted at least one, all finite.")
    return numbers.ravel()


def _inner(x: Array | Tensor) -> Array:
    return _array(x).clip(_EDGE, 1 - _EDGE)


def _as_came(result: Array, values: Values) -> Values:
    """A tensor on the device and, for float32 and wider, in the dtype of the tensor that came; else the array."""
    if isinstance(values, Tensor):
        wide = values.dtype in (torch.float32, torch.float64)  # in half precision 0.9999 would be 1
        dtype = values.dtype if wide else torch.get_default_dtype()
        return torch.from_numpy(np.asarray(result)).to(values.device, dtype)
    return np.asarray(result)
