"""Pairs of a chosen and a rejected response: four log-probabilities each, checked and widened."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lossary.core.objective import Objective
from lossary.core.values import like_first


class Pairs(NamedTuple):
    """Log-probabilities of chosen and rejected responses, at least float32; the reference's are constants."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor


def preference_pairs(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
) -> Pairs:
    """Check and widen the arguments of a preference objective.

    Half precision is widened before anything is subtracted: at -800 the step of bfloat16 is 4.

    Raises:
        TypeError: One is no tensor of floating point.
        ValueError: A shape differs from the first's.
    """
    pairs = Pairs(
        *like_first(
            "a log-probability for each pair",
            policy_chosen_logps=policy_chosen_logps,
            policy_rejected_logps=policy_rejected_logps,
            reference_chosen_logps=reference_chosen_logps,
            reference_rejected_logps=reference_rejected_logps,
        )
    )
    return pairs._replace(
        reference_chosen=pairs.reference_chosen.detach(), reference_rejected=pairs.reference_rejected.detach()
    )


class PreferenceObjective(Objective):
    """An :class:`Objective` on four log-probabilities of each pair."""

    def forward(  # type: ignore[override]
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The objective on pairs of responses.

        Args:
            policy_chosen_logps: Log-probabilities of the chosen responses under the policy ``(N,)``.
            policy_rejected_logps: Those of the rejected ones.
            reference_chosen_logps: Log-probabilities of the chosen responses under the reference.
            reference_rejected_logps: Those of the rejected ones.
            sample_weight: Weights of pairs.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        value: Tensor = self.function(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )
        return value
