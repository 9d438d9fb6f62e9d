"""A formula that gives its derivative: what is differentiated by it, what by the graph of its value."""

from __future__ import annotations

import torch
from torch import Tensor

from lossary.classification import asymmetric_loss, sigmoid_focal_loss
from lossary.core.slopes import BLOCK, with_slope


def wrong_slope(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A derivative that is off, to tell which one was taken."""
    return y * x.square(), 100 * y * x


def test_the_given_derivative_is_taken_unless_something_else_has_a_gradient() -> None:
    x, y = torch.tensor([3.0], requires_grad=True), torch.tensor([2.0])
    assert torch.autograd.grad(with_slope(wrong_slope, x, y), x)[0] == 600
    y.requires_grad_()
    of_x, of_y = torch.autograd.grad(with_slope(wrong_slope, x, y), (x, y))
    assert of_x == 12
    assert of_y == 9
    assert torch.func.grad(lambda z: with_slope(wrong_slope, z, y.detach()).sum())(x.detach()) == 12


def test_second_derivatives_and_learned_hyperparameters() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_()
    y = torch.rand(6, dtype=torch.float64, generator=generator)
    for loss, name in ((sigmoid_focal_loss, "gamma"), (asymmetric_loss, "gamma_neg")):
        assert torch.autograd.gradgradcheck(lambda z, loss=loss: loss(z, y, reduction="none"), z)
        power = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        given = lambda z, power, loss=loss, name=name: loss(z, y, reduction="none", **{name: power})  # noqa: E731
        assert torch.autograd.gradcheck(given, (z, power))


def test_blocks_make_up_the_whole() -> None:
    """Many entries are computed block by block, unless a hyperparameter belongs to some of them alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, BLOCK * torch.get_num_threads() + 5, generator=generator).requires_grad_()
    y = torch.randn(x.shape, generator=generator)
    strided = torch.stack([y, y], -1)[..., 0]
    by_column = y[0]
    for other, formula in (
        (y, wrong_slope),
        (strided, wrong_slope),
        (by_column, lambda x: wrong_slope(x, by_column)),
    ):
        given = {"hyperparameters": (other,)} if other is by_column else {}
        value = with_slope(formula, x, *([] if given else [other]), **given)
        torch.testing.assert_close(value, other * x.square(), rtol=0, atol=0)
        (slope,) = torch.autograd.grad(value.sum(), x)
        torch.testing.assert_close(slope, 100 * other * x.detach(), rtol=0, atol=0)
