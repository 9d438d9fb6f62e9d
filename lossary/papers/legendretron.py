"""LegendreTron (Lam et al. 2023): does learning the proper loss beat multinomial logistic regression?"""

from __future__ import annotations

import torch
from torch import Tensor

from lossary.classification import LegendreTron
from lossary.core import seeding
from lossary.papers._evidence import Evidence
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import Split, digits

CARD = Paper(
    slug="legendretron",
    title="LegendreTron: Uprising Proper Multiclass Loss Learning",
    authors="Kevin Lam, Christian Walder, Spiridon Penev, Richard Nock",
    arxiv="2301.11695",
    year=2023,
    family="classification",
    provides=(
        "log_softmax_plus",
        "softmax_plus",
        "PositiveLinear",
        "ActNorm",
        "InputConvexNetwork",
        "ConvexGradientBlock",
        "LegendreLink",
        "LegendreTron",
        "LegendreTronClassifier",
    ),
    formula="p = softmax+(grad P_B(... grad P_1(W x + b))), P_b convex and learned; L = -log p_y",
    call=(
        "from lossary.classification import LegendreTronClassifier\n"
        "classifier = LegendreTronClassifier(weight_decay=0.01).fit(X, y)\n"
        "probabilities = classifier.predict_proba(X_test)"
    ),
    claim="With more than ten classes a linear score with a learned proper loss is more accurate than with log-loss.",
    use_when="scores are linear, classes are many or labels noisy, and probabilities are wanted",
    avoid_when="a network learns the scores anyway, or classes are few: it costs ten times the training",
    golden=3,
    metric="accuracy, digit pairs",
    direction="higher",
    margin=0.01,
    baseline="MLR",
    method="LegendreTron",
    seeds=5,
    limits=(
        "Fifteen data sets of up to 1,000 classes with 20 seeds; here one made-up set has more than ten classes. "
        "Batches on it are of 128 rows and weight decay is chosen from two values, to stay within minutes."
    ),
)

DATA = ("digit pairs", "digits", "wine", "iris")
DECAYS = (1e-4, 1e-2)
NOISE = 0.2


def reproduce(run: Run) -> Evidence:
    """Pairs of digits (100 classes, 20 principal components, 2,000 rows), digits (900), wine and iris; 20% label noise.

    A linear layer in float64 under softmax+, and under two blocks of hidden size 2 and depth 4 first: 60 epochs (digits
    40) of Adam at 0.01, the rate times 0.95 every 4 epochs, batches of 64 (pairs 128). Weight decay on all parameters
    is chosen for both from 1e-4 and 1e-2 by a fifth of the clean training rows. Noise flips a fifth of the training
    labels to another class.
    """
    names = run.pick(DATA, ("digit pairs", "iris"))
    for seed, arm in run.trials((CARD.baseline, CARD.method)):
        blocks = 2 if arm == CARD.method else 0
        found: dict[str, float] = {}
        for name in names:
            split = _load(name, seed)
            epochs = run.pick(40 if name == "digits" else 60, 2)
            decay = DECAYS[0] if run.quick else _choose_decay(split, blocks, name, seed, epochs // 4)
            for noise in ("", ", noisy labels"):
                y = _flip(split.y, seed) if noise else split.y
                log_p = _train(split._replace(y=y), blocks, decay, name, seed, epochs)
                found[f"accuracy, {name}{noise}"] = (log_p.argmax(1) == split.y_test).double().mean().item()
                found[f"log-loss, {name}{noise}"] = _log_loss(log_p, split.y_test)
        run.record(arm, **found)
    notes = [
        f"{name}{noise}: accuracy "
        + ", ".join(
            f"{arm} {100 * run.mean(arm, f'accuracy, {name}{noise}'):.1f}% "
            f"(log-loss {run.mean(arm, f'log-loss, {name}{noise}'):.2f})"
            for arm in (CARD.baseline, CARD.method)
        )
        + "."
        for name in names
        for noise in ("", ", noisy labels")
    ]
    return run.conclude(notes=notes)


def _train(split: Split, blocks: int, decay: float, name: str, seed: int, epochs: int) -> Tensor:
    """Log-probabilities of the test rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, "init"))
        model = LegendreTron(split.x.shape[1], int(split.y.max()) + 1, n_blocks=blocks, weight_decay=decay).double()
    model.fit(
        split.x,
        split.y,
        epochs=epochs,
        batch_size=128 if name == "digit pairs" else 64,
        generator=seeding.generator(seed, "batches"),
    )
    with torch.no_grad():
        log_p: Tensor = model(split.x_test)
    return log_p


def _choose_decay(split: Split, blocks: int, name: str, seed: int, epochs: int) -> float:
    """Weight decay of least log-loss on the last fifth of the training rows, after a short training."""
    cut = len(split.x) * 4 // 5
    inner = Split(split.x[:cut], split.y[:cut], split.x[cut:], split.y[cut:])
    losses = {decay: _log_loss(_train(inner, blocks, decay, name, seed, epochs), inner.y_test) for decay in DECAYS}
    return min(losses, key=lambda decay: losses[decay])


def _log_loss(log_p: Tensor, target: Tensor) -> float:
    return -log_p.gather(1, target[:, None]).mean().item()


def _load(name: str, seed: int) -> Split:
    """Standardised rows in float64; all classes among the first four fifths of the training rows."""
    from sklearn.datasets import load_iris, load_wine

    if name == "digit pairs":
        return _digit_pairs(seed)
    if name == "digits":
        return _standardise(digits(900, seed))
    x, y = (torch.from_numpy(array) for array in {"wine": load_wine, "iris": load_iris}[name](return_X_y=True))
    order = torch.randperm(len(x), generator=seeding.generator(seed, "split"))
    cut = len(x) * 4 // 5
    return _standardise(Split(x[order[:cut]], y[order[:cut]], x[order[cut:]], y[order[cut:]]))


def _digit_pairs(seed: int) -> Split:
    """Two digits side by side, 20 principal components; 2,000 pairs of training digits, 1,000 of test digits."""
    data = digits(1200, seed)
    generator = seeding.generator(seed, "pairs")

    def pair(x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
        left, right = (torch.randint(len(x), (count,), generator=generator) for _ in range(2))
        return torch.cat([x[left], x[right]], 1).double(), 10 * y[left] + y[right]

    (x, y), (x_test, y_test) = pair(data.x, data.y, 2000), pair(data.x_test, data.y_test, 1000)
    directions = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:20].T
    return _standardise(Split(x @ directions, y, x_test @ directions, y_test))


def _standardise(split: Split) -> Split:
    x, x_test = split.x.double(), split.x_test.double()
    mean, spread = x.mean(0), x.std(0)
    spread = torch.where(spread > 0, spread, 1.0)
    return Split((x - mean) / spread, split.y, (x_test - mean) / spread, split.y_test)


def _flip(y: Tensor, seed: int) -> Tensor:
    """A fifth of the labels moved to another class at random."""
    generator = seeding.generator(seed, "noise")
    classes = int(y.max()) + 1
    moved = (y + torch.randint(1, classes, y.shape, generator=generator)) % classes
    return torch.where(torch.rand(len(y), generator=generator) < NOISE, moved, y)
