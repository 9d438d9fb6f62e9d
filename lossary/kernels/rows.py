"""From the arguments of a linear head to its rows, and from rows to the reduced value.

:func:`head_rows` is to objectives on a linear head what ``class_rows`` is to those on logits: it checks, flattens and
masks; :class:`HeadRows` gives statistics, and reduces as PyTorch does.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from lossary.core import checks
from lossary.core.numerics import product
from lossary.core.rows import reduce_rows
from lossary.core.types import Reduction
from lossary.core.values import full_precision
from lossary.kernels import cpu, ops, reference
from lossary.kernels.options import Options
from lossary.kernels.state import OF_TARGET, STATISTICS

if TYPE_CHECKING:
    from lossary.kernels.vocab_parallel import VocabParallel

Backend = Literal["auto", "reference", "cpu", "cuda", "triton"]


class HeadRows:
    """The rows of a linear head with their targets; made by :func:`head_rows`.

    Attributes:
        shape: Shape of a value per row: that of the target, after ``shift``.
        vocab: V.
        keep: ``(N,)`` bool, False in ignored rows; None without targets.
    """

    def __init__(
        self,
        shape: torch.Size,
        head: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None],
        *,
        keep: Tensor | None,
        valid: Tensor | None,
        label: Tensor | None,
        target_weight: Tensor | None,
        sample_weight: Tensor | None,
        options: Options,
        temperature: Tensor | float,
        ranks: VocabParallel | None,
        vocab: int,
    ) -> None:
        self.shape = shape
        self.keep = keep
        self.vocab = vocab
        self.head = head
        self.options = options
        self._valid = valid
        self._label = label
        self._target_weight = target_weight
        self._sample_weight = sample_weight
        self._temperature = temperature
        self._ranks = ranks
        self._logits: Tensor | None = None

    def statistics(self, *names: str) -> dict[str, Tensor]:
        """Statistics by name, each of :attr:`shape` and differentiable; 0 in ignored rows, NaN at an unseen bad label.

        See :func:`lossary.kernels.linear_head` for the names.
        """
        for name in names:
            if name not in STATISTICS:
                raise ValueError(f"statistics contains {name!r}; wanted some of {', '.join(STATISTICS)}.")
            if name in OF_TARGET and self.head[3] is None:
                raise ValueError(f"statistics contains {name!r}, which is about the target; wanted target.")
            if name == "weighted_mean_log_prob" and self.head[4] is None:
                raise ValueError(
                    "statistics contains 'weighted_mean_log_prob'; wanted weight, a number for each class."
                )
        if not names:
            return {}
        if self.options.backend == "reference":
            _, _, _, target, weight = self.head
            values = reference.statistics(names, self.logits(), target, weight)
        else:
            values = ops.statistics(names, *self.head, self._target_weight, self.options, self._ranks)
        return {name: self.shaped(value) for name, value in zip(names, values.unbind(0), strict=True)}

    def kept(self) -> Tensor:
        """Rows that are not ignored, of :attr:`shape`."""
        if self.keep is None:
            return torch.ones(self.shape, dtype=torch.bool, device=self.head[0].device)
        return self.keep.reshape(self.shape)

    def shaped(self, values: Tensor) -> Tensor:
        """Flat values ``(N, ...)`` masked and given the shape of rows."""
        trailing = values.shape[1:]
        for mask, fill in ((self._valid, math.nan), (self.keep, 0)):
            if mask is not None and (fill == 0 or values.is_floating_point()):
                values = torch.where(mask.view(-1, *[1] * len(trailing)), values, fill)
        return values.reshape(self.shape + trailing)

    def combine(
        self,
        coefficients: Mapping[str, Tensor | float],
        *,
        reduction: Reduction,
        normalizer: Tensor | float | None,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Reduce the sum of coefficients x statistics, whose gradient is known before the statistics are.

        The ``mean`` and ``sum`` form their gradients together with their value, where the backend can.

        Args:
            coefficients: By statistic a number, or one for each row (of :attr:`shape`), class weights included.
            reduction: As everywhere.
            normalizer: As everywhere.
            statistics: The statistics, if they are at hand already.
        """
        checks.check_reduction(reduction)
        checks.check_normalizer(normalizer)
        input, linear_weight, linear_bias, target, weight = self.head
        needs = [tensor is not None and tensor.requires_grad for tensor in (input, linear_weight, linear_bias)]
        whole = (
            statistics is None
            and self.options.backend in ("cpu", "cuda")
            and self._ranks is None
            and reduction != "none"
            and torch.is_grad_enabled()
            and any(needs)
            and (
                self.options.backend == "cuda"
                or cpu.may_see_whole_rows(tuple(coefficients), input, linear_weight, self.options)
            )
        )
        if not whole:
            values = self.statistics(*coefficients) if statistics is None else statistics
            terms = [_term(c, values[name]) for name, c in coefficients.items()]
            return self.reduce(
                terms[0] if len(terms) == 1 else torch.stack(terms).sum(0), reduction=reduction, normalizer=normalizer
            )
        assert target is not None
        upstream, divisor = self._upstream(coefficients, reduction, normalizer)
        total = ops.weighted_sum(
            tuple(coefficients), input, linear_weight, linear_bias, target, weight, upstream, needs, self.options
        )
        if isinstance(divisor, Tensor) and normalizer is None:
            total = total + torch.where(divisor == 0, math.nan, 0.0)
        if self._valid is not None:
            total = torch.where(self._valid.all(), total, math.nan)
        return total

    def _upstream(
        self, coefficients: Mapping[str, Tensor | float], reduction: Reduction, normalizer: Tensor | float | None
    ) -> tuple[Tensor, Tensor | float | None]:
        """The gradient ``(S, N)`` that will reach the statistics, and the divisor in it."""
        input, wide = self.head[0], cpu.wide_dtype(self.head[0])
        divisor = normalizer
        if normalizer is None and reduction == "mean":
            equal = self.keep is None and self._target_weight is None and self._sample_weight is None and len(input)
            divisor = float(len(input)) if equal else self.divisor().sum()
        if self.keep is None and self._sample_weight is None and not isinstance(divisor, Tensor):
            numbers = [c for c in coefficients.values() if not isinstance(c, Tensor)]
            if len(numbers) == len(coefficients):
                ends = [number / (1.0 if divisor is None else divisor) for number in numbers]
                row = input.new_full((1, len(input)), ends[0], dtype=wide)
                return row if len(ends) == 1 else torch.cat([torch.full_like(row, end) for end in ends]), divisor
        share = input.new_ones(len(input), dtype=wide) if self._sample_weight is None else self._sample_weight
        if divisor is not None:
            share = share / divisor
        if self.keep is not None:  # without kept rows 0 / 0 would reach the sweep; it belongs into the value alone
            share = torch.where(self.keep, share, 0.0)
        upstream = torch.stack([share * _flat(c, share) for c in coefficients.values()])
        return upstream if self.keep is None else torch.where(self.keep, upstream, 0.0), divisor

    def divisor(self) -> Tensor:
        """What ``mean`` divides by, row by row ``(N,)``: class weight of the target x weight of the row."""
        input = self.head[0]
        weight = self._target_weight
        weight = input.new_ones(len(input), dtype=cpu.wide_dtype(input)) if weight is None else weight
        weight = weight if self._sample_weight is None else weight * self._sample_weight
        return weight if self.keep is None else torch.where(self.keep, weight, 0.0)

    def reduce(
        self,
        values: Tensor,
        *,
        reduction: Reduction,
        normalizer: Tensor | float | None,
        nothing_is_zero: bool = False,
    ) -> Tensor:
        """Reduce a loss per row (of :attr:`shape`), class weights already inside, as PyTorch does."""
        shaped = None if self._sample_weight is None else self._sample_weight.reshape(self.shape)
        target_weight = None if self._target_weight is None else self._target_weight.reshape(self.shape)
        return reduce_rows(
            values,
            keep=None if self.keep is None else self.keep.reshape(self.shape),
            valid=None if self._valid is None else self._valid.reshape(self.shape),
            label_weight=values.new_ones(()) if target_weight is None else target_weight,
            sample_weight=shaped,
            reduction=reduction,
            normalizer=normalizer,
            nothing_is_zero=nothing_is_zero,
        )

    def target_weight(self) -> Tensor:
        """Class weight of each row's target, of :attr:`shape`; ones (as a 0-d tensor) without class weights."""
        if self._target_weight is None:
            return torch.ones((), dtype=cpu.wide_dtype(self.head[0]), device=self.head[0].device)
        return self._target_weight.reshape(self.shape)

    def per_target(self, vector: Tensor) -> Tensor:
        """A number for each class ``(V,)`` at each row's target, of :attr:`shape`."""
        assert self._label is not None
        return vector.to(cpu.wide_dtype(self.head[0]))[self._label].reshape(self.shape)

    def label(self) -> Tensor:
        """Labels ``(N,)``, 0 where ignored or invalid."""
        assert self._label is not None
        return self._label

    def logits_at(self, index: Tensor) -> Tensor:
        """Logits ``(N, K)`` at the entries ``index (N, K)``, differentiable."""
        input, linear_weight, linear_bias = self.head[:3]
        if self.options.backend == "reference":
            return self.logits().gather(1, index)
        if self.keep is not None:
            input = torch.where(self.keep.unsqueeze(1), input, 0.0)  # an ignored row must not reach the head's gradient
        softcap, temperature = self.options.softcap, self.options.temperature
        if self._ranks is None:
            return ops.logits_at(input, linear_weight, linear_bias, index, softcap, temperature)
        here, place = self._ranks.holds(index), self._ranks.place(index).clamp(min=0)
        if not len(linear_weight):
            return self._ranks.sum_values(here * input.sum())
        z = ops.logits_at(self._ranks.sum_gradients(input), linear_weight, linear_bias, place, softcap, temperature)
        return self._ranks.sum_values(torch.where(here, z, 0.0))

    def logits_of(self, entries: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits of the same entries ``(K,)`` in every row, :attr:`shape` + (K,), from a head cut down to them.

        What rows hold that are ignored, or not kept by ``keep`` (of :attr:`shape`), reaches no gradient.
        """
        input, linear_weight, linear_bias = self.head[:3]
        for mask in (self.keep, None if keep is None else keep.reshape(-1)):
            input = input if mask is None else torch.where(mask.unsqueeze(1), input, 0.0)
        place = entries
        if self._ranks is not None:
            if not len(linear_weight):
                nothing = (0.0 * input.sum(1, keepdim=True)).expand(-1, len(entries))
                return self._ranks.sum_values(nothing.to(cpu.wide_dtype(input))).reshape(*self.shape, len(entries))
            input, place = self._ranks.sum_gradients(input), self._ranks.place(entries).clamp(min=0)
        bias = None if linear_bias is None else linear_bias[place]
        temperature = self._temperature if self.options.backend == "reference" else self.options.temperature
        with full_precision(input):
            z = reference.logits(input, linear_weight[place], bias, self.options.softcap, temperature)
        if self._ranks is not None:
            z = self._ranks.sum_values(torch.where(self._ranks.holds(entries), z, 0.0))
        return z.reshape(*self.shape, len(entries))

    def top(self, k: int) -> dict[str, Tensor]:
        """The ``k`` most likely entries and their log-probabilities, both :attr:`shape` + (k,)."""
        index = self._top_index(k)
        return {"top_index": self.shaped(index), "top_log_prob": self._log_prob_at(index)}

    def top_index(self, k: int) -> Tensor:
        """The ``k`` most likely entries alone, :attr:`shape` + (k,)."""
        return self.shaped(self._top_index(k))

    def _top_index(self, k: int) -> Tensor:
        if isinstance(k, bool) or not isinstance(k, int) or not 0 < k <= self.vocab:
            raise ValueError(f"top_k is {k!r}; wanted an integer from 1 to the size of the vocabulary, {self.vocab}.")
        if self.options.backend == "reference":
            return self.logits().detach().topk(k, 1)[1]
        with torch.no_grad():
            return self._top(k)

    def sample(self, count: int, generator: torch.Generator | None, noise: Tensor | None) -> dict[str, Tensor]:
        """Entries drawn from the softmax and their log-probabilities, both :attr:`shape` + (count,)."""
        input = self.head[0]
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"num_samples is {count!r}; wanted an integer of at least 0.")
        if noise is None:
            draws = torch.rand(len(input), count, generator=generator, device=input.device)
        else:
            checks.check_floating("noise", noise)
            checks.check_shape("noise", noise, (*self.shape, count or noise.shape[-1]), "uniform numbers for each row")
            draws = noise.reshape(-1, noise.shape[-1])
        if self.options.backend == "reference":
            index = reference.sample(self.logits().detach(), draws)
        else:
            with torch.no_grad():
                index = self._sample(draws)
        return {"sample": self.shaped(index), "sample_log_prob": self._log_prob_at(index)}

    def _top(self, k: int) -> Tensor:
        head, ranks = self.head[:3], self._ranks
        if ranks is None:
            return _tensor(ops.top(*head, k, *self.options)[1])
        values, index = ops.top(*head, k, *self.options)  # -inf where this rank holds fewer than k
        together = ranks.gather(torch.stack([values, (index + ranks.start).to(values.dtype)]))
        values, index = together.movedim(0, 2).flatten(2).unbind(0)
        return index.gather(1, values.topk(k, 1)[1]).long()

    def _sample(self, draws: Tensor) -> Tensor:
        head, ranks = self.head[:3], self._ranks
        if ranks is None:
            return _tensor(ops.sample(*head, draws, *self.options))
        mine = ops.statistics(("logsumexp",), *head, None, None, None, self.options)[0]
        ends = torch.softmax(ranks.gather(mine.double()), 0).cumsum(0)
        rank = torch.searchsorted(ends.t().contiguous(), draws.double() * ends[-1:].t(), right=True)
        here = rank.clamp(max=len(ends) - 1) == dist.get_rank(ranks.group)
        start = torch.cat([ends[:1] * 0, ends[:-1]])[dist.get_rank(ranks.group)].unsqueeze(1)
        share = torch.softmax(ranks.gather(mine.double()), 0)[dist.get_rank(ranks.group)].unsqueeze(1)
        inner = ((draws.double() - start) / share).clamp(0, 1)
        index = ops.sample(*head, torch.where(here, inner, 0.0), *self.options) + ranks.start
        return ranks.sum(torch.where(here, index, 0))

    def _log_prob_at(self, index: Tensor) -> Tensor:
        if self.options.backend == "reference":
            return self.shaped(torch.log_softmax(self.logits(), 1).gather(1, index))
        logsumexp = self.statistics("logsumexp")["logsumexp"].unsqueeze(-1)
        # Rounding of two large numbers must not make a probability above 1.
        return (self.shaped(self.logits_at(index)) - logsumexp).clamp(max=0.0)

    def logits(self) -> Tensor:
        """All logits ``(N, V)``; reference backend only."""
        if self._logits is None:
            input, linear_weight, linear_bias = self.head[:3]
            with full_precision(input):
                self._logits = reference.logits(
                    input, linear_weight, linear_bias, self.options.softcap, self._temperature
                )
        return self._logits


def head_rows(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | None,
    linear_bias: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    softcap: float | None = None,
    temperature: Tensor | float = 1.0,
    shift: int = 0,
    filter_eps: float | Literal["auto"] | None = "auto",
    filter_input: bool = True,
    filter_weight: bool = True,
    kahan: bool = False,
    deterministic: bool = False,
    backend: Backend = "auto",
    block_rows: int | None = None,
    block_vocab: int | None = None,
    vocab_parallel: VocabParallel | None = None,
) -> HeadRows:
    """Check, flatten and mask the arguments of an objective on a linear head.

    Args:
        input: Hidden states ``(..., D)``.
        linear_weight: Weight of the head ``(V, D)``; a ``DTensor`` sharded over the vocabulary is taken apart.
        target: Class indices ``(...)``, or None for objectives without.
        linear_bias: Bias of the head ``(V,)``.
        weight: Class weights ``(V,)``.
        ignore_index: Label of rows that count for nothing.
        sample_weight: Weight of each row ``(...)``, which counts in the divisor of ``mean``.
        softcap: Bound k of ``k tanh(z / k)``.
        temperature: Divisor of the logits: a number, or a tensor (one for all, or one for each row) without softcap.
        shift: Row i predicts the target i + shift of its sequence; rows become fewer by that many.
        filter_eps: Softmax entries below it may be left out of gradients; None keeps all, ``auto`` is 1/32 of the
            machine epsilon of the dtype that the softmax is held in.
        filter_input: Whether that holds for the gradient of ``input``.
        filter_weight: Whether that holds for the gradient of the head.
        kahan: Sum gradients in the storage dtype with a compensation, not in float32.
        deterministic: Refuse sums whose order may vary.
        backend: ``auto``, ``reference``, ``cpu``, ``cuda`` or ``triton``.
        block_rows: Rows of a tile.
        block_vocab: Vocabulary entries of a tile.
        vocab_parallel: Where this rank's part of the vocabulary lies.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or option is wrong.
    """
    checks.check_floating("input", input)
    checks.check_floating("linear_weight", linear_weight)
    if vocab_parallel is None and type(linear_weight).__name__ == "DTensor":
        from lossary.kernels.vocab_parallel import from_dtensor

        linear_weight, linear_bias, vocab_parallel = from_dtensor(linear_weight, linear_bias)
    _check_shapes(input, linear_weight)
    vocab = linear_weight.shape[0] if vocab_parallel is None else vocab_parallel.vocab_size
    if linear_bias is not None:
        checks.check_floating("linear_bias", linear_bias)
        checks.check_shape("linear_bias", linear_bias, linear_weight.shape[:1], "one number for each class")
    checks.check_class_vector("weight", weight, vocab)
    if target is not None:
        _check_target(target, input)
    options = _options(
        input,
        softcap=softcap,
        temperature=temperature,
        filter_eps=filter_eps,
        filter_input=filter_input,
        filter_weight=filter_weight,
        kahan=kahan,
        deterministic=deterministic,
        backend=backend,
        block_rows=block_rows,
        block_vocab=block_vocab,
    )
    # Kernels on a GPU wait once for what rows are ignored: that wait may as well check the labels.
    waits = options.backend in ("cuda", "triton")
    readable = target is not None and checks.may_read_values(target, waits=waits)
    all_count = target is None or (readable and checks.check_labels(target, vocab, ignore_index))
    options = options._replace(all_count=all_count)
    if sample_weight is not None:
        checks.check_shape("sample_weight", sample_weight, input.shape[:-1], "a weight for each row")
    if isinstance(temperature, Tensor) and temperature.ndim:
        checks.check_shape("temperature", temperature, input.shape[:-1], "a number, or one for each row")
    if shift:
        input, target, sample_weight = _shifted(shift, input, target, sample_weight)
        if isinstance(temperature, Tensor) and temperature.ndim:
            temperature = temperature[..., :-shift]
    input, linear_weight, linear_bias = _as_autocast(input, linear_weight, linear_bias)  # type: ignore[assignment]
    if input.dtype != linear_weight.dtype:
        raise TypeError(
            f"input has dtype {input.dtype} and linear_weight {linear_weight.dtype}; wanted one dtype for both."
        )
    shape, wide = input.shape[:-1], cpu.wide_dtype(input)
    input = input.reshape(-1, input.shape[-1])
    keep = valid = label = place = target_weight = None
    if target is not None:
        target = target.reshape(-1)
        here, label = None, target.long()
        if not all_count:
            keep = target != ignore_index
            inside = (target >= 0) & (target < vocab)
            here, valid = inside & keep, None if readable else inside | ~keep
            label = torch.where(here, target, 0).long()
        target_weight = None if weight is None else weight.to(wide)[label]
        place = label if vocab_parallel is None else vocab_parallel.place(label)
        place = place if here is None else torch.where(here, place, cpu.IGNORED)
    if vocab_parallel is not None:
        weight = None if weight is None else weight[vocab_parallel.columns]
    if sample_weight is not None:
        sample_weight = sample_weight.to(wide).reshape(-1)
        sample_weight = sample_weight if keep is None else torch.where(keep, sample_weight, 0.0)
    if isinstance(temperature, Tensor):
        temperature = temperature.to(wide)
        if keep is not None:  # what an ignored row holds must not reach the temperature's gradient
            input = torch.where(keep.unsqueeze(1), input, 0.0)
        if temperature.ndim:
            temperature = temperature.reshape(-1, 1)
            temperature = temperature if keep is None else torch.where(keep.unsqueeze(1), temperature, 1.0)
        if options.backend != "reference":  # the head of input / temperature and bias / temperature
            if softcap is not None or (temperature.ndim and linear_bias is not None):
                raise ValueError(
                    "temperature is a tensor; wanted a number beside softcap, and one for all rows beside linear_bias "
                    "(backend='reference' takes any)."
                )
            input = input.to(wide) / temperature
            if linear_bias is not None:
                out = linear_bias == -math.inf
                # Each rank sees its own part of the bias alone, but the whole gradient of input.
                divisor = temperature if vocab_parallel is None else vocab_parallel.sum_gradients(temperature)
                linear_bias = torch.where(out, -math.inf, torch.where(out, 0.0, linear_bias).to(wide) / divisor)
    if options.backend == "reference" and keep is not None:
        input = torch.where(keep.unsqueeze(1), input, 0.0)  # what an ignored row holds must not reach a gradient
    return HeadRows(
        shape,
        (input, linear_weight, linear_bias, place, weight),
        keep=keep,
        valid=valid,
        label=label,
        target_weight=target_weight,
        sample_weight=sample_weight,
        options=options,
        temperature=temperature,
        ranks=vocab_parallel,
        vocab=vocab,
    )


def _check_shapes(input: Tensor, linear_weight: Tensor) -> None:
    if linear_weight.ndim != 2:
        raise ValueError(f"linear_weight has shape {tuple(linear_weight.shape)}; wanted (V, D), as of nn.Linear.")
    if input.ndim == 0 or input.shape[-1] != linear_weight.shape[1]:
        raise ValueError(
            f"input has shape {tuple(input.shape)}; wanted (..., {linear_weight.shape[1]}), hidden states of the width "
            f"of linear_weight {tuple(linear_weight.shape)}."
        )


def check_class_indices(target: Tensor) -> None:
    """Raise unless the target is a tensor of integers: probabilities are refused."""
    if not isinstance(target, Tensor):
        raise TypeError(f"target is {type(target).__name__}; wanted a tensor.")
    if target.is_floating_point():
        raise ValueError(
            f"target has dtype {target.dtype}: probabilities would be as large as the logits, which a linear head "
            "never stores; wanted class indices (int64)."
        )
    if target.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"target has dtype {target.dtype}; wanted int64 class indices.")


def _check_target(target: Tensor, input: Tensor) -> None:
    check_class_indices(target)
    checks.check_shape("target", target, input.shape[:-1], "a class index for each row of input")


def _options(
    input: Tensor,
    *,
    softcap: float | None,
    temperature: Tensor | float,
    filter_eps: float | str | None,
    filter_input: bool,
    filter_weight: bool,
    kahan: bool,
    deterministic: bool,
    backend: str,
    block_rows: int | None,
    block_vocab: int | None,
) -> Options:
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; wanted {', '.join(map(repr, get_args(Backend)))}.")
    if backend == "auto":
        on_gpu = input.is_cuda and input.dtype != torch.float64 and _triton_is_here()
        backend = "cpu" if not on_gpu else "triton" if deterministic or kahan else "cuda"
    if softcap is not None:
        if isinstance(softcap, Tensor):
            raise TypeError("softcap is a tensor; wanted a number.")
        checks.check_in_range("softcap", softcap, 0.0, low_open=True, high_open=True)
    checks.check_in_range("temperature", temperature, 0.0, low_open=True)
    if filter_eps == "auto":
        held = input.dtype if backend in ("cuda", "triton") else torch.promote_types(input.dtype, torch.float32)
        filter_eps = torch.finfo(held).eps / 32
    elif isinstance(filter_eps, str):
        raise ValueError(f"filter_eps is {filter_eps!r}; wanted 'auto', None or a number in [0, 1).")
    checks.check_in_range("filter_eps", filter_eps or 0.0, 0.0, 1.0, high_open=True)
    if backend == "cuda" and (deterministic or kahan):
        word = "deterministic" if deterministic else "kahan"
        raise ValueError(f"backend is 'cuda', which knows no {word}; wanted backend='triton', or 'auto' to choose it.")
    for name, block in (("block_rows", block_rows), ("block_vocab", block_vocab)):
        if block is not None and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
            raise ValueError(f"{name} is {block!r}; wanted a positive integer or None.")
    return Options(
        backend=backend,
        softcap=float(softcap or 0.0),
        temperature=1.0 if isinstance(temperature, Tensor) else float(temperature),
        filter_eps=float(filter_eps or 0.0),
        filter_input=filter_input,
        filter_weight=filter_weight,
        kahan=kahan,
        deterministic=deterministic,
        block_rows=block_rows or 0,
        block_vocab=block_vocab or 0,
        all_count=False,
    )


def _triton_is_here() -> bool:
    return importlib.util.find_spec("triton") is not None


def _shifted(
    shift: int, input: Tensor, target: Tensor | None, sample_weight: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Rows without their last ``shift``, targets and weights without their first."""
    if isinstance(shift, bool) or not isinstance(shift, int) or shift < 0:
        raise ValueError(f"shift is {shift!r}; wanted an integer of at least 0.")
    if input.ndim < 2 or shift > input.shape[-2]:
        raise ValueError(f"shift is {shift}, but input has shape {tuple(input.shape)}; wanted (..., T, D), T >= shift.")
    kept = input.shape[-2] - shift
    return (
        input[..., :kept, :],
        None if target is None else target[..., shift:],
        None if sample_weight is None else sample_weight[..., shift:],
    )


def _as_autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast what ``torch.nn.functional.linear`` would see."""
    first = tensors[0]
    assert first is not None
    if not torch.is_autocast_enabled(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def _tensor(result: Any) -> Tensor:
    assert isinstance(result, Tensor)
    return result


def _term(coefficient: Tensor | float, values: Tensor) -> Tensor:
    """Product in which a coefficient of 0 silences an infinite value."""
    if not isinstance(coefficient, Tensor):
        return coefficient * values if coefficient else torch.zeros_like(values)
    return product(coefficient.to(values).expand_as(values), values)


def _flat(coefficient: Tensor | float, like: Tensor) -> Tensor | float:
    """A coefficient as one number, or one for each row ``(N,)``."""
    if not isinstance(coefficient, Tensor):
        return coefficient
    return coefficient.to(like.dtype).reshape(-1) if coefficient.ndim else coefficient.to(like)
