"""Odd-k-out (Muttenthaler et al. 2023): does learning from sets help with few or imbalanced examples?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.classification import OddKOutSampler, oko_loss, subsample_long_tailed
from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import Split, accuracy, calibration_error, digits, mlp

CARD = Paper(
    slug="oko",
    title="Set Learning for Accurate and Calibrated Models",
    authors="Lukas Muttenthaler, Robert A. Vandermeulen, Qiuyi Zhang, Thomas Unterthiner, Klaus-Robert Müller",
    arxiv="2307.02245",
    year=2023,
    family="classification",
    provides=("oko_loss", "OKOLoss", "oko_soft_targets", "OddKOutSampler", "OKOHead"),
    formula="L = -log softmax(sum over the set of z_i)_y,  y the class that two of k + 2 members share",
    call=(
        "from lossary.classification import OddKOutSampler, oko_loss\n"
        "for index, target in OddKOutSampler(labels, k=1, batch_size=21, num_sets=12600):\n"
        "    loss = oko_loss(model(x[index.flatten()]).unflatten(0, index.shape), target)"
    ),
    claim="Trained on sets, a network classifies imbalanced data more accurately than trained on single examples.",
    use_when="examples are few or imbalanced and nothing shall be tuned",
    avoid_when="data are plenty and balanced: each label costs k + 2 forwards",
    golden=3,
    metric="accuracy, imbalanced",
    direction="higher",
    margin=0.0,
    baseline="CE",
    method="OKO, k=1",
    seeds=8,
    limits=(
        "The lower calibration error of the paper: at this length of training single digits are predicted with too "
        "little confidence. Sets also balance the classes; the arm of cross-entropy on balanced batches tells how much "
        "of the gain that is."
    ),
)

ARMS = ("CE", "CE, balanced batches", "label smoothing 0.1", "OKO, k=1", "OKO, k=1, soft", "OKO, k=2")
IMAGES = 64  # at each step, for all arms


def reproduce(run: Run) -> Evidence:
    """Digits, 10 of each class, or 60 of three classes and 6 of seven; about 1,000 balanced test digits.

    64-128-128-10 network, 600 steps of Adam 1e-3 on about 64 images each.
    """
    settings = {"few": [10] * 10, "imbalanced": [60] * 3 + [6] * 7}
    for seed, arm in run.trials(run.pick(ARMS, ("CE", "OKO, k=1"))):
        found: dict[str, float] = {}
        for setting, counts in settings.items():
            data = digits(797, seed, stratified=True)
            kept = subsample_long_tailed(data.y, counts, seeding.generator(seed, "kept"))
            logits = _train(arm, data, kept, seed, steps=run.pick(600, 150))
            found |= {
                f"accuracy, {setting}": accuracy(logits, data.y_test),
                f"log-loss, {setting}": F.cross_entropy(logits, data.y_test).item(),
                f"calibration error, {setting}": calibration_error(logits, data.y_test),
            }
        run.record(arm, **found)
    if run.quick:
        return run.conclude()
    notes = [
        f"{arm}, {setting}: accuracy {run.mean(arm, f'accuracy, {setting}'):.3f}, "
        f"log-loss {run.mean(arm, f'log-loss, {setting}'):.3f}, "
        f"calibration error {run.mean(arm, f'calibration error, {setting}'):.3f}."
        for setting in settings
        for arm in ARMS
    ]
    y = {setting: [run.mean(arm, f"accuracy, {setting}") for arm in ARMS] for setting in settings}
    series = Series("Few and imbalanced digits", " | ".join(ARMS), "accuracy", list(range(len(ARMS))), y)
    return run.conclude(series=[series], notes=notes)


def _train(arm: str, data: Split, kept: Tensor, seed: int, *, steps: int) -> Tensor:
    """Logits of the test digits."""
    x, y = data.x[kept], data.y[kept]
    model = mlp((64, 128, 128, 10), seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for index, target in itertools.islice(_batches(arm, y, seed, steps), steps):
        logits = model(x[index.flatten()]).unflatten(0, index.shape)
        if arm.startswith("OKO"):
            loss = oko_loss(logits, target)
        else:
            loss = F.cross_entropy(logits, target, label_smoothing=0.1 if arm.startswith("label") else 0.0)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        test: Tensor = model(data.x_test)
    return test


def _batches(arm: str, y: Tensor, seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of each step with their targets."""
    generator = seeding.generator(seed, "batches")
    if arm.startswith("OKO"):
        k = int(arm.split("=")[1][0])
        sets = IMAGES // (k + 2)
        yield from OddKOutSampler(
            y,
            k=k,
            batch_size=sets,
            num_sets=steps * sets,
            generator=generator,
            targets="soft" if arm.endswith("soft") else "hard",
        )
    while not arm.startswith("OKO"):
        if arm == "CE, balanced batches":
            share = 1 / y.bincount()[y].double()
            index = torch.multinomial(share, IMAGES, replacement=True, generator=generator)
        else:
            index = torch.randperm(len(y), generator=generator)[:IMAGES]
        yield index, y[index]
