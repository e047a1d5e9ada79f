"""The command that a user types after a training."""

import os
from pathlib import Path

from lt_cb.commands.restored import plain_settings
from lt_cb.commands.words import shell_command
from lt_cb.data import LongTailedDataModule
from lt_cb.data.sources.base import FileSource
from lt_cb.runs.folder import RunDir
from lt_cb.text import printable


def next_line(data: LongTailedDataModule, run: RunDir, *checkpoints: Path) -> str:
    """Return a line with a command: it predicts the test images, or reports the runs if images are not in files.

    Args:
        data: data of the training.
        run: folder of the training.
        checkpoints: the one to predict with, and others to try, each with a line.
    """
    if not isinstance(data.source, FileSource):
        return f"Next: {printable(shell_command('report', str(run.path.parent)))}\n"
    config, options = run.read_config(), list[str]()
    if config["data"].get("on_unreadable") == "skip":
        options += ["--on_unreadable", "skip"]
    if any(key.startswith("model") for key in plain_settings(config, trusted=False)[1]):
        options += ["--trust_checkpoint", "true"]
    images = _test_images(data, data.source)
    commands = (
        shell_command("predict", "--ckpt_path", str(file), "--images", images, *options) for file in checkpoints
    )
    return "".join(f"{'Or: ' if i else 'Next: '}{printable(command)}\n" for i, command in enumerate(commands))


def _test_images(data: LongTailedDataModule, source: FileSource) -> str:
    """Return the folder of the test images, or a placeholder if training images lie there too."""
    files, training = (
        [os.path.abspath(file) for file in source.files_at(data.origin(split), data.rows[split])]
        for split in ("test", "train")
    )
    place = Path(os.path.commonpath(files))
    place = place if place != place.parent else Path(files[0])  # no folder in common
    if any(file.startswith(os.path.join(place, "")) for file in training):
        return "NEW_IMAGES"
    return str(place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place)
