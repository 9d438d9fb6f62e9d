"""AnyLoss: the metrics it approaches, its gradient in closed form, missing classes, two ranks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from torch import Tensor

from lossary.classification import (
    AnyLoss,
    NLPDiceLoss,
    TverskyNLPLoss,
    any_loss,
    approximate_label,
    metric_value,
    soft_confusion_matrix,
)
from tests.classification.strategies import label_batches
from tests.processes import run_ranks

NAMES = (
    *("accuracy", "fbeta", "geometric_mean", "balanced_accuracy", "precision", "recall", "specificity", "mcc"),
    "jaccard",
)
SLOPE = st.floats(1.0, 100.0)


def both_classes(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    input, target = batch
    return torch.cat([input, torch.tensor([0.3, -0.2])]), torch.cat([target, torch.tensor([1.0, 0.0])])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_steep_counts_are_those_of_the_labels(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(40, generator=generator) < 0.3).double()
    p = torch.where(torch.rand(40, generator=generator) < 0.75, target, 1 - target) * 0.7 + 0.1  # 0.1 or 0.8
    truth, guess = target.numpy(), (p > 0.5).numpy().astype(float)
    recall, specificity = (metrics.recall_score(truth, guess, pos_label=label) for label in (1, 0))
    exact = {
        "accuracy": metrics.accuracy_score(truth, guess),
        "fbeta": metrics.fbeta_score(truth, guess, beta=2.0),
        "geometric_mean": math.sqrt(recall * specificity),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, guess),
        "precision": metrics.precision_score(truth, guess),
        "recall": recall,
        "specificity": specificity,
        "mcc": metrics.matthews_corrcoef(truth, guess),
        "jaccard": metrics.jaccard_score(truth, guess),
    }
    options = {"metric": name, "beta": 2.0}
    value = metric_value(p, target, slope=300.0, from_logits=False, **options)
    assert value.item() == pytest.approx(exact[name], abs=1e-6)
    assert any_loss(p.logit(), target, slope=300.0, **options).item() == pytest.approx(1 - exact[name], abs=1e-6)


@given(label_batches(soft=True), SLOPE, st.floats(0.1, 0.9))
def test_counts_add_up(batch: tuple[Tensor, Tensor], slope: float, threshold: float) -> None:
    input, target = batch
    counts = soft_confusion_matrix(input, target, slope=slope, threshold=threshold)
    torch.testing.assert_close(sum(counts), torch.tensor(float(len(input))).double())
    torch.testing.assert_close(counts.tp + counts.fn, target.sum())
    label = approximate_label(input.sigmoid(), slope=slope, threshold=threshold)
    torch.testing.assert_close(counts.tp + counts.fp, label.sum())
    weight = torch.arange(1.0, len(input) + 1).double()
    weighted = soft_confusion_matrix(input, target, slope=slope, threshold=threshold, sample_weight=weight)
    torch.testing.assert_close(sum(weighted), weight.sum())


@given(label_batches(bound=2.0), st.floats(1.0, 30.0), st.floats(0.3, 3.0))
def test_gradients_in_closed_form(batch: tuple[Tensor, Tensor], slope: float, beta: float) -> None:
    input, y = both_classes(batch)
    p = input.sigmoid()
    label = approximate_label(p, slope=slope)
    chain = slope * label * (1 - label) * p * (1 - p)
    n, positives = len(y), y.sum()
    tp, tn = (y * label).sum(), ((1 - y) * (1 - label)).sum()
    size = beta**2 * positives + label.sum()
    geometric = (tp * tn / (positives * (n - positives))).sqrt()
    slopes = {
        "accuracy": (2 * y - 1) / n,
        "fbeta": (1 + beta**2) * (y * size - tp) / size**2,
        "balanced_accuracy": (y / positives - (1 - y) / (n - positives)) / 2,
        "geometric_mean": geometric / 2 * (y / tp - (1 - y) / tn),
    }
    for name, expected in slopes.items():
        loss = lambda z, name=name: any_loss(z, y, metric=name, slope=slope, beta=beta)  # noqa: E731
        torch.testing.assert_close(torch.func.grad(loss)(input), -expected * chain, atol=1e-10, rtol=1e-7)


@given(label_batches(), SLOPE)
def test_relations_between_metrics(batch: tuple[Tensor, Tensor], slope: float) -> None:
    input, target = both_classes(batch)
    value = {name: metric_value(input, target, metric=name, slope=slope) for name in NAMES}
    assert all(-1e-9 <= value[name] <= 1 + 1e-9 for name in NAMES if name != "mcc")
    torch.testing.assert_close(value["jaccard"], value["fbeta"] / (2 - value["fbeta"]))
    tiny, huge = (metric_value(input, target, metric="fbeta", slope=slope, beta=beta) for beta in (1e-6, 1e6))
    torch.testing.assert_close(tiny, value["precision"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(huge, value["recall"], atol=1e-6, rtol=1e-6)
    ends = [metric_value(input, target, metric="fbeta", slope=slope, beta=beta) for beta in (0, 1e200, math.inf)]
    torch.testing.assert_close(ends, [value["precision"], value["recall"], value["recall"]])
    balanced = torch.cat([input, -input]), torch.cat([target, 1 - target])
    accuracy, mean_rate = (
        metric_value(*balanced, metric=name, slope=slope) for name in ("accuracy", "balanced_accuracy")
    )
    torch.testing.assert_close(accuracy, mean_rate)


@given(label_batches(), st.sampled_from(NAMES))
def test_order_and_repetition_do_not_matter(batch: tuple[Tensor, Tensor], name: str) -> None:
    input, target = both_classes(batch)
    value = any_loss(input, target, metric=name)
    torch.testing.assert_close(any_loss(input.flip(0), target.flip(0), metric=name), value)
    torch.testing.assert_close(any_loss(input.repeat(2), target.repeat(2), metric=name), value)
    torch.testing.assert_close(any_loss(input[:, None], target[:, None], metric=name), value)


def test_a_metric_of_ones_own() -> None:
    input, target = torch.tensor([1.0, -1.0, 0.2]), torch.tensor([1.0, 0.0, 0.0])
    own = AnyLoss(lambda tp, fp, fn, tn: tp / (tp + fp))
    torch.testing.assert_close(own(input, target), any_loss(input, target, metric="precision"))
    smoothed = any_loss(input, target, metric=lambda tp, fp, fn, tn: tp, eps=0.5)
    torch.testing.assert_close(smoothed, 0.5 - soft_confusion_matrix(input, target).tp)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("slope", [73.0, 1000.0])
def test_missing_classes_and_vanished_counts_have_finite_gradients(name: str, label: float, slope: float) -> None:
    for sign in (-50.0, 50.0):  # all called alike, to the last bit
        input = torch.full((4,), sign, requires_grad=True)
        value = any_loss(input, torch.full((4,), label), metric=name, slope=slope)
        (gradient,) = torch.autograd.grad(value, input)
        assert 0 <= value <= 1
        assert gradient.isfinite().all()
    mixed = torch.tensor([-50.0, 50.0], requires_grad=True)
    value = any_loss(mixed, torch.tensor([label, 1 - label]), metric=name, slope=slope)
    assert value.isfinite()
    assert torch.autograd.grad(value, mixed)[0].isfinite().all()


def test_a_rate_of_nothing_is_one() -> None:
    nobody = torch.zeros(3)
    assert metric_value(torch.zeros(3), nobody, metric="recall") == 1
    assert metric_value(torch.zeros(3), nobody, metric="balanced_accuracy", slope=1.0) == 0.75
    assert metric_value(torch.zeros(3), nobody, metric="mcc") == 0
    for name in NAMES:  # no entries at all
        assert metric_value(torch.zeros(0), torch.zeros(0), metric=name) == (name != "mcc")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "f2"}, "metric is 'f2'; wanted one of accuracy, fbeta"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"slope": 0.0}, "slope is 0.0"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"from_logits": False}, r"input contains 3; wanted values in \[0, 1\]"),
    ],
)
def test_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        any_loss(torch.tensor([3.0, 0.5]), torch.tensor([1.0, 0.0]), **options)


# --- many ranks -----------------------------------------------------------------------------------------------------

LOSSES = {
    "any": AnyLoss("fbeta", slope=5.0, gather=True),
    "dice": NLPDiceLoss(gather=True),
    "tversky": TverskyNLPLoss(gather=True),
}


def batch_of_ranks() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9, generator=generator), (torch.rand(9, generator=generator) < 0.5).float()


def gradients_of_a_rank(rank: int, results: str) -> None:
    input, target = batch_of_ranks()
    rows = slice(0, 3) if rank == 0 else slice(3, 9)
    found = {}
    for name, loss in LOSSES.items():
        mine = input[rows].clone().requires_grad_()
        value = loss(mine, target[rows])
        value.backward()
        found[name] = (value.detach(), mine.grad / 2)  # averaged over ranks, as DistributedDataParallel does
    torch.save(found, f"{results}.{rank}")


def test_two_ranks_equal_one(tmp_path) -> None:
    run_ranks(gradients_of_a_rank, 2, tmp_path, str(tmp_path / "found"))
    first, second = (torch.load(tmp_path / f"found.{rank}") for rank in range(2))
    input, target = batch_of_ranks()
    for name, loss in LOSSES.items():
        whole = input.clone().requires_grad_()
        value = loss(whole, target)
        value.backward()
        torch.testing.assert_close(first[name][0], value.detach())
        torch.testing.assert_close(second[name][0], value.detach())
        torch.testing.assert_close(torch.cat([first[name][1], second[name][1]]), whole.grad)
