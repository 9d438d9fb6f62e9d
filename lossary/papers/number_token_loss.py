"""Regress, Don't Guess (Zausinger et al. 2025): does a loss that knows digits' values bring answers closer?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core import seeding
from lossary.language import CrossEntropyWithNumberTokenLoss
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import fit

CARD = Paper(
    slug="number_token_loss",
    title="Regress, Don't Guess -- A Regression-like Loss on Number Tokens for Language Models",
    authors="Jonas Zausinger, Lars Pennig, Anamarija Kozina, Sean Sdahl, Julian Sikora, Adrian Dendorfer, Timofey "
    "Kuznetsov, Mohamad Hagog, Nina Wiedemann, Kacper Chlodny, Vincent Limbach, Anna Ketteler, Thorben Prein, "
    "Vishwa Mohan Singh, Michael Morris Danziger, Jannis Born",
    arxiv="2411.02083",
    year=2024,
    family="language",
    provides=(
        "number_token_loss",
        "NumberTokenLoss",
        "cross_entropy_with_number_token_loss",
        "CrossEntropyWithNumberTokenLoss",
        "number_level_loss",
        "predict_numbers",
        "number_values_from_vocab",
        "number_values_from_tokenizer",
        "linear_number_token_loss",
        "LinearNumberTokenLoss",
        "linear_cross_entropy_with_number_token_loss",
        "LinearCrossEntropyWithNumberTokenLoss",
        "linear_number_level_loss",
        "linear_predict_numbers",
    ),
    formula="L = CE + lambda sum_k q_k |v_k - y|, for q the softmax over the number tokens, of values v",
    call=(
        "from lossary.language import CrossEntropyWithNumberTokenLoss\n"
        "loss = CrossEntropyWithNumberTokenLoss(torch.arange(10.0), ntl_weight=0.3)(logits, labels)"
    ),
    claim="Added to cross-entropy, the distance between predicted and wanted number tokens brings the numbers that a "
    "language model answers closer to the right ones.",
    use_when="a language model answers in numbers, and a number that is nearly right is worth more than another",
    avoid_when="numbers are names (years of a password, codes, telephone numbers): nearly right is wrong there",
    golden=3,
    metric="absolute_error",
    direction="lower",
    margin=0.0,
    baseline="addition, cross-entropy",
    method="addition, 0.3 wasserstein",
    seeds=5,
    limits=(
        "Networks that write a number digit by digit, of sums of three-digit numbers and of scikit-learn's diabetes "
        "target; the paper trains T5 on DeepMind's mathematics data. Every token is a digit here, so nothing is seen "
        "of text beside numbers."
    ),
)

KINDS: dict[str, tuple[str, float]] = {
    "cross-entropy": ("wasserstein", 0.0),
    "0.3 wasserstein": ("wasserstein", 0.3),
    "0.3 mse": ("mse", 0.3),
}


def reproduce(run: Run) -> Evidence:
    """Four digits of a sum from the six of 123 + 045, 2,000 sums for training and 500 others for the test.

    Beside it 300 rows of the diabetes data: the target's three digits from the features. Each digit is predicted from
    what is given and the digits so far.
    """
    tasks = {"addition": _addition, "diabetes": _diabetes}
    for seed, arm in run.trials([f"{task}, {kind}" for task in tasks for kind in KINDS]):
        task, _, kind = arm.partition(", ")
        run.record(arm, **tasks[task](run, seed, *KINDS[kind]))
    right = ", ".join(f"{run.mean(f'addition, {kind}', 'accuracy'):.3f} with {kind}" for kind in KINDS)
    return run.conclude(
        series=[
            Series(
                f"Mean absolute error of {task}",
                "seed",
                "error",
                list(run.seeds),
                {kind: run.values(f"{task}, {kind}", "absolute_error") for kind in KINDS},
            )
            for task in tasks
        ],
        notes=[f"Share of sums that are right: {right}."],
    )


def _addition(run: Run, seed: int, kind: str, ntl_weight: float) -> dict[str, float]:
    train, test = run.pick((2000, 500), (300, 50))
    pairs = torch.randperm(1_000_000, generator=seeding.generator(seed, "sums"))[: train + test]
    a, b = pairs // 1000, pairs % 1000
    features = F.one_hot(_digits(torch.stack([a, b], 1), 3).flatten(1), 10).flatten(1).float()
    return _written(features, a + b, 4, train, kind, ntl_weight, seed, epochs=run.pick(20, 2))


def _diabetes(run: Run, seed: int, kind: str, ntl_weight: float) -> dict[str, float]:
    from sklearn.datasets import load_diabetes

    x, y = (torch.from_numpy(array) for array in load_diabetes(return_X_y=True))
    order = torch.randperm(len(x), generator=seeding.generator(seed, "split"))
    features, number = 20 * x[order].float(), y[order].round().long()
    return _written(features, number, 3, 300, kind, ntl_weight, seed, epochs=run.pick(120, 3))


def _written(
    features: Tensor, number: Tensor, places: int, train: int, kind: str, ntl_weight: float, seed: int, *, epochs: int
) -> dict[str, float]:
    """Trained on the first rows with the right digits before each; on the others digits are written one by one."""
    digits = _digits(number, places)
    model = _DigitByDigit(features.shape[1], places, seed)
    loss = CrossEntropyWithNumberTokenLoss(torch.arange(10.0), ntl_weight=ntl_weight, kind=kind)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    given = torch.cat([features, digits.float()], 1)[:train]
    fit(model, given, digits[:train], loss, optimizer=optimizer, epochs=epochs, batch_size=64, seed=seed)
    written = torch.zeros(len(features) - train, places)
    with torch.no_grad():
        for place in range(places):
            written[:, place] = model(torch.cat([features[train:], written], 1))[:, place].argmax(1).float()
    off = ((written.long() * _powers(places)).sum(1) - number[train:]).abs().double()
    return {"absolute_error": off.mean().item(), "accuracy": (off == 0).double().mean().item()}


def _powers(places: int) -> Tensor:
    return 10 ** torch.arange(places - 1, -1, -1)


def _digits(number: Tensor, places: int) -> Tensor:
    """The digits of whole numbers, the first first, along a last axis."""
    return number.unsqueeze(-1) // _powers(places) % 10


class _DigitByDigit(nn.Module):
    """A network for each digit: of the features and the digits before it."""

    def __init__(self, features: int, places: int, seed: int) -> None:
        super().__init__()
        self.features = features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.derive(seed, "init"))
            self.places = nn.ModuleList(
                nn.Sequential(nn.Linear(features + 10 * place, 64), nn.ReLU(), nn.Linear(64, 10))
                for place in range(places)
            )

    def forward(self, given: Tensor) -> Tensor:
        features, before = given[:, : self.features], given[:, self.features :].long()
        known = F.one_hot(before, 10).flatten(1).float()
        return torch.stack(
            [net(torch.cat([features, known[:, : 10 * place]], 1)) for place, net in enumerate(self.places)], 1
        )
