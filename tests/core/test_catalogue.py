"""The catalogue names calls that exist and compute what it says."""

import importlib
import inspect
import math
import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lossary
from lossary.core.catalogue import Entry
from tests.processes import run_clean

CATALOGUE = lossary.catalogue()
GENERATOR = torch.Generator().manual_seed(0)
X, Y = (torch.randn(40, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
LOGITS = torch.randn(40, 3, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.randint(3, (40,), generator=GENERATOR)
YES = torch.randint(2, (40,), generator=GENERATOR)
GUESS = torch.randint(2, (40,), generator=GENERATOR)
SCORE = torch.rand(40, generator=GENERATOR, dtype=torch.float64)


def by_name(name: str) -> Entry:
    (entry,) = (entry for entry in CATALOGUE if entry.name == name)
    return entry


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: f"{entry.task}-{entry.name}")
def test_the_named_call_exists(entry: Entry) -> None:
    assert callable(entry.load())
    assert entry.formula
    if entry.implementation.startswith("lossary."):
        module, _, name = entry.implementation.rpartition(".")
        assert name in importlib.import_module(module).__all__


def test_names_are_unique_and_tasks_complete() -> None:
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE) > 90
    for task in {entry.task for entry in CATALOGUE}:
        assert lossary.find(task=task)
    assert {entry.kind for entry in lossary.find(kind="loss")} == {"loss"}
    assert len(lossary.find()) == len(CATALOGUE)
    assert lossary.find("regression", "metric")[0].name == "root mean squared error"
    with pytest.raises(ValueError, match="task is 'vision'; wanted one of regression"):
        lossary.find(task="vision")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind is 'score'; wanted one of loss, metric"):
        lossary.find(kind="score")  # type: ignore[arg-type]


def test_nothing_kept_well_elsewhere_is_re_exported() -> None:
    """No public name of Lossary stands for what PyTorch or torchmetrics already has under that name."""
    metrics = importlib.import_module("torchmetrics.functional")
    for family in lossary.FAMILIES:
        for name in importlib.import_module(f"lossary.{family}").__all__:
            if name == "linear_cross_entropy":
                continue  # takes PyTorch's calls, and stores no logits where PyTorch does
            theirs = getattr(F, name, None) or getattr(metrics, name, None)
            assert theirs is None or not inspect.isfunction(theirs), f"{name} is {theirs.__module__}.{name}"


def test_catalogue_costs_no_library() -> None:
    code = "import sys, lossary; lossary.catalogue(); print({'torchmetrics', 'sklearn'} & set(sys.modules))"
    assert run_clean(code) == "set()\n"


def counts(guess: Tensor = GUESS, truth: Tensor = YES) -> tuple[float, float, float, float]:
    """TP, FP, FN, TN."""
    return tuple(((guess == g) & (truth == t)).sum().item() for g, t in ((1, 1), (1, 0), (0, 1), (0, 0)))  # type: ignore[return-value]


def huber(e: Tensor, d: float) -> Tensor:
    return torch.where(e.abs() <= d, e**2 / 2, d * (e.abs() - d / 2)).mean()


def triangle(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return vectors[:10], vectors[10:20], vectors[20:30]


TP, FP, FN, TN = counts()
P = LOGITS.log_softmax(1).exp()
P_Y = P.gather(1, LABELS[:, None])[:, 0]
FIRST, SECOND, THIRD = triangle(LOGITS)
MARGINS = (1 - LOGITS.gather(1, LABELS[:, None]) + LOGITS).relu()
MASKS = torch.randint(2, (1, 2, 6, 6), generator=GENERATOR)
guessed_mask, true_mask = MASKS[:, 0], MASKS[:, 1]
DIRECTION = YES * 2 - 1

# What the named call gives on random numbers, and what the formula does.
FORMULAS: dict[str, tuple[Callable[[Callable], object], object]] = {
    "squared error": (lambda f: f()(X, Y), ((X - Y) ** 2).mean()),
    "absolute error": (lambda f: f()(X, Y), (X - Y).abs().mean()),
    "Huber": (lambda f: f(delta=0.7)(X, Y), huber(X - Y, 0.7)),
    "smooth L1": (lambda f: f(beta=0.7)(X, Y), huber(X - Y, 0.7) / 0.7),
    "Poisson": (lambda f: f()(X, Y.abs()), (X.exp() - Y.abs() * X).mean()),
    "root mean squared error": (lambda f: f(X, Y, squared=False), ((X - Y) ** 2).mean().sqrt()),
    "mean absolute percentage error": (lambda f: f(X, Y), ((X - Y).abs() / Y.abs()).mean()),
    "symmetric mean absolute percentage error": (
        lambda f: f(X, Y),
        (2 * (X - Y).abs() / (X.abs() + Y.abs())).mean(),
    ),
    "R^2": (lambda f: f(X, Y), 1 - ((X - Y) ** 2).sum() / ((Y - Y.mean()) ** 2).sum()),
    "adjusted R^2": (
        lambda f: f(X, Y, adjusted=4),
        1 - ((X - Y) ** 2).sum() / ((Y - Y.mean()) ** 2).sum() * (40 - 1) / (40 - 4 - 1),
    ),
    "pinball": (
        lambda f: f(Y, X, alpha=0.3),
        torch.maximum(0.3 * (Y - X), (0.3 - 1) * (Y - X)).mean(),
    ),
    "binary cross-entropy": (
        lambda f: f()(X, YES.double()),
        -torch.where(YES == 1, X.sigmoid().log(), (-X).sigmoid().log()).mean(),
    ),
    "weighted binary cross-entropy": (
        lambda f: f(pos_weight=torch.tensor(3.0))(X, YES.double()),
        -torch.where(YES == 1, 3 * X.sigmoid().log(), (-X).sigmoid().log()).mean(),
    ),
    "cross-entropy": (lambda f: f()(LOGITS, LABELS), -P_Y.log().mean()),
    "sparse cross-entropy": (lambda f: f()(LOGITS, LABELS), -P_Y.log().mean()),
    "label smoothing": (
        lambda f: f(label_smoothing=0.2)(LOGITS, LABELS),
        -(0.8 * P_Y.log() + 0.2 * P.log().mean(1)).mean(),
    ),
    "negative log-likelihood": (lambda f: f()(P.log(), LABELS), -P_Y.log().mean()),
    "hinge": (lambda f: f(SCORE, YES), (1 - DIRECTION * SCORE).relu().mean()),
    "multi-class hinge": (lambda f: f()(LOGITS, LABELS), ((MARGINS.sum(1) - 1) / 3).mean()),
    "accuracy": (lambda f: f(YES, GUESS), (TP + TN) / 40),
    "precision": (lambda f: f(YES, GUESS), TP / (TP + FP)),
    "recall": (lambda f: f(YES, GUESS), TP / (TP + FN)),
    "F1": (lambda f: f(YES, GUESS), 2 * TP / (2 * TP + FP + FN)),
    "specificity": (lambda f: f(GUESS, YES), TN / (TN + FP)),
    "false positive rate": (lambda f: 1 - f(GUESS, YES), FP / (TN + FP)),
    "negative predictive value": (lambda f: f(GUESS, YES), TN / (TN + FN)),
    "false discovery rate": (lambda f: 1 - f(YES, GUESS), FP / (TP + FP)),
    "confusion matrix": (lambda f: f(YES, GUESS), [[TN, FP], [FN, TP]]),
    "AUC": (
        lambda f: f(YES, SCORE),
        (SCORE[YES == 1][:, None] > SCORE[YES == 0]).double().mean(),
    ),
    "ROC": (
        lambda f: [rates[2].item() for rates in f(YES, SCORE, drop_intermediate=False)[:2]],
        [(SCORE[label == YES] >= SCORE.sort(descending=True).values[1]).double().mean().item() for label in (0, 1)],
    ),
    "verification ROC": (lambda f: f(YES, SCORE)[1][-1], 1.0),
    "precision-recall curve": (lambda f: [part[0] for part in f(YES, SCORE)[:2]], [YES.double().mean(), 1.0]),
    "smooth L1 of boxes": (lambda f: f(beta=0.7)(X, Y), huber(X - Y, 0.7) / 0.7),
    "pixel cross-entropy": (
        lambda f: f()(LOGITS.T.reshape(1, 3, 8, 5), LABELS.reshape(1, 8, 5)),
        -P_Y.log().mean(),
    ),
    "pixel accuracy": (lambda f: f(GUESS, YES, num_classes=2, average="micro"), (TP + TN) / 40),
    "mean IoU": (
        lambda f: f(guessed_mask, true_mask, num_classes=2, input_format="index", include_background=True).mean(),
        sum(
            ((guessed_mask == c) & (true_mask == c)).sum() / ((guessed_mask == c) | (true_mask == c)).sum()
            for c in (0, 1)
        )
        / 2,
    ),
    "Dice score": (
        lambda f: f(guessed_mask, true_mask, num_classes=2, input_format="index", average="macro").mean(),
        sum(
            2 * ((guessed_mask == c) & (true_mask == c)).sum() / ((guessed_mask == c).sum() + (true_mask == c).sum())
            for c in (0, 1)
        )
        / 2,
    ),
    "softmax": (lambda f: f()(LOGITS, LABELS), -P_Y.log().mean()),
    "contrastive": (
        lambda f: f(margin=1.0, reduction="none")(SCORE, DIRECTION),
        torch.where(YES == 1, SCORE, (1 - SCORE).relu()),
    ),
    "triplet": (
        lambda f: f(margin=0.5)(FIRST, SECOND, THIRD),
        ((FIRST - SECOND).norm(dim=1) - (FIRST - THIRD).norm(dim=1) + 0.5).relu().mean(),
    ),
    "SimSiam": (lambda f: f(FIRST, SECOND), (FIRST * SECOND).sum(1) / FIRST.norm(dim=1) / SECOND.norm(dim=1)),
    "TAR at FAR": (
        lambda f: f(SCORE, YES, min_specificity=0.8)[0],
        max(
            (SCORE[YES == 1] >= t).double().mean().item()
            for t in [*SCORE.tolist(), 2.0]
            if (SCORE[YES == 0] < t).double().mean() >= 0.8
        ),
    ),
    "L1 of depth": (lambda f: f()(X, Y), (X - Y).abs().mean()),
    "L2 of depth": (lambda f: f()(X, Y), ((X - Y) ** 2).mean()),
    "reconstruction": (lambda f: f()(X, Y), ((X - Y) ** 2).mean()),
    "diffusion": (lambda f: f()(X, Y), ((X - Y) ** 2).mean()),
    "perceptual": (lambda f: f()(X, Y), ((X - Y) ** 2).mean()),
    "flow likelihood": (
        lambda f: -f(torch.distributions.Normal(0.0, 1.0), [torch.distributions.AffineTransform(1.0, 2.0)]).log_prob(X),
        0.5 * ((X - 1) / 2) ** 2 + 0.5 * math.log(2 * math.pi) + math.log(2),
    ),
    "PSNR": (
        lambda f: f(SCORE, SCORE.flip(0), data_range=1.0),
        -10 * ((SCORE - SCORE.flip(0)) ** 2).mean().log10(),
    ),
    "SSIM": (lambda f: 1 - f(SCORE.expand(1, 1, 40, 40), SCORE.expand(1, 1, 40, 40)), 0.0),
    "SSIM score": (lambda f: f(SCORE.expand(1, 1, 40, 40), SCORE.expand(1, 1, 40, 40)), 1.0),
    "token cross-entropy": (lambda f: f()(LOGITS, LABELS), -P_Y.log().mean()),
    "token hinge": (lambda f: f()(LOGITS, LABELS), ((MARGINS.sum(1) - 1) / 3).mean()),
    "cosine": (
        lambda f: f(margin=0.1, reduction="none")(FIRST, SECOND, DIRECTION[:10]),
        torch.where(
            YES[:10] == 1, 1 - F.cosine_similarity(FIRST, SECOND), (F.cosine_similarity(FIRST, SECOND) - 0.1).relu()
        ),
    ),
    "margin ranking": (lambda f: f(margin=0.1)(X, Y, DIRECTION), (-DIRECTION * (X - Y) + 0.1).relu().mean()),
    "CTC": (  # one label in two steps: label blank, blank label, label label
        lambda f: f(reduction="sum")(P[:2].log()[:, None], torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])),
        -(P[0, 1] * P[1, 0] + P[0, 0] * P[1, 1] + P[0, 1] * P[1, 1]).log(),
    ),
    "BLEU": (
        lambda f: f(["a b c d"], [["a b c d e"]], n_gram=2),
        math.exp(1 - 5 / 4),
    ),
    "perplexity": (lambda f: f(LOGITS[None], LABELS[None]), (-P_Y.log().mean()).exp()),
    "word error rate": (lambda f: f(["a b d"], ["a b c d"]), 0.25),
    "character error rate": (lambda f: f(["abd"], ["abcd"]), 0.25),
    "METEOR": (
        lambda f: f([["a", "b", "c"]], ["a", "b", "d"], wordnet=types.SimpleNamespace(synsets=lambda word: [])),
        2 / 3 * (1 - 0.5 * (1 / 2) ** 3),
    ),
    "exact match and F1": (
        lambda f: list(
            f(
                [{"prediction_text": "red car", "id": "1"}],
                [{"answers": {"answer_start": [0], "text": ["red bus"]}, "id": "1"}],
            ).values()
        ),
        [0.0, 50.0],
    ),
    "fixed weights": (
        lambda f: f({"a": (nn.MSELoss(), 2.0), "b": (nn.L1Loss(), 0.5)})(X, Y),
        2 * ((X - Y) ** 2).mean() + 0.5 * (X - Y).abs().mean(),
    ),
}
NEEDS_MORE = {  # packages, weights or a downloaded network that the tests do not have
    *("average precision", "11-point average precision", "mean average precision", "average recall"),
    *("Inception score", "FID", "ROUGE"),
}
OTHERWISE = {  # each by hand below
    *("Hausdorff distance", "panoptic quality", "equal error rate"),
    *("boundary", "Hausdorff distance as a loss", "frames per second"),
}


def test_every_entry_of_other_libraries_is_checked() -> None:
    others = {entry.name for entry in CATALOGUE if not entry.implementation.startswith("lossary.")}
    assert others <= set(FORMULAS) | NEEDS_MORE | OTHERWISE
    assert not set(FORMULAS) - {entry.name for entry in CATALOGUE}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_named_call_computes_the_formula(name: str) -> None:
    call, expected = FORMULAS[name]
    actual = call(by_name(name).load())
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        rtol=1e-5,
        atol=1e-6,
    )


def test_hausdorff_distance_by_hand() -> None:
    one, other = torch.zeros(1, 2, 8, 8, dtype=torch.int64), torch.zeros(1, 2, 8, 8, dtype=torch.int64)
    one[:, 1, 2:4, 2:4] = 1
    other[:, 1, 2:4, 2:7] = 1
    distance = by_name("Hausdorff distance").load()(one, other, num_classes=2, input_format="one-hot")
    assert distance.item() == pytest.approx(3.0)


def test_panoptic_quality_by_hand() -> None:
    """Two things of three and two pixels, the first found with IoU 3/4, stuff found with IoU 2/3."""
    truth = torch.tensor([[[0, 0], [0, 0], [0, 0], [1, 0], [1, 0], [1, 0]]])
    guess = torch.tensor([[[0, 0], [0, 0], [0, 0], [0, 0], [1, 0], [1, 0]]])
    quality = by_name("panoptic quality").load()(guess, truth, things={0}, stuffs={1})
    assert quality.item() == pytest.approx((3 / 4 + 2 / 3) / 2)


def test_equal_error_rate_by_hand() -> None:
    score, truth = torch.tensor([0.1, 0.2, 0.6, 0.3, 0.8, 0.9]), torch.tensor([0, 0, 0, 1, 1, 1])
    assert by_name("equal error rate").load()(score, truth).item() == pytest.approx(1 / 3)


def test_distances_to_outlines_by_hand() -> None:
    """A stripe of three in a row of seven: what the boundary and the Hausdorff loss multiply with."""
    y = torch.tensor([0, 0, 1, 1, 1, 0, 0])
    it = by_name("boundary").load()
    assert (it(1 - y) - it(y)).tolist() == [2, 1, -1, -2, -1, 1, 2]
    assert by_name("Hausdorff distance as a loss").load() is it
    assert (it(y) + it(1 - y)).tolist() == [2, 1, 1, 2, 1, 1, 2]


def test_frames_per_second_by_hand() -> None:
    timer = by_name("frames per second").load()("time.sleep(0.01)", setup="import time")
    assert 0 < 1 / timer.timeit(3).mean <= 101
