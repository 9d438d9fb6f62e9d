"""Features and classes in the Poincare ball: distances, the map from Euclidean features, and a softmax head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lossary.core.checks import check_floating, check_in_range, check_shape
from lossary.core.rows import widen


def poincare_distance(x: Tensor, y: Tensor, *, c: Tensor | float = 1.0) -> Tensor:
    r"""Distance in the Poincare ball of curvature -c.

    Formula:
        .. math:: d(x, y) = \frac{2}{\sqrt c} \mathrm{artanh}(\sqrt c\, |(-x) \oplus y|)
            = \frac{2}{\sqrt c} \mathrm{arsinh} \frac{\sqrt c\, |x - y|}{\sqrt{(1 - c |x|^2)(1 - c |y|^2)}}

        The second form, used here, keeps its digits for near points and at the boundary.

    Args:
        x: Points ``(..., D)``, :math:`c |x|^2 < 1`.
        y: Points ``(..., D)``.
        c: Curvature, positive.

    Returns:
        ``(...)``; float32 for half-precision input; NaN outside the ball. Where points coincide the gradient is 0.

    Raises:
        TypeError: ``x`` or ``y`` is not floating point.
        ValueError: ``c`` or the size of ``y`` is wrong.

    Example:
        >>> poincare_distance(torch.zeros(2), torch.tensor([0.5, 0.0]))
        tensor(1.0986)

    Source:
        Ganea, Becigneul, Hofmann: Hyperbolic Neural Networks (NeurIPS 2018, arXiv 1805.09112); used by Narayan, Patel:
        Hyp-OC: Hyperbolic One Class Classification for Face Anti-Spoofing (FG 2024, arXiv 2404.14406).
    """
    x, y, c = _check_pair(x, y, c)
    return 2 / c.sqrt() * torch.asinh(_separation(x, y, c))


def mobius_add(x: Tensor, y: Tensor, *, c: Tensor | float) -> Tensor:
    r"""Mobius sum in the ball of curvature -c.

    Formula:
        .. math:: x \oplus y = \frac{(1 + 2 c \langle x, y \rangle + c |y|^2)\, x + (1 - c |x|^2)\, y}
            {1 + 2 c \langle x, y \rangle + c^2 |x|^2 |y|^2}

    Args:
        x: Points ``(..., D)``.
        y: Points ``(..., D)``.
        c: Curvature, positive.

    Returns:
        ``(..., D)``; float32 for half-precision input.

    Raises:
        TypeError: ``x`` or ``y`` is not floating point.
        ValueError: ``c`` or the size of ``y`` is wrong.

    Example:
        >>> mobius_add(torch.tensor([0.5, 0.0]), torch.tensor([0.5, 0.0]), c=1.0)
        tensor([0.8000, 0.0000])

    Source:
        Ganea, Becigneul, Hofmann (NeurIPS 2018, arXiv 1805.09112), section 2.
    """
    x, y, c = _check_pair(x, y, c)
    inner = (x * y).sum(-1, keepdim=True)
    xx, yy = (part.square().sum(-1, keepdim=True) for part in (x, y))
    # 0 / 0 for opposite points of the boundary, where long vectors round to
    below = (1 + 2 * c * inner + c**2 * xx * yy).clamp(min=1e-15)
    return ((1 + 2 * c * inner + c * yy) * x + (1 - c * xx) * y) / below


def exp_map0(u: Tensor, *, c: Tensor | float) -> Tensor:
    r"""Exponential map at the origin: a tangent vector to the point that it leads to.

    Formula:
        .. math:: \exp_0(u) = \tanh(\sqrt c\, |u|) \frac{u}{\sqrt c\, |u|}

    Args:
        u: Tangent vectors ``(..., D)``.
        c: Curvature, positive.

    Returns:
        ``(..., D)``; float32 for half-precision input. Long vectors round to the boundary: see :func:`project`.

    Raises:
        TypeError: ``u`` is not floating point.
        ValueError: ``c`` is wrong.

    Example:
        >>> exp_map0(torch.tensor([3.0, 4.0]), c=0.1)
        tensor([1.7433, 2.3243])

    Source:
        Ganea, Becigneul, Hofmann (NeurIPS 2018, arXiv 1805.09112), section 2.
    """
    u, c = _check(u, c, "u")
    return _tanh_ratio(u, c.sqrt()) * u


def project(x: Tensor, *, c: Tensor | float, eps: float = 1e-3) -> Tensor:
    r"""Points with norms of at most :math:`(1 - \epsilon) / \sqrt c`; those beyond are scaled back.

    Args:
        x: Points ``(..., D)``.
        c: Curvature, positive.
        eps: How far from the boundary, in (0, 1).

    Returns:
        ``(..., D)``; float32 for half-precision input.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: ``c`` or ``eps`` is wrong.

    Example:
        >>> project(torch.tensor([3.0, 4.0]), c=1.0)
        tensor([0.5994, 0.7992])

    Source:
        Ganea, Becigneul, Hofmann (NeurIPS 2018, arXiv 1805.09112), appendix.
    """
    check_in_range("eps", eps, 0.0, 1.0, low_open=True, high_open=True)
    x, c = _check(x, c)
    return _shorten(x, (1 - eps) / c.sqrt())


def to_poincare(
    x: Tensor, *, c: Tensor | float = 0.1, clip_radius: Tensor | float | None = 2.0, base: Tensor | None = None
) -> Tensor:
    r"""Euclidean features to the ball: clipped to a radius, mapped by the exponential map, kept off the boundary.

    Clipping keeps features from the boundary, where gradients vanish.

    Args:
        x: Features ``(..., D)``.
        c: Curvature, positive.
        clip_radius: Longest feature; None clips nothing.
        base: Point of the ball ``(D,)`` whose exponential map is taken; None is the origin.

    Returns:
        ``(..., D)``; float32 for half-precision input.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: ``c``, ``clip_radius`` or the shape of ``base`` is wrong.

    Example:
        >>> to_poincare(torch.tensor([[30.0, 40.0]]))
        tensor([[1.0620, 1.4160]])

    Source:
        Guo, Wang, Chen, Yu: Clipped Hyperbolic Classifiers Are Super-Hyperbolic Classifiers (CVPR 2022, arXiv
        2107.11472); Narayan, Patel (FG 2024, arXiv 2404.14406), section 3.
    """
    x, c = _check(x, c)
    if clip_radius is not None:
        check_in_range("clip_radius", clip_radius, 0.0, low_open=True)
        x = _shorten(x, torch.as_tensor(clip_radius, dtype=x.dtype, device=x.device))
    if base is None:
        return project(exp_map0(x, c=c), c=c)
    check_shape("base", base, x.shape[-1:], "a point of the ball")
    base = base.to(x.dtype)
    half = 1 / (1 - c * base.square().sum(-1, keepdim=True))  # lambda / 2 at the base point
    step = half * _tanh_ratio(half * x, c.sqrt()) * x
    return project(mobius_add(base, step, c=c), c=c)


def hyperbolic_logits(x: Tensor, a: Tensor, p: Tensor, *, c: Tensor | float) -> Tensor:
    r"""Logits of a softmax in the ball: signed distances to hyperplanes, scaled by their normals.

    Formula:
        With :math:`P_k = \exp_0(p_k)` and :math:`m = (-P_k) \oplus x`,

        .. math:: z_k = \frac{2 |a_k|}{\sqrt c} \mathrm{arsinh}
            \frac{2 \sqrt c\, \langle m, a_k \rangle}{(1 - c |m|^2) |a_k|}

    Args:
        x: Points of the ball ``(..., D)``.
        a: Normals ``(K, D)``.
        p: Tangent vectors ``(K, D)`` that lead to a point on each hyperplane.
        c: Curvature, positive.

    Returns:
        ``(..., K)``; float32 for half-precision input; a normal of 0 gives 0.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: ``c`` or a shape is wrong.

    Example:
        >>> x = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
        >>> hyperbolic_logits(x, torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2), c=1.0)
        tensor([[2.1972],
                [0.0000]])

    Source:
        Ganea, Becigneul, Hofmann (NeurIPS 2018, arXiv 1805.09112), equation 25; Narayan, Patel (FG 2024, arXiv
        2404.14406), equation 5.
    """
    check_floating("a", a)
    check_shape("a", a, (*a.shape[:1], x.shape[-1]), "a normal (K, D) for each class")
    check_shape("p", p, a.shape, "a point (K, D) for each class")
    x, c = _check(x, c)
    a, point = a.to(x.dtype), exp_map0(p.to(x.dtype), c=c)
    # 1 - c |P|^2, from the tangent vector: far points round to the boundary
    room = torch.cosh((c.sqrt() * _norm(p.to(x.dtype))[:, 0]).clamp(max=20)).square().reciprocal()
    xx = x.square().sum(-1, keepdim=True)
    px, pa = x @ point.T, (point * a).sum(-1)
    # <m, a> / (1 - c |m|^2) with the denominators of m cancelled
    above = room * (x @ a.T) - (1 - 2 * c * px + c * xx) * pa
    length = _norm(a)[:, 0]
    below = room * (1 - c * xx) * torch.where(length == 0, 1.0, length)
    return 2 * length / c.sqrt() * torch.asinh(2 * c.sqrt() * above / below)


class ToPoincare(nn.Module):
    """Euclidean features to the ball, from a base point that may be learned; module form of :func:`to_poincare`.

    Args:
        c: Curvature, positive.
        clip_radius: Longest feature; None clips nothing.
        learn_base: Whether the base point is learned; it starts at the origin.
        dim: Size of the features; needed if ``learn_base``.
        riemannian: Whether gradients of the points are scaled by (1 - c \\|x\\|^2)^2 / 4, as the ball's metric has it.

    Raises:
        ValueError: ``learn_base`` without ``dim``.

    Example:
        >>> ToPoincare(c=0.1)(torch.tensor([[30.0, 40.0]]))
        tensor([[1.0620, 1.4160]])

    Source:
        Narayan, Patel (FG 2024, arXiv 2404.14406), section 3 and its public code.
    """

    def __init__(
        self,
        c: float = 0.1,
        clip_radius: float | None = 2.0,
        learn_base: bool = False,
        dim: int | None = None,
        *,
        riemannian: bool = False,
    ) -> None:
        super().__init__()
        check_in_range("c", c, 0.0, low_open=True)
        if learn_base and dim is None:
            raise ValueError("learn_base is set without dim; wanted the size of the features.")
        self.c = c
        self.clip_radius = clip_radius
        self.riemannian = riemannian
        self.base = nn.Parameter(torch.zeros(dim)) if learn_base and dim is not None else None

    def forward(self, input: Tensor) -> Tensor:
        """Points of the ball ``(..., D)`` of features ``(..., D)``."""
        base = None if self.base is None else project(self.base, c=self.c)
        point = to_poincare(input, c=self.c, clip_radius=self.clip_radius, base=base)
        if not self.riemannian:
            return point
        fixed = point.detach()
        return fixed + (point - fixed) * (1 - self.c * fixed.square().sum(-1, keepdim=True)).square() / 4

    def extra_repr(self) -> str:
        """The hyperparameters."""
        return f"c={self.c}, clip_radius={self.clip_radius}, learn_base={self.base is not None}"


class HyperbolicMLR(nn.Module):
    """A softmax head on points of the ball; module form of :func:`hyperbolic_logits`.

    Args:
        dim: Size of the points.
        num_classes: Number of classes.
        c: Curvature, positive.

    Attributes:
        a: Normals ``(num_classes, dim)``.
        p: Tangent vectors to the points on the hyperplanes ``(num_classes, dim)``.

    Example:
        >>> HyperbolicMLR(3, 2)(torch.zeros(5, 3)).shape
        torch.Size([5, 2])

    Source:
        Ganea, Becigneul, Hofmann (NeurIPS 2018, arXiv 1805.09112); Narayan, Patel (FG 2024, arXiv 2404.14406).
    """

    def __init__(self, dim: int, num_classes: int, c: float = 0.1) -> None:
        super().__init__()
        check_in_range("c", c, 0.0, low_open=True)
        self.c = c
        self.a = nn.Parameter(torch.empty(num_classes, dim))
        self.p = nn.Parameter(torch.empty(num_classes, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both as ``nn.Linear`` draws its weight."""
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.p, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:
        """Logits ``(..., num_classes)`` of points ``(..., dim)``."""
        return hyperbolic_logits(input, self.a, self.p, c=self.c)

    def extra_repr(self) -> str:
        """The hyperparameters."""
        return f"dim={self.a.shape[1]}, num_classes={self.a.shape[0]}, c={self.c}"


def _check(x: Tensor, c: Tensor | float, name: str = "x") -> tuple[Tensor, Tensor]:
    """Points widened, and the curvature as a tensor."""
    check_floating(name, x)
    check_in_range("c", c, 0.0, low_open=True)
    x = widen(x)
    return x, torch.as_tensor(c, dtype=x.dtype, device=x.device)


def _check_pair(x: Tensor, y: Tensor, c: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Points of one size widened, and the curvature as a tensor; leading axes may broadcast."""
    x, c = _check(x, c)
    y, _ = _check(y, c, "y")
    if y.shape[-1:] != x.shape[-1:]:
        raise ValueError(f"y has shape {tuple(y.shape)}; wanted (..., {x.shape[-1]}), points of the size of x's.")
    return x, y, c


def _separation(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """sinh of half the distance: sqrt(c) |x - y| / sqrt((1 - c |x|^2)(1 - c |y|^2)); NaN outside the ball."""
    room = [1 - c * part.square().sum(-1) for part in (x, y)]
    inside = torch.where((room[0] > 0) & (room[1] > 0), room[0] * room[1], torch.nan)
    return c.sqrt() * _norm(x - y).squeeze(-1) / inside.sqrt()


def _norm(x: Tensor) -> Tensor:
    """Length ``(..., 1)`` whose gradient at 0 is 0."""
    square = x.square().sum(-1, keepdim=True)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def _tanh_ratio(u: Tensor, root: Tensor) -> Tensor:
    """tanh(root |u|) / (root |u|), which is 1 at 0."""
    length = root * _norm(u)
    zero = length == 0
    length = torch.where(zero, 1.0, length)
    return torch.where(zero, 1.0, length.tanh() / length)


def _shorten(x: Tensor, radius: Tensor) -> Tensor:
    length = _norm(x)
    beyond = length > radius
    return torch.where(beyond, x * (radius / torch.where(beyond, length, 1.0)), x)
