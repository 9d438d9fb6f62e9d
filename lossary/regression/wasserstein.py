"""Wasserstein distance between a predicted distribution over ordered bins and its target."""

from __future__ import annotations

import torch
from torch import Tensor

from lossary.core.checks import check_class_vector, check_in_range, may_read_values
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import ClassRows, class_rows
from lossary.core.types import Reduction


@objective(Kind.CLASSES)
def wasserstein_bin_loss(
    input: Tensor,
    target: Tensor,
    centers: Tensor | None = None,
    *,
    p: float | Tensor = 1,
    root: bool = False,
    cross_entropy_weight: Tensor | float = 0.0,
    num_special_tokens: int = 0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Wasserstein distance between softmax probabilities over ordered bins and the target.

    Reach for it to fine-tune a forecaster over bins so that a near miss costs less than a far one. Not from scratch:
    the gradient vanishes where a prediction is confident and wrong, so that cross-entropy trains first or is mixed in
    (``cross_entropy_weight``). It sharpens predictions, which probabilistic scores pay for.

    Formula:
        .. math:: W_p^p = \sum_j q_j |c_j - c_y|^p, \quad q = \mathrm{softmax}(z)

        For a distribution as target :math:`W_p^p = \int_0^1 |F^{-1}(u) - G^{-1}(u)|^p du` with the cumulative
        distributions F of q and G of the target; for p = 1 that is :math:`\sum_j |F_j - G_j| (c_{j+1} - c_j)`.

    Args:
        input: Logits over bins.
        target: Bin indices, or probabilities that sum to 1.
        centers: Positions of the bins, increasing; None takes 0, 1, 2, ...
        p: Order of the distance, at least 1.
        root: Whether the p-th root is taken, :math:`W_p`; its gradient at 0 is 0.
        cross_entropy_weight: Weight of cross-entropy (over all classes) that is added, at least 0.
        num_special_tokens: Leading classes without a position, such as padding. Where the target is one of them the
            loss is cross-entropy; elsewhere q is taken over the other classes alone. Index targets only.
        weight: Class weights; a distribution as target counts with the mean weight under it.
        ignore_index: Label of rows that count for nothing.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, B, ...)`` or ``(B,)``, floating point.
        - target: ``(N, ...)`` integer, or ``(N, B, ...)`` floating point.
        - centers: ``(B - num_special_tokens,)``; p, normalizer: a number or ``()``; weight: ``(B,)``; sample_weight:
          ``(N, ...)``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, probability, ``p``, ``num_special_tokens`` or reduction is wrong, or ``centers``
            fall (where values can be read).

    Example:
        >>> input = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
        >>> wasserstein_bin_loss(input, torch.tensor([0]))
        tensor(1.5000)
        >>> wasserstein_bin_loss(input, torch.tensor([[0.5, 0.0, 0.0, 0.5]]), p=2)
        tensor(0.5000)

    Source:
        Chernov: Fine-Tuning a Time Series Foundation Model with Wasserstein Loss (arXiv 2409.15367). Special tokens and
        the mixture with cross-entropy are additions.
    """
    check_in_range("p", p, 1.0)
    check_in_range("cross_entropy_weight", cross_entropy_weight, 0.0)
    rows = class_rows(input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight)
    bins = rows.num_classes - num_special_tokens
    if not 0 <= num_special_tokens < rows.num_classes:
        raise ValueError(f"num_special_tokens is {num_special_tokens}; wanted 0 to {rows.num_classes - 1}.")
    if num_special_tokens and rows.index is None:
        raise ValueError("target holds probabilities; num_special_tokens is for class indices (N, ...) only.")
    positions = bin_positions(centers, bins, rows.logits)
    span = (positions[-1] - positions[0]).detach() if root else positions.new_ones(())
    span = torch.where(span == 0, 1.0, span)
    positions = positions / span  # so that no power overflows of which the root would not
    logits = rows.logits.narrow(rows.dim, num_special_tokens, bins) if num_special_tokens else rows.logits
    q = logits.softmax(rows.dim)
    loss = _to_point(rows, q, positions, p) if rows.index is not None else _to_distribution(rows, q, positions, p)
    if root:
        at_zero = loss == 0
        loss = span * torch.where(at_zero, 0.0, torch.where(at_zero, 1.0, loss) ** (1 / p))
    if weight is not None:
        loss = rows.expect(torch.ones_like(rows.on_support(rows.logits))) * loss
    if isinstance(cross_entropy_weight, Tensor) or cross_entropy_weight != 0:  # 0 x inf is no loss
        loss = loss + cross_entropy_weight * rows.expect(-rows.log_p())
    if num_special_tokens and rows.index is not None:
        loss = torch.where(rows.index < num_special_tokens, rows.expect(-rows.log_p()), loss)
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class WassersteinBinLoss(Objective):
    """Wasserstein distance between predicted and true bins; module form of :func:`wasserstein_bin_loss`.

    Example:
        >>> WassersteinBinLoss(torch.tensor([0.0, 1.0, 10.0]))(torch.zeros(1, 3), torch.tensor([0]))
        tensor(3.6667)
    """

    function = wasserstein_bin_loss

    def __init__(
        self,
        centers: Tensor | None = None,
        p: float | Tensor = 1,
        root: bool = False,
        reduction: Reduction = "mean",
        *,
        cross_entropy_weight: Tensor | float = 0.0,
        num_special_tokens: int = 0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(
            centers=centers,
            p=p,
            root=root,
            cross_entropy_weight=cross_entropy_weight,
            num_special_tokens=num_special_tokens,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )


def bin_positions(centers: Tensor | None, bins: int, like: Tensor) -> Tensor:
    """Positions of bins ``(B,)`` in the dtype of ``like``: 0, 1, 2, ... or the centres, checked."""
    if centers is None:
        return torch.arange(bins, dtype=like.dtype, device=like.device)
    if isinstance(centers, Tensor) and not (centers.is_floating_point() or centers.is_complex()):
        centers = centers.to(like.dtype)  # whole numbers are positions, too
    check_class_vector("centers", centers, bins)
    if may_read_values(centers) and (centers.diff() < 0).any():
        raise ValueError(f"centers fall at bin {int((centers.diff() < 0).nonzero()[0]) + 1}; wanted increasing ones.")
    return centers.to(like.dtype)


def _to_point(rows: ClassRows, q: Tensor, positions: Tensor, p: Tensor | float) -> Tensor:
    """W_p^p to the label's bin: all mass travels there."""
    assert rows.index is not None
    label = (rows.index - (rows.num_classes - len(positions))).clamp(min=0)
    gap = positions.reshape([-1] + [1] * (q.ndim - 1 - rows.dim)) - positions[label].unsqueeze(rows.dim)
    return (q * (gap.abs() if not isinstance(p, Tensor) and p == 1 else gap.abs() ** p)).sum(rows.dim)


def _to_distribution(rows: ClassRows, q: Tensor, positions: Tensor, p: Tensor | float) -> Tensor:
    """W_p^p to the target distribution: mass travels from quantile to quantile."""
    assert rows.probability is not None
    q, y = q.movedim(rows.dim, -1), rows.probability.movedim(rows.dim, -1)
    if not isinstance(p, Tensor) and p == 1:
        return ((q - y).cumsum(-1)[..., :-1].abs() * positions.diff()).sum(-1)
    # Between two neighbouring levels of both cumulative distributions each quantile function is constant: at the bin
    # whose number is that of its own levels below.
    bins = len(positions)
    cumulative = [part.cumsum(-1) for part in (q, y)]
    levels, order = torch.cat([part / part[..., -1:] for part in cumulative], -1).sort(dim=-1, stable=True)
    from_q = order < bins
    bin_of_q = (from_q.cumsum(-1) - from_q.long()).clamp(max=bins - 1)
    bin_of_y = ((~from_q).cumsum(-1) - (~from_q).long()).clamp(max=bins - 1)
    mass = levels.diff(dim=-1, prepend=torch.zeros_like(levels[..., :1]))
    return (mass * (positions[bin_of_q] - positions[bin_of_y]).abs() ** p).sum(-1)
