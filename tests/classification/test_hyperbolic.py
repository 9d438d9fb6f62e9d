"""The Poincare ball: its laws, its limit of no curvature, and gradients that stay finite."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossary.classification import (
    HyperbolicMLR,
    ToPoincare,
    exp_map0,
    hyperbolic_logits,
    mobius_add,
    poincare_distance,
    project,
    to_poincare,
)

SEED = st.integers(0, 10_000)
CURVATURE = st.floats(0.01, 5.0)


def points(seed: int, c: float, count: int = 4, reach: float = 0.9) -> Tensor:
    """Inside the ball, up to a share of its radius."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    length = torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return reach * length / math.sqrt(c) * x / x.norm(dim=1, keepdim=True)


@given(SEED, CURVATURE)
def test_distance_is_that_of_the_mobius_difference_and_a_metric(seed: int, c: float) -> None:
    x, y, z = (points(seed + k, c) for k in range(3))
    d = poincare_distance(x, y, c=c)
    difference = mobius_add(-x, y, c=c).norm(dim=1)
    torch.testing.assert_close(d, 2 / math.sqrt(c) * torch.atanh(math.sqrt(c) * difference))
    torch.testing.assert_close(d, poincare_distance(y, x, c=c))
    assert (poincare_distance(x, z, c=c) <= d + poincare_distance(y, z, c=c) + 1e-9).all()
    from_origin = 2 / math.sqrt(c) * torch.atanh(math.sqrt(c) * x.norm(dim=1))
    torch.testing.assert_close(poincare_distance(torch.zeros_like(x), x, c=c), from_origin)


@given(SEED, CURVATURE)
def test_distance_is_blind_to_rotation_and_translation(seed: int, c: float) -> None:
    x, y, shift = (points(seed + k, c, reach=0.7) for k in range(3))
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]
    d = poincare_distance(x, y, c=c)
    torch.testing.assert_close(poincare_distance(x @ turn, y @ turn, c=c), d)
    moved = [mobius_add(shift, part, c=c) for part in (x, y)]
    torch.testing.assert_close(poincare_distance(*moved, c=c), d, rtol=1e-5, atol=1e-7)


@given(SEED, CURVATURE)
def test_laws_of_the_mobius_sum(seed: int, c: float) -> None:
    x, y = points(seed, c), points(seed + 1, c)
    zero = torch.zeros_like(x)
    torch.testing.assert_close(mobius_add(zero, y, c=c), y)
    torch.testing.assert_close(mobius_add(-x, x, c=c), zero)
    torch.testing.assert_close(mobius_add(-x, mobius_add(x, y, c=c), c=c), y)


def test_no_curvature_is_twice_the_euclidean_space() -> None:
    x, y = points(0, 1.0), points(1, 1.0)
    a, p = points(2, 1.0, count=2), points(3, 1.0, count=2)
    c = 1e-10
    torch.testing.assert_close(poincare_distance(x, y, c=c), 2 * (x - y).norm(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(exp_map0(x, c=c), x, rtol=1e-6, atol=0)
    expected = 4 * ((x.unsqueeze(1) - p) * a).sum(-1)
    torch.testing.assert_close(hyperbolic_logits(x, a, p, c=c), expected, rtol=1e-6, atol=1e-9)


@given(SEED, CURVATURE)
def test_logits_follow_their_definition(seed: int, c: float) -> None:
    """As the sheet has it: through the Mobius difference, with conformal factors and translated normals."""
    x, a, p = points(seed, c), points(seed + 1, 1.0, count=2), points(seed + 2, 1.0, count=2)
    point = exp_map0(p, c=c)
    normal = (1 - c * point.square().sum(1, keepdim=True)) * a
    m = mobius_add(-point, x.unsqueeze(1), c=c)
    factor = 2 / (1 - c * point.square().sum(1))
    length = normal.norm(dim=1)
    inner = 2 * math.sqrt(c) * (m * normal).sum(-1)
    expected = factor * length / math.sqrt(c) * torch.asinh(inner / ((1 - c * m.square().sum(-1)) * length))
    found = hyperbolic_logits(x, a, p, c=c)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found.sign(), (m * normal).sum(-1).sign())
    on_plane = hyperbolic_logits(point, a, p, c=c).diagonal()
    torch.testing.assert_close(on_plane, torch.zeros_like(on_plane), atol=1e-9, rtol=0)


@given(SEED, CURVATURE, st.floats(0.1, 100.0))
def test_features_stay_inside_and_clipping_bounds_them(seed: int, c: float, scale: float) -> None:
    x = scale * torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for radius in (None, 0.5):
        length = to_poincare(x, c=c, clip_radius=radius).norm(dim=1)
        assert (length <= (1 - 1e-3) / math.sqrt(c) * (1 + 1e-12)).all()
        if radius is not None:
            assert (length <= math.tanh(math.sqrt(c) * radius) / math.sqrt(c) * (1 + 1e-12)).all()
    base = points(seed, c, count=1, reach=0.5)[0]
    torch.testing.assert_close(to_poincare(torch.zeros_like(x), c=c, base=base), base.expand(4, 3))
    origin = to_poincare(x, c=c, base=torch.zeros(3))
    torch.testing.assert_close(origin, to_poincare(x, c=c))


def test_gradients_are_finite_at_the_origin_at_equal_points_and_at_the_boundary() -> None:
    for x in (torch.zeros(2, 3), torch.full((2, 3), 0.5), project(1e4 * torch.ones(2, 3), c=0.1)):
        x = x.clone().requires_grad_()
        a = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)
        p = torch.zeros(2, 3, requires_grad=True)
        total = poincare_distance(x, x.detach(), c=0.1).sum() + poincare_distance(x, torch.zeros(2, 3), c=0.1).sum()
        total = total + hyperbolic_logits(to_poincare(x), a, p, c=0.1).sum()
        for gradient in torch.autograd.grad(total, [x, a, p]):
            assert gradient.isfinite().all()
    far = (1e4 * torch.randn(2, 3)).requires_grad_()
    (gradient,) = torch.autograd.grad(to_poincare(far, clip_radius=None).sum(), far)
    assert gradient.isfinite().all()


def test_points_outside_the_ball_are_nan() -> None:
    outside = torch.tensor([[4.0, 0.0]])
    assert poincare_distance(outside, outside + 1, c=0.1).isnan()


def test_works_under_compile_vmap_and_gradcheck() -> None:
    x, y, a, p = points(0, 0.1), points(1, 0.1), points(2, 1.0, count=2), points(3, 1.0, count=2)

    def call(x: Tensor, c: Tensor) -> Tensor:
        inside = to_poincare(x, c=c, clip_radius=1.0)
        return poincare_distance(inside, 0.3 * y, c=c).sum() + hyperbolic_logits(inside, a, p, c=c).sum()

    curvatures = torch.tensor([0.05, 0.1], dtype=torch.float64)
    assert torch.autograd.gradcheck(call, (x.clone().requires_grad_(), curvatures[0].clone().requires_grad_()))
    together = torch.func.vmap(call, (None, 0))(x, curvatures)
    torch.testing.assert_close(together, torch.stack([call(x, c) for c in curvatures]))
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, curvatures[0]), call(x, curvatures[0]))
    half = poincare_distance(x.bfloat16(), y.bfloat16(), c=0.1)
    assert half.dtype == torch.float32


def test_modules() -> None:
    x = torch.randn(6, 3)
    ball = ToPoincare(0.1, 2.0, learn_base=True, dim=3)
    head = HyperbolicMLR(3, 2, 0.1)
    head(ball(x)).sum().backward()
    assert ball.base.grad.isfinite().all()
    assert ball.base.grad.abs().sum() > 0
    torch.testing.assert_close(ball(x), to_poincare(x))
    assert [tuple(parameter.shape) for parameter in head.parameters()] == [(2, 3), (2, 3)]
    plain, scaled = x.clone().requires_grad_(), x.clone().requires_grad_()
    ToPoincare()(plain).sum().backward()
    inside = ToPoincare(riemannian=True)(scaled)
    torch.testing.assert_close(inside, to_poincare(x))
    inside.sum().backward()
    # The gradient of each point is scaled before it reaches the features.
    factor = (1 - 0.1 * inside.detach().square().sum(1, keepdim=True)).square() / 4
    torch.testing.assert_close(scaled.grad, factor * plain.grad)
    with pytest.raises(ValueError, match="learn_base is set without dim"):
        ToPoincare(learn_base=True)


def test_bad_arguments() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"c is 0; wanted a number in \(0, inf\)"):
        poincare_distance(x, x, c=0)
    with pytest.raises(TypeError, match=r"x has dtype torch\.int64"):
        exp_map0(x, c=1.0) + poincare_distance(x.long(), x)
    with pytest.raises(ValueError, match="clip_radius is 0"):
        to_poincare(x, clip_radius=0)
    with pytest.raises(ValueError, match=r"base has shape \(2,\)"):
        to_poincare(x, base=torch.zeros(2))
    with pytest.raises(ValueError, match=r"a has shape \(2, 2\); wanted \(2, 3\)"):
        hyperbolic_logits(x, torch.zeros(2, 2), torch.zeros(2, 2), c=1.0)
    with pytest.raises(ValueError, match="eps is 1"):
        project(x, c=1.0, eps=1)


def test_points_of_other_sizes_are_not_broadcast() -> None:
    x, y = points(0, 1.0), points(1, 1.0)[:, :1]
    with pytest.raises(ValueError, match=r"y has shape \(4, 1\)"):
        poincare_distance(x, y, c=1.0)
    with pytest.raises(ValueError, match=r"y has shape \(4, 1\)"):
        mobius_add(x, y, c=1.0)
    torch.testing.assert_close(poincare_distance(x, x[:1])[1], poincare_distance(x[1], x[0]))


def test_sum_of_opposite_points_of_the_boundary_is_finite() -> None:
    """Where long vectors round to: numerator and denominator both vanish."""
    x = exp_map0(torch.tensor([[1e4, 0.0]]), c=1.0).requires_grad_()
    total = mobius_add(x, -x.detach(), c=1.0)
    assert torch.equal(total, torch.zeros_like(total))
    assert torch.autograd.grad(total.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("reach", [5.0, 20.0, 100.0, 1e4])
def test_logits_of_far_hyperplanes_are_finite(reach: float) -> None:
    """exp_0 rounds their points to the boundary; the room 1 - c P^2 that is left comes from the tangent vector."""
    x, a = points(0, 0.1), points(1, 0.1)
    p = (reach * a / a.norm(dim=1, keepdim=True)).float().requires_grad_()
    z = hyperbolic_logits(x.float(), a.float(), p, c=0.1)
    assert z.isfinite().all()
    assert torch.autograd.grad(z.sum(), p)[0].isfinite().all()
    if reach < 10:
        torch.testing.assert_close(z.double(), hyperbolic_logits(x, a, p.double(), c=0.1), rtol=1e-5, atol=1e-5)
