"""What is trained: the plain module of one model, and the same model for many members at once.

A *member* is one model in training. Its weights are one row of a flat buffer ``(members, row size)``, so that an
optimiser step, a copy of the best weights or the removal of a member is one operation for a whole model.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lossary.classification import LegendreLink, NormalizedLinear
from lossary.compare.candidates import import_user_code
from lossary.core.errors import UserError

Head = Literal["linear", "cosine"]
Weights = Mapping[str, Tensor]

ROWS_PER_FORWARD = 4096
"""Rows of one forward pass without gradients; its activations should stay in the cache."""


@dataclasses.dataclass(frozen=True)
class Link:
    """A small module after the head that is trained with it; it draws nothing at random.

    Attributes:
        build: From the number of logits to the module, ``(rows, scores)`` to ``(rows, logits)``.
        scores: From the number of logits to that of the scores that it wants of the head.
    """

    build: Callable[[int], nn.Module]
    scores: Callable[[int], int]


LINKS: dict[str, Link] = {"legendre": Link(LegendreLink, lambda logits: logits - 1)}


def build_model(
    name: str, in_features: int, out_features: int, head: Head = "linear", link: str | None = None
) -> nn.Module:
    """The plain module of one member, ``(rows, in_features)`` to ``(rows, out_features)``.

    Args:
        name: ``linear``, ``mlp``, ``resnet``, or ``package.module:function`` of the user's own, which is called with
            ``(in_features, out_features)`` and returns a module.
        in_features: Columns of the input.
        out_features: Number of logits.
        head: ``linear``, or ``cosine`` for a last layer without bias on vectors of unit length; in a user's model it
            takes the place of the last ``nn.Linear`` with ``out_features`` outputs.
        link: Name of what follows the head (:data:`LINKS`), which may want other than ``out_features`` scores of it.

    Raises:
        UserError: There is no such model, it is no ``nn.Module``, or there is no layer for the cosine head to replace.
    """
    if link is not None:
        known = LINKS[link]
        return Linked(build_model(name, in_features, known.scores(out_features), head), known.build(out_features))
    if name in BUILT_IN:
        return BUILT_IN[name](in_features, out_features, head)
    if ":" not in name:
        raise UserError(
            f"There is no model {name!r}. Known: {', '.join(BUILT_IN)}.\n"
            f"Your own is named as package.module:function, called with (in_features, out_features)."
        )
    model = import_user_code(name, "model")(in_features, out_features)
    if not isinstance(model, nn.Module):
        raise UserError(f"The model {name!r} returned {type(model).__name__}; wanted a torch.nn.Module.")
    return model if head == "linear" else _with_cosine_head(name, model, out_features)


def predict_output(
    name: str,
    head: Head,
    weights: Mapping[str, npt.NDArray[Any]],
    x: npt.NDArray[Any],
    *,
    out_features: int,
    link: str | None = None,
) -> npt.NDArray[np.float32]:
    """Output ``(rows, out_features)`` of a plain module with these weights on ``x (rows, in_features)``."""
    model = build_model(name, x.shape[1], out_features, head, link)
    model.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    model.eval()
    rows = torch.split(torch.tensor(x, dtype=torch.float32), ROWS_PER_FORWARD)
    with torch.no_grad():
        output: npt.NDArray[np.float32] = torch.cat([model(block) for block in rows]).numpy()
    return output


class Linked(nn.Module):
    """A model with its link; ``model.*`` and ``link.*`` in the state dictionary."""

    def __init__(self, model: nn.Module, link: nn.Module) -> None:
        super().__init__()
        self.model, self.link = model, link

    def forward(self, x: Tensor, *masks: Tensor) -> Tensor:
        """What the link makes of the model's output."""
        return self.link(self.model(x, *masks))  # type: ignore[no-any-return]

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Show the link its first training batch, by which it may set its scales: all rows, dropout off."""
        self.model.eval()
        self.link.train()(torch.cat([self.model(block) for block in torch.split(x, ROWS_PER_FORWARD)]))
        self.link.eval()


class BuiltIn(nn.Module):
    """A model that comes with Lossary, plain in ``forward`` and for many members in ``stacked``.

    Dropout is drawn outside, so that it is the same in both.

    Attributes:
        dropout: Probability with which a masked unit is dropped.
        dropout_width: Masked units of a row, over all layers.
    """

    dropout: ClassVar[float] = 0.0
    dropout_width: ClassVar[int] = 0

    def __init__(self, in_features: int, out_features: int, head: Head) -> None:
        super().__init__()

    def forward(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        """``x (rows, in_features)`` to ``(rows, out_features)``; ``masks (rows, dropout_width)`` None in evaluation."""
        raise NotImplementedError

    @staticmethod
    def stacked(weights: Weights, x: Tensor, masks: Tensor | None) -> Tensor:
        """The same with an axis of members before every other: weights, ``x``, ``masks`` and output."""
        raise NotImplementedError

    @classmethod
    def draw_masks(cls, rows: int, generator: torch.Generator) -> Tensor:
        """Masks ``(rows, dropout_width)``: 0 where a unit is dropped, else the factor that keeps its mean."""
        return (torch.rand(rows, cls.dropout_width, generator=generator) >= cls.dropout) / (1 - cls.dropout)


class Linear(BuiltIn):
    """Logistic regression."""

    def __init__(self, in_features: int, out_features: int, head: Head) -> None:
        super().__init__(in_features, out_features, head)
        self.head = _head(in_features, out_features, head)

    def forward(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        """See :class:`BuiltIn`."""
        return self.head(x)  # type: ignore[no-any-return]

    @staticmethod
    def stacked(weights: Weights, x: Tensor, masks: Tensor | None) -> Tensor:
        """See :class:`BuiltIn`."""
        return _stacked_head(weights, x)


class MLP(BuiltIn):
    """Two hidden layers of 64 ReLU units."""

    WIDTH = 64

    def __init__(self, in_features: int, out_features: int, head: Head) -> None:
        super().__init__(in_features, out_features, head)
        self.first = nn.Linear(in_features, self.WIDTH)
        self.second = nn.Linear(self.WIDTH, self.WIDTH)
        self.head = _head(self.WIDTH, out_features, head)

    def forward(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        """See :class:`BuiltIn`."""
        return self.head(self.second(self.first(x).relu()).relu())  # type: ignore[no-any-return]

    @staticmethod
    def stacked(weights: Weights, x: Tensor, masks: Tensor | None) -> Tensor:
        """See :class:`BuiltIn`."""
        x = _stacked_linear(weights, "first", x).relu_()
        x = _stacked_linear(weights, "second", x).relu_()
        return _stacked_head(weights, x)


class ResNet(BuiltIn):
    """Residual network for tables (Gorishniy et al. 2021, arXiv 2106.11959), two blocks.

    LayerNorm stands in for their BatchNorm, so that a row's output does not depend on the batch it is in.
    """

    WIDTH, HIDDEN, BLOCKS = 64, 128, 2
    dropout, dropout_width = 0.2, BLOCKS * HIDDEN

    def __init__(self, in_features: int, out_features: int, head: Head) -> None:
        super().__init__(in_features, out_features, head)
        self.first = nn.Linear(in_features, self.WIDTH)
        self.norm = nn.ModuleList(nn.LayerNorm(self.WIDTH) for _ in range(self.BLOCKS + 1))
        self.up = nn.ModuleList(nn.Linear(self.WIDTH, self.HIDDEN) for _ in range(self.BLOCKS))
        self.down = nn.ModuleList(nn.Linear(self.HIDDEN, self.WIDTH) for _ in range(self.BLOCKS))
        self.head = _head(self.WIDTH, out_features, head)

    def forward(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        """See :class:`BuiltIn`."""
        x = self.first(x)
        for block in range(self.BLOCKS):
            hidden = self.up[block](self.norm[block](x)).relu()
            if masks is not None:
                hidden = hidden * masks[:, block * self.HIDDEN : (block + 1) * self.HIDDEN]
            x = x + self.down[block](hidden)
        return self.head(self.norm[-1](x).relu())  # type: ignore[no-any-return]

    @staticmethod
    def stacked(weights: Weights, x: Tensor, masks: Tensor | None) -> Tensor:
        """See :class:`BuiltIn`."""
        x = _stacked_linear(weights, "first", x)
        for block in range(ResNet.BLOCKS):
            hidden = _stacked_linear(weights, f"up.{block}", _stacked_norm(weights, f"norm.{block}", x)).relu_()
            if masks is not None:
                hidden = hidden * masks[:, :, block * ResNet.HIDDEN : (block + 1) * ResNet.HIDDEN]
            x = x + _stacked_linear(weights, f"down.{block}", hidden)
        return _stacked_head(weights, _stacked_norm(weights, f"norm.{ResNet.BLOCKS}", x).relu_())


BUILT_IN: dict[str, type[BuiltIn]] = {"linear": Linear, "mlp": MLP, "resnet": ResNet}


class StackedModel:
    """One model for many members on folds of unequal width; weights are rows of a flat buffer.

    Built-in models take every member in one batched product: inputs are padded with zero columns to the widest fold,
    whose weights are zero and stay zero. A user's model goes through ``torch.func`` fold by fold at its own width.

    Args:
        name: As for :func:`build_model`.
        head: As for :func:`build_model`.
        widths: Columns of each fold.
        out_features: Number of logits.
        seeds: Seed of the initial weights of each fold.
        device: Where the members live.
        dtype: Their floating-point type.
        loop: Whether members of a user's model are taken one by one, because ``vmap`` refuses it.
        link: As for :func:`build_model`. Built-in models pass their output through it member by member, by ``vmap``.

    Attributes:
        row_size: Numbers in a member's row.
        widths: Columns that each fold's inputs must have.
        draws: Whether a training step draws dropout masks.
    """

    def __init__(
        self,
        name: str,
        head: Head,
        widths: Sequence[int],
        out_features: int,
        *,
        seeds: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
        loop: bool,
        link: str | None = None,
    ) -> None:
        self._name, self._out_features, self._loop = name, out_features, loop
        self._own_widths = list(widths)
        self._plain: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):  # layers draw their initial weights from the global generator
            for width, seed in zip(widths, seeds, strict=True):
                torch.manual_seed(seed)
                self._plain.append(build_model(name, width, out_features, head, link).to(device, dtype))
        self._built_in = BUILT_IN.get(name)
        if self._built_in is not None:
            widest = self._plain[max(range(len(widths)), key=widths.__getitem__)]
            self._layouts = [_Layout(widest)] * len(widths)
            self.widths = [max(widths)] * len(widths)
        else:
            self._layouts = [_Layout(plain) for plain in self._plain]
            self.widths = list(widths)
        self.row_size = max(layout.size for layout in self._layouts)
        self.draws = self._built_in is None or self._built_in.dropout_width > 0

    def start_links(self, x: Sequence[Tensor]) -> None:
        """Let the links, if there are any, see each fold's training rows ``(n, width)`` before a member is made."""
        for plain, rows, width in zip(self._plain, x, self._own_widths, strict=True):
            if isinstance(plain, Linked):
                plain.start(rows[:, :width])

    @torch.no_grad()
    def initial_row(self, fold: int) -> Tensor:
        """The row of a new member of a fold: its plain module's initial weights, zeros in padded columns."""
        plain = self._plain[fold]
        row = next(plain.parameters()).new_zeros(self.row_size)
        for value, place in self._layouts[fold].places(plain, row):
            place.copy_(value)
        return row

    @torch.no_grad()
    def weights_of(self, row: Tensor, fold: int) -> dict[str, npt.NDArray[Any]]:
        """State dictionary of the plain module of a row, at the fold's own width."""
        plain = copy.deepcopy(self._plain[fold])
        for value, place in self._layouts[fold].places(plain, row):
            value.copy_(place)
        return {name: value.cpu().numpy() for name, value in plain.state_dict().items()}

    def groups(self, fold_of: Sequence[int]) -> list[range]:
        """Members that :meth:`forward` takes together, given each member's fold in ascending order."""
        if self._built_in is None:
            return runs(fold_of)
        return [range(len(fold_of))] if fold_of else []

    def trainable(self, fold: int) -> int:
        """How many numbers of a row, from its start, are parameters; buffers follow."""
        return self._layouts[fold].trainable

    def views(self, rows: Tensor, fold: int) -> dict[str, Tensor]:
        """Parameters and floating-point buffers ``(members, ...)`` by name, as views of ``rows (members, size)``."""
        return self._layouts[fold].views(rows)

    def parameter_names(self, fold: int) -> list[str]:
        """Names of the views that are trained."""
        return self._layouts[fold].parameters

    def forward(self, weights: Weights, x: Tensor, fold: int, seeds: Sequence[int] | None = None) -> Tensor:
        """Output ``(members, rows, out_features)`` of one group.

        Args:
            weights: As from :meth:`views`.
            x: ``(members, rows, width)``.
            fold: Fold of the group's members (any of them for a built-in model).
            seeds: Seed of each member's dropout masks; None in evaluation.
        """
        if self._built_in is not None:
            masks = None
            if seeds is not None and self._built_in.dropout_width > 0:
                drawn = {
                    seed: self._built_in.draw_masks(x.shape[1], torch.Generator().manual_seed(seed)).to(x)
                    for seed in set(seeds)
                }
                masks = torch.stack([drawn[seed] for seed in seeds])
            return self._built_in_output(self._built_in, weights, x, masks)
        plain = self._plain[fold].train(seeds is not None)
        # Batch normalisation writes to its buffers; under vmap it does so in place only where they are contiguous.
        written = {name: weights[name].clone() for name in self._layouts[fold].buffers} if seeds is not None else {}
        output: Tensor = over_members(
            lambda state, x: functional_call(plain, state, (x,)),
            {**weights, **written},
            x,
            loop=self._loop,
            seeds=seeds,
        )
        if output.shape[2:] != (self._out_features,):
            raise UserError(
                f"The model {self._name!r} returned shape {tuple(output.shape[1:])} for {x.shape[1]} rows; "
                f"wanted {(x.shape[1], self._out_features)}."
            )
        for name, value in written.items():
            # Through .data, since autograd counts a write to a row as a write to the parameters beside it.
            weights[name].data.copy_(value)
        return output

    def _built_in_output(self, model: type[BuiltIn], weights: Weights, x: Tensor, masks: Tensor | None) -> Tensor:
        plain = self._plain[0]  # a link has the same sizes in every fold
        if not isinstance(plain, Linked):
            return model.stacked(weights, x, masks)
        scores = model.stacked(_below("model.", weights), x, masks)
        logits: Tensor = over_members(
            lambda state, scores: functional_call(plain.link, state, (scores,)),
            _below("link.", weights),
            scores,
            loop=self._loop,
        )
        return logits


class _Layout:
    """Where the parameters, then the other floating-point tensors of a module lie in a row.

    Every tensor starts at a multiple of 16 numbers: products read aligned cache lines.

    Attributes:
        parameters: Names of what is trained.
        buffers: Names of what is not: buffers and frozen parameters.
        trainable: Numbers of a row that are trained, from its start.
        size: Numbers of a row.
    """

    def __init__(self, plain: nn.Module) -> None:
        state = _state(plain)
        self.parameters = [name for name, value in state.items() if value.requires_grad]
        self.buffers = [name for name in state if name not in self.parameters]
        self._places: dict[str, tuple[int, torch.Size]] = {}
        self.size = self.trainable = 0
        for name in (*self.parameters, *self.buffers):
            self._places[name] = (self.size, state[name].shape)
            self.size += math.ceil(state[name].numel() / 16) * 16
            if name in self.parameters:
                self.trainable = self.size

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """Tensors ``(members, ...)`` by name, as views of ``rows (members, size)``."""
        return {
            name: rows[:, start : start + shape.numel()].view(len(rows), *shape)
            for name, (start, shape) in self._places.items()
        }

    def places(self, plain: nn.Module, row: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each tensor of a plain module, perhaps narrower than the layout, and its place in a row."""
        views = self.views(row.unsqueeze(0))
        return [
            (value, views[name][0][tuple(slice(size) for size in value.shape)]) for name, value in _state(plain).items()
        ]


def over_members(
    function: Callable[..., Any], *arguments: Tensor | Weights, loop: bool, seeds: Sequence[int] | None = None
) -> Any:
    """A function of one member applied to all, by ``vmap`` or one by one.

    Args:
        function: Takes tensors or dictionaries of tensors; returns a tensor, a dictionary of tensors or a tuple of
            these.
        arguments: Its arguments with members along the first axis.
        loop: Whether to go one by one.
        seeds: Seed of the global generator for each member, for functions that draw. ``vmap`` takes the first for
            all: members of one fold draw the same.
    """
    if not loop:
        if seeds is not None:
            torch.manual_seed(seeds[0])
        return torch.vmap(function, randomness="error" if seeds is None else "same")(*arguments)
    first = arguments[0]
    results = []
    for member in range(len(first if isinstance(first, Tensor) else next(iter(first.values())))):
        if seeds is not None:
            torch.manual_seed(seeds[member])
        results.append(
            function(
                *(
                    argument[member]
                    if isinstance(argument, Tensor)
                    else {name: value[member] for name, value in argument.items()}
                    for argument in arguments
                )
            )
        )
    return _stacked(results)


def runs(values: Sequence[int]) -> list[range]:
    """Positions of equal neighbours: ``[5, 5, 7]`` gives ``[range(0, 2), range(2, 3)]``."""
    ends = [i for i in range(1, len(values) + 1) if i == len(values) or values[i] != values[i - 1]]
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _stacked(results: Sequence[Any]) -> Any:
    """Results of members, as ``vmap`` gives them."""
    if isinstance(results[0], tuple):
        return tuple(_stacked(parts) for parts in zip(*results, strict=True))
    if isinstance(results[0], Mapping):
        return {name: torch.stack([result[name] for result in results]) for name in results[0]}
    return torch.stack(list(results))


def _state(plain: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers of a module; other buffers (counters) never leave it."""
    buffers = {name: value for name, value in plain.named_buffers() if value.is_floating_point()}
    return dict(plain.named_parameters()) | buffers


def _below(prefix: str, weights: Weights) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _head(in_features: int, out_features: int, head: Head) -> nn.Module:
    return nn.Linear(in_features, out_features) if head == "linear" else NormalizedLinear(in_features, out_features)


def _with_cosine_head(name: str, model: nn.Module, out_features: int) -> nn.Module:
    layers = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not layers or layers[-1][1].out_features != out_features:
        raise UserError(
            f"An objective with a cosine head needs the last nn.Linear of {name!r} to have {out_features} outputs.\n"
            f"Leave out objectives with a cosine head (ldam, ldam_drw, cosine_cross_entropy), or end the model so."
        )
    path, last = layers[-1]
    cosine = NormalizedLinear(last.in_features, out_features)
    if not path:
        return cosine
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, cosine)
    return model


def _stacked_linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return torch.baddbmm(weights[f"{name}.bias"].unsqueeze(1), x, weights[f"{name}.weight"].mT)


def _stacked_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    normalized = F.layer_norm(x, x.shape[-1:])
    return torch.addcmul(weights[f"{name}.bias"].unsqueeze(1), normalized, weights[f"{name}.weight"].unsqueeze(1))


def _stacked_head(weights: Weights, x: Tensor) -> Tensor:
    if "head.bias" in weights:
        return _stacked_linear(weights, "head", x)
    return torch.bmm(F.normalize(x, dim=-1), F.normalize(weights["head.weight"], dim=1))
