"""What an objective asks of a single row, drawn from its code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lossary.compare.candidates import Candidate
from lossary.compare.load import Table

BATCH = 1_000
"""Rows of the batch in which one row moves: enough for a class with one row in a thousand."""
REACH = 8.0
"""Largest margin that is drawn, on either side of 0."""
POINTS = 81


@dataclasses.dataclass(frozen=True)
class Curve:
    """What one row contributes to the objective, as its margin moves.

    Attributes:
        label: Which row: its class, or ``any row`` where all classes have the same curve.
        margin: Logit in favour of the truth minus the logit against it, ``(POINTS,)``.
        loss: Contribution to the mean loss times the rows of the batch, above its lowest value, ``(POINTS,)``.
        gradient: Its derivative with respect to the margin, ``(POINTS,)``.
    """

    label: str
    margin: npt.NDArray[Any]
    loss: npt.NDArray[Any]
    gradient: npt.NDArray[Any]


def why_no_curve(candidate: Candidate) -> str | None:
    """Why a candidate's loss is not that of single rows, or None where a curve can be drawn."""
    if candidate.inputs is not None or candidate.draws is not None:
        return "It trains on rows made or chosen anew at every step, so no curve of one row says what it asks for."
    if candidate.link is not None:
        return "It learns how scores become probabilities, for every model anew, so there is no one curve."
    if candidate.rows is not None:
        return "What it asks of a row depends on how well all rows are fitted at the time, so there is no one curve."
    return None


def objective_curves(candidate: Candidate, settings: Mapping[str, float], table: Table, *, epoch: int) -> list[Curve]:
    """Draw a candidate's objective for a row of the most frequent and one of the rarest class.

    A row's weight depends on the rows around it, so it moves within a batch that has both classes in the shares of the
    table, the other rows undecided (margin 0). Tasks with several classes are drawn on those two classes alone, as
    outputs ``[-z/2, z/2]``: with ``[0, z]`` an objective that holds wrong logits near 0 would look like cross-entropy,
    and a cosine head could not reach it. A multi-label task is drawn on its rarest label.

    Args:
        candidate: Whose objective is drawn.
        settings: Its hyperparameters.
        table: Where class counts, and so weights and margins, come from.
        epoch: Epoch at which tensors that change by epoch are taken.

    Returns:
        The frequent class first; one curve if both are the same.

    Raises:
        Exception: Whatever a user's own objective raises on two classes.
    """
    labels, counts, names = _two_labels(table)
    parts = _parts(candidate, settings, labels, epoch)
    zero_one = torch.tensor([0, 1], dtype=labels.dtype)
    batch = zero_one.repeat_interleave(torch.tensor(counts)).reshape(-1, *labels.shape[1:])
    curves = [
        Curve(name, *_move_one_row(candidate, parts, batch, row))
        for name, row in zip(names, (0, len(batch) - 1), strict=True)
    ]
    first, last = curves
    if np.allclose(first.loss, last.loss, atol=1e-3) and np.allclose(first.gradient, last.gradient, atol=1e-3):
        return [dataclasses.replace(first, label="any row")]
    return curves


def _two_labels(table: Table) -> tuple[Tensor, tuple[int, int], tuple[str, str]]:
    """The table's labels reduced to two, 0 the frequent and 1 the rare one, with batch counts and names."""
    if table.task == "multilabel":
        rarest = int(table.target.sum(0).argmin())
        labels = torch.tensor(table.target[:, [rarest]], dtype=torch.float32)
        name = table.class_names[rarest]
        names = (f"a row without {name}", f"a row with {name}")
        share = float(labels.mean())
    else:
        totals = np.bincount(table.target, minlength=table.num_outputs)
        frequent, rare = int(totals.argmax()), int(totals[::-1].argmin())
        rare = table.num_outputs - 1 - rare  # the last of equals, so that it differs from the first
        pair = table.target[(table.target == frequent) | (table.target == rare)]
        labels = torch.tensor(pair == rare, dtype=torch.int64)
        names = (f"a row of class {table.class_names[frequent]}", f"a row of class {table.class_names[rare]}")
        share = float(totals[rare] / (totals[frequent] + totals[rare]))
    ones = min(max(round(BATCH * share), 1), BATCH - 1)
    return labels, (BATCH - ones, ones), names


def _parts(candidate: Candidate, settings: Mapping[str, float], labels: Tensor, epoch: int) -> dict[str, Tensor]:
    parts = {name: torch.tensor(value) for name, value in settings.items()}
    if candidate.statistics is not None:
        parts |= candidate.statistics(labels, 1 if labels.ndim == 2 else 2)
    if candidate.schedule is not None:
        parts |= candidate.schedule(epoch, parts)
    return {name: part.float() if part.is_floating_point() else part for name, part in parts.items()}


def _move_one_row(
    candidate: Candidate, parts: dict[str, Tensor], batch: Tensor, row: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Margins, losses and gradients of one row of a batch."""

    def output_at(margin: Tensor) -> Tensor:
        if batch.ndim == 2:
            return torch.where(batch[row] == 1, margin, -margin).reshape(1)
        pair = torch.stack([-margin / 2, margin / 2])
        return pair if batch[row] == 1 else pair.flip(0)

    def logit_margin(margin: Tensor) -> Tensor:
        output = output_at(margin)
        logits = output if candidate.logits is None else candidate.logits(output[None], parts)[0]
        if batch.ndim == 2:
            return logits[0] if batch[row] == 1 else -logits[0]
        return logits[batch[row]] - logits[1 - batch[row]]

    def contribution(margin: Tensor) -> Tensor:
        undecided = output_at(torch.zeros_like(margin)).expand(len(batch), -1)
        here = torch.arange(len(batch))[:, None] == row
        output = torch.where(here, output_at(margin), undecided)
        if candidate.state is None:
            loss: Tensor = candidate.objective(output, batch, parts)
        else:
            loss, _ = candidate.objective(output, batch, parts | {"row": torch.arange(len(batch))}, state)
        return len(batch) * loss

    state = {} if candidate.state is None else candidate.state(len(batch), parts)
    reach = 2.0 if candidate.head == "cosine" else REACH
    scale = float(logit_margin(torch.tensor(1.0)))
    reach = min(reach, REACH / scale)
    margins = torch.linspace(-reach, reach, POINTS, requires_grad=True)
    # A loop rather than vmap: it also draws what vmap refuses.
    losses = torch.stack([contribution(margin) for margin in margins])
    (slopes,) = torch.autograd.grad(losses.sum(), margins)
    values = losses.detach()
    return scale * margins.detach().numpy(), (values - values.min()).numpy(), (slopes / scale).numpy()
