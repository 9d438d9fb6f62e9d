"""Bielik 7B v0.1 (Ociepa et al. 2024): weak examples at a low weight, and small steps for small batches."""

from __future__ import annotations

import torch

from lossary.core import seeding
from lossary.language import AdaptiveLRScheduler, WeightedInstructionLoss
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import accuracy, digits, mlp

CARD = Paper(
    slug="bielik_7b",
    title="Bielik 7B v0.1: A Polish Language Model -- Development, Insights, and Evaluation",
    authors="Krzysztof Ociepa, Łukasz Flis, Krzysztof Wróbel, Adrian Gwoździej, Remigiusz Kinas",
    arxiv="2410.18565",
    year=2024,
    family="language",
    provides=(
        "weighted_instruction_loss",
        "WeightedInstructionLoss",
        "linear_weighted_instruction_loss",
        "LinearWeightedInstructionLoss",
        "adaptive_learning_rate",
        "AdaptiveLRScheduler",
        "instruction_mask",
        "shift_labels",
    ),
    formula="L = -sum_i w_i log p_i(y_i) / #{i: w_i > 0}; learning rate x sqrt(tokens / baseline tokens)",
    call=(
        "from lossary.language import WeightedInstructionLoss\n"
        "quality = torch.linspace(0.5, 1.0, len(labels))\n"
        "loss = WeightedInstructionLoss()(logits, labels, quality)"
    ),
    claim="Weighting the examples of an instruction set by their quality makes a better model than taking all alike.",
    use_when="examples are of mixed quality that is known, or the number of scored tokens varies from step to step",
    avoid_when="bad examples are plain wrong: leaving them out is as good",
    golden=3,
    metric="accuracy",
    direction="higher",
    margin=0.0,
    baseline="60% wrong, weight=1",
    method="60% wrong, weight=0.2",
    seeds=8,
    limits=(
        "Digits for instructions: 600 rows of which 450 are of low quality, a share of their labels moved by 1 or 2. "
        "The paper has no ablation of either tool, and says little of the weights it used."
    ),
)

WEIGHTS = (1.0, 0.7, 0.5, 0.2, 0.05, 0.0)
NOISES = (0.6, 0.2)
RATES = ("sgd, adaptive rate", "sgd, constant rate", "adam, adaptive rate", "adam, constant rate")


def reproduce(run: Run) -> Evidence:
    """Digits by the weight of their weak rows, with 60% and with 20% of the weak labels wrong.

    Beside it the adaptive rate: a quadratic whose gradients come from 8, 64 or 512 tokens at random, against a constant
    rate of the same mean, with SGD and with Adam.
    """
    weights = run.pick(WEIGHTS, (1.0, 0.2))
    noises = run.pick(NOISES, (0.6,))
    arms = [_arm(noise, weight) for noise in noises for weight in weights]
    for seed, arm in run.trials([*arms, *RATES]):
        if arm in RATES:
            run.record(arm, distance=_quadratic(seed, *arm.split(", "), steps=run.pick(2000, 50)))
        else:
            noise, weight = next((n, w) for n in noises for w in weights if _arm(n, w) == arm)
            run.record(arm, accuracy=_digits(seed, noise, weight, epochs=run.pick(60, 5)))
    series = [
        Series(
            f"Digits, {noise:.0%} of the weak labels wrong",
            "weight of weak rows",
            "accuracy",
            weights,
            {"accuracy": [run.mean(_arm(noise, weight), "accuracy") for weight in weights]},
        )
        for noise in noises
    ]
    best = ", ".join(
        f"{max(weights, key=lambda weight: run.mean(_arm(noise, weight), 'accuracy')):g} at {noise:.0%}"
        for noise in noises
    )
    rates = ", ".join(f"{run.mean(arm, 'distance'):.2g} with {arm}" for arm in RATES)
    return run.conclude(
        series=series,
        notes=[
            f"Best weight of weak rows by the share of wrong labels: {best}.",
            f"Mean square distance from the minimum of a noisy quadratic: {rates}.",
        ],
    )


def _arm(noise: float, weight: float) -> str:
    return f"{noise:.0%} wrong, weight={weight:g}"


def _digits(seed: int, noise: float, weight: float, *, epochs: int) -> float:
    data = digits(600, seed)
    generator = seeding.generator(seed, "quality")
    moved = torch.randint(1, 3, (600,), generator=generator) * (1 - 2 * torch.randint(2, (600,), generator=generator))
    weak = torch.arange(600) >= 150
    wrong = weak & (torch.rand(600, generator=generator) < noise)
    labels = torch.where(wrong, (data.y + moved) % 10, data.y)
    quality = torch.where(weak, weight, 1.0)
    model, loss = mlp((64, 128, 10), seed), WeightedInstructionLoss()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    order = seeding.generator(seed, "batches")
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(600, generator=order), 64):
            optimizer.zero_grad()
            torch.autograd.backward(loss(model(data.x[rows]), labels[rows], quality[rows]))
            optimizer.step()
    with torch.no_grad():
        return accuracy(model(data.x_test), data.y_test)


def _quadratic(seed: int, name: str, rate: str, *, steps: int) -> float:
    """Mean square distance from the minimum over the last half, with gradient noise 4 / sqrt(tokens)."""
    generator = seeding.generator(seed, "quadratic")
    place = torch.full((20,), 3.0, requires_grad=True)
    lr = {"sgd": 0.1, "adam": 0.01}[name]
    optimizer = (torch.optim.SGD if name == "sgd" else torch.optim.Adam)([place], lr=lr)
    sizes = torch.tensor([8.0, 64.0, 512.0])
    # The constant rate is the mean of the adaptive one.
    scheduler = AdaptiveLRScheduler(optimizer, 512.0)
    mean = (sizes / 512).sqrt().mean().square() * 512
    total = 0.0
    for step, draw in enumerate(torch.randint(3, (steps,), generator=generator).tolist()):
        tokens = sizes[draw]
        place.grad = place.detach() + 4 / tokens.sqrt() * torch.randn(20, generator=generator)
        scheduler.step(tokens if rate == "adaptive rate" else mean)
        optimizer.step()
        total += place.detach().square().mean().item() if step >= steps // 2 else 0.0
    return total / (steps - steps // 2)
