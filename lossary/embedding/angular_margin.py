"""Angular margins: cross-entropy of cosines between embeddings and class directions, harder for the label."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core.checks import check_class_vector, check_floating, check_in_range
from lossary.core.numerics import safe_norm, safe_sqrt
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import ClassRows, class_rows
from lossary.core.types import Reduction
from lossary.core.values import full_precision, widened


def _with_directions(input: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Five directions in five dimensions for rows of numbers, none of them an axis."""
    weight = torch.eye(5) + torch.linspace(-0.5, 0.4, 25).reshape(5, 5)
    return {"input": input, "target": target, "weight": weight}


@objective(Kind.EMBEDDINGS, arguments=_with_directions)
def arcface_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    *,
    margin: Tensor | float = 0.5,
    scale: Tensor | float = 64.0,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy of scaled cosines in which the label's angle is widened by a margin.

    Reach for it to learn embeddings in which new classes separate too, faces first of all. It wants many classes and
    clean labels; with a large margin it may not start to learn: raise it slowly, or begin with :func:`cosface_loss`.

    Formula:
        .. math:: L = -\log \mathrm{softmax}(z)_y, \quad z_k = s \cos\theta_k, \quad z_y = s \cos(\theta_y + m)

        and, where :math:`\theta_y > \pi - m`, :math:`z_y = s (\cos\theta_y - m \sin m)`, so that it keeps falling.

    Args:
        input: Embeddings; their length does not matter.
        target: Class indices.
        weight: A direction for each class; its length does not matter.
        margin: The m in radians, in [0, pi]: 0.5 is 28.6 degrees.
        scale: The s, positive.
        class_weight: Weights of classes.
        ignore_index: Label of rows that count for nothing.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1].
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, D)`` or ``(D,)``, floating point; weight: ``(C, D)``.
        - target: ``(N,)`` integer. Target and weight may be given in either order: only one of them is integer.
        - margin, scale, normalizer: a number or ``()``; class_weight: ``(C,)``; sample_weight: ``(N,)``.

    Returns:
        ``(N,)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN as in
        PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``margin``, ``scale``, ``label_smoothing`` or reduction is wrong.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> arcface_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([0]), weight, scale=4.0)
        tensor(2.6977)

    Source:
        Deng, Guo, Xue, Zafeiriou: ArcFace: Additive Angular Margin Loss for Deep Face Recognition (CVPR 2019, arXiv
        1801.07698), as in Terven et al. (arXiv 2307.02694), face recognition losses.
    """
    check_in_range("margin", margin, 0.0, math.pi)
    check_in_range("scale", scale, 0.0, low_open=True)
    rows = _cosine_rows(input, target, weight, class_weight, ignore_index, label_smoothing, sample_weight)
    m = torch.as_tensor(margin, dtype=rows.logits.dtype, device=rows.logits.device)
    cosine = rows.at_label(rows.logits)
    widened_angle = cosine * m.cos() - safe_sqrt((1 - cosine.square()).clamp(min=0)) * m.sin()
    with_margin = torch.where(cosine < -m.cos(), cosine - m * m.sin(), widened_angle)
    loss = _cross_entropy(rows, with_margin, scale)
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class ArcFaceLoss(Objective):
    """Scaled cosines with a wider angle for the label; module form of :func:`arcface_loss`.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: As in the function.
        scale: As in the function.
        class_weight: Weights of classes ``(C,)``.
        ignore_index: Label of rows that count for nothing.
        label_smoothing: Share of the target spread evenly over the classes.
        reduction: ``none``, ``mean`` or ``sum``.

    Attributes:
        weight: The directions ``(C, D)``, learnable, normal at the start.

    Example:
        >>> loss = ArcFaceLoss(num_classes=10, embedding_dim=4)
        >>> loss(torch.randn(2, 4), torch.tensor([0, 9])).shape
        torch.Size([])
    """

    function = arcface_loss
    weight: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: Tensor | float = 0.5,
        scale: Tensor | float = 64.0,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            weight=nn.Parameter(torch.randn(num_classes, embedding_dim)),
            margin=margin,
            scale=scale,
            class_weight=class_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )


@objective(Kind.EMBEDDINGS, arguments=_with_directions)
def cosface_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    *,
    margin: Tensor | float = 0.35,
    scale: Tensor | float = 64.0,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy of scaled cosines in which the label's cosine is lowered by a margin.

    Reach for it as :func:`arcface_loss`, from which it differs little; it is simpler and starts to learn more easily.

    Formula:
        .. math:: L = -\log \mathrm{softmax}(z)_y, \quad z_k = s (\cos\theta_k - m [k = y])

    Args:
        input: Embeddings; their length does not matter.
        target: Class indices.
        weight: A direction for each class; its length does not matter.
        margin: The m, in [0, 2].
        scale: The s, positive.
        class_weight: Weights of classes.
        ignore_index: Label of rows that count for nothing.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1].
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, D)`` or ``(D,)``, floating point; weight: ``(C, D)``.
        - target: ``(N,)`` integer. Target and weight may be given in either order: only one of them is integer.
        - margin, scale, normalizer: a number or ``()``; class_weight: ``(C,)``; sample_weight: ``(N,)``.

    Returns:
        ``(N,)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN as in
        PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``margin``, ``scale``, ``label_smoothing`` or reduction is wrong.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> cosface_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([0]), weight, scale=4.0)
        tensor(2.3051)

    Source:
        Wang et al.: CosFace: Large Margin Cosine Loss for Deep Face Recognition (CVPR 2018, arXiv 1801.09414), as in
        Terven et al. (arXiv 2307.02694), face recognition losses.
    """
    check_in_range("margin", margin, 0.0, 2.0)
    check_in_range("scale", scale, 0.0, low_open=True)
    rows = _cosine_rows(input, target, weight, class_weight, ignore_index, label_smoothing, sample_weight)
    loss = _cross_entropy(rows, rows.at_label(rows.logits) - margin, scale)
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class CosFaceLoss(Objective):
    """Scaled cosines less a margin for the label; module form of :func:`cosface_loss`.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: As in the function.
        scale: As in the function.
        class_weight: Weights of classes ``(C,)``.
        ignore_index: Label of rows that count for nothing.
        label_smoothing: Share of the target spread evenly over the classes.
        reduction: ``none``, ``mean`` or ``sum``.

    Attributes:
        weight: The directions ``(C, D)``, learnable, normal at the start.

    Example:
        >>> loss = CosFaceLoss(num_classes=10, embedding_dim=4)
        >>> loss(torch.randn(2, 4), torch.tensor([0, 9])).shape
        torch.Size([])
    """

    function = cosface_loss
    weight: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: Tensor | float = 0.35,
        scale: Tensor | float = 64.0,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            weight=nn.Parameter(torch.randn(num_classes, embedding_dim)),
            margin=margin,
            scale=scale,
            class_weight=class_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )


@objective(Kind.EMBEDDINGS, arguments=_with_directions)
def sphereface_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    *,
    margin: int = 4,
    scale: Tensor | float = 1.0,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy of cosines times the embedding's length, in which the label's angle is multiplied (A-Softmax).

    Reach for it to reproduce older work: :func:`arcface_loss` and :func:`cosface_loss` are easier to train.

    Formula:
        .. math:: L = -\log \mathrm{softmax}(z)_y, \quad z_k = s \|x\| \cos\theta_k, \quad
            z_y = s \|x\| \big( (-1)^j \cos(m \theta_y) - 2 j \big), \quad j = \lfloor m \theta_y / \pi \rfloor

    Args:
        input: Embeddings; their length counts.
        target: Class indices.
        weight: A direction for each class; its length does not matter.
        margin: The m, a whole number of at least 1.
        scale: The s, positive.
        class_weight: Weights of classes.
        ignore_index: Label of rows that count for nothing.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1].
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, D)`` or ``(D,)``, floating point; weight: ``(C, D)``.
        - target: ``(N,)`` integer. Target and weight may be given in either order: only one of them is integer.
        - scale, normalizer: a number or ``()``; class_weight: ``(C,)``; sample_weight: ``(N,)``.

    Returns:
        ``(N,)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN as in
        PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``margin``, ``scale``, ``label_smoothing`` or reduction is wrong.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> sphereface_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([0]), weight, margin=2)
        tensor(5.4045)

    Source:
        Liu et al.: SphereFace: Deep Hypersphere Embedding for Face Recognition (CVPR 2017, arXiv 1704.08063), as in
        Terven et al. (arXiv 2307.02694), face recognition losses.
    """
    check_in_range("scale", scale, 0.0, low_open=True)
    if margin < 1 or margin != int(margin):
        raise ValueError(f"margin is {margin!r}; wanted a whole number of at least 1.")
    rows = _cosine_rows(input, target, weight, class_weight, ignore_index, label_smoothing, sample_weight)
    cosine = rows.at_label(rows.logits)
    fold = torch.floor(int(margin) * torch.acos(cosine.detach().clamp(-1, 1)) / math.pi)
    with_margin = (1 - 2 * (fold % 2)) * _cosine_of_multiple(cosine, int(margin)) - 2 * fold
    (embedding,) = widened(input=input)
    length = safe_norm(torch.where(_kept(rows), embedding, 0.0), -1).unsqueeze(-1)
    loss = _cross_entropy(rows, with_margin, scale * length)
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class SphereFaceLoss(Objective):
    """Cosines with a multiple of the label's angle; module form of :func:`sphereface_loss`.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: As in the function.
        scale: As in the function.
        class_weight: Weights of classes ``(C,)``.
        ignore_index: Label of rows that count for nothing.
        label_smoothing: Share of the target spread evenly over the classes.
        reduction: ``none``, ``mean`` or ``sum``.

    Attributes:
        weight: The directions ``(C, D)``, learnable, normal at the start.

    Example:
        >>> loss = SphereFaceLoss(num_classes=10, embedding_dim=4)
        >>> loss(torch.randn(2, 4), torch.tensor([0, 9])).shape
        torch.Size([])
    """

    function = sphereface_loss
    weight: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: int = 4,
        scale: Tensor | float = 1.0,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            weight=nn.Parameter(torch.randn(num_classes, embedding_dim)),
            margin=margin,
            scale=scale,
            class_weight=class_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )


def _cosine_rows(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: Tensor | float,
    sample_weight: Tensor | None,
) -> ClassRows:
    """Rows whose logits are the cosines between embeddings and class directions."""
    if isinstance(target, Tensor) and isinstance(weight, Tensor) and target.is_floating_point():
        target, weight = weight, target  # both orders are in use
    for name, tensor in (("target", target), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is {type(tensor).__name__}; wanted a tensor.")
    check_floating("weight", weight)
    input, weight = widened(input=input, weight=weight)
    if input.ndim not in (1, 2):
        raise ValueError(f"input has shape {tuple(input.shape)}; wanted (N, D) or (D,).")
    if weight.ndim != 2 or weight.shape[1] != input.shape[-1]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; wanted (C, {input.shape[-1]}), a direction a class.")
    if target.shape != input.shape[:-1]:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; wanted {tuple(input.shape[:-1])}, a class index a row."
        )
    check_class_vector("class_weight", class_weight, weight.shape[0])
    input = torch.where((target != ignore_index).unsqueeze(-1), input, 0.0)  # before its NaN can reach the directions
    with full_precision(input):
        cosine = F.linear(_direction(input), _direction(weight))
    return class_rows(
        cosine,
        target,
        weight=class_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
        index_only=True,
    )


def _direction(x: Tensor) -> Tensor:
    """Vectors of length 1; 0 stays 0, with a slope of 1 there, where that of ``F.normalize`` is 1e12."""
    length = safe_norm(x, -1).unsqueeze(-1)
    return x / torch.where(length == 0, 1.0, length)


def _kept(rows: ClassRows) -> Tensor:
    return rows.kept().unsqueeze(-1)


def _cross_entropy(rows: ClassRows, with_margin: Tensor, scale: Tensor | float) -> Tensor:
    """Cross-entropy of scaled cosines, the label's replaced."""
    cosines = torch.where(rows.is_label(), with_margin.unsqueeze(rows.dim), rows.logits)
    return rows.expect(-rows.on_support(F.log_softmax(scale * cosines, rows.dim)))


def _cosine_of_multiple(cosine: Tensor, times: int) -> Tensor:
    """Cosine of a multiple of the angle, by Chebyshev's recurrence: no arc cosine, whose slope is infinite at 1."""
    before, now = torch.ones_like(cosine), cosine
    for _ in range(times - 1):
        before, now = now, 2 * cosine * now - before
    return now
