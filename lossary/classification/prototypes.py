"""Attention by inverse distance, and the prototype classifier that it makes."""

from __future__ import annotations

import math
from typing import Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core import checks
from lossary.core.numerics import logaddexp
from lossary.core.rows import widen

Score = Literal["neglog", "inverse", "exp_neg", "neg", "dot", "relu"]
_SCORES = ("neglog", "inverse", "exp_neg", "neg", "dot", "relu")


class Repaired(TypedDict):
    """Prototypes after :func:`add_prototype`, and the logits that they give the repaired example."""

    key: Tensor
    value: Tensor
    logits_after: Tensor


def inverse_distance_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    power: Tensor | float = 2.0,
    eps: float = 1e-3,
    attn_mask: Tensor | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Attention whose weights are inverse distances (Shepard's interpolation): near keys count, far ones hardly do.

    Reach for it where keys shall be points of the inputs' own space that one can look at, as in
    :class:`PrototypeClassifier`. With few keys it is less accurate than dot products.

    Formula:
        .. math:: o_n = \frac{\sum_p v_p / d_{np}}{\sum_p 1 / d_{np}}, \quad d_{np} = \epsilon + \|q_n - k_p\|^{power}

        which is attention with the scores :math:`-\log d`. Nothing is scaled by the dimension.

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        power: Exponent of the distance, positive: large values make it nearest neighbour, small ones the mean.
        eps: What is added to the powered distance, at least 0: with 0 a query that lies on a key gets its value.
        attn_mask: True where a query may look at a key; a query that may look at none gets NaN.
        return_weights: Whether to return the weights too.

    Shape:
        - query: ``(..., N, D)``; key: ``(..., P, D)``; value: ``(..., P, C)``, floating point, leading dimensions alike
          or broadcastable.
        - attn_mask: ``(..., N, P)`` bool, broadcastable.

    Returns:
        ``(..., N, C)``, and the weights ``(..., N, P)``; at least float32. First derivatives only.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, ``power`` or ``eps`` is wrong.

    Example:
        >>> key, value = torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [0.0]])
        >>> inverse_distance_attention(torch.tensor([[1.0]]), key, value, eps=0.0)
        tensor([[0.8000]])

    Source:
        McCarter: Inverse distance weighting attention (NeurIPS 2023 workshop on associative memory, arXiv 2310.18805),
        equation 3.
    """
    query, key, value = _widened(query, key, value)
    score = -_log_distance(query, key, power, eps)
    if attn_mask is not None:
        if attn_mask.dtype != torch.bool:
            raise TypeError(f"attn_mask has dtype {attn_mask.dtype}; wanted bool, True where a query may look.")
        score = score.masked_fill(~attn_mask, -torch.inf)
    weights = F.softmax(score, -1)
    return (weights @ value, weights) if return_weights else weights @ value


class IDWAttention(nn.Module):
    """Multi-head attention with :func:`inverse_distance_attention` in place of scaled dot products.

    Reach for it to try inverse distances inside a network built on ``torch.nn.MultiheadAttention`` (batch first).

    Formula:
        Query, key and value are projected, split into heads, attended to, joined and projected.

    Args:
        embed_dim: Size of the inputs and outputs.
        num_heads: Number of heads, a divisor of ``embed_dim``.
        bias: Whether projections have a bias.
        power: Exponent of the distance, positive.
        eps: What is added to the powered distance, at least 0.

    Shape:
        - query: ``(..., N, E)``; key, value: ``(..., P, E)``; attn_mask: ``(..., N, P)`` bool.
        - output: ``(..., N, E)``.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dim``, or ``power`` or ``eps`` is wrong.

    Example:
        >>> IDWAttention(8, num_heads=2)(torch.randn(3, 5, 8)).shape
        torch.Size([3, 5, 8])

    Source:
        McCarter (arXiv 2310.18805); projections as in Vaswani et al. (arXiv 1706.03762).
    """

    def __init__(
        self, embed_dim: int, num_heads: int = 1, *, bias: bool = True, power: float = 2.0, eps: float = 1e-3
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}; wanted a divisor of embed_dim={embed_dim}.")
        _check_parameters(power, eps)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.power = power
        self.eps = eps
        self.query = nn.Linear(embed_dim, embed_dim, bias)
        self.key = nn.Linear(embed_dim, embed_dim, bias)
        self.value = nn.Linear(embed_dim, embed_dim, bias)
        self.output = nn.Linear(embed_dim, embed_dim, bias)

    def forward(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None, *, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Attend from ``query`` to ``key`` (itself by default) and ``value`` (the key by default).

        Args:
            query: Queries.
            key: Keys; None takes the queries.
            value: Values; None takes the keys.
            attn_mask: True where a query may look at a key.
        """
        key = query if key is None else key
        heads = [
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
            for layer, x in ((self.query, query), (self.key, key), (self.value, key if value is None else value))
        ]
        mask = None if attn_mask is None else attn_mask.unsqueeze(-3)
        attended = inverse_distance_attention(*heads, power=self.power, eps=self.eps, attn_mask=mask)
        assert isinstance(attended, Tensor)
        joined: Tensor = self.output(attended.transpose(-3, -2).flatten(-2).to(query.dtype))
        return joined

    def extra_repr(self) -> str:
        """The sizes and hyperparameters."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, power={self.power}, eps={self.eps}"


class PrototypeClassifier(nn.Module):
    r"""One hidden layer of prototypes: logits are the prototypes' values, weighted by how near they are.

    Reach for it where predictions shall be explained by examples: trained with cross-entropy, keys come to lie among
    the inputs and values tell their class, and a single wrong prediction can be repaired by one more prototype
    (:meth:`add_prototype`). Not for accuracy: a layer of rectifiers of the same size is better.

    Formula:
        .. math:: z(x) = \sum_p a_p(x) v_p

        with weights a by ``score``, d being the distance of x to the key: ``neglog`` softmax of
        :math:`-\log(\epsilon + d^{power})`, the paper's own; ``inverse`` softmax of :math:`1 / (\epsilon + d^{power})`;
        ``exp_neg`` softmax of :math:`\exp(-d^{power} / 2)`; ``neg`` softmax of :math:`-d^{power}`; ``dot`` softmax of
        :math:`x \cdot k_p / \sqrt P`; ``relu`` :math:`\max(x \cdot k_p, 0)`, not normalised.

    Args:
        num_features: Size D of a flattened input.
        num_classes: Number of classes C.
        num_prototypes: Number of prototypes P.
        power: Exponent of the distance, positive.
        eps: What is added to the powered distance, at least 0.
        score: How distance becomes weight.

    Shape:
        - input: ``(B, ...)`` with D features in all; output: ``(B, C)``.

    Attributes:
        keys: ``(P, D)``.
        values: ``(P, C)``, 0 at the start (but for ``dot`` and ``relu``).

    Raises:
        ValueError: ``score``, ``power``, ``eps`` or ``num_prototypes`` is wrong.

    Example:
        >>> x = torch.randn(100, 2)
        >>> model = PrototypeClassifier(2, 3, num_prototypes=16)
        >>> model.init_from_data(x, generator=torch.Generator().manual_seed(0))
        >>> model(x).shape
        torch.Size([100, 3])

    Source:
        McCarter (arXiv 2310.18805) and its public code: Adam with amsgrad, learning rate 0.001 to 0.01.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        num_prototypes: int,
        *,
        power: float = 2.0,
        eps: float = 1e-3,
        score: Score = "neglog",
    ) -> None:
        super().__init__()
        if score not in _SCORES:
            raise ValueError(f"score is {score!r}; wanted one of {', '.join(_SCORES)}.")
        _check_parameters(power, eps)
        checks.check_in_range("num_prototypes", num_prototypes, 1)
        self.power = power
        self.eps = eps
        self.score: Score = score
        self.keys = nn.Parameter(torch.empty(num_prototypes, num_features))
        self.values = nn.Parameter(torch.empty(num_prototypes, num_classes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw keys around 0; see :meth:`init_from_data`."""
        size = self.keys.shape[1]
        self._initialise(self.keys.new_zeros(size), self.keys.new_ones(size), None)

    def init_from_data(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Draw keys close to the mean of the inputs ``(n, ...)``, with a tenth of their spread; values become 0.

        ``dot`` and ``relu`` look at no data: keys and values are drawn evenly, by the size of the layer.

        Args:
            x: Training inputs, two or more unless the score looks at no data.
            generator: Source of randomness.

        Raises:
            ValueError: ``x`` has another number of features, or fewer than two rows, which have no spread.
        """
        flat = self._flat(x)
        if len(flat) < 2 and self.score not in ("dot", "relu"):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; wanted two inputs or more, for the spread of the features."
            )
        self._initialise(flat.mean(0), flat.std(0, correction=int(len(flat) > 1)), generator)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of inputs ``(B, ...)``."""
        x, keys, values = _widened(self._flat(x), self.keys, self.values)
        if self.score == "relu":
            return F.relu(x @ keys.T) @ values
        return self._weights(x, keys) @ values

    @torch.no_grad()
    def add_prototype(self, x: Tensor, label: int, index: int | None = None) -> bool:
        """Repair the prediction of one input: make it a prototype of its label, if it is not predicted already.

        Parameters are replaced by larger ones, so that an optimizer must be made anew.

        Args:
            x: The input, ``(1, ...)`` or without the leading 1.
            label: Its class.
            index: Prototype to overwrite; None adds one. What was overwritten may have mattered elsewhere.

        Returns:
            Whether anything was changed.

        Raises:
            ValueError: The score is not ``neglog``, or an argument is wrong.
        """
        if self.score != "neglog":
            raise ValueError(f"score is {self.score!r}; only 'neglog' can be repaired.")
        point = x.reshape(1, -1).to(self.keys)
        repaired = add_prototype(self.keys, self.values, point, label=label, power=self.power, eps=self.eps)
        if len(repaired["key"]) == len(self.keys):
            return False
        if index is None:
            self.keys, self.values = (nn.Parameter(repaired[name].to(self.keys)) for name in ("key", "value"))
        else:
            self.keys[index], self.values[index] = repaired["key"][-1], repaired["value"][-1]
        return True

    def extra_repr(self) -> str:
        """The sizes and hyperparameters."""
        prototypes, features = self.keys.shape
        return (
            f"num_features={features}, num_classes={self.values.shape[1]}, num_prototypes={prototypes}, "
            f"power={self.power}, eps={self.eps}, score={self.score!r}"
        )

    def _flat(self, x: Tensor) -> Tensor:
        checks.check_floating("x", x)
        flat = x.flatten(1) if x.ndim > 1 else x.unsqueeze(-1)  # (B,) has one feature
        if flat.shape[-1] != self.keys.shape[1]:
            raise ValueError(f"x has shape {tuple(x.shape)}; wanted {self.keys.shape[1]} features for each input.")
        return flat

    def _weights(self, x: Tensor, keys: Tensor) -> Tensor:
        if self.score == "dot":
            return F.softmax(x @ keys.T / math.sqrt(len(keys)), 1)
        if self.score == "neglog":
            return F.softmax(-_log_distance(x, keys, self.power, self.eps), 1)
        if self.score == "inverse":
            return F.softmax(_exp(-_log_distance(x, keys, self.power, self.eps)), 1)
        powered = _exp(_log_distance(x, keys, self.power, 0.0))
        return F.softmax(torch.exp(-0.5 * powered) if self.score == "exp_neg" else -powered, 1)

    @torch.no_grad()
    def _initialise(self, mean: Tensor, std: Tensor, generator: torch.Generator | None) -> None:
        if self.score in ("dot", "relu"):
            nn.init.kaiming_uniform_(self.keys, nonlinearity="relu", generator=generator)
            nn.init.kaiming_uniform_(self.values, generator=generator)
            return
        device = self.keys.device if generator is None else generator.device
        noise = torch.randn(self.keys.shape, generator=generator, device=device).to(self.keys)
        self.keys.copy_(mean + 0.1 * std * noise)
        self.values.zero_()


def add_prototype(
    key: Tensor, value: Tensor, query: Tensor, *, label: int, power: float = 2.0, eps: float = 1e-3
) -> Repaired:
    r"""One more key and value that give an example its label and hardly change what is far from it.

    Reach for it to repair single predictions of :func:`inverse_distance_attention` after training.

    Formula:
        .. math:: \eta = (1 + \epsilon s)(\max_k z_k - z_c), \quad s = \sum_p 1 / d_p

        :math:`\epsilon s (\max_k z_k - z_c)` would make the label's logit equal to the largest one; the example becomes
        a key with the value :math:`\eta e_c`.

    Args:
        key: Keys.
        value: Values, the logits of classes.
        query: The example.
        label: The class c that it shall get.
        power: Exponent of the distance, positive.
        eps: What is added to the powered distance, at least 0.

    Shape:
        - key: ``(P, D)``; value: ``(P, C)``; query: ``(1, D)``.

    Returns:
        ``key`` and ``value`` with a row more, and ``logits_after`` ``(1, C)`` of the example. Where the label's logit
        is the largest already, all stays as it was.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, ``label``, ``power`` or ``eps`` is wrong.

    Example:
        >>> key, value = torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> repaired = add_prototype(key, value, torch.tensor([[1.0]]), label=1)
        >>> len(repaired["key"]), int(repaired["logits_after"].argmax())
        (3, 1)

    Source:
        McCarter (arXiv 2310.18805), section 4, and its public code.
    """
    checks.check_shape("query", query, (1, *key.shape[1:]), "one example with the keys' features")
    if not 0 <= label < value.shape[1]:
        raise ValueError(f"label is {label}; wanted 0 to {value.shape[1] - 1}.")
    logits = inverse_distance_attention(query, key, value, power=power, eps=eps)
    assert isinstance(logits, Tensor)
    wide_query, wide_key, _ = _widened(query, key, value)
    eps_times_s = (eps / _log_distance(wide_query, wide_key, power, eps).exp()).sum() if eps else 0.0
    eta = (1 + eps_times_s) * (logits.max() - logits[0, label])
    if bool(eta <= 0):
        return {"key": key, "value": value, "logits_after": logits}
    one_hot = F.one_hot(torch.tensor([label], device=value.device), value.shape[1])
    key, value = torch.cat([key, query.to(key.dtype)]), torch.cat([value, (eta * one_hot).to(value.dtype)])
    after = inverse_distance_attention(query, key, value, power=power, eps=eps)
    assert isinstance(after, Tensor)
    return {"key": key, "value": value, "logits_after": after}


def _log_distance(query: Tensor, key: Tensor, power: Tensor | float, eps: float) -> Tensor:
    """Log of eps + distance ** power ``(..., N, P)``; finite, with gradient 0 where query and key coincide.

    In log space, for at power 10 both 1/d and d leave the range of float32; what coincides with eps = 0 lies nearer
    than all else. Differences are taken one by one: the product of matrices would cancel where eps is small.
    """
    _check_parameters(power, eps)
    distance = torch.cdist(query, key, compute_mode="donot_use_mm_for_euclid_dist")
    zero = distance == 0
    log_powered = torch.where(zero, -torch.inf, power * torch.where(zero, 1.0, distance).log())
    log_eps = torch.full_like(log_powered, math.log(eps) if eps > 0 else -math.inf)
    log_distance = logaddexp(log_powered, log_eps)
    return torch.where(log_distance == -torch.inf, torch.finfo(distance.dtype).min / 2, log_distance)


def _exp(x: Tensor) -> Tensor:
    """Exponential that stays finite, with gradient 0 beyond."""
    return x.clamp(max=math.log(torch.finfo(x.dtype).max) - 1).exp()


def _widened(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Halves to float32, after a check of dtypes and shapes."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        checks.check_floating(name, tensor)
        if tensor.ndim < 2:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; wanted at least 2 dimensions.")
    if key.shape[-1] != query.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise ValueError(
            f"query, key and value have shapes {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}; "
            "wanted (..., N, D), (..., P, D) and (..., P, C)."
        )
    query, key, value = map(widen, (query, key, value))
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(f"query, key and value have dtypes {query.dtype}, {key.dtype} and {value.dtype}; wanted one.")
    return query, key, value


def _check_parameters(power: Tensor | float, eps: float) -> None:
    checks.check_in_range("power", power, 0.0, low_open=True, high_open=True)
    checks.check_in_range("eps", eps, 0.0, high_open=True)
