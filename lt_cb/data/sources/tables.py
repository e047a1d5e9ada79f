"""Tables of image files, CSV, Parquet or JSON lines, with a class, several labels, or a column for each label."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.base import FileSource, check_classes
from lt_cb.data.sources.checks import warn_of_unknown_negatives
from lt_cb.data.sources.columns import CELLS, OPTION, SPLIT_FLAGS, SPLIT_OF, TableOptions, as_option
from lt_cb.data.sources.image_files import find_files
from lt_cb.data.sources.image_rows import Rows, find_images, image_labels, refuse
from lt_cb.data.sources.label_cells import as_texts, by_column, by_name, warn_of_names
from lt_cb.data.sources.listing import SPLITS, Listing, Split, encode, read_groups, suggest_groups
from lt_cb.data.sources.table_files import Table, read_tables
from lt_cb.data.sources.tested import is_test_only, with_test
from lt_cb.errors import DataError, InputError, enumerate_names
from lt_cb.longtail.subset import Indices
from lt_cb.say import warn
from lt_cb.text import printable

LISTS = ("train_val_list.txt", "test_list.txt")  # beside the table of NIH ChestX-ray14
LISTED = {"train": "train", "test": "test", "": "in neither, which are left out"}
Splits = npt.NDArray[np.str_]


class Manifest(FileSource):
    """Image files in a table: CSV with a header, Parquet, or JSON lines, with columns path, label and split.

    - ``path``: absolute, or relative to the folder of the table. A missing extension is completed.
    - ``label``: class name. Classes are sorted by value if all are whole numbers, otherwise alphabetically.
    - ``split``: train, val or test. Without test images, val is the test split. Without this column, a share of each
      class is held out, see `draw_test`.

    For several labels an image, use a column ``labels`` with names separated by semicolons, or nothing, or a row for
    each label. Without ``label`` and ``labels``, each further column is a label: 1 or 0, or empty, NaN or -1 for
    unknown.

    Other common names of these columns are guessed. Names are matched without regard to case.

    Args:
        root: path of the table, or of a folder that has one, or ``train.csv``, ``val.csv`` and ``test.csv``, also as
            ``train/metadata.csv`` or ``train/_classes.csv``. A test table without labels is not read.
        separator: separator of several labels in the label column; None guesses it from the cells.
        label_columns: names of the label columns; None takes all further columns.
        path_column: name of the column of paths.
        label_column: name of the column of class names.
        split_column: name of the column of splits.
        group_column: name of a column such as patient or lesion; its images are never divided between splits or folds.
        image_folder: folder of the images; None is the folder of the table, or one beside or below it.
        extension: ending to add to the paths, such as ``.jpg``; None takes the one that exists.
        blank: whether an empty cell of a label column means ``no`` or ``unknown``. YAML reads no as false. None is
            unknown, unless the columns are exclusive and no cell is 0.
        task: ``one`` or ``several`` labels an image; None decides from all rows.
    """

    def __init__(
        self,
        root: str,
        separator: str | None = None,
        label_columns: list[str] | None = None,
        path_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        image_folder: str | None = None,
        extension: str | None = None,
        blank: Literal["no", "unknown", False] | None = None,
        task: Literal["one", "several"] | None = None,
        group_column: str | None = None,
    ) -> None:
        if separator == "" or label_columns == [] or (label_columns and (separator or label_column)):
            raise InputError(
                f"separator is {separator!r}, label_column {label_column!r} and label_columns {label_columns}, but one "
                "of them may be given, and not empty: labels are names in one column, or have a column each."
            )
        names = (path_column, label_column, label_columns, split_column, image_folder, extension, separator)
        options = TableOptions(*names, "no" if blank is False else blank, task, group_column)
        table = read_tables(path := Path(os.path.expanduser(root)), options)
        listing, splits, folder = _list(table)
        listings: dict[Split, Listing] = {"train": listing}
        if splits is not None:
            listings = {split: listing.select(rows) for split in SPLITS if (rows := splits == split).any()}
        has_test, listings = "test" in listings, with_test(listings)
        if not has_test and "test" in listings:
            rank_zero_info(f"no test images in '{root}': the val images are the test images.")
        if splits is not None and (missing := {"train", "test"} - listings.keys()):
            raise DataError(f"'{root}' has no image of split {min(missing)}: it needs train, and test or val.")
        super().__init__(root, listings)
        self.folder, self.place_option = folder, f"{OPTION}image_folder"
        self.tests_from, self.group_name = "test table" if path.is_dir() else "split column", group_column or ""
        if (layout := table.layout).group is None:
            used = [layout.path, layout.split, layout.label, *layout.labels]
            self.group_hint = suggest_groups(table.columns, used, OPTION)
        if splits is None:
            self.hold_out_test(listing)
        kept = [name for name, count in zip(self.class_names, self.counts, strict=True) if count]
        leave_out = "leave out the rows that have it"
        if layout.label is None and 0 < len(kept) < len(self.class_names):
            leave_out = f"leave it out by {OPTION}label_columns '{as_option(kept)}'"
        check_classes(self, f"add some, or {leave_out}")
        warn_of_unknown_negatives(self)


def _list(table: Table) -> tuple[Listing, Splits | None, Path]:
    """Return all images of a table, the split of each if it has splits, and the folder where their paths start."""
    layout = table.layout
    paths = _required(table, layout.path, "path")
    if layout.split:
        splits: Splits | None = _splits(table, layout.split)
    elif (splits := _splits_of_folders(table, paths)) is None:
        splits = _splits_of_lists(table, paths)
    if layout.label:
        labels, names = by_name(layout.label, table.columns[layout.label], table.options, layout.guesses)
    else:
        labels, names = by_column(table, layout.labels), layout.labels
    folder, given = _find_files(table, paths)
    if guesses := layout.guesses:
        guessed = ", ".join(f"{option} '{value}'" for option, value in sorted(guesses.items(), reverse=True))
        rank_zero_info(f"guessed for '{table}': {guessed}. Change it by {OPTION}{max(guesses)} VALUE.")
    images = find_images(folder, given)
    first = images.first
    if splits is not None:
        wrong = np.flatnonzero(splits != splits[first][images.ids])
        remedy = "keep each image in one split, so that none is both trained and tested on."
        refuse(table, images, wrong, "split", splits.tolist().__getitem__, remedy)
    labels = image_labels(table, images, labels, names)
    if layout.label:
        warn_of_names(table, names)
    groups = None
    if layout.group and not is_test_only():  # a test divides nothing
        groups = _groups(table, layout.group, images, splits)[first]
    listing = Listing(encode([given[row] for row in first.tolist()]), labels, names, groups)
    return listing, None if splits is None else splits[first], folder


def _groups(table: Table, name: str, images: Rows, splits: Splits | None) -> Indices:
    """Return the group of each row; raise if an image has several, or if a group is in two splits."""
    texts, ids = as_texts(table.columns[name]), images.ids.tolist()
    if len(images.first) < len(texts):
        text_of = {image: text for image, text in zip(reversed(ids), reversed(texts), strict=True) if text}
        whole = [text_of.get(image, "") for image in ids]
        wrong = [row for row, (text, other) in enumerate(zip(texts, whole, strict=True)) if text and text != other]
        remedy = f"correct them, or leave out {OPTION}group_column."
        refuse(table, images, np.array(wrong, np.int64), name, texts.__getitem__, remedy)
        texts = whole
    groups = read_groups(table, name, texts)
    if splits is not None:
        _, first, positions = np.unique(groups, return_index=True, return_inverse=True)
        wrong_rows = np.flatnonzero(splits != splits[first][positions])
        wrong_rows = wrong_rows[np.unique(groups[wrong_rows], return_index=True)[1]]  # one of each group
        remedy = f"put each group into one split, or leave out {OPTION}group_column to use the splits as they are."
        value = splits.tolist().__getitem__
        refuse(table, Rows(texts, positions, first), wrong_rows, "split", value, remedy, f"groups of '{name}'")
    return groups


def _required(table: Table, name: str, kind: str) -> list[str]:
    """Return the cells of a column; raise if one is empty."""
    if dict in set(map(type, table.columns[name])):
        raise InputError(f"column '{name}' of '{table}' holds images, not paths: write the images to files.")
    texts = as_texts(table.columns[name])
    if not texts:
        raise DataError(f"'{table}' has a header, but no row: set --data.root to another file.")
    if not all(texts):
        row = table.row(texts.index(""))
        raise InputError(f"{row} of '{table}' has no {kind}: give it one, or leave the row out.")
    return texts


def _splits(table: Table, name: str) -> Splits:
    """Return the split of each row, an empty text for other splits, which are left out."""
    texts = _required(table, name, "split")
    split_of = {text: SPLIT_OF.get(text.lower()) for text in dict.fromkeys(texts)}
    if name.lower() in SPLIT_FLAGS:
        flags: dict[int | None, Split] = dict(zip((1, 0), SPLIT_FLAGS[name.lower()], strict=True))
        split_of = {text: flags.get(CELLS.get(text.lower()), split) for text, split in split_of.items()}
    unknown = {text: texts.count(text) for text, split in split_of.items() if split is None}
    if unknown and not {"train"} < set(split_of.values()) - {None}:
        raise DataError(f"'{table}' has split '{min(unknown)}', but allowed are train, val and test.")
    if unknown:
        listed = ", ".join(f"'{printable(text)}' ({number} rows)" for text, number in unknown.items())
        warn(f"'{table}' has other splits than train, val and test, which are left out: {listed}.")
    return np.array([split_of[text] or "" for text in texts])


def _splits_of_folders(table: Table, paths: Sequence[str]) -> Splits | None:
    """Return the split of each row if all paths begin with folders of splits, such as ``train/1.jpg``, or None."""
    tops = [re.split(r"[\\/]", path.removeprefix("./"), maxsplit=1)[0] for path in paths]
    split_of = {top: SPLIT_OF.get(top.lower()) for top in dict.fromkeys(tops)}
    if None in split_of.values() or not {"train"} < set(split_of.values()):
        return None
    rank_zero_info(
        f"guessed for '{table}': the splits are the folders that the paths begin with, "
        f"{enumerate_names(list(split_of))}. For others, name the column by {OPTION}split_column."
    )
    return np.array([split_of[top] for top in tops], str)


def _splits_of_lists(table: Table, paths: Sequence[str]) -> Splits | None:
    """Return the split of each row by the lists of names that NIH ChestX-ray14 has beside its table, or None."""
    split_of: dict[str, str] = {}
    for split, file in zip(("train", "test"), [table.folder / name for name in LISTS], strict=True):
        if file.is_file():
            split_of |= dict.fromkeys(file.read_text("utf-8", "replace").split(), split)
    if not split_of:
        return None
    splits = np.array([split_of.get(path, "") for path in paths])
    if not all((splits == split).any() for split in ("train", "test")):
        return None
    counts = ", ".join(f"{(splits == split).sum():,} {name}" for split, name in LISTED.items() if split in splits)
    rank_zero_info(
        f"the splits of '{table}' come from {enumerate_names(LISTS)}: {counts}. To draw test images, move these "
        "lists away."
    )
    return splits


def _find_files(table: Table, paths: list[str]) -> tuple[Path, list[str]]:
    """Return the folder of the images, and their paths in it. Each of several tables may have a folder of its own."""
    bounds = zip(table.files, table.starts, [*table.starts[1:], len(paths)], strict=True)
    image_folder, extension = table.options.image_folder, table.options.extension
    found = [find_files(file, paths[start:end], image_folder, extension) for file, start, end in bounds]
    places = [os.path.relpath(folder, table.folder) for folder, _ in found]
    guessed = [place for place, file in zip(places, table.files, strict=True) if table.folder / place != file.parent]
    if image_folder is None and guessed:
        table.layout.guesses["image_folder"] = ", ".join(dict.fromkeys(guessed))
    if len(set(places)) == 1:
        return found[0][0], [path for _, given in found for path in given]
    folders = [
        os.path.abspath(folder) if place.startswith("..") else place
        for place, (folder, _) in zip(places, found, strict=True)
    ]
    return table.folder, [
        os.path.join(folder, path) for folder, (_, given) in zip(folders, found, strict=True) for path in given
    ]
