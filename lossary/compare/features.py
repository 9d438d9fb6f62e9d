"""Features from columns as they were read: which are numbers, categories and dates, and which cannot be used."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import numpy as np
import pandas as pd

from lossary.compare.preprocess import (
    DATES,
    MISSING_NUMBERS,
    column_kind,
    read_dates,
    read_numbers,
    to_kind,
)
from lossary.core.errors import UserError

_SIMPLE = (str, bool, int, float, np.generic, decimal.Decimal, datetime.date)
_FEW_LEVELS = 20


def typed_features(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Feature columns as :func:`~lossary.compare.preprocess.to_kind` has them, and sentences on what was assumed.

    Text is a number, a category or a date by the values of the whole column.

    Raises:
        UserError: A column has no values, infinite ones, numbers mixed with words, or something else than numbers,
            words, yes/no and dates.
    """
    remarks: list[str] = []
    columns = {name: _typed(frame[name], remarks) for name in frame}
    return pd.DataFrame(columns, index=frame.index), remarks


def _typed(column: pd.Series[Any], remarks: list[str]) -> pd.Series[Any]:
    name, dtype = str(column.name), column.dtype
    if column.isna().all():
        raise UserError(_no_values(name))
    if isinstance(dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    elif pd.api.types.is_timedelta64_dtype(dtype):
        column = column.dt.total_seconds()
    elif pd.api.types.is_complex_dtype(dtype):
        raise UserError(
            f"The column {name!r} holds complex numbers. Make it two columns of real numbers, or remove it."
        )
    if column_kind(column) != "category":
        return to_kind(column, column_kind(column))
    if isinstance(dtype, pd.CategoricalDtype) or pd.api.types.is_bool_dtype(dtype):
        return to_kind(column, "category")
    return _typed_objects(column, remarks)


def _typed_objects(column: pd.Series[Any], remarks: list[str]) -> pd.Series[Any]:
    """A column of text, or of Python objects."""
    name = str(column.name)
    known = column.dropna()
    for value in known if column.dtype == object else ():
        if not isinstance(value, _SIMPLE):
            raise UserError(
                f"The column {name!r} holds {type(value).__name__} values; wanted numbers, words, yes/no or dates.\n"
                f"Remove it, or make columns of numbers of it."
            )
    inferred = pd.api.types.infer_dtype(known, skipna=True)
    if inferred in ("date", "datetime", "datetime64"):
        return to_kind(pd.to_datetime(column), "date")
    if inferred == "boolean":
        return to_kind(column, "category")
    words = to_kind(column, "category")
    if words.isna().all():
        raise UserError(_no_values(name))
    kinds = words[words.notna() & ~words.isin(MISSING_NUMBERS)]
    numeric = read_numbers(kinds).notna()
    if len(kinds) and numeric.all():
        return to_kind(words, "number")
    if numeric.mean() >= 0.5:
        remarks.append(_categories_or_error(kinds, numeric))
        return words
    if kinds.str.fullmatch(r"[-+]?\d+,\d+").mean() > 0.5:
        raise UserError(
            f"The column {name!r} holds numbers with a decimal comma, such as {kinds.iloc[0]!r}.\n"
            f"Write them with a point."
        )
    return _dates(words, remarks)


def _dates(words: pd.Series[Any], remarks: list[str]) -> pd.Series[Any]:
    """Dates, if it reads as dates; else categories as they are."""
    name, known = str(words.name), words.dropna()
    dates = read_dates(known)
    if dates.notna().mean() <= DATES:
        if read_dates(known, ("%d/%m/%Y",)).notna().mean() > DATES:
            raise UserError(
                f"The column {name!r} holds dates with slashes and the day first: {known[dates.isna()].iloc[0]!r}.\n"
                "In general they cannot be told from dates with the month first: write 2016-12-31 or 31.12.2016."
            )
        return words
    if known.str.contains("/").any() and known.str.fullmatch(r"\d{1,2}/.*").any():
        remarks.append(f"The dates of column {name!r}, such as {known.iloc[0]}, are read with the month first.")
    if odd := int(dates.isna().sum()):
        values = f"{odd} value{'s' if odd > 1 else ''}"
        remarks.append(
            f"{values} of column {name!r}, such as {known[dates.isna()].iloc[0]!r}, are no dates: taken as missing."
        )
    return read_dates(words)


def _categories_or_error(words: pd.Series[Any], numeric: pd.Series[Any]) -> str:
    """Whether numbers and words in one column are codes; if not, one of them is a mistake that must not pass."""
    name, odd = str(words.name), words[~numeric]
    examples = list(dict.fromkeys(odd))[:3]
    lettered = odd.str.match(r"[A-Za-z]").mean() >= 0.5 and odd.str.contains(r"\d").mean() >= 0.5
    few = words.nunique() <= _FEW_LEVELS and odd.str.contains(r"\d").all()
    if lettered or few:
        shown = ", ".join(map(repr, examples))
        return f"The column {name!r} has numbers and codes such as {shown}: all are taken as categories."
    rows = ", ".join(f"{value!r} (row {odd.index[odd == value][0] + 1})" for value in examples)
    remedy = "Leave such cells empty, which counts as missing; or put a letter before every number, if all are names."
    raise UserError(
        f"The column {name!r} mixes numbers with words: {rows}; {len(odd)} of {len(words)} values.\n{remedy}"
    )


def _no_values(name: str) -> str:
    return f"The column {name!r} has no values at all. Remove it, or fill it."
