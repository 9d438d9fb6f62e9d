"""Every word of the command line, checked once."""

from __future__ import annotations

import dataclasses
from typing import Literal

from lossary.core.errors import UserError

Task = Literal["binary", "multiclass", "multilabel"]
CALIBRATIONS = ("temperature", "vector", "isotonic", "none")
DEVICES = ("auto", "cpu", "cuda")
TASKS = ("auto", "binary", "multiclass", "multilabel")


@dataclasses.dataclass(frozen=True)
class Options:
    """What a comparison is asked to do; the words are those of ``lossary compare``.

    Attributes:
        target: Name of the target column, or several for a multi-label task.
        task: ``auto`` detects binary, multiclass or multilabel from the target.
        objectives: ``("auto",)``, or names of candidates or ``package.module:callable``.
        metric: Primary metric: the one that early stopping, the choice among trials and the verdicts use.
        model: ``linear``, ``mlp``, ``resnet`` or ``package.module:function``.
        folds: Outer folds, at least 2.
        repeats: Repetitions of the outer cross-validation.
        trials: Settings tried per candidate and outer split.
        budget: Seconds for the whole command; None sets no limit.
        memory: Bytes that training may hold at one time, over all workers.
        device: ``auto`` (CUDA when there is one), ``cpu`` or ``cuda``.
        groups: Column whose rows stay on one side of every split.
        calibrate: Calibrator that every candidate gets.
        min_effect: Smallest relative gain worth a recommendation.
        merge_rare: Classes with fewer rows than this are merged into one.
        seed: Seed of everything that is drawn.
        label_noise: Share of training and validation labels that are made wrong, in [0, 1).
        imbalance: Training rows of the most frequent class for one of the rarest; None leaves them as they are.
    """

    target: tuple[str, ...]
    task: Literal["auto", "binary", "multiclass", "multilabel"] = "auto"
    objectives: tuple[str, ...] = ("auto",)
    metric: str = "log_loss"
    model: str = "mlp"
    folds: int = 5
    repeats: int = 2
    trials: int = 16
    budget: float | None = None
    memory: int = 4 * 10**9
    device: str = "auto"
    groups: str | None = None
    calibrate: str = "temperature"
    min_effect: float = 0.01
    merge_rare: int | None = None
    seed: int = 0
    label_noise: float = 0.0
    imbalance: float | None = None

    def __post_init__(self) -> None:
        _one_of("task", self.task, TASKS)
        _one_of("calibrate", self.calibrate, CALIBRATIONS)
        _one_of("device", self.device, DEVICES)
        _at_least("folds", self.folds, 2)
        _at_least("repeats", self.repeats, 1)
        _at_least("trials", self.trials, 1)
        _at_least("memory", self.memory, 10**8)
        _at_least("seed", self.seed, 0)
        if self.budget is not None:
            _at_least("budget", self.budget, 10)
        if self.merge_rare is not None:
            _at_least("merge-rare", self.merge_rare, 2)
        if not 0 <= self.min_effect < 1:
            raise UserError(f"--min-effect is {self.min_effect:g}; wanted a share from 0% to below 100%, such as 1%.")
        if not 0 <= self.label_noise < 1:
            raise UserError(f"--label-noise is {100 * self.label_noise:g}%; wanted 0% or more, and below 100%.")
        if self.imbalance is not None:
            _at_least("imbalance", self.imbalance, 1)
        if len(set(self.objectives)) != len(self.objectives):
            raise UserError(f"--objectives names one objective twice: {', '.join(self.objectives)}.")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"--{name} is {value!r}; wanted one of {', '.join(choices)}.")


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise UserError(f"--{name} is {value:g}; wanted {least:g} or more.")
