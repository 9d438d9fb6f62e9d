"""Focal loss (Lin et al. 2017): does fading easy background let a dense classifier find rare objects?"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lossary.classification import prior_bias_, sigmoid_focal_loss
from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import digits, fit

CARD = Paper(
    slug="focal_loss",
    title="Focal Loss for Dense Object Detection",
    authors="Tsung-Yi Lin, Priya Goyal, Ross Girshick, Kaiming He, Piotr Dollár",
    arxiv="1708.02002",
    year=2017,
    family="classification",
    provides=(
        "sigmoid_focal_loss",
        "SigmoidFocalLoss",
        "focal_loss",
        "FocalLoss",
        "focal_star_loss",
        "FocalStarLoss",
        "prior_bias_",
    ),
    formula="L = -alpha_t (1 - p_t)^gamma log p_t",
    call=(
        "from lossary.classification import FocalLoss, SigmoidFocalLoss\n"
        "loss = FocalLoss(gamma=2.0)(logits, labels)  # classes\n"
        "loss = SigmoidFocalLoss(alpha=0.25, gamma=2.0)(logits, yes_no)  # labels, dense detection"
    ),
    claim="Among very many easy negatives focal loss reaches a higher average precision than balanced cross-entropy.",
    use_when="a few objects hide among very many easy background places",
    avoid_when="classes are about balanced, or probabilities must be calibrated as they are",
    golden=4,
    metric="AP",
    direction="higher",
    margin=0.0,
    baseline="balanced BCE",
    method="focal",
    seeds=5,
    limits=(
        "COCO's average precision, and boxes: here every cell of a grid is classified at one scale, with the digit's "
        "box given by the cell. The detector itself is not part of this run."
    ),
)

PRIOR = 0.01
ARMS: dict[str, tuple[float | None, float, bool]] = {  # alpha, gamma, whether the bias starts at the prior
    "BCE, no prior": (None, 0.0, False),
    "BCE": (None, 0.0, True),
    "balanced BCE": (0.75, 0.0, True),
    "focal": (0.25, 2.0, True),
}
CELLS, STRIDE, SIZE, CLASSES = 16, 4, 64, 10


def reproduce(run: Run) -> Evidence:
    """One to three digits on a noisy 64x64 canvas, ten classes, 256 cells an image of which under 1% hold a digit.

    400 images for training, 200 for test, from different digits; a small convolutional network of stride 4.
    """
    hardest: dict[str, list[float]] = {f"{gamma:g}": [] for gamma in (0.0, 0.5, 1.0, 2.0)}
    for seed, arm in run.trials(list(ARMS)):
        alpha, gamma, prior = ARMS[arm]
        data = digits(900, seed)
        train = _scenes(data.x, data.y, run.pick(400, 60), seeding.generator(seed, "train"))
        test = _scenes(data.x_test, data.y_test, run.pick(200, 40), seeding.generator(seed, "test"))
        model = _network(seed, prior=prior)
        with torch.no_grad():
            at_start = _loss(None, 0.0)(model(train.images[:20]), train.target[:20]).item()
        optimizer = torch.optim.Adam(model.parameters(), 2e-3, fused=True)
        epochs = run.pick(40, 2)
        fit(
            model,
            train.images,
            train.target,
            _loss(alpha, gamma),
            optimizer=optimizer,
            epochs=epochs,
            batch_size=16,
            seed=seed,
        )
        with torch.no_grad():
            logits = model(test.images)
        run.record(arm, AP=_average_precision(logits, test.target), **{"BCE at the start": at_start})
        if arm == "focal":
            for name, shares in hardest.items():
                shares.append(_share_of_hardest(logits, test.target, float(name)))
    ratio = run.mean("BCE, no prior", "BCE at the start") / run.mean("BCE", "BCE at the start")
    shares = [sum(values) / len(values) for values in hardest.values()]
    return run.conclude(
        series=[
            Series(
                "What the negatives' loss comes from",
                "gamma",
                "share of the hardest 1%",
                [float(name) for name in hardest],
                {"hardest 1% of negatives": shares},
            )
        ],
        notes=[
            f"At the start binary cross-entropy is {ratio:.0f} times larger without the prior.",
            f"The hardest 1% of negatives carry {100 * shares[0]:.0f}% of the negatives' loss at gamma 0, "
            f"{100 * shares[-1]:.0f}% at gamma 2.",
        ],
    )


class _Scenes(NamedTuple):
    images: Tensor  # (n, 1, 64, 64)
    target: Tensor  # (n, 10, 16, 16): 1 at the class of the digit whose box the cell's box matches; NaN not to count


def _scenes(x: Tensor, y: Tensor, count: int, generator: torch.Generator) -> _Scenes:
    images = 0.3 * torch.rand(count, 1, SIZE, SIZE, generator=generator)
    target = torch.zeros(count, CLASSES, CELLS, CELLS)
    # A cell's box is the 8x8 square around its 4x4 pixels.
    corners = STRIDE * torch.arange(CELLS) - 2
    for image in range(count):
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            top, left = (
                STRIDE * torch.randint(1, CELLS - 2, (2,), generator=generator)
                - 2
                + torch.randint(-1, 2, (2,), generator=generator)
            ).tolist()
            chosen = int(torch.randint(len(x), (), generator=generator))
            patch = images[image, 0, top : top + 8, left : left + 8]
            torch.maximum(patch, x[chosen].view(8, 8), out=patch)
            overlap = _overlap(corners, top)[:, None] * _overlap(corners, left)[None, :]
            iou = overlap / (128 - overlap)
            cells = target[image, y[chosen]]
            cells[(iou >= 0.4) & (iou < 0.5) & (cells != 1)] = torch.nan
            cells[iou >= 0.5] = 1.0
    return _Scenes(images, target)


def _overlap(corners: Tensor, start: int) -> Tensor:
    return (8 - (corners - start).abs()).clamp(min=0)


def _network(seed: int, *, prior: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, "init"))
        last = nn.Conv2d(32, CLASSES, 3, padding=1)
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        if prior:
            prior_bias_(last, PRIOR)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            last,
        )


def _loss(alpha: float | None, gamma: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The sum over all cells that count, divided by the number of positive ones."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        counts = ~target.isnan()
        known = torch.where(counts, target, 0.0)
        return sigmoid_focal_loss(
            logits,
            known,
            alpha=alpha,
            gamma=gamma,
            sample_weight=counts.float(),
            reduction="sum",
            normalizer=known.sum().clamp(min=1),
        )

    return loss


def _average_precision(logits: Tensor, target: Tensor) -> float:
    """Average precision over cells of each class, averaged over the classes."""
    from sklearn.metrics import average_precision_score

    values = []
    for label in range(CLASSES):
        truth, score = target[:, label].flatten(), logits[:, label].flatten()
        counts = ~truth.isnan()
        values.append(average_precision_score(truth[counts].numpy(), score[counts].numpy()))
    return float(sum(values) / CLASSES)


def _share_of_hardest(logits: Tensor, target: Tensor, gamma: float) -> float:
    """Share of the negatives' focal loss that the hardest 1% of them carry."""
    negatives = logits[target == 0]
    loss = sigmoid_focal_loss(negatives, torch.zeros_like(negatives), alpha=None, gamma=gamma, reduction="none")
    ranked = loss.sort(descending=True).values
    return (ranked[: len(ranked) // 100].sum() / ranked.sum()).item()
