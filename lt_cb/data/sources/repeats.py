"""Rows of a table that name the same image: one row for each label, rows that repeat, and contradictions."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lt_cb.data.sources.columns import VERIFIED, TableOptions, first_column
from lt_cb.data.sources.label_cells import as_text
from lt_cb.data.sources.reading import Columns
from lt_cb.data.sources.table_files import TableFiles
from lt_cb.errors import DataError
from lt_cb.longtail.subset import Indices, Labels
from lt_cb.text import printable

MAX_ROWS = 5  # that a message lists
NOT_PLAIN = re.compile(r"^/|//|(^|/)\.")  # paths that another path may equal
MISTAKES = 0.2  # largest share of images whose rows with different labels are taken for mistakes
BOX = re.compile(r"(^|[\W_])(bbox|x_?min|x1)($|[\W_])", re.IGNORECASE)  # columns of tables with a row for each box


class Images(NamedTuple):
    """The images of a table, and the rows that name them."""

    ids: Indices  # image of each row, by the order of their first rows
    first: Indices  # first row of each image


def find_images(folder: Path, paths: Sequence[str]) -> Images:
    """Return the images that rows name; ``./a.png`` and ``a.png`` are the same."""
    base = os.path.join(os.path.abspath(folder), "")
    keys = [
        os.path.normpath(os.path.join(base, path)).removeprefix(base) if NOT_PLAIN.search(path) else path
        for path in paths
    ]
    index: dict[str, int] = {}
    ids = np.array([index.setdefault(key, len(index)) for key in keys], np.int64)
    return Images(ids, np.unique(ids, return_index=True)[1] if len(index) < len(paths) else np.arange(len(paths)))


def check_splits(tables: TableFiles, paths: Sequence[str], images: Images, splits: npt.NDArray[np.str_]) -> None:
    """Raise if an image is in two splits."""
    differing = np.flatnonzero(splits != splits[images.first][images.ids])
    remedy = "keep each image in one split, so that none is both trained and tested on."
    _refuse(tables, paths, images, differing, "split", lambda row: str(splits[row]), remedy)


def texts_of_images(
    tables: TableFiles, column: str, paths: Sequence[str], images: Images, texts: Sequence[str]
) -> list[str]:
    """Return the text of each row's image in a column, of the rows where it is not empty; raise if they differ."""
    ids = images.ids.tolist()
    text_of = {image: text for image, text in zip(reversed(ids), reversed(texts), strict=True) if text}
    whole = [text_of.get(image, "") for image in ids]
    differing = [row for row, (text, given) in enumerate(zip(texts, whole, strict=True)) if text and text != given]
    remedy = "correct them, or leave out --data.source.group_column."
    _refuse(tables, paths, images, np.array(differing, np.int64), column, texts.__getitem__, remedy)
    return whole


def join_rows(
    tables: TableFiles,
    columns: Columns,
    paths: Sequence[str],
    images: Images,
    labels: Labels,
    names: Sequence[str],
    by_name: bool,
    options: TableOptions,
) -> tuple[Labels, bool]:
    """Return the labels of the images, and whether rows were joined, so that an image has several labels.

    Rows are joined if many images have rows with different labels, and few have equal rows, as two annotators give. So
    they are if the table has boxes, or verified absent labels: then it has a row for each label. Otherwise, different
    labels of one image are a mistake.
    """
    ids, first = images
    absent = _absent(tables, columns, options) if by_name and labels.ndim == 1 else None
    differ = labels != labels[first][ids]
    rows = np.flatnonzero(differ if labels.ndim == 1 else differ.any(1))
    if absent is None and not len(rows):
        if len(first) < len(ids):
            _warn_of_copies(tables, paths, images)
        return labels[first], False
    num_images, num_copies = len(np.unique(ids[rows])), len(ids) - len(first) - len(rows)
    for_each_label = num_images > max(1, len(first) * MISTAKES) and num_copies < len(rows)
    for_each_label = for_each_label or any(map(BOX.search, columns))
    if options.task != "several" and absent is None and not (by_name and options.task is None and for_each_label):
        remedy = "correct them. If images have several labels, a row for each: --data.task several."
        _refuse(tables, paths, images, rows, "label", lambda row: _label_text(labels[row], names), remedy)
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
    most, how = (joined == 1).sum(1).max(), ""
    if absent is not None:
        how = f" {absent.sum()} rows with {VERIFIED} 0 say that a label is absent; labels without a row are " + (
            "unknown (absent: --data.source.blank no)." if unlisted else "absent."
        )
    rank_zero_info(
        f"several labels an image: {len(ids)} rows of '{tables}' name {len(first)} images, with at most {most} labels "
        f"an image.{how} For one label an image: --data.task one."
    )
    return joined, True


def _absent(tables: TableFiles, columns: Columns, options: TableOptions) -> npt.NDArray[np.bool_] | None:
    """Return which rows say that a label is verified to be absent, or None if no row does."""
    column = first_column(columns, [VERIFIED]) if options.task != "one" else None
    values = {cell: as_text(cell) for cell in set(columns[column])} if column else {}
    if not {*values.values()} & {"0", "0.0"}:
        return None
    if others := {*values.values()} - {"0", "0.0", "1", "1.0"}:
        rank_zero_info(f"column '{column}' of '{tables}' is not read, because it has '{min(others)}' beside 0 and 1.")
        return None
    return np.array([values[cell] in ("0", "0.0") for cell in columns[str(column)]])


def _label_text(label: Labels, names: Sequence[str]) -> str:
    if label.ndim == 0:
        return names[int(label)] if label >= 0 else "none"
    return ";".join(name for name, value in zip(names, label, strict=True) if value == 1) or "none"


def _warn_of_copies(tables: TableFiles, paths: Sequence[str], images: Images) -> None:
    copies = np.setdiff1d(np.arange(len(images.ids)), images.first)
    row = int(copies[0])
    before = tables.row(int(images.first[images.ids[row]]))
    rank_zero_warn(
        f"{len(copies)} of {len(images.ids)} rows of '{tables}' repeat an image with the same label, such as "
        f"'{printable(paths[row])}' in {before} and {tables.row(row)}: each image is used once.",
        stacklevel=1,
    )


def _refuse(
    tables: TableFiles,
    paths: Sequence[str],
    images: Images,
    differing: Indices,
    kind: str,
    value: Callable[[int], str],
    remedy: str,
) -> None:
    """Raise for rows that differ from the first row of their image, if there are any."""
    if not len(differing):
        return
    pairs = [(int(images.first[images.ids[row]]), int(row)) for row in differing[:MAX_ROWS]]
    given = [[f"{tables.row(row)} ({printable(value(row))})".removeprefix("row ") for row in pair] for pair in pairs]
    found = "; ".join(
        f"'{printable(paths[row])}' in rows {a} and {b}" for (row, _), (a, b) in zip(pairs, given, strict=True)
    )
    more = f" and {len(differing) - MAX_ROWS} more" if len(differing) > MAX_ROWS else ""
    raise DataError(f"'{tables}' has images with more than one {kind}: {found}{more}: {remedy}")
