"""DCO: closed forms and limits, the gradient's factor at any size, its forms for chains and steps, pass@N."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.language import (
    DCOLoss,
    LinearDCOLoss,
    dco_factor,
    dco_loss,
    dco_loss_from_logps,
    linear_dco_loss,
    pass_at_n,
    pass_at_n_unbiased,
    sequence_logps,
)

SEEDS = st.integers(0, 10_000)


def problem(seed: int = 0, rows: int = 5, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    input = scale * torch.randn(rows, 4, 3, generator=generator, dtype=torch.float64)
    head = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    return input, head, torch.randint(6, (rows, 4), generator=generator)


@pytest.mark.parametrize("seed", range(3))
def test_one_sample_is_cross_entropy(seed: int) -> None:
    input, head, target = problem(seed)
    target[0, 1:3] = -100
    logits = (input @ head.T).requires_grad_()
    ours = dco_loss(logits, target, N=1, reduction="sum")
    theirs = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


@given(SEEDS, st.sampled_from([1, 1.5, 2, 7, 64, 5000]))
def test_value_gradient_and_bounds(seed: int, n: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_p = (-5 * torch.rand(20, generator=generator, dtype=torch.float64).square()).requires_grad_()
    p = log_p.detach().exp()
    loss = dco_loss_from_logps(log_p, N=n, reduction="none")
    torch.testing.assert_close(loss, -torch.log(1 - (1 - p) ** n))
    (gradient,) = torch.autograd.grad(loss.sum(), log_p)
    torch.testing.assert_close(gradient, -n * p * (1 - p) ** (n - 1) / (1 - (1 - p) ** n))
    torch.testing.assert_close(-dco_factor(log_p, N=n), gradient)
    assert (loss <= -log_p + 1e-12).all()
    assert (loss >= (-log_p - math.log(n)).clamp(min=0) - 1e-12).all()
    assert (dco_loss_from_logps(log_p, N=n + 1, reduction="none") <= loss).all()
    in_order = loss[log_p.argsort()]
    assert (in_order.diff() <= 1e-12).all(), "falls with p"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 8, 1024, 10**9])
def test_against_exact_arithmetic(dtype: torch.dtype, n: int) -> None:
    """From p = 1 to sequences whose probability no float holds, and where N p is about 1."""
    mpmath = pytest.importorskip("mpmath")
    log_p = torch.tensor([0.0, -1e-6, -0.1, -0.7, -5, -15.3, -20.1, -22, -40, -90, -1000, 1e-3 - math.log(n)])
    log_p = torch.where(log_p > 0, -1.0, log_p).to(dtype).requires_grad_()
    with mpmath.workdps(500):
        p = [mpmath.exp(mpmath.mpf(a)) for a in log_p.tolist()]
        covered = [1 - (1 - x) ** n for x in p]
        loss = [float(-mpmath.log(c)) for c in covered]
        factor = [float(n * x * (1 - x) ** (n - 1) / c) for x, c in zip(p, covered, strict=True)]
    ours = dco_loss_from_logps(log_p, N=n, reduction="none")
    tolerance: dict[str, Any] = (
        {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
    )
    torch.testing.assert_close(ours, torch.tensor(loss, dtype=dtype), **tolerance)
    gradient = torch.autograd.grad(ours.sum(), log_p)[0]
    # At N p of about 1 rounding log p itself moves N p by 1e-7 of it times log N.
    tolerance["rtol"] *= 20
    torch.testing.assert_close(-gradient, torch.tensor(factor, dtype=dtype), **tolerance)
    torch.testing.assert_close(dco_factor(log_p, N=n), torch.tensor(factor, dtype=dtype), **tolerance)


def test_many_samples_of_a_rare_answer() -> None:
    c, n = 1.7, 10**12
    log_p = torch.tensor(math.log(c / n), dtype=torch.float64)
    torch.testing.assert_close(dco_loss_from_logps(log_p, N=n).item(), -math.log(-math.expm1(-c)))
    torch.testing.assert_close(dco_factor(log_p, N=n).item(), c / math.expm1(c))


def test_factor_is_a_constant_unless_asked() -> None:
    log_p = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    assert not dco_factor(log_p, N=4).requires_grad
    assert torch.autograd.gradcheck(lambda a: dco_factor(a, N=4, detach=False), log_p)
    assert torch.autograd.gradgradcheck(lambda a: dco_loss_from_logps(a, N=4), log_p)


@pytest.mark.parametrize(("n", "best"), [(2, 0.8), (5, 0.586), (200, 0.5)])
def test_best_confidence_of_two_outcomes(n: int, best: float) -> None:
    """With chance 0.8 for the first answer, the p that pass@N wants sinks towards 1/2."""
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    found = p[(0.8 * pass_at_n(p, n) + 0.2 * pass_at_n(1 - p, n)).argmax()].item() if n < 50 else None
    exact = 1 / (1 + (0.2 / 0.8) ** (1 / (n - 1)))
    assert found is None or abs(found - exact) < 1e-3
    assert abs(exact - best) < 2e-3


@pytest.mark.parametrize("normalize", ["none", "tokens"])
@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("chains", [False, True])
def test_linear_form(normalize: Any, segmented: bool, chains: bool) -> None:
    input, head, target = problem()
    target[1, 2:], target[2] = -100, -100
    bias = head[:, 0].clone()
    words: dict[str, Any] = {"N": 8, "normalize": normalize, "reduction": "none"}
    if segmented:
        words["segment"] = torch.tensor([0, 0, 1, 1]).expand(5, -1)
    if chains:
        words["success_rate"] = torch.tensor([0.0, 0.05, 0.02, 0.1, 0.3], dtype=torch.float64)
    ours = linear_dco_loss(input, head, target, bias, **words)
    torch.testing.assert_close(ours, dco_loss(input @ head.T + bias, target, **words))
    single = linear_dco_loss(input.float(), head.float(), target, bias.float(), **words)
    torch.testing.assert_close(single.double(), ours, rtol=1e-5, atol=1e-5)
    shifted = {name: value for name, value in words.items() if name != "segment"}
    for form in (
        linear_dco_loss(input, head, target, bias, shift=1, **shifted),
        dco_loss(input @ head.T + bias, target, shift=1, **shifted),
    ):
        torch.testing.assert_close(form, dco_loss((input @ head.T + bias)[:, :-1], target[:, 1:], **shifted))


def test_tokens_divide_each_row() -> None:
    input, head, target = problem()
    target[1, 2:] = -100
    logits = input @ head.T
    by_row = dco_loss(logits, target, N=8, reduction="none") / torch.tensor([4, 2, 4, 4, 4])
    torch.testing.assert_close(dco_loss(logits, target, N=8, normalize="tokens", reduction="none"), by_row)
    with pytest.raises(ValueError, match="normalize is 'rows'"):
        dco_loss(logits, target, N=8, normalize="rows")  # type: ignore[arg-type]


def test_chains_of_thought() -> None:
    """Cross-entropy of each chain by its question's factor; questions that are solved often enough are left out."""
    input, head, target = problem()
    logits, rate = (input @ head.T).requires_grad_(), torch.tensor([0.0, 1 / 64, 0.05, 0.1, 0.2], dtype=torch.float64)
    loss = dco_loss(logits, target, N=16, success_rate=rate)
    factor = 16 * rate * (1 - rate) ** 15 / (1 - (1 - rate) ** 16)
    factor[0], factor[4] = 1.0, 0.0
    expected = (factor * -sequence_logps(logits, target)).sum() / 4
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (loss, expected)))
    module = DCOLoss(16, threshold=0.01)
    torch.testing.assert_close(module(logits, target, success_rate=rate), -sequence_logps(logits[0], target[0]))
    with pytest.raises(ValueError, match="success_rate contains a value outside"):
        dco_loss(logits, target, N=16, success_rate=rate + 1)
    with pytest.raises(ValueError, match="success_rate has shape"):
        dco_loss(logits, target, N=16, success_rate=rate[:2])


def test_steps_of_a_proof_and_packed_rows() -> None:
    """Each step is a sequence of its own; packed or not, the sum is the same, and its gradient too."""
    input, head, target = problem(rows=1)
    logits = (input @ head.T).requires_grad_()
    packed = dco_loss(logits, target, N=8, segment=torch.tensor([[0, 0, 0, 2]]), reduction="sum")
    alone = dco_loss(logits[:, :3], target[:, :3], N=8) + dco_loss(logits[:, 3:], target[:, 3:], N=8)
    torch.testing.assert_close(packed, alone)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (packed, alone)))
    target[0, 3] = -100  # whatever number padding has
    padded = dco_loss(logits, target, N=8, segment=torch.tensor([[0, 0, 0, -1]]))
    torch.testing.assert_close(padded, dco_loss(logits[:, :3], target[:, :3], N=8))
    for form, start in ((dco_loss, (logits,)), (linear_dco_loss, (input, head))):
        moved = form(*start, target, N=8, segment=torch.tensor([[-1, 0, 3, 3]]), shift=1)
        expected = dco_loss(logits[:, :-1], target[:, 1:], N=8, segment=torch.tensor([[0, 1, 1]]))
        torch.testing.assert_close(moved, expected)
    module = LinearDCOLoss(8)
    segment = torch.tensor([[0, 1, 1, 0]])
    torch.testing.assert_close(
        module(input, head, target, segment=segment), dco_loss(logits, target, N=8, segment=segment)
    )
    with pytest.raises(ValueError, match="segment contains 4"):
        dco_loss(logits, target, N=8, segment=torch.tensor([[0, 4, 0, 0]]))
    with pytest.raises(ValueError, match="segment has shape"):
        dco_loss(logits, target, N=8, segment=torch.tensor([0]))
    with pytest.raises(TypeError, match="segment has dtype"):
        dco_loss(logits, target, N=8, segment=torch.zeros(1, 4))


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 12))
def test_unbiased_estimate(draws: int, correct: int, n: int) -> None:
    """The binomial formula in fractions; and its mean over draws is pass@N."""
    correct, n = min(correct, draws), min(n, draws)
    exact = 1 - Fraction(math.comb(draws - correct, n), math.comb(draws, n))
    assert pass_at_n_unbiased(correct, draws, n).item() == pytest.approx(float(exact), abs=1e-14)
    c, p = torch.arange(draws + 1), 0.3
    chance = torch.tensor([math.comb(draws, int(k)) * p ** int(k) * (1 - p) ** (draws - int(k)) for k in c])
    mean = (chance.double() * pass_at_n_unbiased(c, draws, n)).sum()
    torch.testing.assert_close(mean, pass_at_n(torch.tensor(p, dtype=torch.float64), n), atol=1e-6, rtol=0)


def test_estimate_of_very_many_draws() -> None:
    exact = 1 - Fraction(math.comb(10_000 - 3, 1000), math.comb(10_000, 1000))
    assert pass_at_n_unbiased(3, 10_000, 1000).item() == pytest.approx(float(exact), rel=1e-12)
    with pytest.raises(ValueError, match="draws contains 4"):
        pass_at_n_unbiased(torch.tensor([1, 2]), torch.tensor([4, 9]), 5)
    with pytest.raises(ValueError, match="correct contains"):
        pass_at_n_unbiased(6, 5, 2)
    with pytest.raises(ValueError, match="N is 0"):
        pass_at_n_unbiased(1, 5, 0)


def test_pass_at_n_at_the_ends() -> None:
    p = torch.tensor([0.0, 1e-9, 0.3, 0.5, 1.0], requires_grad=True)
    value = pass_at_n(p, 100)
    torch.testing.assert_close(value, torch.tensor([0.0, 1e-7, 1.0, 1.0, 1.0]), rtol=1e-5, atol=1e-12)
    (gradient,) = torch.autograd.grad(value.sum(), p)
    assert gradient[0] == 100
    assert gradient[-1] == 0
    assert gradient.isfinite().all()
    with pytest.raises(ValueError, match="N is -1"):
        pass_at_n(p, -1)
    with pytest.raises(ValueError, match=r"N is 0.5; wanted a number in \[1, inf\)"):
        dco_loss_from_logps(p - 1, N=0.5)
