"""Dynamic bootstrapping: what it reduces to, soft and hard guesses, mixtures, the prior, the training procedure."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lossary.classification import (
    BootstrapSchedule,
    BootstrapTraining,
    dynamic_bootstrapping_loss,
    dynamic_bootstrapping_mixup_loss,
    mixup,
    uniform_prior_loss,
    weighted_mixup,
)
from tests.classification.strategies import seeded_batches, tensors

Batch = tuple[torch.Generator, Tensor, Tensor]
MODES = st.sampled_from(["hard", "soft"])


@st.composite
def noisy_batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels, probabilities of a wrong label and clean logits."""
    generator, input, target = draw(seeded_batches())
    clean = 5 * torch.randn(input.shape, generator=generator, dtype=torch.float64)
    return input, target, torch.rand(len(input), generator=generator, dtype=torch.float64), clean


@given(noisy_batches(), MODES, st.floats(0.1, 5.0))
def test_it_is_cross_entropy_with_a_mixed_label(batch: tuple[Tensor, ...], mode: str, temperature: float) -> None:
    input, target, wrong, clean = batch
    classes = input.shape[1]
    guess = F.one_hot(clean.argmax(1), classes) if mode == "hard" else (clean / temperature).softmax(1)
    label = (1 - wrong)[:, None] * F.one_hot(target, classes) + wrong[:, None] * guess
    for reduction in ("none", "mean", "sum"):
        loss = dynamic_bootstrapping_loss(
            input, target, wrong, clean, mode=mode, temperature=temperature, reduction=reduction
        )
        torch.testing.assert_close(loss, F.cross_entropy(input, label, reduction=reduction))


@given(seeded_batches(), MODES)
def test_ends(batch: Batch, mode: str) -> None:
    _, input, target = batch
    zeros, ones = torch.zeros(len(input)).double(), torch.ones(len(input)).double()
    torch.testing.assert_close(
        dynamic_bootstrapping_loss(input, target, zeros, mode=mode), F.cross_entropy(input, target)
    )
    own = F.cross_entropy(input, input.softmax(1) if mode == "soft" else input.argmax(1))
    torch.testing.assert_close(dynamic_bootstrapping_loss(input, target, ones, mode=mode), own)


def test_soft_becomes_hard() -> None:
    generator = torch.Generator().manual_seed(0)
    input, clean = torch.randn(2, 8, 5, generator=generator, dtype=torch.float64)
    target, wrong = torch.randint(5, (8,), generator=generator), torch.rand(8, generator=generator).double()
    hard = dynamic_bootstrapping_loss(input, target, wrong, clean)
    torch.testing.assert_close(
        dynamic_bootstrapping_loss(input, target, wrong, clean, mode="soft", temperature=1e-5), hard
    )


@given(noisy_batches(), MODES)
def test_no_gradient_into_guesses_and_probabilities(batch: tuple[Tensor, ...], mode: str) -> None:
    input, target, wrong, clean = (t.requires_grad_() if t.is_floating_point() else t for t in batch)
    dynamic_bootstrapping_loss(input, target, wrong, clean, mode=mode).backward()
    assert wrong.grad is None
    assert clean.grad is None
    guess = F.one_hot(clean.argmax(1), clean.shape[1]) if mode == "hard" else clean.softmax(1)
    label = (1 - wrong)[:, None] * F.one_hot(target, clean.shape[1]) + wrong[:, None] * guess
    torch.testing.assert_close(input.grad, (input.softmax(1) - label).detach() / len(input))
    own = input.detach().requires_grad_()
    dynamic_bootstrapping_loss(own, target, wrong, mode=mode).backward()  # the guess from the input itself
    fixed = input.detach().requires_grad_()
    dynamic_bootstrapping_loss(fixed, target, wrong, input.detach(), mode=mode).backward()
    torch.testing.assert_close(own.grad, fixed.grad)


def test_impossible_classes() -> None:
    input = torch.tensor([[0.0, -torch.inf, 1.0]], requires_grad=True)
    for mode in ("hard", "soft"):
        loss = dynamic_bootstrapping_loss(input, torch.tensor([1]), torch.tensor([1.0]), mode=mode)
        loss.backward()
        assert loss.isfinite()
        assert input.grad.isfinite().all()


@given(noisy_batches(), MODES, st.floats(0.0, 1.0))
def test_mixup_form(batch: tuple[Tensor, ...], mode: str, lam: float) -> None:
    input, target, wrong, clean = batch
    size = len(input)
    index = clean[:, 0].argsort()  # any permutation

    def single(order: Tensor) -> Tensor:
        return dynamic_bootstrapping_loss(input, target[order], wrong[order], clean[order], mode=mode, reduction="none")

    expected = lam * single(torch.arange(size)) + (1 - lam) * single(index)
    rows = dynamic_bootstrapping_mixup_loss(input, target, clean, wrong, index, lam=lam, mode=mode, reduction="none")
    torch.testing.assert_close(rows, expected)
    unmixed = dynamic_bootstrapping_mixup_loss(input, target, clean, wrong, index, lam=1.0, mode=mode)
    torch.testing.assert_close(unmixed, single(torch.arange(size)).mean())
    shares = wrong.flip(0)
    rows = dynamic_bootstrapping_mixup_loss(input, target, clean, wrong, index, lam=shares, mode=mode, reduction="none")
    torch.testing.assert_close(rows, shares * single(torch.arange(size)) + (1 - shares) * single(index))


def test_shares_by_vmap() -> None:
    generator = torch.Generator().manual_seed(0)
    input, clean = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    target, wrong, index = torch.tensor([0, 1, 2, 1]), torch.rand(4, generator=generator), torch.tensor([2, 3, 1, 0])
    shares = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)

    def loss(lam: Tensor | float) -> Tensor:
        return dynamic_bootstrapping_mixup_loss(input, target, clean, wrong, index, lam=lam)

    alone = torch.stack([loss(float(lam)) for lam in shares])
    torch.testing.assert_close(torch.func.vmap(loss)(shares), alone)


@given(seeded_batches())
def test_prior_is_a_divergence(batch: Batch) -> None:
    generator, input, _ = batch
    classes = input.shape[1]
    mean = input.softmax(1).mean(0)
    uniform = torch.full((classes,), 1 / classes, dtype=torch.float64)
    torch.testing.assert_close(uniform_prior_loss(input), (uniform * (uniform / mean).log()).sum())
    assert uniform_prior_loss(input) >= -1e-12
    prior = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.01
    prior = prior / prior.sum()
    torch.testing.assert_close(uniform_prior_loss(input, prior=prior), (prior * (prior / mean).log()).sum())
    torch.testing.assert_close(uniform_prior_loss(mean.log()[None], prior=mean), torch.zeros(()).double())
    weight = torch.rand(len(input), generator=generator, dtype=torch.float64) + 0.1
    mean = (weight[:, None] * input.softmax(1)).sum(0) / weight.sum()
    torch.testing.assert_close(
        uniform_prior_loss(input, sample_weight=weight), (uniform * (uniform / mean).log()).sum()
    )


def test_prior_of_nought_and_grids() -> None:
    input = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    flat = input.movedim(1, -1).reshape(-1, 4)
    torch.testing.assert_close(uniform_prior_loss(input), uniform_prior_loss(flat))
    impossible = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    loss = uniform_prior_loss(impossible, prior=torch.tensor([0.5, 0.5, 0.0]))
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(0.0))
    assert impossible.grad.isfinite().all()
    assert uniform_prior_loss(impossible) == torch.inf
    assert uniform_prior_loss(torch.zeros(0, 3)).isnan()


@given(tensors((4, 3), -5.0, 5.0), tensors((4,), 0.0, 1.0), st.permutations(range(4)))
def test_weighted_mixup(x: Tensor, wrong: Tensor, order: list[int]) -> None:
    index = torch.tensor(order)
    own, other = 1 - wrong, 1 - wrong[index]
    both = (own + other)[:, None]
    expected = (own[:, None] * x + other[:, None] * x[index]) / both
    mixed = weighted_mixup(x, wrong, index)
    torch.testing.assert_close(mixed, torch.where(both > 0, expected, (x + x[index]) / 2))
    assert (mixed <= torch.maximum(x, x[index]) + 1e-12).all()
    assert (mixed >= torch.minimum(x, x[index]) - 1e-12).all()


# --- the procedure --------------------------------------------------------------------------------------------------


def test_phases_of_the_paper() -> None:
    schedule = BootstrapSchedule()
    assert [schedule.phase(epoch) for epoch in (0, 104, 105, 299)] == ["warm-up", "warm-up", "bootstrap", "bootstrap"]
    dynamic = [schedule.phase(epoch, "dynamic") for epoch in (104, 105, 109, 110)]
    assert dynamic == ["warm-up", "dynamic", "dynamic", "bootstrap"]
    assert [schedule.learning_rate_factor(epoch) for epoch in (0, 99, 100, 249, 250)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )
    temperatures = [schedule.temperature(epoch) for epoch in range(110, 200)]
    assert temperatures[0] == 1
    assert temperatures[-1] == pytest.approx(0.001)
    assert schedule.temperature(299) == pytest.approx(0.001)
    steps = torch.tensor(temperatures).diff()
    torch.testing.assert_close(steps, steps[:1].expand(89), atol=1e-6, rtol=0)


@pytest.fixture
def fitted() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)).double()
    return model, torch.randn(40, 4, dtype=torch.float64), torch.randint(3, (40,))


@pytest.mark.parametrize("mixing", ["none", "static", "dynamic"])
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_every_phase_trains(fitted: tuple[nn.Module, Tensor, Tensor], mixing: str, mode: str) -> None:
    model, x, target = fitted
    schedule = BootstrapSchedule(1, dynamic_epochs=1, hard_epoch=4)
    training = BootstrapTraining(
        model, schedule=schedule, mixing=mixing, mode=mode, generator=torch.Generator().manual_seed(0)
    )
    for epoch in range(4):
        model.zero_grad()
        loss = training.loss(x, target, epoch)
        loss.backward()
        assert loss.isfinite()
        assert model[0].weight.grad.abs().sum() > 0
        training.fit_noise([(x[:25], target[:25]), (x[25:], target[25:])])
        assert model.training
    assert training.noise_probability(x, target).shape == (40,)


def test_looking_leaves_the_model_as_it_was(fitted: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, target = fitted
    before = copy.deepcopy(model.state_dict())
    training = BootstrapTraining(model)
    training.fit_noise([(x, target)])
    training.noise_probability(x, target)
    torch.testing.assert_close(model.state_dict(), before)
    assert all(module.training for module in model.modules())


def test_a_bootstrapped_batch_by_hand(fitted: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, target = fitted
    model.eval()  # without dropout, so that forwards agree
    training = BootstrapTraining(
        model, schedule=BootstrapSchedule(0), regularization=0.7, generator=torch.Generator().manual_seed(5)
    )
    training.fit_noise([(x, target)])
    loss = training.loss(x, target, 0)
    mixed, _, index, lam = mixup(x, torch.arange(40), alpha=32.0, generator=torch.Generator().manual_seed(5))
    clean, logits = model(x), model(mixed)
    wrong = training.noise_model.noise_probability(F.cross_entropy(clean, target, reduction="none"))
    expected = dynamic_bootstrapping_mixup_loss(logits, target, clean, wrong, index, lam=lam, mode="hard")
    torch.testing.assert_close(loss, expected + 0.7 * uniform_prior_loss(logits))
    plain = BootstrapTraining(model, mixing="none")
    torch.testing.assert_close(plain.loss(x, target, 0), F.cross_entropy(clean, target))


def test_what_is_refused() -> None:
    input, target, wrong = torch.zeros(3, 2), torch.tensor([0, 1, 0]), torch.full((3,), 0.5)
    for arguments, message in [
        ({"mode": "medium"}, "mode is 'medium'"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"noise_probability": torch.zeros(2)}, r"noise_probability has shape \(2,\); wanted \(3,\)"),
        ({"noise_probability": 2 * torch.ones(3)}, r"noise_probability contains 2; wanted values in \[0, 1\]"),
        ({"clean_logits": torch.zeros(3, 3)}, r"clean_logits has shape \(3, 3\); wanted \(3, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            dynamic_bootstrapping_loss(**{"input": input, "target": target, "noise_probability": wrong, **arguments})
    for arguments, message in [
        ({"index": torch.arange(2)}, r"index has shape \(2,\); wanted \(3,\)"),
        ({"lam": 1.5}, "lam is 1.5"),
        ({"lam": torch.zeros(2)}, r"lam has shape \(2,\); wanted \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            dynamic_bootstrapping_mixup_loss(
                input, target, input, wrong, **{"index": torch.arange(3), "lam": 0.5, **arguments}
            )
    with pytest.raises(ValueError, match=r"prior has shape \(3,\); wanted \(2,\)"):
        uniform_prior_loss(input, prior=torch.ones(3) / 3)
    with pytest.raises(ValueError, match="prior contains 3"):
        uniform_prior_loss(input, prior=torch.tensor([3.0, -2.0]))
    for arguments, message in [({"mixing": "some"}, "mixing is 'some'"), ({"mode": "some"}, "mode is 'some'")]:
        with pytest.raises(ValueError, match=message):
            BootstrapTraining(nn.Linear(2, 2), **arguments)


def test_probabilities_near_one_keep_their_digits_beside_half_precision() -> None:
    x, wrong, index = torch.tensor([[0.0], [1.0]]).half(), torch.tensor([0.9999, 0.9998]), torch.tensor([1, 0])
    expected = torch.full((2, 1), 2 / 3).half()
    torch.testing.assert_close(weighted_mixup(x, wrong, index), expected, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match=r"noise_probability contains 1.9999; wanted values in \[0, 1\]"):
        weighted_mixup(x, wrong + 1, index)
    with pytest.raises(ValueError, match=r"lam contains 1.5; wanted values in \[0, 1\]"):
        dynamic_bootstrapping_mixup_loss(x, torch.tensor([0, 0]), x, wrong, index, lam=torch.tensor([1.5, 0.0]))
