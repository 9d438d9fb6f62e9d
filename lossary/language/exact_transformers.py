"""Transformers built by hand that recognise PARITY and FIRST at every length, and how models fare with length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core.checks import check_in_range, may_read_values
from lossary.language.log_length import LogLengthTransformerEncoderLayer

Data = Callable[[int, int | tuple[int, int], torch.Generator | None], tuple[Tensor, Tensor]]
Entries = Mapping[tuple[int, ...], float]
"""A sparse matrix: its entries by place."""


def parity_data(
    n: int, length: int | tuple[int, int], generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Random strings of bits, and whether each has an odd number of ones.

    Reach for it to test what depends on every symbol. No one has seen a transformer learn it by gradient descent from
    strings of more than a few bits.

    Args:
        n: Number of strings.
        length: Bits of each; a pair draws each length between both, and pads on the right with -1.
        generator: Source of randomness.

    Returns:
        The strings ``(n, length)`` of int64, and labels ``(n,)`` of 0 and 1.

    Raises:
        ValueError: A number is not positive.

    Example:
        >>> bits, labels = parity_data(4, 10, torch.Generator().manual_seed(0))
        >>> bits.shape, bool((labels == bits.sum(1) % 2).all())
        (torch.Size([4, 10]), True)

    Source:
        Chiang, Cholak: Overcoming a Theoretical Limitation of Self-Attention (ACL 2022, arXiv 2202.12172).
    """
    bits = _bits(n, length, generator)
    return bits, bits.clamp(min=0).sum(1) % 2


def first_data(
    n: int, length: int | tuple[int, int], generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Random strings of bits, and whether the first of each is a one.

    Reach for it to test attention to one position: easy to learn, and hard to carry over to longer strings.

    Args:
        n: Number of strings.
        length: Bits of each; a pair draws each length between both, and pads on the right with -1.
        generator: Source of randomness.

    Returns:
        The strings ``(n, length)`` of int64, and labels ``(n,)`` of 0 and 1.

    Raises:
        ValueError: A number is not positive.

    Example:
        >>> bits, labels = first_data(4, (1, 10), torch.Generator().manual_seed(0))
        >>> bool((labels == bits[:, 0]).all())
        True

    Source:
        Chiang, Cholak: Overcoming a Theoretical Limitation of Self-Attention (ACL 2022, arXiv 2202.12172).
    """
    bits = _bits(n, length, generator)
    return bits, bits[:, 0].clone()


def length_profile(
    model: Callable[[Tensor], Tensor],
    lengths: Iterable[int],
    *,
    data: Data | None = None,
    n: int = 200,
    generator: torch.Generator | None = None,
) -> dict[int, dict[str, float]]:
    """How well a model tells strings apart at each length.

    Reach for it to see whether what was learned on short strings holds on long ones; accuracy alone hides how the
    margin shrinks.

    Args:
        model: From strings ``(B, n)`` to logits ``(B,)``, positive for accepted ones.
        lengths: Lengths to test.
        data: :func:`parity_data`, :func:`first_data` or a function like these; None takes ``model.data``, which exact
            transformers have.
        n: Strings of each length.
        generator: Source of randomness.

    Returns:
        For each length its ``accuracy`` and ``cross_entropy`` in bits.

    Raises:
        ValueError: ``data`` is None and the model has none.

    Example:
        >>> profile = length_profile(ExactFirstTransformer(), [2, 50], generator=torch.Generator().manual_seed(0))
        >>> profile[50]["accuracy"], profile[50]["cross_entropy"] > profile[2]["cross_entropy"]
        (1.0, True)

    Source:
        Chiang, Cholak: Overcoming a Theoretical Limitation of Self-Attention (ACL 2022, arXiv 2202.12172).
    """
    draw: Data | None = getattr(model, "data", None) if data is None else data
    if draw is None:
        raise ValueError("data is None and model has no data; wanted a function such as first_data.")
    profile = {}
    for length in lengths:
        bits, labels = draw(n, length, generator)
        with torch.no_grad():  # few long strings at once: attention is quadratic in their length
            parts = [model(part) for part in torch.split(bits, max(1, 2**14 // (length + 1)))]
        logits = torch.cat(parts).double()
        profile[length] = {
            "accuracy": ((logits > 0) == (labels > 0)).double().mean().item(),
            "cross_entropy": F.binary_cross_entropy_with_logits(logits, labels.double()).item() / math.log(2),
        }
    return profile


class _ExactTransformer(nn.Module):
    """Two layers whose weights are set by hand; what a string's CLS symbol says at the end is the answer.

    With layer normalisation every vector is [x, -x], whose mean is 0, so that norming only rescales it. It works in
    float64: norming amplifies the small signal of a long string, and its rounding with it.
    """

    width: ClassVar[int]
    heads: ClassVar[int]
    read: ClassVar[int]
    """The dimension that holds the answer."""

    def __init__(self, layer_norm: bool, scale: float, eps: float, output_scale: float) -> None:
        super().__init__()
        check_in_range("eps", eps, 0.0)
        self.layer_norm, self.scale, self.eps, self.output_scale = layer_norm, scale, eps, output_scale
        self.layers = nn.ModuleList(self._layers())
        size = self.width * (2 if layer_norm else 1)
        self.output = nn.Linear(size, 1, dtype=torch.float64)
        _set(self.output.weight, {(0, self.read): output_scale})
        _set(self.output.bias, {})

    def _layers(self) -> list[LogLengthTransformerEncoderLayer]:
        raise NotImplementedError

    def _symbols(self, bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Symbols ``(B, N, 3)`` one-hot, CLS the third of them; where CLS is ``(B,)``; and N of each string."""
        raise NotImplementedError

    def _positions(self, count: Tensor, places: Tensor) -> Tensor:
        """What the embedding adds for each position ``(B, N, width - 3)``."""
        raise NotImplementedError

    def forward(self, bits: Tensor) -> Tensor:
        """Logits ``(B,)`` of strings ``(B, n)`` of 0 and 1, padded on the right with -1; positive is accepted."""
        _check_bits(bits)
        tokens, cls, count = self._symbols(bits)
        places = torch.arange(tokens.shape[1], device=bits.device)
        symbols = F.one_hot(tokens.clamp(min=0), 3).to(self.output.weight.dtype)
        x = torch.cat([symbols, self._positions(count.unsqueeze(1), places).to(symbols)], -1)
        x = F.pad(x, (0, self.width - x.shape[-1]))
        if self.layer_norm:
            x = torch.cat([x, -x], -1)
        padding = tokens < 0
        first, second = cast("list[LogLengthTransformerEncoderLayer]", list(self.layers))
        x = first(x, src_key_padding_mask=padding)
        # Only CLS is asked: all other answers are 0, and norming 0 with eps = 0 is undefined.
        asked = x[torch.arange(len(x), device=bits.device), cls].unsqueeze(1)
        answer: Tensor = self.output(second.attend(asked, x, src_key_padding_mask=padding))
        return answer.flatten()

    def _layer(
        self, query: Entries, key: Entries, value: Entries, out: Entries, hidden: Entries, back: Entries, bias: float
    ) -> LogLengthTransformerEncoderLayer:
        """A layer of plain attention from its entries.

        ``query``, ``key`` and ``value`` by (head, row within the head, dimension), ``out`` by (dimension, head, row),
        ``hidden`` by (unit, dimension), ``back`` by (dimension, unit).
        """
        mirrored = 2 if self.layer_norm else 1
        size, units = self.width * mirrored, 1 + max((unit for unit, _ in hidden), default=0)
        layer = LogLengthTransformerEncoderLayer(
            size, self.heads, units, dropout=0.0, layer_norm_eps=self.eps, log_length_scale=False
        ).double()
        if not self.layer_norm:
            layer.norm1, layer.norm2 = nn.Identity(), nn.Identity()
        head = size // self.heads
        projections = (query, key, value)
        _set(
            layer.self_attn.in_proj_weight,
            {(p * size + h * head + r, d): v for p, each in enumerate(projections) for (h, r, d), v in each.items()},
        )
        _set(layer.self_attn.out_proj.weight, self._mirrored({(d, h * head + r): v for (d, h, r), v in out.items()}))
        _set(layer.linear1.weight, hidden)
        _set(layer.linear1.bias, dict.fromkeys([(unit,) for unit in range(units)], bias))
        _set(layer.linear2.weight, self._mirrored(back))
        for zero in (layer.self_attn.in_proj_bias, layer.self_attn.out_proj.bias, layer.linear2.bias):
            _set(zero, {})
        return layer

    def _mirrored(self, entries: Entries) -> Entries:
        """Writes to a dimension write the opposite to its mirror."""
        if not self.layer_norm:
            return entries
        return {**entries, **{(row + self.width, column): -v for (row, column), v in entries.items()}}

    def _cancel(self) -> tuple[Entries, Entries]:
        """Hidden units, and what they write back, that take every dimension but the answer's to 0."""
        if not self.layer_norm:
            return {}, {}
        hidden: Entries = {(unit, unit): 1.0 for unit in range(2 * self.width)}
        # relu(x) - relu(-x) = x, and -x stands in the mirror.
        others = [dimension for dimension in range(self.width) if dimension != self.read]
        back: Entries = {(d, other): sign for d in others for other, sign in ((d, -1.0), (d + self.width, 1.0))}
        return hidden, back

    def extra_repr(self) -> str:
        """The arguments."""
        return f"layer_norm={self.layer_norm}, scale={self.scale}, eps={self.eps}, output_scale={self.output_scale}"


class ExactParityTransformer(_ExactTransformer):
    r"""A transformer that says at every length whether the number of ones is odd.

    Reach for it as the proof that self-attention can recognise PARITY, to test code for length, or to start training
    from. Without layer normalisation its logit fades like 1 / n, and the cross-entropy tends to 1 bit.

    Formula:
        .. math:: z = \frac{1}{N} \big(b_k - a_k\big), \quad
            a_i \propto e^{s (-1)^i / \sqrt{5}}, \quad b_i \propto e^{-s (-1)^i / \sqrt{5}}

        with k the number of ones, N = n + 1, and s the ``scale``; with layer normalisation and ``eps`` = 0 it is
        :math:`\pm \sqrt{10}` times ``output_scale``.

    Args:
        layer_norm: Whether layers are normed, each after its residual sum.
        scale: Sharpness s of the second layer's attention.
        eps: What layer normalisation adds to the variance; it drowns the signal of long strings, 0 never does.
        output_scale: Factor of the logit.

    Shape:
        - bits: ``(B, n)`` of int64 in {0, 1}, -1 for padding on the right; output: ``(B,)``, positive for odd.

    Raises:
        TypeError: ``bits`` are no integers.
        ValueError: A shape or value is wrong.

    Example:
        >>> model = ExactParityTransformer(layer_norm=True, eps=0.0)
        >>> model(torch.tensor([[1, 0, 1, 1], [1, 1, -1, -1]])).detach()
        tensor([ 3.1623, -3.1623], dtype=torch.float64)

    Source:
        Chiang, Cholak: Overcoming a Theoretical Limitation of Self-Attention (ACL 2022, arXiv 2202.12172), sections 3
        and 4.
    """

    width, heads, read = 10, 2, 8
    data = staticmethod(parity_data)

    def __init__(
        self, layer_norm: bool = False, scale: float = 1.0, eps: float = 1e-5, output_scale: float = 1.0
    ) -> None:
        super().__init__(layer_norm, scale, eps, output_scale)

    def _layers(self) -> list[LogLengthTransformerEncoderLayer]:
        # Dimensions: 0 to 2 the symbol, 3 i / N, 4 (-1)^i, 5 k / N, 6 1 / N, 7 whether i = k (times 1 / N), 8 answer.
        counting = self._layer(
            query={},
            key={},
            value={(0, 0, 1): 1.0, (0, 1, 2): 1.0},  # averages of ones and of CLS
            out={(5, 0, 0): 1.0, (6, 0, 1): 1.0},
            hidden={
                (unit, dimension): value
                for unit, shift in enumerate((-1.0, 0.0, 1.0))
                for dimension, value in ((3, -1.0), (5, 1.0), (6, shift))  # (k - i + shift) / N
            },
            back={(7, 0): 1.0, (7, 1): -2.0, (7, 2): 1.0},
            bias=0.0,
        )
        hidden, back = self._cancel()
        comparing = self._layer(
            query={(0, 0, 2): self.scale, (1, 0, 2): self.scale},
            key={(0, 0, 4): 1.0, (1, 0, 4): -1.0},  # one head for even positions, one for odd ones
            value={(0, 0, 7): 1.0, (1, 0, 7): 1.0},
            out={(8, 0, 0): -1.0, (8, 1, 0): 1.0},
            hidden=hidden,
            back=back,
            bias=0.0,
        )
        return [counting, comparing]

    def _symbols(self, bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        length = (bits >= 0).sum(1)
        places = torch.arange(bits.shape[1] + 1, device=bits.device)
        tokens = torch.where(places == length.unsqueeze(1), 2, F.pad(bits, (0, 1), value=-1))
        return tokens, length, length + 1

    def _positions(self, count: Tensor, places: Tensor) -> Tensor:
        return torch.stack([places / count.double(), (1.0 - 2.0 * (places % 2)).expand(len(count), -1)], -1)


class ExactFirstTransformer(_ExactTransformer):
    r"""A transformer that says at every length whether the first bit is a one.

    Reach for it as the simplest case of attention to one position, and of how it fades in longer strings unless
    ``scale`` grows like log n (:func:`log_length_attention`) or layers are normed.

    Formula:
        .. math:: z = \pm \frac{1}{2} \frac{e^{s / \sqrt{6}}}{e^{s / \sqrt{6}} + n}

        with s the ``scale``; with layer normalisation and ``eps`` = 0 it is :math:`\pm \sqrt{6}` times
        ``output_scale``.

    Args:
        layer_norm: Whether layers are normed, each after its residual sum.
        scale: Sharpness s of the second layer's attention.
        eps: What layer normalisation adds to the variance.
        output_scale: Factor of the logit.

    Shape:
        - bits: ``(B, n)`` of int64 in {0, 1}, -1 for padding on the right; output: ``(B,)``, positive for a first 1.

    Raises:
        TypeError: ``bits`` are no integers.
        ValueError: A shape or value is wrong.

    Example:
        >>> ExactFirstTransformer(scale=5.0)(torch.tensor([[1, 0, 0], [0, 1, 1]])).detach()
        tensor([ 0.3598, -0.3598], dtype=torch.float64)

    Source:
        Chiang, Cholak: Overcoming a Theoretical Limitation of Self-Attention (ACL 2022, arXiv 2202.12172), sections 3
        to 5.
    """

    width, heads, read = 6, 1, 5
    data = staticmethod(first_data)

    def __init__(
        self, layer_norm: bool = False, scale: float = 1.0, eps: float = 1e-5, output_scale: float = 1.0
    ) -> None:
        super().__init__(layer_norm, scale, eps, output_scale)

    def _layers(self) -> list[LogLengthTransformerEncoderLayer]:
        # Dimensions: 0 to 2 the symbol, 3 whether i = 1, 4 whether also the bit is a one, 5 the answer.
        plain: Entries = {(0, 1): 1.0, (0, 3): 1.0}  # with a bias of -1, which norming would not rescale
        normed: Entries = {(0, 0): -1.0, (0, 2): -1.0, (0, 3): 1.0}
        marking = self._layer(
            query={},
            key={},
            value={},
            out={},
            hidden=normed if self.layer_norm else plain,
            back={(4, 0): 1.0},
            bias=0.0 if self.layer_norm else -1.0,
        )
        hidden, back = self._cancel()
        looking = self._layer(
            query={(0, 0, 2): self.scale},
            key={(0, 0, 3): 1.0},
            value={(0, 5, 3): -0.5, (0, 5, 4): 1.0},
            out={(5, 0, 5): 1.0},
            hidden=hidden,
            back=back,
            bias=0.0,
        )
        return [marking, looking]

    def _symbols(self, bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        length = (bits >= 0).sum(1)
        return F.pad(bits, (1, 0), value=2), torch.zeros_like(length), length + 1

    def _positions(self, count: Tensor, places: Tensor) -> Tensor:
        return (places == 1).double().expand(len(count), -1).unsqueeze(-1)


def _set(parameter: Tensor | None, entries: Mapping[tuple[int, ...], float]) -> None:
    assert parameter is not None
    with torch.no_grad():
        parameter.zero_()
        for place, value in entries.items():
            parameter[place] = value


def _bits(n: int, length: int | tuple[int, int], generator: torch.Generator | None) -> Tensor:
    low, high = (length, length) if isinstance(length, int) else length
    check_in_range("n", n, 1)
    check_in_range("length", low, 1, high)
    bits = torch.randint(2, (n, high), generator=generator)
    if low == high:
        return bits
    lengths = torch.randint(low, high + 1, (n, 1), generator=generator)
    return torch.where(torch.arange(high) < lengths, bits, -1)


def _check_bits(bits: Tensor) -> None:
    if not isinstance(bits, Tensor) or bits.is_floating_point():
        raise TypeError("bits is no tensor of integers; wanted int64 of 0 and 1.")
    if bits.ndim != 2:
        raise ValueError(f"bits has shape {tuple(bits.shape)}; wanted (B, n), a string in each row.")
    if not may_read_values(bits):
        return
    if ((bits < -1) | (bits > 1)).any() or ((bits[:, :-1] == -1) & (bits[:, 1:] != -1)).any():
        raise ValueError("bits has other values, or padding within a string; wanted 0 and 1, then -1 to the right.")
