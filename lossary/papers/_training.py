"""What small reproductions share: the digits, a plain training loop, and two measures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lossary.calibration import expected_calibration_error
from lossary.core import seeding


class Split(NamedTuple):
    """Training and test rows."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def digits(train: int, seed: int, *, stratified: bool = False) -> Split:
    """Scikit-learn's 1,797 8x8 digits as float32 in [0, 1], split at random: ``train`` rows and the rest.

    ``stratified`` gives every class its share of the training rows.
    """
    from sklearn.datasets import load_digits

    x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=seeding.generator(seed, "split"))
    x, y = x[order].float() / 16, y[order].long()
    if stratified:  # rank each row within its class, then take the lowest ranks of all
        within = torch.zeros(len(y))
        for label in range(10):
            members = (y == label).nonzero()[:, 0]
            within[members] = torch.arange(len(members)) / len(members)
        x, y = x[within.argsort(stable=True)], y[within.argsort(stable=True)]
    return Split(x[:train], y[:train], x[train:], y[train:])


def flip_labels(y: Tensor, share: float, seed: int, *, classes: int = 10) -> Tensor:
    """Labels of which ``share`` are replaced by another class, uniformly."""
    generator = seeding.generator(seed, "noise")
    flipped = torch.rand(len(y), generator=generator) < share
    return torch.where(flipped, (y + torch.randint(1, classes, y.shape, generator=generator)) % classes, y)


def mlp(sizes: Sequence[int], seed: int, head: Callable[[int, int], nn.Module] = nn.Linear) -> nn.Sequential:
    """A ReLU network with the layer sizes given; the same weights for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, "init"))
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(sizes[:-1]):
            layers += [nn.Linear(inner, outer), nn.ReLU()]
        return nn.Sequential(*layers, head(sizes[-2], sizes[-1]))


def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batch_size: int,
    seed: int,
    learning_rate: Callable[[float], float] = lambda done: (1 + math.cos(math.pi * done)) / 2,
    clip: float | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train with shuffled batches; ``learning_rate`` maps the share done to a factor (cosine by default).

    ``clip`` bounds the gradient's norm; ``on_epoch`` is called with each epoch before it begins.
    """
    generator = seeding.generator(seed, "batches")
    peaks = [group["lr"] for group in optimizer.param_groups]
    steps_per_epoch = -(-len(x) // batch_size)
    model.train()
    for epoch in range(epochs):
        if on_epoch:
            on_epoch(epoch)
        for step, rows in enumerate(torch.split(torch.randperm(len(x), generator=generator), batch_size)):
            factor = learning_rate((epoch * steps_per_epoch + step) / (epochs * steps_per_epoch))
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss(model(x[rows]), y[rows]))
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    return model.eval()


def accuracy(logits: Tensor, target: Tensor) -> float:
    """Share of rows whose largest logit is the label's."""
    return (logits.argmax(1) == target).double().mean().item()


def calibration_error(logits: Tensor, target: Tensor, bins: int = 15) -> float:
    """Expected calibration error of the top label over equal-width bins."""
    return expected_calibration_error(logits, target, bins).item()
