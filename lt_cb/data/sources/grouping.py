"""Groups of a table's images, such as the images of one patient: read their column, or suggest one."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.longtail.subset import Indices

LIKELY = ("patient", "subject", "participant", "person", "individual", "lesion", "location", "sequence", "seq", "burst")


def read_groups(file: object, name: str, texts: Sequence[str]) -> Indices:
    """Return the group of each row, a number for each text in a column. A row without a text is a group of its own."""
    texts = [text[:-2] if text.endswith(".0") and text[:-2].isdigit() else text for text in texts]  # pandas writes 1 so
    number: dict[object, int] = {}
    groups = np.array([number.setdefault(text or row, len(number)) for row, text in enumerate(texts)], np.int64)
    if blank := texts.count(""):
        rank_zero_info(f"{blank} of {len(texts)} rows of '{file}' have no '{name}': each is a group of its own.")
    return groups


def suggest_groups(columns: Mapping[str, Sequence[object]], used: Iterable[str | None], option: str) -> str:
    """Return a sentence on a column that may name groups, such as ``Patient ID``, or nothing."""
    plain = {name: re.sub("(id|no|number|name)?s?$", "", re.sub("[^a-z]", "", name.lower())) for name in columns}
    for kind in LIKELY:
        for name in columns:
            if plain[name] == kind and name not in used:
                values, rows = len(set(map(str, columns[name]))), len(columns[name])
                if 1 < values < rows:
                    change = f"{option}group_column " + (f"'{name}'" if re.search(r"\W", name) else name)
                    return (
                        f"'{name}' has {values} values for {rows} images: {change} keeps the images of each together."
                    )
    return ""
