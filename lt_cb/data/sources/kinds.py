"""Decide from all images of a table whether they have one label or several."""

from collections.abc import Sequence

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.columns import FACTS, OPTION, TableOptions, as_option, has_many
from lt_cb.data.sources.table_files import TableFiles
from lt_cb.errors import InputError, enumerate_names
from lt_cb.longtail.subset import Indices, Labels

MAX_ROWS = 5  # that a message lists


def choose_task(
    tables: TableFiles, labels: Labels, rows: Indices, names: Sequence[str], column: str | None, options: TableOptions
) -> Labels:
    """Return class indices if each image has one label, or the labels of shape (N, C) as they are.

    Args:
        tables: the tables, for messages.
        labels: class indices (N,), -1 for none, or 1, 0 and -1 for unknown, (N, C).
        rows: row of each image, for messages.
        names: C class names.
        column: the column of names, None for columns of 1 and 0.
        options: options of the table.
    """
    if labels.ndim == 1:
        if len(none := np.flatnonzero(labels < 0)):
            raise InputError(
                f"{tables.row(rows[none[0]])} of '{tables}' has no label: give it one, or leave the row out. If images "
                "have several labels, or none: --data.task several."
            )
        if column and has_many(column) and options.task is None:
            rank_zero_info(
                f"one label an image: each of {len(labels)} rows of '{tables}' has exactly one name in '{column}'. For "
                "several labels: --data.task several."
            )
        return labels
    if options.task == "several":
        return labels
    numbers = (labels == 1).sum(1)
    if options.task == "one":
        if len(wrong := np.flatnonzero(numbers != 1)):
            given = ", ".join(f"{tables.row(rows[image])} has {numbers[image]}" for image in wrong[:MAX_ROWS])
            raise InputError(
                f"task is one, but {len(wrong)} of {len(labels)} images of '{tables}' have none or several labels: "
                f"{given}. Correct them, or set task to several."
            )
        return _classes(labels)
    if not column and options.label_columns is None:
        _check_facts(tables, labels, names)
    if (numbers == 1).all() and len(names) > 1 and labels.min() == 0 and options.separator is None:
        where = "name" if column else f"1 in {len(names)} columns, {enumerate_names(names)}"
        rank_zero_info(
            f"one label an image: each of {len(labels)} rows of '{tables}' has exactly one {where}. For several "
            "labels: --data.task several."
        )
        return _classes(labels)
    where = "names" if column else f"{len(names)} label column{'s' * (len(names) > 1)}"
    unknown = f" {(labels < 0).sum()} cells are unknown (-1, or empty: {OPTION}blank no)." if labels.min() < 0 else ""
    change = "" if column or options.label_columns else f" For other label columns: {OPTION}label_columns."
    change = f" For classes 0 and 1: {OPTION}label_column {names[0]}." if not column and len(names) == 1 else change
    rank_zero_info(
        f"several labels an image: {where} {enumerate_names(names)}; of {len(labels)} images of '{tables}', "
        f"{(numbers == 0).sum()} have none and {(numbers > 1).sum()} several, at most {numbers.max()}.{unknown}{change}"
    )
    return labels


def _classes(labels: Labels) -> Labels:
    classes: Labels = (labels == 1).argmax(1)
    return classes


def _check_facts(tables: TableFiles, labels: Labels, names: Sequence[str]) -> None:
    """Raise if some columns are no classes, going by their names, or because the others are exclusive."""
    numbers = (labels == 1).sum(1)
    exclusive = (numbers == 1).all() and labels.min() == 0
    odd, why = [name for name in names if FACTS.fullmatch(name)], "may be no labels"
    if not exclusive and (kept := _exclusive_columns(labels)):
        odd = [name for label, name in enumerate(names) if label not in kept]
        why = "are not exclusive with the others, which have exactly one 1 in each row"
    if odd and (len(odd) < len(names) or not exclusive):
        classes = [name for name in names if name not in odd]
        raise InputError(
            f"columns of '{tables}' {why}: {enumerate_names(odd)}. Name the label columns: {OPTION}label_columns "
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
