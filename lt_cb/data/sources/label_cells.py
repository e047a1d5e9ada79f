"""Read the labels of a table from its cells: names in one column, or columns of 1 and 0."""

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any
from unicodedata import normalize

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.columns import CELLS, FACTS, OPTION, TableOptions, as_option, has_many
from lt_cb.data.sources.table_files import Table
from lt_cb.errors import InputError, enumerate_names
from lt_cb.longtail.subset import Labels
from lt_cb.say import warn

SIGNS = ";|, "  # between names
LIST = re.compile(r"\[.*\]", re.DOTALL)
BLANKS = {"", "nan", "none"}
NANS = ("nan", "NaN")  # an empty cell that was written as text
NEGATIVES = {"-1", "-1.0"}
WHOLE = re.compile(r"-?\d+(\.0*)?")  # 1.0 is how pandas writes 1 if a cell is empty


def as_text(value: object) -> str:
    """Return a cell as text without blanks around it; empty for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = (os.fsdecode(value) if isinstance(value, bytes) else str(value)).strip()  # Parquet has bytes
    return "" if text in NANS else text


def as_texts(cells: Sequence[Any]) -> list[str]:
    """Return cells as texts."""
    return ["" if cell in NANS else cell.strip() if type(cell) is str else as_text(cell) for cell in cells]


def by_name(
    column: str, cells: Sequence[Any], options: TableOptions, guesses: dict[str, str]
) -> tuple[Labels, list[str]]:
    """Return labels and class names of a column of names: class indices (N,), or 1 and 0 (N, C) if a cell has several.

    An empty name has index -1 among class indices.
    """
    kinds = set(map(type, cells))
    if dict in kinds:
        raise InputError(
            f"column '{column}' holds objects, not names: name a column of names by {OPTION}label_column, or write "
            "boxes in COCO's format, for --data.source COCO."
        )
    has_lists = list in kinds
    keys: list[Any] = [] if has_lists else as_texts(cells)
    if has_lists:
        keys = [tuple(map(as_text, cell)) if isinstance(cell, list) else as_text(cell) for cell in cells]
    index: dict[Any, int] = {}
    codes = np.array([index.setdefault(key, len(index)) for key in keys], np.int64)
    texts = [key for key in index if isinstance(key, str)]
    separator = options.separator
    if separator is None and options.task != "one":
        separator = _guess_separator(column, texts, options)
        if separator and (column.lower(), separator) != ("labels", ";") and any(separator in text for text in texts):
            guesses["separator"] = separator
    parts = [_parts(key, separator) for key in index]
    if all(WHOLE.fullmatch(name) for names in parts for name in names):
        parts = [[name.partition(".")[0] for name in names] for names in parts]
    distinct = {name for names in parts for name in names}
    names = sorted(distinct, key=(lambda name: (int(name), name)) if all(map(str.isdecimal, distinct)) else None)
    number = {name: label for label, name in enumerate(names)}
    if separator or has_lists:
        several = np.zeros((len(parts), len(names)), np.int8)
        for row, part in zip(several, parts, strict=True):
            row[[number[name] for name in part]] = 1
        return several[codes], names
    one = np.array([number[part[0]] if part else -1 for part in parts], np.int64)
    return one[codes], names


def _guess_separator(column: str, texts: Sequence[str], options: TableOptions) -> str | None:
    """Return the character between names, judging by the cells, or None if each has one name."""
    filled, many = [text for text in texts if text], has_many(column)
    if filled and all(map(LIST.fullmatch, filled)):
        return ","
    for sign in SIGNS:
        parts = {text: names for text in filled if len(names := _parts(text, sign)) > 1}
        alone = {*filled} - parts.keys()
        uses = Counter(name for names in parts.values() for name in set(names))
        known = [any(name in alone or uses[name] > 1 for name in names) for names in parts.values()]
        if sign in ";|":  # always between names in a column of several; otherwise they are known from other cells
            are_names = many or 2 * sum(known) > len(known)
        else:  # all numbers apart by spaces are names, too
            are_names = (many and uses.keys() <= alone) or (sign == " " and all(map(str.isdecimal, uses)))
        if parts and are_names:
            return sign
    return ";" if options.task == "several" or (column.lower() == "labels" and len(filled) < len(texts)) else None


def _parts(key: str | tuple[str, ...], separator: str | None) -> list[str]:
    names = [key] if isinstance(key, str) else list(key)
    if isinstance(key, str) and separator:
        is_list = separator == "," and LIST.fullmatch(key)  # a list in the form of Python or JSON
        names = [part.strip().strip("'\"") for part in key[1:-1].split(",")] if is_list else key.split(separator)
    return [name.strip() for name in names if name.strip()]


def by_column(table: Table, names: Sequence[str]) -> Labels:
    """Return the labels of columns of 1 and 0, int8 of shape (N, C), -1 for unknown."""
    values = CELLS | (dict.fromkeys(BLANKS, 0) if table.options.blank == "no" else {})
    labels = np.zeros((len(table.columns[names[0]]), len(names)), np.int8)
    found: set[str] = set()
    wrong: dict[str, tuple[str, int]] = {}  # by column with other values: an example, and the number of such cells
    empty: set[str] = set()
    for c, name in enumerate(names):
        cells = table.columns[name]
        cells = as_texts(cells) if list in set(map(type, cells)) else cells
        text_of = {cell: as_text(cell).lower() for cell in set(cells)}
        texts = {*text_of.values()}
        found |= texts
        if texts <= BLANKS:
            empty.add(name)
        if texts <= CELLS.keys():
            value_of = {cell: values[text] for cell, text in text_of.items()}
            labels[:, c] = np.fromiter(map(value_of.__getitem__, cells), np.int8, len(cells))
        else:
            row = next(row for row, cell in enumerate(cells) if text_of[cell] not in CELLS)
            wrong[name] = f"'{cells[row]}' in {table.row(row)}", len(text_of)
    if wrong:
        right = [name for name in names if name not in {*wrong, *empty} and not FACTS.fullmatch(name)]
        raise InputError(_no_labels(table, wrong, right, max(2, len(labels) // 4)))
    if table.options.blank is None and not any(CELLS[text] == 0 for text in found):
        _read_as_no(table, labels, found)
    return labels


def _no_labels(table: Table, wrong: dict[str, tuple[str, int]], right: Sequence[str], most: int) -> str:
    """Return the message on columns that have other values than 1 and 0; ``most`` values may be class names."""
    name, (cell, _) = next(iter(wrong.items()))
    some = f"column '{name}' of '{table}' has {cell}, but a label column has 1, 0, or empty for unknown."
    if table.options.label_columns is not None:
        return f"{some} Leave it out of label_columns."
    others = f" Nor are {enumerate_names(list(wrong)[1:])} labels." if len(wrong) > 1 else ""
    classes = [f"'{name}' ({n} values)" for name, (_, n) in wrong.items() if 1 < n <= most]
    such = f", such as {' or '.join(classes[:3])}" if classes else ""
    columns = f"the label columns by {OPTION}label_columns '{as_option(right)}', or " if right else ""
    return f"{some}{others} Name {columns}the column of class names by {OPTION}label_column NAME{such}."


def _read_as_no(table: Table, labels: Labels, found: set[str]) -> None:
    """Read -1, or empty cells of exclusive columns, as 0 if no column has a 0, because all would be unknown."""
    blanks, exclusive = found & BLANKS, labels.shape[1] > 1 and ((labels == 1).sum(1) == 1).all()
    if found <= BLANKS or (blanks and (found & NEGATIVES or not exclusive)) or not found - {"1", "1.0", "true"}:
        return
    labels[labels == -1] = 0
    what = "empty cells are" if blanks else "-1 is"
    rank_zero_info(
        f"{what} read as no, because no label column of '{table}' has a 0. For unknown: {OPTION}blank unknown."
    )


def warn_of_names(table: Table, names: Sequence[str]) -> None:
    """Warn of a class name that consists of other class names, and of names that differ only in case."""
    known = set(names)
    for name, sign in product(names, SIGNS):
        if len(parts := set(_parts(name, sign))) > 1 and parts <= known:
            given = f"a label of '{table}' is '{name}', taken for one name"
            warn(f"{given}: if it is several labels, set {OPTION}separator '{sign}'.")
            break
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join(re.split(r"[\s_-]+", normalize("NFKC", name).casefold())), []).append(name)
    if groups := [enumerate_names(group) for group in alike.values() if len(group) > 1]:
        warn(
            f"classes of '{table}' that are written almost alike: {'; '.join(groups[:5])}. They are different "
            "classes: write them alike if they are the same."
        )
