"""Normalized losses (Ma et al. 2020): does a normalised active loss with a passive one withstand wrong labels?"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.classification import (
    active_passive_loss,
    generalized_cross_entropy_loss,
    mean_absolute_error_loss,
    normalized_cross_entropy_loss,
)
from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import accuracy, digits, fit, flip_labels, mlp

CARD = Paper(
    slug="active_passive",
    title="Normalized Loss Functions for Deep Learning with Noisy Labels",
    authors="Xingjun Ma, Hanxun Huang, Yisen Wang, Simone Romano, Sarah Erfani, James Bailey",
    arxiv="2006.13554",
    year=2020,
    family="classification",
    provides=(
        "active_passive_loss",
        "ActivePassiveLoss",
        "normalize_loss",
        "normalized_cross_entropy_loss",
        "NormalizedCrossEntropyLoss",
        "normalized_focal_loss",
        "NormalizedFocalLoss",
        "normalized_generalized_cross_entropy_loss",
        "NormalizedGeneralizedCrossEntropyLoss",
        "normalized_mean_absolute_error_loss",
        "NormalizedMeanAbsoluteErrorLoss",
        "normalized_reverse_cross_entropy_loss",
        "NormalizedReverseCrossEntropyLoss",
        "reverse_cross_entropy_loss",
        "ReverseCrossEntropyLoss",
        "mean_absolute_error_loss",
        "MeanAbsoluteErrorLoss",
        "generalized_cross_entropy_loss",
        "GeneralizedCrossEntropyLoss",
        "symmetric_cross_entropy_loss",
        "SymmetricCrossEntropyLoss",
    ),
    formula="L = alpha log p_y / sum_j log p_j + beta 9.21 (1 - p_y)",
    call=(
        "from lossary.classification import ActivePassiveLoss\n"
        'loss = ActivePassiveLoss("nce", "rce", alpha=1.0, beta=1.0)(logits, labels)'
    ),
    claim="With 40% wrong labels a normalised active loss plus a passive one (NCE + RCE) is far more accurate than CE.",
    use_when="a good part of the labels is wrong",
    avoid_when="labels are clean: it learns more slowly, and its probabilities want calibration",
    golden=5,
    metric="accuracy, 40% wrong",
    direction="higher",
    margin=0.06,
    baseline="CE",
    method="NCE + RCE",
    seeds=5,
    limits=(
        "Ten classes are too few for the mean absolute error alone to under-fit, as it does on CIFAR-100; pairs of "
        "digits (100 classes, clean labels) stand in for that half of the claim."
    ),
)

Loss = Callable[[Tensor, Tensor], Tensor]
ARMS: dict[str, Loss] = {
    "CE": F.cross_entropy,
    "NCE": normalized_cross_entropy_loss,
    "GCE": generalized_cross_entropy_loss,
    "MAE": mean_absolute_error_loss,
    "NCE + MAE": lambda logits, target: active_passive_loss(logits, target, passive="mae"),
    "NCE + RCE": active_passive_loss,
}


def reproduce(run: Run) -> Evidence:
    """Digits, 900 for training with flipped labels, 897 clean for test, a 64-256-256-10 network, 120 epochs.

    Symmetric flips of 40% and 60%, asymmetric ones (each class to the next) of 30%; last epoch. Then pairs of digits,
    100 classes with clean labels, to see what under-fits.
    """
    epochs = run.pick(120, 5)
    for seed, arm in run.trials(list(ARMS)):
        data = digits(900, seed)
        measured = {}
        for name, labels in {
            "accuracy, 40% wrong": flip_labels(data.y, 0.4, seed),
            "accuracy, 60% wrong": flip_labels(data.y, 0.6, seed),
            "accuracy, 30% to the next class": _to_the_next(data.y, 0.3, seed),
        }.items():
            measured[name] = _train(data.x, labels, data.x_test, data.y_test, ARMS[arm], seed, epochs, width=256)
        measured["accuracy, 100 classes"] = _train(
            *_pairs(data.x, data.y, data.x_test, data.y_test, seed), ARMS[arm], seed, run.pick(30, 3), width=256
        )
        run.record(arm, **measured)
    levels = ("accuracy, 40% wrong", "accuracy, 60% wrong")
    notes = [
        f"NCE + RCE exceeds NCE alone by {100 * (run.mean('NCE + RCE', levels[0]) - run.mean('NCE', levels[0])):.1f} "
        f"points at 40%.",
        "100 classes, clean labels: "
        + ", ".join(f"{arm} {100 * run.mean(arm, 'accuracy, 100 classes'):.1f}%" for arm in ARMS)
        + ".",
    ]
    y = {arm: [run.mean(arm, level) for level in levels] for arm in ARMS}
    return run.conclude(
        series=[Series("Wrong labels", "share of wrong labels", "accuracy", (0.4, 0.6), y)], notes=notes
    )


def _train(
    x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, loss: Loss, seed: int, epochs: int, *, width: int
) -> float:
    model = mlp((x.shape[1], width, width, int(y_test.max()) + 1), seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    fit(model, x, y, loss, optimizer=optimizer, epochs=epochs, batch_size=64, seed=seed, clip=5.0)
    with torch.no_grad():
        return accuracy(model(x_test), y_test)


def _to_the_next(y: Tensor, share: float, seed: int) -> Tensor:
    flipped = torch.rand(len(y), generator=seeding.generator(seed, "asymmetric noise")) < share
    return torch.where(flipped, (y + 1) % 10, y)


def _pairs(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two digits side by side, labelled by both: 100 classes, 4,000 pairs for training and 2,000 for test."""
    generator = seeding.generator(seed, "pairs")

    def pair(x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
        left, right = torch.randint(len(x), (2, count), generator=generator)
        return torch.cat([x[left], x[right]], 1), 10 * y[left] + y[right]

    return (*pair(x, y, 4000), *pair(x_test, y_test, 2000))
