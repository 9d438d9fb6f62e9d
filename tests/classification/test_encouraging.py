"""Encouraging loss: its slope, its tangent, its relation to the logits' gap, and the halted loss beside it."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.classification import encouraging_bonus, encouraging_loss, halted_cross_entropy_loss
from tests.classification.strategies import class_batches

LOG_END = st.floats(0.1, 0.99)


def label_probability(input: Tensor, target: Tensor) -> Tensor:
    return input.softmax(1).gather(1, target[:, None])[:, 0]


@given(class_batches(), LOG_END, st.floats(0.0, 1.0))
def test_it_is_cross_entropy_plus_the_bonus(batch: tuple[Tensor, Tensor], log_end: float, smoothing: float) -> None:
    """Smoothing is cross-entropy's alone, class weights are on both."""
    input, target = batch
    weight = torch.linspace(0.5, 2.0, input.shape[1]).double()
    options = {"weight": weight, "label_smoothing": smoothing, "reduction": "none"}
    bonus = encouraging_loss(input, target, log_end=log_end, **options) - F.cross_entropy(input, target, **options)
    expected = weight[target] * encouraging_bonus(label_probability(input, target), log_end=log_end)
    torch.testing.assert_close(bonus, expected, atol=1e-7, rtol=1e-6)


@given(class_batches(), LOG_END)
def test_gradient(batch: tuple[Tensor, Tensor], log_end: float) -> None:
    """-1 in the label's logit up to log_end, shared among the others in proportion to their probability."""
    input, target = batch
    gradient = torch.func.grad(lambda z: encouraging_loss(z, target, log_end=log_end, reduction="sum"))(input)
    p = label_probability(input, target)
    label_slope = torch.where(p <= log_end, -1.0, -(1 - p) * (1 + p / (1 - log_end)))
    others = input.masked_fill(F.one_hot(target, input.shape[1]).bool(), -torch.inf).softmax(1)
    expected = -label_slope[:, None] * others + label_slope[:, None] * F.one_hot(target, input.shape[1])
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-6)


@given(class_batches(bound=5.0))
def test_aggressive_form_is_the_gap_to_the_others(batch: tuple[Tensor, Tensor]) -> None:
    input, target = batch
    others = input.masked_fill(F.one_hot(target, input.shape[1]).bool(), -torch.inf).logsumexp(1)
    gap = others - input.gather(1, target[:, None])[:, 0]
    loss = encouraging_loss(input, target, log_end=1.0, reduction="none")
    live = 1 - label_probability(input, target) >= 1e-5
    torch.testing.assert_close(loss[live], gap[live])
    p = label_probability(input, target)
    low = p <= 0.75
    torch.testing.assert_close(encouraging_loss(input, target, reduction="none")[low], gap[low])


@pytest.mark.parametrize("log_end", [0.3, 0.5, 0.75, 0.999])
def test_bonus_is_smooth_at_log_end(log_end: float) -> None:
    p = torch.tensor([log_end - 1e-7, log_end + 1e-7], dtype=torch.float64, requires_grad=True)
    bonus = encouraging_bonus(p, log_end=log_end)
    (slope,) = torch.autograd.grad(bonus.sum(), p)
    assert (bonus[0] - bonus[1]).item() == pytest.approx(2e-7 / (1 - log_end), rel=1e-3)
    assert slope[0].item() == pytest.approx(slope[1].item(), rel=1e-3)


@given(class_batches(), LOG_END, st.floats(0.0, 0.5))
def test_falls_with_log_end(batch: tuple[Tensor, Tensor], log_end: float, more: float) -> None:
    input, target = batch
    lower, upper = (
        encouraging_loss(input, target, log_end=e, eps=1e-12, reduction="none")
        for e in (min(log_end + more, 1.0), log_end)
    )
    assert (lower <= upper + 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_end", [0.75, 1.0, torch.tensor(0.75), torch.tensor(1.0)])
def test_a_sure_example_has_the_least_loss(log_end: Tensor | float, dtype: torch.dtype) -> None:
    least = math.log(0.25) - 1 if float(log_end) < 1 else math.log(1e-5)
    input = torch.tensor([[200.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    value = encouraging_loss(input, torch.tensor([0]), log_end=log_end)
    assert value.item() == pytest.approx(least, rel=1e-6)
    value.backward()
    assert input.grad.isfinite().all()
    p = torch.tensor([1.0, 0.0], dtype=dtype, requires_grad=True)
    bonus = encouraging_bonus(p, log_end=log_end)
    torch.testing.assert_close(bonus, torch.tensor([least, 0.0], dtype=dtype))
    (slope,) = torch.autograd.grad(bonus.sum(), p)
    torch.testing.assert_close(slope, torch.tensor([-4.0 if float(log_end) < 1 else 0.0, -1.0], dtype=dtype))
    assert encouraging_loss(torch.zeros(1, 2, dtype=dtype), torch.tensor([1]), log_end=log_end).item() == 0


@pytest.mark.parametrize("gap", [5.0, 14.0, 18.0])
def test_float32_keeps_the_bonus(gap: float) -> None:
    input = torch.tensor([[gap, 0.0, 0.0]])
    single, double = (encouraging_loss(z, torch.tensor([0]), log_end=1.0, eps=1e-30) for z in (input, input.double()))
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=0)


@given(class_batches(), st.floats(0.1, 1.0))
def test_halted_loss_lets_go(batch: tuple[Tensor, Tensor], boundary: float) -> None:
    input, target = batch
    p = label_probability(input, target)
    loss = halted_cross_entropy_loss(input, target, boundary=boundary, reduction="none")
    torch.testing.assert_close(loss, -p.clamp(max=boundary).log(), atol=1e-9, rtol=1e-7)
    gradient = torch.func.grad(lambda z: halted_cross_entropy_loss(z, target, boundary=boundary, reduction="sum"))(
        input
    )
    plain = torch.func.grad(lambda z: F.cross_entropy(z, target, reduction="sum"))(input)
    well = (p > boundary + 1e-9)[:, None]
    torch.testing.assert_close(gradient, torch.where(well, 0.0, plain), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, t: encouraging_loss(z, t, log_end=0.0), "log_end is 0.0"),
        (lambda z, t: encouraging_loss(z, t, eps=0.0), "eps is 0.0"),
        (lambda z, t: encouraging_loss(z, z.softmax(1)), "it is not defined for probabilities"),
        (lambda z, t: halted_cross_entropy_loss(z, t, boundary=1.5), "boundary is 1.5"),
    ],
)
def test_refuses(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3), torch.tensor([0, 1]))
