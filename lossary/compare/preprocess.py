"""Kinds of columns, and the way from columns to a dense float32 matrix, fitted on the training rows alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

from lossary.core.errors import UserError

Kind = Literal["number", "category", "date"]

MISSING = frozenset({"", "?", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "Null", "null", "NaT"})
"""Words that stand for a missing value."""
MISSING_NUMBERS = MISSING | {"None", "none", "-", "."}
"""The same among numbers; elsewhere ``None`` may be a category, such as a test that was not made."""
DATES = 0.95
"""A column of words is one of dates if more than this share of its values reads as a date."""
TRUSTED_TYPES = (
    "lossary.compare.preprocess.DateParts",
    "lossary.compare.preprocess.SoftScaler",
    "lossary.compare.preprocess.Words",
    "numpy.dtype",
)
"""What skops must trust, beside scikit-learn's own types, to load a fitted preprocessor."""

_DATE_FORMATS = ("%Y-%m-%d", "%Y-%m", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y")
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %H:%M:%S%z", " %H:%M:%S.%f%z")
_MOST_LEVELS = 64
_RARE = 5


def make_preprocessor(features: pd.DataFrame) -> Pipeline:
    """An unfitted preprocessor; ``transform`` gives ``(n, width)`` float32, the width depending on the rows fitted on.

    Numbers are scaled by :class:`SoftScaler`; missing ones become the median, and a 0/1 column says where. Categories
    become 0/1 columns, one for each level; a missing value is a level too. Levels with fewer than 5 training rows or
    beyond the 64 most frequent share a column, and unseen levels go with them. Dates become numbers by
    :class:`DateParts`.

    Args:
        features: Columns as :func:`to_kind` makes them. Only names and dtypes are looked at.
    """
    names: dict[Kind, list[str]] = {"number": [], "category": [], "date": []}
    for name in features:
        names[column_kind(features[name])].append(str(name))
    encoder = OneHotEncoder(
        handle_unknown="infrequent_if_exist",
        min_frequency=_RARE,
        max_categories=_MOST_LEVELS,
        sparse_output=False,
        dtype=np.float32,
    )
    steps = [
        ("numbers", _scaled(), names["number"]),
        ("categories", make_pipeline(Words(), encoder), names["category"]),
        ("dates", make_pipeline(DateParts(), _scaled()), names["date"]),
    ]
    columns = ColumnTransformer([step for step in steps if step[2]], sparse_threshold=0)
    return make_pipeline(columns, FunctionTransformer(np.float32))


def column_kind(column: pd.Series[Any]) -> Kind:
    """The kind of a column by its dtype; yes/no columns are categories."""
    dtype = column.dtype
    if pd.api.types.is_datetime64_any_dtype(dtype):
        return "date"
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype):
        return "number"
    return "category"


def to_kind(column: pd.Series[Any], kind: Kind) -> pd.Series[Any]:
    """A column of any dtype as its kind has it: float64, datetime64, or objects that are text or NaN.

    The same text always gives the same value, so that a new file of a few rows is read as the training file was.

    Raises:
        UserError: A value is not of that kind, or infinite.
    """
    if kind == "category":
        return _by_value(column, _words)
    if kind == "number":
        return _finite(
            column.astype(np.float64) + 0.0 if column_kind(column) == "number" else _numbers_or_error(column)
        )
    dates = read_dates(column)
    odd = column[dates.isna() & column.notna() & ~column.isin(MISSING)]
    if len(odd) > (1 - DATES) * max(int(column.notna().sum()), 1):
        raise UserError(f"The column {str(column.name)!r} holds {odd.iloc[0]!r}; wanted a date such as 2016-12-31.")
    return dates


def read_numbers(column: pd.Series[Any]) -> pd.Series[Any]:
    """Text as float64; NaN for what is missing or no number."""
    return _by_value(column, lambda values: pd.to_numeric(values, errors="coerce").astype(np.float64))


def read_dates(column: pd.Series[Any], formats: tuple[str, ...] = _DATE_FORMATS) -> pd.Series[Any]:
    """Dates, or text that reads as a date, as datetime64 in UTC without time zone; NaT for everything else.

    Understood are 2016-12-31, 2016-12, 2016/12/31, 31.12.2016 and 12/31/2016 (the month first), each with or without
    a time. All of that can be told from the value alone.
    """
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        naive = column if column.dt.tz is None else column.dt.tz_convert("UTC").dt.tz_localize(None)
        return naive.astype("datetime64[us]")

    def parse(values: pd.Series[Any]) -> pd.Series[Any]:
        text = values.astype(str).str.strip().str.replace("T", " ").str.replace(r"Z$", "+00:00", regex=True)
        dates = pd.Series(np.datetime64("NaT", "us"), index=values.index)
        for form in (date + clock for date in formats for clock in _CLOCKS):
            rest = text[dates.isna()]
            if rest.empty:
                break
            found = pd.to_datetime(rest, format=form, errors="coerce", utc=True).dt.tz_localize(None)
            dates[rest.index] = found.astype("datetime64[us]")
        return dates

    return _by_value(column, parse).astype("datetime64[us]")


class SoftScaler(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Scales numbers to mean 0 and deviation 1 so that neither long tails nor wild values squash the rest.

    A column is centred at its median and divided by its spread (its interquartile range, in units of the standard
    deviation of a normal distribution, or its deviation where that range is 0), passed through arsinh, which bends
    tails to logarithms, then standardised and clipped at 10 deviations. Missing values stay missing.
    """

    LIMIT = 10.0
    NORMAL_RANGE = 1.349
    """Interquartile range of the standard normal distribution."""

    def fit(self, x: Any, y: Any = None) -> SoftScaler:
        """Learn centre and spread of each column of ``(n, f)``."""
        values = _filled(x)
        low, self.center_, high = np.nanpercentile(values, [25, 50, 75], axis=0)
        spread = (high - low) / self.NORMAL_RANGE
        with np.errstate(over="ignore"):  # a spread of inf makes zeros of a column, as it should
            self.spread_ = _divisor(np.where(spread > 0, spread, np.nanstd(values, axis=0)))
        bent = self._bend(values)
        self.mean_ = np.nanmean(bent, axis=0)
        self.deviation_ = _divisor(np.nanstd(bent, axis=0))
        return self

    def transform(self, x: Any) -> npt.NDArray[np.float64]:
        """``(n, f)``, within -10 and 10."""
        scaled = (self._bend(np.asarray(x, dtype=np.float64)) - self.mean_) / self.deviation_
        return np.asarray(np.clip(scaled, -self.LIMIT, self.LIMIT))

    def _bend(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(np.arcsinh((values - self.center_) / self.spread_))


class Words(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Categories as text, missing ones as the word ``(missing)``."""

    def fit(self, x: pd.DataFrame, y: Any = None) -> Words:
        """Nothing is learnt."""
        self.n_features_in_ = x.shape[1]
        return self

    def transform(self, x: pd.DataFrame) -> npt.NDArray[np.object_]:
        """``(n, f)`` of text."""
        words = [to_kind(column, "category").fillna("(missing)") for _, column in x.items()]
        return np.stack([column.to_numpy(dtype=object) for column in words], axis=1)


class DateParts(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Dates as numbers: year, month, day, day of the week, hour, and days since 1970; NaN where missing."""

    def fit(self, x: pd.DataFrame, y: Any = None) -> DateParts:
        """Nothing is learnt."""
        self.n_features_in_ = x.shape[1]
        return self

    def transform(self, x: pd.DataFrame) -> npt.NDArray[np.float64]:
        """``(n, 6 f)``, the parts of a column side by side."""
        parts: list[pd.Series[Any]] = []
        for _, date in x.items():
            days = (date - pd.Timestamp(0)) / pd.Timedelta(days=1)
            parts += [date.dt.year, date.dt.month, date.dt.day, date.dt.day_of_week, date.dt.hour, days]
        return np.stack([part.to_numpy(np.float64, na_value=np.nan) for part in parts], axis=1)


def _scaled() -> Pipeline:
    return make_pipeline(SoftScaler(), SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True))


def _filled(x: Any) -> npt.NDArray[np.float64]:
    """Columns without any value, of which nothing can be learnt, as zeros."""
    values = np.asarray(x, dtype=np.float64)
    return np.where(np.isnan(values).all(axis=0), 0.0, values)


def _divisor(spread: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(spread > 0, spread, 1.0)


def _by_value(column: pd.Series[Any], read: Callable[[pd.Series[Any]], pd.Series[Any]]) -> pd.Series[Any]:
    """Apply ``read`` to the distinct values of a column: most columns repeat a few."""
    codes, values = pd.factorize(column)
    read_values = read(pd.Series(values, dtype=None if len(values) else object))
    found = read_values.reindex(codes)  # code -1, a missing value, is not in the index
    return pd.Series(found.to_numpy(), index=column.index, name=column.name)


def _words(values: pd.Series[Any]) -> pd.Series[Any]:
    words = [_word(value) for value in values]
    return pd.Series([None if word in MISSING else word for word in words], dtype=object)


def _word(value: Any) -> str:
    if isinstance(value, float | np.floating) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _numbers_or_error(column: pd.Series[Any]) -> pd.Series[Any]:
    numbers = read_numbers(column)
    odd = column[numbers.isna() & column.notna() & ~column.isin(MISSING_NUMBERS)]
    if len(odd):
        raise UserError(
            f"The column {str(column.name)!r} holds {odd.iloc[0]!r} (row {odd.index[0] + 1}); "
            f"wanted a number, or nothing."
        )
    return numbers


def _finite(column: pd.Series[Any]) -> pd.Series[Any]:
    infinite = int(np.isinf(column).sum())
    if infinite:
        raise UserError(
            f"The column {str(column.name)!r} has {infinite} infinite value{'s' if infinite > 1 else ''}.\n"
            "Leave them empty, which counts as missing, or put the largest meaningful number there."
        )
    return column
