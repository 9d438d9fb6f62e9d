"""Cross-entropy of a linear head: PyTorch's own calls, the identities of the paper, z-loss, weights, presets."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lossary.classification import focal_loss, poly1_cross_entropy_loss
from lossary.language import (
    PRESETS,
    LinearCrossEntropyLoss,
    linear_cross_entropy,
    linear_entropy_regularized_cross_entropy_loss,
    linear_focal_loss,
    linear_poly1_cross_entropy_loss,
    linear_sequence_logps,
    sequence_logps,
    z_loss,
)


def problem(rows: int, vocab: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    target = torch.randint(vocab, (rows,), generator=generator)
    return draw(rows, 4), draw(vocab, 4), target, draw(vocab), draw(vocab) ** 2 + 0.1


sizes = given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 999))


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]


@given(
    st.integers(0, 12),
    st.integers(1, 20),
    st.integers(0, 99),
    st.sampled_from(["none", "mean", "sum"]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, -100, 0]),
    st.sampled_from(["cpu", "reference"]),
)
def test_the_calls_of_torch(
    rows: int,
    vocab: int,
    seed: int,
    reduction: Any,
    smoothing: float,
    weighted: bool,
    biased: bool,
    ignore_index: int | None,
    backend: Any,
) -> None:
    """What ``torch.nn.functional.linear_cross_entropy`` takes by name gives the same numbers here."""
    input, head, target, bias, weight = problem(rows, vocab, seed)
    leaves = [tensor.requires_grad_() for tensor in (input, head, *([bias] if biased else []))]
    call = {
        "linear_bias": bias if biased else None,
        "weight": weight if weighted else None,
        "reduction": reduction,
        "ignore_index": ignore_index,
        "label_smoothing": smoothing,
    }
    ours = gradients(linear_cross_entropy(input, head, target, backend=backend, **call), leaves)
    torch.testing.assert_close(
        ours, gradients(F.linear_cross_entropy(input, head, target, **call), leaves), equal_nan=True
    )


def test_the_shapes_of_torch() -> None:
    input, _, _, _, weight = problem(6, 5)
    head, bias = torch.randn(5, 2, 3, 4, dtype=torch.float64), torch.randn(5, 2, 3, dtype=torch.float64)
    target = torch.randint(5, (6, 2, 3))
    target[0, 1, 2] = -100
    leaves = [tensor.requires_grad_() for tensor in (input, head, bias)]
    for reduction in ("none", "mean", "sum"):
        call = {"linear_bias": bias, "weight": weight, "reduction": reduction, "label_smoothing": 0.1}
        ours = gradients(linear_cross_entropy(input, head, target, **call), leaves)
        torch.testing.assert_close(ours, gradients(F.linear_cross_entropy(input, head, target, **call), leaves))
    single = linear_cross_entropy(input[0], head[:, 0, 0], target[0, 0, 0])
    torch.testing.assert_close(single, F.linear_cross_entropy(input[0], head[:, 0, 0], target[0, 0, 0]))
    with pytest.raises(ValueError, match=r"beside several outputs, wanted an input \(N, D\)"):
        linear_cross_entropy(input, head, target, shift=1)
    for name in ("sample_weight", "token_weight"):
        factor = torch.rand(6, 2, 3, dtype=torch.float64)
        rows = linear_cross_entropy(input, head, target, reduction="none") * factor
        divisor = torch.where(target == -100, 0.0, factor if name == "sample_weight" else 1.0).sum()
        torch.testing.assert_close(linear_cross_entropy(input, head, target, **{name: factor}), rows.sum() / divisor)


def test_backend_torch() -> None:
    input, head, target, bias, weight = problem(40, 30, dtype=torch.float32)
    target[3] = -100
    leaves = [tensor.requires_grad_() for tensor in (input, head, bias)]
    for reduction in ("mean", "sum", "none"):
        options = {"weight": weight, "reduction": reduction}
        theirs = gradients(linear_cross_entropy(input, head, target, bias, backend="torch", **options), leaves)
        torch.testing.assert_close(
            theirs, gradients(linear_cross_entropy(input, head, target, bias, **options), leaves)
        )
    with pytest.raises(ValueError, match=r"softcap is 3.0, which backend='torch' does not know; wanted None"):
        linear_cross_entropy(input, head, target, backend="torch", softcap=3.0)


@sizes
def test_invariant_to_blocks_and_to_the_order_of_the_vocabulary(rows: int, vocab: int, seed: int) -> None:
    input, head, target, bias, weight = problem(rows, vocab, seed)
    leaves = [tensor.requires_grad_() for tensor in (input, head, bias)]
    whole = gradients(linear_cross_entropy(*leaves[:2], target, bias, weight=weight), leaves)
    for rows_of_tile, vocab_of_tile in ((1, 1), (3, 4), (64, 64)):
        options = {"block_rows": rows_of_tile, "block_vocab": vocab_of_tile, "weight": weight}
        torch.testing.assert_close(gradients(linear_cross_entropy(*leaves[:2], target, bias, **options), leaves), whole)
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))
    place = order.argsort()
    shuffled = linear_cross_entropy(input, head[order], place[target], bias[order], weight=weight[order])
    torch.testing.assert_close(gradients(shuffled, leaves), whole)


@sizes
def test_columns_of_the_heads_gradient_cancel(rows: int, vocab: int, seed: int) -> None:
    """A row's softmax minus its one-hot target sums to 0 over the vocabulary, and so does the gradient of the head."""
    input, head, target, bias, _ = problem(rows, vocab, seed)
    leaves = [tensor.requires_grad_() for tensor in (input, head, bias)]
    _, _, of_head, of_bias = gradients(linear_cross_entropy(*leaves[:2], target, bias), leaves)
    torch.testing.assert_close(of_head.sum(0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(of_bias.sum(), torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)


@sizes
def test_the_lse_has_the_softmax_as_gradient(rows: int, vocab: int, seed: int) -> None:
    input, head, target, bias, _ = problem(rows, vocab, seed)
    softmax = F.linear(input, head, bias).softmax(1)
    bias.requires_grad_()
    loss, lse = linear_cross_entropy(input, head, target, bias, return_lse=True)
    torch.testing.assert_close(lse, F.linear(input, head, bias).logsumexp(1))
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(input, head, bias), target))
    torch.testing.assert_close(torch.autograd.grad(lse.sum(), bias)[0], softmax.sum(0))
    value = z_loss(linear_cross_entropy(input, head, target, bias, return_lse=True)[1], target)
    torch.testing.assert_close(
        torch.autograd.grad(value, bias)[0], (2 * lse.detach().unsqueeze(1) * softmax).sum(0) / rows
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_z_loss_inside_and_beside(reduction: Any) -> None:
    input, head, target, bias, weight = problem(9, 7)
    target[[2, 5]] = -100
    loss, lse = linear_cross_entropy(input, head, target, bias, reduction=reduction, return_lse=True)
    assert lse[2] == 0
    beside = loss + 1e-2 * z_loss(lse, target, reduction=reduction)
    inside = linear_cross_entropy(input, head, target, bias, reduction=reduction, z_loss_weight=1e-2)
    torch.testing.assert_close(inside, beside)
    weighted = linear_cross_entropy(input, head, target, bias, reduction=reduction, z_loss_weight=1e-2, weight=weight)
    rows = weight[target.clamp(min=0)] * linear_cross_entropy(
        input, head, target, bias, reduction="none", z_loss_weight=1e-2
    )
    divisor = {"none": 1, "sum": 1, "mean": weight[target[target != -100]].sum()}[reduction]
    torch.testing.assert_close(weighted, (rows if reduction == "none" else rows.sum()) / divisor)


def test_shift_drops_columns_of_the_loss_and_of_the_lse() -> None:
    input, head, target, _, _ = problem(12, 7)
    input, target = input.reshape(2, 6, 4), target.reshape(2, 6)
    loss, lse = linear_cross_entropy(input, head, target, shift=1, reduction="none", return_lse=True)
    assert loss.shape == lse.shape == (2, 5)
    torch.testing.assert_close(loss, linear_cross_entropy(input[:, :-1], head, target[:, 1:], reduction="none"))
    factor = torch.rand(2, 6, dtype=torch.float64)
    weighted = linear_cross_entropy(input, head, target, shift=1, reduction="none", token_weight=factor)
    torch.testing.assert_close(weighted, loss * factor[:, 1:])


def test_token_weights_scale_and_sample_weights_count() -> None:
    input, head, target, _, _ = problem(8, 7)
    factor = torch.linspace(0.0, 3.0, 8, dtype=torch.float64).requires_grad_()
    rows = linear_cross_entropy(input, head, target, reduction="none")
    input.requires_grad_()
    token = linear_cross_entropy(input, head, target, token_weight=factor)
    sample = linear_cross_entropy(input, head, target, sample_weight=factor)
    torch.testing.assert_close(token, (factor * rows).mean())
    torch.testing.assert_close(sample, (factor * rows).sum() / factor.sum())
    torch.testing.assert_close(torch.autograd.grad(token, factor)[0], rows.detach() / 8)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets(preset: Any) -> None:
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        input, head, target, bias, _ = problem(40, 300, dtype=dtype)
        leaves = [tensor.requires_grad_() for tensor in (input, head, bias)]
        got = gradients(linear_cross_entropy(input, head, target, bias, preset=preset), leaves)
        exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
        logits = F.linear(*exact_leaves)
        for mine, wanted in zip(got, gradients(F.cross_entropy(logits, target), exact_leaves), strict=True):
            torch.testing.assert_close(
                mine.double(), wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max())
            )
    with pytest.raises(ValueError, match="preset is 'fast'; wanted one of exact, kahan"):
        linear_cross_entropy(input, head, target, preset="fast")


def test_the_module_holds_options_and_no_head() -> None:
    module = LinearCrossEntropyLoss(label_smoothing=0.1, shift=1)
    assert not list(module.parameters())
    model = nn.Linear(4, 7)
    input, target = torch.randn(2, 5, 4), torch.randint(7, (2, 5))
    value = copy.deepcopy(module)(input, model.weight, target, model.bias)
    wanted = F.cross_entropy(model(input)[:, :-1].flatten(0, 1), target[:, 1:].flatten(), label_smoothing=0.1)
    torch.testing.assert_close(value, wanted)


@sizes
def test_relatives_equal_their_forms_on_logits(rows: int, vocab: int, seed: int) -> None:
    input, head, target, bias, weight = problem(rows, vocab, seed)
    target[0] = -100
    logits = F.linear(input, head, bias)
    leaves = [tensor.requires_grad_() for tensor in (input, head, bias)]
    logits = F.linear(*leaves)
    given = (input, head, target, bias)
    factors = torch.linspace(0.5, 2.0, rows, dtype=torch.float64)
    options = {"weight": weight, "sample_weight": factors}
    alpha = torch.linspace(0.0, 1.0, vocab, dtype=torch.float64)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    keep = target != -100
    of_target = torch.where(keep, weight[target.clamp(min=0)], 0.0) * factors
    smoothed = F.cross_entropy(logits, target, weight=weight, label_smoothing=0.1, reduction="none") * factors
    pairs = [
        (
            linear_focal_loss(*given, gamma=1.5, alpha=alpha, **options),
            focal_loss(logits, target, gamma=1.5, alpha=alpha, **options),
        ),
        (
            linear_poly1_cross_entropy_loss(*given, epsilon=0.7, **options),
            poly1_cross_entropy_loss(logits, target, epsilon=0.7, **options),
        ),
        (
            linear_entropy_regularized_cross_entropy_loss(*given, entropy_weight=0.3, label_smoothing=0.1, **options),
            (smoothed - 0.3 * of_target * entropy).sum() / of_target.sum(),
        ),
    ]
    for ours, on_logits in pairs:
        torch.testing.assert_close(ours, on_logits, equal_nan=True)
        if keep.any() and vocab > 1:
            mine, wanted = (torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (ours, on_logits))
            torch.testing.assert_close(mine, wanted)


@sizes
def test_sequences(rows: int, vocab: int, seed: int) -> None:
    input, head, target, bias, _ = problem(2 * rows, vocab, seed)
    input, target = input.reshape(2, rows, 4), target.reshape(2, rows)
    target[0, : rows // 2] = -100
    logits = F.linear(input, head, bias)
    plain = logits.log_softmax(-1).gather(-1, target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    plain = torch.where(target == -100, 0.0, plain)
    for average in (False, True):
        wanted = plain.sum(-1) / ((target != -100).sum(-1) if average else 1)
        torch.testing.assert_close(sequence_logps(logits, target, average=average), wanted)
        torch.testing.assert_close(linear_sequence_logps(input, head, target, bias, average=average), wanted)
    torch.testing.assert_close(
        linear_sequence_logps(input, head, target, bias, shift=1), sequence_logps(logits, target, shift=1)
    )
    with pytest.raises(ValueError, match="target has shape"):
        sequence_logps(logits, target[:, :-1])


def test_probabilities_are_refused() -> None:
    input, head, _, _, _ = problem(4, 7)
    for backend in ("auto", "reference", "torch"):
        with pytest.raises(ValueError, match="probabilities would be as large as the logits"):
            linear_cross_entropy(input, head, torch.rand(4, 7), backend=backend)
    with pytest.raises(ValueError, match="probabilities would be as large as the logits"):
        linear_cross_entropy(input, torch.rand(7, 2, 4, dtype=torch.float64), torch.rand(4, 7, 2))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_the_options_of_torch(backend: Any) -> None:
    """Calls that say how PyTorch is to chunk run as they are."""
    input, head, target, bias, _ = problem(20, 9, dtype=torch.float32)
    for options in (None, nn.LinearCrossEntropyOptions(), nn.LinearCrossEntropyOptions(batch_chunk_size=4)):
        for reduction in ("none", "mean", "sum"):
            call = {"linear_bias": bias, "reduction": reduction, "options": options}
            ours = linear_cross_entropy(input, head, target, backend=backend, **call)
            torch.testing.assert_close(ours, F.linear_cross_entropy(input, head, target, **call))


def test_positions_without_any_and_with_a_label_that_nobody_saw() -> None:
    input, weight = torch.randn(6, 4), torch.rand(5)
    for reduction in ("none", "mean", "sum"):
        given = (input, torch.randn(5, 0, 4), torch.zeros(6, 0).long())
        torch.testing.assert_close(
            linear_cross_entropy(*given, reduction=reduction),
            F.linear_cross_entropy(*given, reduction=reduction),
            equal_nan=True,
        )
    head, target = torch.randn(5, 2, 4), torch.zeros(6, 2).long()
    target[1, 1] = 77
    assert torch.vmap(lambda t: linear_cross_entropy(input, head, t, weight=weight))(target[None]).isnan().all()


def test_module_takes_token_weights() -> None:
    input, head, target, bias, _ = problem(8, 7)
    factor = torch.rand(8, dtype=torch.float64)
    torch.testing.assert_close(
        LinearCrossEntropyLoss()(input, head, target, bias, token_weight=factor),
        linear_cross_entropy(input, head, target, bias, token_weight=factor),
    )


def test_z_loss_of_half_precision_is_wide() -> None:
    value = z_loss(torch.tensor([300.0, 1.0], dtype=torch.float16), torch.tensor([0, -100]))
    torch.testing.assert_close(value, torch.tensor(90000.0))
    with pytest.raises(TypeError, match=r"target has dtype torch\.bool"):
        z_loss(torch.ones(2), torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize("words", [{"z_loss_weight": 0.1}, {"label_smoothing": 0.1}])
def test_entries_out_of_the_vocabulary_in_the_sweep_of_a_sum(words: dict[str, float]) -> None:
    """A masked target costs inf, and a class weight of 0 silences a masked entry, with and without gradients."""
    input, head, target, bias, weight = problem(8, 7, dtype=torch.float32)
    head.requires_grad_()
    bias[3] = -torch.inf
    target[0] = 3
    assert linear_cross_entropy(input, head, target, bias, **words) == torch.inf
    target, weight[3] = torch.arange(8) % 3, 0.0
    pair = [
        linear_cross_entropy(input, head, target, bias, weight=weight, backend=b, **words) for b in ("cpu", "reference")
    ]
    torch.testing.assert_close(*pair)
    torch.testing.assert_close(*(torch.autograd.grad(loss, head) for loss in pair))
