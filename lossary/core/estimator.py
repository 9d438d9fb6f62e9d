"""What makes a class a scikit-learn estimator, without importing scikit-learn.

``clone``, ``Pipeline``, ``cross_val_score`` and ``GridSearchCV`` ask for parameters, tags and a score; these give them.
"""

from __future__ import annotations

import inspect
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
            try:
                error: type[Exception] = optional("sklearn.exceptions", needed_by="this").NotFittedError
            except ImportError:
                error = ValueError
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
