"""Losses that know which tokens are numbers, and what numbers: an error of 1 costs less than one of 8."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from lossary.core.checks import check_in_range
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import token_rows
from lossary.core.types import Reduction
from lossary.language.number_rows import (
    NumberDistance,
    check_options,
    number_entries,
    number_rows,
    reweighed,
)
from lossary.language.number_values import number_values_from_tokenizer


def _every_token_a_number(num_classes: int) -> dict[str, Any]:
    return {"number_values": torch.arange(float(num_classes))}


@objective(Kind.TOKENS, example=_every_token_a_number, nothing_is_zero=True)
def number_token_loss(
    logits: Tensor,
    target: Tensor,
    number_values: Tensor,
    loss_weights: Tensor | None = None,
    *,
    kind: NumberDistance = "wasserstein",
    squash_factor: float | None = None,
    reweigh: bool = False,
    number_index: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Distance between the number that is predicted and the number in the text.

    Reach for it beside cross-entropy (:func:`cross_entropy_with_number_token_loss` is both) where a language model
    answers in numbers. Not alone: it says nothing about text, nor, unless it is reweighed, about the choice between
    text and numbers.

    Formula:
        .. math:: L = \sum_{k \in K} q_k |v_k - y|

        for the number tokens K with values v, q the softmax over K alone and y the target's value; this is the
        Wasserstein-1 distance. ``mse``, ``mae`` and ``huber`` are a distance of the mean instead,
        :math:`f(\sum_k q_k v_k - y)`.

    Args:
        logits: Logits, aligned with the target, the vocabulary last.
        target: Class indices; those that are no number count for nothing.
        number_values: Value of each entry of the vocabulary, NaN for those that are no number. They are constants to
            the gradient.
        loss_weights: Weights of tokens, at least 0; they count in the divisor of ``mean``.
        kind: ``wasserstein``, ``mse``, ``mae`` or ``huber`` (with delta 1). The last three are 0 at a mean that is
            right by accident: half a chance for 0 and half for 9 is a perfect 4.5.
        squash_factor: The farthest number costs this many times the nearest wrong one, above 1; None leaves distances
            as they are. For vocabularies with numbers up to a million. ``wasserstein`` only.
        reweigh: Scale by the mass a of K under the full softmax and add 1.01 (1 - a) times the largest loss, so that
            text costs more than any number.
        number_index: The entries that are numbers, if known; otherwise they are looked for, which waits for an
            accelerator, and cannot be done while compiling, where the whole vocabulary is gone through. The module
            knows them.
        weight: Class weights, by target.
        ignore_index: Label of tokens that count for nothing.
        label_smoothing: Share of the target that is spread evenly over the number tokens, in [0, 1].
        sample_weight: Weights of tokens, as ``loss_weights``.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - logits: ``(B, T, V)`` or ``(..., V)``; target, loss_weights, sample_weight: ``(B, T)`` or ``(...)``.
        - number_values, weight: ``(V,)``; number_index: ``(K,)``; normalizer: a number or ``()``.

    Returns:
        ``(B, T)`` for ``none``, 0 where the target is no number; else ``()``. ``mean`` divides by the summed weights
        of number targets and is 0 without any; float32 for half-precision logits.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, weight, option or reduction is wrong.

    Example:
        >>> values = torch.tensor([float("nan"), 0.0, 1.0, 2.0])  # the first entry is text
        >>> number_token_loss(torch.zeros(1, 2, 4), torch.tensor([[0, 1]]), values)
        tensor(1.)

    Source:
        Zausinger et al.: Regress, Don't Guess: A Regression-like Loss on Number Tokens for Language Models (ICML 2025,
        arXiv 2411.02083). ``squash_factor`` and ``reweigh`` are their package's, which reweighs by default. With
        ``label_smoothing`` the distance has the true gaps between values, where their code has gaps of 1.
    """
    check_options(kind, squash_factor, label_smoothing)
    rows = token_rows(logits, target, weight=weight, ignore_index=ignore_index)
    numbers = number_rows(
        target,
        number_values,
        number_index,
        vocab=rows.num_classes,
        dtype=rows.logits.dtype,
        weight=weight,
        loss_weights=loss_weights,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
    )
    loss = numbers.loss(
        numbers.among(rows.logits), kind=kind, squash_factor=squash_factor, label_smoothing=label_smoothing
    )
    if reweigh:
        mass = numbers.among(rows.log_softmax()).exp().sum(-1)
        loss = reweighed(loss, mass, numbers.farthest(kind, squash_factor))
    return numbers.reduce(loss, reduction=reduction, normalizer=normalizer)


class NumberObjective(Objective):
    """An :class:`Objective` that remembers the numbers of a vocabulary, and can read them off a tokenizer."""

    def __init__(self, number_values: Tensor, **hyperparameters: Any) -> None:
        values = torch.as_tensor(number_values)
        values = values if values.is_floating_point() else values.to(torch.get_default_dtype())
        super().__init__(number_values=values, number_index=number_entries(values), **hyperparameters)

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, digit_level: bool = True, *, vocab_size: int | None = None, **options: Any
    ) -> Self:
        """The objective for the vocabulary of a Hugging Face tokenizer.

        Args:
            tokenizer: The tokenizer.
            digit_level: Take single digits for numbers; otherwise also tokens of several, as 123 or 0.5.
            vocab_size: Entries of the head, where it has more than the tokenizer.
            options: Further options of the module.

        Raises:
            ValueError: The tokenizer has no numbers, or more entries than ``vocab_size``.
        """
        return cls(number_values_from_tokenizer(tokenizer, vocab_size, digit_level=digit_level), **options)


class NumberTokenLoss(NumberObjective):
    """Distance between predicted and wanted numbers; module form of :func:`number_token_loss`.

    Example:
        >>> loss = NumberTokenLoss(torch.tensor([float("nan"), 0.0, 1.0, 2.0]))
        >>> loss(torch.zeros(1, 2, 4), torch.tensor([[0, 1]]))
        tensor(1.)
    """

    function = number_token_loss

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
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            number_values,
            kind=kind,
            squash_factor=squash_factor,
            reweigh=reweigh,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        loss_weights: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss on ``logits`` and ``target``.

        Args:
            logits: Logits ``(B, T, V)``.
            target: Class indices ``(B, T)``.
            loss_weights: Weights of tokens.
            sample_weight: Weights of tokens, too.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return number_token_loss(
            logits,
            target,
            loss_weights=loss_weights,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


@objective(Kind.TOKENS, example=_every_token_a_number)
def cross_entropy_with_number_token_loss(
    logits: Tensor,
    target: Tensor,
    number_values: Tensor,
    loss_weights: Tensor | None = None,
    *,
    ntl_weight: Tensor | float = 0.3,
    kind: NumberDistance = "wasserstein",
    squash_factor: float | None = None,
    reweigh: bool = False,
    number_index: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    number_normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy of all tokens and the number token loss of those that are numbers.

    Reach for it in place of cross-entropy where a language model answers in numbers: it costs almost nothing and
    leaves text alone.

    Formula:
        .. math:: L = \mathrm{CE} + \lambda \, \mathrm{NTL}

        each the mean over its own tokens: all, and those whose target is a number.

    Args:
        logits: Logits, aligned with the target, the vocabulary last.
        target: Class indices.
        number_values: Value of each entry of the vocabulary, NaN for text.
        loss_weights: Weights of tokens in the number token loss, at least 0.
        ntl_weight: The lambda.
        kind: As in :func:`number_token_loss`.
        squash_factor: As in :func:`number_token_loss`.
        reweigh: As in :func:`number_token_loss`.
        number_index: As in :func:`number_token_loss`.
        weight: Class weights as in PyTorch, in both parts.
        ignore_index: Label of tokens that count for nothing.
        label_smoothing: Share of the cross-entropy's target that is spread evenly over the vocabulary, in [0, 1].
        sample_weight: Weights of tokens, in both parts.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``, of both parts: a batch of few numbers then has a number
            token loss as much smaller.
        number_normalizer: Divisor of the number token loss in place of ``normalizer``.

    Shape:
        - logits: ``(B, T, V)`` or ``(..., V)``; target, loss_weights, sample_weight: ``(B, T)`` or ``(...)``.
        - number_values, weight: ``(V,)``; number_index: ``(K,)``; ntl_weight, normalizer, number_normalizer: a number
          or ``()``.

    Returns:
        ``(B, T)`` for ``none``, else ``()``; float32 for half-precision logits. Empty or all-ignored ``mean`` is NaN as
        in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, weight, option or reduction is wrong.

    Example:
        >>> values = torch.tensor([float("nan"), 0.0, 1.0, 2.0])
        >>> cross_entropy_with_number_token_loss(torch.zeros(1, 2, 4), torch.tensor([[0, 1]]), values)
        tensor(1.6863)

    Source:
        Zausinger et al.: Regress, Don't Guess (ICML 2025, arXiv 2411.02083); the lambda of 0.3 is their code's.
    """
    check_in_range("ntl_weight", ntl_weight, 0.0)
    rows = token_rows(
        logits,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
    )
    cross_entropy = rows.reduce(-rows.expect(rows.log_p()), reduction=reduction, normalizer=normalizer)
    of_numbers = number_token_loss(
        logits,
        target,
        number_values,
        loss_weights,
        kind=kind,
        squash_factor=squash_factor,
        reweigh=reweigh,
        number_index=number_index,
        weight=weight,
        ignore_index=ignore_index,
        sample_weight=sample_weight,
        reduction=reduction,
        normalizer=normalizer if number_normalizer is None else number_normalizer,
    )
    return cross_entropy + ntl_weight * of_numbers


class CrossEntropyWithNumberTokenLoss(NumberObjective):
    """Cross-entropy and number token loss; module form of :func:`cross_entropy_with_number_token_loss`.

    Example:
        >>> loss = CrossEntropyWithNumberTokenLoss(torch.tensor([float("nan"), 0.0, 1.0, 2.0]))
        >>> loss(torch.zeros(1, 2, 4), torch.tensor([[0, 1]]))
        tensor(1.6863)
    """

    function = cross_entropy_with_number_token_loss

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
        reduction: Reduction = "mean",
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
            reduction=reduction,
        )

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        loss_weights: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
        number_normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss on ``logits`` and ``target``.

        Args:
            logits: Logits ``(B, T, V)``.
            target: Class indices ``(B, T)``.
            loss_weights: Weights of tokens in the number token loss.
            sample_weight: Weights of tokens, in both parts.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
            number_normalizer: Divisor of the number token loss in its place.
        """
        return cross_entropy_with_number_token_loss(
            logits,
            target,
            loss_weights=loss_weights,
            sample_weight=sample_weight,
            normalizer=normalizer,
            number_normalizer=number_normalizer,
            **self.hyperparameters(),
        )
