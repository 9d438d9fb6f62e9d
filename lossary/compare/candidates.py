"""The objectives that compete, each with all that the trainer needs to know of it."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lossary import classification as objectives
from lossary.compare.options import Task
from lossary.core.errors import UserError

if TYPE_CHECKING:
    from lossary.compare.load import Table

Parts = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Dimension:
    """A hyperparameter that is searched, in [low, high]; ``step=1`` makes it an integer."""

    name: str
    low: float
    high: float
    log: bool = False
    step: float | None = None


LEARNING_RATE = Dimension("learning_rate", 1e-4, 3e-2, log=True)
WEIGHT_DECAY = Dimension("weight_decay", 1e-6, 1e-1, log=True)


@dataclasses.dataclass(frozen=True)
class Labels:
    """What ``auto`` may look at: the task and the label counts of the whole table, and no feature.

    Attributes:
        task: The task.
        counts: Rows of each class; for a multi-label task the rows with each label.
        rows: Number of rows.
    """

    task: Task
    counts: tuple[int, ...]
    rows: int

    @property
    def imbalanced(self) -> bool:
        """Whether the rarest class has less than half of an even share (multi-label: labels are yes in under 25%)."""
        if self.task == "multilabel":
            return bool(np.mean(self.counts) < 0.25 * self.rows)
        return min(self.counts) < 0.5 * self.rows / len(self.counts)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An objective in the comparison.

    Attributes:
        name: Its name on the command line.
        title: Its name for people.
        why: When it suits, in one line.
        objective: ``(output, target, parts)`` to the mean loss over the batch of ONE member, 0-d; ``vmap`` adds the
            members. ``output (B, C)`` comes from the head; ``target`` is ``(B,)`` int64, multi-label ``(B, L)`` float;
            ``parts`` holds the hyperparameters as 0-d tensors, the statistics and the tensors of the epoch.
        tasks: What it is defined for.
        space: Hyperparameters searched beside learning rate and weight decay. AdamW does not feel a factor on the
            whole loss, so none is searched.
        head: ``linear``, or ``cosine``: bias-free with features and class directions of unit length.
        statistics: ``(inner-training target, number of outputs)`` to tensors that the objective needs.
        schedule: ``(epoch from 0, parts)`` to tensors that change by epoch.
        logits: ``(output, parts)`` to the logits that predict; None takes the output itself.
        control: A candidate that must run beside this one, to tell its head from its loss.
        paper: Slug of its paper.
        auto: Why ``auto`` would pick it given the labels, or None where it would not.
    """

    name: str
    title: str
    why: str
    objective: Callable[[Tensor, Tensor, Parts], Tensor]
    tasks: tuple[Task, ...] = ("binary", "multiclass")
    space: tuple[Dimension, ...] = ()
    head: Literal["linear", "cosine"] = "linear"
    statistics: Callable[[Tensor, int], dict[str, Tensor]] | None = None
    schedule: Callable[[int, Parts], dict[str, Tensor]] | None = None
    logits: Callable[[Tensor, Parts], Tensor] | None = None
    control: str | None = None
    paper: str | None = None
    auto: Callable[[Labels], str | None] = lambda labels: None

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Everything that is searched: learning rate, weight decay, then its own."""
        return (LEARNING_RATE, WEIGHT_DECAY, *self.space)


def names(task: Task) -> list[str]:
    """Names of the bundled candidates for a task, cross-entropy first."""
    return [candidate.name for candidate in _bundled() if task in candidate.tasks]


def get_candidate(name: str, task: Task) -> Candidate:
    """The candidate of a name: bundled, or ``package.module:callable`` of the user's own.

    Raises:
        UserError: There is none of that name for the task (the nearest are offered), or it cannot be imported.
    """
    if ":" in name:
        return _users_own(name)
    for candidate in _bundled():
        if candidate.name == name and task in candidate.tasks:
            return candidate
    nearest = difflib.get_close_matches(name, names(task), n=3, cutoff=0.4)
    offer = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    raise UserError(
        f"There is no objective {name!r} for a {task} task. {offer}Known: {', '.join(names(task))}.\n"
        f"Your own objective is named as package.module:callable."
    )


def choose(requested: Sequence[str], table: Table) -> list[tuple[Candidate, str]]:
    """The candidates that compete on a table, cross-entropy first, each with the reason why in a line.

    Cross-entropy always competes; on imbalanced data class-weighted cross-entropy does too; a candidate with another
    head brings its control.
    """
    labels = labels_of(table.task, table.target, table.num_outputs)
    chosen: dict[str, str] = {"cross_entropy": "the baseline that every verdict refers to"}
    if labels.imbalanced:
        chosen["weighted_cross_entropy"] = "classes are imbalanced: the usual remedy, as a second baseline"
    for name in requested:
        if name == "auto":
            reasons = {c.name: c.auto(labels) for c in _bundled() if table.task in c.tasks}
            chosen |= {name: reason for name, reason in reasons.items() if reason and name not in chosen}
        else:
            chosen.setdefault(get_candidate(name, table.task).name, "asked for")
    for name in list(chosen):
        control = get_candidate(name, table.task).control
        if control is not None:
            chosen.setdefault(control, f"control for {name}: the same head, without its loss")
    return [(get_candidate(name, table.task), reason) for name, reason in chosen.items()]


def labels_of(task: Task, target: npt.NDArray[Any], num_outputs: int) -> Labels:
    """Count the labels of a table."""
    counts = target.sum(0) if task == "multilabel" else np.bincount(target, minlength=num_outputs)
    return Labels(task, tuple(int(count) for count in counts), len(target))


@functools.cache
def _bundled() -> tuple[Candidate, ...]:
    return (
        Candidate(
            "cross_entropy",
            "Cross-entropy",
            "the standard; right unless something speaks against it",
            lambda output, target, parts: F.cross_entropy(output, target),
            auto=lambda labels: "the baseline that every verdict refers to",
        ),
        Candidate(
            "weighted_cross_entropy",
            "Class-weighted cross-entropy",
            "rare classes count as much as frequent ones",
            lambda output, target, parts: F.cross_entropy(output, target, weight=parts["class_weight"]),
            statistics=lambda target, classes: {"class_weight": _balanced_weight(target, classes)},
            auto=lambda labels: "classes are imbalanced" if labels.imbalanced else None,
        ),
        Candidate(
            "focal",
            "Focal loss",
            "easy rows fade, hard ones count",
            lambda output, target, parts: objectives.focal_loss(output, target, gamma=parts["gamma"]),
            space=(Dimension("gamma", 0.25, 5.0),),
            paper="focal_loss",
            auto=lambda labels: "easy rows fade; often better calibrated than cross-entropy",
        ),
        Candidate(
            "poly1",
            "Poly-1 cross-entropy",
            "cross-entropy with its first coefficient tuned",
            lambda output, target, parts: objectives.poly1_cross_entropy_loss(output, target, epsilon=parts["epsilon"]),
            space=(Dimension("epsilon", -1.0, 6.0),),
            paper="poly_loss",
            auto=lambda labels: "cross-entropy with one more coefficient to tune",
        ),
        Candidate(
            "squentropy",
            "Squentropy",
            "wrong classes' logits are held near 0",
            lambda output, target, parts: objectives.squentropy_loss(output, target),
            paper="squentropy",
            auto=lambda labels: "regularises wrong classes' logits, with nothing to tune",
        ),
        Candidate(
            "active_passive",
            "Active-passive (NCE + RCE)",
            "tolerates wrong labels",
            lambda output, target, parts: objectives.active_passive_loss(output, target, beta=parts["beta"]),
            space=(Dimension("beta", 0.01, 10.0, log=True),),
            paper="active_passive",
            auto=lambda labels: "tolerates wrong labels, if there are any",
        ),
        Candidate(
            "generalized_cross_entropy",
            "Generalized cross-entropy",
            "between cross-entropy and the mean absolute error: tolerates wrong labels",
            lambda output, target, parts: objectives.generalized_cross_entropy_loss(output, target, q=parts["q"]),
            space=(Dimension("q", 0.05, 1.0),),
            paper="active_passive",
        ),
        Candidate(
            "comp_sum",
            "Comp-sum",
            "from the sum-exponential over cross-entropy to the mean absolute error",
            lambda output, target, parts: objectives.comp_sum_loss(output, target, tau=parts["tau"]),
            space=(Dimension("tau", 0.5, 2.0),),
            paper="comp_sum",
        ),
        Candidate(
            "ldr_kl",
            "Label-distributionally robust (LDR-KL)",
            "between hinge, cross-entropy and a linear loss: hot, it tolerates wrong labels",
            lambda output, target, parts: objectives.ldr_kl_loss(
                output, target, temperature=parts["temperature"], margin=parts["margin"], normalize="softplus"
            ),
            space=(Dimension("temperature", 0.1, 100.0, log=True), Dimension("margin", 0.0, 1.0)),
            logits=lambda output, parts: objectives.normalize_logits(output, kind="softplus") / parts["temperature"],
            paper="ldr",
        ),
        Candidate(
            "logit_clip",
            "Cross-entropy on clipped logits",
            "bounded, so it tolerates wrong labels",
            lambda output, target, parts: objectives.logit_clip_cross_entropy_loss(
                output, target, max_norm=parts["max_norm"]
            ),
            space=(Dimension("max_norm", 0.2, 20.0, log=True),),
            logits=lambda output, parts: objectives.clip_logits(output, max_norm=parts["max_norm"]),
            paper="logit_clip",
        ),
        Candidate(
            "encouraging",
            "Encouraging loss",
            "well-classified rows keep learning",
            lambda output, target, parts: objectives.encouraging_loss(output, target, log_end=parts["log_end"]),
            space=(Dimension("log_end", 0.25, 1.0),),
            paper="encouraging_loss",
        ),
        Candidate(
            "any_f1",
            "AnyLoss of F1",
            "F1 itself, made differentiable: for rare positives",
            lambda output, target, parts: objectives.any_loss(
                _log_odds(output), target.to(output.dtype), metric="fbeta", slope=parts["slope"]
            ),
            tasks=("binary",),
            space=(Dimension("slope", 5.0, 100.0, log=True),),
            paper="anyloss",
        ),
        Candidate(
            "dice",
            "Dice loss",
            "F1 of the batch with probabilities for counts: for rare positives",
            lambda output, target, parts: objectives.nlp_dice_loss(
                _log_odds(output), target.to(output.dtype), smooth=parts["smooth"]
            ),
            tasks=("binary",),
            space=(Dimension("smooth", 0.1, 10.0, log=True),),
            paper="dice_nlp",
        ),
        Candidate(
            "self_adjusting_dice",
            "Self-adjusting Dice loss",
            "Dice by row, easy rows damped",
            lambda output, target, parts: objectives.self_adjusting_dice_loss(
                output, target, alpha=parts["alpha"], smooth=parts["smooth"]
            ),
            space=(Dimension("alpha", 0.0, 1.0), Dimension("smooth", 0.01, 2.0, log=True)),
            paper="dice_nlp",
        ),
        Candidate(
            "symmetric_cross_entropy",
            "Symmetric cross-entropy",
            "cross-entropy plus its reverse: tolerates wrong labels",
            lambda output, target, parts: objectives.symmetric_cross_entropy_loss(
                output, target, alpha=1.0, beta=parts["beta"]
            ),
            space=(Dimension("beta", 0.01, 10.0, log=True),),
            paper="active_passive",
        ),
        Candidate(
            "asymmetric",
            "Asymmetric softmax",
            "easy negatives fade faster than positives",
            lambda output, target, parts: objectives.asymmetric_softmax_loss(
                output,
                target,
                gamma_neg=parts["gamma_neg"],
                gamma_pos=parts["gamma_pos"],
                label_smoothing=parts["label_smoothing"],
            ),
            space=(
                Dimension("gamma_neg", 0.0, 4.0),
                Dimension("gamma_pos", 0.0, 2.0),
                Dimension("label_smoothing", 0.01, 0.3, log=True),
            ),
            paper="asymmetric_loss",
        ),
        Candidate(
            "rescaled_square",
            "Rescaled square loss",
            "regression on the one-hot label, true class rescaled",
            lambda output, target, parts: objectives.rescaled_square_loss(
                output, target, scale=parts["scale"], target_value=parts["target_value"]
            ),
            space=(Dimension("scale", 1.0, 15.0, log=True), Dimension("target_value", 1.0, 15.0, log=True)),
            paper="squentropy",
        ),
        Candidate(
            "ldam",
            "LDAM",
            "wider margins for rarer classes",
            _ldam,
            space=(Dimension("scale", 4.0, 30.0, log=True), Dimension("max_margin", 0.05, 1.0)),
            head="cosine",
            statistics=lambda target, classes: {"unit_margins": _unit_margins(target, classes)},
            logits=lambda output, parts: parts["scale"] * output,
            control="cosine_cross_entropy",
            paper="ldam",
        ),
        Candidate(
            "ldam_drw",
            "LDAM with deferred re-weighting",
            "wider margins for rarer classes, then class weights",
            _ldam,
            space=(
                Dimension("scale", 4.0, 30.0, log=True),
                Dimension("max_margin", 0.05, 1.0),
                Dimension("start_epoch", 5, 40, step=1),
            ),
            head="cosine",
            statistics=lambda target, classes: {
                "unit_margins": _unit_margins(target, classes),
                "effective_weight": _effective_weight(target, classes),
            },
            schedule=_deferred_weight,
            logits=lambda output, parts: parts["scale"] * output,
            control="cosine_cross_entropy",
            paper="ldam",
            auto=lambda labels: "wider margins and late weights for rare classes" if labels.imbalanced else None,
        ),
        Candidate(
            "deferred_weighted_cross_entropy",
            "Cross-entropy with deferred re-weighting",
            "plain first, class weights later",
            lambda output, target, parts: F.cross_entropy(output, target, weight=parts["class_weight"]),
            space=(Dimension("start_epoch", 5, 40, step=1),),
            statistics=lambda target, classes: {"effective_weight": _effective_weight(target, classes)},
            schedule=_deferred_weight,
            paper="ldam",
        ),
        Candidate(
            "cosine_cross_entropy",
            "Cross-entropy on a cosine head",
            "the head of LDAM without its margins",
            lambda output, target, parts: F.cross_entropy(parts["scale"] * output, target),
            space=(Dimension("scale", 4.0, 30.0, log=True),),
            head="cosine",
            logits=lambda output, parts: parts["scale"] * output,
        ),
        Candidate(
            "cross_entropy",
            "Binary cross-entropy",
            "the standard; right unless something speaks against it",
            lambda output, target, parts: F.binary_cross_entropy_with_logits(output, target),
            tasks=("multilabel",),
            auto=lambda labels: "the baseline that every verdict refers to",
        ),
        Candidate(
            "weighted_cross_entropy",
            "Binary cross-entropy, positives weighted",
            "rare labels count as much as frequent ones",
            lambda output, target, parts: F.binary_cross_entropy_with_logits(
                output, target, pos_weight=parts["pos_weight"]
            ),
            tasks=("multilabel",),
            statistics=lambda target, labels: {"pos_weight": _positive_weight(target)},
            auto=lambda labels: "labels are rare" if labels.imbalanced else None,
        ),
        Candidate(
            "focal",
            "Focal loss",
            "easy entries fade, hard ones count",
            lambda output, target, parts: objectives.sigmoid_focal_loss(
                output, target, gamma=parts["gamma"], alpha=parts["alpha"]
            ),
            tasks=("multilabel",),
            space=(Dimension("gamma", 0.25, 5.0), Dimension("alpha", 0.1, 0.9)),
            paper="focal_loss",
            auto=lambda labels: "most entries are easy negatives" if labels.imbalanced else "easy entries fade",
        ),
        Candidate(
            "poly1",
            "Poly-1 focal loss",
            "focal loss with its first coefficient tuned",
            lambda output, target, parts: objectives.poly1_sigmoid_focal_loss(
                output, target, epsilon=parts["epsilon"], gamma=parts["gamma"], alpha=None
            ),
            tasks=("multilabel",),
            space=(Dimension("epsilon", -1.0, 6.0), Dimension("gamma", 0.0, 4.0)),
            paper="poly_loss",
            auto=lambda labels: "focal loss with one more coefficient to tune",
        ),
        Candidate(
            "asymmetric",
            "Asymmetric loss",
            "easy negatives fade, doubtful ones count less",
            lambda output, target, parts: objectives.asymmetric_loss(
                output,
                target,
                gamma_neg=parts["gamma_neg"],
                gamma_pos=parts["gamma_pos"],
                clip=parts["clip"],
            ),
            tasks=("multilabel",),
            space=(Dimension("gamma_neg", 0.0, 6.0), Dimension("gamma_pos", 0.0, 2.0), Dimension("clip", 0.0, 0.2)),
            paper="asymmetric_loss",
            auto=lambda labels: "made for several labels at once, most of them negative",
        ),
        Candidate(
            "any_f1",
            "AnyLoss of F1",
            "F1 over all labels, made differentiable",
            lambda output, target, parts: objectives.any_loss(output, target, metric="fbeta", slope=parts["slope"]),
            tasks=("multilabel",),
            space=(Dimension("slope", 5.0, 100.0, log=True),),
            paper="anyloss",
        ),
        Candidate(
            "dice",
            "Dice loss",
            "F1 of the batch with probabilities for counts",
            lambda output, target, parts: objectives.nlp_dice_loss(output, target, smooth=parts["smooth"]),
            tasks=("multilabel",),
            space=(Dimension("smooth", 0.1, 10.0, log=True),),
            paper="dice_nlp",
        ),
    )


def _log_odds(output: Tensor) -> Tensor:
    return output[:, 1] - output[:, 0]


def _ldam(output: Tensor, target: Tensor, parts: Parts) -> Tensor:
    return objectives.ldam_loss(
        output,
        target,
        margins=parts["max_margin"] * parts["unit_margins"],
        scale=parts["scale"],
        weight=parts.get("class_weight"),
    )


def _deferred_weight(epoch: int, parts: Parts) -> dict[str, Tensor]:
    weight = parts["effective_weight"]
    return {"class_weight": torch.where(epoch >= parts["start_epoch"], weight, torch.ones_like(weight))}


def _class_counts(target: Tensor, classes: int) -> Tensor:
    return torch.bincount(target, minlength=classes).clamp(min=1)


def _balanced_weight(target: Tensor, classes: int) -> Tensor:
    counts = _class_counts(target, classes).double()
    return counts.sum() / (classes * counts)


def _unit_margins(target: Tensor, classes: int) -> Tensor:
    return objectives.ldam_margins(_class_counts(target, classes), max_margin=1.0)


def _effective_weight(target: Tensor, classes: int) -> Tensor:
    return objectives.effective_number_weights(_class_counts(target, classes), beta=0.999)


def _positive_weight(target: Tensor) -> Tensor:
    positives = target.double().sum(0).clamp(min=1)
    return ((len(target) - positives) / positives).clamp(min=1e-2)


def _users_own(name: str) -> Candidate:
    function = import_user_code(name, "objective")
    return Candidate(
        name,
        name.rpartition(":")[2],
        "your own",
        lambda output, target, parts: function(output, target),
        tasks=get_args(Task),
    )


def import_user_code(name: str, what: str) -> Callable[..., Any]:
    """Import ``package.module:callable``, the current folder included.

    Raises:
        UserError: The module cannot be imported, or has no such callable.
    """
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"The {what} {name!r} cannot be imported: {error}.\n"
            f"Wanted package.module:callable, importable from {here} or installed."
        ) from error
    if not callable(function):
        raise UserError(f"The {what} {name!r} is {type(function).__name__}; wanted a callable.")
    return function  # type: ignore[no-any-return]
