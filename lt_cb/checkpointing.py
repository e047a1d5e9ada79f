"""Content of a checkpoint: all weights of a network, or an adapter and its classifier without the backbone."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lt_cb.errors import InputError
from lt_cb.evaluation import EvaluatedModule
from lt_cb.models import SecondStage
from lt_cb.models.adapter import adapted_layers, frozen_digest, frozen_names, with_adapter
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.runs import compare
from lt_cb.say import warn

STATES = {"state_dict", "current_model_state"}  # the latter of Lightning's WeightAveraging


class SavedModule(EvaluatedModule):
    """Base class of `lt_cb.module.LongTailedClassifier`: saves and loads checkpoints.

    A checkpoint has all weights. With adapters it leaves out the frozen weights that the backbone has whenever it is
    made, and names the backbone and the digest of these weights instead.
    """

    second_stage: SecondStage | None  #: change to the classifier of a trained network
    backbone_arguments: tuple[str, int, dict[str, Any], float | None]  #: of `configure_backbone`
    is_trained: bool  #: whether the network has trained weights before this training

    def configure_backbone(
        self, name: str, in_channels: int, options: dict[str, Any], head_init_std: float | None
    ) -> nn.Module:
        """Return a new network, images -> logits."""
        raise NotImplementedError

    @cached_property
    def _new_digest(self) -> str:
        """Digest of the frozen weights of a new backbone; building it does not change the random numbers."""
        with torch.random.fork_rng(devices=[]):
            return frozen_digest(self.configure_backbone(*self.backbone_arguments), self.num_classes)

    def start_from(self, content: checkpoints.Content) -> None:
        """Load the weights of a checkpoint's network; some second stages start with a new classifier.

        New adapters stay as they are if the checkpoint has none.
        """
        compare.check_classes(content, self.class_names, self.multi_label)
        state = self.backbone_state(content)
        if self.second_stage is not None:
            state = self.second_stage.initial_state(self.backbone, self.num_classes, state)
        compare.check_backbone(state, self.backbone)
        self.backbone.load_state_dict(state)
        self.is_trained = self.second_stage is None  # else its classifier may be new

    def backbone_state(self, content: checkpoints.Content) -> dict[str, Tensor]:
        """Return all weights of a checkpoint's backbone; raise InputError if it belongs to another backbone."""
        state = checkpoints.backbone_state(content)
        if adapted_layers(self.backbone) and not any(".lora_" in name for name in state):
            return with_adapter(state, self.backbone)
        return self._left_out(content) | state

    def _left_out(self, content: checkpoints.Content) -> dict[str, Tensor]:
        """Return the weights that a checkpoint leaves out, by name in the backbone."""
        if (left_out := checkpoints.left_out(content)) is None:
            return {}
        name, digest = left_out
        if not adapted_layers(self.backbone):
            raise InputError(
                f"the checkpoint has adapters of '{name}', without the weights of that backbone: set --model.adapter "
                "lora."
            )
        if frozen_digest(self.backbone, self.num_classes) != digest:
            raise InputError(
                f"the checkpoint has adapters of '{name}', without the weights of that backbone, and "
                f"'{self.backbone_arguments[0]}' has other weights here: use the same weights, options and image size."
            )
        own = self.backbone.state_dict()
        return {name: own[name] for name in frozen_names(self.backbone, self.num_classes)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what held-out images chose, and leave out frozen weights that a new backbone has anyway.

        ``pretrained`` is unset, so that loading does not download weights.
        """
        checkpoint["hyper_parameters"] = checkpoints.without_pretrained(dict(checkpoint["hyper_parameters"]))
        self.save_choices(checkpoint)
        if not adapted_layers(self.backbone):
            return
        digest, backbone = frozen_digest(self.backbone, self.num_classes), self.backbone_arguments[0]
        if digest != self._new_digest:
            warn(
                f"The checkpoints have the whole network, and not the adapters alone: '{backbone}' is not made with "
                "these weights, since they are random, or were trained."
            )
            return
        checkpoint[checkpoints.LEFT_OUT] = {"name": backbone, "sha256": digest}
        names = {checkpoints.BACKBONE + name for name in frozen_names(self.backbone, self.num_classes)}
        for key in STATES & checkpoint.keys():
            checkpoint[key] = {name: value for name, value in checkpoint[key].items() if name not in names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check classes and network, load what held-out images chose, and keep the configured loss."""
        compare.check_classes(checkpoint, self.class_names, self.multi_label)
        backbone = self.backbone_state(checkpoint)
        compare.check_backbone(backbone, self.backbone)
        same_logits = self.second_stage is None or self.second_stage.trains
        self.load_choices(checkpoint if same_logits else {})
        whole = {checkpoints.BACKBONE + name: value for name, value in self._left_out(checkpoint).items()}
        for key in STATES & checkpoint.keys():
            checkpoint[key] = whole | checkpoint[key]
        state = checkpoint["state_dict"]
        others = {n: v for n, v in state.items() if not n.startswith((checkpoints.LOSS, checkpoints.BACKBONE))}
        backbone = {checkpoints.BACKBONE + name: value for name, value in backbone.items()}
        own = {checkpoints.LOSS + name: value for name, value in self.loss.state_dict().items()}
        checkpoint["state_dict"] = others | backbone | own
