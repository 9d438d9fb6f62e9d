"""Adversarial training: the losses of both players in their five usual forms, and the gradient penalty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.checks import check_in_range, check_shape
from lossary.core.numerics import safe_norm
from lossary.core.values import widened

Game = Literal["minimax", "non_saturating", "least_squares", "hinge", "wasserstein"]
_ALSO_CALLED = {"lsgan": "least_squares", "wgan": "wasserstein", "nonsaturating": "non_saturating"}

# For each game: the discriminator's loss on real and on fake scores, and the generator's on fake scores.
_Loss = Callable[[Tensor], Tensor]
_GAMES: dict[str, tuple[_Loss, _Loss, _Loss]] = {
    "minimax": (lambda r: F.softplus(-r), F.softplus, lambda f: -F.softplus(f)),
    "non_saturating": (lambda r: F.softplus(-r), F.softplus, lambda f: F.softplus(-f)),
    "least_squares": (lambda r: (r - 1).square() / 2, lambda f: f.square() / 2, lambda f: (f - 1).square() / 2),
    "hinge": (lambda r: (1 - r).relu(), lambda f: (1 + f).relu(), lambda f: -f),
    "wasserstein": (lambda r: -r, lambda f: f, lambda f: -f),
}


def adversarial_losses(real_scores: Tensor, fake_scores: Tensor, *, kind: Game) -> dict[str, Tensor]:
    r"""The losses of discriminator and generator.

    Reach for ``non_saturating`` first, ``hinge`` in large image models, and ``wasserstein`` with
    :func:`gradient_penalty`. In ``minimax`` the generator's gradient vanishes while the discriminator wins. Detach the
    fakes for the discriminator's step: both losses have gradients to all scores.

    Formula:
        With r and f the scores (logits) of real and fake samples, each averaged:

        - ``minimax``: softplus(-r) + softplus(f); generator -softplus(f)
        - ``non_saturating``: the same; generator softplus(-f)
        - ``least_squares``: (r - 1)^2 / 2 + f^2 / 2; generator (f - 1)^2 / 2
        - ``hinge``: max(0, 1 - r) + max(0, 1 + f); generator -f
        - ``wasserstein``: f - r; generator -f

    Args:
        real_scores: The discriminator's scores of real samples, no sigmoid; any shape.
        fake_scores: Its scores of generated ones; any shape.
        kind: The game, by one of the names above.

    Returns:
        ``discriminator`` and ``generator``, each ``()``; float32 for half-precision scores.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: ``kind`` is unknown.

    Example:
        >>> adversarial_losses(torch.tensor([2.0]), torch.tensor([-1.0]), kind="hinge")
        {'discriminator': tensor(0.), 'generator': tensor(1.)}

    Source:
        Terven et al.: Loss Functions and Metrics in Deep Learning (arXiv 2307.02694), image generation losses;
        Goodfellow et al. (2014, arXiv 1406.2661), Mao et al. (2017, arXiv 1611.04076), Lim, Ye (2017, arXiv
        1705.02894), Arjovsky, Chintala, Bottou (2017, arXiv 1701.07875).
    """
    game = kind.replace("-", "_")
    game = _ALSO_CALLED.get(game, game)
    if game not in _GAMES:
        raise ValueError(f"kind is {kind!r}; wanted one of {', '.join(_GAMES)}.")
    real, fake = widened(real_scores=real_scores, fake_scores=fake_scores)
    on_real, on_fake, generator = _GAMES[game]
    return {"discriminator": on_real(real).mean() + on_fake(fake).mean(), "generator": generator(fake).mean()}


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    *,
    coefficient: Tensor | float = 10.0,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""Keeps a critic's slope near 1 between real and fake samples.

    Reach for it with the ``wasserstein`` game, which needs a critic without steep places. It doubles the cost of the
    critic's step, and does not go with batch normalisation in the critic: samples must not depend on each other.

    Formula:
        .. math:: \lambda\, \overline{(\|\nabla f(\hat x)\| - 1)^2}, \quad \hat x = u x + (1 - u) \tilde x,
            \quad u \sim U(0, 1)

    Args:
        critic: The f, a score for each sample.
        real: Real samples ``(N, ...)``.
        fake: Generated ones in the same shape.
        coefficient: The :math:`\lambda`, at least 0.
        generator: Source of the draw.
        noise: The draw itself: u, ``(N,)`` in [0, 1).

    Returns:
        ``()``, with gradients to the critic's parameters (and to ``real`` and ``fake``).

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or ``coefficient`` is wrong.

    Example:
        >>> critic = lambda x: 3 * x.sum(1)
        >>> gradient_penalty(critic, torch.zeros(2, 1), torch.ones(2, 1))
        tensor(40.)

    Source:
        Terven et al. (arXiv 2307.02694), image generation losses; Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville:
        Improved Training of Wasserstein GANs (NeurIPS 2017, arXiv 1704.00028), equation 3.
    """
    check_in_range("coefficient", coefficient, 0.0)
    real, fake = widened(real=real, fake=fake)
    check_shape("fake", fake, real.shape, "samples as real")
    if real.ndim == 0:
        raise ValueError("real has shape (); wanted (N, ...).")
    if noise is None:
        noise = torch.rand(real.shape[:1], generator=generator, dtype=real.dtype, device=real.device)
    check_shape("noise", noise, real.shape[:1], "a number for each sample")
    share = noise.reshape([-1] + [1] * (real.ndim - 1)).to(real.dtype)
    between = share * real + (1 - share) * fake
    slope = torch.func.grad(lambda x: critic(x).sum())(between)
    return coefficient * (safe_norm(slope.reshape(slope.shape[0], -1), 1) - 1).square().mean()
