"""Image files that a user names: by file, folder, pattern, or a list in a text file."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lt_cb.data.decode import is_image
from lt_cb.data.sources.tree import find_images, is_other, warn_of_others
from lt_cb.errors import InputError, enumerate_names
from lt_cb.say import warn

REMEDY = "set --images to images, a folder, a pattern such as 'new/*.jpg', or a .txt file with a path on each line."
LIST = ".txt"


def find_given(given: Sequence[str]) -> list[Path]:
    """Return the image files that texts name, in their order. Files of a folder or a pattern are sorted.

    Raise InputError if one of the texts names no image.
    """
    if not any(given):
        raise InputError(f"predict needs images: {REMEDY}")
    files = [file for text in given for file in _find(os.path.expanduser(text))]
    first: dict[str, Path] = {}
    repeated = {os.path.relpath(file) for file in files if first.setdefault(os.path.abspath(file), file) is not file}
    if repeated:
        names = enumerate_names(sorted(repeated))
        warn(f"{len(repeated)} images are given more than once, and used once: {names}.")
    return list(first.values())


def _find(text: str) -> list[Path]:
    path = Path(text)
    if not text or not (path.exists() or glob.has_magic(text)):
        raise InputError(f"there is no file or folder '{text}': {REMEDY}")
    if path.is_dir():
        files = find_images(path)
    elif path.exists():
        return list(_in_list(path)) if path.suffix.lower() == LIST else [path]
    else:
        matches = sorted(map(Path, glob.glob(text, recursive=True)))
        if not matches:
            raise InputError(f"no file matches '{text}': {REMEDY}")
        warn_of_others([str(match) for match in matches if match.is_file() and is_other(match)])
        files = [match for match in matches if is_image(match.name) and not match.is_dir()]
    if not files:
        raise InputError(f"there are no images in '{text}': {REMEDY}")
    return files


def _in_list(file: Path) -> Iterator[Path]:
    """Yield the files of a list, whose paths start from its folder or from here."""
    lines = file.read_bytes().decode("utf-8-sig", "surrogateescape").splitlines()
    found: dict[str, Path | None] = {}
    for number, path in enumerate(map(str.strip, lines), 1):
        if path:
            places = file.parent / path, Path(os.path.expanduser(path))
            found[f"{path} (line {number})"] = next((place for place in places if place.is_file()), None)
    if not found:
        raise InputError(f"the list '{file}' names no image: write a path on each line.")
    if missing := [name for name, place in found.items() if place is None]:
        raise InputError(
            f"{len(missing)} of {len(found)} images in the list '{file}' are not there: {enumerate_names(missing)}. "
            f"Write paths that start from '{file.parent}', or absolute ones."
        )
    yield from filter(None, found.values())
