"""The trainer: the members of a stack learn together, each with its own settings, fold and early stopping.

Members (settings x inner folds of one candidate) are rows of one flat buffer; a step is a batched forward and backward
pass over all of them and one AdamW call for each. The learning rate is constant: early stopping keeps the best epoch.
What a member learns depends on its settings, its fold and the seed, never on who else is in the stack (up to rounding
where the width of the padding differs).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.compare import metrics
from lossary.compare.models import ROWS_PER_FORWARD, StackedModel, over_members, runs
from lossary.compare.options import Task
from lossary.core.errors import UserError
from lossary.core.seeding import derive, generator

if TYPE_CHECKING:
    from lossary.compare.candidates import Candidate

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""Of AdamW, as torch.optim.AdamW has them."""


@dataclass(frozen=True)
class Fold:
    """One preprocessed inner split; its members share initial weights, batches and dropout masks.

    Attributes:
        key: ``(outer split, inner fold)``: with the seed of the training it seeds all that is drawn.
        x_train: ``(n, f)`` float32; every fold has its own number of rows and columns.
        y_train: ``(n,)`` int64, multi-label ``(n, L)`` float.
        x_val: ``(n_val, f)``.
        y_val: As ``y_train``.
        x_test: ``(n_test, f)``, possibly without rows.
    """

    key: tuple[int, ...]
    x_train: npt.NDArray[Any]
    y_train: npt.NDArray[Any]
    x_val: npt.NDArray[Any]
    y_val: npt.NDArray[Any]
    x_test: npt.NDArray[Any]


@dataclass(frozen=True)
class Member:
    """One fit to make: the index of its fold, and its learning_rate, weight_decay and candidate's hyperparameters."""

    fold: int
    settings: Mapping[str, float]


@dataclass(frozen=True)
class Training:
    """How every member of every stack is trained.

    Attributes:
        task: The task.
        num_outputs: Number of logits.
        model: See :func:`lossary.compare.models.build_model`.
        metric: Name of the primary metric, which early stopping follows.
        calibrate: Calibrator in front of a probability metric.
        batch_size: Rows of a batch; all of a fold's rows where it has fewer.
        max_epochs: Epochs after which a member stops at the latest.
        patience: Epochs without a better score after which a member stops.
        seed: Seed of initial weights, batches and dropout masks.
        device: Where to train.
        dtype: In what; ``float64`` is for tests.
    """

    task: Task
    num_outputs: int
    model: str
    metric: str
    calibrate: str
    batch_size: int
    max_epochs: int
    patience: int
    seed: int
    device: str = "cpu"
    dtype: Literal["float32", "float64"] = "float32"


@dataclass(frozen=True)
class Fit:
    """A trained member, at its best epoch.

    Attributes:
        score: The criterion on the validation rows, lower is better; inf if no epoch had a finite one.
        best_epoch: Number of epochs trained then, from 1; 0 if no epoch had a finite score.
        epochs: Number of epochs trained.
        at_cap: Whether it was stopped by ``max_epochs``.
        seconds: Wall time of the stack divided by its members.
        validation_logits: ``(n_val, C)`` in the dtype of the training, uncalibrated.
        test_logits: ``(n_test, C)``.
        weights: State dictionary of the plain module without padding, if kept.
    """

    score: float
    best_epoch: int
    epochs: int
    at_cap: bool
    seconds: float
    validation_logits: npt.NDArray[Any]
    test_logits: npt.NDArray[Any]
    weights: dict[str, npt.NDArray[Any]] | None


def train_stack(
    candidate: Candidate,
    folds: Sequence[Fold],
    members: Sequence[Member],
    training: Training,
    *,
    keep_weights: bool = False,
    on_epoch: Callable[[int, int], None] | None = None,
) -> list[Fit]:
    """Train the members of one candidate together.

    Args:
        candidate: What they are trained with.
        folds: The inner splits of one outer split.
        members: What is to be fitted; order and grouping do not matter.
        training: How.
        keep_weights: Whether fits keep their best weights.
        on_epoch: Called after each epoch with (epochs done, members still training).

    Returns:
        One fit for each member, in their order.

    Raises:
        UserError: The user's own objective or model fails.
    """
    start = time.perf_counter()
    loop = vmap_refuses(candidate, training, in_features=folds[0].x_train.shape[1]) is not None
    # User code may draw from the global generator: its state is ours here, and given back.
    with torch.random.fork_rng(devices=[training.device] if training.device != "cpu" else []):
        stack = _Stack(candidate, folds, members, training, loop=loop)
        for epoch in range(training.max_epochs):
            losses = stack.train_epoch(epoch)
            stack.judge_epoch(epoch, losses)
            if on_epoch is not None:
                on_epoch(epoch + 1, stack.live)
            if stack.live == 0:
                break
        fits = stack.fits(keep_weights=keep_weights)
    seconds = (time.perf_counter() - start) / len(members)
    return [dataclasses.replace(fit, seconds=seconds) for fit in fits]


def vmap_refuses(candidate: Candidate, training: Training, in_features: int = 8) -> str | None:
    """Why ``torch.vmap`` cannot take a candidate or its model, or None if it can.

    Tries a step on made-up rows, so that the answer is one for all stacks of a comparison. What is refused is trained
    by a plain loop over members.

    Raises:
        UserError: The objective or the model fails without ``vmap`` too.
    """
    try:
        _try_step(candidate, training, in_features, loop=False)
    except UserError:
        raise
    except Exception as refusal:
        try:
            _try_step(candidate, training, in_features, loop=True)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"Objective {candidate.name!r} with model {training.model!r} fails on a batch of made-up rows:\n"
                f"{_first_line(error)}"
            ) from error
        return _first_line(refusal)
    return None


class _Batch(NamedTuple):
    """One step's rows, for each live member: features, targets and their numbers within the fold."""

    x: list[Tensor]
    y: list[Tensor]
    rows: list[Tensor]


class _Stack:
    """Members in training, sorted by fold; those that stop leave the buffers, so that they cost nothing more."""

    def __init__(
        self, candidate: Candidate, folds: Sequence[Fold], members: Sequence[Member], training: Training, *, loop: bool
    ) -> None:
        self._candidate, self._training, self._loop = candidate, training, loop
        self._device, self._dtype = torch.device(training.device), getattr(torch, training.dtype)
        self._keys = [fold.key for fold in folds]
        self._model = StackedModel(
            training.model,
            candidate.head,
            [fold.x_train.shape[1] for fold in folds],
            training.num_outputs,
            seeds=[derive(training.seed, "init", *key) for key in self._keys],
            device=self._device,
            dtype=self._dtype,
            loop=loop,
            link=candidate.link,
        )
        self._x_train, self._x_val, self._x_test = (
            [self._inputs(getattr(fold, name), width) for fold, width in zip(folds, self._model.widths, strict=True)]
            for name in ("x_train", "x_val", "x_test")
        )
        self._model.start_links(self._x_train)
        self._y_train = [self._tensor(fold.y_train) for fold in folds]
        self._y_val = [self._tensor(fold.y_val) for fold in folds]
        smallest = min(len(y) for y in self._y_train)
        self._batch_size = min(training.batch_size, smallest)
        self._batches = smallest // self._batch_size  # of an epoch, in every fold

        self._order = sorted(range(len(members)), key=lambda i: members[i].fold)
        self._members = [members[i] for i in self._order]
        self._all_parts = self._parts_of(self._members)
        # What is remembered of every member, stopped ones included.
        self._best_rows = torch.stack([self._model.initial_row(member.fold) for member in self._members])
        self._best_score = torch.full((len(members),), math.inf, dtype=torch.float64)
        self._best_epoch, self._epochs = torch.zeros(2, len(members), dtype=torch.int64)
        self._at_cap = torch.zeros(len(members), dtype=torch.bool)
        # What is in training.
        self._rows = self._best_rows.clone()
        self._first_moments, self._second_moments = torch.zeros_like(self._rows), torch.zeros_like(self._rows)
        self._state = self._first_state()
        self._step = torch.zeros((), device=self._device)
        self._bind(torch.arange(len(members)))

    @property
    def live(self) -> int:
        """Number of members still training."""
        return len(self._live)

    def train_epoch(self, epoch: int) -> Tensor:
        """Take one step with every batch; returns the summed losses ``(live,)``."""
        parts = self._parts_at(epoch)
        of_rows = self._of_rows(epoch, parts)
        drawn = self._drawn(epoch)
        batches = self._own_batches(drawn.pop("row")) if "row" in drawn else self._shared_batches(epoch)
        losses = torch.zeros(self.live, dtype=self._dtype, device=self._device)
        for step, (x, y, rows) in enumerate(batches):
            now = parts | {name: values[:, step] for name, values in drawn.items()}
            if of_rows or self._state:
                now |= {"row": torch.stack(rows)}
                now |= {name: _at(values, rows) for name, values in of_rows.items()}
            seeds = self._seeds(epoch * self._batches + step)
            loss = self._objective(self._output(self._inputs_of(x, now), seeds), torch.stack(y), now, seeds)
            gradients = torch.autograd.grad(loss.sum(), self._leaves, materialize_grads=True)
            torch._foreach_copy_(self._gradients, gradients)
            self._update()
            losses += loss.detach()
        return losses

    @torch.no_grad()
    def judge_epoch(self, epoch: int, losses: Tensor) -> None:
        """Score the live members on their validation rows, keep better weights, and stop who is done."""
        score = torch.full((self.live,), math.inf, dtype=torch.float64)
        finite = (losses.isfinite() & self._rows.isfinite().all(1)).cpu()
        for members in runs(self._fold_of):
            fold = self._fold_of[members.start]
            part = slice(members.start, members.stop)
            parts = {name: value[part] for name, value in self._live_parts.items()}
            logits = self._logits(self._rows[part], parts, fold, self._x_val[fold])
            sound = logits.isfinite().flatten(1).all(1)
            finite[part] &= sound.cpu()
            score[part] = (
                metrics.stacked_criterion(
                    self._training.metric,
                    torch.where(sound[:, None, None], logits, 0.0),
                    self._y_val[fold],
                    task=self._training.task,
                    calibrate=self._training.calibrate,
                )
                .cpu()
                .double()
            )
        live, epochs = self._live, epoch + 1
        better = finite & (score < self._best_score[live])
        self._best_rows[live[better]] = self._rows[better]
        self._best_score[live[better]] = score[better]
        self._best_epoch[live[better]] = epochs
        self._epochs[live] = epochs
        waited = epochs - self._best_epoch[live] >= self._training.patience
        self._at_cap[live] = finite & ~waited & (epochs == self._training.max_epochs)
        goes_on = finite & ~waited & (epochs < self._training.max_epochs)
        if not goes_on.all():
            self._rows, self._first_moments, self._second_moments = (
                buffer[goes_on] for buffer in (self._rows, self._first_moments, self._second_moments)
            )
            self._state = {name: value[goes_on.to(self._device)] for name, value in self._state.items()}
            self._bind(live[goes_on])

    @torch.no_grad()
    def fits(self, *, keep_weights: bool) -> list[Fit]:
        """The fits in the order in which their members were given; ``seconds`` is left at 0."""
        fits = {}
        for members in runs([member.fold for member in self._members]):
            fold = self._members[members.start].fold
            part = slice(members.start, members.stop)
            rows, parts = self._best_rows[part], {name: value[part] for name, value in self._all_parts.items()}
            validation = self._logits(rows, parts, fold, self._x_val[fold]).cpu().numpy()
            test = self._logits(rows, parts, fold, self._x_test[fold]).cpu().numpy()
            for i, member in enumerate(members):
                fits[self._order[member]] = Fit(
                    score=float(self._best_score[member]),
                    best_epoch=int(self._best_epoch[member]),
                    epochs=int(self._epochs[member]),
                    at_cap=bool(self._at_cap[member]),
                    seconds=0.0,
                    validation_logits=validation[i],
                    test_logits=test[i],
                    weights=self._model.weights_of(rows[i], fold) if keep_weights else None,
                )
        return [fits[i] for i in range(len(fits))]

    def _bind(self, live: Tensor) -> None:
        """Point everything that a step touches at the rows of the members ``live``."""
        self._live = live
        members = [self._members[i] for i in live.tolist()]
        self._fold_of = [member.fold for member in members]
        self._live_parts = {name: value[live.to(self._device)] for name, value in self._all_parts.items()}
        gradients = torch.zeros_like(self._rows)
        self._groups: list[tuple[range, dict[str, Tensor]]] = []
        self._leaves: list[Tensor] = []
        self._gradients: list[Tensor] = []
        for group in self._model.groups(self._fold_of):
            fold, part = self._fold_of[group.start], slice(group.start, group.stop)
            weights, places = (self._model.views(buffer[part], fold) for buffer in (self._rows, gradients))
            for name in self._model.parameter_names(fold):
                self._leaves.append(weights[name].requires_grad_())
                self._gradients.append(places[name])
            self._groups.append((group, weights))
        self._updates = []
        for i, member in enumerate(members):
            trainable = slice(self._model.trainable(member.fold))
            buffers = (self._rows, gradients, self._first_moments, self._second_moments)
            self._updates.append(([buffer[i, trainable] for buffer in buffers], member.settings))

    def _shared_batches(self, epoch: int) -> Iterator[_Batch]:
        """Each fold's rows shuffled anew, the same for all its members; the remainder is dropped."""
        batches = {}
        for fold in set(self._fold_of):
            draw = generator(self._training.seed, "batches", *self._keys[fold], epoch)
            order = torch.randperm(len(self._x_train[fold]), generator=draw)[: self._batches * self._batch_size]
            rows = order.to(self._device)
            shuffled = self._x_train[fold][rows], self._y_train[fold][rows], rows
            batches[fold] = list(zip(*(values.split(self._batch_size) for values in shuffled), strict=True))
        for step in range(self._batches):
            yield _Batch(*map(list, zip(*(batches[fold][step] for fold in self._fold_of), strict=True)))

    def _own_batches(self, row: Tensor) -> Iterator[_Batch]:
        """Batches of the rows ``(live, batches, R)`` that the candidate has drawn."""
        for step in range(row.shape[1]):
            rows = list(row[:, step])
            x, y = (
                [data[fold][taken] for fold, taken in zip(self._fold_of, rows, strict=True)]
                for data in (self._x_train, self._y_train)
            )
            yield _Batch(x, y, rows)

    def _drawn(self, epoch: int) -> dict[str, Tensor]:
        """What the candidate draws for an epoch ``(live, batches, ...)``; the generator depends on the fold alone."""
        draws = self._candidate.draws
        if draws is None:
            return {}
        drawn = []
        for member in self._live.tolist():
            fold, settings = self._members[member].fold, self._members[member].settings
            numbers = np.random.default_rng(derive(self._training.seed, "draws", *self._keys[fold], epoch))
            arrays = draws(settings, self._y_train[fold].cpu().numpy(), self._batches, self._batch_size, numbers)
            drawn.append({name: torch.as_tensor(array) for name, array in arrays.items()})
        return self._cast({name: torch.stack([arrays[name] for arrays in drawn]) for name in drawn[0]})

    @torch.no_grad()
    def _of_rows(self, epoch: int, parts: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """By name, for each live member the tensor ``(n, ...)`` that the candidate makes of all training rows."""
        if self._candidate.rows is None:
            return {}
        found: dict[str, list[Tensor]] = {}
        for members in runs(self._fold_of):
            fold, part = self._fold_of[members.start], slice(members.start, members.stop)
            target = self._y_train[fold]
            of_fold = {name: value[part] for name, value in parts.items()}
            of_fold["epoch"] = torch.full((len(members),), epoch, dtype=torch.int64, device=self._device)
            output = self._forward(self._rows[part], fold, self._x_train[fold])
            targets = target.expand(len(members), *target.shape)
            for name, value in over_members(self._candidate.rows, output, targets, of_fold, loop=True).items():
                found.setdefault(name, []).extend(value)
        return found

    def _first_state(self) -> dict[str, Tensor]:
        """The state ``(members, ...)`` that members start with."""
        if self._candidate.state is None:
            return {}
        first = functools.partial(self._candidate.state, max(len(y) for y in self._y_train))
        return self._cast(over_members(first, self._all_parts, loop=self._loop))

    def _inputs_of(self, x: list[Tensor], parts: dict[str, Tensor]) -> list[Tensor]:
        """What the model is given for the rows of each member."""
        if self._candidate.inputs is None:
            return x
        return list(over_members(self._candidate.inputs, torch.stack(x), parts, loop=self._loop))

    def _output(self, x: list[Tensor], seeds: dict[int, int] | None) -> Tensor:
        """Output of the head ``(live, batch size, outputs)`` from each member's inputs."""
        outputs = [
            self._model.forward(
                weights,
                torch.stack(x[group.start : group.stop]),
                self._fold_of[group.start],
                None if seeds is None else [seeds[self._fold_of[member]] for member in group],
            )
            for group, weights in self._groups
        ]
        return torch.cat(outputs)

    def _objective(
        self, output: Tensor, target: Tensor, parts: dict[str, Tensor], seeds: dict[int, int] | None
    ) -> Tensor:
        """Loss of each member ``(live,)``; the state moves on."""
        arguments: list[Any] = [output, target, parts]
        if self._state:
            arguments.append(self._state)
        result = over_members(
            self._candidate.objective,
            *arguments,
            loop=self._loop,
            seeds=[seeds[fold] for fold in self._fold_of] if self._loop and seeds is not None else None,
        )
        loss: Tensor = result
        if self._state:
            loss, state = result
            self._state = {name: value.detach() for name, value in state.items()}
        if loss.ndim != 1:
            raise UserError(
                f"Objective {self._candidate.name!r} returned shape {tuple(loss.shape[1:])} for a batch; "
                f"wanted a mean, a tensor without dimensions."
            )
        return loss

    @torch.no_grad()
    def _update(self) -> None:
        """AdamW with each member's learning rate and weight decay.

        The kernel behind ``torch.optim.AdamW(fused=True)`` reads every number once. On 24 members of the default model
        it took 4.9 us a member, the update written out over the whole buffer 7.7 us (and 5 times that where second
        moments are zero: MKL's square root is slow there).
        """
        self._step += 1
        for (row, gradient, first, second), settings in self._updates:
            torch._fused_adamw_(
                [row],
                [gradient],
                [first],
                [second],
                [],
                [self._step],
                lr=settings["learning_rate"],
                weight_decay=settings["weight_decay"],
                beta1=BETA1,
                beta2=BETA2,
                eps=EPS,
                amsgrad=False,
                maximize=False,
            )

    def _logits(self, rows: Tensor, parts: dict[str, Tensor], fold: int, x: Tensor) -> Tensor:
        """What members of one fold predict ``(members, n, C)``, dropout off."""
        output = self._forward(rows, fold, x)
        if self._candidate.logits is None:
            return output
        logits: Tensor = over_members(self._candidate.logits, output, parts, loop=self._loop)
        return logits

    def _forward(self, rows: Tensor, fold: int, x: Tensor) -> Tensor:
        """Output of the head for members of one fold ``(members, n, outputs)``, dropout off."""
        weights = self._model.views(rows, fold)
        blocks = (block.expand(len(rows), -1, -1) for block in torch.split(x, ROWS_PER_FORWARD))
        return torch.cat([self._model.forward(weights, block, fold) for block in blocks], dim=1)

    def _parts_of(self, members: Sequence[Member]) -> dict[str, Tensor]:
        """Settings, learning rate included, and statistics ``(members, ...)``."""
        settings = {
            name: torch.tensor([member.settings[name] for member in members], dtype=self._dtype)
            for name in members[0].settings
        }
        if self._candidate.statistics is None:
            return self._cast(settings)
        statistics = [self._candidate.statistics(y, self._training.num_outputs) for y in self._y_train]
        return self._cast(
            settings
            | {name: torch.stack([statistics[member.fold][name] for member in members]) for name in statistics[0]}
        )

    def _parts_at(self, epoch: int) -> dict[str, Tensor]:
        if self._candidate.schedule is None:
            return self._live_parts
        schedule = functools.partial(self._candidate.schedule, epoch)
        return self._live_parts | self._cast(over_members(schedule, self._live_parts, loop=self._loop))

    def _seeds(self, step: int) -> dict[int, int] | None:
        """By fold, the seed of what a step draws beside its batch; None if nothing does."""
        if not (self._model.draws or self._loop):
            return None
        return {fold: derive(self._training.seed, "dropout", *self._keys[fold], step) for fold in set(self._fold_of)}

    def _inputs(self, x: npt.NDArray[Any], width: int) -> Tensor:
        return F.pad(self._tensor(x), (0, width - x.shape[1]))

    def _tensor(self, values: npt.NDArray[Any]) -> Tensor:
        return self._cast({"": torch.tensor(values)})[""]

    def _cast(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: part.to(self._device, self._dtype if part.is_floating_point() else part.dtype)
            for name, part in parts.items()
        }


def _try_step(candidate: Candidate, training: Training, in_features: int, *, loop: bool) -> None:
    """One step of two members, and their predictions, on made-up rows."""
    outputs = training.num_outputs
    labels = np.arange(2 * outputs) % outputs
    target = np.eye(outputs, dtype=np.float32)[labels] if training.task == "multilabel" else labels
    x = np.random.default_rng(0).standard_normal((len(labels), in_features), dtype=np.float32)
    settings = {dimension.name: (dimension.low + dimension.high) / 2 for dimension in candidate.space}
    settings |= {"learning_rate": 1e-3, "weight_decay": 1e-3}
    with torch.random.fork_rng(devices=[]):
        stack = _Stack(
            candidate,
            [Fold((0,), x, target, x, target, x)],
            [Member(0, settings)] * 2,
            dataclasses.replace(training, device="cpu"),
            loop=loop,
        )
        stack.train_epoch(0)
        stack.fits(keep_weights=False)


def _at(values: list[Tensor], rows: list[Tensor]) -> Tensor:
    """Each member's values at its rows ``(live, B, ...)``."""
    return torch.stack([value[taken] for value, taken in zip(values, rows, strict=True)])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
