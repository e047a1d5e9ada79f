"""Loggers beside the CSV files of a run: Weights & Biases and TensorBoard."""

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lt_cb.errors import InputError

FILES = ("config.yaml", "result.json")


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

    run_folder: str | None = None  # set by the command line

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
        self._wandb_init["mode"] = "offline" if offline else None
        del self._wandb_init["anonymous"]  # wandb warns of it

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:  # noqa: ANN401 - a run of wandb, which is imported late
        """The W&B run; the first look begins it."""
        if self._experiment is None:
            self._begin()
        return self._experiment

    def _begin(self) -> None:
        import wandb

        if self.run_folder is not None and self._wandb_init["name"] is None:
            self._wandb_init["name"] = "/".join(Path(self.run_folder).parts[-2:])
        if (self._wandb_init["mode"] or os.environ.get("WANDB_MODE", "online")) == "online":
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
        if self._experiment is None or self.run_folder is None:
            return
        files = Path(self._experiment.dir, "run")  # W&B has a config.yaml of its own beside it
        for file in (Path(self.run_folder, name) for name in FILES):
            if file.is_file():
                files.mkdir(exist_ok=True)
                shutil.copy(file, files)
                self._experiment.save(str(files / file.name), base_path=str(files.parent), policy="now")


def check_installed(config: Any) -> None:  # noqa: ANN401 - as parsed
    """Look for what a logger of the configuration needs, before jsonargparse hides the error in many others.

    Raises:
        InputError: (a ValueError) if TensorBoard is asked for and not installed.
    """
    asked = any(
        getattr(logger, "class_path", "").endswith("TensorBoard")
        for logger in (config if isinstance(config, list) else [config])
    )
    if asked and find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
        raise InputError("TensorBoard is not installed: uv pip install tensorboard, or leave its overlay out.")


def finish(succeeded: bool) -> None:
    """End the W&B run of this process, if there is one: the next training is another."""
    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].finish(exit_code=0 if succeeded else 1)


class TensorBoard(TensorBoardLogger):
    """TensorBoard, in the folder of the run."""

    run_folder: str | None = None  # set by the command line

    def __init__(self) -> None:
        super().__init__(save_dir="runs", default_hp_metric=False)

    @property
    def log_dir(self) -> str:
        """The folder of the run."""
        return self.run_folder or super().log_dir
