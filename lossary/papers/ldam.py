"""LDAM (Cao et al. 2019): do margins by class frequency and deferred re-weighting lift rare classes?"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.classification import (
    DeferredReweighting,
    LDAMLoss,
    NormalizedLinear,
    effective_number_weights,
    long_tailed_counts,
    subsample_long_tailed,
)
from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import digits, fit, mlp

CARD = Paper(
    slug="ldam",
    title="Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
    authors="Kaidi Cao, Colin Wei, Adrien Gaidon, Nikos Arechiga, Tengyu Ma",
    arxiv="1906.07413",
    year=2019,
    family="classification",
    provides=(
        "ldam_loss",
        "LDAMLoss",
        "ldam_hinge_loss",
        "LDAMHingeLoss",
        "ldam_margins",
        "NormalizedLinear",
        "effective_number_weights",
        "DeferredReweighting",
        "DeferredResampling",
        "long_tailed_counts",
        "subsample_long_tailed",
    ),
    formula="L = -log softmax(s (z - Delta_y e_y))_y,  Delta_j ~ n_j^(-1/4)",
    call=(
        "from lossary.classification import DeferredReweighting, LDAMLoss, NormalizedLinear\n"
        "head = NormalizedLinear(128, 10)  # the model's last layer\n"
        "loss = LDAMLoss(class_counts, max_margin=0.5, scale=10.0)\n"
        "schedule = DeferredReweighting(class_counts, start_epoch=160)\n"
        "schedule.step(epoch, loss)  # at each epoch's start"
    ),
    claim="On long-tailed classes LDAM with deferred re-weighting beats cross-entropy in balanced accuracy.",
    use_when="some classes are much rarer than others and all count alike",
    avoid_when="classes are balanced, or the metric follows their frequency",
    golden=3,
    metric="balanced accuracy",
    direction="higher",
    margin=0.0,
    baseline="CE",
    method="LDAM-DRW, s=10",
    seeds=10,
    limits="iNaturalist and the size of the gain on CIFAR; 85 to 2 images a class are few even for digits.",
)

EPOCHS = 60
SCALES = {"s=10": 10.0, "s=30": 30.0}
ARMS = (
    "CE",
    "CE, weighted from the start",
    "CE-DRW",
    *(f"{loss}, {scale}" for scale in SCALES for loss in ("cosine CE", "cosine CE-DRW", "LDAM", "LDAM-DRW")),
)


def reproduce(run: Run) -> Evidence:
    """Digits from 85 down to 2 images a class, balanced test of 897, a 64-128-128-10 network.

    SGD 0.05 with momentum 0.9, the learning rate falling tenfold after 70% and 90% of 60 epochs, weights from 70% on.
    """
    counts = long_tailed_counts(85, 10, imbalance=42.5)
    for seed, arm in run.trials(run.pick(ARMS, ("CE", "LDAM-DRW, s=10"))):
        data = digits(900, seed, stratified=True)
        kept = subsample_long_tailed(data.y, counts, seeding.generator(seed, "tail"))
        model, loss, on_epoch = _method(arm, counts, seed, epochs := run.pick(EPOCHS, 10))
        fit(
            model,
            data.x[kept],
            data.y[kept],
            loss,
            optimizer=torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, fused=True),
            epochs=epochs,
            batch_size=32,
            seed=seed,
            learning_rate=lambda done: 1.0 if done < 0.7 else 0.1 if done < 0.9 else 0.01,
            on_epoch=on_epoch,
        )
        with torch.no_grad():
            guess = model(data.x_test).argmax(1)
        recall = torch.stack([(guess[data.y_test == label] == label).double().mean() for label in range(10)])
        run.record(
            arm,
            **{
                "balanced accuracy": recall.mean().item(),
                "head recall": recall[:3].mean().item(),
                "tail recall": recall[7:].mean().item(),
            },
        )
    if run.quick:
        return run.conclude()
    shown = ("CE", "CE-DRW", "cosine CE, s=10", "LDAM, s=10", "LDAM-DRW, s=10")
    notes = [
        f"{arm}: balanced {100 * run.mean(arm, 'balanced accuracy'):.1f}%, "
        f"head {100 * run.mean(arm, 'head recall'):.1f}%, "
        f"tail {100 * run.mean(arm, 'tail recall'):.1f}%."
        for arm in ARMS
    ]
    y = {part: [run.mean(arm, part) for arm in shown] for part in ("head recall", "tail recall")}
    series = Series("Head and tail", " | ".join(shown), "recall", list(range(len(shown))), y)
    return run.conclude(series=[series], notes=notes)


def _method(
    arm: str, counts: Tensor, seed: int, epochs: int
) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], Callable[[int], None] | None]:
    """The model, the loss and what happens before each epoch."""
    name, _, scale = arm.partition(", ")
    drw = DeferredReweighting(counts, start_epoch=int(0.7 * epochs), beta=0.999)
    if name == "CE":
        plain = nn.CrossEntropyLoss(effective_number_weights(counts, beta=0.999).float() if scale else None)
        return mlp((64, 128, 128, 10), seed), plain, None
    if name == "CE-DRW":
        weighted = _ScaledCrossEntropy(1.0)
        return mlp((64, 128, 128, 10), seed), weighted, lambda epoch: drw.step(epoch, weighted)
    model = mlp((64, 128, 128, 10), seed, head=NormalizedLinear)
    loss = LDAMLoss(counts, scale=SCALES[scale]) if name.startswith("LDAM") else _ScaledCrossEntropy(SCALES[scale])
    return model, loss, (lambda epoch: drw.step(epoch, loss)) if name.endswith("DRW") else None


class _ScaledCrossEntropy(nn.Module):
    """Cross-entropy of scaled logits whose weights can be set: the control without margins."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight: Tensor | None = None

    def set_weight(self, weight: Tensor | None) -> None:
        self.weight = None if weight is None else weight.float()

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(self.scale * input, target, weight=self.weight)
