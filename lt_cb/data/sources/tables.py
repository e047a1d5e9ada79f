"""Tables of image files, CSV, Parquet or JSON lines, with a class, several labels, or a column for each label."""

import math
import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lt_cb.data.sources.listing import SPLITS, Listing, Split, encode
from lt_cb.data.sources.reading import Columns, read_table
from lt_cb.errors import InputError, enumerate_names
from lt_cb.longtail.subset import Labels

SEPARATOR = ";"  # between names in the column labels
CELLS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "": -1, "nan": -1, "none": -1, "-1": -1, "-1.0": -1}


def list_table(
    file: Path, separator: str | None = None, label_columns: Sequence[str] | None = None
) -> dict[Split, Listing]:
    """Return the images of each split of a table, in its order. See `Manifest` for the arguments."""
    columns = read_table(file)
    named = "label" if "label" in columns else "labels"
    by_name = named in columns and not label_columns
    others = [name for name in columns if name not in ("path", "split")]
    if not {"path", "split"} <= columns.keys() or not (by_name or others):
        given = enumerate_names(list(columns)) or "none"
        raise InputError(
            f"'{file}' has columns {given}, but must have path, split, and label, or for several an image labels or a "
            "column for each label."
        )
    if by_name and named == "labels":
        separator = separator or SEPARATOR
    for name in ("path", "split", "label") if by_name and not separator else ("path", "split"):
        for number, value in enumerate(columns[name], 1):
            if not _text(value):
                several = "; for several labels an image, or none, call the column labels" if name == "label" else ""
                raise InputError(f"row {number} of '{file}' has no {name}: give it one, or leave the row out{several}.")
    if by_name:
        labels, names = _by_name(columns[named], separator)
    else:
        labels, names = _by_column(file, columns, label_columns or others)
    paths = encode(path if isinstance(path, bytes) else str(path) for path in columns["path"])
    splits = np.array([_text(split).lower() for split in columns["split"]], str)
    if unknown := set(splits.tolist()) - set(SPLITS):
        raise InputError(f"'{file}' has split '{min(unknown)}', but allowed are train, val and test.")
    return {split: Listing(paths[rows], labels[rows], names) for split in SPLITS if (rows := splits == split).any()}


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return (os.fsdecode(value) if isinstance(value, bytes) else str(value)).strip()  # Parquet has bytes


def _names_in(cell: object, separator: str | None) -> list[str]:
    if not separator:
        return [_text(cell)]
    parts = cell if isinstance(cell, list) else _text(cell).split(separator)  # Parquet has lists
    return [name for name in map(_text, parts) if name]


def _by_name(cells: list[Any], separator: str | None) -> tuple[Labels, list[str]]:
    """Return labels and class names of a column of names."""
    given = [_names_in(cell, separator) for cell in cells]
    whole = all(name.isdecimal() for names in given for name in names)
    names = sorted({name for names in given for name in names}, key=(lambda name: int(name)) if whole else None)
    index = {name: label for label, name in enumerate(names)}
    if separator:
        several = np.zeros((len(cells), len(names)), np.int8)
        for row, part in zip(several, given, strict=True):
            row[[index[name] for name in part]] = 1
        return several, names
    return np.array([index[name] for (name,) in given], np.int64), names


def _by_column(file: Path, columns: Columns, names: Sequence[str]) -> tuple[Labels, list[str]]:
    """Return labels and class names of label columns."""
    if missing := [name for name in names if name not in columns]:
        existing = enumerate_names(list(columns))
        raise InputError(f"label_columns names {enumerate_names(missing)}, but '{file}' has columns {existing}.")
    labels = np.zeros((len(columns["path"]), len(names)), np.int8)
    for c, name in enumerate(names):
        for row, cell in enumerate(columns[name]):
            if (value := CELLS.get(_text(cell).lower())) is None:
                raise InputError(
                    f"column '{name}' of '{file}' has '{cell}' in row {row + 1}, but without a column label or labels, "
                    "every column is a label: 1, 0, or empty for unknown. Remove it, or name the label columns by "
                    "--data.source Manifest --data.source.label_columns."
                )
            labels[row, c] = value
    return labels, list(names)


def warn_of_several(file: Path, names: Sequence[str]) -> None:
    """Warn if a class name consists of other class names, so that it may be several labels."""
    known = set(names)
    remedies = {sign: f"set --data.source Manifest --data.source.separator '{sign}'" for sign in "|,"}
    remedies = {SEPARATOR: "call the column labels instead of label", **remedies}
    for name, (sign, remedy) in product(names, remedies.items()):
        if sign in name and {part.strip() for part in name.split(sign)} <= known:
            given = f"a label of '{file}' is '{name}', taken for one name"
            rank_zero_warn(f"{given}: if it is several labels, {remedy}.", stacklevel=1)
            return
