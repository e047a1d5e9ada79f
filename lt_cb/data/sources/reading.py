"""Read the columns of a table: CSV, Parquet and JSON lines."""

import codecs
import csv
import gc
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.listing import MALFORMED, check_is_file
from lt_cb.errors import InputError, enumerate_names

Columns = dict[str, list[Any]]
DELIMITERS = ",;\t"  # the first one wins a tie
BLOCK_ROWS = 4096
PACKED = (b"PK\x03\x04", b"\x1f\x8b", b"\xd0\xcf\x11\xe0")  # xlsx or zip, gzip, xls
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
    collects = gc.isenabled()
    gc.disable()  # it would look at a million rows again and again, in three quarters of the time
    try:
        if ending == ".parquet":
            return _read_parquet(file)
        return _read_json_lines(file) if ending in JSON_LINES else read_csv(file, "set --data.root to one.")
    finally:
        if collects:
            gc.enable()


def read_csv(file: Path, remedy: str) -> Columns:
    """Return the columns of a CSV file by their names in the header; ``remedy`` ends the message if that fails.

    The delimiter is a comma, semicolon or tab, whichever the header has most of. All cells are texts.
    """
    header: list[str] = []
    columns: list[list[str]] = []
    try:
        text = _decode(file)
        given = re.match(r'"?sep=([,;\t])"?\r?\n', text)  # a line of Excel
        text = text[given.end() :] if given else text
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=given[1] if given else _delimiter(text))
        header = [name.strip() for name in next(filter(None, reader), [])]
        columns = [[] for _ in header]
        rows: list[list[str]] = []
        for row in filter(any, reader):
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
    """Move rows to the columns, in blocks, so that few lists are kept."""
    for column, cells in zip(columns, zip(*rows, strict=True), strict=False):
        column.extend(cells)
    rows.clear()


def _decode(file: Path) -> str:
    """Return a text in UTF-8 or UTF-16, with or without a byte order mark, or else in Windows-1252."""
    content = file.read_bytes()
    if content.startswith(PACKED):
        raise InputError(f"'{file}' is a spreadsheet or packed, not text: save it as CSV, or unpack it.")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    beginning = content[:2]
    if len(beginning) == 2 and 0 in beginning:  # a letter of ASCII, in UTF-16
        return content.decode("utf-16-be" if beginning[0] == 0 else "utf-16-le")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252")
        rank_zero_info(f"'{file}' is not UTF-8: read as Windows-1252. Save it as UTF-8 if names look wrong.")
        return text


def _delimiter(text: str) -> str:
    header = next((line for line in io.StringIO(text) if line.strip()), "")
    counts = Counter(re.sub('"[^"]*"', "", header))
    return max(DELIMITERS, key=lambda sign: counts[sign])


def _is_name(name: str) -> bool:
    return bool(name) and not re.fullmatch(r"Unnamed: \d+|__index_level_\d+__", name)  # pandas names columns so


def _check_names(file: Path, names: Sequence[str]) -> None:
    if repeated := [name for name, n in Counter(names).items() if n > 1 and name]:
        raise InputError(f"'{file}' has several columns {enumerate_names(repeated)}: rename or remove all but one.")


def _read_json_lines(file: Path) -> Columns:
    columns: Columns = {}
    size = 0
    try:
        for number, line in enumerate(_decode(file).split("\n"), 1):
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
        columns: Columns = {name: cells for name, cells in table.to_pydict().items() if _is_name(name)}
    except (OSError, ArrowException) as error:
        raise InputError(f"'{file}' cannot be read as Parquet ({error}): set --data.root to one.") from error
    return columns
