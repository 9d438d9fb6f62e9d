"""Losses that weigh tokens by how rare they are, and tables of how often tokens occur."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from lossary.core.checks import check_in_range, check_shape, may_read_values
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import reduce_rows, token_rows
from lossary.core.types import Reduction
from lossary.kernels import HeadObjective, VocabParallel, head_rows
from lossary.language.linear import Backend

Normalize = Literal["weights", "tokens", "sum"]


def _example(num_classes: int) -> dict[str, Any]:
    return {"frequency": 2.0 ** torch.arange(num_classes), "normalize": "tokens"}


def power_law_decay_weights(
    frequency: Tensor,
    *,
    alpha: Tensor | float = 1.0,
    epsilon: Tensor | float = 1e-7,
    max_weight: Tensor | float | None = None,
) -> Tensor:
    r"""Weight of each entry of a vocabulary: a power of its inverse frequency.

    Reach for it to hand the weights to another loss, as class weights; :func:`power_law_decay_loss` makes its own.

    Formula:
        .. math:: w_v = \frac{1}{(f_v + \epsilon)^\alpha}

    Args:
        frequency: How often each entry occurs: counts, or shares.
        alpha: Decay exponent, at least 0.
        epsilon: What is added to frequencies, above 0. An entry that never occurs weighs :math:`\epsilon^{-\alpha}`,
            ten million times one that occurs once by default; 1 is add-one smoothing of counts.
        max_weight: Largest weight; None leaves them as they are.

    Shape:
        - frequency: ``(V,)``; alpha, epsilon, max_weight: a number or ``()``.

    Returns:
        ``(V,)``, float64 for float64 frequencies, else float32; computed in float64.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, frequency or option is wrong.

    Example:
        >>> power_law_decay_weights(torch.tensor([100, 10, 1]), epsilon=1e-3)
        tensor([0.0100, 0.1000, 0.9990])

    Source:
        Shao et al.: Power-Law Decay Loss for Large Language Model Finetuning (arXiv 2505.16900).
    """
    check_in_range("alpha", alpha, 0.0)
    check_in_range("epsilon", epsilon, 0.0, low_open=True)
    check_in_range("max_weight", 1.0 if max_weight is None else max_weight, 0.0, low_open=True)
    if not isinstance(frequency, Tensor) or frequency.is_complex() or frequency.dtype == torch.bool:
        raise TypeError(f"frequency is {frequency!r:.80}; wanted a tensor of counts or shares (V,).")
    if frequency.ndim != 1:
        raise ValueError(f"frequency has shape {tuple(frequency.shape)}; wanted (V,), one for each entry.")
    if may_read_values(frequency) and not (frequency >= 0).all():
        raise ValueError("frequency contains a negative number or NaN; wanted counts or shares of at least 0.")
    weights = torch.exp(-alpha * (frequency.double() + epsilon).log())
    if max_weight is not None:
        weights = weights.clamp(max=max_weight)
    return weights.to(torch.promote_types(frequency.dtype, torch.float32))


@objective(Kind.TOKENS, example=_example, nothing_is_zero=True)
def power_law_decay_loss(
    logits: Tensor,
    target: Tensor,
    frequency: Tensor,
    *,
    alpha: Tensor | float = 1.0,
    epsilon: Tensor | float = 1e-7,
    normalize: Normalize = "weights",
    max_weight: Tensor | float | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy in which a token counts by a power of its inverse frequency.

    Reach for it in fine-tuning where frequent words drown rare, specific ones. Frequent words are learnt worse for it;
    with ``alpha`` 1 every word of the table has the same share of the gradient. Take the table from the texts that are
    trained on, their target side, or set ``epsilon`` to 1: words that the table has not seen swallow the batch
    otherwise (a warning says so).

    Formula:
        .. math:: L = -\frac{\sum_k w_{y_k} \log p_k(y_k)}{\sum_k w_{y_k}}, \quad
            w_v = \frac{1}{(f_v + \epsilon)^\alpha}

    Args:
        logits: Logits, aligned with the target, the vocabulary last.
        target: Class indices.
        frequency: How often each entry of the vocabulary occurs: counts, or shares.
        alpha: Decay exponent, at least 0; 0 is plain cross-entropy.
        epsilon: What is added to frequencies, above 0.
        normalize: What ``mean`` divides by: the ``weights`` summed, the number of ``tokens``, or nothing (``sum``).
        max_weight: Largest weight of a token; None leaves them as they are.
        weight: Class weights as in PyTorch.
        ignore_index: Label of tokens that count for nothing.
        label_smoothing: Share of the target spread evenly over the vocabulary, in [0, 1]; the weight stays the
            target's.
        sample_weight: Weights of tokens.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - logits: ``(B, T, V)`` or ``(..., V)``; target, sample_weight: ``(B, T)`` or ``(...)``.
        - frequency, weight: ``(V,)``; alpha, epsilon, max_weight, normalizer: a number or ``()``.

    Returns:
        ``(B, T)`` for ``none``, else ``()``; float32 for half-precision logits. ``mean`` is 0 where nothing counts.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, frequency, option or reduction is wrong.

    Example:
        >>> logits, target = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), torch.tensor([[0, 1]])
        >>> power_law_decay_loss(logits, target, torch.tensor([1, 99]))  # the first token counts 99 times
        tensor(1.3033)

    Source:
        Shao et al.: Power-Law Decay Loss for Large Language Model Finetuning (arXiv 2505.16900), normalised as in their
        code; the paper's formula is ``normalize="sum"``.
    """
    _check_normalize(normalize)
    rows = token_rows(
        logits,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
    )
    check_shape("frequency", frequency, (rows.num_classes,), "one for each entry of the vocabulary")
    weights = power_law_decay_weights(frequency.double(), alpha=alpha, epsilon=epsilon, max_weight=max_weight)
    _warn_of_unseen(target, frequency, alpha, epsilon, max_weight, ignore_index)
    assert rows.index is not None
    factor = weights.to(rows.logits.dtype)[rows.index]
    return reduce_rows(
        factor * rows.expect(-rows.log_p()),
        keep=rows.keep,
        valid=rows.good_labels(),
        label_weight=rows.label_weight() * (factor if normalize == "weights" else 1.0),
        sample_weight=None if sample_weight is None else sample_weight.to(rows.logits.dtype),
        reduction="sum" if (reduction, normalize) == ("mean", "sum") else reduction,
        normalizer=normalizer,
        nothing_is_zero=True,
    )


class _OfFrequencies(Objective):
    """An :class:`Objective` that remembers how often tokens occur, and can count them."""

    @classmethod
    def from_token_ids(
        cls,
        token_ids: Iterable[Any],
        vocab_size: int,
        relative: bool = False,
        *,
        ignore_index: int = -100,
        **options: Any,
    ) -> Self:
        """The objective with a frequency table of its own, counted in one pass over a corpus.

        Args:
            token_ids: Tokens, or batches of them in any shape, as :func:`token_frequencies` takes them.
            vocab_size: V.
            relative: Shares instead of counts.
            ignore_index: Label of tokens that are not counted.
            options: Further options of the module.
        """
        table = token_frequencies(token_ids, vocab_size, relative=relative, ignore_index=ignore_index)
        return cls(table, ignore_index=ignore_index, **options)  # type: ignore[call-arg]


class PowerLawDecayLoss(_OfFrequencies):
    """Cross-entropy by inverse frequency; module form of :func:`power_law_decay_loss`.

    Example:
        >>> loss = PowerLawDecayLoss.from_token_ids([[0, 1, 1], [1]], vocab_size=2, alpha=0.5)
        >>> loss(torch.zeros(1, 2, 2), torch.tensor([[0, 1]]))
        tensor(0.6931)
    """

    function = power_law_decay_loss

    def __init__(
        self,
        frequency: Tensor,
        alpha: Tensor | float = 1.0,
        epsilon: Tensor | float = 1e-7,
        normalize: Normalize = "weights",
        reduction: Reduction = "mean",
        *,
        max_weight: Tensor | float | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
    ) -> None:
        super().__init__(
            frequency=frequency,
            alpha=alpha,
            epsilon=epsilon,
            normalize=normalize,
            reduction=reduction,
            max_weight=max_weight,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss on ``logits`` and ``target``.

        Args:
            logits: Logits ``(B, T, V)``.
            target: Class indices ``(B, T)``.
            sample_weight: Weights of tokens.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return power_law_decay_loss(
            logits, target, sample_weight=sample_weight, normalizer=normalizer, **self.hyperparameters()
        )


@objective(Kind.HEAD, example=_example, nothing_is_zero=True)
def linear_power_law_decay_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    frequency: Tensor,
    *,
    linear_bias: Tensor | None = None,
    alpha: Tensor | float = 1.0,
    epsilon: Tensor | float = 1e-7,
    normalize: Normalize = "weights",
    max_weight: Tensor | float | None = None,
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
    r"""Cross-entropy by inverse frequency, on a linear head that never stores its logits.

    Reach for it as for :func:`power_law_decay_loss`, where the vocabulary is large.

    Formula:
        That of :func:`power_law_decay_loss` on the logits ``input @ linear_weight.T + linear_bias``.

    Args:
        input: Hidden states.
        linear_weight: Weight of the head.
        target: Class indices.
        frequency: How often each entry of the vocabulary occurs: counts, or shares.
        linear_bias: Bias of the head.
        alpha: Decay exponent, at least 0; 0 is plain cross-entropy.
        epsilon: What is added to frequencies, above 0.
        normalize: As in :func:`power_law_decay_loss`.
        max_weight: Largest weight of a token; None leaves them as they are.
        weight: Class weights as in PyTorch.
        ignore_index: Label of tokens that count for nothing.
        label_smoothing: Share of the target spread evenly over the vocabulary, in [0, 1].
        softcap: Bound k of ``k tanh(z / k)`` on the logits.
        shift: Token i predicts target i + shift.
        sample_weight: Weights of tokens.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.
        backend: As in :func:`linear_cross_entropy`.
        vocab_parallel: As in :func:`linear_cross_entropy`.

    Shape:
        - input: ``(..., D)``; linear_weight: ``(V, D)``; target, sample_weight: ``(...)``.
        - linear_bias, frequency, weight: ``(V,)``; alpha, epsilon, max_weight, normalizer: a number or ``()``.

    Returns:
        As :func:`power_law_decay_loss`, less the columns that ``shift`` takes.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, frequency, option or reduction is wrong.

    Example:
        >>> hidden, head, target = torch.tensor([[[1.0], [1.0]]]), torch.tensor([[0.0], [1.0]]), torch.tensor([[0, 1]])
        >>> linear_power_law_decay_loss(hidden, head, target, torch.tensor([1, 99]))
        tensor(1.3033)

    Source:
        Shao et al. (arXiv 2505.16900), on the head of Cut Your Losses (arXiv 2411.09009).
    """
    _check_normalize(normalize)
    check_in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    rows = head_rows(
        input,
        linear_weight,
        target,
        linear_bias,
        weight=weight,
        ignore_index=ignore_index,
        softcap=softcap,
        shift=shift,
        sample_weight=sample_weight,
        backend=backend,
        vocab_parallel=vocab_parallel,
    )
    check_shape("frequency", frequency, (rows.vocab,), "one for each entry of the vocabulary")
    weights = power_law_decay_weights(frequency.double(), alpha=alpha, epsilon=epsilon, max_weight=max_weight)
    _warn_of_unseen(target[..., shift:] if shift else target, frequency, alpha, epsilon, max_weight, ignore_index)
    factor = rows.per_target(weights)
    coefficients: dict[str, Tensor | float] = {"log_prob": -(1 - label_smoothing) * rows.target_weight() * factor}
    if isinstance(label_smoothing, Tensor) or label_smoothing:
        coefficients["mean_log_prob" if weight is None else "weighted_mean_log_prob"] = -label_smoothing * factor
    if reduction == "mean" and normalizer is None:
        if normalize == "sum":
            reduction = "sum"
        else:
            total = (rows.divisor() * (factor.reshape(-1) if normalize == "weights" else 1.0)).sum()
            normalizer = torch.where(total == 0, 1.0, total)
    return rows.combine(coefficients, reduction=reduction, normalizer=normalizer)


class LinearPowerLawDecayLoss(_OfFrequencies, HeadObjective):
    """Cross-entropy by inverse frequency on a head; module form of :func:`linear_power_law_decay_loss`.

    Example:
        >>> loss = LinearPowerLawDecayLoss(torch.tensor([1, 99]))
        >>> loss(torch.tensor([[[1.0], [1.0]]]), torch.tensor([[0.0], [1.0]]), torch.tensor([[0, 1]]))
        tensor(1.3033)
    """

    function = linear_power_law_decay_loss

    def __init__(
        self,
        frequency: Tensor,
        alpha: Tensor | float = 1.0,
        epsilon: Tensor | float = 1e-7,
        normalize: Normalize = "weights",
        reduction: Reduction = "mean",
        *,
        max_weight: Tensor | float | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        softcap: float | None = None,
        shift: int = 0,
        backend: Backend = "auto",
        vocab_parallel: VocabParallel | None = None,
    ) -> None:
        super().__init__(
            frequency=frequency,
            alpha=alpha,
            epsilon=epsilon,
            normalize=normalize,
            reduction=reduction,
            max_weight=max_weight,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            softcap=softcap,
            shift=shift,
            backend=backend,
            vocab_parallel=vocab_parallel,
        )


def token_frequencies(
    token_ids: Iterable[Any], vocab_size: int, *, relative: bool = False, ignore_index: int = -100
) -> Tensor:
    """How often each entry of a vocabulary occurs, counted in one pass over a corpus that need not fit in memory.

    Reach for it to make the table of :func:`power_law_decay_loss`. Counts of parts of a corpus, on several ranks for
    instance, add up.

    Args:
        token_ids: Tokens one by one, or lists, arrays and tensors of them in any shape, as a tokenizer or a DataLoader
            gives them.
        vocab_size: V.
        relative: Shares instead of counts; 0 throughout where nothing was counted.
        ignore_index: Label of tokens that are not counted, such as prompt and padding.

    Returns:
        ``(V,)``: int64 counts, or float64 shares.

    Raises:
        ValueError: A token lies outside the vocabulary.

    Example:
        >>> token_frequencies(([0, 1, 1], [1, -100]), 3)
        tensor([1, 3, 0])

    Source:
        Shao et al. (arXiv 2505.16900); their code counts the whole text, prompts included.
    """
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for chunk in _chunks(token_ids):
        tokens = chunk[chunk != ignore_index]
        wrong = (tokens < 0) | (tokens >= vocab_size)
        if wrong.any():
            raise ValueError(
                f"token_ids contains {int(tokens[wrong][0])}; wanted 0 to {vocab_size - 1} or "
                f"ignore_index={ignore_index}."
            )
        counts += torch.bincount(tokens, minlength=vocab_size)
    return counts.double() / counts.sum().clamp(min=1) if relative else counts


def _chunks(token_ids: Iterable[Any], size: int = 65_536) -> Iterator[Tensor]:
    """Flat tensors of tokens; single ones are collected."""
    single: list[int] = []
    for item in [token_ids] if isinstance(token_ids, Tensor) else token_ids:
        if not isinstance(item, int):
            yield torch.as_tensor(item).reshape(-1).long().cpu()
            continue
        single.append(item)
        if len(single) == size:
            yield torch.tensor(single)
            single = []
    yield torch.tensor(single, dtype=torch.int64)


def _check_normalize(normalize: str) -> None:
    if normalize not in get_args(Normalize):
        raise ValueError(f"normalize is {normalize!r}; wanted 'weights', 'tokens' or 'sum'.")


def _warn_of_unseen(
    target: Tensor,
    frequency: Tensor,
    alpha: Tensor | float,
    epsilon: Tensor | float,
    max_weight: Tensor | float | None,
    ignore_index: int,
) -> None:
    """Warn where a token that the table has not seen outweighs a hundred of the rarest that it has."""
    options = [torch.as_tensor(option) for option in (alpha, epsilon)]
    if max_weight is not None or not may_read_values(target, frequency, *options) or not (frequency > 0).any():
        return
    exponent, added = (float(option) for option in options)
    rarest = float(frequency[frequency > 0].min())
    if (rarest / added + 1) ** exponent <= 100:
        return
    unseen = int((frequency[target[target != ignore_index].long()] == 0).sum())
    if unseen:
        warnings.warn(
            f"{unseen} of the targets have frequency 0, and each weighs {(rarest / added + 1) ** exponent:.0g} times "
            "the rarest token of the table; use a table of these texts, epsilon=1 (for counts) or max_weight.",
            stacklevel=3,
        )
