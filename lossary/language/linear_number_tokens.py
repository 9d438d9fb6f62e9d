"""Number token losses on a linear head: of all its logits only those of number tokens are made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossary.core.checks import check_in_range
from lossary.core.objective import Kind, objective
from lossary.core.types import Reduction
from lossary.kernels import HeadObjective, VocabParallel
from lossary.language.cross_entropy import linear_cross_entropy
from lossary.language.linear import Backend
from lossary.language.number_rows import NumberDistance, check_options, head_numbers, reweighed
from lossary.language.number_tokens import NumberObjective


def _every_token_a_number(num_classes: int) -> dict[str, Any]:
    return {"number_values": torch.arange(float(num_classes))}


@objective(Kind.HEAD, example=_every_token_a_number, nothing_is_zero=True)
def linear_number_token_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    number_values: Tensor,
    loss_weights: Tensor | None = None,
    *,
    linear_bias: Tensor | None = None,
    kind: NumberDistance = "wasserstein",
    squash_factor: float | None = None,
    reweigh: bool = False,
    number_index: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    backend: Backend = "auto",
    vocab_parallel: VocabParallel | None = None,
) -> Tensor:
    r"""Distance between the number predicted and the number in the text, on a head cut down to number tokens.

    Reach for it as for :func:`number_token_loss`, where the vocabulary is large: it costs a head of K columns.

    Formula:
        That of :func:`number_token_loss` on the logits ``input @ linear_weight.T + linear_bias``.

    Args:
        input: Hidden states.
        linear_weight: Weight of the head.
        target: Class indices; those that are no number count for nothing.
        number_values: Value of each entry of the vocabulary, NaN for those that are no number.
        loss_weights: Weights of tokens, at least 0; they count in the divisor of ``mean``.
        linear_bias: Bias of the head.
        kind: As in :func:`number_token_loss`.
        squash_factor: As in :func:`number_token_loss`.
        reweigh: As in :func:`number_token_loss`; costs a pass over the whole head, whose logits are not stored.
        number_index: The entries that are numbers, if known. Where they are neither known nor can be looked for (while
            compiling, under ``vmap`` over values), all logits are made; the module knows them.
        weight: Class weights, by target.
        ignore_index: Label of tokens that count for nothing.
        label_smoothing: Share of the target that is spread evenly over the number tokens, in [0, 1].
        softcap: Bound k of ``k tanh(z / k)`` on the logits.
        shift: Token i predicts target i + shift.
        sample_weight: Weights of tokens, as ``loss_weights``.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.
        backend: As in :func:`linear_cross_entropy`.
        vocab_parallel: As in :func:`linear_cross_entropy`.

    Shape:
        - input: ``(..., D)``; linear_weight: ``(V, D)``; target, loss_weights, sample_weight: ``(...)``.
        - linear_bias, number_values, weight: ``(V,)``; number_index: ``(K,)``; normalizer: a number or ``()``.

    Returns:
        As :func:`number_token_loss`, less the columns that ``shift`` takes.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, weight, option or reduction is wrong.

    Example:
        >>> values = torch.tensor([float("nan"), 0.0, 1.0, 2.0])
        >>> linear_number_token_loss(torch.zeros(1, 2, 3), torch.ones(4, 3), torch.tensor([[0, 1]]), values)
        tensor(1.)

    Source:
        Zausinger et al.: Regress, Don't Guess (ICML 2025, arXiv 2411.02083), on the head of Cut Your Losses
        (arXiv 2411.09009).
    """
    check_options(kind, squash_factor, label_smoothing)
    numbers, chosen, mass, _ = head_numbers(
        input,
        linear_weight,
        target,
        number_values,
        linear_bias,
        number_index=number_index,
        weight=weight,
        loss_weights=loss_weights,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        reweigh=reweigh,
        shift=shift,
        softcap=softcap,
        backend=backend,
        vocab_parallel=vocab_parallel,
    )
    loss = numbers.loss(chosen, kind=kind, squash_factor=squash_factor, label_smoothing=label_smoothing)
    if mass is not None:
        loss = reweighed(loss, mass, numbers.farthest(kind, squash_factor))
    return numbers.reduce(loss, reduction=reduction, normalizer=normalizer)


class _OnHead(NumberObjective, HeadObjective):
    """Called with a head and with weights of tokens."""

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        loss_weights: Tensor | None = None,
        *,
        linear_bias: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """The loss on ``input``, the head and ``target``.

        Args:
            input: Hidden states ``(B, T, D)``.
            linear_weight: Weight of the head ``(V, D)``.
            target: Class indices ``(B, T)``.
            loss_weights: Weights of tokens in the number token loss.
            linear_bias: Bias of the head.
            options: ``sample_weight`` and divisors, as the function has them.
        """
        value: Tensor = self.function(
            input,
            linear_weight,
            target,
            loss_weights=loss_weights,
            linear_bias=linear_bias,
            **options,
            **self.hyperparameters(),
        )
        return value


class LinearNumberTokenLoss(_OnHead):
    """Number token loss on a head cut down to number tokens; module form of :func:`linear_number_token_loss`.

    Example:
        >>> loss = LinearNumberTokenLoss(torch.tensor([float("nan"), 0.0, 1.0, 2.0]))
        >>> loss(torch.zeros(1, 2, 3), torch.ones(4, 3), torch.tensor([[0, 1]]))
        tensor(1.)
    """

    function = linear_number_token_loss

    def __init__(
        self,
        number_values: Tensor,
        kind: NumberDistance = "wasserstein",
        squash_factor: float | None = None,
        reweigh: bool = False,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        softcap: float | None = None,
        shift: int = 0,
        reduction: Reduction = "mean",
        backend: Backend = "auto",
        vocab_parallel: VocabParallel | None = None,
    ) -> None:
        super().__init__(
            number_values,
            kind=kind,
            squash_factor=squash_factor,
            reweigh=reweigh,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            softcap=softcap,
            shift=shift,
            reduction=reduction,
            backend=backend,
            vocab_parallel=vocab_parallel,
        )


@objective(Kind.HEAD, example=_every_token_a_number)
def linear_cross_entropy_with_number_token_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    number_values: Tensor,
    loss_weights: Tensor | None = None,
    *,
    linear_bias: Tensor | None = None,
    ntl_weight: Tensor | float = 0.3,
    kind: NumberDistance = "wasserstein",
    squash_factor: float | None = None,
    reweigh: bool = False,
    number_index: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    number_normalizer: Tensor | float | None = None,
    backend: Backend = "auto",
    vocab_parallel: VocabParallel | None = None,
) -> Tensor:
    r"""Cross-entropy of all tokens and the number token loss of numbers, on a head that never stores its logits.

    Reach for it as for :func:`cross_entropy_with_number_token_loss`, where the vocabulary is large.

    Formula:
        That of :func:`cross_entropy_with_number_token_loss` on the logits ``input @ linear_weight.T + linear_bias``.

    Args:
        input: Hidden states.
        linear_weight: Weight of the head.
        target: Class indices.
        number_values: Value of each entry of the vocabulary, NaN for text.
        loss_weights: Weights of tokens in the number token loss, at least 0.
        linear_bias: Bias of the head.
        ntl_weight: Weight of the number token loss.
        kind: As in :func:`number_token_loss`.
        squash_factor: As in :func:`number_token_loss`.
        reweigh: As in :func:`linear_number_token_loss`.
        number_index: As in :func:`linear_number_token_loss`.
        weight: Class weights as in PyTorch, in both parts.
        ignore_index: Label of tokens that count for nothing.
        label_smoothing: Share of the cross-entropy's target that is spread evenly over the vocabulary, in [0, 1].
        softcap: Bound k of ``k tanh(z / k)`` on the logits.
        shift: Token i predicts target i + shift.
        sample_weight: Weights of tokens, in both parts.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``, of both parts.
        number_normalizer: Divisor of the number token loss in place of ``normalizer``.
        backend: As in :func:`linear_cross_entropy`.
        vocab_parallel: As in :func:`linear_cross_entropy`.

    Shape:
        - input: ``(..., D)``; linear_weight: ``(V, D)``; target, loss_weights, sample_weight: ``(...)``.
        - linear_bias, number_values, weight: ``(V,)``; number_index: ``(K,)``.
        - ntl_weight, normalizer, number_normalizer: a number or ``()``.

    Returns:
        As :func:`cross_entropy_with_number_token_loss`, less the columns that ``shift`` takes.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, weight, option or reduction is wrong.

    Example:
        >>> values = torch.tensor([float("nan"), 0.0, 1.0, 2.0])
        >>> hidden, head, target = torch.zeros(1, 2, 3), torch.ones(4, 3), torch.tensor([[0, 1]])
        >>> linear_cross_entropy_with_number_token_loss(hidden, head, target, values)
        tensor(1.6863)

    Source:
        Zausinger et al.: Regress, Don't Guess (ICML 2025, arXiv 2411.02083), on the head of Cut Your Losses
        (arXiv 2411.09009).
    """
    check_in_range("ntl_weight", ntl_weight, 0.0)
    call: dict[str, Any] = {
        "linear_bias": linear_bias,
        "weight": weight,
        "ignore_index": ignore_index,
        "softcap": softcap,
        "shift": shift,
        "sample_weight": sample_weight,
        "reduction": reduction,
        "backend": backend,
        "vocab_parallel": vocab_parallel,
    }
    cross_entropy: Tensor = linear_cross_entropy(
        input, linear_weight, target, label_smoothing=label_smoothing, normalizer=normalizer, **call
    )
    of_numbers = linear_number_token_loss(
        input,
        linear_weight,
        target,
        number_values,
        loss_weights,
        kind=kind,
        squash_factor=squash_factor,
        reweigh=reweigh,
        number_index=number_index,
        normalizer=normalizer if number_normalizer is None else number_normalizer,
        **call,
    )
    return cross_entropy + ntl_weight * of_numbers


class LinearCrossEntropyWithNumberTokenLoss(_OnHead):
    """Both losses on a head; module form of :func:`linear_cross_entropy_with_number_token_loss`.

    Example:
        >>> loss = LinearCrossEntropyWithNumberTokenLoss(torch.tensor([float("nan"), 0.0, 1.0, 2.0]))
        >>> loss(torch.zeros(1, 2, 3), torch.ones(4, 3), torch.tensor([[0, 1]]))
        tensor(1.6863)
    """

    function = linear_cross_entropy_with_number_token_loss

    def __init__(
        self,
        number_values: Tensor,
        *,
        ntl_weight: Tensor | float = 0.3,
        kind: NumberDistance = "wasserstein",
        squash_factor: float | None = None,
        reweigh: bool = False,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        softcap: float | None = None,
        shift: int = 0,
        reduction: Reduction = "mean",
        backend: Backend = "auto",
        vocab_parallel: VocabParallel | None = None,
    ) -> None:
        super().__init__(
            number_values,
            ntl_weight=ntl_weight,
            kind=kind,
            squash_factor=squash_factor,
            reweigh=reweigh,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            softcap=softcap,
            shift=shift,
            reduction=reduction,
            backend=backend,
            vocab_parallel=vocab_parallel,
        )


def linear_predict_numbers(
    input: Tensor,
    linear_weight: Tensor,
    number_values: Tensor,
    *,
    linear_bias: Tensor | None = None,
    number_index: Tensor | None = None,
    softcap: float | None = None,
    backend: Backend = "auto",
    vocab_parallel: VocabParallel | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Expected number of each token and the mass of numbers, on a head that never stores its logits.

    Reach for it as for :func:`predict_numbers`, where the vocabulary is large.

    Formula:
        That of :func:`predict_numbers` on the logits ``input @ linear_weight.T + linear_bias``.

    Args:
        input: Hidden states.
        linear_weight: Weight of the head.
        number_values: Value of each entry of the vocabulary, NaN for text; one at least is a number.
        linear_bias: Bias of the head.
        number_index: As in :func:`linear_number_token_loss`.
        softcap: Bound k of ``k tanh(z / k)`` on the logits.
        backend: As in :func:`linear_cross_entropy`.
        vocab_parallel: As in :func:`linear_cross_entropy`.

    Shape:
        - input: ``(..., D)``; linear_weight: ``(V, D)``; linear_bias, number_values: ``(V,)``; number_index: ``(K,)``.

    Returns:
        Numbers and masses, both ``(...)``; float32 for half-precision input.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or option is wrong.

    Example:
        >>> values = torch.tensor([float("nan"), 0.0, 1.0, 2.0])
        >>> linear_predict_numbers(torch.zeros(1, 1, 3), torch.ones(4, 3), values)
        (tensor([[1.]]), tensor([[0.7500]]))

    Source:
        As :func:`predict_numbers`, on the head of Cut Your Losses (arXiv 2411.09009).
    """
    somewhere = torch.zeros(input.shape[:-1], dtype=torch.int64, device=input.device)
    some = number_values.isfinite().long().argmax()
    numbers, chosen, mass, _ = head_numbers(
        input,
        linear_weight,
        somewhere + some,  # as if every token were a number
        number_values,
        linear_bias,
        number_index=number_index,
        ignore_index=-100,
        reweigh=True,
        shift=0,
        softcap=softcap,
        backend=backend,
        vocab_parallel=vocab_parallel,
    )
    assert mass is not None
    return (numbers.probability(chosen) * numbers.values).sum(-1), mass
