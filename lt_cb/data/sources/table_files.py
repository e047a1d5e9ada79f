"""Find the tables of a data set: one file, or one for each split in a folder."""

import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.columns import CELLS, OPTION, Layout, TableOptions, find_columns, first_column
from lt_cb.data.sources.listing import SPLIT_NAMES, Split
from lt_cb.data.sources.reading import JSON_LINES, Columns, read_table
from lt_cb.data.sources.tested import is_test_only
from lt_cb.data.sources.tree import has_images, subfolders
from lt_cb.errors import InputError, enumerate_names

ENDINGS = (".csv", ".tsv", ".parquet", *JSON_LINES)
IN_SPLIT_FOLDERS = ("metadata", "_classes")  # tables of Hugging Face's imagefolder and of Roboflow
NO_CLASS = re.compile(  # folders of images that are no classes
    r"(train|test|val|valid)[\W_].*|(.*[\W_])?(images?|imgs?|masks?|jpe?gs?|pngs?|photos?)([\W_]?part)?[\W_]?\d*",
    re.IGNORECASE,
)
IGNORED = re.compile(r"sample_?submission", re.IGNORECASE)  # Kaggle's tables of made-up labels


@dataclass
class Table:
    """The rows of the tables of a data set, numbered through."""

    root: Path  # the given table or folder
    files: list[Path]
    starts: list[int]  # first row of each file
    columns: Columns
    layout: Layout  # columns of the first file, which has the training images
    options: TableOptions

    def __str__(self) -> str:
        """Return the file or folder that was given."""
        return str(self.root)

    @property
    def folder(self) -> Path:
        """The folder that paths start from."""
        return self.root if self.root.is_dir() else self.root.parent

    def row(self, row: int) -> str:
        """Return a row in words, counted from 1 below the header."""
        part = bisect_right(self.starts, row) - 1
        number = f"row {row - self.starts[part] + 1}"
        return number if len(self.files) == 1 else f"{number} of '{self.files[part].relative_to(self.folder)}'"


def read_tables(root: Path, options: TableOptions) -> Table:
    """Return the rows of a table, or of all tables with labels in a folder."""
    (first_split, first), *others = find_tables(root)
    columns = read_table(first)
    layout = find_columns(first, columns, options)
    read: list[tuple[Split | None, Path, Columns]] = [(first_split, first, columns)]
    for split, file in others:
        table = read_table(file)
        if _has_labels(file, split, table, layout, options):
            read.append((split, file, _like(first, layout, file, table, columns)))
    sizes = [len(next(iter(table.values()), [])) for *_, table in read]
    if len(read) > 1:
        sources = [(split, file.relative_to(root), size) for (split, file, _), size in zip(read, sizes, strict=True)]
        rank_zero_info(f"tables of '{root}': {', '.join('{} from {} ({} rows)'.format(*each) for each in sources)}.")
        layout = layout._replace(split=layout.split or "split")
        names = {name: None for *_, table in read for name in table} | {layout.split: None}
        columns = {  # without a column of splits, a table has the split of its name
            str(name): [
                cell
                for (split, _, table), size in zip(read, sizes, strict=True)
                for cell in table.get(str(name), [split] * size)
            ]
            for name in names
        }
    elif root.is_dir():
        rank_zero_info(f"table of '{root}': {first.relative_to(root)}.")
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    return Table(root, [file for _, file, _ in read], starts, columns, layout, options)


def _like(first: Path, layout: Layout, file: Path, table: Columns, columns: Columns) -> Columns:
    """Return the columns of a table by the names of the first table; None for cells that are not needed."""
    found = {name: first_column(table, [name]) for name in columns}
    for name in (layout.path, *([layout.label] if layout.label else layout.labels)):
        if found[name] is None:
            given = enumerate_names(list(table))
            raise InputError(f"'{file}' has columns {given}, but no '{name}', as '{first}' has: add it.")
    empty = [None] * len(next(iter(table.values())))
    return {
        name: empty if column is None else table[column]
        for name, column in found.items()
        if column is not None or name != layout.split
    }


def find_tables(root: Path) -> list[tuple[Split | None, Path]]:
    """Return the tables of a file or folder, with the training images first."""
    if not root.is_dir():
        folder = root.parent.parent if root.stem.lower() in IN_SPLIT_FOLDERS else root.parent
        is_train = root.is_file() and {root.stem.lower(), root.parent.name.lower()} & {*SPLIT_NAMES["train"]}
        found = _of_splits(folder) if is_train else {}
        others = [file for file in found.values() if file != root] if found.get("train") == root else []
        remedy = f"If these have labels: --data.root '{folder}'."
        if not others:
            others = [file for file in tables_in(root.parent) if file != root and _is_of_set(file, root)]
            remedy = "To read several tables, name them train.csv, val.csv and test.csv, and give their folder."
        if others:
            names = enumerate_names([str(file.relative_to(folder)) for file in others])
            rank_zero_info(f"only '{root}' is read, not {names} beside it. {remedy}")
        return [(None, root)]
    if found := _of_splits(root):
        if "train" not in found and not is_test_only():
            given = enumerate_names([str(file.relative_to(root)) for file in found.values()])
            raise InputError(f"'{root}' has {given}, but no table of training images, such as train.csv: add one.")
        return [(split if len(found) > 1 else None, file) for split, file in found.items()]
    tables = tables_in(root)
    named = [file for file in tables if file.stem.lower() in IN_SPLIT_FOLDERS]
    if len(chosen := named[:1] or tables) == 1:
        return [(None, chosen[0])]
    if tables:
        names = enumerate_names([file.name for file in tables])
        raise InputError(f"'{root}' has several tables, {names}: set --data.root to one of them.")
    hint = " For folders of images, <class>/*: --config configs/image_folder.yaml." if has_classes(root) else ""
    hint = " For annotations in COCO's format: --data.source COCO." if any(root.glob("*.json")) else hint
    raise InputError(
        f"'{root}' has no table: it needs train.csv (also .parquet or .jsonl; val.csv and test.csv too), or set "
        f"--data.root to a table.{hint}"
    )


def refuse_table_without_classes(root: Path) -> None:
    """Raise if a folder has a table or annotations instead of the folders of classes; say if it has a table too."""
    tables = tables_of(root)
    name = f"'{tables[0].relative_to(root)}'" if tables else ""
    if has_classes(root):
        if tables:
            rank_zero_info(
                f"'{root}' has folders of classes and a table, {name}: the folders are read. For the table: --config "
                f"configs/own_table.yaml --data.root '{tables[0]}'."
            )
    elif tables:
        raise InputError(
            f"'{root}' has no folders of classes, but a table, {name}: read it by --config configs/own_table.yaml "
            "instead, or --data.source Manifest."
        )
    elif any(root.glob("*.json")):
        raise InputError(
            f"'{root}' has no folders of classes, but JSON: if it has annotations in COCO's format, --data.source COCO."
        )


def has_classes(root: Path) -> bool:
    """Return whether images lie in root/<class>/ or root/<split>/<class>/."""
    splits = {name for usual in SPLIT_NAMES.values() for name in usual}
    folders = [root / name for name in subfolders(root) if not NO_CLASS.fullmatch(name)]
    classes = [folder for folder in folders if folder.name.lower() not in splits]
    nested = [split / name for split in folders if split not in classes for name in subfolders(split)]
    return any(map(has_images, nested)) or sum(map(has_images, classes)) > 1


def tables_of(folder: Path) -> list[Path]:
    """Return the tables of the splits of a folder, or else the tables directly in it."""
    return list(_of_splits(folder).values()) or tables_in(folder)


def tables_in(folder: Path) -> list[Path]:
    """Return the tables directly in a folder, without sample submissions."""
    names = [name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in ENDINGS]
    files = [folder / name for name in names if not name.startswith(".") and not IGNORED.search(name)]
    return sorted(files, key=lambda file: (ENDINGS.index(file.suffix.lower()), file.name))


def _is_of_set(file: Path, train: Path) -> bool:
    """Return whether two names differ in one word, which means training images in one of them and not in the other."""
    words, known = [set(re.split(r"[\W_]+", table.stem.lower())) for table in (file, train)]
    train_words, tested = {*SPLIT_NAMES["train"]}, {*SPLIT_NAMES["val"], *SPLIT_NAMES["test"]}
    return len(known) > 1 and bool(train_words & known and tested & words) and known - train_words <= words


def _of_splits(root: Path) -> dict[Split, Path]:
    """Return the tables that are named after splits, or lie in folders named so; train comes first."""
    found: dict[Split, Path] = {}
    tables = {file.stem.lower(): file for file in reversed(tables_in(root))}
    folders = {entry.name.lower(): Path(entry) for entry in os.scandir(root) if entry.is_dir()}
    for split, names in sorted(SPLIT_NAMES.items(), key=lambda item: item[0] != "train"):
        for name in names:
            inside = tables_in(folders[name]) if name in folders else []
            named = [file for file in inside if file.stem.lower() in IN_SPLIT_FOLDERS]
            if file := tables.get(name) or tables.get(f"{name}_labels") or next(iter(named), None):
                found.setdefault(split, file)
    return found


def _has_labels(file: Path, split: Split | None, columns: Columns, layout: Layout, options: TableOptions) -> bool:
    """Return whether a table has labels; say it if not. Raise for labels that the first table lacks."""
    names: Sequence[str] = [layout.label] if layout.label else layout.labels
    given = [column for name in names if (column := first_column(columns, [name]))]
    none = {text for text, value in CELLS.items() if value < 1} if layout.labels else {"", "nan"}  # 0 everywhere, too
    if all(cell is None or str(cell).strip().lower() in none for name in given for cell in columns[name]):
        rank_zero_info(f"'{file}' has no labels ({enumerate_names(names)}): it is not read as {split} images.")
        return False
    known = {name.lower() for name in (*names, layout.path, layout.split or "split")}
    unknown = [name for name in columns if name.lower() not in known]
    if unknown and layout.labels and options.label_columns is None:
        raise InputError(
            f"'{file}' has columns {enumerate_names(unknown)}, which the training images do not have: add them there, "
            f"or name the label columns by {OPTION}label_columns."
        )
    return True
