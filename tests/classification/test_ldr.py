"""Label-distributionally robust losses: their limits, the worst case by brute force, temperatures and their state."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

from lossary.classification import (
    ALDRKLLoss,
    LDRKLLoss,
    aldr_kl_loss,
    ldr_kl_loss,
    ldr_loss,
    normalize_logits,
)
from tests.classification.strategies import class_batches

TEMPERATURE = st.floats(0.05, 50.0)
MARGIN = st.floats(0.0, 2.0)
KINDS = ["none", "softplus", "l1", "softplus_l1"]


def gaps(input: Tensor, target: Tensor, margin: float) -> Tensor:
    others = 1 - F.one_hot(target, input.shape[1]).double()
    return input - input.gather(1, target[:, None]) + margin * others


@given(class_batches())
def test_one_and_no_margin_is_cross_entropy_less_a_constant(batch: tuple[Tensor, Tensor]) -> None:
    input, target = batch
    weight = torch.linspace(0.5, 2.0, input.shape[1], dtype=torch.float64)
    torch.testing.assert_close(
        ldr_kl_loss(input, target, weight=weight),
        F.cross_entropy(input, target, weight=weight) - math.log(input.shape[1]),
    )


@given(class_batches(), MARGIN)
def test_limits_in_temperature(batch: tuple[Tensor, Tensor], margin: float) -> None:
    input, target = batch
    delta = gaps(input, target, margin)
    options = {"margin": margin, "reduction": "none"}
    hinge, linear = delta.amax(1), delta.mean(1)
    for zero in (0.0, torch.tensor(0.0)):
        torch.testing.assert_close(ldr_kl_loss(input, target, temperature=zero, **options), hinge)
    cold = ldr_kl_loss(input, target, temperature=1e-4, **options)
    torch.testing.assert_close(cold, hinge, atol=1e-3, rtol=0)
    hot = ldr_kl_loss(input, target, temperature=1e7, **options)
    torch.testing.assert_close(hot, linear + delta.var(1, unbiased=False) / 2e7, atol=1e-9, rtol=1e-9)


@given(class_batches(), TEMPERATURE, MARGIN)
def test_gradient_is_the_worst_distribution(batch: tuple[Tensor, Tensor], temperature: float, margin: float) -> None:
    input, target = batch
    loss = lambda z: ldr_kl_loss(z, target, temperature=temperature, margin=margin, reduction="sum")  # noqa: E731
    worst = (gaps(input, target, margin) / temperature).softmax(1)
    torch.testing.assert_close(torch.func.grad(loss)(input), worst - F.one_hot(target, input.shape[1]))


@given(class_batches(), TEMPERATURE, st.floats(1.0, 10.0), MARGIN)
def test_falls_with_temperature(batch: tuple[Tensor, Tensor], temperature: float, factor: float, margin: float) -> None:
    input, target = batch
    cold, hot = (
        ldr_kl_loss(input, target, temperature=t, margin=margin, reduction="none")
        for t in (temperature, factor * temperature)
    )
    assert (hot <= cold + 1e-9).all()


@given(class_batches())
def test_hot_is_symmetric(batch: tuple[Tensor, Tensor]) -> None:
    """The sum over all labels does not depend on the logits: what makes the linear loss robust."""
    input, _ = batch
    classes = input.shape[1]
    scores = input[:1].expand(classes, -1)
    total = ldr_kl_loss(scores, torch.arange(classes), temperature=1e9, margin=1.0, reduction="sum")
    torch.testing.assert_close(total, torch.tensor(classes - 1.0, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1e3, 1e5])
def test_float32_keeps_its_digits_when_hot(temperature: float) -> None:
    input, target = torch.randn(8, 10, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    single = ldr_kl_loss(input, target, temperature=temperature, reduction="none")
    double = ldr_kl_loss(input.double(), target, temperature=temperature, reduction="none")
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-6)


def test_many_impossible_classes() -> None:
    """When nearly all mass is gone the mean of exponentials is tiny: its logarithm must still be right."""
    input = torch.full((1, 50_000), -1e4)
    input[0, :2] = torch.tensor([1.0, 0.0])
    value = ldr_kl_loss(input, torch.tensor([0]))
    exact = ldr_kl_loss(input.double(), torch.tensor([0]))
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("temperature", [0.0, 0.1, 1.0, 1e3])
def test_an_impossible_label_costs_infinity(temperature: float) -> None:
    input = torch.tensor([[-torch.inf, 0.0, 1.0]])
    assert ldr_kl_loss(input, torch.tensor([0]), temperature=temperature) == torch.inf


# --- capped worst cases ---------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(class_batches(bound=4.0), st.floats(0.2, 5.0), MARGIN, st.integers(1, 6))
def test_capped_worst_case_by_bisection(
    batch: tuple[Tensor, Tensor], temperature: float, margin: float, k: int
) -> None:
    """p_i = min(1/k, c exp(delta_i / temperature)) with c found by bisection gives the same maximum."""
    input, target = batch
    classes = input.shape[1]
    k = min(k, classes)
    options = {"temperature": temperature, "margin": margin, "constraint": "topk", "k": k}
    value = ldr_loss(input, target, reduction="none", **options)
    for row, delta in enumerate(gaps(input, target, margin).numpy()):
        shares = np.exp((delta - delta.max()) / temperature)
        mass = lambda log_c, shares=shares: np.minimum(1 / k, np.exp(log_c) * shares).sum() - 1  # noqa: E731
        log_c = optimize.brentq(mass, -10, 60) if k < classes else 60.0
        p = np.minimum(1 / k, np.exp(log_c) * shares)
        worst = p @ delta - temperature * (p * np.log(classes * p)).sum()
        assert value[row].item() == pytest.approx(worst, abs=1e-7)
        loss = lambda z, row=row: ldr_loss(z[None], target[row : row + 1], **options)  # noqa: E731
        one_hot = F.one_hot(target[row], classes)
        torch.testing.assert_close(torch.func.grad(loss)(input[row]), torch.tensor(p) - one_hot, atol=1e-6, rtol=1e-6)


@given(class_batches(), TEMPERATURE, MARGIN, st.integers(1, 6))
def test_capped_limits(batch: tuple[Tensor, Tensor], temperature: float, margin: float, k: int) -> None:
    input, target = batch
    k = min(k, input.shape[1])
    options = {"margin": margin, "reduction": "none"}
    delta = gaps(input, target, margin)
    plain = ldr_kl_loss(input, target, temperature=temperature, **options)
    torch.testing.assert_close(ldr_loss(input, target, temperature=temperature, **options), plain)
    capped = ldr_loss(input, target, temperature=temperature, constraint="topk", k=1, **options)
    torch.testing.assert_close(capped, plain)
    uniform = ldr_loss(input, target, temperature=temperature, constraint="topk", k=input.shape[1], **options)
    torch.testing.assert_close(uniform, delta.mean(1))
    cold = ldr_loss(input, target, temperature=0.0, constraint="topk", k=k, **options)
    torch.testing.assert_close(cold, delta.topk(k).values.mean(1))


# --- bounded logits ---------------------------------------------------------------------------------------------------


@given(class_batches())
def test_normalizations(batch: tuple[Tensor, Tensor]) -> None:
    input, _ = batch
    classes = input.shape[1]
    g = torch.log1p(input.exp())
    softplus = normalize_logits(input, kind="softplus")
    torch.testing.assert_close(softplus, g / g.mean(1, keepdim=True))
    torch.testing.assert_close(softplus.sum(1), torch.full((len(input),), float(classes)).double())
    torch.testing.assert_close(normalize_logits(input, kind="softplus_l1"), softplus)
    total = normalize_logits(input, kind="l1").abs().sum(1)
    torch.testing.assert_close(total[input.abs().sum(1) > 1e-6], softplus.sum(1)[input.abs().sum(1) > 1e-6])
    torch.testing.assert_close(normalize_logits(input, kind="none"), input)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
def test_normalized_losses_at_extreme_logits(kind: str, scale: float) -> None:
    """All logits at -1e4 too, where softplus itself is 0 in every class."""
    generator = torch.Generator().manual_seed(0)
    input = scale * torch.randn(6, 5, generator=generator).double()
    input[0] = input[0] - 10 * scale
    target = torch.tensor([0, 1, 2, 3, 4, 0])
    single = input.float().requires_grad_()
    value = ldr_kl_loss(single, target, normalize=kind, margin=0.1, reduction="none")
    torch.testing.assert_close(
        value.double(),
        ldr_kl_loss(single.detach().double(), target, normalize=kind, margin=0.1, reduction="none"),
        rtol=1e-4,
        atol=1e-5,
    )
    (gradient,) = torch.autograd.grad(value.sum(), single)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    loss = lambda z: ldr_kl_loss(z, target, normalize=kind, reduction="none")  # noqa: E731
    if scale < 1e4:
        assert torch.autograd.gradcheck(loss, input.requires_grad_())


@pytest.mark.parametrize("kind", ["softplus", "l1", "softplus_l1"])
def test_normalizations_of_zero_and_of_an_infinite_logit(kind: str) -> None:
    input = torch.zeros(3, 3)
    input[1:, 0] = torch.tensor([-torch.inf, torch.inf])
    input.requires_grad_()
    f = normalize_logits(input, kind=kind)
    torch.testing.assert_close(f[2], torch.tensor([3.0, 0.0, 0.0]))
    expected = torch.tensor([-3.0, 0.0, 0.0]) if kind == "l1" else torch.tensor([0.0, 1.5, 1.5])
    torch.testing.assert_close(f[1], expected)
    assert f[0].isfinite().all()
    f.sum().backward()
    assert input.grad.isfinite().all()


# --- a temperature for each sample ------------------------------------------------------------------------------------


@given(class_batches(), st.floats(1.1, 5.0), st.sampled_from([0.1, 1.0, 10.0]), st.sampled_from(KINDS))
def test_temperatures_stay_in_their_range(
    batch: tuple[Tensor, Tensor], alpha: float, temperature: float, kind: str
) -> None:
    input, target = batch
    index = torch.arange(len(input))
    temperatures = torch.full((6,), temperature, dtype=torch.float64)
    for _ in range(3):
        _, temperatures = aldr_kl_loss(
            input, target, index, temperatures, temperature=temperature, alpha=alpha, normalize=kind
        )
    assert (temperatures >= temperature * (1 - 1 / alpha) - 1e-9).all()
    assert (temperatures <= temperature * (1 + 1e-9)).all()
    assert (temperatures[len(input) :] == temperature).all()


@given(class_batches(), st.sampled_from([0.5, 1.0, 10.0]), st.sampled_from([1e9, math.inf]))
def test_a_stiff_pull_leaves_ldr(batch: tuple[Tensor, Tensor], temperature: float, alpha: float) -> None:
    input, target = batch
    options = {"temperature": temperature, "margin": 0.1, "normalize": "softplus", "reduction": "none"}
    index, start = torch.arange(len(input)), torch.full((4,), temperature, dtype=torch.float64)
    loss, temperatures = aldr_kl_loss(input, target, index, start, alpha=alpha, **options)
    torch.testing.assert_close(temperatures, start)
    torch.testing.assert_close(loss, ldr_kl_loss(input, target, **options), atol=1e-6, rtol=1e-6)


def test_repeated_steps_reach_the_stationary_temperature() -> None:
    """lambda = lambda_0 - lambda_0 KL(softmax(f / lambda), u) / (alpha log C), which maximises the loss in lambda."""
    input, target = torch.tensor([[2.0, 0.5, -1.0, 0.0]]).double(), torch.tensor([0])
    options = {"margin": 0.0, "alpha": 3.0, "temperature": 2.0, "normalize": "none"}
    temperatures = torch.tensor([2.0]).double()
    for _ in range(200):
        loss, temperatures = aldr_kl_loss(input, target, torch.tensor([0]), temperatures, **options)

    def objective(log_temperature: float) -> float:
        t = math.exp(log_temperature)
        pull = 3.0 * math.log(4) / (2 * 2.0) * (t - 2.0) ** 2
        return -(ldr_kl_loss(input, target, temperature=t).item() - pull)

    best = optimize.minimize_scalar(objective, bounds=(-2, 2), method="bounded", options={"xatol": 1e-9})
    assert temperatures.item() == pytest.approx(math.exp(best.x), abs=1e-3)  # p is mixed with 1e-5 of uniform
    assert loss.item() == pytest.approx(-best.fun, abs=1e-6)


def test_no_gradient_through_temperatures() -> None:
    input, target = torch.randn(3, 4).double(), torch.tensor([0, 1, 2])
    index, start = torch.arange(3), torch.ones(3).double()
    _, after = aldr_kl_loss(input, target, index, start, normalize="none")
    assert not after.requires_grad
    gradient = torch.func.grad(lambda z: aldr_kl_loss(z, target, index, start, normalize="none")[0])(input)
    fixed = torch.func.grad(
        lambda z: torch.stack([ldr_kl_loss(z[i], target[i], temperature=after[i], margin=0.1) for i in range(3)]).mean()
    )(input)
    torch.testing.assert_close(gradient, fixed)


def test_module_keeps_the_temperatures() -> None:
    loss = ALDRKLLoss(5, temperature=10.0, normalize="softplus_l1")
    input, target, index = torch.randn(3, 4), torch.tensor([0, -100, 2]), torch.tensor([4, 1, 0])
    input[2, 0] = torch.nan
    loss.eval()(input, target, index)
    assert (loss.temperatures == 10).all()
    loss.train()(input, target, index)
    assert loss.temperatures[4] < 10
    assert (loss.temperatures[:4] == 10).all()  # ignored, NaN, not in the batch
    assert loss.temperatures.dtype == torch.float32
    batched = torch.func.vmap(
        lambda z, t: torch.func.functional_call(loss.eval(), {"temperatures": t}, (z, target, index)), in_dims=(0, 0)
    )(torch.stack([input, input])[:, :, :].nan_to_num(), torch.stack([loss.temperatures, torch.full((5,), 10.0)]))
    assert batched.shape == (2,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, t: ldr_kl_loss(z, t, temperature=-1.0), "temperature is -1.0"),
        (lambda z, t: ldr_kl_loss(z, t, normalize="l2"), "normalize is 'l2'"),
        (lambda z, t: ldr_loss(z, t, constraint="topk"), "k is None; wanted a whole number from 1 to 3"),
        (lambda z, t: ldr_loss(z, t, constraint="topk", k=4), "k is 4"),
        (lambda z, t: ldr_loss(z, t, constraint="box"), "constraint is 'box'"),
        (lambda z, t: ALDRKLLoss(2, alpha=1.0), "alpha is 1.0"),
        (lambda z, t: ALDRKLLoss(2, temperature=0.0), "temperature is 0.0"),
        (lambda z, t: aldr_kl_loss(z, t, t, torch.ones(2), alpha=1.0), "alpha is 1.0"),
        (lambda z, t: ldr_kl_loss(z, t, margin=math.nan), "margin is nan"),
        (lambda z, t: ALDRKLLoss(0), "num_samples is 0"),
        (lambda z, t: ALDRKLLoss(2)(z, t, torch.tensor([0, 2])), "index has values from 0 to 2"),
        (lambda z, t: ALDRKLLoss(2)(z, t, torch.tensor([0])), r"index has shape \(1,\); wanted \(2,\)"),
        (lambda z, t: aldr_kl_loss(z, t, t, torch.ones(2, 2)), "temperatures has shape"),
    ],
)
def test_refuses(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3), torch.tensor([0, 1]))


def test_words_of_the_module() -> None:
    assert "temperature=10.0, margin=0.1, normalize='softplus'" in repr(LDRKLLoss(10.0, 0.1, "softplus"))
