"""Average of several networks: the mean of their class probabilities."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lt_cb.errors import InputError
from lt_cb.evaluation import EvaluatedModule
from lt_cb.losses import SigmoidLoss, SoftmaxLoss
from lt_cb.module import LongTailedClassifier


class Average(EvaluatedModule):
    """Networks of the same classes, which test and predict by the mean of their probabilities.

    Each network has its own normalisation, loss and prior. The logits of the average are the logarithms of the mean
    probabilities; with several labels, or a sigmoid loss, their log-odds. Its loss is plain cross-entropy.

    With several labels an image, its thresholds are the means of the networks' thresholds, as probabilities. Prediction
    sets and the measure of unknown images hold for one network alone, so the average has none.

    Args:
        networks: two or more, with their weights.
        names: the checkpoint of each network.

    Raises:
        InputError: if two networks have other classes, or another task.
    """

    backbone: nn.ModuleList

    def __init__(self, networks: Sequence[LongTailedClassifier], names: Sequence[str]) -> None:
        super().__init__()
        first, self.averaged = networks[0], list(names)
        for network, name in zip(networks, names, strict=True):
            if (network.class_names, network.multi_label) != (first.class_names, first.multi_label):
                raise InputError(
                    f"'{name}' has other classes, or another number of labels an image, than '{names[0]}': average "
                    "checkpoints of the same classes."
                )
        self.backbone = nn.ModuleList(networks)
        self.class_names, self.num_classes, self.groups = first.class_names, first.num_classes, first.groups
        self.task, self.multi_label, self.prior = first.task, first.multi_label, first.prior
        self.register_buffer("mean", first.mean, persistent=False)
        self.register_buffer("std", first.std, persistent=False)
        self.has_odds = any(isinstance(network.loss, SigmoidLoss) and network.prior is None for network in networks)
        counts = first.loss.class_counts
        self.loss = SigmoidLoss(counts) if self.has_odds else SoftmaxLoss(counts)
        if any(network.thresholds is not None for network in networks):
            limits = torch.tensor([network.threshold_probabilities or [0.5] * self.num_classes for network in networks])
            self.thresholds = limits.double().mean(0).logit().tolist()
        self.configure_metrics([])
        self.eval_metrics = first.eval_metrics

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (B, C), for images, shape (B, in_channels, H, W)."""
        precise = torch.float32 if images.device.type == "mps" else torch.float64
        networks = cast("list[LongTailedClassifier]", list(self.backbone))
        mean = torch.stack([each.probabilities(each(images).float().to(precise)) for each in networks]).mean(0)
        return mean.logit(torch.finfo(precise).eps) if self.has_odds else mean.log()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the weights: Lightning restores the callbacks of the first checkpoint, and nothing else."""
        checkpoint["state_dict"] = self.state_dict()

    def on_test_epoch_end(self) -> None:
        """Log ``test/...``, and the number of networks, so that nobody takes the metrics for one network's."""
        super().on_test_epoch_end()
        self.log("averaged", float(len(self.averaged)))
