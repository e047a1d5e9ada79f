"""Start of a fine-tuning: whether its network has seen the held-out images, and its callbacks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn

from lt_cb.callbacks import BestEpoch
from lt_cb.commands.cli import CommandLine
from lt_cb.commands.elsewhere import digests_in
from lt_cb.data import LongTailedDataModule
from lt_cb.data.elsewhere import file_digests
from lt_cb.data.sources.base import FileSource
from lt_cb.runs import checkpoint as checkpoints

# options of data that decide which images are held out
SPLIT = (
    *("source", "root", "task", "split", "val_fraction", "imbalance_factor", "imbalance_type", "n_max"),
    *("subset_counts", "subset_seed"),
)


def start_callbacks(cli: CommandLine, data: LongTailedDataModule) -> list[Callback]:
    """Return the callbacks of a training that starts from the checkpoint."""
    if data.validation_split == "test":  # no image is held out
        return [BestEpoch(False)]
    seen = num_seen(cli, data)
    if seen:
        of = "some" if seen < 0 else f"{seen:,}"
        rank_zero_warn(
            f"The checkpoint was trained on {of} of the {len(data.targets('val')):,} held-out images, so that their "
            "scores are too high, and choose nothing. Set --data.val_fraction as in its training, or start from a "
            "checkpoint of recommend.",
            stacklevel=1,
        )
    return [BestEpoch(not seen)]


def resumed_callbacks(content: Mapping[str, Any]) -> list[Callback]:
    """Return the callbacks of a fine-tuning that resumes from a checkpoint; none for another training."""
    kept = BestEpoch.state_in(content)
    if kept is None:
        return []
    return [BestEpoch(bool(kept.get("compares")))]


def num_seen(cli: CommandLine, data: LongTailedDataModule) -> int:
    """Return how many held-out images the checkpoint was trained on; -1 if it is not known that there are none."""
    content = cli.checkpoint or {}
    trained, head = digests_in(content), checkpoints.head(content)
    if trained is not None and not len(trained):
        return 0
    data.targets("val")
    if trained is not None and isinstance(data.source, FileSource):
        files = data.source.files_at(data.origin("val"), data.rows["val"])
        return int(np.isin(file_digests(files), trained).sum())
    before, now = cli.trained.get("data") or {}, cli.config.data
    alike = data.source.has_val or bool(before.get("val_fraction"))
    same = all(str(before.get(name)) == str(_plain(now.get(name))) for name in SPLIT)
    return 0 if head is None and alike and same else -1


def _plain(value: Any) -> Any:  # noqa: ANN401 - of a configuration
    return value.as_dict() if hasattr(value, "as_dict") else value
