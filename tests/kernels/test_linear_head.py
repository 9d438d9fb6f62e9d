"""The linear head against the dense computation: every statistic, gradient, mode, corner, and the memory it takes."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossary.kernels import STATISTICS, cpu, head_rows, linear_head, logits_at
from lossary.language import linear_cross_entropy
from lossary.papers._memory import memory_of

DTYPES = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (1e-4, 2e-4),
    torch.bfloat16: (2e-2, 2e-2),
    torch.float16: (3e-3, 4e-3),
}


def problem(
    rows: int, vocab: int, width: int, *, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    target = torch.randint(vocab, (rows,), generator=generator)
    return (scale * draw(rows, width)).to(dtype), draw(vocab, width).to(dtype), target, draw(vocab).to(dtype)


@st.composite
def heads(draw: st.DrawFn) -> dict[str, Any]:
    rows, vocab, width = draw(st.integers(0, 20)), draw(st.integers(1, 30)), draw(st.integers(1, 7))
    dtype = draw(st.sampled_from(list(DTYPES)))
    input, linear_weight, target, bias = problem(rows, vocab, width, seed=draw(st.integers(0, 999)), dtype=dtype)
    ignored = draw(st.lists(st.integers(0, max(rows - 1, 0)), max_size=rows))
    names = draw(st.lists(st.sampled_from(STATISTICS), min_size=1, max_size=len(STATISTICS), unique=True))
    softcap = draw(st.sampled_from([None, 2.0, 30.0]))
    biased = draw(st.sampled_from(["none", "finite", "masked"]))
    if biased == "masked" and vocab > 1:  # entries out of the vocabulary, none of them a target
        out = draw(st.lists(st.integers(0, vocab - 1), max_size=vocab - 1))
        out = [place for place in out if place not in target.tolist()]
        bias[out] = -math.inf
        if out:  # their log-probability is -inf, and so is its mean
            names = [name for name in names if softcap or "mean" not in name]
            assume(names)
    target[ignored] = -100
    return {
        "tensors": (input, linear_weight, target, None if biased == "none" else bias),
        "names": names,
        "options": {
            "weight": torch.linspace(0.0, 2.0, vocab, dtype=dtype),
            "softcap": softcap,
            "temperature": draw(st.sampled_from([1.0, 0.7, 3.0])),
        },
        "blocks": {
            "block_rows": draw(st.sampled_from([None, 1, 3, 8])),
            "block_vocab": draw(st.sampled_from([None, 1, 4, 11])),
            "kahan": draw(st.booleans()),
        },
    }


def values_and_gradients(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None], names: list[str], **options: Any
) -> tuple[dict[str, Tensor], list[Tensor]]:
    input, linear_weight, target, bias = tensors
    leaves = [tensor.clone().requires_grad_() for tensor in (input, linear_weight, bias) if tensor is not None]
    head = (leaves[0], leaves[1], target, leaves[2] if bias is not None else None)
    values = linear_head(*head, statistics=names, **options)
    total = sum(
        (torch.linspace(-1.0, 2.0, len(target), dtype=value.dtype) * torch.where(value.isfinite(), value, 0.0)).sum()
        for value in values.values()
    )
    return {name: value.detach() for name, value in values.items()}, list(torch.autograd.grad(total, leaves))


@given(heads())
@settings(max_examples=150)
def test_agrees_with_the_dense_computation_in_float64(head: dict[str, Any]) -> None:
    dtype = head["tensors"][0].dtype
    exact_tensors = tuple(
        tensor.double() if tensor is not None and tensor.is_floating_point() else tensor for tensor in head["tensors"]
    )
    options = head["options"] | {"weight": head["options"]["weight"].double()}
    exact = values_and_gradients(exact_tensors, head["names"], backend="reference", **options)
    values, gradients = values_and_gradients(
        head["tensors"], head["names"], backend="cpu", filter_eps=None, **head["options"], **head["blocks"]
    )
    value_tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for name, value in values.items():
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(
            value.double(),
            exact[0][name],
            rtol=value_tolerance,
            atol=value_tolerance,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    rtol, atol = DTYPES[dtype]
    for gradient, wanted in zip(gradients, exact[1], strict=True):
        assert gradient.dtype == dtype
        size = float(wanted.abs().max()) if wanted.numel() else 1.0
        torch.testing.assert_close(gradient.double(), wanted, rtol=rtol, atol=atol * max(size, 1.0))


@given(st.integers(1, 20), st.integers(1, 30), st.integers(1, 6), st.integers(0, 999))
def test_reference_is_what_plain_code_gives(rows: int, vocab: int, width: int, seed: int) -> None:
    """The dense computation that all is held against, against textbook formulas on the softmax."""
    input, linear_weight, target, bias = problem(rows, vocab, width, seed=seed)
    weight = torch.linspace(0.0, 2.0, vocab, dtype=torch.float64)
    z = 3.0 * torch.tanh(F.linear(input, linear_weight, bias) / 3.0) / 0.7
    p, row = z.softmax(1), torch.arange(rows)
    wanted = {
        "log_prob": -F.cross_entropy(z, target, reduction="none"),
        "log_miss": (1 - p[row, target]).log(),
        "logsumexp": z.logsumexp(1),
        "squared_logsumexp": z.logsumexp(1) ** 2,
        "entropy": torch.distributions.Categorical(logits=z).entropy(),
        "mean_log_prob": p.log().mean(1),
        "weighted_mean_log_prob": (weight * p.log()).mean(1),
        "target_logit": z[row, target],
        "expected_logit": (p * z).sum(1),
    }
    got = linear_head(
        *(input, linear_weight, target, bias),
        weight=weight,
        softcap=3.0,
        temperature=0.7,
        statistics=STATISTICS,
        backend="reference",
    )
    assert set(got) == set(wanted)
    for name in STATISTICS if vocab > 1 else set(STATISTICS) - {"log_miss"}:
        torch.testing.assert_close(got[name], wanted[name], msg=lambda m, n=name: f"{n}: {m}", rtol=1e-6, atol=1e-9)


@given(heads(), st.sampled_from(["mean", "sum"]), st.booleans())
def test_a_sum_with_known_coefficients_needs_no_second_sweep(
    head: dict[str, Any], reduction: Any, spread: bool
) -> None:
    """Gradients that are formed with the value equal those of the two-sweep path, also when asked for twice."""
    names = ["log_prob", *(["weighted_mean_log_prob", "squared_logsumexp"] if spread else [])]
    input, linear_weight, target, bias = head["tensors"]
    assume(input.dtype in (torch.float32, torch.float64) and (not spread or bias is None or bias.isfinite().all()))
    coefficients = {name: torch.linspace(-1.0, 2.0, len(target), dtype=input.dtype) for name in names}
    results = []
    for backend in ("reference", "cpu"):
        leaves = [tensor.clone().requires_grad_() for tensor in (input, linear_weight, bias) if tensor is not None]
        rows = head_rows(
            *(leaves[0], leaves[1], target, leaves[2] if bias is not None else None),
            **(head["options"] | {"softcap": None, "weight": head["options"]["weight"] + 0.5}),
            backend=backend,
        )
        total = rows.combine(coefficients, reduction=reduction, normalizer=None)
        first = torch.autograd.grad(2.5 * total, leaves, retain_graph=True)
        second = torch.autograd.grad(total, leaves)
        results.append([total.detach(), *first, *second])
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if input.dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
    for dense, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, dense, **tolerance, equal_nan=True)


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [50.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_keep_their_answer(scale: float, dtype: torch.dtype) -> None:
    """From separate float32 target logits and logsumexps a third of rows would get log p > 0."""
    generator = torch.Generator().manual_seed(0)
    logits = (scale * torch.rand(200, 40, generator=generator)).to(dtype)
    target = logits.argmax(1)
    eye = torch.eye(40, dtype=dtype)
    names = ["log_prob", "log_miss", "entropy", "mean_log_prob", "logsumexp"]
    got = linear_head(logits, eye, target, statistics=names, backend="cpu")
    exact = linear_head(logits.double(), eye.double(), target, statistics=names, backend="reference")
    assert (got["log_prob"] <= 0).all()
    assert (got["entropy"] >= 0).all()
    for name in names:
        torch.testing.assert_close(got[name].double(), exact[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("gap", [5.0, 18.0, 60.0, 300.0, 1e4])
def test_log_miss_at_a_confident_row(gap: float) -> None:
    input = torch.tensor([[gap, 0.0, 0.0]])
    got = linear_head(input, torch.eye(3), torch.tensor([0]), statistics=["log_miss", "log_prob"], backend="cpu")
    z = input.double()
    exact = torch.logsumexp(z[:, 1:], 1) - torch.logsumexp(z, 1)
    torch.testing.assert_close(got["log_miss"].double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(got["log_prob"].double(), z[:, 0] - torch.logsumexp(z, 1), rtol=1e-6, atol=1e-20)


def test_half_precision_is_no_worse_than_naive_half_precision() -> None:
    for seed in range(3):
        input, head, target, _ = problem(96, 700, 48, seed=seed, dtype=torch.bfloat16, scale=1.5)

        def loss_and_gradients(input: Tensor, head: Tensor, ours: bool, target: Tensor = target) -> list[Tensor]:
            input, head = input.clone().requires_grad_(), head.clone().requires_grad_()
            if ours:
                value = -linear_head(input, head, target, backend="cpu")["log_prob"].mean()
            else:
                value = F.cross_entropy(F.linear(input, head), target)
            return [value.detach(), *torch.autograd.grad(value, (input, head))]

        exact = loss_and_gradients(input.double(), head.double(), ours=False)
        naive, ours = (loss_and_gradients(input, head, ours=which) for which in (False, True))
        for best, plain, got in zip(exact, naive, ours, strict=True):
            assert (got.double() - best).abs().max() <= (plain.double() - best).abs().max()
            assert (got.double() - best).norm() <= (plain.double() - best).norm()


def test_filtering_errs_by_less_than_its_threshold_and_skips_columns() -> None:
    input, head, target, _ = problem(64, 500, 16, scale=3.0)
    input = head[target] * 2 + 0.1 * input  # confident, as a trained model is
    gradients = {}
    for eps in (None, 1e-3, "auto"):
        leaves = [input.clone().requires_grad_(), head.clone().requires_grad_()]
        log_prob = linear_head(*leaves, target, backend="cpu", filter_eps=eps, block_rows=32)["log_prob"]
        gradients[eps] = torch.autograd.grad(-log_prob.sum(), leaves)
    (exact_input, exact_head), (some_input, some_head) = gradients[None], gradients[1e-3]
    assert not torch.equal(exact_head, some_head), "nothing was filtered"
    assert (some_head == 0).all(1).sum() > 100
    assert ((exact_input - some_input).abs() <= 1e-3 * head.abs().sum(0)).all()
    assert ((exact_head - some_head).abs() <= 1e-3 * input.abs().sum(0)).all()
    torch.testing.assert_close(gradients["auto"], gradients[None], rtol=0, atol=1e-12)
    for keep in ("filter_input", "filter_weight"):
        leaves = [input.clone().requires_grad_(), head.clone().requires_grad_()]
        rows = linear_head(*leaves, target, backend="cpu", filter_eps=1e-3, block_rows=32, **{keep: False})
        whole = torch.autograd.grad(-rows["log_prob"].sum(), leaves)
        place = 0 if keep == "filter_input" else 1
        torch.testing.assert_close(whole[place], gradients[None][place])
        assert not torch.equal(whole[1 - place], gradients[None][1 - place])


@pytest.mark.parametrize("name", [name for name in STATISTICS if "mean" not in name])
def test_filtering_keeps_what_a_confident_row_sends(name: str) -> None:
    """Where 1 - p is below the threshold, statistics beside log p still have gradients of size 1."""
    input, head, target, _ = problem(12, 60, 16)
    input = head[target] * 6
    gradients = []
    for eps in (None, 1e-3):
        leaves = [input.clone().requires_grad_(), head.clone().requires_grad_()]
        value = linear_head(*leaves, target, statistics=[name], backend="cpu", filter_eps=eps)[name]
        gradients.append(torch.autograd.grad(value.sum(), leaves))
    scale = 1e-3 * (1 + 2 * float((input @ head.T).abs().max()) if name in ("expected_logit", "entropy") else 300)
    for exact, some in zip(*gradients, strict=True):
        assert (exact - some).abs().max() <= scale * 12


def test_a_nan_costs_no_other_row_its_gradient() -> None:
    input, head, target, _ = problem(8, 60, 4)
    input = head[target] * 3
    ok = torch.arange(8) != 5
    gradients = []
    for broken in (False, True):
        leaf = torch.where(ok.unsqueeze(1), input, math.nan if broken else 0.0).requires_grad_()
        gradients.append(torch.autograd.grad(linear_head(leaf, head, target, backend="cpu")["log_prob"].sum(), leaf)[0])
    torch.testing.assert_close(gradients[1][ok], gradients[0][ok])
    assert gradients[1][5].isnan().all()


def test_filtering_in_the_sweep_of_a_sum() -> None:
    input, head, target, _ = problem(64, 500, 16)
    input = head[target] * 2 + 0.3 * input
    results = []
    for eps in (None, 1e-3):
        leaves = [input.clone().requires_grad_(), head.clone().requires_grad_()]
        rows = head_rows(*leaves, target, backend="cpu", filter_eps=eps)
        results.append(torch.autograd.grad(rows.combine({"log_prob": -1.0}, reduction="sum", normalizer=None), leaves))
    assert (results[1][1] == 0).all(1).sum() > 100
    for exact, some in zip(*results, strict=True):
        assert (exact - some).abs().max() <= 1e-3 * 64 * 3
        assert not torch.equal(exact, some)


def test_kahan_summation_in_half_precision_keeps_small_terms() -> None:
    """Small terms stall beside a large one in bfloat16; what was lost is carried along."""
    plain, kahan = (
        torch.zeros(2, 3, dtype=torch.bfloat16),
        cpu._Sum(torch.empty(2, 3).bfloat16(), kahan=True),
    )
    for size in [1.0] + [2.0**-10] * 2048:
        plain += size
        kahan.add(slice(0, 2), torch.full((2, 1), size), torch.ones(1, 3), first=False)
    assert (plain == 1).all()
    assert kahan.value.dtype == torch.bfloat16
    assert ((kahan.value.float() - 3).abs() <= 2.0**-6).all()


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "softcap"), [(["log_prob"], None), (["log_prob", "entropy", "log_miss", "mean_log_prob"], 5.0)]
)
def test_no_tensor_of_all_logits_is_allocated(names: list[str], softcap: float | None) -> None:
    input, head, target, bias = problem(2048, 8192, 8, dtype=torch.float32)
    leaves = [tensor.requires_grad_() for tensor in (input, head, bias)]

    def dense() -> None:
        linear_head(input, head, target, bias, backend="reference")["log_prob"].sum().backward()

    def ours() -> None:
        rows = linear_head(input, head, target, bias, statistics=names, softcap=softcap, backend="cpu")
        sum(value.sum() for value in rows.values()).backward()

    def in_one_sweep() -> None:
        head_rows(input, head, target, bias, backend="cpu").combine(
            {"log_prob": -1.0}, reduction="mean", normalizer=None
        ).backward()

    logits = 4 * 2048 * 8192
    assert memory_of(dense).largest >= logits, "the instrument does not see"
    for call in (ours, in_one_sweep):
        for leaf in leaves:
            leaf.grad = None
        assert memory_of(call).largest <= logits / 4
        for leaf in leaves:
            leaf.grad = None
        assert memory_of(call).peak <= logits / 2


# --- corners --------------------------------------------------------------------------------------------------------


def test_few_rows_are_not_held_at_once_either() -> None:
    for rows in (2, 8, 16, 40):
        input, head, target, _ = problem(rows, 4096, 4, dtype=torch.float32)
        head.requires_grad_()
        run = lambda i=input, h=head, t=target: (  # noqa: E731
            head_rows(i, h, t).combine({"log_prob": -1.0}, reduction="mean", normalizer=None).backward()
        )
        assert memory_of(run).largest <= max(4 * rows * 4096 // 2, 4 * head.numel())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_factors_of_ignored_rows_reach_nothing(backend: Any) -> None:
    input, head, target, _ = problem(6, 7, 3)
    target[2] = -100
    factor, temperature = torch.rand(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64) + 0.5
    factor[2], temperature[2], input[2] = math.nan, 0.0, math.nan
    leaves = [tensor.requires_grad_() for tensor in (input, head, factor, temperature)]
    for words in ({"token_weight": factor}, {"sample_weight": factor}):
        loss = linear_cross_entropy(input, head, target, temperature=temperature, backend=backend, **words)
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, leaves))


def test_ignored_rows_reach_neither_value_nor_gradient() -> None:
    input, head, target, bias = problem(7, 9, 3)
    target[[0, 4]] = -100
    input[[0, 4]] = math.nan
    leaves = [tensor.requires_grad_() for tensor in (input, head, bias)]
    for backend in ("cpu", "reference"):
        rows = linear_head(
            *leaves[:2], target, bias, statistics=STATISTICS[:6], backend=backend, top_k=2, num_samples=1
        )
        for value in rows.values():
            assert (value[[0, 4]] == 0).all()
            assert value.isfinite().all()
        gradients = torch.autograd.grad(sum(rows[name].sum() for name in STATISTICS[:6]), leaves)
        assert (gradients[0][[0, 4]] == 0).all()
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("rows", [0, 3])
def test_empty_and_all_ignored(rows: int) -> None:
    input, head, target, _ = problem(rows, 6, 4)
    target.fill_(-100)
    leaves = [input.requires_grad_(), head.requires_grad_()]
    values = linear_head(*leaves, target, statistics=STATISTICS[:6], backend="cpu")
    assert all((value == 0).all() for value in values.values())
    for gradient in torch.autograd.grad(sum(value.sum() for value in values.values()), leaves):
        assert (gradient == 0).all()
    for normalizer, wanted in ((None, math.nan), (2.0, 0.0)):
        total = head_rows(*leaves, target, backend="cpu").combine(
            {"log_prob": -1.0}, reduction="mean", normalizer=normalizer
        )
        torch.testing.assert_close(total, torch.tensor(wanted, dtype=torch.float64), equal_nan=True)
        for gradient in torch.autograd.grad(total, leaves):
            assert (gradient == 0).all()


def test_a_vocabulary_of_one() -> None:
    input, head, target, _ = problem(4, 1, 3)
    leaves = [input.requires_grad_(), head.requires_grad_()]
    rows = linear_head(*leaves, target, statistics=["log_prob", "entropy", "log_miss"], backend="cpu")
    assert (rows["log_prob"] == 0).all()
    assert (rows["entropy"] == 0).all()
    assert (rows["log_miss"] == -math.inf).all()
    for gradient in torch.autograd.grad((rows["log_prob"] + rows["entropy"]).sum(), leaves):
        assert (gradient == 0).all()


def test_entries_out_of_the_vocabulary() -> None:
    """A bias of -inf: gradient 0, not NaN; a target there has log p = -inf; without any entry all is NaN."""
    input, head, target, bias = problem(4, 6, 3)
    bias[[1, 2]] = -math.inf
    target[:] = torch.tensor([0, 3, 4, 1])
    leaves = [tensor.requires_grad_() for tensor in (input, head, bias)]
    rows = linear_head(*leaves[:2], target, bias, statistics=["log_prob", "entropy"], backend="cpu", block_vocab=2)
    assert rows["log_prob"][3] == -math.inf
    assert rows["log_prob"][:3].isfinite().all()
    gradients = torch.autograd.grad(rows["log_prob"][:3].sum() + rows["entropy"].sum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[2][[1, 2]] == 0).all()
    nothing = linear_head(input, head, target, torch.full((6,), -math.inf, dtype=torch.float64), backend="cpu")
    assert nothing["log_prob"].isnan().all()


def test_nan_stays_in_its_row() -> None:
    input, head, target, _ = problem(5, 7, 3)
    input[2] = math.nan
    for name, value in linear_head(input, head, target, statistics=STATISTICS[:6], backend="cpu").items():
        assert value[2].isnan(), name
        assert value[[0, 1, 3, 4]].isfinite().all(), name


def test_shapes_without_a_batch_and_with_two() -> None:
    input, head, target, bias = problem(12, 9, 4)
    flat = linear_head(input, head, target, bias)["log_prob"]
    folded = linear_head(input.reshape(3, 2, 2, 4), head, target.reshape(3, 2, 2), bias)["log_prob"]
    torch.testing.assert_close(folded, flat.reshape(3, 2, 2))
    torch.testing.assert_close(linear_head(input[0], head, target[0], bias)["log_prob"], flat[0])
    strided = input.t().contiguous().t()
    torch.testing.assert_close(linear_head(strided, head.t().contiguous().t(), target, bias)["log_prob"], flat)


def test_shift_predicts_ahead() -> None:
    input, head, target, _ = problem(12, 9, 4)
    input, target = input.reshape(2, 6, 4), target.reshape(2, 6)
    ahead = linear_head(input, head, target, shift=2, statistics=["log_prob", "logsumexp"])
    by_hand = linear_head(input[:, :-2], head, target[:, 2:], statistics=["log_prob", "logsumexp"])
    torch.testing.assert_close(ahead, by_hand)
    assert linear_head(input, head, target, shift=6)["log_prob"].shape == (2, 0)


def test_a_learned_temperature_for_all_or_for_each_row() -> None:
    input, head, target, bias = problem(6, 8, 3)
    for temperature, linear_bias in ((torch.tensor(0.7), bias), (torch.linspace(0.5, 2.0, 6), None)):
        temperature = temperature.double().requires_grad_()
        results = []
        for backend in ("cpu", "reference"):
            options = {"temperature": temperature, "backend": backend, "statistics": ["log_prob", "entropy"]}
            rows = linear_head(input, head, target, linear_bias, **options)
            results.append((rows["log_prob"], torch.autograd.grad(sum(v.sum() for v in rows.values()), temperature)))
        torch.testing.assert_close(*results)


# --- modes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_temperature_beside_shift_and_masked_entries(backend: Any) -> None:
    input, head, target, bias = problem(12, 7, 3)
    input, target = input.reshape(2, 6, 3), target.reshape(2, 6).clamp(min=1)
    each = torch.linspace(0.5, 2.0, 12, dtype=torch.float64).reshape(2, 6)
    ours = linear_head(input, head, target, shift=1, temperature=each, backend=backend)["log_prob"]
    logits = F.linear(input, head)[:, :-1] / each[:, :-1, None]
    torch.testing.assert_close(ours, -F.cross_entropy(logits.movedim(-1, 1), target[:, 1:], reduction="none"))
    bias[0] = -math.inf
    one = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    ours = linear_head(input, head, target, bias, temperature=one, backend=backend)["log_prob"].sum()
    without = linear_head(input, head[1:], target - 1, bias[1:], temperature=one, backend=backend)["log_prob"].sum()
    torch.testing.assert_close(torch.autograd.grad(ours, one), torch.autograd.grad(without, one))


def objectives() -> dict[str, Any]:
    """The two-sweep path and the path whose gradients are formed with the value."""
    target = torch.tensor([0, 4, -100, 2, 6, 1])

    def two_sweeps(input: Tensor, head: Tensor, bias: Tensor, backend: Any = "cpu") -> Tensor:
        rows = linear_head(input, head, target, bias, statistics=["log_prob", "entropy", "log_miss"], backend=backend)
        return (rows["log_prob"].square() + rows["entropy"] * rows["log_miss"].exp()).mean()

    def one_sweep(input: Tensor, head: Tensor, bias: Tensor, backend: Any = "cpu") -> Tensor:
        rows = head_rows(input, head, target, bias, backend=backend)
        return 3 * rows.combine({"log_prob": -1.0, "mean_log_prob": 0.1}, reduction="mean", normalizer=None)

    def chosen(input: Tensor, head: Tensor, bias: Tensor, backend: Any = "cpu") -> Tensor:
        index = torch.arange(12).reshape(6, 2) % 7
        return logits_at(input, head, index, bias, softcap=3.0, backend=backend).square().mean()

    return {"two sweeps": two_sweeps, "one sweep": one_sweep, "chosen": chosen}


MODES = pytest.mark.parametrize("name", ["two sweeps", "one sweep", "chosen"])


def arguments(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    input, head, _, bias = problem(6, 7, 3, seed=seed)
    return input, head, bias


@MODES
def test_gradcheck(name: str) -> None:
    assert torch.autograd.gradcheck(objectives()[name], [tensor.requires_grad_() for tensor in arguments()])


@MODES
def test_compile_forward_and_backward(name: str) -> None:
    torch._dynamo.reset()
    leaves = [tensor.requires_grad_() for tensor in arguments()]
    value = torch.compile(objectives()[name], fullgraph=True, backend="aot_eager")(*leaves)
    eager = objectives()[name](*leaves)
    torch.testing.assert_close(value, eager)
    torch.testing.assert_close(torch.autograd.grad(value, leaves), torch.autograd.grad(eager, leaves))


@MODES
def test_func_grad_and_vmap(name: str) -> None:
    function = objectives()[name]
    dense = lambda *tensors: function(*tensors, backend="reference")  # noqa: E731
    wanted = torch.func.grad(dense, argnums=(0, 1, 2))(*arguments())
    torch.testing.assert_close(torch.func.grad(function, argnums=(0, 1, 2))(*arguments()), wanted)
    batches = [torch.stack(tensors) for tensors in zip(*(arguments(seed) for seed in range(3)), strict=True)]
    each = torch.func.vmap(torch.func.grad(function, argnums=(0, 1, 2)))(*batches)
    torch.testing.assert_close(each, torch.func.vmap(torch.func.grad(dense, argnums=(0, 1, 2)))(*batches))
    one_head = torch.func.vmap(torch.func.grad(function, argnums=(0, 1)), in_dims=(0, None, None))
    wanted = torch.func.vmap(torch.func.grad(dense, argnums=(0, 1)), in_dims=(0, None, None))
    torch.testing.assert_close(one_head(batches[0], *arguments()[1:]), wanted(batches[0], *arguments()[1:]))
    leaves = [batch.clone().requires_grad_() for batch in batches]
    gradients = [torch.autograd.grad(torch.func.vmap(f)(*leaves).sum(), leaves) for f in (function, dense)]
    torch.testing.assert_close(*gradients)


@MODES
def test_autocast_casts_as_linear_does(name: str) -> None:
    leaves = [tensor.float().requires_grad_() for tensor in arguments()]
    with torch.autocast("cpu", torch.bfloat16):
        value = objectives()[name](*leaves)
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in leaves]
    wanted = objectives()[name](*rounded)
    torch.testing.assert_close(value, wanted)
    gradients = torch.autograd.grad(value, leaves), torch.autograd.grad(wanted, rounded)
    for gradient, exact in zip(*gradients, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, exact.float())


def test_reference_is_as_wide_under_autocast() -> None:
    input, head, target, bias = problem(6, 7, 3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        dense, ours = (
            linear_head(input, head, target, bias, top_k=2, statistics=["log_prob", "target_logit"], backend=backend)
            for backend in ("reference", "cpu")
        )
    torch.testing.assert_close(dense, ours)


@MODES
def test_operators_are_what_their_fakes_say(name: str) -> None:
    """Strides, too: code compiled by inductor relies on them."""
    input, head, target, bias = problem(6, 9, 3)
    head = head.t().contiguous().t()
    rows = head_rows(input, head, target, bias)
    given, options, needs = rows.head, rows.options, [True, True, True]
    operators = torch.ops.lossary
    operator, arguments = {
        "two sweeps": (operators.head_gradients, (["log_prob"], *given, torch.rand(8, 6).double(), needs, *options)),
        "one sweep": (
            operators.head_value_and_gradients,
            (["log_prob"], *given, torch.rand(1, 6).double(), needs, *options),
        ),
        "chosen": (operators.logits_at_gradients, (*given[:2], target[:, None], torch.rand(6, 1).double(), needs)),
    }[name]
    torch.library.opcheck(operator.default, arguments, test_utils=("test_schema", "test_faketensor"))


@MODES
def test_what_has_no_derivative_says_so(name: str) -> None:
    """Never a silent zero: forward mode and second derivatives, compiled or not."""
    function, tensors = objectives()[name], arguments()
    first = lambda input: function(input, *tensors[1:])  # noqa: E731
    refused = pytest.raises(Exception, match="backend='reference'")
    with refused:
        torch.func.jvp(first, (tensors[0],), (tensors[0],))
    with refused:
        torch.func.hessian(first)(tensors[0])
    with refused:
        torch.func.grad(lambda input: torch.func.grad(first)(input).sum())(tensors[0])
    with torch.autograd.forward_ad.dual_level(), refused:
        first(torch.autograd.forward_ad.make_dual(tensors[0], tensors[0]))
    leaf = tensors[0].clone().requires_grad_()
    with refused:
        (gradient,) = torch.autograd.grad(first(leaf), leaf, create_graph=True)
        gradient.sum().backward()
    torch._dynamo.reset()
    compiled = torch.compile(torch.func.grad(first), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tensors[0]), torch.func.grad(first)(tensors[0]))
    torch._dynamo.reset()
    with refused:
        tangent = torch.compile(lambda x: torch.func.jvp(first, (x,), (x,)), fullgraph=True, backend="aot_eager")
        tangent(tensors[0])
    dense = lambda input: function(input, *tensors[1:], backend="reference")  # noqa: E731
    assert torch.func.hessian(dense)(tensors[0]).abs().sum() > 0


def test_gradients_may_be_accumulated_and_kept() -> None:
    """What a backward hands out is its own: a second one adds to it and does not change what others hold."""
    input, head, target, _ = problem(6, 8, 3)
    leaves = [input.requires_grad_(), head.requires_grad_()]
    total = head_rows(*leaves, target, backend="cpu").combine({"log_prob": -1.0}, reduction="mean", normalizer=None)
    total.backward(retain_graph=True)
    once = [leaf.grad.clone() for leaf in leaves]
    total.backward()
    for leaf, gradient in zip(leaves, once, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * gradient)


def test_several_gradients_at_once() -> None:
    input, head, target, _ = problem(6, 8, 3, dtype=torch.float32)
    head.requires_grad_()
    many = torch.tensor([1.0, 2.0, -3.0])
    each = torch.autograd.grad(linear_cross_entropy(input, head, target), head, many, is_grads_batched=True)[0]
    (one,) = torch.autograd.grad(linear_cross_entropy(input, head, target), head)
    torch.testing.assert_close(each, many[:, None, None] * one)


# --- choosing entries -----------------------------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 999), st.sampled_from([None, 1, 5, 7]))
def test_top_entries_and_samples_agree_between_blocks_and_backends(
    rows: int, vocab: int, seed: int, block: int | None
) -> None:
    input, head, _, bias = problem(rows, vocab, 4, seed=seed)
    if vocab > 2:
        bias[vocab // 2] = -math.inf
    noise = torch.rand(rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    options = {"statistics": ["logsumexp"], "top_k": min(3, vocab - 1) or 1, "noise": noise}
    dense = linear_head(input, head, None, bias, backend="reference", **options)
    ours = linear_head(input, head, None, bias, backend="cpu", block_vocab=block, block_rows=3, **options)
    torch.testing.assert_close(ours, dense)


def test_samples_follow_the_softmax() -> None:
    input, head, _, bias = problem(2, 12, 3, seed=3)
    bias[5] = -math.inf
    draws = linear_head(
        input, head, None, bias, statistics=[], num_samples=4_000, generator=torch.Generator().manual_seed(0)
    )
    p = F.linear(input, head, bias).softmax(1)
    for row in range(2):
        share = torch.bincount(draws["sample"][row], minlength=12) / 4_000
        assert (share - p[row]).abs().max() < 4 * math.sqrt(0.25 / 4_000)
        assert share[5] == 0
    torch.testing.assert_close(draws["sample_log_prob"].exp(), p.gather(1, draws["sample"]))
    ends = linear_head(input, head, None, bias, statistics=[], noise=torch.tensor([[0.0, 1.0]] * 2))["sample"]
    assert (ends[:, 0] == 0).all()
    assert (ends[:, 1] == 11).all()


def test_top_entries_have_gradients() -> None:
    input, head, _, bias = problem(4, 9, 3)

    def top(backend: Any) -> Any:
        return lambda *leaves: linear_head(
            leaves[0], leaves[1], None, leaves[2], statistics=[], top_k=3, backend=backend
        )["top_log_prob"].sum()

    gradients = [
        torch.func.grad(top(backend), argnums=(0, 1, 2))(input, head, bias) for backend in ("cpu", "reference")
    ]
    torch.testing.assert_close(*gradients)


@given(st.integers(0, 8), st.integers(1, 20), st.integers(0, 5), st.booleans(), st.sampled_from([None, 2.0]))
@example(3, 5, 2, True, None)
def test_chosen_logits(rows: int, vocab: int, count: int, shared: bool, softcap: float | None) -> None:
    input, head, _, bias = problem(rows, vocab, 4)
    index = torch.arange(count if shared else rows * count) % vocab
    index = index if shared else index.reshape(rows, count)
    results = []
    for ours in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in (input, head, bias)]
        if ours:
            z = logits_at(leaves[0], leaves[1], index, leaves[2], softcap=softcap, temperature=0.7)
        else:
            z = F.linear(*leaves)
            z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / 0.7
            z = z.gather(1, index.expand(rows, count))
        results.append([z.detach(), *torch.autograd.grad(z.square().sum(), leaves)])
    torch.testing.assert_close(*results)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": torch.zeros(4, 3)}, ValueError, r"input has shape \(4, 3\); wanted \(\.\.\., 2\)"),
        ({"input": torch.zeros(4, 2).long()}, TypeError, "input has dtype torch.int64; wanted floating point"),
        ({"input": torch.zeros(4, 2).double()}, TypeError, "input has dtype torch.float64 and linear_weight"),
        ({"linear_weight": torch.zeros(2)}, ValueError, r"linear_weight has shape \(2,\); wanted \(V, D\)"),
        ({"target": torch.zeros(3).long()}, ValueError, r"target has shape \(3,\); wanted \(4,\)"),
        ({"target": torch.full((4,), 5)}, ValueError, "target contains 5; wanted class indices from 0 to 4"),
        ({"target": torch.zeros(4, 5)}, ValueError, "probabilities would be as large as the logits"),
        ({"target": [0, 1, 2, 3]}, TypeError, "target is list; wanted a tensor"),
        ({"linear_bias": torch.zeros(4)}, ValueError, r"linear_bias has shape \(4,\); wanted \(5,\)"),
        ({"weight": torch.zeros(4)}, ValueError, r"weight has shape \(4,\); wanted \(5,\)"),
        ({"statistics": ["log_probs"]}, ValueError, r"statistics contains 'log_probs'; wanted some of log_prob, "),
        ({"statistics": ["log_prob"], "target": None}, ValueError, "'log_prob', which is about the target"),
        ({"statistics": ["weighted_mean_log_prob"]}, ValueError, "wanted weight, a number for each class"),
        ({"softcap": 0.0}, ValueError, r"softcap is 0.0; wanted a number in \(0"),
        ({"softcap": math.inf}, ValueError, r"softcap is inf; wanted a number in \(0"),
        ({"num_samples": -1}, ValueError, "num_samples is -1; wanted an integer of at least 0"),
        ({"target": torch.zeros(4, dtype=torch.uint16)}, TypeError, "target has dtype torch.uint16"),
        ({"softcap": torch.tensor(1.0)}, TypeError, "softcap is a tensor"),
        ({"temperature": -1.0}, ValueError, "temperature is -1.0"),
        ({"temperature": torch.ones(3)}, ValueError, r"temperature has shape \(3,\)"),
        ({"temperature": torch.tensor(1.0), "softcap": 2.0}, ValueError, "backend='reference' takes any"),
        ({"filter_eps": "none"}, ValueError, r"filter_eps is 'none'; wanted 'auto', None or a number"),
        ({"backend": "gpu"}, ValueError, r"backend is 'gpu'; wanted 'auto', 'reference', 'cpu', 'cuda', 'triton'"),
        ({"block_rows": 0}, ValueError, "block_rows is 0; wanted a positive integer"),
        ({"shift": -1}, ValueError, "shift is -1; wanted an integer of at least 0"),
        ({"shift": 5}, ValueError, r"shift is 5, but input has shape \(4, 2\)"),
        ({"top_k": 6}, ValueError, "top_k is 6; wanted an integer from 1 to the size of the vocabulary, 5"),
        ({"noise": torch.zeros(3, 2)}, ValueError, r"noise has shape \(3, 2\); wanted \(4, 2\)"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"input": torch.zeros(4, 2), "linear_weight": torch.zeros(5, 2), "target": torch.zeros(4).long()} | change
    if given.get("shift") == -1:
        given |= {"input": torch.zeros(2, 2, 2), "target": torch.zeros(2, 2).long()}
    with pytest.raises(error, match=message):
        linear_head(**given)


def test_bad_index() -> None:
    input, head = torch.zeros(4, 2), torch.zeros(5, 2)
    with pytest.raises(ValueError, match="index contains 5; wanted integers from 0 to 4"):
        logits_at(input, head, torch.full((4, 1), 5))
    with pytest.raises(TypeError, match=r"index has dtype torch\.float32"):
        logits_at(input, head, torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"index has shape \(3, 1\); wanted \(4, 1\)"):
        logits_at(input, head, torch.zeros(3, 1).long())
