"""DPO-Positive: direct preference optimization that does not let the chosen response become less likely."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.checks import check_in_range
from lossary.core.numerics import product
from lossary.core.objective import Kind, objective
from lossary.core.types import Reduction
from lossary.core.values import reduce_values
from lossary.preference.pairs import PreferenceObjective, preference_pairs


@objective(Kind.PREFERENCES)
def dpo_positive_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    chosen_beta: Tensor | float = 0.1,
    rejected_beta: Tensor | float | None = None,
    penalty_lambda: Tensor | float = 5.0,
    penalty_inside: bool = False,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Preference loss of DPO with a penalty where the chosen response is less likely than under the reference.

    Reach for it where chosen and rejected responses share most of their tokens (arithmetic, edits, translations): DPO
    is content to make both less likely there, the chosen one included. Without such pairs DPO, which is
    ``penalty_lambda = 0``, has one number less to tune.

    Formula:
        .. math:: L = -\log \sigma\left(\beta_w \log \frac{\pi(y_w)}{\pi_0(y_w)}
            - \beta_l \log \frac{\pi(y_l)}{\pi_0(y_l)}
            - \lambda \max\left(0, \log \frac{\pi_0(y_w)}{\pi(y_w)}\right)\right)

        With ``penalty_inside`` the penalty is multiplied by :math:`\beta_w` too, as in the original paper.

    Args:
        policy_chosen_logps: Log-probability of each chosen response under the policy, summed over its tokens.
        policy_rejected_logps: That of each rejected response.
        reference_chosen_logps: Log-probability of each chosen response under the reference; a constant.
        reference_rejected_logps: That of each rejected response; a constant.
        chosen_beta: How strongly the chosen responses are kept near the reference, above 0.
        rejected_beta: The same for the rejected ones; ``chosen_beta`` where it is None.
        penalty_lambda: Weight of the penalty, at least 0. Bielik's trainer has 50, with betas of 0.5 and 0.1.
        penalty_inside: Whether ``chosen_beta`` multiplies the penalty.
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
        ValueError: A shape, beta, ``penalty_lambda`` or reduction is wrong.

    Example:
        >>> from lossary.language import linear_sequence_logps
        >>> hidden, head = torch.eye(3).expand(4, 3, 3), torch.eye(3)  # two chosen, then two rejected responses
        >>> tokens = torch.tensor([[0, 1, 2], [0, 1, -100], [1, 2, 0], [2, 1, -100]])
        >>> chosen, rejected = linear_sequence_logps(hidden, head, tokens).chunk(2)
        >>> dpo_positive_loss(chosen, rejected, chosen, rejected), dpo_positive_loss(
        ...     chosen - 1, rejected, chosen, rejected)
        (tensor(0.6931), tensor(5.1061))

    Source:
        Ociepa, Flis, Kinas, Wróbel, Gwoździej: Bielik 11B v2 Technical Report (arXiv 2505.02410), as in their trainer;
        Pal et al.: Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive (arXiv 2402.13228),
        equation 3, for ``penalty_inside``. Where policy and reference agree to the bit the penalty has half its slope,
        as in their trainer.
    """
    rejected_beta = chosen_beta if rejected_beta is None else rejected_beta
    check_in_range("chosen_beta", chosen_beta, 0.0, low_open=True)
    check_in_range("rejected_beta", rejected_beta, 0.0, low_open=True)
    check_in_range("penalty_lambda", penalty_lambda, 0.0)
    pairs = preference_pairs(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    chosen = pairs.policy_chosen - pairs.reference_chosen
    rejected = pairs.policy_rejected - pairs.reference_rejected
    strength = torch.as_tensor(penalty_lambda, dtype=chosen.dtype, device=chosen.device)
    penalty = product(strength, torch.maximum(-chosen, torch.zeros_like(chosen)))
    margin = chosen_beta * chosen - rejected_beta * rejected - (chosen_beta * penalty if penalty_inside else penalty)
    loss = -F.logsigmoid(margin)
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class DPOPositiveLoss(PreferenceObjective):
    """Preference loss of DPO that keeps the chosen response likely; module form of :func:`dpo_positive_loss`.

    Example:
        >>> DPOPositiveLoss()(*torch.tensor([[-11.0], [-12.0], [-10.0], [-11.0]]))
        tensor(5.0067)
    """

    function = dpo_positive_loss

    def __init__(
        self,
        *,
        chosen_beta: Tensor | float = 0.1,
        rejected_beta: Tensor | float | None = None,
        penalty_lambda: Tensor | float = 5.0,
        penalty_inside: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            chosen_beta=chosen_beta,
            rejected_beta=rejected_beta,
            penalty_lambda=penalty_lambda,
            penalty_inside=penalty_inside,
            reduction=reduction,
        )
