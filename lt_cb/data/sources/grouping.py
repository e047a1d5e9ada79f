"""Groups of a table's images, such as the images of one patient: read their column, or suggest one."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.columns import OPTION
from lt_cb.data.sources.reading import Columns
from lt_cb.errors import InputError
from lt_cb.longtail.subset import Indices
from lt_cb.text import printable

LIKELY = ("patient", "subject", "participant", "person", "individual", "lesion", "location", "sequence", "seq", "burst")
MAX_GROUPS = 5  # that a message lists


def read_groups(file: object, name: str, texts: Sequence[str], splits: Sequence[str] | None) -> Indices:
    """Return the group of each row, a number for each text in a column; raise if a group is in two given splits.

    A row without a text is a group of its own.
    """
    texts = [text[:-2] if text.endswith(".0") and text[:-2].isdigit() else text for text in texts]  # pandas writes 1 so
    number: dict[object, int] = {}
    groups = np.array([number.setdefault(text or row, len(number)) for row, text in enumerate(texts)], np.int64)
    if blank := texts.count(""):
        rank_zero_info(f"{blank} of {len(texts)} rows of '{file}' have no '{name}': each is a group of its own.")
    if splits is not None:
        _check_splits(file, name, texts, groups, splits)
    return groups


def _check_splits(file: object, name: str, texts: Sequence[str], groups: Indices, splits: Sequence[str]) -> None:
    first: dict[int, int] = {}  # row of each group
    other: dict[int, int] = {}  # row of the group in another split
    for row, group in enumerate(groups.tolist()):
        before = first.setdefault(group, row)
        if splits[before] != splits[row]:
            other.setdefault(group, row)
    if other:
        listed = "; ".join(
            f"'{printable(texts[b])}' in rows {a + 1} ({splits[a]}) and {b + 1} ({splits[b]})"
            for a, b in [(first[group], row) for group, row in other.items()][:MAX_GROUPS]
        )
        more = f" and {len(other) - MAX_GROUPS} more" if len(other) > MAX_GROUPS else ""
        raise InputError(
            f"{len(other)} of {len(first)} groups of '{name}' in '{file}' are in more than one split: {listed}{more}. "
            f"Put each into one split, or leave out {OPTION}group_column to use the splits as they are."
        )


def suggest_groups(columns: Columns, used: Iterable[str | None]) -> str:
    """Return a sentence on a column that may name groups, such as ``Patient ID``, or nothing."""
    plain = {name: re.sub("(id|no|number|name)?s?$", "", re.sub("[^a-z]", "", name.lower())) for name in columns}
    for kind in LIKELY:
        for name in columns:
            if plain[name] != kind or name in used:
                continue
            values, rows = len(set(map(str, columns[name]))), len(columns[name])
            if 1 < values < rows:
                quoted = f"'{name}'" if re.search(r"\W", name) else name
                option = f"{OPTION}group_column {quoted}"
                return f"'{name}' has {values} values for {rows} images: {option} keeps the images of each together."
    return ""
