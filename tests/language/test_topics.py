"""Topic segmentation: limits of the losses, padding, closed values of the metrics."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lossary.language import (
    BoundaryWeightedCrossEntropy,
    TopicSegmenter,
    boundaries_to_lengths,
    boundary_focal_loss,
    boundary_weighted_cross_entropy,
    lengths_to_boundaries,
    pk_score,
    segmentation_f1,
    window_diff,
)

SEEDS = st.integers(0, 10_000)


def sentences(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(2, (3, 8), generator=generator)
    target[:, -1] = -100
    return torch.randn(3, 8, 2, generator=generator, dtype=torch.float64), target


def plain(z: torch.Tensor, y: torch.Tensor, **options: object) -> torch.Tensor:
    return F.cross_entropy(z.flatten(0, 1), y.flatten(), **options)  # type: ignore[arg-type]


@given(SEEDS, st.floats(0.0, 5.0))
def test_focal_limits(seed: int, gamma: float) -> None:
    z, y = sentences(seed)
    torch.testing.assert_close(boundary_focal_loss(z, y, gamma=0.0), plain(z, y))
    focal = boundary_focal_loss(z, y, gamma=gamma, reduction="none")
    cross_entropy = plain(z, y, reduction="none").reshape(3, 8)
    p = z.softmax(-1).gather(-1, y.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(focal, (1 - p) ** gamma * cross_entropy)
    half = boundary_focal_loss(z, y, gamma=gamma, alpha=0.5)
    torch.testing.assert_close(half, boundary_focal_loss(z, y, gamma=gamma) / 2)
    sides = [boundary_focal_loss(z, y, gamma=gamma, alpha=alpha, reduction="none") for alpha in (1.0, 0.0)]
    torch.testing.assert_close(sides[0], torch.where(y == 1, focal, 0.0))
    torch.testing.assert_close(sides[1], torch.where(y == 0, focal, 0.0))


@given(SEEDS)
def test_balanced_classes(seed: int) -> None:
    z, y = sentences(seed)
    torch.testing.assert_close(boundary_weighted_cross_entropy(z, y, weight=(1.0, 1.0)), plain(z, y))
    weight = torch.tensor([0.3, 2.0], dtype=torch.float64)
    torch.testing.assert_close(boundary_weighted_cross_entropy(z, y, weight=weight), plain(z, y, weight=weight))
    by_count = boundary_weighted_cross_entropy(z, y, weight=weight, normalizer=(y != -100).sum())
    torch.testing.assert_close(by_count, plain(z, y, weight=weight, reduction="sum") / 21)
    rows = boundary_weighted_cross_entropy(z, y, reduction="none")
    torch.testing.assert_close(boundary_weighted_cross_entropy(z, y), rows.sum() / 21)
    even = boundary_weighted_cross_entropy(torch.zeros_like(z), y, reduction="none")
    if (y == 1).any() and (y == 0).any():
        torch.testing.assert_close(even[y == 1].sum(), even[y == 0].sum())
        torch.testing.assert_close(rows[y == 1].sum(), plain(z, torch.where(y == 1, 1, -100)) * 21 / 2)


def test_a_class_that_is_not_there_has_no_weight() -> None:
    z, y = sentences()
    none = torch.where(y == 1, 0, y)
    torch.testing.assert_close(boundary_weighted_cross_entropy(z, none), plain(z, none) / 2)
    nothing = boundary_weighted_cross_entropy(z.requires_grad_(), torch.full_like(y, -100), normalizer=1)
    assert nothing == 0
    assert (torch.autograd.grad(nothing, z)[0] == 0).all()
    module = BoundaryWeightedCrossEntropy()
    torch.testing.assert_close(module(z, y), boundary_weighted_cross_entropy(z, y))
    torch.testing.assert_close(BoundaryWeightedCrossEntropy((1.0, 1.0))(z, y), plain(z, y))
    assert torch.func.vmap(boundary_weighted_cross_entropy)(z[None].detach(), y[None]).isfinite().all()


@pytest.mark.parametrize("encoder", ["lstm", "transformer"])
def test_padding_changes_nothing(encoder: str) -> None:
    torch.manual_seed(0)
    model = TopicSegmenter(6, 16, num_layers=2, encoder=encoder, num_heads=2).eval()  # type: ignore[arg-type]
    x = torch.randn(2, 5, 6)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    poisoned = torch.where(mask.unsqueeze(-1), x, torch.nan)
    together = model(poisoned, mask)
    torch.testing.assert_close(together[:1], model(x[:1]))
    torch.testing.assert_close(together[1:, :3], model(x[1:, :3]))
    assert model(x[:, :1]).shape == (2, 1, 2)
    assert model.segment(x[0, :1], threshold=0.0) == []
    assert model.train().segment(x[0], threshold=0.0) == [0, 1, 2, 3]
    assert model.training
    model(x, mask).sum().backward()
    with pytest.raises(ValueError, match=r"mask has shape \(2, 4\); wanted \(2, 5\)"):
        model(x, mask[:, 1:])


def test_a_segmenter_learns() -> None:
    torch.manual_seed(0)
    topics = torch.randn(4, 8)
    x = torch.cat([topics[topic] + 0.1 * torch.randn(4, 8) for topic in (0, 1, 2, 3)])[None]
    y = lengths_to_boundaries([4, 4, 4, 4])[None]
    y[:, -1] = -100
    model = TopicSegmenter(8, 16, num_layers=1, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        boundary_focal_loss(model(x), y).backward()
        optimizer.step()
    assert model.segment(x[0]) == [3, 7, 11]


VECTORS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=20)


@given(VECTORS, st.integers(1, 20))
def test_metrics_against_loops(pairs: list[tuple[int, int]], k: int) -> None:
    r, h = (torch.tensor(side) for side in zip(*pairs, strict=True))
    k = min(k, len(r))
    windows = range(len(r) - k + 1)
    pk = sum((r[i : i + k].sum() > 0) != (h[i : i + k].sum() > 0) for i in windows) / len(windows)
    assert pk_score(r, h, window_size=k) == pytest.approx(float(pk))
    assert window_diff(r, h, window_size=k) == pytest.approx(
        sum(int(r[i : i + k].sum() != h[i : i + k].sum()) for i in windows) / len(windows)
    )
    assert pk_score(r, r) == window_diff(r, r) == 0
    assert window_diff(r, h) >= pk_score(r, h)
    assert boundaries_to_lengths(lengths_to_boundaries(boundaries_to_lengths(r))) == boundaries_to_lengths(r)
    assert sum(boundaries_to_lengths(r)) == len(r)
    hits = int((r * h).sum())
    wanted = 2 * hits / int((r + h).sum()) if (r + h).any() else 1.0
    assert segmentation_f1(r, h) == pytest.approx(wanted)


def test_default_windows() -> None:
    one = torch.zeros(12, dtype=torch.int64)
    one[5] = 1
    none = torch.zeros_like(one)
    assert float(pk_score(one, none)) == pytest.approx(6 / 7)  # windows of 6, of which 6 hold place 5
    assert float(pk_score(none, one)) == pytest.approx(6 / 7)  # no boundary: windows of T / 2
    assert pk_score(torch.ones(4), torch.ones(4)) == 0  # T / (2 * 4) rounds to 0


def test_errors() -> None:
    r = torch.tensor([0, 1, 0])
    for call, error, message in (
        (
            lambda: pk_score(r, r, window_size=4),
            ValueError,
            "window_size is 4; wanted an integer from 1 to the length, 3",
        ),
        (lambda: pk_score(r, r[:2]), ValueError, r"hypothesis has shape \(2,\); wanted \(T,\)"),
        (lambda: window_diff(r, r + 1), ValueError, "hypothesis contains 2; wanted 0 and 1"),
        (lambda: segmentation_f1([0], r), TypeError, "reference is list; wanted a tensor"),
        (lambda: lengths_to_boundaries([2, 0]), ValueError, "wanted at least 1 each"),
        (lambda: TopicSegmenter(3, encoder="gru"), ValueError, "encoder is 'gru'; wanted 'lstm' or 'transformer'"),
        (lambda: TopicSegmenter(3)(torch.zeros(2, 3)), ValueError, r"wanted \(B, T, D\)"),
        (lambda: TopicSegmenter(3).segment(torch.zeros(1, 2, 3)), ValueError, r"wanted \(T, D\)"),
        (lambda: boundary_focal_loss(*sentences(), alpha=2.0), ValueError, "alpha is 2"),
    ):
        with pytest.raises(error, match=message):
            call()
