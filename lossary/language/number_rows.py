"""Rows of tokens seen by their numbers: what number objectives on logits and on a linear head share.

Number tokens are the entries of a vocabulary that stand for a number; K of them, with values v. Everything here lives
on the K logits of a row and the target's number y.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core import checks
from lossary.core.rows import reduce_rows
from lossary.core.types import Reduction
from lossary.kernels import head_rows

NumberDistance = Literal["wasserstein", "mse", "mae", "huber"]


class Numbers:
    """The number tokens of a vocabulary.

    Attributes:
        index: Their entries ``(K,)``; None where values cannot be read, and K is then the whole vocabulary.
        values: Their values ``(K,)``; 0 at entries that are no number.
    """

    def __init__(self, number_values: Tensor, index: Tensor | None) -> None:
        self.index = number_entries(number_values) if index is None else index
        values = number_values if self.index is None else number_values[self.index]
        self._is_number = values.isfinite()
        self.values = torch.where(self._is_number, values, 0.0)

    def among(self, of_vocabulary: Tensor) -> Tensor:
        """Logits (or log-probabilities) of the number tokens ``(..., K)`` among those of all entries ``(..., V)``."""
        return self.only(of_vocabulary if self.index is None else of_vocabulary.index_select(-1, self.index))

    def only(self, chosen: Tensor) -> Tensor:
        """Logits ``(..., K)``, -inf at entries that are no number."""
        return torch.where(self._is_number, chosen, -math.inf)


class NumberRows(Numbers):
    """The number tokens of a vocabulary, and the rows whose target is one; made by :func:`number_rows`.

    Attributes:
        target: Number of each row's target ``(...)``, 0 where the row does not count.
        counts: Whether a row counts: its target is a number token and not ignored.
        weight: Weight of each row.
    """

    def __init__(
        self,
        number_values: Tensor,
        index: Tensor | None,
        *,
        target: Tensor,
        counts: Tensor,
        valid: Tensor,
        weight: Tensor,
    ) -> None:
        super().__init__(number_values, index)
        self.target = target
        self.counts = counts
        self.weight = weight
        self._valid = valid

    def probability(self, chosen: Tensor) -> Tensor:
        """Softmax restricted to the number tokens ``(..., K)``; a row that does not count has no part in it."""
        return torch.where(self.counts.unsqueeze(-1), chosen, 0.0).softmax(-1)

    def loss(
        self, chosen: Tensor, *, kind: NumberDistance, squash_factor: float | None, label_smoothing: Tensor | float
    ) -> Tensor:
        """Distance of the predicted number from the target's, by row, from the number tokens' logits."""
        q = self.probability(chosen)
        if kind == "wasserstein":
            if isinstance(label_smoothing, Tensor) or label_smoothing:
                return self._between_distributions(q, label_smoothing)
            distance = self._squashed((self.values - self.target.unsqueeze(-1)).abs(), squash_factor)
            return (q * distance).sum(-1)
        spread = self.values.sum() / self._is_number.sum()
        wanted = (1 - label_smoothing) * self.target + label_smoothing * spread
        return _off_by((q * self.values).sum(-1) - wanted, kind)

    def farthest(self, kind: NumberDistance, squash_factor: float | None) -> Tensor:
        """The loss of the farthest pair of number tokens."""
        low, high = self._ends()
        if kind == "wasserstein":
            return self._squashed(high - low, squash_factor)
        return _off_by(high - low, kind)

    def reduce(
        self,
        loss: Tensor,
        *,
        reduction: Reduction,
        normalizer: Tensor | float | None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Reduce a loss by row; ``mean`` is over the rows that count, by weight, and 0 without any."""
        return reduce_rows(
            self.weight * loss,
            keep=self.counts if counts is None else counts,
            valid=self._valid,
            label_weight=self.weight,
            sample_weight=None,
            reduction=reduction,
            normalizer=normalizer,
            nothing_is_zero=True,
        )

    def _between_distributions(self, q: Tensor, label_smoothing: Tensor | float) -> Tensor:
        """Wasserstein-1 between q and the smoothed target: the area between their cumulative distributions."""
        order = torch.where(self._is_number, self.values, math.inf).argsort()
        values, numbers = self.values[order], self._is_number[order].to(q.dtype)
        uniform = numbers.cumsum(0) / numbers.sum()
        reached = (values >= self.target.unsqueeze(-1)).to(q.dtype)
        wanted = (1 - label_smoothing) * reached + label_smoothing * uniform
        gaps = torch.where(numbers[1:] == 1, values.diff(), 0.0)
        return ((q[..., order].cumsum(-1) - wanted)[..., :-1].abs() * gaps).sum(-1)

    def _squashed(self, distance: Tensor, factor: float | None) -> Tensor:
        """Distances mapped so that the farthest number costs ``factor`` times the nearest wrong one."""
        if factor is None:
            return distance
        low, high = self._ends()
        gaps = torch.where(self._is_number, self.values, math.inf).sort().values.diff()
        gaps = torch.cat([torch.where((gaps > 0) & gaps.isfinite(), gaps, math.inf), gaps.new_full((1,), math.inf)])
        nearest, farthest = gaps.amin(), high - low
        several = farthest > nearest  # one distance alone leaves nothing to squash
        slope = torch.where(several, (factor - 1) / torch.where(several, farthest - nearest, 1.0), 0.0)
        return torch.where(distance == 0, 0.0, 1 + torch.where(several, distance - nearest, 0.0) * slope)

    def _ends(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value; 0 and 0 without numbers."""
        if not len(self.values):
            return self.values.new_zeros(()), self.values.new_zeros(())
        low = torch.where(self._is_number, self.values, math.inf).amin()
        high = torch.where(self._is_number, self.values, -math.inf).amax()
        some = high >= low
        return torch.where(some, low, 0.0), torch.where(some, high, 0.0)

    def runs(self, digits: Tensor, target: Tensor, dot_id: int | None) -> tuple[Tensor, Tensor]:
        """Symmetric relative error of each run of digits, at its first token ``(B, T)``, and where runs start.

        Args:
            digits: Expected digit of each token ``(B, T)``.
            target: Class indices, among which a dot may join two digits.
            dot_id: Entry of the dot; None where it ends a number.
        """
        is_digit = self.counts
        before, after = F.pad(is_digit, (1, 0))[:, :-1], F.pad(is_digit, (0, 1))[:, 1:]
        dot = torch.zeros_like(is_digit) if dot_id is None else (target == dot_id) & before & after
        inside = is_digit | dot
        starts = inside & ~F.pad(inside, (1, 0))[:, :-1]
        run = torch.where(inside, starts.long().cumsum(1), 0)  # 0 collects what is in no run

        def total(x: Tensor) -> Tensor:
            """Sum of x over the run that each token is in."""
            return x.new_zeros(x.shape[0], x.shape[1] + 1).scatter_add(1, run, x).gather(1, run)

        place = is_digit.long().cumsum(1)
        first, length = total(torch.where(starts, place, 0)), total(is_digit.long())
        # Places from the left, 1, 1/10 ...: the error is relative, and numbers of any length stay finite.
        scale = torch.where(is_digit, 10.0 ** (first - place).clamp(max=0).to(digits.dtype), 0.0)
        wanted, expected = total(scale * self.target), total(scale * torch.where(is_digit, digits, 0.0))
        info = torch.finfo(digits.dtype)
        last_place = 10.0 ** (1 - length).to(digits.dtype)
        smallest = (info.eps * last_place).clamp(min=info.tiny)
        error = (expected - wanted).abs() / (expected.abs() + wanted.abs() + smallest)
        return torch.where(starts, error, 0.0), starts


def number_rows(
    target: Tensor,
    number_values: Tensor,
    number_index: Tensor | None,
    *,
    vocab: int,
    dtype: torch.dtype,
    weight: Tensor | None = None,
    loss_weights: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
) -> NumberRows:
    """Check what number objectives take beside logits or a head, and find the rows that count.

    Args:
        target: Class indices ``(...)``, aligned.
        number_values: Value of each entry of the vocabulary ``(V,)``, NaN for text.
        number_index: The entries that are numbers ``(K,)``, if known.
        vocab: V.
        dtype: What to compute in.
        weight: Weights of entries of the vocabulary, by target.
        loss_weights: Weights of tokens, at least 0.
        sample_weight: Weights of tokens, too.
        ignore_index: Label of tokens that count for nothing.
    """
    checks.check_class_vector("number_values", number_values, vocab)
    values = number_values.detach().to(dtype)
    valid = (target >= 0) & (target < vocab)
    keep = target != ignore_index
    label = torch.where(valid & keep, target, 0).long()
    number = values[label]
    # An invalid label counts, so that it makes the value NaN where nobody could see it.
    counts = keep & (number.isfinite() | ~valid)
    total = torch.ones_like(number) if weight is None else weight.to(dtype)[label]
    for name, given in (("loss_weights", loss_weights), ("sample_weight", sample_weight)):
        if given is not None:
            checks.check_shape(name, given, target.shape, "a weight for each token")
            if name == "loss_weights" and checks.may_read_values(given) and (given < 0).any():
                raise ValueError(f"loss_weights contains {float(given.min()):g}; wanted weights of at least 0.")
            total = total * given.to(dtype)
    return NumberRows(
        values,
        number_index,
        target=torch.where(counts, torch.where(valid, number, math.nan), 0.0),
        counts=counts,
        valid=valid | ~keep,
        weight=total,
    )


def head_numbers(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    number_values: Tensor,
    linear_bias: Tensor | None,
    *,
    number_index: Tensor | None,
    ignore_index: int,
    reweigh: bool,
    shift: int,
    weight: Tensor | None = None,
    loss_weights: Tensor | None = None,
    sample_weight: Tensor | None = None,
    **options: Any,
) -> tuple[NumberRows, Tensor, Tensor | None, Tensor]:
    """As :func:`number_rows` on a linear head, of which the number tokens alone are made.

    Returns:
        The rows; the number tokens' logits ``(..., K)``; their mass under the full softmax if ``reweigh`` asks for it;
        the target less its first ``shift`` columns.
    """
    call: dict[str, Any] = {"linear_weight": linear_weight, "linear_bias": linear_bias, "shift": shift, **options}
    rows = head_rows(input, target=target, weight=weight, ignore_index=ignore_index, **call)
    if shift:
        weights = (None if given is None else given[..., shift:] for given in (loss_weights, sample_weight))
        (loss_weights, sample_weight), target = weights, target[..., shift:]
    numbers = number_rows(
        target,
        number_values,
        number_index,
        vocab=rows.vocab,
        dtype=rows.target_weight().dtype,
        weight=weight,
        loss_weights=loss_weights,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
    )
    entries = torch.arange(rows.vocab, device=target.device) if numbers.index is None else numbers.index
    chosen = numbers.only(rows.logits_of(entries, numbers.counts))
    if not reweigh or not len(entries):
        return numbers, chosen, chosen.sum(-1) if reweigh else None, target
    # The mass is p_k / q_k for any number token k; that of the likeliest is never 0 / 0.
    likeliest = chosen.detach().argmax(-1, keepdim=True)
    log_q = chosen.log_softmax(-1).gather(-1, likeliest).squeeze(-1)
    aim = torch.where(numbers.counts, entries[likeliest.squeeze(-1)], -100)
    if shift:  # the rows are cut at the end, the targets at the start
        aim = F.pad(aim, (shift, 0), value=-100)
    log_p = head_rows(input, target=aim, ignore_index=-100, **call).statistics("log_prob")["log_prob"]
    return numbers, chosen, (log_p - log_q).exp(), target


def number_entries(number_values: Tensor) -> Tensor | None:
    """The entries that are numbers ``(K,)``; None where they cannot be read (while compiling, under ``vmap``)."""
    if not checks.is_concrete(number_values):
        return None
    return number_values.isfinite().nonzero()[:, 0]


def check_options(kind: str, squash_factor: float | None, label_smoothing: Tensor | float) -> None:
    """Raise ValueError unless the options of a number token loss fit together."""
    if kind not in get_args(NumberDistance):
        raise ValueError(f"kind is {kind!r}; wanted one of {', '.join(map(repr, get_args(NumberDistance)))}.")
    checks.check_in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    if squash_factor is None:
        return
    checks.check_in_range("squash_factor", squash_factor, 1.0, low_open=True)
    if kind != "wasserstein" or isinstance(label_smoothing, Tensor) or label_smoothing:
        raise ValueError(
            f"squash_factor is {squash_factor}; wanted None beside kind={kind!r} and label_smoothing="
            f"{label_smoothing}: it is defined for kind='wasserstein' and targets of one number."
        )


def reweighed(loss: Tensor, mass: Tensor, farthest: Tensor) -> Tensor:
    """A loss of number tokens made to cost more than any number where text has the mass."""
    return mass * loss + 1.01 * farthest * (1 - mass)


def _off_by(difference: Tensor, kind: NumberDistance) -> Tensor:
    if kind == "mse":
        return difference.square()
    if kind == "mae":
        return difference.abs()
    return F.huber_loss(difference, torch.zeros_like(difference), reduction="none")
