"""Lines and counts of the groups of a data module, such as patients."""

from typing import TYPE_CHECKING

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.data.sources.base import FileSource
from lt_cb.data.sources.listing import Split
from lt_cb.errors import enumerate_names
from lt_cb.say import warn

if TYPE_CHECKING:
    from lt_cb.data.datamodule import LongTailedDataModule


def num_groups(data: "LongTailedDataModule") -> dict[str, int]:
    """Return the number of groups of each split; nothing without groups."""
    if data.groups("train") is None:
        return {}  # other splits need not be read
    splits: tuple[Split, ...] = ("train", data.validation_split, "test")
    groups = {str(split): data.groups(split) for split in dict.fromkeys(splits)}
    return {split: len(np.unique(numbers)) for split, numbers in groups.items() if numbers is not None}


def say_groups(data: "LongTailedDataModule", drawn: bool = False) -> None:
    """Say how many groups each split has, or suggest a column of groups if splits are drawn without.

    Args:
        data: a data module that has chosen its images.
        drawn: whether more splits will be drawn, such as folds.
    """
    source, counts = data.source, num_groups(data)
    drawn = drawn or data.val_fraction > 0 or (isinstance(source, FileSource) and source.undivided is not None)
    if drawn and not counts and source.group_hint:
        rank_zero_info(source.group_hint)
        source.group_hint = ""  # said once
    if not counts:
        return
    listed = ", ".join(f"{count} {split}" for split, count in counts.items())
    rank_zero_info(f"groups of '{source.group_name}' are kept together: {listed}; none is in two splits.")
    triples = zip(data.class_names, data.subset_counts, data.class_counts, strict=True)
    missing = enumerate_names([name for name, chosen, count in triples if chosen == count > 0])
    if missing and data.val_fraction:
        warn(
            f"no validation image of {missing}: the images of such a class are in one group, or in groups that another "
            "class needs for training."
        )
