"""Focal loss: cross-entropy in which easy examples fade, for a few objects among very much background."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from lossary.core.checks import check_class_vector, check_in_range
from lossary.core.numerics import exp_scaled, product
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import class_rows, label_entries
from lossary.core.sigmoid import sigmoid_focal, softplus
from lossary.core.types import Reduction

Module = TypeVar("Module", bound=nn.Module)

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@objective(Kind.LABELS)
def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: Tensor | float | None = 0.25,
    gamma: Tensor | float = 2.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Binary cross-entropy in which easy entries fade with a power of their miss probability.

    Reach for it in dense detection and wherever a few positives hide among very many easy negatives; start the last
    layer with :func:`prior_bias_`. Not where classes are about balanced, nor where wrong labels are frequent: it dwells
    on what it cannot fit.

    Formula:
        .. math:: L = -\alpha_t (1 - p_t)^\gamma \log p_t

        with :math:`\alpha_t = \alpha` for positives and :math:`1 - \alpha` for negatives. A soft target y mixes the
        two sides' miss probability, weight and cross-entropy.

    Args:
        input: Logits.
        target: Yes/no targets.
        alpha: Weight of positives in [0, 1], where 0 is a weight of 0; None balances nothing. It falls as ``gamma``
            rises: the paper pairs gamma 0, 0.5, 1, 2, 5 with alpha 0.75, 0.5, 0.25, 0.25, 0.25.
        gamma: Focusing exponent, at least 0.
        sample_weight: Weights of entries or rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of entries. The detector's form is the ``sum`` over all anchors with
            the number of foreground ones; with ``sum`` a smaller divisor counts as 1, for images without objects.

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
        >>> sigmoid_focal_loss(torch.tensor([3.0, -3.0]), torch.tensor([1.0, 1.0]))
        tensor(0.3458)

    Source:
        Lin, Goyal, Girshick, He, Dollár: Focal Loss for Dense Object Detection (ICCV 2017, arXiv 1708.02002),
        equation 5. Where other implementations take a negative ``alpha`` for no balancing, here it is None.
    """
    check_in_range("gamma", gamma, 0.0)
    check_in_range("alpha", 0.0 if alpha is None else alpha, 0.0, 1.0)
    entries = label_entries(input, target, sample_weight=sample_weight)
    loss = entries.evaluate(lambda z, y: sigmoid_focal(z, y, alpha, gamma), alpha, gamma)
    if reduction == "sum" and normalizer is not None:
        normalizer = torch.as_tensor(normalizer).clamp(min=1)
    return entries.reduce(loss, reduction=reduction, normalizer=normalizer)


class SigmoidFocalLoss(Objective):
    """Binary cross-entropy in which easy entries fade; module form of :func:`sigmoid_focal_loss`.

    Example:
        >>> SigmoidFocalLoss()(torch.tensor([3.0, -3.0]), torch.tensor([1.0, 1.0]))
        tensor(0.3458)
    """

    function = sigmoid_focal_loss

    def __init__(
        self,
        alpha: Tensor | float | None = 0.25,
        gamma: Tensor | float = 2.0,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(alpha=alpha, gamma=gamma, reduction=reduction)


@objective(Kind.CLASSES)
def focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: Tensor | float = 2.0,
    alpha: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy in which easy rows fade with a power of their miss probability.

    Reach for it when easy rows swamp hard ones, or when a network trained with cross-entropy is over-confident. Not
    where wrong labels are frequent: it dwells on what it cannot fit.

    Formula:
        .. math:: L = -\alpha_y (1 - p_y)^\gamma \log p_y

        Probability and smoothed targets q average it over the classes:
        :math:`-\sum_k q_k \alpha_k (1 - p_k)^\gamma \log p_k`.

    Args:
        input: Logits.
        target: Class indices or probabilities.
        gamma: Focusing exponent, at least 0.
        alpha: Class coefficients; they scale values and leave the divisor of ``mean`` alone.
        weight: Class weights as in PyTorch.
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
        >>> focal_loss(torch.zeros(1, 2), torch.tensor([1]))
        tensor(0.1733)

    Source:
        Lin, Goyal, Girshick, He, Dollár: Focal Loss for Dense Object Detection (ICCV 2017, arXiv 1708.02002),
        equation 4 for several classes. The paper's :math:`\alpha` is ``alpha``; ``weight`` is PyTorch's.
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
    loss = product(exp_scaled(log_miss, gamma), -log_p)
    if alpha is not None:
        loss = product(rows.per_class(alpha), loss)
    return rows.reduce(rows.expect(loss), reduction=reduction, normalizer=normalizer)


class FocalLoss(Objective):
    """Cross-entropy in which easy rows fade; module form of :func:`focal_loss`.

    Example:
        >>> FocalLoss(gamma=2.0)(torch.zeros(1, 2), torch.tensor([1]))
        tensor(0.1733)
    """

    function = focal_loss

    def __init__(
        self,
        gamma: Tensor | float = 2.0,
        *,
        alpha: Tensor | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            gamma=gamma,
            alpha=alpha,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )


@objective(Kind.LABELS)
def focal_star_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: Tensor | float = 2.0,
    beta: Tensor | float = 1.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Binary cross-entropy of steepened and shifted logits, the paper's alternative form of focal loss.

    Reach for it to see that the exact form does not matter as long as easy entries fade; it trains about as well as
    :func:`sigmoid_focal_loss`, and is convex.

    Formula:
        .. math:: L = -\frac{1}{\gamma} \log \sigma(\gamma x_t + \beta), \quad x_t = (2 y - 1) z

        A soft target y averages the losses of the two sides.

    Args:
        input: Logits.
        target: Yes/no targets.
        gamma: Steepness, above 0.
        beta: Shift, any number. The paper tries ``gamma, beta`` of 2, 1 and of 4, 0.
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
        ValueError: A shape, target, ``gamma`` or reduction is wrong.

    Example:
        >>> focal_star_loss(torch.zeros(2), torch.tensor([1.0, 0.0]))
        tensor(0.1566)

    Source:
        Lin et al.: Focal Loss for Dense Object Detection (ICCV 2017, arXiv 1708.02002), appendix A.
    """
    check_in_range("gamma", gamma, 0.0, low_open=True)
    entries = label_entries(input, target, sample_weight=sample_weight)

    def formula(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        of_yes, miss_yes = softplus(-beta - gamma * z)
        of_no, miss_no = softplus(gamma * z - beta)
        return (product(y, of_yes) + product(1 - y, of_no)) / gamma, (1 - y) * miss_no - y * miss_yes

    loss = entries.evaluate(formula, gamma, beta)
    return entries.reduce(loss, reduction=reduction, normalizer=normalizer)


class FocalStarLoss(Objective):
    """Binary cross-entropy of steepened and shifted logits; module form of :func:`focal_star_loss`.

    Example:
        >>> FocalStarLoss(gamma=4.0, beta=0.0)(torch.zeros(2), torch.tensor([1.0, 0.0]))
        tensor(0.1733)
    """

    function = focal_star_loss

    def __init__(
        self,
        gamma: Tensor | float = 2.0,
        beta: Tensor | float = 1.0,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(gamma=gamma, beta=beta, reduction=reduction)


def prior_bias_(module: Module, prior: float = 0.01) -> Module:
    r"""Set the bias of the last linear or convolutional layer so that every sigmoid starts at ``prior``, in place.

    Reach for it before training yes/no labels of which few are yes: otherwise the first steps are spent, with huge
    losses, on learning that most are no.

    Formula:
        .. math:: b = -\log \frac{1 - \pi}{\pi}

    Args:
        module: The layer, or a module whose last registered linear or convolutional layer makes the logits.
        prior: Probability of a yes at the start, in (0, 1).

    Returns:
        ``module``.

    Raises:
        ValueError: ``prior`` is out of range, or the layer is missing or has no bias.

    Example:
        >>> prior_bias_(torch.nn.Linear(8, 2), prior=0.01).bias.sigmoid()
        tensor([0.0100, 0.0100], grad_fn=<SigmoidBackward0>)

    Source:
        Lin et al.: Focal Loss for Dense Object Detection (ICCV 2017, arXiv 1708.02002), sections 3.3 and 4.1.
    """
    check_in_range("prior", prior, 0.0, 1.0, low_open=True, high_open=True)
    layers = [layer for layer in module.modules() if isinstance(layer, _LINEAR)]
    if not layers or layers[-1].bias is None:
        found = f"{layers[-1]}, without a bias," if layers else "no linear or convolutional layer"
        raise ValueError(f"module has {found} at its end; wanted a layer with a bias, which makes the logits.")
    with torch.no_grad():
        layers[-1].bias.fill_(math.log(prior) - math.log1p(-prior))
    return module
