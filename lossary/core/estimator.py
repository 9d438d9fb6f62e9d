"""What makes a class a scikit-learn estimator, without importing scikit-learn.

``clone``, ``Pipeline``, ``cross_val_score`` and ``GridSearchCV`` ask for parameters, tags and a score; these give them.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from lossary.core.optional import optional

Array = npt.NDArray[Any]


class Estimator:
    """Parameters as scikit-learn wants them: those of ``__init__``, each stored under its own name."""

    @classmethod
    def _parameters(cls) -> list[str]:
        return [name for name in inspect.signature(cls).parameters]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name; ``deep`` is scikit-learn's word for those of estimators within."""
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters by name."""
        for name, value in parameters.items():
            if name not in self._parameters():
                raise ValueError(
                    f"{type(self).__name__} has no parameter {name!r}; wanted one of {self._parameters()}."
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        changed = [f"{name}={value!r}" for name, value in self.get_params().items() if value is not defaults[name]]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_is_fitted__(self) -> bool:
        """Whether ``fit`` has been called: it leaves attributes that end in an underscore."""
        return any(name.endswith("_") and not name.startswith("_") for name in vars(self))

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            error = _exception("NotFittedError", ValueError)
            raise error(f"This {type(self).__name__} is not fitted yet; call fit first.")


class Classifier(Estimator):
    """A classifier: what follows from its ``predict_proba``."""

    _estimator_type = "classifier"
    classes_: Array

    def __sklearn_tags__(self) -> Any:
        tags = optional("sklearn.utils", needed_by="scikit-learn's tags")
        return tags.Tags(
            estimator_type="classifier",
            target_tags=tags.TargetTags(required=True),
            classifier_tags=tags.ClassifierTags(),
            input_tags=tags.InputTags(),
        )

    def predict_proba(self, X: Any) -> Array:
        """Probabilities ``(n, C)``, columns in the order of ``classes_``."""
        raise NotImplementedError

    def predict(self, X: Any) -> Array:
        """The most probable class of each row ``(n,)``."""
        place = self.predict_proba(X).argmax(1)
        return np.asarray(self.classes_[place])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy."""
        return float(np.average(self.predict(X) == np.asarray(y), weights=sample_weight))


def table(X: Any) -> Array:
    """Features ``(n, d)`` float64.

    Raises:
        ValueError: X is not two-dimensional, has no rows or columns, is sparse or complex, or holds a NaN or infinity.
    """
    if hasattr(X, "toarray"):
        raise ValueError("Sparse input is not supported; wanted a dense array (X.toarray()).")
    given = np.asarray(X)
    if given.dtype.kind == "c":
        raise ValueError("Complex data not supported; wanted real numbers.")
    features = given.astype(np.float64)
    if features.ndim != 2:
        raise ValueError(f"X has shape {features.shape}; wanted (n, d). Reshape your data.")
    rows, columns = features.shape
    if 0 in features.shape:
        raise ValueError(
            f"{rows} sample(s), {columns} feature(s) (shape={features.shape}) while a minimum of 1 is required."
        )
    if not np.isfinite(features).all():
        raise ValueError("X contains NaN or infinity; wanted finite numbers.")
    return features


def class_labels(y: Any, rows: int) -> Array:
    """Class labels ``(n,)`` of any type; a column ``(n, 1)`` is flattened with a warning.

    Raises:
        ValueError: y is missing, has another shape, or holds numbers that are no labels.
    """
    if y is None:
        raise ValueError("The classifier requires y to be passed, but the target y is None.")
    labels = np.asarray(y)
    if labels.shape == (rows, 1):
        message = "A column-vector y was passed when a 1d array was expected; wanted shape (n,), as of y.ravel()."
        warnings.warn(message, _exception("DataConversionWarning", UserWarning), stacklevel=3)
        labels = labels.ravel()
    if labels.shape != (rows,):
        raise ValueError(f"y has shape {labels.shape}; wanted a label for each of the {rows} rows of X.")
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.round(labels)).all()):
        raise ValueError("Unknown label type: continuous numbers, NaN or infinity; wanted class labels.")
    return labels


def _exception(name: str, fallback: type[Any]) -> type[Any]:
    """Scikit-learn's exception where it is installed: its callers look for the type."""
    try:
        found: type[Any] = getattr(optional("sklearn.exceptions", needed_by=name), name)
    except ImportError:
        return fallback
    return found
