"""Read the columns of a table: CSV, Parquet and JSON lines."""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lt_cb.data.sources.listing import MALFORMED, check_is_file
from lt_cb.errors import InputError, enumerate_names

Columns = dict[str, list[Any]]
DELIMITERS = ",;\t"  # the first one wins a tie
BLOCK_ROWS = 4096
JSON_LINES = (".jsonl", ".ndjson")


def read_table(file: Path) -> Columns:
    """Return the columns of a table by their names; columns without a name, such as pandas' index, are left out."""
    check_is_file(file)
    ending = file.suffix.lower()
    if ending == ".json":
        raise InputError(
            f"'{file}' is no CSV, Parquet or JSON lines (.jsonl). If it has annotations in COCO's format: "
            "--data.source COCO."
        )
    if ending == ".parquet":
        return _read_parquet(file)
    return _read_json_lines(file) if ending in JSON_LINES else read_csv(file, "set --data.root to one.")


def read_csv(file: Path, remedy: str) -> Columns:
    """Return the columns of a CSV file by their names in the header; ``remedy`` ends the message if that fails.

    The delimiter is a comma, semicolon or tab, whichever the header has most of. All cells are texts.
    """
    header: list[str] = []
    columns: list[list[str]] = []
    try:
        text = _decode(file.read_bytes())
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
        header = [name.strip() for name in next(filter(None, reader), [])]
        columns = [[] for _ in header]
        rows: list[list[str]] = []
        for row in filter(None, reader):
            if len(row) != len(header):
                line = f"line {reader.line_num} of '{file}'"
                raise InputError(f"{line} has {len(row)} fields, but the header has {len(header)}.")
            rows.append(row)
            if len(rows) == BLOCK_ROWS:
                _append(columns, rows)
        _append(columns, rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{file}' cannot be read as CSV with a header ({error}): {remedy}") from error
    _check_names(file, header)
    return {name: column for name, column in zip(header, columns, strict=True) if _is_name(name)}


def _append(columns: list[list[str]], rows: list[list[str]]) -> None:
    """Move rows to the columns. In blocks, because a million lists slow the garbage collector down."""
    for column, cells in zip(columns, zip(*rows, strict=True), strict=False):
        column.extend(cells)
    rows.clear()


def _decode(content: bytes) -> str:
    """Return a text in UTF-8 or UTF-16, with or without a byte order mark, or else in Windows-1252."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    beginning = content[:2]
    if len(beginning) == 2 and 0 in beginning:  # a letter of ASCII, in UTF-16
        return content.decode("utf-16-be" if beginning[0] == 0 else "utf-16-le")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")


def _delimiter(text: str) -> str:
    header = next((line for line in io.StringIO(text) if line.strip()), "")
    counts = Counter(re.sub('"[^"]*"', "", header))
    return max(DELIMITERS, key=lambda sign: counts[sign])


def _is_name(name: str) -> bool:
    return bool(name) and not re.fullmatch(r"Unnamed: \d+", name)  # pandas names columns so


def _check_names(file: Path, names: Sequence[str]) -> None:
    if repeated := [name for name, n in Counter(names).items() if n > 1 and name]:
        raise InputError(f"'{file}' has several columns {enumerate_names(repeated)}: rename or remove all but one.")


def _read_json_lines(file: Path) -> Columns:
    columns: Columns = {}
    size = 0
    try:
        for number, line in enumerate(_decode(file.read_bytes()).split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                for name, cell in row.items():
                    columns.setdefault(name.strip(), [None] * size).append(cell)
            except (*MALFORMED, AttributeError) as error:
                raise InputError(
                    f"line {number} of '{file}' is no JSON object ({error}): write one on each line, such as "
                    '{"path": "a.jpg", "label": "cat", "split": "train"}.'
                ) from error
            size += 1
            for cells in columns.values():
                if len(cells) < size:
                    cells.append(None)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{file}' cannot be read as JSON lines ({error}): set --data.root to one.") from error
    return columns


def _read_parquet(file: Path) -> Columns:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(f"'{file}' needs a reader of Parquet: uv pip install pyarrow, or make it CSV.") from error
    try:
        table = parquet.read_table(file)
        _check_names(file, table.column_names)
        columns: Columns = table.to_pydict()
    except (OSError, ArrowException) as error:
        raise InputError(f"'{file}' cannot be read as Parquet ({error}): set --data.root to one.") from error
    return columns
