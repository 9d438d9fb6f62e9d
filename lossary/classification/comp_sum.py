"""Comp-sum losses: sum-exponential, cross-entropy, generalized cross-entropy and absolute error as one family.

With them the family's guarantees (H-consistency bounds) as functions, and its smooth adversarial form with the
training step around it.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lossary.classification.adversarial import Norm, evaluating, pgd_attack
from lossary.core.checks import check_floating, check_in_range, check_shape
from lossary.core.numerics import product, safe_norm
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import class_rows
from lossary.core.types import Reduction

Numbers = TypeVar("Numbers", float, npt.NDArray[np.floating], Tensor)


@objective(Kind.CLASSES, unbounded=True)
def comp_sum_loss(
    input: Tensor,
    target: Tensor,
    *,
    tau: Tensor | float = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""A family of losses from the sum-exponential over cross-entropy to the mean absolute error.

    Reach for it to trade easy optimisation (``tau`` near 1) against robustness to wrong labels (``tau`` towards 2)
    with one number. ``tau`` below 1 lets single rows dominate; at 2 it learns slowly where there are many classes.

    Formula:
        .. math:: L = \Phi_\tau\Big(\sum_{k \ne y} e^{z_k - z_y}\Big) = \frac{p_y^{\tau - 1} - 1}{1 - \tau}, \quad
            L = -\log p_y \text{ at } \tau = 1

        Probability and smoothed targets average the losses of all labels.

    Args:
        input: Logits.
        target: Class indices or probabilities.
        tau: Member of the family, at least 0: 0 sum-exponential, 1 cross-entropy, 1 + q generalized cross-entropy, 2
            mean absolute error 1 - p.
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
        as in PyTorch, 0 if ``normalizer`` is given. For ``tau < 1`` it grows as :math:`p_y^{\tau - 1}` and overflows
        to infinity where that does (at ``tau=0`` in float32 from a logit gap of 88 on).

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, probability, ``tau`` or reduction is wrong.

    Example:
        >>> input = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
        >>> comp_sum_loss(input, torch.tensor([0, 2]), tau=1.7)
        tensor(0.5740)

    Source:
        Mao, Mohri, Zhong: Cross-Entropy Loss Functions: Theoretical Analysis and Applications (ICML 2023, arXiv
        2304.07288), section 3.
    """
    check_in_range("tau", tau, 0.0)
    rows = class_rows(
        input,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
    )
    return rows.reduce(rows.expect(_phi(rows.log_p(), tau)), reduction=reduction, normalizer=normalizer)


class CompSumLoss(Objective):
    """From the sum-exponential over cross-entropy to the absolute error; module form of :func:`comp_sum_loss`.

    Example:
        >>> CompSumLoss(tau=2.0)(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(0.7500)
    """

    function = comp_sum_loss

    def __init__(
        self,
        tau: Tensor | float = 1.0,
        reduction: Reduction = "mean",
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
    ) -> None:
        super().__init__(
            tau=tau,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )


@objective(
    Kind.CLASSES,
    arguments=lambda input, target: {"input": input, "adversarial_input": 1.25 * input, "target": target},
    unbounded=True,
)
def smooth_adversarial_comp_sum_loss(
    input: Tensor,
    adversarial_input: Tensor,
    target: Tensor,
    *,
    tau: Tensor | float = 1.0,
    nu: Tensor | float | None = None,
    rho: Tensor | float = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Comp-sum loss on clean logits plus a penalty on how far the margins move under a perturbation.

    Reach for it in adversarial training in place of TRADES: :class:`AdversarialCompSum` runs the whole step. It bounds
    the worst margin loss within the ball if the perturbation maximises the penalty.

    Formula:
        .. math:: L = \Phi_\tau\Big(\sum_{k \ne y} e^{-(z_y - z_k) / \rho}\Big) + \nu \|D(z', y) - D(z, y)\|_2, \quad
            D(z, y) = (z_y - z_k)_{k \ne y}

    Args:
        input: Logits of the clean inputs.
        adversarial_input: Logits of the perturbed inputs.
        target: Class indices.
        tau: Member of the family, at least 0; see :func:`comp_sum_loss`.
        nu: Weight of the penalty, at least 0. None takes :math:`\sqrt{C - 1} / \rho`, the least for which the bound
            holds.
        rho: Width of the margin, positive.
        weight: Class weights of the label, on both terms.
        ignore_index: Label of rows that count for nothing.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input, adversarial_input: ``(N, C, ...)`` or ``(C,)``, floating point.
        - target: ``(N, ...)`` integer.
        - weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given. A class that is -inf in both logits moves no margin; where the
        margins do not move at all, the penalty's gradient is 0.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``tau``, ``nu``, ``rho`` or reduction is wrong.

    Example:
        >>> clean, moved = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1.0, 0.0, -1.0]])
        >>> smooth_adversarial_comp_sum_loss(clean, moved, torch.tensor([0]), nu=1.0)
        tensor(1.5841)

    Source:
        Mao, Mohri, Zhong (ICML 2023, arXiv 2304.07288), section 5. The place of ``rho`` in the exponential is the one
        for which the bound above holds: the rho-margin function lies below :math:`e^{-u / \rho}`.
    """
    check_in_range("tau", tau, 0.0)
    check_in_range("rho", rho, 0.0, low_open=True)
    rows = class_rows(
        input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight, index_only=True
    )
    check_floating("adversarial_input", adversarial_input)
    check_shape("adversarial_input", adversarial_input, input.shape, "logits shaped as input")
    if nu is None:
        nu = math.sqrt(rows.num_classes - 1) / rho
    check_in_range("nu", nu, 0.0)
    clean = _phi(rows.log_p_of_label(1 / rho), tau)
    loss = clean + nu * rows.margin_shift(adversarial_input.to(rows.logits.dtype))
    return rows.reduce(rows.label_weight() * loss, reduction=reduction, normalizer=normalizer)


class SmoothAdversarialCompSumLoss(Objective):
    """Comp-sum loss plus a penalty on moving margins; module form of :func:`smooth_adversarial_comp_sum_loss`.

    Example:
        >>> loss = SmoothAdversarialCompSumLoss(nu=1.0)
        >>> loss(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(1.5841)
    """

    function = smooth_adversarial_comp_sum_loss

    def __init__(
        self,
        tau: Tensor | float = 1.0,
        nu: Tensor | float | None = None,
        rho: Tensor | float = 1.0,
        reduction: Reduction = "mean",
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(tau=tau, nu=nu, rho=rho, reduction=reduction, weight=weight, ignore_index=ignore_index)

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        adversarial_input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The objective on the logits of clean and perturbed inputs.

        Args:
            input: Logits of the clean inputs.
            adversarial_input: Logits of the perturbed inputs.
            target: Class indices.
            sample_weight: One weight for each row.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return smooth_adversarial_comp_sum_loss(
            input,
            adversarial_input,
            target,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


class AdversarialCompSum:
    r"""The adversarial training step ADV-COMP-SUM: perturb so that margins move most, then penalise how far they moved.

    Reach for it where inputs may be perturbed on purpose; a step costs ``steps`` + 3 forward passes. ``nu`` trades
    clean for robust accuracy, and must be tuned: the value for which the bound holds, the default, may be so strong
    that no margin moves because none is learnt.

    Formula:
        .. math:: x' \approx \arg\max_{\|x' - x\| \le \epsilon} \|D(h(x'), y) - D(h(x), y)\|_2, \quad
            L \text{ as in } \texttt{smooth\_adversarial\_comp\_sum\_loss}

    Args:
        model: From inputs to logits ``(N, C)``.
        tau: Member of the family, at least 0.
        nu: Weight of the penalty, at least 0; None takes :math:`\sqrt{C - 1} / \rho`.
        rho: Width of the margin, positive.
        epsilon: Radius of the ball.
        step_size: Length of a step of the attack.
        steps: Steps of the attack.
        norm: ``linf`` or ``l2``.
        clip_range: Lowest and highest value of an input, or None.
        generator: Source of the attack's random start (at the clean input the margins have not moved, and there is
            no direction to go).
        reduction: ``none``, ``mean`` or ``sum``.

    Example:
        >>> trainer = AdversarialCompSum(nn.Linear(3, 4), epsilon=0.1, step_size=0.03, steps=3)
        >>> trainer.loss(torch.randn(5, 3), torch.tensor([0, 3, 1, 1, 2])).backward()

    Source:
        Mao, Mohri, Zhong (ICML 2023, arXiv 2304.07288), section 5.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        tau: float = 1.0,
        nu: float | None = None,
        rho: float = 1.0,
        epsilon: float,
        step_size: float,
        steps: int,
        norm: Norm = "linf",
        clip_range: tuple[float, float] | None = None,
        generator: torch.Generator | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        self.model = model
        self.objective = SmoothAdversarialCompSumLoss(tau, nu, rho, reduction)
        self.epsilon = epsilon
        self.step_size = step_size
        self.steps = steps
        self.norm: Norm = norm
        self.clip_range = clip_range
        self.generator = generator

    def perturb(self, x: Tensor, target: Tensor) -> Tensor:
        """Inputs within the ball whose margins have moved far, detached.

        Args:
            x: Clean inputs.
            target: Class indices.
        """
        with evaluating(self.model), torch.no_grad():
            clean = margin_vector(self.model(x), target)

        def margin_shift(logits: Tensor) -> Tensor:
            return safe_norm(margin_vector(logits, target) - clean, 1)

        return pgd_attack(
            self.model,
            x,
            margin_shift,
            epsilon=self.epsilon,
            step_size=self.step_size,
            steps=self.steps,
            norm=self.norm,
            clip_range=self.clip_range,
            generator=self.generator,
        )

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """The loss to step on, differentiable through both forward passes.

        Args:
            x: Clean inputs.
            target: Class indices.
        """
        perturbed = self.perturb(x, target)
        value: Tensor = self.objective(self.model(x), self.model(perturbed), target)
        return value


def margin_vector(input: Tensor, target: Tensor) -> Tensor:
    """Margins of the label over every other class, in the order of the classes.

    Args:
        input: Logits ``(N, C, ...)``.
        target: Class indices ``(N, ...)``.

    Returns:
        ``(N, C - 1, ...)``: z_y - z_k for k != y, k increasing.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or label is wrong.

    Example:
        >>> margin_vector(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([1]))
        tensor([[2., 3.]])

    Source:
        Mao, Mohri, Zhong (ICML 2023, arXiv 2304.07288), section 5.
    """
    rows = class_rows(input, target, index_only=True)
    assert rows.index is not None
    label = rows.index.unsqueeze(rows.dim)
    shape = [-1] + [1] * (rows.logits.ndim - 1 - rows.dim)
    others = torch.arange(rows.num_classes - 1, device=input.device).reshape(shape)
    others = others + (others >= label)
    return rows.at_label(rows.logits).unsqueeze(rows.dim) - rows.logits.gather(rows.dim, others)


def comp_sum_transform(beta: Numbers, tau: float, num_classes: int) -> Numbers:
    r"""The transform T of a comp-sum loss: a zero-one excess of ``beta`` costs at least T(beta) of excess surrogate.

    Formula:
        .. math::

            T(\beta) = \frac{m^{1 - \tau}}{1 - \tau} \Big[1 - \Big(\tfrac12 (1 + \beta)^{\frac{1}{2 - \tau}} +
            \tfrac12 (1 - \beta)^{\frac{1}{2 - \tau}}\Big)^{2 - \tau}\Big] \text{ for } \tau < 2, \quad
            \frac{\beta}{(\tau - 1) C^{\tau - 1}} \text{ for } \tau \ge 2

        with m = 2 below 1 and C above; :math:`\tfrac{1 + \beta}{2} \log(1 + \beta) + \tfrac{1 - \beta}{2} \log(1 -
        \beta)` at 1.

    Args:
        beta: In [0, 1]: a number, an array or a tensor.
        tau: Member of the family, at least 0.
        num_classes: C, at least 2.

    Returns:
        As ``beta`` came.

    Raises:
        ValueError: ``beta``, ``tau`` or ``num_classes`` is out of range.

    Example:
        >>> round(comp_sum_transform(0.5, 1.0, 10), 4)
        0.1308

    Source:
        Mao, Mohri, Zhong (ICML 2023, arXiv 2304.07288), theorem 3.1 and its table.
    """
    check_in_range("tau", tau, 0.0)
    _check_num_classes(num_classes)
    b = _as_tensor("beta", beta, 1.0)
    if tau >= 2:
        return _as_came(b / ((tau - 1) * num_classes ** (tau - 1)), beta)
    power = 1 / (2 - tau)
    log_up, log_down = torch.log1p(b), torch.log1p(-b)
    if abs(tau - 1) > 0.1:
        log_mean = torch.logaddexp(power * log_up, power * log_down) - math.log(2)
        value = torch.expm1((2 - tau) * log_mean) / (tau - 1)
    else:  # the mean less 1 without cancellation: mean (1 +- b) (exp(rise log(1 +- b)) - 1), of which 1 / rise remains
        rise = (tau - 1) * power
        log_down = log_down.clamp(min=-1e3)  # 0 log 0 is 0
        excess = 0.5 * ((1 + b) * _expm1_ratio(log_up, rise) + (1 - b) * _expm1_ratio(log_down, rise))
        value = excess if tau == 1 else torch.expm1((2 - tau) * torch.log1p(rise * excess)) / (tau - 1)
    factor = (2 if tau <= 1 else num_classes) ** (1 - tau)
    return _as_came(factor * value.clamp(min=0), beta)  # rounding may leave it below 0


def comp_sum_bound(surrogate_excess: Numbers, tau: float, num_classes: int) -> Numbers:
    r"""The H-consistency bound: what an excess comp-sum loss says about the excess error of the classifier.

    Formula:
        .. math:: R_{0-1}(h) - R^*_{0-1} + M_{0-1} \le \Gamma_\tau\big(R_\tau(h) - R^*_\tau + M_\tau\big), \quad
            \Gamma_\tau = T_\tau^{-1} \text{ on } [0, 1]

        for hypothesis sets that are symmetric and complete, where it is tight; M are the minimizability gaps, 0 for
        the set of all measurable functions.

    Args:
        surrogate_excess: Excess comp-sum loss, its minimizability gap added, at least 0: a number, an array or a
            tensor.
        tau: Member of the family, at least 0.
        num_classes: C, at least 2.

    Returns:
        The bound in [0, 1], as ``surrogate_excess`` came; 1 where the excess says nothing.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> round(comp_sum_bound(0.1308, 1.0, 10), 3)
        0.5

    Source:
        Mao, Mohri, Zhong (ICML 2023, arXiv 2304.07288), theorem 3.1.
    """
    excess = _as_tensor("surrogate_excess", surrogate_excess, math.inf)
    low, high = torch.zeros_like(excess), torch.ones_like(excess)
    for _ in range(60):  # T increases: bisection to the last bit
        middle = (low + high) / 2
        below = comp_sum_transform(middle, tau, num_classes) < excess
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return _as_came(high, surrogate_excess)


def comp_sum_minimal_risk(probability: Tensor, *, tau: float) -> Tensor:
    r"""The least expected comp-sum loss that any scores reach, given the probabilities of the labels.

    Reach for it to estimate how much of a loss is noise in the labels: a minimizability gap is the best loss in a
    hypothesis set less the mean of this over inputs.

    Formula:
        .. math:: \frac{1}{1 - \tau} \Big[\Big(\sum_k q_k^{\frac{1}{2 - \tau}}\Big)^{2 - \tau} - 1\Big] \text{ for }
            \tau < 2, \quad \frac{1 - \max_k q_k}{\tau - 1} \text{ for } \tau \ge 2

        and the entropy at 1.

    Args:
        probability: Probabilities q of the labels, non-negative with sum 1.
        tau: Member of the family, at least 0.

    Shape:
        - probability: ``(N, C, ...)`` or ``(C,)``, floating point; output: ``(N, ...)`` or ``()``.

    Raises:
        TypeError: ``probability`` is not floating point.
        ValueError: ``tau`` is out of range.

    Example:
        >>> comp_sum_minimal_risk(torch.tensor([0.5, 0.5]), tau=1.0)
        tensor(0.6931)

    Source:
        Mao, Mohri, Zhong (ICML 2023, arXiv 2304.07288), section 4.
    """
    check_floating("probability", probability)
    check_in_range("tau", tau, 0.0)
    dim = 0 if probability.ndim == 1 else 1
    if tau == 1:
        entropy: Tensor = torch.special.entr(probability).sum(dim)
        return entropy
    if tau >= 2:
        return (1 - probability.amax(dim)) / (tau - 1)
    log_sum = torch.logsumexp(probability.log() / (2 - tau), dim)
    return torch.expm1((2 - tau) * log_sum) / (1 - tau)


def _phi(log_p: Tensor, tau: Tensor | float) -> Tensor:
    """Phi_tau of the sum S over the other classes, given log p = -log(1 + S)."""
    if not isinstance(tau, Tensor):
        return -log_p if tau == 1 else torch.expm1((tau - 1) * log_p) / (1 - tau)
    limit = tau == 1
    away = torch.where(limit, 2.0, tau)
    finite = torch.where(log_p == -math.inf, 0.0, log_p)  # the square of an infinity would make a gradient NaN
    at_one = -log_p - product(tau - 1, finite.square() / 2)  # with its slope in tau, for one that is learned
    return torch.where(limit, at_one, torch.expm1((away - 1) * log_p) / (1 - away))


def _expm1_ratio(x: Tensor, scale: float) -> Tensor:
    """(exp(scale x) - 1) / scale, and its limit x."""
    return x if scale == 0 else torch.expm1(scale * x) / scale


def _as_tensor(name: str, value: object, high: float) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    if ((tensor < 0) | (tensor > high)).any():
        raise ValueError(f"{name} has values outside [0, {high:g}].")
    return tensor


def _as_came(value: Tensor, like: Numbers) -> Numbers:
    if isinstance(like, Tensor):
        return value
    as_came: Any = value.numpy() if isinstance(like, np.ndarray) or value.ndim else value.item()
    if isinstance(like, np.ndarray | np.generic) and np.issubdtype(like.dtype, np.floating):
        as_came = as_came.astype(like.dtype) if isinstance(like, np.ndarray) else like.dtype.type(as_came)
    return as_came  # type: ignore[no-any-return]


def _check_num_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes!r}; wanted at least 2.")
