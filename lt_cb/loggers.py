"""The folder of a run with its CSV files, and the loggers beside it: Weights & Biases and TensorBoard."""

import csv
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lt_cb.errors import InputError
from lt_cb.runs.checkpoint import METRICS
from lt_cb.runs.folder import RunDir, whole_file

MODES = ("online", "offline", "disabled", "dryrun", "shared")


class RunFolder(CSVLogger):
    """The folder of a run with its CSV files: ``root/name/version_N``, or one that is given.

    Args:
        save_dir: root of the runs.
        name: of the runs of one kind.
        version: name of the folder; None takes the next ``version_N`` that no other process takes at the same time.
    """

    def __init__(self, save_dir: str, name: str = "run", version: str | None = None) -> None:
        super().__init__(save_dir, name, version)
        self._chooses = version is None
        self._goes_on: dict[str, Any] | None = None

    @classmethod
    def of(cls, folder: str | None, root: str | None, name: str) -> "RunFolder":
        """Return the logger of a folder, or of the next one below root and name."""
        if folder is None:
            return cls(root or "runs", name)
        path = Path(folder)
        return cls(str(path.parent.parent), path.parent.name, path.name)

    def claim(self, goes_on: dict[str, Any] | None = None) -> None:
        """Take a folder that is given.

        Args:
            goes_on: checkpoint that its run is trained further from; the metrics up to it stay.

        Raises:
            InputError: if it has another run.
        """
        run = RunDir(self.log_dir)
        if goes_on is None and (run.is_done or run.checkpoint.is_file()):
            raise InputError(
                f"'{run.path}' has a run already: set --folder to another, or go on with --ckpt_path {run.checkpoint}."
            )
        self._goes_on = goes_on

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:  # noqa: ANN401 - as CSVLogger has it
        """The writer of the files; the first look takes the folder."""
        while self._experiment is None and self._chooses:
            try:
                self._fs.makedirs(self.log_dir, exist_ok=False)
                break
            except FileExistsError:
                self._version = int(self.version) + 1
        if self._experiment is None:
            self._experiment = _Metrics(self.log_dir, self._goes_on)
        return self._experiment


class _Metrics(ExperimentWriter):
    """The writer of ``metrics.csv``, which keeps the rows of the epochs before a resume, and never leaves a part of it.

    Args:
        log_dir: folder of the run.
        goes_on: checkpoint that it goes on from; None begins anew.
    """

    def __init__(self, log_dir: str, goes_on: dict[str, Any] | None) -> None:
        self._goes_on = goes_on
        self._header = list[str]()
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        run, kept = RunDir(self.log_dir), list[dict[str, Any]]()
        if self._goes_on is not None:
            try:
                rows = run.read_metrics()
            except InputError:
                aside = run.metrics.with_suffix(".damaged.csv")
                run.metrics.replace(aside)
                rank_zero_warn(f"'{run.metrics}' is damaged: it is '{aside}' now, and its rows are left out.")
                rows = []
            first = self._goes_on.get("epoch", -1) + 1
            kept += [row for row in rows if _epoch(row) < first]
            last = self._goes_on.get(METRICS) or {}
            written = {name for row in kept if _epoch(row) == first - 1 for name, value in row.items() if value}
            if len(last) > 2 and not set(last) <= written:  # killed between the checkpoint and the row
                kept.append(last)
        self.metrics_keys = list(dict.fromkeys(key for row in kept for key in row))
        if kept:
            self._replace(kept)
        else:
            run.metrics.unlink(missing_ok=True)

    def save(self) -> None:
        """Append what has been logged since, or write all anew under another header.

        Raises:
            OSError: with the file's name, if it cannot be written; the rows before are kept.
        """
        run = RunDir(self.log_dir)
        self._record_new_keys()
        if not self.metrics:
            return
        if self._header != self.metrics_keys:
            self._replace([*run.read_metrics(), *self.metrics])
        else:
            size = run.metrics.stat().st_size
            try:
                with run.metrics.open("a", newline="", encoding="utf-8") as stream:
                    csv.DictWriter(stream, self.metrics_keys).writerows(self.metrics)
            except OSError as error:
                os.truncate(run.metrics, size)  # a full disk takes a part of a row
                error.filename = str(run.metrics)
                raise
        self.metrics = []

    def _replace(self, rows: list[dict[str, Any]]) -> None:
        with whole_file(RunDir(self.log_dir).metrics) as stream:
            writer = csv.DictWriter(stream, self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
        self._header = list(self.metrics_keys)


def _epoch(row: dict[str, str]) -> float:
    return float(row["epoch"]) if row.get("epoch") else -1.0


class WandB(WandbLogger):
    """Weights & Biases, which is never in the way: no prompt for a key, and without one, or a server, it is offline.

    The W&B run has the name of the run folder, and its ``config.yaml`` and ``result.json``. ``fit --ckpt_path`` goes on
    in the run that the checkpoint is of.

    Args:
        project: the default is that of a sweep or ``WANDB_PROJECT``, else lt_cb.
        entity: user or team.
        name: of the run; the default is that of its folder.
        group: of runs.
        tags: of the run.
        notes: on the run.
        log_model: True uploads the checkpoints as artifacts when training ends, ``all`` while it goes on.
        offline: keep the run on disk, for ``wandb sync``.
    """

    beside: Logger | None = None  # that of the run folder; set by the command line

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
        super().__init__(
            project=project or os.environ.get("WANDB_PROJECT", "lt_cb"),
            name=name,
            save_dir=os.environ.get("WANDB_DIR", "."),
            log_model=log_model,
            entity=entity,
            group=group,
            tags=tags,
            notes=notes,
        )
        # what is said here goes before what wandb has read at the first run of the process
        self._wandb_init["mode"] = "offline" if offline else os.environ.get("WANDB_MODE")
        self._wandb_init.pop("anonymous", None)  # wandb warns of it

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:  # noqa: ANN401 - a run of wandb, which is imported late
        """The W&B run; the first look begins it."""
        if self._experiment is None:
            self._begin()
        return self._experiment

    def _begin(self) -> None:
        import wandb

        folder = _folder(self.beside)
        if folder is not None and self._wandb_init["name"] is None:
            self._wandb_init["name"] = "/".join(Path(folder).parts[-2:])
        if self._wandb_init["mode"] in (None, "online"):
            try:
                if wandb.login(prompt=False):
                    _ = super().experiment
                    return
                self._go_offline("there is no API key")
            except wandb.errors.Error as error:  # the key is wrong, or nothing answers
                self._go_offline(str(error).rstrip("."))
        _ = super().experiment

    def _go_offline(self, why: str) -> None:
        import wandb

        self._wandb_init["mode"] = "offline"
        wandb.termwarn(f"{why}, so the run stays on disk. To upload it: wandb login, then wandb sync with its folder.")

    def go_on(self, run_id: str | None) -> None:
        """Continue the W&B run of this id, which has been begun before; None begins another."""
        self._id = self._wandb_init["id"] = run_id

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Add the files of the run, and the checkpoints if that is asked for."""
        super().finalize(status)
        folder = _folder(self.beside)
        if self._experiment is None or folder is None or self._experiment.disabled:
            return
        files = Path(self._experiment.dir, "run")  # W&B has a config.yaml of its own beside it
        run = RunDir(folder)
        for file in (run.config, run.result):
            if file.is_file():
                files.mkdir(exist_ok=True)
                shutil.copy(file, files)
                self._experiment.save(str(files / file.name), base_path=str(files.parent), policy="now")


def wandb_logger(trainer: Trainer) -> WandB | None:
    """Return the W&B logger of a trainer, None without one."""
    return next((logger for logger in trainer.loggers if isinstance(logger, WandB)), None)


def check_loggers(config: Any) -> None:  # noqa: ANN401 - as parsed
    """Look for what the loggers of a configuration need, before jsonargparse hides the error in many others.

    Raises:
        InputError: if TensorBoard is not installed, or ``WANDB_MODE`` is none.
    """
    asked = {getattr(logger, "class_path", "") for logger in (config if isinstance(config, list) else [config])}
    mode = os.environ.get("WANDB_MODE", "online")
    if "lt_cb.loggers.WandB" in asked and mode not in MODES:
        raise InputError(f"WANDB_MODE is '{mode}', but must be online, offline or disabled: set one, or unset it.")
    if "lt_cb.loggers.TensorBoard" in asked and find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
        raise InputError("TensorBoard is not installed: uv pip install tensorboard, or leave its overlay out.")


def finish(succeeded: bool) -> None:
    """End the W&B run of this process, if there is one: the next training is another."""
    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].finish(exit_code=0 if succeeded else 1)


class TensorBoard(TensorBoardLogger):
    """TensorBoard, in the folder of the run."""

    beside: Logger | None = None  # that of the run folder; set by the command line

    def __init__(self) -> None:
        super().__init__(save_dir="runs", default_hp_metric=False)

    @property
    def root_dir(self) -> str:
        """The folder of the run."""
        return self.log_dir

    @property
    def log_dir(self) -> str:
        """The folder of the run."""
        return _folder(self.beside) or str(self.save_dir)


def _folder(logger: Logger | None) -> str | None:
    return None if logger is None else logger.log_dir
