"""RegMixup (Pinto et al. 2022): does mixup beside clean cross-entropy help to tell unknown inputs?"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.classification import RegMixupLoss, mixup, predictive_entropy
from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import accuracy, calibration_error, digits, fit, mlp

CARD = Paper(
    slug="regmixup",
    title="RegMixup: Mixup as a Regularizer Can Surprisingly Improve Accuracy and Out Distribution Robustness",
    authors="Francesco Pinto, Harry Yang, Ser-Nam Lim, Philip H.S. Torr, Puneet K. Dokania",
    arxiv="2206.14502",
    year=2022,
    family="classification",
    provides=("regmixup_loss", "RegMixupLoss", "mixup", "predictive_entropy"),
    formula="L = CE(f(x), y) + eta [lam CE(f(x~), y) + (1 - lam) CE(f(x~), y')],  x~ = lam x + (1 - lam) x'",
    call=(
        "from lossary.classification import RegMixupLoss\n"
        "loss = RegMixupLoss(alpha=20.0)(model, images, labels)  # one forward of clean and mixed images"
    ),
    claim="Mixup as a term beside clean cross-entropy tells unknown inputs from known ones better than cross-entropy.",
    use_when="a classifier must notice inputs that it does not know, and mixtures of inputs make sense",
    avoid_when="inputs are categories or tokens, or a second forward of each batch is too dear",
    golden=2,
    metric="OOD AUROC",
    direction="higher",
    margin=0.0,
    baseline="CE",
    method="RegMixup",
    seeds=8,
    limits=(
        "That mixup alone hurts the detection of unknown inputs (on digits it helps too), and the gain in accuracy "
        "under natural shifts; added Gaussian noise is another matter, see the notes."
    ),
)

ARMS = ("CE", "mixup, alpha=1", "mixup, alpha=20", "RegMixup")


def reproduce(run: Run) -> Evidence:
    """Digits 0 to 7, 300 for training; 8 and 9 are the unknown ones. 64-128-128-8 network, Adam 1e-3, 150 epochs.

    The score of an unknown input is the entropy of the prediction.
    """
    from sklearn.metrics import roc_auc_score

    for seed, arm in run.trials(run.pick(ARMS, ("CE", "RegMixup"))):
        every = digits(1797, seed)
        known = every.y < 8
        x, y, unknown = every.x[known], every.y[known], every.x[~known]
        model = mlp((64, 128, 128, 8), seed)
        fit(
            nn.Identity(),  # the objective itself calls the model, on the mixed batch too
            x[:300],
            y[:300],
            _objective(arm, model, seeding.generator(seed, "mixup")),
            optimizer=torch.optim.Adam(model.parameters(), 1e-3, fused=True),
            epochs=run.pick(150, 30),
            batch_size=50,
            seed=seed,
            learning_rate=lambda done: 1.0,
        )
        x_test, y_test = x[300:], y[300:]
        noise = 0.25 * torch.randn(x_test.shape, generator=seeding.generator(seed, "noise"))
        with torch.no_grad():
            logits, strange, noisy = (model(inputs) for inputs in (x_test, unknown, x_test + noise))
        entropy = predictive_entropy(torch.cat([logits, strange]))
        run.record(
            arm,
            **{
                "OOD AUROC": roc_auc_score(torch.arange(len(entropy)) >= len(logits), entropy),
                "accuracy": accuracy(logits, y_test),
                "calibration error": calibration_error(logits, y_test),
                "entropy": entropy[: len(logits)].mean().item(),
                "accuracy under noise": accuracy(noisy, y_test),
            },
        )
    if run.quick:
        return run.conclude()
    shown = ("accuracy", "calibration error", "entropy", "accuracy under noise")
    notes = [
        f"{arm}: OOD AUROC {run.mean(arm, 'OOD AUROC'):.3f}, "
        + ", ".join(f"{metric} {run.mean(arm, metric):.3f}" for metric in shown)
        + "."
        for arm in ARMS
    ]
    y_series = {"OOD AUROC": [run.mean(arm, "OOD AUROC") for arm in ARMS]}
    series = Series("Telling unknown digits", " | ".join(ARMS), "OOD AUROC", list(range(len(ARMS))), y_series)
    return run.conclude(series=[series], notes=notes)


def _objective(arm: str, model: nn.Module, generator: torch.Generator) -> Callable[[Tensor, Tensor], Tensor]:
    if arm == "CE":
        return lambda x, y: F.cross_entropy(model(x), y)
    if arm == "RegMixup":
        loss = RegMixupLoss(alpha=20.0)
        return lambda x, y: loss(model, x, y, generator=generator)
    alpha = float(arm.rpartition("=")[2])

    def mixed(x: Tensor, y: Tensor) -> Tensor:
        mixture, own, other, lam = mixup(x, y, alpha=alpha, generator=generator)
        logits = model(mixture)
        return lam * F.cross_entropy(logits, own) + (1 - lam) * F.cross_entropy(logits, other)

    return mixed
