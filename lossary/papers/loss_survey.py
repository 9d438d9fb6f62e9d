"""The survey of losses (Terven et al. 2023): what losses for outliers, quantiles and rare classes do on small data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import lossary
from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import Split
from lossary.regression import LogCoshLoss, QuantileLoss

CARD = Paper(
    slug="loss_survey",
    title="Loss Functions and Metrics in Deep Learning",
    authors=(
        "Juan Terven, Diana M. Cordova-Esparza, Julio A. Romero-Gonzalez, Alfonso Ramirez-Pedraza, E. A. Chavez-Urbiola"
    ),
    arxiv="2307.02694",
    year=2023,
    family="core",
    provides=(
        "lossary.catalogue",
        "lossary.find",
        "lossary.regression.log_cosh_loss",
        "lossary.regression.LogCoshLoss",
        "lossary.regression.quantile_loss",
        "lossary.regression.QuantileLoss",
        "lossary.regression.berhu_loss",
        "lossary.regression.BerHuLoss",
        "lossary.segmentation.box_iou_loss",
        "lossary.segmentation.BoxIoULoss",
        "lossary.segmentation.yolo_loss",
        "lossary.segmentation.YOLOLoss",
        "lossary.segmentation.dice_loss",
        "lossary.segmentation.DiceLoss",
        "lossary.segmentation.tversky_loss",
        "lossary.segmentation.TverskyLoss",
        "lossary.segmentation.lovasz_softmax_loss",
        "lossary.segmentation.LovaszSoftmaxLoss",
        "lossary.segmentation.scale_invariant_log_loss",
        "lossary.segmentation.ScaleInvariantLogLoss",
        "lossary.segmentation.disparity_smoothness_loss",
        "lossary.segmentation.DisparitySmoothnessLoss",
        "lossary.segmentation.photometric_loss",
        "lossary.segmentation.PhotometricLoss",
        "lossary.segmentation.left_right_consistency_loss",
        "lossary.segmentation.LeftRightConsistencyLoss",
        "lossary.segmentation.depth_metrics",
        "lossary.segmentation.boundary_f1",
        "lossary.embedding.arcface_loss",
        "lossary.embedding.ArcFaceLoss",
        "lossary.embedding.cosface_loss",
        "lossary.embedding.CosFaceLoss",
        "lossary.embedding.sphereface_loss",
        "lossary.embedding.SphereFaceLoss",
        "lossary.embedding.center_loss",
        "lossary.embedding.CenterLoss",
        "lossary.embedding.barlow_twins_loss",
        "lossary.embedding.BarlowTwinsLoss",
        "lossary.generative.adversarial_losses",
        "lossary.generative.gradient_penalty",
        "lossary.generative.gaussian_kl_loss",
        "lossary.generative.GaussianKLLoss",
        "lossary.generative.style_loss",
        "lossary.generative.StyleLoss",
        "lossary.generative.frechet_distance",
        "lossary.language.meteor_score",
        "lossary.language.minimum_risk_loss",
        "lossary.language.MinimumRiskLoss",
        "lossary.language.reinforce_loss",
        "lossary.language.ReinforceLoss",
        "lossary.retrieval.context_precision",
        "lossary.retrieval.context_recall",
        "lossary.retrieval.faithfulness",
        "lossary.retrieval.answer_relevance",
        "lossary.retrieval.answer_correctness",
    ),
    formula="a table of losses and metrics by task: lossary.find(task=..., kind=...)",
    call=(
        "import lossary\n"
        "from lossary.regression import LogCoshLoss\n"
        "loss = LogCoshLoss()(values, targets)\n"
        "for entry in lossary.find(task='segmentation', kind='loss'):\n"
        "    print(entry.name, entry.formula, entry.implementation)"
    ),
    claim="With outliers among the targets, log-cosh leaves a smaller test error than squared error.",
    use_when="it is open which loss or metric fits a task, and which tested function computes it",
    avoid_when="the choice between two losses matters: compare them on your data",
    golden=4,
    metric="test absolute error",
    direction="lower",
    margin=0.0,
    baseline="squared error",
    method="log-cosh",
    seeds=10,
    limits="A survey has no experiment: three of its statements are shown on two small tables, with linear models.",
)

LOSSES: dict[str, Callable[[], nn.Module]] = {
    "squared error": nn.MSELoss,
    "Huber": nn.HuberLoss,
    "log-cosh": LogCoshLoss,
    "absolute error": nn.L1Loss,
}
QUANTILES = (0.1, 0.9)
IMBALANCE = 10


def reproduce(run: Run) -> Evidence:
    """Diabetes (300 rows to train) with a fifth of the targets far too high; its quantiles; rare tumours.

    Linear models, full batches, Adam 0.05 with a falling rate for 1500 steps.
    """
    steps = run.pick(1500, 100)
    for seed, arm in run.trials([*LOSSES, "quantiles", "cross-entropy", "weighted cross-entropy"]):
        if arm in LOSSES:
            run.record(arm, **{"test absolute error": _outliers(seed, LOSSES[arm](), steps)})
        elif arm == "quantiles":
            run.record(arm, coverage=_coverage(seed, steps))
        else:
            run.record(arm, **_rare_tumours(seed, arm, steps))
    errors = {arm: run.mean(arm, "test absolute error") for arm in LOSSES}
    recall = {arm: run.mean(arm, "recall") for arm in ("cross-entropy", "weighted cross-entropy")}
    precision = {arm: run.mean(arm, "precision") for arm in recall}
    coverage = run.mean("quantiles", "coverage")
    return run.conclude(
        series=[
            Series(
                "A fifth of the targets far too high",
                " | ".join(LOSSES),
                "test absolute error",
                list(range(len(LOSSES))),
                {"mean over seeds": list(errors.values())},
            )
        ],
        notes=[
            "Test absolute error: " + ", ".join(f"{arm} {error:.1f}" for arm, error in errors.items()) + ".",
            f"Between the predicted quantiles 0.1 and 0.9 lie {100 * coverage:.1f}% of test targets (80% are wanted).",
            "Malignant tumours, ten times rarer than benign ones in training: "
            + ", ".join(f"{arm} recall {recall[arm]:.3f}, precision {precision[arm]:.3f}" for arm in recall)
            + ".",
            f"The catalogue has {len(lossary.catalogue())} entries; the tests import every call that it names.",
        ],
    )


def _outliers(seed: int, loss: nn.Module, steps: int) -> float:
    data = _diabetes(seed)
    far = torch.rand(len(data.y), generator=seeding.generator(seed, "outliers")) < 0.2
    noisy = data.y + far * 10 * data.y.std()
    centre = noisy.median()
    spread = (noisy - centre).abs().median()  # what is known of the scale without knowing the outliers
    model = _fit(data.x, (noisy - centre) / spread, loss, outputs=1, steps=steps)
    with torch.no_grad():
        return float((model(data.x_test)[:, 0] * spread + centre - data.y_test).abs().mean())


def _coverage(seed: int, steps: int) -> float:
    data = _diabetes(seed)
    model = _fit(data.x, (data.y - data.y.mean()) / data.y.std(), QuantileLoss(QUANTILES), outputs=2, steps=steps)
    with torch.no_grad():
        low, high = (model(data.x_test) * data.y.std() + data.y.mean()).unbind(1)
    return float(((low <= data.y_test) & (data.y_test <= high)).double().mean())


def _rare_tumours(seed: int, arm: str, steps: int) -> dict[str, float]:
    from sklearn.datasets import load_breast_cancer
    from sklearn.metrics import precision_score, recall_score

    x, y = (torch.from_numpy(array) for array in load_breast_cancer(return_X_y=True))
    data = _split((x, 1 - y), 340, seed)  # 1 is malignant
    positive = data.y.nonzero()[:, 0]
    rare = positive[: int((data.y == 0).sum()) // IMBALANCE]
    kept = torch.cat([(data.y == 0).nonzero()[:, 0], rare])
    weight = torch.tensor(float(IMBALANCE)) if arm.startswith("weighted") else None
    model = _fit(data.x[kept], data.y[kept], nn.BCEWithLogitsLoss(pos_weight=weight), outputs=1, steps=steps)
    with torch.no_grad():
        guess = model(data.x_test)[:, 0] > 0
    return {
        "recall": recall_score(data.y_test, guess),
        "precision": precision_score(data.y_test, guess, zero_division=0.0),
    }


def _diabetes(seed: int) -> Split:
    from sklearn.datasets import load_diabetes

    x, y = (torch.from_numpy(array) for array in load_diabetes(return_X_y=True))
    return _split((x, y), 300, seed)


def _split(data: tuple[Tensor, Tensor], train: int, seed: int) -> Split:
    """Rows at random, features standardised by the training rows."""
    order = torch.randperm(len(data[0]), generator=seeding.generator(seed, "split"))
    x, y = (part[order].float() for part in data)
    x = (x - x[:train].mean(0)) / x[:train].std(0)
    return Split(x[:train], y[:train], x[train:], y[train:])


def _fit(x: Tensor, y: Tensor, loss: nn.Module, *, outputs: int, steps: int) -> nn.Linear:
    model = nn.Linear(x.shape[1], outputs)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.Adam(model.parameters(), 0.05, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        prediction = model(x)
        torch.autograd.backward(loss(prediction if outputs > 1 else prediction[:, 0], y))
        optimizer.step()
        schedule.step()
    return model
