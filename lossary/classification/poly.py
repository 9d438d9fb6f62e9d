"""PolyLoss: cross-entropy and focal loss as series in the miss probability, with adjustable leading coefficients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lossary.core.checks import check_class_vector, check_in_range
from lossary.core.numerics import exp_scaled, product
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import class_rows, label_entries
from lossary.core.sigmoid import sigmoid_focal
from lossary.core.types import Reduction


@objective(Kind.CLASSES)
def poly1_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    epsilon: Tensor | float = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy plus ``epsilon`` times the miss probability.

    Reach for it when cross-entropy is nearly right and one number may be tuned: ``epsilon > 0`` makes predictions more
    confident, ``epsilon < 0`` less. Not a remedy for imbalance or wrong labels.

    Formula:
        .. math:: L = -\log p_t + \epsilon (1 - p_t)

        Probability and smoothed targets q average both terms: :math:`\sum_k q_k (-\log p_k + \epsilon (1 - p_k))`.

    Args:
        input: Logits.
        target: Class indices or probabilities.
        epsilon: Weight of the miss probability. Any number: -1 drops the first term of the series; negative ones can
            make the loss negative.
        weight: Class weights, on both terms.
        ignore_index: Label of rows that count for nothing.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1].
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point.
        - target: ``(N, ...)`` integer, or ``(N, C, ...)`` floating point.
        - weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, probability or reduction is wrong.

    Example:
        >>> input = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
        >>> poly1_cross_entropy_loss(input, torch.tensor([0, 2]), epsilon=2.0)
        tensor(1.8949)

    Source:
        Leng, Tan, Liu, Cubuk, Shi, Cheng, Anguelov: PolyLoss: A Polynomial Expansion Perspective of Classification Loss
        Functions (ICLR 2022, arXiv 2204.12511), section 4.1. Public implementations weight the cross-entropy
        term alone and divide by N; here class weights act as in PyTorch.
    """
    rows = class_rows(
        input,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
    )
    log_p, log_miss = rows.log_p_and_miss()
    loss = rows.expect(-log_p + epsilon * log_miss.exp())
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class Poly1CrossEntropyLoss(Objective):
    """Cross-entropy plus ``epsilon`` times the miss probability; module form of :func:`poly1_cross_entropy_loss`.

    Example:
        >>> Poly1CrossEntropyLoss(epsilon=2.0)(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(2.8863)
    """

    function = poly1_cross_entropy_loss

    def __init__(
        self,
        epsilon: Tensor | float = 1.0,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            epsilon=epsilon,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )


@objective(Kind.CLASSES, example=lambda num_classes: {"epsilons": [1.0, -0.25, 0.5]})
def poly_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    epsilons: Sequence[float] | Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy with the first N coefficients of its series changed (Poly-N).

    Reach for it to study which powers of the miss probability matter; to train, :func:`poly1_cross_entropy_loss` is
    nearly as good with one number to tune.

    Formula:
        .. math:: L = -\log p_t + \sum_{j=1}^N \epsilon_j (1 - p_t)^j

    Args:
        input: Logits.
        target: Class indices or probabilities.
        epsilons: What is added to the coefficients 1, 1/2, 1/3, ... of cross-entropy; at least one number.
        weight: Class weights, on all terms.
        ignore_index: Label of rows that count for nothing.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1].
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point.
        - target: ``(N, ...)`` integer, or ``(N, C, ...)`` floating point.
        - epsilons: ``(J,)``; weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, probability or reduction is wrong, or ``epsilons`` is empty.

    Example:
        >>> poly_cross_entropy_loss(torch.zeros(1, 4), torch.tensor([2]), epsilons=[1.0, 1.0])
        tensor(2.6988)

    Source:
        Leng et al.: PolyLoss (ICLR 2022, arXiv 2204.12511), section 4, Poly-N.
    """
    rows = class_rows(
        input,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
    )
    log_p, log_miss = rows.log_p_and_miss()
    loss = rows.expect(-log_p + _polynomial(log_miss.exp(), epsilons, "epsilons"))
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class PolyCrossEntropyLoss(Objective):
    """Cross-entropy with its first coefficients changed; module form of :func:`poly_cross_entropy_loss`.

    Example:
        >>> PolyCrossEntropyLoss([1.0, 1.0])(torch.zeros(1, 4), torch.tensor([2]))
        tensor(2.6988)
    """

    function = poly_cross_entropy_loss

    def __init__(
        self,
        epsilons: Sequence[float] | Tensor,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            epsilons=epsilons,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )


@objective(Kind.CLASSES, example=lambda num_classes: {"coefficients": [1.0, 0.5, 1 / 3]})
def poly_series_loss(
    input: Tensor,
    target: Tensor,
    *,
    coefficients: Sequence[float] | Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""A polynomial in the miss probability with the coefficients given.

    Reach for it to truncate, drop or shift terms of a loss, as the paper's analysis does. Bounded by the sum of its
    coefficients, and so slow to learn from a bad start.

    Formula:
        .. math:: L = \sum_{j=1}^J a_j (1 - p_t)^j

        :math:`a_j = 1/j` with J growing is cross-entropy; :math:`a_j = 1/(j-\gamma)` for integer :math:`\gamma < j`
        (0 below) is focal loss.

    Args:
        input: Logits.
        target: Class indices or probabilities.
        coefficients: The :math:`a_1, ..., a_J`; at least one number.
        weight: Class weights.
        ignore_index: Label of rows that count for nothing.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1].
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point.
        - target: ``(N, ...)`` integer, or ``(N, C, ...)`` floating point.
        - coefficients: ``(J,)``; weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, probability or reduction is wrong, or ``coefficients`` is empty.

    Example:
        >>> poly_series_loss(torch.zeros(1, 2), torch.tensor([1]), coefficients=[1.0, 1 / 2, 1 / 3])
        tensor(0.6667)

    Source:
        Leng et al.: PolyLoss (ICLR 2022, arXiv 2204.12511), section 3, equation 2.
    """
    rows = class_rows(
        input,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
    )
    loss = rows.expect(_polynomial(rows.log_miss().exp(), coefficients, "coefficients"))
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class PolySeriesLoss(Objective):
    """A polynomial in the miss probability; module form of :func:`poly_series_loss`.

    Example:
        >>> PolySeriesLoss([1.0, 1 / 2, 1 / 3])(torch.zeros(1, 2), torch.tensor([1]))
        tensor(0.6667)
    """

    function = poly_series_loss

    def __init__(
        self,
        coefficients: Sequence[float] | Tensor,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            coefficients=coefficients,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )


@objective(Kind.CLASSES)
def poly1_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    epsilon: Tensor | float = 1.0,
    gamma: Tensor | float = 2.0,
    alpha: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Softmax focal loss plus ``epsilon`` times its leading power of the miss probability.

    Reach for it where focal loss is in use already and one more number may be tuned.

    Formula:
        .. math:: L = -\alpha_y (1 - p_t)^\gamma \log p_t + \epsilon (1 - p_t)^{\gamma + 1}

    Args:
        input: Logits.
        target: Class indices or probabilities.
        epsilon: Weight of the added term; any number.
        gamma: Focusing exponent, at least 0.
        alpha: Class coefficients of the focal term; they scale values and leave the divisor of ``mean`` alone.
        weight: Class weights as in PyTorch, on both terms.
        ignore_index: Label of rows that count for nothing.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1].
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point.
        - target: ``(N, ...)`` integer, or ``(N, C, ...)`` floating point.
        - alpha, weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, probability, ``gamma`` or reduction is wrong.

    Example:
        >>> poly1_focal_loss(torch.zeros(1, 2), torch.tensor([1]), epsilon=1.0, gamma=2.0)
        tensor(0.2983)

    Source:
        Leng et al.: PolyLoss (ICLR 2022, arXiv 2204.12511), section 5, softmax counterpart.
    """
    check_in_range("gamma", gamma, 0.0)
    rows = class_rows(
        input,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
    )
    check_class_vector("alpha", alpha, rows.num_classes)
    log_p, log_miss = rows.log_p_and_miss()
    focal = product(exp_scaled(log_miss, gamma), -log_p)
    if alpha is not None:
        focal = product(rows.per_class(alpha), focal)
    loss = rows.expect(focal + epsilon * exp_scaled(log_miss, gamma + 1))
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class Poly1FocalLoss(Objective):
    """Softmax focal loss with a perturbed leading term; module form of :func:`poly1_focal_loss`.

    Example:
        >>> Poly1FocalLoss(gamma=2.0)(torch.zeros(1, 2), torch.tensor([1]))
        tensor(0.2983)
    """

    function = poly1_focal_loss

    def __init__(
        self,
        epsilon: Tensor | float = 1.0,
        gamma: Tensor | float = 2.0,
        *,
        alpha: Tensor | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            epsilon=epsilon,
            gamma=gamma,
            alpha=alpha,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )


@objective(Kind.LABELS)
def poly1_sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    epsilon: Tensor | float = 1.0,
    alpha: Tensor | float | None = 0.25,
    gamma: Tensor | float = 2.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Sigmoid focal loss plus ``epsilon`` times its leading power of the miss probability.

    Reach for it where sigmoid focal loss is in use already, above all with few positives; ``epsilon = -1`` is the
    paper's choice for 3-D detection.

    Formula:
        .. math:: L = -\alpha_t (1 - p_t)^\gamma \log p_t + \epsilon (1 - p_t)^{\gamma + 1}

        with :math:`\alpha_t = \alpha` for positives and :math:`1 - \alpha` for negatives, on the focal term alone. A
        soft target y mixes the two sides' miss probability, weight and cross-entropy.

    Args:
        input: Logits.
        target: Yes/no targets.
        epsilon: Weight of the added term; any number.
        alpha: Weight of positives in [0, 1]; None balances nothing.
        gamma: Focusing exponent, at least 0.
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
        ValueError: A shape, target, ``alpha``, ``gamma`` or reduction is wrong.

    Example:
        >>> poly1_sigmoid_focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]))
        tensor(0.2116)

    Source:
        Leng et al.: PolyLoss (ICLR 2022, arXiv 2204.12511), section 5; as in its public code the added term does not
        carry :math:`\alpha_t`.
    """
    check_in_range("gamma", gamma, 0.0)
    check_in_range("alpha", 0.0 if alpha is None else alpha, 0.0, 1.0)
    entries = label_entries(input, target, sample_weight=sample_weight)
    loss = entries.evaluate(lambda z, y: sigmoid_focal(z, y, alpha, gamma, epsilon), alpha, gamma, epsilon)
    return entries.reduce(loss, reduction=reduction, normalizer=normalizer)


class Poly1SigmoidFocalLoss(Objective):
    """Sigmoid focal loss with a perturbed leading term; module form of :func:`poly1_sigmoid_focal_loss`.

    Example:
        >>> Poly1SigmoidFocalLoss()(torch.zeros(2), torch.tensor([1.0, 0.0]))
        tensor(0.2116)
    """

    function = poly1_sigmoid_focal_loss

    def __init__(
        self,
        epsilon: Tensor | float = 1.0,
        alpha: Tensor | float | None = 0.25,
        gamma: Tensor | float = 2.0,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(epsilon=epsilon, alpha=alpha, gamma=gamma, reduction=reduction)


def _polynomial(x: Tensor, coefficients: Sequence[float] | Tensor, name: str) -> Tensor:
    """The polynomial a_1 x + a_2 x^2 + ..., by Horner's rule."""
    if len(coefficients) == 0:
        raise ValueError(f"{name} is empty; wanted at least one number.")
    value = torch.zeros_like(x)
    for coefficient in reversed(list(coefficients)):
        value = (value + coefficient) * x
    return value
