"""Fréchet distance of two Gaussians, which is FID where they describe an Inception network's features."""

from __future__ import annotations

import torch
from torch import Tensor

from lossary.core.checks import check_shape
from lossary.core.values import widened


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    r"""Squared Fréchet (2-Wasserstein) distance of two Gaussians.

    Reach for it to compare samples by features of your own; for FID itself with its network, torchmetrics has
    ``torchmetrics.image.fid.FrechetInceptionDistance``. Use float64 for covariances of thousands of features.

    Formula:
        .. math:: d^2 = \|m_1 - m_2\|^2 + \mathrm{tr}\big( S_1 + S_2 - 2 (S_1^{1/2} S_2 S_1^{1/2})^{1/2} \big)

    Args:
        mean1: Mean of the first ``(D,)``.
        cov1: Its covariance ``(D, D)``, symmetric, positive semidefinite; singular ones are no problem.
        mean2: Mean of the second ``(D,)``.
        cov2: Its covariance ``(D, D)``.

    Returns:
        ``()``, at least 0. A measure: gradients are not meant to be used (equal eigenvalues have none).

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape is wrong.

    Example:
        >>> frechet_distance(torch.zeros(2), torch.eye(2), torch.ones(2), 4 * torch.eye(2))
        tensor(4.)

    Source:
        Terven et al.: Loss Functions and Metrics in Deep Learning (arXiv 2307.02694), image generation metrics; Heusel
        et al.: GANs Trained by a Two Time-Scale Update Rule (NeurIPS 2017, arXiv 1706.08500), equation 6.
    """
    mean1, cov1, mean2, cov2 = widened(mean1=mean1, cov1=cov1, mean2=mean2, cov2=cov2)
    if mean1.ndim != 1:
        raise ValueError(f"mean1 has shape {tuple(mean1.shape)}; wanted (D,).")
    size = mean1.shape[0]
    for name, tensor, shape in (("mean2", mean2, (size,)), ("cov1", cov1, (size, size)), ("cov2", cov2, (size, size))):
        check_shape(name, tensor, shape, "for the D of mean1")
    root = _root(cov1)
    between = torch.linalg.eigvalsh(_symmetric(root @ _symmetric(cov2) @ root)).clamp(min=0).sqrt().sum()
    distance: Tensor = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * between
    return distance.clamp(min=0)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _root(matrix: Tensor) -> Tensor:
    """Symmetric square root; negative eigenvalues, which only rounding makes, count as 0."""
    values, vectors = torch.linalg.eigh(_symmetric(matrix))
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
