"""Logits of the test images, kept for the report."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lt_cb.evaluation import EvaluatedModule
from lt_cb.runs.folder import RunDir, whole_file


class SaveLogits(Callback):
    """Writes ``logits.npz`` to the run folder after a test, for ``lt-cb report``.

    The arrays are in the order of the test images, without a ``--prior``, which only averages have. 10,000 images of
    100 classes take 4 MB.

    - ``logits``: float32, shape (N, C), adjusted by the loss, so that their arg-max is the prediction.
    - ``confidence``: float32, shape (N,), probability of the predicted class. Only with one label an image.
    - ``targets``: int64, shape (N,). With several labels an image: int8, shape (N, C), 1, 0 or -1 (unknown).
    """

    def __init__(self) -> None:
        self._batches: list[dict[str, Tensor]] = []

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Copy a batch to main memory."""
        if isinstance(pl_module, EvaluatedModule):
            logits = pl_module.loss.adjust(outputs["logits"])
            kept = {"logits": logits, "targets": outputs["targets"]}
            if not pl_module.multi_label:
                predicted = logits.argmax(1, keepdim=True)
                kept["confidence"] = pl_module.loss.probabilities(outputs["logits"]).gather(1, predicted).squeeze(1)
            self._batches.append({name: values.cpu() for name, values in kept.items()})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the images of all processes and write the file."""
        folder = trainer.log_dir  # a broadcast, which every process must join
        batches, self._batches = self._batches, []
        if not batches or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        arrays: dict[str, Any] = {}
        for name in batches[0]:
            arrays[name] = of_all_processes(torch.cat([batch[name] for batch in batches]), trainer).numpy()
        if trainer.is_global_zero:
            with whole_file(RunDir(folder or ".").logits, "wb") as stream:
                np.savez(stream, **arrays)


def of_all_processes(own: Tensor, trainer: Trainer) -> Tensor:
    """Return the values of the images of all processes in the order of the images, on the CPU, shape (N, ...).

    ``own`` has the values of this process, whose images are every n-th one of n processes.
    """
    shares = [own] if trainer.world_size == 1 else gather_all_tensors(own.to(trainer.strategy.root_device))
    whole = own.new_empty((sum(map(len, shares)), *own.shape[1:]), device="cpu")
    for rank, share in enumerate(shares):
        whole[rank :: len(shares)] = share.cpu()
    return whole
