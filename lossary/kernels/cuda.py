"""The sweeps of :mod:`lossary.kernels.cpu` on a GPU: products by cuBLAS, all else of a tile by one Triton kernel.

A tile's products are formed in float32 from inputs as they came, so that half precision runs at the speed of the
tensor cores and is rounded once, where a gradient is multiplied. In large problems columns of a tile whose softmax
stays below ``filter_eps`` are left out of its gradients; the target's own entry is then no part of tiles: it is one row
of the head for each row of input. In small ones launches take the time, so that there are as few as can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import triton
from torch import Tensor

from lossary.kernels import state
from lossary.kernels.options import Options
from lossary.kernels.state import OF_MOMENT, SPREAD, Coefficients, Partial
from lossary.kernels.triton import INTERPRETED, check_device, kept_rows
from lossary.kernels.triton_kernels import (
    gradient_of_products_kernel,
    log_prob_rows_kernel,
    see_products_kernel,
)

BLOCK_ROWS = 4096
_TILE, _SMALL_TILE = 2**26, 2**22  # entries: at most, and of problems so small that launches are all they take
_WORK = 2**37  # products and sums that outlast the launches of a tile
_WORTH_FILTERING = {2: 2**35, 4: 2**31}  # by bytes of an entry, products of a tile that outlast counting its columns
_LABEL_ROWS = 1024


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
    check_device("cuda", input)
    tiles = _Tiles(names, input, linear_weight, linear_bias, target, weight, options)
    return tiles.put_back(tiles.sweep())


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
    """Gradients of ``input``, ``linear_weight`` and ``linear_bias``, empty where not needed."""
    check_device("cuda", input)
    tiles = _Tiles(names, input, linear_weight, linear_bias, target, weight, options)
    return tiles.gradients(tiles.take(coefficients), needs, input.dtype)


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
    """Statistics ``(S, M)`` and the gradients of the sum over rows of ``upstream`` x statistics, one after the other.

    What is saved are the many small steps of differentiating a mean, each of which waits for its launch.
    """
    check_device("cuda", input)
    tiles = _Tiles(names, input, linear_weight, linear_bias, target, weight, options)
    partial, given = tiles.sweep(), tiles.take(upstream)
    if tuple(names) == ("log_prob",):
        values, coefficients = _of_log_prob(partial, given.contiguous(), options)
    else:
        of_target = None if weight is None or tiles.target is None else weight[tiles.target]
        values = state.statistics(names, partial, of_target, True)
        coefficients = state.coefficients(names, given, partial, of_target, True, options.temperature)
    return tiles.put_back(values), *tiles.gradients(coefficients, needs, input.dtype)


def _of_log_prob(partial: Tensor, upstream: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Values ``(1, N)`` and coefficients ``(8, N)``."""
    values, coefficients = torch.empty_like(upstream), torch.empty_like(partial)
    num_rows, block = upstream.shape[1], 16 if INTERPRETED else 256
    if num_rows:
        log_prob_rows_kernel[(triton.cdiv(num_rows, block),)](
            partial, upstream, values, coefficients, num_rows, 1 / options.temperature, BLOCK_ROWS=block
        )
    return values, coefficients


class _Tiles:
    """The tiles of a head; room for a tile is used again and again."""

    def __init__(
        self,
        names: Sequence[str],
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor | None,
        weight: Tensor | None,
        options: Options,
    ) -> None:
        self._kept, self._all_rows = kept_rows(target, options), len(input)
        self.input = self.take(input, 0).contiguous()
        self.num_rows = len(self.input)
        self.target = None if target is None else self.take(target).contiguous()
        self.linear_weight = linear_weight
        self.linear_bias = None if linear_bias is None else linear_bias.contiguous()
        self._class_weight, self._options = None if weight is None else weight.contiguous(), options
        self._block_rows = min(options.block_rows or BLOCK_ROWS, max(1, self.num_rows))
        vocab = max(1, len(linear_weight))
        room = min(_TILE, _WORK // max(1, input.shape[1]), max(_SMALL_TILE, self.num_rows * vocab // 4))
        room = room // self._block_rows
        self.num_columns = min(options.block_vocab or max(256, room // 256 * 256), vocab)
        self._products = self.input.new_empty(self._block_rows * self.num_columns, dtype=torch.float32)
        self._gradient = self.input.new_empty(0)
        # What label smoothing adds is not small where the softmax is: nothing can be left out.
        work = self._products.numel() * input.shape[1]
        worth = options.block_vocab > 0 or work >= _WORTH_FILTERING[input.element_size()]
        self._filters = worth and options.filter_eps > 0 and not SPREAD.intersection(names)
        self._switches = {
            "HAS_BIAS": linear_bias is not None,
            "HAS_TARGET": target is not None,
            "HAS_CLASS_WEIGHT": weight is not None and "weighted_mean_log_prob" in names,
            "HAS_CAP": options.softcap > 0,
            "MOMENT": bool(OF_MOMENT.intersection(names)),
            "SPREAD": bool(SPREAD.intersection(names)),
        }

    def take(self, values: Tensor, dim: int = -1) -> Tensor:
        """Values of all M rows along ``dim`` taken to those that count."""
        return values if self._kept is None else values.index_select(dim, self._kept)

    def put_back(self, values: Tensor, dim: int = -1) -> Tensor:
        """Values along ``dim`` of the rows that count put among all M, 0 in the others."""
        if self._kept is None:
            return values
        shape = list(values.shape)
        shape[dim] = self._all_rows
        return values.new_zeros(shape).index_copy_(dim, self._kept, values)

    def sweep(self) -> Tensor:
        """What is kept of each row that counts, over the whole vocabulary."""
        shape = len(Partial._fields), self.num_rows
        partial = self.input.new_empty(shape, dtype=torch.float32)
        if not len(self.linear_weight):
            partial.zero_()
            partial[[Partial._fields.index("maximum"), Partial._fields.index("target")]] = -math.inf
        for columns in self.vocab_blocks():
            for rows in self.row_blocks():
                self.see(rows, columns, partial)
        return partial

    def gradients(
        self, coefficients: Tensor, needs: Sequence[bool], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of all rows of ``input`` and of the head, empty where not needed."""
        linear_weight, options = self.linear_weight, self._options
        needs_input, needs_weight, needs_bias = needs
        d_input = coefficients.new_empty(self.input.shape if needs_input else (0,))
        d_weight = linear_weight.new_empty(linear_weight.shape if needs_weight else (0, linear_weight.shape[1]))
        d_bias = coefficients.new_zeros(len(linear_weight) if needs_bias else 0)
        if not len(linear_weight) or not self.num_rows:
            d_input.zero_()
            d_weight.zero_()
        # A block of the head that all rows see at once is summed by one product, and needs no room in float32.
        whole = self.num_rows <= self._block_rows and needs_weight and d_weight.dtype == self.input.dtype
        d_block = coefficients.new_empty(self.num_columns if needs_weight and not whole else 0, self.input.shape[1])
        of_tiles, size = self._scaled(coefficients)
        for columns in self.vocab_blocks():
            d_columns = d_weight[columns] if whole else d_block[: columns.stop - columns.start]
            for rows in self.row_blocks():
                gradient, live = self.gradient(rows, columns, of_tiles)
                few = gradient if live is None else gradient[:, live]
                if needs_input and live is not None and options.filter_input:
                    _add_product(d_input[rows], few, self.weight(columns)[live], first=columns.start == 0)
                elif needs_input:
                    _add_product(d_input[rows], gradient, self.weight(columns), first=columns.start == 0)
                if needs_weight and options.filter_weight:
                    _add_to_rows(d_columns, few.t(), self.input[rows], live, first=rows.start == 0)
                elif needs_weight:
                    _add_to_rows(d_columns, gradient.t(), self.input[rows], None, first=rows.start == 0)
                if needs_bias:
                    d_bias[columns] += gradient.sum(0, dtype=torch.float32)
            if needs_weight and size is not None:
                d_columns.mul_(size)
            if needs_weight and not whole and self.num_rows:
                d_weight[columns] = d_columns
        if size is not None:
            d_input.mul_(size)
            d_bias.mul_(size)
        self._products = self._gradient = d_block = self._products[:0]
        if self._filters:
            self.add_labels(Coefficients(*coefficients.unbind(0)).target, d_input, d_weight, d_bias)
        if needs_input:
            d_input = self.put_back(d_input.to(dtype), 0)
        bias = linear_weight if self.linear_bias is None else self.linear_bias
        return d_input, d_weight, d_bias.to(bias.dtype)

    def _scaled(self, coefficients: Tensor) -> tuple[Tensor, Tensor | None]:
        """Coefficients that keep a tile in reach of float16, and what its gradients are too small by."""
        if self.input.dtype != torch.float16:
            return coefficients, None
        size = coefficients[1:6].abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
        return torch.cat([coefficients[:1], coefficients[1:6] / size, coefficients[6:]]), size

    def vocab_blocks(self) -> Iterator[slice]:
        """Columns of the tiles: the outer loop."""
        return _blocks(len(self.linear_weight), self.num_columns)

    def row_blocks(self) -> Iterator[slice]:
        """Rows of the tiles: the inner loop."""
        return _blocks(self.num_rows, self._block_rows)

    def weight(self, columns: slice) -> Tensor:
        """A block of the head; widened beside an input that a learned temperature made float32."""
        return self.linear_weight[columns].to(self.input.dtype)

    def see(self, rows: slice, columns: slice, partial: Tensor) -> None:
        """Add a tile to what is kept of its rows."""
        products = self._form(rows, columns)
        block_rows, block_vocab = (16, 16) if INTERPRETED else (1, min(4096, triton.next_power_of_2(len(products[0]))))
        see_products_kernel[(triton.cdiv(len(products), block_rows),)](
            products,
            self.linear_bias,
            None if self.target is None else self.target[rows],
            self._class_weight,
            partial[:, rows],
            *products.shape,
            columns.start,
            partial.stride(0),
            self._options.softcap or 1.0,
            1 / self._options.temperature,
            FIRST=columns.start == 0,
            **self._switches,
            BLOCK_ROWS=block_rows,
            BLOCK_VOCAB=block_vocab,
            num_warps=4,
        )

    def gradient(self, rows: slice, columns: slice, coefficients: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradient of a tile's logits before the cap, in the dtype of ``input``, the label's own left out; and the
        columns that are worth multiplying, None for all.
        """
        products = self._form(rows, columns)
        if not len(self._gradient):
            self._gradient = torch.empty_like(self._products, dtype=self.input.dtype)
        gradient = self._gradient[: products.numel()].view_as(products)
        live = torch.zeros(products.shape[1] if self._filters else 0, dtype=torch.int8, device=products.device)
        block_rows, block_vocab = (16, 16) if INTERPRETED else (16, 256)
        grid = triton.cdiv(len(products), block_rows), triton.cdiv(products.shape[1], block_vocab)
        gradient_of_products_kernel[grid](
            products,
            self.linear_bias,
            None if self.target is None else self.target[rows],
            self._class_weight,
            coefficients[:, rows],
            gradient,
            live,
            *products.shape,
            columns.start,
            coefficients.stride(0),
            self._options.softcap or 1.0,
            1 / self._options.temperature,
            self._options.filter_eps,
            **self._switches,
            FILTER=self._filters,
            BLOCK_ROWS=block_rows,
            BLOCK_VOCAB=block_vocab,
            num_warps=4,
        )
        if not self._filters:
            return gradient, None
        places = live.nonzero()[:, 0]
        return gradient, places if 2 * len(places) < len(live) else None

    def add_labels(self, coefficient: Tensor, d_input: Tensor, d_weight: Tensor, d_bias: Tensor) -> None:
        """Add what the target's own logit gives to the gradients: ``coefficient`` for each row, before the cap."""
        if self.target is None or not self.num_rows:
            return
        here = (self.target >= 0).nonzero()[:, 0]
        places, inverse = torch.unique(self.target[here], return_inverse=True)
        summed = coefficient.new_zeros(len(places) if len(d_weight) else 0, self.input.shape[1])
        for some in _blocks(len(here), _LABEL_ROWS):
            rows = here[some]
            label, hidden, g = self.target[rows], self.input[rows].float(), coefficient[rows]
            chosen = self.linear_weight[label].float()
            if self._options.softcap:
                z = (hidden * chosen).sum(1)
                z = z if self.linear_bias is None else z + self.linear_bias[label]
                g = g * (1 - torch.tanh(z / self._options.softcap).square())
            if len(d_input):
                d_input.index_add_(0, rows, chosen * g.unsqueeze(1))
            if len(d_weight):
                summed.index_add_(0, inverse[some], hidden * g.unsqueeze(1))
            if len(d_bias):
                d_bias.index_add_(0, label, g)
        if len(d_weight):
            d_weight[places] = (d_weight[places] + summed).to(d_weight.dtype)

    def _form(self, rows: slice, columns: slice) -> Tensor:
        x, w = self.input[rows], self.weight(columns).t()
        return _product(x, w, self._products[: len(x) * w.shape[1]].view(len(x), w.shape[1]))


def _blocks(size: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, size)) for start in range(0, size, block))


def _product(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """``x @ y`` in float32."""
    if x.dtype == torch.float32 or not x.is_cuda:  # the CPU's products know no wider result
        return torch.mm(x.float(), y.float(), out=out)
    return torch.mm(x, y, out_dtype=torch.float32, out=out)


def _add_product(total: Tensor, x: Tensor, y: Tensor, *, first: bool) -> None:
    """Add ``x @ y`` to a float32 ``total``, or put it there if it is the ``first``."""
    if first and not x.shape[1]:  # no column was worth it
        total.zero_()
    elif first:
        _product(x, y, total)
    elif x.dtype == torch.float32 or not x.is_cuda:
        torch.addmm(total, x.float(), y.float(), out=total)
    else:
        torch.addmm(total, x, y, out_dtype=torch.float32, out=total)


def _add_to_rows(total: Tensor, x: Tensor, y: Tensor, rows: Tensor | None, *, first: bool) -> None:
    """Add ``x @ y`` to some rows of ``total``, None for all; in half precision it is the ``first`` and only product."""
    if rows is not None:
        total = total.zero_() if first else total
        total.index_add_(0, rows, _product(x, y).to(total.dtype))
    elif total.dtype != torch.float32:
        torch.mm(x, y, out=total)
    else:
        _add_product(total, x, y, first=first)
