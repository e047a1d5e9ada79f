"""Loggers: CSV files in the folder of a run, Weights & Biases and TensorBoard."""

import csv
import itertools
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from lt_cb.errors import InputError
from lt_cb.runs.checkpoint import METRICS
from lt_cb.runs.folder import LATEST, RunDir, whole_file
from lt_cb.say import warn

MODES = ("online", "offline", "disabled", "dryrun", "shared")


class RunFolder(CSVLogger):
    """Logs to CSV files in the folder of a run, ``save_dir/name/version``, by default the next free ``version_N``."""

    _depth = 2  # folders that name the run at W&B
    _resumed: dict[str, Any] | None = None
    _claimed = False
    _held: FileLock | None = None

    @classmethod
    def of(cls, folder: str | None, root: str | None, name: str) -> "RunFolder":
        """Return the logger of a folder, or of the next free folder in ``root/name``."""
        if folder is None:
            return cls(root or "runs", name)
        path = Path(folder)
        return cls(str(path.parent.parent), path.parent.name, path.name)

    def claim(self, resumed: dict[str, Any] | None = None) -> None:
        """Use this folder for a run, after the metrics of a resumed checkpoint; raise InputError if it has another."""
        self._resumed, self._claimed = resumed, True
        self._check_free()

    def _check_free(self) -> None:
        run = RunDir(self.log_dir)
        if self._resumed is None and (run.is_done or run.checkpoint.is_file()):
            raise InputError(
                f"'{run.path}' has a run already: set --folder to another, or resume it with --ckpt_path "
                f"{run.checkpoint}."
            )

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:  # noqa: ANN401 - as in CSVLogger
        """Writer of the files; the first access creates the folder."""
        while self._experiment is None and not isinstance(self._version, str):
            try:  # several processes may start at once
                self._fs.makedirs(self.log_dir, exist_ok=False)
                self._point()
                break
            except FileExistsError:
                self._version = int(self.version) + 1
        if self._experiment is None:
            if self._claimed:
                self._lock()
            self._experiment = _Metrics(self.log_dir, self._resumed)
        return self._experiment

    def _point(self) -> None:
        """Let the link ``latest`` point to this folder, which is the newest."""
        link, folder = Path(self.root_dir, LATEST), Path(self.log_dir)
        new = folder / f".{LATEST}"
        try:
            new.symlink_to(folder.name, target_is_directory=True)
            new.replace(link)
        except OSError:  # a file system without links, or a folder of this name
            new.unlink(missing_ok=True)

    def _lock(self) -> None:
        """Keep other processes from this folder until the training ends; raise InputError if one has it."""
        self._fs.makedirs(self.log_dir, exist_ok=True)
        self._held = FileLock(RunDir(self.log_dir).writing)
        try:
            self._held.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"another process writes a run to '{self.log_dir}': set --folder to another folder, or wait."
            ) from error
        except OSError:  # a file system without locks
            return
        self._check_free()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last rows, and let other processes use the folder."""
        try:
            super().finalize(status)
        finally:
            if self._held is not None:
                self._held.release()


class PartFolder(RunFolder):
    """Logs to a folder inside another, ``RUN/test``, and if it exists to ``RUN/test_2``, ``RUN/test_3`` and so on."""

    _depth = 3

    def __init__(self, run: Path, part: str) -> None:
        super().__init__(str(run.parent), run.name)
        self._part = part

    @property
    def log_dir(self) -> str:
        """The folder."""
        return str(self._folder(int(self.version)))

    def _folder(self, number: int) -> Path:
        return Path(self.root_dir, f"{self._part}_{number + 1}" if number else self._part)

    def _get_next_version(self) -> int:
        return next(number for number in itertools.count() if not self._folder(number).exists())

    def _point(self) -> None:
        """Leave ``latest`` as it is: this is no training."""


class _Metrics(ExperimentWriter):
    """Writes complete rows to ``metrics.csv``, after the rows of the epochs up to a resumed checkpoint."""

    def __init__(self, log_dir: str, resumed: dict[str, Any] | None) -> None:
        self._resumed, self._header = resumed, list[str]()
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        if self._resumed is not None:
            self.metrics = _rows_until(RunDir(self.log_dir), self._resumed)
            self.save()

    def save(self) -> None:
        """Append new rows, or write all rows again if there are new columns; an OSError names the file."""
        run = RunDir(self.log_dir)
        self._record_new_keys()
        if self._header != self.metrics_keys:
            rows: list[dict[str, Any]] = run.read_metrics() if self._header else []
            with whole_file(run.metrics) as stream:
                writer = csv.DictWriter(stream, self.metrics_keys)
                writer.writeheader()
                writer.writerows([*rows, *self.metrics])
            self._header = list(self.metrics_keys)
        elif self.metrics:
            size = run.metrics.stat().st_size
            try:
                with run.metrics.open("a", newline="", encoding="utf-8") as stream:
                    csv.DictWriter(stream, self.metrics_keys).writerows(self.metrics)
            except OSError as error:
                os.truncate(run.metrics, size)  # a full disk takes a part of a row
                error.filename = str(run.metrics)
                raise
        self.metrics = []


def _rows_until(run: RunDir, checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of metrics up to a checkpoint; move a damaged file aside."""
    try:
        rows: list[dict[str, Any]] = run.read_metrics()
    except InputError:
        aside = run.metrics.with_suffix(".damaged.csv")
        run.metrics.replace(aside)
        warn(f"'{run.metrics}' is damaged: it was renamed to '{aside}', and its rows are left out.")
        rows = []
    end, last = checkpoint.get("epoch", -1), checkpoint.get(METRICS) or {}
    kept = [row for row in rows if float(row.get("epoch") or -1) <= end]
    written = {name for row in kept if float(row.get("epoch") or -1) == end for name in row if row[name]}
    if len(last) > 2 and not set(last) <= written:  # the process was killed between the checkpoint and the row
        kept.append(last)
    return kept


class WandB(WandbLogger):
    """Logs to Weights & Biases. It never asks for a key; without a key or a server, the run is offline.

    The run at W&B is named after the run folder, and has its ``config.yaml`` and ``result.json``. ``fit --ckpt_path``
    resumes the W&B run of the checkpoint.

    Args:
        project: default is the project of a sweep, or ``WANDB_PROJECT``, or lt_cb.
        entity: user or team.
        name: of the run; default is the name of its folder.
        group: of runs.
        tags: of the run.
        notes: on the run.
        log_model: True uploads the checkpoints as artifacts after training, ``all`` also during training.
        offline: keep the run on disk, for ``wandb sync``.
    """

    beside: RunFolder | None = None  # set by the command line

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        log_model: Literal["all"] | bool = False,
        offline: bool = False,
    ) -> None:
        project, folder = project or os.environ.get("WANDB_PROJECT", "lt_cb"), os.environ.get("WANDB_DIR", ".")
        options: dict[str, Any] = {"entity": entity, "group": group, "tags": tags, "notes": notes}
        super().__init__(name, folder, project=project, log_model=log_model, **options)
        # wandb reads its environment variables only before the first run of a process: pass the mode to each run
        self._wandb_init["mode"] = "offline" if offline else os.environ.get("WANDB_MODE")
        self._wandb_init.pop("anonymous", None)  # deprecated by wandb

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:  # noqa: ANN401 - a run of wandb, which is imported late
        """The W&B run; the first access starts it."""
        if self._experiment is None:
            if self.beside is not None and self._wandb_init["name"] is None:
                self._wandb_init["name"] = "/".join(Path(self.beside.log_dir).parts[-self.beside._depth :])
            if self._wandb_init["mode"] in (None, "online"):
                self._log_in()
        return super().experiment

    def _log_in(self) -> None:
        import wandb

        try:
            reason = None if wandb.login(prompt=False) else "there is no API key"
        except wandb.errors.Error as error:  # the key is wrong, or the server does not answer
            reason = str(error).rstrip(".")
        if reason is not None:
            self._wandb_init["mode"] = "offline"
            upload = "To upload it: wandb login, then wandb sync with its folder."
            wandb.termwarn(f"{reason}, so the run stays on disk. {upload}")

    def resume(self, run_id: str | None) -> None:
        """Continue the W&B run with this id; None starts a new run."""
        self._id = self._wandb_init["id"] = run_id

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Add the files of the run, and its checkpoints with ``log_model``."""
        super().finalize(status)
        if self._experiment is None or self.beside is None or self._experiment.disabled:
            return
        files, run = Path(self._experiment.dir, "run"), RunDir(self.beside.log_dir)  # W&B's config.yaml is above it
        for file in (run.config, run.result):
            if file.is_file():
                files.mkdir(exist_ok=True)
                shutil.copy(file, files)
                self._experiment.save(str(files / file.name), base_path=str(files.parent), policy="now")


def wandb_logger(trainer: Trainer) -> WandB | None:
    """Return the W&B logger of a trainer, None without one."""
    return next((logger for logger in trainer.loggers if isinstance(logger, WandB)), None)


def check_loggers(config: Any) -> None:  # noqa: ANN401 - as parsed
    """Check that the loggers of a configuration can run: jsonargparse would hide the reason among many errors."""
    asked = {getattr(logger, "class_path", "") for logger in (config if isinstance(config, list) else [config])}
    mode = os.environ.get("WANDB_MODE", "online")
    if "lt_cb.loggers.WandB" in asked and mode not in MODES:
        raise InputError(f"WANDB_MODE is '{mode}', but must be online, offline or disabled: set one, or unset it.")
    if "lt_cb.loggers.TensorBoard" in asked and find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
        raise InputError("TensorBoard is not installed: uv pip install tensorboard, or leave its overlay out.")


def finish(succeeded: bool) -> None:
    """End the W&B run of this process, if there is one, so that the next training starts another."""
    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].finish(exit_code=0 if succeeded else 1)


class TensorBoard(TensorBoardLogger):
    """Logs to TensorBoard, in the folder of the run."""

    beside: RunFolder | None = None  # set by the command line

    def __init__(self) -> None:
        super().__init__(save_dir="runs", version="", default_hp_metric=False)

    @property
    def root_dir(self) -> str:
        """Folder of the run."""
        return str(self.save_dir) if self.beside is None else self.beside.log_dir
