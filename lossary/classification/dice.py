"""Dice losses for imbalanced text tasks: F1 made smooth, per example or of the whole set, easy examples damped."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lossary.core import checks
from lossary.core.checks import check_in_range
from lossary.core.numerics import exp_scaled
from lossary.core.objective import BatchObjective, Kind, Objective, objective
from lossary.core.ranks import sum_over_ranks
from lossary.core.rows import ClassRows, LabelEntries, class_rows, label_entries
from lossary.core.types import Reduction


@objective(Kind.CLASSES)
def self_adjusting_dice_loss(
    input: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: Tensor | float = 0.0,
    smooth: Tensor | float = 1e-4,
    square_denominator: bool = True,
    variant: Literal["official", "paper"] = "official",
    binary: bool | None = None,
    ohem_ratio: float = 0.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    gather: bool = False,
) -> Tensor:
    r"""Dice loss on probabilities that are damped where they are high already (DSC).

    Reach for it to fine-tune a tagger or matcher that is judged by F1 where nearly everything is negative, with a small
    ``alpha`` (0.01). From scratch it may collapse: beyond p = 1 / (1 + alpha) it pushes an easy positive down.
    :func:`nlp_dice_loss` is the safer choice for yes/no tasks.

    Formula:
        .. math:: f = (1 - p)^\alpha p, \quad L_i = \sum_k 1 - \frac{2 f_{ik} y_{ik} + s}{f_{ik}^2 + y_{ik}^2 + s}

        for classes; f and y are not squared in the paper and without ``square_denominator``. In the latter case the
        denominators of the official form are sums over the batch, so that they change little with one row. For yes/no
        labels the official form is one score of the whole set, :math:`1 - \frac{2 \sum f y + s}{\sum f^2 + \sum y^2 +
        s}`, the paper's the mean of each entry's.

    Args:
        input: Logits of classes, or of one yes/no label a row.
        target: Class indices or probabilities; for yes/no labels 0 or 1.
        mask: 1 for rows that count, 0 for padding. Padding has the loss 0 (in the squared form) but stays in the
            divisor of ``mean``; rows of ``ignore_index`` do not.
        alpha: How strongly high probabilities are damped, at least 0; 0 is plain Dice.
        smooth: Added to numerator and denominator, at least 0. The paper takes 1; small values have steep gradients
            near p = 0.
        square_denominator: Whether the official form squares f and y below; the paper's never does.
        variant: ``official`` (the public code) or ``paper``.
        binary: Whether this is one yes/no label a row; None: it is for one column, and for ``(N,)`` with targets
            ``(N,)``.
        ohem_ratio: Hard negatives kept for each positive; 0 keeps all. Of yes/no labels the most probable ratio x
            positives negatives; of classes, for each of them, the most probable ratio x positives / C of the rows that
            are taken for it, and all if that is below 1.
        weight: Class weights of the label.
        ignore_index: Label of rows that count for nothing.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``; the official form of yes/no labels is one value in any case.
        normalizer: Divisor in place of the one of ``mean``; not for the official form of yes/no labels.
        gather: Whether sums over the batch go over all ranks of a distributed run, with gradients; else each rank has
            its own. ``ohem_ratio`` looks at the rank's batch.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``; for yes/no labels ``(N, 1)`` or ``(N,)``; floating point.
        - target: ``(N, ...)`` integer, or ``(N, C, ...)`` floating point; for yes/no labels as input.
        - mask: ``(N, ...)``; weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given; all masked is 0.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, probability, ``alpha``, ``smooth``, ``variant``, ``ohem_ratio`` or reduction is
            wrong.

    Example:
        >>> input = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
        >>> self_adjusting_dice_loss(input, torch.tensor([0, 2]), alpha=0.01, smooth=1.0)
        tensor(0.3194)

    Source:
        Li, Sun, Meng, Liang, Wu, Li: Dice Loss for Data-imbalanced NLP Tasks (ACL 2020, arXiv 1911.02855), equation
        11. The public code defaults to sums that are not squared. Its mining of hard negatives is off by one for yes/no
        labels and cannot run for classes; here it does what it says.
    """
    check_in_range("alpha", alpha, 0.0)
    check_in_range("smooth", smooth, 0.0)
    check_in_range("ohem_ratio", ohem_ratio, 0.0)
    if variant not in ("official", "paper"):
        raise ValueError(f"variant is {variant!r}; wanted 'official' or 'paper'.")
    if _is_binary(input, target) if binary is None else binary:
        if weight is not None or (normalizer is not None and variant == "official"):
            raise ValueError("weight and normalizer are for classes, or the paper's variant: this is one set's value.")
        checks.check_reduction(reduction)
        entries, live = _yes_no(input, target, mask, ignore_index, sample_weight)
        f, y = _damped_labels(entries, live, alpha, ohem_ratio)
        if variant == "paper":
            return entries.reduce(1 - _dice(f, y, f + y, smooth), reduction=reduction, normalizer=normalizer)
        return 1 - _set_dice(entries, f, y, _sizes(f, y, square_denominator), smooth, gather)
    rows = class_rows(input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight)
    f, y = _damped_classes(rows, mask, alpha, ohem_ratio)
    sizes = _sizes(f, y, square_denominator and variant == "official")
    if variant == "official" and not square_denominator:
        sizes = _batch_sum(sizes, rows.dim, gather)
    loss = _row_weight(rows, weight) * (1 - _dice(f, y, sizes, smooth)).sum(rows.dim)
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class SelfAdjustingDiceLoss(Objective):
    """Dice loss with high probabilities damped; module form of :func:`self_adjusting_dice_loss`.

    Example:
        >>> loss = SelfAdjustingDiceLoss(alpha=0.01, smooth=1.0)
        >>> loss(torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]]), torch.tensor([0, 2]))
        tensor(0.3194)
    """

    function = self_adjusting_dice_loss

    def __init__(
        self,
        alpha: Tensor | float = 0.0,
        smooth: Tensor | float = 1e-4,
        *,
        square_denominator: bool = True,
        variant: Literal["official", "paper"] = "official",
        binary: bool | None = None,
        ohem_ratio: float = 0.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        gather: bool = False,
    ) -> None:
        super().__init__(
            alpha=alpha,
            smooth=smooth,
            square_denominator=square_denominator,
            variant=variant,
            binary=binary,
            ohem_ratio=ohem_ratio,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            gather=gather,
        )

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The objective on ``input`` and ``target``.

        Args:
            input: Logits.
            target: Targets.
            mask: 1 for rows that count, 0 for padding.
            sample_weight: One weight for each row.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return self_adjusting_dice_loss(
            input,
            target,
            mask,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


@objective(Kind.LABELS, batch_level=True)
def nlp_dice_loss(
    input: Tensor,
    target: Tensor,
    *,
    smooth: Tensor | float = 1.0,
    sample_weight: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    r"""Dice loss of the whole set with squares below, as in V-Net.

    Reach for it for yes/no tasks with few positives that are judged by F1, in batches that hold some. Probabilities
    want calibration.

    Formula:
        .. math:: L = 1 - \frac{2 \sum_i p_i y_i + s}{\sum_i p_i^2 + \sum_i y_i^2 + s}

    Args:
        input: Logits.
        target: Yes/no targets.
        smooth: Added to numerator and denominator, at least 0.
        sample_weight: Weights of entries or rows, in the sums.
        gather: Whether the sums go over all ranks of a distributed run, with gradients; else each rank has its own.

    Shape:
        - input, target: the same, any shape; floating point, target in [0, 1].
        - sample_weight: as input, or ``(N,)``.

    Returns:
        ``()``; float32 for half-precision input; 0 for an empty set.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, target or ``smooth`` is wrong.

    Example:
        >>> nlp_dice_loss(torch.tensor([2.0, -1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]))
        tensor(0.1086)

    Source:
        Li et al. (ACL 2020, arXiv 1911.02855), equation 7, after Milletari, Navab, Ahmadi (arXiv 1606.04797).
    """
    check_in_range("smooth", smooth, 0.0)
    entries = label_entries(input, target, sample_weight=sample_weight)
    p, y = entries.logits.sigmoid(), entries.target
    return 1 - _set_dice(entries, p, y, p.square() + y.square(), smooth, gather)


class NLPDiceLoss(BatchObjective):
    """Dice loss of the whole set with squares below; module form of :func:`nlp_dice_loss`.

    Example:
        >>> NLPDiceLoss()(torch.tensor([2.0, -1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]))
        tensor(0.1086)
    """

    function = nlp_dice_loss

    def __init__(self, smooth: Tensor | float = 1.0, *, gather: bool = False) -> None:
        super().__init__(smooth=smooth, gather=gather)


@objective(Kind.LABELS, batch_level=True)
def tversky_nlp_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: Tensor | float = 0.5,
    beta: Tensor | float = 0.5,
    smooth: Tensor | float = 1.0,
    sample_weight: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    r"""Tversky loss of the whole set: Dice loss that tells false positives from false negatives.

    Reach for it where one kind of error costs more: ``alpha`` for false positives, ``beta`` for false negatives.

    Formula:
        .. math:: L = 1 - \frac{\sum p y + s}{\sum p y + \alpha \sum p (1 - y) + \beta \sum (1 - p) y + s}

        With both at 1/2 the Dice loss without squares, smoothed by 2 s.

    Args:
        input: Logits.
        target: Yes/no targets.
        alpha: Cost of false positives, at least 0.
        beta: Cost of false negatives, at least 0.
        smooth: Added to numerator and denominator, at least 0.
        sample_weight: Weights of entries or rows, in the sums.
        gather: Whether the sums go over all ranks of a distributed run, with gradients; else each rank has its own.

    Shape:
        - input, target: the same, any shape; floating point, target in [0, 1].
        - sample_weight: as input, or ``(N,)``.

    Returns:
        ``()``; float32 for half-precision input; 0 for an empty set.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, target, ``alpha``, ``beta`` or ``smooth`` is wrong.

    Example:
        >>> tversky_nlp_loss(torch.tensor([2.0, -1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]))
        tensor(0.1910)

    Source:
        Li et al. (ACL 2020, arXiv 1911.02855), equation 9, after Tversky (1977).
    """
    check_in_range("alpha", alpha, 0.0)
    check_in_range("beta", beta, 0.0)
    check_in_range("smooth", smooth, 0.0)
    entries = label_entries(input, target, sample_weight=sample_weight)
    p, not_p, y = entries.logits.sigmoid(), (-entries.logits).sigmoid(), entries.target
    hits, wrong, missed = _totals(entries, gather, p * y, p * (1 - y), not_p * y)
    return 1 - _ratio(hits + smooth, hits + alpha * wrong + beta * missed + smooth)


class TverskyNLPLoss(BatchObjective):
    """Dice loss that tells false positives from false negatives; module form of :func:`tversky_nlp_loss`.

    Example:
        >>> TverskyNLPLoss(0.3, 0.7)(torch.tensor([2.0, -1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]))
        tensor(0.1431)
    """

    function = tversky_nlp_loss

    def __init__(
        self,
        alpha: Tensor | float = 0.5,
        beta: Tensor | float = 0.5,
        smooth: Tensor | float = 1.0,
        *,
        gather: bool = False,
    ) -> None:
        super().__init__(alpha=alpha, beta=beta, smooth=smooth, gather=gather)


def _damped_labels(
    entries: LabelEntries, live: Tensor, alpha: Tensor | float, ohem_ratio: float
) -> tuple[Tensor, Tensor]:
    """f and y of yes/no labels, 0 where they do not count."""
    log_p, y = entries.log_p(), entries.target
    f = exp_scaled(entries.log_not_p(), alpha) * log_p.exp()
    if ohem_ratio > 0:
        live = live & _hard(log_p.detach(), y > 0.5, live, ohem_ratio)
    return torch.where(live, f, 0.0), torch.where(live, y, 0.0)


def _damped_classes(
    rows: ClassRows, mask: Tensor | None, alpha: Tensor | float, ohem_ratio: float
) -> tuple[Tensor, Tensor]:
    """f and y of all classes, 0 where they do not count."""
    f, live = rows.log_softmax().exp(), rows.keep
    if isinstance(alpha, Tensor) or alpha != 0:
        f = exp_scaled(rows.log_miss_of_all(), alpha) * f
    y = rows.is_label().to(f.dtype) if rows.probability is None else rows.probability
    if mask is not None:
        checks.check_shape("mask", mask, rows.logits.select(rows.dim, 0).shape, "1 for rows that count, 0 for padding")
        live = mask > 0.5 if live is None else live & (mask > 0.5)
    live = None if live is None else live.unsqueeze(rows.dim)
    if ohem_ratio > 0:
        live = torch.ones_like(f, dtype=torch.bool) if live is None else live
        live = live & _hard_of_classes(rows.log_softmax().detach(), y > 0.5, live, ohem_ratio, rows.dim)
    return (f, y) if live is None else (torch.where(live, f, 0.0), torch.where(live, y, 0.0))


def _sizes(f: Tensor, y: Tensor, squared: bool) -> Tensor:
    return f.square() + y.square() if squared else f + y


def _batch_sum(values: Tensor, dim: int, gather: bool) -> Tensor:
    """Sum for each class over the rows, or over those of all ranks; shaped to broadcast."""
    axes = [axis for axis in range(values.ndim) if axis != dim]
    total = values.sum(axes, keepdim=True) if axes else values
    return sum_over_ranks(total) if gather else total


def _row_weight(rows: ClassRows, weight: Tensor | None) -> Tensor:
    """The weight of each row's label, or its mean under probabilities."""
    if rows.probability is None or weight is None:
        return rows.label_weight()
    return (rows.probability * rows.per_class(weight)).sum(rows.dim)


def _dice(f: Tensor, y: Tensor, sizes: Tensor, smooth: Tensor | float) -> Tensor:
    part, whole = 2 * f * y + smooth, sizes + smooth
    return part / whole if not isinstance(smooth, Tensor) and smooth > 0 else _ratio(part, whole)


def _set_dice(
    entries: LabelEntries, f: Tensor, y: Tensor, sizes: Tensor, smooth: Tensor | float, gather: bool
) -> Tensor:
    common, both = _totals(entries, gather, f * y, sizes)
    return _ratio(2 * common + smooth, both + smooth)


def _totals(entries: LabelEntries, gather: bool, *values: Tensor) -> tuple[Tensor, ...]:
    """Weighted sums over the set, or over the sets of all ranks."""
    totals = torch.stack([entries.reduce(value, reduction="sum", normalizer=None) for value in values])
    return (sum_over_ranks(totals) if gather else totals).unbind()


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """A share; 1 of nothing, where nothing is smoothed and nothing there."""
    nothing = whole == 0
    return torch.where(nothing, 1.0, part / torch.where(nothing, 1.0, whole))


def _hard(log_p: Tensor, positive: Tensor, live: Tensor, ratio: float) -> Tensor:
    """Positives and the most probable negatives, ``ratio`` for each positive."""
    count = (ratio * (positive & live).sum()).floor()
    order = _with_floor(log_p, live & ~positive).flatten().argsort(descending=True, stable=True)
    rank = order.argsort().reshape(log_p.shape)
    return positive | (rank < count)


def _hard_of_classes(log_p: Tensor, positive: Tensor, live: Tensor, ratio: float, dim: int) -> Tensor:
    """For each class its positives and the hardest rows that are taken for it; all where a class gets none."""
    live = live.expand(log_p.shape)
    flat = [tensor.movedim(dim, 0).flatten(1) for tensor in (log_p, positive, live)]  # (C, rows)
    scores, positives, lives = flat
    count = (ratio * (positives & lives).sum(1, keepdim=True) / len(scores)).floor()
    order = _with_floor(scores, lives & ~positives).argsort(dim=1, descending=True, stable=True)
    predicted = log_p.argmax(dim, keepdim=True) == torch.arange(len(scores), device=log_p.device).reshape(
        [-1] + [1] * (log_p.ndim - 1 - dim)
    )
    hard = (order.argsort(dim=1) < count) & predicted.movedim(dim, 0).flatten(1)
    kept = positives | hard | (count < 1)
    return kept.reshape(log_p.movedim(dim, 0).shape).movedim(0, dim)


def _with_floor(log_p: Tensor, negative: Tensor) -> Tensor:
    """Log-probabilities of negatives, an impossible one still above all that is none."""
    return torch.where(negative, log_p.clamp(min=torch.finfo(log_p.dtype).min), -torch.inf)


def _is_binary(input: Tensor, target: Tensor) -> bool:
    if not (isinstance(input, Tensor) and isinstance(target, Tensor)):
        return False
    one_column = input.ndim == 2 and input.shape[1] == 1
    return (input.ndim == 1 and target.shape == input.shape) or one_column


def _yes_no(
    input: Tensor, target: Tensor, mask: Tensor | None, ignore_index: int, sample_weight: Tensor | None
) -> tuple[LabelEntries, Tensor]:
    """Entries, and which of them count."""
    checks.check_floating("input", input)
    if not isinstance(target, Tensor):
        raise TypeError(f"target is {type(target).__name__}; wanted a tensor.")
    if input.ndim == 2 and input.shape[1:] == (1,) and target.shape == input.shape[:1]:
        target = target.unsqueeze(1)
    checks.check_shape("target", target, input.shape, "a yes/no target for each logit of input")
    # As floats, for a small integer type would wrap ignore_index round.
    labels = target if target.is_floating_point() else target.to(torch.float32)
    keep = labels != ignore_index
    labels = torch.where(keep, labels, 0)
    shape = input.shape
    if sample_weight is not None and sample_weight.shape == shape[:1]:
        sample_weight = sample_weight.reshape([-1] + [1] * (input.ndim - 1))
    kept = keep.to(input.dtype)
    weight = kept if sample_weight is None else kept * sample_weight
    entries = label_entries(torch.where(keep, input, 0.0), labels, sample_weight=weight)
    live = keep
    if mask is not None:
        if isinstance(mask, Tensor) and mask.shape == shape[:1]:
            mask = mask.reshape([-1] + [1] * (input.ndim - 1)).expand(shape)
        checks.check_shape("mask", mask, shape, "1 for entries that count, 0 for padding")
        live = live & (mask > 0.5)
    return entries, live
