"""Sweeps over tiles of rows x vocabulary in plain PyTorch: the CPU's backend, which runs on any device.

One tile of logits exists at a time. :func:`partials` reduces tiles to what is kept of each row; :func:`gradients` makes
them again, turns each into the gradient of its logits and multiplies that into the gradients of the head. The
vocabulary is the outer loop, so that a block of the weight, and of its gradient, is read once and summed in float32.
:func:`value_and_gradients` needs no second sweep: a chunk of rows sees all its logits at once, and where the gradient
that will arrive is known beforehand, as for a mean or sum, the logits turn into gradients on the spot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lossary.kernels import state
from lossary.kernels.options import Options
from lossary.kernels.state import OF_MOMENT, SPREAD, Coefficients, Partial

IGNORED, ELSEWHERE = -2, -1  # labels of rows that count for nothing, and of rows whose target another rank holds

BLOCK_ROWS = 1024
BLOCK_VOCAB = 2048
_MERGE_EVERY = 16
_CHUNK_BYTES = 48 << 20
_FEWEST_ROWS = 96  # of a chunk that is worth it
_FEW = 1e-30  # a softmax entry below it is no longer accurate in float32


class Head(NamedTuple):
    """The tensors of a head: ignored rows taken out, ``input`` and the vectors widened.

    Attributes:
        input: ``(N, D)`` in float32 or float64.
        linear_weight: ``(V, D)`` as it came; widened block by block.
        linear_bias: ``(V,)`` or None.
        target: ``(N,)`` or None.
        weight: Class weights ``(V,)`` or None.
        kept: Places of the N rows among all M, or None where all are there.
        num_rows: M.
    """

    input: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None
    target: Tensor | None
    weight: Tensor | None
    kept: Tensor | None
    num_rows: int

    def put_back(self, values: Tensor, dim: int) -> Tensor:
        """Values of the N rows along ``dim`` put among all M, 0 in ignored ones."""
        if self.kept is None:
            return values
        shape = list(values.shape)
        shape[dim] = self.num_rows
        return values.new_zeros(shape).index_copy_(dim, self.kept, values)

    def take(self, values: Tensor) -> Tensor:
        """Values of all rows ``(..., M)`` taken to the N rows that are there."""
        return values if self.kept is None else values.index_select(-1, self.kept)


def prepare(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    *,
    all_count: bool = False,
) -> Head:
    """Take ignored rows out and widen what is small."""
    num_rows, kept = input.shape[0], None
    if target is not None and not all_count and bool((target == IGNORED).any()):
        kept = (target != IGNORED).nonzero()[:, 0]
        input, target = input.index_select(0, kept), target.index_select(0, kept)
    wide = wide_dtype(input)
    return Head(
        input.to(wide).contiguous(),
        linear_weight,
        None if linear_bias is None else linear_bias.to(wide),
        target,
        None if weight is None else weight.to(wide),
        kept,
        num_rows,
    )


def wide_dtype(input: Tensor) -> torch.dtype:
    """The dtype of statistics: float32, or float64 for float64."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def partials(
    names: Sequence[str],
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    options: Options,
) -> Tensor:
    """What is kept of each row over the whole vocabulary: :class:`state.Partial` ``(8, M)``."""
    head = prepare(input, linear_weight, linear_bias, target, weight, all_count=options.all_count)
    return head.put_back(sweep(names, head, options), 1)


def gradients(
    names: Sequence[str],
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    coefficients: Tensor,
    needs: Sequence[bool],
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``input``, ``linear_weight`` and ``linear_bias``, empty where not needed.

    Args:
        names: Statistics that may have a gradient; they tell which coefficients can differ from 0.
        input: ``(M, D)``.
        linear_weight: ``(V, D)``.
        linear_bias: ``(V,)`` or None.
        target: ``(M,)`` or None.
        weight: Class weights ``(V,)`` or None.
        coefficients: :class:`state.Coefficients` ``(8, M)``.
        needs: Which of the three are wanted.
        options: Options.
    """
    head = prepare(input, linear_weight, linear_bias, target, weight, all_count=options.all_count)
    tiles = Tiles(head, options)
    needs_input, needs_weight, needs_bias = needs
    coefficients = head.take(coefficients)
    d_rows = _Sum(_room(head.input, input, needs_input, options), kahan=options.kahan)
    d_weight = linear_weight.new_empty(linear_weight.shape if needs_weight else (0,))  # contiguous, as the fake says
    d_bias = head.input.new_zeros(linear_weight.shape[0] if needs_bias else 0)
    if needs_weight and not len(head.input):
        d_weight.zero_()
    for columns in tiles.vocab_blocks():
        block = tiles.weight(columns)
        in_place = needs_weight and not options.kahan and linear_weight.dtype == block.dtype
        room = d_weight[columns] if in_place else _room(block, linear_weight, needs_weight, options)
        d_block = _Sum(room, kahan=options.kahan)
        for rows in tiles.row_blocks():
            row = Coefficients(*coefficients[:, rows].unsqueeze(2).unbind(0))
            gradient, live = _gradient_of_tile(names, tiles, row, rows, columns)
            few = None if live is None else gradient[:, live]
            if needs_bias:
                d_bias[columns] += gradient.sum(0)
            if needs_input and few is not None and options.filter_input:
                d_rows.add(rows, few, block[live], first=columns.start == 0)
            elif needs_input:
                d_rows.add(rows, gradient, block, first=columns.start == 0)
            if needs_weight and few is not None and options.filter_weight:
                d_block.add(live, few.t(), head.input[rows], first=rows.start == 0)
            elif needs_weight:
                d_block.add(slice(None), gradient.t(), head.input[rows], first=rows.start == 0)
        if needs_weight and not in_place and len(head.input):
            d_weight[columns] = d_block.value
    d_input = head.put_back(d_rows.value.to(input.dtype), 0) if needs_input else input.new_empty(0)
    return d_input, d_weight, d_bias.to(linear_weight.dtype if linear_bias is None else linear_bias.dtype)


def _room(like: Tensor, stored: Tensor, needed: bool, options: Options) -> Tensor:
    """Room for a sum of the shape of ``like``, in the dtype that it is summed in."""
    return torch.empty_like(like if needed else like[:0], dtype=stored.dtype if options.kahan else like.dtype)


OF_WHOLE_ROWS = frozenset({"log_prob", "mean_log_prob", "weighted_mean_log_prob", "logsumexp", "squared_logsumexp"})


def may_see_whole_rows(names: Sequence[str], input: Tensor, linear_weight: Tensor, options: Options) -> bool:
    """Whether :func:`value_and_gradients` applies: statistics that are linear in p, full precision, no cap.

    And whether it pays: each chunk reads the weight and adds to its gradient, so that chunks of few rows, which a very
    large vocabulary asks for, take longer than making the logits twice.
    """
    num_rows = len(input)
    rows = options.block_rows or chunk_rows(num_rows, len(linear_weight), input.element_size())
    fewest = min(_FEWEST_ROWS, max(16, num_rows // 4), max(1, num_rows // 2))
    return (
        "log_prob" in names
        and OF_WHOLE_ROWS.issuperset(names)
        and input.dtype == linear_weight.dtype
        and input.dtype in (torch.float32, torch.float64)
        and options.softcap == 0
        and not options.kahan
        and options.block_vocab == 0
        and (options.block_rows > 0 or rows >= fewest)
    )


def value_and_gradients(
    names: Sequence[str],
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    upstream: Tensor,
    needs: Sequence[bool],
    options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Statistics ``(S, M)`` and the gradients of the sum over rows of ``upstream`` x statistics, in one sweep.

    With q the one-hot target, the gradient of a row's logits is ``a (p - q) + b q + u + y w``. Here p - q is formed in
    the chunk itself, a scales rows of the products, and the other three terms are matrices of rank one or with one
    entry a row: none costs a pass over the chunk.
    """
    head = prepare(input, linear_weight, linear_bias, target, weight, all_count=options.all_count)
    assert head.target is not None
    num_rows, vocab = len(head.input), len(linear_weight)
    needs_input, needs_weight, needs_bias = needs
    d_input = torch.empty_like(head.input) if needs_input else head.input.new_empty(0)
    d_weight = linear_weight.new_empty(linear_weight.shape if needs_weight else (0,))  # contiguous, as the fake says
    d_bias = head.input.new_zeros(vocab if needs_bias else 0)
    if needs_weight and num_rows == 0:
        d_weight.zero_()
    upstream = head.take(upstream)
    row = _LinearRows(names, head, upstream, options)
    size = options.block_rows or chunk_rows(num_rows, vocab, head.input.element_size())
    buffer = head.input.new_empty(min(size, num_rows), vocab)
    filtering = options.filter_eps > 0
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        hidden, label = head.input[rows], head.target[rows].unsqueeze(1)
        chunk = _linear(hidden, linear_weight, head.linear_bias, options, buffer[: len(hidden)])
        target_logit = chunk.gather(1, label)[:, 0]
        torch.softmax(chunk, 1, out=chunk)
        p = chunk.gather(1, label)[:, 0]
        scale = row.see(rows, p, target_logit)
        chunk.scatter_(1, label, (p - 1).unsqueeze(1))
        live = _live_columns(chunk, 1.0, label, options) if filtering else None
        filtering = live is not None  # where one chunk is spread over the vocabulary, so are the others
        few = None if live is None else chunk[:, live]
        if needs_input:
            if few is not None and options.filter_input:
                torch.mm(few, linear_weight[live], out=d_input[rows])
            else:
                torch.mm(chunk, linear_weight, out=d_input[rows])
            d_input[rows].mul_(scale.unsqueeze(1))
        if needs_weight:
            scaled = hidden * scale.unsqueeze(1)
            if few is not None and options.filter_weight:
                d_weight = d_weight.zero_() if start == 0 else d_weight
                d_weight.index_add_(0, _given(live), few.t() @ scaled)
            else:
                torch.addmm(d_weight, chunk.t(), scaled, beta=0 if start == 0 else 1, out=d_weight)
        if needs_bias:
            d_bias.addmv_(chunk.t(), scale)
    row.add_rest(d_input, d_weight, d_bias)
    return (
        head.put_back(row.values, 1),
        head.put_back(d_input, 0) if needs_input else d_input,
        d_weight,
        d_bias if linear_bias is None else d_bias.to(linear_bias.dtype),
    )


def chunk_rows(num_rows: int, vocab: int, element_size: int) -> int:
    """Rows of a chunk: few enough to need a small share of all logits, many enough to amortise reading the weight."""
    limit = max(_CHUNK_BYTES // element_size, num_rows * vocab // 20)
    size = max(16, min(512, limit // max(vocab, 1), num_rows // 4))
    return min(size, max(1, num_rows // 2))  # never all logits at once


class _LinearRows:
    """Row by row, what :func:`value_and_gradients` makes of p."""

    def __init__(self, names: Sequence[str], head: Head, upstream: Tensor, options: Options) -> None:
        self.names, self.head, self.options = names, head, options
        self.upstream = dict(zip(names, upstream, strict=True))
        self.values = torch.empty_like(upstream)
        self.rest = upstream.new_zeros(upstream.shape[1])
        vocab = len(head.linear_weight)
        # Mean of the logits over the vocabulary, for label smoothing: that of the head applied to the input.
        self.averages = {
            name: torch.full((vocab,), 1 / vocab, dtype=upstream.dtype, device=upstream.device)
            if name == "mean_log_prob"
            else _given(head.weight) / vocab
            for name in names
            if name in ("mean_log_prob", "weighted_mean_log_prob")
        }
        self.average_weight = {name: average @ head.linear_weight for name, average in self.averages.items()}
        # A weight of 0 silences a bias of -inf.
        self.average_bias = {
            name: 0.0 if head.linear_bias is None else torch.where(average == 0, 0.0, average * head.linear_bias).sum()
            for name, average in self.averages.items()
        }

    def see(self, rows: slice, p: Tensor, target_logit: Tensor) -> Tensor:
        """Note the statistics of a chunk; returns the coefficient a of its rows."""
        head, options = self.head, self.options
        log_prob = p.log().clamp(max=0.0)
        logsumexp = target_logit - log_prob
        rare = (p < _FEW).nonzero()[:, 0]
        if len(rare):
            log_prob[rare], logsumexp[rare] = self._exactly(rare + rows.start)
        a = p.new_zeros(p.shape)
        for place, name in enumerate(self.names):
            g = self.upstream[name][rows]
            if name == "log_prob":
                value, a = log_prob, a - g
                self.rest[rows] += g
            elif name in self.averages:
                average = self.averages[name]
                mean_logit = head.input[rows] @ self.average_weight[name] + self.average_bias[name]
                mass = average.sum()
                value, a = mean_logit / options.temperature - mass * logsumexp, a - mass * g
            elif name == "logsumexp":
                value, a = logsumexp, a + g
            else:
                value, a = logsumexp.square(), a + 2 * g * logsumexp
            self.values[place, rows] = value
        self.rest[rows] += a
        return a / options.temperature

    def add_rest(self, d_input: Tensor, d_weight: Tensor, d_bias: Tensor) -> None:
        """Add what does not pass through p: the target's rest and label smoothing."""
        head, temperature = self.head, self.options.temperature
        assert head.target is not None
        if set(self.names) != {"log_prob"}:
            rest = self.rest / temperature
            if d_input.numel():
                d_input.addcmul_(head.linear_weight[head.target], rest.unsqueeze(1))
            if d_weight.numel():
                d_weight.index_add_(0, head.target, head.input * rest.unsqueeze(1))
            if d_bias.numel():
                d_bias.index_add_(0, head.target, rest)
        for name, average in self.averages.items():
            g = self.upstream[name] / temperature
            if d_input.numel():
                d_input.addr_(g, self.average_weight[name])
            if d_weight.numel():
                d_weight.addr_(average, g @ head.input)
            if d_bias.numel():
                d_bias.add_(average * g.sum())

    def _exactly(self, places: Tensor) -> Tensor:
        """log p and logsumexp of rows whose target is too unlikely for float32, from their logits."""
        head = self.head
        few = head._replace(input=head.input[places], target=_given(head.target)[places], kept=None)
        names = ("log_prob", "logsumexp")
        return state.statistics(names, sweep(names, few, self.options), None, True)


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


class Tiles:
    """The tiles of a head in order, their logits in a buffer that is used again and again."""

    def __init__(self, head: Head, options: Options) -> None:
        self.head, self.options = head, options
        rows, vocab = len(head.input), len(head.linear_weight)
        self.rows = options.block_rows or max(1, min(BLOCK_ROWS, rows))
        self._vocab = options.block_vocab or max(1, min(BLOCK_VOCAB, -(-vocab // 4)))  # never all logits at once
        self._buffers: dict[str, Tensor] = {}
        self._weight = slice(-1, -1), head.linear_weight

    def vocab_blocks(self) -> Iterator[slice]:
        """Columns of the tiles: the outer loop."""
        vocab = len(self.head.linear_weight)
        return (slice(start, min(start + self._vocab, vocab)) for start in range(0, vocab, self._vocab))

    def row_blocks(self) -> Iterator[slice]:
        """Rows of the tiles: the inner loop."""
        rows = len(self.head.input)
        return (slice(start, min(start + self.rows, rows)) for start in range(0, rows, self.rows))

    def weight(self, columns: slice) -> Tensor:
        """A block of the weight, widened."""
        if self._weight[0] != columns:
            self._weight = columns, self.head.linear_weight[columns].to(self.head.input.dtype)
        return self._weight[1]

    def logits(self, rows: slice, columns: slice) -> Tensor:
        """Logits of a tile, after bias, cap and temperature; the next call overwrites them."""
        head, options = self.head, self.options
        bias = None if head.linear_bias is None else head.linear_bias[columns]
        return _linear(head.input[rows], self.weight(columns), bias, options, self.buffer("logits", rows, columns))

    def buffer(self, name: str, rows: slice, columns: slice) -> Tensor:
        """Room for a tile."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        if name not in self._buffers:
            self._buffers[name] = self.head.input.new_empty(self.rows * self._vocab)
        return self._buffers[name][: shape[0] * shape[1]].view(shape)


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, options: Options, out: Tensor) -> Tensor:
    """Head, bias, softcap, temperature, in that order, into ``out``."""
    scale = 1.0 if options.softcap else 1 / options.temperature
    if bias is None:
        torch.addmm(out, hidden, weight.t(), beta=0, alpha=scale, out=out)
    else:
        torch.addmm(bias, hidden, weight.t(), beta=scale, alpha=scale, out=out)
    if options.softcap:
        out.div_(options.softcap).tanh_().mul_(options.softcap / options.temperature)
    return out


def sweep(names: Sequence[str], head: Head, options: Options) -> Tensor:
    """What is kept of each row that is there, over the whole vocabulary: :class:`state.Partial` ``(8, N)``."""
    tiles = Tiles(head, options)
    merged = _nothing_seen(head)
    waiting = merged.new_empty(_MERGE_EVERY, *merged.shape)
    for block, columns in enumerate(tiles.vocab_blocks()):
        place = block % _MERGE_EVERY
        for rows in tiles.row_blocks():
            waiting[place, :, rows] = _partial_of_tile(names, tiles, rows, columns)
        if place == _MERGE_EVERY - 1 or columns.stop == len(head.linear_weight):
            merged = state.merge(torch.cat([merged.unsqueeze(0), waiting[: place + 1]]))
    return merged


def _nothing_seen(head: Head) -> Tensor:
    partial = head.input.new_zeros(len(Partial._fields), len(head.input))
    partial[Partial._fields.index("maximum")] = -math.inf
    partial[Partial._fields.index("target")] = -math.inf
    return partial


def _partial_of_tile(names: Sequence[str], tiles: Tiles, rows: slice, columns: slice) -> Tensor:
    head = tiles.head
    z = tiles.logits(rows, columns)
    zero = z.new_zeros(len(z))
    target, here = zero - math.inf, zero
    if head.target is not None:
        label, inside = _label_in(head.target[rows], columns)
        target_logit = z.gather(1, label)
        target = torch.where(inside, target_logit, -math.inf)[:, 0]
        z.scatter_(1, label, torch.where(inside, -math.inf, target_logit))
        here = inside[:, 0].to(z.dtype)
    maximum = z.amax(1)
    z.sub_(torch.where(maximum == -math.inf, 0.0, maximum).unsqueeze(1))
    total = weighted = moment = zero
    count, mass = z.shape[1] - here, zero
    if SPREAD.intersection(names):
        others = z if head.target is None else z.scatter(1, label, torch.where(inside, 0.0, z.gather(1, label)))
        total = others.sum(1)
        if "weighted_mean_log_prob" in names:
            w = _given(head.weight)[columns]
            # A weight of 0 silences a logit of -inf.
            weighted = torch.where(w == 0, 0.0, others) @ w
            mass = w.sum() - (0.0 if head.target is None else w[label[:, 0]] * here)
    if OF_MOMENT.intersection(names):
        p = torch.exp(z, out=tiles.buffer("p", rows, columns))
        exp_total = p.sum(1)
        moment = p.mul_(z.clamp_(min=-1e30)).sum(1)
    else:
        exp_total = z.exp_().sum(1)
    return torch.stack(Partial(maximum, exp_total, moment, total, weighted, count, mass.expand_as(zero), target))


def _gradient_of_tile(
    names: Sequence[str], tiles: Tiles, row: Coefficients, rows: slice, columns: slice
) -> tuple[Tensor, Tensor | None]:
    """Gradient of a tile's logits before the cap, and the columns that are worth multiplying (None: all)."""
    head, options = tiles.head, tiles.options
    z = tiles.logits(rows, columns)
    slope_of_cap = None
    if options.softcap:
        slope_of_cap = torch.mul(z, options.temperature / options.softcap, out=tiles.buffer("cap", rows, columns))
        slope_of_cap.square_().neg_().add_(1)
    label = inside = None
    if head.target is not None:
        label, inside = _label_in(head.target[rows], columns)
        z.scatter_(1, label, torch.where(inside, -math.inf, z.gather(1, label)))
    z.sub_(row.maximum)
    live = None
    spread = SPREAD.intersection(names)
    if OF_MOMENT.intersection(names):
        p = torch.exp(z, out=tiles.buffer("p", rows, columns))
        gradient = z.clamp_(min=-1e30).mul_(row.slope).add_(row.constant).mul_(p)
    else:
        p = gradient = z.exp_()
    if options.filter_eps and not spread:
        missed = None if label is None or inside is None else label[inside & ~(row.miss < options.filter_eps)]
        live = _live_columns(p, row.probability, missed, options)
    if not OF_MOMENT.intersection(names):
        gradient.mul_(row.constant)
    if "mean_log_prob" in names:
        gradient.add_(row.uniform)
    if "weighted_mean_log_prob" in names:
        gradient.addcmul_(row.weighted, _given(head.weight)[columns])
    if label is not None and inside is not None:
        at_label = row.target
        if "mean_log_prob" in names:
            at_label = at_label + row.uniform
        if "weighted_mean_log_prob" in names:
            at_label = at_label + row.weighted * _given(head.weight)[columns][label]
        gradient.scatter_(1, label, torch.where(inside, at_label, gradient.gather(1, label)))
    if slope_of_cap is not None:
        gradient.mul_(slope_of_cap)
    return gradient, live


def _label_in(target: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Place of each row's target among the columns, and whether it is there; both ``(rows, 1)``."""
    label = (target - columns.start).unsqueeze(1)
    inside = (label >= 0) & (label < columns.stop - columns.start)
    return torch.where(inside, label, 0), inside


def _live_columns(p: Tensor, scale: Tensor | float, labels: Tensor | None, options: Options) -> Tensor | None:
    """Columns where ``p * scale`` reaches ``filter_eps``, and those of labels; None where most columns do."""
    first = slice(0, 64)
    # `~(x < eps)` and not `x >= eps`: a NaN in one row must not cost the others their gradients.
    if not isinstance(scale, Tensor):
        live = ~(p[first].amax(0) < options.filter_eps)
    else:
        live = ~((p[first] * scale[first]).amax(0) < options.filter_eps)
    if 2 * int(live.count_nonzero()) >= len(live):  # seen from a few rows: it is not worth looking at all
        return None
    live = ~((p if not isinstance(scale, Tensor) else p * scale).amax(0) < options.filter_eps)
    if labels is not None:
        live[labels.flatten()] = True
    places = live.nonzero()[:, 0]
    return places if 2 * len(places) < len(live) else None


class _Sum:
    """A sum of products: in float32, or in the storage dtype with what rounding lost kept beside it (Kahan).

    Attributes:
        value: The sum, undefined until the first term.
    """

    def __init__(self, value: Tensor, *, kahan: bool) -> None:
        self.value = value.zero_() if kahan else value
        self._lost = torch.zeros_like(value) if kahan else None

    def add(self, rows: slice | Tensor | None, x: Tensor, y: Tensor, *, first: bool) -> None:
        """Add ``x @ y`` to the rows given; ``first`` says that nothing was added to them before."""
        if self._lost is None and isinstance(rows, slice):
            torch.addmm(self.value[rows], x, y, beta=0 if first else 1, out=self.value[rows])
        elif self._lost is None:
            assert isinstance(rows, Tensor)
            value = self.value.zero_() if first else self.value
            value.index_add_(0, rows, x @ y)
        else:
            assert rows is not None
            old = self.value[rows]
            term = (x @ y).to(old.dtype) + self._lost[rows]
            new = old + term
            back = new - old
            self._lost[rows] = (old - (new - back)) + (term - back)
            self.value[rows] = new


# --- chosen logits --------------------------------------------------------------------------------------------------


def logits_at(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, index: Tensor, softcap: float, temperature: float
) -> Tensor:
    """Logits ``(N, K)`` at the vocabulary entries ``index (N, K)``, gathered by chunks of rows."""
    wide = wide_dtype(input)
    result = input.new_empty(index.shape, dtype=wide)
    for rows in _gathered_rows(index, linear_weight):
        hidden, chosen = input[rows].to(wide), linear_weight[index[rows]].to(wide)
        torch.bmm(chosen, hidden.unsqueeze(2), out=result[rows].unsqueeze(2))
    if linear_bias is not None:
        result += linear_bias[index].to(wide)
    if softcap:
        result.div_(softcap).tanh_().mul_(softcap)
    return result.div_(temperature)


def logits_at_gradients(
    input: Tensor, linear_weight: Tensor, index: Tensor, gradient: Tensor, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``input``, ``linear_weight`` and ``linear_bias`` from those of the logits before the cap."""
    wide = wide_dtype(input)
    d_input = torch.empty_like(input if needs[0] else input[:0])
    d_weight = torch.zeros_like(linear_weight if needs[1] else linear_weight[:0])
    d_bias = gradient.new_zeros(len(linear_weight) if needs[2] else 0)
    places, inverse = torch.unique(index, return_inverse=True)
    summed = gradient.new_zeros(len(places) if needs[1] else 0, input.shape[1])
    for rows in _gathered_rows(index, linear_weight):
        hidden, g = input[rows].to(wide), gradient[rows]
        if needs[0]:
            d_input[rows] = torch.bmm(g.unsqueeze(1), linear_weight[index[rows]].to(wide))[:, 0]
        if needs[1]:
            summed.index_add_(0, inverse[rows].flatten(), (g.unsqueeze(2) * hidden.unsqueeze(1)).flatten(0, 1))
    if needs[1]:
        d_weight[places] = summed.to(d_weight.dtype)
    if needs[2]:
        d_bias.index_add_(0, index.flatten(), gradient.flatten())
    return d_input, d_weight, d_bias


def _gathered_rows(index: Tensor, linear_weight: Tensor) -> Iterator[slice]:
    size = max(1, _CHUNK_BYTES // (4 * max(1, index.shape[1] * linear_weight.shape[1])))
    return (slice(start, min(start + size, len(index))) for start in range(0, len(index), size))


# --- choosing entries -----------------------------------------------------------------------------------------------


def top(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, k: int, options: Options
) -> tuple[Tensor, Tensor]:
    """The ``k`` largest logits of each row and their places, both ``(N, k)``, largest first."""
    head = prepare(input, linear_weight, linear_bias, None, None)
    tiles = Tiles(head, options)
    values = head.input.new_full((len(input), k), -math.inf)
    places = torch.zeros(len(input), k, dtype=torch.int64, device=input.device)
    for columns in tiles.vocab_blocks():
        for rows in tiles.row_blocks():
            z, at = tiles.logits(rows, columns).topk(min(k, columns.stop - columns.start), 1)
            together = torch.cat([values[rows], z], 1)
            at_together = torch.cat([places[rows], at + columns.start], 1)
            values[rows], order = together.topk(k, 1)
            places[rows] = at_together.gather(1, order)
    return values, places


def sample(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, noise: Tensor, options: Options) -> Tensor:
    """Entries drawn from the softmax by inverse CDF ``(N, S)``, from uniform ``noise (N, S)``.

    The first sweep keeps the mass of each block of the vocabulary; a draw falls into one block, and only there are
    logits made again. Cumulative sums are in float64, so that blocks of any size draw alike.
    """
    head = prepare(input, linear_weight, linear_bias, None, None)
    tiles = Tiles(head, options)
    blocks = list(tiles.vocab_blocks())
    mass = head.input.new_empty(len(blocks), len(input), dtype=torch.float64)  # log of each block's mass
    for block, columns in enumerate(blocks):
        for rows in tiles.row_blocks():
            mass[block, rows] = torch.logsumexp(tiles.logits(rows, columns).double(), 1)
    ends = torch.softmax(mass, 0).cumsum(0).t().contiguous()  # (N, blocks)
    draws = noise.double() * ends[:, -1:]
    block_of = torch.searchsorted(ends, draws, right=True).clamp(max=len(blocks) - 1)
    starts = torch.cat([ends.new_zeros(len(input), 1), ends[:, :-1]], 1)
    chosen = torch.empty_like(block_of)
    for block, columns in enumerate(blocks):
        row, draw = (block_of == block).nonzero(as_tuple=True)
        for part in torch.split(torch.arange(len(row), device=row.device), tiles.rows):
            at, which = row[part], draw[part]
            bias = None if head.linear_bias is None else head.linear_bias[columns]
            out = tiles.buffer("logits", slice(0, len(at)), columns)
            z = _linear(head.input[at], tiles.weight(columns), bias, options, out).double()
            inner = torch.softmax(z, 1).mul_((ends - starts)[at, block].unsqueeze(1)).cumsum(1)
            wanted = (draws[at, which] - starts[at, block]).unsqueeze(1)
            last = inner.shape[1] - 1 - (z.flip(1) > -math.inf).int().argmax(1, keepdim=True)  # never a masked entry
            place = torch.minimum(torch.searchsorted(inner, wanted, right=True), last)
            chosen[at, which] = place[:, 0] + columns.start
    return chosen
