"""Correctness-aware calibration (Liu et al. 2024): are confidences honest on data unlike the calibration set?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.calibration import (
    CorrectnessAwareCalibrator,
    TemperatureScaling,
    correctness_brier,
    expected_calibration_error,
    ks_calibration_error,
    transform_agreement_features,
)
from lossary.core import seeding
from lossary.papers._evidence import Evidence
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import accuracy, digits, fit, mlp

CARD = Paper(
    slug="correctness_calibration",
    title="Optimizing Calibration by Gaining Aware of Prediction Correctness",
    authors="Yuchi Liu, Lei Wang, Yuli Zou, James Zou, Liang Zheng",
    arxiv="2404.13016",
    year=2024,
    family="calibration",
    provides=(
        "correctness_aware_loss",
        "CorrectnessAwareLoss",
        "transform_agreement_features",
        "CorrectnessAwareCalibrator",
        "image_transforms",
        "expected_calibration_error",
        "adaptive_calibration_error",
        "ks_calibration_error",
        "correctness_brier",
    ),
    formula="L = b (max softmax(z / T(x)) - [predicted class is right])^2",
    call=(
        "from lossary.calibration import CorrectnessAwareCalibrator, image_transforms, transform_agreement_features\n"
        "copies = [model(transform(images)) for transform in image_transforms()]\n"
        "features = transform_agreement_features(logits, copies)\n"
        "calibrator = CorrectnessAwareCalibrator(12, init_temperature=1.0).fit(logits, features, labels)\n"
        "calibrated = calibrator(logits, features)  # those of new images"
    ),
    claim="On data unlike the calibration set a correctness-aware calibrator errs less than temperature scaling.",
    use_when="a frozen classifier will meet harder data than its calibration set, and transforms trip it up there",
    avoid_when="test data are like the calibration data: balanced weights then make confidences too low",
    golden=3,
    metric="calibration error, shifted",
    direction="lower",
    margin=0.03,
    baseline="temperature scaling",
    method="CA, balanced",
    seeds=10,
    limits=(
        "ImageNet and its variants; that correctness is ranked better than by plain confidence, which depends on the "
        "transforms, crude ones on 8x8 digits."
    ),
)

LOSSES = {"calibrator with cross-entropy": F.cross_entropy, "CA": None, "CA, balanced": None}
ARMS = ("none", "temperature scaling", *LOSSES)


def reproduce(run: Run) -> Evidence:
    """Digits: 200 for training, 700 for calibration, 897 for test, as they are and shifted; a 64-128-128-10 network.

    Shifted digits are rolled by a row and under noise of 0.2. The transforms are a roll by a column, less contrast, and
    noise of 0.15. Calibrators start at T = 1: 400 full-batch steps of Adam at 0.01.
    """
    arms = run.pick(ARMS, ("none", "temperature scaling", "CA, balanced"))
    for seed, arm in run.trials(arms):
        data = digits(900, seed)
        model = mlp((64, 128, 128, 10), seed)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        epochs = run.pick(150, 20)
        fit(model, data.x[:200], data.y[:200], F.cross_entropy, optimizer=optimizer, epochs=epochs, batch_size=64,
            seed=seed, learning_rate=lambda done: 1.0)  # fmt: skip
        held, plain = _seen(model, data.x[200:], seed, "held"), _seen(model, data.x_test, seed, "plain")
        noise = 0.2 * torch.randn(data.x_test.shape, generator=seeding.generator(seed, "shift"))
        shifted = _seen(model, _roll(data.x_test, 1, 0) + noise, seed, "shifted")
        calibrated = _calibrate(arm, held, data.y[200:], (plain, shifted), seed, steps=run.pick(400, 50))
        for where, logits in zip(("plain", "shifted"), calibrated, strict=True):
            run.record(arm, **{f"{name}, {where}": value for name, value in _measure(logits, data.y_test).items()})
    notes = [
        f"{arm}, {where}: accuracy {100 * run.mean(arm, f'accuracy, {where}'):.1f}%, "
        f"calibration error {100 * run.mean(arm, f'calibration error, {where}'):.1f}, "
        f"Brier of correctness {100 * run.mean(arm, f'Brier of correctness, {where}'):.1f}, "
        f"KS {100 * run.mean(arm, f'KS, {where}'):.1f}, "
        f"AUROC of correctness {100 * run.mean(arm, f'AUROC of correctness, {where}'):.1f}."
        for where in ("plain", "shifted")
        for arm in arms
    ]
    return run.conclude(notes=notes)


def _seen(model: nn.Module, x: Tensor, seed: int, part: str) -> tuple[Tensor, Tensor]:
    """Logits, and features from three transforms."""
    noise = 0.15 * torch.randn(x.shape, generator=seeding.generator(seed, part))
    with torch.no_grad():
        logits, *copies = (model(view) for view in (x, _roll(x, 0, 1), 0.6 * x, x + noise))
    return logits, transform_agreement_features(logits, copies)


def _roll(x: Tensor, rows: int, columns: int) -> Tensor:
    return x.view(-1, 8, 8).roll((rows, columns), (1, 2)).flatten(1)


def _calibrate(
    arm: str,
    held: tuple[Tensor, Tensor],
    target: Tensor,
    tests: tuple[tuple[Tensor, Tensor], ...],
    seed: int,
    *,
    steps: int,
) -> list[Tensor]:
    """Calibrated logits of each test set."""
    logits, features = held
    if arm == "none":
        return [z for z, _ in tests]
    if arm == "temperature scaling":
        temperature = TemperatureScaling().fit(logits, target).temperature_
        return [z / temperature for z, _ in tests]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, "calibrator"))
        calibrator = CorrectnessAwareCalibrator(features.shape[1], init_temperature=1.0)
    calibrator.fit(
        logits,
        features,
        target,
        epochs=steps,
        lr=1e-2,
        balanced=arm == "CA, balanced",
        loss=LOSSES[arm],
        generator=seeding.generator(seed, "calibrator"),
    )
    with torch.no_grad():
        return [calibrator(z, f) for z, f in tests]


def _measure(logits: Tensor, target: Tensor) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    confidence, guess = logits.softmax(1).max(1)
    return {
        "accuracy": accuracy(logits, target),
        "calibration error": expected_calibration_error(logits, target).item(),
        "Brier of correctness": correctness_brier(logits, target).item(),
        "KS": ks_calibration_error(logits, target).item(),
        "AUROC of correctness": float(roc_auc_score((guess == target).numpy(), confidence.numpy())),
    }
