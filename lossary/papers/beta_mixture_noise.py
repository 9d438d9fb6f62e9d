"""Beta mixture of losses (Arazo et al. 2019): does bootstrapping by it save a network from wrong labels?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.classification import BootstrapSchedule, BootstrapTraining
from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import accuracy, digits, fit, mlp

CARD = Paper(
    slug="beta_mixture_noise",
    title="Unsupervised Label Noise Modeling and Loss Correction",
    authors="Eric Arazo, Diego Ortego, Paul Albert, Noel E. O'Connor, Kevin McGuinness",
    arxiv="1904.11238",
    year=2019,
    family="classification",
    provides=(
        "BetaMixture",
        "LossNormalizer",
        "NoiseModel",
        "dynamic_bootstrapping_loss",
        "DynamicBootstrappingLoss",
        "dynamic_bootstrapping_mixup_loss",
        "DynamicBootstrappingMixupLoss",
        "uniform_prior_loss",
        "UniformPriorLoss",
        "weighted_mixup",
        "BootstrapSchedule",
        "BootstrapTraining",
    ),
    formula="L = -(1 - B) log p_y - B log p_guess,  B = p(label wrong | loss) by a mixture of two beta distributions",
    call=(
        "from lossary.classification import BootstrapTraining\n"
        "training = BootstrapTraining(model)\n"
        "loss = training.loss(x, labels, epoch)  # each batch\n"
        "training.fit_noise(batches)  # after each epoch"
    ),
    claim="With half of the labels replaced at random, bootstrapping by a beta mixture beats cross-entropy at the end.",
    use_when="many labels may be wrong, no clean ones are at hand and training is long enough to memorise",
    avoid_when="labels are right, or classes are rare enough that hard examples look like wrong labels",
    golden=4,
    metric="accuracy",
    direction="higher",
    margin=0.05,
    baseline="CE",
    method="hard, mixup",
    seeds=5,
    limits=(
        "The figures on CIFAR at 80% noise, and where a beta mixture beats a Gaussian one: on digits right "
        "and wrong labels differ so much in loss at the switch that any threshold finds them."
    ),
)

SWITCH = 15
ARMS = {
    "CE": ("none", "hard"),
    "mixup": ("static", "hard"),
    "hard": ("none", "hard"),
    "soft": ("none", "soft"),
    "hard, mixup": ("static", "hard"),
    "soft, mixup": ("static", "soft"),
    "soft to hard, dynamic mixup": ("dynamic", "soft"),
}


def reproduce(run: Run) -> Evidence:
    """Digits, 900 for training, half of their labels drawn anew from all ten; 64-256-256-10 network, Adam 1e-3.

    60 epochs, 15 of them before bootstrapping begins; accuracy after the last one.
    """
    epochs, switch = run.pick((60, SWITCH), (16, 8))
    for seed, arm in run.trials(run.pick(tuple(ARMS), ("CE", "hard, mixup"))):
        data = digits(900, seed)
        draw = seeding.generator(seed, "labels")
        redrawn = torch.rand(len(data.y), generator=draw) < 0.5
        labels = torch.where(redrawn, torch.randint(10, data.y.shape, generator=draw), data.y)
        model = mlp((64, 256, 256, 10), seed)
        never = arm in ("CE", "mixup")
        mixing, mode = ARMS[arm]
        training = BootstrapTraining(
            model,
            schedule=BootstrapSchedule(epochs if never else switch, hard_epoch=epochs - 10),
            mixing=mixing,  # type: ignore[arg-type]
            mode=mode,  # type: ignore[arg-type]
            generator=seeding.generator(seed, "mixup"),
        )
        found = _train(training, model, data.x, labels, labels != data.y, seed, epochs=epochs, switch=switch)
        with torch.no_grad():
            run.record(arm, accuracy=accuracy(model(data.x_test), data.y_test), **found)
    if run.quick:
        return run.conclude()
    notes = [f"{arm}: accuracy {100 * run.mean(arm, 'accuracy'):.1f}%." for arm in ARMS]
    for arm in ("hard", "hard, mixup"):
        scores = ", ".join(
            f"{name} {run.mean(arm, f'AUROC, {name}'):.3f}" for name in ("beta mixture", "Gaussian mixture", "raw loss")
        )
        notes.append(f"Wrong labels found at the switch ({arm}), AUROC: {scores}.")
    y = {"accuracy": [run.mean(arm, "accuracy") for arm in ARMS]}
    series = Series("Half of the labels redrawn", " | ".join(ARMS), "test accuracy", list(range(len(ARMS))), y)
    return run.conclude(series=[series], notes=notes)


def _train(
    training: BootstrapTraining,
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    wrong: Tensor,
    seed: int,
    *,
    epochs: int,
    switch: int,
) -> dict[str, float]:
    """Train to the end; how well wrong labels were told from right ones at the switch."""
    found: dict[str, float] = {}
    now = 0

    def begin(epoch: int) -> None:
        nonlocal now
        now = epoch
        if epoch >= switch:  # before, nothing looks at the noise model
            training.fit_noise([(x, labels)])
        if epoch == switch:
            found.update(_detection(training, model, x, labels, wrong))

    fit(
        nn.Identity(),  # the procedure itself calls the model
        x,
        labels,
        lambda rows, target: training.loss(rows, target, now),
        optimizer=torch.optim.Adam(model.parameters(), 1e-3, fused=True),
        epochs=epochs,
        batch_size=64,
        seed=seed,
        learning_rate=lambda done: 1.0,
        on_epoch=begin,
    )
    return found


def _detection(
    training: BootstrapTraining, model: nn.Module, x: Tensor, labels: Tensor, wrong: Tensor
) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score
    from sklearn.mixture import GaussianMixture

    with torch.no_grad():
        losses = F.cross_entropy(model(x), labels, reduction="none")
    column = losses.double().numpy()[:, None]
    gaussian = GaussianMixture(2, random_state=0).fit(column)
    scores = {
        "beta mixture": training.noise_probability(x, labels).numpy(),
        "Gaussian mixture": gaussian.predict_proba(column)[:, gaussian.means_.argmax()],
        "raw loss": column[:, 0],
    }
    return {f"AUROC, {name}": float(roc_auc_score(wrong.numpy(), score)) for name, score in scores.items()}
