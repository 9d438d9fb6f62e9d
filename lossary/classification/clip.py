"""Clipping the norm of the logits, which bounds any loss on them and so makes it tolerant to wrong labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lossary.core.checks import check_floating, check_in_range
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import class_rows
from lossary.core.types import Reduction


@objective(Kind.CLASSES, example=lambda num_classes: {"max_norm": 1.0})
def logit_clip_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    max_norm: Tensor | float,
    p: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy on logits whose norm is clipped.

    Reach for it when labels are wrong: it is bounded, and does not under-fit as symmetric losses do. ``max_norm`` must
    be tuned (0.2 to 10; fewer classes and more noise want less). Probabilities want calibration.

    Formula:
        .. math:: L = -\log \mathrm{softmax}\big(z \min(1, \tau / \|z\|_p)\big)_y

    Args:
        input: Logits.
        target: Class indices or probabilities.
        max_norm: The largest norm :math:`\tau`, positive.
        p: Which norm, at least 1; infinity is the largest absolute logit.
        weight: Class weights.
        ignore_index: Label of rows that count for nothing.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1].
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point.
        - target: ``(N, ...)`` integer, or ``(N, C, ...)`` floating point.
        - weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given. :func:`logit_clip_bounds` has its range.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, probability, ``max_norm``, ``p`` or reduction is wrong.

    Example:
        >>> logit_clip_cross_entropy_loss(torch.tensor([[8.0, -6.0]]), torch.tensor([0]), max_norm=1.0)
        tensor(0.2204)

    Source:
        Wei, Zhuang, Xie, Feng, Niu, An, Li: Mitigating Memorization of Noisy Labels by Clipping the Model Prediction
        (ICML 2023, arXiv 2212.04055), section 3. Its code decides whether to clip by the inverse of the threshold that
        it clips to, so that its map jumps; here one threshold does both, as in the paper.
    """
    rows = class_rows(
        input,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
    )
    _check_norm(max_norm, p)
    z, scale = _bounded(rows.logits, max_norm, p, rows.dim, eps=1e-12)
    loss = -rows.expect(rows.log_p_of_scaled(z, scale))
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class LogitClipCrossEntropyLoss(Objective):
    """Cross-entropy on logits whose norm is clipped; module form of :func:`logit_clip_cross_entropy_loss`.

    Example:
        >>> LogitClipCrossEntropyLoss(1.0)(torch.tensor([[8.0, -6.0]]), torch.tensor([0]))
        tensor(0.2204)
    """

    function = logit_clip_cross_entropy_loss

    def __init__(
        self,
        max_norm: Tensor | float,
        p: float = 2.0,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            max_norm=max_norm,
            p=p,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )


class LogitClippedLoss(nn.Module):
    """Any loss on logits whose norm is clipped.

    Reach for it to make focal loss, generalized cross-entropy or a loss of your own bounded.

    Args:
        loss: A module or callable ``(logits, target, **kwargs)``.
        max_norm: The largest norm, positive.
        p: Which norm, at least 1.
        dim: Class axis.

    Example:
        >>> from lossary.classification import FocalLoss
        >>> LogitClippedLoss(FocalLoss(gamma=2.0), max_norm=1.0)(torch.tensor([[8.0, -6.0]]), torch.tensor([0]))
        tensor(0.0086)

    Source:
        Wei et al. (ICML 2023, arXiv 2212.04055), section 3.
    """

    def __init__(self, loss: Callable[..., Tensor], max_norm: Tensor | float, p: float = 2.0, *, dim: int = 1) -> None:
        super().__init__()
        self.loss = loss
        self.clip = LogitClip(max_norm, p, dim, clip_in_eval=True)

    def forward(self, input: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
        """The loss on clipped logits.

        Args:
            input: Logits.
            target: What the loss takes.
            **kwargs: Handed to the loss.
        """
        return self.loss(self.clip(input), target, **kwargs)


class LogitClip(nn.Module):
    """Clips the norm of the logits in training; the last layer of a model.

    Reach for it where the loss cannot be wrapped (:class:`LogitClippedLoss`). The largest logit stays the largest, so
    predicted classes are the same clipped or not.

    Args:
        max_norm: The largest norm, positive.
        p: Which norm, at least 1.
        dim: Class axis.
        clip_in_eval: Whether to clip in evaluation mode too.

    Shape:
        - input, output: any shape with the axis ``dim``.

    Example:
        >>> layer = LogitClip(1.0)
        >>> layer(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
        >>> layer.eval()(torch.tensor([[3.0, 4.0]]))
        tensor([[3., 4.]])

    Source:
        Wei et al. (ICML 2023, arXiv 2212.04055), section 3.
    """

    max_norm: Tensor | float

    def __init__(self, max_norm: Tensor | float, p: float = 2.0, dim: int = 1, *, clip_in_eval: bool = False) -> None:
        super().__init__()
        _check_norm(max_norm, p)
        if isinstance(max_norm, Tensor):
            self.register_buffer("max_norm", max_norm)
        else:
            self.max_norm = max_norm
        self.p = p
        self.dim = dim
        self.clip_in_eval = clip_in_eval

    def forward(self, input: Tensor) -> Tensor:
        """Logits with their norm clipped in training, as they came in evaluation."""
        if not (self.training or self.clip_in_eval):
            return input
        return clip_logits(input, max_norm=self.max_norm, p=self.p, dim=self.dim)

    def extra_repr(self) -> str:
        """The threshold, the norm and the axis."""
        return f"max_norm={self.max_norm}, p={self.p}, dim={self.dim}, clip_in_eval={self.clip_in_eval}"


def clip_logits(input: Tensor, *, max_norm: Tensor | float, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    r"""Scale logit vectors down to a largest norm.

    Formula:
        .. math:: z \min(1, \tau / \|z\|_p)

        Beyond the ball only the direction has a gradient.

    Args:
        input: Logits, floating point.
        max_norm: The largest norm :math:`\tau`, positive.
        p: Which norm, at least 1; infinity is the largest absolute logit.
        dim: Class axis; the only one of an unbatched input ``(C,)``.
        eps: Logits that are all smaller count as 0.

    Returns:
        Shaped as input and of its dtype. An infinite logit takes all of the norm: the others become 0.

    Raises:
        TypeError: ``input`` is not floating point.
        ValueError: ``max_norm``, ``p``, ``dim`` or ``eps`` is out of range.

    Example:
        >>> clip_logits(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), max_norm=1.0)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])

    Source:
        Wei et al. (ICML 2023, arXiv 2212.04055), equation 4.
    """
    check_floating("input", input)
    _check_norm(max_norm, p)
    check_in_range("eps", eps, 0.0, low_open=True)
    dim = 0 if input.ndim == 1 else dim
    if not -input.ndim <= dim < input.ndim:
        raise ValueError(f"dim is {dim}; wanted an axis of input, which has shape {tuple(input.shape)}.")
    z = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    z, scale = _bounded(z, max_norm, p, dim, eps)
    return (z * scale).to(input.dtype)


def logit_clip_bounds(num_classes: int, max_norm: float, p: float = 2.0) -> tuple[float, float]:
    r"""Range of cross-entropy on clipped logits.

    Formula:
        .. math:: \log\big(1 + (C - 1) e^{-a \tau}\big) \le L \le \log\big(1 + (C - 1) e^{b \tau}\big)

        with :math:`a = \sqrt{C / (C - 1)}` (attained) and :math:`b = \sqrt 2` for p = 2, a = b = 2 else.

    Args:
        num_classes: C, at least 2.
        max_norm: The largest norm :math:`\tau`, positive.
        p: Which norm, at least 1.

    Returns:
        The lower and the upper bound.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> low, high = logit_clip_bounds(10, 1.0)
        >>> round(low, 3), round(high, 3)
        (1.42, 3.638)

    Source:
        Wei et al. (ICML 2023, arXiv 2212.04055), section 3; the lower bound here is the exact minimum.
    """
    _check_norm(max_norm, p)
    _check_num_classes(num_classes)
    others = num_classes - 1
    low, high = (math.sqrt(num_classes / others), math.sqrt(2)) if p == 2 else (2.0, 2.0)
    log_others = math.log(others)
    return _softplus(log_others - low * max_norm), _softplus(log_others + high * max_norm)


def symmetric_noise_risk_gap(num_classes: int, max_norm: float, noise_rate: float) -> float:
    r"""How much worse, at most, the minimiser of the noisy clipped cross-entropy does on clean labels.

    Formula:
        .. math:: R(\tilde f) - R(f^*) \le \frac{\eta}{(C - 1)\big(1 - \frac{\eta C}{C - 1}\big)} (A_{max} - A_{min}),
            \quad A(z) = \sum_k L(z, k)

        with :math:`A_{min} = C \log C` at z = 0 and C times the upper bound of the loss for :math:`A_{max}`; labels
        are replaced by another class, uniformly, with probability :math:`\eta`.

    Args:
        num_classes: C, at least 2.
        max_norm: The largest Euclidean norm, positive.
        noise_rate: :math:`\eta` in [0, 1 - 1/C).

    Returns:
        The bound; 0 without noise, and going to 0 with ``max_norm``.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> round(symmetric_noise_risk_gap(10, 0.5, 0.4), 3)
        0.524

    Source:
        Wei et al. (ICML 2023, arXiv 2212.04055), section 3; the constant is derived here.
    """
    _, high = logit_clip_bounds(num_classes, max_norm)
    check_in_range("noise_rate", noise_rate, 0.0, 1 - 1 / num_classes, high_open=True)
    spread = num_classes * (high - math.log(num_classes))
    return noise_rate / ((num_classes - 1) * (1 - noise_rate * num_classes / (num_classes - 1))) * spread


def _bounded(z: Tensor, max_norm: Tensor | float, p: float, dim: int, eps: float) -> tuple[Tensor, Tensor]:
    """Finite logits and what each row of them is multiplied by."""
    bound = torch.finfo(z.dtype).max ** 0.75  # an infinite logit has its limit, and the factor keeps its digits
    z = z.clamp(-bound, bound)
    largest = z.detach().abs().amax(dim, keepdim=True)
    is_zero = (largest < eps).to(z.dtype)
    largest = largest.clamp(min=eps)
    # A row of zeros becomes one of ones: at 0 the norm's second derivative is NaN, in the branch not taken, too.
    norm = torch.linalg.vector_norm(torch.addcdiv(is_zero, z, largest), p, dim, keepdim=True)  # at least 1
    return z, torch.where(largest * norm > max_norm, max_norm / norm / largest, 1.0)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _check_norm(max_norm: Tensor | float, p: float) -> None:
    check_in_range("max_norm", max_norm, 0.0, low_open=True)
    check_in_range("p", p, 1.0)


def _check_num_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes!r}; wanted at least 2.")
