"""Odd-k-out: sums of logits, what they reduce to, soft targets, the sampler's sets and frequencies, the head."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.classification import OddKOutSampler, OKOHead, oko_loss, oko_soft_targets
from tests.classification.strategies import class_batches, tensors

Batch = tuple[Tensor, Tensor]


@st.composite
def set_batches(draw: st.DrawFn) -> Batch:
    """Logits (B, K, C) and labels (B,)."""
    size, members, classes = (draw(st.integers(low, 5)) for low in (1, 2, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    input = draw(st.floats(0.0, 10.0)) * torch.randn(size, members, classes, generator=generator, dtype=torch.float64)
    return input, torch.randint(classes, (size,), generator=generator)


@given(set_batches())
def test_order_within_a_set_and_constants_of_a_member_do_not_matter(batch: Batch) -> None:
    input, target = batch
    order = torch.randperm(input.shape[1], generator=torch.Generator().manual_seed(input.numel()))
    expected = F.cross_entropy(input.sum(1), target)
    torch.testing.assert_close(oko_loss(input, target), expected)
    torch.testing.assert_close(oko_loss(input[:, order], target), expected)
    shift = torch.linspace(-3, 3, input.shape[1]).double()[:, None]
    torch.testing.assert_close(oko_loss(input + shift, target), expected)


@given(class_batches(), st.integers(0, 3))
def test_equal_members_are_a_colder_softmax(batch: Batch, k: int) -> None:
    input, target = batch
    sets = input[:, None].expand(-1, k + 2, -1)
    torch.testing.assert_close(oko_loss(sets, target), F.cross_entropy((k + 2) * input, target))


@given(set_batches())
def test_every_member_gets_the_same_gradient(batch: Batch) -> None:
    input, target = batch
    gradient = torch.func.grad(oko_loss)(input, target)
    size, members, classes = input.shape
    expected = (input.sum(1).softmax(1) - F.one_hot(target, classes)) / size
    torch.testing.assert_close(gradient, expected[:, None].expand(-1, members, -1))


@given(st.integers(1, 4), st.integers(0, 3), st.data())
def test_soft_targets(size: int, k: int, data: st.DataObject) -> None:
    classes = torch.stack([torch.tensor(data.draw(st.permutations(range(5)))) for _ in range(size)])
    pair, odd = classes[:, 0], classes[:, 1 : k + 1]
    soft = oko_soft_targets(pair, odd, num_classes=5)
    torch.testing.assert_close(soft.sum(1), torch.ones(size))
    for row, label, others in zip(soft, pair, odd, strict=True):
        assert row[label] == pytest.approx(2 / (k + 2))
        assert row[others].tolist() == pytest.approx([1 / (k + 2)] * k)
        assert (row > 0).sum() == k + 1


def test_soft_targets_are_transformed() -> None:
    pair, odd = torch.tensor([0, 3]), torch.tensor([[1], [2]])
    expected = oko_soft_targets(pair, odd, num_classes=4)
    of_one = torch.func.vmap(lambda p, o: oko_soft_targets(p[None], o[None], num_classes=4)[0])(pair, odd)
    torch.testing.assert_close(of_one, expected)
    compiled = torch.compile(oko_soft_targets, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(pair, odd, num_classes=4), expected)


@given(tensors((3, 4), -3.0, 3.0))
def test_the_gradient_vanishes_at_the_log_of_the_target(noise: Tensor) -> None:
    target = oko_soft_targets(torch.tensor([0, 1, 2]), torch.tensor([[1], [0], [3]]), num_classes=4).double()
    member = target.clamp(min=1e-300).log() / 3
    sets = torch.stack([member - noise, member + noise, member], 1) + noise[:, :1, None]
    gradient = torch.func.grad(lambda z: oko_loss(z, target))(sets)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-8, rtol=0)


def test_one_set_alone_and_grids() -> None:
    input = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    target = torch.randint(4, (2, 5), generator=torch.Generator().manual_seed(0))
    rows = oko_loss(input, target, reduction="none")
    torch.testing.assert_close(oko_loss(input[1, :, :, 2], target[1, 2]), rows[1, 2])
    torch.testing.assert_close(rows, F.cross_entropy(input.sum(1), target, reduction="none"))


def test_halves_are_summed_in_float32() -> None:
    input = torch.tensor([[[256.0, 0.0], [1.0, 0.0], [1.0, 257.0]]]).bfloat16()
    torch.testing.assert_close(
        oko_loss(input, torch.tensor([0])), F.cross_entropy(input.double().sum(1), torch.tensor([0])).float()
    )


# --- the sampler ----------------------------------------------------------------------------------------------------

LONG_TAIL = torch.arange(6).repeat_interleave(torch.tensor([500, 200, 50, 10, 3, 1]))[
    torch.randperm(764, generator=torch.Generator().manual_seed(0))
]


@pytest.mark.parametrize("k", [0, 1, 3, 5])
@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_exactly_one_class_appears_twice(k: int, targets: str) -> None:
    sampler = OddKOutSampler(
        LONG_TAIL, k=k, batch_size=64, num_sets=200, generator=torch.Generator().manual_seed(k), targets=targets
    )
    batches = list(sampler)
    assert [len(index) for index, _ in batches] == [64, 64, 64, 8]
    assert len(sampler) == 4
    for index, target in batches:
        assert index.dtype == torch.int64
        assert index.shape == (len(index), k + 2)
        counts = F.one_hot(LONG_TAIL[index], 6).sum(1)
        assert counts.sum(1).eq(k + 2).all()
        assert counts.amax(1).eq(2).all()
        assert (counts == 2).sum(1).eq(1).all()
        expected = counts.argmax(1) if targets == "hard" else counts / (k + 2)
        torch.testing.assert_close(target, expected)
        twice = (index.sort(1).values.diff(dim=1) == 0).any(1)
        assert (LONG_TAIL[index[twice]].mode(1).values == 5).all()  # the class with a single example, and no other


def test_pairs_are_even_over_classes_and_over_examples() -> None:
    size = 12_000
    sampler = OddKOutSampler(LONG_TAIL, k=2, batch_size=4000, num_sets=size, generator=torch.Generator().manual_seed(0))
    index, pair = (torch.cat(parts) for parts in zip(*sampler, strict=True))
    check_even(pair.bincount(minlength=6))
    check_even(LONG_TAIL[index].eq(pair[:, None]).double().argmax(1).bincount(minlength=4)[:3], [3, 2, 1])
    for label in (3, 4):  # examples of a class come equally often
        members = (label == LONG_TAIL).nonzero()[:, 0]
        check_even(index.flatten().bincount(minlength=len(LONG_TAIL))[members])
    check_even((F.one_hot(LONG_TAIL[index], 6).sum(1) == 1).sum(0))  # the odd ones


def test_labels_of_any_integer_type_give_int64() -> None:
    for dtype in (torch.uint8, torch.int32):
        index, pair = next(iter(OddKOutSampler(LONG_TAIL.to(dtype), batch_size=9, num_sets=9)))
        assert index.dtype == pair.dtype == torch.int64


def test_labels_with_gaps() -> None:
    sampler = OddKOutSampler([7, 7, 2, 2], batch_size=50, num_sets=50, targets="soft", num_classes=9)
    index, target = next(iter(sampler))
    assert target.shape == (50, 9)
    assert set(target.sum(0).nonzero()[:, 0].tolist()) == {2, 7}
    assert index.max() < 4


def test_the_generator_decides() -> None:
    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return next(iter(OddKOutSampler(LONG_TAIL, batch_size=9, num_sets=9, generator=generator)))[0]

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    sampler = OddKOutSampler(LONG_TAIL, batch_size=9, num_sets=9, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(next(iter(sampler))[0], next(iter(sampler))[0]), "epochs differ"


# --- the head -------------------------------------------------------------------------------------------------------


def test_the_head_sums_in_training_only() -> None:
    head, features = OKOHead(4, 3, k=1), torch.randn(6, 4)
    target = torch.tensor([2, 0])
    single = F.linear(features, head.weight, head.bias)
    torch.testing.assert_close(head(features), single.reshape(2, 3, 3).sum(1))
    torch.testing.assert_close(F.cross_entropy(head(features), target), oko_loss(single.unflatten(0, (2, 3)), target))
    torch.testing.assert_close(head.eval()(features), single)
    tokens = torch.randn(6, 5, 4)
    torch.testing.assert_close(head(tokens)[:, 2], head(tokens[:, 2]))
    torch.testing.assert_close(head.train()(tokens)[:, 2], head(tokens[:, 2]))
    assert head(features[:0]).shape == (0, 3)
    assert head.bfloat16().train()(features.bfloat16()).dtype == torch.float32


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"input has shape \(3,\); wanted the logits of sets"):
        oko_loss(torch.zeros(3), torch.tensor(0))
    with pytest.raises(ValueError, match="input has 5 rows; wanted a multiple of k \\+ 2 = 3"):
        OKOHead(4, 3, k=1)(torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"input has shape \(4,\); wanted the members of sets"):
        OKOHead(4, 3, k=1)(torch.zeros(4))
    with pytest.raises(ValueError, match=r"input has shape \(2, 0, 3\); wanted the logits of sets"):
        oko_loss(torch.zeros(2, 0, 3), torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"odd_classes is torch\.float32; wanted class indices"):
        oko_soft_targets(torch.tensor([0]), torch.tensor([[1.5]]), num_classes=3)
    with pytest.raises(ValueError, match="k is -1"):
        OKOHead(4, 3, k=-1)
    with pytest.raises(ValueError, match="classes run from 0 to 3; wanted 0 to 2"):
        oko_soft_targets(torch.tensor([0]), torch.tensor([[3]]), num_classes=3)
    with pytest.raises(ValueError, match=r"pair_class has shape \(2,\); wanted \(1,\)"):
        oko_soft_targets(torch.tensor([0, 1]), torch.tensor([[3]]), num_classes=3)
    for arguments, message in [
        ({"labels": torch.zeros(3)}, "wanted class indices"),
        ({"labels": [0, -1]}, "wanted class indices"),
        ({"k": 6}, "k is 6; wanted 0 to 5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"targets": "medium"}, "targets is 'medium'"),
        ({"num_classes": 5}, "num_classes is 5; labels contains 5"),
    ]:
        with pytest.raises(ValueError, match=message):
            OddKOutSampler(**{"labels": LONG_TAIL, "batch_size": 1, "num_sets": 1, **arguments})


def check_even(counts: Tensor, shares: list[float] | None = None) -> None:
    """Counts within four and a half standard deviations of their shares."""
    p = torch.tensor(shares or [1.0] * len(counts))
    p = p / p.sum()
    n = counts.sum()
    assert ((counts / n - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt()).all()
