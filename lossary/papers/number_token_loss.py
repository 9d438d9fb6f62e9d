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
    title="Regress, Don't Guess: A Regression-like Loss on Number Tokens for Language Models",
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
        "A transformer of two layers on sums of three-digit numbers, and a network that writes scikit-learn's diabetes "
        "target digit by digit; the paper trains T5 on DeepMind's mathematics data. Every answer is a number here, so "
        "nothing is seen of text beside numbers."
    ),
)

KINDS: dict[str, tuple[str, float]] = {
    "cross-entropy": ("wasserstein", 0.0),
    "0.3 wasserstein": ("wasserstein", 0.3),
    "0.3 mse": ("mse", 0.3),
}
PLUS, EQUALS, VOCAB = 10, 11, 12
"""Entries after the ten digits."""


def reproduce(run: Run) -> Evidence:
    """Sums written as 123+045=0168, 2,000 for training and 500 others for the test; only answers are scored.

    Beside it 300 rows of the diabetes data, the target's three digits predicted in turn from features and the digits
    so far.
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


def _loss(kind: str, ntl_weight: float) -> CrossEntropyWithNumberTokenLoss:
    values = torch.full((VOCAB,), torch.nan)
    values[:10] = torch.arange(10.0)
    return CrossEntropyWithNumberTokenLoss(values, ntl_weight=ntl_weight, kind=kind)  # type: ignore[arg-type]


def _addition(run: Run, seed: int, kind: str, ntl_weight: float) -> dict[str, float]:
    train, test = run.pick((2000, 500), (300, 50))
    generator = seeding.generator(seed, "sums")
    pairs = torch.randperm(1_000_000, generator=generator)[: train + test]
    a, b = pairs // 1000, pairs % 1000
    text = torch.cat(
        [
            _digits(a, 3),
            torch.full((len(a), 1), PLUS),
            _digits(b, 3),
            torch.full((len(a), 1), EQUALS),
            _digits(a + b, 4),
        ],
        1,
    )
    target = text[:, 1:].clone()
    target[:, :-4] = -100
    model = _Transformer(seed, run.pick(48, 16))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    fit(
        model,
        text[:train, :-1],
        target[:train],
        _loss(kind, ntl_weight),
        optimizer=optimizer,
        epochs=run.pick(30, 2),
        batch_size=128,
        seed=seed,
    )
    written = _continued(model, text[train:, :8], 4)
    off = (_number(written) - (a + b)[train:]).abs().double()
    return {"absolute_error": off.mean().item(), "accuracy": (off == 0).double().mean().item()}


def _diabetes(run: Run, seed: int, kind: str, ntl_weight: float) -> dict[str, float]:
    from sklearn.datasets import load_diabetes

    x, y = (torch.from_numpy(array) for array in load_diabetes(return_X_y=True))
    order = torch.randperm(len(x), generator=seeding.generator(seed, "split"))
    x, number = 20 * x[order].float(), y[order].round().long()
    digits = _digits(number, 3)
    model = _DigitByDigit(seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    given = torch.cat([x, digits[:, :2].float()], 1)
    epochs = run.pick(120, 3)
    fit(
        model,
        given[:300],
        digits[:300],
        _loss(kind, ntl_weight),
        optimizer=optimizer,
        epochs=epochs,
        batch_size=64,
        seed=seed,
    )
    with torch.no_grad():
        written = torch.zeros(len(x) - 300, 2)
        for place in range(3):
            chosen = model(torch.cat([x[300:], written], 1))[:, place, :10].argmax(1)
            if place < 2:
                written[:, place] = chosen.float()
    answer = _number(torch.cat([written.long(), chosen.unsqueeze(1)], 1))
    off = (answer - number[300:]).abs().double()
    return {"absolute_error": off.mean().item(), "accuracy": (off == 0).double().mean().item()}


def _digits(number: Tensor, places: int) -> Tensor:
    """The digits of whole numbers, the first first."""
    return torch.stack([number // 10**place % 10 for place in reversed(range(places))], 1)


def _number(tokens: Tensor) -> Tensor:
    """What digits say; any other token is read as 0."""
    place = 10 ** torch.arange(tokens.shape[1] - 1, -1, -1)
    return (torch.where(tokens < 10, tokens, 0) * place).sum(1)


@torch.no_grad()
def _continued(model: nn.Module, text: Tensor, count: int) -> Tensor:
    """The tokens that a model adds, each the most likely."""
    for _ in range(count):
        text = torch.cat([text, model(text)[:, -1].argmax(1, keepdim=True)], 1)
    return text[:, -count:]


class _Transformer(nn.Module):
    """Two layers of attention over what stands before."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.derive(seed, "init"))
            self.tokens, self.places = nn.Embedding(VOCAB, width), nn.Embedding(12, width)
            layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            self.body = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
            self.head = nn.Linear(width, VOCAB)

    def forward(self, text: Tensor) -> Tensor:
        length = text.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.body(self.tokens(text) + self.places(torch.arange(length)), mask, is_causal=True)
        logits: Tensor = self.head(hidden)
        return logits


class _DigitByDigit(nn.Module):
    """A network for each of three digits: of the features and the digits before it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.derive(seed, "init"))
            self.places = nn.ModuleList(
                nn.Sequential(nn.Linear(10 + 10 * place, 64), nn.ReLU(), nn.Linear(64, VOCAB)) for place in range(3)
            )

    def forward(self, given: Tensor) -> Tensor:
        features, before = given[:, :10], given[:, 10:].long()
        known = F.one_hot(before, 10).flatten(1).float()
        return torch.stack(
            [net(torch.cat([features, known[:, : 10 * place]], 1)) for place, net in enumerate(self.places)], 1
        )
