"""Squentropy: cross-entropy that holds the wrong classes' logits near 0, and the square loss it is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from lossary.core.checks import check_in_range
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import ClassRows, class_rows
from lossary.core.types import Reduction


@objective(Kind.CLASSES)
def squentropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy plus the mean squared logit of the wrong classes.

    Reach for it as a drop-in for cross-entropy with nothing to tune, when training runs until the training set is
    fitted. Not for short training (predictions stay under-confident until the label's logit has grown), nor for logits
    whose common offset has no meaning: adding a constant to all of them changes the loss.

    Formula:
        .. math:: L = -\log p_y + \frac{1}{C - 1} \sum_{k \ne y} z_k^2

    Args:
        input: Logits.
        target: Class indices.
        weight: Class weights of the label, on both terms.
        ignore_index: Label of rows that count for nothing.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point, C >= 2.
        - target: ``(N, ...)`` integer.
        - weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or reduction is wrong, or there is only one class.

    Example:
        >>> squentropy_loss(torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([0]))
        tensor(1.3490)

    Source:
        Hui, Belkin, Wright: Cut your Losses with Squentropy (ICML 2023, arXiv 2302.03952), equation 1. ``weight`` is an
        addition.
    """
    rows = class_rows(
        input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight, index_only=True
    )
    if rows.num_classes < 2:
        raise ValueError(f"input has shape {tuple(input.shape)}, one class; wanted at least 2 on the class axis.")
    cross_entropy = -rows.log_p_of_label()
    loss = rows.label_weight() * (cross_entropy + _sum_of_wrong_squares(rows) / (rows.num_classes - 1))
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class SquentropyLoss(Objective):
    """Cross-entropy plus the mean squared logit of the wrong classes; module form of :func:`squentropy_loss`.

    Example:
        >>> SquentropyLoss()(torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([0]))
        tensor(1.3490)
    """

    function = squentropy_loss

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction)


@objective(Kind.CLASSES)
def rescaled_square_loss(
    input: Tensor,
    target: Tensor,
    *,
    scale: Tensor | float = 1.0,
    target_value: Tensor | float = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Mean squared distance of the logits from a multiple of the one-hot label, the true class weighted.

    Reach for it as the baseline of :func:`squentropy_loss`, or where regression on the label is wanted. With many
    classes it needs a ``scale`` and a ``target_value`` well above 1. The logits approach fixed targets, so their
    softmax is no probability.

    Formula:
        .. math:: L = \frac{1}{C} \Big( k (z_y - M)^2 + \sum_{j \ne y} z_j^2 \Big)

    Args:
        input: Logits.
        target: Class indices.
        scale: Weight k of the true class, at least 0.
        target_value: What the label's logit is drawn to, M.
        weight: Class weights of the label, on both terms.
        ignore_index: Label of rows that count for nothing.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point.
        - target: ``(N, ...)`` integer.
        - weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``scale`` or reduction is wrong.

    Example:
        >>> rescaled_square_loss(torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([0]), scale=4.0)
        tensor(2.)

    Source:
        Hui, Belkin: Evaluation of Neural Architectures Trained with Square Loss vs Cross-Entropy in Classification
        Tasks (ICLR 2021, arXiv 2006.07322), as used by Hui, Belkin, Wright (arXiv 2302.03952).
    """
    check_in_range("scale", scale, 0.0)
    check_in_range("target_value", target_value, -float("inf"))
    rows = class_rows(
        input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight, index_only=True
    )
    true_square = (rows.at_label(rows.logits) - target_value).square()
    loss = rows.label_weight() * (scale * true_square + _sum_of_wrong_squares(rows)) / rows.num_classes
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class RescaledSquareLoss(Objective):
    """Mean squared distance of the logits from a multiple of the label; module form of :func:`rescaled_square_loss`.

    Example:
        >>> RescaledSquareLoss(scale=4.0)(torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([0]))
        tensor(2.)
    """

    function = rescaled_square_loss

    def __init__(
        self,
        scale: Tensor | float = 1.0,
        target_value: Tensor | float = 1.0,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            scale=scale, target_value=target_value, weight=weight, ignore_index=ignore_index, reduction=reduction
        )


def _sum_of_wrong_squares(rows: ClassRows) -> Tensor:
    # Masked, not subtracted: sum z^2 - z_y^2 cancels where the label's logit dominates.
    return torch.square(rows.replaced(rows.logits, 0.0)).sum(rows.dim)
