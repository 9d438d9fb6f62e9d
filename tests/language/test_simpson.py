"""Simpson's bias and losses that sum first: closed forms, the order that reverses, BLEU against torchmetrics."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary.language import (
    BundledDiceLoss,
    PopulationDiceLoss,
    bundle_order,
    bundled_dice_loss,
    corpus_bleu_stats,
    population_dice_loss,
    sentence_bleu,
    simpsons_bias,
)

SEEDS = st.integers(0, 10_000)


def problem(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, generator=generator, dtype=torch.float64),
        torch.randint(2, (n,), generator=generator).double(),
    )


@given(SEEDS, st.integers(1, 30), st.floats(1e-3, 10), st.booleans())
def test_the_ends_are_the_population_and_single_samples(seed: int, n: int, smooth: float, square: bool) -> None:
    z, y = problem(n, seed)
    p = z.sigmoid()
    power = 2 if square else 1
    options = {"smooth": smooth, "square_denominator": square}
    whole = 1 - (2 * (p * y).sum() + smooth) / ((p**power).sum() + y.sum() + smooth)
    for size in (None, n, n + 5):
        torch.testing.assert_close(bundled_dice_loss(z, y, bundle_size=size, **options), whole)
    alone = 1 - (2 * p * y + smooth) / (p**power + y + smooth)
    torch.testing.assert_close(bundled_dice_loss(z, y, bundle_size=1, reduction="none", **options), alone)


@given(SEEDS, st.integers(1, 7))
def test_order_within_a_bundle_is_nothing_and_a_short_one_has_its_own_sums(seed: int, size: int) -> None:
    z, y = problem(17, seed)
    losses = bundled_dice_loss(z, y, bundle_size=size, reduction="none")
    assert len(losses) == -(-17 // size)
    parts = [bundled_dice_loss(a, b) for a, b in zip(z.split(size), y.split(size), strict=True)]
    torch.testing.assert_close(losses, torch.stack(parts))
    order = torch.cat([part.flip(0) for part in torch.arange(17).split(size)])
    torch.testing.assert_close(bundled_dice_loss(z[order], y[order], bundle_size=size, reduction="none"), losses)
    torch.testing.assert_close(
        bundled_dice_loss(z, y, bundle_size=size, reduction="sum", normalizer=3), losses.sum() / 3
    )


def test_gradient_by_the_quotient_rule() -> None:
    z, y = problem(12)
    z.requires_grad_()
    p = z.sigmoid()
    a, b = 2 * (p * y).sum() + 1, (p + y).sum() + 1
    (gradient,) = torch.autograd.grad(bundled_dice_loss(z, y), z)
    torch.testing.assert_close(gradient, (-(2 * y * b - a) / b**2 * p * (1 - p)).detach())


def test_ignored_samples_leave_the_sums_and_empty_bundles_the_mean() -> None:
    z, y = problem(8)
    y[[1, 4, 5]] = -100
    z[1] = torch.nan
    losses = bundled_dice_loss(z, y, bundle_size=2, reduction="none")
    torch.testing.assert_close(losses[0], bundled_dice_loss(z[:1], y[:1]))
    assert losses[2] == 0
    torch.testing.assert_close(bundled_dice_loss(z, y, bundle_size=2), losses.sum() / 3)
    assert bundled_dice_loss(z, torch.full_like(y, -100)).isnan()
    assert bundled_dice_loss(z, torch.full_like(y, -100), normalizer=2) == 0
    assert bundled_dice_loss(z[:0], y[:0], bundle_size=3, reduction="sum") == 0
    nothing = bundled_dice_loss(torch.full((3,), -1e4), torch.zeros(3), smooth=0.0)
    assert nothing == 0


def test_weights_repeat_samples_in_their_bundle() -> None:
    z, y = problem(4)
    times = torch.tensor([2, 0, 1, 3])
    weighted = bundled_dice_loss(z, y, bundle_size=2, sample_weight=times.double())
    halves = [
        bundled_dice_loss(z[part].repeat_interleave(times[part]), y[part].repeat_interleave(times[part]))
        for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(weighted, torch.stack(halves).mean())


def test_classes_are_each_against_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    z, y = torch.randn(9, 3, generator=generator), torch.randint(3, (9,), generator=generator)
    weight = torch.tensor([1.0, 2.0, 0.5])
    p, one_hot = z.softmax(1), torch.eye(3)[y]
    each = 1 - (2 * (p * one_hot).sum(0) + 1) / ((p + one_hot).sum(0) + 1)
    torch.testing.assert_close(bundled_dice_loss(z, y), each.mean())
    torch.testing.assert_close(bundled_dice_loss(z, y, weight=weight), (weight * each).sum() / weight.sum())
    assert bundled_dice_loss(z, y, bundle_size=4, reduction="none").shape == (3,)
    ignored = torch.where(torch.arange(9) < 4, -100, y)
    torch.testing.assert_close(bundled_dice_loss(z, ignored), bundled_dice_loss(z[4:], y[4:]))
    assert torch.func.vmap(bundled_dice_loss)(z[None], y[None] + 3).isnan().all()  # labels that nobody could check
    with pytest.raises(ValueError, match="target contains 7; wanted class indices from 0 to 2"):
        bundled_dice_loss(z, y.fill_(7))


def test_running_sums() -> None:
    z, y = problem(12)
    loss, sums = population_dice_loss(z, y, torch.tensor(0.0), torch.tensor(0.0))
    torch.testing.assert_close(loss, bundled_dice_loss(z, y))
    forgetful = population_dice_loss(z, y, *sums, decay=0.0)[0]
    torch.testing.assert_close(forgetful, loss)
    module = PopulationDiceLoss(decay=0.5).double()
    module(z[:6], y[:6])
    value = module(z[6:], y[6:])
    weight = torch.tensor([0.5] * 6 + [1.0] * 6)
    torch.testing.assert_close(value, bundled_dice_loss(z, y, sample_weight=weight))
    before = module.state_dict()
    module.eval()(z, y)
    torch.testing.assert_close(module.state_dict(), before)


@given(SEEDS, st.integers(1, 40), st.integers(1, 9))
def test_bundles_share_the_positives(seed: int, n: int, size: int) -> None:
    y = problem(n, seed)[1]
    order = bundle_order(y, size, generator=torch.Generator().manual_seed(seed))
    assert sorted(order.tolist()) == list(range(n))
    full = y[order][: n - n % size].reshape(-1, size).sum(1)
    assert len(full) == 0 or full.max() - full.min() <= 1


def test_the_order_of_two_classifiers_reverses() -> None:
    """Expected counts of 10,000 samples, a tenth of them positive; every bundle has the same ones."""
    never = simpsons_bias(torch.zeros(10_000), torch.arange(10_000) < 1_000)
    assert never["population"] == 0
    assert float(never["sample_mean"]) == pytest.approx(0.95)
    y = (torch.arange(10_000) < 1_000).double()
    useful = torch.zeros(10_000, dtype=torch.float64)
    useful[:900] = 1  # TPR 0.9
    useful[1_000:2_350] = 1  # FPR 0.15
    bias = simpsons_bias(useful, y)
    assert float(bias["population"]) == pytest.approx(1800 / 3250)
    assert bias["sample_mean"] < never["sample_mean"]
    torch.testing.assert_close(bias["bias"], bias["sample_mean"] - bias["population"])
    mixed = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))
    for size in (8, 64, 512):
        bad = simpsons_bias(torch.zeros(10_000), y[mixed], bundle_size=size)
        good = simpsons_bias(useful[mixed], y[mixed], bundle_size=size)
        assert good["sample_mean"] > bad["sample_mean"]


@given(SEEDS)
def test_no_bias_where_denominators_are_equal_or_samples_are(seed: int) -> None:
    z, y = problem(20, seed)
    accuracy = lambda prediction, target: (prediction == target, torch.ones(20))  # noqa: E731
    assert abs(simpsons_bias((z > 0).double(), y, metric=accuracy)["bias"]) < 1e-6
    same = simpsons_bias(torch.full((20,), 0.3), torch.ones(20), smooth=0.0)
    torch.testing.assert_close(same["bias"], torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        simpsons_bias(z.sigmoid(), y, bundle_size=None, smooth=0.0)["bias"].abs() < 1e-12, torch.tensor(True)
    )


def test_bleu_is_that_of_torchmetrics() -> None:
    from torchmetrics.functional.text import bleu_score

    hyp = ["the cat sat on the mat", "a dog ran over the hill today", "it rains in spain again and again"]
    ref = ["the cat sat on a mat", ["the dog ran over the hill", "a dog ran on the hill today"], "it rains in spain"]
    listed = [[each] if isinstance(each, str) else each for each in ref]
    stats = corpus_bleu_stats(hyp, ref)
    assert float(stats.corpus_bleu()) == pytest.approx(float(bleu_score(hyp, listed)), abs=1e-6)
    for one, several, mine in zip(hyp, listed, stats.sentence_bleu().tolist(), strict=True):
        assert mine == pytest.approx(float(bleu_score([one], [several], smooth=True)), abs=1e-6)
        assert sentence_bleu(one, several) == pytest.approx(mine)
        assert sentence_bleu(one, several, smooth=0.0) == pytest.approx(float(bleu_score([one], [several])), abs=1e-6)
    assert sentence_bleu("", "a b") == 0
    assert sentence_bleu(("a", "b"), ("a", "b"), max_n=2) == 1
    assert stats.sentence_bleu().mean() > stats.corpus_bleu()  # smoothing alone lifts short sentences


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, y: bundled_dice_loss(z, y, bundle_size=0), "bundle_size is 0; wanted a positive integer"),
        (lambda z, y: bundled_dice_loss(z, y, bundle_size=2, gather=True), "gather is for the whole batch"),
        (lambda z, y: bundled_dice_loss(z, y, weight=torch.ones(2)), "weight is for classes"),
        (lambda z, y: bundled_dice_loss(z, y, smooth=-1.0), "smooth is -1"),
        (lambda z, y: bundled_dice_loss(z, y, reduction="all"), "reduction is 'all'"),
        (lambda z, y: population_dice_loss(z, y, z, z), r"numerator has shape \(8,\); wanted \(\)"),
        (lambda z, y: simpsons_bias(z.sigmoid(), y, metric="f1"), "metric is 'f1'; wanted 'dice' or a function"),
        (lambda z, y: simpsons_bias(z.sigmoid(), y[:3]), r"target has shape \(3,\); wanted \(8,\)"),
        (lambda z, y: bundle_order(y[None], 2), r"target has shape \(1, 8\); wanted \(N,\)"),
        (lambda z, y: corpus_bleu_stats(["a"], []), "hyp has 1 sentences and ref 0"),
        (lambda z, y: corpus_bleu_stats([], [], max_n=0), "max_n is 0"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*problem(8))  # type: ignore[operator]


def test_module() -> None:
    z, y = problem(8)
    torch.testing.assert_close(
        BundledDiceLoss(3, square_denominator=True)(z, y, normalizer=2.0),
        bundled_dice_loss(z, y, bundle_size=3, square_denominator=True, normalizer=2.0),
    )
