"""Isotonic calibration of one probability: a monotone step function, kept from certainty."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lossary.core.optional import optional

Array = npt.NDArray[Any]
Knots = tuple[tuple[float, float], ...]
"""Pairs (probability, calibrated probability), rising in both."""

CLIP = 1e-4


def fit_isotonic(probability: Array, yes: Array, *, needed_by: str = "isotonic calibration") -> Knots:
    """The monotone function with the least squared error of ``yes (n,)``, 0 or 1, from ``probability (n,)``.

    A step may say 0 or 1 after a few rows; one imagined row, half of each kind, keeps it honest.
    """
    regression = optional("sklearn.isotonic", needed_by=needed_by).IsotonicRegression(
        y_min=0, y_max=1, out_of_bounds="clip"
    )
    regression.fit(probability, yes)
    rows = len(yes)
    values = (regression.y_thresholds_ * rows + 0.5) / (rows + 1)
    return tuple(zip(regression.X_thresholds_.tolist(), values.tolist(), strict=True))


def isotonic(probability: Array, knots: Knots) -> Array:
    """Calibrated probabilities ``(n,)``: straight lines between the knots, within [1e-4, 1 - 1e-4]."""
    return np.asarray(np.interp(probability, *np.array(knots).T).clip(CLIP, 1 - CLIP))
