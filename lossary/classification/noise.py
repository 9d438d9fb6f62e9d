"""Losses that tolerate wrong labels: normalised, active and passive losses and the baselines beside them.

A loss divided by its sum over all labels is unmoved by symmetric label noise, but under-fits; pairing an *active* loss
(raises the label's probability) with a *passive* one (also lowers the others) mends that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.checks import check_in_range
from lossary.core.numerics import exp_scaled, product
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import ClassRows, class_rows
from lossary.core.softmax import Softmax, share_of_label, with_softmax
from lossary.core.types import Reduction

LOG_ZERO = -9.210340371976182
"""Log of 1e-4: what reverse cross-entropy takes for log 0."""


class RowLoss(Protocol):
    """A loss that can be had per row: ``loss(input, target, reduction="none")`` gives ``(N, ...)``."""

    def __call__(self, input: Tensor, target: Tensor, *, reduction: Reduction) -> Tensor:
        """The loss of each row."""
        ...


@objective(Kind.CLASSES)
def active_passive_loss(
    input: Tensor,
    target: Tensor,
    *,
    active: str | RowLoss = "nce",
    passive: str | RowLoss = "rce",
    alpha: Tensor | float = 1.0,
    beta: Tensor | float = 1.0,
    gamma: Tensor | float = 0.5,
    q: Tensor | float = 0.7,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""A robust active loss plus a robust passive one.

    Reach for it when a good part of the labels is wrong (up to 60 to 80%). With clean labels it learns more slowly than
    cross-entropy, and its probabilities want calibration.

    Formula:
        .. math:: L = \alpha L_{active} + \beta L_{passive}

    Args:
        input: Logits.
        target: Class indices.
        active: ``nce``, ``nfl``, ``ngce`` (normalised cross-entropy, focal, generalized cross-entropy), ``ce``, ``fl``,
            or a loss that can be had per row.
        passive: ``rce``, ``mae``, ``nrce`` or ``nmae`` (reverse cross-entropy, mean absolute error and their normalised
            forms), or a loss that can be had per row.
        alpha: Coefficient of the active loss.
        beta: Coefficient of the passive loss.
        gamma: Focusing exponent of ``nfl`` and ``fl``, at least 0.
        q: Exponent of ``ngce``, in (0, 1].
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
        ValueError: A shape, label, name, ``gamma``, ``q`` or reduction is wrong.

    Example:
        >>> active_passive_loss(torch.zeros(1, 4), torch.tensor([2]), passive="mae")
        tensor(1.)

    Source:
        Ma, Huang, Wang, Romano, Erfani, Bailey: Normalized Loss Functions for Deep Learning with Noisy Labels
        (ICML 2020, arXiv 2006.13554), equation 9. Settings of its experiments: alpha, beta = 1, 1 for
        CIFAR-10; 10, 0.1 for CIFAR-100 with ``rce``. Its code detaches the weights of ``nfl``; here they are
        differentiated.
    """
    check_in_range("gamma", gamma, 0.0)
    check_in_range("q", q, 0.0, 1.0, low_open=True)
    rows = _rows(input, target, weight, ignore_index, sample_weight)
    terms = []
    for role, loss, known in (("active", active, _ACTIVE), ("passive", passive, _PASSIVE)):
        if isinstance(loss, str):
            if loss not in known:
                raise ValueError(f"{role} is {loss!r}; wanted one of {', '.join(known)}, or a callable.")
            terms.append(known[loss](rows, gamma, q))
        else:
            terms.append(loss(rows.logits, _label(rows), reduction="none"))
    return _reduce(rows, alpha * terms[0] + beta * terms[1], reduction, normalizer)


class ActivePassiveLoss(Objective):
    """A robust active loss plus a robust passive one; module form of :func:`active_passive_loss`.

    Example:
        >>> ActivePassiveLoss("nfl", "mae", alpha=10.0)(torch.zeros(1, 4), torch.tensor([2]))
        tensor(3.2500)
    """

    function = active_passive_loss

    def __init__(
        self,
        active: str | RowLoss = "nce",
        passive: str | RowLoss = "rce",
        *,
        alpha: Tensor | float = 1.0,
        beta: Tensor | float = 1.0,
        gamma: Tensor | float = 0.5,
        q: Tensor | float = 0.7,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            active=active,
            passive=passive,
            alpha=alpha,
            beta=beta,
            gamma=gamma,
            q=q,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )


@objective(Kind.CLASSES)
def normalized_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy divided by its sum over all labels.

    Reach for it as the active part of :func:`active_passive_loss`; alone it under-fits when there are many classes.

    Formula:
        .. math:: L = \frac{\log p_y}{\sum_j \log p_j}

    Args:
        input: Logits.
        target: Class indices.
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
        ValueError: A shape, label, or reduction is wrong.

    Example:
        >>> normalized_cross_entropy_loss(torch.zeros(1, 4), torch.tensor([2]))
        tensor(0.2500)

    Source:
        Ma, Huang, Wang, Romano, Erfani, Bailey: Normalized Loss Functions for Deep Learning with Noisy Labels
        (ICML 2020, arXiv 2006.13554), equation 5.
    """
    rows = _rows(input, target, weight, ignore_index, sample_weight)
    return _reduce(rows, _nce(rows), reduction, normalizer)


class NormalizedCrossEntropyLoss(Objective):
    """Cross-entropy divided by its sum over all labels; module form of :func:`normalized_cross_entropy_loss`."""

    function = normalized_cross_entropy_loss

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction)


@objective(Kind.CLASSES)
def normalized_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: Tensor | float = 0.5,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Focal loss divided by its sum over all labels.

    Reach for it as the active part of :func:`active_passive_loss`; alone it under-fits.

    Formula:
        .. math:: L = \frac{(1 - p_y)^\gamma \log p_y}{\sum_j (1 - p_j)^\gamma \log p_j}

    Args:
        input: Logits.
        target: Class indices.
        gamma: Focusing exponent, at least 0.
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
        ValueError: A shape, label, ``gamma``, or reduction is wrong.

    Example:
        >>> normalized_focal_loss(torch.zeros(1, 4), torch.tensor([2]))
        tensor(0.2500)

    Source:
        Ma, Huang, Wang, Romano, Erfani, Bailey: Normalized Loss Functions for Deep Learning with Noisy Labels
        (ICML 2020, arXiv 2006.13554), equation 8. Its code
        detaches the focal weights; here they are differentiated (the values are the same).
    """
    check_in_range("gamma", gamma, 0.0)
    rows = _rows(input, target, weight, ignore_index, sample_weight)
    return _reduce(rows, _nfl(rows, gamma), reduction, normalizer)


class NormalizedFocalLoss(Objective):
    """Focal loss divided by its sum over all labels; module form of :func:`normalized_focal_loss`."""

    function = normalized_focal_loss

    def __init__(
        self,
        gamma: Tensor | float = 0.5,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(gamma=gamma, weight=weight, ignore_index=ignore_index, reduction=reduction)


@objective(Kind.CLASSES)
def normalized_generalized_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    q: Tensor | float = 0.7,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Generalized cross-entropy divided by its sum over all labels.

    Reach for it as the active part of :func:`active_passive_loss`.

    Formula:
        .. math:: L = \frac{1 - p_y^q}{C - \sum_j p_j^q}

    Args:
        input: Logits.
        target: Class indices.
        q: Exponent in (0, 1].
        weight: Class weights of the label.
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
        ValueError: A shape, label, ``q``, or reduction is wrong.

    Example:
        >>> normalized_generalized_cross_entropy_loss(torch.zeros(1, 4), torch.tensor([2]))
        tensor(0.2500)

    Source:
        Ma, Huang, Wang, Romano, Erfani, Bailey: Normalized Loss Functions for Deep Learning with Noisy Labels
        (ICML 2020, arXiv 2006.13554), section 3.
    """
    check_in_range("q", q, 0.0, 1.0, low_open=True)
    rows = _rows(input, target, weight, ignore_index, sample_weight)
    return _reduce(rows, _ngce(rows, q), reduction, normalizer)


class NormalizedGeneralizedCrossEntropyLoss(Objective):
    """Generalized cross-entropy divided by its sum over all labels.

    Module form of :func:`normalized_generalized_cross_entropy_loss`.
    """

    function = normalized_generalized_cross_entropy_loss

    def __init__(
        self,
        q: Tensor | float = 0.7,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(q=q, weight=weight, ignore_index=ignore_index, reduction=reduction)


@objective(Kind.CLASSES)
def normalized_mean_absolute_error_loss(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Mean absolute error divided by its sum over all labels.

    Reach for it as a passive part on the scale of the normalised losses.

    Formula:
        .. math:: L = \frac{1 - p_y}{C - 1}

    Args:
        input: Logits.
        target: Class indices.
        weight: Class weights of the label.
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
        ValueError: A shape, label, or reduction is wrong.

    Example:
        >>> normalized_mean_absolute_error_loss(torch.zeros(1, 4), torch.tensor([2]))
        tensor(0.2500)

    Source:
        Ma, Huang, Wang, Romano, Erfani, Bailey: Normalized Loss Functions for Deep Learning with Noisy Labels
        (ICML 2020, arXiv 2006.13554), equation 6. Its code
        halves it.
    """
    rows = _rows(input, target, weight, ignore_index, sample_weight)
    return _reduce(rows, _nmae(rows), reduction, normalizer)


class NormalizedMeanAbsoluteErrorLoss(Objective):
    """Mean absolute error divided by its sum over all labels.

    Module form of :func:`normalized_mean_absolute_error_loss`.
    """

    function = normalized_mean_absolute_error_loss

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction)


@objective(Kind.CLASSES)
def normalized_reverse_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Reverse cross-entropy divided by its sum over all labels.

    Equal to :func:`normalized_mean_absolute_error_loss`: the constant for log 0 cancels.

    Formula:
        .. math:: L = \frac{1 - p_y}{C - 1}

    Args:
        input: Logits.
        target: Class indices.
        weight: Class weights of the label.
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
        ValueError: A shape, label, or reduction is wrong.

    Example:
        >>> normalized_reverse_cross_entropy_loss(torch.zeros(1, 4), torch.tensor([2]))
        tensor(0.2500)

    Source:
        Ma, Huang, Wang, Romano, Erfani, Bailey: Normalized Loss Functions for Deep Learning with Noisy Labels
        (ICML 2020, arXiv 2006.13554), equation 7. Its code
        multiplies by (C - 1)/4 where the definition divides.
    """
    rows = _rows(input, target, weight, ignore_index, sample_weight)
    return _reduce(rows, _nmae(rows), reduction, normalizer)


class NormalizedReverseCrossEntropyLoss(Objective):
    """Reverse cross-entropy divided by its sum over all labels.

    Module form of :func:`normalized_reverse_cross_entropy_loss`.
    """

    function = normalized_reverse_cross_entropy_loss

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction)


@objective(Kind.CLASSES)
def reverse_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    log_zero: Tensor | float = LOG_ZERO,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy with prediction and label exchanged.

    Reach for it as the passive part of :func:`active_passive_loss` or beside cross-entropy.

    Formula:
        .. math:: L = -\sum_k p_k \log q_k = -A (1 - p_y), \quad A = \log 0 := \log 10^{-4}

    Args:
        input: Logits.
        target: Class indices.
        log_zero: What stands for log 0; negative.
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
        ValueError: A shape, label, ``log_zero``, or reduction is wrong.

    Example:
        >>> reverse_cross_entropy_loss(torch.zeros(1, 4), torch.tensor([2]))
        tensor(6.9078)

    Source:
        Wang, Ma, Chen, Luo, Yi, Bailey: Symmetric Cross Entropy for Robust Learning with Noisy Labels (ICCV 2019,
        arXiv 1908.06112), as used by Ma et al. (arXiv 2006.13554).
    """
    check_in_range("log_zero", log_zero, -float("inf"), 0.0, low_open=True, high_open=True)
    rows = _rows(input, target, weight, ignore_index, sample_weight)
    return _reduce(rows, -log_zero * _mae(rows), reduction, normalizer)


class ReverseCrossEntropyLoss(Objective):
    """Cross-entropy with prediction and label exchanged; module form of :func:`reverse_cross_entropy_loss`."""

    function = reverse_cross_entropy_loss

    def __init__(
        self,
        log_zero: Tensor | float = LOG_ZERO,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(log_zero=log_zero, weight=weight, ignore_index=ignore_index, reduction=reduction)


@objective(Kind.CLASSES)
def mean_absolute_error_loss(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Probability of a miss: half the L1 distance between prediction and one-hot label.

    Reach for it when many labels are wrong and classes are few; with many classes it hardly learns.

    Formula:
        .. math:: L = 1 - p_y

    Args:
        input: Logits.
        target: Class indices.
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
        ValueError: A shape, label, or reduction is wrong.

    Example:
        >>> mean_absolute_error_loss(torch.zeros(1, 4), torch.tensor([2]))
        tensor(0.7500)

    Source:
        Ghosh, Kumar, Sastry: Robust Loss Functions under Label Noise for Deep Neural Networks (AAAI 2017, arXiv
        1712.09482), in the reduced form of Ma et al. (arXiv 2006.13554).
    """
    rows = _rows(input, target, weight, ignore_index, sample_weight)
    return _reduce(rows, _mae(rows), reduction, normalizer)


class MeanAbsoluteErrorLoss(Objective):
    """Probability of a miss; module form of :func:`mean_absolute_error_loss`."""

    function = mean_absolute_error_loss

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction)


@objective(Kind.CLASSES)
def generalized_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    q: Tensor | float = 0.7,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""A family between cross-entropy and the mean absolute error.

    Reach for it under label noise when one number may be tuned; ``q`` nearer 1 tolerates more noise and learns slower.

    Formula:
        .. math:: L = \frac{1 - p_y^q}{q}

    Args:
        input: Logits.
        target: Class indices.
        q: Exponent in [0, 1]: 0 is cross-entropy (in the limit), 1 the mean absolute error.
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
        ValueError: A shape, label, ``q``, or reduction is wrong.

    Example:
        >>> generalized_cross_entropy_loss(torch.zeros(1, 4), torch.tensor([2]), q=0.5)
        tensor(1.)

    Source:
        Zhang, Sabuncu: Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels (NeurIPS
        2018, arXiv 1805.07836), equation 6.
    """
    check_in_range("q", q, 0.0, 1.0)
    rows = _rows(input, target, weight, ignore_index, sample_weight)
    return _reduce(rows, _gce(rows, q), reduction, normalizer)


class GeneralizedCrossEntropyLoss(Objective):
    """A family between cross-entropy and the mean absolute error.

    Module form of :func:`generalized_cross_entropy_loss`.
    """

    function = generalized_cross_entropy_loss

    def __init__(
        self,
        q: Tensor | float = 0.7,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(q=q, weight=weight, ignore_index=ignore_index, reduction=reduction)


@objective(Kind.CLASSES)
def symmetric_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: Tensor | float = 0.1,
    beta: Tensor | float = 1.0,
    log_zero: Tensor | float = LOG_ZERO,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy plus reverse cross-entropy.

    Reach for it as a robust baseline under label noise.

    Formula:
        .. math:: L = \alpha (-\log p_y) + \beta (-A)(1 - p_y)

    Args:
        input: Logits.
        target: Class indices.
        alpha: Coefficient of cross-entropy, at least 0.
        beta: Coefficient of reverse cross-entropy, at least 0.
        log_zero: What stands for log 0; negative.
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
        ValueError: A shape, label, ``alpha``, ``beta``, ``log_zero``, or reduction is wrong.

    Example:
        >>> symmetric_cross_entropy_loss(torch.zeros(1, 4), torch.tensor([2]))
        tensor(7.0464)

    Source:
        Wang et al.: Symmetric Cross Entropy for Robust Learning with Noisy Labels (ICCV 2019, arXiv 1908.06112),
        equation 6.
    """
    check_in_range("alpha", alpha, 0.0)
    check_in_range("beta", beta, 0.0)
    check_in_range("log_zero", log_zero, -float("inf"), 0.0, low_open=True, high_open=True)
    rows = _rows(input, target, weight, ignore_index, sample_weight)
    return _reduce(rows, -alpha * F.logsigmoid(rows.log_odds()) - beta * log_zero * _mae(rows), reduction, normalizer)


class SymmetricCrossEntropyLoss(Objective):
    """Cross-entropy plus reverse cross-entropy; module form of :func:`symmetric_cross_entropy_loss`."""

    function = symmetric_cross_entropy_loss

    def __init__(
        self,
        alpha: Tensor | float = 0.1,
        beta: Tensor | float = 1.0,
        log_zero: Tensor | float = LOG_ZERO,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            alpha=alpha, beta=beta, log_zero=log_zero, weight=weight, ignore_index=ignore_index, reduction=reduction
        )


def normalize_loss(loss: RowLoss) -> Callable[..., Tensor]:
    r"""Divide any loss by its sum over all labels, which makes it tolerant to symmetric label noise.

    Reach for it to normalise a loss that has no closed form here. It evaluates the loss C times.

    Formula:
        .. math:: L(z, y) = \frac{f(z, y)}{\sum_{j=1}^C f(z, j)}

    Args:
        loss: ``loss(input, target, reduction="none")`` for class indices, positive.

    Returns:
        A function ``(input, target, *, weight=None, ignore_index=-100, sample_weight=None, reduction="mean",
        normalizer=None)`` with the shapes of :func:`normalized_cross_entropy_loss`.

    Example:
        >>> import torch.nn.functional as F
        >>> normalize_loss(F.cross_entropy)(torch.zeros(1, 4), torch.tensor([2]))
        tensor(0.2500)

    Source:
        Ma, Huang, Wang, Romano, Erfani, Bailey: Normalized Loss Functions for Deep Learning with Noisy Labels
        (ICML 2020, arXiv 2006.13554), equation 4.
    """

    def normalized(
        input: Tensor,
        target: Tensor,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        sample_weight: Tensor | None = None,
        reduction: Reduction = "mean",
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        rows = _rows(input, target, weight, ignore_index, sample_weight)
        label = _label(rows)
        of_all = [loss(rows.logits, torch.full_like(label, j), reduction="none") for j in range(rows.num_classes)]
        of_label = loss(rows.logits, label, reduction="none")
        return _reduce(rows, of_label / torch.stack(of_all).sum(0), reduction, normalizer)

    return normalized


def _nce(rows: ClassRows) -> Tensor:
    log_p = rows.log_softmax()
    return rows.at_label(log_p) / log_p.sum(rows.dim)


def _nfl(rows: ClassRows, gamma: Tensor | float) -> Tensor:
    def term(of: Softmax) -> tuple[Tensor, Tensor]:
        focusing = of.miss**gamma
        slope = focusing * (1 - gamma * (of.p * of.log_p.clamp(min=-1e4) / of.miss))
        return product(focusing, of.log_p), slope

    return with_softmax(share_of_label(term), rows.logits, _label(rows).unsqueeze(rows.dim), rows.dim, [gamma])


def _ngce(rows: ClassRows, q: Tensor | float) -> Tensor:
    def term(of: Softmax) -> tuple[Tensor, Tensor]:
        one_minus_power = -torch.expm1(q * of.log_p)
        return one_minus_power, q * (one_minus_power - 1)

    return with_softmax(share_of_label(term), rows.logits, _label(rows).unsqueeze(rows.dim), rows.dim, [q])


def _gce(rows: ClassRows, q: Tensor | float) -> Tensor:
    log_p = F.logsigmoid(rows.log_odds())
    q = torch.as_tensor(q, dtype=log_p.dtype, device=log_p.device)
    limit = q == 0
    return torch.where(limit, -log_p, -torch.expm1(q * log_p) / torch.where(limit, 1.0, q))


def _mae(rows: ClassRows) -> Tensor:
    return torch.sigmoid(-rows.log_odds())


def _nmae(rows: ClassRows) -> Tensor:
    return _mae(rows) / (rows.num_classes - 1)


def _focal(rows: ClassRows, gamma: Tensor | float) -> Tensor:
    log_p, log_miss = rows.log_p_and_miss()
    return product(exp_scaled(log_miss, gamma), -log_p).squeeze(rows.dim)


_ACTIVE: dict[str, Callable[[ClassRows, Any, Any], Tensor]] = {
    "nce": lambda rows, gamma, q: _nce(rows),
    "nfl": lambda rows, gamma, q: _nfl(rows, gamma),
    "ngce": lambda rows, gamma, q: _ngce(rows, q),
    "ce": lambda rows, gamma, q: -F.logsigmoid(rows.log_odds()),
    "fl": lambda rows, gamma, q: _focal(rows, gamma),
}
_PASSIVE: dict[str, Callable[[ClassRows, Any, Any], Tensor]] = {
    "rce": lambda rows, gamma, q: -LOG_ZERO * _mae(rows),
    "mae": lambda rows, gamma, q: _mae(rows),
    "nrce": lambda rows, gamma, q: _nmae(rows),
    "nmae": lambda rows, gamma, q: _nmae(rows),
}


def _label(rows: ClassRows) -> Tensor:
    assert rows.index is not None
    return rows.index


def _rows(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, sample_weight: Tensor | None
) -> ClassRows:
    rows = class_rows(
        input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight, index_only=True
    )
    if rows.num_classes < 2:
        raise ValueError(f"input has shape {tuple(input.shape)}, one class; wanted at least 2 on the class axis.")
    return rows


def _reduce(rows: ClassRows, loss: Tensor, reduction: Reduction, normalizer: Tensor | float | None) -> Tensor:
    return rows.reduce(rows.label_weight() * loss, reduction=reduction, normalizer=normalizer)
