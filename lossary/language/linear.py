"""Cross-entropy's relatives on a linear head: the memory of none, a few statistics of each row, one line each."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lossary.core.checks import check_class_vector, check_in_range
from lossary.core.numerics import exp_scaled, product
from lossary.core.objective import Kind, objective
from lossary.core.types import Reduction
from lossary.kernels import HeadObjective, VocabParallel, head_rows

Backend = Literal["auto", "reference", "cpu", "cuda", "triton"]


@objective(Kind.HEAD)
def linear_focal_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    *,
    gamma: Tensor | float = 2.0,
    alpha: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    shift: int = 0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    backend: Backend = "auto",
    vocab_parallel: VocabParallel | None = None,
) -> Tensor:
    r"""Focal loss of a linear head that never stores its logits.

    Reach for it where easy tokens swamp hard ones and the vocabulary is large; ``lossary.classification.focal_loss``
    is the form on logits.

    Formula:
        .. math:: L = -\alpha_t (1 - p_t)^\gamma \log p_t

    Args:
        input: Hidden states.
        linear_weight: Weight of the head.
        target: Class indices.
        linear_bias: Bias of the head.
        gamma: Focusing exponent, at least 0.
        alpha: Class coefficients; they scale values and leave the divisor of ``mean`` alone.
        weight: Class weights as in PyTorch.
        ignore_index: Label of tokens that count for nothing.
        softcap: Bound k of ``k tanh(z / k)`` on the logits.
        shift: Token i predicts target i + shift.
        sample_weight: Weights of tokens.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.
        backend: As in :func:`linear_cross_entropy`.
        vocab_parallel: As in :func:`linear_cross_entropy`.

    Shape:
        - input: ``(..., D)``; linear_weight: ``(V, D)``; target, sample_weight: ``(...)``.
        - linear_bias, alpha, weight: ``(V,)``; normalizer: a number or ``()``.

    Returns:
        ``(...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN as
        in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``gamma`` or reduction is wrong.

    Example:
        >>> import torch
        >>> linear_focal_loss(torch.zeros(1, 2), torch.eye(2), torch.tensor([1]))
        tensor(0.1733)

    Source:
        Lin et al.: Focal Loss for Dense Object Detection (ICCV 2017, arXiv 1708.02002), on the head of Cut Your Losses
        (arXiv 2411.09009).
    """
    check_in_range("gamma", gamma, 0.0)
    rows = head_rows(
        input,
        linear_weight,
        target,
        linear_bias,
        weight=weight,
        ignore_index=ignore_index,
        softcap=softcap,
        shift=shift,
        sample_weight=sample_weight,
        backend=backend,
        vocab_parallel=vocab_parallel,
    )
    check_class_vector("alpha", alpha, rows.vocab)
    row = rows.statistics("log_prob", "log_miss")
    focal = product(exp_scaled(row["log_miss"], gamma), -row["log_prob"])
    if alpha is not None:
        focal = product(rows.per_target(alpha), focal)
    return rows.reduce(rows.target_weight() * focal, reduction=reduction, normalizer=normalizer)


class LinearFocalLoss(HeadObjective):
    """Focal loss of a head that never stores its logits; module form of :func:`linear_focal_loss`.

    Example:
        >>> import torch
        >>> LinearFocalLoss()(torch.zeros(1, 2), torch.eye(2), torch.tensor([1]))
        tensor(0.1733)
    """

    function = linear_focal_loss

    def __init__(
        self,
        gamma: Tensor | float = 2.0,
        *,
        alpha: Tensor | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        softcap: float | None = None,
        shift: int = 0,
        reduction: Reduction = "mean",
        backend: Backend = "auto",
        vocab_parallel: VocabParallel | None = None,
    ) -> None:
        super().__init__(
            gamma=gamma,
            alpha=alpha,
            weight=weight,
            ignore_index=ignore_index,
            softcap=softcap,
            shift=shift,
            reduction=reduction,
            backend=backend,
            vocab_parallel=vocab_parallel,
        )


@objective(Kind.HEAD)
def linear_poly1_cross_entropy_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    *,
    epsilon: Tensor | float = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    shift: int = 0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    backend: Backend = "auto",
    vocab_parallel: VocabParallel | None = None,
) -> Tensor:
    r"""Cross-entropy plus ``epsilon`` times the miss probability, of a linear head that never stores its logits.

    Reach for it when cross-entropy is nearly right and one number may be tuned;
    ``lossary.classification.poly1_cross_entropy_loss`` is the form on logits.

    Formula:
        .. math:: L = -\log p_t + \epsilon (1 - p_t)

    Args:
        input: Hidden states.
        linear_weight: Weight of the head.
        target: Class indices.
        linear_bias: Bias of the head.
        epsilon: Weight of the miss probability; any number.
        weight: Class weights, on both terms.
        ignore_index: Label of tokens that count for nothing.
        softcap: Bound k of ``k tanh(z / k)`` on the logits.
        shift: Token i predicts target i + shift.
        sample_weight: Weights of tokens.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.
        backend: As in :func:`linear_cross_entropy`.
        vocab_parallel: As in :func:`linear_cross_entropy`.

    Shape:
        - input: ``(..., D)``; linear_weight: ``(V, D)``; target, sample_weight: ``(...)``.
        - linear_bias, weight: ``(V,)``; normalizer: a number or ``()``.

    Returns:
        ``(...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN as
        in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or reduction is wrong.

    Example:
        >>> import torch
        >>> linear_poly1_cross_entropy_loss(torch.zeros(1, 2), torch.eye(2), torch.tensor([1]))
        tensor(1.1931)

    Source:
        Leng et al.: PolyLoss (ICLR 2022, arXiv 2204.12511), on the head of Cut Your Losses (arXiv 2411.09009).
    """
    rows = head_rows(
        input,
        linear_weight,
        target,
        linear_bias,
        weight=weight,
        ignore_index=ignore_index,
        softcap=softcap,
        shift=shift,
        sample_weight=sample_weight,
        backend=backend,
        vocab_parallel=vocab_parallel,
    )
    row = rows.statistics("log_prob", "log_miss")
    loss = -row["log_prob"] + epsilon * row["log_miss"].exp()
    return rows.reduce(rows.target_weight() * loss, reduction=reduction, normalizer=normalizer)


class LinearPoly1CrossEntropyLoss(HeadObjective):
    """Cross-entropy plus ``epsilon`` times the miss; module form of :func:`linear_poly1_cross_entropy_loss`.

    Example:
        >>> import torch
        >>> LinearPoly1CrossEntropyLoss(epsilon=1.0)(torch.zeros(1, 2), torch.eye(2), torch.tensor([1]))
        tensor(1.1931)
    """

    function = linear_poly1_cross_entropy_loss

    def __init__(
        self,
        epsilon: Tensor | float = 1.0,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        softcap: float | None = None,
        shift: int = 0,
        reduction: Reduction = "mean",
        backend: Backend = "auto",
        vocab_parallel: VocabParallel | None = None,
    ) -> None:
        super().__init__(
            epsilon=epsilon,
            weight=weight,
            ignore_index=ignore_index,
            softcap=softcap,
            shift=shift,
            reduction=reduction,
            backend=backend,
            vocab_parallel=vocab_parallel,
        )


@objective(Kind.HEAD)
def linear_entropy_regularized_cross_entropy_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    *,
    entropy_weight: Tensor | float = 0.1,
    weight: Tensor | None = None,
    label_smoothing: Tensor | float = 0.0,
    ignore_index: int = -100,
    softcap: float | None = None,
    shift: int = 0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    backend: Backend = "auto",
    vocab_parallel: VocabParallel | None = None,
) -> Tensor:
    r"""Cross-entropy that rewards the entropy of the prediction, of a linear head that never stores its logits.

    Reach for it where a language model grows over-confident or loses diversity. A negative ``entropy_weight`` sharpens
    instead.

    Formula:
        .. math:: L = -\log p_t - \beta H(p), \qquad H(p) = -\sum_v p_v \log p_v

    Args:
        input: Hidden states.
        linear_weight: Weight of the head.
        target: Class indices.
        linear_bias: Bias of the head.
        entropy_weight: Weight :math:`\beta` of the entropy; any number.
        weight: Class weights, on both terms.
        label_smoothing: Share of the target spread evenly over the vocabulary, in [0, 1].
        ignore_index: Label of tokens that count for nothing.
        softcap: Bound k of ``k tanh(z / k)`` on the logits.
        shift: Token i predicts target i + shift.
        sample_weight: Weights of tokens.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.
        backend: As in :func:`linear_cross_entropy`.
        vocab_parallel: As in :func:`linear_cross_entropy`.

    Shape:
        - input: ``(..., D)``; linear_weight: ``(V, D)``; target, sample_weight: ``(...)``.
        - linear_bias, weight: ``(V,)``; normalizer: a number or ``()``.

    Returns:
        ``(...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN as
        in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or reduction is wrong.

    Example:
        >>> import torch
        >>> linear_entropy_regularized_cross_entropy_loss(torch.zeros(1, 2), torch.eye(2), torch.tensor([1]))
        tensor(0.6238)

    Source:
        Pereyra, Tucker, Chorowski, Kaiser, Hinton: Regularizing Neural Networks by Penalizing Confident Output
        Distributions (arXiv 1701.06548), on the head of Cut Your Losses (arXiv 2411.09009).
    """
    check_in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    rows = head_rows(
        input,
        linear_weight,
        target,
        linear_bias,
        weight=weight,
        ignore_index=ignore_index,
        softcap=softcap,
        shift=shift,
        sample_weight=sample_weight,
        backend=backend,
        vocab_parallel=vocab_parallel,
    )
    factor = rows.target_weight()
    coefficients: dict[str, Tensor | float] = {
        "log_prob": -(1 - label_smoothing) * factor,
        "entropy": -entropy_weight * factor,
    }
    if isinstance(label_smoothing, Tensor) or label_smoothing:
        coefficients["mean_log_prob" if weight is None else "weighted_mean_log_prob"] = -label_smoothing
    return rows.combine(coefficients, reduction=reduction, normalizer=normalizer)


class LinearEntropyRegularizedCrossEntropyLoss(HeadObjective):
    """Cross-entropy that rewards entropy; module form of :func:`linear_entropy_regularized_cross_entropy_loss`.

    Example:
        >>> import torch
        >>> loss = LinearEntropyRegularizedCrossEntropyLoss(entropy_weight=0.1)
        >>> loss(torch.zeros(1, 2), torch.eye(2), torch.tensor([1]))
        tensor(0.6238)
    """

    function = linear_entropy_regularized_cross_entropy_loss

    def __init__(
        self,
        entropy_weight: Tensor | float = 0.1,
        *,
        weight: Tensor | None = None,
        label_smoothing: Tensor | float = 0.0,
        ignore_index: int = -100,
        softcap: float | None = None,
        shift: int = 0,
        reduction: Reduction = "mean",
        backend: Backend = "auto",
        vocab_parallel: VocabParallel | None = None,
    ) -> None:
        super().__init__(
            entropy_weight=entropy_weight,
            weight=weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            softcap=softcap,
            shift=shift,
            reduction=reduction,
            backend=backend,
            vocab_parallel=vocab_parallel,
        )
