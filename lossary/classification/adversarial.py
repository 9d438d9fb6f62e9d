"""Adversarial inputs: projected gradient ascent of any loss within a ball around each input."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core.checks import check_floating, check_in_range

Norm = Literal["linf", "l2"]


def pgd_attack(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    objective: Callable[[Tensor], Tensor],
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    norm: Norm = "linf",
    random_start: bool = True,
    clip_range: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Perturb inputs within a ball so that ``objective(model(x'))`` grows.

    Reach for it in adversarial training, and to measure robust accuracy (more steps than in training). It is a
    first-order attack: what it cannot break may still break.

    Formula:
        .. math:: x' \leftarrow \Pi_{\|x' - x\| \le \epsilon} (x' + s\, \mathrm{dir}(\nabla_{x'} L(h(x')))), \quad
            \mathrm{dir}(g) = \mathrm{sign}(g) \text{ or } g / \|g\|_2

    Args:
        model: From inputs to logits. A module is put in evaluation mode for the attack; each of its modules is then
            set back to the mode it was in. Its parameters get no gradient.
        x: Inputs.
        objective: From logits to what is ascended: a loss for each input, whose sum is taken, or one number.
        epsilon: Radius of the ball, at least 0.
        step_size: Length of a step, at least 0.
        steps: Number of steps, at least 0.
        norm: ``linf`` or ``l2``.
        random_start: Whether to start at a random point of the ball rather than at ``x``.
        clip_range: Lowest and highest value of an input; None leaves inputs free.
        generator: Source of the random start, on the device of ``x``.

    Shape:
        - x: ``(N, ...)``; logits: ``(N, C, ...)``.

    Returns:
        The perturbed inputs, shaped as ``x``, detached.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: ``epsilon``, ``step_size``, ``steps``, ``norm`` or ``clip_range`` is wrong.

    Example:
        >>> import torch.nn.functional as F
        >>> model, x, y = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
        >>> attack = lambda logits: F.cross_entropy(logits, y, reduction="none")
        >>> worse = pgd_attack(model, x, attack, epsilon=0.1, step_size=0.03, steps=5)
        >>> bool(((worse - x).abs() <= 0.1 + 1e-6).all())
        True

    Source:
        Madry, Makelov, Schmidt, Tsipras, Vladu: Towards Deep Learning Models Resistant to Adversarial Attacks (ICLR
        2018, arXiv 1706.06083), section 2.1.
    """
    check_floating("x", x)
    check_in_range("epsilon", epsilon, 0.0)
    check_in_range("step_size", step_size, 0.0)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps is {steps!r}; wanted a whole number, at least 0.")
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm is {norm!r}; wanted 'linf' or 'l2'.")
    if clip_range is not None and not clip_range[0] < clip_range[1]:
        raise ValueError(f"clip_range is {clip_range!r}; wanted (lowest, highest).")
    x = x.detach()
    start = _random_point(x, epsilon, norm, generator) if random_start else torch.zeros_like(x)
    perturbed = _clip(x + start, clip_range)
    with evaluating(model), torch.enable_grad():
        for _ in range(steps):
            perturbed.requires_grad_()
            (gradient,) = torch.autograd.grad(objective(model(perturbed)).sum(), perturbed)
            moved = perturbed.detach() + step_size * _direction(gradient, norm)
            perturbed = _clip(x + _into_ball(moved - x, epsilon, norm), clip_range)
    return perturbed.detach()


class AdversarialTrainer:
    """Adversarial training around a model: perturb each batch, then take the loss of the perturbed inputs.

    Reach for it where inputs may be perturbed on purpose, with any loss of logits and labels, such as
    :class:`SwitchingOneVsRestLoss`. A step costs ``steps`` + 1 forward and backward passes.

    Args:
        model: From inputs to logits ``(N, C)``. It is attacked in evaluation mode; the loss is taken in the mode that
            it is in.
        loss: ``loss(logits, target)``, or ``loss(clean_logits, adversarial_logits, target)`` if ``with_clean``.
        epsilon: Radius of the ball.
        step_size: Length of a step of the attack.
        steps: Steps of the attack.
        clip_range: Lowest and highest value of an input, or None.
        norm: ``linf`` or ``l2``.
        attack: What the attack ascends: ``cross_entropy``, or ``kl``, the divergence from the clean prediction, as
            TRADES does.
        with_clean: Whether the loss wants the logits of the clean inputs too, as :class:`TradesSOVRLoss` does.
        generator: Source of the attack's random start.

    Raises:
        ValueError: ``attack`` is wrong.

    Example:
        >>> from torch import nn
        >>> trainer = AdversarialTrainer(nn.Linear(3, 4), nn.CrossEntropyLoss(), epsilon=0.1, step_size=0.03, steps=3)
        >>> trainer.loss(torch.rand(5, 3), torch.tensor([0, 3, 1, 1, 2])).backward()

    Source:
        Madry et al. (ICLR 2018, arXiv 1706.06083); with the settings of Kanai et al. (ICML 2023, arXiv 2207.10283).
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        *,
        epsilon: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 10,
        clip_range: tuple[float, float] | None = (0, 1),
        norm: Norm = "linf",
        attack: Literal["cross_entropy", "kl"] = "cross_entropy",
        with_clean: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        if attack not in ("cross_entropy", "kl"):
            raise ValueError(f"attack is {attack!r}; wanted 'cross_entropy' or 'kl'.")
        self.model = model
        self.objective = loss
        self.epsilon = epsilon
        self.step_size = step_size
        self.steps = steps
        self.clip_range = clip_range
        self.norm: Norm = norm
        self.attack = attack
        self.with_clean = with_clean
        self.generator = generator

    def perturb(self, x: Tensor, target: Tensor) -> Tensor:
        """Perturbed inputs, detached."""
        if self.attack == "kl":
            with evaluating(self.model), torch.no_grad():
                clean = F.softmax(self.model(x), 1)

        def ascended(logits: Tensor) -> Tensor:
            if self.attack == "kl":
                return F.kl_div(F.log_softmax(logits, 1), clean, reduction="none").sum(1)
            return F.cross_entropy(logits, target, reduction="none")

        return pgd_attack(
            self.model,
            x,
            ascended,
            epsilon=self.epsilon,
            step_size=self.step_size,
            steps=self.steps,
            norm=self.norm,
            clip_range=self.clip_range,
            generator=self.generator,
        )

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """The loss to step on, of inputs ``(N, ...)`` with class indices ``(N,)``."""
        perturbed = self.perturb(x, target)
        if self.with_clean:
            return self.objective(self.model(x), self.model(perturbed), target)
        return self.objective(self.model(perturbed), target)


@contextlib.contextmanager
def evaluating(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Evaluation mode for a module, and afterwards for each of its modules the mode it was in."""
    modes = {module: module.training for module in model.modules()} if isinstance(model, nn.Module) else {}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _direction(gradient: Tensor, norm: Norm) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    length = _length(gradient)
    return gradient / torch.where(length == 0, 1.0, length)


def _into_ball(offset: Tensor, epsilon: float, norm: Norm) -> Tensor:
    if norm == "linf":
        return offset.clamp(-epsilon, epsilon)
    length = _length(offset)
    return torch.where(length > epsilon, offset * (epsilon / length.clamp(min=torch.finfo(offset.dtype).tiny)), offset)


def _random_point(x: Tensor, epsilon: float, norm: Norm, generator: torch.Generator | None) -> Tensor:
    """A point that is uniform in the ball."""
    options: dict[str, Any] = {"generator": generator, "dtype": x.dtype, "device": x.device}
    if norm == "linf":
        return epsilon * (2 * torch.rand(x.shape, **options) - 1)
    direction = _direction(torch.randn(x.shape, **options), norm)
    radius = torch.rand((len(x),) + (1,) * (x.ndim - 1), **options) ** (1 / max(x[:1].numel(), 1))
    return epsilon * radius * direction


def _length(x: Tensor) -> Tensor:
    """Euclidean length of each input, shaped to broadcast."""
    length: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1) if x.ndim > 1 else x.abs()
    return length.reshape([-1] + [1] * (x.ndim - 1))


def _clip(x: Tensor, clip_range: tuple[float, float] | None) -> Tensor:
    return x if clip_range is None else x.clamp(*clip_range)
