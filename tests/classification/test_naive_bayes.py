"""Linear naive Bayes: batches do not matter, a layer predicts the same, and the bound of cross-entropy holds."""

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.naive_bayes import GaussianNB
from torch import Tensor

from lossary.classification import (
    LinearNaiveBayes,
    gaussian_mixture_task,
    linear_evaluation_curve,
    logistic_excess_bound,
)
from lossary.classification.naive_bayes import _logistic, _logistic_by_torch

SEED = st.integers(0, 10_000)


def rows(seed: int, count: int = 24, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (count,), generator=generator)
    y[-classes:] = torch.arange(classes)  # every class has a row
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return x + y.unsqueeze(1) * torch.arange(4), y


@given(SEED, st.lists(st.integers(1, 23), max_size=4, unique=True), st.booleans())
def test_batches_do_not_matter(seed: int, cuts: list[int], relative: bool) -> None:
    """Batches that lack classes, and classes that appear late, included."""
    x, y = rows(seed)
    whole = LinearNaiveBayes(1e-3, relative=relative).fit(x, y)
    parts = LinearNaiveBayes(1e-3, relative=relative)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 24], strict=True):
        parts.partial_fit(x[start:end], y[start:end])
    for name in ("counts", "prior", "class_mean", "class_variance", "variance"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    refitted = parts.fit(x, y)
    torch.testing.assert_close(refitted.decision_function(x), whole.decision_function(x))


@given(SEED)
def test_a_linear_layer_predicts_the_same(seed: int) -> None:
    x, y = rows(seed)
    head = LinearNaiveBayes().fit(x, y)
    query = rows(seed + 1)[0]
    scores, linear = head.decision_function(query), head.to_linear()(query)
    assert torch.equal(linear.argmax(1), head.predict(query))
    offset = linear - scores
    torch.testing.assert_close(offset, offset[:, :1].expand_as(offset))


@given(SEED, st.permutations([0, 1, 2]))
def test_invariances(seed: int, order: list[int]) -> None:
    x, y = rows(seed)
    head = LinearNaiveBayes(0.0).fit(x, y)
    unit = torch.tensor([0.1, 3.0, 50.0, 1.0], dtype=torch.float64)
    scaled = LinearNaiveBayes(0.0).fit(unit * x, y)
    torch.testing.assert_close(scaled.decision_function(unit * x), head.decision_function(x))
    renamed = LinearNaiveBayes(0.0).fit(x, torch.tensor(order)[y])
    torch.testing.assert_close(renamed.decision_function(x)[:, order], head.decision_function(x))


def test_agrees_with_scikit_learn_where_class_variances_are_equal() -> None:
    x, _ = rows(0)
    x, y = torch.cat([x, x + 3, x - 5]), torch.arange(3).repeat_interleave(24)
    query = 4 * torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = GaussianNB(var_smoothing=1e-6).fit(x.numpy(), y.numpy())
    head = LinearNaiveBayes(1e-6, relative=True).fit(x, y)
    torch.testing.assert_close(
        head.decision_function(query).softmax(1), torch.from_numpy(model.predict_proba(query.numpy()))
    )


def test_unit_variances_and_equal_priors_give_the_nearest_mean() -> None:
    x = torch.tensor([[-1.0, 0.0], [1.0, 2.0], [4.0, 4.0], [6.0, 6.0]])
    head = LinearNaiveBayes(0.0).fit(x, torch.tensor([0, 0, 1, 1]))
    assert head.class_variance.tolist() == [[1, 1], [1, 1]]  # of two points a and b: (a - b)^2 / 4
    query = 5 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(head.predict(query), torch.cdist(query, head.class_mean).argmin(1))


def test_absent_classes_are_never_predicted() -> None:
    x, y = rows(0)
    head = LinearNaiveBayes().fit(x, 2 * y)
    assert head.prior[[1, 3]].tolist() == [0, 0]
    assert not torch.isin(head.predict(10 * x), torch.tensor([1, 3])).any()
    assert not head.decision_function(x).isnan().any()


def test_large_offsets_keep_their_digits() -> None:
    x, y = rows(0)
    near, far = LinearNaiveBayes().fit(x, y), LinearNaiveBayes().fit(x + 1e7, y)
    torch.testing.assert_close(far.variance, near.variance, rtol=1e-6, atol=0)


def test_simulation() -> None:
    task = gaussian_mixture_task(6, 4, 40_000, generator=torch.Generator().manual_seed(0))
    assert torch.bincount(task.labels).tolist() == [10_000] * 4
    for k, mean in enumerate((-1.0, 1.0, 2.0, 4.0)):
        members = task.features[task.labels == k]
        torch.testing.assert_close(members.mean(0), torch.full((6,), mean), atol=0.1, rtol=0)
        torch.testing.assert_close(members.var(0), torch.tensor([6.0] * 3 + [1.0] * 3), rtol=0.06, atol=0)
    hard = gaussian_mixture_task(6, 2, 40_000, mode="hard", generator=torch.Generator().manual_seed(0))
    covariance = torch.cov(hard.features[hard.labels == 0].T)
    assert (covariance - covariance.diag().diag()).abs().max() > 0.3
    # Two classes 2 apart: with independent coordinates the best error is that of a unit Gaussian at half the distance.
    head = LinearNaiveBayes().fit(*gaussian_mixture_task(2, 2, 20_000, generator=torch.Generator().manual_seed(1)))
    x, y = gaussian_mixture_task(2, 2, 20_000, generator=torch.Generator().manual_seed(2))
    best = 0.5 * math.erfc(math.sqrt(6) / 2 / math.sqrt(2))
    assert (head.predict(x) != y).double().mean().item() == pytest.approx(best, abs=0.01)


def test_learning_curves() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = (gaussian_mixture_task(20, 3, n, generator=generator) for n in (200, 500))
    errors = linear_evaluation_curve(*train, *test, sizes=[3, 10, 100], seeds=[0, 1])
    assert {name: tuple(e.shape) for name, e in errors.items()} == {"naive_bayes": (2, 3), "logistic": (2, 3)}
    assert errors["naive_bayes"][:, 1].mean() < errors["logistic"][:, 1].mean()
    again = linear_evaluation_curve(*train, *test, sizes=[100], seeds=[1], heads=["naive_bayes"])
    torch.testing.assert_close(again["naive_bayes"][0, 0], errors["naive_bayes"][1, 2])
    with pytest.raises(ValueError, match="sizes contains 2; wanted 3"):
        linear_evaluation_curve(*train, *test, sizes=[2])
    with pytest.raises(ValueError, match="heads contains 'svm'"):
        linear_evaluation_curve(*train, *test, sizes=[3], heads=["svm"])


def test_logistic_regression_without_scikit_learn_is_the_same() -> None:
    x, y = rows(3, 60)
    query = rows(4, 200)[0]
    assert (_logistic(x, y, query) == _logistic_by_torch(x, y, query)).double().mean() > 0.98


@given(st.integers(2, 6), SEED)
@settings(max_examples=200)
def test_bound_of_cross_entropy(classes: int, seed: int) -> None:
    """At a single point: how far the predicted class trails the best one, against the divergence."""
    generator = torch.Generator().manual_seed(seed)
    p, q = (3 * torch.randn(2, classes, generator=generator, dtype=torch.float64)).softmax(1)
    excess = (p * (p / q).log()).sum()
    regret = p.max() - p[q.argmax()]
    bound = logistic_excess_bound(excess, classes)
    assert regret <= bound + 1e-12
    assert bound <= math.sqrt(2 * excess) + 1e-12


def test_bound_is_reached_with_two_classes_and_ends_at_one() -> None:
    p = torch.tensor([0.8, 0.2], dtype=torch.float64)
    excess = (p * (p / 0.5).log()).sum()  # predicted equal: the wrong class may win
    torch.testing.assert_close(logistic_excess_bound(excess), (p[0] - p[1]))
    found = logistic_excess_bound(torch.tensor([0.0, math.log(2), 5.0, math.nan]))
    torch.testing.assert_close(
        found, torch.tensor([0.0, 1.0, 1.0, math.nan], dtype=torch.float64), equal_nan=True, atol=1e-7, rtol=0
    )


def test_bad_arguments() -> None:
    x, y = rows(0)
    with pytest.raises(ValueError, match="nothing is fitted yet"):
        LinearNaiveBayes().predict(x)
    with pytest.raises(ValueError, match="var_smoothing is -1"):
        LinearNaiveBayes(-1.0)
    with pytest.raises(ValueError, match="target contains -1"):
        LinearNaiveBayes().fit(x, y - 1)
    with pytest.raises(ValueError, match="input has 3 columns; wanted 4"):
        LinearNaiveBayes().fit(x, y).partial_fit(x[:, :3], y)
    with pytest.raises(ValueError, match=r"input has shape \(0, 4\)"):
        LinearNaiveBayes().fit(x[:0], y[:0])
    with pytest.raises(ValueError, match="mode is 'medium'"):
        gaussian_mixture_task(2, 2, 2, mode="medium")
    with pytest.raises(ValueError, match="excess is -1"):
        logistic_excess_bound(-1.0)
    with pytest.raises(ValueError, match="num_classes is 1"):
        logistic_excess_bound(0.1, 1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    x, y = rows(0)
    head, wanted = LinearNaiveBayes().fit(x, y.to(dtype)), LinearNaiveBayes().fit(x, y)
    torch.testing.assert_close(head.decision_function(x), wanted.decision_function(x))
    curve = linear_evaluation_curve(x.bfloat16(), y.to(dtype), x.bfloat16(), y.to(dtype), sizes=[12])
    assert all((errors < 0.5).all() for errors in curve.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_layer_takes_features_of_any_precision(dtype: torch.dtype) -> None:
    """Also where constant features make scores of 1e9."""
    x, y = rows(0)
    x = torch.cat([x, torch.full((24, 1), 3.0)], 1).to(dtype)
    head = LinearNaiveBayes().fit(x, y)
    linear = head.to_linear()
    assert torch.equal(linear(x).argmax(1), head.predict(x))
    assert torch.equal(pickle.loads(pickle.dumps(linear))(x), linear(x))


def test_labels_and_queries_that_do_not_fit_say_so() -> None:
    x, y = rows(0)
    for labels in (y.double(), y > 0):
        with pytest.raises(TypeError, match="target has dtype"):
            LinearNaiveBayes().fit(x, labels)
    with pytest.raises(ValueError, match=r"query has shape \(24, 3\)"):
        LinearNaiveBayes().fit(x, y).predict(x[:, :3])
    with pytest.raises(ValueError, match="labels has shape"):
        linear_evaluation_curve(x, y[:-1], x, y, sizes=[6])
    with pytest.raises(ValueError, match="test_labels has shape"):
        linear_evaluation_curve(x, y, x, y[:-1], sizes=[6])
