"""The command that a user types after a training."""

import os
from pathlib import Path

from lt_cb.commands.restored import plain_settings
from lt_cb.commands.words import shell_command
from lt_cb.data import LongTailedDataModule
from lt_cb.data.sources.base import FileSource
from lt_cb.data.sources.listing import as_paths
from lt_cb.runs.folder import RunDir
from lt_cb.text import printable


def next_line(data: LongTailedDataModule, run: RunDir, checkpoint: Path) -> str:
    """Return a line with a command: it predicts the test images, or reports the runs if images are not in files."""
    if not isinstance(data.source, FileSource):
        return f"Next: {printable(shell_command('report', str(run.path.parent)))}\n"
    config = run.read_config()
    rows = data.rows["test"]
    files = [os.path.abspath(file) for file in as_paths(data.source.files(data.origin("test"))[0][rows])]
    place = Path(os.path.commonpath(files))
    place = place if place != place.parent else Path(files[0])  # no folder in common
    here = place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place
    words = ["predict", "--ckpt_path", str(checkpoint), "--images", str(here)]
    if config["data"].get("on_unreadable") == "skip":
        words += ["--on_unreadable", "skip"]
    if any(key.startswith("model") for key in plain_settings(config, trusted=False)[1]):
        words += ["--trust_checkpoint", "true"]
    return f"Next: {printable(shell_command(*words))}\n"
