"""Spiking motifs (Perrinet 2023): do log-odds over neurons and delays find motifs better than a rate template?"""

from __future__ import annotations

import torch
from torch import Tensor

from lossary.classification import (
    MotifKernelLearner,
    detection_scores,
    make_motif_kernel,
    motif_evidence,
    sample_activity,
    sample_raster,
    threshold_evidence,
)
from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run

CARD = Paper(
    slug="spiking_motifs",
    title="Accurate Detection of Spiking Motifs by Learning Heterogeneous Delays of a Spiking Neural Network",
    authors="Laurent U. Perrinet",
    arxiv="2307.14077",
    year=2023,
    family="classification",
    provides=(
        "raster_likelihood_loss",
        "RasterLikelihoodLoss",
        "raster_logits",
        "sample_raster",
        "sample_activity",
        "make_motif_kernel",
        "motif_evidence",
        "threshold_evidence",
        "detection_scores",
        "MotifKernelLearner",
        "SpikingMotifDetector",
    ),
    formula="logit P(A_nt = 1) = logit r + sum_md B_m,t-d K_mnd;  evidence_mt = sum_nd A_n,t+d K_mnd",
    call=(
        "from lossary.classification import MotifKernelLearner, motif_evidence, threshold_evidence\n"
        "learner = MotifKernelLearner(num_neurons=64, num_motifs=32, num_delays=21)\n"
        "learner.fit(batches, num_steps=300, learning_rate=0.05)  # pairs (onsets, spikes)\n"
        "found = threshold_evidence(motif_evidence(spikes, learner.kernel), rate=0.001)"
    ),
    claim="Log-odds over neurons and delays find more onsets, at exactly the right bin, than a rate template does.",
    use_when="repeating patterns of spikes are to be found in rasters, or test data with known ones are needed",
    avoid_when="onsets to learn from are unknown: finding them at the same time is not part of the method",
    golden=4,
    metric="true positive rate",
    direction="higher",
    margin=0.05,
    baseline="correlation",
    method="logit",
    seeds=5,
    limits="Rasters are drawn from the model itself, as in the paper: real recordings may not be sums of log-odds.",
)

FIRING_RATE = ONSET_RATE = 0.001
DETECTIONS = {  # method, motifs, delays
    "logit": ("logit", 32, 21),
    "correlation": ("correlation", 32, 21),
    "logit, 256 motifs": ("logit", 256, 21),
    "logit, 3 delays": ("logit", 32, 3),
    "wrong kernel": ("wrong", 32, 21),
}


def reproduce(run: Run) -> Evidence:
    """Detect with the true kernels (64 neurons, 5 trials of 1024 bins), then learn kernels of 8 motifs.

    Learning: 32 neurons, 15 delays, onsets in 2% of bins, Adam 0.05, 300 steps of 4 fresh trials.
    """
    for seed, arm in run.trials([*DETECTIONS, "learned kernels"]):
        if arm == "learned kernels":
            run.record(arm, **_learn(seed, steps=run.pick(300, 30)))
        else:
            method, motifs, delays = DETECTIONS[arm]
            run.record(arm, **_detect(seed, method, motifs, delays, bins=run.pick(1024, 512)))
    rates = {arm: run.mean(arm, "true positive rate") for arm in DETECTIONS}
    learned = {
        name: run.mean("learned kernels", name) for name in ("own", "others", "true positive rate", "true kernels")
    }
    shown = ["logit", "correlation", "logit, 256 motifs", "logit, 3 delays"]
    series = Series(
        "Onsets found",
        " | ".join(shown),
        "true positive rate",
        list(range(4)),
        {"found": [rates[arm] for arm in shown]},
    )
    return run.conclude(
        series=[series],
        notes=[
            "Onsets found: " + ", ".join(f"{arm} {100 * rate:.1f}%" for arm, rate in rates.items()) + ".",
            f"Learned kernels correlate {learned['own']:.2f} with their own motif and {learned['others']:.2f} with "
            f"others; they find {100 * learned['true positive rate']:.1f}% of onsets, the true kernels "
            f"{100 * learned['true kernels']:.1f}%.",
        ],
    )


def _detect(seed: int, method: str, motifs: int, delays: int, *, bins: int) -> dict[str, float]:
    generator = seeding.generator(seed, "detect", motifs, delays)  # the same raster for every method
    kernel = make_motif_kernel(torch.randn(64, motifs, delays, generator=generator))
    activity = sample_activity(5, motifs, bins, rate=ONSET_RATE, num_delays=delays, generator=generator)
    raster = sample_raster(activity, kernel, firing_rate=FIRING_RATE, generator=generator)
    if method == "wrong":
        kernel = make_motif_kernel(torch.randn(64, motifs, delays, generator=generator))
    evidence = motif_evidence(
        raster, kernel, method="correlation" if method == "correlation" else "logit", firing_rate=FIRING_RATE
    )
    return _scores(evidence, activity)


def _learn(seed: int, *, steps: int) -> dict[str, float]:
    generator = seeding.generator(seed, "learn")
    kernel = make_motif_kernel(torch.randn(32, 8, 15, generator=generator))

    def draw() -> tuple[Tensor, Tensor]:
        activity = sample_activity(4, 8, 1024, rate=0.02, num_delays=15, generator=generator)
        return activity, sample_raster(activity, kernel, firing_rate=FIRING_RATE, generator=generator)

    learner = MotifKernelLearner(32, 8, 15, firing_rate=FIRING_RATE)
    learner.fit((draw() for _ in range(steps)), learning_rate=0.05)
    learned = learner.kernel.detach()
    together = torch.corrcoef(torch.cat([learned.flatten(1), kernel.flatten(1)]))[:8, 8:]
    activity, raster = draw()
    own = together.diagonal().mean().item()
    others = ((together.sum() - together.trace()) / 56).item()
    found = {name: _scores(motif_evidence(raster, k), activity) for name, k in (("learned", learned), ("true", kernel))}
    return {
        "own": own,
        "others": others,
        "true positive rate": found["learned"]["true positive rate"],
        "true kernels": found["true"]["true positive rate"],
    }


def _scores(evidence: Tensor, activity: Tensor) -> dict[str, float]:
    scores = detection_scores(threshold_evidence(evidence, rate=activity.mean().item()), activity)
    return {"accuracy": scores["accuracy"].item(), "true positive rate": scores["true_positive"].item()}
