"""From columns to numbers: fitted on training rows alone, and the same for new rows however they come."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossary.compare.load import load_table
from lossary.compare.preprocess import SoftScaler, make_preprocessor, read_dates, to_kind
from lossary.core.errors import UserError
from tests.compare.conftest import small_frame


def features(rows: int = 160) -> pd.DataFrame:
    return load_table(small_frame(rows), "label").features


def test_a_dense_float32_matrix_without_gaps() -> None:
    columns = features()
    x = make_preprocessor(columns).fit_transform(columns)
    # a, b, c and where b was missing; three colours, two of smokes; six parts of the date.
    assert x.shape == (160, 4 + 3 + 2 + 6)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    np.testing.assert_allclose(x[:, :3].mean(0), 0, atol=0.2)
    np.testing.assert_allclose(x[:, :3].std(0), 1, atol=0.2)


def test_rows_are_transformed_one_by_one() -> None:
    columns = features()
    fitted = make_preprocessor(columns).fit(columns.iloc[:100])
    together = fitted.transform(columns.iloc[100:])
    apart = np.concatenate([fitted.transform(columns.iloc[[row]]) for row in range(100, 160)])
    np.testing.assert_array_equal(together, apart)


def test_nothing_is_learnt_from_rows_that_it_is_not_fitted_on() -> None:
    columns = features()
    changed = columns.copy()
    changed.loc[100:, "a"] = 1e6
    changed.loc[100:, "colour"] = "purple"
    one, other = (make_preprocessor(c).fit(c.iloc[:100]).transform(columns.iloc[:100]) for c in (columns, changed))
    np.testing.assert_array_equal(one, other)


def test_levels_rare_new_and_missing() -> None:
    words = pd.DataFrame({"w": pd.Series(["a"] * 20 + ["b"] * 20 + ["c"] * 2 + ["d"] * 3 + [None] * 6, dtype=object)})
    fitted = make_preprocessor(words).fit(words)
    new = pd.DataFrame({"w": pd.Series(["a", "b", "c", "never seen", None], dtype=object)})
    x = fitted.transform(new)
    assert x.shape == (5, 4)  # a, b, missing, and one for c and d together
    np.testing.assert_array_equal(x.sum(1), 1)
    np.testing.assert_array_equal(x[2], x[3])
    assert len(np.unique(x, axis=0)) == 4


def test_columns_that_miss_all_or_vary_not_at_all_do_no_harm() -> None:
    columns = pd.DataFrame({"gone": [np.nan] * 9, "same": [2.0] * 9, "x": np.arange(9.0)})
    x = make_preprocessor(columns).fit_transform(columns)
    assert np.isfinite(x).all()
    np.testing.assert_array_equal(x[:, :2], 0)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=30), st.floats(-1e300, 1e300))
def test_scaled_numbers_are_bounded_and_keep_their_order(values: list[float], new: float) -> None:
    column = np.array(values)[:, None]
    scaler = SoftScaler().fit(column)
    x = scaler.transform(np.sort(np.append(column, new))[:, None])[:, 0]
    assert np.isfinite(x).all()
    assert np.abs(x).max() <= SoftScaler.LIMIT
    assert (np.diff(x) >= -1e-9).all()


def test_a_wild_value_does_not_squash_the_rest() -> None:
    rng = np.random.default_rng(0)
    column = np.append(rng.normal(size=999), 1e12)[:, None]
    x = SoftScaler().fit_transform(column)
    assert x[:-1].std() > 0.5


def test_dates_are_read_alike_one_by_one() -> None:
    texts = ["2020-01-31", "2020-02", "2020/03/04", "05.06.2020", "12/31/2020", "2020-01-31T10:30:00Z", "no date"]
    dates = read_dates(pd.Series(texts))
    assert dates.isna().tolist() == [False] * 6 + [True]
    assert dates[3] == pd.Timestamp("2020-06-05")
    assert dates[5] == pd.Timestamp("2020-01-31 10:30")
    for text, date in zip(texts[:6], dates, strict=False):
        assert read_dates(pd.Series([text]))[0] == date


def test_new_rows_are_read_as_their_column_was() -> None:
    assert to_kind(pd.Series([1.0, 2.0]), "category").tolist() == ["1", "2"]
    assert to_kind(pd.Series(["1", " 2.50", "NA"]), "number").tolist()[:2] == [1, 2.5]
    with pytest.raises(UserError, match=r"'x' holds 'two' \(row 2\); wanted a number"):
        to_kind(pd.Series(["1", "two"], name="x"), "number")
    with pytest.raises(UserError, match="wanted a date"):
        to_kind(pd.Series(["yesterday"], name="when"), "date")
