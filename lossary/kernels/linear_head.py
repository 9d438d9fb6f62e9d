"""The front door: statistics of the logits of a linear head, and chosen logits, without storing the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lossary.core import checks
from lossary.kernels.rows import Backend, head_rows

if TYPE_CHECKING:
    from lossary.kernels.vocab_parallel import VocabParallel


def linear_head(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | None = None,
    linear_bias: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    softcap: float | None = None,
    temperature: Tensor | float = 1.0,
    ignore_index: int = -100,
    statistics: Sequence[str] = ("log_prob",),
    top_k: int = 0,
    num_samples: int = 0,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    shift: int = 0,
    filter_eps: float | Literal["auto"] | None = "auto",
    filter_input: bool = True,
    filter_weight: bool = True,
    kahan: bool = False,
    backend: Backend = "auto",
    deterministic: bool = False,
    block_rows: int | None = None,
    block_vocab: int | None = None,
    vocab_parallel: VocabParallel | None = None,
) -> dict[str, Tensor]:
    r"""Statistics of each row of logits of a linear head, differentiable, without ever holding the logits.

    Reach for it to write an objective on the logits of a large vocabulary at the memory of none: most are functions of
    a few of these numbers. Objectives on it, such as ``lossary.language.linear_cross_entropy``, are shorter to call.
    Where the vocabulary is small, or an objective needs all logits at once, plain ``F.linear`` is as good.

    Formula:
        With logits z = (softcap of ``input @ linear_weight.T + linear_bias``) / temperature, p = softmax(z), target t
        and its probability :math:`p_t`:

        - ``log_prob`` :math:`\log p_t`, ``log_miss`` :math:`\log(1 - p_t)` from the sum over the others;
        - ``logsumexp`` :math:`\log \sum_v e^{z_v}` and its square ``squared_logsumexp``;
        - ``entropy`` :math:`-\sum_v p_v \log p_v`;
        - ``mean_log_prob`` :math:`\frac1V \sum_v \log p_v`, and ``weighted_mean_log_prob``
          :math:`\frac1V \sum_v w_v \log p_v` with the class weights w;
        - ``target_logit`` :math:`z_t` and ``expected_logit`` :math:`\sum_v p_v z_v`.

    Args:
        input: Hidden states.
        linear_weight: Weight of the head; may be a ``DTensor`` sharded over the vocabulary.
        target: Class indices; None where no statistic is about it.
        linear_bias: Bias of the head; -inf takes an entry out of the vocabulary.
        weight: Class weights, for ``weighted_mean_log_prob`` alone.
        softcap: Bound k of ``k tanh(z / k)``, after the bias and before the temperature.
        temperature: Divisor of the logits. As a tensor it may be learned, and may differ from row to row; then
            ``softcap`` must be None.
        ignore_index: Label of rows that count for nothing: every statistic is 0 there and no gradient leaves.
        statistics: Names from above.
        top_k: Number of most likely entries to return.
        num_samples: Number of entries to draw from p, by inverse CDF from one uniform number each.
        generator: Source of these numbers.
        noise: The uniform numbers themselves, in [0, 1).
        shift: Row i predicts target i + shift of its sequence; rows become fewer by that many.
        filter_eps: Entries of the softmax below it may be left out of gradients; None keeps all, ``auto`` is 1/32 of
            the machine epsilon of the dtype that holds the softmax (float32 on the CPU, the input's on the GPU).
        filter_input: Whether that holds for the gradient of ``input``.
        filter_weight: Whether that holds for the gradient of the head.
        kahan: Sum gradients in the storage dtype with a compensation for what rounding loses, not in float32.
        backend: ``cpu`` are tiles in plain PyTorch, on any device. On a GPU ``cuda`` are tiles whose products are
            cuBLAS's, and ``triton`` forms the products in its kernels too, which is slower but knows ``kahan`` and
            ``deterministic``. ``reference`` stores the logits and has every kind of derivative; ``auto`` chooses.
        deterministic: Only sums whose order is fixed. The CPU's always is.
        block_rows: Rows of a tile; by default the backend's choice.
        block_vocab: Vocabulary entries of a tile; by default the backend's choice.
        vocab_parallel: Where this rank's part of the vocabulary lies, if ``linear_weight`` is sharded by hand.

    Shape:
        - input: ``(..., D)``; target: ``(...)``.
        - linear_weight: ``(V, D)``; linear_bias, weight: ``(V,)``.
        - temperature: a number, ``()`` or ``(...)``; noise: ``(..., num_samples)``.

    Returns:
        By name every statistic, ``(...)``, float32 (float64 for float64 input). With ``top_k`` also ``top_index`` and
        ``top_log_prob (..., top_k)``, largest first; with ``num_samples`` ``sample`` and ``sample_log_prob
        (..., num_samples)``.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, name or option is wrong.
        NotImplementedError: In forward-mode differentiation; second derivatives raise RuntimeError. The backend
            ``reference`` has both.

    Example:
        >>> input, head = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.eye(3, 2)
        >>> rows = linear_head(input, head, torch.tensor([0, 2]), statistics=("log_prob", "entropy"))
        >>> rows["log_prob"]
        tensor([-0.5514, -2.2395])

    Source:
        Wijmans, Huval, Hertzberg, Koltun, Krähenbühl: Cut Your Losses in Large-Vocabulary Language Models (ICLR 2025,
        arXiv 2411.09009) for cross-entropy; other statistics and their gradients follow the same sweep.
    """
    rows = head_rows(
        input,
        linear_weight,
        target,
        linear_bias,
        weight=weight,
        ignore_index=ignore_index,
        softcap=softcap,
        temperature=temperature,
        shift=shift,
        filter_eps=filter_eps,
        filter_input=filter_input,
        filter_weight=filter_weight,
        kahan=kahan,
        deterministic=deterministic,
        backend=backend,
        block_rows=block_rows,
        block_vocab=block_vocab,
        vocab_parallel=vocab_parallel,
    )
    values = rows.statistics(*statistics)
    if top_k:
        values |= rows.top(top_k)
    if num_samples or noise is not None:
        values |= rows.sample(num_samples, generator, noise)
    return values


def logits_at(
    input: Tensor,
    linear_weight: Tensor,
    index: Tensor,
    linear_bias: Tensor | None = None,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    backend: Literal["auto", "reference", "cpu"] = "auto",
) -> Tensor:
    r"""Chosen logits of a linear head, differentiable: those of top-k lists, number tokens or n-grams.

    Reach for it where an objective needs a few logits of each row. Where it needs the same few of all rows, pass them
    once: the head is then cut down to them, which costs one small matrix product.

    Formula:
        .. math:: z_{ik} = \mathrm{softcap}(x_i \cdot w_{j_{ik}} + b_{j_{ik}}) / \mathrm{temperature}

    Args:
        input: Hidden states.
        linear_weight: Weight of the head.
        index: Vocabulary entries: K of each row, or K for all rows.
        linear_bias: Bias of the head.
        softcap: Bound k of ``k tanh(z / k)``.
        temperature: Divisor of the logits.
        backend: ``cpu`` gathers by chunks of rows, on any device; ``reference`` gathers at once and has every kind of
            derivative.

    Shape:
        - input: ``(..., D)``; linear_weight: ``(V, D)``; linear_bias: ``(V,)``.
        - index: ``(..., K)`` with input's leading dimensions, or ``(K,)``.

    Returns:
        ``(..., K)``, float32 (float64 for float64 input).

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, index or option is wrong.

    Example:
        >>> logits_at(torch.tensor([[1.0, 2.0]]), torch.eye(3, 2), torch.tensor([[1, 2]]))
        tensor([[2., 0.]])

    Source:
        The indexed product of Cut Your Losses (arXiv 2411.09009), section 4.1, for several entries a row.
    """
    checks.check_floating("input", input)
    checks.check_floating("linear_weight", linear_weight)
    if index.dtype != torch.int64:
        raise TypeError(f"index has dtype {index.dtype}; wanted int64.")
    if backend not in ("auto", "reference", "cpu"):
        raise ValueError(f"backend is {backend!r}; wanted 'auto', 'reference' or 'cpu'.")
    rows = head_rows(input, linear_weight, None, linear_bias, softcap=softcap, temperature=temperature, backend=backend)
    if checks.may_read_values(index):
        checks.check_indices("index", index, linear_weight.shape[0])
    shared = index.ndim == 1
    if not shared:
        wanted = (*input.shape[:-1], index.shape[-1])
        checks.check_shape("index", index, wanted, "K entries for each row of input, or (K,) for all")
    if shared:
        return rows.logits_of(index)
    return rows.logits_at(index.flatten(0, -2)).reshape(*input.shape[:-1], index.shape[-1])
