"""Spiking motifs: the adjoint pair, single onsets, the convex likelihood, kernels, thresholds and learning."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.classification import (
    MotifKernelLearner,
    SpikingMotifDetector,
    detection_scores,
    make_motif_kernel,
    motif_evidence,
    raster_likelihood_loss,
    raster_logits,
    sample_activity,
    sample_raster,
    spikes,
    threshold_evidence,
)

SEEDS = st.integers(0, 10_000)


def world(seed: int, *, trials: int = 2, motifs: int = 3, neurons: int = 4, delays: int = 5, bins: int = 12) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(motifs, neurons, delays, generator=generator, dtype=torch.float64)
    activity = (torch.rand(trials, motifs, bins, generator=generator) < 0.2).double()
    raster = (torch.rand(trials, neurons, bins, generator=generator) < 0.3).double()
    return kernel, activity, raster


@given(SEEDS, st.floats(0.001, 0.9))
def test_generator_and_detector_are_adjoint(seed: int, rate: float) -> None:
    kernel, activity, raster = world(seed)
    added = raster_logits(activity, kernel, firing_rate=rate) - math.log(rate / (1 - rate))
    torch.testing.assert_close((added * raster).sum(), (activity * motif_evidence(raster, kernel)).sum())


@given(SEEDS, st.integers(0, 2), st.integers(2, 9))
def test_a_single_onset_lays_its_kernel_around_it(seed: int, motif: int, start: int) -> None:
    kernel, _, _ = world(seed)
    activity = torch.zeros(1, 3, 12)
    activity[0, motif, start] = 1
    logits = raster_logits(activity, kernel, firing_rate=0.5)[0]
    torch.testing.assert_close(logits[:, start - 2 : start + 3], kernel[motif])
    assert (logits[:, : start - 2] == 0).all()
    assert (logits[:, start + 3 :] == 0).all()


@given(SEEDS)
def test_gradient_in_closed_form(seed: int) -> None:
    kernel, activity, raster = world(seed)
    gradient = torch.func.grad(raster_likelihood_loss)(kernel, activity, raster, firing_rate=0.1)
    residual = raster_logits(activity, kernel, firing_rate=0.1).sigmoid() - raster
    expected = torch.zeros_like(kernel)
    for m, n, d in torch.cartesian_prod(*(torch.arange(size) for size in kernel.shape)).tolist():
        for t in range(12):
            if 0 <= t - d + 2 < 12:
                expected[m, n, d] += (residual[:, n, t] * activity[:, m, t - d + 2]).sum() / residual.numel()
    torch.testing.assert_close(gradient, expected)


@given(SEEDS, st.floats(0.0, 1.0))
def test_the_likelihood_is_convex(seed: int, share: float) -> None:
    kernel, activity, raster = world(seed)
    other = 3 * kernel.flip(0)
    value = lambda k: raster_likelihood_loss(k, activity, raster, firing_rate=0.1)  # noqa: E731
    between = value(share * kernel + (1 - share) * other)
    assert between <= share * value(kernel) + (1 - share) * value(other) + 1e-12


@given(SEEDS, st.floats(0.01, 0.99))
def test_without_motifs_the_loss_is_that_of_a_constant(seed: int, rate: float) -> None:
    kernel, activity, raster = world(seed)
    constant = F.binary_cross_entropy(torch.full_like(raster, rate), raster)
    torch.testing.assert_close(
        raster_likelihood_loss(torch.zeros_like(kernel), activity, raster, firing_rate=rate), constant
    )


def test_two_starts_reach_one_value() -> None:
    _, activity, raster = world(1, trials=8, motifs=2, neurons=3, delays=3)
    ends = []
    for start in (0.0, 1.0):
        learner = MotifKernelLearner(3, 2, 3, firing_rate=0.2).double()
        torch.nn.init.constant_(learner.kernel, start)
        optimizer = torch.optim.Adam(learner.parameters(), 0.1)
        losses = learner.fit((activity, raster), num_steps=300, optimizer=optimizer)
        assert losses[-1] < losses[0]
        ends.append(losses[-1])
    assert ends[0] == pytest.approx(ends[1], abs=1e-6)


@given(st.integers(1, 200), st.floats(0.0, 0.999))
def test_threshold_calls_the_share_that_is_wanted(size: int, rate: float) -> None:
    evidence = torch.randperm(size, generator=torch.Generator().manual_seed(size)).double()
    called = threshold_evidence(evidence, rate=rate)
    exact = rate * (size - 1)  # the quantile interpolates between size - 1 gaps
    assert math.floor(exact - 1e-6) <= called.sum() <= math.ceil(exact + 1e-6)
    assert threshold_evidence(evidence, rate=0.0).sum() == 0


def test_threshold_of_many_entries_comes_from_a_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spikes, "_MOST_IN_QUANTILE", 5_000)
    evidence = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    called = threshold_evidence(evidence, rate=0.1, generator=torch.Generator().manual_seed(1))
    assert called.mean().item() == pytest.approx(0.1, abs=0.02)


def test_kernels_are_sparse_and_balanced() -> None:
    noise = torch.randn(64, 32, 31, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = make_motif_kernel(noise, density=0.05)
    assert kernel.shape == (32, 64, 31)
    alone = make_motif_kernel(noise, density=0.05, spike_shape=(0.0, 1.0, 0.0), tau_decay=1e9, tau_rise=1e-9)
    assert (alone[..., 1:] != 0).double().mean().item() == pytest.approx(0.05, abs=0.005)
    interior = torch.zeros(1, 1, 9, dtype=torch.float64)
    interior[..., 4] = 3.0
    shape = make_motif_kernel(interior, density=0.05)[0, 0]
    assert shape.sum().item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(shape[3:6] / shape[3], torch.tensor([1.0, -0.8, -0.2], dtype=torch.float64))


def test_onsets_leave_room_for_the_motif_and_have_their_rate() -> None:
    activity = sample_activity(50, 4, 100, rate=0.1, num_delays=11, generator=torch.Generator().manual_seed(0))
    assert set(activity.unique().tolist()) == {0.0, 1.0}
    assert not activity[..., :5].any()
    assert not activity[..., -5:].any()
    assert activity[..., 5:-5].mean().item() == pytest.approx(0.1, abs=0.01)


def test_a_raster_follows_its_probabilities() -> None:
    kernel, activity, _ = world(0)
    p = raster_logits(activity, kernel, firing_rate=0.3).sigmoid()
    drawn = torch.stack([sample_raster(activity, kernel, firing_rate=0.3) for _ in range(2000)]).mean(0)
    assert (drawn - p).abs().max() < 0.06
    noise = torch.full_like(p, 0.5)
    assert torch.equal(sample_raster(activity, kernel, firing_rate=0.3, noise=noise), (p > 0.5).double())


def test_a_nan_in_the_kernel_stays_visible() -> None:
    kernel, activity, raster = world(0)
    kernel[0, 1, 2] = math.nan
    rows = raster_likelihood_loss(kernel, activity, raster, reduction="none")
    assert rows[:, 1].isnan().any()
    assert rows[:, [0, 2, 3]].isfinite().all()


def test_no_trials() -> None:
    kernel, activity, raster = world(0)
    none = (kernel.requires_grad_(), activity[:0], raster[:0])
    assert raster_likelihood_loss(*none).isnan()
    assert raster_likelihood_loss(*none, reduction="sum") == 0
    zero = raster_likelihood_loss(*none, normalizer=3)
    assert zero == 0
    zero.backward()


def test_large_kernels_stay_finite() -> None:
    kernel, activity, raster = world(0)
    assert raster_likelihood_loss((1e4 * kernel).float(), activity, raster).isfinite()


def test_the_detector_with_the_true_kernel_beats_the_template() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = make_motif_kernel(torch.randn(64, 32, 21, generator=generator))
    activity = sample_activity(3, 32, 1000, rate=0.001, num_delays=21, generator=generator)
    raster = sample_raster(activity, kernel, generator=generator)
    found = {}
    for method in ("logit", "correlation"):
        evidence = motif_evidence(raster, kernel, method=method)
        called = threshold_evidence(evidence, rate=activity.mean().item())
        found[method] = detection_scores(called, activity)["true_positive"]
    assert found["logit"] > found["correlation"]
    detector = SpikingMotifDetector.from_kernel(kernel, bias=torch.arange(32.0))
    torch.testing.assert_close(detector(raster), motif_evidence(raster, kernel, bias=torch.arange(32.0)))


def test_learners_find_the_motifs() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = make_motif_kernel(torch.randn(16, 2, 7, generator=generator), density=0.2)

    def batches():
        while True:
            activity = sample_activity(8, 2, 100, rate=0.05, num_delays=7, generator=generator)
            yield activity, sample_raster(activity, kernel, firing_rate=0.05, generator=generator)

    learner = MotifKernelLearner(16, 2, 7, firing_rate=0.05)
    learner.fit(batches(), num_steps=100, learning_rate=0.05)
    for learned, true in zip(learner.kernel.detach(), kernel, strict=True):
        assert torch.corrcoef(torch.stack([learned.flatten(), true.flatten()]))[0, 1] > 0.7
    detector = SpikingMotifDetector(16, 2, 7)
    losses = detector.fit(batches(), num_steps=100, learning_rate=0.02)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    pair = next(iter(batches()))
    assert len(detector.fit([pair, pair, pair])) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: raster_logits(torch.zeros(1, 2, 9), torch.zeros(2, 3, 4)), "odd number of delays"),
        (
            lambda: raster_logits(torch.zeros(1, 3, 9), torch.zeros(2, 3, 5)),
            r"activity has shape .*kernel has 2 motifs",
        ),
        (lambda: motif_evidence(torch.zeros(1, 2, 9), torch.zeros(2, 3, 5)), r"raster has shape .*3 neurons"),
        (lambda: motif_evidence(torch.zeros(1, 3, 9), torch.zeros(2, 3, 5), method="dot"), "method is 'dot'"),
        (lambda: raster_logits(torch.zeros(1, 2, 9), torch.zeros(2, 3, 5), firing_rate=0.0), "firing_rate is 0.0"),
        (lambda: SpikingMotifDetector(3, 2, 4), "num_delays is 4"),
        (lambda: MotifKernelLearner(3, 2, 0), "num_delays is 0"),
        (lambda: make_motif_kernel(torch.zeros(2, 2, 4)), "delays odd"),
        (lambda: sample_activity(1, 1, 3, num_delays=5), "num_delays is 5"),
        (lambda: threshold_evidence(torch.zeros(0), rate=0.1), "at least one entry"),
        (lambda: detection_scores(torch.zeros(2), torch.zeros(3)), "detected has shape"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_scores_by_hand() -> None:
    detected, activity = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
    scores: dict[str, Tensor] = detection_scores(detected, activity)
    assert [round(value.item(), 4) for value in scores.values()] == [0.6, 0.5, 0.6667]
    assert detection_scores(detected, torch.zeros(5))["true_positive"].isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_threshold_takes_evidence_of_any_precision_and_a_measured_rate(dtype: torch.dtype) -> None:
    evidence = torch.randperm(60, generator=torch.Generator().manual_seed(0)).reshape(2, 3, 10).to(dtype)
    wanted = (evidence >= 54).to(dtype)
    assert torch.equal(threshold_evidence(evidence, rate=0.1), wanted)
    assert torch.equal(threshold_evidence(evidence, rate=wanted.double().mean()), wanted)


def test_detector_learns_from_trials_of_any_dtype() -> None:
    _, activity, raster = world(0)
    detector = SpikingMotifDetector(4, 3, 5)
    assert len(detector.fit((activity.bool(), raster.int()), num_steps=2)) == 2


def test_delays_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="num_delays is -1"):
        sample_activity(1, 1, 5, num_delays=-1)
