"""Boundary F1: how well the outlines of regions agree within a tolerance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.checks import check_in_range, check_shape


def boundary_f1(pred: Tensor, target: Tensor, *, tolerance: float) -> Tensor:
    r"""Harmonic mean of the shares of each outline that lie within ``tolerance`` pixels of the other.

    Reach for it where borders matter: intersection over union hardly sees them on large regions.

    Formula:
        .. math:: F_1 = \frac{2 P R}{P + R}, \quad
            P = \frac{|\{i \in \partial x : d(i, \partial y) \le t\}|}{|\partial x|}, \quad
            R = \frac{|\{i \in \partial y : d(i, \partial x) \le t\}|}{|\partial y|}

        An outline is what of a region touches other pixels on its four sides; the image's border is no outline.

    Args:
        pred: Predicted mask ``(H, W)`` or ``(..., H, W)``; bool, or numbers of which those not 0 are in the region.
            For several classes compare ``pred == k`` with ``target == k``.
        target: True mask in the same shape.
        tolerance: The t in pixels, Euclidean, at least 0.

    Returns:
        ``(...)``, float32. 1 where neither mask has an outline, 0 where one has.

    Raises:
        ValueError: A shape or ``tolerance`` is wrong.

    Example:
        >>> square = torch.zeros(8, 8)
        >>> square[2:6, 2:6] = 1
        >>> boundary_f1(square.roll(1, 0), square, tolerance=0.0)
        tensor(0.5000)
        >>> boundary_f1(square.roll(1, 0), square, tolerance=1.0)
        tensor(1.)

    Source:
        Terven et al.: Loss Functions and Metrics in Deep Learning (arXiv 2307.02694), segmentation metrics; Csurka,
        Larlus, Perronnin: What is a good evaluation measure for semantic segmentation? (BMVC 2013).
    """
    check_in_range("tolerance", tolerance, 0.0)
    check_shape("target", target, pred.shape, "a mask as pred")
    if pred.ndim < 2:
        raise ValueError(f"pred has shape {tuple(pred.shape)}; wanted (..., H, W).")
    outlines = [_outline(mask.bool().reshape(-1, 1, *mask.shape[-2:]).float()) for mask in (pred, target)]
    shares = [
        ((one * _grown(other, tolerance)).sum((1, 2, 3)), one.sum((1, 2, 3)))
        for one, other in (outlines, outlines[::-1])
    ]
    precision, recall = (hit / size.clamp(min=1) for hit, size in shares)
    score = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(torch.float32).tiny)
    neither = (shares[0][1] == 0) & (shares[1][1] == 0)
    return torch.where(neither, 1.0, score).reshape(pred.shape[:-2])


def _outline(mask: Tensor) -> Tensor:
    """Pixels of the mask with a pixel outside it on one of four sides; beyond the border the mask goes on."""
    padded = F.pad(mask, (1, 1, 1, 1), mode="replicate")
    middle, before, after = slice(1, -1), slice(None, -2), slice(2, None)
    sides = ((before, middle), (after, middle), (middle, before), (middle, after))
    inside = torch.stack([padded[..., rows, columns] for rows, columns in sides]).amin(0)
    return mask * (1 - inside)


def _grown(outline: Tensor, tolerance: float) -> Tensor:
    """Pixels within the tolerance of the outline."""
    reach = int(tolerance)
    steps = torch.arange(-reach, reach + 1, device=outline.device)
    disc = (steps.square().unsqueeze(1) + steps.square() <= tolerance**2).float()
    return (F.conv2d(outline, disc[None, None], padding=reach) > 0.5).float()
