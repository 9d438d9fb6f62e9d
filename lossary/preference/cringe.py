"""Cringe losses: bad tokens are pushed below a token that the model itself likes, pairs by their margin."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core import checks
from lossary.core.checks import check_in_range
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import ClassRows, token_rows
from lossary.core.types import Reduction
from lossary.core.values import reduce_values
from lossary.kernels import HeadObjective, HeadRows, VocabParallel, head_rows

Backend = Literal["auto", "reference", "cpu", "cuda", "triton"]


def _with_signs(input: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {"input": input, "target": target, "is_positive": target % 2 == 0}


@objective(Kind.TOKENS, example=lambda num_classes: {"k": 1}, arguments=_with_signs)
def cringe_loss(
    logits: Tensor,
    target: Tensor,
    is_positive: Tensor,
    *,
    alpha: Tensor | float = 1.0,
    k: int = 5,
    ignore_index: int = -100,
    generator: torch.Generator | None = None,
    detach_positive: bool = False,
    reduction: Reduction = "mean",
    noise: Tensor | None = None,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy on good sequences; on bad ones each token is pushed below one that the model likes.

    Reach for it where responses are marked good or bad one by one; with pairs :func:`pairwise_cringe_loss` stops
    pushing once they are ranked well. No reference model is needed. It goes on pushing bad tokens for as long as it
    runs: watch the perplexity.

    Formula:
        .. math:: L_i = -\log p(y_i) \text{ on good sequences}, \quad
            L_i = \alpha \log\big(1 + e^{z_{y_i} - z_{j_i}}\big) \text{ on bad ones}

        with j drawn from the k tokens of the largest logits without y, by the softmax over these k.

    Args:
        logits: Logits, the vocabulary last.
        target: Class indices.
        is_positive: Which sequences are good; or which tokens.
        alpha: Weight of the tokens of bad sequences, at least 0.
        k: Number of candidates; 1 is the best other token, without any draw.
        ignore_index: Label of tokens that count for nothing, such as prompt and padding.
        generator: Source of the draws.
        detach_positive: Whether the drawn token's logit is a constant to the gradient.
        reduction: ``none``, ``mean`` over the tokens of both kinds, or ``sum``.
        noise: The draws themselves: uniform numbers in [0, 1), for the inverse of the candidates' distribution.
        weight: Class weights as in PyTorch, of the target token.
        sample_weight: Weights of tokens.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - logits: ``(..., T, V)``; target, noise, sample_weight: ``(..., T)``.
        - is_positive: bool, ``(...)`` for sequences, ``(..., T)`` for tokens; weight: ``(V,)``; normalizer: a number or
          ``()``.

    Returns:
        ``(..., T)`` for ``none``, else ``()``; float32 for half-precision logits. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given. A bad token without any other of finite logit has 0.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``alpha``, ``k`` or reduction is wrong.

    Example:
        >>> logits = torch.tensor([[[2.0, 1.0, 0.0]], [[2.0, 1.0, 0.0]]])
        >>> cringe_loss(logits, torch.tensor([[0], [0]]), torch.tensor([True, False]), k=1, reduction="none")
        tensor([[0.4076],
                [1.3133]])

    Source:
        Adolphs, Gao, Xu, Shuster, Sukhbaatar, Weston: The CRINGE Loss (ACL 2023, arXiv 2211.05826), as used by Xu, Lee,
        Sukhbaatar, Weston: Some things are more CRINGE than others (arXiv 2312.16682).
    """
    check_in_range("alpha", alpha, 0.0)
    rows = token_rows(logits, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight)
    cross_entropy = -rows.expect(rows.log_p())
    contrast = rows.label_weight() * _contrast(rows, k, generator, noise, detach_positive)
    loss = torch.where(_of_tokens(is_positive, target), cross_entropy, alpha * contrast)
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class CringeLoss(Objective):
    """Cross-entropy on good sequences, a contrast on bad ones; module form of :func:`cringe_loss`.

    Example:
        >>> logits = torch.tensor([[[2.0, 1.0, 0.0]], [[2.0, 1.0, 0.0]]])
        >>> CringeLoss(k=1)(logits, torch.tensor([[0], [0]]), torch.tensor([True, False]))
        tensor(0.8604)
    """

    function = cringe_loss

    def __init__(
        self,
        alpha: Tensor | float = 1.0,
        k: int = 5,
        *,
        ignore_index: int = -100,
        detach_positive: bool = False,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            alpha=alpha,
            k=k,
            ignore_index=ignore_index,
            detach_positive=detach_positive,
            weight=weight,
            reduction=reduction,
        )

    def forward(  # type: ignore[override]
        self,
        logits: Tensor,
        target: Tensor,
        is_positive: Tensor,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The objective on ``logits`` and ``target``; see the function for shapes.

        Args:
            logits: Logits, the vocabulary last.
            target: Class indices.
            is_positive: Which sequences, or tokens, are good.
            generator: Source of the draws.
            noise: The draws themselves.
            sample_weight: Weights of tokens.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return cringe_loss(
            logits,
            target,
            is_positive,
            generator=generator,
            noise=noise,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


@objective(Kind.HEAD, example=lambda num_classes: {"k": 1}, arguments=_with_signs)
def linear_cringe_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    is_positive: Tensor,
    linear_bias: Tensor | None = None,
    *,
    alpha: Tensor | float = 1.0,
    k: int = 5,
    ignore_index: int = -100,
    generator: torch.Generator | None = None,
    detach_positive: bool = False,
    reduction: Reduction = "mean",
    noise: Tensor | None = None,
    weight: Tensor | None = None,
    softcap: float | None = None,
    shift: int = 0,
    sample_weight: Tensor | None = None,
    normalizer: Tensor | float | None = None,
    backend: Backend = "auto",
    vocab_parallel: VocabParallel | None = None,
) -> Tensor:
    r"""Cringe loss of a linear head that never stores its logits.

    Reach for it where the vocabulary is large; :func:`cringe_loss` is the form on logits, with the same numbers.

    Formula:
        .. math:: L_i = -\log p(y_i) \text{ on good sequences}, \quad
            L_i = \alpha \log\big(1 + e^{z_{y_i} - z_{j_i}}\big) \text{ on bad ones}

        as in :func:`cringe_loss`, with the logits of the head.

    Args:
        input: Hidden states.
        linear_weight: Weight of the head.
        target: Class indices.
        is_positive: Which sequences are good; or which tokens.
        linear_bias: Bias of the head.
        alpha: Weight of the tokens of bad sequences, at least 0.
        k: Number of candidates; 1 is the best other token, without any draw.
        ignore_index: Label of tokens that count for nothing.
        generator: Source of the draws.
        detach_positive: Whether the drawn token's logit is a constant to the gradient.
        reduction: ``none``, ``mean`` over the tokens of both kinds, or ``sum``.
        noise: The draws themselves, as in :func:`cringe_loss`; of the tokens that ``shift`` leaves.
        weight: Class weights as in PyTorch.
        softcap: Bound c of ``c tanh(z / c)`` on the logits.
        shift: Token i predicts target i + shift.
        sample_weight: Weights of tokens.
        normalizer: Divisor in place of the one of ``mean``.
        backend: As in ``lossary.language.linear_cross_entropy``.
        vocab_parallel: As there.

    Shape:
        - input: ``(..., T, D)``; linear_weight: ``(V, D)``; target, sample_weight: ``(..., T)``.
        - is_positive: bool, ``(...)`` or ``(..., T)``; linear_bias, weight: ``(V,)``; noise: ``(..., T - shift)``.

    Returns:
        ``(..., T - shift)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean``
        is NaN as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``alpha``, ``k`` or reduction is wrong.

    Example:
        >>> input, head = torch.tensor([[[2.0, 1.0]], [[2.0, 1.0]]]), torch.eye(3, 2)
        >>> linear_cringe_loss(input, head, torch.tensor([[0], [0]]), torch.tensor([True, False]), k=1)
        tensor(0.8604)

    Source:
        Adolphs et al.: The CRINGE Loss (ACL 2023, arXiv 2211.05826), on the head of Cut Your Losses (arXiv 2411.09009).
    """
    check_in_range("alpha", alpha, 0.0)
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
    good = _of_tokens(is_positive, target)[..., shift:] if shift else _of_tokens(is_positive, target)
    cross_entropy = -rows.statistics("log_prob")["log_prob"]
    contrast = _contrast_of_head(rows, k, generator, noise, detach_positive)
    loss = rows.target_weight() * torch.where(good, cross_entropy, alpha * contrast)
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class LinearCringeLoss(HeadObjective):
    """Cringe loss of a head that never stores its logits; module form of :func:`linear_cringe_loss`.

    Example:
        >>> input, head = torch.tensor([[[2.0, 1.0]], [[2.0, 1.0]]]), torch.eye(3, 2)
        >>> LinearCringeLoss(k=1)(input, head, torch.tensor([[0], [0]]), torch.tensor([True, False]))
        tensor(0.8604)
    """

    function = linear_cringe_loss

    def __init__(
        self,
        alpha: Tensor | float = 1.0,
        k: int = 5,
        *,
        ignore_index: int = -100,
        detach_positive: bool = False,
        weight: Tensor | None = None,
        softcap: float | None = None,
        shift: int = 0,
        reduction: Reduction = "mean",
        backend: Backend = "auto",
        vocab_parallel: VocabParallel | None = None,
    ) -> None:
        super().__init__(
            alpha=alpha,
            k=k,
            ignore_index=ignore_index,
            detach_positive=detach_positive,
            weight=weight,
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
        is_positive: Tensor,
        linear_bias: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The objective on ``input``, the head and ``target``; see the function for shapes.

        Args:
            input: Hidden states.
            linear_weight: Weight of the head.
            target: Class indices.
            is_positive: Which sequences, or tokens, are good.
            linear_bias: Bias of the head.
            generator: Source of the draws.
            noise: The draws themselves.
            sample_weight: Weights of tokens.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return linear_cringe_loss(
            input,
            linear_weight,
            target,
            is_positive,
            linear_bias,
            generator=generator,
            noise=noise,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


def cringe_contrast(
    logits: Tensor,
    target: Tensor,
    *,
    k: int = 5,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    ignore_index: int = -100,
    detach_positive: bool = False,
) -> Tensor:
    r"""The contrast of each token with one that the model likes: what :func:`cringe_loss` takes on bad sequences.

    Reach for it to build a loss of one's own on bad tokens.

    Formula:
        .. math:: \log\big(1 + e^{z_y - z_j}\big)

        with j drawn from the k tokens of the largest logits without y, by the softmax over these k.

    Args:
        logits: Logits, the vocabulary last.
        target: Class indices.
        k: Number of candidates.
        generator: Source of the draws.
        noise: The draws themselves: uniform numbers in [0, 1).
        ignore_index: Label of tokens that count for nothing.
        detach_positive: Whether the drawn token's logit is a constant to the gradient.

    Shape:
        - logits: ``(..., V)``; target, noise: ``(...)``.

    Returns:
        ``(...)``, 0 at ignored tokens; float32 for half-precision logits.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or ``k`` is wrong.

    Example:
        >>> cringe_contrast(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]), k=1)
        tensor([1.3133])

    Source:
        Adolphs et al.: The CRINGE Loss (ACL 2023, arXiv 2211.05826).
    """
    rows = token_rows(logits, target, ignore_index=ignore_index)
    return rows.reduce(_contrast(rows, k, generator, noise, detach_positive), reduction="none", normalizer=None)


def _rejected(input: Tensor, target: Tensor) -> Tensor:
    classes = input.shape[-1]
    return torch.where((target >= 0) & (target < classes), (target + 1) % classes, target)


def _with_rejected(input: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {
        "chosen_logits": input,
        "chosen_target": target,
        "rejected_logits": 2 * input,
        "rejected_target": _rejected(input, target),
    }


@objective(Kind.SEQUENCES, example=lambda num_classes: {"k": 1}, arguments=_with_rejected)
def pairwise_cringe_loss(
    chosen_logits: Tensor,
    chosen_target: Tensor,
    rejected_logits: Tensor,
    rejected_target: Tensor,
    *,
    margin: Tensor | float = 0.0,
    tau: Tensor | float = 1.0,
    alpha: Tensor | float = 1.0,
    k: int = 5,
    detach_gate: bool = False,
    length_normalize: bool = False,
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
    noise: Tensor | None = None,
    ignore_index: int = -100,
    detach_positive: bool = False,
    sample_weight: Tensor | None = None,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cringe loss of pairs, gated by how far the rejected response is still ranked too high.

    Reach for it to train on pairs of a better and a worse response without a reference model: pairs that are ranked
    well fade. With long responses take a ``tau`` of the size of their log-probabilities, ``length_normalize`` or
    ``detach_gate``: the gate's own gradient is the loss, hundreds of nats, over tau.

    Formula:
        .. math:: L = g \, (L_{CE}(y_w) + \alpha L_{Cr}(y_l)), \quad g = \sigma\Big(\frac{b - M}{\tau}\Big), \quad
            M = \log p(y_w \mid x) - \log p(y_l \mid x)

        with sums over the tokens of a response, and :math:`L_{Cr}` that of :func:`cringe_contrast`.

    Args:
        chosen_logits: Logits on the better response, the vocabulary last.
        chosen_target: Its tokens.
        rejected_logits: Logits on the worse response.
        rejected_target: Its tokens.
        margin: M at which the gate is half open.
        tau: Width of the gate, positive; small is a hard gate, very large half of the binary loss.
        alpha: Weight of the worse response, at least 0.
        k: Number of candidates of the contrast; 1 is the best other token, without any draw.
        detach_gate: Whether the gate is a constant to the gradient.
        length_normalize: Whether M is of log-probabilities per token.
        generator: Source of the draws.
        reduction: ``none``, ``mean`` over pairs or ``sum``.
        noise: The draws themselves: uniform numbers in [0, 1) for the tokens of the worse response.
        ignore_index: Label of tokens that count for nothing, such as prompt and padding.
        detach_positive: Whether the drawn token's logit is a constant to the gradient.
        sample_weight: Weights of pairs.
        normalizer: Divisor in place of the number of pairs.

    Shape:
        - chosen_logits: ``(B, T, V)``; chosen_target: ``(B, T)``.
        - rejected_logits: ``(B, S, V)``; rejected_target, noise: ``(B, S)``.
        - sample_weight: ``(B,)``; normalizer: a number or ``()``.

    Returns:
        ``(B,)`` for ``none``, else ``()``; float32 for half-precision logits. A pair without tokens does not count.
        Empty or all-ignored ``mean`` is NaN, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``tau``, ``alpha``, ``k`` or reduction is wrong.

    Example:
        >>> logits = torch.tensor([[[2.0, 1.0, 0.0]]])
        >>> pairwise_cringe_loss(logits, torch.tensor([[1]]), logits, torch.tensor([[0]]), k=1)
        tensor(1.9891)

    Source:
        Xu, Lee, Sukhbaatar, Weston: Some things are more CRINGE than others: Preference Optimization with the Pairwise
        Cringe Loss (arXiv 2312.16682).
    """
    _check_gate(tau, alpha)
    chosen, rejected = (
        _named_rows(side, logits, target, ignore_index)
        for side, logits, target in (
            ("chosen", chosen_logits, chosen_target),
            ("rejected", rejected_logits, rejected_target),
        )
    )
    _check_pairs(chosen_target, rejected_target)
    good, bad = (
        rows.reduce(rows.expect(rows.log_p()), reduction="none", normalizer=None) for rows in (chosen, rejected)
    )
    contrast = _contrast(rejected, k, generator, noise, detach_positive)
    contrast = rejected.reduce(contrast, reduction="none", normalizer=None)
    lengths = [(target != ignore_index).sum(-1) for target in (chosen_target, rejected_target)]
    return _of_pairs(
        good.sum(-1),
        bad.sum(-1),
        contrast.sum(-1),
        lengths,
        margin=margin,
        tau=tau,
        alpha=alpha,
        detach_gate=detach_gate,
        length_normalize=length_normalize,
        sample_weight=sample_weight,
        reduction=reduction,
        normalizer=normalizer,
    )


class PairwiseCringeLoss(Objective):
    """Cringe loss of pairs, gated by their margin; module form of :func:`pairwise_cringe_loss`.

    Example:
        >>> logits = torch.tensor([[[2.0, 1.0, 0.0]]])
        >>> PairwiseCringeLoss(k=1)(logits, torch.tensor([[1]]), logits, torch.tensor([[0]]))
        tensor(1.9891)
    """

    function = pairwise_cringe_loss

    def __init__(
        self,
        margin: Tensor | float = 0.0,
        tau: Tensor | float = 1.0,
        alpha: Tensor | float = 1.0,
        k: int = 5,
        *,
        detach_gate: bool = False,
        length_normalize: bool = False,
        ignore_index: int = -100,
        detach_positive: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            margin=margin,
            tau=tau,
            alpha=alpha,
            k=k,
            detach_gate=detach_gate,
            length_normalize=length_normalize,
            ignore_index=ignore_index,
            detach_positive=detach_positive,
            reduction=reduction,
        )

    def forward(  # type: ignore[override]
        self,
        chosen_logits: Tensor,
        chosen_target: Tensor,
        rejected_logits: Tensor,
        rejected_target: Tensor,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The objective on pairs; see the function for shapes.

        Args:
            chosen_logits: Logits on the better response.
            chosen_target: Its tokens.
            rejected_logits: Logits on the worse response.
            rejected_target: Its tokens.
            generator: Source of the draws.
            noise: The draws themselves.
            sample_weight: Weights of pairs.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return pairwise_cringe_loss(
            chosen_logits,
            chosen_target,
            rejected_logits,
            rejected_target,
            generator=generator,
            noise=noise,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )

    def gate(
        self, chosen_logits: Tensor, chosen_target: Tensor, rejected_logits: Tensor, rejected_target: Tensor
    ) -> CringeGate:
        """The gate of these pairs; see :func:`pairwise_cringe_gate`.

        Args:
            chosen_logits: Logits on the better response.
            chosen_target: Its tokens.
            rejected_logits: Logits on the worse response.
            rejected_target: Its tokens.
        """
        known = self.hyperparameters()
        words = ("margin", "tau", "length_normalize", "ignore_index")
        options = {word: known[word] for word in words}
        return pairwise_cringe_gate(chosen_logits, chosen_target, rejected_logits, rejected_target, **options)


class CringeGate(NamedTuple):
    """How far pairs are open to training.

    Attributes:
        gate: g ``(B,)``, near 1 for pairs that are ranked wrongly.
        gap: M ``(B,)``, log-probability of the better response less that of the worse.
    """

    gate: Tensor
    gap: Tensor


def pairwise_cringe_gate(
    chosen_logits: Tensor,
    chosen_target: Tensor,
    rejected_logits: Tensor,
    rejected_target: Tensor,
    *,
    margin: Tensor | float = 0.0,
    tau: Tensor | float = 1.0,
    length_normalize: bool = False,
    ignore_index: int = -100,
) -> CringeGate:
    r"""The gate of :func:`pairwise_cringe_loss`, to watch it close.

    Reach for it to choose ``tau`` and ``margin``: a mean gate that stays near 1 or 0 does not tell pairs apart.

    Formula:
        .. math:: g = \sigma\Big(\frac{b - M}{\tau}\Big), \quad M = \log p(y_w \mid x) - \log p(y_l \mid x)

    Args:
        chosen_logits: Logits on the better response, the vocabulary last.
        chosen_target: Its tokens.
        rejected_logits: Logits on the worse response.
        rejected_target: Its tokens.
        margin: M at which the gate is half open.
        tau: Width of the gate, positive.
        length_normalize: Whether M is of log-probabilities per token.
        ignore_index: Label of tokens that count for nothing.

    Shape:
        - chosen_logits: ``(B, T, V)``; chosen_target: ``(B, T)``.
        - rejected_logits: ``(B, S, V)``; rejected_target: ``(B, S)``.

    Returns:
        The gate g and the gap M, each ``(B,)``.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or ``tau`` is wrong.

    Example:
        >>> logits = torch.tensor([[[2.0, 1.0, 0.0]]])
        >>> pairwise_cringe_gate(logits, torch.tensor([[1]]), logits, torch.tensor([[0]]))
        CringeGate(gate=tensor([0.7311]), gap=tensor([-1.0000]))

    Source:
        Xu et al.: Some things are more CRINGE than others (arXiv 2312.16682).
    """
    check_in_range("tau", tau, 0.0, low_open=True)
    _check_pairs(chosen_target, rejected_target)
    good, bad = (
        rows.reduce(rows.expect(rows.log_p()), reduction="none", normalizer=None).sum(-1)
        for rows in (
            _named_rows("chosen", chosen_logits, chosen_target, ignore_index),
            _named_rows("rejected", rejected_logits, rejected_target, ignore_index),
        )
    )
    lengths = [(target != ignore_index).sum(-1) for target in (chosen_target, rejected_target)]
    return _gate(good, bad, lengths, margin, tau, length_normalize)


def _with_rejected_states(input: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {
        "chosen_input": input,
        "chosen_target": target,
        "rejected_input": 2 * input,
        "rejected_target": _rejected(input, target),
    }


@objective(Kind.HEAD_SEQUENCES, example=lambda num_classes: {"k": 1}, arguments=_with_rejected_states)
def linear_pairwise_cringe_loss(
    chosen_input: Tensor,
    linear_weight: Tensor,
    chosen_target: Tensor,
    rejected_input: Tensor,
    rejected_target: Tensor,
    linear_bias: Tensor | None = None,
    *,
    margin: Tensor | float = 0.0,
    tau: Tensor | float = 1.0,
    alpha: Tensor | float = 1.0,
    k: int = 5,
    detach_gate: bool = False,
    length_normalize: bool = False,
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
    noise: Tensor | None = None,
    ignore_index: int = -100,
    detach_positive: bool = False,
    softcap: float | None = None,
    shift: int = 0,
    sample_weight: Tensor | None = None,
    normalizer: Tensor | float | None = None,
    backend: Backend = "auto",
    vocab_parallel: VocabParallel | None = None,
) -> Tensor:
    r"""Pairwise Cringe loss of a linear head that never stores its logits.

    Reach for it where the vocabulary is large; :func:`pairwise_cringe_loss` is the form on logits, with the same
    numbers.

    Formula:
        .. math:: L = \sigma\Big(\frac{b - M}{\tau}\Big) \, (L_{CE}(y_w) + \alpha L_{Cr}(y_l)), \quad
            M = \log p(y_w \mid x) - \log p(y_l \mid x)

        as in :func:`pairwise_cringe_loss`, with the logits of the head.

    Args:
        chosen_input: Hidden states on the better response.
        linear_weight: Weight of the head.
        chosen_target: The better response's tokens.
        rejected_input: Hidden states on the worse response.
        rejected_target: Its tokens.
        linear_bias: Bias of the head.
        margin: M at which the gate is half open.
        tau: Width of the gate, positive.
        alpha: Weight of the worse response, at least 0.
        k: Number of candidates of the contrast.
        detach_gate: Whether the gate is a constant to the gradient.
        length_normalize: Whether M is of log-probabilities per token.
        generator: Source of the draws.
        reduction: ``none``, ``mean`` over pairs or ``sum``.
        noise: The draws themselves; for the tokens of the worse response that ``shift`` leaves.
        ignore_index: Label of tokens that count for nothing.
        detach_positive: Whether the drawn token's logit is a constant to the gradient.
        softcap: Bound c of ``c tanh(z / c)`` on the logits.
        shift: Token i predicts target i + shift.
        sample_weight: Weights of pairs.
        normalizer: Divisor in place of the number of pairs.
        backend: As in ``lossary.language.linear_cross_entropy``.
        vocab_parallel: As there.

    Shape:
        - chosen_input: ``(B, T, D)``; chosen_target: ``(B, T)``; linear_weight: ``(V, D)``; linear_bias: ``(V,)``.
        - rejected_input: ``(B, S, D)``; rejected_target: ``(B, S)``; noise: ``(B, S - shift)``.
        - sample_weight: ``(B,)``; normalizer: a number or ``()``.

    Returns:
        ``(B,)`` for ``none``, else ``()``; float32 for half-precision input. A pair without tokens does not count.
        Empty or all-ignored ``mean`` is NaN, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``tau``, ``alpha``, ``k`` or reduction is wrong.

    Example:
        >>> input, head = torch.tensor([[[2.0, 1.0]]]), torch.eye(3, 2)
        >>> linear_pairwise_cringe_loss(input, head, torch.tensor([[1]]), input, torch.tensor([[0]]), k=1)
        tensor(1.9891)

    Source:
        Xu et al.: Some things are more CRINGE than others (arXiv 2312.16682), on the head of Cut Your Losses (arXiv
        2411.09009).
    """
    _check_gate(tau, alpha)
    chosen, rejected = (
        _named_head_rows(
            side,
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
        for side, input, target in (
            ("chosen", chosen_input, chosen_target),
            ("rejected", rejected_input, rejected_target),
        )
    )
    _check_pairs(chosen_target, rejected_target)
    good, bad = (rows.statistics("log_prob")["log_prob"] for rows in (chosen, rejected))
    contrast = _contrast_of_head(rejected, k, generator, noise, detach_positive)
    contrast = rejected.reduce(contrast, reduction="none", normalizer=None)
    lengths = [(target[..., shift:] != ignore_index).sum(-1) for target in (chosen_target, rejected_target)]
    return _of_pairs(
        good.sum(-1),
        bad.sum(-1),
        contrast.sum(-1),
        lengths,
        margin=margin,
        tau=tau,
        alpha=alpha,
        detach_gate=detach_gate,
        length_normalize=length_normalize,
        sample_weight=sample_weight,
        reduction=reduction,
        normalizer=normalizer,
    )


class LinearPairwiseCringeLoss(Objective):
    """Pairwise Cringe loss of a head that never stores its logits; module of :func:`linear_pairwise_cringe_loss`.

    Example:
        >>> input, head = torch.tensor([[[2.0, 1.0]]]), torch.eye(3, 2)
        >>> LinearPairwiseCringeLoss(k=1)(input, head, torch.tensor([[1]]), input, torch.tensor([[0]]))
        tensor(1.9891)
    """

    function = linear_pairwise_cringe_loss

    def __init__(
        self,
        margin: Tensor | float = 0.0,
        tau: Tensor | float = 1.0,
        alpha: Tensor | float = 1.0,
        k: int = 5,
        *,
        detach_gate: bool = False,
        length_normalize: bool = False,
        ignore_index: int = -100,
        detach_positive: bool = False,
        softcap: float | None = None,
        shift: int = 0,
        reduction: Reduction = "mean",
        backend: Backend = "auto",
        vocab_parallel: VocabParallel | None = None,
    ) -> None:
        super().__init__(
            margin=margin,
            tau=tau,
            alpha=alpha,
            k=k,
            detach_gate=detach_gate,
            length_normalize=length_normalize,
            ignore_index=ignore_index,
            detach_positive=detach_positive,
            softcap=softcap,
            shift=shift,
            reduction=reduction,
            backend=backend,
            vocab_parallel=vocab_parallel,
        )

    def forward(  # type: ignore[override]
        self,
        chosen_input: Tensor,
        linear_weight: Tensor,
        chosen_target: Tensor,
        rejected_input: Tensor,
        rejected_target: Tensor,
        linear_bias: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The objective on pairs; see the function for shapes.

        Args:
            chosen_input: Hidden states on the better response.
            linear_weight: Weight of the head.
            chosen_target: The better response's tokens.
            rejected_input: Hidden states on the worse response.
            rejected_target: Its tokens.
            linear_bias: Bias of the head.
            generator: Source of the draws.
            noise: The draws themselves.
            sample_weight: Weights of pairs.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return linear_pairwise_cringe_loss(
            chosen_input,
            linear_weight,
            chosen_target,
            rejected_input,
            rejected_target,
            linear_bias,
            generator=generator,
            noise=noise,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


def _contrast(
    rows: ClassRows, k: int, generator: torch.Generator | None, noise: Tensor | None, detach_positive: bool
) -> Tensor:
    """softplus(z_y - z_j) of each row."""
    _check_k(k)
    others = torch.where(rows.is_label(), -torch.inf, rows.logits)
    candidates = others.topk(min(k, max(1, rows.num_classes - 1)), dim=-1).values
    return _pushed(rows.at_label(rows.logits), candidates, generator, noise, detach_positive)


def _contrast_of_head(
    rows: HeadRows, k: int, generator: torch.Generator | None, noise: Tensor | None, detach_positive: bool
) -> Tensor:
    """As :func:`_contrast`, from the k + 1 most likely entries without the target."""
    _check_k(k)
    k = min(k, max(1, rows.vocab - 1))
    best = rows.top_index(min(k + 1, rows.vocab)).reshape(-1, min(k + 1, rows.vocab))
    label = rows.label().unsqueeze(1)
    # From where the target stands on, the next one takes its place.
    passed = (best == label).cumsum(1)[:, :k] > 0
    next_best = torch.cat([best[:, 1:], label], 1)[:, :k]
    z = rows.shaped(rows.logits_at(torch.cat([label, torch.where(passed, next_best, best[:, :k])], 1)))
    candidates = z[..., 1:] if rows.vocab > 1 else torch.full_like(z[..., 1:], -torch.inf)
    return _pushed(z[..., 0], candidates, generator, noise, detach_positive)


def _pushed(
    rejected: Tensor, candidates: Tensor, generator: torch.Generator | None, noise: Tensor | None, detach_positive: bool
) -> Tensor:
    """The contrast with one of the candidates ``(..., k)``, which are sorted; 0 where there is none."""
    if candidates.shape[-1] == 1 and noise is None:
        positive = candidates.squeeze(-1)
    else:
        if noise is None:
            noise = torch.rand(rejected.shape, generator=generator, device=rejected.device)
        checks.check_floating("noise", noise)
        checks.check_shape("noise", noise, rejected.shape, "a uniform number for each token")
        ends = torch.softmax(candidates.detach(), -1).cumsum(-1)
        possible = (candidates > -torch.inf).sum(-1)
        drawn = (noise.unsqueeze(-1) >= ends).sum(-1)
        drawn = torch.minimum(drawn, possible - 1).clamp(min=0)  # rounding may leave the last end below 1
        positive = candidates.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
    positive = positive.detach() if detach_positive else positive
    nothing = (positive == -torch.inf) | (rejected == -torch.inf)
    gap = torch.where(nothing, 0.0, rejected) - torch.where(nothing, 0.0, positive)
    return torch.where(nothing, 0.0, F.softplus(gap))


def _of_tokens(is_positive: Tensor, target: Tensor) -> Tensor:
    """Signs of sequences or tokens as one of each token."""
    if not isinstance(is_positive, Tensor) or is_positive.dtype != torch.bool:
        kind = getattr(is_positive, "dtype", type(is_positive).__name__)
        raise TypeError(f"is_positive is {kind}; wanted a tensor of bool.")
    if is_positive.shape == target.shape:
        return is_positive
    checks.check_shape("is_positive", is_positive, target.shape[:-1], "one for each sequence, or shaped as target")
    return is_positive.unsqueeze(-1).expand(target.shape)


def _of_pairs(
    good: Tensor,
    bad: Tensor,
    contrast: Tensor,
    lengths: list[Tensor],
    *,
    margin: Tensor | float,
    tau: Tensor | float,
    alpha: Tensor | float,
    detach_gate: bool,
    length_normalize: bool,
    sample_weight: Tensor | None,
    reduction: Reduction,
    normalizer: Tensor | float | None,
) -> Tensor:
    """The gated loss of pairs from log-probabilities, contrasts and numbers of tokens, each ``(B,)``."""
    gate, _ = _gate(good, bad, lengths, margin, tau, length_normalize)
    loss = (gate.detach() if detach_gate else gate) * (alpha * contrast - good)
    keep = lengths[0] + lengths[1] > 0
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer, keep=keep)


def _gate(
    good: Tensor,
    bad: Tensor,
    lengths: list[Tensor],
    margin: Tensor | float,
    tau: Tensor | float,
    length_normalize: bool,
) -> CringeGate:
    scales = [length.clamp(min=1) if length_normalize else 1 for length in lengths]
    gap = good / scales[0] - bad / scales[1]
    return CringeGate(((margin - gap) / tau).sigmoid(), gap)


def _named_rows(side: str, logits: Tensor, target: Tensor, ignore_index: int) -> ClassRows:
    checks.check_floating(f"{side}_logits", logits)
    if not isinstance(target, Tensor):
        raise TypeError(f"{side}_target is {type(target).__name__}; wanted a tensor.")
    if logits.ndim != 3:
        raise ValueError(f"{side}_logits has shape {tuple(logits.shape)}; wanted (B, T, V).")
    checks.check_shape(f"{side}_target", target, logits.shape[:-1], f"a class index for each token of {side}_logits")
    return token_rows(logits, target, ignore_index=ignore_index)


def _named_head_rows(
    side: str, input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None, **options: Any
) -> HeadRows:
    checks.check_floating(f"{side}_input", input)
    if not isinstance(target, Tensor):
        raise TypeError(f"{side}_target is {type(target).__name__}; wanted a tensor.")
    if input.ndim != 3:
        raise ValueError(f"{side}_input has shape {tuple(input.shape)}; wanted (B, T, D).")
    checks.check_shape(f"{side}_target", target, input.shape[:-1], f"a class index for each token of {side}_input")
    return head_rows(input, linear_weight, target, linear_bias, **options)


def _check_pairs(chosen_target: Tensor, rejected_target: Tensor) -> None:
    if len(chosen_target) != len(rejected_target):
        raise ValueError(
            f"rejected_target has shape {tuple(rejected_target.shape)}; wanted {len(chosen_target)} rows, as "
            f"chosen_target {tuple(chosen_target.shape)}."
        )


def _check_gate(tau: Tensor | float, alpha: Tensor | float) -> None:
    check_in_range("tau", tau, 0.0, low_open=True)
    check_in_range("alpha", alpha, 0.0)


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k is {k!r}; wanted a positive integer.")
