"""The images that the rows of a table name, and their labels: a row an image, a row for each label, or mistakes."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.columns import FACTS, OPTION, VERIFIED, as_option, first_column, has_many
from lt_cb.data.sources.label_cells import as_text
from lt_cb.data.sources.table_files import Table
from lt_cb.errors import DataError, InputError, enumerate_names
from lt_cb.longtail.subset import Indices, Labels
from lt_cb.say import warn
from lt_cb.text import printable

MAX_ROWS = 5  # that a message lists
NOT_PLAIN = re.compile(r"^/|//|(^|/)\.")  # paths that another path may equal
MISTAKES = 0.2  # largest share of images whose rows with different labels are taken for mistakes
BOX = re.compile(r"(^|[\W_])(bbox|x_?min|x1)($|[\W_])", re.IGNORECASE)  # columns of tables with a row for each box


class Rows(NamedTuple):
    """Things that the rows of a table name, such as images or groups of images."""

    names: Sequence[str]  # one for each row
    ids: Indices  # one for each row, numbered by first appearance
    first: Indices  # first row of each id


def find_images(folder: Path, paths: Sequence[str]) -> Rows:
    """Return the images that rows name; ``./a.png`` and ``a.png`` are the same."""
    base = os.path.join(os.path.abspath(folder), "")
    keys = [
        os.path.normpath(os.path.join(base, path)).removeprefix(base) if NOT_PLAIN.search(path) else path
        for path in paths
    ]
    index: dict[str, int] = {}
    ids = np.array([index.setdefault(key, len(index)) for key in keys], np.int64)
    return Rows(paths, ids, np.unique(ids, return_index=True)[1] if len(index) < len(paths) else np.arange(len(paths)))


def refuse(
    table: Table, rows: Rows, wrong: Indices, kind: str, value: Callable[[int], str], remedy: str, what: str = "images"
) -> None:
    """Raise for rows that have another value than the first row of their image, if there are any."""
    if not len(wrong):
        return
    found = []
    for row in wrong[:MAX_ROWS].tolist():
        both = int(rows.first[rows.ids[row]]), row
        pair = [f"{table.row(i)} ({printable(value(i))})".removeprefix("row ") for i in both]
        found.append(f"'{printable(rows.names[both[0]])}' in rows {' and '.join(pair)}")
    more = f" and {len(wrong) - MAX_ROWS} more" if len(wrong) > MAX_ROWS else ""
    raise DataError(f"'{table}' has {what} with more than one {kind}: {'; '.join(found)}{more}: {remedy}")


def image_labels(table: Table, images: Rows, labels: Labels, names: Sequence[str]) -> Labels:
    """Return the labels of images, given the labels of rows: class indices (N,), or 1, 0 and -1 for unknown, (N, C).

    Rows are joined if many images have rows with different labels, and few have equal rows, as two annotators give. So
    they are if the table has boxes, or verified absent labels: then it has a row for each label. Otherwise, different
    labels of one image are a mistake.
    """
    _, ids, first = images
    options, by_name = table.options, table.layout.label is not None
    absent = _absent(table) if by_name and labels.ndim == 1 else None
    differ = labels != labels[first][ids]
    rows = np.flatnonzero(differ if labels.ndim == 1 else differ.any(1))
    if absent is None and not len(rows):
        if len(copies := np.delete(np.arange(len(ids)), first)):
            copy, before = int(copies[0]), int(first[ids[copies[0]]])
            warn(
                f"{len(copies)} of {len(ids)} rows of '{table}' repeat an image with the same label, such as "
                f"'{printable(images.names[copy])}' in {table.row(before)} and {table.row(copy)}: each image is used "
                "once."
            )
        return _choose_task(table, labels[first], first, names)
    num_images, num_copies = len(np.unique(ids[rows])), len(ids) - len(first) - len(rows)
    for_each_label = num_images > max(1, len(first) * MISTAKES) and num_copies < len(rows)
    for_each_label = for_each_label or any(map(BOX.search, table.columns))
    if options.task != "several" and absent is None and not (by_name and options.task is None and for_each_label):

        def text(row: int) -> str:
            given = labels[[row]] if labels.ndim == 1 else np.flatnonzero(labels[row] == 1)
            return ";".join(names[label] for label in given.tolist() if label >= 0) or "none"

        remedy = "correct them. If images have several labels, a row for each: --data.task several."
        refuse(table, images, rows, "label", text, remedy)
    unlisted = -1 if absent is not None and options.blank != "no" else 0
    if labels.ndim == 1:
        joined = np.full((len(first), len(names)), unlisted, np.int8)
        present = labels >= 0 if absent is None else (labels >= 0) & ~absent
        if absent is not None:
            joined[ids[absent], labels[absent]] = 0
        joined[ids[present], labels[present]] = 1
    else:
        joined = labels[first].astype(np.int8)
        np.maximum.at(joined, ids, labels)  # 1 for yes, over 0 for no, over -1 for unknown
    how = ""
    if absent is not None:
        how = f" {absent.sum()} rows with {VERIFIED} 0 say that a label is absent; labels without a row are " + (
            "unknown (absent: --data.source.blank no)." if unlisted else "absent."
        )
    rank_zero_info(
        f"several labels an image: {len(ids)} rows of '{table}' name {len(first)} images, with at most "
        f"{(joined == 1).sum(1).max()} labels an image.{how} For one label an image: --data.task one."
    )
    return joined


def _absent(table: Table) -> npt.NDArray[np.bool_] | None:
    """Return which rows say that a label is verified to be absent, or None if no row does."""
    column = first_column(table.columns, [VERIFIED]) if table.options.task != "one" else None
    values = {cell: as_text(cell) for cell in set(table.columns[column])} if column else {}
    if not {*values.values()} & {"0", "0.0"}:
        return None
    if others := {*values.values()} - {"0", "0.0", "1", "1.0"}:
        rank_zero_info(f"column '{column}' of '{table}' is not read, because it has '{min(others)}' beside 0 and 1.")
        return None
    return np.array([values[cell] in ("0", "0.0") for cell in table.columns[str(column)]])


def _choose_task(table: Table, labels: Labels, rows: Indices, names: Sequence[str]) -> Labels:
    """Return class indices if each image has one label, or the labels of shape (N, C) as they are."""
    column, options = table.layout.label, table.options
    if labels.ndim == 1:
        if len(none := np.flatnonzero(labels < 0)):
            raise InputError(
                f"{table.row(rows[none[0]])} of '{table}' has no label: give it one, or leave the row out. If images "
                "have several labels, or none: --data.task several."
            )
        if column and has_many(column) and options.task is None:
            _say_one_label(table, len(labels), f"name in '{column}'")
        return labels
    if options.task == "several":
        return labels
    numbers = (labels == 1).sum(1)
    classes: Labels = (labels == 1).argmax(1)
    if options.task == "one":
        if len(wrong := np.flatnonzero(numbers != 1)):
            given = ", ".join(f"{table.row(rows[image])} has {numbers[image]}" for image in wrong[:MAX_ROWS])
            raise InputError(
                f"task is one, but {len(wrong)} of {len(labels)} images of '{table}' have none or several labels: "
                f"{given}. Correct them, or set task to several."
            )
        return classes
    exclusive = bool((numbers == 1).all() and labels.min() == 0)
    if not column and options.label_columns is None:
        _check_facts(table, labels, names, exclusive)
    if exclusive and len(names) > 1 and options.separator is None:
        _say_one_label(table, len(labels), "name" if column else f"1 in {len(names)} columns, {enumerate_names(names)}")
        return classes
    where = "names" if column else f"{len(names)} label column{'s' * (len(names) > 1)}"
    unknown = f" {(labels < 0).sum()} cells are unknown (-1, or empty: {OPTION}blank no)." if labels.min() < 0 else ""
    change = "" if column or options.label_columns else f" For other label columns: {OPTION}label_columns."
    change = f" For classes 0 and 1: {OPTION}label_column {names[0]}." if not column and len(names) == 1 else change
    rank_zero_info(
        f"several labels an image: {where} {enumerate_names(names)}; of {len(labels)} images of '{table}', "
        f"{(numbers == 0).sum()} have none and {(numbers > 1).sum()} several, at most {numbers.max()}.{unknown}{change}"
    )
    return labels


def _say_one_label(table: Table, count: int, where: str) -> None:
    given = f"each of {count} rows of '{table}' has exactly one {where}"
    rank_zero_info(f"one label an image: {given}. For several labels: --data.task several.")


def _check_facts(table: Table, labels: Labels, names: Sequence[str], exclusive: bool) -> None:
    """Raise if some columns are no classes, going by their names, or because the others are exclusive."""
    odd, why = [name for name in names if FACTS.fullmatch(name)], "may be no labels"
    if not exclusive and (kept := _exclusive_columns(labels)):
        odd = [name for label, name in enumerate(names) if label not in kept]
        why = "are not exclusive with the others, which have exactly one 1 in each row"
    if odd and (len(odd) < len(names) or not exclusive):
        classes = [name for name in names if name not in odd]
        raise InputError(
            f"columns of '{table}' {why}: {enumerate_names(odd)}. Name the label columns: {OPTION}label_columns "
            f"'{as_option(classes)}'. If all are labels: --data.task several."
        )


def _exclusive_columns(labels: Labels) -> list[int]:
    """Return the columns in which each row has exactly one 1, if more than half of all columns are such, or none."""
    positive = labels == 1
    shared = positive.astype(np.float32).T @ positive.astype(np.float32) > 0
    np.fill_diagonal(shared, False)
    for order in (1, -1):  # decides between columns that share rows with equally many others
        kept = list(range(labels.shape[1]))[::order]
        while len(kept) > 1 and (conflicts := shared[np.ix_(kept, kept)].sum(1)).any():
            del kept[int(conflicts.argmax())]
        complete = labels[:, kept].min() == 0 and (positive[:, kept].sum(1) == 1).all()
        if complete and max(1, labels.shape[1] / 2) < len(kept):
            return sorted(kept)
    return []
