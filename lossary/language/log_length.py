"""Attention whose logits grow with the logarithm of the length, so that one position keeps its weight in long texts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core.checks import check_floating, check_in_range, check_shape


def log_length_attention(
    query: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    *,
    key: Tensor | None = None,
    value: Tensor | None = None,
    num_heads: int,
    log_length_scale: bool = True,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    r"""Multi-head attention with logits multiplied by log n.

    Reach for it where a model is trained on short texts and used on long ones: a softmax over n positions spreads what
    a bounded logit gathers, and attention to one position fades like 1 / n. Multiplied by log n it stays. Where what is
    wanted is an average over all positions, plain attention is right.

    Formula:
        .. math:: \mathrm{softmax}\Big(\log n \, \frac{q k^\top}{\sqrt{d / h}}\Big) v

        with n the number of source positions that a query may look at: padding and masked ones do not count.

    Args:
        query: What attends.
        in_proj_weight: Weights of query, key and value, one below the other, as ``nn.MultiheadAttention`` has them.
        in_proj_bias: Their biases, or None.
        out_proj_weight: Weight of the output.
        out_proj_bias: Its bias, or None.
        key: What is attended to; None takes ``query``.
        value: What is gathered; None takes ``key``.
        num_heads: h.
        log_length_scale: Whether to multiply by log n.
        key_padding_mask: True at source positions that are padding.
        attn_mask: Where a query may not look: True there, or a number that is added to the logits.
        dropout: Share of attention weights that are dropped.

    Shape:
        - query: ``(n, d)`` or ``(B, n, d)``; key, value: ``(m, d)`` or ``(B, m, d)``; key_padding_mask: ``(B, m)``.
        - in_proj_weight: ``(3 d, d)``; in_proj_bias: ``(3 d,)``; out_proj_weight: ``(d, d)``; out_proj_bias: ``(d,)``.
        - attn_mask: ``(n, m)``, or what broadcasts to ``(B, h, n, m)``.

    Returns:
        As query.

    Raises:
        TypeError: A tensor is no floating point.
        ValueError: A shape is wrong, or ``num_heads`` does not divide d.

    Example:
        >>> eye, query = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> log_length_attention(query, eye.repeat(3, 1), None, eye, None, num_heads=1)
        tensor([[0.6201, 0.3799],
                [0.3799, 0.6201]])

    Source:
        Chiang, Cholak: Overcoming a Theoretical Limitation of Self-Attention (ACL 2022, arXiv 2202.12172), section 5.
        The original code multiplies the input of the layer by log(n) / 2 before the projection, so that a bias of the
        query is not scaled; here the logits are.
    """
    check_floating("query", query)
    if query.ndim not in (2, 3):
        raise ValueError(f"query has shape {tuple(query.shape)}; wanted (n, d) or (B, n, d).")
    width = query.shape[-1]
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads is {num_heads}; wanted a divisor of query's width {width}.")
    check_shape("in_proj_weight", in_proj_weight, (3 * width, width), "query, key and value below each other")
    check_shape("out_proj_weight", out_proj_weight, (width, width), "as wide as query")
    key = query if key is None else key
    value = key if value is None else value
    for name, tensor in (("key", key), ("value", value)):
        check_shape(name, tensor, (*query.shape[:-2], key.shape[-2], width), "batch and width of query")
    biases: tuple[Tensor | None, ...] = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, weight, bias).reshape(*x.shape[:-1], num_heads, width // num_heads).transpose(-3, -2)
        for x, weight, bias in zip((query, key, value), in_proj_weight.chunk(3), biases, strict=True)
    )
    bias = _bias(q, k, key_padding_mask, attn_mask)
    if log_length_scale:
        count = torch.tensor(k.shape[-2]) if bias is None else (bias > -torch.inf).sum(-1, keepdim=True)
        q = q * count.clamp(min=1).to(torch.promote_types(q.dtype, torch.float32)).log().to(q)
    gathered = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    return F.linear(gathered.transpose(-3, -2).flatten(-2), out_proj_weight, out_proj_bias)


class LogLengthAttention(nn.Module):
    """Multi-head attention with logits multiplied by log n; module form of :func:`log_length_attention`.

    Its parameters are named and initialised as those of ``nn.MultiheadAttention``, whose ``state_dict`` it loads.

    Args:
        embed_dim: Width d.
        num_heads: Number of heads, a divisor of d.
        dropout: Share of attention weights that are dropped in training.
        bias: Whether projections have biases.
        log_length_scale: Whether to multiply by log n; plain attention otherwise.

    Shape:
        - query: ``(n, d)`` or ``(B, n, d)``; output: the same.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dim``.

    Example:
        >>> LogLengthAttention(embed_dim=8, num_heads=2)(torch.randn(3, 5, 8)).shape
        torch.Size([3, 5, 8])

    Source:
        Chiang, Cholak: Overcoming a Theoretical Limitation of Self-Attention (ACL 2022, arXiv 2202.12172).
    """

    in_proj_bias: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        log_length_scale: bool = True,
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}; wanted a divisor of embed_dim={embed_dim}.")
        check_in_range("dropout", dropout, 0.0, 1.0)
        self.num_heads, self.dropout, self.log_length_scale = num_heads, dropout, log_length_scale
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * embed_dim, embed_dim)))
        self.register_parameter("in_proj_bias", nn.Parameter(torch.zeros(3 * embed_dim)) if bias else None)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """What each query gathers; see :func:`log_length_attention`."""
        return log_length_attention(
            query,
            self.in_proj_weight,
            self.in_proj_bias,
            self.out_proj.weight,
            self.out_proj.bias,
            key=key,
            value=value,
            num_heads=self.num_heads,
            log_length_scale=self.log_length_scale,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            dropout=self.dropout if self.training else 0.0,
        )

    def extra_repr(self) -> str:
        """Heads and scale."""
        return f"num_heads={self.num_heads}, dropout={self.dropout}, log_length_scale={self.log_length_scale}"


class LogLengthTransformerEncoderLayer(nn.Module):
    """The layer of a transformer's encoder with :class:`LogLengthAttention`, normed after each residual sum.

    Reach for it in place of ``nn.TransformerEncoderLayer(batch_first=True)``, whose ``state_dict`` it loads.

    Args:
        d_model: Width.
        nhead: Number of heads, a divisor of the width.
        dim_feedforward: Width of the hidden layer.
        dropout: Share of attention weights, hidden units and outputs that are dropped in training.
        layer_norm_eps: What layer normalisation adds to the variance. Small signals in long texts need a small one.
        log_length_scale: Whether attention is multiplied by log n; the plain layer otherwise.

    Shape:
        - src: ``(n, d)`` or ``(B, n, d)``; output: the same.

    Raises:
        ValueError: ``nhead`` does not divide ``d_model``.

    Example:
        >>> layer = LogLengthTransformerEncoderLayer(d_model=8, nhead=2, dim_feedforward=16)
        >>> layer(torch.randn(3, 5, 8)).shape
        torch.Size([3, 5, 8])

    Source:
        Chiang, Cholak: Overcoming a Theoretical Limitation of Self-Attention (ACL 2022, arXiv 2202.12172).
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        *,
        layer_norm_eps: float = 1e-5,
        log_length_scale: bool = True,
    ) -> None:
        super().__init__()
        self.self_attn = LogLengthAttention(d_model, nhead, dropout=dropout, log_length_scale=log_length_scale)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm1: nn.Module = nn.LayerNorm(d_model, eps=layer_norm_eps)
        self.norm2: nn.Module = nn.LayerNorm(d_model, eps=layer_norm_eps)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """The layer's output.

        Args:
            src: Input.
            src_mask: Where a position may not look, as ``attn_mask`` of :func:`log_length_attention`.
            src_key_padding_mask: True at padding.
            is_causal: A hint of ``nn.TransformerEncoder`` that ``src_mask`` is causal; the mask says all.
        """
        return self.attend(src, src, src_mask, src_key_padding_mask)

    def attend(
        self, query: Tensor, src: Tensor, src_mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None
    ) -> Tensor:
        """The layer's output at some positions alone, ``query``, that attend to all of ``src``."""
        gathered = self.self_attn(query, src, key_padding_mask=src_key_padding_mask, attn_mask=src_mask)
        x = self.norm1(query + self.dropout1(gathered))
        output: Tensor = self.norm2(x + self.dropout2(self.linear2(self.dropout(F.relu(self.linear1(x))))))
        return output


def _bias(q: Tensor, k: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
    """Both masks as one number for each head, query and source position; -inf where it may not look."""
    if key_padding_mask is None and attn_mask is None:
        return None
    bias = q.new_zeros(q.shape[-2], k.shape[-2])
    if attn_mask is not None:
        bias = bias.masked_fill(attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else bias + attn_mask
    if key_padding_mask is not None:
        check_shape("key_padding_mask", key_padding_mask, (*k.shape[:-3], k.shape[-2]), "True at padding")
        bias = bias.masked_fill(key_padding_mask[..., None, None, :], -torch.inf)
    return bias
