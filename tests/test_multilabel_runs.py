"""Several labels an image, from a table to predictions."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from refusals import refused
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from lt_cb.__main__ import main
from lt_cb.callbacks import ResultFile, SaveLogits
from lt_cb.data import LongTailedDataModule
from lt_cb.losses import EffectiveNumber, FocalLoss
from lt_cb.module import LongTailedClassifier

NAMES = ["sky", "tree", "cat"]
SHARES = {"sky": 0.7, "tree": 0.4, "cat": 0.15}
SIZES = {"train": 80, "val": 30, "test": 41}
COMMON = ["--data.source=manifest", "--data.root=table.csv", "--data.image_size=8", "--data.crop_padding=0"]
COMMON += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--model.fast=off"]
FIT = [*COMMON, "--model.loss=FocalLoss", "--model.loss.weighting=EffectiveNumber", "--trainer.callbacks+=SaveLogits"]
FIT += ["--model.backbone=resnet20", "--trainer.max_epochs=2", "--data.batch_size=16", "--name=several"]


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a table with a column a label: each label brightens a third of an image; a few labels are unknown."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = []
    for split, size in SIZES.items():
        (tmp_path / split).mkdir()
        for i in range(size):
            labels = [int(rng.random() < SHARES[name]) for name in NAMES]
            pixels = rng.integers(0, 120, (9, 9, 3), dtype=np.uint8)
            for c, on in enumerate(labels):
                pixels[:, 3 * c : 3 * c + 3] += np.uint8(100 * on)
            Image.fromarray(pixels).save(tmp_path / split / f"{i:02}.png")
            shown = ["" if rng.random() < 0.05 else str(label) for label in labels]
            rows.append([f"{split}/{i:02}.png", *shown, split])
    file = tmp_path / "table.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", *NAMES, "split"], *rows])
    return file


def newest(name: str) -> Path:
    return max(Path("runs", name).glob("version_*"), key=lambda folder: folder.stat().st_mtime_ns)


def reported(*args: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["report", *args])


def labels_of(table: Path, split: str) -> np.ndarray:
    with table.open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == split]
    return np.array([[int(row[name] or -1) for name in NAMES] for row in rows])


def test_a_table_from_fit_to_predictions(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *FIT])
    run = newest("several")
    result = json.loads((run / "result.json").read_text())
    train, targets = labels_of(table, "train"), labels_of(table, "test")
    assert result["class_counts"] == (train == 1).sum(0).tolist()
    assert result["class_names"] == NAMES
    assert (result["test_images"], result["test_counts"]) == (41, (targets == 1).sum(0).tolist())
    assert result["known_counts"] == (targets >= 0).sum(0).tolist()
    with np.load(run / "logits.npz") as saved:
        logits = saved["logits"]
        np.testing.assert_array_equal(saved["targets"], targets)
    thresholds = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["lt_cb_thresholds"]
    expected = np.array(thresholds)
    np.testing.assert_allclose(result["thresholds"], 1 / (1 + np.exp(-expected)), rtol=1e-5)
    hits = []
    for c in range(3):
        known = targets[:, c] >= 0
        t, z = targets[known, c], logits[known, c]
        hits.append((t, z >= thresholds[c]))
        assert result["per_class_average_precision"][c] == pytest.approx(average_precision_score(t, z), abs=1e-6)
        assert result["per_class_auroc"][c] == pytest.approx(roc_auc_score(t, z), abs=1e-6)
        assert result["per_class_f1"][c] == pytest.approx(f1_score(*hits[-1], zero_division=0), abs=1e-6)
    metrics = result["metrics"]
    assert metrics["test/mAP"] == pytest.approx(np.mean(result["per_class_average_precision"]), abs=1e-6)
    assert metrics["test/f1_macro"] == pytest.approx(np.mean(result["per_class_f1"]), abs=1e-6)
    together = [np.concatenate(each) for each in zip(*hits, strict=True)]
    assert metrics["test/f1_micro"] == pytest.approx(f1_score(*together), abs=1e-6)

    checkpoint = str(run / "checkpoints/last.ckpt")
    main(["test", "--ckpt_path", checkpoint, "--name=again"])
    again = json.loads(Path("runs/again/test/result.json").read_text())
    assert (again["metrics"], again["thresholds"]) == (metrics, result["thresholds"])

    main(["predict", "--ckpt_path", checkpoint, "--images=test", "--probabilities=true", "--name=predicted"])
    with Path("runs/predicted/predictions/predictions.csv").open() as stream:
        predicted = list(csv.DictReader(stream))
    assert len(predicted) == 41
    for row, z in zip(predicted, logits, strict=True):  # the files are sorted as the table has them
        p = 1 / (1 + np.exp(-z.astype(float)))
        assert [float(row[name]) for name in NAMES] == pytest.approx(p, abs=1e-4)
        above = row["classes"].split(";") if row["classes"] else []
        assert sorted(above) == sorted(NAMES[c] for c in np.flatnonzero(z >= expected))
        assert above == sorted(above, key=lambda name: -float(row[name]))  # stable: equal digits in any order
        given = [float(value) for value in row["probabilities"].split(";") if value]
        assert given == pytest.approx([p[NAMES.index(name)] for name in above], abs=1e-4)

    capsys.readouterr()
    main(["test", "--ckpt_path", checkpoint])
    capsys.readouterr()
    reported("runs/several")
    report = capsys.readouterr().out
    assert "Mean average precision" in report
    assert f"{100 * metrics['test/mAP']:.2f}" in report
    page = Path("runs/several/report.md").read_text()
    with (run / "metrics.csv").open() as stream:
        validated = [float(row["val/mAP"]) for row in csv.DictReader(stream) if row["val/mAP"]]
    reported("runs/several", "--metric", "val/mAP")
    assert f"{100 * validated[-1]:.2f}" in capsys.readouterr().out
    assert "Average precision of the classes" in page
    assert f"{100 * metrics['test/f1_micro']:.2f}" in page
    reported("runs/several", "--save", "kept")
    reported("kept")
    assert f"{100 * metrics['test/mAP']:.2f}" in Path("kept/report.md").read_text()


def test_images_without_labels_weigh_as_a_class(table: Path) -> None:
    """Their number comes from the data; older checkpoints and configurations have none."""
    main(["fit", *FIT, "--data.val_fraction=0.2"])
    run = newest("several")
    checkpoint, expected = run / "checkpoints/last.ckpt", int((labels_of(table, "train") != 1).all(1).sum())
    assert "num_unlabelled" not in (run / "config.yaml").read_text()

    def loss(file: Path) -> FocalLoss:
        return LongTailedClassifier.load_from_checkpoint(file, weights_only=True, map_location="cpu").loss

    made = loss(checkpoint)
    weight = EffectiveNumber(0.9999, "none")
    counts = made.class_counts
    assert made.num_unlabelled == expected > 0
    common = made.class_weights[0] / weight(counts)[0]
    assert made.unlabelled_weight.item() == pytest.approx((common * weight([expected])[0]).item(), rel=1e-5)

    content = torch.load(checkpoint, weights_only=True)
    del content["hyper_parameters"]["loss"]["init_args"]["num_unlabelled"]
    torch.save(content, "old.ckpt")
    assert (loss(Path("old.ckpt")).num_unlabelled, loss(Path("old.ckpt")).unlabelled_weight) == (0, None)
    main(["predict", "--ckpt_path=old.ckpt", "--images=test/00.png"])
    main(["fit", "--ckpt_path=old.ckpt", "--trainer.max_epochs=3", "--name=resumed"])
    assert loss(newest("resumed") / "checkpoints/last.ckpt").num_unlabelled == expected
    main(["fit", f"--config={run / 'config.yaml'}", "--name=repeated"])
    ours, theirs = (json.loads((path / "result.json").read_text())["metrics"] for path in (run, newest("repeated")))
    assert ours == theirs
    single = LongTailedDataModule("Digits")
    assert (single.num_images, single.num_unlabelled) == (sum(single.class_counts), 0)


def test_recommend_and_heads_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *FIT])
    checkpoint = str(newest("several") / "checkpoints/last.ckpt")
    grid = ["--ckpt_path", checkpoint, "--lambdas=[0.1,0.01]", "--betas=[0.99]", "--gammas=[1.0]", "--folds=3"]
    main(["recommend", *grid, "--name=recommended"])
    out = capsys.readouterr().out
    found = json.loads((newest("recommended") / "recommendation.json").read_text())
    page = (newest("recommended") / "recommendation.html").read_text()
    assert f'<p class="finding">{out.splitlines()[-2]}</p>' in page
    assert "<h2>Average precision of the classes</h2>" in page
    assert "taken for" not in page
    assert "Mean average precision by loss and L2 strength" in out
    assert set(found["mean_average_precision_by_fold"]) >= {"sigmoid, λ 0.1", "focal γ 1, CB β 0.99 by label, λ 0.01"}
    result = json.loads((newest("recommended") / "result.json").read_text())
    assert result["thresholds"] is not None
    assert result["metrics"]["test/mAP"] > 0.8  # a bright third is easily told
    main(["predict", "--ckpt_path", str(newest("recommended") / "checkpoints/last.ckpt"), "--images=test"])
    main(["heads", *grid, "--seeds=[0]", "--name=heads"])
    with (newest("heads") / "heads.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["loss"] for row in rows} == {"SigmoidLoss", "FocalLoss"}
    assert all(0 <= float(row["mAP"]) <= 1 for row in rows)


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one() -> None:
    """Share 41 test images, some with unknown labels, between 2 processes: 21 and 20."""
    main(["fit", *FIT])
    checkpoint = str(newest("several") / "checkpoints/last.ckpt")
    one = json.loads((newest("several") / "result.json").read_text())
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        logger=False,
        default_root_dir="two",
        callbacks=[ResultFile(), SaveLogits()],
        enable_progress_bar=False,
    )
    data = LongTailedDataModule("manifest", "table.csv", image_size=8, batch_size=16, num_workers=0)
    trainer.test(LongTailedClassifier.load_from_checkpoint(checkpoint), data, ckpt_path=checkpoint)
    two = json.loads(Path("two/result.json").read_text())
    assert two["processes"] == 2
    assert (two["test_images"], two["test_counts"], two["known_counts"]) == (
        one["test_images"],
        one["test_counts"],
        one["known_counts"],
    )
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    with np.load(newest("several") / "logits.npz") as here, np.load("two/logits.npz") as there:
        np.testing.assert_array_equal(here["targets"], there["targets"])


def test_options_for_one_label_are_refused(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refused(capsys, "fit", *COMMON, "--model.loss=SoftmaxLoss")
    assert sentence.startswith("SoftmaxLoss is for one label an image, but these data have several")
    main(["fit", *FIT])
    checkpoint = str(newest("several") / "checkpoints/last.ckpt")
    assert "several labels" in refused(capsys, "test", "--ckpt_path", checkpoint, "--prior=uniform")
    cells = [row.split(",") for row in table.read_text().splitlines()[1:]]
    rows = [",".join([row[0], sorted(NAMES)[i % 3], row[-1]]) for i, row in enumerate(cells)]
    Path("single.csv").write_text("\n".join(["path,label,split", *rows]))
    sentence = refused(capsys, "fit", "--ckpt_path", checkpoint, "--data.root=single.csv")
    assert sentence.startswith("the checkpoint was trained on any number of labels an image, but these data have one")
    sentence = refused(capsys, "predict", "--ckpt_path", checkpoint, "--images=test", "--sets=0.9")
    assert "--sets is for one label an image" in sentence
    sentence = refused(capsys, "predict", "--ckpt_path", checkpoint, "--images=test", "--top=2")
    assert sentence.startswith("--top is for one label an image")


def test_the_default_loss_follows_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *COMMON, "--model.backbone=resnet20", "--trainer.max_epochs=1", "--name=plain"])
    main(["fit", *COMMON, "--trainer.fast_dev_run=true", "--model.loss.weight_of=label", "--model.backbone=resnet20"])
    config = yaml.safe_load((newest("plain") / "config.yaml").read_text())
    assert config["model"]["loss"]["class_path"] == "lt_cb.losses.SigmoidLoss"
    assert "--trainer.max_epochs is reached" in capsys.readouterr().out
    main(["test", "--ckpt_path", str(newest("plain") / "checkpoints/last.ckpt"), "--name=plain"])


def test_a_printed_configuration_leaves_the_loss_to_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", *COMMON[:2], "--print_config"])
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["model"]["loss"] is None
    Path("printed.yaml").write_text(printed)
    main(["fit", "--config=printed.yaml", "--trainer.fast_dev_run=true", "--model.backbone=resnet20"])


def test_tau_normalisation_drops_the_thresholds() -> None:
    main(["fit", *FIT])
    checkpoint = str(newest("several") / "checkpoints/last.ckpt")
    stage = str(Path(__file__).parents[1] / "configs/second_stage/tau_norm.yaml")
    main(["test", "--ckpt_path", checkpoint, "--config", stage, "--name=tau"])
    assert json.loads(Path("runs/tau/test/result.json").read_text())["thresholds"] is None
