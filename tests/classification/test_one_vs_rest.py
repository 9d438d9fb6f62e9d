"""One-versus-rest losses: the binary sum, the selection by margin, the growth of margins, adversarial training."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from torch import Tensor, nn

from lossary.classification import (
    AdversarialTrainer,
    SwitchingOneVsRestLoss,
    TradesSOVRLoss,
    logit_margin_loss,
    one_vs_rest_loss,
    pgd_attack,
    switching_one_vs_rest_loss,
    trades_sovr_loss,
)
from tests.classification.strategies import seeded_batches

Batch = tuple[torch.Generator, Tensor, Tensor]
UNIT = st.floats(0.0, 1.0)


@given(seeded_batches())
def test_it_is_a_sum_of_binary_losses(batch: Batch) -> None:
    _, input, target = batch
    one_hot = F.one_hot(target, input.shape[1]).double()
    expected = F.binary_cross_entropy_with_logits(input, one_hot, reduction="none").sum(1)
    torch.testing.assert_close(one_vs_rest_loss(input, target, reduction="none"), expected)
    gradient = torch.func.grad(lambda z: one_vs_rest_loss(z, target, reduction="sum"))(input)
    torch.testing.assert_close(gradient, input.sigmoid() - one_hot)


def test_values_at_nought_and_shift() -> None:
    assert one_vs_rest_loss(torch.zeros(1, 7), torch.tensor([3])).item() == pytest.approx(7 * math.log(2))
    target = torch.tensor([0])
    input = torch.tensor([[1.0, 0.0]])
    assert one_vs_rest_loss(input + 1, target) != one_vs_rest_loss(input, target)
    huge = torch.tensor([[1e4, -1e4, -1e4]])
    assert one_vs_rest_loss(huge, target) == 0
    assert one_vs_rest_loss(-huge, target) == 3e4


@given(seeded_batches(), UNIT)
def test_convex(batch: Batch, share: float) -> None:
    generator, input, target = batch
    other = 5 * torch.randn(input.shape, generator=generator, dtype=torch.float64)
    for loss in (one_vs_rest_loss, logit_margin_loss):
        between = loss(share * input + (1 - share) * other, target, reduction="none")
        chord = share * loss(input, target, reduction="none") + (1 - share) * loss(other, target, reduction="none")
        assert (between <= chord + 1e-9).all()


@given(seeded_batches())
def test_margin(batch: Batch) -> None:
    _, input, target = batch
    for row, label, value in zip(input, target, logit_margin_loss(input, target), strict=True):
        others = [float(z) for k, z in enumerate(row) if k != label]
        assert value == pytest.approx(max(others) - float(row[label]))
    torch.testing.assert_close(
        logit_margin_loss(input, target) > 0, (input.argmax(1) != target) & (logit_margin_loss(input, target) != 0)
    )


@given(seeded_batches(), UNIT, st.floats(0.0, 3.0))
def test_the_hardest_are_switched(batch: Batch, fraction: float, weight: float) -> None:
    generator, input, target = batch
    selection = 5 * torch.randn(input.shape, generator=generator, dtype=torch.float64)
    for looked_at, given_as in ((input, None), (selection, selection)):
        rows = F.cross_entropy(input, target, reduction="none")
        hardest = sorted(range(len(input)), key=lambda i: -float(logit_margin_loss(looked_at, target)[i]))
        for i in hardest[: math.floor(fraction * len(input) + 1e-9)]:
            rows[i] = weight * one_vs_rest_loss(input, target, reduction="none")[i]
        options = {"fraction": fraction, "weight": weight, "selection_input": given_as}
        torch.testing.assert_close(switching_one_vs_rest_loss(input, target, reduction="none", **options), rows)
        torch.testing.assert_close(switching_one_vs_rest_loss(input, target, **options), rows.mean())


@given(seeded_batches())
def test_ends_and_order(batch: Batch) -> None:
    generator, input, target = batch
    torch.testing.assert_close(switching_one_vs_rest_loss(input, target, fraction=0.0), F.cross_entropy(input, target))
    torch.testing.assert_close(
        switching_one_vs_rest_loss(input, target, fraction=1.0, weight=1.0), one_vs_rest_loss(input, target)
    )
    order = torch.randperm(len(input), generator=generator)
    rows = switching_one_vs_rest_loss(input, target, reduction="none")
    torch.testing.assert_close(switching_one_vs_rest_loss(input[order], target[order], reduction="none"), rows[order])


@pytest.mark.parametrize(("fraction", "size"), [(0.3, 10), (0.7, 10), (0.1, 30), (0.29, 100), (0.58, 50)])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_no_row_is_lost_to_rounding(fraction: float, size: int, as_tensor: bool) -> None:
    input = torch.linspace(-1, 1, size)[:, None] * torch.tensor([1.0, -1.0])
    rows = switching_one_vs_rest_loss(
        input,
        torch.zeros(size, dtype=torch.long),
        fraction=torch.tensor(fraction) if as_tensor else fraction,
        weight=0.0,
        reduction="none",
    )
    assert (rows == 0).sum() == round(fraction * size)
    assert (rows[: round(fraction * size)] == 0).all()


def test_equal_margins_go_to_the_earlier_rows() -> None:
    rows = switching_one_vs_rest_loss(
        torch.zeros(5, 3), torch.zeros(5, dtype=torch.long), fraction=0.4, weight=0.0, reduction="none"
    )
    assert (rows == 0).tolist() == [True, True, False, False, False]


def test_ignored_rows_take_no_place_and_weights_split_the_last_one() -> None:
    input = torch.tensor([[0.0, 9.0], [0.0, 3.0], [0.0, 2.0], [0.0, 1.0]])
    target = torch.tensor([-100, 0, 0, 0])
    rows = switching_one_vs_rest_loss(input, target, fraction=0.34, weight=0.0, reduction="none")
    assert (rows == 0).tolist() == [True, True, False, False]
    times = torch.tensor([1.0, 1.0, 2.0, 1.0])
    rows = switching_one_vs_rest_loss(
        input, target, fraction=0.5, weight=0.0, sample_weight=times, reduction="none"
    )  # two of four: the second row and half of the third
    cross_entropy = F.cross_entropy(input, target, reduction="none")
    torch.testing.assert_close(rows, cross_entropy * torch.tensor([0.0, 0.0, 1.0, 1.0]))


@given(seeded_batches(), UNIT, st.floats(0.0, 3.0), st.floats(0.0, 8.0))
def test_trades_form(batch: Batch, fraction: float, weight: float, beta: float) -> None:
    generator, clean, target = batch
    adversarial = clean + torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    divergence = F.kl_div(adversarial.log_softmax(1), clean.softmax(1), reduction="batchmean")
    switched = switching_one_vs_rest_loss(clean, target, fraction=fraction, weight=weight, selection_input=adversarial)
    loss = trades_sovr_loss(clean, adversarial, target, fraction=fraction, weight=weight, beta=beta)
    torch.testing.assert_close(loss, switched + beta * divergence)


# --- margins grow twice as fast --------------------------------------------------------------------------------------

CLASSES = 10


def margin_after(time: float, loss_gradient: object) -> float:
    """Margin of logits that follow a loss's negative gradient from 0, integrated in the log of time."""

    def slope(log_time: float, z: object) -> object:
        return -math.exp(log_time) * loss_gradient(torch.tensor(z)[None])[0].numpy()

    start = -loss_gradient(torch.zeros(1, CLASSES).double())[0].numpy() * 1e-6
    path = solve_ivp(slope, (math.log(1e-6), math.log(time)), start, rtol=1e-8, atol=1e-10, method="LSODA")
    return float(path.y[0, -1] - path.y[1, -1])


@pytest.mark.parametrize("time", [1e2, 1e6])
def test_gradient_flow_follows_the_theorem(time: float) -> None:
    target = torch.tensor([0])
    ce = margin_after(time, torch.func.grad(lambda z: F.cross_entropy(z, target)))
    ovr = margin_after(time, torch.func.grad(lambda z: one_vs_rest_loss(z, target)))
    exact_ce = brentq(lambda m: math.exp(m) + 9 * m - 10 * time - 1, 0, 50)
    exact_ovr = 2 * brentq(lambda z: z + math.exp(z) - time - 1, 0, 50)
    assert ce == pytest.approx(exact_ce, rel=1e-4)
    assert ovr == pytest.approx(exact_ovr, rel=1e-4)
    if time == 1e6:
        assert (ovr, ce) == pytest.approx((27.631, 16.118), abs=2e-3)
        assert ovr / ce > 1.7


# --- adversarial training ---------------------------------------------------------------------------------------------


@pytest.fixture
def batch_and_model() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
    return model, torch.rand(16, 6), torch.randint(3, (16,))


def test_the_trainer_attacks_then_takes_the_loss(batch_and_model: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = batch_and_model
    options = {"epsilon": 0.1, "step_size": 0.03, "steps": 4, "clip_range": (0.0, 1.0)}
    trainer = AdversarialTrainer(
        model, SwitchingOneVsRestLoss(0.5, 0.3), generator=torch.Generator().manual_seed(1), **options
    )
    model.eval()  # so that both forwards agree
    loss = trainer.loss(x, y)
    perturbed = pgd_attack(
        model,
        x,
        lambda logits: F.cross_entropy(logits, y, reduction="none"),
        generator=torch.Generator().manual_seed(1),
        **options,
    )
    torch.testing.assert_close(loss, switching_one_vs_rest_loss(model(perturbed), y, fraction=0.5, weight=0.3))
    assert (perturbed - x).abs().max() <= 0.1 + 1e-6
    assert F.cross_entropy(model(perturbed), y) > F.cross_entropy(model(x), y)
    loss.backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_batch_statistics_are_of_the_loss_alone(batch_and_model: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = batch_and_model
    AdversarialTrainer(model, nn.CrossEntropyLoss()).loss(x, y)
    assert model[1].num_batches_tracked == 1
    assert model.training
    AdversarialTrainer(model, TradesSOVRLoss(), attack="kl", with_clean=True).loss(x, y).backward()
    assert model[1].num_batches_tracked == 3


def test_the_divergence_is_ascended(batch_and_model: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = batch_and_model
    model.eval()
    trainer = AdversarialTrainer(
        model, TradesSOVRLoss(), attack="kl", with_clean=True, epsilon=0.1, step_size=0.03, steps=5
    )
    perturbed = trainer.perturb(x, y)
    noise = (x + 0.1 * (2 * torch.rand(x.shape) - 1)).clamp(0, 1)
    clean = model(x).softmax(1)
    moved, random = (
        F.kl_div(model(inputs).log_softmax(1), clean, reduction="batchmean") for inputs in (perturbed, noise)
    )
    assert moved > 2 * random


def test_what_is_refused() -> None:
    input, target = torch.zeros(3, 2), torch.tensor([0, 1, 0])
    for arguments, message in [
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"weight": -1.0}, r"weight is -1\.0"),
        (
            {"weight": torch.ones(2)},
            r"weight has shape \(2,\); wanted \(\), a number; the weights of classes",
        ),
        ({"class_weight": torch.ones(3)}, r"class_weight has shape \(3,\); wanted \(2,\)"),
        ({"selection_input": torch.zeros(3, 3)}, r"selection_input has shape \(3, 3\); wanted \(3, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            switching_one_vs_rest_loss(input, target, **arguments)
    with pytest.raises(ValueError, match="input has one class"):
        logit_margin_loss(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"adversarial_input has shape \(3, 3\); wanted \(3, 2\)"):
        trades_sovr_loss(input, torch.zeros(3, 3), target)
    with pytest.raises(ValueError, match="beta is -1"):
        trades_sovr_loss(input, input, target, beta=-1.0)
    with pytest.raises(ValueError, match="attack is 'all'"):
        AdversarialTrainer(nn.Linear(2, 2), nn.CrossEntropyLoss(), attack="all")
