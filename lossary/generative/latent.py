"""What latent variables cost: divergence of a Gaussian posterior from the standard normal."""

from __future__ import annotations

import torch
from torch import Tensor

from lossary.core.objective import Kind, Objective, objective
from lossary.core.types import Reduction
from lossary.core.values import like_first, reduce_values


@objective(Kind.PAIRS, arguments=lambda input, target: {"mean": input, "log_variance": target}, unbounded=True)
def gaussian_kl_loss(
    mean: Tensor,
    log_variance: Tensor,
    *,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Kullback-Leibler divergence of diagonal Gaussians from the standard normal, summed over the latent variables.

    Reach for it as the second term of a variational autoencoder, beside a reconstruction loss that is *summed* over
    pixels too, or weigh it accordingly. For other pairs of distributions: ``torch.distributions.kl_divergence``.

    Formula:
        .. math:: L = -\frac{1}{2} \sum_j (1 + \log v_j - \mu_j^2 - v_j)

    Args:
        mean: The :math:`\mu`.
        log_variance: The log v.
        sample_weight: Weights of samples.
        reduction: ``none``, ``mean`` or ``sum`` over samples.
        normalizer: Divisor in place of the number of samples.

    Shape:
        - mean, log_variance: ``(N, ...)``, or ``(D,)`` for one sample; floating point.
        - sample_weight: ``(N,)``; normalizer: a number or ``()``.

    Returns:
        ``(N,)`` for ``none``, else ``()``; float32 for half-precision input. Infinite where a variance overflows.
        Empty ``mean`` is NaN, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or reduction is wrong.

    Example:
        >>> gaussian_kl_loss(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
        tensor(0.5000)

    Source:
        Terven et al.: Loss Functions and Metrics in Deep Learning (arXiv 2307.02694), image generation losses; Kingma,
        Welling: Auto-Encoding Variational Bayes (ICLR 2014, arXiv 1312.6114), appendix B.
    """
    mean, log_variance = like_first("a log variance for each mean", mean=mean, log_variance=log_variance)
    by_variable = (mean.square() + torch.expm1(log_variance) - log_variance) / 2
    loss = by_variable.flatten(1).sum(1) if by_variable.ndim > 1 else by_variable.sum()
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class GaussianKLLoss(Objective):
    """Divergence of diagonal Gaussians from the standard normal; module form of :func:`gaussian_kl_loss`.

    Example:
        >>> GaussianKLLoss()(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
        tensor(0.5000)
    """

    function = gaussian_kl_loss

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(
        self,
        mean: Tensor,
        log_variance: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            mean: Means ``(N, ...)``.
            log_variance: Logarithms of variances ``(N, ...)``.
            sample_weight: Weights of samples.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return gaussian_kl_loss(
            mean, log_variance, sample_weight=sample_weight, normalizer=normalizer, **self.hyperparameters()
        )
