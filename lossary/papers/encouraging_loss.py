"""Encouraging loss (Zhao et al. 2022): does a bonus for well-classified examples widen margins?"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.classification import (
    encouraging_loss,
    halted_cross_entropy_loss,
    long_tailed_counts,
    subsample_long_tailed,
)
from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import accuracy, calibration_error, digits, fit, mlp

CARD = Paper(
    slug="encouraging_loss",
    title="Well-classified Examples are Underestimated in Classification with Deep Neural Networks",
    authors="Guangxiang Zhao, Wenkai Yang, Xuancheng Ren, Lei Li, Yunfang Wu, Xu Sun",
    arxiv="2110.06537",
    year=2021,
    family="classification",
    provides=(
        "encouraging_loss",
        "EncouragingLoss",
        "encouraging_bonus",
        "halted_cross_entropy_loss",
        "HaltedCrossEntropyLoss",
    ),
    formula="L = -log p_y + log(1 - p_y), the bonus along its tangent beyond p_y = 0.75",
    call="from lossary.classification import EncouragingLoss\nloss = EncouragingLoss(log_end=0.75)(logits, labels)",
    claim="A bonus for well-classified examples keeps them learning: held-out margins grow (here: by over 15%).",
    use_when="labels are right and wider margins are worth having",
    avoid_when="labels are wrong: it pushes those as well; or the loss must not be negative",
    golden=4,
    metric="log of mean margin",
    direction="higher",
    margin=math.log(1.15),
    baseline="CE",
    method="encouraging, log_end=0.75",
    seeds=5,
    limits=(
        "Gains in accuracy of some tenths (ImageNet, translation) drown in the seeds' noise on 300 digits; accuracy, "
        "calibration and the long tail are reported beside the margin."
    ),
)

Loss = Callable[..., Tensor]
ARMS: dict[str, Loss] = {
    "CE": F.cross_entropy,
    "encouraging, log_end=0.5": lambda logits, target, **kw: encouraging_loss(logits, target, log_end=0.5, **kw),
    "encouraging, log_end=0.75": encouraging_loss,
    "encouraging, log_end=1": lambda logits, target, **kw: encouraging_loss(logits, target, log_end=1.0, **kw),
    "halted CE": halted_cross_entropy_loss,
}


def reproduce(run: Run) -> Evidence:
    """Digits, 300 for training, 1,497 for test, a 64-128-128-10 network, Adam, 40 epochs.

    The mean of the label's logit less the best other's on test rows; and after half of the epochs the share of the
    gradient (its norm in the logits) that well-classified training rows (p > 0.75) have. Then a long tail of 85 to 2
    rows a class, 80 epochs.
    """
    for seed, arm in run.trials(list(ARMS)):
        run.record(
            arm,
            **_digits(seed, ARMS[arm], epochs=run.pick(40, 10)),
            **_long_tail(seed, ARMS[arm], epochs=run.pick(80, 10)),
        )
    shown = ("accuracy", "calibration error", "gradient share of well-classified")
    tail = ", ".join(f"{arm} {100 * run.mean(arm, 'balanced accuracy, long tail'):.1f}%" for arm in ARMS)
    ratio = math.exp(run.mean(CARD.method, "log of mean margin") - run.mean("CE", "log of mean margin"))
    difference = 100 * (run.mean(CARD.method, "accuracy") - run.mean("CE", "accuracy"))
    return run.conclude(
        series=[
            Series(
                "Beside the margin",
                " | ".join(ARMS),
                "mean over seeds",
                list(range(len(ARMS))),
                {name: [run.mean(arm, name) for arm in ARMS] for name in shown},
            )
        ],
        notes=[
            f"Margins are {ratio:.2f} times those of cross-entropy; accuracy differs by {difference:+.1f} points.",
            "Share of the gradient of well-classified rows after half of the epochs: "
            + ", ".join(f"{arm} {100 * run.mean(arm, 'gradient share of well-classified'):.0f}%" for arm in ARMS)
            + ".",
            f"Long tail, balanced accuracy: {tail}.",
        ],
    )


def _digits(seed: int, loss: Loss, *, epochs: int) -> dict[str, float]:
    data = digits(300, seed)
    model = mlp((64, 128, 128, 10), seed)
    share: list[float] = []

    def look(epoch: int) -> None:
        if epoch == epochs // 2:
            share.append(_share_of_well_classified(model, data.x, data.y, loss))

    _fit(model, data.x, data.y, loss, seed, epochs, on_epoch=look)
    with torch.no_grad():
        logits = model(data.x_test)
    label = F.one_hot(data.y_test, 10).bool()
    margin = logits[label] - logits.masked_fill(label, -torch.inf).amax(1)
    return {
        "log of mean margin": margin.double().mean().log().item(),
        "accuracy": accuracy(logits, data.y_test),
        "calibration error": calibration_error(logits, data.y_test),
        "gradient share of well-classified": share[0],
    }


def _share_of_well_classified(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> float:
    with torch.no_grad():
        logits = model(x)
    well = logits.softmax(1).gather(1, y[:, None])[:, 0] > 0.75
    norm = torch.func.grad(lambda z: loss(z, y, reduction="sum"))(logits).norm(dim=1)
    return float(norm[well].sum() / norm.sum())


def _long_tail(seed: int, loss: Loss, *, epochs: int) -> dict[str, float]:
    data = digits(900, seed, stratified=True)
    kept = subsample_long_tailed(data.y, long_tailed_counts(85, 10, imbalance=42.5), seeding.generator(seed, "tail"))
    model = mlp((64, 128, 128, 10), seed)
    _fit(model, data.x[kept], data.y[kept], loss, seed, epochs)
    with torch.no_grad():
        guess = model(data.x_test).argmax(1)
    recall = torch.stack([(guess[data.y_test == label] == label).double().mean() for label in range(10)])
    return {
        "balanced accuracy, long tail": recall.mean().item(),
        "tail recall, long tail": recall[7:].mean().item(),
    }


def _fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    seed: int,
    epochs: int,
    on_epoch: Callable[[int], None] | None = None,
) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    fit(model, x, y, loss, optimizer=optimizer, epochs=epochs, batch_size=64, seed=seed, on_epoch=on_epoch)
