"""Training by a score of whole sequences that has no gradient: minimum risk over candidates, and REINFORCE."""

from __future__ import annotations

import torch
from torch import Tensor

from lossary.core.checks import check_in_range, check_shape
from lossary.core.numerics import product
from lossary.core.objective import Kind, Objective, objective
from lossary.core.types import Reduction
from lossary.core.values import like_first, reduce_values


@objective(Kind.PAIRS, arguments=lambda input, target: {"log_probs": input, "risks": target})
def minimum_risk_loss(
    log_probs: Tensor,
    risks: Tensor,
    *,
    alpha: Tensor | float = 5e-3,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Expected risk over some candidates, under the model's own preference among them.

    Reach for it after likelihood training, with candidates from beam search or sampling, to train by BLEU or any other
    score of whole sequences. Remove candidates that occur twice, and add the reference to them.

    Formula:
        .. math:: L = \sum_s Q_s r_s, \quad Q = \mathrm{softmax}(\alpha \log p)

    Args:
        log_probs: Log-probabilities of whole candidates; -inf for places without a candidate.
        risks: What each costs, 1 - BLEU for instance.
        alpha: How sharp Q is, positive; small, since log-probabilities of sequences are far apart.
        sample_weight: Weights of sources.
        reduction: ``none``, ``mean`` or ``sum`` over sources.
        normalizer: Divisor in place of the number of sources.

    Shape:
        - log_probs, risks: ``(N, S)`` or ``(..., S)``, sources and candidates; floating point.
        - alpha: a number or ``()``; sample_weight: ``(N,)``; normalizer: a number or ``()``.

    Returns:
        ``(...)`` for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, ``alpha`` or reduction is wrong.

    Example:
        >>> minimum_risk_loss(torch.tensor([[-10.0, -30.0]]), torch.tensor([[0.2, 0.8]]))
        tensor(0.4850)

    Source:
        Terven et al.: Loss Functions and Metrics in Deep Learning (arXiv 2307.02694), language losses; Shen et al.:
        Minimum Risk Training for Neural Machine Translation (ACL 2016, arXiv 1512.02433), equation 11.
    """
    check_in_range("alpha", alpha, 0.0, low_open=True)
    log_probs, risks = like_first("a risk for each candidate", log_probs=log_probs, risks=risks)
    if log_probs.ndim == 0:
        raise ValueError("log_probs has shape (); wanted (..., S).")
    loss = (torch.softmax(alpha * log_probs, -1) * risks).sum(-1)
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class MinimumRiskLoss(Objective):
    """Expected risk over candidates; module form of :func:`minimum_risk_loss`.

    Example:
        >>> MinimumRiskLoss()(torch.tensor([[-10.0, -30.0]]), torch.tensor([[0.2, 0.8]]))
        tensor(0.4850)
    """

    function = minimum_risk_loss

    def __init__(self, alpha: Tensor | float = 5e-3, *, reduction: Reduction = "mean") -> None:
        super().__init__(alpha=alpha, reduction=reduction)

    def forward(
        self,
        log_probs: Tensor,
        risks: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            log_probs: Log-probabilities of candidates ``(N, S)``.
            risks: What each costs ``(N, S)``.
            sample_weight: Weights of sources.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return minimum_risk_loss(
            log_probs, risks, sample_weight=sample_weight, normalizer=normalizer, **self.hyperparameters()
        )


@objective(Kind.PAIRS, arguments=lambda input, target: {"log_probs": input, "rewards": target})
def reinforce_loss(
    log_probs: Tensor,
    rewards: Tensor,
    *,
    baseline: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Its gradient is that of the expected reward, estimated from samples.

    Reach for it where samples can be scored and nothing else is known. Its value means nothing, only its gradient does;
    a baseline that does not depend on the sample (the mean reward, a greedy answer's) lowers the variance and leaves
    the expectation as it is.

    Formula:
        .. math:: L = -(r - b) \log p

    Args:
        log_probs: Log-probabilities of the samples, of whole sequences or by token.
        rewards: The r, constants to the gradient.
        baseline: The b, a constant to the gradient; 0 where it is None.
        sample_weight: Weights of entries or rows; 0 for padding.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of entries.

    Shape:
        - log_probs, rewards: the same, any shape; floating point.
        - baseline: a number, ``()`` or as rewards; sample_weight: as rewards, or ``(N,)``; normalizer: a number or
          ``()``.

    Returns:
        The shape of ``log_probs`` for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is
        NaN, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or reduction is wrong.

    Example:
        >>> reinforce_loss(torch.tensor([-2.0, -1.0]), torch.tensor([1.0, 0.0]), baseline=0.5)
        tensor(0.2500)

    Source:
        Terven et al. (arXiv 2307.02694), language losses; Williams: Simple Statistical Gradient-Following Algorithms
        for Connectionist Reinforcement Learning (Machine Learning, 1992).
    """
    log_probs, rewards = like_first("a reward for each sample", log_probs=log_probs, rewards=rewards)
    if isinstance(baseline, Tensor) and baseline.ndim > 0:
        check_shape("baseline", baseline, rewards.shape, "a number, or one for each reward")
    advantage = rewards if baseline is None else rewards - baseline
    loss = product(-advantage.detach().to(log_probs.dtype), log_probs)
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class ReinforceLoss(Objective):
    """Gradient of the expected reward from samples; module form of :func:`reinforce_loss`.

    Example:
        >>> ReinforceLoss(baseline=0.5)(torch.tensor([-2.0, -1.0]), torch.tensor([1.0, 0.0]))
        tensor(0.2500)
    """

    function = reinforce_loss

    def __init__(self, *, baseline: Tensor | float | None = None, reduction: Reduction = "mean") -> None:
        super().__init__(baseline=baseline, reduction=reduction)

    def forward(
        self,
        log_probs: Tensor,
        rewards: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            log_probs: Log-probabilities of the samples.
            rewards: Their rewards.
            sample_weight: Weights of entries or rows.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return reinforce_loss(
            log_probs, rewards, sample_weight=sample_weight, normalizer=normalizer, **self.hyperparameters()
        )
