"""Discriminative or generative heads (Zheng et al. 2023): does naive Bayes need fewer rows than logistic regression?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.classification import gaussian_mixture_task, linear_evaluation_curve
from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import digits, fit, mlp

CARD = Paper(
    slug="disc_vs_gen",
    title="Revisiting Discriminative vs. Generative Classifiers: Theory and Implications",
    authors="Chenyu Zheng, Guoqiang Wu, Fan Bao, Yue Cao, Chongxuan Li, Jun Zhu",
    arxiv="2302.02334",
    year=2023,
    family="classification",
    provides=(
        "LinearNaiveBayes",
        "gaussian_mixture_task",
        "GaussianMixtureTask",
        "linear_evaluation_curve",
        "logistic_excess_bound",
    ),
    formula="s_k(x) = log pi_k - 1/2 sum_d (x_d - mu_kd)^2 / v_d",
    call=(
        "from lossary.classification import LinearNaiveBayes\n"
        "head = LinearNaiveBayes().fit(features, labels)  # one pass; partial_fit for batches\n"
        "head.predict(features_new)\n"
        "head.to_linear()  # as a layer"
    ),
    claim="Naive Bayes comes near its limit with far fewer rows than logistic regression, about log D instead of D.",
    use_when="features are frozen and labels are few",
    avoid_when="labels are plenty: the limit of logistic regression is better",
    golden=2,
    metric="rows to 5% error",
    direction="lower",
    margin=0.0,
    baseline="logistic",
    method="naive Bayes",
    seeds=5,
    limits=(
        "The simulation fulfils what naive Bayes assumes. CIFAR on large pretrained networks is not run; a small "
        "network trained on half of the digits and evaluated on the others stands in for it."
    ),
)

HEADS = {"naive Bayes": "naive_bayes", "logistic": "logistic"}
FEATURES = (50, 100, 200)
SIZES = (10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 400, 600, 800, 1200)
FEW = (5, 10, 15, 25, 50, 100, 200)


def reproduce(run: Run) -> Evidence:
    """Five Gaussian classes in 50, 100 and 200 dimensions, 10 to 1,200 rows; the first size with an error below 5%.

    The verdict is at 200; a head that does not arrive counts with twice the largest size. Beside it, frozen features
    of a network trained on the digits 0 to 4, evaluated on 5 to 9 with 1 to 40 images of each.
    """
    dimensions, sizes = run.pick(FEATURES, (200,)), run.pick(SIZES, (10, 20))
    for seed, arm in run.trials(tuple(HEADS)):
        head = HEADS[arm]
        results: dict[str, float] = {}
        for dimension in dimensions:
            generator = seeding.generator(seed, "task", dimension)
            train = gaussian_mixture_task(dimension, 5, max(sizes), generator=generator)
            test = gaussian_mixture_task(dimension, 5, 2000, generator=generator)
            error = _curve(train, test, sizes, head, seed)
            arrived = [size for size, value in zip(sizes, error, strict=True) if value < 0.05]
            name = "rows to 5% error" + ("" if dimension == 200 else f", {dimension} features")
            results[name] = min(arrived, default=2 * max(sizes))
        if not run.quick:
            frozen = _frozen(seed)
            for size, value in zip(FEW, _curve(frozen[:2], frozen[2:], FEW, head, seed), strict=True):
                results[f"error with {size} images"] = value
        run.record(arm, **results)
    if run.quick:
        return run.conclude()
    rows = {
        arm: [run.mean(arm, "rows to 5% error" + ("" if d == 200 else f", {d} features")) for d in FEATURES]
        for arm in HEADS
    }
    errors = {arm: [run.mean(arm, f"error with {size} images") for size in FEW] for arm in HEADS}
    notes = [
        f"{arm}: rows to 5% error at {', '.join(map(str, FEATURES))} features: "
        f"{', '.join(f'{value:.0f}' for value in rows[arm])}; error on frozen features with "
        f"{', '.join(map(str, FEW))} images: {', '.join(f'{100 * value:.1f}%' for value in errors[arm])}."
        for arm in HEADS
    ]
    better = [size for size, nb, lr in zip(FEW, errors["naive Bayes"], errors["logistic"], strict=True) if nb < lr]
    notes.append(
        f"On frozen features naive Bayes is ahead with {', '.join(map(str, better))} images."
        if better
        else "On frozen features naive Bayes is never ahead: the two regimes do not show."
    )
    return run.conclude(
        series=[
            Series("Simulation", "features", "rows to 5% error", FEATURES, rows),
            Series("Frozen features", "images", "error", FEW, errors),
        ],
        notes=notes,
    )


def _curve(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], sizes: tuple[int, ...], head: str, seed: int
) -> list[float]:
    errors = linear_evaluation_curve(
        *train,
        *test,
        sizes=sizes,
        heads=[head],  # type: ignore[list-item]
        seeds=[seed],
        var_smoothing=1e-2 if sizes is FEW else 1e-9,
    )
    return [float(value) for value in errors[head][0]]


def _frozen(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of a network that has seen the digits 0 to 4, for the digits 5 to 9."""
    data = digits(900, seed)
    model = mlp((64, 128, 64, 5), seed)
    known = data.y < 5
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    fit(
        model,
        data.x[known],
        data.y[known],
        F.cross_entropy,
        optimizer=optimizer,
        epochs=30,
        batch_size=64,
        seed=seed,
    )
    body = model[:-1]
    with torch.no_grad():
        return (
            body(data.x[~known]),
            data.y[~known] - 5,
            body(data.x_test[data.y_test >= 5]),
            data.y_test[data.y_test >= 5] - 5,
        )
