"""Read the columns of a table: CSV, Parquet and JSON lines."""

import codecs
import csv
import gc
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.listing import MALFORMED, check_is_file
from lt_cb.errors import InputError, enumerate_names

Columns = dict[str, list[Any]]
DELIMITERS = ",;\t"  # the first one wins a tie
BLOCK_ROWS = 4096  # rows that are moved to the columns together, so that few lists are kept
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
    try:
        text = _decode(file)
        given = re.match(r'"?sep=([,;\t])"?\r?\n', text)  # a line of Excel
        text = text[given.end() :] if given else text
        first = next((line for line in io.StringIO(text) if line.strip()), "")
        delimiter = given[1] if given else max(DELIMITERS, key=re.sub('"[^"]*"', "", first).count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        header = [name.strip() for name in next(filter(None, reader), [])]
        columns: list[list[str]] = [[] for _ in header]
        while block := list(islice(filter(any, reader), BLOCK_ROWS)):
            if set(map(len, block)) != {len(header)}:
                again = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
                line, n = next((again.line_num, len(row)) for row in again if any(row) and len(row) != len(header))
                raise InputError(f"line {line} of '{file}' has {n} fields, but the header has {len(header)}.")
            for column, cells in zip(columns, zip(*block, strict=True), strict=True):
                column.extend(cells)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{file}' cannot be read as CSV with a header ({error}): {remedy}") from error
    return _named(file, header, columns)


def _decode(file: Path) -> str:
    """Return a text in UTF-8 or UTF-16, with or without a byte order mark, or else in Windows-1252."""
    content = file.read_bytes()
    if content.startswith(PACKED):
        raise InputError(f"'{file}' is a spreadsheet or packed, not text: save it as CSV, or unpack it.")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    if len(content) > 1 and 0 in content[:2]:  # a letter of ASCII, in UTF-16
        return content.decode("utf-16-be" if content[0] == 0 else "utf-16-le")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252")
        rank_zero_info(f"'{file}' is not UTF-8: read as Windows-1252. Save it as UTF-8 if names look wrong.")
        return text


def _named(file: Path, names: Sequence[str], columns: Sequence[list[Any]]) -> Columns:
    if repeated := [name for name, n in Counter(names).items() if n > 1 and name]:
        raise InputError(f"'{file}' has several columns {enumerate_names(repeated)}: rename or remove all but one.")
    nameless = r"|Unnamed: \d+|__index_level_\d+__"  # pandas names columns so
    pairs = zip(names, columns, strict=True)
    return {name: column for name, column in pairs if not re.fullmatch(nameless, name)}


def _read_json_lines(file: Path) -> Columns:
    rows: list[dict[str, Any]] = []
    try:
        lines = _decode(file).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{file}' cannot be read as JSON lines ({error}): set --data.root to one.") from error
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                rows.append({name.strip(): cell for name, cell in json.loads(line).items()})
        except (*MALFORMED, AttributeError) as error:
            raise InputError(
                f"line {number} of '{file}' is no JSON object ({error}): write one on each line, such as "
                '{"path": "a.jpg", "label": "cat", "split": "train"}.'
            ) from error
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _read_parquet(file: Path) -> Columns:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(f"'{file}' needs a reader of Parquet: uv pip install pyarrow, or make it CSV.") from error
    try:
        table = parquet.read_table(file)
        return _named(file, table.column_names, [column.to_pylist() for column in table.columns])
    except (OSError, ArrowException) as error:
        raise InputError(f"'{file}' cannot be read as Parquet ({error}): set --data.root to one.") from error
