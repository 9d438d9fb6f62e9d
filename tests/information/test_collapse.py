"""Measurements of collapse: 0 in the frames they are about, blind to rotation and scale, and observed in passing."""

import pytest
import torch
from torch import Tensor, nn

from lossary.information import (
    NeuralCollapseObserver,
    collapse_minimum,
    nearest_mean_disagreement,
    neural_collapse_metrics,
)

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2])


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]


def test_zero_in_the_simplex() -> None:
    frame = (torch.eye(3).double() - 1 / 3) @ rotation(3)
    metrics = neural_collapse_metrics((2 * frame + 0.7)[LABELS], LABELS, 5 * frame, geometry="etf")
    torch.testing.assert_close(torch.stack(list(metrics.values())), torch.zeros(3).double(), atol=1e-12, rtol=0)


def test_zero_in_the_orthogonal_frame() -> None:
    frame = rotation(4)[:3]
    metrics = neural_collapse_metrics(2 * frame[LABELS], LABELS, 5 * frame, geometry="orthogonal")
    torch.testing.assert_close(torch.stack(list(metrics.values())), torch.zeros(3).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_zero_at_the_imbalanced_minimum_of_any_depth(depth: int) -> None:
    decays = {"weight_decays": [0.003] * depth, "feature_decay": 0.001}
    minimum = collapse_minimum([4, 2, 1], **decays)
    frame = rotation(4)[:3]
    weight = minimum["product_squared_norms"].sqrt().unsqueeze(1) * frame
    features = minimum["class_mean_norms"].unsqueeze(1) * frame
    metrics = neural_collapse_metrics(features[LABELS], LABELS, weight, geometry="gof", **decays)
    torch.testing.assert_close(torch.stack(list(metrics.values())), torch.zeros(3).double(), atol=1e-12, rtol=0)
    assert neural_collapse_metrics(features[LABELS], LABELS, weight, geometry="orthogonal")["nc2"] > 0.1
    other = neural_collapse_metrics(features[LABELS], LABELS, weight, geometry="gof", counts=[4, 4, 4], **decays)
    assert other["nc2"] > 0.1


@pytest.mark.parametrize("geometry", ["etf", "orthogonal"])
def test_blind_to_rotation_and_scale(geometry: str) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    weight = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    here = neural_collapse_metrics(features, LABELS, weight, geometry=geometry)
    turn = rotation(4)
    there = neural_collapse_metrics(3 * features @ turn, LABELS, 7 * weight @ turn, geometry=geometry)
    torch.testing.assert_close(here, there)
    shifted = neural_collapse_metrics(features + 2, LABELS, weight, geometry=geometry)
    torch.testing.assert_close(here["nc1"], shifted["nc1"])


def test_no_spread_of_means_is_nan() -> None:
    metrics = neural_collapse_metrics(torch.ones(7, 4), LABELS, torch.eye(3, 4))
    assert metrics["nc1"].isnan()


def test_nearest_mean_disagreement() -> None:
    features = torch.eye(3)[LABELS]
    assert nearest_mean_disagreement(features, LABELS, features) == 0
    torch.testing.assert_close(
        nearest_mean_disagreement(features, LABELS, features.roll(1, 1)), torch.ones((), dtype=torch.float64)
    )


@pytest.mark.parametrize("deep", [False, True])
def test_observer_sees_what_enters_the_head_and_leaves_no_trace(deep: bool) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(8, 6, bias=False), nn.Linear(6, 3)) if deep else nn.Linear(8, 3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), head)
    model[1].eval()
    head.train()
    x = torch.randn(7, 4)
    observer = NeuralCollapseObserver(model, head)
    measured = observer([(x[:3], LABELS[:3]), (x[3:], LABELS[3:])])
    with torch.no_grad():
        features = model[0](x)
        weight = head[1].weight @ head[0].weight if deep else head.weight
    expected = neural_collapse_metrics(features, LABELS, weight)
    expected["nc4"] = nearest_mean_disagreement(features, LABELS, head(features))
    assert measured == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-4)
    assert observer.history == [measured]
    assert [model[1].training, head.training] == [False, True]
    assert not head._forward_pre_hooks
    with pytest.raises(ValueError, match="0 times on 0 batches"):
        observer([])
    with pytest.raises(TypeError, match=r"wanted nn\.Linear"):
        NeuralCollapseObserver(model, model[1])


def test_collapse_is_seen_in_training() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8), nn.Linear(8, 3))
    x = 0.7 * torch.randn(30, 2) + 3 * torch.eye(3, 2).repeat(10, 1)
    y = torch.arange(3).repeat(10)
    observer = NeuralCollapseObserver(model, model[-1])
    optimizer = torch.optim.Adam(model.parameters(), 0.02, weight_decay=3e-3)
    before = observer([(x, y)])
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    after = observer([(x, y)])
    assert after["nc1"] < 0.5 * before["nc1"]
    assert after["nc3"] < before["nc3"]


def test_bad_arguments() -> None:
    features, weight = torch.randn(7, 4), torch.randn(3, 4)
    with pytest.raises(ValueError, match="geometry is 'cube'"):
        neural_collapse_metrics(features, LABELS, weight, geometry="cube")
    with pytest.raises(ValueError, match="geometry is 'gof' without"):
        neural_collapse_metrics(features, LABELS, weight, geometry="gof")
    with pytest.raises(ValueError, match="at least one of each"):
        neural_collapse_metrics(features, LABELS.clamp(max=1), weight)
    with pytest.raises(ValueError, match="labels contains 4; wanted integers from 0 to 2"):
        neural_collapse_metrics(features, LABELS.index_fill(0, torch.tensor([0]), 4), weight)
    with pytest.raises(ValueError, match="labels has shape"):
        neural_collapse_metrics(features, LABELS[:3], weight)


def test_a_classifier_of_another_width_says_so() -> None:
    with pytest.raises(ValueError, match=r"features has shape \(7, 3\) and weight \(3, 4\); wanted \(N, d\) and"):
        neural_collapse_metrics(torch.randn(7, 3), LABELS, torch.randn(3, 4))
    with pytest.raises(TypeError, match=r"labels has dtype torch\.float32; wanted int64"):
        neural_collapse_metrics(torch.randn(7, 3), LABELS.float(), torch.randn(3, 3))
