"""The sweeps of :mod:`lossary.kernels.cpu` on a GPU: products by cuBLAS, all else of a tile by one Triton kernel.

A tile's products are formed in float32 from inputs as they came, so that half precision runs at the speed of the
tensor cores and is rounded once, where a gradient is multiplied. The vocabulary is sorted by mean logit, so that likely
entries share tiles; the first sweep notes each row's largest logit in each tile, and the second never forms a tile
whose softmax stays below ``filter_eps``. The target's own entry is no part of tiles: it is one row of the head for each
row of input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import triton
from torch import Tensor

from lossary.kernels.options import Options
from lossary.kernels.state import OF_MOMENT, SPREAD, Coefficients, Partial
from lossary.kernels.triton import INTERPRETED, by_mean_logit, check_device, kept_rows
from lossary.kernels.triton_kernels import gradient_of_products_kernel, see_products_kernel

BLOCK_ROWS = 2048
BLOCK_VOCAB = 4096
_WORTH_SORTING = 4  # blocks of the vocabulary
_LABEL_ROWS = 1024


def partials(
    names: Sequence[str],
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """What is kept of each row: :class:`state.Partial` ``(8, M)``; for the second sweep also the largest logit of each
    row in each block of the vocabulary ``(blocks, M)``, and the order of the vocabulary ``(V,)``; empty without filter.
    """
    check_device("cuda", input)
    noted = is_sorted(names, len(linear_weight), options)
    order = _order(input, linear_weight, linear_bias, target) if noted else _nothing(input)
    tiles = _Tiles(names, input, linear_weight, linear_bias, target, weight, order, options)
    partial = tiles.input.new_zeros(len(Partial._fields), tiles.num_rows, dtype=torch.float32)
    partial[[Partial._fields.index("maximum"), Partial._fields.index("target")]] = -math.inf
    peaks = partial.new_empty(num_blocks(len(linear_weight), options) if noted else 0, tiles.num_rows)
    for block, columns in enumerate(tiles.vocab_blocks()):
        for rows in tiles.row_blocks():
            tiles.see(rows, columns, partial, peaks[block] if noted else None)
    return tiles.put_back(partial), tiles.put_back(peaks), order


def gradients(
    names: Sequence[str],
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    coefficients: Tensor,
    peaks: Tensor,
    order: Tensor,
    needs: Sequence[bool],
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``input``, ``linear_weight`` and ``linear_bias``, empty where not needed."""
    check_device("cuda", input)
    tiles = _Tiles(names, input, linear_weight, linear_bias, target, weight, order, options)
    coefficients = tiles.take(coefficients)
    needs_input, needs_weight, needs_bias = needs
    live = tiles.live(tiles.take(peaks), coefficients)
    d_input = coefficients.new_zeros(tiles.input.shape if needs_input else (0,))
    d_weight = torch.zeros_like(linear_weight if needs_weight else linear_weight[:0])
    d_bias = coefficients.new_zeros(len(linear_weight) if needs_bias else 0)
    for columns, live_rows in zip(tiles.vocab_blocks(), live, strict=True):
        d_block = coefficients.new_zeros(columns.stop - columns.start if needs_weight else 0, input.shape[1])
        seen = False
        for rows, is_live in zip(tiles.row_blocks(), live_rows, strict=True):
            of_input = needs_input and (is_live or not options.filter_input)
            of_head = is_live or not options.filter_weight
            if not of_input and not (of_head and (needs_weight or needs_bias)):
                continue
            gradient = tiles.gradient(rows, columns, coefficients)
            if of_input:
                _add_product(d_input[rows], gradient, tiles.weight(columns))
            if needs_weight and of_head:
                _add_product(d_block, gradient.t(), tiles.input[rows])
                seen = True
            if needs_bias and of_head:
                d_bias[tiles.places(columns)] += gradient.sum(0, dtype=torch.float32)
        if seen:
            d_weight[tiles.places(columns)] = d_block.to(d_weight.dtype)
    tiles.add_labels(Coefficients(*coefficients.unbind(0)).target, d_input, d_weight, d_bias)
    bias_dtype = linear_weight.dtype if linear_bias is None else linear_bias.dtype
    return tiles.put_back(d_input.to(input.dtype).t()).t() if needs_input else d_input, d_weight, d_bias.to(bias_dtype)


def is_sorted(names: Sequence[str], vocab: int, options: Options) -> bool:
    """Whether the first sweep sorts the vocabulary and notes what the second may leave out."""
    # What label smoothing adds is not small where the softmax is: nothing can be left out.
    return options.filter_eps > 0 and not SPREAD.intersection(names) and num_blocks(vocab, options) >= _WORTH_SORTING


def num_blocks(vocab: int, options: Options) -> int:
    """Number of blocks of the vocabulary."""
    return -(-vocab // (options.block_vocab or BLOCK_VOCAB))


def _order(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor | None) -> Tensor:
    return by_mean_logit(input, linear_weight, linear_bias, kept_rows(target))


def _nothing(input: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.int64, device=input.device)


class _Tiles:
    """The tiles of a head, its vocabulary in the order given; rooms for a tile are used again and again."""

    def __init__(
        self,
        names: Sequence[str],
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor | None,
        weight: Tensor | None,
        order: Tensor,
        options: Options,
    ) -> None:
        self._kept, self._all_rows = kept_rows(target), len(input)
        self.input = self.take(input.t()).t().contiguous()
        self.num_rows = len(self.input)
        self.linear_weight, self.linear_bias = linear_weight, linear_bias
        self.target = None if target is None else self.take(target).contiguous()
        self.options, self._order = options, order if len(order) else None
        self._bias, self._label, self._class_weight = linear_bias, self.target, weight
        if self._order is not None:
            rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
            self._bias = None if linear_bias is None else linear_bias[order]
            self._class_weight = None if weight is None else weight[order]
            if self.target is not None:
                self._label = torch.where(self.target < 0, self.target, rank[self.target.clamp(min=0)])
        self._rows = min(options.block_rows or BLOCK_ROWS, max(1, self.num_rows))
        self._columns = min(options.block_vocab or BLOCK_VOCAB, len(linear_weight))
        self._rooms: dict[str, Tensor] = {}
        self._block = slice(-1, -1), linear_weight
        self._switches = {
            "HAS_BIAS": linear_bias is not None,
            "HAS_TARGET": target is not None,
            "HAS_CLASS_WEIGHT": weight is not None and "weighted_mean_log_prob" in names,
            "HAS_CAP": options.softcap > 0,
            "MOMENT": bool(OF_MOMENT.intersection(names)),
            "SPREAD": bool(SPREAD.intersection(names)),
        }

    def take(self, values: Tensor) -> Tensor:
        """Values of all rows ``(..., M)`` taken to those that count."""
        return values if self._kept is None else values.index_select(-1, self._kept)

    def put_back(self, values: Tensor) -> Tensor:
        """Values ``(..., N)`` of the rows that count put among all, 0 in the others."""
        if self._kept is None:
            return values
        return values.new_zeros(*values.shape[:-1], self._all_rows).index_copy_(-1, self._kept, values)

    def vocab_blocks(self) -> Iterator[slice]:
        """Columns of the tiles: the outer loop."""
        return _blocks(len(self.linear_weight), self._columns)

    def row_blocks(self) -> Iterator[slice]:
        """Rows of the tiles: the inner loop."""
        return _blocks(self.num_rows, self._rows)

    def places(self, columns: slice) -> slice | Tensor:
        """Where the columns lie in the vocabulary."""
        return columns if self._order is None else self._order[columns]

    def weight(self, columns: slice) -> Tensor:
        """A block of the weight, in the order of the vocabulary and the dtype of ``input``."""
        if self._block[0] != columns:
            self._block = columns, self.linear_weight[self.places(columns)].to(self.input.dtype)
        return self._block[1]

    def see(self, rows: slice, columns: slice, partial: Tensor, peaks: Tensor | None) -> None:
        """Add a tile to what is kept of its rows, and note its largest logits."""
        block_vocab = 16 if INTERPRETED else min(4096, triton.next_power_of_2(columns.stop - columns.start))
        block_rows = 16 if INTERPRETED else 1
        see_products_kernel[(triton.cdiv(rows.stop - rows.start, block_rows),)](
            self._product(rows, columns),
            self._bias,
            None if self._label is None else self._label[rows],
            self._class_weight,
            partial[:, rows],
            None if peaks is None else peaks[rows],
            rows.stop - rows.start,
            columns.stop - columns.start,
            columns.start,
            partial.stride(0),
            self.options.softcap or 1.0,
            1 / self.options.temperature,
            **self._switches,
            HAS_PEAK=peaks is not None,
            BLOCK_ROWS=block_rows,
            BLOCK_VOCAB=block_vocab,
            num_warps=8,
        )

    def gradient(self, rows: slice, columns: slice, coefficients: Tensor) -> Tensor:
        """Gradient of a tile's logits before the cap, in the dtype of ``input``; without the label's own."""
        block_rows, block_vocab = (16, 16) if INTERPRETED else (4, 1024)
        num_rows, num_columns = rows.stop - rows.start, columns.stop - columns.start
        gradient = self._room("gradient", self.input.dtype, num_rows, num_columns)
        gradient_of_products_kernel[(triton.cdiv(num_rows, block_rows), triton.cdiv(num_columns, block_vocab))](
            self._product(rows, columns),
            self._bias,
            None if self._label is None else self._label[rows],
            self._class_weight,
            coefficients[:, rows],
            gradient,
            num_rows,
            num_columns,
            columns.start,
            coefficients.stride(0),
            self.options.softcap or 1.0,
            1 / self.options.temperature,
            **self._switches,
            BLOCK_ROWS=block_rows,
            BLOCK_VOCAB=block_vocab,
            num_warps=4,
        )
        return gradient

    def live(self, peaks: Tensor, coefficients: Tensor) -> list[list[bool]]:
        """Of each block of the vocabulary, the tiles whose softmax reaches ``filter_eps``, the label's entry aside."""
        rows = list(self.row_blocks())
        if not len(peaks) or not rows:
            return [[True] * len(rows) for _ in self.vocab_blocks()]
        row = Coefficients(*coefficients.unbind(0))
        softmax = torch.exp(peaks - row.maximum) * row.probability
        dead = torch.stack([(softmax[:, block] < self.options.filter_eps).all(1) for block in rows], 1)
        return [[not tile for tile in block] for block in dead.tolist()]  # a NaN must reach the gradient

    def add_labels(self, coefficient: Tensor, d_input: Tensor, d_weight: Tensor, d_bias: Tensor) -> None:
        """Add what the target's own logit gives to the gradients, ``coefficient`` before the cap for each row."""
        if self.target is None or not self.num_rows:
            return
        here = (self.target >= 0).nonzero()[:, 0]
        places, inverse = torch.unique(self.target[here], return_inverse=True)
        summed = coefficient.new_zeros(len(places) if len(d_weight) else 0, self.input.shape[1])
        for some in torch.split(torch.arange(len(here), device=here.device), _LABEL_ROWS):
            rows = here[some]
            label, hidden, g = self.target[rows], self.input[rows].float(), coefficient[rows]
            if len(d_input) or self.options.softcap:
                chosen = self.linear_weight[label].float()
            if self.options.softcap:
                z = (hidden * chosen).sum(1)
                z = z if self.linear_bias is None else z + self.linear_bias[label]
                g = g * (1 - torch.tanh(z / self.options.softcap).square())
            if len(d_input):
                d_input.index_add_(0, rows, chosen * g.unsqueeze(1))
            if len(d_weight):
                summed.index_add_(0, inverse[some], hidden * g.unsqueeze(1))
            if len(d_bias):
                d_bias.index_add_(0, label, g)
        if len(d_weight):
            d_weight[places] = (d_weight[places] + summed).to(d_weight.dtype)

    def _product(self, rows: slice, columns: slice) -> Tensor:
        x, w = self.input[rows], self.weight(columns).t()
        return _product(x, w, self._room("products", torch.float32, len(x), w.shape[1]))

    def _room(self, use: str, dtype: torch.dtype, rows: int, columns: int) -> Tensor:
        if use not in self._rooms:
            self._rooms[use] = self.input.new_empty(self._rows * self._columns, dtype=dtype)
        return self._rooms[use][: rows * columns].view(rows, columns)


def _blocks(size: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, size)) for start in range(0, size, block))


def _product(x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """``x @ y`` in float32."""
    if x.dtype == torch.float32:
        return torch.mm(x, y, out=out)
    if x.is_cuda:
        return torch.mm(x, y, out_dtype=torch.float32, out=out)
    return torch.mm(x.float(), y.float(), out=out)  # the CPU's products know no wider result


def _add_product(total: Tensor, x: Tensor, y: Tensor) -> None:
    """Add ``x @ y`` to a float32 ``total``."""
    if x.dtype == torch.float32:
        torch.addmm(total, x, y, out=total)
    elif x.is_cuda:
        torch.addmm(total, x, y, out_dtype=torch.float32, out=total)
    else:
        torch.addmm(total, x.float(), y.float(), out=total)
