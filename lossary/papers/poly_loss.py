"""PolyLoss (Leng et al. 2022): does one more coefficient raise accuracy?"""

from __future__ import annotations

import torch

from lossary.classification import Poly1CrossEntropyLoss, Poly1SigmoidFocalLoss
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import accuracy, calibration_error, digits, fit, mlp

CARD = Paper(
    slug="poly_loss",
    title="PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions",
    authors="Zhaoqi Leng, Mingxing Tan, Chenxi Liu, Ekin Dogus Cubuk, Xiaojie Shi, Shuyang Cheng, Dragomir Anguelov",
    arxiv="2204.12511",
    year=2022,
    family="classification",
    provides=(
        "poly1_cross_entropy_loss",
        "Poly1CrossEntropyLoss",
        "poly_cross_entropy_loss",
        "PolyCrossEntropyLoss",
        "poly1_focal_loss",
        "Poly1FocalLoss",
        "poly1_sigmoid_focal_loss",
        "Poly1SigmoidFocalLoss",
        "poly_series_loss",
        "PolySeriesLoss",
    ),
    formula="L = -log p_t + epsilon (1 - p_t)",
    call=(
        "from lossary.classification import Poly1CrossEntropyLoss\n"
        "loss = Poly1CrossEntropyLoss(epsilon=2.0)(logits, labels)"
    ),
    claim="Tuning the first coefficient of cross-entropy's series (epsilon = 2 on ImageNet) raises accuracy.",
    use_when="cross-entropy is nearly right and one number may be tuned; epsilon > 0 makes predictions more confident",
    avoid_when="labels are wrong or classes are rare: it is no remedy for either",
    golden=4,
    metric="accuracy",
    direction="higher",
    margin=0.0,
    baseline="epsilon=0",
    method="epsilon=2",
    seeds=10,
    limits=(
        "The paper's gains are 0.4 points on ImageNet; differences that small drown in the seeds' noise on 300 digits. "
        "What it can show is the mechanism: confidence rises with epsilon."
    ),
)

EPSILONS = (-1.0, -0.5, 0.0, 1.0, 2.0, 4.0, 8.0)
FOCAL_EPSILONS = (-1.0, 0.0, 2.0)


def reproduce(run: Run) -> Evidence:
    """Digits, 300 for training, a 64-128-128-10 network; epsilon from -1 to 8.

    Beside it the focal form on a rare positive: is a digit an 8, with one 8 in fifty training rows.
    """
    epsilons = run.pick(EPSILONS, (0.0, 2.0))
    for seed, arm in run.trials([*map(_arm, epsilons), *map(_focal_arm, FOCAL_EPSILONS)]):
        epsilon = float(arm.rpartition("=")[2])
        if arm == _focal_arm(epsilon):
            run.record(arm, **_rare_positive(seed, epsilon, epochs=run.pick(40, 5)))
        else:
            run.record(arm, **_digits(seed, epsilon, epochs=run.pick(40, 10)))
    means = {
        metric: [run.mean(_arm(epsilon), metric) for epsilon in epsilons]
        for metric in ("accuracy", "confidence", "calibration_error")
    }
    rising = means["confidence"] == sorted(means["confidence"])
    precision = ", ".join(f"{run.mean(_focal_arm(e), 'average_precision'):.3f} at {e:g}" for e in FOCAL_EPSILONS)
    return run.conclude(
        series=[Series("What epsilon does", "epsilon", "mean over seeds", epsilons, means)],
        notes=[
            f"Mean confidence {'rises' if rising else 'does not rise'} monotonically with epsilon.",
            f"Focal form on a rare positive, average precision by epsilon: {precision}.",
        ],
    )


def _digits(seed: int, epsilon: float, *, epochs: int) -> dict[str, float]:
    data = digits(300, seed)
    model = mlp((64, 128, 128, 10), seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    loss = Poly1CrossEntropyLoss(epsilon)
    fit(model, data.x, data.y, loss, optimizer=optimizer, epochs=epochs, batch_size=64, seed=seed)
    with torch.no_grad():
        logits = model(data.x_test)
    return {
        "accuracy": accuracy(logits, data.y_test),
        "confidence": logits.softmax(1).amax(1).mean().item(),
        "calibration_error": calibration_error(logits, data.y_test),
    }


def _rare_positive(seed: int, epsilon: float, *, epochs: int) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, precision_score, recall_score

    data = digits(900, seed)
    kept = torch.cat([(data.y != 8).nonzero()[:, 0], (data.y == 8).nonzero()[:16, 0]])
    model = mlp((64, 128, 1), seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    loss = Poly1SigmoidFocalLoss(epsilon, alpha=0.25, gamma=2.0)
    target = (data.y[kept] == 8).float().unsqueeze(1)
    fit(model, data.x[kept], target, loss, optimizer=optimizer, epochs=epochs, batch_size=64, seed=seed)
    with torch.no_grad():
        score = model(data.x_test)[:, 0].numpy()
    truth = (data.y_test == 8).numpy()
    return {
        "average_precision": average_precision_score(truth, score),
        "precision": precision_score(truth, score > 0, zero_division=0.0),
        "recall": recall_score(truth, score > 0),
    }


def _arm(epsilon: float) -> str:
    return f"epsilon={epsilon:g}"


def _focal_arm(epsilon: float) -> str:
    return f"focal, epsilon={epsilon:g}"
