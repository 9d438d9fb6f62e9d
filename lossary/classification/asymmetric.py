"""Asymmetric loss: positives and negatives fade with exponents of their own, and very easy negatives vanish."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lossary.core.checks import check_in_range
from lossary.core.numerics import product
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import LabelEntries, class_rows, label_entries
from lossary.core.sigmoid import softplus_pair, yes_no
from lossary.core.types import Reduction


@objective(Kind.LABELS)
def asymmetric_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma_neg: Tensor | float = 4.0,
    gamma_pos: Tensor | float = 0.0,
    clip: Tensor | float = 0.05,
    detach_focusing: bool = False,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Binary cross-entropy in which negatives fade faster than positives, and very easy ones vanish.

    Reach for it when each example carries a few of many labels, above all if some positives are missing: negatives
    of high probability, likely mislabelled, count less too. Not where positives and negatives are about as many, nor
    where probabilities must be calibrated as they are: it raises them.

    Formula:
        .. math:: L = -y (1 - p)^{\gamma_+} \log p - (1 - y)\, p_m^{\gamma_-} \log(1 - p_m), \quad p_m = \max(p - m, 0)

        A soft target y mixes the sides' bases :math:`1 - p` and :math:`p_m`, exponents and logarithms.

    Args:
        input: Logits.
        target: Yes/no targets.
        gamma_neg: Focusing exponent of negatives, at least 0.
        gamma_pos: Focusing exponent of positives, at least 0 and commonly below ``gamma_neg``.
        clip: The margin m in [0, 1): negatives with a probability up to m have neither loss nor gradient.
        detach_focusing: Whether the powers are constants to the gradient.
        sample_weight: Weights of entries or rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of entries.

    Shape:
        - input, target: the same, any shape; floating point, target in [0, 1].
        - sample_weight: as input, or ``(N,)``; normalizer: a number or ``()``.

    Returns:
        Input's shape for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, target, ``gamma_neg``, ``gamma_pos``, ``clip`` or reduction is wrong.

    Example:
        >>> asymmetric_loss(torch.tensor([0.0, 0.0, -3.0]), torch.tensor([1.0, 0.0, 0.0]), reduction="none")
        tensor([0.6931, 0.0245, 0.0000])

    Source:
        Ridnik, Ben-Baruch, Zamir, Noy, Friedman, Protter, Zelnik-Manor: Asymmetric Loss For Multi-Label Classification
        (ICCV 2021, arXiv 2009.14119), section 2. Its code sums over entries (``reduction="sum"``; learning rates
        tuned for it do not carry over to the mean), clamps the logarithms at 1e-8 where these are exact, and defaults
        to ``gamma_pos=1`` with ``detach_focusing=True``; the defaults here are the paper's.
    """
    _check_ranges(gamma_neg, gamma_pos, clip)
    entries = label_entries(input, target, sample_weight=sample_weight)
    loss = _asymmetric(entries, gamma_neg, gamma_pos, clip, detach_focusing)
    return entries.reduce(loss, reduction=reduction, normalizer=normalizer)


class AsymmetricLoss(Objective):
    """Binary cross-entropy in which negatives fade faster than positives; module form of :func:`asymmetric_loss`.

    Example:
        >>> AsymmetricLoss(reduction="none")(torch.tensor([0.0, 0.0, -3.0]), torch.tensor([1.0, 0.0, 0.0]))
        tensor([0.6931, 0.0245, 0.0000])
    """

    function = asymmetric_loss

    def __init__(
        self,
        gamma_neg: Tensor | float = 4.0,
        gamma_pos: Tensor | float = 0.0,
        clip: Tensor | float = 0.05,
        *,
        detach_focusing: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip, detach_focusing=detach_focusing, reduction=reduction
        )


@objective(Kind.CLASSES)
def asymmetric_softmax_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma_neg: Tensor | float = 4.0,
    gamma_pos: Tensor | float = 0.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.1,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Label-smoothed cross-entropy in which wrong classes fade faster than the right one.

    Reach for it as the single-label companion of :func:`asymmetric_loss`, with label smoothing: without it only the
    label's term is left, and ``gamma_neg`` does nothing.

    Formula:
        .. math:: L = -\sum_k q_k w_k \log p_k, \quad w_y = (1 - p_y)^{\gamma_+}, \quad
            w_{k \ne y} = p_k^{\gamma_-}, \quad q = (1 - s) e_y + s / C

    Args:
        input: Logits.
        target: Class indices.
        gamma_neg: Focusing exponent of wrong classes, at least 0.
        gamma_pos: Focusing exponent of the label's class, at least 0.
        weight: Class weights, inside the sum over classes.
        ignore_index: Label of rows that count for nothing.
        label_smoothing: Share s of the target spread evenly over the classes, in [0, 1].
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
        ValueError: A shape, label, ``gamma_neg``, ``gamma_pos`` or reduction is wrong.

    Example:
        >>> asymmetric_softmax_loss(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(0.1585)

    Source:
        Ridnik et al.: Asymmetric Loss For Multi-Label Classification (ICCV 2021, arXiv 2009.14119), single-label
        experiments; smoothing after the focusing weights is its public code's.
    """
    _check_ranges(gamma_neg, gamma_pos)
    rows = class_rows(
        input,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
        index_only=True,
    )
    log_p = rows.log_p()
    positive, negative = (torch.as_tensor(g, dtype=log_p.dtype, device=log_p.device) for g in (gamma_pos, gamma_neg))
    log_focusing = product(positive, rows.log_miss_of_label())
    if rows.hard:
        log_focusing = log_focusing.unsqueeze(rows.dim)
    else:
        log_focusing = rows.replaced(product(negative, log_p), log_focusing)
    return rows.reduce(rows.expect(product(log_focusing.exp(), -log_p)), reduction=reduction, normalizer=normalizer)


class AsymmetricSoftmaxLoss(Objective):
    """Label-smoothed cross-entropy in which wrong classes fade; module form of :func:`asymmetric_softmax_loss`.

    Example:
        >>> AsymmetricSoftmaxLoss()(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(0.1585)
    """

    function = asymmetric_softmax_loss

    def __init__(
        self,
        gamma_neg: Tensor | float = 4.0,
        gamma_pos: Tensor | float = 0.0,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.1,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            gamma_neg=gamma_neg,
            gamma_pos=gamma_pos,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )


class AsymmetryState(NamedTuple):
    """What :func:`adaptive_asymmetric_loss` hands from batch to batch.

    Attributes:
        gamma_neg: Focusing exponent of negatives for the next batch ``()``.
        probability_gap: Mean probability of the truth among the batch's positives less that among its negatives
            ``()``; NaN if the batch lacks one of them.
    """

    gamma_neg: Tensor
    probability_gap: Tensor


@objective(Kind.LABELS, stateful=True)
def adaptive_asymmetric_loss(
    input: Tensor,
    target: Tensor,
    gamma_neg: Tensor | float = 0.0,
    *,
    target_gap: Tensor | float = 0.1,
    step_size: Tensor | float = 0.1,
    gamma_pos: Tensor | float = 0.0,
    clip: Tensor | float = 0.05,
    detach_focusing: bool = False,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> tuple[Tensor, AsymmetryState]:
    r"""Asymmetric loss whose exponent of negatives follows a wanted gap between positives and negatives.

    Reach for it in place of :func:`asymmetric_loss` where ``gamma_neg`` cannot be tuned; the gap is easier to guess.
    Each rank follows its own batches; the batch must be large enough to hold positives.

    Formula:
        .. math:: \gamma_- \leftarrow \max\big(0,\ \gamma_- + \lambda (\Delta_{target} - \Delta)\big), \quad
            \Delta = \mathrm{mean}_{y = 1}\, p - \mathrm{mean}_{y = 0}\, (1 - p)

        after the loss of :func:`asymmetric_loss` with the old :math:`\gamma_-`. Raising it weakens the negatives, so
        the positives' probability rises and the gap with it. Soft targets y weigh the means by y and 1 - y.

    Args:
        input: Logits.
        target: Yes/no targets.
        gamma_neg: Focusing exponent of negatives, at least 0: where the last batch left it.
        target_gap: The gap that is wanted, in [-1, 1].
        step_size: How fast ``gamma_neg`` follows, at least 0: with a gap that is off by 0.5, 0.1 moves it by 1 in 20
            batches.
        gamma_pos: Focusing exponent of positives, at least 0.
        clip: The margin in [0, 1): negatives with a probability up to it have neither loss nor gradient.
        detach_focusing: Whether the powers are constants to the gradient.
        sample_weight: Weights of entries or rows, in the gap too.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of entries.

    Shape:
        - input, target: the same, any shape; floating point, target in [0, 1].
        - gamma_neg: a number or ``()``.
        - sample_weight: as input, or ``(N,)``; normalizer: a number or ``()``.

    Returns:
        The loss, as :func:`asymmetric_loss` returns it, and the state after the batch, without gradient.
        ``gamma_neg`` stays as it was after a batch without positives or negatives, or with a NaN.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, target, ``gamma_neg``, ``target_gap``, ``step_size``, ``gamma_pos``, ``clip`` or reduction
            is wrong.

    Example:
        >>> input, target = torch.tensor([-2.0, -1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> loss, state = adaptive_asymmetric_loss(input, target, gamma_neg=1.0)
        >>> loss
        tensor(0.8167)
        >>> state
        AsymmetryState(gamma_neg=tensor(1.0596), probability_gap=tensor(-0.4963))

    Source:
        Ridnik et al.: Asymmetric Loss For Multi-Label Classification (ICCV 2021, arXiv 2009.14119), adaptive
        asymmetry. The step size is a choice made here: on small multi-label images 0.1 reaches the gap within some
        hundred batches and stays there, where 0.01 lags for the whole training.
    """
    _check_ranges(gamma_neg, gamma_pos, clip)
    check_in_range("target_gap", target_gap, -1.0, 1.0)
    check_in_range("step_size", step_size, 0.0)
    entries = label_entries(input, target, sample_weight=sample_weight)
    loss = _asymmetric(entries, gamma_neg, gamma_pos, clip, detach_focusing)
    gap = _probability_gap(entries)
    gamma = torch.as_tensor(gamma_neg, dtype=gap.dtype, device=gap.device)
    moved = (gamma + step_size * (target_gap - gap)).clamp(min=0)
    state = AsymmetryState(torch.where(gap.isnan(), gamma, moved).detach(), gap)
    return entries.reduce(loss, reduction=reduction, normalizer=normalizer), state


class AdaptiveAsymmetricLoss(Objective):
    """Asymmetric loss that finds its ``gamma_neg`` in training; module form of :func:`adaptive_asymmetric_loss`.

    Args:
        target_gap: The gap that is wanted, in [-1, 1].
        step_size: How fast ``gamma_neg`` follows, at least 0.
        gamma_neg: Focusing exponent of negatives at the start, at least 0.
        gamma_pos: Focusing exponent of positives, at least 0.
        clip: The margin in [0, 1).
        detach_focusing: Whether the powers are constants to the gradient.
        reduction: ``none``, ``mean`` or ``sum``.

    Attributes:
        gamma_neg: Focusing exponent of negatives for the next batch ``()``; moves in training mode only.
        probability_gap: The gap of the last training batch ``()``; NaN before it.

    Example:
        >>> loss = AdaptiveAsymmetricLoss(gamma_neg=1.0)
        >>> loss(torch.tensor([-2.0, -1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]))
        tensor(0.8167)
        >>> loss.gamma_neg, loss.probability_gap
        (tensor(1.0596), tensor(-0.4963))
    """

    function = adaptive_asymmetric_loss
    gamma_neg: Tensor
    probability_gap: Tensor

    def __init__(
        self,
        target_gap: Tensor | float = 0.1,
        step_size: Tensor | float = 0.1,
        gamma_neg: float = 0.0,
        gamma_pos: Tensor | float = 0.0,
        clip: Tensor | float = 0.05,
        *,
        detach_focusing: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            target_gap=target_gap,
            step_size=step_size,
            gamma_neg=torch.tensor(gamma_neg, dtype=torch.get_default_dtype()),
            gamma_pos=gamma_pos,
            clip=clip,
            detach_focusing=detach_focusing,
            reduction=reduction,
        )
        self.register_buffer("probability_gap", torch.tensor(torch.nan))

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss; in training mode ``gamma_neg`` moves for the next batch.

        Args:
            input: Logits.
            target: Yes/no targets.
            sample_weight: Weights of entries or rows.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        loss, state = adaptive_asymmetric_loss(
            input, target, sample_weight=sample_weight, normalizer=normalizer, **self.hyperparameters()
        )
        if self.training:
            self.gamma_neg, self.probability_gap = state
        return loss


def _asymmetric(
    entries: LabelEntries,
    gamma_neg: Tensor | float,
    gamma_pos: Tensor | float,
    clip: Tensor | float,
    detach_focusing: bool,
) -> Tensor:
    """The loss of each entry."""

    def formula(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        yes, _, p, not_p, log_likely = yes_no(z, y)
        no_share, p_m = 1 - y, (p - clip).relu()
        loss_yes, loss_no = softplus_pair(z, log_likely)
        if isinstance(clip, Tensor) or clip > 0:  # 0 alone lets the loss of a negative grow without bound
            of_clip = -torch.log((not_p + clip).clamp(max=1.0))
            loss_no = torch.where(torch.as_tensor(clip == 0), loss_no, of_clip) if isinstance(clip, Tensor) else of_clip
        bounded = not isinstance(clip, Tensor) and clip > 0
        loss = product(y, loss_yes) + (no_share * loss_no if bounded else product(no_share, loss_no))
        miss = (yes + no_share * p_m).clamp(min=torch.finfo(z.dtype).tiny)
        power = y * gamma_pos + no_share * gamma_neg
        focusing = torch.exp(power * miss.log())
        focusing = focusing.detach() if detach_focusing else focusing
        no_slope = no_share * (p * not_p * p_m.sign())
        slope = no_slope / (not_p + clip) - yes
        if not detach_focusing:
            # Where the loss is above 100, (p not_p) is below e^-80: no infinity must meet it.
            slope = slope + (no_slope - yes * p) / miss * (power * loss.clamp(max=100))
        return product(focusing, loss), focusing * slope

    return entries.evaluate(formula, gamma_neg, gamma_pos, clip)


def _probability_gap(entries: LabelEntries) -> Tensor:
    """Mean of p over positives less mean of 1 - p over negatives, without gradient; NaN where one side is missing."""
    y, p = entries.target.detach(), entries.logits.detach().sigmoid()

    def mean(values: Tensor, share: Tensor) -> Tensor:
        total, count = (entries.reduce(x, reduction="sum", normalizer=None) for x in (share * values, share))
        return total / count

    return mean(p, y) - mean(1 - p, 1 - y)


def _check_ranges(gamma_neg: Tensor | float, gamma_pos: Tensor | float, clip: Tensor | float = 0.0) -> None:
    check_in_range("gamma_neg", gamma_neg, 0.0)
    check_in_range("gamma_pos", gamma_pos, 0.0)
    check_in_range("clip", clip, 0.0, 1.0, high_open=True)
