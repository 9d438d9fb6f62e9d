"""Tables from files: CSV, TSV, JSONL, Parquet and Feather."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from lossary.compare.preprocess import MISSING
from lossary.core.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".feather", ".csv.gz", ".tsv.gz", ".jsonl.gz")

_SEPARATORS = ("\t", ";", "|", ",")
_SNIFFED_ROWS = 1_000
_BLOCK_SIZE = 2**24  # bytes; no row may be longer


def read_frame(path: str | Path, *, names: Collection[str] = ()) -> pd.DataFrame:
    """Read a table; the suffix says how.

    CSV may be separated by commas, semicolons, tabs or bars. All its columns come as text, without spaces around, and
    with NaN for empty cells and words such as NA or ``?``; :func:`~lossary.compare.preprocess.to_kind` reads numbers
    and dates. A CSV file whose first row is data, not names, gets ``column_0``, ``column_1``, ... for names.

    Args:
        path: The file.
        names: Columns that are wanted: a first row that holds one of them is a row of names.

    Raises:
        UserError: The file cannot be read; it says where and what to do.
    """
    path = Path(path)
    suffix = suffix_of(path)
    _check_file(path, suffix)
    if suffix.startswith((".csv", ".tsv")):
        frame = _read_csv(path, _text(path), "\t" if suffix.startswith(".tsv") else None, names)
    elif suffix.startswith(".jsonl"):
        frame = _read_jsonl(path, _text(path))
    else:
        frame = _read_arrow(path, suffix)
    frame.columns = [str(name) for name in frame.columns]
    _check_names(path.name, list(frame.columns))
    if frame.empty:
        raise UserError(f"{path.name} has no rows of data below its column names; wanted a row for each example.")
    return frame


def suffix_of(path: Path) -> str:
    """The suffix that says how a file is read, lower case; for an unknown kind of file its last one, maybe empty."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), path.suffix.lower())


def unnamed(num: int) -> list[str]:
    """Names of the columns of a file without names."""
    return [f"column_{place}" for place in range(num)]


def _check_file(path: Path, suffix: str) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder; wanted a file: {', '.join(SUFFIXES[:5])}.")
    if not path.exists():
        folder = path.parent if path.parent.is_dir() else Path()
        near = difflib.get_close_matches(path.name, [file.name for file in folder.iterdir()], n=1)
        hint = f"Did you mean {folder / near[0]}?" if near else "Is the path right, seen from the current folder?"
        raise UserError(f"There is no file {path}. {hint}")
    if suffix not in SUFFIXES:
        remedy = "Save the sheet as CSV (UTF-8)." if suffix in (".xls", ".xlsx", ".ods") else "Convert or rename it."
        raise UserError(f"{path.name} is none of {', '.join(SUFFIXES)}.\n{remedy}")
    if path.stat().st_size == 0:
        raise UserError(f"{path.name} is empty; wanted column names and rows.")


def _text(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path.name} cannot be unpacked: {error}. Is it complete? Get it anew.") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(_not_utf8(path, "it begins as UTF-16 does", "utf-16"))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"byte {error.start} (line {line}) is 0x{data[error.start]:02X}"
        raise UserError(_not_utf8(path, what, "latin1")) from error
    if "\0" in text:
        raise UserError(f"{path.name} holds zero bytes, so it is no text file; is its suffix {path.suffix} right?")
    if not text.strip():
        raise UserError(f"{path.name} is blank; wanted column names and rows.")
    return text


def _not_utf8(path: Path, what: str, encoding: str) -> str:
    return (
        f"{path.name} is not UTF-8: {what}.\n"
        f"Convert it, from whatever it was saved in: iconv -f {encoding} -t utf-8 {path.name} > utf8-{path.name}"
    )


def _read_csv(path: Path, text: str, separator: str | None, names: Collection[str]) -> pd.DataFrame:
    separator = separator or _sniff_separator(text)
    first = next(row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row)
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(text.encode()),
            read_options=pa.csv.ReadOptions(column_names=unnamed(len(first)), block_size=_BLOCK_SIZE),
            parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(unnamed(len(first)), pa.string())),
        )
    except pa.ArrowInvalid as error:
        raise UserError(_ragged(path, text, separator) or f"{path.name} cannot be read: {error}") from error
    missing = pa.array(sorted(MISSING))
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        trimmed = pc.utf8_trim_whitespace(column)
        columns[name] = pc.if_else(pc.is_in(trimmed, value_set=missing), None, trimmed)
    frame: pd.DataFrame = pa.table(columns).to_pandas()
    header = [cell.strip() for cell in first]
    if not _is_header(header, frame.iloc[1 : _SNIFFED_ROWS + 1], names):
        return frame
    frame = frame.iloc[1:].reset_index(drop=True)
    frame.columns = [cell or place for cell, place in zip(header, unnamed(len(header)), strict=True)]
    return frame


def _sniff_separator(text: str) -> str:
    """The separator that cuts the first rows into equally many fields; a comma where none does."""
    for separator in _SEPARATORS:
        rows = itertools.islice(csv.reader(io.StringIO(text, newline=""), delimiter=separator), _SNIFFED_ROWS)
        try:
            widths = {len(row) for row in rows if row}
        except csv.Error:
            continue
        if len(widths) == 1 and widths.pop() > 1:
            return separator
    return ","


def _is_header(first: Sequence[str], rest: pd.DataFrame, names: Collection[str]) -> bool:
    """Whether the first row holds names: no name is a number or recurs below."""
    if rest.empty or set(first) & set(names):
        return True
    numbers = {place: float(cell) for place, cell in enumerate(first) if _is_number(cell)}
    values = list(numbers.values())
    if values == [float(place) for place in numbers] and len(values) > 1:
        return True  # 0, 1, 2, ...: the places, which pandas writes where there are no names
    if len(values) > 2 and all(b - a == 1 for a, b in itertools.pairwise(values)):
        return True  # years
    data = 0
    for place, cell in enumerate(first):
        below = rest.iloc[:, place].dropna()
        if not cell or below.empty:
            continue
        if pd.to_numeric(below, errors="coerce").notna().mean() > 0.9:
            if place not in numbers and cell not in MISSING:
                return True  # a word above numbers
            data += 1
        elif (below == cell).any():
            data += 1
        elif below.nunique() <= len(below) / 2:
            data -= 1
    return data <= 0


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return cell not in MISSING


def _ragged(path: Path, text: str, separator: str) -> str | None:
    """Where a row has other than the usual number of fields."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    width = None
    line = 1
    try:
        for row in reader:
            width = width or len(row)
            if row and len(row) != width:
                return (
                    f"Line {line} of {path.name} has {len(row)} fields, the first line {width}.\n"
                    f"Mend that line: look for an unquoted separator, an unclosed quote or a missing field."
                )
            line = reader.line_num + 1
    except csv.Error as error:
        return f"Line {line} of {path.name} cannot be read: {error}. Mend that line."
    return None


def _read_jsonl(path: Path, text: str) -> pd.DataFrame:
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"Line {number} of {path.name} is not JSON: {error.msg} at character {error.pos + 1}.\n"
                "Wanted one JSON object in each line."
            ) from error
        if not isinstance(record, dict):
            raise UserError(
                f"Line {number} of {path.name} holds a JSON {type(record).__name__}; "
                'wanted an object such as {"x": 1, "y": "yes"}.'
            )
        records.append(record)
    return pd.DataFrame(records)


def _read_arrow(path: Path, suffix: str) -> pd.DataFrame:
    parquet = suffix == ".parquet"
    kind = "Parquet" if parquet else "Feather"
    read: Callable[..., Any] = pa.parquet.read_table if parquet else pa.feather.read_table
    try:
        table = read(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path.name} is damaged or no {kind} file.\nWrite it anew, or give it the suffix of what it is."
        ) from error
    _check_names(path.name, table.column_names)
    frame: pd.DataFrame = table.to_pandas()
    # An index with a name holds data, the default one does not.
    return frame.reset_index(drop=all(name is None for name in frame.index.names))


def _check_names(file: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            places = [place for place, other in enumerate(names) if other == name]
            raise UserError(
                f"{file} has {len(places)} columns called {name!r}: {', '.join(map(str, places))}, counted from 0.\n"
                f"Give each column a name of its own."
            )
