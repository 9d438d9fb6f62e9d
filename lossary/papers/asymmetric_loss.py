"""Asymmetric loss (Ridnik et al. 2021): does focusing positives and negatives apart help with many labels?"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.classification import asymmetric_loss, sigmoid_focal_loss
from lossary.core import seeding
from lossary.papers._evidence import Evidence
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import digits, fit, mlp

CARD = Paper(
    slug="asymmetric_loss",
    title="Asymmetric Loss For Multi-Label Classification",
    authors="Tal Ridnik, Emanuel Ben-Baruch, Nadav Zamir, Asaf Noy, Itamar Friedman, Matan Protter, Lihi Zelnik-Manor",
    arxiv="2009.14119",
    year=2020,
    family="classification",
    provides=(
        "asymmetric_loss",
        "AsymmetricLoss",
        "asymmetric_softmax_loss",
        "AsymmetricSoftmaxLoss",
        "adaptive_asymmetric_loss",
        "AdaptiveAsymmetricLoss",
    ),
    formula="L+ = -(1 - p)^g+ log p,  L- = -(p_m)^g- log(1 - p_m),  p_m = max(p - m, 0)",
    call=(
        "from lossary.classification import AsymmetricLoss\n"
        "loss = AsymmetricLoss(gamma_neg=4.0, gamma_pos=0.0, clip=0.05)(logits, labels)"
    ),
    claim="With several labels at once, most of them negative, the asymmetric loss beats binary cross-entropy in mAP.",
    use_when="each example carries a few of many labels, and some positives may be missing",
    avoid_when="positives and negatives are about as many, or probabilities must be calibrated as they are",
    golden=4,
    metric="mAP",
    direction="higher",
    margin=0.0,
    baseline="BCE",
    method="ASL",
    seeds=5,
    limits="MS-COCO's gain is 1.5 to 3 points of mAP with a large network; two digits on a canvas stand in.",
)

MISSING = ", 30% of positives missing"
Loss = Callable[[Tensor, Tensor], Tensor]
ARMS: dict[str, Loss] = {
    "BCE": F.binary_cross_entropy_with_logits,
    "focal": lambda logits, target: sigmoid_focal_loss(logits, target, alpha=None, gamma=2.0),
    "ASL": lambda logits, target: asymmetric_loss(logits, target, gamma_neg=4.0, gamma_pos=0.0, clip=0.05),
}


def reproduce(run: Run) -> Evidence:
    """Two shifted digits on a 16x16 canvas, two of ten labels; 3,000 for training, 2,000 for test, from other digits.

    A 256-256-256-10 network, 30 epochs; once with all labels, once with 30% of the positives dropped in training.
    """
    for seed, arm in run.trials(list(ARMS)):
        data = digits(900, seed)
        x, y = _canvases(data.x, data.y, run.pick(3000, 600), seeding.generator(seed, "train"))
        x_test, y_test = _canvases(data.x_test, data.y_test, 2000, seeding.generator(seed, "test"))
        dropped = torch.rand(y.shape, generator=seeding.generator(seed, "missing")) < 0.3
        measured = {}
        for suffix, target in (("", y), (MISSING, torch.where(dropped, 0.0, y))):
            model = mlp((256, 256, 256, 10), seed)
            optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
            fit(model, x, target, ARMS[arm], optimizer=optimizer, epochs=run.pick(30, 3), batch_size=64, seed=seed)
            with torch.no_grad():
                logits = model(x_test)
            measured[f"mAP{suffix}"] = mean_average_precision(logits, y_test)
            measured[f"p of positives{suffix}"] = logits.sigmoid()[y_test == 1].mean().item()
            measured[f"p of negatives{suffix}"] = logits.sigmoid()[y_test == 0].mean().item()
        run.record(arm, **measured)
    gains = [100 * (run.mean("ASL", f"mAP{s}") - run.mean("BCE", f"mAP{s}")) for s in ("", MISSING)]
    return run.conclude(
        notes=[
            f"ASL over BCE: {gains[0]:+.1f} points of mAP with all labels, "
            f"{gains[1]:+.1f} with 30% of positives missing.",
            f"ASL over focal: {100 * (run.mean('ASL', 'mAP') - run.mean('focal', 'mAP')):+.1f} points of mAP.",
            "Mean probability of positives: "
            + ", ".join(f"{arm} {run.mean(arm, 'p of positives'):.2f}" for arm in ARMS)
            + "; of negatives: "
            + ", ".join(f"{arm} {run.mean(arm, 'p of negatives'):.2f}" for arm in ARMS)
            + ".",
        ]
    )


def mean_average_precision(scores: Tensor, target: Tensor) -> float:
    """Average precision of each label, averaged; scores and yes/no targets ``(N, L)``."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(target.numpy(), scores.numpy(), average="macro"))


def _canvases(x: Tensor, y: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pixelwise maxima of two digits at random places; labels ``(count, 10)``."""
    canvas = torch.zeros(count, 16, 16)
    labels = torch.zeros(count, 10)
    for _ in range(2):
        chosen = torch.randint(len(x), (count,), generator=generator)
        places = torch.randint(9, (count, 2), generator=generator)
        for row, (digit, (top, left)) in enumerate(zip(x[chosen].view(-1, 8, 8), places.tolist(), strict=True)):
            patch = canvas[row, top : top + 8, left : left + 8]
            torch.maximum(patch, digit, out=patch)
        labels[torch.arange(count), y[chosen]] = 1.0
    return canvas.flatten(1), labels
