"""The module around an objective on a linear head."""

from __future__ import annotations

from torch import Tensor

from lossary.core.objective import Objective


class HeadObjective(Objective):
    """An :class:`Objective` that is called with a head; the head stays the model's."""

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The objective on ``input``, the head and ``target``; see the function for shapes.

        Args:
            input: Hidden states.
            linear_weight: Weight of the head.
            target: Class indices.
            linear_bias: Bias of the head.
            sample_weight: One weight for each row.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        value: Tensor = self.function(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )
        return value
