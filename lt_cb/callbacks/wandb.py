"""Class scores at W&B: a table, a chart over the epochs, bars and a confusion matrix."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lt_cb.callbacks.result import class_values, measure_title
from lt_cb.evaluation import EvaluatedModule
from lt_cb.loggers import WandB, wandb_logger
from lt_cb.metrics import CONFUSION

MAX_LINES = 20  # of the chart over epochs


class ClassesToWandB(Callback):
    """Sends class counts and class scores to the `WandB` logger, if there is one.

    - After each validation: one chart of the scores by epoch. It has a line for each class, or for each of 20 groups of
      classes, from the most to the least frequent. No class has a scalar, so thousands of classes cost no time.
    - After training and test: one table of all classes.
    - After a test of up to 100 classes: bars and a confusion matrix.
    """

    def __init__(self) -> None:
        self._epochs: list[int] = []
        self._lines: list[list[float]] = []  # by epoch, then band

    def state_dict(self) -> dict[str, Any]:
        """Return the chart so far."""
        return {"epochs": self._epochs, "lines": self._lines}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the chart."""
        self._epochs, self._lines = list(state_dict["epochs"]), list(state_dict["lines"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add an epoch to the chart."""
        logger = wandb_logger(trainer)
        if logger is None or trainer.sanity_checking or not isinstance(pl_module, EvaluatedModule):
            return
        labels, members = _bands(pl_module)
        measure = pl_module.task.measures[0]
        values = torch.tensor(pl_module.per_class[measure], dtype=torch.float64)
        self._epochs.append(trainer.current_epoch)
        self._lines.append([values[band].nanmean().item() for band in members])
        if trainer.is_global_zero:
            import wandb

            series = np.transpose(self._lines).tolist()
            title = f"Validation {measure_title(measure)} by class"
            chart: Any = wandb.plot.line_series(self._epochs, series, labels, title, "epoch")
            logger.log_metrics({"val/classes_by_epoch": chart}, trainer.global_step)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the names and counts of the classes."""
        logger = wandb_logger(trainer)
        if logger is not None and isinstance(pl_module, EvaluatedModule):
            logger.log_hyperparams({"class_counts": pl_module.loss.class_counts, "class_names": pl_module.class_names})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the scores of the last validation."""
        if self._epochs:
            _send_table(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the table, bars and confusion matrix."""
        logger = _send_table(trainer, pl_module, "test")
        if logger is None or not isinstance(pl_module, EvaluatedModule) or len(pl_module.class_names) > CONFUSION:
            return
        import wandb

        names, counts, measure = pl_module.class_names, pl_module.confusion, pl_module.task.measures[0]
        title = measure_title(measure)
        table = wandb.Table(["class", title], list(zip(names, class_values(pl_module, measure), strict=True)))
        bars = wandb.plot.bar(table, "class", title, f"Test {title} by class")
        charts: dict[str, Any] = {f"test/{measure}_by_class": bars}
        if counts is not None:
            pairs = [[a, p, counts[i][j]] for i, a in enumerate(names) for j, p in enumerate(names)]
            fields = {name: name for name in ("Actual", "Predicted", "nPredictions")}
            table = wandb.Table(list(fields), pairs)
            charts["test/confusion"] = wandb.plot_table("wandb/confusion_matrix/v1", table, fields)
        logger.log_metrics(charts, trainer.global_step)


def _bands(module: EvaluatedModule) -> tuple[list[str], list[np.ndarray]]:
    """Return the label and class indices of each line, from the most to the least frequent class."""
    counts = np.array(module.loss.class_counts)
    members = np.array_split(np.argsort(-counts, kind="stable"), min(MAX_LINES, len(counts)))
    if len(counts) <= MAX_LINES:
        return [module.class_names[band[0]] for band in members], members
    return [f"{i + 1}: {counts[b[0]]} to {counts[b[-1]]} images" for i, b in enumerate(members)], members


def _send_table(trainer: Trainer, module: LightningModule, stage: str) -> WandB | None:
    """Send the table of the classes, and return its logger; None without one, and in all processes but the first."""
    logger = wandb_logger(trainer)
    if logger is None or not trainer.is_global_zero or not isinstance(module, EvaluatedModule):
        return None
    groups = {label: name for name, members in module.groups.items() for label in members}
    shots = [groups[label] for label in range(module.num_classes)]
    measured = {name.replace("_", " "): class_values(module, name) for name in module.task.measures}
    columns = ["class", "shot group", "training images", "evaluated images", *measured]
    values = module.class_names, shots, module.loss.class_counts, module.per_class["total"], *measured.values()
    rows = [list(row) for row in zip(*values, strict=True)]
    logger.log_table(f"{stage}/classes", columns, rows, step=trainer.global_step)
    return logger
