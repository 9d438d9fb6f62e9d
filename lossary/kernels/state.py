"""What a sweep over the vocabulary keeps of each row, and what follows from it.

A sweep sees a block of logits at a time and keeps eight numbers for each row (:class:`Partial`). Partials of blocks,
or of ranks that hold a part of the vocabulary each, merge into one; from the merged partial come the statistics
(:func:`statistics`), and from the gradients that reach these the few coefficients with which a second sweep forms the
gradient of any logit (:func:`coefficients`).

The target's logit is held apart from the others', which are summed relative to their own maximum. So the probability of
the target is a sigmoid of one number, the gap, and neither it nor its complement is ever a difference of two numbers
near 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STATISTICS = (
    "log_prob",
    "log_miss",
    "logsumexp",
    "squared_logsumexp",
    "entropy",
    "mean_log_prob",
    "weighted_mean_log_prob",
    "target_logit",
    "expected_logit",
)
OF_TARGET = frozenset({"log_prob", "log_miss", "target_logit"})
OF_MOMENT = frozenset({"entropy", "expected_logit"})
SPREAD = frozenset({"mean_log_prob", "weighted_mean_log_prob"})


class Partial(NamedTuple):
    """What is kept of each row over some of the vocabulary, every field ``(N,)``; stacked it is ``(8, N)``.

    Attributes:
        maximum: Largest logit of the others (all but the target), -inf without any.
        total: Sum of exp(z - maximum) over the others.
        moment: Sum of exp(z - maximum) (z - maximum) over the others.
        sum: Sum of z - maximum over the others.
        weighted: The same, weighted by class.
        number: Number of the others.
        mass: Their summed class weights.
        target: Logit of the target, -inf where it lies elsewhere.
    """

    maximum: Tensor
    total: Tensor
    moment: Tensor
    sum: Tensor
    weighted: Tensor
    number: Tensor
    mass: Tensor
    target: Tensor


class Coefficients(NamedTuple):
    """How the gradient of a logit follows from it, every field ``(N,)``; stacked it is ``(8, N)``.

    The gradient at the target is ``target + uniform + weighted w_v``, at any other logit z_v, with
    d = z_v - ``maximum``, ``exp(d) (constant + slope d) + uniform + weighted w_v``.

    Attributes:
        maximum: As in :class:`Partial`.
        constant: See above.
        slope: See above.
        target: See above.
        uniform: See above.
        weighted: See above.
        probability: exp(d) times this is what a filter compares: the probability of the logit, or its gradient in
            ``log_miss`` (relative to the largest upstream), if that is larger.
        miss: The same of the target: 1 - its probability, or its gradient, if that is larger.
    """

    maximum: Tensor
    constant: Tensor
    slope: Tensor
    target: Tensor
    uniform: Tensor
    weighted: Tensor
    probability: Tensor
    miss: Tensor


def merge(partials: Tensor) -> Tensor:
    """Partials ``(P, 8, N)`` of parts of the vocabulary to that of the whole ``(8, N)``."""
    part = Partial(*partials.unbind(1))
    maximum = part.maximum.amax(0)
    reference, whole = _finite(part.maximum), _finite(maximum)
    scale = torch.exp(part.maximum - whole)
    offset = reference - whole
    return torch.stack(
        Partial(
            maximum=maximum,
            total=(part.total * scale).sum(0),
            moment=(scale * (part.moment + part.total * offset)).sum(0),
            sum=(part.sum + part.number * offset).sum(0),
            weighted=(part.weighted + part.mass * offset).sum(0),
            number=part.number.sum(0),
            mass=part.mass.sum(0),
            target=part.target.amax(0),
        )
    )


def statistics(names: Sequence[str], partial: Tensor, target_weight: Tensor | None, has_target: bool) -> Tensor:
    """The statistics named ``(S, N)`` of the whole vocabulary's partial ``(8, N)``.

    Args:
        names: Of :data:`STATISTICS`.
        partial: The merged partial.
        target_weight: Class weight of the target ``(N,)``, for ``weighted_mean_log_prob``.
        has_target: Whether rows have a target at all.
    """
    row = _Row(Partial(*partial.unbind(0)), has_target)
    values: dict[str, Tensor] = {}
    for name in names:
        if name in ("mean_log_prob", "weighted_mean_log_prob"):
            values[name] = row.mean_log_prob() if name == "mean_log_prob" else row.weighted_mean(target_weight)
        elif name == "squared_logsumexp":
            values[name] = row.logsumexp.square()
        else:
            values[name] = getattr(row, name)
    return torch.stack([values[name].expand(partial.shape[1:]) for name in names])


def coefficients(
    names: Sequence[str],
    gradients: Tensor,
    partial: Tensor,
    target_weight: Tensor | None,
    has_target: bool,
    temperature: float,
) -> Tensor:
    """:class:`Coefficients` ``(8, N)`` of the logits before ``temperature``, from gradients of the statistics."""
    row = _Row(Partial(*partial.unbind(0)), has_target)
    zero = torch.zeros_like(row.maximum)
    constant, slope, target, uniform, weighted = zero, zero, zero, zero, zero
    p, log_p, log_miss = row.probability, row.log_prob, row.log_miss
    miss = log_miss.exp()
    # Of the others p = exp(d) x probability and log p = d + shift; where all of them are -inf, exp(d) is 0.
    empty = row.partial.total == 0
    log_total = torch.where(empty, 0.0, row.log_total)
    shift = torch.where(empty, 0.0, log_miss - log_total)
    probability = torch.where(empty, 0.0, torch.exp(shift))
    compared = probability
    largest = gradients.abs().amax() if gradients.numel() else zero.sum()
    largest = torch.where(largest > 0, largest, 1.0)
    for name, g in zip(names, gradients.unbind(0), strict=True):
        if name == "log_prob":
            constant, target = constant - g * probability, target + g * miss
        elif name == "log_miss":
            share = g * p * torch.exp(-log_total)
            constant, target = constant + share, target - g * p
            # The others share what a confident row lacks: their gradient is large where their probability is not.
            compared = torch.maximum(compared, share.abs() / largest)
        elif name in ("logsumexp", "squared_logsumexp"):
            g = g if name == "logsumexp" else 2 * g * row.logsumexp
            constant, target = constant + g * probability, target + g * p
        elif name in ("entropy", "expected_logit"):  # of logit v: -+ p (log p + entropy), and p more for the latter
            sign, more = (-1, 0) if name == "entropy" else (1, 1)
            constant = constant + g * probability * (more + sign * (shift + row.entropy))
            slope = slope + sign * g * probability
            target = target + g * (more * p + sign * (_times(p, log_p) + p * row.entropy))
        elif name == "mean_log_prob":
            uniform = uniform + g / row.num_classes
            constant, target = constant - g * probability, target - g * p
        elif name == "weighted_mean_log_prob":
            share = g * (row.mass(target_weight) / row.num_classes)
            weighted = weighted + g / row.num_classes
            constant, target = constant - share * probability, target - share * p
        else:
            target = target + g
    compared_miss = torch.maximum(miss, target.abs() / largest)
    if temperature != 1:
        constant, slope, target, uniform, weighted = (
            c / temperature for c in (constant, slope, target, uniform, weighted)
        )
    return torch.stack(
        Coefficients(_finite(row.maximum), constant, slope, target, uniform, weighted, compared, compared_miss)
    )


class _Row:
    """What the two functions above share: everything about a row that follows from its partial."""

    def __init__(self, partial: Partial, has_target: bool) -> None:
        self.partial = partial
        self.has_target = has_target
        self.maximum = partial.maximum
        self.num_classes = partial.number + (1 if has_target else 0)
        self.log_total = torch.log(partial.total)
        self.target_logit = partial.target
        if has_target:
            # log of the target's odds against all others
            self._gap = (partial.target - self.maximum) - self.log_total
            self.log_prob = F.logsigmoid(self._gap)
        else:
            self.log_prob = torch.full_like(self.maximum, -math.inf)

    @property
    def log_miss(self) -> Tensor:
        return F.logsigmoid(-self._gap) if self.has_target else torch.zeros_like(self.maximum)

    @property
    def probability(self) -> Tensor:
        return torch.sigmoid(self._gap) if self.has_target else torch.zeros_like(self.maximum)

    @property
    def logsumexp(self) -> Tensor:
        return self._top + self._log_sum

    @property
    def log_scale(self) -> Tensor:
        """maximum - logsumexp, without its rounding."""
        return (_finite(self.maximum) - self._top) - self._log_sum

    @property
    def _top(self) -> Tensor:
        return torch.maximum(self.maximum, self.target_logit) if self.has_target else self.maximum

    @property
    def _log_sum(self) -> Tensor:
        """logsumexp - the largest logit."""
        if not self.has_target:
            return self.log_total
        top = _finite(self._top)
        return torch.log(self.partial.total * torch.exp(self.maximum - top) + torch.exp(self.target_logit - top))

    @property
    def entropy(self) -> Tensor:
        """-sum p log p, from terms that are all >= 0."""
        of_others = self.log_total - self.partial.moment / self.partial.total
        if not self.has_target:
            return of_others
        miss = self.log_miss.exp()
        return _times(miss, of_others - self.log_miss) - _times(self.probability, self.log_prob)

    @property
    def expected_logit(self) -> Tensor:
        """Sum p z."""
        of_others = self.maximum + self.partial.moment / self.partial.total
        if not self.has_target:
            return of_others
        return _times(self.log_miss.exp(), of_others) + _times(self.probability, self.target_logit)

    def mean_log_prob(self) -> Tensor:
        total = self.partial.sum
        if self.has_target:
            total = total + (self.target_logit - _finite(self.maximum))
        return total / self.num_classes + self.log_scale

    def weighted_mean(self, target_weight: Tensor | None) -> Tensor:
        total = self.partial.weighted
        if self.has_target:
            assert target_weight is not None
            total = total + _times(target_weight, self.target_logit - _finite(self.maximum))
        return (total + self.mass(target_weight) * self.log_scale) / self.num_classes

    def mass(self, target_weight: Tensor | None) -> Tensor:
        return self.partial.mass if target_weight is None or not self.has_target else self.partial.mass + target_weight


def _finite(maximum: Tensor) -> Tensor:
    """A maximum that can be subtracted: 0 where there is nothing but -inf."""
    return torch.where(maximum == -math.inf, 0.0, maximum)


def _times(factor: Tensor, value: Tensor) -> Tensor:
    """Product in which a factor of 0 silences an infinite or undefined value."""
    return torch.where(factor == 0, 0.0, factor * value)
