"""Encouraging loss: a bonus for well-classified examples, which cross-entropy neglects; and its opposite."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.checks import check_floating, check_in_range
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import class_rows
from lossary.core.types import Reduction


@objective(Kind.CLASSES)
def encouraging_loss(
    input: Tensor,
    target: Tensor,
    *,
    log_end: Tensor | float = 0.75,
    eps: float = 1e-5,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy plus a bonus log(1 - p) that keeps pushing examples that are already right.

    Reach for it to widen margins and to learn more from what is classified well. Not when labels are wrong: it pushes
    those too. It is negative where p > 1/2, so nothing may take it to be positive.

    Formula:
        .. math:: L = -\log p_y + B(p_y), \quad B(p) = \log(1 - p) \text{ for } p \le e, \quad
            \log(1 - e) - \frac{p - e}{1 - e} \text{ beyond}

        Up to e the slope in the label's logit is -1 whatever p is. Language tasks flatten ``(B, T, V)`` to rows.

    Args:
        input: Logits.
        target: Class indices.
        log_end: Probability e in (0, 1] from which the bonus goes on along its tangent (conservative); 1 never leaves
            the logarithm (aggressive).
        eps: Least 1 - p within the logarithm; below it the bonus has no gradient.
        weight: Class weights, on both terms.
        ignore_index: Label of rows that count for nothing.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1]; of cross-entropy alone, the
            bonus is the label's.
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
        ValueError: A shape, label, ``log_end``, ``eps`` or reduction is wrong.

    Example:
        >>> encouraging_loss(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0]), reduction="none")
        tensor([ 0.0000, -2.1480])

    Source:
        Zhao, Yang, Ren, Li, Wu, Sun: Well-classified Examples are Underestimated in Classification with Deep Neural
        Networks (AAAI 2022, arXiv 2110.06537), section 4.
    """
    _check_ranges(log_end, eps)
    rows = class_rows(
        input,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
        index_only=True,
    )
    log_miss = rows.log_miss_of_label()
    bonus = rows.label_weight() * _bonus(log_miss.exp(), log_miss, log_end, eps)
    log_p = F.logsigmoid(rows.log_odds()).unsqueeze(rows.dim) if rows.hard else rows.log_softmax()
    return rows.reduce(rows.expect(-log_p) + bonus, reduction=reduction, normalizer=normalizer)


class EncouragingLoss(Objective):
    """Cross-entropy plus a bonus for well-classified examples; module form of :func:`encouraging_loss`.

    Example:
        >>> EncouragingLoss(reduction="none")(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0]))
        tensor([ 0.0000, -2.1480])
    """

    function = encouraging_loss

    def __init__(
        self,
        log_end: Tensor | float = 0.75,
        eps: float = 1e-5,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            log_end=log_end,
            eps=eps,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )


@objective(Kind.CLASSES)
def halted_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    boundary: Tensor | float = 0.5,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy that lets go of an example once it is classified well.

    Reach for it to see what well-classified examples contribute: what is lost by halting is their work. Not to train.

    Formula:
        .. math:: L = -\log \min(p_y, b)

    Args:
        input: Logits.
        target: Class indices.
        boundary: Probability b in (0, 1] beyond which an example has no gradient; 1 is cross-entropy.
        weight: Class weights of the label.
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
        ValueError: A shape, label, ``boundary`` or reduction is wrong.

    Example:
        >>> halted_cross_entropy_loss(torch.tensor([[3.0, 0.0]]), torch.tensor([0]))
        tensor(0.6931)

    Source:
        Zhao et al. (AAAI 2022, arXiv 2110.06537), section 3.
    """
    check_in_range("boundary", boundary, 0.0, 1.0, low_open=True)
    rows = class_rows(
        input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight, index_only=True
    )
    log_p = rows.log_p_of_label()
    log_boundary = torch.as_tensor(boundary, dtype=log_p.dtype, device=log_p.device).log()
    loss = -torch.where(log_p > log_boundary, log_boundary, log_p)
    return rows.reduce(rows.label_weight() * loss, reduction=reduction, normalizer=normalizer)


class HaltedCrossEntropyLoss(Objective):
    """Cross-entropy that lets go of well-classified examples; module form of :func:`halted_cross_entropy_loss`.

    Example:
        >>> HaltedCrossEntropyLoss(0.5)(torch.tensor([[3.0, 0.0]]), torch.tensor([0]))
        tensor(0.6931)
    """

    function = halted_cross_entropy_loss

    def __init__(
        self,
        boundary: Tensor | float = 0.5,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(boundary=boundary, weight=weight, ignore_index=ignore_index, reduction=reduction)


def encouraging_bonus(probability: Tensor, *, log_end: Tensor | float = 0.75, eps: float = 1e-5) -> Tensor:
    r"""The bonus alone, to be added to other losses.

    Formula:
        .. math:: B(p) = \log(1 - p) \text{ for } p \le e, \quad \log(1 - e) - \frac{p - e}{1 - e} \text{ beyond}

    Args:
        probability: Probability of the label, in [0, 1].
        log_end: Probability e in (0, 1] from which the bonus goes on along its tangent; 1 never does.
        eps: Least 1 - p within the logarithm.

    Returns:
        Shaped as ``probability``, at most 0; float32 for half precision.

    Raises:
        TypeError: ``probability`` is not floating point.
        ValueError: ``log_end`` or ``eps`` is out of range.

    Example:
        >>> encouraging_bonus(torch.tensor([0.0, 0.5, 0.75, 1.0]))
        tensor([-0.0000, -0.6931, -1.3863, -2.3863])

    Source:
        Zhao et al. (AAAI 2022, arXiv 2110.06537), section 4.
    """
    check_floating("probability", probability)
    _check_ranges(log_end, eps)
    p = probability.float() if probability.dtype in (torch.float16, torch.bfloat16) else probability
    sure = p >= 1
    log_miss = torch.where(sure, -math.inf, torch.log1p(-torch.where(sure, 0.0, p)))
    return _bonus(1 - p, log_miss, log_end, eps)


def _bonus(miss: Tensor, log_miss: Tensor, log_end: Tensor | float, eps: float) -> Tensor:
    """The bonus given 1 - p and its logarithm."""
    tail = 1 - torch.as_tensor(log_end, dtype=miss.dtype, device=miss.device)
    beyond = miss < tail
    length = torch.where(tail > 0, tail, 1.0)
    tangent = length.log() - 1 + miss / length
    return torch.where(beyond, tangent, torch.where(beyond, 0.0, log_miss).clamp(min=math.log(eps)))


def _check_ranges(log_end: Tensor | float, eps: float) -> None:
    check_in_range("log_end", log_end, 0.0, 1.0, low_open=True)
    check_in_range("eps", eps, 0.0, 1.0, low_open=True)
