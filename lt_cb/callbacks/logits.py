"""The logits of the test images, for what is asked of them later."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lt_cb.module import LongTailedClassifier
from lt_cb.runs.folder import RunDir, whole_file


class SaveLogits(Callback):
    """Writes ``logits.npz`` to the run folder after a test, from which ``lt-cb report`` works out more.

    It holds, in the order of the test images, ``logits`` (float32, shape (N, C), as the loss adjusts them: their
    arg-max is the prediction), ``confidence`` (float32, (N,), the probability of the predicted class) and ``targets``
    (int64, (N,)), without the shift of a ``--prior``. 10,000 images of 100 classes are 4 MB. Of several labels an image
    it holds ``logits`` and ``targets`` (int8, (N, C), 1, 0 or -1 where unknown).
    """

    def __init__(self) -> None:
        self._batches: list[dict[str, Tensor]] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - as Lightning has it
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch, in main memory."""
        if isinstance(pl_module, LongTailedClassifier):
            logits = pl_module.loss.adjust(outputs["logits"])
            kept = {"logits": logits, "targets": outputs["targets"]}
            if not pl_module.multi_label:
                predicted = logits.argmax(1, keepdim=True)
                kept["confidence"] = pl_module.loss.probabilities(outputs["logits"]).gather(1, predicted).squeeze(1)
            self._batches.append({name: values.cpu() for name, values in kept.items()})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the processes' images together, and write."""
        folder = trainer.log_dir  # a broadcast, which all processes have to join
        batches, self._batches = self._batches, []
        if not batches or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        arrays: dict[str, Any] = {}
        for name in batches[0]:
            own = torch.cat([batch[name] for batch in batches])
            shares = [own] if trainer.world_size == 1 else gather_all_tensors(own.to(pl_module.device))
            whole = own.new_empty((sum(map(len, shares)), *own.shape[1:]))
            for rank, share in enumerate(shares):  # each process has every n-th image
                whole[rank :: len(shares)] = share.cpu()
            arrays[name] = whole.numpy()
        if trainer.is_global_zero:
            with whole_file(RunDir(folder or ".").logits, "wb") as stream:
                np.savez(stream, **arrays)
