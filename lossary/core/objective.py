"""The module around a pure function, and the register of all objectives.

Mathematics is a function on tensors; :class:`Objective` only remembers hyperparameters. ``@objective(...)`` enters a
function in the register, and a subclass of :class:`Objective` that names it as its ``function`` becomes its module
form. What is registered goes through the contract of the test suite.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn


class Kind(enum.Enum):
    """What an objective is called with; the contract makes its inputs from this."""

    CLASSES = "logits (N, C, ...) with class indices or probabilities"
    LABELS = "logits of any shape with yes/no targets of the same shape"
    VALUES = "logits (..., bins) over an interval with real targets (...)"
    TOKENS = "logits (..., V) with class indices (...)"
    BOUNDARIES = "logits (..., classes) with class indices (...), of sentences"
    SEQUENCES = "logits (B, T, V) with class indices (B, T); a row is a whole sequence"
    HEAD = "hidden states (..., D) and a linear head (V, D), with class indices (...)"
    HEAD_SEQUENCES = "hidden states (B, T, D) and a linear head (V, D), with class indices (B, T); a row is a sequence"
    TEACHER = "logits (N, C, ...) with a teacher's logits of the same shape and class indices"
    POINTS = "points (N, D) of the ball of curvature -0.1, compared with each other"
    RASTERS = "kernels (motifs, neurons, delays) with the onsets and the rasters of trials"
    PAIRS = "real values of any shape with real targets of the same shape"
    BOXES = "boxes (..., 4) with boxes of the same shape"
    EMBEDDINGS = "embeddings (N, D) with class indices and a vector (C, D) for each class"
    REGIONS = "logits (N, C, d1, ...) with class indices; a row is a whole image"
    IMAGES = "images or feature maps (N, C, H, W) with others of the same size; a row is a whole image"
    PREFERENCES = "log-probabilities (N,) of chosen and rejected responses, under policy and reference"


@dataclasses.dataclass(frozen=True)
class Registered:
    """An objective as the register knows it.

    Attributes:
        name: Name of the function, as exported by its family.
        family: Package that exports it, such as ``classification``.
        function: The pure form.
        kind: What it is called with.
        example: Arguments that it cannot do without, given the number of classes.
        arguments: From rows (input, target) to its arguments, for those that want more tensors than these two.
        unbounded: Whether +inf is a legitimate value at extreme logits.
        exempt: Checks of the contract that it does not undergo, each with its reason.
        stateful: Whether it returns ``(loss, new state)``.
        batch_level: Whether it is one value for the whole batch (a metric's surrogate), with no loss per row to reduce.
        nothing_is_zero: Whether ``mean`` is 0, not NaN, where no row counts.
        module: The class that remembers its hyperparameters, or None.
    """

    name: str
    family: str
    function: Callable[..., Any]
    kind: Kind
    example: Callable[[int], dict[str, Any]]
    arguments: Callable[[Any, Any], dict[str, Any]]
    unbounded: bool
    exempt: Mapping[str, str]
    stateful: bool
    batch_level: bool
    nothing_is_zero: bool = False
    module: type[Objective] | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the function's arguments."""
        return tuple(inspect.signature(self.function).parameters)


Function = TypeVar("Function", bound=Callable[..., Any])
_REGISTER: dict[str, Registered] = {}


def objective(
    kind: Kind,
    *,
    example: Callable[[int], dict[str, Any]] = lambda num_classes: {},
    arguments: Callable[[Any, Any], dict[str, Any]] = lambda input, target: {"input": input, "target": target},
    unbounded: bool = False,
    exempt: Mapping[str, str] | None = None,
    stateful: bool = False,
    batch_level: bool = False,
    nothing_is_zero: bool = False,
) -> Callable[[Function], Function]:
    """Decorator that enters a pure objective in the register; see :class:`Registered` for the words."""

    def enter(function: Function) -> Function:
        name = function.__name__
        if name in _REGISTER and _REGISTER[name].function.__module__ != function.__module__:  # a re-import may repeat
            raise ValueError(f"{name} is registered twice: by {_REGISTER[name].function.__module__} and here.")
        family = function.__module__.split(".")[1]
        _REGISTER[name] = Registered(
            name,
            family,
            function,
            kind,
            example,
            arguments,
            unbounded,
            dict(exempt or {}),
            stateful,
            batch_level,
            nothing_is_zero,
        )
        return function

    return enter


def registered() -> dict[str, Registered]:
    """The register: objectives of the families imported so far, by name."""
    return dict(sorted(_REGISTER.items()))


class Objective(nn.Module):
    """Remembers the hyperparameters of a pure objective and calls it.

    Subclasses set ``function`` and hand every hyperparameter to ``super().__init__`` by the function's own word.
    Tensors and sequences of numbers become buffers (so they follow ``.to()`` and appear in ``state_dict``), learnable
    ones (``nn.Parameter``) parameters, all else plain attributes.
    """

    function: ClassVar[Callable[..., Any]]

    def __init__(self, **hyperparameters: Any) -> None:
        super().__init__()
        self._names = tuple(hyperparameters)
        for name, value in hyperparameters.items():
            if isinstance(value, Sequence) and not isinstance(value, str):
                value = torch.tensor(value, dtype=torch.get_default_dtype())
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            elif isinstance(value, Tensor) or value is None:  # None may become a tensor later, as weight= does
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "function" in cls.__dict__:
            # Called through the class, so that the function never binds the module as its first argument.
            function = cls.__dict__["function"]
            cls.function = staticmethod(function)
            name = function.__name__
            if name in _REGISTER and _REGISTER[name].module is None:  # a user's subclass does not replace ours
                _REGISTER[name] = dataclasses.replace(_REGISTER[name], module=cls)

    def hyperparameters(self) -> dict[str, Any]:
        """The hyperparameters by the words of the pure function."""
        return {name: getattr(self, name) for name in self._names}

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The objective on ``input`` and ``target``; see the class for shapes.

        Args:
            input: Logits.
            target: Targets.
            sample_weight: One weight for each row.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        value: Tensor = self.function(
            input, target, sample_weight=sample_weight, normalizer=normalizer, **self.hyperparameters()
        )
        return value

    def extra_repr(self) -> str:
        """Hyperparameters as they would be written in the call."""
        return ", ".join(
            f"{name}={tuple(value.shape) if isinstance(value, Tensor) and value.ndim else value!r}"
            for name, value in self.hyperparameters().items()
        )


class BatchObjective(Objective):
    """An :class:`Objective` with one value for the whole batch: nothing per row to reduce or to normalise."""

    def forward(self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The objective on ``input`` and ``target``; see the class for shapes.

        Args:
            input: Logits.
            target: Targets.
            sample_weight: One weight for each row.
        """
        value: Tensor = self.function(input, target, sample_weight=sample_weight, **self.hyperparameters())
        return value
