"""``lt-cb finetune``: train the whole network of a checkpoint, starting from its head."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from lt_cb.commands.cli import CommandLine, command
from lt_cb.commands.pretrained import CLIP, adamw
from lt_cb.commands.train import Session, train
from lt_cb.extract import classifier_of
from lt_cb.features import MACHINE_OPTIONS, feature_trainer, frozen_features
from lt_cb.heads.folds import temperature_scaled
from lt_cb.heads.recipes import POST_HOC
from lt_cb.heads.setup import LAMBDAS
from lt_cb.heads.solve import Basis, one_thread_if_small, solve_path
from lt_cb.runs import checkpoint as checkpoints

VAL_FRACTION = 0.2
BATCH_SIZE = 32
PADDING = 8  # the image size divided by the padding of random crops
TRAINER = {"max_epochs": 5, "gradient_clip_val": CLIP}
SCHEDULE = {"class_path": "lt_cb.schedule.WarmupLinear", "init_args": {"warmup": 0.1}}


def adapt(settings: dict[str, Any], content: dict[str, Any], adapter: str | None) -> None:
    """Change the settings of a checkpoint's training, or of ``recommend``, into settings of its fine-tuning.

    Data, network, loss and weighting stay. A loss that adjusts the logits after the training adjusts them in training.
    """
    model, data, trainer = settings["model"], settings["data"], settings["trainer"]
    model |= {"optimizer": adamw(adapter or model.get("adapter")), "lr_scheduler": SCHEDULE, "freeze_norm": True}
    model |= {"second_stage": None, "drw_start": 0.0}
    data |= {"val_fraction": data.get("val_fraction") or VAL_FRACTION, "drs_start": 0.0}
    settings["trainer"] = {name: trainer[name] for name in MACHINE_OPTIONS if name in trainer} | TRAINER
    settings["trainer"].pop("precision", None)
    head = checkpoints.head(content)
    if head is None:
        return
    content[checkpoints.TRAINED_ON] = head.get("trained_before")  # the head is solved again
    data |= {"batch_size": BATCH_SIZE, "global_batch_size": None}
    if data.get("crop_padding"):
        data["crop_padding"] = checkpoints.class_facts(content)["image_size"] // PADDING
    loss = model["loss"]
    if loss["class_path"].rpartition(".")[2] == POST_HOC:
        model["loss"] = {**loss, "class_path": "lt_cb.losses.LogitAdjustedLoss"}


@command({}, adapts=adapt)
def finetune(cli: CommandLine) -> None:
    """Train the whole network, keep the best of its epochs and its start by held-out images, and test it."""
    cli.check_trained()
    session = Session(cli)
    if (head := checkpoints.head(cli.checkpoint or {})) is not None:
        _solve_head(session, float(head["l2_strength"]), float(head["temperature"]))
    train(session)


def _solve_head(session: Session, l2_strength: float, temperature: float) -> None:
    """Solve the head of ``recommend`` again, on the training images without the held-out ones."""
    model, data, config = session.model, session.data, session.cli.config.trainer
    classifier = classifier_of(model)
    strategy = config.strategy if isinstance(config.strategy, str) else "auto"
    trainer = feature_trainer({**config.as_dict(), "precision": "32-true", "strategy": strategy})
    values, targets = frozen_features(model, data, "train", trainer)
    features = torch.from_numpy(values)
    solved: dict[str, Any] = {}
    if trainer.is_global_zero:
        with one_thread_if_small(features):
            basis = Basis.fit(features)
            train_set = basis.project(features, targets, model.num_classes)
            larger = [value for value in LAMBDAS if value > l2_strength]  # warm starts
            heads = solve_path(train_set, [model.loss], [*larger, l2_strength])[l2_strength]
            weight, bias = basis.unproject(heads.weight[0], heads.bias[0])
            bias = temperature_scaled(model.loss, bias[None], temperature)[0]
            solved = {"weight": weight / temperature, "bias": bias}
    classifier.load_state_dict(trainer.strategy.broadcast(solved))
    rank_zero_info(f"The head is solved on {data.num_images:,} training images, at λ {l2_strength:g}.")
