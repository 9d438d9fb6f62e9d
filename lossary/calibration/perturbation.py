"""Labels that are perturbed on purpose, by as much as each image can bear: calibrated binary maps (ASLP)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lossary.core import checks
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import label_entries, widen
from lossary.core.sigmoid import cross_entropy, yes_no
from lossary.core.slopes import with_slope
from lossary.core.types import Reduction

_LOGIT_BOUND = math.log((1 - 1e-7) / 1e-7)


@objective(Kind.LABELS, example=lambda num_classes: {"alpha": 0.1})
def self_calibrating_bce_loss(
    input: Tensor,
    target: Tensor,
    alpha: Tensor | float,
    *,
    beta: Tensor | float = 2.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Binary cross-entropy in expectation over labels that are perturbed with probability ``alpha``.

    Reach for it where a binary map (saliency, camouflage, defects) comes out over-confident: confidences are drawn to
    :math:`1 - \alpha\beta`. One constant does where it can be tuned; :class:`AdaptiveLabelPerturbation` finds an
    ``alpha`` for each image. Not where the model underfits: it is not over-confident then.

    Formula:
        .. math:: L = -t \log p - (1 - t) \log(1 - p), \quad t = (1 - 2 \alpha\beta)\, y + \alpha\beta

        The same as :math:`(1 - 2\alpha\beta)\,\mathrm{BCE} - \alpha\beta \log p(1 - p)`: only the product counts.
        :math:`\alpha\beta = 1/2` teaches 1/2 everywhere, more than that the inverted labels.

    Args:
        input: Logits.
        target: Yes/no targets.
        alpha: Probability of perturbation: one for all, or one for each sample; below :math:`1 / (2\beta)`.
        beta: Strength: a perturbed label is :math:`(1 - 2\beta) y + \beta`, so 1/2 forgets it and 1 inverts it.
        sample_weight: Weights of entries or rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of entries.

    Shape:
        - input, target: the same, any shape ``(N, ...)``; floating point, target in [0, 1].
        - alpha: a number, ``()`` or ``(N,)``; sample_weight: as input, or ``(N,)``; normalizer: a number or ``()``.

    Returns:
        Input's shape for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, target, ``alpha``, ``beta`` or reduction is wrong.

    Example:
        >>> self_calibrating_bce_loss(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 1.0]), 0.05, beta=2.0)
        tensor(0.5209)

    Source:
        Liu, Ye, Wang, Cui, Zhang, Zhang, Barnes: Model Calibration in Dense Classification with Adaptive Label
        Perturbation (ICCV 2023, arXiv 2307.13539). Its code draws the labels (:func:`stochastic_label_perturbation`);
        this is the mean over draws.
    """
    checks.check_in_range("alpha", alpha, 0.0, 1.0)
    checks.check_in_range("beta", beta, 0.0)
    entries = label_entries(input, target, sample_weight=sample_weight)
    strength = beta * _per_sample("alpha", alpha, entries.target)
    smoothed = (1 - 2 * strength) * entries.target + strength
    loss = with_slope(_binary_cross_entropy, entries.logits, smoothed)
    return entries.reduce(loss, reduction=reduction, normalizer=normalizer)


class SelfCalibratingBCELoss(Objective):
    """Binary cross-entropy in expectation over perturbed labels; module form of :func:`self_calibrating_bce_loss`.

    Args:
        beta: Strength of a perturbation, at least 0.
        alpha: Probability of perturbation where the call gives none: one for all, or one for each sample.
        reduction: ``none``, ``mean`` or ``sum``.

    Example:
        >>> loss = SelfCalibratingBCELoss(beta=2.0)
        >>> loss(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 1.0]), alpha=torch.tensor([0.0, 0.1]))
        tensor(0.6709)
    """

    function = self_calibrating_bce_loss

    def __init__(
        self, beta: Tensor | float = 2.0, alpha: Tensor | float = 0.0, *, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(beta=beta, alpha=alpha, reduction=reduction)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        alpha: Tensor | float | None = None,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            input: Logits.
            target: Yes/no targets.
            alpha: Probability of perturbation for this call, in place of the module's.
            sample_weight: Weights of entries or rows.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        words = self.hyperparameters() if alpha is None else {**self.hyperparameters(), "alpha": alpha}
        return self_calibrating_bce_loss(input, target, sample_weight=sample_weight, normalizer=normalizer, **words)


def stochastic_label_perturbation(
    target: Tensor,
    alpha: Tensor | float,
    *,
    beta: Tensor | float = 2.0,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""Perturb the labels of whole samples, each with probability ``alpha``.

    Reach for it to train as the paper does, with ``torch.nn.functional.binary_cross_entropy_with_logits`` (linear in
    the target, so fine with the targets outside [0, 1] that :math:`\beta > 1` makes). Its mean over draws is
    :func:`self_calibrating_bce_loss`, with less variance.

    Args:
        target: Labels ``(N, ...)`` in [0, 1], floating point.
        alpha: Probability of perturbation: a number, ``()`` or ``(N,)``.
        beta: A perturbed label is :math:`(1 - 2\beta) y + \beta`.
        generator: Source of randomness.
        noise: The draws themselves, uniform in [0, 1), ``(N,)``; a sample is perturbed where its draw is below
            ``alpha``.

    Returns:
        Target's shape and dtype.

    Raises:
        TypeError: ``target`` is not of floating point.
        ValueError: A shape, ``alpha`` or ``beta`` is wrong.

    Example:
        >>> stochastic_label_perturbation(torch.tensor([1.0, 0.0]), 0.5, beta=1.0, noise=torch.tensor([0.2, 0.7]))
        tensor([0., 0.])
    """
    checks.check_floating("target", target)
    checks.check_in_range("alpha", alpha, 0.0, 1.0)
    checks.check_in_range("beta", beta, 0.0)
    wide = widen(target)  # halves have too few numbers near 0 to draw a small level from
    if noise is None:
        noise = torch.rand(target.shape[:1], generator=generator, dtype=wide.dtype, device=target.device)
    checks.check_shape("noise", noise, target.shape[:1], "one draw for each sample")
    perturbed = _per_sample("noise", noise, wide) < _per_sample("alpha", alpha, wide)
    return torch.where(perturbed, (1 - 2 * beta) * target + beta, target)


def label_smoothing_target(target: Tensor, epsilon: Tensor | float) -> Tensor:
    r"""Smoothed yes/no labels, :math:`(1 - \epsilon) y + \epsilon / 2`.

    The perturbation that is certain (:math:`\alpha = 1`) and mild (:math:`\beta = \epsilon / 2`).

    Args:
        target: Labels in [0, 1], floating point, any shape.
        epsilon: Smoothing in [0, 1].

    Returns:
        Target's shape and dtype.

    Raises:
        TypeError: ``target`` is not of floating point.
        ValueError: ``epsilon`` is out of range.

    Example:
        >>> label_smoothing_target(torch.tensor([1.0, 0.0]), 0.1)
        tensor([0.9500, 0.0500])
    """
    checks.check_floating("target", target)
    checks.check_in_range("epsilon", epsilon, 0.0, 1.0)
    return (1 - epsilon) * target + epsilon / 2


def adaptive_perturbation_update(
    alpha: Tensor,
    input: Tensor,
    target: Tensor,
    *,
    beta: Tensor | float = 2.0,
    eta: Tensor | float = 0.002,
    regularization: Tensor | float = 2000.0,
    accuracy: Tensor | float | None,
    preserved_accuracy: Tensor | float | None = None,
) -> Tensor:
    r"""The next perturbation level of each sample, from its logits: a pure step of state.

    A level rises where the model is confident and right, and falls where it is confident and wrong.
    :class:`AdaptiveLabelPerturbation` keeps the levels of a data set.

    Formula:
        .. math:: \alpha \leftarrow \alpha + \eta \Big( \frac{\mathrm{mean}\,(2 y - 1)\, z}{\beta}
            + \lambda \min(1 - a - \alpha\beta,\ 0) \Big)

        then below 0 to 0, and from :math:`1/(2\beta)` on to :math:`1/(2\beta) - 0.01`. The mean is over the sample's
        pixels, with z held within the logits of 1e-7 and 1 - 1e-7; it is the derivative of the loss in
        :math:`\alpha\beta`. The second term keeps the label's confidence :math:`1 - \alpha\beta` from falling below
        the accuracy a: calibration is the aim. With ``preserved_accuracy`` :math:`a_0` it is
        :math:`\lambda \min(a - a_0, 0)` instead: entropy is raised as long as the accuracy holds.

    Args:
        alpha: Levels now, in [0, 1/(2 beta)).
        input: Logits; no gradient is taken.
        target: True labels in [0, 1], never the perturbed ones.
        beta: Strength of a perturbation, positive.
        eta: Step size.
        regularization: Weight :math:`\lambda` of the second term.
        accuracy: Accuracy on held-out data after the last epoch, in [0, 1]; None or a tensor of NaN where it is not
            known yet, and nothing pulls.
        preserved_accuracy: Accuracy to be held, in [0, 1]: the conservative aim in place of calibration.

    Shape:
        - alpha: ``(N,)``; input, target: ``(N, ...)``; accuracy, preserved_accuracy: a number or ``()``.

    Returns:
        The next levels ``(N,)``, without gradient; a sample with a NaN keeps its level.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, target or number is wrong.

    Example:
        >>> levels = torch.tensor([0.05, 0.05])
        >>> input, target = torch.tensor([[4.0, -4.0], [-4.0, 4.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> adaptive_perturbation_update(levels, input, target, eta=0.02, accuracy=0.9)
        tensor([0.0900, 0.0100])

    Source:
        Liu et al. (ICCV 2023, arXiv 2307.13539); the variant for calibration (ASLP_MC) is its public code's. Of the
        conservative variant (ASLP_MEI) the code is not public: its second term is our reading of the text.
    """
    checks.check_in_range("beta", beta, 0.0, low_open=True)
    checks.check_in_range("eta", eta, 0.0)
    checks.check_in_range("regularization", regularization, 0.0)
    checks.check_in_range("accuracy", 0.0 if accuracy is None else accuracy, 0.0, 1.0)
    checks.check_in_range("preserved_accuracy", 0.0 if preserved_accuracy is None else preserved_accuracy, 0.0, 1.0)
    entries = label_entries(input.detach(), target)
    checks.check_floating("alpha", alpha)
    checks.check_shape("alpha", alpha, entries.target.shape[:1], "one level for each sample of input")
    confident_and_right = (2 * entries.target - 1) * entries.logits.clamp(-_LOGIT_BOUND, _LOGIT_BOUND)
    if confident_and_right.ndim > 1:
        confident_and_right = confident_and_right.flatten(1).mean(1)
    known = (torch.nan if x is None else x for x in (accuracy, preserved_accuracy))
    a, held = (torch.as_tensor(x, dtype=alpha.dtype, device=alpha.device) for x in known)
    room = 1 - a - beta * alpha if preserved_accuracy is None else a - held
    pull = regularization * torch.where(room.isnan(), 0.0, room.clamp(max=0))
    moved = alpha + eta * (confident_and_right / beta + pull)
    moved = torch.where(moved < 0, 0.0, torch.where(moved >= 1 / (2 * beta), 1 / (2 * beta) - 0.01, moved))
    return torch.where(moved.isnan(), alpha, moved.to(alpha.dtype)).detach()


class LabelPerturbationState(NamedTuple):
    """What :func:`adaptive_label_perturbation_loss` hands from visit to visit.

    Attributes:
        alpha: The next level of each sample ``(N,)``.
    """

    alpha: Tensor


@objective(Kind.LABELS, stateful=True)
def adaptive_label_perturbation_loss(
    input: Tensor,
    target: Tensor,
    alpha: Tensor | float = 0.0,
    *,
    beta: Tensor | float = 2.0,
    eta: Tensor | float = 0.002,
    regularization: Tensor | float = 2000.0,
    accuracy: Tensor | float | None = None,
    preserved_accuracy: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> tuple[Tensor, LabelPerturbationState]:
    r"""Self-calibrating binary cross-entropy, and each sample's next level of perturbation.

    Reach for it where you keep the levels of your samples yourself; :class:`AdaptiveLabelPerturbation` keeps them for
    you.

    Formula:
        The loss of :func:`self_calibrating_bce_loss` at the old level, and the rule of
        :func:`adaptive_perturbation_update`.

    Args:
        input: Logits.
        target: True yes/no targets.
        alpha: Levels where the last visit left them: one for each sample, or one for all.
        beta: Strength of a perturbation, positive.
        eta: Step size of the levels.
        regularization: Weight of the pull that keeps the labels' confidence from falling below the accuracy.
        accuracy: Accuracy on held-out data after the last epoch; None or NaN where it is not known yet, and nothing
            pulls.
        preserved_accuracy: Accuracy to be held, the conservative aim in place of calibration.
        sample_weight: Weights of entries or rows, in the loss alone.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of entries.

    Shape:
        - input, target: the same, any shape ``(N, ...)``; floating point, target in [0, 1].
        - alpha: a number, ``()`` or ``(N,)``; accuracy, preserved_accuracy: a number or ``()``.
        - sample_weight: as input, or ``(N,)``; normalizer: a number or ``()``.

    Returns:
        The loss, as :func:`self_calibrating_bce_loss` returns it, and the state after the visit, without gradient.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, target, number or reduction is wrong.

    Example:
        >>> input, target = torch.tensor([[4.0, -4.0]]), torch.tensor([[1.0, 0.0]])
        >>> adaptive_label_perturbation_loss(input, target, 0.05, eta=0.02, accuracy=0.9)
        (tensor(0.4181), LabelPerturbationState(alpha=tensor([0.0900])))

    Source:
        Liu et al. (ICCV 2023, arXiv 2307.13539). Its code draws the labels; this is the mean over draws.
    """
    loss = self_calibrating_bce_loss(
        input, target, alpha, beta=beta, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer
    )
    widened = label_entries(input.detach(), target).logits
    levels = alpha if isinstance(alpha, Tensor) else widened.new_tensor(alpha)
    levels = adaptive_perturbation_update(
        levels.expand(input.shape[:1]),
        input,
        target,
        beta=beta,
        eta=eta,
        regularization=regularization,
        accuracy=accuracy,
        preserved_accuracy=preserved_accuracy,
    )
    return loss, LabelPerturbationState(levels)


class AdaptiveLabelPerturbation(Objective):
    """Levels of perturbation that find themselves, one for each training sample (ASLP).

    Module form of :func:`adaptive_label_perturbation_loss` that keeps the levels of a data set. Reach for it where a
    binary map comes out over-confident and no strength can be tuned by hand: the mean of alpha times beta settles near
    the error rate on held-out data. With the sample's index at hand the loop is::

        loss = aslp(logits, target, index)  # in expectation, and moves the levels
        aslp.set_accuracy(validation_accuracy)  # after each epoch

    or, with drawn labels as in the paper::

        loss = binary_cross_entropy_with_logits(logits, aslp.perturb(target, index))
        aslp.update(index, logits, target)

    Levels live in buffers, so that a checkpoint holds them. Each rank moves the levels of its own samples.

    Args:
        num_samples: Number of training samples.
        beta: Strength of a perturbation, positive.
        eta: Step size of the levels.
        regularization: Weight of the pull that keeps the labels' confidence from falling below the accuracy.
        warmup_epochs: Epochs (calls of :meth:`set_accuracy`) during which levels stay 0.
        preserve_accuracy: Whether to hold the best accuracy of the warm-up, the conservative aim, in place of
            calibration; see :func:`adaptive_perturbation_update`.
        reduction: ``none``, ``mean`` or ``sum``.

    Attributes:
        alpha: Levels ``(num_samples,)``; they move in training mode only.
        accuracy: Accuracy after the last epoch ``()``; NaN before it is set.
        preserved_accuracy: Best accuracy of the warm-up ``()``, or None without ``preserve_accuracy``.
        epoch: Epochs done ``()``.

    Example:
        >>> aslp = AdaptiveLabelPerturbation(4, eta=0.02, warmup_epochs=1)
        >>> aslp.set_accuracy(0.9)
        >>> loss = aslp(torch.tensor([[4.0, -4.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([2]))
        >>> aslp.alpha
        tensor([0.0000, 0.0000, 0.0400, 0.0000])

    Source:
        Liu et al. (ICCV 2023, arXiv 2307.13539); defaults are its public code's.
    """

    function = adaptive_label_perturbation_loss
    alpha: Tensor
    accuracy: Tensor
    preserved_accuracy: Tensor | None
    epoch: Tensor
    beta: float

    def __init__(
        self,
        num_samples: int,
        *,
        beta: float = 2.0,
        eta: float = 0.002,
        regularization: float = 2000.0,
        warmup_epochs: int = 5,
        preserve_accuracy: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        checks.check_in_range("num_samples", num_samples, 1)
        checks.check_in_range("beta", beta, 0.0, low_open=True)
        checks.check_in_range("eta", eta, 0.0)
        checks.check_in_range("regularization", regularization, 0.0)
        checks.check_in_range("warmup_epochs", warmup_epochs, 0)
        super().__init__(
            alpha=torch.zeros(num_samples),
            beta=beta,
            eta=eta,
            regularization=regularization,
            accuracy=torch.tensor(torch.nan),
            preserved_accuracy=torch.tensor(torch.nan) if preserve_accuracy else None,
            reduction=reduction,
        )
        self.warmup_epochs = warmup_epochs
        self.register_buffer("epoch", torch.tensor(0))

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        index: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss at the samples' levels; in training mode these then move.

        Args:
            input: Logits ``(N, ...)``.
            target: True labels ``(N, ...)``.
            index: Number of each sample in the data set ``(N,)``; None where the batch is the data set, in order.
            sample_weight: Weights of entries or rows.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        index = self._index(index)
        words = {**self.hyperparameters(), "alpha": self.alpha[index]}
        loss, state = adaptive_label_perturbation_loss(
            input, target, sample_weight=sample_weight, normalizer=normalizer, **words
        )
        if self.training:
            self._move(index, state.alpha)
        return loss

    def perturb(
        self,
        target: Tensor,
        index: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Perturbed labels of the samples, as :func:`stochastic_label_perturbation` draws them.

        Args:
            target: True labels ``(N, ...)``.
            index: Number of each sample in the data set ``(N,)``; None where the batch is the data set, in order.
            generator: Source of randomness.
            noise: The draws themselves ``(N,)``.
        """
        return stochastic_label_perturbation(
            target, self.alpha[self._index(index)], beta=self.beta, generator=generator, noise=noise
        )

    def update(self, index: Tensor | None, input: Tensor, target: Tensor) -> None:
        """Move the levels of the samples by their logits; nothing moves in the warm-up.

        Args:
            index: Number of each sample in the data set ``(N,)``; None where the batch is the data set, in order.
            input: Logits ``(N, ...)``.
            target: True labels ``(N, ...)``.
        """
        index = self._index(index)
        words = self.hyperparameters()
        del words["alpha"], words["reduction"]
        self._move(index, adaptive_perturbation_update(self.alpha[index], input, target, **words))

    def set_accuracy(self, value: Tensor | float) -> None:
        """Give the accuracy on held-out data after an epoch, in [0, 1]; this ends the epoch.

        Args:
            value: Share of right pixels.
        """
        checks.check_in_range("value", value, 0.0, 1.0)
        self.accuracy = torch.as_tensor(value, dtype=self.accuracy.dtype, device=self.accuracy.device)
        if self.preserved_accuracy is not None:
            best = torch.fmax(self.preserved_accuracy, self.accuracy)
            warming_up = self.epoch < max(self.warmup_epochs, 1)
            self.preserved_accuracy = torch.where(warming_up, best, self.preserved_accuracy)
        self.epoch = self.epoch + 1

    def extra_repr(self) -> str:
        """The hyperparameters that do not move."""
        return (
            f"num_samples={len(self.alpha)}, beta={self.beta}, eta={self.eta}, regularization={self.regularization}, "
            f"warmup_epochs={self.warmup_epochs}, preserve_accuracy={self.preserved_accuracy is not None}"
        )

    def _index(self, index: Tensor | None) -> Tensor:
        return torch.arange(len(self.alpha), device=self.alpha.device) if index is None else index.long()

    def _move(self, index: Tensor, levels: Tensor) -> None:
        levels = torch.where(self.epoch >= self.warmup_epochs, levels, self.alpha[index])
        self.alpha = self.alpha.index_put((index,), levels.to(self.alpha.dtype))


def _per_sample(name: str, value: Tensor | float, target: Tensor) -> Tensor:
    """A number, ``()`` or ``(N,)`` shaped to meet ``target (N, ...)``."""
    tensor = torch.as_tensor(value, dtype=target.dtype, device=target.device)
    if tensor.ndim == 0:
        return tensor
    checks.check_shape(name, tensor, target.shape[:1], "one number for each sample, or one for all")
    return tensor.reshape([-1] + [1] * (target.ndim - 1))


def _binary_cross_entropy(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    yes, no, _, _, log_likely = yes_no(z, y)
    return cross_entropy(z, y, log_likely), no - yes
