"""AnyLoss (Han, Moniz, Chawla 2024): does training for F1 itself beat cross-entropy on imbalanced data?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.classification import any_loss
from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run

CARD = Paper(
    slug="anyloss",
    title="AnyLoss: Transforming Classification Metrics into Loss Functions",
    authors="Doheon Han, Nuno Moniz, Nitesh V. Chawla",
    arxiv="2405.14745",
    year=2024,
    family="classification",
    provides=(
        "any_loss",
        "AnyLoss",
        "metric_value",
        "soft_confusion_matrix",
        "ConfusionMatrix",
        "approximate_label",
    ),
    formula="L = 1 - F_beta(TP, FP, FN), counts of sigmoid(73 (p - 0.5))",
    call='from lossary.classification import AnyLoss\nloss = AnyLoss("fbeta", beta=1.0)(logits, labels)',
    claim="On imbalanced data a loss made of F1 itself gives a higher F1 than cross-entropy does.",
    use_when="a yes/no model on imbalanced data is judged by one metric, and batches hold positives",
    avoid_when="probabilities are wanted, or a threshold may be tuned afterwards: that often does as well",
    golden=4,
    metric="F1",
    direction="higher",
    margin=0.0,
    baseline="BCE",
    method="AnyLoss(F1)",
    seeds=10,
    limits=(
        "One data set for the paper's 102, one layer. The stronger baselines (class weights, a tuned threshold) are "
        "shown beside BCE but do not enter the verdict, which is about the paper's comparison."
    ),
)

Loss = Callable[[Tensor, Tensor], Tensor]
TUNED = "BCE, threshold tuned"
ARMS: dict[str, Loss] = {
    "BCE": F.binary_cross_entropy_with_logits,
    TUNED: F.binary_cross_entropy_with_logits,
    "BCE, balanced": lambda z, y: F.binary_cross_entropy_with_logits(z, y, pos_weight=(1 - y).sum() / y.sum()),
    "AnyLoss(F1)": any_loss,
    "AnyLoss(F1), slope 10": lambda z, y: any_loss(z, y, slope=10.0),
    "AnyLoss(G-mean)": lambda z, y: any_loss(z, y, metric="geometric_mean"),
    "AnyLoss(balanced accuracy)": lambda z, y: any_loss(z, y, metric="balanced_accuracy"),
}
METRICS = ("F1", "G-mean", "balanced accuracy")


def reproduce(run: Run) -> Evidence:
    """Breast cancer, malignant against benign, the first 5 features; malignant training rows thinned to 9 (about 5%).

    One layer from zero, gradient descent at 0.1 for 1,000 steps on the full batch. The test half keeps its natural
    share of malignant rows; the metrics are taken on a half thinned alike too, to see whether the loss made of a
    metric is best at it.
    """
    for seed, arm in run.trials(list(ARMS)):
        run.record(arm, **_train(seed, arm, steps=run.pick(1000, 200)))
    thinned = {metric: max(ARMS, key=lambda arm: run.mean(arm, f"{metric}, thinned test")) for metric in METRICS}
    y = {metric: [run.mean(arm, metric) for arm in ARMS] for metric in METRICS}
    return run.conclude(
        series=[Series("Natural test half", " | ".join(ARMS), "mean over seeds", list(range(len(ARMS))), y)],
        notes=[
            "F1: " + ", ".join(f"{arm} {100 * run.mean(arm, 'F1'):.1f}%" for arm in ARMS) + ".",
            f"The F1 loss ends with no row called malignant in {run.values('AnyLoss(F1)', 'F1').count(0.0)} of "
            f"{len(run.seeds)} seeds: from there it has no gradient.",
            *(
                f"{metric} of the loss made of it exceeds BCE's by "
                f"{100 * (run.mean(f'AnyLoss({metric})', metric) - run.mean('BCE', metric)):.1f} points."
                for metric in METRICS[1:]
            ),
            "Best on a test half thinned like the training rows: "
            + ", ".join(f"{metric} by {arm}" for metric, arm in thinned.items())
            + ".",
        ],
    )


def _train(seed: int, arm: str, *, steps: int) -> dict[str, float]:
    from sklearn.datasets import load_breast_cancer

    features, benign = load_breast_cancer(return_X_y=True)
    generator = seeding.generator(seed, "split")
    order = torch.randperm(len(features), generator=generator)
    x = torch.from_numpy(features[:, :5]).double()[order]
    y = torch.from_numpy(1.0 - benign)[order]
    half = len(x) // 2
    train = torch.cat([(y[:half] == 0).nonzero()[:, 0], (y[:half] == 1).nonzero()[:9, 0]])
    mean, spread = x[train].mean(0), x[train].std(0)
    x = torch.cat([(x - mean) / spread, torch.ones(len(x), 1)], 1)
    weights = torch.zeros(6, dtype=torch.float64)
    slope = torch.func.grad(lambda w: ARMS[arm](x[train] @ w, y[train]))
    for _ in range(steps):
        weights = weights - 0.1 * slope(weights)
    score = (x @ weights).numpy()
    threshold = _best_threshold(score[train.numpy()], y[train].numpy()) if arm == TUNED else 0.0
    test = torch.arange(half, len(x))
    thinned = torch.cat([test[y[test] == 0], test[y[test] == 1][: max(1, int((y[test] == 0).sum()) // 20)]])
    natural = _metrics(y[test].numpy(), score[test.numpy()] > threshold)
    alike = _metrics(y[thinned].numpy(), score[thinned.numpy()] > threshold)
    return {**natural, **{f"{metric}, thinned test": value for metric, value in alike.items()}}


def _best_threshold(score: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    """The threshold with the highest F1 on the training rows, halfway between scores."""
    levels = np.sort(score)
    middles = (levels[1:] + levels[:-1]) / 2
    return float(max(middles, key=lambda middle: _metrics(truth, score > middle)["F1"]))


def _metrics(truth: npt.NDArray[Any], guess: npt.NDArray[Any]) -> dict[str, float]:
    positive = truth == 1
    hits = int((guess & positive).sum())
    recall = hits / max(int(positive.sum()), 1)
    specificity = int((~guess & ~positive).sum()) / max(int((~positive).sum()), 1)
    return {
        "F1": 2 * hits / max(int(positive.sum()) + int(guess.sum()), 1),
        "G-mean": (recall * specificity) ** 0.5,
        "balanced accuracy": (recall + specificity) / 2,
    }
