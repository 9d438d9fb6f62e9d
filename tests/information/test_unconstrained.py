"""Minima in closed form: nothing lies below them, descent reaches them, and classes vanish where they say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from lossary.information import (
    UnconstrainedFeatureModel,
    collapse_minimum,
    collapse_threshold,
    minority_collapse_size,
    unconstrained_feature_loss,
)

DECAY = st.floats(1e-4, 0.05)
COUNTS = st.lists(st.integers(1, 30), min_size=2, max_size=5)


@given(COUNTS, st.lists(DECAY, min_size=1, max_size=4), DECAY)
@settings(max_examples=25)
def test_each_class_minimises_its_own_curve(counts: list[int], decays: list[float], feature_decay: float) -> None:
    minimum = collapse_minimum(counts, weight_decays=decays, feature_decay=feature_decay)
    depth, total = len(decays), sum(counts)
    product = feature_decay
    for decay in decays:
        product *= decay
    floor = 0.0
    for n in counts:
        slope = depth * total / n * (total * product) ** (1 / depth)
        curve = lambda x, slope=slope: 1 / (x**depth + 1) + slope * x  # noqa: E731
        grid = torch.linspace(0, 1, 2001, dtype=torch.float64) / slope  # beyond 1 / slope the curve exceeds its start
        start = grid[curve(grid).argmin()].item()
        step = 1 / slope / 2000
        best = minimize_scalar(curve, bounds=(max(start - step, 0), start + step), method="bounded").fun
        floor += n / total * min(best, 1.0) / 2
    assert minimum["loss"].item() == pytest.approx(floor, rel=1e-6)
    assert minimum["loss"] <= 0.5 + 1e-12


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("counts", [[4, 4, 4], [8, 5, 1]])
def test_descent_reaches_the_minimum(depth: int, counts: list[int]) -> None:
    decays, feature_decay = [0.01, 0.008, 0.012][:depth], 0.002
    minimum = collapse_minimum(counts, weight_decays=decays, feature_decay=feature_decay)
    models = []
    for seed in range(3):
        models.append(
            UnconstrainedFeatureModel(
                counts,
                5,
                depth,
                weight_decays=decays,
                feature_decay=feature_decay,
                generator=torch.Generator().manual_seed(seed),
            )
        )
        assert models[-1].loss() >= minimum["loss"]
    reached = torch.stack([model.minimize(300) for model in models])
    assert (reached >= minimum["loss"] - 1e-9).all()
    torch.testing.assert_close(reached.min(), minimum["loss"], atol=1e-7, rtol=1e-6)
    model = models[int(reached.argmin())]
    product = model.product().detach()
    gram = product @ product.T
    torch.testing.assert_close(gram, minimum["product_squared_norms"].diag(), atol=2e-4, rtol=2e-3)
    means = model.class_means().detach()
    torch.testing.assert_close(means.norm(dim=1), minimum["class_mean_norms"], atol=2e-3, rtol=2e-3)
    scatter = model.features.detach().T - means[model.labels]
    assert scatter.abs().max() < 1e-3


def test_threshold_and_size() -> None:
    assert [collapse_threshold(depth) for depth in (1, 2)] == [1.0, 0.5]
    assert collapse_threshold(3) == pytest.approx(2 ** (2 / 3) / 3)
    for decays in ([0.02], [0.02, 0.03], [0.05, 0.05, 0.04]):
        size = minority_collapse_size(100, weight_decays=decays, feature_decay=0.03)
        assert 1 < size < 50
        for n, alive in ((size, True), (size - 1, False)):
            minimum = collapse_minimum([100 - n, n], weight_decays=decays, feature_decay=0.03)
            assert (minimum["product_squared_norms"][1] > 0) == alive
            assert (minimum["class_mean_norms"][1] > 0) == alive


@given(st.integers(1, 40), st.integers(2, 5), st.integers(1, 3), DECAY, DECAY)
def test_balanced_classes_are_alike_and_every_decay_costs(
    n: int, classes: int, depth: int, decay: float, feature_decay: float
) -> None:
    minimum = collapse_minimum([n] * classes, weight_decays=[decay] * depth, feature_decay=feature_decay)
    for name in ("product_squared_norms", "class_mean_norms"):
        torch.testing.assert_close(minimum[name], minimum[name][:1].expand(classes))
    heavier = collapse_minimum([n] * classes, weight_decays=[1.1 * decay] * depth, feature_decay=feature_decay)
    assert heavier["loss"] >= minimum["loss"]
    heavier = collapse_minimum([n] * classes, weight_decays=[decay] * depth, feature_decay=1.1 * feature_decay)
    assert heavier["loss"] >= minimum["loss"]


def test_a_narrow_layer_keeps_the_largest_classes() -> None:
    decays, counts = [0.005, 0.005], [3, 9, 6]
    options = {"weight_decays": decays, "feature_decay": 0.002}
    narrow = collapse_minimum(counts, rank=2, **options)
    full = collapse_minimum(counts, **options)
    assert (narrow["product_squared_norms"] > 0).tolist() == [False, True, True]
    torch.testing.assert_close(narrow["product_squared_norms"][1:], full["product_squared_norms"][1:])
    reached = [
        UnconstrainedFeatureModel(
            counts, 4, 2, width=2, generator=torch.Generator().manual_seed(seed), **options
        ).minimize(500)
        for seed in range(4)
    ]
    torch.testing.assert_close(torch.stack(reached).min(), narrow["loss"], atol=1e-7, rtol=1e-6)


def test_cross_entropy_with_a_bias_collapses_to_a_simplex() -> None:
    """No closed lengths there, but the frame: inner products -1 / (K - 1) of the squared length."""
    model = UnconstrainedFeatureModel(
        [4, 4, 4], 5, 1, loss="cross_entropy", bias=True, generator=torch.Generator().manual_seed(0)
    )
    model.minimize(1000)
    product = model.product().detach()
    gram = product @ product.T / product.square().sum() * 3
    torch.testing.assert_close(gram, 1.5 * torch.eye(3).double() - 0.5, atol=1e-3, rtol=0)


def test_loss_under_gradcheck_vmap_and_compile() -> None:
    generator = torch.Generator().manual_seed(0)
    features, first, second = (
        torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((4, 6), (5, 4), (3, 5))
    )
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    for loss in ("mse", "cross_entropy"):

        def call(h: torch.Tensor, w: torch.Tensor, decay: torch.Tensor, loss: str = loss) -> torch.Tensor:
            options = {"weight_decays": [decay, 0.02], "feature_decay": decay, "loss": loss, "bias": torch.ones(3)}
            return unconstrained_feature_loss(h, [w, second], labels, **options)

        decay = torch.tensor(0.01, dtype=torch.float64)
        inputs = tuple(x.clone().requires_grad_() for x in (features, first, decay))
        assert torch.autograd.gradcheck(call, inputs)
        decays = torch.tensor([0.01, 0.1], dtype=torch.float64)
        together = torch.func.vmap(call, (None, None, 0))(features, first, decays)
        torch.testing.assert_close(together, torch.stack([call(features, first, d) for d in decays]))
        torch._dynamo.reset()
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(features, first, decay), call(features, first, decay))


def test_bad_arguments() -> None:
    h, w, labels = torch.zeros(4, 6), torch.zeros(3, 4), torch.zeros(6, dtype=torch.long)
    decays = {"weight_decays": [0.1], "feature_decay": 0.1}
    with pytest.raises(ValueError, match="loss is 'hinge'"):
        unconstrained_feature_loss(h, [w], labels, loss="hinge", **decays)
    with pytest.raises(ValueError, match="there are 2 weights and 1 weight_decays"):
        unconstrained_feature_loss(h, [w, w], labels, **decays)
    with pytest.raises(ValueError, match=r"weights has shape \(3, 4\); wanted \(3, 3\)"):
        unconstrained_feature_loss(h, [w, w], labels, weight_decays=[0.1, 0.1], feature_decay=0.1)
    with pytest.raises(ValueError, match="labels has shape"):
        unconstrained_feature_loss(h, [w], labels[:5], **decays)
    with pytest.raises(ValueError, match="at least one example of each class"):
        collapse_minimum([3, 0], **decays)
    with pytest.raises(ValueError, match=r"feature_decay is 0\.0"):
        collapse_minimum([3, 1], weight_decays=[0.1], feature_decay=0.0)
    with pytest.raises(ValueError, match="rank is 0"):
        collapse_minimum([3, 1], rank=0, **decays)
    with pytest.raises(ValueError, match="depth is 0"):
        collapse_threshold(0)
    with pytest.raises(ValueError, match="weight_decays has 2 numbers; wanted 3"):
        UnconstrainedFeatureModel([1, 1], 2, 3, weight_decays=[0.1, 0.1])


def test_bad_labels_and_decays_say_so() -> None:
    h, w, labels = torch.randn(2, 3), torch.randn(2, 2), torch.tensor([0, 1, 7])
    decays = {"weight_decays": [0.1], "feature_decay": 0.1}
    for loss in ("mse", "cross_entropy"):
        with pytest.raises(ValueError, match="labels contains 7; wanted integers from 0 to 1"):
            unconstrained_feature_loss(h, [w], labels, loss=loss, **decays)
    unseen = torch.func.vmap(lambda row: unconstrained_feature_loss(h, [w], row, **decays))(labels.unsqueeze(0))
    assert unseen.isnan().all()
    with pytest.raises(TypeError, match=r"labels has dtype torch\.float32"):
        unconstrained_feature_loss(h, [w], labels.float(), **decays)
    with pytest.raises(ValueError, match=r"weight_decays is -0\.1"):
        unconstrained_feature_loss(h, [w], labels.clamp(max=1), weight_decays=[-0.1], feature_decay=0.1)
    with pytest.raises(ValueError, match="loss is 'hinge'"):
        UnconstrainedFeatureModel([2, 2], 3, 1, loss="hinge")  # type: ignore[arg-type]
    short = labels.clamp(max=1).to(torch.uint8)
    assert unconstrained_feature_loss(h, [w], short, loss="cross_entropy", **decays).isfinite()
