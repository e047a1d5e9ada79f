"""Find the columns of a table: those that its options name, or a guess. One line says the guess."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.image_files import ENDINGS, names_file
from lt_cb.data.sources.listing import SPLIT_NAMES, Split
from lt_cb.data.sources.reading import Columns
from lt_cb.data.sources.tested import is_test_only
from lt_cb.errors import InputError, did_you_mean, enumerate_names

OPTION = "--data.source."
PATHS: tuple[str, ...] = ("path", "image_path", "file_path", "filepath", "filepaths", "file_name", "filename", "file")
PATHS += ("image", "image_id", "id_code", "image index", "image_name", "image_file", "img", "img_path")
LABELS: tuple[str, ...] = ("label", "labels", "class", "class_name", "category", "dx", "diagnosis", "finding")
LABELS += ("finding labels", "finding label", "label_name", "category_name", "target", "targets", "tags", "species")
LABELS += ("categories", "breed", "attribute_ids", "class_id", "category_id", "label_id")
VERIFIED = "confidence"  # 1: verified to be present; 0: verified to be absent (Open Images)
CELLS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "": -1, "nan": -1, "none": -1, "-1": -1, "-1.0": -1}
FACTS = re.compile(  # columns of 1 and 0 that describe an image, and are no classes
    r"((is|has)[\W_]*)?(fe)?male|sex|gender|age|(k[\W_]*)?folds?[\W_]*\d*|(is[\W_]*)?(val(id(ated|ation)?)?|train(ing)?|"
    r"test(ing)?|verified|duplicated?|augmented|flipped|holdout|crowd|public)|index|group|patient([\W_]*id)?",
    re.IGNORECASE,
)
MANY = ("labels", "findinglabels", "targets", "tags", "categories", "attributeids")  # columns of several names
SPLIT_OF: dict[str, Split] = {name: split for split, names in SPLIT_NAMES.items() for name in names}
SPLIT_OF |= {"validate": "val", "dev": "val"}
SPLIT_FLAGS: dict[str, tuple[Split, Split]] = {  # columns of true and false: their splits
    "is_valid": ("val", "train"),
    "is_val": ("val", "train"),
    "is_test": ("test", "train"),
    **dict.fromkeys(("is_train", "is_training", "is_training_image"), ("train", "test")),
}
MAX_SPLITS = 10  # values of a column that may be of splits
SPLIT_LIKE = re.compile(r"(data_?)?(sub)?set|usage|partition|phase|(sub|data)?_?split|(k_?)?folds?", re.IGNORECASE)


class TableOptions(NamedTuple):
    """Options of a table; see `Manifest`."""

    path_column: str | None = None
    label_column: str | None = None
    label_columns: Sequence[str] | None = None
    split_column: str | None = None
    image_folder: str | None = None
    extension: str | None = None
    separator: str | None = None
    blank: Literal["no", "unknown"] | None = None
    task: Literal["one", "several"] | None = None
    group_column: str | None = None


class Layout(NamedTuple):
    """The columns of a table."""

    path: str
    split: str | None  # None if test images are held out
    label: str | None  # column of names
    labels: list[str]  # columns of 1 and 0, if there is no column of names
    guesses: dict[str, str]  # values of options that were guessed
    group: str | None  # column of groups, which stay in one split


def find_columns(file: Path, columns: Columns, options: TableOptions) -> Layout:
    """Return the columns that the options name, or else those with names that are common for their content."""
    if options.path_column is None and (images := [name for name in columns if name.lower().endswith(ENDINGS)]):
        raise InputError(
            f"the first line of '{file}' names an image, '{images[0]}', but must name the columns: put a line such as "
            "path,label above it."
        )
    path, split, label = (
        None if name is None else match_columns(file, columns, [name], option)[0]
        for option, name in zip(("path_column", "split_column", "label_column"), _single(options), strict=True)
    )
    named = match_columns(file, columns, options.label_columns or [], "label_columns")
    guesses = {}
    group = options.group_column
    if group and is_test_only():  # nothing is divided
        group = first_column(columns, [group])
    elif group:
        group = match_columns(file, columns, [group], "group_column")[0]
    split = split or first_column(columns, ["split"]) or _guess_split(columns, {path, label, group, *named})
    path = path or _guess_path(file, columns, {split, label, group, *named}) or first_column(columns, PATHS[:1])
    if group and label is None and not named and _plain(group) in LABELS[:2]:
        label = group  # refused: no other column may be read instead
    _check_purposes(file, {"path": path, "split": split, "label": label, "group": group}, named)
    others = [name for name in columns if name not in (path, split, group)]
    if label is None and not named:
        label = _guess_label(columns, others)
        if label and label.lower() not in LABELS[:2]:
            guesses["label_column"] = label
    if path is None or not (label or others):
        given = enumerate_names(list(columns)) or "none"
        lacks = "path" if path is None else "label"
        remedy = f"If a column has another name, give it: {OPTION}{lacks}_column NAME."
        if path is None:
            remedy = f"{remedy[:-1]}, and {OPTION}label_column NAME."
        if len(columns) < 2:
            remedy = "Add the labels." if path else "Separate the columns by commas, semicolons or tabs."
        raise InputError(
            f"'{file}' has columns {given}, but must have path and label, or for several an image labels or a column "
            f"for each label. {remedy}"
        )
    if not (split or is_test_only()):
        _say_unread_splits(file, columns, {path, label, group, *named})
    if path.lower() != "path" and options.path_column is None:
        guesses["path_column"] = path
    if split and split.lower() != "split" and options.split_column is None:
        guesses["split_column"] = split
    return Layout(path, split, label, [] if label else named or others, guesses, group)


def _check_purposes(file: Path, given: dict[str, str | None], labels: Sequence[str]) -> None:
    """Raise if one column has two purposes."""
    used = [(column, f"{purpose}_column") for purpose, column in given.items() if column]
    used += [(name, "label_columns") for name in labels]
    for column, purpose in used:
        if others := [other for name, other in used if name == column and other != purpose]:
            raise InputError(
                f"column '{column}' of '{file}' would be {purpose} and {others[0]}: give {purpose} or {others[0]} "
                "another column."
            )


def _say_unread_splits(file: Path, columns: Columns, used: set[str | None]) -> None:
    """Say that a column such as ``Usage`` is not read as splits, because its values are others."""
    for name in columns:
        values = sorted(set(map(str, columns[name]))) if SPLIT_LIKE.fullmatch(name) and name not in used else []
        if 1 < len(values) <= MAX_SPLITS:
            rank_zero_info(
                f"column '{name}' of '{file}' is not read as splits, because it has {enumerate_names(values)}. If it "
                "has splits, write train, val and test in it."
            )


def say_guesses(file: object, guesses: dict[str, str]) -> None:
    """Say in one line which options of a table were guessed."""
    if guesses:
        given = ", ".join(f"{option} '{value}'" for option, value in sorted(guesses.items(), reverse=True))
        rank_zero_info(f"guessed for '{file}': {given}. Change it by {OPTION}{max(guesses)} VALUE.")


def as_option(names: Sequence[str]) -> str:
    """Return names as the value of an option, between single quotes."""
    plain = yaml.safe_dump(list(names), default_flow_style=True, width=math.inf, allow_unicode=True).strip()
    return plain if not re.search("['\"]", plain) else json.dumps(list(names), ensure_ascii=False)


def has_many(column: str) -> bool:
    """Return whether a column is named as one with several labels, such as ``labels``."""
    return _plain(column) in MANY


def is_blank(cell: object) -> bool:
    """Return whether a cell is empty."""
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _single(options: TableOptions) -> tuple[str | None, str | None, str | None]:
    return options.path_column, options.split_column, options.label_column


def _plain(name: str) -> str:
    """Return a name in small letters, without spaces, underscores and hyphens."""
    return re.sub(r"[\s_-]", "", name.lower())


def first_column(columns: Columns, names: Iterable[str], taken: Iterable[str | None] = ()) -> str | None:
    """Return the first column that has one of the names, exactly or without regard to case, blanks and underscores."""
    free = [column for column in columns if column not in taken]
    for name in names:
        alike = [column for column in free if column.lower() == name.lower()]
        alike = alike or [column for column in free if _plain(column) == _plain(name)]
        if alike:
            return name if name in alike else alike[0]
    return None


def match_columns(file: Path, columns: Columns, names: Sequence[str], option: str) -> list[str]:
    """Return the columns that an option names, without regard to case."""
    found = [first_column(columns, [name.strip()]) for name in names]
    if missing := [name for name, column in zip(names, found, strict=True) if column is None]:
        if is_test_only() and option == "label_columns" and any(found):  # a test needs not all classes
            return [column for column in found if column is not None]
        existing = enumerate_names(list(columns))
        near = did_you_mean(missing[0], columns)
        raise InputError(f"{option} names {enumerate_names(missing)}, but '{file}' has columns {existing}.{near}")
    return [column for column in found if column is not None]


def _guess_path(file: Path, columns: Columns, taken: set[str | None]) -> str | None:
    """Return the column with a usual name, or else the first one whose first cell names or ends like an image file."""
    cells = {name: str(next(iter(columns[name]), "")).strip() for name in columns if name not in taken}
    files = (name for name, cell in cells.items() if cell.lower().endswith(ENDINGS) or names_file(file.parent, cell))
    return first_column(columns, PATHS, taken) or next(files, None) or first_column(columns, ["id"], taken)


def _guess_split(columns: Columns, taken: set[str | None]) -> str | None:
    """Return a column that has names of splits only, and two or more of them, or says whether an image is in one."""
    for name, cells in columns.items():
        is_flag = name not in taken and name.lower() in SPLIT_FLAGS
        if is_flag and {CELLS.get(text.strip().lower()) for text in set(map(str, cells))} == {0, 1}:
            return name
        if name not in taken and str(next(iter(cells), "")).strip().lower() in SPLIT_OF:
            splits = {SPLIT_OF.get(text.strip().lower()) for text in set(map(str, cells))}
            if None not in splits and len(splits) > 1:
                return name
    return None


def _guess_label(columns: Columns, others: Sequence[str]) -> str | None:
    """Return the column of names, or None if there is a column for each label."""
    for name in LABELS:
        label = first_column({column: columns[column] for column in others}, [name])
        if label is None:
            continue
        if name in LABELS[:2] or len(others) == 1 or not _is_binary(columns[label]):
            return label
    return others[0] if len(others) == 1 and not _is_binary(columns[others[0]]) else None


def _is_binary(cells: Sequence[object]) -> bool:
    return all(str(cell).strip().lower() in CELLS for cell in cells)
