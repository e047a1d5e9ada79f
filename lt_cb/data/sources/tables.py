"""Tables of image files, CSV, Parquet or JSON lines, with a class, several labels, or a column for each label."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lt_cb.data.sources.columns import CELLS, OPTION, SPLIT_FLAGS, SPLIT_OF, Layout, TableOptions, say_guesses
from lt_cb.data.sources.grouping import read_groups, suggest_groups
from lt_cb.data.sources.image_files import find_files
from lt_cb.data.sources.kinds import choose_task
from lt_cb.data.sources.label_cells import as_texts, by_column, by_name, warn_of_names
from lt_cb.data.sources.listing import SPLITS, Listing, Split, encode
from lt_cb.data.sources.reading import Columns
from lt_cb.data.sources.repeats import Images, check_splits, find_images, join_rows, texts_of_images
from lt_cb.data.sources.table_files import TableFiles, read_tables
from lt_cb.data.sources.tested import is_test_only
from lt_cb.errors import DataError, InputError, enumerate_names
from lt_cb.longtail.subset import Indices
from lt_cb.text import printable

LISTS = ("train_val_list.txt", "test_list.txt")  # beside the table of NIH ChestX-ray14
LISTED = {"train": "train", "test": "test", "": "in neither, which are left out"}


class Table(NamedTuple):
    """Image files of a table."""

    listings: dict[Split, Listing]  # by split, in the order of the table
    folder: Path  # where the paths start
    divided: bool  # whether there is a column of splits; otherwise all images are in train
    by_column: bool  # whether each label has a column
    group_hint: str  # the option that keeps images of a column such as patient_id together, if it is not given


def list_table(root: Path, options: TableOptions = TableOptions()) -> Table:  # noqa: B008 (immutable)
    """Return the images of each split of a table, or of the tables in a folder. See `Manifest` for the options."""
    tables, columns, layout = read_tables(root, options)
    paths = _required(tables, columns, layout.path, "path")
    if layout.split:
        splits: npt.NDArray[np.str_] | None = _splits(tables, columns, layout.split)
    elif (splits := _splits_of_folders(tables, paths)) is None:
        splits = _splits_of_lists(tables, paths)
    if layout.label:
        labels, names = by_name(layout.label, columns[layout.label], options, layout.guesses)
    else:
        labels, names = by_column(tables, columns, layout.labels, options), layout.labels
    folder, given = _find_files(tables, paths, options, layout.guesses)
    say_guesses(tables, layout.guesses)
    images = find_images(folder, given)
    if splits is not None:
        check_splits(tables, given, images, splits)
    labels, joined = join_rows(tables, columns, given, images, labels, names, layout.label is not None, options)
    if not joined:
        labels = choose_task(tables, labels, images.first, names, layout.label, options)
    if layout.label:
        warn_of_names(tables, names)
    groups, hint = _groups(tables, columns, layout, splits, given, images)
    first = images.first
    groups = None if groups is None else groups[first]
    listing = Listing(encode([given[row] for row in first.tolist()]), labels, names, groups)
    if splits is None:
        return Table({"train": listing}, folder, False, layout.label is None, hint)
    splits = splits[first]
    listings: dict[Split, Listing] = {
        split: listing.select(rows) for split in SPLITS if (rows := splits == split).any()
    }
    return Table(listings, folder, True, layout.label is None, hint)


def _groups(
    tables: TableFiles,
    columns: Columns,
    layout: Layout,
    splits: npt.NDArray[np.str_] | None,
    paths: Sequence[str],
    images: Images,
) -> tuple[Indices | None, str]:
    """Return the group of each row, or None and a sentence on a column that may have groups."""
    if layout.group is None:
        return None, suggest_groups(columns, [layout.path, layout.split, layout.label, *layout.labels])
    if is_test_only():  # nothing is divided
        return None, ""
    given = None if splits is None else splits.tolist()
    texts = as_texts(columns[layout.group])
    if len(images.first) < len(texts):
        texts = texts_of_images(tables, layout.group, paths, images, texts)
    return read_groups(tables, layout.group, texts, given), ""


def _required(tables: TableFiles, columns: Columns, name: str, kind: str) -> list[str]:
    """Return the cells of a column; raise if one is empty."""
    if dict in set(map(type, columns[name])):
        raise InputError(f"column '{name}' of '{tables}' holds images, not paths: write the images to files.")
    texts = as_texts(columns[name])
    if not texts:
        raise DataError(f"'{tables}' has a header, but no row: set --data.root to another file.")
    if not all(texts):
        row = tables.row(texts.index(""))
        raise InputError(f"{row} of '{tables}' has no {kind}: give it one, or leave the row out.")
    return texts


def _splits(tables: TableFiles, columns: Columns, name: str) -> np.ndarray:
    """Return the split of each row, an empty text for other splits, which are left out."""
    texts = _required(tables, columns, name, "split")
    split_of = {text: SPLIT_OF.get(text.lower()) for text in dict.fromkeys(texts)}
    if name.lower() in SPLIT_FLAGS:
        flags: dict[int | None, Split] = dict(zip((1, 0), SPLIT_FLAGS[name.lower()], strict=True))
        split_of = {text: flags.get(CELLS.get(text.lower()), split) for text, split in split_of.items()}
    unknown = {text: texts.count(text) for text, split in split_of.items() if split is None}
    if unknown and not {"train"} < set(split_of.values()) - {None}:
        raise DataError(f"'{tables}' has split '{min(unknown)}', but allowed are train, val and test.")
    if unknown:
        listed = ", ".join(f"'{printable(text)}' ({number} rows)" for text, number in unknown.items())
        rank_zero_warn(
            f"'{tables}' has other splits than train, val and test, which are left out: {listed}.", stacklevel=1
        )
    return np.array([split_of[text] or "" for text in texts])


def _splits_of_folders(tables: TableFiles, paths: list[str]) -> npt.NDArray[np.str_] | None:
    """Return the split of each row if all paths begin with folders of splits, such as ``train/1.jpg``, or None."""
    tops = [re.split(r"[\\/]", path.removeprefix("./"), maxsplit=1)[0] for path in paths]
    split_of = {top: SPLIT_OF.get(top.lower()) for top in dict.fromkeys(tops)}
    if None in split_of.values() or not {"train"} < set(split_of.values()):
        return None
    listed = enumerate_names(list(split_of))
    rank_zero_info(
        f"guessed for '{tables}': the splits are the folders that the paths begin with, {listed}. For others, name the "
        f"column by {OPTION}split_column."
    )
    return np.array([split_of[top] for top in tops], str)


def _splits_of_lists(tables: TableFiles, paths: list[str]) -> npt.NDArray[np.str_] | None:
    """Return the split of each row by the lists of names that NIH ChestX-ray14 has beside its table, or None."""
    files = [tables.folder / name for name in LISTS]
    if not all(file.is_file() for file in files):
        return None
    split_of = {
        name: split
        for split, file in zip(("train", "test"), files, strict=True)
        for name in file.read_text("utf-8", "replace").split()
    }
    splits = np.array([split_of.get(path, "") for path in paths])
    if not all((splits == split).any() for split in ("train", "test")):
        return None
    counts = ", ".join(f"{(splits == split).sum():,} {name}" for split, name in LISTED.items() if split in splits)
    rank_zero_info(
        f"the splits of '{tables}' come from {enumerate_names(LISTS)}: {counts}. To draw test images, move these "
        "lists away."
    )
    return splits


def _find_files(
    tables: TableFiles, paths: list[str], options: TableOptions, guesses: dict[str, str]
) -> tuple[Path, list[str]]:
    """Return the folder of the images, and their paths in it. Each of several tables may have a folder of its own."""
    ends = [*tables.starts[1:], len(paths)]
    found = [
        find_files(file, paths[start:end], options.image_folder, options.extension)
        for file, start, end in zip(tables.files, tables.starts, ends, strict=True)
    ]
    places = [os.path.relpath(folder, tables.folder) for folder, _ in found]
    guessed = [place for place, file in zip(places, tables.files, strict=True) if tables.folder / place != file.parent]
    if options.image_folder is None and guessed:
        guesses["image_folder"] = ", ".join(dict.fromkeys(guessed))
    if len(set(places)) == 1:
        return found[0][0], [path for _, given in found for path in given]
    folders = [
        os.path.abspath(folder) if place.startswith("..") else place
        for place, (folder, _) in zip(places, found, strict=True)
    ]
    joined = [os.path.join(folder, path) for folder, (_, given) in zip(folders, found, strict=True) for path in given]
    return tables.folder, joined
