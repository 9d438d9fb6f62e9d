"""LDAM: what it reduces to, where its margins come from, the cosine head, deferred weights, long-tailed data."""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor

from lossary.classification.margin import (
    DeferredResampling,
    DeferredReweighting,
    LDAMHingeLoss,
    LDAMLoss,
    NormalizedLinear,
    effective_number_weights,
    ldam_hinge_loss,
    ldam_loss,
    ldam_margins,
    long_tailed_counts,
    subsample_long_tailed,
)
from tests.classification.strategies import class_batches, tensors

Batch = tuple[Tensor, Tensor]
COUNTS = st.lists(st.integers(1, 100_000), min_size=2, max_size=6)
SCALE = st.floats(0.5, 40.0)
MARGIN = st.floats(0.0, 1.0)


# --- the loss -------------------------------------------------------------------------------------------------------


@given(class_batches(bound=1.0), SCALE, MARGIN, st.integers(1, 100_000))
def test_equal_counts_are_the_additive_margin_of_cosface(batch: Batch, scale: float, margin: float, n: int) -> None:
    input, target = batch
    loss = LDAMLoss([n] * input.shape[1], max_margin=margin, scale=scale).double()
    shifted = input - loss.margins[0] * F.one_hot(target, input.shape[1])
    assert loss.margins.tolist() == pytest.approx([margin] * input.shape[1], rel=1e-6)
    torch.testing.assert_close(loss(input, target), F.cross_entropy(scale * shifted, target))


@given(class_batches(bound=1.0), SCALE)
def test_without_margin_it_is_cross_entropy_of_scaled_logits(batch: Batch, scale: float) -> None:
    input, target = batch
    loss = LDAMLoss(range(1, input.shape[1] + 1), max_margin=0.0, scale=scale)
    torch.testing.assert_close(loss(input, target), F.cross_entropy(scale * input, target))


@given(class_batches(bound=1.0), SCALE, st.data())
def test_class_weights_are_those_of_cross_entropy(batch: Batch, scale: float, data: st.DataObject) -> None:
    input, target = batch
    classes = input.shape[1]
    margins, weight = data.draw(tensors((classes,), 0.0, 1.0)), data.draw(tensors((classes,), 0.1, 5.0))
    shifted = scale * shift(input, target, margins)
    for reduction in ("none", "sum", "mean"):
        torch.testing.assert_close(
            ldam_loss(input, target, margins=margins, scale=scale, weight=weight, reduction=reduction),
            F.cross_entropy(shifted, target, weight=weight, reduction=reduction),
        )


@given(class_batches(bound=1.0), SCALE, st.data())
def test_gradient(batch: Batch, scale: float, data: st.DataObject) -> None:
    """s (softmax(s z') - one-hot), by the shifted logits as by the logits."""
    input, target = batch
    margins = data.draw(tensors((input.shape[1],), 0.0, 1.0))
    p = (scale * shift(input, target, margins)).softmax(1)
    gradient = gradient_of(lambda z: ldam_loss(z, target, margins=margins, scale=scale, reduction="sum"), input)
    torch.testing.assert_close(gradient, scale * (p - F.one_hot(target, input.shape[1])))


def test_margins_survive_half_precision_logits() -> None:
    """Near 1 bfloat16 has steps of 0.004 to 0.008, and the scale of 30 would multiply them."""
    input = torch.tensor([[0.97, 0.91], [0.33, 0.99]]).bfloat16()
    target, margins = torch.tensor([0, 1]), torch.tensor([0.111, 0.0517])
    rows = ldam_loss(input, target, margins=margins, reduction="none")
    exact = F.cross_entropy(30 * shift(input.double(), target, margins.double()), target, reduction="none")
    torch.testing.assert_close(rows.double(), exact, rtol=1e-5, atol=1e-6)


@given(class_batches(bound=1.0), st.data())
def test_hinge(batch: Batch, data: st.DataObject) -> None:
    """max(best other - own + margin, 0); its gradient moves the best other (ties share) against the label."""
    input, target = batch
    margins = data.draw(tensors((input.shape[1],), 0.0, 1.0))
    gaps, gradient = [], torch.zeros_like(input)
    for i, label in enumerate(target.tolist()):
        others = [z for k, z in enumerate(input[i].tolist()) if k != label]
        best = max(others)
        gaps.append(max(best - input[i, label].item() + margins[label].item(), 0.0))
        if gaps[-1] > 0:
            is_best = input[i] == best
            is_best[label] = False
            gradient[i] = is_best / is_best.sum()
            gradient[i, label] = -1.0
    torch.testing.assert_close(ldam_hinge_loss(input, target, margins, "none"), torch.tensor(gaps, dtype=torch.float64))
    torch.testing.assert_close(gradient_of(lambda z: ldam_hinge_loss(z, target, margins, "sum"), input), gradient)


@given(class_batches(bound=1.0), st.floats(1.0, 1e4), st.data())
def test_hinge_is_the_limit_of_a_large_scale(batch: Batch, scale: float, data: st.DataObject) -> None:
    """The softmax form divided by the scale lies above the hinge by at most log(C) / s."""
    input, target = batch
    margins = data.draw(tensors((input.shape[1],), 0.0, 1.0))
    soft = ldam_loss(input, target, margins=margins, scale=scale, reduction="none") / scale
    above = soft - ldam_hinge_loss(input, target, margins, "none")
    assert (above >= -1e-9).all()
    assert (above <= math.log(input.shape[1]) / scale + 1e-9).all()


def test_loss_refuses_what_makes_no_sense() -> None:
    input, target = torch.zeros(1, 3), torch.tensor([0])
    with pytest.raises(ValueError, match="scale is 0"):
        ldam_loss(input, target, margins=torch.zeros(3), scale=0.0)
    with pytest.raises(ValueError, match=r"margins has shape \(2,\); wanted \(3,\)"):
        ldam_loss(input, target, margins=torch.zeros(2))
    with pytest.raises(ValueError, match=r"margins has shape \(2,\); wanted \(3,\)"):
        ldam_hinge_loss(input, target, torch.zeros(2))
    with pytest.raises(ValueError, match="one class; wanted at least 2"):
        ldam_hinge_loss(torch.zeros(1, 1), target, torch.zeros(1))
    with pytest.raises(ValueError, match=r"weight has shape \(2,\); wanted \(3,\)"):
        LDAMLoss([3, 2, 1]).set_weight(torch.ones(2))


# --- margins and weights from counts --------------------------------------------------------------------------------


@given(COUNTS, st.floats(0.01, 2.0))
def test_margins_fall_with_the_fourth_root_of_the_count(counts: list[int], max_margin: float) -> None:
    margins = ldam_margins(counts, max_margin=max_margin)
    assert margins.max().item() == pytest.approx(max_margin)
    assert margins.argmax().item() == counts.index(min(counts))
    for i, n in enumerate(counts):
        for j, m in enumerate(counts):
            assert (margins[i] / margins[j]).item() == pytest.approx((m / n) ** 0.25)
            assert (margins[i] > margins[j]) == (n < m)
    for module in (LDAMLoss, LDAMHingeLoss):
        torch.testing.assert_close(module(counts, max_margin=max_margin).margins, margins.float())


@given(st.integers(1, 100_000), st.integers(1, 100_000))
def test_margins_minimise_the_bound_of_two_classes(n: int, m: int) -> None:
    """Of all margins with the same sum, those with the least 1 / (D_1 sqrt n_1) + 1 / (D_2 sqrt n_2)."""
    margins = ldam_margins([n, m])
    best = minimize_scalar(
        lambda share: 1 / (share * math.sqrt(n)) + 1 / ((1 - share) * math.sqrt(m)),
        bounds=(0.0, 1.0),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert best.x == pytest.approx((margins[0] / margins.sum()).item(), abs=1e-5)


@given(COUNTS, st.floats(0.0, 1.0, exclude_max=True))
@example([1, 6, 58], 1 - 1e-8)
def test_effective_number_weights_by_exact_arithmetic(counts: list[int], beta: float) -> None:
    counts = [1 + n % 60 for n in counts]
    exact = Fraction(beta)
    inverse = [(1 - exact) / (1 - exact**n) for n in counts]
    expected = [float(w * len(counts) / sum(inverse)) for w in inverse]
    weights = effective_number_weights(counts, beta=beta)
    assert weights.tolist() == pytest.approx(expected, rel=1e-12)
    assert weights.sum().item() == pytest.approx(len(counts))


@given(COUNTS)
def test_effective_number_weights_go_from_ones_to_inverse_counts(counts: list[int]) -> None:
    ones = torch.ones(len(counts), dtype=torch.float64)
    assert torch.equal(effective_number_weights(counts, beta=0.0), ones)
    torch.testing.assert_close(effective_number_weights(counts, beta=1e-15), ones)
    inverse = 1 / torch.tensor(counts, dtype=torch.float64)
    torch.testing.assert_close(
        effective_number_weights(counts, beta=1 - 2**-50), inverse / inverse.sum() * len(counts), rtol=1e-6, atol=0.0
    )


def test_huge_counts() -> None:
    """Beyond 1 / (1 - beta) examples a class has all the effective ones there are; margins keep falling."""
    counts = [10**18, 10**9, 10**6]
    torch.testing.assert_close(effective_number_weights(counts), torch.ones(3, dtype=torch.float64))
    rare = effective_number_weights([*counts, 1])
    assert (rare / rare[3]).tolist() == pytest.approx([1e-4, 1e-4, 1e-4, 1.0])
    assert (ldam_margins([10**18, 10**10]) / 0.5).tolist() == pytest.approx([0.01, 1.0])


@pytest.mark.parametrize("counts", [[5, 0, 2], [5, -1], [], [[1, 2], [3, 4]], [float("nan"), 1.0]])
@pytest.mark.parametrize(
    "use",
    [
        ldam_margins,
        effective_number_weights,
        LDAMLoss,
        LDAMHingeLoss,
        lambda counts: DeferredReweighting(counts, start_epoch=1),
    ],
)
def test_classes_without_examples_are_refused(use: Callable[..., object], counts: list[int]) -> None:
    for given_as in (counts, torch.tensor(counts)):
        with pytest.raises(ValueError, match="wanted one positive count for each class"):
            use(given_as)


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"max_margin is -0\.1"):
        ldam_margins([1, 2], max_margin=-0.1)
    for beta in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"beta is .*; wanted a number in \[0, 1\)"):
            effective_number_weights([1, 2], beta=beta)


# --- the cosine head ------------------------------------------------------------------------------------------------


@given(tensors((3, 4), -10.0, 10.0), tensors((4, 5), -10.0, 10.0))
def test_normalized_linear_is_the_cosine(input: Tensor, weight: Tensor) -> None:
    input, weight = (torch.where(x.abs() < 0.1, 0.1, x) for x in (input, weight))
    output = with_weight(weight)(input)
    assert (output.abs() <= 1 + 1e-12).all()
    torch.testing.assert_close(output, F.cosine_similarity(input[:, :, None], weight, dim=1))


@given(tensors((3, 4), 0.1, 10.0), tensors((4, 5), 0.1, 10.0), st.floats(1e-3, 1e3))
def test_normalized_linear_does_not_see_lengths(input: Tensor, weight: Tensor, factor: float) -> None:
    output = with_weight(weight)(input)
    torch.testing.assert_close(with_weight(weight)(factor * input), output)
    torch.testing.assert_close(with_weight(factor * weight)(input), output)


@given(tensors((4,), 0.1, 10.0), tensors((4, 1), 0.1, 10.0))
def test_normalized_linear_turns_features_only(input: Tensor, weight: Tensor) -> None:
    """The gradient of the cosine is (w/|w| - cos x/|x|) / |x|: at a right angle to the features."""
    layer = with_weight(weight)
    gradient = gradient_of(lambda x: layer(x).sum(), input)
    unit, direction = input / input.norm(), weight[:, 0] / weight.norm()
    torch.testing.assert_close(gradient, (direction - direction @ unit * unit) / input.norm())
    torch.testing.assert_close(gradient @ input, torch.tensor(0.0, dtype=torch.float64))


def test_normalized_linear_gives_zero_for_a_zero_vector() -> None:
    layer = NormalizedLinear(3, 2)
    input = torch.zeros(1, 3, requires_grad=True)
    output = layer(input)
    LDAMLoss([10, 1])(output, torch.tensor([1])).backward()
    assert torch.equal(output, torch.zeros(1, 2))
    assert input.grad.isfinite().all()
    assert layer.weight.grad.isfinite().all()


def test_normalized_linear_starts_with_unit_columns() -> None:
    layer = NormalizedLinear(7, 5)
    torch.testing.assert_close(layer.weight.norm(dim=0), torch.ones(5))
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    before = layer.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before)


# --- deferral -------------------------------------------------------------------------------------------------------


def test_deferred_weights_reach_the_loss_and_leave_it() -> None:
    counts = [1000, 50, 10]
    loss, schedule = LDAMLoss(counts), DeferredReweighting(counts, start_epoch=3, beta=0.999)
    input, target = torch.tensor([[0.5, 0.1, 0.2], [0.3, 0.4, 0.6], [0.1, 0.2, 0.3]]), torch.tensor([0, 1, 2])
    shifted = 30 * shift(input, target, loss.margins)
    plain = F.cross_entropy(shifted, target)
    weighted = F.cross_entropy(shifted, target, weight=effective_number_weights(counts, beta=0.999).float())
    assert not torch.isclose(plain, weighted)
    for epoch, expected in [(0, plain), (2, plain), (3, weighted), (9, weighted), (0, plain)]:
        schedule.step(epoch, loss)
        torch.testing.assert_close(loss(input, target), expected)
    assert schedule.weight(2) is None
    torch.testing.assert_close(schedule.weight(3), effective_number_weights(counts, beta=0.999))


def test_a_set_weight_follows_the_module() -> None:
    loss = LDAMLoss([3, 1]).double()
    loss.set_weight(torch.tensor([1.0, 2.0]))
    assert loss.weight.dtype == torch.float64
    assert "weight" in loss.state_dict()


@pytest.mark.parametrize(("beta", "shares"), [(0.0, [0.9, 0.09, 0.01]), (1 - 2**-50, [1 / 3, 1 / 3, 1 / 3])])
def test_deferred_sampling_frequencies(beta: float, shares: list[float]) -> None:
    """A class is drawn n_j w_j / sum_i n_i w_i of the time: as it comes for beta 0, evenly for beta towards 1."""
    counts = torch.tensor([9000, 900, 100])
    check_sampling(counts, beta, torch.tensor(shares))


def test_deferred_sampling_between_the_limits() -> None:
    counts = torch.tensor([9000, 900, 100])
    mass = counts * effective_number_weights(counts, beta=0.999)
    check_sampling(counts, 0.999, mass / mass.sum())


def test_deferred_sampling_wants_every_class() -> None:
    with pytest.raises(ValueError, match="wanted one positive count for each class"):
        DeferredResampling(torch.tensor([0, 2, 2]), start_epoch=1)


# --- long-tailed data -----------------------------------------------------------------------------------------------


def test_the_profile_of_long_tailed_cifar() -> None:
    """CIFAR-10-LT with imbalance 100 and 10, as everyone uses them."""
    assert long_tailed_counts(5000, 10).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    tenth = long_tailed_counts(5000, 10, imbalance=10)
    assert tenth.tolist() == [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]


@given(st.integers(1, 10_000), st.integers(2, 30), st.integers(1, 200))
@example(49, 2, 49)  # 49 * (1 / 49) is 0.999...
def test_profiles(n_max: int, classes: int, imbalance: int) -> None:
    exponential = long_tailed_counts(n_max, classes, imbalance=imbalance).tolist()
    step = long_tailed_counts(n_max, classes, imbalance=imbalance, kind="step").tolist()
    assert exponential[0] == n_max
    assert exponential[-1] == n_max // imbalance
    assert exponential == sorted(exponential, reverse=True)
    for j, n in enumerate(exponential):
        assert n == pytest.approx(n_max * imbalance ** (-j / (classes - 1)), abs=1.0)
    assert step == [n_max] * (classes // 2) + [n_max // imbalance] * (classes - classes // 2)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=5), st.integers(0, 2**31), st.data())
def test_subsample_keeps_the_counts_asked_for(available: list[int], seed: int, data: st.DataObject) -> None:
    target = torch.arange(len(available)).repeat_interleave(torch.tensor(available))
    target = target[torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))]
    counts = [data.draw(st.integers(0, n)) for n in available]
    kept, again = (
        subsample_long_tailed(target, asked, torch.Generator().manual_seed(seed))
        for asked in (counts, torch.tensor(counts))
    )
    assert torch.bincount(target[kept], minlength=len(counts)).tolist() == counts
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert torch.equal(kept, again)


def test_subsample_is_random() -> None:
    target = torch.zeros(100, dtype=torch.long)
    first, second = (subsample_long_tailed(target, [10], torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_long_tails_that_cannot_be_had_are_refused() -> None:
    target = torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match="counts wants 2 examples of class 1; target has 1"):
        subsample_long_tailed(target, [1, 2])
    with pytest.raises(ValueError, match="counts wants -1 examples of class 0; target has 2"):
        subsample_long_tailed(target, [-1, 1])
    for arguments, message in [
        ({"n_max": 0}, "n_max is 0"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"imbalance": 0.5}, "imbalance is 0.5"),
        ({"kind": "linear"}, "kind is 'linear'; wanted 'exp' or 'step'"),
    ]:
        with pytest.raises(ValueError, match=message):
            long_tailed_counts(**{"n_max": 10, "num_classes": 3, **arguments})


def shift(input: Tensor, target: Tensor, margins: Tensor) -> Tensor:
    """Logits less the margin of the label."""
    return input - margins * F.one_hot(target, input.shape[1])


def with_weight(weight: Tensor) -> NormalizedLinear:
    layer = NormalizedLinear(*weight.shape).double()
    layer.load_state_dict({"weight": weight})
    return layer


def check_sampling(counts: Tensor, beta: float, shares: Tensor) -> None:
    """Uniform without replacement first; then shares within four standard deviations."""
    target = torch.arange(len(counts)).repeat_interleave(counts)
    resampling = DeferredResampling(target, start_epoch=2, beta=beta, generator=torch.Generator().manual_seed(0))
    size = len(target)
    for epoch in (0, 1):
        order = list(resampling.sampler(epoch))
        assert order != sorted(order)
        assert sorted(order) == list(range(size))
    drawn = torch.bincount(target[list(resampling.sampler(2))], minlength=len(counts))
    assert drawn.sum() == size
    assert ((drawn / size - shares).abs() <= 4 * (shares * (1 - shares) / size).sqrt()).all()


def gradient_of(loss: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    gradient: Tensor = torch.func.grad(loss)(input)
    return gradient
