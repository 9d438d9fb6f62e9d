"""Depth and disparity from single images: losses with and without ground truth, and the usual measures."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.checks import check_floating, check_in_range, check_shape
from lossary.core.objective import Kind, Objective, objective
from lossary.core.types import Reduction
from lossary.core.values import like_first, reduce_values, widened


@objective(Kind.IMAGES, example=lambda num_classes: {"per_image": True})
def scale_invariant_log_loss(
    input: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    lam: Tensor | float = 0.5,
    per_image: bool = False,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Mean squared error of log depth that forgives a common factor.

    Reach for it where depth is known up to scale, or where its scale is the hardest part to get right. Later networks
    take its square root times 10 with ``lam=0.85``.

    Formula:
        .. math:: L = \frac{1}{n} \sum_i d_i^2 - \lambda \Big( \frac{1}{n} \sum_i d_i \Big)^2, \quad
            d_i = \log x_i - \log y_i

        over the n pixels that are valid.

    Args:
        input: Predicted depths.
        target: True depths.
        mask: Where the truth is known; pixels with a depth of 0 or less, predicted or true, never count.
        lam: How much of a common factor is forgiven, in [0, 1]: all of it with 1.
        per_image: Whether each image has its own mean and value; by default all valid pixels are one set.
        sample_weight: Weights of images, with ``per_image``.
        reduction: ``none``, ``mean`` or ``sum`` over images, with ``per_image``.
        normalizer: Divisor in place of the number of images.

    Shape:
        - input, target: the same, any shape (``(N, ...)`` with ``per_image``), floating point.
        - mask: as input, bool; lam: a number or ``()``; sample_weight: ``(N,)``; normalizer: a number or ``()``.

    Returns:
        ``()``, or ``(N,)`` for ``none`` with ``per_image``; float32 for half-precision input. 0 where no pixel is
        valid. Without images ``mean`` is NaN, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, ``lam`` or reduction is wrong, or ``sample_weight`` comes without ``per_image``.

    Example:
        >>> depth = torch.tensor([[1.0, 2.0, 4.0]])
        >>> scale_invariant_log_loss(3 * depth, depth, lam=1.0).abs() < 1e-6
        tensor(True)
        >>> scale_invariant_log_loss(3 * depth, depth, lam=0.0)
        tensor(1.2069)

    Source:
        Terven et al.: Loss Functions and Metrics in Deep Learning (arXiv 2307.02694), depth estimation losses; Eigen,
        Puhrsch, Fergus: Depth Map Prediction from a Single Image (NeurIPS 2014, arXiv 1406.2283), equation 4.
    """
    check_in_range("lam", lam, 0.0, 1.0)
    input, target = like_first("a depth for each pixel", input=input, target=target)
    if not per_image:
        if sample_weight is not None:
            raise ValueError("sample_weight came with per_image=False; wanted per_image=True, one weight an image.")
        input, target = input.unsqueeze(0), target.unsqueeze(0)
        mask = None if mask is None else mask.unsqueeze(0)
    invalid = (input <= 0) | (target <= 0)
    if mask is not None:
        check_shape("mask", mask, input.shape, "True where the depth is known")
        invalid = invalid | ~mask.bool()
    d = torch.where(invalid, 0.0, torch.where(invalid, 1.0, input).log() - torch.where(invalid, 1.0, target).log())
    d, count = d.flatten(1), (~invalid).flatten(1).sum(1).clamp(min=1)
    loss = d.square().sum(1) / count - lam * (d.sum(1) / count).square()
    loss = loss if per_image else loss.squeeze(0)
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class ScaleInvariantLogLoss(Objective):
    """Mean squared error of log depth that forgives a factor; module form of :func:`scale_invariant_log_loss`.

    Example:
        >>> ScaleInvariantLogLoss(lam=0.0)(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
        tensor(1.2069)
    """

    function = scale_invariant_log_loss

    def __init__(self, lam: Tensor | float = 0.5, *, per_image: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__(lam=lam, per_image=per_image, reduction=reduction)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            input: Predicted depths.
            target: True depths.
            mask: Where the truth is known.
            sample_weight: Weights of images, with ``per_image``.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return scale_invariant_log_loss(
            input, target, mask=mask, sample_weight=sample_weight, normalizer=normalizer, **self.hyperparameters()
        )


@objective(Kind.IMAGES, arguments=lambda input, target: {"input": input[:, :1], "image": target})
def disparity_smoothness_loss(
    input: Tensor,
    image: Tensor,
    *,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Differences of neighbouring disparities, forgiven where the image has an edge.

    Reach for it beside a photometric loss, which says nothing where the image has no texture. Divide disparities by
    their mean first, or a network shrinks them to be smooth.

    Formula:
        .. math:: L = \overline{|\partial_x D| e^{-\overline{|\partial_x I|}}}
            + \overline{|\partial_y D| e^{-\overline{|\partial_y I|}}}

        The inner mean is over the image's channels, the outer over pixels.

    Args:
        input: Disparities, or inverse depths.
        image: The image that they belong to.
        sample_weight: Weights of images.
        reduction: ``none``, ``mean`` or ``sum`` over images.
        normalizer: Divisor in place of the number of images.

    Shape:
        - input: ``(N, 1, H, W)``; image: ``(N, C, H, W)``; floating point, H and W at least 2.
        - sample_weight: ``(N,)``; normalizer: a number or ``()``.

    Returns:
        ``(N,)`` for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or reduction is wrong.

    Example:
        >>> disparity = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
        >>> disparity_smoothness_loss(disparity, torch.zeros(1, 3, 2, 2))
        tensor(1.)
        >>> disparity_smoothness_loss(disparity, disparity)
        tensor(0.3679)

    Source:
        Terven et al. (arXiv 2307.02694), depth estimation losses; Godard, Mac Aodha, Brostow: Unsupervised Monocular
        Depth Estimation with Left-Right Consistency (CVPR 2017, arXiv 1609.03677), equation 3.
    """
    input, image = widened(input=input, image=image)
    if input.ndim != 4 or input.shape[1] != 1 or min(input.shape[2:]) < 2:
        raise ValueError(f"input has shape {tuple(input.shape)}; wanted (N, 1, H, W), H and W at least 2.")
    _check_pixels("image", image, input)
    loss = torch.zeros((), dtype=input.dtype, device=input.device)
    for axis in (2, 3):
        edge = torch.exp(-image.diff(dim=axis).abs().mean(1, keepdim=True))
        loss = loss + (input.diff(dim=axis).abs() * edge).flatten(1).mean(1)
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class DisparitySmoothnessLoss(Objective):
    """Differences of neighbouring disparities; module form of :func:`disparity_smoothness_loss`.

    Example:
        >>> DisparitySmoothnessLoss()(torch.ones(1, 1, 4, 4), torch.zeros(1, 3, 4, 4))
        tensor(0.)
    """

    function = disparity_smoothness_loss

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(
        self,
        input: Tensor,
        image: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            input: Disparities ``(N, 1, H, W)``.
            image: The image ``(N, C, H, W)``.
            sample_weight: Weights of images.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return disparity_smoothness_loss(
            input, image, sample_weight=sample_weight, normalizer=normalizer, **self.hyperparameters()
        )


@objective(Kind.IMAGES)
def photometric_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: Tensor | float = 0.85,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""How much two images differ: structural dissimilarity of 3 x 3 windows mixed with absolute difference.

    Reach for it to compare an image with one that is warped or rendered to match it. Take the pixels' losses
    (``reduction="none"``) to keep the best of several views. Values are to lie in [0, 1]: the constants of SSIM say so.

    Formula:
        .. math:: L = \alpha \frac{1 - \mathrm{SSIM}(x, y)}{2} + (1 - \alpha) |x - y|

        averaged over channels, the first term cut to [0, 1].

    Args:
        input: Reconstructed images.
        target: Real images.
        alpha: Share of structural dissimilarity, in [0, 1].
        sample_weight: Weights of pixels or images.
        reduction: ``none``, ``mean`` or ``sum`` over pixels.
        normalizer: Divisor in place of the number of pixels.

    Shape:
        - input, target: ``(N, C, H, W)``, floating point, H and W at least 2.
        - alpha: a number or ``()``; sample_weight: ``(N, H, W)`` or ``(N,)``; normalizer: a number or ``()``.

    Returns:
        ``(N, H, W)`` for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, ``alpha`` or reduction is wrong.

    Example:
        >>> photometric_loss(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4))
        tensor(0.5750)

    Source:
        Terven et al. (arXiv 2307.02694), depth estimation losses; Godard et al. (CVPR 2017, arXiv 1609.03677), equation
        2. Windows reflect at the border, as in the authors' later code.
    """
    check_in_range("alpha", alpha, 0.0, 1.0)
    input, target = like_first("an image for each image", input=input, target=target)
    if input.ndim != 4 or min(input.shape[2:]) < 2:
        raise ValueError(f"input has shape {tuple(input.shape)}; wanted (N, C, H, W), H and W at least 2.")
    dissimilarity = ((1 - _ssim(input, target)) / 2).clamp(0, 1)
    loss = (alpha * dissimilarity + (1 - alpha) * (input - target).abs()).mean(1)
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class PhotometricLoss(Objective):
    """Structural dissimilarity mixed with absolute difference; module form of :func:`photometric_loss`.

    Example:
        >>> PhotometricLoss()(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4))
        tensor(0.5750)
    """

    function = photometric_loss

    def __init__(self, alpha: Tensor | float = 0.85, *, reduction: Reduction = "mean") -> None:
        super().__init__(alpha=alpha, reduction=reduction)


def _sides(input: Tensor, target: Any) -> dict[str, Any]:
    return {"left": input[:, :1], "right": target[:, :1]}


@objective(Kind.IMAGES, arguments=_sides)
def left_right_consistency_loss(
    left: Tensor,
    right: Tensor,
    *,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Whether the left view's disparities agree with the right view's where they point to.

    Reach for it where a network predicts both from one image of a stereo pair. It is one direction: add it with the
    views mirrored for the other.

    Formula:
        .. math:: L = |d_l(x) - d_r(x - d_l(x))|

        between pixels by linear interpolation, beyond the border by the border's value.

    Args:
        left: Disparities of the left view, in pixels. Multiply by the width what is a fraction of it.
        right: Disparities of the right view, in pixels.
        sample_weight: Weights of pixels or images.
        reduction: ``none``, ``mean`` or ``sum`` over pixels.
        normalizer: Divisor in place of the number of pixels.

    Shape:
        - left, right: ``(N, 1, H, W)``, floating point.
        - sample_weight: ``(N, H, W)`` or ``(N,)``; normalizer: a number or ``()``.

    Returns:
        ``(N, H, W)`` for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or reduction is wrong.

    Example:
        >>> left = torch.tensor([[[[0.0, 1.0, 1.0]]]])
        >>> right = torch.tensor([[[[0.5, 1.0, 0.0]]]])
        >>> left_right_consistency_loss(left, right, reduction="none")
        tensor([[[0.5000, 0.5000, 0.0000]]])

    Source:
        Terven et al. (arXiv 2307.02694), depth estimation losses; Godard et al. (CVPR 2017, arXiv 1609.03677), equation
        4.
    """
    left, right = like_first("a disparity for each pixel", left=left, right=right)
    if left.ndim != 4 or left.shape[1] != 1:
        raise ValueError(f"left has shape {tuple(left.shape)}; wanted (N, 1, H, W).")
    d_left, d_right = left.squeeze(1), right.squeeze(1)
    width = left.shape[-1]
    place = (torch.arange(width, dtype=left.dtype, device=left.device) - d_left).clamp(0, width - 1)
    before = place.detach().nan_to_num().floor().clamp(0, max(width - 2, 0))
    after = (before + 1).clamp(max=width - 1)
    near, far = (d_right.gather(-1, index.long()) for index in (before, after))
    loss = (d_left - (near + (place - before) * (far - near))).abs()
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class LeftRightConsistencyLoss(Objective):
    """Whether two views' disparities agree; module form of :func:`left_right_consistency_loss`.

    Example:
        >>> LeftRightConsistencyLoss()(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4))
        tensor(0.)
    """

    function = left_right_consistency_loss

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(
        self,
        left: Tensor,
        right: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            left: Disparities of the left view ``(N, 1, H, W)``.
            right: Disparities of the right view ``(N, 1, H, W)``.
            sample_weight: Weights of pixels or images.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return left_right_consistency_loss(
            left, right, sample_weight=sample_weight, normalizer=normalizer, **self.hyperparameters()
        )


def depth_metrics(input: Tensor, target: Tensor, *, mask: Tensor | None = None) -> dict[str, Tensor]:
    r"""The seven usual measures of predicted depth, over all pixels whose depth is known.

    Formula:
        ``abs_rel`` :math:`\overline{|x - y| / y}`, ``sq_rel`` :math:`\overline{(x - y)^2 / y}`, ``rmse``, ``rmse_log``
        (of log depths), and ``delta1`` to ``delta3``, the share with :math:`\max(x / y, y / x) < 1.25^i`.

    Args:
        input: Predicted depths.
        target: True depths in the same shape; those of 0 or less are unknown.
        mask: Where the truth is known, in the same shape.

    Returns:
        Each measure by name, ``()``. A prediction of 0 or less is wrong in ``delta1`` to ``delta3`` and makes
        ``rmse_log`` infinite or NaN. All are NaN where no depth is known.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape is wrong.

    Example:
        >>> scores = depth_metrics(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0]))
        >>> scores["abs_rel"], scores["delta1"]
        (tensor(0.2500), tensor(0.5000))

    Source:
        Terven et al. (arXiv 2307.02694), depth estimation metrics; Eigen et al. (NeurIPS 2014, arXiv 1406.2283).
    """
    input, target = like_first("a depth for each pixel", input=input, target=target)
    known = target > 0
    if mask is not None:
        check_shape("mask", mask, input.shape, "True where the depth is known")
        known = known & mask.bool()
    x, y = torch.where(known, input, 1.0), torch.where(known, target, 1.0)
    count = known.sum()

    def mean(values: Tensor) -> Tensor:
        return torch.where(known, values, 0.0).sum() / count

    ratio = torch.where(x <= 0, torch.inf, torch.maximum(x / y, y / x))
    return {
        "abs_rel": mean((x - y).abs() / y),
        "sq_rel": mean((x - y).square() / y),
        "rmse": mean((x - y).square()).sqrt(),
        "rmse_log": mean((x.log() - y.log()).square()).sqrt(),
        **{f"delta{i}": mean((ratio < 1.25**i).to(x.dtype)) for i in (1, 2, 3)},
    }


def _check_pixels(name: str, tensor: Tensor, input: Tensor) -> None:
    check_floating(name, tensor)
    if tensor.ndim != 4 or tensor.shape[0] != input.shape[0] or tensor.shape[2:] != input.shape[2:]:
        n, _, h, w = input.shape
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; wanted ({n}, C, {h}, {w}): input's images and pixels."
        )


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of 3 x 3 windows around each pixel, for values in [0, 1]."""

    def windows(values: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(values, (1, 1, 1, 1), mode="reflect"), 3, stride=1)

    mean_x, mean_y = windows(x), windows(y)
    variance_x = (windows(x * x) - mean_x.square()).clamp(min=0)
    variance_y = (windows(y * y) - mean_y.square()).clamp(min=0)
    covariance = windows(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return likeness / ((mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2))
