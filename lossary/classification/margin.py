"""Margins by class frequency (LDAM), deferred re-weighting and what goes with them for long-tailed data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import RandomSampler, Sampler, WeightedRandomSampler

from lossary.core.checks import check_class_vector, check_in_range
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import class_rows
from lossary.core.types import Reduction


@objective(Kind.CLASSES, example=lambda num_classes: {"margins": torch.linspace(0.5, 0.1, num_classes)})
def ldam_loss(
    input: Tensor,
    target: Tensor,
    *,
    margins: Tensor,
    scale: Tensor | float = 30.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Scaled softmax cross-entropy with a margin for each class, larger for rarer ones.

    Reach for it on long-tailed classes, on cosine logits (:class:`NormalizedLinear`), with deferred re-weighting
    (:class:`DeferredReweighting`). With unbounded logits the margin can be undone by growing weights.

    Formula:
        .. math:: L = -\log \mathrm{softmax}(s (z - \Delta_y e_y))_y

    Args:
        input: Cosine logits in [-1, 1], or other bounded logits.
        target: Class indices.
        margins: The margin of each class; :func:`ldam_margins` makes them from class counts.
        scale: What the logits are multiplied by after the margin; positive.
        weight: Class weights, as deferred re-weighting sets them.
        ignore_index: Label of rows that count for nothing.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point.
        - target: ``(N, ...)`` integer.
        - margins, weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``scale`` or reduction is wrong.

    Example:
        >>> cosine = torch.tensor([[0.5, 0.1], [0.2, 0.4]])
        >>> ldam_loss(cosine, torch.tensor([0, 1]), margins=torch.tensor([0.2, 0.5]), scale=10.0)
        tensor(1.5878)

    Source:
        Cao, Wei, Gaidon, Arechiga, Ma: Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss (NeurIPS
        2019, arXiv 1906.07413), equation 13.
    """
    check_in_range("scale", scale, 0.0, low_open=True)
    rows = class_rows(
        input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight, index_only=True
    )
    check_class_vector("margins", margins, rows.num_classes)
    shift = rows.per_class(margins).squeeze(rows.dim)
    loss = -rows.label_weight() * F.logsigmoid(rows.log_odds(scale) - scale * shift)
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class LDAMLoss(Objective):
    """Label-distribution-aware margin loss from class counts; module form of :func:`ldam_loss`.

    Args:
        class_counts: Training examples of each class ``(C,)``, all positive.
        max_margin: Margin of the rarest class, at least 0.
        scale: What the logits are multiplied by after the margin.
        weight: Class weights ``(C,)``; :meth:`set_weight` changes them during training.
        ignore_index: Label of rows that count for nothing.
        reduction: ``none``, ``mean`` or ``sum``.

    Attributes:
        margins: The margin of each class ``(C,)``.

    Example:
        >>> loss = LDAMLoss([1000, 50, 10], max_margin=0.5)
        >>> loss.margins
        tensor([0.1581, 0.3344, 0.5000])
        >>> loss(torch.tensor([[0.5, 0.3, 0.1]]), torch.tensor([0]))
        tensor(0.2510)
    """

    function = ldam_loss
    margins: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[int],
        *,
        max_margin: float = 0.5,
        scale: Tensor | float = 30.0,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            margins=ldam_margins(class_counts, max_margin=max_margin).to(torch.get_default_dtype()),
            scale=scale,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )

    def set_weight(self, weight: Tensor | None) -> None:
        """Set or drop the class weights ``(C,)``, as :class:`DeferredReweighting` does."""
        check_class_vector("weight", weight, self.margins.shape[0])
        self.weight = None if weight is None else weight.to(self.margins)


@objective(
    Kind.CLASSES,
    example=lambda num_classes: {"margins": torch.linspace(0.5, 0.1, num_classes)},
    exempt={"gradcheck": "a hinge on a maximum has kinks; its gradient is tested in closed form"},
)
def ldam_hinge_loss(
    input: Tensor,
    target: Tensor,
    margins: Tensor,
    reduction: Reduction = "mean",
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Multi-class hinge loss with a margin for each class.

    Reach for it to study the bound that :func:`ldam_loss` comes from; it is harder to train.

    Formula:
        .. math:: L = \max(\max_{k \ne y} z_k - z_y + \Delta_y, 0)

    Args:
        input: Logits.
        target: Class indices.
        margins: The margin of each class.
        reduction: ``none``, ``mean`` or ``sum``.
        weight: Class weights.
        ignore_index: Label of rows that count for nothing.
        sample_weight: Weights of rows.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point, C >= 2.
        - target: ``(N, ...)`` integer.
        - margins, weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or reduction is wrong.

    Example:
        >>> ldam_hinge_loss(torch.tensor([[0.5, 0.2]]), torch.tensor([0]), torch.tensor([0.4, 0.1]))
        tensor(0.1000)

    Source:
        Cao et al. (NeurIPS 2019, arXiv 1906.07413), equation 12.
    """
    rows = class_rows(
        input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight, index_only=True
    )
    check_class_vector("margins", margins, rows.num_classes)
    if rows.num_classes < 2:
        raise ValueError(f"input has shape {tuple(input.shape)}, one class; wanted at least 2 on the class axis.")
    gap = rows.per_class(margins).squeeze(rows.dim) - rows.margin()
    return rows.reduce(rows.label_weight() * gap.relu(), reduction=reduction, normalizer=normalizer)


class LDAMHingeLoss(Objective):
    """Multi-class hinge loss with margins from class counts; module form of :func:`ldam_hinge_loss`.

    Args:
        class_counts: Training examples of each class ``(C,)``, all positive.
        max_margin: Margin of the rarest class, at least 0.
        weight: Class weights ``(C,)``.
        ignore_index: Label of rows that count for nothing.
        reduction: ``none``, ``mean`` or ``sum``.

    Example:
        >>> LDAMHingeLoss([100, 10])(torch.tensor([[0.5, 0.2]]), torch.tensor([1]))
        tensor(0.8000)
    """

    function = ldam_hinge_loss

    def __init__(
        self,
        class_counts: Tensor | Sequence[int],
        *,
        max_margin: float = 0.5,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            margins=ldam_margins(class_counts, max_margin=max_margin).to(torch.get_default_dtype()),
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )


class NormalizedLinear(nn.Module):
    r"""A linear layer on unit vectors: the cosine between features and class directions, without bias or scale.

    Reach for it as the last layer under :class:`LDAMLoss`.

    Formula:
        .. math:: y_k = \frac{x^\top w_k}{\lVert x \rVert \, \lVert w_k \rVert}

        with :math:`w_k` the columns of the weight.

    Args:
        in_features: Size of the features.
        out_features: Number of classes.

    Shape:
        - input: ``(..., in_features)``; output: ``(..., out_features)``, in [-1, 1].

    Attributes:
        weight: ``(in_features, out_features)``, initialised to columns of random direction and unit length.

    Example:
        >>> layer = NormalizedLinear(3, 2)
        >>> bool((layer(torch.randn(5, 3)).abs() <= 1 + 1e-6).all())
        True

    Source:
        Cao et al. (NeurIPS 2019, arXiv 1906.07413), section 4 and its public code.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw columns uniformly in the cube and scale each to unit length."""
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight.uniform_(-1, 1), dim=0))

    def forward(self, input: Tensor) -> Tensor:
        """Cosines of ``input (..., in_features)`` with every class direction; a zero vector gives 0."""
        return F.normalize(input, dim=-1) @ F.normalize(self.weight, dim=0)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def ldam_margins(class_counts: Tensor | Sequence[int], *, max_margin: float = 0.5) -> Tensor:
    r"""Margins that fall with the fourth root of the class count, the rarest class getting ``max_margin``.

    Args:
        class_counts: Training examples of each class ``(C,)``, all positive.
        max_margin: The largest margin, at least 0.

    Returns:
        ``(C,)`` float64, :math:`\Delta_j \propto n_j^{-1/4}`.

    Raises:
        ValueError: A class has no examples, or ``max_margin`` is negative.

    Example:
        >>> ldam_margins([10000, 1])
        tensor([0.0500, 0.5000], dtype=torch.float64)

    Source:
        Cao et al. (NeurIPS 2019, arXiv 1906.07413), equation 11.
    """
    check_in_range("max_margin", max_margin, 0.0)
    inverse = _counts(class_counts) ** -0.25
    return max_margin * inverse / inverse.max()


def effective_number_weights(class_counts: Tensor | Sequence[int], *, beta: float = 0.9999) -> Tensor:
    r"""Class weights by the effective number of examples.

    Formula:
        .. math:: w_j \propto \frac{1 - \beta}{1 - \beta^{n_j}}, \quad \sum_j w_j = C

    Args:
        class_counts: Training examples of each class ``(C,)``, all positive.
        beta: In [0, 1): 0 gives ones, values near 1 the inverse counts.

    Returns:
        ``(C,)`` float64 that sums to C.

    Raises:
        ValueError: A class has no examples, or ``beta`` is out of range.

    Example:
        >>> effective_number_weights([5000, 500, 50])
        tensor([0.0341, 0.2752, 2.6907], dtype=torch.float64)

    Source:
        Cui, Jia, Lin, Song, Belongie: Class-Balanced Loss Based on Effective Number of Samples (CVPR 2019, arXiv
        1901.05555), as used by Cao et al. (arXiv 1906.07413).
    """
    check_in_range("beta", beta, 0.0, 1.0, high_open=True)
    counts = _counts(class_counts)
    inverse = torch.ones_like(counts) if beta == 0 else -1 / torch.expm1(counts * math.log(beta))
    return inverse / inverse.sum() * len(counts)


class Reweightable(Protocol):
    """A loss whose class weights can be set."""

    def set_weight(self, weight: Tensor | None) -> None:
        """Set or drop the class weights ``(C,)``."""
        ...


class DeferredReweighting:
    """Class weights that begin late: plain training first, effective-number weights in the last phase.

    Reach for it on long-tailed classes, with ``start_epoch`` where the learning rate first drops. Re-weighting from the
    start does worse: it spoils the features.

    Args:
        class_counts: Training examples of each class ``(C,)``, all positive.
        start_epoch: First epoch (from 0) with weights.
        beta: See :func:`effective_number_weights`.

    Example:
        >>> schedule = DeferredReweighting([100, 10], start_epoch=160, beta=0.999)
        >>> schedule.weight(159) is None
        True
        >>> schedule.weight(160)
        tensor([0.1893, 1.8107], dtype=torch.float64)

    Source:
        Cao et al. (NeurIPS 2019, arXiv 1906.07413), algorithm 1 (160 of 200 epochs, beta 0.9999).
    """

    def __init__(self, class_counts: Tensor | Sequence[int], *, start_epoch: int, beta: float = 0.9999) -> None:
        self.start_epoch = start_epoch
        self.beta = beta
        self._weight = effective_number_weights(class_counts, beta=beta)

    def weight(self, epoch: int) -> Tensor | None:
        """Class weights ``(C,)`` float64 of an epoch counted from 0; None before ``start_epoch``."""
        return self._weight if epoch >= self.start_epoch else None

    def step(self, epoch: int, loss: Reweightable) -> None:
        """Give the epoch's weights to a loss that has ``set_weight``."""
        loss.set_weight(self.weight(epoch))


class DeferredResampling:
    """Class-balanced sampling that begins late: uniform sampling first, effective-number sampling in the last phase.

    Reach for it in place of :class:`DeferredReweighting` where the loss takes no class weights.

    Args:
        target: Class index of each training example ``(n,)``.
        start_epoch: First epoch (from 0) with class-balanced sampling.
        beta: See :func:`effective_number_weights`; the probability of an example is its class's weight.
        generator: Source of randomness of the samplers.

    Raises:
        ValueError: A class between 0 and the largest label has no examples.

    Example:
        >>> resampling = DeferredResampling(torch.tensor([0, 0, 0, 1]), start_epoch=1)
        >>> type(resampling.sampler(0)).__name__, type(resampling.sampler(1)).__name__
        ('RandomSampler', 'WeightedRandomSampler')

    Source:
        Cao et al. (NeurIPS 2019, arXiv 1906.07413), section 4 and its public code (``Resample``, deferred).
    """

    def __init__(
        self, target: Tensor, *, start_epoch: int, beta: float = 0.9999, generator: torch.Generator | None = None
    ) -> None:
        self.start_epoch = start_epoch
        self.generator = generator
        self._weight = effective_number_weights(torch.bincount(target), beta=beta)[target]

    def sampler(self, epoch: int) -> Sampler[int]:
        """The sampler of an epoch counted from 0, as long as the data set."""
        size = len(self._weight)
        if epoch < self.start_epoch:
            return RandomSampler(range(size), generator=self.generator)
        return WeightedRandomSampler(self._weight.tolist(), size, replacement=True, generator=self.generator)


def long_tailed_counts(
    n_max: int, num_classes: int, *, imbalance: float = 100, kind: Literal["exp", "step"] = "exp"
) -> Tensor:
    """Class counts of a long-tailed profile.

    Args:
        n_max: Count of the most frequent class, the first; at least 1.
        num_classes: Number of classes, at least 2.
        imbalance: Ratio of the largest to the smallest count, at least 1.
        kind: ``exp`` falls geometrically; ``step`` has the first half at ``n_max`` and the rest at the smallest.

    Returns:
        ``(num_classes,)`` int64, truncated.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> long_tailed_counts(5000, 4, imbalance=100)
        tensor([5000, 1077,  232,   50])

    Source:
        Cao et al. (NeurIPS 2019, arXiv 1906.07413), section 4.
    """
    check_in_range("n_max", n_max, 1)
    check_in_range("num_classes", num_classes, 2)
    check_in_range("imbalance", imbalance, 1)
    if kind == "exp":
        counts = [n_max * imbalance ** -(j / (num_classes - 1)) for j in range(num_classes)]
    elif kind == "step":
        counts = [n_max if j < num_classes // 2 else n_max / imbalance for j in range(num_classes)]
    else:
        raise ValueError(f"kind is {kind!r}; wanted 'exp' or 'step'.")
    # A hair above, so that 50 computed as 49.999... stays 50.
    return torch.tensor([int(count * (1 + 1e-12)) for count in counts])


def subsample_long_tailed(
    target: Tensor, counts: Tensor | Sequence[int], generator: torch.Generator | None = None
) -> Tensor:
    """Indices of a random subset with the class counts given.

    Args:
        target: Class index of each example ``(n,)``.
        counts: How many to keep of each class ``(C,)``.
        generator: Source of randomness.

    Returns:
        Sorted indices ``(sum of counts,)`` int64.

    Raises:
        ValueError: A class has fewer examples than asked for, or a count is negative.

    Example:
        >>> subsample_long_tailed(torch.tensor([0, 0, 1, 1]), [2, 1], torch.Generator().manual_seed(0))
        tensor([0, 1, 3])
    """
    kept = []
    for label, count in enumerate(counts):
        members = (target == label).nonzero().squeeze(1)
        if not 0 <= count <= len(members):
            raise ValueError(f"counts wants {int(count)} examples of class {label}; target has {len(members)}.")
        kept.append(members[torch.randperm(len(members), generator=generator)[: int(count)]])
    return torch.cat(kept).sort().values


def _counts(class_counts: Tensor | Sequence[int]) -> Tensor:
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if counts.ndim != 1 or len(counts) == 0 or not bool((counts > 0).all()):
        raise ValueError(f"class_counts is {class_counts}; wanted one positive count for each class.")
    return counts
