"""Squentropy (Hui, Belkin, Wright 2023): is it a drop-in that is at least as accurate and better calibrated?"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.classification import rescaled_square_loss, squentropy_loss
from lossary.core import seeding
from lossary.papers._evidence import Evidence
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import accuracy, calibration_error, digits, fit, mlp

CARD = Paper(
    slug="squentropy",
    title="Cut your Losses with Squentropy",
    authors="Like Hui, Mikhail Belkin, Stephen Wright",
    arxiv="2302.03952",
    year=2023,
    family="classification",
    provides=("squentropy_loss", "SquentropyLoss", "rescaled_square_loss", "RescaledSquareLoss"),
    formula="L = -log p_y + mean of z_k^2 over the wrong classes",
    call="from lossary.classification import SquentropyLoss\nloss = SquentropyLoss()(logits, labels)",
    claim="In place of cross-entropy, with nothing to tune, squentropy is more accurate.",
    use_when="training is long enough to fit the training set, and nothing may be tuned",
    avoid_when="training is short: predictions stay under-confident until the label's logit has grown",
    golden=3,
    metric="accuracy",
    direction="higher",
    margin=0.0,
    baseline="CE",
    method="squentropy",
    seeds=10,
    limits="Speech and language models; the paper's 34 tasks are stood in for by digits and three small tables.",
)

Loss = Callable[[Tensor, Tensor], Tensor]
ARMS: dict[str, Loss] = {"CE": F.cross_entropy, "squentropy": squentropy_loss, "square": rescaled_square_loss}
TABLES = ("iris", "wine", "breast_cancer")


def reproduce(run: Run) -> Evidence:
    """Digits, 300 for training, a 64-128-128-10 network, 300 epochs.

    Beside it iris, wine and breast cancer in four folds: three hidden layers of 256 with batch normalisation, full
    batches, SGD with Nesterov momentum.
    """
    for seed, arm in run.trials(list(ARMS)):
        data = digits(300, seed)
        model = mlp((64, 128, 128, 10), seed)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        epochs = run.pick(300, 10)
        fit(model, data.x, data.y, ARMS[arm], optimizer=optimizer, epochs=epochs, batch_size=64, seed=seed)
        with torch.no_grad():
            logits = model(data.x_test)
        tables = [_table(name, ARMS[arm], seed, run.pick(100, 5)) for name in TABLES]
        run.record(
            arm,
            accuracy=accuracy(logits, data.y_test),
            calibration_error=calibration_error(logits, data.y_test),
            **{
                "accuracy, tables": sum(one for one, _ in tables) / len(tables),
                "calibration error, tables": sum(other for _, other in tables) / len(tables),
            },
        )
    notes = [
        f"{arm}: digits {_percent(run, arm, 'accuracy')}, calibration error {_percent(run, arm, 'calibration_error')}; "
        f"tables {_percent(run, arm, 'accuracy, tables')} with {_percent(run, arm, 'calibration error, tables')}."
        for arm in ARMS
    ]
    return run.conclude(notes=notes)


def _percent(run: Run, arm: str, metric: str) -> str:
    values = torch.tensor(run.values(arm, metric), dtype=torch.float64)
    return f"{100 * values.mean():.1f} ± {100 * values.std():.1f}%"


def _table(name: str, loss: Loss, seed: int, epochs: int) -> tuple[float, float]:
    """Accuracy and calibration error on the pooled predictions of four folds."""
    from sklearn import datasets
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    logits = torch.empty(len(y), int(y.max()) + 1)
    for fold, (train, test) in enumerate(StratifiedKFold(4, shuffle=True, random_state=seed).split(x, y)):
        scaler = StandardScaler().fit(x[train])
        inputs, outputs = (torch.from_numpy(scaler.transform(x[rows])).float() for rows in (train, test))
        model = _wide(inputs.shape[1], logits.shape[1], seeding.derive(seed, fold))
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True, fused=True)
        target = torch.from_numpy(y[train])
        fit(model, inputs, target, loss, optimizer=optimizer, epochs=epochs, batch_size=len(train), seed=seed)
        with torch.no_grad():
            logits[test] = model(outputs)
    return accuracy(logits, torch.from_numpy(y)), calibration_error(logits, torch.from_numpy(y), bins=10)


def _wide(features: int, classes: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = (features, 256, 256, 256)
        blocks = [
            layer
            for inner, outer in itertools.pairwise(sizes)
            for layer in (nn.Linear(inner, outer), nn.BatchNorm1d(outer), nn.ReLU())
        ]
        return nn.Sequential(*blocks, nn.Linear(256, classes))
