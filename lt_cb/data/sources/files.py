"""Data sets of image files: folders, published data sets, and tables."""

import os
from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.annotations import list_annotations
from lt_cb.data.sources.base import FileSource, check_classes
from lt_cb.data.sources.checks import warn_of_unknown_negatives
from lt_cb.data.sources.columns import TableOptions, as_option
from lt_cb.data.sources.listing import Listing, Split, category_names, data_folder, list_lines
from lt_cb.data.sources.table_files import refuse_table_without_classes
from lt_cb.data.sources.tables import list_table
from lt_cb.data.sources.tested import with_test
from lt_cb.data.sources.tree import find_splits, list_tree
from lt_cb.errors import DataError, InputError, enumerate_names


class ImageFolder(FileSource):
    """Image files in ``root/{train,val,test}/<class>/``, or in ``root/<class>/``, in any raster format of PIL.

    - ``training``, ``valid``, ``validation``, ``testing``, and capitals, are names of these folders too.
    - Classes are the folder names of ``train`` in alphabetical order. If another split has no image of a class, its
      means leave the class out.
    - Without ``test``, ``val`` is the test split. Without both, a share of each class is held out, see `draw_test`.

    Args:
        root: folder that has ``train``, or the folders of the classes.
    """

    def __init__(self, root: str) -> None:
        base = data_folder(root)
        refuse_table_without_classes(base)
        splits = self._find_splits(base)
        train_folder = splits.pop("train", base)
        train = _list_folder(train_folder, base)
        others = {split: _by_classes_of(train, train_folder, folder, base) for split, folder in splits.items()}
        super().__init__(root, {"train": train, **others})
        if "test" not in others:
            self.hold_out_test(train)
        check_classes(self, "add images, or remove the class folder")

    def _find_splits(self, root: Path) -> dict[Split, Path]:
        """Return the folder of each split; none if the folders of the classes are in root."""
        return with_test(find_splits(root))


def _list_folder(folder: Path, base: Path, least: int = 2) -> Listing:
    """Return the images in the class folders of a split, with paths that start from ``base``."""
    listing = list_tree(folder, least)
    if not len(listing.labels):
        raise DataError(f"there are no images in the class folders of '{folder}': add some.")
    if folder == base:
        return listing
    return listing._replace(paths=np.char.add(os.fsencode(f"{folder.relative_to(base)}/"), listing.paths))


def _by_classes_of(train: Listing, train_folder: Path, folder: Path, base: Path) -> Listing:
    """Return the images of another split, labelled with the classes of the training images."""
    paths, labels, names = _list_folder(folder, base, least=1)[:3]
    given = [names[label] for label in np.unique(labels)]
    if unknown := [name for name in given if name not in train.class_names]:
        raise DataError(
            f"'{folder}' has images of {enumerate_names(unknown)}, but '{train_folder}' has none: add "
            f"some there, or remove the class folders from '{folder.name}'."
        )
    index = {name: label for label, name in enumerate(train.class_names)}
    return Listing(paths, np.array([index.get(name, -1) for name in names])[labels], train.class_names)


class ILSVRC2012(ImageFolder):
    """ILSVRC 2012 in torchvision's layout: 1,000 classes, ``root/{train,val}/<wnid>/*.JPEG``.

    ``val`` is the test split.
    """

    default_size = 224

    def _find_splits(self, root: Path) -> dict[Split, Path]:
        return {"train": root / "train", "test": root / "val"}


class _Listed(FileSource):
    """Image files named by list files, in ``root`` or in a folder there, each read when it is needed."""

    default_size = 224
    annotated_apart = True
    list_file: str

    def __init__(self, root: str) -> None:
        self.root = data_folder(root)
        super().__init__(root, {"train": self._read("train")})

    def listing(self, split: Split) -> Listing:
        """Return the images of a split."""
        if split not in self.listings:
            self.listings[split] = self._read(split)
        return self.listings[split]

    def _read(self, split: Split) -> Listing:
        return list_lines(self._find(self.list_file.format(split)))

    def _find(self, name: str) -> Path:
        places = (self.root / name, *sorted(self.root.glob(f"*/{name}")))
        return next((file for file in places if file.is_file()), self.root / name)


class ImageNetLT(_Listed):
    """ImageNet-LT (Liu et al. 2019): 1,000 classes, 115,846 training images, imbalance factor 256.

    List files: ``ImageNet_LT_{train,val,test}.txt`` of the authors, in root or a folder there. Images: ILSVRC 2012, as
    the lists say.
    """

    list_file = "ImageNet_LT_{}.txt"
    has_val = True


class PlacesLT(_Listed):
    """Places-LT (Liu et al. 2019): 365 classes, 62,500 training images, imbalance factor 996.

    List files: ``Places_LT_{train,val,test}.txt`` of the authors, in root or a folder there. Images: Places365, as the
    lists say.
    """

    list_file = "Places_LT_{}.txt"
    has_val = True


class INaturalist2018(_Listed):
    """iNaturalist 2018: 8,142 classes, 437,513 training images, imbalance factor 500.

    Annotations: ``train2018.json`` and ``val2018.json`` of the competition, or the list files
    ``iNaturalist18_train.txt`` and ``iNaturalist18_val.txt``. Images: as these say, or in torchvision's folder
    ``2018``. The validation images are the test split. For iNaturalist 2019 and 2021 use `COCO`.
    """

    year = 2018

    def _read(self, split: Split) -> Listing:
        name = "train" if split == "train" else "val"
        annotations = self._find(f"{name}{self.year}.json")
        lines = self._find(f"iNaturalist{self.year - 2000}_{name}.txt")
        if lines.is_file() and not annotations.is_file():
            listing = list_lines(lines)
        else:
            listing = list_annotations(annotations)
            names = self._find("categories.json")  # published later than the annotations of 2018
            if names.is_file():
                listing = listing._replace(class_names=category_names(names, listing.class_names))
            if split != "train" and listing.class_names != self.class_names:
                raise InputError(
                    f"the categories of '{annotations}' differ from the training images': both must have all classes."
                )
        top = listing.paths[0].partition(b"/")[0]
        if not (self.root / os.fsdecode(top)).is_dir() and (self.root / str(self.year)).is_dir():
            renamed = [str(self.year).encode() + path.removeprefix(top) for path in listing.paths.tolist()]
            listing = listing._replace(paths=np.array(renamed, bytes))
        return listing


class INaturalist2017(INaturalist2018):
    """iNaturalist 2017: 5,089 classes, 579,184 training images, imbalance factor 435.44.

    Annotations: ``train2017.json`` and ``val2017.json`` of the competition. Images: as these say, or in torchvision's
    folder ``2017``. The validation images are the test split.
    """

    year = 2017


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
        blank = "no" if blank is False else blank
        names = (path_column, label_column, label_columns, split_column, image_folder, extension)
        options = TableOptions(*names, separator, blank, task, group_column)
        table = list_table(path := Path(os.path.expanduser(root)), options)
        self.tests_from = "test table" if path.is_dir() else "split column"
        has_test = "test" in table.listings
        listings = with_test(table.listings)
        if not has_test and "test" in listings:
            rank_zero_info(f"no test images in '{root}': the val images are the test images.")
        if table.divided and (missing := {"train", "test"} - listings.keys()):
            raise DataError(f"'{root}' has no image of split {min(missing)}: it needs train, and test or val.")
        super().__init__(root, listings)
        self.folder, self.place_option = table.folder, "--data.source.image_folder"
        self.group_name, self.group_hint = group_column or "", table.group_hint
        if not table.divided:
            self.hold_out_test(listings["train"])
        kept = [name for name, count in zip(self.class_names, self.counts, strict=True) if count]
        leave_out = "leave out the rows that have it"
        if table.by_column and 0 < len(kept) < len(self.class_names):
            leave_out = f"leave it out by --data.source.label_columns '{as_option(kept)}'"
        check_classes(self, f"add some, or {leave_out}")
        warn_of_unknown_negatives(self)
