"""From what users pass to rows of a loss, and from rows to the reduced value. Written once.

:func:`class_rows` serves objectives over mutually exclusive classes, :func:`label_entries` those over independent
yes/no labels. Both check, mask and widen; both reduce as PyTorch does. Masks are ``torch.where`` on both sides, never
boolean indexing, which breaks ``vmap`` and ``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core import checks, divergence, numerics, others
from lossary.core.slopes import Formula, with_slope
from lossary.core.soft_maximum import soft_maximum_of_gaps
from lossary.core.types import Reduction


class ClassRows:
    """Logits ``(N, C, ...)`` with their targets; made by :func:`class_rows`.

    The *support* of a row is the set of classes on which its target has mass: the label alone for index targets
    without smoothing (K = 1), every class otherwise (K = C). ``log_p`` and ``log_miss`` live on the support, with
    shape ``(N, K, ...)``, and ``expect`` averages over it; so one line of mathematics serves hard, smoothed and soft
    targets, and hard ones never pay for the others.

    Attributes:
        logits: ``(N, C, ...)``, at least float32; 0 in ignored rows.
        dim: Class axis: 1, or 0 for an unbatched input ``(C,)``.
        keep: ``(N, ...)`` bool, False in ignored rows; None when no row is ignored, as far as could be read.
        index: Labels ``(N, ...)``, 0 where ignored or invalid; None for probability targets.
        probability: Target probabilities ``(N, C, ...)`` after smoothing; None for index targets.
    """

    def __init__(
        self,
        logits: Tensor,
        *,
        unmasked: Tensor,
        dim: int,
        keep: Tensor | None,
        valid: Tensor | None,
        index: Tensor | None,
        probability: Tensor | None,
        weight: Tensor | None,
        label_smoothing: Tensor | float,
        sample_weight: Tensor | None,
    ) -> None:
        self.logits = logits
        self.dim = dim
        self.keep = keep
        self.index = index
        self.probability = probability
        self._unmasked = unmasked
        self._valid = valid
        self._weight = weight
        self._smoothing = label_smoothing
        self._sample_weight = sample_weight
        self._log_softmax: Tensor | None = None
        self._log_odds: Tensor | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits.shape[self.dim]

    @property
    def hard(self) -> bool:
        """Whether the support is the label alone."""
        return self.index is not None and isinstance(self._smoothing, int | float) and self._smoothing == 0

    def log_softmax(self) -> Tensor:
        """Log-probabilities of all classes ``(N, C, ...)``."""
        if self._log_softmax is None:
            self._log_softmax = F.log_softmax(self.logits, self.dim)
        return self._log_softmax

    def log_p(self) -> Tensor:
        """Log-probabilities on the support ``(N, K, ...)``."""
        return self.log_p_of_label().unsqueeze(self.dim) if self.hard else self.log_softmax()

    def log_p_of_label(self, scale: Tensor | float = 1.0) -> Tensor:
        """Log-probability of the label ``(N, ...)``, the logits times ``scale`` first. Index targets only."""
        if isinstance(scale, Tensor) or scale != 1:
            scaled = scale * self.logits
            return others.at_class(F.log_softmax(scaled, self.dim), self._label(), self.dim)
        return self.log_p_of(self._label())

    def log_p_of(self, label: Tensor) -> Tensor:
        """Log-probability ``(N, ...)`` of a class of one's own in each row, with a class axis of 1: ``(N, 1, ...)``."""
        if torch.compiler.is_compiling():
            return self._of_unmasked(others.log_likelihood, label)
        return others.at_class(self.log_softmax(), label, self.dim)

    def log_p_of_scaled(self, logits: Tensor, scale: Tensor) -> Tensor:
        """Log-probabilities on the support ``(N, K, ...)`` of other logits, times a number for each row."""
        if self.hard:
            return others.scaled_log_likelihood(logits, scale, self._label(), self.dim).unsqueeze(self.dim)
        return F.log_softmax(scale * logits, self.dim)

    def log_odds(self, scale: Tensor | float = 1.0) -> Tensor:
        """Log of p / (1 - p) of the label ``(N, ...)``, from the *other* classes' logits. Index targets only.

        ``logsigmoid`` of it is log p, and of its negative log(1 - p). ``scale`` multiplies the logits first.
        """
        if isinstance(scale, Tensor):
            return others.log_odds(scale * self.logits, self._label(), self.dim)
        if scale != 1:
            return self._of_unmasked(lambda z, label, dim: others.log_odds(scale * z, label, dim), self._label())
        if self._log_odds is None:
            self._log_odds = self._of_unmasked(others.log_odds, self._label())
        return self._log_odds

    def log_p_and_miss(self) -> tuple[Tensor, Tensor]:
        """Logs of p and of 1 - p on the support, each ``(N, K, ...)``, from one pass of exponentials for a label alone.

        ``log1mexp(log p)`` loses everything when p is near 1 (in float32 5% at a logit gap of 14, 100% at 18).
        """
        if self.hard:
            odds = self.log_odds().unsqueeze(self.dim)
            return F.logsigmoid(odds), F.logsigmoid(-odds)
        return others.exact_log_softmax(self.logits, self.log_softmax(), self.dim)

    def log_miss(self) -> Tensor:
        """Log of 1 - p on the support ``(N, K, ...)``; see :meth:`log_p_and_miss`."""
        return self.log_miss_of_label().unsqueeze(self.dim) if self.hard else self.log_miss_of_all()

    def log_miss_of_label(self) -> Tensor:
        """Log of 1 - p of the label ``(N, ...)``. Index targets only."""
        return F.logsigmoid(-self.log_odds())

    def log_miss_of_all(self) -> Tensor:
        """Log of 1 - p of all classes ``(N, C, ...)``."""
        return others.exact_log_softmax(self.logits, self.log_softmax(), self.dim)[1]

    def exact_softmax(self) -> tuple[Tensor, Tensor]:
        """Logs of p and 1 - p itself of all classes ``(N, C, ...)``, both with all digits."""
        return others.exact_softmax(self.logits, self.dim)

    def good_labels(self) -> Tensor | None:
        """Where the label lies in range ``(N, ...)``, ignored rows aside; None where every one is known to."""
        return self._valid

    def kept(self) -> Tensor:
        """``(N, ...)`` bool, False in ignored rows."""
        if self.keep is None:
            return torch.ones_like(self.logits.select(self.dim, 0), dtype=torch.bool)
        return self.keep

    def at_label(self, values: Tensor) -> Tensor:
        """Values ``(N, C, ...)`` at the label ``(N, ...)``. Index targets only."""
        return others.at_class(values, self._label(), self.dim)

    def is_label(self) -> Tensor:
        """``(N, C, ...)`` bool, True at the label. Index targets only."""
        return others.is_class(self.logits, self._label(), self.dim)

    def replaced(self, values: Tensor, own: Tensor | float) -> Tensor:
        """Values of all classes ``(N, C, ...)`` with ``own``, a number or ``(N, ...)``, at the label."""
        return others.replaced(values, self._label(), self.dim, own)

    def margin(self) -> Tensor:
        """The label's logit minus the best of the others ``(N, ...)``. Index targets only."""
        return self._of_unmasked(others.margin, self._label())

    def soft_maximum_of_gaps(self, values: Tensor, margin: Tensor | float, temperature: Tensor) -> Tensor:
        """See :mod:`lossary.core.soft_maximum`; of values of all classes, ``(N, ...)``. Index targets only."""
        return soft_maximum_of_gaps(values, self._label(), margin, temperature, self.dim)

    def margin_shift(self, moved: Tensor) -> Tensor:
        """Euclidean norm of how far the label's margins are from those of other logits ``(N, C, ...)``, ``(N, ...)``.

        A class that is excluded in both, by a logit of -inf, has not moved. Index targets only.
        """
        return others.margin_shift(self.logits, self.masked(moved), self._label(), self.dim)

    def one_vs_rest(self) -> Tensor:
        """Logistic losses of the label's logit and of minus all others, summed ``(N, ...)``. Index targets only."""
        return self._of_unmasked(others.one_vs_rest, self._label())

    def on_support(self, values: Tensor) -> Tensor:
        """Values of all classes ``(N, C, ...)`` taken to the support ``(N, K, ...)``."""
        return self.at_label(values).unsqueeze(self.dim) if self.hard else values

    def per_class(self, vector: Tensor) -> Tensor:
        """A number for each class ``(C,)`` taken to the support: ``(N, 1, ...)``, or ``(C, 1, ...)`` to broadcast."""
        vector = vector.to(self.logits.dtype)
        if self.hard:
            assert self.index is not None
            return vector[self.index].unsqueeze(self.dim)
        return vector.reshape([-1] + [1] * (self.logits.ndim - 1 - self.dim))

    def expect(self, values: Tensor) -> Tensor:
        """Sum of target probability x class weight x values over the support: ``(N, K, ...)`` to ``(N, ...)``.

        As in ``torch.nn.functional.cross_entropy`` smoothing and class weights act inside the class sum. A class
        without target probability contributes 0 whatever its value is, infinite ones included.
        """
        if self.index is None:
            assert self.probability is not None
            return self.expect_under(self.probability, values)
        weighted = values if self._weight is None else self.per_class(self._weight) * values
        if self.hard:
            return weighted.squeeze(self.dim)
        smoothing = self._smoothing
        spread = weighted.sum(self.dim) / self.num_classes
        mixed = (1 - smoothing) * self.at_label(weighted) + smoothing * spread
        if isinstance(smoothing, Tensor):  # a smoothing of 0 that only a tensor knows: 0 * inf must not be NaN
            mixed = torch.where(smoothing == 0, self.at_label(weighted), mixed)
        return mixed

    def expect_under(self, probability: Tensor, values: Tensor) -> Tensor:
        """As ``expect``, of values of all classes under probabilities of one's own: ``(N, C, ...)`` to ``(N, ...)``.

        They may be negative; where they are 0 the value counts for nothing, infinite or not.
        """
        if self._weight is not None:
            values = self._weight.reshape([-1] + [1] * (self.logits.ndim - 1 - self.dim)) * values
        return numerics.weighted_sum(probability, values, self.dim)

    def cross_entropy_under(self, target_logits: Tensor) -> Tensor:
        """Cross-entropy under the softmax of other logits ``(N, C, ...)``, constants, class weights in its sum."""
        if self._weight is None:
            return self._of_unmasked(divergence.cross_entropy, target_logits)
        return -self.expect_under(self.masked(target_logits).detach().softmax(self.dim), self.log_softmax())

    def kl_from(self, target_logits: Tensor) -> Tensor:
        """Divergence of the softmax of these logits from that of other ones ``(N, C, ...)``."""
        return self._of_unmasked(divergence.kl, target_logits)

    def masked(self, values: Tensor) -> Tensor:
        """Values of all classes ``(N, C, ...)`` with 0 in ignored rows, so that nothing there reaches a gradient."""
        return values if self.keep is None else torch.where(self.keep.unsqueeze(self.dim), values, 0.0)

    def label_weight(self) -> Tensor:
        """Class weight of each row's label ``(N, ...)``; ones (as a 0-d tensor) without class weights."""
        if self._weight is None or self.index is None:
            return self.logits.new_ones(())
        return self._weight[self.index]

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the kept rows of values ``(N, ...)``, by ``sample_weight`` but not by class; 0 without rows."""
        weight = torch.ones_like(values) if self._sample_weight is None else self._sample_weight
        weight = _masked(weight, self.keep)
        total = weight.sum()
        return (_masked(values, self.keep) * weight).sum() / torch.where(total == 0, 1.0, total)

    def reduce(
        self,
        values: Tensor,
        *,
        reduction: Reduction,
        normalizer: Tensor | float | None,
        nothing_is_zero: bool = False,
    ) -> Tensor:
        """Reduce a loss per row ``(N, ...)``, class weights already inside, as PyTorch does.

        ``mean`` divides by the summed weights of the kept rows for index targets and by their number for probability
        targets; ``normalizer`` replaces that divisor. Where it is 0 the mean is NaN, or 0 with ``nothing_is_zero``.
        """
        return reduce_rows(
            values,
            keep=self.keep,
            valid=self._valid,
            label_weight=self.label_weight(),
            sample_weight=self._sample_weight,
            reduction=reduction,
            normalizer=normalizer,
            nothing_is_zero=nothing_is_zero,
        )

    def _of_unmasked(self, formula: Callable[[Tensor, Tensor, int], Tensor], other: Tensor) -> Tensor:
        """A formula of logits, class or other logits, and axis.

        Compiled, ignored rows are masked in its result, a number for each, and the formula masks its gradient.
        """
        if torch.compiler.is_compiling() and not checks.is_transformed():
            return _masked(formula(self._unmasked, other, self.dim), self.keep)
        return formula(self.logits, self.masked(other) if other.is_floating_point() else other, self.dim)

    def _label(self) -> Tensor:
        if self.index is None:
            raise ValueError("target holds probabilities; this objective is defined for class indices (N, ...) only.")
        return self.index.unsqueeze(self.dim)


def reduce_rows(
    values: Tensor,
    *,
    keep: Tensor | None,
    valid: Tensor | None,
    label_weight: Tensor,
    sample_weight: Tensor | None,
    reduction: Reduction,
    normalizer: Tensor | float | None,
    nothing_is_zero: bool = False,
) -> Tensor:
    """Reduce a loss per row as PyTorch does; what :meth:`ClassRows.reduce` and its like on other inputs share.

    Args:
        values: Loss of each row, class weights inside.
        keep: False in rows that count for nothing.
        valid: False where the label is out of range and the check of labels stood aside.
        label_weight: Class weight of each row's label, or a 0-d one: the divisor of ``mean``.
        sample_weight: Weight of each row.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of that of ``mean``.
        nothing_is_zero: Whether a ``mean`` over no weight is 0, not NaN.
    """
    checks.check_reduction(reduction)
    checks.check_normalizer(normalizer)
    if valid is not None:  # where the check of labels stood aside: NaN, never a plausible number
        values = torch.where(valid, values, torch.nan)
    values = _masked(values, keep)
    if sample_weight is not None:
        values = values * _masked(sample_weight, keep)
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum() if normalizer is None else values.sum() / normalizer
    if normalizer is None:
        divisor = label_weight if sample_weight is None else label_weight * sample_weight
        normalizer = _masked(divisor.expand(values.shape), keep).sum()
        if nothing_is_zero:
            normalizer = torch.where(normalizer == 0, 1.0, normalizer)
    return values.sum() / normalizer


def class_rows(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    index_only: bool = False,
) -> ClassRows:
    """Check, mask and widen the arguments of an objective over exclusive classes.

    Args:
        input: Logits ``(N, C, ...)`` or ``(C,)``, floating point; halves are widened to float32.
        target: Class indices ``(N, ...)`` of any integer dtype, or probabilities ``(N, C, ...)``.
        weight: One weight for each class ``(C,)``.
        ignore_index: Label of rows that count for nothing; index targets only.
        label_smoothing: Share of the target that is spread evenly over the classes, in [0, 1].
        sample_weight: One weight for each row ``(N, ...)``.
        index_only: Refuse probability targets, for objectives that are defined for a label alone.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape is wrong, or a label or probability is out of range (where values can be read).
    """
    return _class_rows(
        input,
        target,
        name="input",
        last=False,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
        index_only=index_only,
    )


def token_rows(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
) -> ClassRows:
    """As :func:`class_rows`, for objectives over tokens: the vocabulary is the last axis, targets are indices.

    Args:
        logits: Logits ``(..., V)``, floating point; halves are widened to float32.
        target: Class indices ``(...)`` of any integer dtype.
        weight: One weight for each entry of the vocabulary ``(V,)``.
        ignore_index: Label of tokens that count for nothing.
        label_smoothing: Share of the target that is spread evenly over the vocabulary, in [0, 1].
        sample_weight: One weight for each token ``(...)``.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape is wrong, or a label is out of range (where values can be read).
    """
    return _class_rows(
        logits,
        target,
        name="logits",
        last=True,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
        index_only=True,
    )


def bin_rows(input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None, name: str = "target") -> ClassRows:
    """Check and widen the arguments of an objective over bins, whose axis is the last.

    Args:
        input: Logits ``(..., B)``, floating point; halves are widened to float32.
        target: Probabilities ``(..., B)`` that objectives make from real targets; constants to the gradient.
        sample_weight: One weight for each row ``(...)``.
        name: What an error calls the target.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape is wrong.
    """
    checks.check_floating("input", input)
    checks.check_shape(name, target, input.shape, "a probability for each bin of input (bins last)")
    logits = widen(input)
    return ClassRows(
        logits,
        unmasked=logits,
        dim=logits.ndim - 1,
        keep=None,
        valid=None,
        index=None,
        probability=target.detach().to(logits.dtype),
        weight=None,
        label_smoothing=0.0,
        sample_weight=_row_weight(sample_weight, logits.shape[:-1], logits.dtype),
    )


class LabelEntries:
    """Logits of independent yes/no labels with their targets; made by :func:`label_entries`.

    Attributes:
        logits: Any shape, at least float32.
        target: The same shape and dtype, in [0, 1].
    """

    def __init__(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None) -> None:
        self.logits = logits
        self.target = target
        self._sample_weight = sample_weight

    def evaluate(self, formula: Formula, *hyperparameters: object) -> Tensor:
        """Value of an elementwise formula ``(logits, target)`` that gives its derivative in the logits beside it."""
        return with_slope(formula, self.logits, self.target, hyperparameters=hyperparameters)

    def log_p(self) -> Tensor:
        """Log of p = sigmoid(z)."""
        return F.logsigmoid(self.logits)

    def log_not_p(self) -> Tensor:
        """Log of 1 - p = sigmoid(-z)."""
        return F.logsigmoid(-self.logits)

    def reduce(self, values: Tensor, *, reduction: Reduction, normalizer: Tensor | float | None) -> Tensor:
        """Reduce a loss per entry; ``mean`` divides by the number of entries (or their summed ``sample_weight``)."""
        checks.check_reduction(reduction)
        checks.check_normalizer(normalizer)
        weight = self._sample_weight
        if weight is not None:
            values = values * weight
        if reduction == "none":
            return values
        if reduction == "sum":
            return values.sum() if normalizer is None else values.sum() / normalizer
        if normalizer is not None:
            return values.sum() / normalizer
        return values.mean() if weight is None else values.sum() / weight.expand(values.shape).sum()


def label_entries(input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None) -> LabelEntries:
    """Check and widen the arguments of an objective over independent yes/no labels.

    Args:
        input: Logits of any shape, floating point; halves are widened to float32.
        target: The same shape, floating point (or bool), in [0, 1].
        sample_weight: One weight for each entry (input's shape), or for each row ``(N,)``.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape is wrong, or a target lies outside [0, 1] (where values can be read).
    """
    checks.check_floating("input", input)
    if not isinstance(target, Tensor):
        raise TypeError(f"target is {type(target).__name__}; wanted a tensor.")
    if not (target.is_floating_point() or target.dtype == torch.bool):
        raise TypeError(f"target has dtype {target.dtype}; wanted floating point in [0, 1] (use target.float()).")
    checks.check_shape("target", target, input.shape, "a target in [0, 1] for each logit of input")
    if checks.may_read_values(target):
        checks.check_unit_interval("target", target)
    logits = widen(input)
    if sample_weight is not None and input.ndim > 1 and sample_weight.shape == input.shape[:1]:
        sample_weight = sample_weight.reshape([-1] + [1] * (input.ndim - 1))
    elif sample_weight is not None:
        checks.check_shape("sample_weight", sample_weight, input.shape, "a weight for each entry, or (N,) for each row")
    weight = None if sample_weight is None else sample_weight.to(logits.dtype)
    return LabelEntries(logits, target.to(logits.dtype), weight)


def widen(input: Tensor) -> Tensor:
    """Halves to float32; wider floats stay."""
    return input.float() if input.dtype in (torch.float16, torch.bfloat16) else input


def _class_rows(
    input: Tensor,
    target: Tensor,
    *,
    name: str,
    last: bool,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: Tensor | float,
    sample_weight: Tensor | None,
    index_only: bool,
) -> ClassRows:
    checks.check_floating(name, input)
    if not isinstance(target, Tensor):
        raise TypeError(f"target is {type(target).__name__}; wanted a tensor.")
    if input.ndim == 0:
        raise ValueError(f"{name} has shape (); wanted {'(..., V)' if last else 'logits (N, C, ...) or (C,)'}.")
    dim = input.ndim - 1 if last else min(input.ndim - 1, 1)
    rows_shape = input.shape[:dim] + input.shape[dim + 1 :]
    num_classes = input.shape[dim]
    checks.check_class_vector("weight", weight, num_classes)
    checks.check_in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    logits = unmasked = widen(input)
    keep = valid = index = probability = None
    if target.is_floating_point():
        if index_only:
            raise ValueError(
                f"target has dtype {target.dtype} and shape {tuple(target.shape)}; this objective wants class indices "
                f"(int64) of shape {tuple(rows_shape)}: it is not defined for probabilities."
            )
        checks.check_shape("target", target, input.shape, "probabilities shaped as input, or int64 class indices")
        if ignore_index != -100:
            raise ValueError("ignore_index is for class-index targets; for probabilities use sample_weight of 0.")
        if checks.may_read_values(target):
            checks.check_unit_interval("target", target)
        smoothed = target.to(logits.dtype)
        probability = smoothed * (1 - label_smoothing) + label_smoothing / num_classes
    else:
        if target.dtype == torch.bool or target.is_complex():
            wanted = "int64 class indices" + ("" if index_only else " or float probabilities")
            raise TypeError(f"target has dtype {target.dtype}; wanted {wanted}.")
        checks.check_shape(
            "target",
            target,
            rows_shape,
            f"a class index for each row of {name} (class axis at dim {dim})"
            + ("" if index_only else ", or probabilities"),
        )
        target = target.long()  # a small integer type wraps numbers that it is compared with round
        if checks.may_read_values(target) and checks.check_labels(target, num_classes, ignore_index):
            index = target  # every row counts: no masks, each of which is a pass over the logits
        else:
            keep = target != ignore_index
            valid = (target >= 0) & (target < num_classes)
            index = torch.where(valid & keep, target, 0)
            logits = torch.where(keep.unsqueeze(dim), logits, 0.0)
    return ClassRows(
        logits,
        unmasked=unmasked,
        dim=dim,
        keep=keep,
        valid=valid,
        index=index,
        probability=probability,
        weight=None if weight is None else weight.to(logits.dtype),
        label_smoothing=label_smoothing,
        sample_weight=_row_weight(sample_weight, rows_shape, logits.dtype),
    )


def _row_weight(sample_weight: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
    if sample_weight is None:
        return None
    checks.check_shape("sample_weight", sample_weight, shape, "a weight for each row")
    return sample_weight.to(dtype)


def _masked(values: Tensor, keep: Tensor | None) -> Tensor:
    return values if keep is None else torch.where(keep, values, 0.0)
