"""Relative error of whole numbers that are written digit by digit."""

from __future__ import annotations

from torch import Tensor

from lossary.core.rows import token_rows
from lossary.core.types import Reduction
from lossary.kernels import VocabParallel
from lossary.language.linear import Backend
from lossary.language.number_rows import NumberRows, head_numbers, number_rows, reweighed


def number_level_loss(
    logits: Tensor,
    target: Tensor,
    number_values: Tensor,
    *,
    float_level: bool = False,
    dot_id: int | None = None,
    reweigh: bool = False,
    number_index: Tensor | None = None,
    loss_weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Relative error of whole numbers that are written digit by digit.

    Reach for it beside cross-entropy where tokens are single digits and the first digit of a number matters more than
    the last. With tokens of several digits use :func:`number_token_loss`.

    Formula:
        .. math:: L = \frac{|\hat Y - Y|}{|\hat Y| + |Y|}, \quad Y = \sum_i 10^{n - i} y_i, \quad
            \hat Y = \sum_i 10^{n - i} \sum_k q_{ik} v_k

        for each run of n digits y; it lies in [0, 1] and counts once, at the run's first token.

    Args:
        logits: Logits, aligned with the target, the vocabulary last.
        target: Class indices; neighbouring digits are one number.
        number_values: Value of each entry of the vocabulary, 0 to 9, NaN for all else.
        float_level: Whether a dot between two digits joins them: 12.34 is then one number, of the digits 1234.
        dot_id: Entry of the dot, which ``float_level`` asks for.
        reweigh: Let text cost more than any number, by the mass of digits at the first of the run; as in
            :func:`number_token_loss`.
        number_index: As in :func:`number_token_loss`.
        loss_weights: Weights of tokens, at least 0; a run has that of its first.
        ignore_index: Label of tokens that count for nothing; they part numbers.
        reduction: ``none``, ``mean`` over runs, or ``sum``.
        normalizer: Divisor in place of the number of runs.

    Shape:
        - logits: ``(B, T, V)``; target, loss_weights: ``(B, T)``; number_values: ``(V,)``; number_index: ``(K,)``;
          normalizer: a number or ``()``.

    Returns:
        ``(B, T)`` for ``none``, 0 but at the first token of each run; else ``()``. ``mean`` is 0 without a run; float32
        for half-precision logits.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, option or reduction is wrong.

    Example:
        >>> import torch
        >>> digits = torch.arange(10.0)
        >>> number_level_loss(torch.zeros(1, 2, 10), torch.tensor([[9, 9]]), digits)  # 49.5 against 99
        tensor(0.3333)

    Source:
        ``NumberLevelLoss`` of the authors' package ``ntloss`` to Zausinger et al. (arXiv 2411.02083), which is not in
        the paper; there the places of a number end at 20.
    """
    if logits.ndim != 3:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; wanted (B, T, V): digits are joined along T.")
    _check_dot(float_level, dot_id)
    rows = token_rows(logits, target, ignore_index=ignore_index)
    numbers = number_rows(
        target,
        number_values,
        number_index,
        vocab=rows.num_classes,
        dtype=rows.logits.dtype,
        loss_weights=loss_weights,
        ignore_index=ignore_index,
    )
    mass = numbers.among(rows.log_softmax()).exp().sum(-1) if reweigh else None
    return _of_runs(numbers, numbers.among(rows.logits), mass, target, dot_id, float_level, reduction, normalizer)


def linear_number_level_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    number_values: Tensor,
    *,
    linear_bias: Tensor | None = None,
    float_level: bool = False,
    dot_id: int | None = None,
    reweigh: bool = False,
    number_index: Tensor | None = None,
    loss_weights: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    backend: Backend = "auto",
    vocab_parallel: VocabParallel | None = None,
) -> Tensor:
    r"""Relative error of whole numbers, on a linear head of which only the digits' logits are made.

    Reach for it as for :func:`number_level_loss`, where the vocabulary is large.

    Formula:
        That of :func:`number_level_loss` on the logits ``input @ linear_weight.T + linear_bias``.

    Args:
        input: Hidden states.
        linear_weight: Weight of the head.
        target: Class indices; neighbouring digits are one number.
        number_values: Value of each entry of the vocabulary, 0 to 9, NaN for all else.
        linear_bias: Bias of the head.
        float_level: As in :func:`number_level_loss`.
        dot_id: As in :func:`number_level_loss`.
        reweigh: As in :func:`number_level_loss`; costs a pass over the whole head, whose logits are not stored.
        number_index: As in :func:`linear_number_token_loss`.
        loss_weights: Weights of tokens, at least 0; a run has that of its first.
        ignore_index: Label of tokens that count for nothing; they part numbers.
        softcap: Bound k of ``k tanh(z / k)`` on the logits.
        shift: Token i predicts target i + shift.
        reduction: ``none``, ``mean`` over runs, or ``sum``.
        normalizer: Divisor in place of the number of runs.
        backend: As in :func:`linear_cross_entropy`.
        vocab_parallel: As in :func:`linear_cross_entropy`.

    Shape:
        - input: ``(B, T, D)``; linear_weight: ``(V, D)``; linear_bias, number_values: ``(V,)``; number_index: ``(K,)``.
        - target, loss_weights: ``(B, T)``; normalizer: a number or ``()``.

    Returns:
        As :func:`number_level_loss`, less the columns that ``shift`` takes.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, option or reduction is wrong.

    Example:
        >>> import torch
        >>> hidden, head, target = torch.zeros(1, 2, 4), torch.ones(10, 4), torch.tensor([[9, 9]])
        >>> linear_number_level_loss(hidden, head, target, torch.arange(10.0))
        tensor(0.3333)

    Source:
        As :func:`number_level_loss`, on the head of Cut Your Losses (arXiv 2411.09009).
    """
    if input.ndim != 3:
        raise ValueError(f"input has shape {tuple(input.shape)}; wanted (B, T, D): digits are joined along T.")
    _check_dot(float_level, dot_id)
    numbers, chosen, mass, target = head_numbers(
        input,
        linear_weight,
        target,
        number_values,
        linear_bias,
        number_index=number_index,
        loss_weights=loss_weights,
        ignore_index=ignore_index,
        reweigh=reweigh,
        shift=shift,
        softcap=softcap,
        backend=backend,
        vocab_parallel=vocab_parallel,
    )
    return _of_runs(numbers, chosen, mass, target, dot_id, float_level, reduction, normalizer)


def _check_dot(float_level: bool, dot_id: int | None) -> None:
    if float_level and dot_id is None:
        raise ValueError("dot_id is None; wanted the entry of the dot beside float_level=True.")


def _of_runs(
    numbers: NumberRows,
    chosen: Tensor,
    mass: Tensor | None,
    target: Tensor,
    dot_id: int | None,
    float_level: bool,
    reduction: Reduction,
    normalizer: Tensor | float | None,
) -> Tensor:
    digits = (numbers.probability(chosen) * numbers.values).sum(-1)
    error, starts = numbers.runs(digits, target, dot_id if float_level else None)
    if mass is not None:
        error = reweighed(error, mass, error.new_ones(()))
    return numbers.reduce(error, reduction=reduction, normalizer=normalizer, counts=starts)
