"""LegendreTron: the reference class, convexity, monotonicity, what it reduces to, transformations, the classifier."""

import copy
import pickle
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import log_softmax
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor

from lossary.classification import (
    ActNorm,
    ConvexGradientBlock,
    InputConvexNetwork,
    LegendreLink,
    LegendreTron,
    LegendreTronClassifier,
    PositiveLinear,
    log_softmax_plus,
    softmax_plus,
)
from tests.classification.strategies import tensors

FEW = settings(max_examples=10)
SEEDS = st.integers(0, 1000)


def rows(count: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ready(module: Any, dim: int, seed: int = 0) -> Any:
    """The module in float64 after its first training batch, with weights by seed."""
    torch.manual_seed(seed)
    module = module().double()
    module(rows(32, dim, seed))
    return module.eval()


# --- softmax+ -------------------------------------------------------------------------------------------------------


@given(tensors((2, 3), -1e3, 1e3), st.sampled_from([0, 1, -1]))
def test_softmax_plus_has_a_reference_class(z: Tensor, dim: int) -> None:
    log_q = log_softmax_plus(z, dim)
    zeros = torch.zeros_like(z.narrow(dim, 0, 1))
    torch.testing.assert_close(log_q, F.log_softmax(torch.cat([z, zeros], dim), dim))
    torch.testing.assert_close(softmax_plus(z, dim).sum(dim), torch.ones_like(z).select(dim, 0))


def test_softmax_plus_of_one_score_is_a_sigmoid_and_never_overflows() -> None:
    z = torch.tensor([[-1e4], [-1.0], [0.0], [1e4]])
    torch.testing.assert_close(log_softmax_plus(z), torch.cat([F.logsigmoid(z), F.logsigmoid(-z)], 1))
    low = torch.full((1, 3), -1e4).requires_grad_()
    log_softmax_plus(low).sum().backward()
    assert low.grad is not None
    assert low.grad.isfinite().all()


def test_softmax_plus_of_no_scores_and_of_halves() -> None:
    torch.testing.assert_close(log_softmax_plus(torch.zeros(2, 0)), torch.zeros(2, 1))
    half = torch.tensor([[0.25, -9.0]]).bfloat16()
    torch.testing.assert_close(log_softmax_plus(half), log_softmax_plus(half.float()))
    with pytest.raises(ValueError, match=r"input has shape \(\); wanted scores"):
        log_softmax_plus(torch.tensor(0.0))


# --- layers ---------------------------------------------------------------------------------------------------------


def test_positive_linear_divides_weights_and_bias() -> None:
    layer = PositiveLinear(3, 2)
    x = torch.randn(4, 3)
    torch.testing.assert_close(layer(x), (x @ F.softplus(layer.weight).T + layer.bias) / 3)


def test_act_norm_standardises_the_first_training_batch_alone() -> None:
    norm = ActNorm(4).double()
    x = 3 * rows(50, 4) + 7
    torch.testing.assert_close(norm.eval()(x), x * 1.001)
    assert not norm.initialized
    y = norm.train()(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(y.std(0, correction=0), torch.full((4,), 1.0, dtype=torch.float64), atol=0.01, rtol=0)
    assert norm.initialized
    before = copy.deepcopy(norm.state_dict())
    norm(10 * x)
    torch.testing.assert_close(norm.state_dict(), before)
    fresh = ActNorm(4).double()
    fresh.load_state_dict(before)
    torch.testing.assert_close(fresh(10 * x), norm(10 * x))
    for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        torch.testing.assert_close(twin(-x), norm(-x))
    with pytest.raises(ValueError, match="the first training batch needs 2 rows"):
        ActNorm(4)(torch.zeros(1, 4))


# --- convexity ------------------------------------------------------------------------------------------------------


@FEW
@given(SEEDS, st.sampled_from([(2, 1), (2, 4), (4, 2), (6, 3)]))
def test_network_and_potential_are_convex(seed: int, size: tuple[int, int]) -> None:
    block = ready(lambda: ConvexGradientBlock(3, *size), 3, seed)
    x, y = 5 * rows(64, 3, seed + 1), 5 * rows(64, 3, seed + 2)
    for function in (block.icnn, block.potential):
        assert (function((x + y) / 2) <= (function(x) + function(y)) / 2 + 1e-12).all()


@FEW
@given(SEEDS)
def test_block_is_a_monotone_gradient(seed: int) -> None:
    """Its Jacobian is symmetric and at least softplus(raw_quadratic)."""
    block = ready(lambda: ConvexGradientBlock(3, 4, 3), 3, seed)
    x, y = rows(16, 3, seed + 1), rows(16, 3, seed + 2)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(block.potential(leaf).sum(), leaf)
    torch.testing.assert_close(block(x), slope)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: block(z[None])[0]))(x)
    torch.testing.assert_close(jacobian, jacobian.mT)
    assert (torch.linalg.eigvalsh(jacobian) >= F.softplus(block.raw_quadratic) - 1e-9).all()
    assert (((block(x) - block(y)) * (x - y)).sum(1) > 0).all()


def test_block_can_be_inverted() -> None:
    block = ready(lambda: ConvexGradientBlock(3, 4, 3), 3)
    x = rows(1, 3, 5)
    y = block(x).detach()

    def residual(z: Any) -> Any:
        with torch.no_grad():
            return (block(torch.tensor(z)[None]) - y)[0].numpy()

    np.testing.assert_allclose(optimize.root(residual, np.zeros(3)).x, x[0], atol=1e-6)


def test_without_potential_it_is_logistic_regression_with_scaled_scores() -> None:
    model = ready(lambda: LegendreTron(4, 3), 4)
    x = rows(10, 4)
    scale = 1.0
    for block in model.link.blocks:
        torch.nn.init.constant_(block.raw_potential, -1e4)
        scale = scale * F.softplus(block.raw_quadratic)
    torch.testing.assert_close(model(x), log_softmax_plus(scale * model.linear(x)))
    torch.testing.assert_close(LegendreLink(3, n_blocks=0)(x[:, :2]), log_softmax_plus(x[:, :2]))


# --- transformations --------------------------------------------------------------------------------------------------


def test_loss_is_likelihood_and_all_squared_parameters() -> None:
    torch.manual_seed(0)
    model = LegendreTron(4, 3, weight_decay=0.1).double()
    x, y = rows(20, 4), torch.arange(20) % 3
    loss = model.loss(x, y)  # the first batch: norms are set on the way
    loss.backward()
    squares = sum(parameter.square().sum() for parameter in model.parameters())
    torch.testing.assert_close(loss, F.nll_loss(model(x), y) + 0.05 * squares)
    frozen = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert frozen == [f"link.blocks.{b}.icnn.norms.3.shift" for b in range(2)]


def test_gradients_are_right() -> None:
    link = ready(lambda: LegendreLink(3, n_blocks=2, hidden=2, depth=2), 2)
    assert torch.autograd.gradcheck(link, (rows(3, 2).requires_grad_(),))
    torch.testing.assert_close(link(rows(3, 2)).exp().sum(1), torch.ones(3, dtype=torch.float64))
    with torch.no_grad():
        assert not link(rows(3, 2)).requires_grad


def test_compiles_in_training_and_evaluation_and_from_the_first_batch_on() -> None:
    x, y = rows(20, 4), torch.arange(20) % 3
    torch.manual_seed(0)
    model = LegendreTron(4, 3, n_blocks=1, depth=2).double()
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    for _ in range(2):  # the batch that sets the norms, and one after it
        value, eager = compiled(x, y), twin.loss(x, y)
        torch.testing.assert_close(value, eager)
        torch.testing.assert_close(
            *(
                torch.autograd.grad(loss, [m.linear.weight, m.link.blocks[0].raw_potential])
                for loss, m in ((value, model), (eager, twin))
            )
        )
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model.eval(), fullgraph=True, backend="aot_eager")(x), twin.eval()(x))


def test_link_under_vmap_and_grad() -> None:
    link = ready(lambda: LegendreLink(4), 3)
    batches = torch.stack([rows(5, 3, seed) for seed in range(3)])
    torch.testing.assert_close(torch.func.vmap(link)(batches), torch.stack([link(x) for x in batches]))
    y = torch.arange(5) % 4
    gradient = torch.func.grad(lambda z: F.nll_loss(link(z), y))(batches[0])
    leaf = batches[0].clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(F.nll_loss(link(leaf), y), leaf)[0])


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="hidden is 3; wanted an even number"):
        InputConvexNetwork(2, 3, 2)
    with pytest.raises(ValueError, match="depth is 0"):
        InputConvexNetwork(2, 2, 0)
    for module in (LegendreLink(3), ConvexGradientBlock(2, 2, 2), InputConvexNetwork(2, 2, 2)):
        with pytest.raises(ValueError, match=r"input has shape \(5, 3\); wanted \(5, 2\)"):
            module(torch.zeros(5, 3))
    model, x, y = LegendreTron(2, 3), np.zeros((4, 2)), np.array([0, 1, 2, 0])
    for arguments, message in [
        ((x[:, :1], y), r"X has shape \(4, 1\); wanted \(4, 2\)"),
        ((x[:, 0], y), r"X has shape \(4,\); wanted \(4, 2\)"),
        ((x, y + 0.5), "y holds fractions; wanted class indices"),
        ((x * np.nan, y), "X contains NaN or infinity"),
        ((x, y, -1), "epochs is -1"),
        ((x, y, 1, 0.1, 4, 0.9, 0), "step_every is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.fit(*arguments)


# --- fitting --------------------------------------------------------------------------------------------------------


def test_fit_follows_its_arguments() -> None:
    x, y = rows(40, 4), torch.arange(40) % 3

    def fitted(**words: Any) -> Tensor:
        torch.manual_seed(0)
        model = LegendreTron(4, 3).double()
        generator = torch.Generator().manual_seed(0)
        return model.fit(x, y, **{"epochs": 2, "generator": generator, **words}).predict_proba(x)

    base = fitted()
    assert torch.equal(fitted(), base)
    assert not base.requires_grad
    torch.testing.assert_close(base.sum(1), torch.ones(40, dtype=torch.float64))
    for words in ({"lr": 0.1}, {"epochs": 3}, {"batch_size": 10}, {"gamma": 0.5, "step_every": 1}):
        assert not torch.equal(fitted(**words), base)
    with pytest.raises(ValueError, match="target contains 3; wanted class indices from 0 to 2"):
        LegendreTron(4, 3).fit(x, y + 1)


def test_without_blocks_the_classifier_is_ridge_logistic_regression() -> None:
    """Its minimum is SciPy's, of the likelihood and half the squared parameters."""
    x, y = load_iris(return_X_y=True)
    z = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(150)])
    ours = LegendreTronClassifier(n_blocks=0, weight_decay=0.1, epochs=400, lr=0.1, batch_size=150).fit(x, y)

    def objective(flat: Any) -> float:
        log_p = log_softmax(np.column_stack([z @ flat.reshape(5, 2), np.zeros(150)]), axis=1)
        return float(-log_p[np.arange(150), y].mean() + 0.05 * np.square(flat).sum())

    best = optimize.minimize(objective, np.zeros(10), tol=1e-10).x.reshape(5, 2)
    expected = log_softmax(np.column_stack([z @ best, np.zeros(150)]), axis=1)
    np.testing.assert_allclose(ours.predict_log_proba(x), expected, atol=1e-3)


def test_learns_iris() -> None:
    x, y = load_iris(return_X_y=True)
    learned = LegendreTronClassifier(epochs=40, depth=2, lr=0.05).fit(x, y)
    assert learned.score(x, y) > 0.93
    assert -learned.predict_log_proba(x)[np.arange(150), y].mean() < 0.3


@parametrize_with_checks([LegendreTronClassifier(epochs=15, depth=1, n_blocks=1, lr=0.2, batch_size=128)])
def test_scikit_learn_takes_it_for_its_own(estimator: Any, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def test_in_pipelines_and_searches() -> None:
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    small = LegendreTronClassifier(epochs=15, depth=2)
    scores = cross_val_score(make_pipeline(MinMaxScaler(), small), x, names, cv=2, error_score="raise")
    assert (scores > 0.6).all()
    search = GridSearchCV(small, {"weight_decay": [0.01, 10.0]}, cv=2, error_score="raise").fit(x, names)
    assert search.best_params_ == {"weight_decay": 0.01}
    assert set(search.predict(x)) <= set(names)
    before = torch.random.get_rng_state()
    first, second = (small.fit(x, names).predict_proba(x) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)
    constant = np.concatenate([x, np.ones((150, 1))], 1)
    assert np.isfinite(small.fit(constant, names).predict_log_proba(constant)).all()


def test_needs_no_scikit_learn_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.exceptions", None)
    classifier = LegendreTronClassifier(epochs=1, depth=1)
    with pytest.raises(ValueError, match="not fitted yet"):
        classifier.predict(np.zeros((2, 3)))
    assert classifier.fit(np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2).score(
        np.zeros((2, 3)), [0, 1]
    ) in (0.0, 0.5, 1.0)
