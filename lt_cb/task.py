"""Tasks: one label or several labels an image. Imports no torch until a task evaluates."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Names and rules that depend on how many labels an image has.

    Attributes:
        multi_label: whether an image has any number of labels; the option of that name in configurations and results.
        main_metric: metric to choose by, logged as ``val/NAME`` and ``test/NAME``.
        measures: scores of each class, the first of them for charts; ``result.json`` has them as ``per_class_NAME``.
        means: means over classes: metric name by measure. ``NAME/many``, ``/medium`` and ``/few`` are its shot groups.
        unit: what a class count counts.
        plain_loss: class path of the loss without weights that ``fit`` uses by default.
    """

    multi_label: bool
    main_metric: str
    measures: tuple[str, ...]
    means: dict[str, str]
    unit: str
    plain_loss: str

    @staticmethod
    def of(multi_label: bool) -> "Task":
        """Return the task of data whose images have one label (False) or several (True)."""
        return SEVERAL_LABELS if multi_label else ONE_LABEL


ONE_LABEL = Task(
    multi_label=False,
    main_metric="balanced_acc",
    measures=("accuracy",),
    means={"accuracy": "balanced_acc"},
    unit="image",
    plain_loss="lt_cb.losses.SoftmaxLoss",
)
SEVERAL_LABELS = Task(
    multi_label=True,
    main_metric="mAP",
    measures=("average_precision", "auroc", "f1"),
    means={"average_precision": "mAP", "auroc": "auroc", "f1": "f1_macro"},
    unit="label",
    plain_loss="lt_cb.losses.SigmoidLoss",
)
