"""Distillation between heads against the dense divergences, their gradients, and the memory of neither's logits."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.distillation import linear_distillation
from lossary.papers._memory import memory_of

KINDS = ["forward_kl", "reverse_kl", "jensen_shannon"]


def problem(rows: int, vocab: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return {
        "input": draw(rows, 3),
        "linear_weight": draw(vocab, 3),
        "linear_bias": draw(vocab),
        "teacher_input": draw(rows, 5),
        "teacher_weight": draw(vocab, 5),
        "teacher_bias": draw(vocab),
    }


def dense(given: dict[str, Tensor], kind: str, mixture: float, softcap: float | None, temperature: float) -> Tensor:
    z = F.linear(given["input"], given["linear_weight"], given["linear_bias"])
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    a = (z / temperature).log_softmax(-1)
    b = (F.linear(given["teacher_input"], given["teacher_weight"], given["teacher_bias"]) / temperature).log_softmax(-1)
    divergence = lambda p, q: F.kl_div(q, p, reduction="none", log_target=True).sum(-1)  # noqa: E731  KL(p || q)
    if kind == "forward_kl":
        return divergence(b, a)
    if kind == "reverse_kl":
        return divergence(a, b)
    m = (mixture * b.exp() + (1 - mixture) * a.exp()).log()
    return mixture * divergence(b, m) + (1 - mixture) * divergence(a, m)


STUDENT = ["input", "linear_weight", "linear_bias"]


@given(
    st.integers(0, 12),
    st.integers(1, 20),
    st.integers(0, 999),
    st.sampled_from(KINDS),
    st.sampled_from([0.1, 0.5, 0.9]),
    st.sampled_from([None, 2.0]),
    st.sampled_from(["cpu", "reference"]),
)
def test_is_the_dense_divergence(
    rows: int, vocab: int, seed: int, kind: Any, mixture: float, softcap: float | None, backend: Any
) -> None:
    given = problem(rows, vocab, seed)
    leaves = [given[name].requires_grad_() for name in STUDENT]
    wanted = dense(given, kind, mixture, softcap, 0.7)
    options = {"kind": kind, "mixture": mixture, "softcap": softcap, "temperature": 0.7, "backend": backend}
    value = linear_distillation(**given, reduction="none", **options)
    torch.testing.assert_close(value, wanted)
    assert (value >= -1e-12).all()
    wave = torch.linspace(-1.0, 2.0, rows, dtype=torch.float64)
    gradients = [torch.autograd.grad((wave * values).sum(), leaves) for values in (value, wanted)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_predictions_have_no_divergence_and_no_gradient(kind: Any) -> None:
    given = problem(6, 9, dtype=torch.float32)
    same = {
        "teacher_input": given["input"],
        "teacher_weight": given["linear_weight"],
        "teacher_bias": given["linear_bias"],
    }
    given |= {name: tensor.clone() for name, tensor in same.items()}
    given["input"].requires_grad_()
    value = linear_distillation(**given, kind=kind)
    assert abs(value) < 1e-6
    (gradient,) = torch.autograd.grad(value, given["input"])
    assert gradient.abs().max() < 1e-6


def test_jensen_shannon_tends_to_the_others() -> None:
    """Divided by the mixture's weight, at either end it is one of the Kullback-Leibler divergences."""
    given = problem(6, 9)
    options = {"kind": "jensen_shannon", "reduction": "none"}
    near_student = linear_distillation(**given, mixture=1e-8, **options) / 1e-8
    torch.testing.assert_close(near_student, dense(given, "forward_kl", 0, None, 1.0), rtol=1e-4, atol=1e-3)
    near_teacher = linear_distillation(**given, mixture=1 - 1e-8, **options) / 1e-8
    torch.testing.assert_close(near_teacher, dense(given, "reverse_kl", 0, None, 1.0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_modes_and_half_precision(kind: Any) -> None:
    given = problem(6, 9)
    target = torch.tensor([0, -100, 0, 0, -100, 0])
    poisoned = {**given, "input": given["input"].clone()}
    poisoned["input"][[1, 4]] = torch.nan
    keep = target != -100
    kept = {name: tensor[keep] if "input" in name else tensor for name, tensor in given.items()}
    masked = linear_distillation(**poisoned, target=target, kind=kind)
    torch.testing.assert_close(masked, linear_distillation(**kept, kind=kind))

    def loss(input: Tensor, backend: Any = "cpu") -> Tensor:
        return linear_distillation(**{**given, "input": input}, target=target, kind=kind, backend=backend)

    gradient = torch.func.grad(loss)(given["input"])
    assert (gradient[~keep] == 0).all()
    torch.testing.assert_close(gradient, torch.func.grad(lambda x: loss(x, "reference"))(given["input"]))
    inputs = torch.stack([given["input"], 2 * given["input"]])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(inputs)[0], gradient)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        torch.func.jvp(loss, (given["input"],), (given["input"],))
    with pytest.raises(RuntimeError, match="backend='reference'"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x).sum())(given["input"])
    half = {name: tensor.bfloat16() for name, tensor in given.items()}
    exact = linear_distillation(**{name: tensor.double() for name, tensor in half.items()}, kind=kind)
    torch.testing.assert_close(linear_distillation(**half, kind=kind).double(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_entries_out_of_both_vocabularies_have_no_term(kind: Any, backend: Any) -> None:
    given = problem(6, 9)
    given["linear_bias"][2] = given["teacher_bias"][2] = -torch.inf
    left = torch.arange(9) != 2
    heads = ("linear_weight", "linear_bias", "teacher_weight", "teacher_bias")
    values = []
    for tensors in (given, given | {name: given[name][left] for name in heads}):
        input = tensors["input"].clone().requires_grad_()
        loss = linear_distillation(**{**tensors, "input": input}, kind=kind, backend=backend)
        values.append([loss.detach(), *torch.autograd.grad(loss, input)])
    torch.testing.assert_close(*values)


def test_compile() -> None:
    given = problem(6, 9)
    leaves = {name: given[name].requires_grad_() for name in STUDENT}
    loss = lambda **tensors: linear_distillation(**{**given, **tensors}, kind="jensen_shannon")  # noqa: E731
    torch._dynamo.reset()
    values = torch.compile(loss, fullgraph=True, backend="aot_eager")(**leaves), loss(**leaves)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, list(leaves.values())) for value in values))


def test_neither_logits_are_stored() -> None:
    given = problem(1024, 4096, dtype=torch.float32)
    for name in STUDENT:
        given[name].requires_grad_()
    logits = 4 * 1024 * 4096
    memory = memory_of(lambda: linear_distillation(**given, kind="jensen_shannon").backward())
    assert memory.largest <= logits / 7
    assert memory.peak <= logits


def test_bad_input() -> None:
    given = problem(2, 3)
    with pytest.raises(ValueError, match="kind is 'kl'; wanted 'forward_kl', 'reverse_kl', 'jensen_shannon'"):
        linear_distillation(**given, kind="kl")
    with pytest.raises(ValueError, match="the same vocabulary on both sides"):
        linear_distillation(**{**given, "teacher_weight": torch.zeros(4, 5), "teacher_bias": None})
    with pytest.raises(ValueError, match="mixture is 1"):
        linear_distillation(**given, mixture=1)
