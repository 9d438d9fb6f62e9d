"""Depth and disparity: invariances, closed forms, masks, warping; boundary F1."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.segmentation import (
    boundary_f1,
    depth_metrics,
    disparity_smoothness_loss,
    left_right_consistency_loss,
    photometric_loss,
    scale_invariant_log_loss,
)

SEEDS = st.integers(0, 10_000)


def depths(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (0.5 + 5 * torch.rand(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, y


@given(SEEDS, st.floats(0.1, 10), st.floats(0, 1))
def test_scale_invariance(seed: int, factor: float, lam: float) -> None:
    x, y = depths(seed, 2, 3, 4)
    torch.testing.assert_close(
        scale_invariant_log_loss(factor * x, y, lam=1.0), scale_invariant_log_loss(x, y, lam=1.0)
    )
    d = x.log() - y.log()
    torch.testing.assert_close(scale_invariant_log_loss(x, y, lam=0.0), d.square().mean())
    torch.testing.assert_close(scale_invariant_log_loss(x, y, lam=lam), d.square().mean() - lam * d.mean() ** 2)


@given(SEEDS)
def test_masked_and_invalid_pixels_do_not_count(seed: int) -> None:
    x, y = depths(seed, 2, 12)
    mask = torch.arange(24).reshape(2, 12) % 3 != 0
    torch.testing.assert_close(scale_invariant_log_loss(x, y, mask=mask), scale_invariant_log_loss(x[mask], y[mask]))
    holes = torch.where(mask, y, 0.0)
    torch.testing.assert_close(scale_invariant_log_loss(x, holes), scale_invariant_log_loss(x[mask], y[mask]))
    by_image = [scale_invariant_log_loss(a[m], b[m]) for a, b, m in zip(x, y, mask, strict=True)]
    torch.testing.assert_close(
        scale_invariant_log_loss(x, y, mask=mask, per_image=True, reduction="none"), torch.stack(by_image)
    )
    for name, value in depth_metrics(x, y, mask=mask).items():
        torch.testing.assert_close(value, depth_metrics(x[mask], y[mask])[name])


def test_without_valid_pixels() -> None:
    x = torch.ones(1, 3, requires_grad=True)
    value = scale_invariant_log_loss(x, torch.zeros(1, 3))
    assert value == 0
    value.backward()
    assert (x.grad == 0).all()
    assert all(value.isnan() for value in depth_metrics(x, torch.zeros(1, 3)).values())
    with pytest.raises(ValueError, match="per_image=True"):
        scale_invariant_log_loss(x, x, sample_weight=torch.ones(1))


@given(SEEDS)
def test_depth_metrics_by_hand(seed: int) -> None:
    x, y = depths(seed, 7)
    scores = depth_metrics(x, y)
    pairs = list(zip(x.tolist(), y.tolist(), strict=True))
    assert scores["abs_rel"].item() == pytest.approx(sum(abs(a - b) / b for a, b in pairs) / 7)
    assert scores["sq_rel"].item() == pytest.approx(sum((a - b) ** 2 / b for a, b in pairs) / 7)
    assert scores["rmse"].item() == pytest.approx((sum((a - b) ** 2 for a, b in pairs) / 7) ** 0.5)
    assert scores["delta1"].item() == pytest.approx(sum(max(a / b, b / a) < 1.25 for a, b in pairs) / 7)
    assert scores["delta1"] <= scores["delta2"] <= scores["delta3"]
    torch.testing.assert_close(scores["rmse_log"] ** 2, scale_invariant_log_loss(x, y, lam=0.0))


def test_a_depth_that_cannot_be_is_never_right() -> None:
    scores = depth_metrics(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 2.0]))
    assert scores["delta3"] == 0.5
    assert scores["rmse_log"].isnan()
    edge = depth_metrics(torch.tensor([1.25]), torch.tensor([1.0]))
    assert edge["delta1"] == 0  # strictly below


@given(SEEDS)
def test_smoothness_by_hand(seed: int) -> None:
    d, image = depths(seed, 2, 1, 4, 5)[0], depths(seed + 1, 2, 3, 4, 5)[0]
    total = 0.0
    for n in range(2):
        for axis, (rows, columns) in ((0, (3, 5)), (1, (4, 4))):
            terms = []
            for i in range(rows):
                for j in range(columns):
                    step = (i + 1, j) if axis == 0 else (i, j + 1)
                    edge = (image[n, :, i, j] - image[n, :, step[0], step[1]]).abs().mean()
                    terms.append((d[n, 0, i, j] - d[n, 0, step[0], step[1]]).abs() * torch.exp(-edge))
            total += sum(terms).item() / len(terms)
    assert disparity_smoothness_loss(d, image).item() == pytest.approx(total / 2)


@given(SEEDS)
def test_photometric_bounds(seed: int) -> None:
    x, y = (side / 6 for side in depths(seed, 2, 3, 5, 6))
    assert photometric_loss(x, x).item() == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(photometric_loss(x, y), photometric_loss(y, x))
    torch.testing.assert_close(photometric_loss(x, y, alpha=0.0), (x - y).abs().mean())
    assert 0 <= photometric_loss(x, y, alpha=1.0) <= 1


@pytest.mark.parametrize("shift", [1.0, 0.5, 2.0])
def test_a_plane_is_consistent(shift: float) -> None:
    plane = torch.full((1, 1, 3, 8), shift)
    assert left_right_consistency_loss(plane, plane) == 0


def test_consistency_looks_where_the_disparity_points() -> None:
    right = torch.arange(8.0).reshape(1, 1, 1, 8) * 10
    left = torch.full((1, 1, 1, 8), 2.5)
    value = left_right_consistency_loss(left, right, reduction="none")[0, 0]
    looked = (10 * (torch.arange(8.0) - 2.5)).clamp(min=0)
    torch.testing.assert_close(value, (2.5 - looked).abs())
    one = left_right_consistency_loss(left[..., :1], right[..., :1])
    torch.testing.assert_close(one, torch.tensor(2.5))


def test_bad_images() -> None:
    with pytest.raises(ValueError, match="image has shape"):
        disparity_smoothness_loss(torch.zeros(1, 1, 3, 3), torch.zeros(1, 3, 4, 3))
    with pytest.raises(ValueError, match="H and W at least 2"):
        photometric_loss(torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3))
    with pytest.raises(ValueError, match="left has shape"):
        left_right_consistency_loss(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3))


# --- boundary F1 ------------------------------------------------------------------------------------------------------


@given(SEEDS, st.sampled_from([0.0, 1.0, 1.5, 3.0]))
def test_boundary_f1_by_brute_force(seed: int, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(7, 6, generator=generator) < 0.4 for _ in range(2))

    def outline(mask: Tensor) -> list[tuple[int, int]]:
        found = []
        for i, j in mask.nonzero().tolist():
            around = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
            if any(0 <= r < 7 and 0 <= c < 6 and not mask[r, c] for r, c in around):
                found.append((i, j))
        return found

    def share(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> float:
        near = [min(((i - r) ** 2 + (j - c) ** 2 for r, c in other), default=1e9) <= tolerance**2 for i, j in one]
        return sum(near) / max(len(one), 1)

    precision, recall = share(outline(a), outline(b)), share(outline(b), outline(a))
    expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert boundary_f1(a, b, tolerance=tolerance).item() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(
        boundary_f1(torch.stack([a, b]), torch.stack([b, b]), tolerance=tolerance),
        torch.stack([boundary_f1(a, b, tolerance=tolerance), torch.tensor(1.0)]),
    )


def test_boundary_f1_of_nothing() -> None:
    nothing, square = torch.zeros(5, 5), torch.zeros(5, 5)
    square[1:3, 1:3] = 1
    assert boundary_f1(nothing, nothing, tolerance=1) == 1
    assert boundary_f1(nothing, square, tolerance=9) == 0
    assert boundary_f1(square, nothing, tolerance=9) == 0
    with pytest.raises(ValueError, match=r"wanted \(..., H, W\)"):
        boundary_f1(torch.zeros(3), torch.zeros(3), tolerance=1)
