"""Check the files of a data set: missing, unreadable, or there more than once."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache

from lightning.pytorch.utilities import rank_zero_warn

from lt_cb.data.images import check_readable
from lt_cb.data.sources.base import FileSource
from lt_cb.data.sources.listing import Split, as_paths
from lt_cb.errors import enumerate_names

BEGINNING = 65_536  # bytes that tell a file from others of its size


def check_images(source: FileSource, readable: bool = False) -> None:
    """Check that all files exist and, unless they are known to be readable, can be read; warn of equal files.

    Published annotations may be there without any image.
    """
    if source.annotated_apart and not any((source.folder / path).exists() for path in _listed(source, "train")):
        rank_zero_warn(f"No image is in '{source.folder}': only the annotations are inspected.", stacklevel=1)
        return
    for split in source.splits:
        files = as_paths(source.files(split)[0])
        if not readable:
            check_readable(files, source.view, f"Checking {split} images")
    size_of = cache(os.path.getsize)
    sizes = Counter(map(size_of, {path for split in source.splits for path in _listed(source, split)}))

    def content(path: str) -> object:
        if sizes[size_of(path)] == 1:
            return path
        with open(path, "rb") as stream:
            return size_of(path), hashlib.sha256(stream.read(BEGINNING)).digest()

    _warn_of_repeats(source, content, "images have the content of another", "Keep one of each.", between=2)


def warn_of_repeated_paths(source: FileSource) -> None:
    """Warn of files that are listed more than once."""
    remedy = "List each once; for several labels an image, put all of them in one column, labels."
    _warn_of_repeats(source, str, "images are listed more than once", remedy)


def warn_of_unknown_negatives(source: FileSource) -> None:
    """Warn of labels that some images have, and others may have, but none is known to be without."""
    for split in source.splits if source.multi_label else ():
        labels = source.labels(split)
        undefined = (labels == 1).any(0) & (labels == -1).any(0) & ~(labels == 0).any(0)
        if names := enumerate_names([source.class_names[label] for label in undefined.nonzero()[0]]):
            rank_zero_warn(
                f"'{source.root}' has no {split} image that is known to be without {names}: average precision and mAP "
                "leave them out. If an empty cell means no, set --data.source.blank no.",
                stacklevel=1,
            )


def _listed(source: FileSource, split: Split) -> list[str]:
    paths = source.listing(split).paths.tolist()
    return [os.path.abspath(os.path.join(source.folder, os.fsdecode(path))) for path in paths]


def _warn_of_repeats(
    source: FileSource, key_of: Callable[[str], object], problem: str, remedy: str, between: int = 1
) -> None:
    """Warn of images with equal keys, of at least ``between`` files."""
    groups: dict[object, list[tuple[str, str, bytes]]] = defaultdict(list)
    for split in source.splits:
        for path, label in zip(_listed(source, split), source.listing(split).labels, strict=True):
            groups[key_of(path)].append((path, split, label.tobytes()))
    repeated = [group for group in groups.values() if len(group) > 1 and len({path for path, *_ in group}) >= between]
    if repeated:
        across, differing = (sum(len({image[i] for image in group}) > 1 for group in repeated) for i in (1, 2))
        names = enumerate_names([os.path.relpath(group[-1][0], source.folder) for group in repeated])
        rank_zero_warn(
            f"{len(repeated)} {problem} in '{source.root}': {names}. {across} of them are in several splits, "
            f"{differing} have different labels. {remedy}",
            stacklevel=1,
        )
