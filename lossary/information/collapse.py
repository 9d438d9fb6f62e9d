"""How far a network has collapsed: the four measurements, and an observer that takes them during training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lossary.core.checks import check_floating, check_shape
from lossary.information.unconstrained import check_class_indices, collapse_minimum

Geometry = Literal["etf", "orthogonal", "gof"]


def neural_collapse_metrics(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    geometry: Geometry = "etf",
    counts: Tensor | Sequence[int] | None = None,
    weight_decays: Sequence[float] | None = None,
    feature_decay: float | None = None,
) -> dict[str, Tensor]:
    r"""How near last features and classifier are to collapse: 0 where they have arrived.

    Reach for it to see whether, and in which frame, a classifier collapses: ``etf`` for cross-entropy or a last bias,
    ``orthogonal`` for the squared error without bias, ``gof`` for that on imbalanced classes.

    Formula:
        With class means M, their mean :math:`m_G`, scatter :math:`S_W` within classes over all rows and :math:`S_B` of
        class means, and the frame's target T of unit Frobenius norm,

        .. math:: NC_1 = \mathrm{tr}(S_W S_B^+) / K, \quad NC_2 = \Big\| \frac{W W^T}{\|W W^T\|} - T \Big\|, \quad
            NC_3 = \Big\| \frac{W M^T}{\|W M^T\|} - T' \Big\|

        T is :math:`I - 1 1^T / K`, I or :math:`\mathrm{diag}(p_k^2)`, scaled; T' the same, but
        :math:`\mathrm{diag}(p_k \|h_k\|)` for ``gof``. For ``etf`` the means in :math:`NC_3` are centred.

    Args:
        features: Last features.
        labels: Class indices; every class has rows.
        weight: The classifier; for several linear layers their product.
        geometry: ``etf``, ``orthogonal`` or ``gof``.
        counts: For ``gof``: examples of each class in training; None takes those of ``labels``.
        weight_decays: For ``gof``: one number for each linear layer, see :func:`collapse_minimum`.
        feature_decay: For ``gof``: decay of the features.

    Shape:
        - features: ``(N, d)``, floating point; labels: ``(N,)`` integer; weight: ``(K, d)``.

    Returns:
        ``nc1``, ``nc2`` and ``nc3``, each ``()`` in float64. ``nc1`` is NaN where class means coincide.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or ``geometry`` is wrong, a class has no rows, or ``gof`` lacks its decays.

    Example:
        >>> features = torch.eye(2).repeat(3, 1)
        >>> metrics = neural_collapse_metrics(features, torch.tensor([0, 1] * 3), torch.eye(2), geometry="orthogonal")
        >>> {name: value.item() for name, value in metrics.items()}
        {'nc1': 0.0, 'nc2': 0.0, 'nc3': 0.0}

    Source:
        Dang et al. (ICML 2023, arXiv 2301.00437), section 5; Papyan, Han, Donoho: Prevalence of neural collapse during
        the terminal phase of deep learning training (PNAS 2020, arXiv 2008.08186).
    """
    check_floating("features", features)
    check_floating("weight", weight)
    if features.ndim != 2 or weight.ndim != 2 or weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"features has shape {tuple(features.shape)} and weight {tuple(weight.shape)}; wanted (N, d) and (K, d)."
        )
    classes = weight.shape[0]
    means, sizes = _class_means(features, labels, classes)
    weight, features = weight.detach().double(), features.detach().double()
    center = means.mean(0)
    within = (features - means[labels]).T @ (features - means[labels]) / len(features)
    between = (means - center).T @ (means - center) / classes
    spread = torch.trace(within @ torch.linalg.pinv(between, rtol=1e-10, hermitian=True)) / classes
    one = torch.eye(classes, dtype=torch.float64, device=features.device)
    if geometry == "etf":
        frame, duality, means = one - 1 / classes, one - 1 / classes, means - center
    elif geometry == "orthogonal":
        frame, duality = one, one
    elif geometry == "gof":
        if weight_decays is None or feature_decay is None:
            raise ValueError("geometry is 'gof' without weight_decays or feature_decay; wanted both.")
        known = sizes if counts is None else torch.as_tensor(counts)
        minimum = collapse_minimum(known.cpu(), weight_decays=weight_decays, feature_decay=feature_decay)
        squared, length = (minimum[name].to(one) for name in ("product_squared_norms", "class_mean_norms"))
        frame, duality = squared.diag(), (squared.sqrt() * length).diag()
    else:
        raise ValueError(f"geometry is {geometry!r}; wanted 'etf', 'orthogonal' or 'gof'.")
    return {
        "nc1": torch.where(torch.linalg.matrix_norm(between) < 1e-12, torch.nan, spread),
        "nc2": torch.linalg.matrix_norm(_unit(weight @ weight.T) - _unit(frame)),
        "nc3": torch.linalg.matrix_norm(_unit(weight @ means.T) - _unit(duality)),
    }


def nearest_mean_disagreement(features: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
    """Share of rows that the classifier and the nearest class mean put into different classes (NC4).

    Args:
        features: Last features ``(N, d)``.
        labels: Class indices ``(N,)``; every class has rows.
        logits: What the classifier says ``(N, K)``.

    Returns:
        ``()`` in float64, 0 at collapse.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or label is wrong, or a class has no rows.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [4.0]])
        >>> nearest_mean_disagreement(features, torch.tensor([0, 0, 1]), torch.tensor([[1.0, 0.0]] * 3))
        tensor(0.3333, dtype=torch.float64)

    Source:
        Papyan, Han, Donoho (PNAS 2020, arXiv 2008.08186), property NC4.
    """
    means, _ = _class_means(features, labels, logits.shape[1])
    nearest = torch.cdist(features.detach().double(), means).argmin(1)
    return (nearest != logits.argmax(1)).double().mean()


class NeuralCollapseObserver:
    """Takes the four measurements of collapse whenever a training loop asks.

    It runs the model over the batches given, in evaluation mode and without gradients, and catches what enters the
    head. The model is left as it was.

    Args:
        model: The network; ``model(x)`` gives logits ``(N, K)``.
        head: Its last layer, an ``nn.Linear``, or an ``nn.Sequential`` of linear layers.
        geometry: ``etf``, ``orthogonal`` or ``gof``; see :func:`neural_collapse_metrics`.
        counts: For ``gof``: examples of each class in training; None takes those of the batches.
        weight_decays: For ``gof``.
        feature_decay: For ``gof``.

    Attributes:
        history: Every measurement so far.

    Raises:
        TypeError: The head is not made of linear layers.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> observer = NeuralCollapseObserver(model, model[-1])
        >>> batches = [(torch.randn(6, 4), torch.tensor([0, 1] * 3)) for _ in range(2)]
        >>> sorted(observer(batches))  # after each epoch, say
        ['nc1', 'nc2', 'nc3', 'nc4']
        >>> len(observer.history)
        1

    Source:
        Papyan, Han, Donoho (PNAS 2020, arXiv 2008.08186); Dang et al. (ICML 2023, arXiv 2301.00437), section 5.
    """

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module,
        *,
        geometry: Geometry = "etf",
        counts: Tensor | Sequence[int] | None = None,
        weight_decays: Sequence[float] | None = None,
        feature_decay: float | None = None,
    ) -> None:
        self.model = model
        self.head = head
        self.options: dict[str, Any] = {
            "geometry": geometry,
            "counts": counts,
            "weight_decays": weight_decays,
            "feature_decay": feature_decay,
        }
        self.history: list[dict[str, float]] = []
        self._layers = list(head) if isinstance(head, nn.Sequential) else [head]
        if not self._layers or not all(isinstance(layer, nn.Linear) for layer in self._layers):
            raise TypeError(f"head is {head}; wanted nn.Linear, or nn.Sequential of nn.Linear alone.")

    def __call__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Measure ``nc1`` to ``nc4`` on batches (x, labels) and note them in ``history``."""
        features: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda module, args: features.append(args[0].detach()))
        modes = {module: module.training for module in self.model.modules()}
        logits, labels = [], []
        try:
            self.model.eval()
            with torch.no_grad():
                for x, y in batches:
                    logits.append(self.model(x))
                    labels.append(y)
        finally:
            hook.remove()
            for module, training in modes.items():
                module.training = training
        if len(features) != len(labels) or not labels:
            raise ValueError(f"the head ran {len(features)} times on {len(labels)} batches; wanted once on each.")
        all_features, all_labels = torch.cat(features), torch.cat(labels)
        found = neural_collapse_metrics(all_features, all_labels, self._weight(), **self.options)
        found["nc4"] = nearest_mean_disagreement(all_features, all_labels, torch.cat(logits))
        measured = {name: value.item() for name, value in found.items()}
        self.history.append(measured)
        return measured

    def _weight(self) -> Tensor:
        """All linear layers of the head as one matrix (K, d)."""
        weights = [layer.weight.detach().double() for layer in self._layers if isinstance(layer, nn.Linear)]
        product = weights[0]
        for weight in weights[1:]:
            product = weight @ product
        return product


def _class_means(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean feature of each class (K, d) in float64, and numbers of rows (K,)."""
    check_floating("features", features)
    if features.ndim != 2:
        raise ValueError(f"features has shape {tuple(features.shape)}; wanted (N, d).")
    check_shape("labels", labels, features.shape[:1], "a class index for each row of features")
    check_class_indices(labels, classes)
    sizes = torch.bincount(labels, minlength=classes)
    if len(sizes) > classes or bool((sizes == 0).any()):  # beyond: where labels were not checked
        raise ValueError(f"labels has {sizes.tolist()} rows of the classes; wanted at least one of each of {classes}.")
    features = features.detach().double()
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, labels, features)
    return sums / sizes.unsqueeze(1), sizes


def _unit(matrix: Tensor) -> Tensor:
    unit: Tensor = matrix / torch.linalg.matrix_norm(matrix)
    return unit
