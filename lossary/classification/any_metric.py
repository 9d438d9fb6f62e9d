"""Any metric of the confusion matrix as a loss: counts become soft by a steep sigmoid on the probability."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lossary.core.checks import check_floating, check_in_range, check_unit_interval, may_read_values
from lossary.core.numerics import safe_sqrt
from lossary.core.objective import BatchObjective, Kind, objective
from lossary.core.ranks import sum_over_ranks
from lossary.core.rows import label_entries

Metric = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class ConfusionMatrix(NamedTuple):
    """Counts of a yes/no classifier, each ``()``.

    Attributes:
        tp: Positives that are called so.
        fp: Negatives that are called positive.
        fn: Positives that are called negative.
        tn: Negatives that are called so.
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor


@objective(Kind.LABELS, batch_level=True)
def any_loss(
    input: Tensor,
    target: Tensor,
    *,
    metric: str | Metric = "fbeta",
    beta: Tensor | float = 1.0,
    slope: Tensor | float = 73.0,
    threshold: Tensor | float = 0.5,
    from_logits: bool = True,
    eps: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    r"""One minus a metric of the confusion matrix, made differentiable.

    Reach for it when a yes/no classifier on imbalanced data is judged by that very metric, in batches that hold
    positives. Class weights or a tuned threshold often do as well, and give probabilities. Rows that are confidently
    wrong have next to no gradient: start from weights that are not.

    Formula:
        .. math:: L = 1 - M(TP, FP, FN, TN), \quad TP = \sum_i y_i \hat y_i, \quad
            \hat y = \frac{1}{1 + e^{-L (p - t)}}, \quad p = \sigma(z)

        and FP, FN, TN likewise; entries of all shapes are counted in one matrix.

    Args:
        input: Logits, or probabilities.
        target: Yes/no targets.
        metric: ``accuracy``, ``fbeta``, ``geometric_mean`` (of recall and specificity), ``balanced_accuracy``,
            ``precision``, ``recall``, ``specificity``, ``mcc`` (Matthews' correlation), ``jaccard``, or a callable
            ``(tp, fp, fn, tn)`` to a 0-d tensor.
        beta: How many times more recall counts than precision in ``fbeta``: 0 is precision, infinity recall.
        slope: Steepness L of the soft step, positive: 73 takes [0, 1] to itself within rounding, less leaves more
            gradient.
        threshold: Probability t from which a row is called positive, in [0, 1].
        from_logits: Whether ``input`` is logits; else it is probabilities.
        eps: Added to each of the four counts, at least 0.
        sample_weight: Weights of entries or rows, in the counts.
        gather: Whether the counts are summed over all ranks of a distributed run (with gradients, so that averaged
            gradients are those of one process); else each rank has the metric of its own batch.

    Shape:
        - input, target: the same, any shape; floating point, target in [0, 1].
        - sample_weight: as input, or ``(N,)``.

    Returns:
        ``()``; float32 for half-precision input. A rate that has nothing to count (no positives, say) is 1 and sends
        no gradient; ``mcc`` is then 0.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, target, probability, ``metric``, ``beta``, ``slope``, ``threshold`` or ``eps`` is wrong.

    Example:
        >>> input, target = torch.tensor([2.0, 0.1, -1.0, -3.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
        >>> any_loss(input, target, metric="fbeta")
        tensor(0.4820)

    Source:
        Han, Moniz, Chawla: AnyLoss: Transforming Classification Metrics into Loss Functions (KDD 2024, arXiv
        2405.14745), section 3. Its code takes the number of rows of the whole training set with the sums of a batch,
        and leaves out the sigmoid for networks; here all counts are the batch's.
    """
    return 1 - metric_value(
        input,
        target,
        metric=metric,
        beta=beta,
        slope=slope,
        threshold=threshold,
        from_logits=from_logits,
        eps=eps,
        sample_weight=sample_weight,
        gather=gather,
    )


class AnyLoss(BatchObjective):
    """One minus a metric of the confusion matrix, made differentiable; module form of :func:`any_loss`.

    Example:
        >>> loss = AnyLoss("balanced_accuracy")
        >>> loss(torch.tensor([2.0, 0.1, -1.0, -3.0]), torch.tensor([1.0, 0.0, 1.0, 0.0]))
        tensor(0.4652)
    """

    function = any_loss

    def __init__(
        self,
        metric: str | Metric = "fbeta",
        *,
        beta: Tensor | float = 1.0,
        slope: Tensor | float = 73.0,
        threshold: Tensor | float = 0.5,
        from_logits: bool = True,
        eps: Tensor | float = 0.0,
        gather: bool = False,
    ) -> None:
        super().__init__(
            metric=metric,
            beta=beta,
            slope=slope,
            threshold=threshold,
            from_logits=from_logits,
            eps=eps,
            gather=gather,
        )


def metric_value(
    input: Tensor,
    target: Tensor,
    *,
    metric: str | Metric = "fbeta",
    beta: Tensor | float = 1.0,
    slope: Tensor | float = 73.0,
    threshold: Tensor | float = 0.5,
    from_logits: bool = True,
    eps: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    """The soft metric itself: one minus :func:`any_loss`, which explains the arguments.

    Args:
        input: Logits, or probabilities.
        target: Yes/no targets.
        metric: Name of the metric, or a callable of the four counts.
        beta: How many times more recall counts than precision in ``fbeta``.
        slope: Steepness of the soft step.
        threshold: Probability from which a row is called positive.
        from_logits: Whether ``input`` is logits.
        eps: Added to each of the four counts.
        sample_weight: Weights of entries or rows.
        gather: Whether the counts are summed over all ranks.

    Returns:
        ``()``.

    Example:
        >>> metric_value(torch.tensor([4.0, -4.0]), torch.tensor([1.0, 0.0]), metric="accuracy")
        tensor(1.)

    Source:
        Han, Moniz, Chawla (KDD 2024, arXiv 2405.14745), section 3.
    """
    check_in_range("beta", beta, 0.0)
    check_in_range("eps", eps, 0.0)
    if isinstance(metric, str) and metric not in _METRICS:
        raise ValueError(f"metric is {metric!r}; wanted one of {', '.join(_METRICS)}, or a callable.")
    counts = soft_confusion_matrix(
        input,
        target,
        slope=slope,
        threshold=threshold,
        from_logits=from_logits,
        sample_weight=sample_weight,
        gather=gather,
    )
    counts = ConfusionMatrix(*(count + eps for count in counts))
    return _METRICS[metric](counts, beta) if isinstance(metric, str) else metric(*counts)


def soft_confusion_matrix(
    input: Tensor,
    target: Tensor,
    *,
    slope: Tensor | float = 73.0,
    threshold: Tensor | float = 0.5,
    from_logits: bool = True,
    sample_weight: Tensor | None = None,
    gather: bool = False,
) -> ConfusionMatrix:
    r"""The confusion matrix with soft counts, differentiable.

    Formula:
        .. math:: TP = \sum_i y_i \hat y_i, \quad FP = \sum_i (1 - y_i) \hat y_i, \quad FN = \sum_i y_i (1 - \hat y_i),
            \quad TN = \sum_i (1 - y_i) (1 - \hat y_i)

    Args:
        input: Logits, or probabilities.
        target: Yes/no targets, shaped as input, floating point in [0, 1].
        slope: Steepness of the soft step, positive.
        threshold: Probability from which a row is called positive, in [0, 1].
        from_logits: Whether ``input`` is logits; else it is probabilities.
        sample_weight: Weights of entries or rows: input's shape or ``(N,)``.
        gather: Whether the counts are summed over all ranks of a distributed run.

    Returns:
        The four counts; they sum to the number of entries, or to their weights.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, target, probability, ``slope`` or ``threshold`` is wrong.

    Example:
        >>> soft_confusion_matrix(torch.tensor([4.0, -4.0, 4.0]), torch.tensor([1.0, 0.0, 0.0])).fp
        tensor(1.)

    Source:
        Han, Moniz, Chawla (KDD 2024, arXiv 2405.14745), section 3.
    """
    _check_step(slope, threshold)
    entries = label_entries(input, target, sample_weight=sample_weight)
    if not from_logits and may_read_values(entries.logits):
        check_unit_interval("input", entries.logits)
    p = entries.logits.sigmoid() if from_logits else entries.logits
    step, y = slope * (p - threshold), entries.target
    yes, no = step.sigmoid(), (-step).sigmoid()
    cells = (y * yes, (1 - y) * yes, y * no, (1 - y) * no)
    counts = torch.stack([entries.reduce(cell, reduction="sum", normalizer=None) for cell in cells])
    return ConfusionMatrix(*(sum_over_ranks(counts) if gather else counts).unbind())


def approximate_label(probability: Tensor, *, slope: Tensor | float = 73.0, threshold: Tensor | float = 0.5) -> Tensor:
    r"""A steep sigmoid on the probability: nearly the predicted label, with a gradient.

    Formula:
        .. math:: A(p) = \frac{1}{1 + e^{-L (p - t)}}

    Args:
        probability: In [0, 1], any shape.
        slope: Steepness L, positive; the slope at the threshold is L/4.
        threshold: Probability t that is taken to 1/2, in [0, 1].

    Returns:
        Shaped as ``probability``, in (0, 1); float32 for half precision.

    Raises:
        TypeError: ``probability`` is not floating point.
        ValueError: ``slope`` or ``threshold`` is out of range.

    Example:
        >>> approximate_label(torch.tensor([0.4, 0.5, 0.6]))
        tensor([6.7508e-04, 5.0000e-01, 9.9932e-01])

    Source:
        Han, Moniz, Chawla (KDD 2024, arXiv 2405.14745), section 3.
    """
    check_floating("probability", probability)
    _check_step(slope, threshold)
    p = probability.float() if probability.dtype in (torch.float16, torch.bfloat16) else probability
    return torch.sigmoid(slope * (p - threshold))


def _fbeta(counts: ConfusionMatrix, beta: Tensor | float) -> Tensor:
    tp, fp, fn, _ = counts
    share = 1 / (1 + beta * beta)  # of precision; the squares themselves could overflow
    return _rate(tp, tp + (1 - share) * fn + share * fp)


def _recall(counts: ConfusionMatrix) -> Tensor:
    return _rate(counts.tp, counts.tp + counts.fn)


def _specificity(counts: ConfusionMatrix) -> Tensor:
    return _rate(counts.tn, counts.tn + counts.fp)


def _mcc(counts: ConfusionMatrix) -> Tensor:
    total = torch.stack(counts).sum()
    total = torch.where(total == 0, 1.0, total)
    tp, fp, fn, tn = (count / total for count in counts)  # shares, so that no product overflows
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    undefined = product == 0
    return torch.where(undefined, 0.0, (tp * tn - fp * fn) / safe_sqrt(torch.where(undefined, 1.0, product)))


_METRICS: dict[str, Callable[[ConfusionMatrix, Tensor | float], Tensor]] = {
    "accuracy": lambda c, beta: _rate(c.tp + c.tn, torch.stack(c).sum()),
    "fbeta": _fbeta,
    "geometric_mean": lambda c, beta: safe_sqrt(_recall(c) * _specificity(c)),
    "balanced_accuracy": lambda c, beta: (_recall(c) + _specificity(c)) / 2,
    "precision": lambda c, beta: _rate(c.tp, c.tp + c.fp),
    "recall": lambda c, beta: _recall(c),
    "specificity": lambda c, beta: _specificity(c),
    "mcc": lambda c, beta: _mcc(c),
    "jaccard": lambda c, beta: _rate(c.tp, c.tp + c.fp + c.fn),
}


def _rate(part: Tensor, whole: Tensor) -> Tensor:
    """A share of a count; 1 where there is nothing to count."""
    nothing = whole == 0
    return torch.where(nothing, 1.0, part / torch.where(nothing, 1.0, whole))


def _check_step(slope: Tensor | float, threshold: Tensor | float) -> None:
    check_in_range("slope", slope, 0.0, low_open=True)
    check_in_range("threshold", threshold, 0.0, 1.0)
