"""RegMixup and mixup: what they reduce to, the draws, one forward for both halves, entropy."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lossary.classification import RegMixupLoss, mixup, predictive_entropy, regmixup_loss
from tests.classification.strategies import class_batches, seeded_batches, tensors

Batch = tuple[Tensor, Tensor]
UNIT = st.floats(0.0, 1.0)


@st.composite
def mixed_batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator, input, target = draw(seeded_batches())
    mixed = 5 * torch.randn(input.shape, generator=generator, dtype=torch.float64)
    return input, mixed, target, target[torch.randperm(len(target), generator=generator)]


@given(mixed_batches(), UNIT, st.floats(0.0, 3.0))
def test_it_is_cross_entropy_with_the_mixed_label(batch: tuple[Tensor, ...], lam: float, eta: float) -> None:
    input, mixed, target, other = batch
    classes = input.shape[1]
    label = lam * F.one_hot(target, classes) + (1 - lam) * F.one_hot(other, classes).double()
    for reduction in ("none", "mean", "sum"):
        expected = F.cross_entropy(input, target, reduction=reduction)
        expected = expected + eta * F.cross_entropy(mixed, label, reduction=reduction)
        loss = regmixup_loss(input, mixed, target, other, lam=lam, eta=eta, reduction=reduction)
        torch.testing.assert_close(loss, expected)
        normalized = regmixup_loss(input, mixed, target, other, lam=lam, eta=eta, normalize=True, reduction=reduction)
        torch.testing.assert_close(normalized, expected / (1 + eta))


@given(mixed_batches(), UNIT)
def test_normalized_is_the_mean_over_the_concatenated_batch(batch: tuple[Tensor, ...], lam: float) -> None:
    input, mixed, target, other = batch
    both, own, partner = torch.cat([input, mixed]), torch.cat([target, target]), torch.cat([target, other])
    expected = lam * F.cross_entropy(both, own) + (1 - lam) * F.cross_entropy(both, partner)
    torch.testing.assert_close(regmixup_loss(*batch, lam=lam, normalize=True), expected)


@given(mixed_batches(), UNIT)
def test_the_pair_may_be_swapped(batch: tuple[Tensor, ...], lam: float) -> None:
    input, mixed, target, other = batch
    there = regmixup_loss(input, mixed, target, other, lam=lam) - F.cross_entropy(input, target)
    back = regmixup_loss(input, mixed, other, target, lam=1 - lam) - F.cross_entropy(input, other)
    torch.testing.assert_close(there, back)


@given(mixed_batches(), UNIT, st.floats(0.1, 3.0))
def test_gradient_on_the_mixed_logits(batch: tuple[Tensor, ...], lam: float, eta: float) -> None:
    input, mixed, target, other = batch
    classes = input.shape[1]
    gradient = torch.func.grad(lambda z: regmixup_loss(input, z, target, other, lam=lam, eta=eta))(mixed)
    label = lam * F.one_hot(target, classes) + (1 - lam) * F.one_hot(other, classes)
    torch.testing.assert_close(gradient, eta * (mixed.softmax(1) - label) / len(input))


@given(mixed_batches(), st.data())
def test_a_share_for_each_row(batch: tuple[Tensor, ...], data: st.DataObject) -> None:
    lam = data.draw(tensors((len(batch[0]),), 0.0, 1.0))
    rows = [
        regmixup_loss(*(tensor[i : i + 1] for tensor in batch), lam=float(lam[i]), reduction="sum")
        for i in range(len(lam))
    ]
    torch.testing.assert_close(regmixup_loss(*batch, lam=lam, reduction="none"), torch.stack(rows))
    grid = [tensor.unsqueeze(-1) for tensor in batch]
    torch.testing.assert_close(regmixup_loss(*grid, lam=lam, reduction="none").squeeze(-1), torch.stack(rows))


def test_a_share_of_nought_silences_an_impossible_label() -> None:
    mixed = torch.tensor([[0.0, -torch.inf]], requires_grad=True)
    arguments = (torch.zeros(1, 2), mixed, torch.tensor([0]), torch.tensor([1]))
    loss = regmixup_loss(*arguments, lam=1.0)
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(2.0).log())
    assert mixed.grad.isfinite().all()
    assert regmixup_loss(*arguments, lam=0.5) == torch.inf


def test_weights_and_ignored_labels_act_on_their_own_term() -> None:
    input, mixed = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target, other = torch.tensor([0, 3, -100]), torch.tensor([-100, 0, 3])
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    ce = [
        F.cross_entropy(z, y, weight, reduction="none") for z, y in ((input, target), (mixed, target), (mixed, other))
    ]
    expected = ce[0] + 0.3 * ce[1] + 0.7 * ce[2]
    expected[2] = 0
    rows = regmixup_loss(input, mixed, target, other, lam=0.3, weight=weight, reduction="none")
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(
        regmixup_loss(input, mixed, target, other, lam=0.3, weight=weight), expected.sum() / (1 + 4)
    )


@pytest.mark.parametrize("alpha", [0.4, 1.0, 20.0])
def test_moments_of_the_share(alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.zeros(1, 1), torch.zeros(1)
    draws = torch.stack([mixup(x, y, alpha=alpha, generator=generator)[3] for _ in range(4000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(draws.mean() - 0.5) < 4 * (variance / 4000) ** 0.5
    assert draws.var() == pytest.approx(variance, rel=0.1)


def test_an_asymmetric_share() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.zeros(1, 1), torch.zeros(1)
    draws = torch.stack([mixup(x, y, alpha=3.0, beta=1.0, generator=generator)[3] for _ in range(2000)])
    assert draws.mean() == pytest.approx(0.75, abs=0.02)


@given(tensors((4, 2, 3), -5.0, 5.0), st.permutations(range(4)), tensors((4,), 0.0, 1.0))
def test_mixtures_lie_on_segments(x: Tensor, order: list[int], lam: Tensor) -> None:
    index = torch.tensor(order)
    mixed, target, permuted, _ = mixup(x, torch.arange(4), lam=lam, index=index)
    share = lam[:, None, None]
    torch.testing.assert_close(mixed, share * x + (1 - share) * x[index])
    assert torch.equal(target, torch.arange(4))
    assert torch.equal(permuted, index)
    assert torch.equal(mixup(x, lam=lam, index=index), mixed)
    assert torch.equal(mixup(x, lam=1.0, index=index), x)
    assert torch.equal(mixup(x, lam=0.0, index=index), x[index])
    constant = x[:1].expand(4, 2, 3)
    assert torch.equal(mixup(constant, lam=lam, index=index), constant)


def test_the_generator_decides() -> None:
    x, y = torch.randn(50, 3), torch.arange(50)
    first, again, other = (mixup(x, y, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[2], other[2])
    assert sorted(first[2].tolist()) == list(range(50))


def test_one_forward_normalizes_both_halves_together() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    twin = copy.deepcopy(model)
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    index = torch.tensor([3, 2, 1, 0, 5, 4])
    loss = RegMixupLoss(eta=0.7)(model, x, y, lam=0.6, index=index)
    both = twin(torch.cat([x, 0.6 * x + 0.4 * x[index]]))
    torch.testing.assert_close(loss, regmixup_loss(both[:6], both[6:], y, y[index], lam=0.6, eta=0.7))
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
    loss.backward()
    assert model[1].weight.grad.abs().sum() > 0


def test_the_module() -> None:
    model, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = RegMixupLoss(1.0, 0.5, True, weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1)
    value = loss(model, x, y, generator=torch.Generator().manual_seed(3))
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other(model, x, y, generator=torch.Generator().manual_seed(3)) == value
    assert "alpha=1.0, eta=0.5, normalize=True" in repr(loss)
    zero = loss(model, x, torch.full_like(y, -100), normalizer=3)
    assert zero == 0
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    index, lam = torch.tensor([3, 2, 1, 0, 5, 4]), torch.tensor(0.4)
    torch.testing.assert_close(compiled(model, x, y, lam=lam, index=index), loss(model, x, y, lam=lam, index=index))


@given(class_batches(bound=50.0))
def test_entropy(batch: Batch) -> None:
    input, _ = batch
    expected = torch.distributions.Categorical(logits=input).entropy()
    torch.testing.assert_close(predictive_entropy(input), expected)
    torch.testing.assert_close(predictive_entropy(input.unsqueeze(-1)), expected.unsqueeze(-1))
    torch.testing.assert_close(predictive_entropy(input[0]), expected[0])


def test_entropy_of_an_impossible_class() -> None:
    logits = torch.tensor([0.0, 0.0, -torch.inf], requires_grad=True)
    entropy = predictive_entropy(logits)
    entropy.backward()
    torch.testing.assert_close(entropy, torch.tensor(2.0).log())
    assert logits.grad.isfinite().all()


def test_what_is_refused() -> None:
    x, y = torch.zeros(3, 2), torch.tensor([0, 1, 0])
    for arguments, message in [
        ({"lam": 1.5}, r"lam is 1.5; wanted a number in \[0, 1\]"),
        ({"lam": torch.zeros(2)}, r"lam has shape \(2,\); wanted \(3,\)"),
        ({"lam": torch.tensor([0.5, 1.5, 0.0])}, r"lam contains 1.5; wanted values in \[0, 1\]"),
        ({"alpha": 0.0}, r"alpha is 0.0"),
        ({"alpha": float("inf")}, r"alpha is inf"),
        ({"beta": -1.0}, r"beta is -1.0"),
        ({"index": torch.arange(2)}, r"index has shape \(2,\); wanted \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            mixup(x, y, **arguments)
    with pytest.raises(TypeError, match=r"index has dtype torch\.bool"):
        mixup(x, y, index=y > 0)
    with pytest.raises(ValueError, match=r"lam has shape \(2,\); wanted \(\), one share for the one row"):
        regmixup_loss(x[0], x[0], y[0], y[0], lam=torch.rand(2))
    with pytest.raises(ValueError, match="lam contains 2"):
        regmixup_loss(x, x, y, y, lam=torch.tensor(2.0))
    with pytest.raises(ValueError, match="wanted one target for each of 3 examples"):
        mixup(x, y[:2])
    with pytest.raises(TypeError, match=r"x has dtype torch\.int64"):
        mixup(y, y)
    with pytest.raises(ValueError, match="eta is -1"):
        regmixup_loss(x, x, y, y, lam=0.5, eta=-1)
