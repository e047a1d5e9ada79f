"""Tables of image files, CSV, Parquet or JSON lines, with a class, several labels, or a column for each label."""

import math
import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lt_cb.data.sources.columns import CELLS, OPTION, SEPARATORS, TableOptions, find_columns, say_guesses
from lt_cb.data.sources.grouping import read_groups, suggest_groups
from lt_cb.data.sources.image_files import find_files
from lt_cb.data.sources.kinds import choose_task, find_repeats
from lt_cb.data.sources.listing import SPLITS, Listing, Split, encode
from lt_cb.data.sources.reading import Columns, read_table
from lt_cb.data.sources.tested import is_test_only
from lt_cb.errors import DataError, InputError
from lt_cb.longtail.subset import Indices, Labels

SPLIT_NAMES: dict[str, Split] = {split: split for split in SPLITS}
SPLIT_NAMES |= {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


class Table(NamedTuple):
    """Image files of a table."""

    listings: dict[Split, Listing]  # of each split, in the order of the table
    folder: Path  # of the images
    divided: bool  # whether there is a column of splits; otherwise all images are in train
    by_column: bool  # whether there is a column for each label
    repeats: bool  # whether an image has several rows
    group_hint: str  # the option that keeps images of a column such as patient_id together, if it is not given


def list_table(file: Path, options: TableOptions = TableOptions()) -> Table:  # noqa: B008 (immutable)
    """Return the images of each split of a table. See `Manifest` for the options."""
    columns = read_table(file)
    layout = find_columns(file, columns, options)
    required = {"path": layout.path, "split": layout.split, "label": None if layout.separator else layout.label}
    texts = {kind: _texts(columns[name]) for kind, name in required.items() if name is not None}
    for kind, cells in texts.items():
        if not all(cells):
            several = "; for several labels an image, or none, call the column labels" if kind == "label" else ""
            raise InputError(
                f"row {cells.index('') + 1} of '{file}' has no {required[kind]}: give it one, or leave the row out"
                f"{several}."
            )
    if not texts["path"]:
        raise DataError(f"'{file}' has a header, but no row: set --data.root to another file.")
    if layout.label:
        labels, names = _by_name(columns[layout.label], layout.separator)
    else:
        labels, names = _by_column(file, columns, layout.labels, options)
    labels = choose_task(file, labels, names, not layout.label, options)
    folder, given = find_files(file, texts["path"], options.image_folder, options.extension)
    if folder != file.parent and options.image_folder is None:
        layout.guesses["image_folder"] = folder.name
    say_guesses(file, layout.guesses)
    paths = encode(given)
    hint = "" if layout.group else suggest_groups(columns, [layout.path, layout.split, layout.label, *layout.labels])
    if "split" not in texts:
        repeats = find_repeats(file, folder, given, labels, names, None)
        groups = _groups(file, columns, layout.group, None)
        listing = Listing(paths, labels, names, groups)
        return Table({"train": listing}, folder, False, not layout.label, repeats, hint)
    split_of = {name: SPLIT_NAMES.get(name.lower()) for name in set(texts["split"])}
    if unknown := [name.lower() for name, split in split_of.items() if split is None]:
        raise DataError(f"'{file}' has split '{min(unknown)}', but allowed are train, val and test.")
    given_splits = [str(split_of[name]) for name in texts["split"]]
    repeats = find_repeats(file, folder, given, labels, names, given_splits)
    splits = np.array(given_splits, str)
    groups = _groups(file, columns, layout.group, given_splits)
    listing = Listing(paths, labels, names, groups)
    listings: dict[Split, Listing] = {
        split: listing.select(rows) for split in SPLITS if (rows := splits == split).any()
    }
    return Table(listings, folder, True, not layout.label, repeats, hint)


def _groups(file: Path, columns: Columns, name: str | None, splits: Sequence[str] | None) -> Indices | None:
    return None if name is None or is_test_only() else read_groups(file, name, _texts(columns[name]), splits)


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return (os.fsdecode(value) if isinstance(value, bytes) else str(value)).strip()  # Parquet has bytes


def _texts(cells: Sequence[Any]) -> list[str]:
    return [cell.strip() if type(cell) is str else _text(cell) for cell in cells]


def _names_in(cell: object, separator: str | None) -> list[str]:
    if not separator:
        return [_text(cell)]
    parts = cell if isinstance(cell, list) else _text(cell).split(separator)  # Parquet and JSON have lists
    return [name for name in map(_text, parts) if name]


def _by_name(cells: list[Any], separator: str | None) -> tuple[Labels, list[str]]:
    """Return labels and class names of a column of names."""
    texts = [] if separator else _texts(cells)
    given = [_names_in(cell, separator) for cell in cells] if separator else []
    distinct = {name for names in given for name in names} | set(texts)
    names = sorted(distinct, key=(lambda name: (int(name), name)) if all(map(str.isdecimal, distinct)) else None)
    index = {name: label for label, name in enumerate(names)}
    if separator:
        several = np.zeros((len(cells), len(names)), np.int8)
        for row, part in zip(several, given, strict=True):
            row[[index[name] for name in part]] = 1
        return several, names
    return np.array([index[name] for name in texts], np.int64), names


def _by_column(file: Path, columns: Columns, names: Sequence[str], options: TableOptions) -> tuple[Labels, list[str]]:
    """Return labels and class names of label columns."""
    labels = np.zeros((len(columns[names[0]]), len(names)), np.int8)
    values = CELLS | (dict.fromkeys(("", "nan", "none"), 0) if options.blank == "no" else {})
    for c, name in enumerate(names):
        cells = columns[name] if not any(isinstance(cell, list) for cell in columns[name]) else _texts(columns[name])
        value_of = {cell: values.get(_text(cell).lower()) for cell in set(cells)}
        if None in value_of.values():
            row = next(row for row, cell in enumerate(cells) if value_of[cell] is None)
            raise InputError(
                f"column '{name}' of '{file}' has '{cells[row]}' in row {row + 1}, but without a column label or "
                "labels, every column is a label: 1, 0, or empty for unknown. Remove it, or name the label columns by "
                f"{OPTION}label_columns, or the column of names by {OPTION}label_column."
            )
        labels[:, c] = np.fromiter(map(value_of.__getitem__, cells), np.int8, len(cells))
    return labels, list(names)


def warn_of_several(file: Path, names: Sequence[str]) -> None:
    """Warn if a class name consists of other class names, so that it may be several labels."""
    known = set(names)
    remedies = {sign: f"set {OPTION}separator '{sign}'" for sign in "|, "}
    remedies = {SEPARATORS["labels"]: "call the column labels instead of label", **remedies}
    for name, (sign, remedy) in product(names, remedies.items()):
        if sign in name and {part.strip() for part in name.split(sign)} <= known:
            given = f"a label of '{file}' is '{name}', taken for one name"
            rank_zero_warn(f"{given}: if it is several labels, {remedy}.", stacklevel=1)
            return
