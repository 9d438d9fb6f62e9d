"""Boxes: the order of the variants, where they agree, what disjoint boxes feel, and YOLO's sum by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.segmentation import box_iou_loss, yolo_loss

SIDES = st.floats(0.05, 10)


@st.composite
def boxes(draw: st.DrawFn) -> Tensor:
    x, y = draw(st.floats(-10, 10)), draw(st.floats(-10, 10))
    return torch.tensor([x, y, x + draw(SIDES), y + draw(SIDES)], dtype=torch.float64)


def losses(input: Tensor, target: Tensor) -> dict[str, float]:
    return {v: box_iou_loss(input, target, variant=v, eps=1e-12).item() for v in ("iou", "giou", "diou", "ciou")}


@given(boxes(), boxes())
def test_order_and_bounds(input: Tensor, target: Tensor) -> None:
    loss = losses(input, target)
    assert -1e-9 <= loss["iou"] <= 1 + 1e-9
    assert loss["iou"] - 1e-9 <= loss["giou"] <= 2 + 1e-9
    assert loss["iou"] - 1e-9 <= loss["diou"] <= loss["ciou"] + 1e-9


@given(boxes())
def test_a_box_equals_itself(box: Tensor) -> None:
    assert all(value == pytest.approx(0.0, abs=1e-9) for value in losses(box, box).values())
    away = box + torch.tensor([100.0, 0.0, 100.0, 0.0])
    assert losses(box, away)["iou"] == 1.0


@given(boxes(), st.floats(0.2, 5), st.floats(-10, 10))
def test_equal_aspect_ratios_leave_ciou_at_diou(box: Tensor, factor: float, shift: float) -> None:
    other = torch.cat([box[:2], box[:2] + factor * (box[2:] - box[:2])]) + shift
    loss = losses(box, other)
    assert loss["ciou"] == pytest.approx(loss["diou"], abs=1e-9)


@given(boxes(), boxes())
def test_by_hand(input: Tensor, target: Tensor) -> None:
    (a, b, c, d), (e, f, g, h) = input.tolist(), target.tolist()
    shared = max(0.0, min(c, g) - max(a, e)) * max(0.0, min(d, h) - max(b, f))
    union = (c - a) * (d - b) + (g - e) * (h - f) - shared
    hull = (max(c, g) - min(a, e), max(d, h) - min(b, f))
    iou = shared / union
    rho = ((a + c - e - g) / 2) ** 2 + ((b + d - f - h) / 2) ** 2
    v = 4 / math.pi**2 * (math.atan((g - e) / (h - f)) - math.atan((c - a) / (d - b))) ** 2
    diou = 1 - iou + rho / (hull[0] ** 2 + hull[1] ** 2)
    expected = {
        "iou": 1 - iou,
        "giou": 1 - iou + (hull[0] * hull[1] - union) / (hull[0] * hull[1]),
        "diou": diou,
        "ciou": diou + (v**2 / (1 - iou + v) if v else 0.0),
    }
    if v > 1e-12:  # 0 / 0 for equal boxes is eps's to settle
        assert losses(input, target) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("variant", ["iou", "giou", "diou", "ciou"])
def test_gradients(variant: str) -> None:
    input = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.3, 0.2, 1.4, 2.5]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[5.0, 5.0, 6.0, 8.0], [0.5, 0.6, 2.0, 2.0]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(box_iou_loss(input, target, variant=variant, reduction="sum"), input)
    assert gradient[1].abs().max() > 0
    assert (gradient[0].abs().max() > 0) == (variant != "iou")  # disjoint: only penalties pull
    if variant != "ciou":  # whose alpha is a constant to the gradient
        assert torch.autograd.gradcheck(lambda z: box_iou_loss(z, target, variant=variant), input)


@pytest.mark.parametrize("variant", ["iou", "giou", "diou", "ciou"])
def test_boxes_without_area_stay_finite(variant: str) -> None:
    point = torch.zeros(1, 4, requires_grad=True)
    value = box_iou_loss(point, torch.zeros(1, 4), variant=variant)
    (gradient,) = torch.autograd.grad(value, point)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_bad_boxes() -> None:
    with pytest.raises(ValueError, match="variant is 'siou'"):
        box_iou_loss(torch.zeros(1, 4), torch.zeros(1, 4), variant="siou")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"wanted \(..., 4\)"):
        box_iou_loss(torch.zeros(1, 5), torch.zeros(1, 5))
    with pytest.raises(ValueError, match="input has shape"):
        yolo_loss(torch.zeros(1, 2, 2, 6), torch.zeros(1, 2, 2, 6))
    with pytest.raises(ValueError, match=r"target has shape .*; wanted \(1, 2, 2, 7\)"):
        yolo_loss(torch.zeros(1, 2, 2, 12), torch.zeros(1, 2, 2, 6))


def test_yolo_by_hand() -> None:
    """Two cells of four with an object, two predictors, two classes: the better box answers, the rest is no object."""
    generator = torch.Generator().manual_seed(0)
    input = torch.rand(1, 2, 2, 12, generator=generator, dtype=torch.float64)
    target = torch.rand(1, 2, 2, 7, generator=generator, dtype=torch.float64)
    target[..., 4] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = 0.0
    for row in range(2):
        for column in range(2):
            cell, truth = input[0, row, column], target[0, row, column]
            predictors = cell[:10].reshape(2, 5)
            if truth[4] == 0:
                expected += 0.5 * (predictors[:, 4] ** 2).sum().item()
                continue

            def corners(centre: Tensor, size: Tensor) -> Tensor:
                return torch.cat([centre / 2 - size / 2, centre / 2 + size / 2])

            box = corners(truth[:2], truth[2:4])
            iou = [1 - box_iou_loss(corners(p[:2], p[2:4] ** 2), box).item() for p in predictors]
            best = max((0, 1), key=lambda i: iou[i])
            p, other = predictors[best], predictors[1 - best]
            roots = torch.cat([truth[:2], truth[2:4].sqrt()])
            expected += 5 * ((p[:4] - roots) ** 2).sum().item() + (p[4].item() - iou[best]) ** 2
            expected += 0.5 * other[4].item() ** 2 + ((cell[10:] - truth[5:]) ** 2).sum().item()
    assert yolo_loss(input, target).item() == pytest.approx(expected)


def test_yolo_gradient_in_closed_form() -> None:
    """One cell, one predictor: the IoU is a target like any other, so every error has its own slope."""
    input = torch.tensor([0.4, 0.6, 0.5, 0.7, 0.3, 0.8, 0.1], dtype=torch.float64)
    target = torch.tensor([0.5, 0.5, 0.36, 0.49, 1.0, 1.0, 0.0], dtype=torch.float64)
    gradient = torch.func.grad(lambda z: yolo_loss(z.reshape(1, 1, 1, 7), target.reshape(1, 1, 1, 7), num_boxes=1))(
        input
    )
    box = torch.cat([input[:2] - input[2:4] ** 2 / 2, input[:2] + input[2:4] ** 2 / 2])
    truth = torch.cat([target[:2] - target[2:4] / 2, target[:2] + target[2:4] / 2])
    aims = torch.cat([target[:2], target[2:4].sqrt(), 1 - box_iou_loss(box, truth)[None], target[5:]])
    expected = 2 * torch.tensor([5.0, 5.0, 5.0, 5.0, 1.0, 1.0, 1.0]) * (input - aims)
    torch.testing.assert_close(gradient, expected)
