"""Dice losses for text (Li et al. 2020): does a loss shaped like F1 beat cross-entropy when positives are rare?"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.classification import nlp_dice_loss, self_adjusting_dice_loss, tversky_nlp_loss
from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import digits, fit, mlp

CARD = Paper(
    slug="dice_nlp",
    title="Dice Loss for Data-imbalanced NLP Tasks",
    authors="Xiaoya Li, Xiaofei Sun, Yuxian Meng, Junjun Liang, Fei Wu, Jiwei Li",
    arxiv="1911.02855",
    year=2019,
    family="classification",
    provides=(
        "self_adjusting_dice_loss",
        "SelfAdjustingDiceLoss",
        "nlp_dice_loss",
        "NLPDiceLoss",
        "tversky_nlp_loss",
        "TverskyNLPLoss",
    ),
    formula="L = 1 - (2 sum p y + s) / (sum p^2 + sum y^2 + s); DSC: (1 - p)^alpha p in place of p, per example",
    call="from lossary.classification import NLPDiceLoss\nloss = NLPDiceLoss(smooth=1.0)(logits, labels)",
    claim="Where positives are rare, Dice losses reach a higher F1 than cross-entropy.",
    use_when="a tagger or matcher on few positives is judged by F1; the set-level form, in batches that hold positives",
    avoid_when="probabilities are wanted; the per-example form trains poorly from scratch, and alpha of 1 may collapse",
    golden=4,
    metric="F1",
    direction="higher",
    margin=0.1,
    baseline="CE",
    method="Dice, whole set",
    seeds=8,
    limits=(
        "The paper fine-tunes BERT on tagging and reading tasks, with gains of 0.3 to 1 F1; a network from scratch on "
        "noisy digits stands in. What the per-example form does after pre-training cannot be seen here."
    ),
)

Loss = Callable[[Tensor, Tensor], Tensor]
DAMPED = (0.0, 0.01, 0.1, 0.3, 1.0)
ARMS: dict[str, Loss] = {
    "CE": F.binary_cross_entropy_with_logits,
    "CE, weighted": lambda z, y: F.binary_cross_entropy_with_logits(z, y, pos_weight=torch.tensor(40.0)),
    "Dice, whole set": nlp_dice_loss,
    "Tversky, whole set": tversky_nlp_loss,
    "DSC of two classes": lambda z, y: self_adjusting_dice_loss(
        torch.cat([torch.zeros_like(z), z], 1), y[:, 0].long(), smooth=1.0
    ),
}


def reproduce(run: Run) -> Evidence:
    """Is a digit an 8: 20 positive and 800 negative training rows, pixels with noise of 0.15, a 64-64-1 network.

    Adam 2e-3, 60 epochs, batches of 64, F1 at a threshold of 0.5 on the other rows. The self-adjusting form per
    example, as in the paper, with alpha from 0 to 1.
    """
    for seed, arm in run.trials([*ARMS, *map(_arm, DAMPED)]):
        loss = ARMS.get(arm) or _damped(float(arm.rpartition("=")[2]))
        run.record(arm, **_train(seed, loss, epochs=run.pick(60, 5)))
    names = [*ARMS, *map(_arm, DAMPED)]
    y = {metric: [run.mean(_arm(alpha), metric) for alpha in DAMPED] for metric in ("F1", "accuracy")}
    return run.conclude(
        series=[Series("Self-adjusting, per example", "alpha", "mean over seeds", DAMPED, y)],
        notes=[
            "F1: " + ", ".join(f"{arm} {run.mean(arm, 'F1'):.3f}" for arm in names) + ".",
            f"The self-adjusting form at alpha = 1 has an accuracy of {run.mean(_arm(1.0), 'accuracy'):.3f}: beyond "
            "p = 1/2 it pushes an easy positive down.",
        ],
    )


def _train(seed: int, loss: Loss, *, epochs: int) -> dict[str, float]:
    from sklearn.metrics import f1_score

    data = digits(1200, seed)
    positive = data.y == 8
    kept = torch.cat([positive.nonzero()[:20, 0], (~positive).nonzero()[:800, 0]])
    rest = torch.ones(len(data.y), dtype=torch.bool).index_fill(0, kept, False)
    x_test, y_test = torch.cat([data.x[rest], data.x_test]), torch.cat([data.y[rest], data.y_test]) == 8
    generator = seeding.generator(seed, "noise")
    x, x_test = (z + 0.15 * torch.randn(z.shape, generator=generator) for z in (data.x[kept], x_test))
    model = mlp((64, 64, 1), seed)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3, fused=True)
    target = positive[kept].float().unsqueeze(1)
    fit(model, x, target, loss, optimizer=optimizer, epochs=epochs, batch_size=64, seed=seed)
    with torch.no_grad():
        guess = model(x_test)[:, 0] > 0
    return {
        "F1": f1_score(y_test.numpy(), guess.numpy(), zero_division=0.0),
        "accuracy": (guess == y_test).double().mean().item(),
    }


def _damped(alpha: float) -> Loss:
    return lambda z, y: self_adjusting_dice_loss(z, y, alpha=alpha, smooth=1.0, variant="paper")


def _arm(alpha: float) -> str:
    return f"DSC, alpha={alpha:g}"
