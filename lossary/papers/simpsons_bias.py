"""Simpson's bias (Yuan et al. 2021): does Dice that sums before it divides train a better F1?"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core import seeding
from lossary.language import PopulationDiceLoss, bundled_dice_loss, simpsons_bias
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import Split, digits, fit, mlp

CARD = Paper(
    slug="simpsons_bias",
    title="Simpson's Bias in NLP Training",
    authors="Fei Yuan, Longtu Zhang, Huang Bojun, Yaobo Liang",
    arxiv="2103.11795",
    year=2021,
    family="language",
    provides=(
        "simpsons_bias",
        "bundled_dice_loss",
        "BundledDiceLoss",
        "bundle_order",
        "population_dice_loss",
        "PopulationDiceLoss",
        "BleuStats",
        "corpus_bleu_stats",
        "sentence_bleu",
    ),
    formula="L = mean over bundles B of 1 - (2 sum_B p y + s) / (sum_B p + sum_B y + s)",
    call=(
        "from lossary.language import BundledDiceLoss\n"
        "loss = BundledDiceLoss(bundle_size=64)(torch.randn(128), torch.randint(2, (128,)).float())"
    ),
    claim="Training with Dice averaged over samples is inferior to training whose sums match the population's F1.",
    use_when="few samples are positive and F1 of the whole set counts; in bundles that hold several positives",
    avoid_when="the metric is a mean over samples anyway, as accuracy, or probabilities are wanted",
    golden=3,
    metric="F1",
    direction="higher",
    margin=0.1,
    baseline="Dice, bundles of 1",
    method="Dice, whole batch",
    seeds=8,
    limits=(
        "The paper fine-tunes pretrained models for GLUE, tagging and translation; noisy digits and bags of words of "
        "film reviews stand in. Training with sentence BLEU is not repeated here."
    ),
)

Loss = Callable[[Tensor, Tensor], Tensor]
SIZES = (1, 8, 32, 128)
BATCH = 128
dice = partial(bundled_dice_loss, square_denominator=True)


def reproduce(run: Run) -> Evidence:
    """Is a digit an 8: 20 positive and 800 negative training rows, pixels with noise of 0.15, a 64-64-1 network.

    Adam 2e-3, 60 epochs, batches of 128, F1 at a threshold of 0.5 on the other rows; Dice with squares below, smoothed
    by 1, in bundles of 1, 8, 32 and of the whole batch. Beside it film reviews as bags of words, 40 positive and 460
    negative ones for training and as many for the test; and, without training, two classifiers whose order the mean
    over samples reverses.
    """
    tasks: dict[str, Callable[[int], Split]] = {"": _rare_digit, "reviews, ": _rare_review(run)}
    losses: dict[str, Loss] = {"CE": F.binary_cross_entropy_with_logits}
    losses |= {_arm(size): partial(dice, bundle_size=size) for size in SIZES}
    arms = [task + arm for task in tasks for arm in [*losses, "Dice, running sums"]]
    for seed, arm in run.trials(arms):
        task = "reviews, " if arm.startswith("reviews, ") else ""
        data = tasks[task](seed)
        loss = losses.get(arm.removeprefix(task)) or _running()
        run.record(arm, **_train(data, loss, seed, epochs=run.pick(60, 3)))
    f1 = {
        name: [run.mean(task + _arm(size), "F1") for size in SIZES]
        for name, task in (("digits", ""), ("film reviews", "reviews, "))
    }
    rising = {name: values == sorted(values) for name, values in f1.items()}
    return run.conclude(
        series=[Series("What the size of a bundle does", "samples in a bundle", "F1, mean over seeds", SIZES, f1)],
        notes=[
            *(
                f"F1 {'rises' if up else 'does not rise'} monotonically with the bundle: {name}."
                for name, up in rising.items()
            ),
            "F1: " + ", ".join(f"{arm} {run.mean(arm, 'F1'):.3f}" for arm in arms) + ".",
            _two_classifiers(),
        ],
    )


def _rare_digit(seed: int) -> Split:
    data = digits(1200, seed)
    positive = data.y == 8
    kept = torch.cat([positive.nonzero()[:20, 0], (~positive).nonzero()[:800, 0]])
    rest = torch.ones(len(data.y), dtype=torch.bool).index_fill(0, kept, False)
    generator = seeding.generator(seed, "noise")
    x, x_test = (
        z + 0.15 * torch.randn(z.shape, generator=generator)
        for z in (data.x[kept], torch.cat([data.x[rest], data.x_test]))
    )
    return Split(x, positive[kept].float(), x_test, (torch.cat([data.y[rest], data.y_test]) == 8).float())


def _rare_review(run: Run) -> Callable[[int], Split]:
    """Film reviews by the 2,000 most frequent words of the training rows; 8% of those used are positive."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    from lossary import datasets

    frame = datasets.load("review_polarity").frame
    texts, positive = frame["text"].to_numpy(), torch.tensor((frame["sentiment"] == "pos").tolist())
    few, many = run.pick((40, 460), (8, 92))

    @lru_cache(maxsize=1)  # the arms of a seed come one after another
    def split(seed: int) -> Split:
        order = torch.randperm(len(texts), generator=seeding.generator(seed, "split"))
        good, bad = order[positive[order]], order[~positive[order]]
        rows = torch.cat([good[:few], bad[:many]])
        test = torch.cat([good[few:][:few], bad[many:][:many]])
        words = TfidfVectorizer(max_features=2000, sublinear_tf=True).fit(texts[rows.numpy()])
        x, x_test = (torch.from_numpy(words.transform(texts[part.numpy()]).toarray()).float() for part in (rows, test))
        return Split(x, positive[rows].float(), x_test, positive[test].float())

    return split


def _train(data: Split, loss: Loss, seed: int, *, epochs: int) -> dict[str, float]:
    from sklearn.metrics import f1_score

    model = mlp((data.x.shape[1], 64, 1), seed)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3, fused=True)
    fit(
        model,
        data.x,
        data.y,
        lambda z, y: loss(z[:, 0], y),
        optimizer=optimizer,
        epochs=epochs,
        batch_size=BATCH,
        seed=seed,
    )
    with torch.no_grad():
        guess = (model(data.x_test)[:, 0] > 0).float()
    return {
        "F1": f1_score(data.y_test.numpy(), guess.numpy(), zero_division=0.0),
        "mean over samples": float(simpsons_bias(guess, data.y_test)["sample_mean"]),
    }


def _running() -> Loss:
    return PopulationDiceLoss(square_denominator=True)


def _two_classifiers() -> str:
    """Dice of 10,000 samples, a tenth positive, under a classifier that never says yes and a useful one."""
    y = torch.arange(10_000) < 1_000
    useful = (torch.arange(10_000) < 900) | ((torch.arange(10_000) >= 1_000) & (torch.arange(10_000) < 2_350))
    order = torch.randperm(10_000, generator=seeding.generator(0, "order"))
    seen = []
    for size in (1, 8, 64, 512):
        never, found = (
            simpsons_bias(guess[order], y[order], bundle_size=size) for guess in (torch.zeros(10_000), useful)
        )
        seen.append(f"{float(never['sample_mean']):.3f} and {float(found['sample_mean']):.3f} in bundles of {size}")
    return (
        "Without training: a classifier that never says yes and one that finds 90% of positives at 15% false alarms "
        f"have a Dice of 0 and {float(found['population']):.3f} over all samples, but {', '.join(seen)}."
    )


def _arm(size: int) -> str:
    return f"Dice, bundles of {size}" if size < BATCH else "Dice, whole batch"
