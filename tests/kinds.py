"""How the contract makes the data of each kind of objective, and what it may ask of them.

A kind makes one ``input`` and one ``target``, each with the rows along the first axis; what else an objective is called
with follows from these two, by its registration or by its kind.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from lossary.core.objective import Kind

ROWS, CLASSES = 6, 5

Data = tuple[Tensor, Tensor]


class Inputs:
    """Independent yes/no labels, unless a subclass says otherwise.

    Attributes:
        indexed: Whether targets are class indices, some of which may be ignored.
        class_weight: What weights of classes are called, where there are any.
        row_weight: Whether a row is weighted by its own label's weight.
        axis: The axis of the classes.
        single_rows: Whether a row may come without its axis.
        unit_interval: Name of the argument that must lie in [0, 1].
    """

    indexed: ClassVar[bool] = False
    class_weight: ClassVar[str | None] = None
    row_weight: ClassVar[bool] = False
    axis: ClassVar[int] = 1
    single_rows: ClassVar[bool] = True
    unit_interval: ClassVar[str | None] = None

    def sample(self, scale: float, generator: torch.Generator) -> Data:
        """Rows and their targets."""
        return numbers(scale, generator), torch.randint(2, (ROWS, CLASSES), generator=generator).double()

    def shapes(self, input: Tensor, target: Tensor) -> list[Data]:
        """The same numbers in every shape that the kind allows."""
        return [
            (input, target),
            (input.reshape(3, 2, CLASSES), target.reshape(3, 2, CLASSES)),
            (input[:, 0], target[:, 0]),
        ]

    def infinite(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]] | None:
        """Data with an infinite number in the first row at which the value is defined, and options; None if there is
        none.
        """
        target = (target > 0.5).double()
        input[0] = torch.where(target[0] == 1, math.inf, -math.inf)
        return input, target, {}

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """All that the objective is called with, given what its registration makes of input and target."""
        return given

    def under_autocast(self, input: Tensor) -> Tensor:
        """What an objective sees of a float32 input under autocast."""
        return input


class Labels(Inputs):
    unit_interval = "target"


class Classes(Inputs):
    indexed, class_weight, row_weight = True, "weight", True

    def sample(self, scale: float, generator: torch.Generator) -> Data:
        return numbers(scale, generator), torch.randint(CLASSES, (ROWS,), generator=generator)

    def shapes(self, input: Tensor, target: Tensor) -> list[Data]:
        return [
            (input, target),
            (input.reshape(3, 2, CLASSES).movedim(-1, self.axis), target.reshape(3, 2)),
            (input.reshape(1, 3, 2, CLASSES).movedim(-1, self.axis), target.reshape(1, 3, 2)),
        ]

    def infinite(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        input[0, (target[0] + 1) % CLASSES] = -math.inf
        return input, target, {}


class Tokens(Classes):
    axis = -1

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"logits": given.pop("input"), **given}


class Boundaries(Classes):
    axis = -1


class Teacher(Classes):
    row_weight = False  # a teacher's classes are weighted each by its own

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        target = given["target"]
        classes = torch.arange(CLASSES).reshape([-1] + [1] * (target.ndim - 1))
        teacher = (target.unsqueeze(min(target.ndim, 1)) + classes).double().sin()
        return {"input": given["input"], "teacher_logits": teacher, "target": target}


class Head(Classes):
    axis = -1
    HEAD: ClassVar[Tensor] = torch.eye(CLASSES, dtype=torch.float64).roll(1, 0)
    """Logits are the hidden states in another order, exactly."""

    def infinite(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        bias = torch.tensor([-math.inf, *[0.0] * (CLASSES - 1)], dtype=torch.float64)
        return input, target.clamp(min=1), {"linear_bias": bias}

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        input = given["input"]
        return {**given, "linear_weight": self.HEAD.to(input.dtype if input.is_floating_point() else torch.float64)}

    def under_autocast(self, input: Tensor) -> Tensor:
        return input.bfloat16()  # a head is cast as the arguments of F.linear are


class Values(Inputs):
    axis = -1

    def sample(self, scale: float, generator: torch.Generator) -> Data:
        return numbers(scale, generator), torch.randn(ROWS, generator=generator, dtype=torch.float64)

    def shapes(self, input: Tensor, target: Tensor) -> list[Data]:
        return [(input, target), (input.reshape(3, 2, CLASSES), target.reshape(3, 2)), (input[0], target[0])]

    def infinite(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        input[0, 1] = -math.inf
        return input, target, {}


class Points(Inputs):
    def sample(self, scale: float, generator: torch.Generator) -> Data:
        input = numbers(scale, generator)
        return (3 * input / (1 + input.norm(dim=1, keepdim=True))).float().double(), input.new_zeros(ROWS)

    def shapes(self, input: Tensor, target: Tensor) -> list[Data]:
        return [(input, target), (input[:4], target[:4]), (input[:2], target[:2])]

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"input": given["input"]}


class Rasters(Inputs):
    unit_interval = "raster"

    def shapes(self, input: Tensor, target: Tensor) -> list[Data]:
        return [(input, target)]


class Pairs(Inputs):
    def sample(self, scale: float, generator: torch.Generator) -> Data:
        input = numbers(scale, generator)
        return input, numbers(1.0, generator)

    def infinite(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        input[0, 1] = -math.inf
        return input, target, {}


class Boxes(Inputs):
    def sample(self, scale: float, generator: torch.Generator) -> Data:
        here, there = (numbers(1.0, generator, ROWS, 4) for _ in range(2))
        return (scale * self.corners(here)).float().double(), scale * self.corners(here + 0.3 * there)

    def shapes(self, input: Tensor, target: Tensor) -> list[Data]:
        return [(input, target), (input.reshape(3, 2, 4), target.reshape(3, 2, 4))]

    def infinite(self, input: Tensor, target: Tensor) -> None:
        return None

    @staticmethod
    def corners(drawn: Tensor) -> Tensor:
        """Corners x1, y1, x2, y2 of boxes with a corner and sizes from the numbers."""
        corner, size = drawn.split(2, -1)
        return torch.cat([corner, corner + 1 + size.sigmoid()], -1)


class Embeddings(Classes):
    def shapes(self, input: Tensor, target: Tensor) -> list[Data]:
        return [(input, target)]

    def infinite(self, input: Tensor, target: Tensor) -> None:  # type: ignore[override]
        return None


class Regions(Inputs):
    indexed, class_weight, single_rows = True, "weight", False

    def sample(self, scale: float, generator: torch.Generator) -> Data:
        return numbers(scale, generator, ROWS, CLASSES, 4), torch.randint(CLASSES, (ROWS, 4), generator=generator)

    def shapes(self, input: Tensor, target: Tensor) -> list[Data]:
        return [(input, target), (input.reshape(ROWS, CLASSES, 2, 2), target.reshape(ROWS, 2, 2))]

    def infinite(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        input[0, 1] = torch.where(target[0] == 1, input[0, 1], -math.inf)
        return input, target, {}


class Sequences(Inputs):
    indexed, axis, single_rows = True, -1, False

    def sample(self, scale: float, generator: torch.Generator) -> Data:
        return numbers(scale, generator, ROWS, 4, CLASSES), torch.randint(CLASSES, (ROWS, 4), generator=generator)

    def shapes(self, input: Tensor, target: Tensor) -> list[Data]:
        return [(input, target), (input[:, :1], target[:, :1])]

    def infinite(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        input[0, 0, (target[0, 0] + 1) % CLASSES] = -math.inf
        return input, target, {}

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"logits": given.pop("input"), **given} if "input" in given else given


class HeadSequences(Sequences):
    def infinite(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        return KINDS[Kind.HEAD].infinite(input, target)  # type: ignore[return-value]

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        input = next(iter(given.values()))
        return given | {"linear_weight": Head.HEAD.to(input.dtype if input.is_floating_point() else torch.float64)}

    def under_autocast(self, input: Tensor) -> Tensor:
        return KINDS[Kind.HEAD].under_autocast(input)


class Images(Inputs):
    single_rows = False

    def sample(self, scale: float, generator: torch.Generator) -> Data:
        """Positive, as depths and disparities have to be."""
        input, other = (numbers(1.0, generator, ROWS, 2, 4, 4).sigmoid() + 0.1 for _ in range(2))
        return (scale * input).float().double(), other

    def shapes(self, input: Tensor, target: Tensor) -> list[Data]:
        return [(input, target)]

    def infinite(self, input: Tensor, target: Tensor) -> None:
        return None


class Preferences(Inputs):
    """Policy log-probabilities of chosen and rejected beside each other, and those of the reference likewise."""

    NAMES = ("chosen_logps", "rejected_logps")

    def sample(self, scale: float, generator: torch.Generator) -> Data:
        return numbers(scale, generator, ROWS, 2), numbers(scale, generator, ROWS, 2)

    def shapes(self, input: Tensor, target: Tensor) -> list[Data]:
        return [(input, target), (input.reshape(3, 2, 2), target.reshape(3, 2, 2))]

    def infinite(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        input[0, 1] = -math.inf
        return input, target, {}

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        policy, reference = given.pop("input"), given.pop("target")
        return {
            **{f"policy_{name}": policy[..., place] for place, name in enumerate(self.NAMES)},
            **{f"reference_{name}": reference[..., place] for place, name in enumerate(self.NAMES)},
            **given,
        }


def numbers(scale: float, generator: torch.Generator, *shape: int) -> Tensor:
    """Normal numbers that are the same in float32, so that precisions compare like with like."""
    drawn = torch.randn(shape or (ROWS, CLASSES), generator=generator, dtype=torch.float64)
    return (scale * drawn).float().double()


KINDS: dict[Kind, Inputs] = {
    Kind.CLASSES: Classes(),
    Kind.LABELS: Labels(),
    Kind.VALUES: Values(),
    Kind.TOKENS: Tokens(),
    Kind.BOUNDARIES: Boundaries(),
    Kind.SEQUENCES: Sequences(),
    Kind.HEAD: Head(),
    Kind.HEAD_SEQUENCES: HeadSequences(),
    Kind.TEACHER: Teacher(),
    Kind.POINTS: Points(),
    Kind.RASTERS: Rasters(),
    Kind.PAIRS: Pairs(),
    Kind.BOXES: Boxes(),
    Kind.EMBEDDINGS: Embeddings(),
    Kind.REGIONS: Regions(),
    Kind.IMAGES: Images(),
    Kind.PREFERENCES: Preferences(),
}
