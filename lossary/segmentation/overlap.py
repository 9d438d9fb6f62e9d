"""Losses of whole regions: soft Dice and Tversky, and the convex extension of the Jaccard index (Lovász)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lossary.core.checks import check_class_vector, check_in_range, check_shape
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import ClassRows, class_rows
from lossary.core.types import Reduction
from lossary.core.values import reduce_values

Classes = Literal["all", "present"]


@objective(Kind.REGIONS)
def dice_loss(
    input: Tensor,
    target: Tensor,
    *,
    smooth: Tensor | float = 0.0,
    classes: Classes = "all",
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""One minus the soft Dice coefficient of each class in an image.

    Reach for it, mostly together with cross-entropy, where regions are small and overlap is what counts. Its
    gradient is weak on pixels that are clearly wrong, and its probabilities are not calibrated.

    Formula:
        .. math:: L = \frac{1}{C} \sum_c \Big( 1 - \frac{2 \sum_i p_{ci} y_{ci} + s}{\sum_i p_{ci} + \sum_i y_{ci} + s}
            \Big)

    Args:
        input: Logits.
        target: Class indices or probabilities.
        smooth: The s, at least 0. With 0 a class that an image lacks has a loss of 1; from about 1 on
            predicting nothing there is rewarded.
        classes: Average over ``all`` classes, or over those ``present`` in the image.
        weight: Class weights, in the average over classes.
        ignore_index: Label of pixels that count for nothing.
        sample_weight: Weights of images.
        reduction: ``none``, ``mean`` or ``sum`` over images.
        normalizer: Divisor in place of the number of images.

    Shape:
        - input: ``(N, C, d1, ...)``, floating point.
        - target: ``(N, d1, ...)`` integer, or ``(N, C, d1, ...)`` floating point.
        - smooth: a number or ``()``; weight: ``(C,)``; sample_weight: ``(N,)``; normalizer: a number or ``()``.

    Returns:
        ``(N,)`` for ``none``, else ``()``; float32 for half-precision input. An image without pixels that count does
        not count; without any that does ``mean`` is NaN, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, probability, ``smooth``, ``classes`` or reduction is wrong.

    Example:
        >>> input = torch.tensor([[[4.0, 4.0, -4.0], [-4.0, -4.0, 4.0]]])
        >>> dice_loss(input, torch.tensor([[0, 0, 1]]))
        tensor(0.0004)

    Source:
        Terven et al.: Loss Functions and Metrics in Deep Learning (arXiv 2307.02694), segmentation losses; as a loss
        by Milletari, Navab, Ahmadi: V-Net (3DV 2016, arXiv 1606.04797), there with squares in the denominator.
    """
    return tversky_loss(
        input,
        target,
        alpha=0.5,
        beta=0.5,
        smooth=smooth / 2,
        classes=classes,
        weight=weight,
        ignore_index=ignore_index,
        sample_weight=sample_weight,
        reduction=reduction,
        normalizer=normalizer,
    )


class DiceLoss(Objective):
    """One minus the soft Dice coefficient; module form of :func:`dice_loss`.

    Example:
        >>> DiceLoss()(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 1, 1]]))
        tensor(0.5000)
    """

    function = dice_loss

    def __init__(
        self,
        smooth: Tensor | float = 0.0,
        *,
        classes: Classes = "all",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(smooth=smooth, classes=classes, weight=weight, ignore_index=ignore_index, reduction=reduction)


@objective(Kind.REGIONS)
def tversky_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: Tensor | float = 0.5,
    beta: Tensor | float = 0.5,
    smooth: Tensor | float = 0.0,
    classes: Classes = "all",
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""One minus the soft Tversky index of each class in an image: Dice with prices for the two kinds of error.

    Reach for it where missing a region is worse than drawing one too many (``beta > alpha``), or the reverse.
    ``alpha = beta = 1/2`` is :func:`dice_loss`, ``alpha = beta = 1`` the soft intersection over union.

    Formula:
        .. math:: L = \frac{1}{C} \sum_c \Big( 1 - \frac{TP_c + s}{TP_c + \alpha FP_c + \beta FN_c + s} \Big)

        with :math:`TP = \sum_i p_i y_i`, :math:`FP = \sum_i p_i (1 - y_i)`, :math:`FN = \sum_i (1 - p_i) y_i`.

    Args:
        input: Logits.
        target: Class indices or probabilities.
        alpha: Price of a false positive, at least 0.
        beta: Price of a false negative, at least 0.
        smooth: The s, at least 0. With 0 a class that an image lacks has a loss of 1.
        classes: Average over ``all`` classes, or over those ``present`` in the image.
        weight: Class weights, in the average over classes.
        ignore_index: Label of pixels that count for nothing.
        sample_weight: Weights of images.
        reduction: ``none``, ``mean`` or ``sum`` over images.
        normalizer: Divisor in place of the number of images.

    Shape:
        - input: ``(N, C, d1, ...)``, floating point.
        - target: ``(N, d1, ...)`` integer, or ``(N, C, d1, ...)`` floating point.
        - alpha, beta, smooth: a number or ``()``; weight: ``(C,)``; sample_weight: ``(N,)``; normalizer: a number or
          ``()``.

    Returns:
        ``(N,)`` for ``none``, else ``()``; float32 for half-precision input. An image without pixels that count does
        not count; without any that does ``mean`` is NaN, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, probability, ``alpha``, ``beta``, ``smooth``, ``classes`` or reduction is wrong.

    Example:
        >>> tversky_loss(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 1, 1]]), alpha=1.0, beta=1.0)
        tensor(0.6667)

    Source:
        Terven et al. (arXiv 2307.02694), segmentation losses; Salehi, Erdogmus, Gholipour: Tversky Loss Function for
        Image Segmentation Using 3D Fully Convolutional Deep Networks (MLMI 2017, arXiv 1706.05721).
    """
    check_in_range("alpha", alpha, 0.0)
    check_in_range("beta", beta, 0.0)
    check_in_range("smooth", smooth, 0.0)
    pixels = class_rows(input, target, ignore_index=ignore_index)
    p, y = _flat(pixels)
    hit, predicted, true = (p * y).sum(-1), p.sum(-1), y.sum(-1)
    size = hit + alpha * (predicted - hit) + beta * (true - hit) + smooth
    nothing = size < 1e-18  # neither predicted nor true; its square in the slope would be 0
    index = torch.where(nothing, 0.0, hit + smooth) / torch.where(nothing, 1.0, size)
    return _reduce(1 - index, true, pixels, classes, weight, sample_weight, reduction, normalizer)


class TverskyLoss(Objective):
    """One minus the soft Tversky index; module form of :func:`tversky_loss`.

    Example:
        >>> TverskyLoss(alpha=1.0, beta=1.0)(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 1, 1]]))
        tensor(0.6667)
    """

    function = tversky_loss

    def __init__(
        self,
        alpha: Tensor | float = 0.5,
        beta: Tensor | float = 0.5,
        smooth: Tensor | float = 0.0,
        *,
        classes: Classes = "all",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            alpha=alpha,
            beta=beta,
            smooth=smooth,
            classes=classes,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )


@objective(Kind.REGIONS)
def lovasz_softmax_loss(
    input: Tensor,
    target: Tensor,
    *,
    classes: Classes = "all",
    per_image: bool = True,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""The Lovász extension of the Jaccard loss: a convex surrogate of one minus mean intersection over union.

    Reach for it to fine-tune towards mean IoU after cross-entropy. It sorts the pixels of every class, which
    costs more than :func:`dice_loss`.

    Formula:
        .. math:: L = \frac{1}{C} \sum_c \sum_i e_{(i)} \big( J_i - J_{i - 1} \big), \quad
            J_i = 1 - \frac{n - \sum_{j \le i} y_{(j)}}{n + \sum_{j \le i} (1 - y_{(j)})}

        with the errors :math:`e = |y - p|` of class c in falling order and n its pixels.

    Args:
        input: Logits.
        target: Class indices.
        classes: Average over ``all`` classes (one that is absent counts by its largest error), or those ``present``.
        per_image: Whether each image has its own value; False takes the batch for one image.
        weight: Class weights, in the average over classes.
        ignore_index: Label of pixels that count for nothing.
        sample_weight: Weights of images.
        reduction: ``none``, ``mean`` or ``sum`` over images.
        normalizer: Divisor in place of the number of images.

    Shape:
        - input: ``(N, C, d1, ...)``, floating point.
        - target: ``(N, d1, ...)`` integer.
        - weight: ``(C,)``; sample_weight: ``(N,)``, or ``(1,)`` with ``per_image=False``; normalizer: a number or
          ``()``.

    Returns:
        ``(N,)`` for ``none`` (``(1,)`` with ``per_image=False``), else ``()``; float32 for half-precision input. An
        image without pixels that count does not count; without any that does ``mean`` is NaN, 0 if ``normalizer`` is
        given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``classes`` or reduction is wrong.

    Example:
        >>> lovasz_softmax_loss(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 1, 1]]))
        tensor(0.5000)

    Source:
        Terven et al. (arXiv 2307.02694), segmentation losses; Berman, Rannen Triki, Blaschko: The Lovász-Softmax Loss
        (CVPR 2018, arXiv 1705.08790). Its code defaults to the classes present; kornia, as here, to all.
    """
    pixels = class_rows(input, target, ignore_index=ignore_index, index_only=True)
    p, y = _flat(pixels)
    if not per_image:
        p, y = (side.transpose(0, 1).flatten(1).unsqueeze(0) for side in (p, y))
    error, order = (y - p).abs().sort(-1, descending=True)
    y = y.gather(-1, order)
    true = y.sum(-1)
    size = true.unsqueeze(-1)
    jaccard = 1 - (size - y.cumsum(-1)) / (size + (1 - y).cumsum(-1))
    step = torch.cat([jaccard[..., :1], jaccard[..., 1:] - jaccard[..., :-1]], -1)
    loss = (error * step).sum(-1)
    return _reduce(loss, true, pixels, classes, weight, sample_weight, reduction, normalizer, per_image=per_image)


class LovaszSoftmaxLoss(Objective):
    """The Lovász extension of the Jaccard loss; module form of :func:`lovasz_softmax_loss`.

    Example:
        >>> LovaszSoftmaxLoss(classes="present")(torch.zeros(1, 3, 4), torch.tensor([[0, 0, 1, 1]]))
        tensor(0.6667)
    """

    function = lovasz_softmax_loss

    def __init__(
        self,
        classes: Classes = "all",
        per_image: bool = True,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            classes=classes, per_image=per_image, weight=weight, ignore_index=ignore_index, reduction=reduction
        )


def _flat(pixels: ClassRows) -> tuple[Tensor, Tensor]:
    """Probabilities and targets ``(N, C, pixels)``, both 0 in pixels that are ignored."""
    if pixels.logits.ndim < 3:
        raise ValueError(f"input has shape {tuple(pixels.logits.shape)}; wanted (N, C, d1, ...).")
    p = pixels.log_softmax().exp()
    y = pixels.is_label().to(p.dtype) if pixels.index is not None else pixels.probability
    assert y is not None
    if pixels.keep is not None:
        p, y = (torch.where(pixels.keep.unsqueeze(1), side, 0.0) for side in (p, y))
    return p.flatten(2), y.flatten(2)


def _reduce(
    by_class: Tensor,
    true: Tensor,
    pixels: ClassRows,
    classes: Classes,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    reduction: Reduction,
    normalizer: Tensor | float | None,
    *,
    per_image: bool = True,
) -> Tensor:
    """From losses ``(N, C)`` with the pixels that each class has to the reduced value."""
    if classes not in get_args(Classes):
        raise ValueError(f"classes is {classes!r}; wanted 'all' or 'present'.")
    check_class_vector("weight", weight, pixels.num_classes)
    share = torch.ones_like(by_class) if weight is None else weight.to(by_class.dtype).expand_as(by_class)
    if classes == "present":
        share = torch.where(true > 0, share, 0.0)
    total = share.sum(1)
    values = (share * by_class).sum(1) / torch.where(total == 0, 1.0, total)
    keep, good = pixels.keep, pixels.good_labels()
    if keep is None or good is None:
        counted = torch.ones_like(values, dtype=torch.bool)
    else:
        keep, good = (side.flatten(1) if per_image else side.flatten().unsqueeze(0) for side in (keep, good))
        values = torch.where((good | ~keep).all(1), values, torch.nan)
        counted = keep.any(1)
    if sample_weight is not None:
        check_shape("sample_weight", sample_weight, values.shape, "a weight for each image")
    return reduce_values(values, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer, keep=counted)
