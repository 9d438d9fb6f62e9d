"""Log-probabilities of whole sequences, on logits and on a linear head: what preference objectives stand on."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lossary.core.rows import class_rows
from lossary.kernels import VocabParallel, head_rows


def sequence_logps(
    logits: Tensor, target: Tensor, *, ignore_index: int = -100, shift: int = 0, average: bool = False
) -> Tensor:
    r"""Log-probability of each sequence under its logits.

    Reach for it in preference objectives (DPO and its kin) where the logits are at hand;
    :func:`linear_sequence_logps` needs none.

    Formula:
        .. math:: \log p(y) = \sum_i \log \mathrm{softmax}(z_i)_{y_i}

    Args:
        logits: Logits, the vocabulary last.
        target: Class indices.
        ignore_index: Label of tokens that are not part of the sequence, such as prompt and padding.
        shift: Token i predicts target i + shift.
        average: Divide by the number of tokens; NaN for a sequence without any.

    Shape:
        - logits: ``(..., T, V)``; target: ``(..., T)``.

    Returns:
        ``(...)``; float32 for half-precision logits.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or label is wrong.

    Example:
        >>> sequence_logps(torch.zeros(1, 3, 4), torch.tensor([[0, 2, -100]]))
        tensor([-2.7726])

    Source:
        Rafailov et al.: Direct Preference Optimization (NeurIPS 2023, arXiv 2305.18290), equation 1 on.
    """
    if logits.ndim < 2:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; wanted (..., T, V).")
    if shift:
        logits, target = logits[..., :-shift, :], target[..., shift:]
    flat = logits.reshape(-1, logits.shape[-1])
    if target.shape != logits.shape[:-1]:
        raise ValueError(f"target has shape {tuple(target.shape)}; wanted {tuple(logits.shape[:-1])}, as logits.")
    rows = class_rows(flat, target.reshape(-1), ignore_index=ignore_index, index_only=True)
    per_token = rows.reduce(rows.expect(rows.log_p()), reduction="none", normalizer=None).reshape(target.shape)
    return _of_sequences(per_token, target != ignore_index, average)


def linear_sequence_logps(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    shift: int = 0,
    average: bool = False,
    softcap: float | None = None,
    temperature: float = 1.0,
    backend: Literal["auto", "reference", "cpu", "cuda", "triton"] = "auto",
    vocab_parallel: VocabParallel | None = None,
) -> Tensor:
    r"""Log-probability of each sequence under a linear head that never stores its logits.

    Reach for it in preference objectives: chosen and rejected sequences of policy and reference cost four times the
    logits otherwise.

    Formula:
        .. math:: \log p(y) = \sum_i \log \mathrm{softmax}(W x_i + b)_{y_i}

    Args:
        input: Hidden states.
        linear_weight: Weight of the head.
        target: Class indices.
        linear_bias: Bias of the head.
        ignore_index: Label of tokens that are not part of the sequence, such as prompt and padding.
        shift: Token i predicts target i + shift.
        average: Divide by the number of tokens; NaN for a sequence without any.
        softcap: Bound k of ``k tanh(z / k)`` on the logits.
        temperature: Divisor of the logits.
        backend: As in :func:`linear_cross_entropy`.
        vocab_parallel: As in :func:`linear_cross_entropy`.

    Shape:
        - input: ``(..., T, D)``; target: ``(..., T)``; linear_weight: ``(V, D)``; linear_bias: ``(V,)``.

    Returns:
        ``(...)``; float32 for half-precision input.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or label is wrong.

    Example:
        >>> linear_sequence_logps(torch.zeros(1, 3, 2), torch.zeros(4, 2), torch.tensor([[0, 2, -100]]))
        tensor([-2.7726])

    Source:
        Rafailov et al.: Direct Preference Optimization (NeurIPS 2023, arXiv 2305.18290), on the head of Cut Your Losses
        (arXiv 2411.09009).
    """
    rows = head_rows(
        input,
        linear_weight,
        target,
        linear_bias,
        ignore_index=ignore_index,
        shift=shift,
        softcap=softcap,
        temperature=temperature,
        backend=backend,
        vocab_parallel=vocab_parallel,
    )
    return _of_sequences(rows.statistics("log_prob")["log_prob"], rows.kept(), average)


def _of_sequences(per_token: Tensor, keep: Tensor, average: bool) -> Tensor:
    total = torch.where(keep, per_token, 0.0).sum(-1)
    return total / keep.sum(-1) if average else total
