"""Data sets of image files: folders, and published data sets."""

import os
from pathlib import Path

import numpy as np

from lt_cb.data.sources.annotations import list_annotations
from lt_cb.data.sources.base import FileSource, check_classes
from lt_cb.data.sources.listing import Listing, Split, category_names, data_folder, list_lines
from lt_cb.data.sources.table_files import refuse_table_without_classes
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
