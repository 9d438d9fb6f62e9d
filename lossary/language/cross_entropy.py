"""Cross-entropy of a linear head that never stores its logits, and the z-loss that keeps them small."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.checks import check_floating, check_in_range, check_shape
from lossary.core.objective import Kind, objective
from lossary.core.rows import reduce_rows
from lossary.core.types import Reduction
from lossary.kernels import HeadObjective, VocabParallel, head_rows
from lossary.kernels.rows import check_class_indices

PRESETS: dict[str, dict[str, Any]] = {
    "exact": {"filter_eps": None},
    "kahan": {"kahan": True},
    "kahan_full_c": {"kahan": True, "filter_weight": False},
    "kahan_full_e": {"kahan": True, "filter_input": False},
    "kahan_full": {"kahan": True, "filter_eps": None},
}


@objective(Kind.HEAD)
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    label_smoothing: Tensor | float = 0.0,
    ignore_index: int | None = -100,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    shift: int = 0,
    return_lse: bool = False,
    filter_eps: float | Literal["auto"] | None = "auto",
    backend: Literal["auto", "reference", "cpu", "cuda", "triton", "torch"] = "auto",
    block_rows: int | None = None,
    block_vocab: int | None = None,
    token_weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    z_loss_weight: Tensor | float = 0.0,
    temperature: float = 1.0,
    normalizer: Tensor | float | None = None,
    preset: Literal["exact", "kahan", "kahan_full_c", "kahan_full_e", "kahan_full"] | None = None,
    deterministic: bool = False,
    vocab_parallel: VocabParallel | None = None,
    options: Any = None,
) -> Any:
    r"""Cross-entropy of ``softmax(input @ linear_weight.T + linear_bias)`` at the memory of no logits.

    Reach for it to train a language model, or any classifier whose logits are large beside its hidden states: it
    replaces the head and the loss in one call. With a few hundred classes plain cross-entropy is as good.

    Formula:
        .. math:: L = -(1 - s) w_t \log p_t - \frac{s}{V} \sum_v w_v \log p_v
            + \lambda w_t \Big(\log \sum_v e^{z_v}\Big)^2

        for smoothing s, class weights w and :math:`\lambda` the ``z_loss_weight``.

    Args:
        input: Hidden states.
        linear_weight: Weight of the head; a ``DTensor`` sharded over the vocabulary works as it is.
        target: Class indices. Probabilities are refused: they are as large as the logits.
        linear_bias: Bias of the head; -inf takes an entry out of the vocabulary.
        weight: Class weights, as in PyTorch.
        label_smoothing: Share of the target spread evenly over the vocabulary, in [0, 1].
        ignore_index: Label of tokens that count for nothing, which cost nothing either; None is -100.
        softcap: Bound k of ``k tanh(z / k)`` on the logits.
        reduction: ``none``, ``mean`` or ``sum``.
        shift: Token i predicts target i + shift; ``none`` and ``lse`` have that many columns fewer.
        return_lse: Return ``(loss, lse)``, with the logsumexp of each token.
        filter_eps: Softmax entries below it may be left out of gradients; None keeps all, ``auto`` is 1/32 of the
            machine epsilon of the dtype that holds the softmax (float32 on the CPU, the input's on the GPU).
        backend: ``cpu`` are tiles in plain PyTorch; on a GPU ``cuda`` are tiles whose products are cuBLAS's, ``triton``
            forms the products in its kernels too; ``torch`` is PyTorch's own chunked form; ``reference`` stores the
            logits and has every kind of derivative.
        block_rows: Rows of a tile; by default the backend's choice. Alone, on the CPU, it is the rows whose logits are
            there at once: 256 are faster than the default on vocabularies of more than 100,000, at more memory.
        block_vocab: Vocabulary entries of a tile; by default the backend's choice.
        token_weight: Factors on the loss of each token that leave the divisor of ``mean`` alone.
        sample_weight: Weights of tokens that count in the divisor, as if tokens were repeated.
        z_loss_weight: Weight of the squared logsumexp, which keeps logits from drifting.
        temperature: Divisor of the logits.
        normalizer: Divisor in place of the one of ``mean``.
        preset: The original package's names: ``exact`` filters nothing, ``kahan`` sums gradients with compensation,
            ``kahan_full_c`` and ``kahan_full_e`` besides filter nothing for the head or the input (pre-training
            needs the former: filtering starves rare tokens), ``kahan_full`` for neither.
        deterministic: Only sums whose order is fixed. The CPU's always is.
        vocab_parallel: Where this rank's part of the vocabulary lies, if the head is sharded by hand.
        options: PyTorch's ``LinearCrossEntropyOptions``, so that its calls run as they are: ``batch_chunk_size`` is
            taken for ``block_rows`` where that is None, and the rest says how, not what, to compute.
            ``backend="torch"`` hands it on whole.

    Shape:
        - input: ``(..., D)``; target, token_weight, sample_weight: ``(...)``.
        - linear_weight: ``(V, D)``; linear_bias, weight: ``(V,)``. As in PyTorch also ``(V, d1, ..., D)`` and
          ``(V, d1, ...)`` for an input ``(N, D)`` and a target ``(N, d1, ...)``.

    Returns:
        ``(...)`` for ``none``, else ``()``; float32 for half-precision input. With ``return_lse`` also the logsumexp
        ``(...)``, 0 at ignored tokens. Empty or all-ignored ``mean`` is NaN as in PyTorch, 0 if ``normalizer`` is
        given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, option or reduction is wrong, or ``target`` holds probabilities.

    Example:
        >>> input, head = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.eye(3, 2)
        >>> linear_cross_entropy(input, head, torch.tensor([0, 2]))
        tensor(1.3955)

    Source:
        Wijmans, Huval, Hertzberg, Koltun, Krähenbühl: Cut Your Losses in Large-Vocabulary Language Models (ICLR 2025,
        arXiv 2411.09009). The reduced forms also form their gradients in the sweep of their value where they can.
    """
    given = dict(locals())
    check_class_indices(target)
    ignore_index = given["ignore_index"] = -100 if ignore_index is None else ignore_index
    if isinstance(linear_weight, Tensor) and linear_weight.ndim > 2:
        return _at_every_position(**given)
    if backend == "torch":
        return _by_torch(**given)
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}; wanted one of {', '.join(PRESETS)}.")
    check_in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    check_in_range("z_loss_weight", z_loss_weight, 0.0)
    rows = head_rows(
        input,
        linear_weight,
        target,
        linear_bias,
        weight=weight,
        ignore_index=ignore_index,
        sample_weight=sample_weight,
        softcap=softcap,
        temperature=temperature,
        shift=shift,
        backend=backend,
        block_rows=block_rows or getattr(options, "batch_chunk_size", None),
        block_vocab=block_vocab,
        deterministic=deterministic,
        vocab_parallel=vocab_parallel,
        **({"filter_eps": filter_eps} | PRESETS.get(preset or "", {})),
    )
    factor: Tensor | float = 1.0 if weight is None else rows.target_weight()
    spread: Tensor | float = label_smoothing
    if token_weight is not None:
        check_shape("token_weight", token_weight, target.shape, "a factor for each token")
        token_weight = token_weight[..., shift:] if shift else token_weight
        if input.dtype == torch.float64:
            token_weight = token_weight.double()
        factor, spread = factor * token_weight, spread * token_weight
    coefficients: dict[str, Tensor | float] = {"log_prob": -(1 - label_smoothing) * factor}
    if isinstance(label_smoothing, Tensor) or label_smoothing:
        coefficients["mean_log_prob" if weight is None else "weighted_mean_log_prob"] = -spread
    if isinstance(z_loss_weight, Tensor) or z_loss_weight:
        coefficients["squared_logsumexp"] = z_loss_weight * factor
    if not return_lse:
        return rows.combine(coefficients, reduction=reduction, normalizer=normalizer)
    statistics = rows.statistics(*coefficients, "logsumexp")
    loss = rows.combine(coefficients, reduction=reduction, normalizer=normalizer, statistics=statistics)
    return loss, statistics["logsumexp"]


class LinearCrossEntropyLoss(HeadObjective):
    """Cross-entropy of a head that never stores its logits; module form of :func:`linear_cross_entropy`.

    It holds options only: the head stays the model's.

    Example:
        >>> loss = LinearCrossEntropyLoss(label_smoothing=0.1)
        >>> loss(torch.zeros(2, 2), torch.ones(3, 2), torch.tensor([0, 2]))
        tensor(1.0986)
    """

    function = linear_cross_entropy

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        label_smoothing: Tensor | float = 0.0,
        ignore_index: int | None = -100,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        shift: int = 0,
        return_lse: bool = False,
        filter_eps: float | Literal["auto"] | None = "auto",
        backend: Literal["auto", "reference", "cpu", "cuda", "triton", "torch"] = "auto",
        block_rows: int | None = None,
        block_vocab: int | None = None,
        z_loss_weight: Tensor | float = 0.0,
        temperature: float = 1.0,
        preset: Literal["exact", "kahan", "kahan_full_c", "kahan_full_e", "kahan_full"] | None = None,
        deterministic: bool = False,
        vocab_parallel: VocabParallel | None = None,
        options: Any = None,
    ) -> None:
        super().__init__(
            weight=weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            softcap=softcap,
            reduction=reduction,
            shift=shift,
            return_lse=return_lse,
            filter_eps=filter_eps,
            backend=backend,
            block_rows=block_rows,
            block_vocab=block_vocab,
            z_loss_weight=z_loss_weight,
            temperature=temperature,
            preset=preset,
            deterministic=deterministic,
            vocab_parallel=vocab_parallel,
            options=options,
        )

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None = None,
        *,
        token_weight: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Any:
        """The loss on ``input``, the head and ``target``; see the function for shapes.

        Args:
            input: Hidden states.
            linear_weight: Weight of the head.
            target: Class indices.
            linear_bias: Bias of the head.
            token_weight: Factors on the loss of each token that leave the divisor of ``mean`` alone.
            sample_weight: Weights of tokens that count in the divisor.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias,
            token_weight=token_weight,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


def z_loss(
    lse: Tensor, target: Tensor | None = None, *, ignore_index: int = -100, reduction: Reduction = "mean"
) -> Tensor:
    r"""Squared logsumexp of the logits: keeps them from drifting where the loss itself does not see a constant.

    Reach for it in long half-precision pre-training, with a small weight (1e-4) beside cross-entropy.
    :func:`linear_cross_entropy` has it built in as ``z_loss_weight``.

    Formula:
        .. math:: L = \left(\log \sum_v e^{z_v}\right)^2

    Args:
        lse: Logsumexp of each token, as ``return_lse`` gives it.
        target: Class indices, to tell which tokens are ignored.
        ignore_index: Label of tokens that count for nothing.
        reduction: ``none``, ``mean`` over the tokens kept, or ``sum``.

    Shape:
        - lse, target: any one shape.

    Returns:
        The shape of ``lse`` for ``none``, else ``()``; float32 for halves. Empty or all-ignored ``mean`` is NaN.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or reduction is wrong.

    Example:
        >>> z_loss(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 5, -100]))
        tensor(2.5000)

    Source:
        Chowdhery et al.: PaLM (arXiv 2204.02311), section 5, as offered beside Cut Your Losses (arXiv 2411.09009).
    """
    check_floating("lse", lse)
    lse, keep = lse.to(torch.promote_types(lse.dtype, torch.float32)), None  # the square leaves float16 at 256
    if target is not None:
        check_class_indices(target)
        check_shape("target", target, lse.shape, "a class index for each logsumexp")
        keep = target != ignore_index
        lse = torch.where(keep, lse, 0.0)
    return reduce_rows(
        lse.square(),
        keep=keep,
        valid=None,
        label_weight=lse.new_ones(()),
        sample_weight=None,
        reduction=reduction,
        normalizer=None,
    )


def _at_every_position(**given: Any) -> Any:
    """PyTorch's form for several outputs: a weight ``(V, d1, ..., D)`` is a head for each position ``(d1, ...)``."""
    weight, target, bias = given["linear_weight"], given["target"], given["linear_bias"]
    where = weight.shape[1:-1]
    if given["input"].ndim != 2 or given["return_lse"] or given["shift"] or given["vocab_parallel"] is not None:
        raise ValueError(
            f"linear_weight has shape {tuple(weight.shape)}; beside several outputs, wanted an input (N, D) and no "
            "shift, return_lse or vocab_parallel."
        )
    check_shape("target", target, (len(given["input"]), *where), "a class index for each row and position")
    if bias is not None:
        check_shape("linear_bias", bias, weight.shape[:-1], "one number for each class and position")
    tensors = {"linear_weight": weight.flatten(1, -2), "target": target.flatten(1)}
    if bias is not None:
        tensors["linear_bias"] = bias.flatten(1)
    for name in ("token_weight", "sample_weight"):
        if given[name] is not None:
            check_shape(name, given[name], target.shape, "as target")
            tensors[name] = given[name].flatten(1)
    alone = given | {"reduction": "none", "normalizer": None}
    values = [
        linear_cross_entropy(**(alone | {name: tensor[:, place] for name, tensor in tensors.items()}))
        for place in range(tensors["target"].shape[1])
    ]
    loss = (
        torch.stack(values, 1) if values else given["input"][:, :0].to(torch.promote_types(weight.dtype, torch.float32))
    )
    loss = loss.reshape(target.shape)
    class_weight, sample_weight, keep = given["weight"], given["sample_weight"], target != given["ignore_index"]
    ones = loss.new_ones(())
    label = torch.where((target >= 0) & (target < len(weight)), target, 0).long()  # a bad one is NaN already
    label_weight = ones if class_weight is None else class_weight.to(loss.dtype)[label]
    if given["reduction"] != "none" and sample_weight is not None:  # inside the values already
        label_weight = label_weight * sample_weight
    return reduce_rows(
        loss,
        keep=keep,
        valid=None,
        label_weight=label_weight,
        sample_weight=None,
        reduction=given["reduction"],
        normalizer=given["normalizer"],
    )


def _by_torch(**given: Any) -> Tensor:
    """PyTorch's own ``linear_cross_entropy`` in chunks of rows, for what it can do."""
    understood = {"input", "linear_weight", "target", "linear_bias", "weight", "reduction", "ignore_index"}
    understood |= {"backend", "options"}
    for name, parameter in inspect.signature(linear_cross_entropy).parameters.items():
        value, default = given[name], parameter.default
        if name not in understood and (isinstance(value, Tensor) or value != default):
            raise ValueError(f"{name} is {value!r}, which backend='torch' does not know; wanted {default!r}.")
    input, target = given["input"], given["target"]
    loss = F.linear_cross_entropy(
        input.reshape(-1, input.shape[-1]),
        given["linear_weight"],
        target.reshape(-1),
        linear_bias=given["linear_bias"],
        weight=given["weight"],
        reduction=given["reduction"],
        ignore_index=given["ignore_index"],
        options=given["options"] or torch.nn.LinearCrossEntropyOptions(),
    )
    loss = loss.reshape(target.shape) if given["reduction"] == "none" else loss
    return loss.float() if loss.dtype in (torch.float16, torch.bfloat16) else loss
