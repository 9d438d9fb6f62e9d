"""Class rows equal torch.nn.functional.cross_entropy in every corner that they share."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.rows import class_rows, label_entries, token_rows
from lossary.core.sigmoid import yes_no


def cross_entropy(input: Tensor, target: Tensor, *, reduction="mean", normalizer=None, **options) -> Tensor:
    """Cross-entropy written on rows."""
    rows = class_rows(input, target, **options)
    return rows.reduce(rows.expect(-rows.log_p()), reduction=reduction, normalizer=normalizer)


def samples(shape: tuple[int, ...], kind: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(shape, generator=generator, dtype=torch.float64)
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    if kind == "index":
        return input, torch.randint(shape[1] if len(shape) > 1 else shape[0], rows, generator=generator)
    probability = torch.rand(shape, generator=generator, dtype=torch.float64)
    probability = torch.where(probability < 0.3, 0.0, probability)  # classes without target mass
    return input, probability


@pytest.mark.parametrize(
    ("shape", "kind", "weighted", "smoothing", "reduction"),
    list(
        itertools.product(
            [(7, 4), (5, 3, 2), (2, 3, 2, 4), (6,)],
            ["index", "probability"],
            [False, True],
            [0.0, 0.1, 1.0],
            ["none", "mean", "sum"],
        )
    ),
)
def test_equals_torch(shape, kind, weighted, smoothing, reduction) -> None:
    input, target = samples(shape, kind)
    classes = shape[1] if len(shape) > 1 else shape[0]
    options = {
        "weight": torch.linspace(0.1, 2, classes, dtype=torch.float64) if weighted else None,
        "label_smoothing": smoothing,
        "reduction": reduction,
    }
    ours, theirs = input.clone().requires_grad_(), input.clone().requires_grad_()
    value, expected = cross_entropy(ours, target, **options), F.cross_entropy(theirs, target, **options)
    torch.testing.assert_close(value, expected)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_ignored_rows_equal_torch(smoothing: float, reduction: str) -> None:
    input, target = samples((4, 3, 5), "index")
    target[:, ::2] = 1
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    options = {"ignore_index": 1, "weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    torch.testing.assert_close(cross_entropy(input, target, **options), F.cross_entropy(input, target, **options))


def test_a_weight_of_an_ignored_row_counts_for_nothing() -> None:
    input, target = samples((7, 4), "index")
    target[2] = -100
    weight = torch.linspace(0.5, 2, 7, dtype=torch.float64)
    expected = cross_entropy(input, target, sample_weight=weight)
    weight[2] = math.nan
    torch.testing.assert_close(cross_entropy(input, target, sample_weight=weight), expected)
    assert cross_entropy(input, target, sample_weight=weight, reduction="none")[2] == 0


def test_infinite_logits_equal_torch() -> None:
    input, target = samples((6, 4), "index")
    input[0, (target[0] + 1) % 4] = -math.inf  # another class: finite
    input[1, target[1]] = -math.inf  # the label: infinite
    torch.testing.assert_close(
        cross_entropy(input, target, reduction="none"), F.cross_entropy(input, target, reduction="none")
    )
    gradients = []
    for loss in (cross_entropy, F.cross_entropy):
        leaf = input.clone().requires_grad_()
        loss(leaf, target, reduction="sum").backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_impossible_class_without_target_mass_costs_nothing() -> None:
    """0 * -inf is 0 here: torch gives NaN."""
    input = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    target = torch.tensor([[0.5, 0.5, 0.0]])
    value = cross_entropy(input, target)
    torch.testing.assert_close(value, torch.tensor(math.log(2)))
    value.backward()
    torch.testing.assert_close(input.grad, torch.zeros(1, 3))


def test_all_ignored_and_empty_equal_torch() -> None:
    input, target = samples((3, 4), "index")
    for z, t in ((input, torch.full_like(target, -100)), (input[:0], target[:0])):
        for reduction in ("none", "mean", "sum"):
            ours, theirs = (loss(z, t, reduction=reduction) for loss in (cross_entropy, F.cross_entropy))
            torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_log_miss_where_float32_cancels() -> None:
    """Far beyond a gap of 16, where 1 - p rounds to 0 in float32."""
    for gap in (5.0, 14.0, 18.0, 80.0, 1e4):
        input = torch.tensor([[gap, 0.0, -1.0]])
        exact = torch.logsumexp(torch.tensor([0.0, -1.0]), 0).double() - torch.logsumexp(input.double(), 1)
        for target in (torch.tensor([0]), torch.tensor([[1.0, 0.0, 0.0]])):
            log_miss = class_rows(input, target).log_miss()[:, 0]
            torch.testing.assert_close(log_miss.double(), exact, rtol=1e-6, atol=0)


def test_log_miss_of_hard_and_soft_targets_agree() -> None:
    input, target = samples((20, 5), "index")
    hard, soft = class_rows(input, target), class_rows(input, F.one_hot(target, 5).double())
    torch.testing.assert_close(hard.expect(hard.log_miss()), soft.expect(soft.log_miss()))
    torch.testing.assert_close(hard.at_label(hard.log_miss_of_all()), hard.log_miss()[:, 0])


def test_smoothing_as_a_tensor_may_be_zero_beside_an_impossible_class() -> None:
    input = torch.tensor([[0.0, -math.inf]])
    value = cross_entropy(input, torch.tensor([0]), label_smoothing=torch.tensor(0.0))
    torch.testing.assert_close(value, torch.tensor(0.0))


def test_small_integers_wrap_nothing_round() -> None:
    """As uint8, 300 classes are 44 and -100 is 156."""
    input = torch.randn(3, 300, dtype=torch.float64)
    for target in (torch.tensor([3, 156, 255], dtype=torch.uint8), torch.tensor([3, 100, -100], dtype=torch.int8)):
        expected = F.cross_entropy(input, target.long())
        torch.testing.assert_close(cross_entropy(input, target), expected)
        unseen = torch.compile(cross_entropy, fullgraph=True, backend="eager")
        torch.testing.assert_close(unseen(input, target), expected)


def test_refusals() -> None:
    input = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="ignore_index is for class-index targets"):
        class_rows(input, torch.zeros(2, 3), ignore_index=0)
    with pytest.raises(ValueError, match="not defined for probabilities"):
        class_rows(input, torch.zeros(2, 3), index_only=True)
    with pytest.raises(TypeError, match=r"target has dtype torch\.bool"):
        class_rows(input, torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"input has shape \(\)"):
        class_rows(torch.tensor(0.0), torch.tensor(0))
    with pytest.raises(ValueError, match=r"label_smoothing is 2; wanted a number in \[0, 1\]"):
        class_rows(input, torch.tensor([0, 1]), label_smoothing=2)
    with pytest.raises(ValueError, match=r"target contains 1\.5"):
        class_rows(input, torch.full((2, 3), 1.5))


def test_entries_reduce_by_their_number_or_weight() -> None:
    input = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    target = torch.ones(4, 3)
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0])
    for sample_weight in (weight, weight[:, None].expand(4, 3)):
        entries = label_entries(input, target, sample_weight=sample_weight)
        value = entries.reduce(-entries.log_p(), reduction="mean", normalizer=None)
        rows = F.binary_cross_entropy_with_logits(input, target, reduction="none").mean(1)
        torch.testing.assert_close(value, (weight * rows).sum() / 4)


def test_miss_of_soft_targets() -> None:
    z = torch.linspace(-5, 5, 11, dtype=torch.float64)
    y = torch.linspace(0, 1, 11, dtype=torch.float64)
    p = z.sigmoid()
    sides = yes_no(z, y)
    torch.testing.assert_close(sides.yes + sides.no, y * (1 - p) + (1 - y) * p)


def test_tokens_have_the_vocabulary_last() -> None:
    logits, target = torch.randn(2, 3, 4, dtype=torch.float64), torch.tensor([[0, 3, -100], [1, 1, 2]])
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    rows = token_rows(logits, target, weight=weight, label_smoothing=0.1)
    loss = rows.reduce(rows.expect(-rows.log_p()), reduction="mean", normalizer=None)
    expected = F.cross_entropy(logits.movedim(-1, 1), target, weight, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ValueError, match=r"target has shape \(2,\); wanted \(2, 3\), .*logits \(class axis at dim 2\)"):
        token_rows(logits, target[:, 0])
    with pytest.raises(ValueError, match="it is not defined for probabilities"):
        token_rows(logits, logits.softmax(-1))


def test_values_at_the_label_are_the_same_compiled() -> None:
    """Compiled they are a masked sum, which neither an infinite or NaN neighbour nor a boolean may disturb."""
    values = torch.tensor([[1.0, -math.inf, 2.0], [math.nan, -3.0, math.inf], [-math.inf, 0.5, 0.0]]).requires_grad_()
    target = torch.tensor([2, 1, 0])

    def at_label(values: Tensor) -> tuple[Tensor, Tensor]:
        rows = class_rows(torch.zeros(3, 3), target)
        return rows.at_label(values), rows.at_label(values > 0)

    torch._dynamo.reset()
    results = [at_label(values), torch.compile(at_label, fullgraph=True, backend="aot_eager")(values)]
    for found, positive in results:
        torch.testing.assert_close(found, torch.tensor([2.0, -3.0, -math.inf]))
        assert positive.tolist() == [True, False, False]
        (gradient,) = torch.autograd.grad(found.sum(), values)
        assert torch.equal(gradient, F.one_hot(target, 3).float())


def test_misses_of_the_label_are_those_of_all_classes() -> None:
    logits = 20 * torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.arange(50) % 4
    rows = class_rows(logits, target)
    exact = torch.logsumexp(logits[:, None].expand(-1, 4, -1).masked_fill(torch.eye(4).bool(), -math.inf), -1)
    exact = exact - torch.logsumexp(logits, 1, keepdim=True)
    torch.testing.assert_close(rows.log_miss_of_all(), exact, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(rows.log_miss_of_label(), exact[torch.arange(50), target], rtol=1e-12, atol=1e-13)
