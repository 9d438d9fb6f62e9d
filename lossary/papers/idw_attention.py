"""Inverse distance weighting attention (McCarter 2023): do learned keys become prototypes, and can they be repaired?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.classification import PrototypeClassifier
from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import accuracy, digits, fit

CARD = Paper(
    slug="idw_attention",
    title="Inverse distance weighting attention",
    authors="Calvin McCarter",
    arxiv="2310.18805",
    year=2023,
    family="classification",
    provides=("inverse_distance_attention", "IDWAttention", "PrototypeClassifier", "add_prototype"),
    formula="o = sum_p v_p / d_p / sum_p 1 / d_p,  d_p = eps + |q - k_p|^power",
    call=(
        "from lossary.classification import PrototypeClassifier\n"
        "model = PrototypeClassifier(64, 10, num_prototypes=20)\n"
        "model.init_from_data(x)\n"
        "loss = torch.nn.functional.cross_entropy(model(x), labels)"
    ),
    claim="Keys learned under inverse distances lie at most half as far from real images as under negative distances.",
    use_when="predictions shall be explained by prototypes, and single mistakes repaired without training",
    avoid_when="accuracy is what counts: at the same number of units a layer of rectifiers is better",
    golden=3,
    metric="log2 distance of keys",
    direction="lower",
    margin=1.0,
    baseline="neg",
    method="neglog",
    seeds=5,
    limits=(
        "What the prototypes of MNIST look like. With few prototypes it is less accurate than negative distances, dot "
        "products and rectifiers; exp_neg and inverse hardly learn at this length, so that the nearness of their keys "
        "says nothing."
    ),
)

SCORES = ("neglog", "neg", "exp_neg", "inverse", "dot", "relu")


def reproduce(run: Run) -> Evidence:
    """Digits, 900 for training, 20 prototypes, Adam 0.01 with amsgrad for 30 epochs; distance to the nearest image.

    Beside it the repair: on two moons with 16 prototypes the point (-1, 1) is given the wrong class.
    """
    for seed, arm in run.trials((*run.pick(SCORES, ("neglog", "neg")), "repair")):
        run.record(arm, **(_repair(seed, run) if arm == "repair" else _digits(seed, arm, run)))
    if run.quick:
        return run.conclude()
    notes = [
        f"{score}: keys at {2 ** run.mean(score, 'log2 distance of keys'):.2f} from the nearest image, "
        f"{100 * run.mean(score, 'class agrees'):.0f}% of them with its class, "
        f"accuracy {100 * run.mean(score, 'accuracy'):.1f}%."
        for score in SCORES
    ]
    notes.append(
        f"Repair: the point got its class in {100 * run.mean('repair', 'repaired'):.0f}% of the runs, "
        f"{100 * run.mean('repair', 'others kept'):.1f}% of the other predictions stayed, "
        f"{100 * min(run.values('repair', 'others kept')):.1f}% at worst."
    )
    y = {"log2 distance": [run.mean(score, "log2 distance of keys") for score in SCORES]}
    series = Series("Keys and images", " | ".join(SCORES), "log2 distance", list(range(len(SCORES))), y)
    return run.conclude(series=[series], notes=notes)


def _digits(seed: int, score: str, run: Run) -> dict[str, float]:
    data = digits(900, seed)
    model = _train(data.x, data.y, 10, 20, score, seed, epochs=run.pick(30, 5))
    with torch.no_grad():
        nearest = torch.cdist(model.keys, data.x).min(1)
        agrees = (model.values.argmax(1) == data.y[nearest.indices]).double().mean().item()
        logits = model(data.x_test)
    return {
        "log2 distance of keys": nearest.values.median().log2().item(),
        "class agrees": agrees,
        "accuracy": accuracy(logits, data.y_test),
    }


def _repair(seed: int, run: Run) -> dict[str, float]:
    from sklearn.datasets import make_moons

    def moons(part: str) -> tuple[Tensor, Tensor]:
        x, y = make_moons(200, noise=0.1, random_state=seeding.derive(seed, part) % 2**32)
        return torch.from_numpy(x).float(), torch.from_numpy(y)

    (x, y), (x_test, _) = moons("train"), moons("test")
    model = _train(x, y, 2, 16, "neglog", seed, epochs=run.pick(100, 20))
    point = torch.tensor([[-1.0, 1.0]])
    with torch.no_grad():
        before, wanted = model(x_test).argmax(1), 1 - int(model(point).argmax())
        model.add_prototype(point, wanted)
        after, got = model(x_test).argmax(1), int(model(point).argmax())
    return {"repaired": float(got == wanted), "others kept": (before == after).double().mean().item()}


def _train(
    x: Tensor, y: Tensor, classes: int, prototypes: int, score: str, seed: int, *, epochs: int
) -> PrototypeClassifier:
    model = PrototypeClassifier(x.shape[1], classes, prototypes, score=score)  # type: ignore[arg-type]
    model.init_from_data(x, generator=seeding.generator(seed, "init"))
    fit(
        model,
        x,
        y,
        F.cross_entropy,
        optimizer=torch.optim.Adam(model.parameters(), 1e-2, amsgrad=True, fused=True),
        epochs=epochs,
        batch_size=32,
        seed=seed,
        learning_rate=lambda done: 1.0,
    )
    return model
