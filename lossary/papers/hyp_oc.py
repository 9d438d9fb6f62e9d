"""Hyp-OC (Narayan, Patel 2024): is a one-class classifier better in hyperbolic space?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.classification import HypOC, PseudoNegativeSampler
from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import digits, mlp

CARD = Paper(
    slug="hyp_oc",
    title="Hyp-OC: Hyperbolic One Class Classification for Face Anti-Spoofing",
    authors="Kartik Narayan, Vishal M. Patel",
    arxiv="2404.14406",
    year=2024,
    family="classification",
    provides=(
        "HypOC",
        "HypOCLoss",
        "hyperbolic_pairwise_confusion_loss",
        "HyperbolicPairwiseConfusionLoss",
        "PseudoNegativeSampler",
        "pseudo_negatives",
        "HyperbolicMLR",
        "hyperbolic_logits",
        "ToPoincare",
        "to_poincare",
        "poincare_distance",
        "mobius_add",
        "exp_map0",
        "project",
    ),
    formula="L = CE(z, [genuine; noise]) + 1/N sum_i d(x_i, x_{i+N/2})",
    call=(
        "from lossary.classification import HypOC\n"
        "model = HypOC(features.shape[1], hidden=(64,), dim=16).fit(features, learning_rate=1e-3)\n"
        "model.score(features_new)  # probability of an outlier"
    ),
    claim="A hyperbolic head with pairwise confusion tells outliers better than a Euclidean one.",
    use_when="only genuine samples exist in training and outliers must be scored in use",
    avoid_when="some outliers are at hand, or features are raw: the pseudo-negatives need a feature space",
    golden=5,
    metric="AUROC",
    direction="higher",
    margin=0.0,
    baseline="Euclidean",
    method="hyperbolic, confusion",
    seeds=5,
    limits="Faces, the VGG-Face backbone and the transfer between data sets; digits stand in for both sides.",
)

ARMS = ("Euclidean", "hyperbolic", "hyperbolic, confusion")
GENUINE = (0, 3, 8)


def reproduce(run: Run) -> Evidence:
    """Digits: 100 images of one (0, 3 or 8) are genuine, all others outliers; a 64-64-16 network and a ball of c = 0.1.

    Adam 1e-3, 300 steps of 32 images and 32 pseudo-negatives, gradient norm clipped to 3; mean over the three digits.
    """
    for seed, arm in run.trials(ARMS):
        areas = [_area(seed, digit, arm, run.pick(300, 20)) for digit in run.pick(GENUINE, (0,))]
        run.record(arm, AUROC=sum(areas) / len(areas))
    if run.quick:
        return run.conclude()
    spread = {arm: torch.tensor(run.values(arm, "AUROC")).std().item() for arm in ARMS}
    notes = [f"{arm}: AUROC {run.mean(arm, 'AUROC'):.4f} (standard deviation {spread[arm]:.4f})." for arm in ARMS]
    y = {"AUROC": [run.mean(arm, "AUROC") for arm in ARMS]}
    series = Series("Outliers", " | ".join(ARMS), "AUROC", list(range(len(ARMS))), y)
    return run.conclude(series=[series], notes=notes)


def _area(seed: int, digit: int, arm: str, steps: int) -> float:
    from sklearn.metrics import roc_auc_score

    data = digits(1200, seed)
    genuine = data.x[data.y == digit][:100]
    mean, deviation = genuine.mean(0), genuine.std(0) + 0.1
    genuine, test = (genuine - mean) / deviation, (data.x_test - mean) / deviation
    generator = seeding.generator(seed, "pseudo-negatives", digit)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, "init", digit))
        model: HypOC | _Euclidean = (
            _Euclidean(seed)
            if arm == "Euclidean"
            else HypOC(64, hidden=(64,), dim=16, confusion_weight=1.0 if arm.endswith("confusion") else 0.0)
        )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for _ in range(steps):
        rows = torch.randperm(len(genuine), generator=generator)[:32]
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(model.loss(genuine[rows], generator=generator))
        nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
    score = model.score(test)
    return float(roc_auc_score((data.y_test != digit).numpy(), score.numpy()))


class _Euclidean(nn.Module):
    """The control: the same network and pseudo-negatives under a linear head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.network = mlp((64, 64, 16, 2), seed)
        self.sampler = PseudoNegativeSampler(64)

    def loss(self, genuine: Tensor, *, generator: torch.Generator) -> Tensor:
        logits = self.network(torch.cat([genuine, self.sampler(genuine, generator=generator)]))
        labels = (torch.arange(len(logits)) >= len(genuine)).long()
        return F.cross_entropy(logits, labels)

    def score(self, input: Tensor) -> Tensor:
        with torch.no_grad():
            probability: Tensor = self.network(input).softmax(-1)[:, 1]
            return probability
