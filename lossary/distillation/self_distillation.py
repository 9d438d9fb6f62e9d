"""Self-distillation under label noise: imitating a teacher of one's own kind, more than fully if labels are bad."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lossary.core.checks import check_floating, check_in_range, check_shape
from lossary.core.numerics import product
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import class_rows
from lossary.core.types import Reduction

Model = TypeVar("Model", bound=nn.Module)


@objective(Kind.TEACHER)
def self_distillation_loss(
    input: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    xi: Tensor | float = 1.0,
    temperature: Tensor | float = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy against a mixture of the teacher's probabilities and the label, with any imitation weight.

    Reach for it where labels are noisy and the teacher, trained on them, over-fits: ``xi`` above 1 then unlearns what
    the teacher doubts of the labels. With clean labels or strong regularisation ``xi`` of 0 to 1 is as good. Above 1
    target probabilities may be negative and the loss unbounded below, so decay weights or stop early.

    Formula:
        .. math:: L = -\sum_k t_k \log p_k, \quad t = \xi\, \mathrm{softmax}(z^T / \tau) + (1 - \xi)\, e_y

    Args:
        input: The student's logits.
        teacher_logits: The teacher's logits, constants to the gradient.
        target: Class indices.
        xi: Weight of the teacher; any number. 0 is plain cross-entropy, 1 imitates the teacher alone.
        temperature: What the teacher's logits are divided by, positive.
        weight: Class weights, inside the sum over classes.
        ignore_index: Label of rows that count for nothing.
        label_smoothing: Share of the label spread evenly over the classes, in [0, 1].
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input, teacher_logits: ``(N, C, ...)`` or ``(C,)``, floating point.
        - target: ``(N, ...)`` integer.
        - weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``xi``, ``temperature`` or reduction is wrong.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> self_distillation_loss(student, teacher, torch.tensor([0]), xi=1.5)
        tensor(1.6345)

    Source:
        Das, Sanghavi: Understanding Self-Distillation in the Presence of Label Noise (ICML 2023, arXiv 2301.13304),
        equation 1. The temperature, weights and smoothing are additions.
    """
    _check_xi(xi)
    check_in_range("temperature", temperature, 0.0, low_open=True)
    rows = class_rows(
        input,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
        index_only=True,
    )
    check_floating("teacher_logits", teacher_logits)
    check_shape("teacher_logits", teacher_logits, input.shape, "a teacher's logits for each row of input")
    from_teacher = rows.cross_entropy_under(teacher_logits.to(rows.logits.dtype) / temperature)
    from_label = -rows.expect(rows.log_p())
    share = torch.as_tensor(xi, dtype=from_label.dtype, device=from_label.device)
    loss = product(share, from_teacher) + product(1 - share, from_label)
    return rows.reduce(loss, reduction=reduction, normalizer=normalizer)


class SelfDistillationLoss(Objective):
    """Cross-entropy against a mixture of teacher and label; module form of :func:`self_distillation_loss`.

    Example:
        >>> loss = SelfDistillationLoss(xi=1.5)
        >>> loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([0]))
        tensor(1.6345)
    """

    function = self_distillation_loss

    def __init__(
        self,
        xi: Tensor | float = 1.0,
        temperature: Tensor | float = 1.0,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            xi=xi,
            temperature=temperature,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        teacher_logits: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The objective on the student's and the teacher's logits; see :func:`self_distillation_loss`."""
        return self_distillation_loss(
            input,
            teacher_logits,
            target,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


def self_distillation_target(
    teacher_logits: Tensor, target: Tensor, *, xi: Tensor | float = 1.0, temperature: Tensor | float = 1.0
) -> Tensor:
    """What the student is trained on: xi x the teacher's probabilities + (1 - xi) x the one-hot label.

    Its rows sum to 1; for ``xi`` above 1 entries may be negative, and where they are the loss is unbounded below.
    ``torch.nn.functional.cross_entropy`` takes such targets.

    Args:
        teacher_logits: ``(N, C, ...)`` or ``(C,)``, floating point.
        target: Class indices ``(N, ...)``.
        xi: Weight of the teacher; any number.
        temperature: What the teacher's logits are divided by, positive.

    Returns:
        As teacher_logits, float32 for halves, without gradient.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``xi`` or ``temperature`` is wrong.

    Example:
        >>> self_distillation_target(torch.tensor([[0.0, 0.0, 5.0]]), torch.tensor([0]), xi=2.0)
        tensor([[-0.9867,  0.0133,  1.9734]])

    Source:
        Das, Sanghavi (ICML 2023, arXiv 2301.13304), equation 1.
    """
    _check_xi(xi)
    check_in_range("temperature", temperature, 0.0, low_open=True)
    check_floating("teacher_logits", teacher_logits)
    rows = class_rows(teacher_logits.detach(), target, index_only=True)
    teacher = (rows.logits / temperature).softmax(rows.dim)
    return xi * teacher + (1 - xi) * rows.is_label().to(teacher.dtype)


def self_distill(
    make_model: Callable[[], Model],
    fit: Callable[[Model, Tensor, Tensor], object],
    X: Tensor,
    y: Tensor,
    *,
    xi: float,
    rounds: int = 1,
    temperature: float = 1.0,
    num_classes: int | None = None,
) -> list[Model]:
    """Fit a teacher, then students that imitate the model before them.

    Args:
        make_model: Makes a fresh model; ``model(X)`` gives logits ``(N, C)``.
        fit: ``fit(model, X, target)`` trains a model in place, by ``torch.nn.functional.cross_entropy(model(X),
            target)`` plus its own regularisation; targets are ``(N, C)`` and sum to 1, see
            :func:`self_distillation_target`.
        X: Training inputs ``(N, ...)``.
        y: Given labels ``(N,)``.
        xi: Weight of the teacher; any number.
        rounds: Number of students, each taught by the one before.
        temperature: What the teacher's logits are divided by.
        num_classes: Number of classes; None takes the largest label's.

    Returns:
        The teacher and the students, in order.

    Raises:
        ValueError: ``rounds`` is not positive, ``xi`` not finite, or a shape or label is wrong.

    Example:
        >>> def fit(model, X, target):
        ...     optimizer = torch.optim.SGD(model.parameters(), 0.5, weight_decay=0.01)
        ...     for _ in range(20):
        ...         optimizer.zero_grad()
        ...         torch.nn.functional.cross_entropy(model(X), target).backward()
        ...         optimizer.step()
        >>> X, y = torch.randn(20, 3), torch.arange(20) % 2
        >>> teacher, student = self_distill(lambda: nn.Linear(3, 2), fit, X, y, xi=1.5)

    Source:
        Das, Sanghavi (ICML 2023, arXiv 2301.13304), section 5.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; wanted at least 1.")
    _check_xi(xi)
    classes = int(y.max()) + 1 if num_classes is None else num_classes
    dtype = X.dtype if X.is_floating_point() else torch.get_default_dtype()
    nothing = torch.zeros(len(y), classes, dtype=dtype, device=y.device)
    models = [make_model()]
    fit(models[0], X, self_distillation_target(nothing, y, xi=0.0))
    for _ in range(rounds):
        training = models[-1].training
        with torch.no_grad():
            logits = models[-1].eval()(X)
        models[-1].train(training)
        models.append(make_model())
        fit(models[-1], X, self_distillation_target(logits, y, xi=xi, temperature=temperature))
    return models


def ridge_self_distillation(
    features: Tensor, values: Tensor, *, ridge: Tensor | float, xi: Tensor | float
) -> dict[str, Tensor]:
    r"""Ridge regression as teacher and, on its own mixed predictions with the same ridge, as student.

    Formula:
        .. math:: t = (X^T X + \lambda I)^{-1} X^T y, \quad
            s = (X^T X + \lambda I)^{-1} X^T (\xi X t + (1 - \xi) y)

        Along the right singular vector of singular value S the student is
        :math:`1 - \xi \lambda / (S^2 + \lambda)` times the teacher.

    Args:
        features: X ``(n, d)``.
        values: y ``(n,)``, or several columns ``(n, m)``.
        ridge: Penalty :math:`\lambda` of the squared norm beside the sum of squares, positive.
        xi: Weight of the teacher; any number.

    Returns:
        ``teacher`` and ``student``, each ``(d,)`` or ``(d, m)``, float64.

    Raises:
        ValueError: A shape, ``ridge`` or ``xi`` is wrong.

    Example:
        >>> ridge_self_distillation(torch.eye(2), torch.tensor([2.0, 4.0]), ridge=1.0, xi=1.0)
        {'teacher': tensor([1., 2.], dtype=torch.float64), 'student': tensor([0.5000, 1.0000], dtype=torch.float64)}

    Source:
        Das, Sanghavi (ICML 2023, arXiv 2301.13304), section 3.
    """
    _check_xi(xi)
    spectrum = _spectrum(features, ridge)
    if values.ndim not in (1, 2) or len(values) != len(features):
        raise ValueError(f"values has shape {tuple(values.shape)}; wanted ({len(features)},) or ({len(features)}, m).")
    u, s, v = spectrum.u, spectrum.s, spectrum.v
    columns = (u.T @ values.double().reshape(len(values), -1)) * (s / (s**2 + ridge)).unsqueeze(1)
    shrink = (1 - xi * spectrum.loss).unsqueeze(1)
    shape = features.shape[1:] + values.shape[1:]
    return {"teacher": (v @ columns).reshape(shape), "student": (v @ (shrink * columns)).reshape(shape)}


def expected_parameter_error(
    features: Tensor,
    parameter: Tensor,
    *,
    ridge: Tensor | float,
    noise_std: Tensor | float,
    xi: Tensor | float,
) -> Tensor:
    r"""Expected squared distance of the ridge student from the true parameter, over the noise of the values.

    Formula:
        .. math:: E \|s - \theta\|^2 = \sum_j \theta_j^2 (d_j + \xi c_j d_j)^2
            + g^2 \frac{S_j^2}{(S_j^2 + \lambda)^2} (1 - \xi d_j)^2 + \|\theta_\perp\|^2

        with :math:`c_j = S_j^2 / (S_j^2 + \lambda) = 1 - d_j`, :math:`\theta_j` along the singular vectors and
        :math:`\theta_\perp` outside the row space.

    Args:
        features: X ``(n, d)``.
        parameter: The true :math:`\theta` ``(d,)``.
        ridge: Penalty :math:`\lambda`, positive.
        noise_std: Standard deviation g of the values' noise, at least 0.
        xi: Weight of the teacher; 0 gives the teacher's own error.

    Returns:
        ``()``, float64.

    Raises:
        ValueError: A shape, ``ridge``, ``noise_std`` or ``xi`` is wrong.

    Example:
        >>> options = {"ridge": 1.0, "noise_std": 2.0}
        >>> [expected_parameter_error(torch.eye(2), torch.ones(2), xi=xi, **options).item() for xi in (0.0, 1.0)]
        [2.5, 1.625]

    Source:
        Das, Sanghavi (ICML 2023, arXiv 2301.13304), section 3.
    """
    _check_xi(xi)
    spectrum = _spectrum(features, ridge)
    theta, outside, variance = _against_noise(spectrum, features, parameter, noise_std)
    bias = theta * (spectrum.loss + xi * spectrum.gain * spectrum.loss)
    return (bias.square() + variance * (1 - xi * spectrum.loss).square()).sum() + outside


def optimal_xi(features: Tensor, parameter: Tensor, *, ridge: Tensor | float, noise_std: Tensor | float) -> Tensor:
    r"""The weight of the teacher that minimises :func:`expected_parameter_error`.

    Above 1 where noise is large, below 0 where it is small.

    Formula:
        .. math:: \xi^* = \frac{\sum_j g^2 v_j d_j - \theta_j^2 c_j d_j^2}
            {\sum_j \theta_j^2 c_j^2 d_j^2 + g^2 v_j d_j^2}, \quad v_j = \frac{S_j^2}{(S_j^2 + \lambda)^2}

    Args:
        features: X ``(n, d)``.
        parameter: The true :math:`\theta` ``(d,)``.
        ridge: Penalty :math:`\lambda`, positive.
        noise_std: Standard deviation g of the values' noise, at least 0.

    Returns:
        ``()``, float64.

    Raises:
        ValueError: A shape, ``ridge`` or ``noise_std`` is wrong.

    Example:
        >>> optimal_xi(torch.eye(2), torch.ones(2), ridge=1.0, noise_std=2.0)
        tensor(1.2000, dtype=torch.float64)

    Source:
        Das, Sanghavi (ICML 2023, arXiv 2301.13304), theorem 3.2.
    """
    spectrum = _spectrum(features, ridge)
    theta, _, variance = _against_noise(spectrum, features, parameter, noise_std)
    c, d = spectrum.gain, spectrum.loss
    above = (variance * d - theta.square() * c * d.square()).sum()
    return above / (theta.square() * c.square() * d.square() + variance * d.square()).sum()


class OptimalRegularization(NamedTuple):
    """The best ridge for the teacher alone.

    Attributes:
        ridge: The penalty.
        error: Its :func:`expected_parameter_error`.
    """

    ridge: float
    error: float


def optimal_regularization(
    features: Tensor, parameter: Tensor, *, noise_std: float, low: float = 1e-6, high: float = 1e6
) -> OptimalRegularization:
    """The ridge at which the teacher alone errs least, to hold self-distillation against.

    Args:
        features: X ``(n, d)``.
        parameter: The true parameter ``(d,)``.
        noise_std: Standard deviation of the values' noise.
        low: Least ridge considered.
        high: Largest ridge considered.

    Returns:
        An :class:`OptimalRegularization`, from a grid of the logarithm and a search between its best neighbours.

    Raises:
        ValueError: A shape or number is wrong.

    Example:
        >>> best = optimal_regularization(torch.eye(2), torch.ones(2), noise_std=2.0)
        >>> round(best.ridge, 3), round(best.error, 3)
        (4.0, 1.6)

    Source:
        Das, Sanghavi (ICML 2023, arXiv 2301.13304), section 3.
    """
    from scipy.optimize import minimize_scalar

    if not 0 < low < high:
        raise ValueError(f"low is {low} and high is {high}; wanted 0 < low < high.")

    def error(log_ridge: float) -> float:
        ridge = math.exp(log_ridge)
        return float(expected_parameter_error(features, parameter, ridge=ridge, noise_std=noise_std, xi=0.0))

    grid = torch.linspace(math.log(low), math.log(high), 61, dtype=torch.float64).tolist()
    start = min(range(61), key=lambda position: error(grid[position]))
    bounds = grid[max(start - 1, 0)], grid[min(start + 1, 60)]
    found = minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    return OptimalRegularization(math.exp(found.x), float(found.fun))


def _check_xi(xi: Tensor | float) -> None:
    check_in_range("xi", xi, -math.inf, low_open=True, high_open=True)


class _Spectrum(NamedTuple):
    """Singular value decomposition of the features, with what ridge keeps and loses along each direction."""

    u: Tensor
    s: Tensor
    v: Tensor
    gain: Tensor  # c = S^2 / (S^2 + ridge)
    loss: Tensor  # d = 1 - c
    variance: Tensor  # v = S^2 / (S^2 + ridge)^2, of the teacher for noise of variance 1


def _spectrum(features: Tensor, ridge: Tensor | float) -> _Spectrum:
    check_floating("features", features)
    check_in_range("ridge", ridge, 0.0, low_open=True)
    if features.ndim != 2:
        raise ValueError(f"features has shape {tuple(features.shape)}; wanted (n, d).")
    u, s, vh = torch.linalg.svd(features.double(), full_matrices=False)
    return _Spectrum(u, s, vh.T, s**2 / (s**2 + ridge), ridge / (s**2 + ridge), (s / (s**2 + ridge)) ** 2)


def _against_noise(
    spectrum: _Spectrum, features: Tensor, parameter: Tensor, noise_std: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """The parameter along the singular vectors, its square outside them, and the variance along them."""
    check_shape("parameter", parameter, features.shape[1:], "a number for each column of features")
    check_in_range("noise_std", noise_std, 0.0)
    theta = spectrum.v.T @ parameter.double()
    outside = (parameter.double() - spectrum.v @ theta).square().sum()
    return theta, outside, noise_std**2 * spectrum.variance
