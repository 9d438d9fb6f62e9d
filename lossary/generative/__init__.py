"""Objectives of generative models: adversarial pairs, latent variables, style, and distances of distributions."""

from __future__ import annotations

from lossary.generative.adversarial import adversarial_losses, gradient_penalty
from lossary.generative.frechet import frechet_distance
from lossary.generative.latent import GaussianKLLoss, gaussian_kl_loss
from lossary.generative.style import StyleLoss, style_loss

__all__ = [
    "GaussianKLLoss",
    "StyleLoss",
    "adversarial_losses",
    "frechet_distance",
    "gaussian_kl_loss",
    "gradient_penalty",
    "style_loss",
]
