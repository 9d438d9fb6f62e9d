"""Objectives over classes and over yes/no labels."""

from __future__ import annotations

from lossary.classification.poly import (
    Poly1CrossEntropyLoss,
    Poly1FocalLoss,
    Poly1SigmoidFocalLoss,
    PolyCrossEntropyLoss,
    poly1_cross_entropy_loss,
    poly1_focal_loss,
    poly1_sigmoid_focal_loss,
    poly_cross_entropy_loss,
    poly_series_loss,
)

__all__ = [
    "Poly1CrossEntropyLoss",
    "Poly1FocalLoss",
    "Poly1SigmoidFocalLoss",
    "PolyCrossEntropyLoss",
    "poly1_cross_entropy_loss",
    "poly1_focal_loss",
    "poly1_sigmoid_focal_loss",
    "poly_cross_entropy_loss",
    "poly_series_loss",
]
