"""Sums of objectives that keep their terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightedSum(nn.Module):
    """A weighted sum of objectives that keeps each term for logging.

    Reach for it when a paper combines losses (Dice and cross-entropy, say): the sum is what is trained, the terms are
    what is looked at.

    Formula:
        sum over names of coefficient x objective(input, target)

    Args:
        terms: For each name a module or callable ``(input, target, **kwargs)`` and its coefficient, a number or a 0-d
            tensor.

    Shape:
        As its objectives; their values must have one shape.

    Returns:
        The sum; after a call ``terms`` holds the last uncoefficiented values by name, detached.

    Raises:
        ValueError: There are no terms.

    Example:
        >>> import torch
        >>> from lossary import WeightedSum
        >>> from lossary.classification import FocalLoss, SquentropyLoss
        >>> loss = WeightedSum({"focal": (FocalLoss(), 1.0), "square": (SquentropyLoss(), 0.5)})
        >>> value = loss(torch.zeros(2, 3), torch.tensor([0, 2]))
        >>> sorted(loss.terms)
        ['focal', 'square']
    """

    def __init__(self, terms: Mapping[str, tuple[Any, Tensor | float]]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("terms is empty; wanted at least one name with (objective, coefficient).")
        self.objectives = nn.ModuleDict({name: _as_module(objective) for name, (objective, _) in terms.items()})
        self.coefficients = {name: coefficient for name, (_, coefficient) in terms.items()}
        self.terms: dict[str, Tensor] = {}

    def forward(self, input: Tensor, target: Any, **kwargs: Any) -> Tensor:
        """Sum the objectives on the same arguments."""
        values = {name: objective(input, target, **kwargs) for name, objective in self.objectives.items()}
        self.terms = {name: value.detach() for name, value in values.items()}
        weighted = [self.coefficients[name] * value for name, value in values.items()]
        return torch.stack(weighted).sum(0)

    def extra_repr(self) -> str:
        """The coefficients."""
        return ", ".join(f"{name}: {coefficient}" for name, coefficient in self.coefficients.items())


class _Call(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def _as_module(objective: Any) -> nn.Module:
    return objective if isinstance(objective, nn.Module) else _Call(objective)
