"""Deep linear networks on free features: their objective, its minima in closed form, and which classes vanish."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core.checks import check_floating, check_in_range, check_indices, check_shape, may_read_values


def unconstrained_feature_loss(
    features: Tensor,
    weights: Sequence[Tensor],
    labels: Tensor,
    *,
    weight_decays: Sequence[Tensor | float],
    feature_decay: Tensor | float,
    loss: Literal["mse", "cross_entropy"] = "mse",
    bias: Tensor | None = None,
) -> Tensor:
    r"""Objective of a deep linear network whose features are free, with weight decay on all.

    Reach for it to study what the last layers of a network strive for; :func:`collapse_minimum` knows its least value.

    Formula:
        .. math:: f = \ell(W_M \cdots W_1 H + b) + \sum_j \frac{\lambda_j}{2} \|W_j\|_F^2
            + \frac{\lambda_H}{2} \|H\|_F^2

        with :math:`\ell(Z) = \frac{1}{2N} \|Z - Y\|_F^2` for one-hot columns Y, or the mean cross-entropy.

    Args:
        features: H.
        weights: The layers W_1 (applied first) to W_M.
        labels: Class indices.
        weight_decays: One number for each layer.
        feature_decay: Decay of the features.
        loss: ``mse`` or ``cross_entropy``.
        bias: Bias of the last layer, without decay.

    Shape:
        - features: ``(d, N)``, floating point; labels: ``(N,)`` integer.
        - weights: ``(d_1, d), ..., (K, d_{M-1})``; bias: ``(K,)``.

    Returns:
        ``()``.

    Raises:
        TypeError: ``features`` is not floating point, or ``labels`` is.
        ValueError: A shape, label, ``loss``, a decay or the number of decays is wrong.

    Example:
        >>> features, weight = torch.eye(2), torch.eye(2)
        >>> unconstrained_feature_loss(features, [weight], torch.tensor([0, 1]), weight_decays=[0.1], feature_decay=0.2)
        tensor(0.3000)

    Source:
        Dang, Tran, Osher, Tran-The, Ho, Nguyen: Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced
        Data (ICML 2023, arXiv 2301.00437), equations 2 and 3.
    """
    check_floating("features", features)
    if features.ndim != 2:
        raise ValueError(f"features has shape {tuple(features.shape)}; wanted (d, N), a column for each example.")
    check_shape("labels", labels, features.shape[1:], "a class index for each column of features")
    if len(weights) == 0 or len(weights) != len(weight_decays):
        raise ValueError(f"there are {len(weights)} weights and {len(weight_decays)} weight_decays; wanted one each.")
    for name, number in (("feature_decay", feature_decay), *(("weight_decays", number) for number in weight_decays)):
        check_in_range(name, number, 0.0)
    output = features
    for weight in weights:
        check_shape("weights", weight, (*weight.shape[:1], output.shape[0]), "as wide as what the layer is applied to")
        output = weight @ output
    if bias is not None:
        check_shape("bias", bias, output.shape[:1], "one number for each class")
        output = output + bias.unsqueeze(1)
    check_class_indices(labels, output.shape[0])
    if loss == "mse":
        one_hot = torch.arange(output.shape[0], device=labels.device).unsqueeze(1) == labels
        fit = (output - one_hot.to(output.dtype)).square().sum() / (2 * features.shape[1])
        fit = torch.where(one_hot.any(0).all(), fit, torch.nan)  # a bad label that the check could not see
    elif loss == "cross_entropy":
        fit = F.cross_entropy(output.T, labels.long())
    else:
        raise _unknown(loss)
    decay = feature_decay * features.square().sum()
    for weight_decay, weight in zip(weight_decays, weights, strict=True):
        decay = decay + weight_decay * weight.square().sum()
    return fit + decay / 2


class UnconstrainedFeatureModel(nn.Module):
    """A deep linear network and the features that it is free to choose, ready to be minimised.

    Args:
        counts: Examples of each class ``(K,)``.
        dim: Size of the features.
        depth: Number of linear layers M.
        weight_decays: One number, or one for each layer.
        feature_decay: Decay of the features.
        width: Size of the layers in between; None takes ``dim``.
        loss: ``mse`` or ``cross_entropy``.
        bias: Whether the last layer has one.
        scale: Standard deviation of the initial entries; small ones may stay at the saddle 0 if ``depth > 1``.
        generator: Source of randomness.

    Attributes:
        features: ``(dim, N)``, float64, columns in the order of classes.
        weights: The layers, float64.
        labels: ``(N,)``.

    Raises:
        ValueError: ``depth`` is not positive, a class is empty, ``loss`` is unknown, or the number of decays is not
            ``depth``.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = UnconstrainedFeatureModel([5, 5], dim=3, depth=1, generator=generator)
        >>> reached = model.minimize()
        >>> floor = collapse_minimum([5, 5], weight_decays=[0.005], feature_decay=0.005)["loss"]
        >>> bool((reached - floor).abs() < 1e-6)
        True

    Source:
        Dang et al. (ICML 2023, arXiv 2301.00437), section 3.
    """

    labels: Tensor

    def __init__(
        self,
        counts: Tensor | Sequence[int],
        dim: int,
        depth: int,
        *,
        weight_decays: float | Sequence[float] = 0.005,
        feature_decay: float = 0.005,
        width: int | None = None,
        loss: Literal["mse", "cross_entropy"] = "mse",
        bias: bool = False,
        scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is {depth}; wanted at least 1.")
        if loss not in ("mse", "cross_entropy"):
            raise _unknown(loss)
        sizes = _class_sizes(counts)
        labels = torch.arange(len(sizes)).repeat_interleave(sizes.long())
        width = dim if width is None else width
        shapes = [dim, *[width] * (depth - 1), len(sizes)]

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(*shape, dtype=torch.float64, generator=generator))

        self.features = draw(dim, len(labels))
        self.weights = nn.ParameterList([draw(outer, inner) for inner, outer in itertools.pairwise(shapes)])
        self.bias = nn.Parameter(torch.zeros(len(sizes), dtype=torch.float64)) if bias else None
        self.register_buffer("labels", labels)
        self.weight_decays = (
            [float(weight_decays)] * depth if isinstance(weight_decays, int | float) else list(weight_decays)
        )
        if len(self.weight_decays) != depth:
            raise ValueError(f"weight_decays has {len(self.weight_decays)} numbers; wanted {depth}, one a layer.")
        self.feature_decay = feature_decay
        self.kind: Literal["mse", "cross_entropy"] = loss

    def loss(self) -> Tensor:
        """The objective where the model stands; see :func:`unconstrained_feature_loss`."""
        return unconstrained_feature_loss(
            self.features,
            list(self.weights),
            self.labels,
            weight_decays=self.weight_decays,
            feature_decay=self.feature_decay,
            loss=self.kind,
            bias=self.bias,
        )

    def product(self) -> Tensor:
        """All layers as one matrix ``(K, dim)``."""
        product: Tensor = self.weights[0]
        for weight in self.weights[1:]:
            product = weight @ product
        return product

    def class_means(self) -> Tensor:
        """Mean feature of each class ``(K, dim)``."""
        sums = self.features.new_zeros(int(self.labels.max()) + 1, self.features.shape[0])
        return sums.index_add(0, self.labels, self.features.T) / torch.bincount(self.labels).unsqueeze(1)

    def minimize(self, max_iter: int = 2000) -> Tensor:
        """Descend by L-BFGS; returns the objective reached, detached. It may be a saddle: try several starts."""
        optimizer = torch.optim.LBFGS(
            self.parameters(),
            max_iter=max_iter,
            history_size=50,
            tolerance_grad=1e-10,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            optimizer.zero_grad()
            value = self.loss()
            torch.autograd.backward(value)
            return float(value.detach())

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return self.loss().detach()


def collapse_minimum(
    counts: Tensor | Sequence[int],
    *,
    weight_decays: Sequence[float],
    feature_decay: float,
    rank: int | None = None,
) -> dict[str, Tensor]:
    r"""The global minimum of :func:`unconstrained_feature_loss` for the squared error without bias.

    There all features of a class are one vector, parallel to its row of the product of the layers, and orthogonal to
    those of other classes. A class below :func:`minority_collapse_size` vanishes altogether.

    Formula:
        .. math:: f^* = \frac12 \sum_k \frac{n_k}{N} \min_{x \ge 0} \Big( \frac{1}{x^M + 1} + b_k x \Big), \quad
            b_k = \frac{M N}{n_k} \Big( N \lambda_H \prod_j \lambda_j \Big)^{1/M}

        At the minimising :math:`x_k` row k of the product has squared length :math:`p_k^2 = x_k^M N \lambda_H`, and
        features of class k have length :math:`p_k / (p_k^2 + N \lambda_H)`.

    Args:
        counts: Examples of each class ``(K,)``, all positive.
        weight_decays: One positive number for each of the M layers.
        feature_decay: Positive decay of the features.
        rank: Least width of a layer; below K only that many of the largest classes survive. Among classes of equal
            size the choice is one of many minima. None for no limit.

    Returns:
        ``loss ()``, ``product_squared_norms (K,)`` and ``class_mean_norms (K,)``, float64.

    Raises:
        ValueError: A class is empty, a decay is not positive, or ``rank`` is not.

    Example:
        >>> minimum = collapse_minimum([10, 6, 2], weight_decays=[0.005], feature_decay=0.001)
        >>> minimum["class_mean_norms"]
        tensor([0.8355, 0.9476, 1.2394], dtype=torch.float64)

    Source:
        Dang et al. (ICML 2023, arXiv 2301.00437), theorems 3.1 and 4.1.
    """
    sizes = _class_sizes(counts)
    depth, cost = len(weight_decays), _cost(float(sizes.sum()), weight_decays, feature_decay)
    total = sizes.sum()
    slopes = depth * total * cost / sizes
    survives = torch.ones_like(sizes, dtype=torch.bool)
    if rank is not None:
        if rank < 1:
            raise ValueError(f"rank is {rank}; wanted at least 1.")
        survives = sizes.argsort(descending=True, stable=True).argsort() < rank
    strength = torch.tensor(
        [_strength(slope, depth) if alive else 0.0 for slope, alive in zip(slopes.tolist(), survives, strict=True)],
        dtype=torch.float64,
    )
    squared = strength**depth * total * feature_decay
    return {
        "loss": (sizes / total * (1 / (strength**depth + 1) + slopes * strength)).sum() / 2,
        "product_squared_norms": squared,
        "class_mean_norms": squared.sqrt() / (squared + total * feature_decay),
    }


def collapse_threshold(depth: int) -> float:
    r"""The slope :math:`b_k` from which on a class vanishes, :math:`(M - 1)^{(M - 1) / M} / M` for M layers.

    Args:
        depth: Number of linear layers M.

    Returns:
        A number in (0, 1].

    Raises:
        ValueError: ``depth`` is not positive.

    Example:
        >>> collapse_threshold(1), collapse_threshold(2)
        (1.0, 0.5)

    Source:
        Dang et al. (ICML 2023, arXiv 2301.00437), theorem 4.1.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}; wanted at least 1.")
    return float((depth - 1) ** ((depth - 1) / depth) / depth)


def minority_collapse_size(num_samples: int, *, weight_decays: Sequence[float], feature_decay: float) -> int:
    r"""The least number of examples with which a class survives among ``num_samples`` in all.

    Formula:
        .. math:: n_k > \frac{M N}{\theta_M} \Big( N \lambda_H \prod_j \lambda_j \Big)^{1/M}

    Args:
        num_samples: Examples of all classes together, N.
        weight_decays: One positive number for each of the M layers.
        feature_decay: Positive decay of the features.

    Returns:
        An integer of at least 1; above ``num_samples`` no class survives.

    Raises:
        ValueError: ``num_samples`` or a decay is not positive.

    Example:
        >>> minority_collapse_size(1000, weight_decays=[0.01], feature_decay=0.002)
        21

    Source:
        Dang et al. (ICML 2023, arXiv 2301.00437), theorem 4.1.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; wanted at least 1.")
    depth, cost = len(weight_decays), _cost(num_samples, weight_decays, feature_decay)
    bound = depth * num_samples * cost / collapse_threshold(depth)
    return math.floor(bound * (1 + 1e-12)) + 1  # at the bound itself, whatever its rounding, a class may vanish


def check_class_indices(labels: Tensor, num_classes: int) -> None:
    """Raise unless labels are integers and, where values can be read, from 0 to ``num_classes - 1``."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels has dtype {labels.dtype}; wanted int64 class indices.")
    if may_read_values(labels):
        check_indices("labels", labels, num_classes)


def _unknown(loss: object) -> ValueError:
    return ValueError(f"loss is {loss!r}; wanted 'mse' or 'cross_entropy'.")


def _cost(num_samples: float, weight_decays: Sequence[float], feature_decay: float) -> float:
    """The c of the theorems: the M-th root of N times all decays."""
    if len(weight_decays) == 0:
        raise ValueError("weight_decays is empty; wanted one number for each layer.")
    for name, decay in (("feature_decay", feature_decay), *(("weight_decays", decay) for decay in weight_decays)):
        check_in_range(name, decay, 0.0, low_open=True)
    return float((num_samples * feature_decay * math.prod(weight_decays)) ** (1 / len(weight_decays)))


def _strength(slope: float, depth: int) -> float:
    """The x >= 0 that minimises 1 / (x^M + 1) + slope x."""
    if depth == 1:
        return max(1 / math.sqrt(slope) - 1, 0.0)
    from scipy.optimize import brentq

    def gain(x: float) -> float:
        return depth * x ** (depth - 1) / (x**depth + 1) ** 2 - slope

    steepest = ((depth - 1) / (depth + 1)) ** (1 / depth)
    if gain(steepest) <= 0:  # the curve rises throughout
        return 0.0
    x = float(brentq(gain, steepest, (depth / slope) ** (1 / (depth + 1)), xtol=1e-15, rtol=1e-15))
    return x if 1 / (x**depth + 1) + slope * x < 1.0 else 0.0


def _class_sizes(counts: Tensor | Sequence[int]) -> Tensor:
    sizes = torch.as_tensor(counts).to(torch.float64)
    if sizes.ndim != 1 or len(sizes) == 0 or bool((sizes < 1).any()):
        raise ValueError(f"counts is {counts}; wanted at least one example of each class, (K,).")
    return sizes
