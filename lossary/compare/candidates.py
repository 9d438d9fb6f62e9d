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
Arrays = Mapping[str, npt.NDArray[Any]]


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
            ``parts`` holds the hyperparameters as 0-d tensors, the statistics, the tensors of the epoch, of the batch's
            rows and of the step. With ``state`` it is ``(output, target, parts, state)`` to (loss, new state).
        tasks: What it is defined for.
        space: Hyperparameters searched beside learning rate and weight decay. AdamW does not feel a factor on the
            whole loss, so none is searched.
        head: ``linear``, or ``cosine``: bias-free with features and class directions of unit length.
        link: A small module after the head that every member learns along with it, ``legendre``: a monotone map to
            log-probabilities (:data:`lossary.compare.models.LINKS`). ``output`` is then what it gives.
        statistics: ``(inner-training target, number of outputs)`` to tensors that the objective needs.
        schedule: ``(epoch from 0, parts)`` to tensors that change by epoch.
        rows: ``(output, target, parts)`` of ALL inner-training rows ``(n, C)``, without gradient and with dropout off,
            at the start of each epoch (``parts["epoch"]``, from 0), to tensors ``(n, ...)``; the objective finds those
            of its batch's rows in ``parts``. Members come one by one, so it need not suit ``vmap``. For methods that
            look at how well each row is fitted.
        state: ``(rows, parts)`` to the tensors that a member carries from step to step; no fold has more inner-training
            rows than ``rows``, and ``parts["row"] (B,)`` then says which of them the batch holds.
        draws: What is drawn anew for an epoch: ``(settings, target, batches, batch size, generator)`` to arrays with
            one row for each step, which the objective and ``inputs`` find in ``parts``. The generator is the same for
            all members of a fold. ``row (batches, R)`` among them takes the place of the epoch's shuffled batches.
        inputs: ``(x, parts)`` of a step's rows ``(B, f)`` to what the model is given ``(B', f)``, for methods that
            train on rows made of others.
        logits: ``(output, parts)`` to the logits that predict; None takes the output itself.
        control: A candidate that must run beside this one, to tell its head from its loss.
        paper: Slug of its paper.
        auto: Why ``auto`` would pick it given the labels, or None where it would not.
    """

    name: str
    title: str
    why: str
    objective: Callable[..., Any]
    tasks: tuple[Task, ...] = ("binary", "multiclass")
    space: tuple[Dimension, ...] = ()
    head: Literal["linear", "cosine"] = "linear"
    link: Literal["legendre"] | None = None
    statistics: Callable[[Tensor, int], dict[str, Tensor]] | None = None
    schedule: Callable[[int, Parts], dict[str, Tensor]] | None = None
    rows: Callable[[Tensor, Tensor, Parts], dict[str, Tensor]] | None = None
    state: Callable[[int, Parts], dict[str, Tensor]] | None = None
    draws: Callable[[Mapping[str, float], npt.NDArray[Any], int, int, np.random.Generator], Arrays] | None = None
    inputs: Callable[[Tensor, Parts], Tensor] | None = None
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
    labels = labels_of(table.task, table.seen_target, table.num_outputs)
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
            "aldr_kl",
            "Adaptive label-distributionally robust (ALDR-KL)",
            "every row finds its own temperature: unsure rows are forgiven",
            _aldr_kl,
            space=(Dimension("temperature", 0.1, 100.0, log=True), Dimension("margin", 0.0, 1.0)),
            state=lambda rows, parts: {"temperatures": parts["temperature"].expand(rows)},
            logits=lambda output, parts: objectives.normalize_logits(output, kind="softplus") / parts["temperature"],
            paper="ldr",
        ),
        Candidate(
            "one_vs_rest",
            "One versus rest",
            "each class against the others, on its own",
            lambda output, target, parts: objectives.one_vs_rest_loss(output, target),
            paper="sovr",
        ),
        Candidate(
            "mixup",
            "Mixup",
            "trains on mixtures of rows, which smooths predictions",
            _mixup,
            space=(Dimension("alpha", 0.1, 32.0, log=True),),
            draws=_mixtures,
            inputs=lambda x, parts: torch.lerp(x[parts["partner"]], x, parts["share"]),
            paper="regmixup",
        ),
        Candidate(
            "regmixup",
            "RegMixup",
            "cross-entropy on rows, and beside it on mixtures of them",
            _regmixup,
            space=(Dimension("alpha", 1.0, 32.0, log=True), Dimension("eta", 0.1, 4.0, log=True)),
            draws=_mixtures,
            inputs=lambda x, parts: torch.cat([x, torch.lerp(x[parts["partner"]], x, parts["share"])]),
            paper="regmixup",
        ),
        Candidate(
            "oko",
            "Odd-k-out sets",
            "learns from sets of rows in which two share a class; classes are drawn evenly",
            lambda output, target, parts: objectives.oko_loss(output.unflatten(0, (-1, 3)), parts["pair"]),
            draws=_odd_one_out,
            paper="oko",
        ),
        Candidate(
            "bootstrapping",
            "Dynamic bootstrapping",
            "rows that fit badly are taken at the network's own word, by a mixture model of all losses",
            lambda output, target, parts: objectives.dynamic_bootstrapping_loss(
                output, target, parts["noise_probability"], mode="hard"
            ),
            space=(Dimension("start_epoch", 5, 40, step=1),),
            rows=_noise_probability,
            paper="beta_mixture_noise",
        ),
        Candidate(
            "legendretron",
            "LegendreTron",
            "learns its proper loss, by a monotone link from scores to probabilities: many classes, noisy labels",
            lambda output, target, parts: F.nll_loss(output, target),
            link="legendre",
            paper="legendretron",
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
            "adaptive_asymmetric",
            "Adaptive asymmetric loss",
            "negatives fade as much as a wanted gap to the positives takes",
            _adaptive_asymmetric,
            tasks=("multilabel",),
            space=(Dimension("target_gap", -0.2, 0.6), Dimension("clip", 0.0, 0.2)),
            state=lambda rows, parts: {"gamma_neg": torch.zeros_like(parts["target_gap"])},
            paper="asymmetric_loss",
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


def _aldr_kl(output: Tensor, target: Tensor, parts: Parts, state: Parts) -> tuple[Tensor, dict[str, Tensor]]:
    loss, temperatures = objectives.aldr_kl_loss(
        output,
        target,
        parts["row"],
        state["temperatures"],
        temperature=parts["temperature"],
        margin=parts["margin"],
        normalize="softplus",
    )
    return loss, {"temperatures": temperatures}


def _adaptive_asymmetric(
    output: Tensor, target: Tensor, parts: Parts, state: Parts
) -> tuple[Tensor, dict[str, Tensor]]:
    loss, moved = objectives.adaptive_asymmetric_loss(
        output, target, state["gamma_neg"], target_gap=parts["target_gap"], clip=parts["clip"]
    )
    return loss, {"gamma_neg": moved.gamma_neg}


def _mixtures(
    settings: Mapping[str, float],
    target: npt.NDArray[Any],
    batches: int,
    batch_size: int,
    numbers: np.random.Generator,
) -> Arrays:
    """For each step one share of the row itself, and each row's partner."""
    return {
        "share": numbers.beta(settings["alpha"], settings["alpha"], batches),
        "partner": np.stack([numbers.permutation(batch_size) for _ in range(batches)]),
    }


def _mixup(output: Tensor, target: Tensor, parts: Parts) -> Tensor:
    own, other = F.cross_entropy(output, target), F.cross_entropy(output, target[parts["partner"]])
    return torch.lerp(other, own, parts["share"])


def _regmixup(output: Tensor, target: Tensor, parts: Parts) -> Tensor:
    clean, mixed = output.chunk(2)
    return objectives.regmixup_loss(
        clean, mixed, target, target[parts["partner"]], lam=parts["share"], eta=parts["eta"]
    )


def _odd_one_out(
    settings: Mapping[str, float],
    target: npt.NDArray[Any],
    batches: int,
    batch_size: int,
    numbers: np.random.Generator,
) -> Arrays:
    """Sets of three rows, of which two share a class; as many rows a step as other candidates see."""
    sets = max(batch_size // 3, 1)
    draw = torch.Generator().manual_seed(int(numbers.integers(2**63 - 1)))
    sampler = objectives.OddKOutSampler(
        torch.from_numpy(target), k=1, batch_size=sets, num_sets=batches * sets, generator=draw
    )
    rows, pairs = zip(*sampler, strict=True)
    return {"row": torch.stack(rows).flatten(1).numpy(), "pair": torch.stack(pairs).numpy()}


def _noise_probability(output: Tensor, target: Tensor, parts: Parts) -> dict[str, Tensor]:
    """How likely each row's label is wrong, by a beta mixture of the losses; 0 before the start."""
    losses = F.cross_entropy(output, target, reduction="none")
    started = parts["epoch"] >= parts["start_epoch"]
    if not (started and losses.isfinite().all()):
        return {"noise_probability": torch.zeros_like(losses)}
    return {"noise_probability": objectives.NoiseModel().fit(losses).noise_probability(losses)}


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
