"""Decide from all rows of a table whether images have one label or several, and find rows that contradict."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.columns import OPTION, TableOptions
from lt_cb.errors import DataError, InputError, enumerate_names
from lt_cb.longtail.subset import Labels
from lt_cb.text import printable

MAX_ROWS = 5  # that a message lists


def choose_task(file: Path, labels: Labels, names: Sequence[str], by_column: bool, options: TableOptions) -> Labels:
    """Return class indices if each image has one label, or the labels of shape (N, C) as they are."""
    if labels.ndim == 1 or options.task == "several":
        return labels
    numbers = (labels == 1).sum(1)
    if options.task == "one":
        if len(wrong := np.flatnonzero(numbers != 1)):
            rows = ", ".join(f"row {row + 1} has {numbers[row]}" for row in wrong[:MAX_ROWS])
            raise InputError(
                f"task is one, but {len(wrong)} of {len(labels)} rows of '{file}' have none or several labels: {rows}. "
                "Correct them, or set task to several."
            )
        return _classes(labels)
    if not by_column or len(names) == 1:
        return labels
    if (numbers == 1).all() and labels.min() == 0:
        rank_zero_info(
            f"one label an image: each of {len(labels)} rows of '{file}' has exactly one 1 in {len(names)} columns, "
            f"{enumerate_names(names)}. For several labels: {OPTION}task several."
        )
        return _classes(labels)
    if options.label_columns is None and (kept := _exclusive_columns(labels)):
        odd = [name for label, name in enumerate(names) if label not in kept]
        classes = [names[label] for label in kept]
        raise InputError(
            f"columns of '{file}' are not exclusive with the others: {enumerate_names(odd)}. Each row has exactly one "
            f"1 in the rest, {enumerate_names(classes)}. Name the label columns: {OPTION}label_columns "
            f"'[{', '.join(classes)}]'. If all are labels: {OPTION}task several."
        )
    return labels


def _classes(labels: Labels) -> Labels:
    classes: Labels = (labels == 1).argmax(1)
    return classes


def _exclusive_columns(labels: Labels) -> list[int]:
    """Return the columns in which each row has exactly one 1, if more than half of all columns are such, or none."""
    positive = labels == 1
    shared = positive.astype(np.float32).T @ positive.astype(np.float32) > 0
    np.fill_diagonal(shared, False)
    for order in (1, -1):  # of columns that share rows with as many others
        kept = list(range(labels.shape[1]))[::order]
        while len(kept) > 1 and (conflicts := shared[np.ix_(kept, kept)].sum(1)).any():
            del kept[int(conflicts.argmax())]
        complete = labels[:, kept].min() == 0 and (positive[:, kept].sum(1) == 1).all()
        if complete and max(1, labels.shape[1] / 2) < len(kept):
            return sorted(kept)
    return []


def find_repeats(
    file: Path, folder: Path, paths: Sequence[str], labels: Labels, names: Sequence[str], splits: Sequence[str] | None
) -> bool:
    """Return whether any image has several rows; raise if they differ in split, or in a single label."""
    base = os.path.join(os.path.abspath(folder), "")
    first: dict[str, int] = {}
    pairs = []
    for row, path in enumerate(paths):
        plain = not path.startswith(("/", "./", "../")) and "/." not in path and "//" not in path
        before = first.setdefault(base + path if plain else os.path.normpath(os.path.join(base, path)), row)
        if before != row:
            pairs.append((before, row))
    if splits is not None:
        remedy = "keep each image in one split, so that none is both trained and tested on."
        _check_equal(file, paths, pairs, splits, "split", remedy)
    if labels.ndim == 1:
        remedy = "correct them. For several labels an image, put all names in one row, in a column labels."
        _check_equal(file, paths, pairs, [names[label] for label in labels] if pairs else [], "label", remedy)
    return bool(pairs)


def _check_equal(
    file: Path, paths: Sequence[str], pairs: Sequence[tuple[int, int]], values: Sequence[str], kind: str, remedy: str
) -> None:
    differing = [(a, b) for a, b in pairs if values[a] != values[b]]
    if differing:
        rows = "; ".join(
            f"'{printable(paths[a])}' in rows {a + 1} ({printable(values[a])}) and {b + 1} ({printable(values[b])})"
            for a, b in differing[:MAX_ROWS]
        )
        more = f" and {len(differing) - MAX_ROWS} more" if len(differing) > MAX_ROWS else ""
        raise DataError(f"'{file}' has images with more than one {kind}: {rows}{more}: {remedy}")
