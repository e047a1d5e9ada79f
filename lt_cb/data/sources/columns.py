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
    given = {purpose: getattr(options, f"{purpose}_column") for purpose in ("path", "split", "label", "group")}
    path, split, label, group = (
        next(iter(_match(file, columns, [] if name is None else [name], f"{purpose}_column")), None)
        for purpose, name in given.items()
    )
    named = _match(file, columns, options.label_columns or [], "label_columns")
    guesses = {}
    split = split or first_column(columns, ["split"]) or _guess_split(columns, {path, label, group, *named})
    path = path or _guess_path(file, columns, {split, label, group, *named}) or first_column(columns, PATHS[:1])
    if group and label is None and not named and _plain(group) in LABELS[:2]:
        label = group  # refused: no other column may be read instead
    used = [(path, "path_column"), (split, "split_column"), (label, "label_column"), (group, "group_column")]
    used += [(name, "label_columns") for name in named]
    for column, purpose in used:
        if others := [other for name, other in used if name and name == column and other != purpose]:
            raise InputError(
                f"column '{column}' of '{file}' would be {purpose} and {others[0]}: give {purpose} or {others[0]} "
                "another column."
            )
    others = [name for name in columns if name not in (path, split, group)]
    if label is None and not named:
        label = _guess_label(columns, others)
        if label and label.lower() not in LABELS[:2]:
            guesses["label_column"] = label
    if path is None or not (label or others):
        remedy = f"If a column has another name, give it: {OPTION}path_column NAME, and {OPTION}label_column NAME."
        if len(columns) < 2:
            remedy = "Add the labels." if path else "Separate the columns by commas, semicolons or tabs."
        raise InputError(
            f"'{file}' has columns {enumerate_names(list(columns)) or 'none'}, but must have path and label, or for "
            f"several an image labels or a column for each label. {remedy}"
        )
    if not (split or is_test_only()):
        _say_unread_splits(file, columns, {path, label, group, *named})
    for purpose, column in (("path", path), ("split", split)):
        if column and column.lower() != purpose and given[purpose] is None:
            guesses[f"{purpose}_column"] = column
    return Layout(path, split, label, [] if label else named or others, guesses, group)


def _say_unread_splits(file: Path, columns: Columns, used: set[str | None]) -> None:
    """Say that a column such as ``Usage`` is not read as splits, because its values are others."""
    for name in [name for name in columns if name not in used and SPLIT_LIKE.fullmatch(name)]:
        values = sorted(set(map(str, columns[name])))
        if 1 < len(values) <= MAX_SPLITS:
            rank_zero_info(
                f"column '{name}' of '{file}' is not read as splits, because it has {enumerate_names(values)}. If it "
                "has splits, write train, val and test in it."
            )


def as_option(names: Sequence[str]) -> str:
    """Return names as the value of an option, between single quotes."""
    plain = yaml.safe_dump(list(names), default_flow_style=True, width=math.inf, allow_unicode=True).strip()
    return plain if not re.search("['\"]", plain) else json.dumps(list(names), ensure_ascii=False)


def has_many(column: str) -> bool:
    """Return whether a column is named as one with several labels, such as ``labels``."""
    return _plain(column) in MANY


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())


def first_column(columns: Iterable[str], names: Iterable[str], taken: Iterable[str | None] = ()) -> str | None:
    """Return the first column that has one of the names, exactly or without regard to case, blanks and underscores."""
    free = [column for column in columns if column not in taken]
    for name in names:
        alike = [column for column in free if column.lower() == name.lower()]
        alike = alike or [column for column in free if _plain(column) == _plain(name)]
        if alike:
            return name if name in alike else alike[0]
    return None


def _match(file: Path, columns: Columns, names: Sequence[str], option: str) -> list[str]:
    """Return the columns that an option names, without regard to case. A test needs not all classes, and no groups."""
    found = [first_column(columns, [name.strip()]) for name in names]
    missing = [name for name, column in zip(names, found, strict=True) if column is None]
    if missing and not (is_test_only() and (option == "group_column" or (option == "label_columns" and any(found)))):
        existing, near = enumerate_names(list(columns)), did_you_mean(missing[0], columns)
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
        is_flag, first = name.lower() in SPLIT_FLAGS, str(next(iter(cells), "")).strip().lower()
        if name not in taken and (is_flag or first in SPLIT_OF):
            texts = {text.strip().lower() for text in set(map(str, cells))}
            splits = set(map(SPLIT_OF.get, texts))
            if (is_flag and set(map(CELLS.get, texts)) == {0, 1}) or (None not in splits and len(splits) > 1):
                return name
    return None


def _guess_label(columns: Columns, others: Sequence[str]) -> str | None:
    """Return the column of names, or None if there is a column for each label."""
    for name in LABELS:
        label = first_column(others, [name])
        if label and (name in LABELS[:2] or len(others) == 1 or not _is_binary(columns[label])):
            return label
    return others[0] if len(others) == 1 and not _is_binary(columns[others[0]]) else None


def _is_binary(cells: Sequence[object]) -> bool:
    return all(str(cell).strip().lower() in CELLS for cell in cells)
