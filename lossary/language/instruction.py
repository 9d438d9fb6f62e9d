"""Cross-entropy in which examples count by their quality."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lossary.core.checks import check_class_vector, check_floating, check_in_range, check_shape, may_read_values
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import reduce_rows, token_rows
from lossary.core.types import Reduction
from lossary.kernels import HeadObjective, VocabParallel, head_rows
from lossary.language.linear import Backend

Normalize = Literal["tokens", "weights"]


@objective(Kind.TOKENS, nothing_is_zero=True)
def weighted_instruction_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    normalize: Normalize = "tokens",
    class_weight: Tensor | None = None,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy of answers, each example by its quality.

    Reach for it in instruction tuning on data of mixed quality, to keep weak examples without following them. Where
    examples are plain wrong, leaving them out is as good.

    Formula:
        .. math:: L = -\frac{\sum_i w_i \log p_i(y_i)}{n}

        over tokens i with the weight w of their example; n is the number of tokens with :math:`w_i > 0`, or the sum of
        the weights.

    Args:
        logits: Logits, aligned with the target, the vocabulary last.
        target: Class indices; ``ignore_index`` for prompts and padding (:func:`instruction_mask` makes such labels).
        weight: Weights of examples or of tokens, at least 0; None are all 1. A weight of 0 drops the tokens.
        ignore_index: Label of tokens that count for nothing.
        normalize: What ``mean`` divides by: the number of ``tokens`` that count, so that weak examples also lower the
            batch's loss, or their ``weights`` summed.
        class_weight: Class weights as PyTorch's ``weight``.
        label_smoothing: Share of the target spread evenly over the vocabulary, in [0, 1].
        sample_weight: Weights of tokens that count in the divisor either way, as if tokens were repeated.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``, such as the number of tokens or the sum of weights over all
            micro-batches and ranks.

    Shape:
        - logits: ``(B, T, V)`` or ``(..., V)``; target, sample_weight: ``(B, T)`` or ``(...)``.
        - weight: ``(B,)`` or as target; class_weight: ``(V,)``; normalizer: a number or ``()``.

    Returns:
        ``(B, T)`` for ``none``, else ``()``; float32 for half-precision logits. ``mean`` is 0 where nothing counts.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, weight, option or reduction is wrong.

    Example:
        >>> logits, target = torch.zeros(2, 2, 4), torch.tensor([[1, -100], [2, 3]])
        >>> weighted_instruction_loss(logits, target, torch.tensor([1.0, 0.5]))
        tensor(0.9242)

    Source:
        Ociepa, Flis, Wróbel, Gwoździej, Kinas: Bielik 7B v0.1 (arXiv 2410.18565), normalised as in the authors' trainer
        ``allamo``; ``normalize="weights"`` is OpenChat's, which it knows too. There a micro-batch is divided by its own
        tokens; with ``normalizer`` all tokens of a step count alike.
    """
    _check_normalize(normalize)
    if isinstance(logits, Tensor) and logits.ndim:
        check_class_vector("class_weight", class_weight, logits.shape[-1])
    target, factor = _by_quality(weight, target, ignore_index)
    rows = token_rows(
        logits,
        target,
        weight=class_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
    )
    factor = factor.to(rows.logits.dtype)
    return reduce_rows(
        factor * rows.expect(-rows.log_p()),
        keep=rows.keep,
        valid=rows.good_labels(),
        label_weight=rows.label_weight() * (factor if normalize == "weights" else 1.0),
        sample_weight=None if sample_weight is None else sample_weight.to(rows.logits.dtype),
        reduction=reduction,
        normalizer=normalizer,
        nothing_is_zero=True,
    )


class WeightedInstructionLoss(Objective):
    """Cross-entropy of answers by quality; module form of :func:`weighted_instruction_loss`.

    Example:
        >>> loss = WeightedInstructionLoss()
        >>> loss(torch.zeros(2, 2, 4), torch.tensor([[1, -100], [2, 3]]), torch.tensor([1.0, 0.5]))
        tensor(0.9242)
    """

    function = weighted_instruction_loss

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        normalize: Normalize = "tokens",
        class_weight: Tensor | None = None,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            ignore_index=ignore_index,
            normalize=normalize,
            class_weight=class_weight,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss on ``logits`` and ``target``.

        Args:
            logits: Logits ``(B, T, V)``.
            target: Class indices ``(B, T)``.
            weight: Weights of examples ``(B,)`` or of tokens ``(B, T)``.
            sample_weight: Weights of tokens that count in the divisor.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return weighted_instruction_loss(
            logits, target, weight, sample_weight=sample_weight, normalizer=normalizer, **self.hyperparameters()
        )


@objective(Kind.HEAD, nothing_is_zero=True)
def linear_weighted_instruction_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    linear_bias: Tensor | None = None,
    ignore_index: int = -100,
    normalize: Normalize = "tokens",
    class_weight: Tensor | None = None,
    label_smoothing: Tensor | float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    backend: Backend = "auto",
    vocab_parallel: VocabParallel | None = None,
) -> Tensor:
    r"""Cross-entropy of answers, each example by its quality, on a linear head that never stores its logits.

    Reach for it as for :func:`weighted_instruction_loss`, where the vocabulary is large.

    Formula:
        That of :func:`weighted_instruction_loss` on the logits ``input @ linear_weight.T + linear_bias``.

    Args:
        input: Hidden states.
        linear_weight: Weight of the head.
        target: Class indices; ``ignore_index`` for prompts and padding.
        weight: Weights of examples or of tokens, at least 0; None are all 1. A weight of 0 drops the tokens.
        linear_bias: Bias of the head.
        ignore_index: Label of tokens that count for nothing.
        normalize: What ``mean`` divides by: the number of ``tokens`` that count, or their ``weights`` summed.
        class_weight: Class weights as PyTorch's ``weight``.
        label_smoothing: Share of the target spread evenly over the vocabulary, in [0, 1].
        softcap: Bound k of ``k tanh(z / k)`` on the logits.
        shift: Token i predicts target i + shift; a token's weight goes with its target.
        sample_weight: Weights of tokens that count in the divisor either way.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.
        backend: As in :func:`linear_cross_entropy`.
        vocab_parallel: As in :func:`linear_cross_entropy`.

    Shape:
        - input: ``(B, T, D)`` or ``(..., D)``; linear_weight: ``(V, D)``.
        - target, sample_weight: ``(B, T)`` or ``(...)``.
        - weight: ``(B,)`` or as target; linear_bias, class_weight: ``(V,)``; normalizer: a number or ``()``.

    Returns:
        As :func:`weighted_instruction_loss`, less the columns that ``shift`` takes.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, weight, option or reduction is wrong.

    Example:
        >>> target, weight = torch.tensor([[1, -100], [2, 3]]), torch.tensor([1.0, 0.5])
        >>> linear_weighted_instruction_loss(torch.zeros(2, 2, 3), torch.ones(4, 3), target, weight)
        tensor(0.9242)

    Source:
        Ociepa, Flis, Wróbel, Gwoździej, Kinas: Bielik 7B v0.1 (arXiv 2410.18565), on the head of Cut Your Losses
        (arXiv 2411.09009).
    """
    _check_normalize(normalize)
    check_in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    if isinstance(linear_weight, Tensor) and linear_weight.ndim:
        vocab = linear_weight.shape[0] if vocab_parallel is None else vocab_parallel.vocab_size
        check_class_vector("class_weight", class_weight, vocab)
    target, factor = _by_quality(weight, target, ignore_index)
    rows = head_rows(
        input,
        linear_weight,
        target,
        linear_bias,
        weight=class_weight,
        ignore_index=ignore_index,
        softcap=softcap,
        shift=shift,
        sample_weight=sample_weight,
        backend=backend,
        vocab_parallel=vocab_parallel,
    )
    factor = (factor[..., shift:] if shift and factor.ndim else factor).to(rows.target_weight().dtype)
    coefficients: dict[str, Tensor | float] = {"log_prob": -(1 - label_smoothing) * rows.target_weight() * factor}
    if isinstance(label_smoothing, Tensor) or label_smoothing:
        coefficients["mean_log_prob" if class_weight is None else "weighted_mean_log_prob"] = -label_smoothing * factor
    if reduction == "mean" and normalizer is None:
        share = factor.expand(rows.shape).reshape(-1) if normalize == "weights" else 1.0
        total = (rows.divisor() * share).sum()
        normalizer = torch.where(total == 0, 1.0, total)
    return rows.combine(coefficients, reduction=reduction, normalizer=normalizer)


class LinearWeightedInstructionLoss(HeadObjective):
    """Cross-entropy of answers by quality, on a head; module form of :func:`linear_weighted_instruction_loss`.

    Example:
        >>> loss = LinearWeightedInstructionLoss()
        >>> target, weight = torch.tensor([[1, -100], [2, 3]]), torch.tensor([1.0, 0.5])
        >>> loss(torch.zeros(2, 2, 3), torch.ones(4, 3), target, weight)
        tensor(0.9242)
    """

    function = linear_weighted_instruction_loss

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        normalize: Normalize = "tokens",
        class_weight: Tensor | None = None,
        label_smoothing: Tensor | float = 0.0,
        softcap: float | None = None,
        shift: int = 0,
        reduction: Reduction = "mean",
        backend: Backend = "auto",
        vocab_parallel: VocabParallel | None = None,
    ) -> None:
        super().__init__(
            ignore_index=ignore_index,
            normalize=normalize,
            class_weight=class_weight,
            label_smoothing=label_smoothing,
            softcap=softcap,
            shift=shift,
            reduction=reduction,
            backend=backend,
            vocab_parallel=vocab_parallel,
        )

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        linear_bias: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss on ``input``, the head and ``target``.

        Args:
            input: Hidden states ``(B, T, D)``.
            linear_weight: Weight of the head ``(V, D)``.
            target: Class indices ``(B, T)``.
            weight: Weights of examples ``(B,)`` or of tokens ``(B, T)``.
            linear_bias: Bias of the head.
            sample_weight: Weights of tokens that count in the divisor.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return linear_weighted_instruction_loss(
            input,
            linear_weight,
            target,
            weight,
            linear_bias=linear_bias,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


def _check_normalize(normalize: str) -> None:
    if normalize not in get_args(Normalize):
        raise ValueError(f"normalize is {normalize!r}; wanted 'tokens' or 'weights'.")


def _by_quality(weight: Tensor | None, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The target without tokens of weight 0, and the weight of each token (or one for all)."""
    if weight is None or not isinstance(target, Tensor):
        return target, torch.ones((), device=target.device if isinstance(target, Tensor) else None)
    check_floating("weight", weight)
    if target.ndim > 1 and weight.shape == target.shape[:1]:
        weight = weight.reshape([-1] + [1] * (target.ndim - 1)).expand(target.shape)
    else:
        check_shape("weight", weight, target.shape, "a weight for each token, or (B,) for examples")
    if may_read_values(weight) and not (weight >= 0).all():
        raise ValueError("weight contains a negative number or NaN; wanted weights of at least 0.")
    return torch.where(weight == 0, ignore_index, target), weight
