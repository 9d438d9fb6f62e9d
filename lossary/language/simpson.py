"""Simpson's bias: a mean of ratios is no ratio of sums. How large it is, and Dice losses that sum first."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core import checks
from lossary.core.objective import Kind, Objective, objective
from lossary.core.ranks import sum_over_ranks
from lossary.core.rows import class_rows, label_entries, widen
from lossary.core.types import Reduction
from lossary.core.values import reduce_values

Metric = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From prediction and target to the numerator and the denominator of each sample."""


def simpsons_bias(
    prediction: Tensor,
    target: Tensor,
    *,
    metric: Literal["dice"] | Metric = "dice",
    bundle_size: int | None = 1,
    smooth: Tensor | float = 1.0,
) -> dict[str, Tensor]:
    r"""How far the mean of a ratio over samples lies from the ratio of the sums that a model is judged by.

    Reach for it before training with a loss that averages F1, Dice or BLEU over samples: a large bias says that its
    mean may rank models in another order than the metric does. Accuracy has none, as all its denominators are 1.

    Formula:
        .. math:: \epsilon = \frac1m \sum_B \frac{\sum_{i \in B} a_i + s}{\sum_{i \in B} b_i + s}
            - \frac{\sum_i a_i}{\sum_i b_i}

        over m bundles B of consecutive samples; for Dice :math:`a = 2 p y` and :math:`b = p + y`.

    Args:
        prediction: Probabilities, or 0 and 1.
        target: 0 and 1, or probabilities.
        metric: ``dice``, which over a set is F1, or a function from prediction and target to the numerators and the
            denominators of the samples, which are not smoothed.
        bundle_size: Samples whose sums are taken together; 1 is each alone, None all.
        smooth: Added to both sums of a bundle in ``dice``, at least 0; never to those of the population.

    Shape:
        - prediction, target: ``(N,)``; with a ``metric`` of your own anything from which it makes ``(N,)``.

    Returns:
        ``population``, ``sample_mean`` and their difference ``bias``, each ``()``. A ratio 0 / 0 is 1.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, value, ``metric``, ``bundle_size`` or ``smooth`` is wrong.

    Example:
        >>> never, target = torch.zeros(10), torch.tensor([1.0] + [0.0] * 9)
        >>> {name: round(float(value), 2) for name, value in simpsons_bias(never, target).items()}
        {'population': 0.0, 'sample_mean': 0.95, 'bias': 0.95}

    Source:
        Yuan, Zhang, Huang, Liang: Simpson's Bias in NLP Training (AAAI 2021, arXiv 2103.11795).
    """
    checks.check_in_range("smooth", smooth, 0.0)
    if metric == "dice":
        p, y = (_numbers(name, tensor) for name, tensor in (("prediction", prediction), ("target", target)))
        checks.check_shape("target", y, p.shape, "a target for each prediction")
        part, whole = 2 * p * y, p + y
    elif callable(metric):
        part, whole = metric(prediction, target)
        part, whole, smooth = part.to(torch.get_default_dtype()), whole.to(torch.get_default_dtype()), 0.0
    else:
        raise ValueError(f"metric is {metric!r}; wanted 'dice' or a function.")
    if part.ndim != 1 or part.shape != whole.shape:
        raise ValueError(f"metric gives shapes {tuple(part.shape)} and {tuple(whole.shape)}; wanted (N,) and (N,).")
    population = _ratio(part.sum(), whole.sum())
    bundles = _ratio(_bundled(part, bundle_size) + smooth, _bundled(whole, bundle_size) + smooth)
    return {"population": population, "sample_mean": bundles.mean(), "bias": bundles.mean() - population}


@objective(Kind.LABELS, batch_level=True)
def bundled_dice_loss(
    input: Tensor,
    target: Tensor,
    *,
    bundle_size: int | None = None,
    smooth: Tensor | float = 1.0,
    square_denominator: bool = False,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    gather: bool = False,
) -> Tensor:
    r"""Dice loss of bundles of samples: sums first, then the ratio, then the mean over bundles.

    Reach for it where few samples are positive and F1 of the whole set is what counts. Take bundles that hold several
    positives (:func:`bundle_order` deals them evenly); a bundle of 1 is the biased loss, under which a negative weighs
    about as much as a positive. Probabilities want calibration.

    Formula:
        .. math:: L = \frac1m \sum_B \left(1 - \frac{2 \sum_{i \in B} p_i y_i + s}{\sum_{i \in B} p_i +
            \sum_{i \in B} y_i + s}\right)

        over m bundles B of consecutive samples. For classes each class against the rest, with p the softmax, and the
        mean over classes.

    Args:
        input: Logits of yes/no labels, or of classes.
        target: Yes/no targets, or class indices. Yes/no targets may be ``ignore_index`` too.
        bundle_size: Samples of a bundle, the last of which may be shorter; None is the whole batch.
        smooth: Added to both sums, at least 0. A large one hides the gradient of bundles with few positives.
        square_denominator: Whether p and y are squared below.
        weight: Class weights in the mean over classes.
        ignore_index: Label of samples that count for nothing. They keep their place: bundles are not dealt anew.
        sample_weight: Weights of samples in the sums, as if each were there that often in its bundle.
        reduction: ``none``, ``mean`` over bundles or ``sum``.
        normalizer: Divisor in place of the number of bundles.
        gather: Whether the sums go over all ranks of a distributed run, with gradients; for the whole batch only.

    Shape:
        - input: ``(N, ...)`` with a target of the same shape in floating point, where each position of the other axes
          has bundles of its own; or, of classes, ``(N, C)`` with a target ``(N,)`` of integers.
        - weight: ``(C,)``; sample_weight: ``(N,)``, or as input for yes/no targets; normalizer: a number or ``()``.

    Returns:
        For ``none`` one value for each of ``ceil(N / bundle_size)`` bundles (``(bundles, ...)``; ``(bundles,)`` of
        classes), 0 where nothing is in it, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean``
        is NaN, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, target, ``bundle_size``, ``smooth`` or reduction is wrong.

    Example:
        >>> input, target = torch.tensor([2.0, -1.0, 0.0, -2.0]), torch.tensor([1.0, 0.0, 0.0, 0.0])
        >>> bundled_dice_loss(input, target, bundle_size=2, reduction="none")
        tensor([0.1232, 0.3824])
        >>> bundled_dice_loss(input, target)
        tensor(0.2673)

    Source:
        Yuan, Zhang, Huang, Liang: Simpson's Bias in NLP Training (AAAI 2021, arXiv 2103.11795).
    """
    checks.check_in_range("smooth", smooth, 0.0)
    if gather and bundle_size is not None:
        raise ValueError(f"gather is for the whole batch; wanted bundle_size=None, not {bundle_size!r}.")
    p, y, live, of_class = _soft_counts(input, target, weight, ignore_index, sample_weight)
    sizes = p.square() + y.square() if square_denominator else p + y
    common, both, count = (_bundled(live * part, bundle_size) for part in (p * y, sizes, torch.ones_like(p)))
    if gather:
        common, both, count = sum_over_ranks(torch.stack([common, both, count])).unbind()
    loss = 1 - _ratio(2 * common + smooth, both + smooth)
    keep = count > 0
    if of_class is not None:
        loss, keep = (loss * of_class).sum(1), keep.any(1)
    return reduce_values(loss, sample_weight=None, reduction=reduction, normalizer=normalizer, keep=keep)


class BundledDiceLoss(Objective):
    """Dice loss of bundles of samples; module form of :func:`bundled_dice_loss`.

    Example:
        >>> loss = BundledDiceLoss(2)
        >>> loss(torch.tensor([2.0, -1.0, 0.0, -2.0]), torch.tensor([1.0, 0.0, 0.0, 0.0]))
        tensor(0.2528)
    """

    function = bundled_dice_loss

    def __init__(
        self,
        bundle_size: int | None = None,
        smooth: Tensor | float = 1.0,
        *,
        square_denominator: bool = False,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        gather: bool = False,
    ) -> None:
        super().__init__(
            bundle_size=bundle_size,
            smooth=smooth,
            square_denominator=square_denominator,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            gather=gather,
        )


def _with_sums(input: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {"input": input, "target": target, "numerator": torch.tensor(3.0), "denominator": torch.tensor(7.0)}


@objective(Kind.LABELS, arguments=_with_sums, stateful=True, batch_level=True)
def population_dice_loss(
    input: Tensor,
    target: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    *,
    decay: Tensor | float = 0.9,
    smooth: Tensor | float = 1.0,
    square_denominator: bool = False,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    gather: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    r"""Dice loss of the samples seen lately, and their two sums for the next batch.

    Reach for it where batches are too small to hold positives, so that even the whole batch is a biased bundle. The
    sums of former batches are constants, so that the gradient is about ``1 - decay`` times that of
    :func:`bundled_dice_loss`; optimizers that divide by its size do not notice.

    Formula:
        .. math:: A \leftarrow d A + 2 \sum_i p_i y_i, \quad B \leftarrow d B + \sum_i p_i + \sum_i y_i, \quad
            L = 1 - \frac{A + s}{B + s}

    Args:
        input: Logits.
        target: Yes/no targets, or ``ignore_index``.
        numerator: A so far; 0 at the start.
        denominator: B so far; 0 at the start.
        decay: Share d of the former sums that stays, in [0, 1); 0 is the whole batch alone.
        smooth: Added to both sums, at least 0.
        square_denominator: Whether p and y are squared below.
        ignore_index: Target of samples that count for nothing.
        sample_weight: Weights of samples in the sums.
        gather: Whether the batch is that of all ranks of a distributed run, with gradients.

    Shape:
        - input, target: the same, any shape; floating point.
        - numerator, denominator: ``()``; sample_weight: as input, or ``(N,)``.

    Returns:
        The loss ``()``, float32 for half-precision input, and the sums ``((), ())`` after the batch, without gradient.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, target, ``decay`` or ``smooth`` is wrong.

    Example:
        >>> input, target = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])
        >>> loss, sums = population_dice_loss(input, target, torch.tensor(0.0), torch.tensor(0.0))
        >>> loss
        tensor(0.1232)
        >>> loss, sums = population_dice_loss(input, target, *sums)
        >>> loss
        tensor(0.1450)

    Source:
        The population Dice of Yuan, Zhang, Huang, Liang: Simpson's Bias in NLP Training (AAAI 2021, arXiv 2103.11795),
        for batches that are too small; the running sums are ours.
    """
    checks.check_in_range("decay", decay, 0.0, 1.0, high_open=True)
    checks.check_in_range("smooth", smooth, 0.0)
    for name, total in (("numerator", numerator), ("denominator", denominator)):
        checks.check_floating(name, total)
        checks.check_shape(name, total, (), "a sum over the former batches")
    p, y, live, _ = _soft_counts(input, target, None, ignore_index, sample_weight)
    sizes = p.square() + y.square() if square_denominator else p + y
    batch = torch.stack([(2 * live * p * y).sum(), (live * sizes).sum()])
    batch = sum_over_ranks(batch) if gather else batch
    part, whole = (decay * torch.stack([numerator, denominator]).detach().to(batch.dtype) + batch).unbind()
    return 1 - _ratio(part + smooth, whole + smooth), (part.detach(), whole.detach())


class PopulationDiceLoss(Objective):
    """Dice loss of the samples seen lately; module form of :func:`population_dice_loss`.

    Args:
        decay: Share of the former sums that stays, in [0, 1).
        smooth: Added to both sums, at least 0.
        square_denominator: Whether p and y are squared below.
        ignore_index: Target of samples that count for nothing.
        gather: Whether the batch is that of all ranks of a distributed run, with gradients.

    Attributes:
        numerator: A, 0 at the start; moves in training mode only.
        denominator: B, likewise.

    Example:
        >>> loss = PopulationDiceLoss()
        >>> loss(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0]))
        tensor(0.1232)
        >>> loss.numerator, loss.denominator
        (tensor(1.7616), tensor(2.1497))
    """

    function = population_dice_loss
    numerator: Tensor
    denominator: Tensor

    def __init__(
        self,
        decay: Tensor | float = 0.9,
        smooth: Tensor | float = 1.0,
        *,
        square_denominator: bool = False,
        ignore_index: int = -100,
        gather: bool = False,
    ) -> None:
        super().__init__(
            numerator=torch.zeros(()),
            denominator=torch.zeros(()),
            decay=decay,
            smooth=smooth,
            square_denominator=square_denominator,
            ignore_index=ignore_index,
            gather=gather,
        )

    def forward(self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The loss; in training mode the sums move for the next batch.

        Args:
            input: Logits.
            target: Yes/no targets.
            sample_weight: Weights of samples in the sums.
        """
        loss, (numerator, denominator) = population_dice_loss(
            input, target, sample_weight=sample_weight, **self.hyperparameters()
        )
        if self.training:
            self.numerator, self.denominator = (
                numerator.to(self.numerator.dtype),
                denominator.to(self.denominator.dtype),
            )
        return loss


def bundle_order(target: Tensor, bundle_size: int, *, generator: torch.Generator | None = None) -> Tensor:
    """An order of the samples, at random, in which every bundle holds its share of the positives.

    Reach for it at the start of an epoch, in place of a plain shuffle, where few samples are positive.

    Args:
        target: Yes/no targets; above 1/2 is positive.
        bundle_size: Samples of a bundle.
        generator: Source of the randomness.

    Shape:
        - target: ``(N,)``.

    Returns:
        ``(N,)`` int64: row numbers; each ``bundle_size`` of them are a bundle, whose number of positives differs by at
        most one from any other full bundle's.

    Raises:
        ValueError: A shape or ``bundle_size`` is wrong.

    Example:
        >>> target = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
        >>> target[bundle_order(target, 3)].reshape(2, 3).sum(1)
        tensor([1., 1.])

    Source:
        Yuan, Zhang, Huang, Liang: Simpson's Bias in NLP Training (AAAI 2021, arXiv 2103.11795).
    """
    if target.ndim != 1:
        raise ValueError(f"target has shape {tuple(target.shape)}; wanted (N,).")
    _check_bundle_size(bundle_size)
    shuffled = torch.randperm(len(target), generator=generator).to(target.device)
    by_class = shuffled[(target[shuffled] > 0.5).long().argsort(stable=True, descending=True)]
    # Dealt one to a bundle in turn, positives first.
    bundles = -(-len(target) // bundle_size)
    place = torch.arange(bundles * bundle_size, device=target.device).reshape(bundles, bundle_size).t().reshape(-1)
    return by_class[place[place < len(target)].argsort()]


def _soft_counts(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, sample_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Probabilities and targets of shape ``(N, ...)``, the weight of each, and for classes each one's share."""
    indices = isinstance(target, Tensor) and not (target.is_floating_point() or target.dtype == torch.bool)
    if indices and target.shape != getattr(input, "shape", None):
        rows = class_rows(input, target, ignore_index=ignore_index, sample_weight=sample_weight, index_only=True)
        checks.check_class_vector("weight", weight, rows.num_classes)
        assert rows.index is not None
        if input.ndim != 2:
            raise ValueError(f"input has shape {tuple(input.shape)}; wanted (N, C) beside class indices.")
        p, good = rows.log_softmax().exp(), rows.good_labels()
        if good is not None:
            p = torch.where((good | ~rows.kept()).unsqueeze(1), p, math.nan)
        y = F.one_hot(rows.index, rows.num_classes).to(p.dtype)
        live = rows.kept().to(p.dtype)
        live = live if sample_weight is None else live * sample_weight.to(p.dtype)
        share = p.new_ones(rows.num_classes) if weight is None else weight.to(p.dtype)
        return p, y, live.unsqueeze(1), share / share.sum()
    if weight is not None:
        raise ValueError("weight is for classes; yes/no targets have none.")
    keep = target != ignore_index if isinstance(target, Tensor) and target.dtype != torch.bool else None
    if keep is not None and isinstance(input, Tensor) and input.shape == target.shape and input.is_floating_point():
        input, target = torch.where(keep, input, 0.0), torch.where(keep, target, 0.0)
    entries = label_entries(input, target, sample_weight=sample_weight)
    live = torch.ones_like(entries.logits) if keep is None else keep.to(entries.logits.dtype)
    return entries.logits.sigmoid(), entries.target, entries.reduce(live, reduction="none", normalizer=None), None


def _bundled(values: Tensor, bundle_size: int | None) -> Tensor:
    """Sums over bundles of consecutive rows ``(N, ...)``: ``(bundles, ...)``."""
    if bundle_size is None:
        return values.sum(0, keepdim=True)
    _check_bundle_size(bundle_size)
    missing = -len(values) % bundle_size
    padded = torch.cat([values, values.new_zeros(missing, *values.shape[1:])])
    return padded.reshape(-1, bundle_size, *values.shape[1:]).sum(1)


def _check_bundle_size(bundle_size: int) -> None:
    if isinstance(bundle_size, bool) or not isinstance(bundle_size, int) or bundle_size < 1:
        raise ValueError(f"bundle_size is {bundle_size!r}; wanted a positive integer.")


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """A share; 1 of nothing."""
    nothing = whole == 0
    return torch.where(nothing, 1.0, part / torch.where(nothing, 1.0, whole))


def _numbers(name: str, tensor: Tensor) -> Tensor:
    """Probabilities, or 0 and 1 of any dtype, in floating point."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {type(tensor).__name__}; wanted a tensor.")
    tensor = widen(tensor) if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
    if checks.may_read_values(tensor):
        checks.check_unit_interval(name, tensor)
    return tensor
