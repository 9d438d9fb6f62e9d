"""Objectives of language models, many of them on a linear head whose logits are never stored."""

from __future__ import annotations

from lossary.language.cross_entropy import LinearCrossEntropyLoss, linear_cross_entropy, z_loss

__all__ = ["LinearCrossEntropyLoss", "linear_cross_entropy", "z_loss"]
