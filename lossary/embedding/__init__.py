"""Objectives over embeddings: angular margins, centres and decorrelation."""

from __future__ import annotations

from lossary.embedding.angular_margin import (
    ArcFaceLoss,
    CosFaceLoss,
    SphereFaceLoss,
    arcface_loss,
    cosface_loss,
    sphereface_loss,
)
from lossary.embedding.barlow_twins import BarlowTwinsLoss, barlow_twins_loss
from lossary.embedding.center import CenterLoss, center_loss

__all__ = [
    "ArcFaceLoss",
    "BarlowTwinsLoss",
    "CenterLoss",
    "CosFaceLoss",
    "SphereFaceLoss",
    "arcface_loss",
    "barlow_twins_loss",
    "center_loss",
    "cosface_loss",
    "sphereface_loss",
]
