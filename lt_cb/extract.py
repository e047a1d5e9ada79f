"""Features of images: the inputs of a network's last layer."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lt_cb.data.loaders.placement import make_loader
from lt_cb.data.sources.listing import Paths
from lt_cb.data.view import View
from lt_cb.errors import InputError
from lt_cb.evaluation import Batch
from lt_cb.models import last_linear
from lt_cb.module import LongTailedClassifier


def classifier_of(model: LongTailedClassifier) -> nn.Linear:
    """Return the last layer of a network, whose inputs are the features; raise InputError if no head can replace it."""
    linear = last_linear(model.backbone, model.num_classes)
    if linear is None:
        raise InputError(
            f"the backbone has no linear layer of {model.num_classes} outputs, one a class, and so no features before "
            "it: choose a backbone with a linear classifier."
        )
    if linear.bias is None and not model.loss.normalized_classifier:
        raise InputError("the backbone's classifier has no bias, which a head needs: choose another backbone.")
    return linear


def features_of(model: LongTailedClassifier, images: Tensor) -> Tensor:
    """Return the inputs of the last layer, float32 of shape (B, D), for a batch of images.

    Raises InputError if they do not fit a head, or are not finite.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    with classifier_of(model).register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output))):
        logits = model(images)
    features = seen[-1][0].float() if seen and seen[-1][0].ndim == 2 else None
    if features is not None and not features.isfinite().all():
        raise InputError(
            "the backbone's features are not finite (NaN or infinite): check its weights and --trainer.precision."
        )
    if features is None or not _equal(seen[-1][1], logits):
        raise InputError(
            "the logits of the backbone are not the output of its last linear layer, so that a head on its "
            "features would not be its classifier: choose another backbone."
        )
    return features


def block_features(
    images: Tensor | Paths, model: LongTailedClassifier, view: View, batch_size: int, precision: str
) -> npt.NDArray[np.float32]:
    """Return the features of a block of images, float32 of shape (B, D), computed on this machine: a task of Ray."""
    options: Any = {"precision": precision, "logger": False, "enable_checkpointing": False}
    trainer = Trainer(**options, enable_progress_bar=False, enable_model_summary=False)
    threads = torch.get_num_threads()  # Ray sets it to --cpus
    loader = make_loader(
        images,
        torch.zeros(len(images), dtype=torch.int64),
        batch_size,
        view=view,
        device=trainer.strategy.root_device,
        num_workers=threads if threads > 1 else 0,
    )
    batches: Any = trainer.predict(_Features(model), loader)
    values: npt.NDArray[np.float32] = torch.cat(batches).cpu().numpy()
    return values


class _Features(LightningModule):
    """Returns the features of each batch."""

    def __init__(self, model: LongTailedClassifier) -> None:
        super().__init__()
        self.model = model

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the features of a batch, float32 of shape (B, D)."""
        return features_of(self.model, batch[0])


def _equal(logits: Tensor, others: Tensor) -> bool:
    """Return whether logits are equal; a classifier with NaN is one to replace."""
    return logits.shape == others.shape and torch.equal(logits.nan_to_num(), others.nan_to_num())
