"""Losses, weights and samplers in other trainers: the code of docs/trainers.md, and what one relies on there."""

import copy
import importlib
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lt_cb.data import ClassBalancedSampler, EpochSampler
from lt_cb.losses import BalancedSoftmaxLoss, EffectiveNumber, FocalLoss, InverseFrequency, SoftmaxLoss, class_weights

PAGE = (Path(__file__).parents[1] / "docs/trainers.md").read_text()
COUNTS = [70, 20, 6]
WEIGHTS = class_weights(COUNTS, 0.99).float()


def block(first_words: str) -> str:
    """Return the block of code that follows these words."""
    return re.findall(r"```python\n(.*?)```", PAGE[PAGE.index(first_words) :], re.DOTALL)[0]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the first block."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    exec(block("# Your own trainer"), names)
    return names


def run(section: str, names: dict[str, Any]) -> None:
    exec(block(f"## {section}"), names)


def test_no_code_of_the_page_is_left_out() -> None:
    """Nine blocks: the first, one in each of seven sections, and ultralytics' own; some run where it is installed."""
    assert len(re.findall("^```python$", PAGE, re.MULTILINE)) == 9


def focal(logits: torch.Tensor, labels: torch.Tensor, gamma: float) -> torch.Tensor:
    """Class-balanced focal loss of each sample, from its formula."""
    signed = torch.where(F.one_hot(labels, 3) == 1, logits, -logits)
    p = signed.sigmoid()
    return WEIGHTS[labels] * (-((1 - p) ** gamma) * p.log()).sum(1)


def test_a_plain_loop_has_the_loss_of_the_formula_and_learns(page: dict[str, Any]) -> None:
    before = copy.deepcopy(page["network"])
    run("A plain loop", page)
    network, loss = page["network"].cpu(), page["loss"].cpu()
    images, labels = page["data"].tensors
    torch.testing.assert_close(loss(network(images), labels), focal(network(images), labels, 1.0).mean())
    assert loss(network(images), labels) < loss(before(images), labels)
    assert not loss.state_dict()
    assert not list(loss.parameters())


def test_in_a_lightning_module_the_loss_moves_along_and_is_in_no_checkpoint(page: dict[str, Any]) -> None:
    run("Lightning", page)
    assert page["trainer"].global_step == 6
    model = page["trainer"].model.cpu()
    assert set(model.state_dict()) == {"network.1.weight", "network.1.bias"}
    assert all(buffer.is_meta for buffer in copy.deepcopy(model).to("meta").loss.buffers())
    images, labels = page["data"].tensors
    shifted = model.network(images) + torch.tensor(COUNTS).log()
    torch.testing.assert_close(model.training_step((images, labels), 0), F.cross_entropy(shifted, labels))


class TestHuggingFace:
    @staticmethod
    def trainer(page: dict[str, Any], trainer: Any = None, **options: Any) -> Any:
        from transformers import Trainer, TrainingArguments

        plain = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
        quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
        args = TrainingArguments("out", **plain, **quiet, **options)
        model = copy.deepcopy(page["model"]).cpu()
        return (trainer or Trainer)(
            model, args, train_dataset=page["rows"][60:74], compute_loss_func=page["compute_loss"]
        )

    def test_accumulated_steps_are_one_of_the_whole_batch(self, page: dict[str, Any]) -> None:
        run("Hugging Face", page)
        page["summed"].cpu()
        steps = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}  # of 4, 4, 4 and 2 images
        trainer = self.trainer(page, num_train_epochs=1, **steps)
        expected = copy.deepcopy(trainer.model)
        trainer.train()
        assert trainer.state.global_step == 1
        images = torch.stack([row["pixel_values"] for row in page["rows"][60:74]])
        labels = torch.tensor([row["labels"] for row in page["rows"][60:74]])
        whole = focal(expected(images).logits, labels, page["summed"].gamma).mean()
        whole.backward()
        for after, start in zip(trainer.model.parameters(), expected.parameters(), strict=True):
            if start.grad is not None:
                torch.testing.assert_close(after.detach(), (start - 0.5 * start.grad).detach())
        assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(whole.item(), rel=1e-4)

    def test_a_mean_would_count_each_step(self, page: dict[str, Any]) -> None:
        """What the page warns of: should it change, the page has to."""
        run("Hugging Face", page)
        page["compute_loss"] = lambda outputs, labels, num_items_in_batch: SoftmaxLoss(COUNTS)(outputs.logits, labels)
        trainer = self.trainer(page, num_train_epochs=1, per_device_train_batch_size=4, gradient_accumulation_steps=4)
        start = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
        trainer.train()
        once = copy.deepcopy(trainer.model)
        once.load_state_dict(start)
        images = torch.stack([row["pixel_values"] for row in page["rows"][60:74]])
        labels = torch.tensor([row["labels"] for row in page["rows"][60:74]])
        SoftmaxLoss(COUNTS)(once(images).logits, labels).backward()
        step = trainer.model.classifier.bias.detach() - start["classifier.bias"]
        assert step.norm() > 3 * 0.5 * once.classifier.bias.grad.norm()

    def test_evaluation_has_the_same_loss(self, page: dict[str, Any]) -> None:
        run("Hugging Face", page)
        page["summed"].cpu()
        trainer = self.trainer(page, per_device_eval_batch_size=7)
        images = torch.stack([row["pixel_values"] for row in page["rows"][60:74]])
        labels = torch.tensor([row["labels"] for row in page["rows"][60:74]])
        expected = focal(trainer.model(images).logits, labels, page["summed"].gamma).mean()
        assert trainer.evaluate(page["rows"][60:74])["eval_loss"] == pytest.approx(expected.item(), rel=1e-4)

    def test_tokens_without_a_label_are_left_out(self) -> None:
        loss = FocalLoss(COUNTS, weighting=EffectiveNumber(0.99), reduction="sum")
        logits, labels = torch.randn(2, 5, 3), torch.tensor([[0, 1, 2, -100, -100], [1, -100, 0, 0, 2]])
        expected = focal(logits[labels >= 0], labels[labels >= 0], loss.gamma).sum()
        known = labels >= 0
        torch.testing.assert_close(loss(logits[known], labels[known]), expected)

    def test_it_leaves_a_sampler_in_its_place_and_tells_it_the_epoch(self, page: dict[str, Any]) -> None:
        from transformers import Trainer

        run("Hugging Face", page)
        page["summed"].cpu()
        sampler = EpochSampler([row["labels"] for row in page["rows"][60:74]], ClassBalancedSampler(), 3, 1, 1, 0)
        epochs, drawn = [], []

        class Sampled(Trainer):
            def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
                return sampler

            def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                epochs.append(sampler.epoch)
                drawn.extend(inputs["labels"].tolist())
                return super().compute_loss(model, inputs, *args, **kwargs)

        self.trainer(page, Sampled, num_train_epochs=2, per_device_train_batch_size=14).train()
        assert epochs == [0, 1]
        assert np.bincount(drawn).tolist() == [14, 14]

    def test_accelerate_shares_out_one_draw(self) -> None:
        from accelerate.data_loader import prepare_data_loader

        labels = torch.tensor([0] * 12 + [1] * 4)
        loader = DataLoader(
            TensorDataset(torch.arange(16)), 4, sampler=EpochSampler(labels, ClassBalancedSampler(), 3, 1, 1, 0)
        )
        drawn = []
        for rank in range(2):
            part = prepare_data_loader(loader, num_processes=2, process_index=rank, put_on_device=False)
            part.set_epoch(5)
            drawn += [i for (batch,) in part.base_dataloader for i in batch.tolist()]
        assert sorted(drawn) == sorted(ClassBalancedSampler().draw(labels.numpy(), [3, 5]).tolist())


def test_timms_network_optimizer_and_mixed_targets(page: dict[str, Any]) -> None:
    run("timm", page)
    targets = page["targets"].cpu()
    assert targets.shape == (16, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(16))
    logits = torch.randn(16, 3)
    expected = F.cross_entropy(logits + torch.tensor(COUNTS).log(), targets)
    torch.testing.assert_close(page["loss"].cpu()(logits, targets), expected)


def test_timms_task_takes_a_loss(page: dict[str, Any]) -> None:
    tasks = pytest.importorskip("timm.task")
    images, labels = page["data"].tensors
    task = tasks.ClassificationTask(page["network"], criterion=BalancedSoftmaxLoss(COUNTS), device=torch.device("cpu"))
    expected = F.cross_entropy(page["network"](images) + torch.tensor(COUNTS).log(), labels)
    torch.testing.assert_close(task(images, labels)["loss"], expected)


class Picture(torch.Tensor):
    """A type that another does not go with, as fastai's."""


class Category(torch.Tensor):
    """The other."""


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_tensors_that_bear_a_type_are_tensors(reduction: Any) -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 0])
    typed = logits.clone().requires_grad_().as_subclass(Picture)
    with pytest.raises(TypeError, match="no implementation found"):
        F.cross_entropy(typed, labels.as_subclass(Category))
    for loss in (SoftmaxLoss(COUNTS, EffectiveNumber(0.99), reduction), FocalLoss(COUNTS, 1.0, reduction=reduction)):
        value = loss(typed, labels.as_subclass(Category))
        assert type(value) is torch.Tensor
        assert value.requires_grad
        torch.testing.assert_close(value, loss(logits, labels))


class TestFastai:
    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("fastai")

    def test_a_learner_computes_predicts_and_is_kept(self, page: dict[str, Any]) -> None:
        run("fastai", page)
        learn, loss, (images, labels) = page["learn"], page["loss"], page["data"].tensors
        logits = learn.model.cpu()(images)
        expected = focal(logits, labels, 1.0)
        assert learn.recorder.values[-1][1] == pytest.approx(expected.mean().item(), rel=1e-3)
        learn.model.to(learn.dls.device)
        probabilities, _, decoded, losses = learn.get_preds(with_decoded=True, with_loss=True)
        torch.testing.assert_close(probabilities, logits.sigmoid().detach(), check_dtype=False)
        assert torch.equal(decoded, logits.argmax(1))
        torch.testing.assert_close(losses, expected.detach())
        assert loss.reduction == "mean"
        again = pickle.loads(pickle.dumps(copy.deepcopy(loss))).cpu()
        torch.testing.assert_close(again(logits, labels), expected.mean())

    def test_images_and_categories_of_its_own_types(self, page: dict[str, Any]) -> None:
        from fastai.vision.all import TensorCategory, TensorImage

        run("fastai", page)
        images, labels = page["data"].tensors
        value = page["loss"].cpu()(page["network"].cpu()(TensorImage(images)), TensorCategory(labels))
        torch.testing.assert_close(value, focal(page["network"](images), labels, 1.0).mean())

    def test_mixup_mixes_losses(self, page: dict[str, Any]) -> None:
        from fastai.vision.all import Callback, MixUp

        run("fastai", page)
        page["loss"].y_int = True
        seen = []

        class Watch(Callback):
            def after_loss(self) -> None:
                if self.training:
                    mix, pred = self.mix_up, self.pred.detach().cpu()
                    one, two = (focal(pred, y[0].cpu(), 1.0) for y in (mix.yb1, self.yb))
                    seen.append((self.loss.item(), torch.lerp(one, two, mix.lam.cpu()).mean().item()))

        page["learn"].fit(1, cbs=[MixUp(), Watch()])
        assert len(seen) == 6
        assert [value for value, _ in seen] == pytest.approx([value for _, value in seen], rel=1e-4)

    def test_it_takes_a_loader_with_a_sampler(self, page: dict[str, Any]) -> None:
        from fastai.vision.all import Callback

        run("A sampler", page)
        run("fastai", page)
        sampler, drawn = page["sampler"], []

        class Tell(Callback):
            def before_epoch(self) -> None:
                sampler.set_epoch(self.epoch)

            def after_batch(self) -> None:
                if self.training:
                    assert sampler.epoch == self.epoch
                    drawn.extend(self.yb[0].tolist())

        dls = page["DataLoaders"](page["loader"], page["loader"])
        page["Learner"](dls, page["network"].cpu(), loss_func=page["loss"], cbs=Tell()).fit(2)
        assert np.bincount(drawn).tolist() == [64, 64, 64]


def test_an_epoch_of_the_page_shows_each_class_as_often(page: dict[str, Any]) -> None:
    run("A sampler", page)
    assert page["drawn"].tolist() == [32, 32, 32]


class Sampled(LightningModule):
    """Keeps what a process is shown."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.drawn, self.weight = folder, [], torch.nn.Parameter(torch.zeros(()))

    def train_dataloader(self) -> DataLoader:
        labels = torch.tensor([0] * 12 + [1] * 4)
        return DataLoader(TensorDataset(torch.arange(16)), 4, sampler=EpochSampler(labels, ClassBalancedSampler(), 3))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.drawn += batch[0].tolist()
        return self.weight

    def on_train_end(self) -> None:
        np.save(self.folder / f"{self.global_rank}.npy", self.drawn)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.slow
def test_lightning_on_two_processes_leaves_the_sampler_in_its_place(tmp_path: Path) -> None:
    Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    ).fit(Sampled(tmp_path))
    parts = [np.load(tmp_path / f"{rank}.npy") for rank in range(2)]
    labels = np.array([0] * 12 + [1] * 4)
    for epoch in range(2):
        alone = ClassBalancedSampler().draw(labels, [3, epoch])
        together = np.concatenate([part[8 * epoch : 8 * epoch + 8] for part in parts])
        assert sorted(together) == sorted(alone)


class TestAListOfWeights:
    def test_torch_divides_by_the_weights_of_the_batch(self, page: dict[str, Any]) -> None:
        run("Trainers that take a list", page)
        assert page["weights"].sum().item() == pytest.approx(3)
        assert page["weights"].argsort(descending=True).tolist() == [2, 1, 0]
        logits, labels = torch.randn(9, 3), torch.tensor([0, 1, 2] * 3)
        ours = SoftmaxLoss(COUNTS, EffectiveNumber(0.99), "weighted_mean")(logits, labels)
        torch.testing.assert_close(page["torch_loss"](logits, labels), ours)

    def test_binary_cross_entropy_weights_columns(self) -> None:
        logits, hot = torch.randn(9, 3), F.one_hot(torch.tensor([0, 1, 2] * 3), 3).float()
        terms = F.binary_cross_entropy_with_logits(logits, hot, reduction="none")
        columns = torch.nn.BCEWithLogitsLoss(weight=WEIGHTS)(logits, hot)
        torch.testing.assert_close(columns, (terms * WEIGHTS).mean())
        positive = torch.nn.BCEWithLogitsLoss(pos_weight=WEIGHTS)(logits, hot)
        torch.testing.assert_close(positive, (terms * (hot * WEIGHTS + 1 - hot)).mean())

    def test_scikit_learn(self, page: dict[str, Any]) -> None:
        run("Trainers that take a list", page)
        x, y = np.random.default_rng(0).normal(size=(96, 4)), page["labels"].numpy()

        def coefficients(weights: Any = None, samples: Any = None, c: float = 1.0) -> np.ndarray:
            fitted = LogisticRegression(C=c, class_weight=weights, tol=1e-8, max_iter=1000).fit(x, y, samples)
            return fitted.coef_

        given = page["by_label"]
        by_label = coefficients(given)
        np.testing.assert_allclose(by_label, coefficients(samples=page["by_sample"]), atol=1e-5)
        twice = coefficients({label: 2 * weight for label, weight in given.items()})
        np.testing.assert_allclose(twice, coefficients(given, c=2.0), atol=1e-5)
        assert abs(twice - by_label).max() > 1e-3
        balanced = InverseFrequency("samples")(COUNTS).tolist()
        np.testing.assert_allclose(coefficients("balanced"), coefficients(dict(enumerate(balanced))), atol=1e-5)

    def test_timm(self) -> None:
        losses = importlib.import_module("timm.loss")
        if not hasattr(losses, "compute_class_weights"):
            pytest.skip("this timm has no class weights")
        kind, weights = losses.compute_class_weights(COUNTS, sum(COUNTS), method="effective_num", beta=0.99)
        assert kind == "class_weight"
        torch.testing.assert_close(weights, WEIGHTS)
        _, gap = losses.compute_class_weights([*COUNTS, 0], sum(COUNTS), method="effective_num", beta=0.99)
        assert gap.mean() == pytest.approx(1)
        assert class_weights([*COUNTS, 0], 0.99)[:3].mean() == pytest.approx(1)
        logits, hot = torch.randn(9, 3), F.one_hot(torch.tensor([0, 1, 2] * 3), 3).float()
        columns = losses.create_classification_loss("bce", class_weight=WEIGHTS)(logits, hot)
        terms = F.binary_cross_entropy_with_logits(logits, hot, reduction="none")
        torch.testing.assert_close(columns, (terms * WEIGHTS).mean())
        with pytest.raises(ValueError, match="only supported by bce"):
            losses.create_classification_loss("ce", class_weight=WEIGHTS)

    def test_ultralytics(self, page: dict[str, Any], tmp_path: Path) -> None:
        yolo = pytest.importorskip("ultralytics").YOLO
        for part, name in (("images", "png"), ("labels", "txt")):
            (tmp_path / part).mkdir()
            for i, label in enumerate((0, 0, 0, 1)):
                file = tmp_path / part / f"{i}.{name}"
                if name == "png":
                    Image.effect_noise((64, 64), 50).convert("RGB").save(file)
                else:
                    file.write_text(f"{label} 0.5 0.5 0.4 0.4\n")
        (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: [cat, dog]\n")
        exec(block("Trainers use such weights differently"), page)
        options = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu", "plots": False, "amp": False}
        model = yolo("yolo11n.yaml")
        model.train(trainer=page["Weighted"], data=str(tmp_path / "data.yaml"), project=str(tmp_path), **options)
        weights = model.trainer.model.criterion.class_weights
        torch.testing.assert_close(weights.flatten().cpu(), class_weights([3, 1], 0.999).float())
