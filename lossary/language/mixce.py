"""MixCE: forward cross-entropy, which asks for recall, mixed with reverse cross-entropy, which asks for precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lossary.core.checks import check_floating, check_in_range, check_shape
from lossary.core.numerics import product
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import token_rows, widen
from lossary.core.types import Reduction
from lossary.core.values import like_first, reduce_values
from lossary.kernels import HeadObjective, VocabParallel, head_rows
from lossary.language.segments import segment_index, segment_sums

Backend = Literal["auto", "reference", "cpu", "cuda", "triton"]
Weighting = Literal["token", "sequence"]

_CONSTANT = {"gradcheck": "the probability that weighs is a constant to the gradient; tested in closed form."}


@objective(Kind.TOKENS, exempt=_CONSTANT)
def mixce_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mixing_ratio: Tensor | float = 0.5,
    weighting: Weighting = "token",
    segment: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    shift: int = 0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy that believes in tokens the more, the more the model already does.

    Reach for it to fine-tune a language model whose plain samples should read well: maximum likelihood punishes a text
    that is missed, hardly one that nobody would write. Start from a model trained with cross-entropy; the smaller
    ``mixing_ratio``, the less rare tokens are learnt (the paper takes 0.1 to 0.7 on text), and from scratch 0 learns
    nothing.

    Formula:
        .. math:: L = -\big(\eta + (1 - \eta)\, q\big) \log p_t, \quad q = p_t \text{ (a constant to the gradient)}

        With ``weighting="sequence"`` q is the product of :math:`p_t` over the sequence, as the derivation has it.

    Args:
        logits: Logits, the vocabulary last.
        target: Class indices.
        mixing_ratio: Share :math:`\eta` of the forward cross-entropy, in [0, 1]; 1 is cross-entropy.
        weighting: Whether q is of the ``token`` or of its whole ``sequence``, the last axis of ``target``.
        segment: Number in [0, T) of the packed sequence that each token belongs to, where several share a row; q of a
            ``sequence`` is then its own.
        weight: Weights of the entries of the vocabulary, as PyTorch's class weights.
        ignore_index: Label of tokens that count for nothing.
        shift: Token i predicts target i + shift.
        sample_weight: Weights of tokens.
        reduction: ``none``, ``mean`` or ``sum`` over tokens.
        normalizer: Divisor in place of the one of ``mean``; the number of sequences for the paper's synthetic form.

    Shape:
        - logits: ``(..., V)``; target, segment, sample_weight: ``(...)``; weight: ``(V,)``.
        - mixing_ratio, normalizer: a number or ``()``.

    Returns:
        ``(...)`` for ``none``, else ``()``; float32 for half-precision logits. Empty or all-ignored ``mean`` is NaN as
        in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``mixing_ratio``, ``weighting`` or reduction is wrong.

    Example:
        >>> mixce_loss(torch.zeros(1, 2), torch.tensor([1]))
        tensor(0.5199)

    Source:
        Zhang, Wu, Irsoy, Lu, Bansal, Dredze, Rosenberg: MixCE: Training Autoregressive Language Models by Mixing
        Forward and Reverse Cross-Entropies (ACL 2023, arXiv 2305.16958).
    """
    if shift:
        check_shape("target", target, logits.shape[:-1], "a class index for each token of logits")
        logits, target = logits[..., :-shift, :], target[..., shift:]
        sample_weight = None if sample_weight is None else sample_weight[..., shift:]
    rows = token_rows(logits, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight)
    loss = _mixed(rows.log_p().squeeze(-1), target != ignore_index, mixing_ratio, weighting, segment, shift)
    return rows.reduce(rows.expect(loss.unsqueeze(-1)), reduction=reduction, normalizer=normalizer)


class MixCELoss(Objective):
    """Mixed forward and reverse cross-entropy; module form of :func:`mixce_loss`.

    Example:
        >>> MixCELoss(mixing_ratio=0.5)(torch.zeros(1, 2), torch.tensor([1]))
        tensor(0.5199)
    """

    function = mixce_loss

    def __init__(
        self,
        mixing_ratio: Tensor | float = 0.5,
        *,
        weighting: Weighting = "token",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        shift: int = 0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            mixing_ratio=mixing_ratio,
            weighting=weighting,
            weight=weight,
            ignore_index=ignore_index,
            shift=shift,
            reduction=reduction,
        )

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        segment: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            logits: Logits ``(..., V)``.
            target: Class indices ``(...)``.
            segment: The packed sequence that each token belongs to.
            sample_weight: Weights of tokens.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return mixce_loss(
            logits,
            target,
            segment=segment,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


@objective(Kind.HEAD, exempt=_CONSTANT)
def linear_mixce_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    *,
    mixing_ratio: Tensor | float = 0.5,
    weighting: Weighting = "token",
    segment: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    shift: int = 0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    backend: Backend = "auto",
    vocab_parallel: VocabParallel | None = None,
) -> Tensor:
    r"""The loss of :func:`mixce_loss`, of a linear head that never stores its logits.

    Reach for it where the vocabulary is large; :func:`mixce_loss` is the form on logits and says more.

    Formula:
        .. math:: L = -\big(\eta + (1 - \eta)\, q\big) \log p_t, \quad q = p_t \text{ (a constant to the gradient)}

    Args:
        input: Hidden states.
        linear_weight: Weight of the head.
        target: Class indices.
        linear_bias: Bias of the head.
        mixing_ratio: Share :math:`\eta` of the forward cross-entropy, in [0, 1].
        weighting: Whether q is of the ``token`` or of its whole ``sequence``.
        segment: Number in [0, T) of the packed sequence that each token belongs to.
        weight: Weights of the entries of the vocabulary.
        ignore_index: Label of tokens that count for nothing.
        softcap: Bound k of ``k tanh(z / k)`` on the logits.
        shift: Token i predicts target i + shift.
        sample_weight: Weights of tokens.
        reduction: ``none``, ``mean`` or ``sum`` over tokens.
        normalizer: Divisor in place of the one of ``mean``.
        backend: As in :func:`linear_cross_entropy`.
        vocab_parallel: As in :func:`linear_cross_entropy`.

    Shape:
        - input: ``(..., D)``; linear_weight: ``(V, D)``; target, segment, sample_weight: ``(...)``.
        - linear_bias, weight: ``(V,)``; mixing_ratio, normalizer: a number or ``()``.

    Returns:
        ``(...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN as
        in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``mixing_ratio``, ``weighting`` or reduction is wrong.

    Example:
        >>> linear_mixce_loss(torch.zeros(1, 2), torch.eye(2), torch.tensor([1]))
        tensor(0.5199)

    Source:
        Zhang et al. (ACL 2023, arXiv 2305.16958), on the head of Cut Your Losses (arXiv 2411.09009).
    """
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
    loss = _mixed(rows.statistics("log_prob")["log_prob"], rows.kept(), mixing_ratio, weighting, segment, shift)
    return rows.reduce(rows.target_weight() * loss, reduction=reduction, normalizer=normalizer)


class LinearMixCELoss(HeadObjective):
    """MixCE of a head that never stores its logits; module form of :func:`linear_mixce_loss`.

    Example:
        >>> LinearMixCELoss(mixing_ratio=0.5)(torch.zeros(1, 2), torch.eye(2), torch.tensor([1]))
        tensor(0.5199)
    """

    function = linear_mixce_loss

    def __init__(
        self,
        mixing_ratio: Tensor | float = 0.5,
        *,
        weighting: Weighting = "token",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        softcap: float | None = None,
        shift: int = 0,
        reduction: Reduction = "mean",
        backend: Backend = "auto",
        vocab_parallel: VocabParallel | None = None,
    ) -> None:
        super().__init__(
            mixing_ratio=mixing_ratio,
            weighting=weighting,
            weight=weight,
            ignore_index=ignore_index,
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
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            input: Hidden states ``(..., D)``.
            linear_weight: Weight of the head.
            target: Class indices ``(...)``.
            linear_bias: Bias of the head.
            segment: The packed sequence that each token belongs to.
            sample_weight: Weights of tokens.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return linear_mixce_loss(
            input,
            linear_weight,
            target,
            linear_bias,
            segment=segment,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


@objective(
    Kind.PAIRS,
    example=lambda num_classes: {"mixing_ratio": 0.5},
    arguments=lambda input, target: {"forward_nll": input, "reverse_nll": target},
)
def mixce_star_loss(
    forward_nll: Tensor,
    reverse_nll: Tensor,
    *,
    mixing_ratio: Tensor | float,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""MixCE with the true law of the data: what :func:`mixce_loss` stands in for.

    Reach for it where the law can be evaluated, as in a simulation: roll the model out with :func:`gumbel_rollout` and
    take the law's log-probability of what it says (:class:`BigramSource` gives one).

    Formula:
        .. math:: L = \eta\, (-\log Q(x)) + (1 - \eta)\, (-\log P(\tilde x)), \quad x \sim P, \tilde x \sim Q

    Args:
        forward_nll: Minus the model's log-probability of data.
        reverse_nll: Minus the law's log-probability of the model's samples.
        mixing_ratio: Share :math:`\eta` of the forward cross-entropy, in [0, 1].
        sample_weight: Weights of entries or rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of entries.

    Shape:
        - forward_nll, reverse_nll: the same, any shape; floating point.
        - sample_weight: as forward_nll, or ``(N,)``; mixing_ratio, normalizer: a number or ``()``.

    Returns:
        The shape of ``forward_nll`` for ``none``, else ``()``; float32 for half precision. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, ``mixing_ratio`` or reduction is wrong.

    Example:
        >>> mixce_star_loss(torch.tensor([2.0, 4.0]), torch.tensor([6.0, 8.0]), mixing_ratio=0.75)
        tensor(4.)

    Source:
        Zhang et al. (ACL 2023, arXiv 2305.16958), the form MixCE* of the synthetic experiments.
    """
    check_in_range("mixing_ratio", mixing_ratio, 0.0, 1.0)
    forward_nll, reverse_nll = like_first("a sample for each text", forward_nll=forward_nll, reverse_nll=reverse_nll)
    eta = torch.as_tensor(mixing_ratio, dtype=forward_nll.dtype, device=forward_nll.device).expand_as(forward_nll)
    loss = product(eta, forward_nll) + product(1 - eta, reverse_nll)
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class MixCEStarLoss(Objective):
    """MixCE with the true law of the data; module form of :func:`mixce_star_loss`.

    Example:
        >>> MixCEStarLoss(mixing_ratio=0.75)(torch.tensor([2.0, 4.0]), torch.tensor([6.0, 8.0]))
        tensor(4.)
    """

    function = mixce_star_loss

    def __init__(self, mixing_ratio: Tensor | float, *, reduction: Reduction = "mean") -> None:
        super().__init__(mixing_ratio=mixing_ratio, reduction=reduction)

    def forward(
        self,
        forward_nll: Tensor,
        reverse_nll: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            forward_nll: Minus the model's log-probability of data.
            reverse_nll: Minus the law's log-probability of the model's samples.
            sample_weight: Weights of entries or rows.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return mixce_star_loss(
            forward_nll, reverse_nll, sample_weight=sample_weight, normalizer=normalizer, **self.hyperparameters()
        )


def gumbel_rollout(
    step_fn: Callable[[Any], Tensor],
    first: Any,
    max_length: int,
    *,
    tau: float = 1.0,
    hard: bool = True,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""Tokens that a model samples step by step, with a gradient to the model by straight-through Gumbel-softmax.

    Reach for it where a score of the model's own samples is differentiable in one-hot tokens, as the law of
    :class:`BigramSource` is. The gradient is biased; :func:`reinforce_loss` has an unbiased one, of higher variance.

    Formula:
        .. math:: y = \mathrm{softmax}\big((z + g) / \tau\big), \quad g \sim \mathrm{Gumbel}(0, 1)

        With ``hard`` the value is the one-hot of the largest entry and the gradient that of y.

    Args:
        step_fn: From the token before to the logits of the next; what it knows of earlier ones it remembers itself.
        first: What ``step_fn`` is given at the first step, such as one-hots of the token that begins a text; later it
            is given one-hots.
        max_length: Number of steps.
        tau: Temperature of the softmax, above 0.
        hard: Whether tokens are one-hots, or the softmax as it is.
        generator: Source of the noise.
        noise: The Gumbel noise itself, in place of a draw.

    Shape:
        - logits of ``step_fn``: ``(..., V)``; noise: ``(..., max_length, V)``.

    Returns:
        ``(..., max_length, V)``; what follows an end of text in it means nothing, and ``BigramSource.log_prob`` leaves
        it out.

    Raises:
        ValueError: ``max_length``, ``tau`` or the shape of ``noise`` is wrong.

    Example:
        >>> step = lambda before: before.roll(1, -1) * 50  # the next entry of the vocabulary, for sure
        >>> gumbel_rollout(step, torch.eye(3)[:1], 3).argmax(-1)
        tensor([[1, 2, 0]])

    Source:
        Zhang et al. (ACL 2023, arXiv 2305.16958), MixCE*; Jang, Gu, Poole: Categorical Reparameterization with
        Gumbel-Softmax (ICLR 2017, arXiv 1611.01144).
    """
    check_in_range("tau", tau, 0.0, low_open=True)
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1:
        raise ValueError(f"max_length is {max_length!r}; wanted an integer of at least 1.")
    tokens: list[Tensor] = []
    for step in range(max_length):
        logits = widen(step_fn(tokens[-1] if tokens else first))
        if noise is None:
            gumbel = -torch.empty_like(logits).exponential_(generator=generator).log()
        else:
            check_floating("noise", noise)
            check_shape("noise", noise, (*logits.shape[:-1], max_length, logits.shape[-1]), "Gumbel noise of each step")
            gumbel = noise[..., step, :].to(logits.dtype)
        soft = torch.softmax((logits + gumbel) / tau, -1)
        if hard:
            one_hot = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
            soft = one_hot + (soft - soft.detach())
        tokens.append(soft)
    return torch.stack(tokens, -2)


def _mixed(
    log_p: Tensor,
    keep: Tensor,
    mixing_ratio: Tensor | float,
    weighting: Weighting,
    segment: Tensor | None,
    shift: int,
) -> Tensor:
    """The loss of each token ``(..., T)``."""
    check_in_range("mixing_ratio", mixing_ratio, 0.0, 1.0)
    if weighting not in get_args(Weighting):
        raise ValueError(f"weighting is {weighting!r}; wanted 'token' or 'sequence'.")
    log_q = log_p.detach()
    if weighting == "sequence":
        index = segment_index(segment, keep, shift)
        log_q = segment_sums(torch.where(keep, log_q, 0.0), index, shift).gather(-1, index)
    return product(mixing_ratio + (1 - mixing_ratio) * log_q.exp(), -log_p)
