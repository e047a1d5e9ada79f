"""Find the image files that a table names: their folder, their extension, and slashes for back-slashes."""

import filecmp
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from lt_cb.errors import InputError, enumerate_names

ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif")
NUM_TRIED = 10  # images that are looked for in a folder


def find_files(
    table: Path, paths: list[str], image_folder: str | None, extension: str | None
) -> tuple[Path, list[str]]:
    """Return the folder of the images, and their paths in it, completed.

    Without ``image_folder``, it is the folder of the table, or one beside the table that has one of the first images.
    If none has, all folders below the table's are searched for the names of the images.
    """
    if extension:
        ending = extension.strip()
        ending = "." + ending if ending[:1].isalnum() else ending  # jpg, .jpg, _green.png
        paths = [path if path.lower().endswith(ending.lower()) else path + ending for path in paths]
    if image_folder is not None:
        folder = given_folder(table.parent, image_folder)
        completed = _complete(folder, paths)
        return folder, completed if _exist(folder, completed) else _search(folder, completed)
    stem = table.stem.removesuffix("_labels")
    beside = [table.parent / name for name in dict.fromkeys((stem, f"{stem}_images", table.stem, "images"))]
    for folder in (table.parent, *beside, table.parent.parent, table.parent.parent / "images"):
        if _exist(folder, _complete(folder, paths[:NUM_TRIED])):
            return folder, _complete(folder, paths)
    if not extension:
        _refuse_several_endings(beside, paths[0])
    return table.parent, _search(table.parent, _complete(table.parent, paths))


def given_folder(base: Path, image_folder: str) -> Path:
    """Return the folder that the option ``image_folder`` names, relative to the folder of the data or to this one."""
    given = Path(os.path.expanduser(image_folder))
    folder = next((place for place in (base / given, given) if place.is_dir()), None)
    if folder is None:
        raise InputError(f"image_folder is '{image_folder}', but there is no such folder: set it to the images'.")
    return folder


def _refuse_several_endings(folders: Sequence[Path], path: str) -> None:
    """Raise if there are several images whose names begin like the first image, such as ``1_red.png``."""
    for folder in filter(Path.is_dir, folders):
        found = sorted(name for name in os.listdir(folder) if re.fullmatch(rf"{re.escape(path)}[\W_]\w+\.\w+", name))
        if len(found) > 1:
            raise InputError(
                f"'{folder}' has no image '{path}', but {enumerate_names(found)}: choose one for each row by "
                f"--data.source.extension {found[0].removeprefix(path)}."
            )


def names_file(folder: Path, path: str) -> bool:
    """Return whether a text is the path of an image file in a folder, with or without the extension."""
    try:
        return bool(path) and (folder / _complete(folder, [path])[0]).is_file()
    except (OSError, ValueError):
        return False


def _exist(folder: Path, paths: Sequence[str]) -> bool:
    return any(os.path.lexists(folder / path) for path in paths[:NUM_TRIED])


def _search(folder: Path, paths: list[str]) -> list[str]:
    """Return the paths with the subfolders that have files of their names, if the paths are only names."""
    if any("/" in path for path in paths[:NUM_TRIED]):
        return paths
    places: dict[str, list[str]] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending.lower() in ENDINGS:
                for key in {name, stem}:
                    places.setdefault(key, []).append(os.path.join(os.path.relpath(place, folder), name))
    for path in paths:
        first, *others = places.get(path, ("",))
        if not all(filecmp.cmp(folder / first, folder / other) for other in others):
            found = enumerate_names(places[path])
            raise InputError(f"image '{path}' is in several places, {found}: set --data.source.image_folder to one.")
    if any(path in places for path in paths):
        used = sorted({os.path.dirname(places[path][0]) for path in paths if path in places})
        rank_zero_info(f"images are found in folders below '{folder}': {enumerate_names(used)}.")
    return [places[path][0] if path in places else path for path in paths]


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
