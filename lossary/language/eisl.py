"""EISL: n-grams of the target are looked for anywhere in the output, so that shifts and local edits cost little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.checks import (
    check_floating,
    check_in_range,
    check_labels,
    check_shape,
    may_read_values,
)
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import token_rows, widen
from lossary.core.types import Reduction
from lossary.core.values import reduce_values
from lossary.kernels import HeadObjective, VocabParallel, head_rows

Backend = Literal["auto", "reference", "cpu", "cuda", "triton"]
Weights = Sequence[float] | Tensor | None


def _with_output_mask(input: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {"input": input, "target": target, "output_mask": (target >= 0) & (target < input.shape[-1])}


@objective(Kind.SEQUENCES, arguments=_with_output_mask)
def eisl_loss(
    logits: Tensor,
    target: Tensor,
    *,
    ngrams: Sequence[int] = (2,),
    weights: Weights = None,
    temperature: Tensor | float = 1.0,
    gumbel: bool = False,
    log_prob_min: Tensor | float = -20.0,
    ignore_index: int = -100,
    output_mask: Tensor | None = None,
    segment: Tensor | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Minus the log-probability of the target's n-grams, wherever in the output they match best.

    Reach for it where targets have words inserted, dropped, repeated or moved, and where positions are predicted all at
    once (non-autoregressive translation). Train with cross-entropy first and mix it in
    (:func:`eisl_with_cross_entropy`): while all positions match equally badly there is little to learn. Not where
    the position of a token is what counts.

    Formula:
        .. math:: S_{ij} = \frac1n \sum_{k < n} \max\big(\log p_{i + k}(y_{j + k}), m\big), \qquad
            L_n = -\frac1J \sum_j \sum_i W_{ij} S_{ij}, \quad W = \mathrm{softmax}_i(S / \tau + g)

        and :math:`L = \sum_n w_n L_n`. At full length there is one position, and L is cross-entropy.

    Args:
        logits: Logits of the output, the vocabulary last.
        target: Class indices; its length may differ from the output's.
        ngrams: The n: those below 1 count from the output's length (0 is full length); what does not fit is left out,
            and if nothing fits, full length is taken.
        weights: The :math:`w_n`; None weighs alike, in each row, all n that fit.
        temperature: The :math:`\tau`, above 0.
        gumbel: Whether Gumbel noise g is drawn, as the paper's code does; else g is 0.
        log_prob_min: The m; below it nothing is learnt.
        ignore_index: Label of tokens that count for nothing; n-grams that touch one are left out.
        output_mask: False at positions of the output, such as padding, that match nothing.
        segment: The packed sequence that each token belongs to, where several share a row; of output and target alike.
        generator: Source of the noise.
        noise: The Gumbel noise itself, in place of a draw; for each n a corner of it is used.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum`` over rows.
        normalizer: Divisor in place of the number of rows.

    Shape:
        - logits: ``(B, To, V)``; target: ``(B, Tt)``; output_mask: ``(B, To)``; segment: ``(B, T)``, To = Tt.
        - weights: as long as ngrams; noise: ``(B, len(ngrams), To, Tt)``; sample_weight: ``(B,)``.
        - temperature, log_prob_min, normalizer: a number or ``()``.

    Returns:
        ``(B,)`` for ``none``, else ``()``; float32 for half-precision logits. Rows without any n-gram count for
        nothing; empty or all-ignored ``mean`` is NaN, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``ngrams``, ``temperature`` or reduction is wrong.

    Example:
        >>> logits = 10 * torch.eye(4)[None]  # says 0 1 2 3
        >>> eisl_loss(logits, torch.tensor([[1, 2, 3]]))  # one position further
        tensor(0.0010)

    Source:
        Liu et al.: Don't Take It Literally: An Edit-Invariant Sequence Loss for Text Generation (NAACL 2022, arXiv
        2106.15078). The paper's code lets padding match; here it is left out.
    """
    _check(logits, target, logits.shape[-1:], ignore_index, output_mask, name="logits")
    labels = _labels(target, logits.shape[-1], ignore_index)
    values, keep = _of_rows(
        _clamped(_of_targets(logits, labels, output_mask), log_prob_min),
        target != ignore_index,
        ngrams=ngrams,
        weights=weights,
        temperature=temperature,
        gumbel=gumbel,
        output_mask=output_mask,
        segment=segment,
        generator=generator,
        noise=noise,
    )
    values, keep = _nan_at_bad_labels(values, keep, target, logits.shape[-1], ignore_index)
    return reduce_values(values, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer, keep=keep)


class EISLLoss(Objective):
    """N-grams of the target wherever they match; module form of :func:`eisl_loss`.

    Example:
        >>> EISLLoss(ngrams=(2,))(10 * torch.eye(4)[None], torch.tensor([[1, 2, 3]]))
        tensor(0.0010)
    """

    function = eisl_loss

    def __init__(
        self,
        ngrams: Sequence[int] = (2,),
        *,
        weights: Weights = None,
        temperature: Tensor | float = 1.0,
        gumbel: bool = False,
        log_prob_min: Tensor | float = -20.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            weights=weights,
            temperature=temperature,
            gumbel=gumbel,
            log_prob_min=log_prob_min,
            ignore_index=ignore_index,
            reduction=reduction,
        )
        self.ngrams = tuple(ngrams)

    def hyperparameters(self) -> dict[str, Any]:
        """As of any objective; ``ngrams`` are integers and stay Python's."""
        return {"ngrams": self.ngrams, **super().hyperparameters()}

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        output_mask: Tensor | None = None,
        segment: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            logits: Logits ``(B, To, V)``.
            target: Class indices ``(B, Tt)``.
            output_mask: False at positions of the output that match nothing.
            segment: The packed sequence that each token belongs to.
            generator: Source of the noise.
            noise: The noise itself.
            sample_weight: Weights of rows.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return eisl_loss(
            logits,
            target,
            output_mask=output_mask,
            segment=segment,
            generator=generator,
            noise=noise,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


@objective(Kind.HEAD_SEQUENCES, arguments=_with_output_mask)
def linear_eisl_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    *,
    ngrams: Sequence[int] = (2,),
    weights: Weights = None,
    temperature: Tensor | float = 1.0,
    gumbel: bool = False,
    log_prob_min: Tensor | float = -20.0,
    ignore_index: int = -100,
    output_mask: Tensor | None = None,
    segment: Tensor | None = None,
    softcap: float | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    backend: Backend = "auto",
    vocab_parallel: VocabParallel | None = None,
) -> Tensor:
    r"""The loss of :func:`eisl_loss`, of a linear head that never stores its logits.

    Reach for it where the vocabulary is large: what is stored are log-probabilities of the target's tokens at every
    position of the output. :func:`eisl_loss` is the form on logits and says more.

    Formula:
        .. math:: L = -\sum_n \frac{w_n}{J} \sum_j \sum_i W_{ij} S_{ij}, \quad p_i = \mathrm{softmax}(W x_i + b)

    Args:
        input: Hidden states of the output.
        linear_weight: Weight of the head.
        target: Class indices; its length may differ from the output's.
        linear_bias: Bias of the head.
        ngrams: The n; those below 1 count from the output's length.
        weights: Weights of the n; None weighs alike, in each row, all that fit.
        temperature: Temperature of the choice of positions, above 0.
        gumbel: Whether Gumbel noise is drawn.
        log_prob_min: Log-probability below which nothing is learnt.
        ignore_index: Label of tokens that count for nothing.
        output_mask: False at positions of the output that match nothing.
        segment: The packed sequence that each token belongs to.
        softcap: Bound k of ``k tanh(z / k)`` on the logits.
        generator: Source of the noise.
        noise: The Gumbel noise itself, in place of a draw.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum`` over rows.
        normalizer: Divisor in place of the number of rows.
        backend: As in :func:`linear_cross_entropy`.
        vocab_parallel: As in :func:`linear_cross_entropy`.

    Shape:
        - input: ``(B, To, D)``; linear_weight: ``(V, D)``; linear_bias: ``(V,)``; target: ``(B, Tt)``.
        - output_mask: ``(B, To)``; segment: ``(B, T)``, To = Tt; weights: as long as ngrams.
        - noise: ``(B, len(ngrams), To, Tt)``; sample_weight: ``(B,)``.
        - temperature, log_prob_min, normalizer: a number or ``()``.

    Returns:
        ``(B,)`` for ``none``, else ``()``; float32 for half-precision input. Rows without any n-gram count for
        nothing; empty or all-ignored ``mean`` is NaN, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``ngrams``, ``temperature`` or reduction is wrong.

    Example:
        >>> linear_eisl_loss(torch.eye(4)[None], 10 * torch.eye(4), torch.tensor([[1, 2, 3]]))
        tensor(0.0010)

    Source:
        Liu et al. (NAACL 2022, arXiv 2106.15078), on the head of Cut Your Losses (arXiv 2411.09009).
    """
    check_floating("linear_weight", linear_weight)
    vocab = linear_weight.shape[0] if vocab_parallel is None else vocab_parallel.vocab_size
    _check(input, target, linear_weight.shape[1:], ignore_index, output_mask, name="input", vocab=vocab)
    labels = _labels(target, vocab, ignore_index)
    head: dict[str, Any] = {"softcap": softcap, "backend": backend, "vocab_parallel": vocab_parallel}
    values, keep = _of_rows(
        _clamped(_of_targets_of_head(input, linear_weight, linear_bias, labels, output_mask, head), log_prob_min),
        target != ignore_index,
        ngrams=ngrams,
        weights=weights,
        temperature=temperature,
        gumbel=gumbel,
        output_mask=output_mask,
        segment=segment,
        generator=generator,
        noise=noise,
    )
    values, keep = _nan_at_bad_labels(values, keep, target, vocab, ignore_index)
    return reduce_values(values, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer, keep=keep)


class LinearEISLLoss(HeadObjective):
    """EISL of a head that never stores its logits; module form of :func:`linear_eisl_loss`.

    Example:
        >>> LinearEISLLoss(ngrams=(2,))(torch.eye(4)[None], 10 * torch.eye(4), torch.tensor([[1, 2, 3]]))
        tensor(0.0010)
    """

    function = linear_eisl_loss

    def __init__(
        self,
        ngrams: Sequence[int] = (2,),
        *,
        weights: Weights = None,
        temperature: Tensor | float = 1.0,
        gumbel: bool = False,
        log_prob_min: Tensor | float = -20.0,
        ignore_index: int = -100,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        backend: Backend = "auto",
        vocab_parallel: VocabParallel | None = None,
    ) -> None:
        super().__init__(
            weights=weights,
            temperature=temperature,
            gumbel=gumbel,
            log_prob_min=log_prob_min,
            ignore_index=ignore_index,
            softcap=softcap,
            reduction=reduction,
            backend=backend,
            vocab_parallel=vocab_parallel,
        )
        self.ngrams = tuple(ngrams)

    def hyperparameters(self) -> dict[str, Any]:
        """As of any objective; ``ngrams`` are integers and stay Python's."""
        return {"ngrams": self.ngrams, **super().hyperparameters()}

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None = None,
        *,
        output_mask: Tensor | None = None,
        segment: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            input: Hidden states ``(B, To, D)``.
            linear_weight: Weight of the head.
            target: Class indices ``(B, Tt)``.
            linear_bias: Bias of the head.
            output_mask: False at positions of the output that match nothing.
            segment: The packed sequence that each token belongs to.
            generator: Source of the noise.
            noise: The noise itself.
            sample_weight: Weights of rows.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return linear_eisl_loss(
            input,
            linear_weight,
            target,
            linear_bias,
            output_mask=output_mask,
            segment=segment,
            generator=generator,
            noise=noise,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


def eisl_with_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ngram_factor: Tensor | float,
    ce_factor: Tensor | float,
    label_smoothing: Tensor | float = 0.0,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    **eisl: Any,
) -> Tensor:
    r"""EISL and cross-entropy together, as the paper trains.

    Reach for it after training with cross-entropy alone; how much of each is best depends on how noisy the targets are.

    Formula:
        .. math:: L = a\, L_{\mathrm{EISL}} + b\, L_{\mathrm{CE}}

        Cross-entropy is the mean over a row's tokens, as EISL is over its n-grams.

    Args:
        logits: Logits of the output, the vocabulary last.
        target: Class indices, as long as the output.
        ngram_factor: Factor a of EISL.
        ce_factor: Factor b of cross-entropy.
        label_smoothing: Of cross-entropy.
        ignore_index: Label of tokens that count for nothing.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum`` over rows.
        normalizer: Divisor in place of the number of rows.
        **eisl: Further words of :func:`eisl_loss`.

    Shape:
        - logits: ``(B, T, V)``; target: ``(B, T)``; sample_weight: ``(B,)``.

    Returns:
        ``(B,)`` for ``none``, else ``()``; float32 for half-precision logits.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or reduction is wrong.

    Example:
        >>> eisl_with_cross_entropy(10 * torch.eye(4)[None], torch.tensor([[0, 1, 2, 3]]), ngram_factor=1, ce_factor=1)
        tensor(0.0012)

    Source:
        Liu et al. (NAACL 2022, arXiv 2106.15078).
    """
    rows = token_rows(logits, target, ignore_index=ignore_index, label_smoothing=label_smoothing)
    tokens = rows.reduce(rows.expect(-rows.log_p()), reduction="none", normalizer=None)
    ngrams = eisl_loss(logits, target, ignore_index=ignore_index, reduction="none", **eisl)
    return _together(
        ngrams,
        tokens,
        target != ignore_index,
        ngram_factor=ngram_factor,
        ce_factor=ce_factor,
        sample_weight=sample_weight,
        reduction=reduction,
        normalizer=normalizer,
    )


def linear_eisl_with_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    *,
    ngram_factor: Tensor | float,
    ce_factor: Tensor | float,
    label_smoothing: Tensor | float = 0.0,
    ignore_index: int = -100,
    softcap: float | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    backend: Backend = "auto",
    vocab_parallel: VocabParallel | None = None,
    **eisl: Any,
) -> Tensor:
    r"""The loss of :func:`eisl_with_cross_entropy`, of a linear head that never stores its logits.

    Reach for it where the vocabulary is large.

    Formula:
        .. math:: L = a\, L_{\mathrm{EISL}} + b\, L_{\mathrm{CE}}

    Args:
        input: Hidden states of the output.
        linear_weight: Weight of the head.
        target: Class indices, as long as the output.
        linear_bias: Bias of the head.
        ngram_factor: Factor a of EISL.
        ce_factor: Factor b of cross-entropy.
        label_smoothing: Of cross-entropy.
        ignore_index: Label of tokens that count for nothing.
        softcap: Bound k of ``k tanh(z / k)`` on the logits.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum`` over rows.
        normalizer: Divisor in place of the number of rows.
        backend: As in :func:`linear_cross_entropy`.
        vocab_parallel: As in :func:`linear_cross_entropy`.
        **eisl: Further words of :func:`linear_eisl_loss`.

    Shape:
        - input: ``(B, T, D)``; linear_weight: ``(V, D)``; linear_bias: ``(V,)``; target: ``(B, T)``.
        - sample_weight: ``(B,)``.

    Returns:
        ``(B,)`` for ``none``, else ``()``; float32 for half-precision input.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or reduction is wrong.

    Example:
        >>> words = {"ngram_factor": 1, "ce_factor": 1}
        >>> linear_eisl_with_cross_entropy(torch.eye(4)[None], 10 * torch.eye(4), torch.tensor([[0, 1, 2, 3]]), **words)
        tensor(0.0012)

    Source:
        Liu et al. (NAACL 2022, arXiv 2106.15078), on the head of Cut Your Losses (arXiv 2411.09009).
    """
    head: dict[str, Any] = {"softcap": softcap, "backend": backend, "vocab_parallel": vocab_parallel}
    check_in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    rows = head_rows(input, linear_weight, target, linear_bias, ignore_index=ignore_index, **head)
    smoothed = {"log_prob": label_smoothing - 1.0, "mean_log_prob": -label_smoothing}
    eisl = {**eisl, **head, "ignore_index": ignore_index, "reduction": "none"}
    return _together(
        linear_eisl_loss(input, linear_weight, target, linear_bias, **eisl),
        rows.combine(smoothed, reduction="none", normalizer=None),
        target != ignore_index,
        ngram_factor=ngram_factor,
        ce_factor=ce_factor,
        sample_weight=sample_weight,
        reduction=reduction,
        normalizer=normalizer,
    )


def ngram_match_scores(
    logits: Tensor, target: Tensor, n: int, *, log_prob_min: Tensor | float = -20.0, ignore_index: int = -100
) -> Tensor:
    r"""Mean log-probability of each n-gram of the target at each position of the output.

    Reach for it to see where an output says what the target says; :func:`eisl_loss` is made of it.

    Formula:
        .. math:: S_{ij} = \frac1n \sum_{k < n} \max\big(\log p_{i + k}(y_{j + k}), m\big)

    Args:
        logits: Logits of the output, the vocabulary last.
        target: Class indices.
        n: Length of the n-grams, from 1 to the lengths of output and target.
        log_prob_min: The m.
        ignore_index: Label of tokens that count for nothing.

    Shape:
        - logits: ``(B, To, V)``; target: ``(B, Tt)``.

    Returns:
        ``(B, To - n + 1, Tt - n + 1)``; -inf for n-grams that touch an ignored token.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or ``n`` is wrong.

    Example:
        >>> ngram_match_scores(torch.eye(3)[None], torch.tensor([[1, 2]]), 2)
        tensor([[[-1.5514],
                 [-0.5514]]])

    Source:
        Liu et al. (NAACL 2022, arXiv 2106.15078).
    """
    _check(logits, target, logits.shape[-1:], ignore_index, None, name="logits")
    longest = min(logits.shape[1], target.shape[1])
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= longest:
        raise ValueError(f"n is {n!r}; wanted an integer from 1 to {longest}, the length of output and target.")
    labels = _labels(target, logits.shape[-1], ignore_index)
    scores = _diagonals(_clamped(_of_targets(logits, labels, None), log_prob_min), n)
    return torch.where(_windows(target != ignore_index, n).unsqueeze(1), scores, -torch.inf)


def _of_rows(
    log_p: Tensor,
    kept: Tensor,
    *,
    ngrams: Sequence[int],
    weights: Weights,
    temperature: Tensor | float,
    gumbel: bool,
    output_mask: Tensor | None,
    segment: Tensor | None,
    generator: torch.Generator | None,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """From log-probabilities of targets at output positions ``(B, To, Tt)`` to losses of rows, and which count."""
    check_in_range("temperature", temperature, 0.0, low_open=True)
    if weights is not None and len(weights) != len(ngrams):
        raise ValueError(f"weights has {len(weights)} numbers; wanted one for each of ngrams {tuple(ngrams)}.")
    if noise is not None:
        check_floating("noise", noise)
        check_shape("noise", noise, (len(log_p), len(ngrams), *log_p.shape[1:]), "noise for every n, place and n-gram")
    if segment is not None:
        check_shape("segment", segment, log_p.shape[:2], "the packed sequence of each token of output and target")
        check_shape("segment", segment, kept.shape, "the packed sequence of each token of output and target")
    heard = log_p.new_ones(log_p.shape[:2], dtype=torch.bool) if output_mask is None else output_mask
    total, weight = log_p.new_zeros(len(log_p)), log_p.new_zeros(len(log_p))
    for place, n in _sizes(ngrams, *log_p.shape[1:]):
        scores = _diagonals(log_p, n)
        allowed, said = _windows(heard, n).unsqueeze(2).expand_as(scores), _windows(kept, n)
        if segment is not None:
            first, last = segment[:, : segment.shape[1] - n + 1], segment[:, n - 1 :]
            allowed = allowed & (first == last).unsqueeze(2) & (first.unsqueeze(2) == first.unsqueeze(1))
            said = said & (first == last)
        drawn: Tensor | float = 0.0
        if noise is not None:
            drawn = noise[:, place, : scores.shape[1], : scores.shape[2]].to(scores.dtype)
        elif gumbel:
            drawn = -torch.empty_like(scores).exponential_(generator=generator).log()
        said = said & allowed.any(1)
        chance = torch.where(allowed, scores / temperature + drawn, -torch.inf)
        chance = torch.softmax(torch.where(said.unsqueeze(1), chance, 0.0), 1)
        matched = torch.where(said, (chance * torch.where(allowed, scores, 0.0)).sum(1), 0.0)
        count = said.sum(1)
        share = 1.0 if weights is None else torch.as_tensor(weights[place], dtype=log_p.dtype, device=log_p.device)
        total = total - share * matched.sum(1) / count.clamp(min=1)
        weight = weight + (count > 0)
    return (total / weight.clamp(min=1) if weights is None else total), weight > 0


def _sizes(ngrams: Sequence[int], output: int, target: int) -> list[tuple[int, int]]:
    """Place in ``ngrams`` and n of those that fit, each n once."""
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in ngrams) or not len(ngrams):
        raise ValueError(f"ngrams is {ngrams!r}; wanted integers, such as (2, 3).")
    longest = min(output, target)
    found: dict[int, int] = {}
    for place, n in enumerate(ngrams):
        size = n if n > 0 else output + n
        if 0 < size <= longest:
            found.setdefault(size, place)
    if not found and longest:
        found = {longest: 0}
    return [(place, size) for size, place in found.items()]


def _diagonals(log_p: Tensor, n: int) -> Tensor:
    """Means along diagonals of length n: a convolution with the identity, as a sum of n slices."""
    rows, columns = log_p.shape[1] - n + 1, log_p.shape[2] - n + 1
    total = log_p[:, :rows, :columns]
    for step in range(1, n):
        total = total + log_p[:, step : rows + step, step : columns + step]
    return total / n


def _windows(mask: Tensor, n: int) -> Tensor:
    """Whether all of n neighbours are True ``(B, T - n + 1)``."""
    return mask.unfold(1, n, 1).all(-1)


def _clamped(log_p: Tensor, log_prob_min: Tensor | float) -> Tensor:
    check_in_range("log_prob_min", log_prob_min, -float("inf"), 0.0, high_open=True)
    return torch.where(log_p <= log_prob_min, log_prob_min, log_p)


def _of_targets(logits: Tensor, labels: Tensor, output_mask: Tensor | None) -> Tensor:
    """Log-probability of every token of the target at every position of the output ``(B, To, Tt)``."""
    if output_mask is not None:
        logits = torch.where(output_mask.unsqueeze(2), logits, 0.0)
    index = labels.unsqueeze(1).expand(-1, logits.shape[1], -1)
    return F.log_softmax(widen(logits), -1).gather(-1, index)


def _of_targets_of_head(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    labels: Tensor,
    output_mask: Tensor | None,
    head: dict[str, Any],
) -> Tensor:
    """As :func:`_of_targets`, of a linear head.

    All log-probabilities of a position are relative to that of its likeliest target: a difference of a logit and the
    logsumexp, both large, would lose the digits of probabilities near 1.
    """
    if output_mask is not None:
        input = torch.where(output_mask.unsqueeze(2), input, 0.0)
    index = labels.unsqueeze(1).expand(-1, input.shape[1], -1).flatten(0, 1)
    z = head_rows(input, linear_weight, None, linear_bias, **head).logits_at(index)
    shape = (*input.shape[:2], labels.shape[1])
    if not labels.shape[1]:
        return z.reshape(shape)
    best = z.detach().argmax(-1, keepdim=True)
    top = z.gather(-1, best)
    relative = z - torch.where(top == -torch.inf, 0.0, top)
    rows = head_rows(input, linear_weight, index.gather(-1, best).reshape(input.shape[:2]), linear_bias, **head)
    return rows.statistics("log_prob")["log_prob"].unsqueeze(2) + relative.reshape(shape)


def _together(
    ngrams: Tensor,
    tokens: Tensor,
    kept: Tensor,
    *,
    ngram_factor: Tensor | float,
    ce_factor: Tensor | float,
    sample_weight: Tensor | None,
    reduction: Reduction,
    normalizer: Tensor | float | None,
) -> Tensor:
    """Losses of rows by n-grams ``(B,)`` and by tokens ``(B, T)``, weighed and reduced."""
    values = ngram_factor * ngrams + ce_factor * tokens.sum(-1) / kept.sum(-1).clamp(min=1)
    return reduce_values(
        values, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer, keep=kept.any(-1)
    )


def _check(
    output: Tensor,
    target: Tensor,
    width: Sequence[int],
    ignore_index: int,
    output_mask: Tensor | None,
    *,
    name: str,
    vocab: int | None = None,
) -> None:
    check_floating(name, output)
    if output.ndim != 3:
        raise ValueError(f"{name} has shape {tuple(output.shape)}; wanted (B, To, {'V' if vocab is None else 'D'}).")
    if not isinstance(target, Tensor):
        raise TypeError(f"target is {type(target).__name__}; wanted a tensor.")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target has dtype {target.dtype}; wanted int64 class indices.")
    if target.ndim != 2 or len(target) != len(output):
        raise ValueError(f"target has shape {tuple(target.shape)}; wanted ({len(output)}, Tt), a row for each output.")
    check_shape(name, output, (*output.shape[:2], *width), "positions by the width of the head")
    if output_mask is not None:
        check_shape("output_mask", output_mask, output.shape[:2], "whether each position of the output counts")
        if output_mask.dtype != torch.bool:
            raise TypeError(f"output_mask has dtype {output_mask.dtype}; wanted bool.")
    if may_read_values(target):
        check_labels(target, output.shape[-1] if vocab is None else vocab, ignore_index)


def _labels(target: Tensor, vocab: int, ignore_index: int) -> Tensor:
    """Labels to look up: 0 where ignored or out of range."""
    return torch.where((target >= 0) & (target < vocab) & (target != ignore_index), target, 0).long()


def _nan_at_bad_labels(
    values: Tensor, keep: Tensor, target: Tensor, vocab: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Rows with a label out of range that nobody could see are NaN."""
    bad = ((target != ignore_index) & ((target < 0) | (target >= vocab))).any(1)
    return torch.where(bad, torch.nan, values), keep | bad
