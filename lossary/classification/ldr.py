"""Label-distributionally robust losses: the worst case over weights of the labels, less a divergence from uniform.

With one temperature for all (LDR-KL), with one that each training sample finds for itself (ALDR-KL), and with weights
that no few labels may take all of (LDR-k-KL).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lossary.core import checks, numerics
from lossary.core.checks import check_in_range
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import ClassRows, class_rows
from lossary.core.types import Reduction

Normalization = Literal["none", "softplus", "l1", "softplus_l1"]


@objective(Kind.CLASSES)
def ldr_kl_loss(
    input: Tensor,
    target: Tensor,
    *,
    temperature: Tensor | float = 1.0,
    margin: Tensor | float = 0.0,
    normalize: Normalization = "none",
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Between the multi-class hinge (cold), cross-entropy and a linear loss (hot), by one temperature.

    Reach for it when labels are wrong: a high temperature, with bounded logits (``normalize``), forgives them. The
    right temperature must be found (0.1, 1, 10, 100); a low one is worse than cross-entropy under noise.

    Formula:
        .. math:: L = \max_p \sum_k p_k \delta_k - \lambda\, \mathrm{KL}(p, u) = \lambda \log \frac{1}{C} \sum_k
            e^{\delta_k / \lambda}, \quad \delta_k = f_k - f_y + m [k \ne y]

        With :math:`\lambda = 1, m = 0` cross-entropy less log C; :math:`\max_k \delta_k` at 0.

    Args:
        input: Logits.
        target: Class indices.
        temperature: How soft the worst case is, :math:`\lambda` at least 0.
        margin: What every other class is given ahead of the label.
        normalize: How the logits are bounded first, as :func:`normalize_logits` has it.
        weight: Class weights of the label.
        ignore_index: Label of rows that count for nothing.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point.
        - target: ``(N, ...)`` integer.
        - weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. It may be negative: the least is
        :math:`-\lambda \log C` as the others' logits fall. Empty or all-ignored ``mean`` is NaN as in PyTorch, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``temperature``, ``margin``, ``normalize`` or reduction is wrong.

    Example:
        >>> ldr_kl_loss(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0]), temperature=2.0, margin=0.1)
        tensor(-1.2308)

    Source:
        Zhu, Ying, Yang: Label Distributionally Robust Losses for Multi-class Classification: Consistency, Robustness
        and Adaptivity (ICML 2023, arXiv 2112.14869), section 4.
    """
    check_in_range("temperature", temperature, 0.0)
    rows = _rows(input, target, weight, ignore_index, sample_weight)
    loss = _soft_maximum(rows, _normalized(rows.logits, normalize, rows.dim), margin, temperature)
    return rows.reduce(rows.label_weight() * loss, reduction=reduction, normalizer=normalizer)


class LDRKLLoss(Objective):
    """Between hinge, cross-entropy and a linear loss by one temperature; module form of :func:`ldr_kl_loss`.

    Example:
        >>> LDRKLLoss(temperature=2.0, margin=0.1)(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(-1.2308)
    """

    function = ldr_kl_loss

    def __init__(
        self,
        temperature: Tensor | float = 1.0,
        margin: Tensor | float = 0.0,
        normalize: Normalization = "none",
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            temperature=temperature,
            margin=margin,
            normalize=normalize,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )


@objective(Kind.CLASSES)
def ldr_loss(
    input: Tensor,
    target: Tensor,
    *,
    temperature: Tensor | float = 1.0,
    margin: Tensor | float = 0.0,
    constraint: Literal["simplex", "topk"] = "simplex",
    k: int | None = None,
    normalize: Normalization = "none",
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""The worst case over label weights of which none may exceed 1/k (LDR-k-KL), or over all of them (LDR-KL).

    Reach for ``topk`` where a prediction counts as right if the label is among the first k. Cold it is the top-k
    hinge.

    Formula:
        .. math:: L = \max_{p:\ \sum_i p_i = 1,\ 0 \le p_i \le 1/k} \sum_i p_i \delta_i - \lambda\, \mathrm{KL}(p, u)

        The j largest :math:`\delta` have :math:`p_i = 1/k`, the others share the rest in proportion to
        :math:`e^{\delta_i / \lambda}`; j is the least for which none of them exceeds 1/k.

    Args:
        input: Logits.
        target: Class indices.
        temperature: How soft the worst case is, :math:`\lambda` at least 0.
        margin: What every other class is given ahead of the label.
        constraint: ``simplex`` (then it is :func:`ldr_kl_loss`) or ``topk``.
        k: For ``topk``: from 1, which bounds nothing, to C, which leaves the mean of :math:`\delta`.
        normalize: How the logits are bounded first, as :func:`normalize_logits` has it.
        weight: Class weights of the label.
        ignore_index: Label of rows that count for nothing.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point.
        - target: ``(N, ...)`` integer.
        - weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``temperature``, ``margin``, ``constraint``, ``k``, ``normalize`` or reduction is
            wrong.

    Example:
        >>> input = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
        >>> ldr_loss(input, torch.tensor([0]), temperature=0.0, constraint="topk", k=2)
        tensor(1.5000)

    Source:
        Zhu, Ying, Yang (ICML 2023, arXiv 2112.14869), section 4, LDR-k-KL. The public code solves it for no k; the
        solution here is exact, by sorting.
    """
    check_in_range("temperature", temperature, 0.0)
    rows = _rows(input, target, weight, ignore_index, sample_weight)
    if constraint not in ("simplex", "topk"):
        raise ValueError(f"constraint is {constraint!r}; wanted 'simplex' or 'topk'.")
    if constraint == "topk" and (isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= rows.num_classes):
        raise ValueError(f"k is {k!r}; wanted a whole number from 1 to {rows.num_classes}, the number of classes.")
    f = _normalized(rows.logits, normalize, rows.dim)
    if constraint == "topk" and k is not None:
        loss = _soft_top_mean(_gaps(rows, f, margin), temperature, k, rows.dim)
    else:
        loss = _soft_maximum(rows, f, margin, temperature)
    return rows.reduce(rows.label_weight() * loss, reduction=reduction, normalizer=normalizer)


class LDRLoss(Objective):
    """The worst case over label weights of which none may exceed 1/k; module form of :func:`ldr_loss`.

    Example:
        >>> loss = LDRLoss(temperature=0.0, constraint="topk", k=2)
        >>> loss(torch.tensor([[0.0, 2.0, 1.0, -1.0]]), torch.tensor([0]))
        tensor(1.5000)
    """

    function = ldr_loss

    def __init__(
        self,
        temperature: Tensor | float = 1.0,
        margin: Tensor | float = 0.0,
        constraint: Literal["simplex", "topk"] = "simplex",
        k: int | None = None,
        *,
        normalize: Normalization = "none",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            temperature=temperature,
            margin=margin,
            constraint=constraint,
            k=k,
            normalize=normalize,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )


@objective(
    Kind.CLASSES,
    example=lambda num_classes: {"temperatures": torch.full((12,), 0.9), "alpha": 3.0},
    arguments=lambda input, target: {"input": input, "target": target, "index": _row_numbers(input)},
    exempt={"gradcheck": "temperatures are constants to the gradient, by definition; tested in closed form"},
    stateful=True,
)
def aldr_kl_loss(
    input: Tensor,
    target: Tensor,
    index: Tensor,
    temperatures: Tensor,
    *,
    temperature: Tensor | float = 1.0,
    alpha: Tensor | float = 2.0,
    margin: Tensor | float = 0.1,
    normalize: Normalization = "l1",
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    r"""LDR-KL loss in which every training sample finds its own temperature (ALDR-KL).

    Reach for it when some labels are wrong and no clean ones are at hand: samples that the model is unsure of keep a
    high temperature, which forgives, confident ones a lower one. ``temperature`` decides: too low a one is worse than
    cross-entropy under noise. It needs to know which sample each row is.

    Formula:
        .. math:: L = \max_{\lambda \ge 0} \max_p \sum_k p_k \delta_k - \lambda\, \mathrm{KL}(p, u) -
            \frac{\alpha \log C}{2 \lambda_0} (\lambda - \lambda_0)^2

        by one alternating step for each call: :math:`p = \mathrm{softmax}(f / \lambda_i)`, then :math:`\lambda_i
        \leftarrow \lambda_0 - \frac{\lambda_0}{\alpha \log C} \mathrm{KL}(p, u)`, then the loss at the new
        :math:`\lambda_i`, without gradient through it.

    Args:
        input: Logits.
        target: Class indices.
        index: Which sample each row is; each at most once in a batch.
        temperatures: The temperature of each sample, :math:`\lambda_i`, where its last batch left it.
        temperature: Temperature that all start at and are drawn to, :math:`\lambda_0`; positive.
        alpha: How strongly, more than 1: temperatures stay at least at :math:`\lambda_0 (1 - 1 / \alpha)`.
        margin: What every other class is given ahead of the label.
        normalize: How the logits are bounded first, as :func:`normalize_logits` has it.
        weight: Class weights of the label.
        ignore_index: Label of rows that count for nothing; they leave their temperature as it was.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point, C >= 2.
        - target: ``(N, ...)`` integer; index: as target.
        - temperatures: ``(num_samples,)``.
        - weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        The loss, ``(N, ...)`` for ``none``, else ``()``, float32 for half-precision input, and the temperatures after
        the batch ``(num_samples,)``. Empty or all-ignored ``mean`` is NaN as in PyTorch, 0 if ``normalizer`` is given.
        A row with a NaN leaves its temperature as it was.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, sample index, ``temperature``, ``alpha``, ``margin``, ``normalize`` or reduction is
            wrong.

    Example:
        >>> input, target = torch.tensor([[3.0, 0.0, -1.0], [0.2, 0.1, 0.0]]), torch.tensor([0, 1])
        >>> loss, temperatures = aldr_kl_loss(input, target, torch.tensor([2, 0]), torch.ones(4))
        >>> loss
        tensor(-0.2111)
        >>> temperatures
        tensor([0.8788, 1.0000, 0.7180, 1.0000])

    Source:
        Zhu, Ying, Yang (ICML 2023, arXiv 2112.14869), section 5. As in its public code the weights p leave the margin
        out and are mixed with 1e-5 of uniform.
    """
    check_in_range("temperature", temperature, 0.0, low_open=True)
    check_in_range("alpha", alpha, 1.0, low_open=True)
    rows = _rows(input, target, weight, ignore_index, sample_weight)
    if rows.num_classes < 2:
        raise ValueError(f"input has shape {tuple(input.shape)}, one class; wanted at least 2 on the class axis.")
    _check_samples(index, target, temperatures)
    f = _normalized(rows.logits, normalize, rows.dim)
    before = temperatures[index].to(f.dtype)
    after, pull = _next_temperature(f.detach(), before, temperature, alpha, rows.dim)
    loss = _soft_maximum(rows, f, margin, after, positive=True) - pull
    moves = torch.isfinite(after) if rows.keep is None else torch.isfinite(after) & rows.keep
    moved = torch.where(moves, after, before).to(temperatures.dtype)
    state = temperatures.detach().index_put((index,), moved)
    return rows.reduce(rows.label_weight() * loss, reduction=reduction, normalizer=normalizer), state


class ALDRKLLoss(Objective):
    """LDR-KL loss with a temperature for each training sample; module form of :func:`aldr_kl_loss`.

    Each rank of a distributed run keeps the temperatures of the samples that it saw: let a sample stay on its rank, or
    reduce the buffer between epochs.

    Args:
        num_samples: Number of training samples.
        temperature: Temperature that all start at and are drawn to; positive.
        alpha: How strongly, more than 1.
        margin: What every other class is given ahead of the label.
        normalize: How the logits are bounded first.
        weight: Class weights ``(C,)``.
        ignore_index: Label of rows that count for nothing.
        reduction: ``none``, ``mean`` or ``sum``.

    Attributes:
        temperatures: The temperature of each sample ``(num_samples,)``; moves in training mode only. Low where the
            model is sure: a hint at which labels are wrong.

    Example:
        >>> loss = ALDRKLLoss(4)
        >>> input, target = torch.tensor([[3.0, 0.0, -1.0], [0.2, 0.1, 0.0]]), torch.tensor([0, 1])
        >>> loss(input, target, torch.tensor([2, 0]))
        tensor(-0.2111)
        >>> loss.temperatures
        tensor([0.8788, 1.0000, 0.7180, 1.0000])
    """

    function = aldr_kl_loss
    temperatures: Tensor

    def __init__(
        self,
        num_samples: int,
        *,
        temperature: Tensor | float = 1.0,
        alpha: Tensor | float = 2.0,
        margin: Tensor | float = 0.1,
        normalize: Normalization = "l1",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples is {num_samples!r}; wanted a whole number, at least 1.")
        check_in_range("temperature", temperature, 0.0, low_open=True)
        check_in_range("alpha", alpha, 1.0, low_open=True)
        super().__init__(
            temperatures=torch.full((num_samples,), float(temperature), dtype=torch.get_default_dtype()),
            temperature=temperature,
            alpha=alpha,
            margin=margin,
            normalize=normalize,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        target: Tensor,
        index: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss; in training mode the temperatures of the batch's samples move.

        Args:
            input: Logits.
            target: Class indices.
            index: Which sample each row is.
            sample_weight: One weight for each row.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        loss, temperatures = aldr_kl_loss(
            input, target, index, sample_weight=sample_weight, normalizer=normalizer, **self.hyperparameters()
        )
        if self.training:
            self.temperatures = temperatures
        return loss


def normalize_logits(input: Tensor, *, kind: Normalization) -> Tensor:
    r"""Bound logits by their own mean, as label-distributionally robust losses do before they compare them.

    Formula:
        .. math:: f_k = \frac{g_k}{\frac{1}{C} \sum_j |g_j|}, \quad g = z \text{ for } \texttt{l1}, \quad
            g = \log(1 + e^z) \text{ for } \texttt{softplus}

        ``softplus_l1`` is ``softplus``, whose values are positive; ``none`` leaves the logits as they are.

    Args:
        input: Logits ``(N, C, ...)`` or ``(C,)``.
        kind: ``none``, ``softplus``, ``l1`` or ``softplus_l1``.

    Returns:
        Shaped as input, in [-C, C] unless ``none``; float32 for half-precision input.

    Raises:
        TypeError: ``input`` is not floating point.
        ValueError: ``kind`` is unknown, or ``input`` has no class axis.

    Example:
        >>> normalize_logits(torch.tensor([[3.0, -1.0, 2.0]]), kind="l1")
        tensor([[ 1.5000, -0.5000,  1.0000]])

    Source:
        Zhu, Ying, Yang (ICML 2023, arXiv 2112.14869), experiments, and its public code, whose ``l1`` gives NaN for
        logits that are all 0.
    """
    checks.check_floating("input", input)
    if input.ndim == 0:
        raise ValueError("input has shape (); wanted logits (N, C, ...) or (C,).")
    widened = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    return _normalized(widened, kind, 0 if input.ndim == 1 else 1)


def _normalized(z: Tensor, kind: str, dim: int) -> Tensor:
    if kind == "none":
        return z
    if kind == "l1":
        bound = torch.finfo(z.dtype).max / z.shape[dim]  # an infinite logit has its limit
        z = z.clamp(-bound, bound)
        return z / z.abs().mean(dim, keepdim=True).clamp(min=1e-12)
    if kind in ("softplus", "softplus_l1"):
        z = z.clamp(max=torch.finfo(z.dtype).max)  # as above
        return z.shape[dim] * torch.softmax(numerics.log_softplus(z), dim)
    raise ValueError(f"normalize is {kind!r}; wanted 'none', 'softplus', 'l1' or 'softplus_l1'.")


def _gaps(rows: ClassRows, f: Tensor, margin: Tensor | float) -> Tensor:
    """delta_k = f_k - f_y + margin, 0 at the label."""
    check_in_range("margin", margin, -math.inf)
    return rows.replaced(f - rows.at_label(f).unsqueeze(rows.dim) + margin, 0.0)


def _soft_maximum(
    rows: ClassRows, f: Tensor, margin: Tensor | float, temperature: Tensor | float, *, positive: bool = False
) -> Tensor:
    """Temperature x log mean exp(delta / temperature), max at 0 unless ``positive``. One for all, or a row."""
    check_in_range("margin", margin, -math.inf)
    if not isinstance(temperature, Tensor) and temperature == 0:
        return _gaps(rows, f, margin).amax(rows.dim)
    t = torch.as_tensor(temperature, dtype=f.dtype, device=f.device)
    safe = torch.where(t == 0, 1.0, t)
    value = rows.soft_maximum_of_gaps(f, margin, safe.unsqueeze(rows.dim) if safe.ndim else safe)
    if positive or not isinstance(temperature, Tensor):
        return value
    return torch.where(t == 0, _gaps(rows, f, margin).amax(rows.dim), value)


def _soft_top_mean(x: Tensor, temperature: Tensor | float, k: int, dim: int) -> Tensor:
    """The maximum of sum p x - temperature KL(p, u) over p <= 1/k, and the mean of the k largest x at 0."""
    t = torch.as_tensor(temperature, dtype=x.dtype, device=x.device)
    cold = t == 0
    safe = torch.where(cold, 1.0, t)
    ordered = x.sort(dim, descending=True).values
    heads = [ordered.narrow(dim, 0, j).sum(dim) / k for j in range(k + 1)]  # what the j largest bring at 1/k each
    tails, fits = [], []
    for j in range(k):
        rest = ordered.narrow(dim, j, x.shape[dim] - j) / safe
        tails.append(numerics.logsumexp(rest, dim))
        # Proportional shares of the rest of the mass, (k - j) / k, stay below 1/k.
        fits.append(tails[j].detach() - rest.detach().select(dim, 0) >= math.log(k - j))
    value = torch.full_like(heads[0], torch.nan)
    for j in reversed(range(k)):  # the least j that fits is written last; j = k - 1 always does
        share = (k - j) / k
        divergence = (j / k) * math.log(k) - share * math.log(share) - math.log(x.shape[dim])
        solution = heads[j] + safe * (share * tails[j] + divergence)
        value = solution if j == k - 1 else torch.where(fits[j], solution, value)
    return torch.where(cold, heads[k], value)


def _next_temperature(
    f: Tensor, before: Tensor, temperature: Tensor | float, alpha: Tensor | float, dim: int
) -> tuple[Tensor, Tensor]:
    """The temperatures after a step and what their distance from the first one costs."""
    classes = f.shape[dim]
    power = ((f - f.amax(dim, keepdim=True)) / before.unsqueeze(dim)).exp()
    p = (power / power.sum(dim, keepdim=True) + 1e-5) * (classes / (1 + 1e-5 * classes))  # times C
    divergence = (p * p.log()).mean(dim)
    stiffness = alpha * math.log(classes)
    after = temperature - temperature * divergence / stiffness
    return after.detach(), temperature * divergence.square() / (2 * stiffness)


def _check_samples(index: Tensor, target: Tensor, temperatures: Tensor) -> None:
    checks.check_floating("temperatures", temperatures)
    if temperatures.ndim != 1:
        raise ValueError(f"temperatures has shape {tuple(temperatures.shape)}; wanted one for each sample (S,).")
    if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"index is {getattr(index, 'dtype', type(index).__name__)}; wanted an int64 tensor.")
    checks.check_shape("index", index, target.shape, "which sample each row is")
    if checks.may_read_values(index) and ((index < 0) | (index >= len(temperatures))).any():
        raise ValueError(
            f"index has values from {index.min().item()} to {index.max().item()}; wanted samples from 0 to "
            f"{len(temperatures) - 1}."
        )


def _row_numbers(input: Tensor) -> Tensor:
    shape = input.shape[:1] + input.shape[2:] if input.ndim > 1 else torch.Size()
    return torch.arange(shape.numel()).reshape(shape) % 12


def _rows(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, sample_weight: Tensor | None
) -> ClassRows:
    return class_rows(
        input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight, index_only=True
    )
