"""Calibration that aims at being right: confidence falls where the prediction is wrong and rises where it is right."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core import checks
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import class_rows, widen
from lossary.core.types import Reduction


@objective(
    Kind.CLASSES,
    exempt={
        "accumulation_and_ranks_equal_one_batch": "balanced weights come from the batch's own accuracy; with accuracy "
        "given, shards add up (tested)"
    },
)
def correctness_aware_loss(
    input: Tensor,
    target: Tensor,
    *,
    balanced: bool = True,
    norm: Literal["l2", "l1"] = "l2",
    accuracy: Tensor | float | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Gap between the confidence of the prediction and whether it is right.

    Reach for it to train a calibrator (:class:`CorrectnessAwareCalibrator`) on the logits of a frozen classifier:
    cross-entropy would raise the true class even where another one is predicted. It is no loss to train a classifier
    with: nothing tells it which class is right. Balanced, right and wrong predictions count alike, and so confidences
    on a test set with the same high accuracy come out too low; meant for test sets that are harder than the
    calibration set.

    Formula:
        .. math:: L = b\,(s - c)^2, \quad s = \max_k p_k, \quad c = [\hat y = y]

        or :math:`b\,|s - c|`. Balanced, with the batch's accuracy a,
        :math:`b = (1 - a) / (2 a (1 - a))` for right and :math:`a / (2 a (1 - a))` for wrong predictions (mean 1; all
        1 where the batch has none of one kind), else 1.

    Args:
        input: Calibrated logits. A positive temperature does not change which class is predicted.
        target: Class indices.
        balanced: Whether right and wrong predictions count alike.
        norm: ``l2`` squares the gap, ``l1`` takes its absolute value; the latter's mean is never below the expected
            calibration error, whatever the bins.
        accuracy: Accuracy to balance by, in place of the batch's: for gradient accumulation and many ranks, which
            are otherwise balanced one by one.
        weight: Class weights, by the label.
        ignore_index: Label of rows that count for nothing, in the accuracy too.
        sample_weight: Weights of rows, in the accuracy too.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point.
        - target: ``(N, ...)`` integer.
        - weight: ``(C,)``; sample_weight: ``(N, ...)``; accuracy, normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``norm``, ``accuracy`` or reduction is wrong.

    Example:
        >>> input = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> correctness_aware_loss(input, torch.tensor([0, 0, 0]))
        tensor(0.2889)

    Source:
        Liu, Wang, Zou, Zou, Zheng: Optimizing Calibration by Gaining Aware of Prediction Correctness (arXiv
        2404.13016); the balanced weights are its public code's, which has no value for a batch without right or
        without wrong predictions.
    """
    if norm not in ("l2", "l1"):
        raise ValueError(f"norm is {norm!r}; wanted 'l2' or 'l1'.")
    checks.check_in_range("accuracy", 0.0 if accuracy is None else accuracy, 0.0, 1.0)
    rows = class_rows(
        input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight, index_only=True
    )
    predicted = rows.logits.detach().argmax(rows.dim)
    log_s = rows.log_p_of(predicted.unsqueeze(rows.dim))
    assert rows.index is not None
    correct = predicted.eq(rows.index)
    gap = log_s.exp() - correct.to(log_s.dtype)
    loss = gap.square() if norm == "l2" else gap.abs()
    if balanced:
        a = rows.mean(correct.to(log_s.dtype)) if accuracy is None else accuracy
        a = torch.as_tensor(a, dtype=log_s.dtype, device=log_s.device)
        one_kind = (a == 0) | (a == 1)
        a = torch.where(one_kind, 0.5, a)  # weights of 1
        loss = loss * torch.where(correct, 1 - a, a) / (2 * a * (1 - a))
    return rows.reduce(rows.label_weight() * loss, reduction=reduction, normalizer=normalizer)


class CorrectnessAwareLoss(Objective):
    """Gap between confidence and being right; module form of :func:`correctness_aware_loss`.

    Example:
        >>> input = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> CorrectnessAwareLoss(balanced=False, norm="l1")(input, torch.tensor([0, 0, 0]))
        tensor(0.3731)
    """

    function = correctness_aware_loss

    def __init__(
        self,
        balanced: bool = True,
        norm: Literal["l2", "l1"] = "l2",
        *,
        accuracy: Tensor | float | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            balanced=balanced,
            norm=norm,
            accuracy=accuracy,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )


def transform_agreement_features(
    logits: Tensor, transformed_logits: Tensor | Sequence[Tensor], *, k: int = 4
) -> Tensor:
    """Probabilities that a classifier gives, on transformed copies of a sample, to the classes it found likeliest.

    Where the copies agree with the original the prediction is probably right. The original's own probabilities are
    not among them.

    Args:
        logits: Logits of the samples.
        transformed_logits: Logits of their T transformed copies, stacked on dim 1 or as a list.
        k: How many of the original's likeliest classes; at most C.

    Shape:
        - logits: ``(N, C)``; transformed_logits: ``(N, T, C)``, or T tensors ``(N, C)``.

    Returns:
        ``(N, T * k)``: for each copy in turn the probabilities of the k classes, likeliest (by the original) first.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or ``k`` is wrong.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 1.0]])
        >>> transform_agreement_features(logits, [logits, torch.zeros(1, 3)], k=2)
        tensor([[0.6652, 0.2447, 0.3333, 0.3333]])

    Source:
        Liu et al. (arXiv 2404.13016), with three transforms and k = 4.
    """
    checks.check_floating("logits", logits)
    if not isinstance(transformed_logits, Tensor) and len(transformed_logits) == 0:
        raise ValueError("transformed_logits is empty; wanted the logits of at least one transformed copy.")
    copies = transformed_logits if isinstance(transformed_logits, Tensor) else torch.stack(list(transformed_logits), 1)
    checks.check_floating("transformed_logits", copies)
    if logits.ndim != 2:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; wanted (N, C).")
    checks.check_in_range("k", k, 1, logits.shape[1])
    if copies.ndim != 3:
        raise ValueError(f"transformed_logits has shape {tuple(copies.shape)}; wanted (N, T, C).")
    wanted = (len(logits), copies.shape[1], logits.shape[1])
    checks.check_shape("transformed_logits", copies, wanted, "the logits of each transformed copy")
    top = logits.topk(k, 1).indices[:, None].expand(-1, copies.shape[1], -1)
    return widen(copies).softmax(2).gather(2, top).flatten(1)


class CorrectnessAwareCalibrator(nn.Module):
    r"""A temperature for each sample, from features that tell whether its prediction is right.

    Reach for it where test data are harder than the calibration data (other cameras, other styles) and one temperature
    leaves the model over-confident there. Which class is predicted never changes.

    Formula:
        .. math:: z / T, \quad T = \mathrm{clamp}(w_2 \cdot \mathrm{relu}(W_1 f + b_1) + b_2,\ T_{min},\ T_{max})

    Args:
        num_features: Number of features F; those of :func:`transform_agreement_features` are T * k.
        hidden: Hidden units.
        min_temperature: Lowest temperature, positive.
        max_temperature: Highest temperature.
        init_temperature: Where temperatures start. None starts as the original code does, near 0 and so often below
            ``min_temperature``, where the gradient vanishes; :meth:`fit` warns where that has happened.

    Shape:
        - logits: ``(N, C)``; features: ``(N, F)``; output: ``(N, C)``.

    Example:
        >>> calibrator = CorrectnessAwareCalibrator(2, init_temperature=1.0)
        >>> logits, features = torch.randn(8, 3), torch.rand(8, 2)
        >>> calibrator = calibrator.fit(logits, features, torch.randint(3, (8,)))
        >>> calibrator(logits, features).shape
        torch.Size([8, 3])

    Source:
        Liu et al. (arXiv 2404.13016) and its public code, without the branch there that no gradient reaches.
    """

    def __init__(
        self,
        num_features: int,
        hidden: int = 5,
        min_temperature: float = 0.1,
        max_temperature: float = 10.0,
        *,
        init_temperature: float | None = None,
    ) -> None:
        super().__init__()
        checks.check_in_range("min_temperature", min_temperature, 0.0, low_open=True)
        checks.check_in_range("max_temperature", max_temperature, min_temperature)
        self.min_temperature = min_temperature
        self.max_temperature = max_temperature
        self.hidden = nn.Linear(num_features, hidden)
        self.temperature = nn.Linear(hidden, 1)
        if init_temperature is not None:
            checks.check_in_range("init_temperature", init_temperature, min_temperature, max_temperature)
            nn.init.constant_(self.temperature.bias, init_temperature)

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """Calibrated logits ``(N, C)``.

        Args:
            logits: Logits of the frozen classifier ``(N, C)``.
            features: Features of the same samples ``(N, F)``.
        """
        self._check_rows(logits, features)
        return logits / self.temperature_of(features).unsqueeze(1)

    def temperature_of(self, features: Tensor) -> Tensor:
        """The temperature of each sample ``(N,)``.

        Args:
            features: ``(N, F)``.
        """
        return self._unclamped(features).clamp(self.min_temperature, self.max_temperature)

    def fit(
        self,
        logits: Tensor,
        features: Tensor,
        target: Tensor,
        *,
        epochs: int = 10,
        lr: float = 1e-4,
        batch_size: int = 1000,
        balanced: bool = True,
        norm: Literal["l2", "l1"] = "l2",
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Fit to samples that the classifier was not trained on, with Adam in shuffled batches.

        Args:
            logits: Logits of the frozen classifier ``(N, C)``.
            features: Features of the same samples ``(N, F)``.
            target: Labels ``(N,)``.
            epochs: Passes over the samples.
            lr: Learning rate.
            batch_size: Samples in a batch.
            balanced: See :func:`correctness_aware_loss`.
            norm: See :func:`correctness_aware_loss`.
            loss: What to minimise in its place, called with calibrated logits and labels; for comparisons.
            generator: Source of randomness of the shuffling.

        Returns:
            Itself.
        """
        checks.check_in_range("batch_size", batch_size, 1)
        self._check_rows(logits, features)
        checks.check_shape("target", target, logits.shape[:1], "a label for each row of logits")
        loss = loss or CorrectnessAwareLoss(balanced, norm)
        logits, features = logits.detach(), features.detach()
        self._warn_where_nothing_moves(features)
        optimizer = torch.optim.Adam(self.parameters(), lr)
        for _ in range(epochs):
            order = torch.randperm(len(logits), generator=generator).to(logits.device)
            for rows in torch.split(order, batch_size):
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss(self(logits[rows], features[rows]), target[rows]))
                optimizer.step()
        return self

    def _check_rows(self, logits: Tensor, features: Tensor) -> None:
        wanted = (len(logits), self.hidden.in_features)
        checks.check_shape("features", features, wanted, "num_features numbers for each row of logits")

    def _unclamped(self, features: Tensor) -> Tensor:
        features = features.to(self.hidden.weight.dtype)
        found: Tensor = self.temperature(self.hidden(features).relu()).squeeze(1)
        return found

    def _warn_where_nothing_moves(self, features: Tensor) -> None:
        with torch.no_grad():
            free = self._unclamped(features)
        outside = ((free < self.min_temperature) | (free > self.max_temperature)).double().mean().item()
        if outside > 0.5:
            warnings.warn(
                f"{outside:.0%} of the temperatures start outside [{self.min_temperature:g}, {self.max_temperature:g}],"
                " where they have no gradient; build the calibrator with init_temperature=1.0.",
                stacklevel=3,
            )


def image_transforms(
    k: int = 3, *, max_angle: float = 10.0, jitter: float = 0.4, generator: torch.Generator | None = None
) -> list[Callable[[Tensor], Tensor]]:
    """Transforms of images for :func:`transform_agreement_features`: rotation, greyscale, colour jitter.

    Reach for others where these say nothing: a transform should leave easy images alone and trip up doubtful ones.

    Args:
        k: How many of the three, in this order.
        max_angle: Largest rotation in degrees; each image has its own.
        jitter: Brightness, contrast and saturation are multiplied by numbers in [1 - jitter, 1 + jitter], each image's
            own.
        generator: Source of randomness.

    Returns:
        Functions from images ``(N, 3, H, W)`` or ``(N, 1, H, W)`` in [0, 1] to images of the same shape in [0, 1].

    Raises:
        ValueError: ``k``, ``max_angle`` or ``jitter`` is out of range.

    Example:
        >>> images = torch.rand(2, 3, 8, 8)
        >>> [transform(images).shape == images.shape for transform in image_transforms()]
        [True, True, True]

    Source:
        Liu et al. (arXiv 2404.13016) name the three kinds; how far each goes is a choice made here.
    """
    checks.check_in_range("k", k, 1, 3)
    checks.check_in_range("max_angle", max_angle, 0.0, 180.0)
    checks.check_in_range("jitter", jitter, 0.0, 1.0)

    def uniform(images: Tensor, low: float, high: float) -> Tensor:
        draws = torch.rand(len(images), generator=generator, dtype=images.dtype, device=images.device)
        return (low + (high - low) * draws).view(-1, 1, 1, 1)

    def rotate(images: Tensor) -> Tensor:
        angle = uniform(images, -max_angle, max_angle).view(-1) * math.pi / 180
        stretch = images.shape[2] / images.shape[3]
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        rows = [torch.stack([cos, -sin * stretch, zero], 1), torch.stack([sin / stretch, cos, zero], 1)]
        grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    def change_colours(images: Tensor) -> Tensor:
        images = images * uniform(images, 1 - jitter, 1 + jitter)
        centre = _grey(images).mean((1, 2, 3), keepdim=True)
        images = centre + (images - centre) * uniform(images, 1 - jitter, 1 + jitter)
        grey = _grey(images)
        return (grey + (images - grey) * uniform(images, 1 - jitter, 1 + jitter)).clamp(0, 1)

    def remove_colours(images: Tensor) -> Tensor:
        return _grey(images).expand_as(images)

    transforms: list[Callable[[Tensor], Tensor]] = [rotate, remove_colours, change_colours]
    return transforms[:k]


def _grey(images: Tensor) -> Tensor:
    """Luma ``(N, 1, H, W)``."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(images.shape)}; wanted (N, 3, H, W) or (N, 1, H, W).")
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
