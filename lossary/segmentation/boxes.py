"""Losses of boxes: intersection over union with its penalties, and the sum of squares of the first YOLO."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lossary.core.checks import check_in_range
from lossary.core.numerics import safe_sqrt
from lossary.core.objective import Kind, Objective, objective
from lossary.core.types import Reduction
from lossary.core.values import like_first, reduce_values, widened

Variant = Literal["iou", "giou", "diou", "ciou"]


@objective(Kind.BOXES)
def box_iou_loss(
    input: Tensor,
    target: Tensor,
    *,
    variant: Variant = "iou",
    eps: float = 1e-7,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""One minus the intersection over union of two boxes, with a penalty that still pulls where they are disjoint.

    Reach for it to regress boxes by what detection is measured by. Plain ``iou`` has no gradient for disjoint boxes;
    ``giou`` shrinks the hull, ``diou`` pulls the centres together, ``ciou`` compares aspect ratios too.

    Formula:
        .. math:: L = 1 - \frac{|A \cap B|}{|A \cup B|} + P

        ``iou``: :math:`P = 0`. ``giou``: :math:`P = (|H| - |A \cup B|) / |H|` with the hull H. ``diou``:
        :math:`P = \rho^2 / c^2`, distance of centres over diagonal of the hull. ``ciou``: :math:`P = \rho^2 / c^2 +
        \alpha v`, :math:`v = \frac{4}{\pi^2} (\arctan\frac{w_t}{h_t} - \arctan\frac{w}{h})^2`, :math:`\alpha = v / (1 -
        \mathrm{IoU} + v)` a constant to the gradient.

    Args:
        input: Predicted boxes, x1, y1, x2, y2 with x1 <= x2 and y1 <= y2.
        target: True boxes.
        variant: ``iou``, ``giou``, ``diou`` or ``ciou``.
        eps: Added to denominators, so that boxes without area give no NaN.
        sample_weight: Weights of boxes or rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of boxes.

    Shape:
        - input, target: ``(..., 4)``, floating point.
        - sample_weight: ``(...)`` or ``(N,)``; normalizer: a number or ``()``.

    Returns:
        ``(...)`` for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, ``variant``, ``eps`` or reduction is wrong.

    Example:
        >>> input, target = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]])
        >>> box_iou_loss(input, target)
        tensor(0.6667)
        >>> box_iou_loss(input, target, variant="diou")
        tensor(0.7436)

    Source:
        Terven et al.: Loss Functions and Metrics in Deep Learning (arXiv 2307.02694), detection losses; GIoU by
        Rezatofighi et al. (CVPR 2019, arXiv 1902.09630), DIoU and CIoU by Zheng et al. (AAAI 2020, arXiv 1911.08287).
    """
    if variant not in get_args(Variant):
        raise ValueError(f"variant is {variant!r}; wanted one of {', '.join(get_args(Variant))}.")
    check_in_range("eps", eps, 0.0)
    input, target = like_first("a box for each box", input=input, target=target)
    if input.ndim == 0 or input.shape[-1] != 4:
        raise ValueError(f"input has shape {tuple(input.shape)}; wanted (..., 4): x1, y1, x2, y2.")
    size, target_size = _size(input), _size(target)
    overlap = (torch.minimum(input[..., 2:], target[..., 2:]) - torch.maximum(input[..., :2], target[..., :2])).relu()
    hull = torch.maximum(input[..., 2:], target[..., 2:]) - torch.minimum(input[..., :2], target[..., :2])
    intersection = overlap.prod(-1)
    union = size.prod(-1) + target_size.prod(-1) - intersection
    loss = 1 - intersection / (union + eps)
    if variant == "giou":
        loss = loss + (hull.prod(-1) - union) / (hull.prod(-1) + eps)
    if variant in ("diou", "ciou"):
        centres = (input[..., :2] + input[..., 2:] - target[..., :2] - target[..., 2:]) / 2
        distance = centres.square().sum(-1) / (hull.square().sum(-1) + eps)
        if variant == "ciou":
            angle = torch.atan2(target_size[..., 0], target_size[..., 1] + eps)
            angle = angle - torch.atan2(size[..., 0], size[..., 1] + eps)
            v = 4 / math.pi**2 * angle.square()
            alpha = (v / (loss + v + eps)).detach()
            distance = distance + alpha * v
        loss = loss + distance
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class BoxIoULoss(Objective):
    """One minus the intersection over union of boxes; module form of :func:`box_iou_loss`.

    Example:
        >>> loss = BoxIoULoss(variant="giou")
        >>> loss(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0, 1.0]]))
        tensor(1.)
    """

    function = box_iou_loss

    def __init__(self, variant: Variant = "iou", *, eps: float = 1e-7, reduction: Reduction = "mean") -> None:
        super().__init__(variant=variant, eps=eps, reduction=reduction)


def _grid_of_two(input: Tensor, target: Tensor) -> dict[str, Any]:
    """Grids of 2 x 2 cells with one box and three classes; even cells have an object, in the numbers of an image."""
    cells = target.reshape(-1, 2, 2, 8)
    objects = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=target.dtype).unsqueeze(-1)
    cells = torch.cat([cells[..., :4], objects.expand(*cells.shape[:-1], 1), cells[..., 5:]], -1)
    return {"input": input.reshape(-1, 2, 2, 8), "target": cells}


@objective(
    Kind.IMAGES,
    arguments=_grid_of_two,
    example=lambda num_classes: {"num_boxes": 1},
    exempt={
        "gradcheck": "the IoU that confidences aim at is a constant to the gradient: tests/segmentation/test_boxes.py"
    },
)
def yolo_loss(
    input: Tensor,
    target: Tensor,
    *,
    num_boxes: int = 2,
    coordinate_weight: Tensor | float = 5.0,
    no_object_weight: Tensor | float = 0.5,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""The sum of squares of the first YOLO: boxes, confidences and classes of a grid of cells.

    Reach for it to understand or rebuild that detector; later ones replaced every part of it
    (:func:`box_iou_loss` for coordinates, cross-entropy for confidences and classes).

    Formula:
        .. math:: L = \sum_{i \in obj} \Big[ \lambda_c \big( (x - \hat x)^2 + (y - \hat y)^2
            + (\sqrt w - \sqrt{\hat w})^2 + (\sqrt h - \sqrt{\hat h})^2 \big) + (C - \mathrm{IoU})^2
            + \sum_k (p_k - \hat p_k)^2 \Big] + \lambda_n \sum_{others} C^2

        The first bracket is that of the predictor responsible for the cell's object: the one with the largest
        IoU, which is a constant to the gradient. All other predictors are the *others*.

    Args:
        input: For each cell ``num_boxes`` times x, y in units of the cell, *square roots* of w, h in units of the
            image, and confidence C; then scores of the classes. Square roots, as the network of the paper predicts
            them: they need no bound.
        target: For each cell x, y, w, h in the same units (not their roots), 1 or 0 for an object or none, and
            the one-hot class.
        num_boxes: Predictors of each cell.
        coordinate_weight: The :math:`\lambda_c`, at least 0.
        no_object_weight: The :math:`\lambda_n`, at least 0.
        sample_weight: Weights of images.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of images.

    Shape:
        - input: ``(N, S, S, 5 num_boxes + C)``; target: ``(N, S, S, 5 + C)``; floating point.
        - sample_weight: ``(N,)``; normalizer: a number or ``()``.

    Returns:
        ``(N,)`` for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, ``num_boxes``, a weight or reduction is wrong.

    Example:
        >>> input = torch.tensor([0.5, 0.5, 0.7, 0.7, 0.9, 1.0, 0.0]).reshape(1, 1, 1, 7)
        >>> target = torch.tensor([0.5, 0.5, 0.49, 0.49, 1.0, 1.0, 0.0]).reshape(1, 1, 1, 7)
        >>> yolo_loss(input, target, num_boxes=1)
        tensor(0.0100)

    Source:
        Terven et al. (arXiv 2307.02694), detection losses; Redmon, Divvala, Girshick, Farhadi: You Only Look Once
        (CVPR 2016, arXiv 1506.02640), equation 3.
    """
    check_in_range("coordinate_weight", coordinate_weight, 0.0)
    check_in_range("no_object_weight", no_object_weight, 0.0)
    input, target = widened(input=input, target=target)
    if num_boxes < 1 or input.ndim != 4 or input.shape[-1] < 5 * num_boxes:
        raise ValueError(f"input has shape {tuple(input.shape)}; wanted (N, S, S, 5 x {num_boxes} boxes + classes).")
    num_classes = input.shape[-1] - 5 * num_boxes
    wanted = (*input.shape[:-1], 5 + num_classes)
    if target.shape != wanted:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; wanted {wanted}: box, object and class of each cell."
        )
    boxes = input[..., : 5 * num_boxes].reshape(*input.shape[:-1], num_boxes, 5)
    truth, has_object = target[..., :4].unsqueeze(-2), target[..., 4]
    iou = _cell_iou(boxes.detach(), truth, cells=input.shape[1])
    best = iou.argmax(-1, keepdim=True) == torch.arange(num_boxes, device=iou.device)
    responsible = best * has_object.unsqueeze(-1)
    roots = torch.cat([truth[..., :2], safe_sqrt(truth[..., 2:])], -1)
    coordinates = (boxes[..., :4] - roots).square().sum(-1)
    confidence = boxes[..., 4]
    by_box = responsible * (coordinate_weight * coordinates + (confidence - iou).square())
    by_box = by_box + no_object_weight * (1 - responsible) * confidence.square()
    classes = has_object * (input[..., 5 * num_boxes :] - target[..., 5:]).square().sum(-1)
    loss = (by_box.sum(-1) + classes).sum((1, 2))
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class YOLOLoss(Objective):
    """The sum of squares of the first YOLO; module form of :func:`yolo_loss`.

    Example:
        >>> YOLOLoss(num_boxes=1)(torch.zeros(1, 7, 7, 25), torch.zeros(1, 7, 7, 25))
        tensor(0.)
    """

    function = yolo_loss

    def __init__(
        self,
        num_boxes: int = 2,
        *,
        coordinate_weight: Tensor | float = 5.0,
        no_object_weight: Tensor | float = 0.5,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            num_boxes=num_boxes,
            coordinate_weight=coordinate_weight,
            no_object_weight=no_object_weight,
            reduction=reduction,
        )


def _size(boxes: Tensor) -> Tensor:
    return boxes[..., 2:] - boxes[..., :2]


def _cell_iou(boxes: Tensor, truth: Tensor, *, cells: int) -> Tensor:
    """IoU of predictions (x, y, sqrt w, sqrt h) with the truth (x, y, w, h) of their cell."""
    corners = []
    for centre, size in ((boxes[..., :2], boxes[..., 2:4].square()), (truth[..., :2], truth[..., 2:])):
        corners.append(torch.cat([centre / cells - size / 2, centre / cells + size / 2], -1))
    return 1 - box_iou_loss(corners[0], corners[1].expand_as(corners[0]), reduction="none")
