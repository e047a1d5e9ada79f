"""Find the columns of a table: those that its options name, or a guess, which is said in one line."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.reading import Columns
from lt_cb.data.sources.tested import is_test_only
from lt_cb.errors import InputError, did_you_mean, enumerate_names

OPTION = "--data.source Manifest --data.source."
PATHS: tuple[str, ...] = ("path", "image_path", "file_path", "filepath", "file_name", "filename", "file", "image")
PATHS += ("image_id", "id_code", "image index", "image_name")
LABELS = ("label", "labels", "class", "class_name", "category", "dx", "diagnosis", "finding", "finding labels")
SEPARATORS = {"labels": ";", "finding labels": "|"}  # between names in these columns
CELLS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "": -1, "nan": -1, "none": -1, "-1": -1, "-1.0": -1}


class TableOptions(NamedTuple):
    """Options of a table; see `Manifest`."""

    path_column: str | None = None
    label_column: str | None = None
    label_columns: Sequence[str] | None = None
    split_column: str | None = None
    image_folder: str | None = None
    extension: str | None = None
    separator: str | None = None
    blank: Literal["no", "unknown"] = "unknown"
    task: Literal["one", "several"] | None = None
    group_column: str | None = None


class Layout(NamedTuple):
    """The columns of a table."""

    path: str
    split: str | None  # None if test images are held out
    label: str | None  # column of names
    labels: list[str]  # columns of 1 and 0, if there is no column of names
    separator: str | None  # between names; None if a cell is one name
    guesses: dict[str, str]  # values of options that were guessed
    group: str | None  # column of groups, which stay in one split


def find_columns(file: Path, columns: Columns, options: TableOptions) -> Layout:
    """Return the columns that the options name, or else those with names that are common for their content."""
    path, split, label = (
        None if name is None else match_columns(file, columns, [name], option)[0]
        for option, name in zip(("path_column", "split_column", "label_column"), _single(options), strict=True)
    )
    guesses = {}
    group = options.group_column
    if group and is_test_only():  # nothing is divided
        group = _first(columns, [group])
    elif group:
        group = match_columns(file, columns, [group], "group_column")[0]
    taken = {split or _first(columns, ["split"]), label, *(options.label_columns or ())}
    path = path or _first(columns, PATHS, taken)
    split = split or _first(columns, ["split"])
    others = [name for name in columns if name not in (path, split, group)]
    if label is None and options.label_columns is None:
        label = _guess_label(columns, others)
        if label and label.lower() not in LABELS[:2]:
            guesses["label_column"] = label
    if path is None or not (label or others):
        given = enumerate_names(list(columns)) or "none"
        lacks = "path" if path is None else "label"
        raise InputError(
            f"'{file}' has columns {given}, but must have path and label, or for several an image labels or a column "
            f"for each label. If a column has another name, give it: {OPTION}{lacks}_column NAME."
        )
    if path.lower() != "path" and options.path_column is None:
        guesses["path_column"] = path
    separator = options.separator
    if label and separator is None and options.task != "one":
        separator = SEPARATORS.get(label.lower(), ";" if options.task == "several" else None)
        if separator and label.lower() != "labels":
            guesses["separator"] = separator
    labels = [] if label else match_columns(file, columns, options.label_columns or others, "label_columns")
    return Layout(path, split, label, labels, separator, guesses, group)


def say_guesses(file: Path, guesses: dict[str, str]) -> None:
    """Say in one line which options of a table were guessed."""
    if guesses:
        given = ", ".join(f"{option} '{value}'" for option, value in sorted(guesses.items(), reverse=True))
        rank_zero_info(f"guessed for '{file}': {given}. Change it by {OPTION}{max(guesses)} VALUE.")


def _single(options: TableOptions) -> tuple[str | None, str | None, str | None]:
    return options.path_column, options.split_column, options.label_column


def _first(columns: Columns, names: Iterable[str], taken: Iterable[str | None] = ()) -> str | None:
    """Return the first column that has one of the names, exactly or without regard to case."""
    free = [column for column in columns if column not in taken]
    for name in names:
        alike = [column for column in free if column.lower() == name.lower()]
        if alike:
            return name if name in alike else alike[0]
    return None


def match_columns(file: Path, columns: Columns, names: Sequence[str], option: str) -> list[str]:
    """Return the columns that an option names, without regard to case."""
    found = [_first(columns, [name.strip()]) for name in names]
    if missing := [name for name, column in zip(names, found, strict=True) if column is None]:
        if is_test_only() and option == "label_columns" and any(found):  # a test needs not all classes
            return [column for column in found if column is not None]
        existing = enumerate_names(list(columns))
        near = did_you_mean(missing[0], columns)
        raise InputError(f"{option} names {enumerate_names(missing)}, but '{file}' has columns {existing}.{near}")
    return [column for column in found if column is not None]


def _guess_label(columns: Columns, others: Sequence[str]) -> str | None:
    """Return the column of names, or None if there is a column for each label."""
    for name in LABELS:
        label = _first({column: columns[column] for column in others}, [name])
        if label is None:
            continue
        if name in LABELS[:2] or len(others) == 1:
            return label
        if any(str(cell).strip().lower() not in CELLS for cell in columns[label]):
            return label
    return None
