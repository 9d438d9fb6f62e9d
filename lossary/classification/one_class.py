"""One-class learning in the Poincare ball (Hyp-OC): genuine samples against pseudo-negatives drawn around them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.classification.hyperbolic import HyperbolicMLR, ToPoincare, _separation
from lossary.core.checks import check_floating, check_in_range, check_normalizer, check_reduction, check_shape
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import widen
from lossary.core.types import Reduction

_PAIRED = "the first half of the rows is paired with the second; what remains is tested by hand"


@objective(
    Kind.POINTS,
    exempt=dict.fromkeys(
        (
            "infinite_logits",
            "nan_stays_visible",
            "grad_and_vmap_over_data",
            "sample_weight_repeats_rows",
            "accumulation_and_ranks_equal_one_batch",
        ),
        _PAIRED,
    ),
)
def hyperbolic_pairwise_confusion_loss(
    input: Tensor,
    *,
    c: Tensor | float = 0.1,
    arc: Literal["artanh", "arctan"] = "artanh",
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Hyperbolic distance between the rows of the first half of a batch and those of the second (Hyp-PC).

    Reach for it to draw samples of one class together, beside a loss that keeps them from the rest. Alone it collapses
    them to a point.

    Formula:
        .. math:: L = \frac{1}{N} \sum_{i \le N/2} d(x_i, x_{i + N/2})

        Each of the N rows carries half of its pair's distance.

    Args:
        input: Points of the ball, an even number.
        c: Curvature, positive.
        arc: ``artanh`` is the hyperbolic distance; ``arctan`` in its place is what the public code computes.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of rows.

    Shape:
        - input: ``(N, D)``, floating point, N even, :math:`c |x|^2 < 1`.
        - normalizer: a number or ``()``.

    Returns:
        ``(N,)`` for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given. Where points coincide the gradient is 0.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: The number of rows is odd, or a shape, ``c``, ``arc`` or reduction is wrong.

    Example:
        >>> hyperbolic_pairwise_confusion_loss(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        tensor(1.0355)

    Source:
        Narayan, Patel: Hyp-OC: Hyperbolic One Class Classification for Face Anti-Spoofing (FG 2024, arXiv 2404.14406),
        equation 7.
    """
    check_reduction(reduction)
    check_normalizer(normalizer)
    check_floating("input", input)
    check_in_range("c", c, 0.0, low_open=True)
    if input.ndim != 2 or len(input) % 2:
        raise ValueError(f"input has shape {tuple(input.shape)}; wanted points (N, D) with N even.")
    if arc not in ("artanh", "arctan"):
        raise ValueError(f"arc is {arc!r}; wanted 'artanh' or 'arctan'.")
    points, pairs = widen(input), len(input) // 2
    curvature = torch.as_tensor(c, dtype=points.dtype, device=points.device)
    u = _separation(points[:pairs], points[pairs:], curvature)
    half = torch.asinh(u) if arc == "artanh" else torch.atan(u / (1 + u.square()).sqrt())
    values = (half / curvature.sqrt()).repeat(2)
    if reduction == "none":
        return values
    if normalizer is not None:
        return values.sum() / normalizer
    return values.sum() if reduction == "sum" else values.mean()


class HyperbolicPairwiseConfusionLoss(Objective):
    """Hyperbolic distance between halves of a batch; module form of :func:`hyperbolic_pairwise_confusion_loss`.

    Example:
        >>> HyperbolicPairwiseConfusionLoss()(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        tensor(1.0355)
    """

    function = hyperbolic_pairwise_confusion_loss

    def __init__(
        self,
        c: Tensor | float = 0.1,
        arc: Literal["artanh", "arctan"] = "artanh",
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(c=c, arc=arc, reduction=reduction)

    def forward(self, input: Tensor, *, normalizer: Tensor | float | None = None) -> Tensor:  # type: ignore[override]
        """The objective on points ``(N, D)``, N even."""
        return hyperbolic_pairwise_confusion_loss(input, normalizer=normalizer, **self.hyperparameters())


class HypOCLoss(nn.Module):
    """Cross-entropy of genuine rows against pseudo-negatives, plus the confusion of genuine pairs.

    Args:
        c: Curvature, positive.
        arc: See :func:`hyperbolic_pairwise_confusion_loss`.
        confusion_weight: Weight of the confusion, at least 0.

    Shape:
        - genuine_logits: ``(N, 2)``; negative_logits: ``(M, 2)``; points: ``(N, D)``, the genuine ones, N even.

    Example:
        >>> HypOCLoss()(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 3))
        tensor(0.6931)

    Source:
        Narayan, Patel (FG 2024, arXiv 2404.14406), equation 8.
    """

    def __init__(
        self, c: float = 0.1, *, arc: Literal["artanh", "arctan"] = "artanh", confusion_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_in_range("confusion_weight", confusion_weight, 0.0)
        self.confusion = HyperbolicPairwiseConfusionLoss(c, arc)
        self.confusion_weight = confusion_weight

    def forward(self, genuine_logits: Tensor, negative_logits: Tensor, points: Tensor) -> Tensor:
        """The loss ``()``; class 0 is genuine, class 1 is not."""
        logits = torch.cat([genuine_logits, negative_logits])
        labels = (torch.arange(len(logits), device=logits.device) >= len(genuine_logits)).long()
        loss = F.cross_entropy(logits, labels)
        if self.confusion_weight:
            loss = loss + self.confusion_weight * self.confusion(points)
        return loss


def pseudo_negatives(
    features: Tensor, previous_mean: Tensor, *, alpha: float = 0.8, std: float = 1.0, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Stand-ins for what is not genuine: a Gaussian around a mean of this batch and the last.

    Formula:
        .. math:: \mathcal N(\alpha\, \mu_\text{previous} + (1 - \alpha)\, \mu_\text{batch}, \sigma^2 I)

    Args:
        features: Genuine features ``(N, D)``.
        previous_mean: Mean of the batch before ``(D,)``, zeros for the first.
        alpha: Share of the batch before, in [0, 1].
        std: Standard deviation, at least 0.
        noise: Standard normal numbers ``(N, D)``; None draws them.

    Returns:
        As many pseudo-negatives ``(N, D)``, without gradient, and the mean of this batch ``(D,)``.

    Raises:
        TypeError: ``features`` is not floating point.
        ValueError: A shape, ``alpha`` or ``std`` is wrong.

    Example:
        >>> negatives, mean = pseudo_negatives(torch.ones(4, 2), torch.zeros(2), noise=torch.zeros(4, 2))
        >>> negatives[0], mean
        (tensor([0.2000, 0.2000]), tensor([1., 1.]))

    Source:
        Narayan, Patel (FG 2024, arXiv 2404.14406), section 3.1. The mean spans two batches, as in the public code.
    """
    check_floating("features", features)
    check_in_range("alpha", alpha, 0.0, 1.0)
    check_in_range("std", std, 0.0)
    check_shape("previous_mean", previous_mean, features.shape[1:], "the mean of a batch of features")
    noise = torch.randn_like(features) if noise is None else noise
    check_shape("noise", noise, features.shape, "a number for each of features")
    mean = features.detach().mean(0)
    return alpha * previous_mean + (1 - alpha) * mean + std * noise, mean


class PseudoNegativeSampler(nn.Module):
    """Pseudo-negatives that remember the last batch's mean; module form of :func:`pseudo_negatives`.

    Args:
        dim: Size of the features.
        alpha: Share of the batch before, in [0, 1].
        std: Standard deviation, at least 0.

    Attributes:
        previous_mean: Mean of the last batch ``(dim,)``, zeros at first; :meth:`reset` it before each epoch.

    Example:
        >>> sampler = PseudoNegativeSampler(2, std=0.0)
        >>> sampler(torch.ones(1, 2)), sampler(torch.zeros(1, 2))
        (tensor([[0.2000, 0.2000]]), tensor([[0.8000, 0.8000]]))

    Source:
        Narayan, Patel (FG 2024, arXiv 2404.14406), section 3.1.
    """

    previous_mean: Tensor

    def __init__(self, dim: int, *, alpha: float = 0.8, std: float = 1.0) -> None:
        super().__init__()
        check_in_range("alpha", alpha, 0.0, 1.0)
        check_in_range("std", std, 0.0)
        self.alpha = alpha
        self.std = std
        self.register_buffer("previous_mean", torch.zeros(dim))

    def forward(
        self, features: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Pseudo-negatives ``(N, dim)`` for genuine features ``(N, dim)``."""
        if noise is None:
            noise = torch.randn(features.shape, dtype=features.dtype, device=features.device, generator=generator)
        negatives, mean = pseudo_negatives(features, self.previous_mean, alpha=self.alpha, std=self.std, noise=noise)
        self.previous_mean = mean.to(self.previous_mean)
        return negatives

    def reset(self) -> None:
        """Forget the last batch."""
        self.previous_mean = torch.zeros_like(self.previous_mean)


class HypOC(nn.Module):
    """A one-class classifier on features: projection, ball, hyperbolic softmax, pseudo-negatives and their loss.

    Reach for it where only genuine samples exist in training and what is not genuine must be scored in use. Where some
    outliers are at hand, train on them instead.

    Args:
        in_features: Size of the features.
        hidden: Sizes of the hidden layers of the projection.
        dim: Size of the ball.
        c: Curvature, positive.
        clip_radius: Longest projection before the ball.
        alpha: See :func:`pseudo_negatives`.
        std: Standard deviation of pseudo-negatives.
        arc: See :func:`hyperbolic_pairwise_confusion_loss`.
        confusion_weight: Weight of the confusion, at least 0.
        learn_base: Whether the base point of the exponential map is learned.
        riemannian: Whether gradients of points are scaled by the metric.

    Shape:
        - input: ``(N, in_features)``; logits: ``(N, 2)``, class 1 is not genuine.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> genuine = 3 + 0.1 * torch.randn(64, 4, generator=generator)
        >>> model = HypOC(4, hidden=(16,), dim=4).fit(genuine, epochs=30, learning_rate=1e-2, generator=generator)
        >>> bool(model.score(genuine).mean() < model.score(torch.zeros(1, 4)))
        True

    Source:
        Narayan, Patel (FG 2024, arXiv 2404.14406): a VGG-Face backbone and 4096-8192-1000-512-128.
    """

    def __init__(
        self,
        in_features: int,
        *,
        hidden: Sequence[int] = (8192, 1000, 512),
        dim: int = 128,
        c: float = 0.1,
        clip_radius: float | None = 2.0,
        alpha: float = 0.8,
        std: float = 1.0,
        arc: Literal["artanh", "arctan"] = "artanh",
        confusion_weight: float = 1.0,
        learn_base: bool = False,
        riemannian: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise((in_features, *hidden)):
            layers += [nn.Linear(inner, outer), nn.ReLU()]
        self.projection = nn.Sequential(*layers, nn.Linear((in_features, *hidden)[-1], dim))
        self.ball = ToPoincare(c, clip_radius, learn_base, dim, riemannian=riemannian)
        self.head = HyperbolicMLR(dim, 2, c)
        self.sampler = PseudoNegativeSampler(in_features, alpha=alpha, std=std)
        self.criterion = HypOCLoss(c, arc=arc, confusion_weight=confusion_weight)

    def forward(self, input: Tensor) -> Tensor:
        """Logits ``(N, 2)``."""
        logits: Tensor = self.head(self.points(input))
        return logits

    def points(self, input: Tensor) -> Tensor:
        """Points of the ball ``(N, dim)``."""
        points: Tensor = self.ball(self.projection(input))
        return points

    def loss(self, genuine: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Training loss ``()`` of genuine features ``(N, in_features)``, N even; moves the sampler's mean."""
        negatives = self.sampler(genuine, noise=noise, generator=generator)
        points = self.points(torch.cat([genuine, negatives]))
        logits = self.head(points)
        count = len(genuine)
        value: Tensor = self.criterion(logits[:count], logits[count:], points[:count])
        return value

    def score(self, input: Tensor) -> Tensor:
        """Probability ``(N,)`` that a row is not genuine, without gradient."""
        with torch.no_grad():
            probability: Tensor = self(input).softmax(-1)[..., 1]
            return probability

    def fit(
        self,
        genuine: Tensor,
        *,
        epochs: int = 60,
        batch_size: int = 8,
        learning_rate: float = 1e-6,
        weight_decay: float = 1e-6,
        max_norm: float = 3.0,
        generator: torch.Generator | None = None,
    ) -> HypOC:
        """Train on genuine features ``(n, in_features)`` as the paper does; an odd row at an epoch's end waits a turn.

        Args:
            genuine: Features, fixed.
            epochs: Passes over them.
            batch_size: Rows of a batch, even.
            learning_rate: Of Adam.
            weight_decay: Of Adam.
            max_norm: What the gradient's norm is clipped to.
            generator: Source of randomness.
        """
        if batch_size < 2 or batch_size % 2:
            raise ValueError(f"batch_size is {batch_size}; wanted an even number.")
        optimizer = torch.optim.Adam(self.parameters(), learning_rate, weight_decay=weight_decay)
        for _ in range(epochs):
            self.sampler.reset()
            order = torch.randperm(len(genuine), generator=generator)
            for rows in torch.split(order[: len(order) // 2 * 2], batch_size):
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(self.loss(genuine[rows], generator=generator))
                nn.utils.clip_grad_norm_(self.parameters(), max_norm)
                optimizer.step()
        return self
