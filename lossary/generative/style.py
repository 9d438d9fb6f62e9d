"""Style: images whose features occur together in the same way, wherever they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lossary.core.objective import Kind, Objective, objective
from lossary.core.types import Reduction
from lossary.core.values import full_precision, reduce_values, widened


@objective(Kind.IMAGES, arguments=lambda input, target: {"features": input, "target": target})
def style_loss(
    features: Tensor | Sequence[Tensor],
    target: Tensor | Sequence[Tensor],
    *,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Squared distance of the Gram matrices of two images' features.

    Reach for it with features of a trained network to transfer style or texture; what is where is left to another
    loss, such as the squared distance of the features themselves (a perceptual loss).

    Formula:
        .. math:: L = \sum_l \|G(\phi_l) - G(\hat\phi_l)\|_F^2, \quad G(\phi) = \frac{\phi \phi^\top}{C H W}

    Args:
        features: Features of the image that is made, of one layer or of several.
        target: Features of the image whose style is wanted; they may have another height and width.
        sample_weight: Weights of images.
        reduction: ``none``, ``mean`` or ``sum`` over images.
        normalizer: Divisor in place of the number of images.

    Shape:
        - features, target: ``(N, C, H, W)`` each, floating point, or as many layers of them.
        - sample_weight: ``(N,)``; normalizer: a number or ``()``.

    Returns:
        ``(N,)`` for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, the number of layers or reduction is wrong.

    Example:
        >>> features = torch.arange(8.0).reshape(1, 2, 2, 2)
        >>> style_loss(features, features.flip(-1))
        tensor(0.)

    Source:
        Terven et al.: Loss Functions and Metrics in Deep Learning (arXiv 2307.02694), image generation losses; Johnson,
        Alahi, Fei-Fei: Perceptual Losses for Real-Time Style Transfer (ECCV 2016, arXiv 1603.08155), equation 3.
    """
    layers: list[tuple[Any, Any]] = [(features, target)]
    if not isinstance(features, Tensor):
        made, wanted = list(features), [target] if isinstance(target, Tensor) else list(target)
        if len(made) != len(wanted) or not made:
            raise ValueError(f"features has {len(made)} layers and target {len(wanted)}; wanted as many, at least one.")
        layers = list(zip(made, wanted, strict=True))
    by_layer = []
    for layer, of_target in layers:
        ours, theirs = widened(features=layer, target=of_target)
        if ours.ndim != 4:
            raise ValueError(f"features has shape {tuple(ours.shape)}; wanted (N, C, H, W).")
        if theirs.ndim != 4 or theirs.shape[:2] != ours.shape[:2]:
            n, channels = ours.shape[:2]
            raise ValueError(f"target has shape {tuple(theirs.shape)}; wanted ({n}, {channels}, H, W), as features.")
        by_layer.append((_gram(ours) - _gram(theirs)).square().sum((1, 2)))
    loss = torch.stack(by_layer).sum(0)
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class StyleLoss(Objective):
    """Squared distance of Gram matrices; module form of :func:`style_loss`.

    Example:
        >>> StyleLoss()(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 3, 3))
        tensor(0.)
    """

    function = style_loss

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(
        self,
        features: Tensor | Sequence[Tensor],
        target: Tensor | Sequence[Tensor],
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            features: Features of the image that is made.
            target: Features of the image whose style is wanted.
            sample_weight: Weights of images.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return style_loss(
            features, target, sample_weight=sample_weight, normalizer=normalizer, **self.hyperparameters()
        )


def _gram(features: Tensor) -> Tensor:
    """How features occur together ``(N, C, C)``."""
    flat = features.flatten(2)
    with full_precision(flat):
        return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])
