import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.metrics import f1_score
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassCalibrationError, MulticlassF1Score
from torchvision.transforms import v2

from lt_cb.data import LongTailedDataModule, ProgressivelyBalancedSampler
from lt_cb.errors import InputError
from lt_cb.losses import (
    EffectiveNumber,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    Loss,
    PostHocLogitAdjustment,
    SeesawLoss,
    SigmoidLoss,
    SoftmaxLoss,
)
from lt_cb.module import LongTailedClassifier
from lt_cb.schedule import training_progress

COUNTS = [134, 86, 56, 36, 23, 15, 9, 6, 4, 2]


def classifier(loss: Loss | None = None, **options) -> LongTailedClassifier:
    return LongTailedClassifier(loss or SoftmaxLoss(COUNTS), backbone="resnet20", in_channels=1, **options)


def digits() -> LongTailedDataModule:
    return LongTailedDataModule("digits", imbalance_factor=50, crop_padding=1, horizontal_flip=False)


def trainer(folder: Path, **options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **(quiet | options))


def fit(folder: Path, model: LongTailedClassifier, **options) -> Trainer:
    """Return the Trainer of a training without validation and checkpoints."""
    run = trainer(folder, **{"enable_checkpointing": False, "limit_val_batches": 0, **options})
    run.fit(model, datamodule=digits())
    return run


def test_sigmoid_losses_initialise_the_last_bias_from_the_prior() -> None:
    assert classifier().backbone.fc.bias.tolist() == [0.0] * 10
    for loss in (SigmoidLoss(COUNTS), FocalLoss(COUNTS)):
        bias = classifier(loss).backbone.fc.bias
        torch.testing.assert_close(bias.sigmoid(), torch.full((10,), 0.1))
    timm_model = LongTailedClassifier(SigmoidLoss(COUNTS), backbone="resnet10t")
    torch.testing.assert_close(timm_model.backbone.fc.bias.sigmoid(), torch.full((10,), 0.1))


def test_only_a_bias_from_the_prior_has_no_weight_decay() -> None:
    for loss, spared in ((SoftmaxLoss(COUNTS), []), (FocalLoss(COUNTS), ["backbone.fc.bias"])):
        model = classifier(loss)
        model.trainer = Trainer(max_steps=10, accelerator="cpu", logger=False)
        optimizer = model.configure_optimizers()["optimizer"]
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        names = dict(model.named_parameters())
        assert len(decays) == len(names)
        assert [name for name, p in names.items() if decays[id(p)] == 0] == spared
        assert {decay for decay in decays.values() if decay} == {2e-4}


def test_only_uint8_images_are_normalised() -> None:
    model = classifier(mean=[0.25], std=[0.5]).eval()
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(model(images), model((images / 255 - 0.25) / 0.5))
    default = classifier().eval()
    torch.testing.assert_close(default(images), default(images / 128 - 1))


def test_a_training_equals_a_plain_pytorch_loop(tmp_path: Path) -> None:
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=2e-4)}
    seed_everything(3)
    model = classifier(FocalLoss(COUNTS, 0.5, EffectiveNumber(0.999)), **options)
    seed_everything(3)
    plain = classifier(FocalLoss(COUNTS, 0.5, EffectiveNumber(0.999)), **options)
    fit(tmp_path, model, max_epochs=2)

    bias = plain.backbone.fc.bias
    others = [p for p in plain.backbone.parameters() if p is not bias]
    optimizer = torch.optim.SGD([{"params": others, "weight_decay": 2e-4}, {"params": [bias]}], lr=0.1, momentum=0.9)
    loader = digits().train_dataloader()
    total = 2 * len(loader)
    step = 0
    plain.train()
    for epoch in range(2):
        loader.set_epoch(epoch)
        for images, targets in loader:
            t = step / total
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * (t / 0.025 if t < 0.025 else 1 if t < 0.8 else 0.01 if t < 0.9 else 0.0001)
            optimizer.zero_grad()
            plain.loss(plain(images), targets).backward()
            optimizer.step()
            step += 1
    for ours, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


class Interrupt(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise InterruptedError


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def fit(ckpt_path: Path | None = None, **options) -> LongTailedClassifier:
        seed_everything(1)
        model = classifier()
        run = trainer(tmp_path, max_epochs=4, limit_val_batches=0, **options)
        run.fit(model, datamodule=digits(), ckpt_path=ckpt_path)
        return model

    whole = fit(enable_checkpointing=False)
    last = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    with pytest.raises(InterruptedError):
        fit(callbacks=[last, Interrupt()])
    resumed = fit(ckpt_path=tmp_path / "last.ckpt", enable_checkpointing=False)
    for ours, expected in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_test_metrics_equal_metrics_of_the_predictions(tmp_path: Path) -> None:
    model = classifier(SigmoidLoss(COUNTS, EffectiveNumber(0.99)))
    run = trainer(tmp_path)
    (metrics,) = run.test(model, datamodule=digits(), verbose=False)
    batches = list(digits().test_dataloader())
    with torch.no_grad():
        logits = torch.cat([model.eval()(images) for images, _ in batches])
    targets = torch.cat([targets for _, targets in batches])
    hits = logits.argmax(1) == targets
    assert metrics["test/acc"] == pytest.approx(hits.float().mean().item())
    assert metrics["test/loss"] == pytest.approx(model.loss(logits, targets).item(), rel=1e-5)
    assert metrics["test/acc/few"] == pytest.approx(hits[targets >= 5].float().mean().item())
    assert metrics["test/acc/many"] == pytest.approx(hits[targets == 0].float().mean().item())
    assert model.per_class["total"] == [40] * 10


class OwnLoss(SoftmaxLoss):
    """Custom loss that stores its argument under another name."""

    def __init__(self, class_counts: list[int], scale: float) -> None:
        super().__init__(class_counts)
        self.factor = scale

    def per_sample(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits * self.factor, targets, reduction="none")


def test_a_checkpoint_from_python_loads_without_data(tmp_path: Path) -> None:
    facts = {"mean": [0.5], "std": [0.25], "class_names": list("abcdefghij")}
    model = classifier(FocalLoss(COUNTS, 2.0, EffectiveNumber(0.99)), **facts)
    fit(tmp_path, model, max_steps=1).save_checkpoint(tmp_path / "model.ckpt")
    again = LongTailedClassifier.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert isinstance(again.loss, FocalLoss)
    assert (again.loss.gamma, again.loss.class_counts, again.class_names[9]) == (2.0, COUNTS, "j")
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(again.eval()(images), model.eval()(images))

    own = classifier(OwnLoss(COUNTS, 2.0))
    fit(tmp_path, own, max_steps=1).save_checkpoint(tmp_path / "own.ckpt")
    options = {"weights_only": True, "loss": OwnLoss(COUNTS, 2.0)}
    again = LongTailedClassifier.load_from_checkpoint(tmp_path / "own.ckpt", **options)
    torch.testing.assert_close(again.eval()(images), own.eval()(images))


def test_a_checkpoint_of_other_classes_is_refused(tmp_path: Path) -> None:
    model = classifier()
    hparams = {"loss": {"init_args": {"class_counts": [5, 1]}}, "class_names": ["a", "b"]}
    with pytest.raises(ValueError, match="the checkpoint has 2 classes, but the data have 10"):
        model.on_load_checkpoint({"hyper_parameters": hparams})
    names = [*"012345678", "nine"]
    with pytest.raises(ValueError, match="'nine' there is '9' here"):
        model.on_load_checkpoint({"hyper_parameters": {"class_names": names}})


def test_schedule_without_an_end_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=-1, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"set --trainer.max_epochs"):
        run.fit(classifier(), datamodule=digits())


def test_other_schedules_step_every_epoch(tmp_path: Path) -> None:
    model = classifier(lr_scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=3))
    run = fit(tmp_path, model, max_epochs=2)
    assert run.lr_scheduler_configs[0].interval == "epoch"
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 2


@pytest.mark.parametrize("backbone", ["resnet20", "resnet10t"])
def test_ldam_has_cosine_logits(backbone: str) -> None:
    model = LongTailedClassifier(LDAMLoss(COUNTS), backbone=backbone, in_channels=1).eval()
    images = torch.randn(3, 1, 32, 32)
    features = {}
    model.backbone.fc.register_forward_pre_hook(lambda _, inputs: features.update(x=inputs[0]))
    logits = model(images)
    expected = torch.cosine_similarity(features["x"][:, None], model.backbone.fc.weight[None], dim=2)
    torch.testing.assert_close(logits, expected)
    assert model.backbone.fc.bias is None


class Stop(Callback):
    """Ends a training after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


class WeightedEpochs(Callback):
    def __init__(self) -> None:
        self.epochs: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if pl_module.loss.weighted and trainer.current_epoch not in self.epochs:
            self.epochs.append(trainer.current_epoch)


@pytest.mark.parametrize(("start", "epochs"), [(0.0, [0, 1, 2, 3, 4]), (0.6, [3, 4]), (1.0, [])])
def test_deferred_weighting_starts_with_an_epoch(start: float, epochs: list[int], tmp_path: Path) -> None:
    seen = WeightedEpochs()
    model = classifier(SoftmaxLoss(COUNTS, EffectiveNumber(0.99)), drw_start=start)
    fit(tmp_path, model, max_epochs=5, limit_train_batches=1, callbacks=[seen])
    assert seen.epochs == epochs


def test_deferred_weighting_survives_a_resume(tmp_path: Path) -> None:
    def make() -> LongTailedClassifier:
        seed_everything(0)
        return classifier(SoftmaxLoss(COUNTS, EffectiveNumber(0.99)), drw_start=0.5)

    def fit(model: LongTailedClassifier, stop: int, **options) -> Trainer:
        run = trainer(tmp_path, max_epochs=4, limit_val_batches=0, enable_checkpointing=False, callbacks=[Stop(stop)])
        run.fit(model, datamodule=digits(), **options)
        return run

    whole = make()
    fit(whole, 4)
    fit(make(), 3).save_checkpoint(tmp_path / "third.ckpt")
    resumed = make()
    fit(resumed, 4, ckpt_path=tmp_path / "third.ckpt")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


def test_drw_start_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"drw_start is 160, but must be a fraction of the training in \[0, 1\]"):
        classifier(drw_start=160)


def test_a_checkpoint_can_be_tested_with_another_loss(tmp_path: Path) -> None:
    """Post-hoc logit adjustment of a network trained with class weights."""
    weighted = classifier(SoftmaxLoss(COUNTS, EffectiveNumber(0.99)))
    fit(tmp_path, weighted, max_epochs=1, limit_train_batches=2).save_checkpoint(tmp_path / "one.ckpt")
    model = classifier(PostHocLogitAdjustment(COUNTS, tau=2.0))
    trainer(tmp_path).test(model, datamodule=digits(), ckpt_path=tmp_path / "one.ckpt", verbose=False)
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    expected = weighted.eval()(images) - 2 * (torch.tensor(COUNTS) / sum(COUNTS)).log()
    torch.testing.assert_close(model.eval().predict_step((images,), 0)[0], expected.argmax(1))


class Drawn(Callback):
    """The classes of each epoch's batches."""

    def __init__(self) -> None:
        self.epochs: dict[int, torch.Tensor] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        counts = batch[1].bincount(minlength=10)
        self.epochs[trainer.current_epoch] = self.epochs.get(trainer.current_epoch, 0) + counts


def test_deferred_sampling_starts_with_an_epoch_and_survives_a_resume(tmp_path: Path) -> None:
    def fit(stop: int, ckpt_path: Path | None = None) -> tuple[LongTailedClassifier, Trainer, Callback]:
        seed_everything(0)
        data = LongTailedDataModule(
            imbalance_factor=50, horizontal_flip=False, sampler=ProgressivelyBalancedSampler(), drs_start=0.5
        )
        model, seen = classifier(), Drawn()
        options = {"limit_val_batches": 0, "enable_checkpointing": False, "callbacks": [Stop(stop), seen]}
        run = trainer(tmp_path, max_epochs=4, **options)
        run.fit(model, datamodule=data, ckpt_path=ckpt_path)
        return model, run, seen

    whole, _, seen = fit(4)
    assert seen.epochs[0].tolist() == seen.epochs[1].tolist() == COUNTS
    for epoch in (2, 3):
        t = epoch / 4
        expected = [(1 - t) * n + t * sum(COUNTS) / 10 for n in COUNTS]
        assert max(abs(n - e) for n, e in zip(seen.epochs[epoch].tolist(), expected, strict=True)) < 1
    fit(3)[1].save_checkpoint(tmp_path / "third.ckpt")
    resumed, _, again = fit(4, tmp_path / "third.ckpt")
    assert again.epochs.keys() == {3}
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


def test_further_metrics_are_logged_for_validation_and_test(tmp_path: Path) -> None:
    made = [lambda c: MulticlassF1Score(c, average="weighted"), MulticlassCalibrationError]
    model, data = classifier(metrics=made), digits()
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=4, enable_checkpointing=False)
    run.fit(model, datamodule=data)
    assert {"val/MulticlassF1Score", "val/MulticlassCalibrationError"} <= run.callback_metrics.keys()
    (tested,) = run.test(model, datamodule=data, verbose=False)
    model.eval()
    batches = [(model(images).detach(), targets) for images, targets in data.test_dataloader()]
    predicted = torch.cat([logits.argmax(1) for logits, _ in batches])
    expected = f1_score(torch.cat([targets for _, targets in batches]), predicted, average="weighted", zero_division=0)
    assert tested["test/MulticlassF1Score"] == pytest.approx(expected)

    model = classifier(metrics=[lambda c: MulticlassF1Score(c, average=None)])
    with pytest.raises(ValueError, match="metric MulticlassF1Score has 10 values, but must have one: set its average"):
        trainer(tmp_path).test(model, datamodule=data, verbose=False)


@pytest.mark.parametrize("kind", [v2.MixUp, v2.CutMix])
def test_mixed_batches_train(kind: type[torch.nn.Module], tmp_path: Path) -> None:
    seed_everything(0)  # a cut may be empty
    model = classifier(FocalLoss(COUNTS, weighting=EffectiveNumber(0.9)), mix=kind(alpha=1.0))
    seen = []
    model.loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    run = fit(tmp_path, model, max_epochs=1, limit_train_batches=2)
    targets = torch.cat(seen)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
    assert ((targets > 0) & (targets < 1)).any()
    run.save_checkpoint(tmp_path / "mixed.ckpt")
    LongTailedClassifier.load_from_checkpoint(tmp_path / "mixed.ckpt", weights_only=True)


@pytest.mark.parametrize("kind", [v2.MixUp, v2.CutMix])
def test_a_resumed_mixed_training_equals_an_uninterrupted_one(kind: type[torch.nn.Module], tmp_path: Path) -> None:
    def train(draws: int, **options) -> LongTailedClassifier:
        seed_everything(0)
        model = classifier(mix=kind(alpha=1.0))
        torch.rand(draws)  # a resumed process has drawn other numbers by then
        each = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        run = trainer(tmp_path, max_epochs=2, limit_train_batches=3, limit_val_batches=0, callbacks=[each])
        run.fit(model, datamodule=digits(), **options)
        return model

    whole = train(0).state_dict()
    resumed = train(9, ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_moving_averages_skip_constant_buffers() -> None:
    model = classifier(FocalLoss(COUNTS, weighting=EffectiveNumber(0.9999)), mean=[0.3], std=[0.3])
    averaged = AveragedModel(model, avg_fn=get_ema_avg_fn(0.999), use_buffers=True)
    running = model.backbone.get_buffer("bn1.running_mean")
    for _ in range(20):
        running += 1
        averaged.update_parameters(model)
    constant = {name: value for name, value in model.named_buffers() if name not in model.state_dict()}
    assert {"mean", "std"} < constant.keys()
    assert all(torch.equal(value, averaged.module.get_buffer(name)) for name, value in constant.items())
    assert 1 < averaged.module.get_buffer("backbone.bn1.running_mean")[0] < 2


def test_a_diverged_training_stops_with_a_message(tmp_path: Path) -> None:
    """371 images are 3 batches; the rate is too high from the second epoch on."""
    steps = {"optimizer": lambda params: torch.optim.SGD(params, lr=1e-3)}
    steps["lr_scheduler"] = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=1e33)
    last = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    said = r"is nan in epoch 1, first at step [45], at a rate of 1e\+30\. Lower --model.optimizer.lr"
    with pytest.raises(ValueError, match=f"has diverged: train/loss {said}"):
        trainer(tmp_path, max_epochs=9, callbacks=[last]).fit(classifier(**steps), digits())
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 0
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_floating_images_without_normalisation_give_a_warning(tmp_path: Path) -> None:
    def loader(images: torch.Tensor) -> DataLoader:
        return DataLoader(TensorDataset(images, torch.arange(4)), 4)

    pixels = torch.rand(4, 1, 8, 8)
    with pytest.warns(UserWarning, match=r"from 0\.\S+ to 0\.\S+, and count as normalised; .* to -1 and 0\.992\."):
        trainer(tmp_path).test(classifier(), loader(pixels), verbose=False)
    with pytest.warns(UserWarning, match=r"to 25\S+, and count as normalised"):
        trainer(tmp_path).predict(classifier(), loader(pixels * 255))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*count as normalised")
        trainer(tmp_path).test(classifier(), loader(pixels * 2 - 1), verbose=False)
        trainer(tmp_path).test(classifier(mean=[0.0], std=[1.0]), loader(pixels), verbose=False)
    with pytest.raises(ValueError, match="the images are not finite"):
        trainer(tmp_path, max_epochs=1).fit(classifier(), loader(pixels / 0))


def test_nan_weights_are_refused_in_a_test(tmp_path: Path) -> None:
    model = classifier()
    torch.nn.init.constant_(model.backbone.fc.weight, float("nan"))
    with pytest.raises(ValueError, match="test/loss is nan: the weights are damaged"):
        trainer(tmp_path).test(model, digits(), verbose=False)


def test_losses_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--model\.mix does not take images and one-hot targets"):
        trainer(tmp_path, max_epochs=1).fit(classifier(mix=torch.nn.Identity()), digits())
    with pytest.raises(ValueError, match="SeesawLoss takes no mixed targets"):
        classifier(SeesawLoss(COUNTS), mix=v2.MixUp())
    with pytest.raises(ValueError, match="reduction is 'none', but training needs a scalar"):
        classifier(SoftmaxLoss(COUNTS, reduction="none"))
    endless = trainer(tmp_path, max_epochs=-1, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"has no end: set --trainer.max_epochs"):
        endless.fit(classifier(drw_start=0.5), datamodule=digits())
    assert training_progress(trainer(tmp_path, max_epochs=8), 6) == pytest.approx(0.75)


def test_deferred_weighting_counts_max_steps(tmp_path: Path) -> None:
    """371 images are 3 batches of 128: 12 steps are 4 epochs."""
    seen = WeightedEpochs()
    model = classifier(SoftmaxLoss(COUNTS, EffectiveNumber(0.99)), drw_start=0.5)
    fit(tmp_path, model, callbacks=[seen], max_epochs=-1, max_steps=12)
    assert seen.epochs == [2, 3]


def test_the_data_module_sets_the_seed_of_mixing(tmp_path: Path) -> None:
    model = classifier(mix=v2.MixUp(alpha=1.0))
    data = LongTailedDataModule("digits", imbalance_factor=50, seed=7)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0, enable_checkpointing=False)
    run.fit(model, datamodule=data)
    assert model.mix_seed == 7


@pytest.mark.parametrize("val_fraction", [0.0, 0.3])
def test_thresholds_are_chosen_on_held_out_images_only(val_fraction: float, tmp_path: Path) -> None:
    data = LongTailedDataModule("side_by_side", image_size=8, val_fraction=val_fraction, crop_padding=0)
    model = LongTailedClassifier(SigmoidLoss(data.class_counts), "resnet20", in_channels=1, multi_label=True)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=2, limit_val_batches=2, enable_checkpointing=False)
    run.fit(model, datamodule=data)
    assert (model.thresholds is not None) == bool(val_fraction)


@pytest.mark.parametrize("val_fraction", [0.0, 0.3])
def test_sets_are_calibrated_on_held_out_images_only(val_fraction: float, tmp_path: Path) -> None:
    data = LongTailedDataModule("digits", imbalance_factor=20, val_fraction=val_fraction, crop_padding=0)
    loss = LogitAdjustedLoss(data.class_counts)
    model = LongTailedClassifier(loss, "resnet20", in_channels=1, mean=data.mean, std=data.std)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=2)
    run.fit(model, datamodule=data)
    loaded = LongTailedClassifier.load_from_checkpoint(run.checkpoint_callback.best_model_path, weights_only=True)
    if not val_fraction:
        assert model.set_scores is loaded.set_scores is None
        with pytest.raises(InputError, match="no held-out images have calibrated"):
            model.prediction_sets(torch.zeros(1, 10), 0.9)
        return
    scores = loaded.eval().set_scores
    assert scores is not None
    assert model.set_scores is not None
    assert all(map(torch.equal, scores, model.set_scores))
    images, targets = next(iter(data.ordered_dataloader("val", torch.arange(len(data.targets("val"))), 1000)))
    targets = data.targets("val")[targets]
    with torch.no_grad():
        true = loaded(images).softmax(1).gather(1, targets[:, None])[:, 0]  # trained under a uniform prior
    for label, own in enumerate(scores):
        torch.testing.assert_close(own, true[targets == label].sort().values, rtol=1e-4, atol=1e-6)
    run.test(loaded, datamodule=data, verbose=False)
    assert 0 < run.callback_metrics["test/coverage"] <= 1
    assert run.callback_metrics["test/set_size"] >= 1
    loaded.set_level = 0.9
    _, _, sets = loaded.predict_step((images,), 0)
    assert sets.shape == (len(images), 10)
    assert sets.any(1).all()
