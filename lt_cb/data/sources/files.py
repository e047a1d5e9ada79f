"""Data sets of image files: folders, published data sets, and tables."""

import os
from pathlib import Path

import numpy as np

from lt_cb.data.sources.base import FileSource, Split, check_classes
from lt_cb.data.sources.listing import Listing, category_names, list_annotations, list_lines
from lt_cb.data.sources.tables import list_table, warn_of_several
from lt_cb.data.sources.tree import list_tree
from lt_cb.errors import InputError, enumerate_names


class ImageFolder(FileSource):
    """Image files in ``root/{train,test}/<class>/``, in any format PIL reads, and validation images in ``val``.

    Classes are the folder names of ``train`` in alphabetical order. If another split has no image of a class, its means
    leave the class out. Without ``test``, ``val`` is the test split.

    Args:
        root: folder that has ``train`` and ``test``.

    Raises:
        InputError: if a folder is missing, an image lies outside the class folders, or a class has no training image.
    """

    test_folders: tuple[str, ...] = ("test", "val")

    def __init__(self, root: str) -> None:
        existing = [name for name in self.test_folders if Path(os.path.expanduser(root)).joinpath(name).is_dir()]
        self._folders: dict[Split, str] = {"train": "train", "test": [*existing, self.test_folders[0]][0]}
        self.has_val = len(existing) > 1
        if self.has_val:
            self._folders["val"] = existing[1]
        self._listings: dict[Split, Listing] = {}
        super().__init__(root)
        check_classes(self, "add images, or remove the class folder")

    def listing(self, split: Split) -> Listing:
        """Return the images in the folder of a split."""
        if split not in self._listings:
            folder = self.root / self._folders[split]
            listing = list_tree(folder, least=2 if split == "train" else 1)
            if not len(listing.labels):
                raise InputError(f"there are no images in the class folders of '{folder}': add some.")
            if split != "train":
                listing = self._by_classes_of_train(folder, listing)
            paths = np.char.add(f"{folder.name}/".encode(), listing.paths)
            self._listings[split] = listing._replace(paths=paths)
        return self._listings[split]

    def _by_classes_of_train(self, folder: Path, listing: Listing) -> Listing:
        """Replace labels by indices of the training classes."""
        index = {name: label for label, name in enumerate(self.listing("train").class_names)}
        counts = np.bincount(listing.labels, minlength=len(listing.class_names))
        given = [name for name, count in zip(listing.class_names, counts, strict=True) if count]
        if unknown := [name for name in given if name not in index]:
            raise InputError(
                f"'{folder}' has images of {enumerate_names(unknown)}, but '{self.root / 'train'}' has none: add some "
                f"there, or remove the class folders from '{folder.name}'."
            )
        labels = np.array([index.get(name, -1) for name in listing.class_names])[listing.labels]
        return Listing(listing.paths, labels, list(index))


class ILSVRC2012(ImageFolder):
    """ILSVRC 2012 in torchvision's layout: 1,000 classes, ``root/{train,val}/<wnid>/*.JPEG``.

    ``val`` is the test split.
    """

    default_size = 224
    test_folders = ("val",)


class _Listed(FileSource):
    """Image files named by list files, in ``root`` or in a folder there."""

    default_size = 224
    lists: dict[Split, str] = {}

    def __init__(self, root: str) -> None:
        self._listings: dict[Split, Listing] = {}
        super().__init__(root)

    def listing(self, split: Split) -> Listing:
        """Return the images of a split."""
        if split not in self._listings:
            self._listings[split] = self._read(split)
        return self._listings[split]

    def _read(self, split: Split) -> Listing:
        return list_lines(self._find(self.lists[split]))

    def _find(self, name: str) -> Path:
        places = (self.root / name, *sorted(self.root.glob(f"*/{name}")))
        return next((file for file in places if file.is_file()), self.root / name)


class INaturalist2018(_Listed):
    """iNaturalist 2018: 8,142 classes, 437,513 training images, imbalance factor 500.

    Annotations: ``train2018.json`` and ``val2018.json`` of the competition, or the list files
    ``iNaturalist18_train.txt`` and ``iNaturalist18_val.txt``. Images: as these say, or in torchvision's folder
    ``2018``. The validation images are the test split.
    """

    year = 2018
    lists = {"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"}

    def _read(self, split: Split) -> Listing:
        annotations = self._find(f"{'train' if split == 'train' else 'val'}{self.year}.json")
        by_list = not annotations.is_file() and split in self.lists and self._find(self.lists[split]).is_file()
        listing = super()._read(split) if by_list else list_annotations(annotations)
        names = self._find("categories.json")  # published later than the annotations of 2018
        if not by_list and names.is_file():
            listing = listing._replace(class_names=category_names(names, listing.class_names))
        if split != "train" and not by_list and listing.class_names != self.class_names:
            raise InputError(
                f"the categories of '{annotations}' differ from the training images': both must have all classes."
            )
        top = listing.paths[0].partition(b"/")[0]
        if not self.root.joinpath(top.decode()).is_dir() and self.root.joinpath(str(self.year)).is_dir():
            renamed = [str(self.year).encode() + path.removeprefix(top) for path in listing.paths.tolist()]
            listing = listing._replace(paths=np.array(renamed, bytes))
        return listing


class INaturalist2017(INaturalist2018):
    """iNaturalist 2017: 5,089 classes, 579,184 training images, imbalance factor 435.44.

    Annotations: ``train2017.json`` and ``val2017.json`` of the competition. Images: as these say, or in torchvision's
    folder ``2017``. The validation images are the test split.
    """

    year = 2017
    lists = {}


class ImageNetLT(_Listed):
    """ImageNet-LT (Liu et al. 2019): 1,000 classes, 115,846 training images, imbalance factor 256.

    List files: ``ImageNet_LT_{train,val,test}.txt`` of the authors, in root or a folder there. Images: ILSVRC 2012, as
    the lists say.
    """

    lists = {split: f"ImageNet_LT_{split}.txt" for split in ("train", "val", "test")}
    has_val = True


class PlacesLT(_Listed):
    """Places-LT (Liu et al. 2019): 365 classes, 62,500 training images, imbalance factor 996.

    List files: ``Places_LT_{train,val,test}.txt`` of the authors, in root or a folder there. Images: Places365, as the
    lists say.
    """

    lists = {split: f"Places_LT_{split}.txt" for split in ("train", "val", "test")}
    has_val = True


class Manifest(FileSource):
    """Image files in a table: CSV with a header, or Parquet, with columns path, split and label.

    - ``path``: absolute, or relative to the folder of the table.
    - ``split``: train, val or test. Without test images, val is the test split.
    - ``label``: class name. Classes are sorted by value if all are whole numbers, otherwise alphabetically.

    For several labels an image, use a column ``labels`` with names separated by semicolons, or nothing. Without
    ``label`` and ``labels``, each further column is a label: 1 or 0, or empty, NaN or -1 for unknown.

    Args:
        root: path of the table.
        separator: separator of several labels in ``label`` or ``labels``; None is a semicolon in ``labels`` only.
        label_columns: names of the label columns; None takes all further columns.

    Raises:
        InputError: if the table is missing or wrong, or a class has no training image.
    """

    def __init__(self, root: str, separator: str | None = None, label_columns: list[str] | None = None) -> None:
        if separator == "" or label_columns == [] or (separator and label_columns):
            raise InputError(
                f"separator is {separator!r} and label_columns {label_columns}, but one of them may be given, and not "
                "empty: labels are names in one column, or have a column each."
            )
        table = Path(os.path.expanduser(root))
        self._splits = list_table(table, separator, label_columns)
        if unknown := self._splits.keys() - {"train", "val", "test"}:
            raise InputError(f"'{root}' has split '{min(unknown)}', but allowed are train, val and test.")
        if missing := {"train", "test"} - self._splits.keys():
            if missing == {"test"} and "val" in self._splits:
                self._splits["test"] = self._splits.pop("val")
            else:
                raise InputError(f"'{root}' has no image of split {min(missing)}: it needs train, and test or val.")
        self.has_val = "val" in self._splits
        self.multi_label = self._splits["train"].labels.ndim == 2
        super().__init__(root)
        if label_columns is None:
            warn_of_several(table, self.class_names)
        check_classes(self, "add some, or leave the label out")

    def listing(self, split: Split) -> Listing:
        """Return the rows of a split."""
        return self._splits[split]
