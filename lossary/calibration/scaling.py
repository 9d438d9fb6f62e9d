"""Post-hoc calibrators of logits as scikit-learn estimators: temperature, vector, Platt and isotonic scaling.

``fit`` takes the logits of rows that the model was not trained on, with their labels; ``predict_proba`` takes the
logits of new rows. Tensors and arrays are both welcome; arrays come back.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.affine import fit_logits
from lossary.core.checks import check_in_range
from lossary.core.estimator import Classifier
from lossary.core.isotonic import Knots, fit_isotonic, isotonic
from lossary.core.optional import optional

Array = npt.NDArray[Any]


class _Scaling(Classifier):
    """What the calibrators share: their input and how log-probabilities become probabilities."""

    n_features_in_: int

    def predict_log_proba(self, X: Any) -> Array:
        """Calibrated log-probabilities ``(n, C)`` float64 of logits ``(n, C)``, or ``(n,)`` margins of two classes."""
        self._check_fitted()
        logits = _logits(X)
        if logits.shape[1] != len(self.classes_):
            raise ValueError(f"logits have {logits.shape[1]} classes; fitted were {len(self.classes_)}.")
        return self._log_probability(logits).numpy()

    def predict_proba(self, X: Any) -> Array:
        """Calibrated probabilities ``(n, C)`` float64 of logits ``(n, C)``, or ``(n,)`` margins of two classes."""
        return np.exp(self.predict_log_proba(X))

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to logits and labels of rows that the model was not trained on.

        Args:
            X: Logits ``(n, C)``, or ``(n,)`` margins of the second of two classes.
            y: Class indices ``(n,)`` from 0 to C - 1, in the order of the columns.
        """
        logits = _logits(X)
        target = _labels(y, logits)
        if not bool(logits.isfinite().all()):
            raise ValueError("logits contain a number that is not finite; wanted finite logits to fit to.")
        self.classes_ = np.arange(logits.shape[1])
        self.n_features_in_ = logits.shape[1]
        self._fit(logits, target)
        return self

    def _fit(self, logits: Tensor, target: Tensor) -> None:
        raise NotImplementedError

    def _log_probability(self, logits: Tensor) -> Tensor:
        raise NotImplementedError


class TemperatureScaling(_Scaling):
    r"""One temperature for all logits: the first calibrator to try.

    One number can hardly over-fit, and which class is predicted never changes. Where single classes are over- or
    under-predicted use :class:`VectorScaling`.

    Formula:
        softmax(z / T), T of least log-loss, found to convergence.

    Args:
        penalty: Weight of :math:`(\log T)^2 / 2` beside the summed log-loss; 1 is a pull to T = 1 as of one row. With
            0, rows that are separated without error have no minimum, and T is as small as 100 steps take it.

    Attributes:
        temperature_: T.
        classes_: Class indices ``(C,)``.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 0.0]])
        >>> scaling = TemperatureScaling().fit(logits, torch.tensor([0, 0, 1, 1]))
        >>> round(scaling.temperature_, 3)
        3.641
        >>> scaling.predict_proba(logits[:1]).round(3)
        array([[0.75, 0.25]])

    Source:
        Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks (ICML 2017, arXiv 1706.04599).
    """

    temperature_: float

    def __init__(self, *, penalty: float = 0.0) -> None:
        self.penalty = penalty

    def _fit(self, logits: Tensor, target: Tensor) -> None:
        scale, _ = _affine(logits, target, per_class=False, biased=False, penalty=self.penalty)
        self.temperature_ = 1 / scale[0].item()

    def _log_probability(self, logits: Tensor) -> Tensor:
        return (logits / self.temperature_).log_softmax(1)


class VectorScaling(_Scaling):
    r"""A positive scale and a bias for each class.

    Reach for it where single classes are over- or under-predicted and each has dozens of rows; it can change which
    class is predicted. A shift common to a row's logits, which softmax does not see, matters to it: where that is
    arbitrary, pass log-probabilities.

    Formula:
        softmax(w * z + b), w and b of least log-loss, found to convergence.

    Args:
        penalty: Weight of :math:`(\log w)^2 / 2` and :math:`b^2 / 2` beside the summed log-loss; 1 is a pull to the
            identity as of one row. 0 drops it, and leaves no minimum where a class has no rows or no errors.

    Attributes:
        scale_: w ``(C,)``.
        bias_: b ``(C,)``.
        classes_: Class indices ``(C,)``.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 0.0]])
        >>> scaling = VectorScaling().fit(logits, torch.tensor([0, 0, 1, 1]))
        >>> scaling.scale_.shape, scaling.bias_.shape
        ((2,), (2,))

    Source:
        Guo et al. (ICML 2017, arXiv 1706.04599).
    """

    scale_: Array
    bias_: Array

    def __init__(self, *, penalty: float = 1.0) -> None:
        self.penalty = penalty

    def _fit(self, logits: Tensor, target: Tensor) -> None:
        scale, bias = _affine(logits, target, per_class=True, biased=True, penalty=self.penalty)
        self.scale_, self.bias_ = scale.numpy(), bias.numpy()

    def _log_probability(self, logits: Tensor) -> Tensor:
        return (logits * torch.from_numpy(self.scale_) + torch.from_numpy(self.bias_)).log_softmax(1)


class PlattScaling(_Scaling):
    r"""A logistic regression on each class's log-odds, one class against the rest, with scikit-learn.

    Reach for it with two classes, where it is temperature scaling with a bias; with more, :class:`VectorScaling` fits
    all classes together.

    Formula:
        .. math:: p_k \propto \sigma(a_k m_k + b_k), \quad m_k = z_k - \log \sum_{j \ne k} e^{z_j}

        fitted to Platt's targets :math:`(n_+ + 1) / (n_+ + 2)` and :math:`1 / (n_- + 2)`, which keep few rows from
        certainty.

    Attributes:
        slope_: a ``(C,)``; of two classes the second one's, twice.
        bias_: b ``(C,)``.
        classes_: Class indices ``(C,)``.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> logits = torch.tensor([-4.0, -4.0, 4.0, -4.0])
        >>> scaling = PlattScaling().fit(logits, torch.tensor([0, 0, 1, 1]))
        >>> scaling.predict_proba(logits[:3]).round(3)
        array([[0.583, 0.417],
               [0.583, 0.417],
               [0.25 , 0.75 ]])

    Source:
        Platt: Probabilistic Outputs for Support Vector Machines (1999).
    """

    slope_: Array
    bias_: Array

    def __init__(self) -> None:
        pass

    def _fit(self, logits: Tensor, target: Tensor) -> None:
        margins = _margins(logits).numpy()
        columns = [1] if margins.shape[1] == 2 else range(margins.shape[1])
        fitted = [_platt(margins[:, k], (target == k).numpy()) for k in columns]
        self.slope_ = np.array([slope for slope, _ in fitted])
        self.bias_ = np.array([bias for _, bias in fitted])
        if margins.shape[1] == 2:  # the other side of the same line
            self.slope_ = np.repeat(self.slope_, 2)
            self.bias_ = np.concatenate([-self.bias_, self.bias_])

    def _log_probability(self, logits: Tensor) -> Tensor:
        log_p = F.logsigmoid(_margins(logits) * torch.from_numpy(self.slope_) + torch.from_numpy(self.bias_))
        return log_p - log_p.logsumexp(1, keepdim=True)


class IsotonicScaling(_Scaling):
    """A monotone function of each class's probability, one class against the rest, with scikit-learn.

    Reach for it with a thousand rows or more, where the reliability diagram has a shape that no slope mends. It makes
    ties, and it never says less than 1e-4 of a class before probabilities are scaled to sum to 1.

    Attributes:
        knots_: For each class the pairs (probability, calibrated probability); straight lines between them.
        classes_: Class indices ``(C,)``.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> logits = torch.tensor([-4.0, -4.0, 4.0, -4.0])
        >>> scaling = IsotonicScaling().fit(logits, torch.tensor([0, 0, 1, 1]))
        >>> scaling.predict_proba(logits[:3]).round(3)
        array([[0.633, 0.367],
               [0.633, 0.367],
               [0.1  , 0.9  ]])

    Source:
        Zadrozny, Elkan: Transforming Classifier Scores into Accurate Multiclass Probability Estimates (KDD 2002).
    """

    knots_: tuple[Knots, ...]

    def __init__(self) -> None:
        pass

    def _fit(self, logits: Tensor, target: Tensor) -> None:
        p = logits.softmax(1).numpy()
        yes = F.one_hot(target, p.shape[1]).numpy()
        self.knots_ = tuple(fit_isotonic(p[:, k], yes[:, k], needed_by="IsotonicScaling") for k in range(p.shape[1]))

    def _log_probability(self, logits: Tensor) -> Tensor:
        p = logits.softmax(1).numpy()
        calibrated = torch.from_numpy(np.stack([isotonic(p[:, k], knots) for k, knots in enumerate(self.knots_)], 1))
        return (calibrated / calibrated.sum(1, keepdim=True)).log()


def _affine(logits: Tensor, target: Tensor, *, per_class: bool, biased: bool, penalty: float) -> tuple[Tensor, Tensor]:
    """Scale and bias ``(C,)`` of one model."""
    check_in_range("penalty", penalty, 0.0)
    one_hot = F.one_hot(target, logits.shape[1]).to(logits.dtype)
    scale, bias = fit_logits(logits[None], one_hot, per_class=per_class, biased=biased, penalty=penalty, steps=100)
    return scale[0], bias[0]


def _platt(margin: Array, yes: Array) -> tuple[float, float]:
    """Slope and bias; every row enters as a yes and as a no, by its soft target."""
    model = optional("sklearn.linear_model", needed_by="PlattScaling").LogisticRegression(
        C=np.inf, tol=1e-10, max_iter=1000
    )
    positives = int(yes.sum())
    soft = np.where(yes, (positives + 1) / (positives + 2), 1 / (len(yes) - positives + 2))
    size = max(float(np.sqrt(np.square(margin).mean())), 1e-150)
    rows = np.concatenate([margin, margin])[:, None] / size
    model.fit(rows, np.repeat([1, 0], len(margin)), sample_weight=np.concatenate([soft, 1 - soft]))
    return float(model.coef_[0, 0]) / size, float(model.intercept_[0])


def _margins(logits: Tensor) -> Tensor:
    """Log-odds of each class against the rest ``(n, C)``."""
    classes = logits.shape[1]
    others = ~torch.eye(classes, dtype=torch.bool)
    return torch.stack([logits[:, k] - logits[:, others[k]].logsumexp(1) for k in range(classes)], 1)


def _logits(X: Any) -> Tensor:
    """Logits ``(n, C)`` float64 on the CPU."""
    logits = _tensor(X).detach().to("cpu", torch.float64)
    if logits.ndim == 1:
        logits = torch.stack([-logits / 2, logits / 2], 1)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; wanted (n, C) with C >= 2, or (n,) for two classes."
        )
    return logits


def _tensor(values: Any) -> Tensor:
    """What NumPy understands, tables and columns of pandas too."""
    return values if isinstance(values, Tensor) else torch.tensor(np.asarray(values))


def _labels(y: Any, logits: Tensor) -> Tensor:
    target = _tensor(y).detach().cpu()
    if target.is_floating_point() or target.shape != logits.shape[:1] or len(target) == 0:
        raise ValueError(
            f"labels have shape {tuple(target.shape)} and dtype {target.dtype}; wanted class indices ({len(logits)},)."
        )
    target = target.long()
    if bool((target < 0).any()) or bool((target >= logits.shape[1]).any()):
        raise ValueError(f"labels range from {target.min()} to {target.max()}; wanted 0 to {logits.shape[1] - 1}.")
    return target
