"""Find the image files that a table names: their folder, their extension, and slashes for back-slashes."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from lt_cb.errors import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif")


def find_files(
    table: Path, paths: list[str], image_folder: str | None, extension: str | None
) -> tuple[Path, list[str]]:
    """Return the folder of the images, and their paths in it, completed.

    Without ``image_folder``, it is the folder of the table, or one beside the table that has the first image.
    """
    if extension:
        ending = "." + extension.strip().lstrip(".")
        paths = [path if path.lower().endswith(ending.lower()) else path + ending for path in paths]
    if image_folder is not None:
        given = Path(os.path.expanduser(image_folder))
        folder = next((place for place in (table.parent / given, given) if place.is_dir()), None)
        if folder is None:
            raise InputError(f"image_folder is '{image_folder}', but there is no such folder: set it to the images'.")
        return folder, _complete(folder, paths)
    places = (table.parent, *(table.parent / name for name in (table.stem, f"{table.stem}_images", "images")))
    for folder in places:
        if os.path.lexists(folder / _complete(folder, paths[:1])[0]):
            return folder, _complete(folder, paths)
    return table.parent, _complete(table.parent, paths)


def _complete(folder: Path, paths: Sequence[str]) -> list[str]:
    """Return the paths with slashes, and with the extension of the file that exists, where they have none."""

    @cache
    def endings(place: str) -> dict[str, str]:
        try:
            names = sorted(os.listdir(folder / place))
        except (OSError, ValueError):
            return {}
        split = [os.path.splitext(name) for name in names]
        return {stem: ending for stem, ending in split if ending.lower() in ENDINGS}

    def complete(path: str) -> str:
        if "\\" not in path and path.lower().endswith(ENDINGS):
            return path
        if "\\" in path and not os.path.lexists(folder / path):
            path = path.replace("\\", "/")
        place, name = os.path.split(path)
        if os.path.splitext(name)[1].lower() in ENDINGS:
            return path
        ending = endings(place).get(name)
        return path if ending is None or os.path.lexists(folder / path) else path + ending

    return [complete(path) for path in paths]
