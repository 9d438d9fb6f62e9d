"""Direct coverage optimisation: training for the chance that at least one of N samples is right."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lossary.core.checks import check_floating, check_in_range, check_shape, may_read_values
from lossary.core.numerics import log1mexp
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import token_rows, widen
from lossary.core.types import Reduction
from lossary.core.values import reduce_values
from lossary.kernels import HeadObjective, VocabParallel, head_rows
from lossary.language.segments import segment_index, segment_sums

Backend = Literal["auto", "reference", "cpu", "cuda", "triton"]
Normalize = Literal["none", "tokens"]


@objective(Kind.SEQUENCES, example=lambda num_classes: {"N": 8.0})
def dco_loss(
    logits: Tensor,
    target: Tensor,
    *,
    N: Tensor | float,
    ignore_index: int = -100,
    normalize: Normalize = "none",
    segment: Tensor | None = None,
    success_rate: Tensor | None = None,
    threshold: float = 0.1,
    shift: int = 0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Minus the log-probability that at least one of N samples is the target sequence.

    Reach for it in fine-tuning where N answers are drawn at test time and one right one is enough (a verifier, a proof
    checker, unit tests): cross-entropy grows so sure of some answers that more samples find nothing new. Train with
    the N that is drawn later. Not where a single answer counts: N = 1 is cross-entropy.

    Formula:
        .. math:: L = -\log\big(1 - (1 - p)^N\big), \quad p = \prod_i \mathrm{softmax}(z_i)_{y_i}, \qquad
            \nabla L = F \, \nabla(-\log p), \quad F = \frac{N p (1 - p)^{N - 1}}{1 - (1 - p)^N}

        Chain of thought: an answer is reached by many chains, so that its :math:`\hat p` is the share of right ones
        among samples (``success_rate``), and :math:`L = F(N, \hat p) (-\log p)` of the chain that is given. Proof
        search: the sum of L over the steps of a proof (``segment``), N being the effective number of tries a step.

    Args:
        logits: Logits, the vocabulary last.
        target: Class indices.
        N: Number of samples, at least 1; for steps any number from 1 to the tries of the whole search.
        ignore_index: Label of tokens that are not part of the answer, such as prompt and padding.
        normalize: ``tokens`` divides the loss of each sequence by its number of tokens, as the paper's code does.
        segment: Number in [0, T) of the proof step, or packed sequence, that each token belongs to; a row's loss is the
            sum over its segments. With packed sequences give their number as ``normalizer``.
        success_rate: Share of right answers among samples of the model (64 in the paper's code), by row.
        threshold: Rows with a success rate above it are left out; they do not count in ``mean``.
        shift: Token i predicts target i + shift.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum`` over rows.
        normalizer: Divisor in place of the number of rows.

    Shape:
        - logits: ``(B, T, V)``; target, segment: ``(B, T)``; success_rate, sample_weight: ``(B,)``.
        - N, normalizer: a number or ``()``.

    Returns:
        ``(B,)`` for ``none``, else ``()``; float32 for half-precision logits. Rows without any token count for nothing;
        empty or all-ignored ``mean`` is NaN, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``N``, ``normalize``, ``segment``, ``success_rate`` or reduction is wrong.

    Example:
        >>> dco_loss(torch.zeros(1, 2, 2), torch.tensor([[0, 1]]), N=4)  # p = 1/4
        tensor(0.3804)

    Source:
        Chen, Raventos, Cheng, Ganguli, Druckmann: Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting
        Confidence Improves Mathematical Reasoning (NeurIPS 2025, arXiv 2502.07154). The paper's code reports F times
        cross-entropy as its value; the gradient is the same.
    """
    if logits.ndim < 2:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; wanted (B, T, V).")
    if shift:
        check_shape("target", target, logits.shape[:-1], "a class index for each token of logits")
        logits, target = logits[..., :-shift, :], target[..., shift:]
    rows = token_rows(logits, target, ignore_index=ignore_index)
    logps = rows.reduce(rows.expect(rows.log_p()), reduction="none", normalizer=None)
    values, keep = _of_rows(
        logps,
        target != ignore_index,
        N=N,
        normalize=normalize,
        segment=segment,
        shift=shift,
        success_rate=success_rate,
        threshold=threshold,
    )
    return reduce_values(values, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer, keep=keep)


class DCOLoss(Objective):
    """Minus the log of the chance of one right answer in N; module form of :func:`dco_loss`.

    Example:
        >>> DCOLoss(N=4)(torch.zeros(1, 2, 2), torch.tensor([[0, 1]]))
        tensor(0.3804)
    """

    function = dco_loss

    def __init__(
        self,
        N: Tensor | float,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        *,
        normalize: Normalize = "none",
        threshold: float = 0.1,
        shift: int = 0,
    ) -> None:
        super().__init__(
            N=N, ignore_index=ignore_index, normalize=normalize, threshold=threshold, shift=shift, reduction=reduction
        )

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        segment: Tensor | None = None,
        success_rate: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            logits: Logits ``(B, T, V)``.
            target: Class indices ``(B, T)``.
            segment: Step or packed sequence of each token ``(B, T)``.
            success_rate: Share of right answers among samples ``(B,)``.
            sample_weight: Weights of rows.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return dco_loss(
            logits,
            target,
            segment=segment,
            success_rate=success_rate,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


@objective(Kind.HEAD_SEQUENCES, example=lambda num_classes: {"N": 8.0})
def linear_dco_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    *,
    N: Tensor | float,
    ignore_index: int = -100,
    normalize: Normalize = "none",
    segment: Tensor | None = None,
    success_rate: Tensor | None = None,
    threshold: float = 0.1,
    softcap: float | None = None,
    shift: int = 0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    backend: Backend = "auto",
    vocab_parallel: VocabParallel | None = None,
) -> Tensor:
    r"""The loss of :func:`dco_loss`, of a linear head that never stores its logits.

    Reach for it where the vocabulary is large; :func:`dco_loss` is the form on logits and says more.

    Formula:
        .. math:: L = -\log\big(1 - (1 - p)^N\big), \quad p = \prod_i \mathrm{softmax}(W x_i + b)_{y_i}

    Args:
        input: Hidden states.
        linear_weight: Weight of the head.
        target: Class indices.
        linear_bias: Bias of the head.
        N: Number of samples, at least 1.
        ignore_index: Label of tokens that are not part of the answer.
        normalize: ``tokens`` divides the loss of each sequence by its number of tokens.
        segment: Number in [0, T) of the proof step, or packed sequence, that each token belongs to.
        success_rate: Share of right answers among samples of the model, by row; the form for chains of thought.
        threshold: Rows with a success rate above it are left out.
        softcap: Bound k of ``k tanh(z / k)`` on the logits.
        shift: Token i predicts target i + shift.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum`` over rows.
        normalizer: Divisor in place of the number of rows.
        backend: As in :func:`linear_cross_entropy`.
        vocab_parallel: As in :func:`linear_cross_entropy`.

    Shape:
        - input: ``(B, T, D)``; linear_weight: ``(V, D)``; linear_bias: ``(V,)``; target, segment: ``(B, T)``.
        - success_rate, sample_weight: ``(B,)``; N, normalizer: a number or ``()``.

    Returns:
        ``(B,)`` for ``none``, else ``()``; float32 for half-precision input. Rows without any token count for nothing;
        empty or all-ignored ``mean`` is NaN, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``N``, ``normalize``, ``segment``, ``success_rate`` or reduction is wrong.

    Example:
        >>> linear_dco_loss(torch.zeros(1, 2, 3), torch.zeros(2, 3), torch.tensor([[0, 1]]), N=4)
        tensor(0.3804)

    Source:
        Chen et al. (NeurIPS 2025, arXiv 2502.07154), on the head of Cut Your Losses (arXiv 2411.09009).
    """
    rows = head_rows(
        input,
        linear_weight,
        target,
        linear_bias,
        ignore_index=ignore_index,
        softcap=softcap,
        shift=shift,
        backend=backend,
        vocab_parallel=vocab_parallel,
    )
    values, keep = _of_rows(
        rows.statistics("log_prob")["log_prob"],
        rows.kept(),
        N=N,
        normalize=normalize,
        segment=segment,
        shift=shift,
        success_rate=success_rate,
        threshold=threshold,
    )
    return reduce_values(values, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer, keep=keep)


class LinearDCOLoss(HeadObjective):
    """DCO of a head that never stores its logits; module form of :func:`linear_dco_loss`.

    Example:
        >>> LinearDCOLoss(N=4)(torch.zeros(1, 2, 3), torch.zeros(2, 3), torch.tensor([[0, 1]]))
        tensor(0.3804)
    """

    function = linear_dco_loss

    def __init__(
        self,
        N: Tensor | float,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        *,
        normalize: Normalize = "none",
        threshold: float = 0.1,
        softcap: float | None = None,
        shift: int = 0,
        backend: Backend = "auto",
        vocab_parallel: VocabParallel | None = None,
    ) -> None:
        super().__init__(
            N=N,
            ignore_index=ignore_index,
            normalize=normalize,
            threshold=threshold,
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
        linear_bias: Tensor | None = None,
        *,
        segment: Tensor | None = None,
        success_rate: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            input: Hidden states ``(B, T, D)``.
            linear_weight: Weight of the head.
            target: Class indices ``(B, T)``.
            linear_bias: Bias of the head.
            segment: Step or packed sequence of each token ``(B, T)``.
            success_rate: Share of right answers among samples ``(B,)``.
            sample_weight: Weights of rows.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return linear_dco_loss(
            input,
            linear_weight,
            target,
            linear_bias,
            segment=segment,
            success_rate=success_rate,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


def dco_loss_from_logps(
    logps: Tensor,
    *,
    N: Tensor | float,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""The loss of :func:`dco_loss`, given the log-probability of each sequence, class or proof step.

    Reach for it where these are at hand (``sequence_logps``, the log-softmax of a classifier, a search that knows its
    steps).

    Formula:
        .. math:: L = -\log\big(1 - (1 - p)^N\big)

    Args:
        logps: Log-probabilities.
        N: Number of samples, at least 1.
        sample_weight: Weights of entries.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of entries.

    Shape:
        - logps, sample_weight: any shape; N, normalizer: a number or ``()``.

    Returns:
        The shape of ``logps`` for ``none``, else ``()``; float32 for half precision.

    Raises:
        TypeError: ``logps`` is not floating point.
        ValueError: A shape, ``N`` or reduction is wrong.

    Example:
        >>> dco_loss_from_logps(torch.tensor([0.25, 0.5]).log(), N=4, reduction="none")
        tensor([0.3804, 0.0645])

    Source:
        Chen et al. (NeurIPS 2025, arXiv 2502.07154).
    """
    check_floating("logps", logps)
    check_in_range("N", N, 1.0)
    return reduce_values(
        _log_coverage(widen(logps), N), sample_weight=sample_weight, reduction=reduction, normalizer=normalizer
    )


def dco_factor(logps: Tensor, *, N: Tensor | float, detach: bool = True) -> Tensor:
    r"""What :func:`dco_loss` multiplies the gradient of cross-entropy with: 1 far below p = 1 / N, 0 far above.

    Reach for it to see which examples still teach, or to weigh them in a loss of your own.

    Formula:
        .. math:: F(N, p) = \frac{N p (1 - p)^{N - 1}}{1 - (1 - p)^N}

    Args:
        logps: Log-probabilities log p.
        N: Number of samples, at least 1.
        detach: Whether the factor is a constant to the gradient.

    Shape:
        - logps: any shape; N: a number or ``()``.

    Returns:
        The shape of ``logps``, in [0, 1]; float32 for half precision.

    Raises:
        TypeError: ``logps`` is not floating point.
        ValueError: ``N`` is below 1.

    Example:
        >>> dco_factor(torch.tensor([0.001, 0.25, 0.9]).log(), N=4)
        tensor([0.9985, 0.6171, 0.0036])

    Source:
        Chen et al. (NeurIPS 2025, arXiv 2502.07154). The paper's code takes a series of second order below N p = 0.1;
        here no digit cancels.
    """
    check_floating("logps", logps)
    check_in_range("N", N, 1.0)
    log_p = widen(logps.detach() if detach else logps)
    N, rare, sure, common = _branches(log_p, N)
    factor = torch.exp((N - 1) * log1mexp(common) + _log_coverage(common, N) + common + N.log())
    factor = torch.where(rare, torch.exp(-(N - 1) / 2 * log_p.exp()), factor)
    return torch.where(sure, (N == 1).to(log_p.dtype), factor)


def pass_at_n(p: Tensor | float, N: Tensor | float) -> Tensor:
    r"""Chance that at least one of N independent samples is right: pass@N of an example whose p is known.

    Reach for it where p is known, as for classes or short answers; :func:`pass_at_n_unbiased` estimates it from draws.

    Formula:
        .. math:: 1 - (1 - p)^N

    Args:
        p: Probability of a right sample, in [0, 1].
        N: Number of samples.

    Shape:
        - p: any shape; N: a number, or a shape that broadcasts with p.

    Returns:
        The broadcast shape, floating point.

    Raises:
        ValueError: ``p`` lies outside [0, 1], or ``N`` is negative.

    Example:
        >>> pass_at_n(torch.tensor([0.01, 0.5]), 64)
        tensor([0.4744, 1.0000])

    Source:
        Chen et al. (NeurIPS 2025, arXiv 2502.07154).
    """
    check_in_range("p", p, 0.0, 1.0)
    check_in_range("N", N, 0.0)
    p = torch.as_tensor(p)
    p = widen(p if p.is_floating_point() else p.to(torch.get_default_dtype()))
    low = p < 0.5  # there 1 - p would lose digits; above, the logarithm's slope at 1 has no end
    by_log = -torch.expm1(N * torch.log1p(-torch.where(low, p, 0.25)))
    return torch.where(low, by_log, 1 - (1 - torch.where(low, 0.75, p)) ** N)


def pass_at_n_unbiased(correct: Tensor | int, draws: Tensor | int, N: int) -> Tensor:
    r"""Unbiased estimate of pass@N from n draws of which c are right.

    Reach for it to score a model that was sampled n >= N times: plugging c / n into :func:`pass_at_n` is biased.

    Formula:
        .. math:: 1 - \binom{n - c}{N} \Big/ \binom{n}{N} = 1 - \prod_{i < N} \frac{n - c - i}{n - i}

        as a sum of logarithms, which no number of draws overflows.

    Args:
        correct: Number c of right draws, from 0 to n.
        draws: Number n of draws, at least N.
        N: Number of samples that are asked about, at least 1.

    Shape:
        - correct, draws: numbers, or shapes that broadcast.

    Returns:
        The broadcast shape, float64; 1 where fewer than N draws are wrong.

    Raises:
        ValueError: ``N`` is below 1 or above ``draws``, or ``correct`` lies outside [0, ``draws``].

    Example:
        >>> pass_at_n_unbiased(torch.tensor([0, 1, 5]), 10, N=5)
        tensor([0.0000, 0.5000, 0.9960], dtype=torch.float64)

    Source:
        Chen et al. (NeurIPS 2025, arXiv 2502.07154); the estimator is of Chen, Tworek et al.: Evaluating Large Language
        Models Trained on Code (arXiv 2107.03374), equation 1.
    """
    if isinstance(N, bool) or not isinstance(N, int) or N < 1:
        raise ValueError(f"N is {N!r}; wanted an integer of at least 1.")
    correct, draws = torch.as_tensor(correct), torch.as_tensor(draws)
    if may_read_values(correct, draws):
        if (draws < N).any():
            raise ValueError(f"draws contains {int(draws.min())}; wanted at least N = {N}.")
        if ((correct < 0) | (correct > draws)).any():
            raise ValueError("correct contains a number outside [0, draws]; wanted how many of the draws are right.")
    correct, draws = correct.double().unsqueeze(-1), draws.double().unsqueeze(-1)
    left = draws - torch.arange(N, dtype=torch.float64, device=correct.device)
    return torch.expm1(torch.log1p(-(correct / left).clamp(max=1.0)).sum(-1)).abs()


def _of_rows(
    logps: Tensor,
    keep: Tensor,
    *,
    N: Tensor | float,
    normalize: Normalize,
    segment: Tensor | None,
    shift: int,
    success_rate: Tensor | None,
    threshold: float,
) -> tuple[Tensor, Tensor]:
    """From log-probabilities of tokens (0 where ignored) to the losses of rows, and which rows count."""
    check_in_range("N", N, 1.0)
    if normalize not in get_args(Normalize):
        raise ValueError(f"normalize is {normalize!r}; wanted 'none' or 'tokens'.")
    index = segment_index(segment, keep, shift)
    log_p, count = segment_sums(logps, index, shift), segment_sums(keep.to(logps.dtype), index, shift)
    counted = keep.any(-1)
    if success_rate is None:
        loss = _log_coverage(log_p, N)
    else:
        rate = _success_rate(success_rate, logps)
        counted = counted & ~(rate > threshold)
        loss = -dco_factor(rate.log(), N=N).unsqueeze(-1) * log_p
    if normalize == "tokens":
        loss = loss / count.clamp(min=1)
    return loss.sum(-1), counted


def _log_coverage(log_p: Tensor, N: Tensor | float) -> Tensor:
    """Minus the log of 1 - (1 - p)^N."""
    N, rare, sure, common = _branches(log_p, N)
    loss = torch.where(rare, -log_p - N.log() + (N - 1) / 2 * log_p.exp(), -log1mexp(N * log1mexp(common)))
    return torch.where(sure, torch.where(N == 1, -log_p, 0.0), loss)


def _branches(log_p: Tensor, N: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """N as a tensor; where N p is so small that two terms of its series are exact; where p is 1; log p elsewhere."""
    N = torch.as_tensor(N, dtype=log_p.dtype, device=log_p.device)
    rare, sure = log_p + N.log() < -20, log_p == 0
    return N, rare, sure, torch.where(rare | sure, -1.0, log_p)


def _success_rate(success_rate: Tensor, logps: Tensor) -> Tensor:
    check_floating("success_rate", success_rate)
    check_shape("success_rate", success_rate, logps.shape[:-1], "a share of right samples for each row")
    if may_read_values(success_rate) and ((success_rate < 0) | (success_rate > 1)).any():
        raise ValueError("success_rate contains a value outside [0, 1]; wanted shares of right samples.")
    return success_rate.detach().to(logps.dtype)
