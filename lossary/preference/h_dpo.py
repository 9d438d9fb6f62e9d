"""H-DPO: direct preference optimization in which one more number sets the policy's entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.checks import check_in_range
from lossary.core.numerics import product
from lossary.core.objective import Kind, objective
from lossary.core.types import Reduction
from lossary.core.values import like_first, reduce_values
from lossary.preference.pairs import PreferenceObjective, preference_pairs


@objective(Kind.PREFERENCES)
def h_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Tensor | float = 0.1,
    alpha: Tensor | float = 1.0,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Preference loss of DPO with a coefficient on the policy's entropy.

    Reach for it to align a language model on pairs of responses where DPO leaves the policy too flat (alpha < 1
    sharpens it) or too sharp (alpha > 1). ``alpha = 1`` is DPO. Unlike DPO's, the margin is not 0 where policy and
    reference agree: with pairs of very different lengths keep ``beta`` small and ``alpha`` near 1, since nothing here
    is normalised by length and a longer response is less likely.

    Formula:
        .. math:: L = -\log \sigma\left(\alpha \beta \log \frac{\pi(y_w)}{\pi(y_l)}
            - \beta \log \frac{\pi_0(y_w)}{\pi_0(y_l)}\right)

        With label smoothing s the average of the pair as it is, weight 1 - s, and the other way round, weight s.

    Args:
        policy_chosen_logps: Log-probability of each chosen response under the policy, summed over its tokens.
        policy_rejected_logps: That of each rejected response.
        reference_chosen_logps: Log-probability of each chosen response under the reference; a constant.
        reference_rejected_logps: That of each rejected response; a constant.
        beta: How strongly the policy is kept near the reference, above 0.
        alpha: Coefficient of the entropy, above 0. The paper uses 0.8 to 1.2, best slightly below 1.
        label_smoothing: Share of pairs that are believed to be the wrong way round, in [0, 1] (conservative DPO).
        sample_weight: Weights of pairs.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of pairs.

    Shape:
        - all log-probabilities: ``(N,)``, or any shape that they share; floating point.
        - sample_weight: as these, or ``(N,)``; normalizer: a number or ``()``.

    Returns:
        ``(N,)`` for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, ``beta``, ``alpha``, ``label_smoothing`` or reduction is wrong.

    Example:
        >>> from lossary.language import linear_sequence_logps
        >>> hidden, head = torch.eye(3).expand(4, 3, 3), torch.eye(3)  # two chosen, then two rejected responses
        >>> tokens = torch.tensor([[0, 1, 2], [0, 1, -100], [1, 2, 0], [2, 1, -100]])
        >>> chosen, rejected = linear_sequence_logps(hidden, head, tokens).chunk(2)
        >>> h_dpo_loss(chosen, rejected, chosen, rejected, beta=0.1, alpha=0.9)
        tensor(0.7032)

    Source:
        Omura, Fujita, Kataoka: Entropy Controllable Direct Preference Optimization (arXiv 2411.07595). Label smoothing
        is that of conservative DPO (Mitchell 2023), not of the paper.
    """
    _check(beta, alpha)
    check_in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    pairs = preference_pairs(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    of_policy = pairs.policy_chosen - pairs.policy_rejected
    margin = beta * (alpha * of_policy - (pairs.reference_chosen - pairs.reference_rejected))
    wrong = torch.as_tensor(label_smoothing, dtype=margin.dtype, device=margin.device)
    loss = product(1 - wrong, -F.logsigmoid(margin)) + product(wrong, -F.logsigmoid(-margin))
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class HDPOLoss(PreferenceObjective):
    """Preference loss of DPO with a coefficient on the policy's entropy; module form of :func:`h_dpo_loss`.

    Example:
        >>> HDPOLoss(alpha=0.9)(*torch.tensor([[-9.0], [-12.0], [-10.0], [-11.0]]))
        tensor(0.6118)
    """

    function = h_dpo_loss

    def __init__(
        self,
        beta: Tensor | float = 0.1,
        alpha: Tensor | float = 1.0,
        *,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(beta=beta, alpha=alpha, label_smoothing=label_smoothing, reduction=reduction)


def h_dpo_rewards(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Tensor | float = 0.1,
    alpha: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    r"""Rewards that the policy stands for, up to a number for each prompt.

    Reach for them to log how far chosen responses are ahead of rejected ones; the loss of a pair is
    ``-logsigmoid(chosen - rejected)``.

    Formula:
        .. math:: r = \alpha \beta \log \pi(y) - \beta \log \pi_0(y)

    Args:
        policy_chosen_logps: As in :func:`h_dpo_loss`.
        policy_rejected_logps: As there.
        reference_chosen_logps: As there.
        reference_rejected_logps: As there.
        beta: As there.
        alpha: As there.

    Shape:
        - all log-probabilities: ``(N,)``, or any shape that they share; floating point.

    Returns:
        Rewards of chosen and of rejected responses, each as the input; without gradients.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, ``beta`` or ``alpha`` is wrong.

    Example:
        >>> h_dpo_rewards(*torch.tensor([[-9.0], [-12.0], [-10.0], [-11.0]]), alpha=0.9)
        (tensor([0.1900]), tensor([0.0200]))

    Source:
        Omura, Fujita, Kataoka (arXiv 2411.07595).
    """
    _check(beta, alpha)
    pairs = preference_pairs(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    chosen = beta * (alpha * pairs.policy_chosen - pairs.reference_chosen)
    rejected = beta * (alpha * pairs.policy_rejected - pairs.reference_rejected)
    return chosen.detach(), rejected.detach()


def h_dpo_divergence(
    policy_logits: Tensor,
    reference_logits: Tensor,
    *,
    alpha: Tensor | float = 1.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""The regulariser of H-DPO between finite distributions: reverse KL with a coefficient on the entropy.

    Reach for it to log how far a policy has moved, token by token, or to fit one distribution to another with more
    (alpha < 1) or less (alpha > 1) will to settle on one mode. ``alpha = 1`` is KL(policy, reference); otherwise it is
    no divergence: its least value is neither 0 nor where the two agree.

    Formula:
        .. math:: D_\alpha(\pi \| \pi_0) = \sum_k \pi_k (\alpha \log \pi_k - \log \pi_{0,k})

    Args:
        policy_logits: Logits of the policy.
        reference_logits: Logits of the reference.
        alpha: Coefficient of the entropy, above 0.
        sample_weight: Weights of distributions.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of distributions.

    Shape:
        - policy_logits, reference_logits: ``(..., K)``; floating point.
        - sample_weight: ``(...)``; normalizer: a number or ``()``.

    Returns:
        ``(...)`` for ``none``, else ``()``; float32 for half-precision input. Infinite where the policy has mass that
        the reference has not.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, ``alpha`` or reduction is wrong.

    Example:
        >>> h_dpo_divergence(torch.zeros(1, 4), torch.zeros(1, 4)), h_dpo_divergence(
        ...     torch.zeros(1, 4), torch.zeros(1, 4), alpha=0.5)
        (tensor(0.), tensor(0.6931))

    Source:
        Omura, Fujita, Kataoka (arXiv 2411.07595).
    """
    check_in_range("alpha", alpha, 0.0, low_open=True)
    policy, reference = like_first(
        "a logit for each outcome", policy_logits=policy_logits, reference_logits=reference_logits
    )
    if policy.ndim == 0:
        raise ValueError("policy_logits has shape (); wanted (..., K).")
    log_p, log_reference = F.log_softmax(policy, -1), F.log_softmax(reference, -1)
    p = log_p.exp()
    divergence = (alpha * product(p, log_p) - product(p, log_reference)).sum(-1)
    return reduce_values(divergence, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


def _check(beta: Tensor | float, alpha: Tensor | float) -> None:
    check_in_range("beta", beta, 0.0, low_open=True)
    check_in_range("alpha", alpha, 0.0, low_open=True)
