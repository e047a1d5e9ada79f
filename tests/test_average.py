"""Averages of several checkpoints."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from refusals import refused
from scipy.special import expit, softmax

from lt_cb import losses
from lt_cb.__main__ import main
from lt_cb.average import Average
from lt_cb.commands.words import checkpoint_paths
from lt_cb.errors import InputError
from lt_cb.lab.report.collect import collect
from lt_cb.losses import Loss
from lt_cb.module import LongTailedClassifier

ROOT = Path(__file__).parents[1]
COUNTS = [90, 30, 6]
IMAGES = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def classifier(loss: Loss, seed: int = 0, **options: Any) -> LongTailedClassifier:
    torch.manual_seed(seed)
    return LongTailedClassifier(loss, backbone="resnet20", **options).eval()


def outputs(network: LongTailedClassifier) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(network(IMAGES), dtype=np.float64)


def predicted(networks: Sequence[LongTailedClassifier], **options: Any) -> tuple[np.ndarray, ...]:
    average = Average(networks, [str(i) for i in range(len(networks))]).eval()
    for name, value in options.items():
        setattr(average, name, value)
    with torch.no_grad():
        return tuple(map(np.asarray, average.predict_step((IMAGES, torch.zeros(5)), 0)))


def test_softmax_probabilities_are_averaged_whatever_loss_and_normalisation() -> None:
    networks = [
        classifier(losses.SoftmaxLoss(COUNTS)),
        classifier(losses.BalancedSoftmaxLoss(COUNTS), seed=1, mean=[0.3] * 3, std=[0.2] * 3),
    ]
    expected = np.mean([softmax(outputs(network), 1) for network in networks], axis=0)
    classes, probabilities = predicted(networks, top=3)
    np.testing.assert_array_equal(classes, (-expected).argsort(1))
    np.testing.assert_allclose(probabilities, -np.sort(-expected), rtol=1e-5)


def test_each_network_gets_the_prior_of_its_own_loss() -> None:
    networks = [classifier(losses.SoftmaxLoss(COUNTS)), classifier(losses.FocalLoss(COUNTS, 2), seed=1)]
    for network in networks:
        network.set_prior(torch.tensor([0.0, 1, 3]))
    single = [np.asarray(network.probabilities(torch.tensor(outputs(network)))) for network in networks]
    classes, probabilities = predicted(networks, top=3)
    np.testing.assert_allclose(np.take_along_axis(np.mean(single, 0), classes, 1), probabilities, atol=1e-6)
    assert not probabilities[:, 2].any()
    assert not classes[:, 2].any()


def test_probabilities_of_sigmoid_losses_need_not_sum_to_1() -> None:
    networks = [classifier(losses.FocalLoss(COUNTS, 1)), classifier(losses.SoftmaxLoss(COUNTS), seed=1)]
    expected = (expit(outputs(networks[0])) + softmax(outputs(networks[1]), 1)) / 2
    classes, probabilities = predicted(networks)
    np.testing.assert_array_equal(classes, expected.argmax(1))
    np.testing.assert_allclose(probabilities, expected.max(1), rtol=1e-5)


def test_thresholds_of_several_labels_are_averaged_as_probabilities() -> None:
    networks = [classifier(losses.SigmoidLoss(COUNTS), seed, multi_label=True) for seed in range(3)]
    networks[0].thresholds, networks[1].thresholds = [-1.0, 0.0, 3.0], [0.5, -2.0, 0.0]
    expected = np.mean([expit(outputs(network)) for network in networks], axis=0)
    limits = np.mean([expit([-1.0, 0, 3]), expit([0.5, -2, 0]), [0.5] * 3], axis=0)
    labels, probabilities = predicted(networks)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    np.testing.assert_array_equal(labels, expected >= limits)


def test_networks_of_other_classes_or_tasks_raise_an_error() -> None:
    first = classifier(losses.SigmoidLoss(COUNTS))
    for other in (
        classifier(losses.SigmoidLoss(COUNTS), class_names=["a", "b", "c"]),
        classifier(losses.SigmoidLoss(COUNTS[:2])),
        classifier(losses.SigmoidLoss(COUNTS), multi_label=True),
    ):
        with pytest.raises(InputError, match="'b' has other classes, or another number of labels an image, than 'a'"):
            Average([first, other], ["a", "b"])


def test_paths_of_checkpoints() -> None:
    for value, paths in ((None, []), ("", []), ("a", ["a"]), ("a\0b", ["a", "b"]), ("[a, 'b c']", ["a", "b c"])):
        assert checkpoint_paths(value) == paths
    for value in ({"a": 1}, [1], "[[a]]"):
        with pytest.raises(InputError, match="must be the path of a checkpoint, or a list of paths"):
            checkpoint_paths(value)
    with pytest.raises(InputError, match=r"has './a' twice"):
        checkpoint_paths(["a", "b", "./a"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a copy of it with other weights and seed, and images to predict."""
    home = tmp_path_factory.mktemp("average")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("LT_CB_CACHE", str(home / "cache"))
        options = [
            "--model.backbone=resnet20",
            "--trainer.max_epochs=1",
            "--trainer.check_val_every_n_epoch=1",
            "--data.val_fraction=0.2",
        ]
        options += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--model.loss=SoftmaxLoss"]
        main(["fit", f"--config={ROOT}/configs/quickstart.yaml", *options])
        shutil.copytree("runs/quickstart/version_0", "runs/quickstart/version_1")
        content = torch.load(A, weights_only=True)
        for name, weights in content["state_dict"].items():
            if weights.is_floating_point():
                content["state_dict"][name] = weights * 1.1 if "var" in name else weights + 0.03 * weights.abs().mean()
        torch.save(content, B)
        result = json.loads(Path("runs/quickstart/version_1/result.json").read_text())
        result["seeds"]["seed_everything"] = 1
        result["checkpoint"] = str(Path(B).absolute())
        Path("runs/quickstart/version_1/result.json").write_text(json.dumps(result))
        Path("photos").mkdir()
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(f"photos/{i}.png")
    return home


A, B = (f"runs/quickstart/version_{i}/checkpoints/last.ckpt" for i in range(2))


@pytest.fixture
def in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def newest() -> Path:
    """Return the folder that was written last."""
    files = [file for name in ("result.json", "predictions.csv") for file in Path("runs").rglob(name)]
    return max(files, key=lambda file: file.stat().st_mtime_ns).parent


def probabilities(*args: str) -> np.ndarray:
    main(["predict", "--probabilities=true", "--images", "photos", *args])
    with (newest() / "predictions.csv").open() as stream:
        return np.array([[float(row[str(digit)]) for digit in range(10)] for row in csv.DictReader(stream)])


@pytest.mark.usefixtures("in_home")
def test_predict_averages_checkpoints_however_they_are_named() -> None:
    expected = (probabilities("--ckpt_path", A) + probabilities(f"--ckpt_path={B}")) / 2
    Path("both.yaml").write_text(yaml.safe_dump({"ckpt_path": [A, B]}))
    for words in (["--ckpt_path", A, B], [f"--ckpt_path=[{A}, {B}]"], ["--config=both.yaml"]):
        np.testing.assert_allclose(probabilities(*words), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("in_home")
def test_a_test_of_an_average_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    main(["test", "--ckpt_path", A, B, "--trainer.callbacks+=SaveLogits"])
    assert "average of 2 checkpoints" in capsys.readouterr().out
    result = json.loads((newest() / "result.json").read_text())
    assert (result["checkpoint"], result["averaged"]) == (None, [str(Path(file).absolute()) for file in (A, B)])
    assert yaml.safe_load((newest() / "config.yaml").read_text())["ckpt_path"] == [A, B]
    with (newest() / "metrics.csv").open() as stream:
        assert [float(row["averaged"]) for row in csv.DictReader(stream)] == [2]
    single = json.loads(Path("runs/quickstart/version_0/result.json").read_text())
    assert result["parameters"] == 2 * single["parameters"]
    assert "test/coverage" in single["metrics"]
    assert "test/coverage" not in result["metrics"]
    with np.load(newest() / "logits.npz") as saved:
        logits, targets = saved["logits"], saved["targets"]
    right = [int((logits.argmax(1)[targets == c] == c).sum()) for c in range(10)]
    assert result["correct"] == right
    loss = -np.log(softmax(logits.astype(float), 1)[np.arange(len(targets)), targets]).mean()
    assert result["metrics"]["test/loss"] == pytest.approx(loss, rel=1e-4)

    main(["test", "--ckpt_path", B, A])
    runs = collect(Path("runs"))
    assert sorted((run.method, run.seed[0]) for run in runs.results) == [
        ("Softmax", 0),
        ("Softmax", 1),
        ("Softmax, average of 2 checkpoints", 0),
    ]
    assert "tests a checkpoint again" in [why for _, why in runs.missing]


@pytest.mark.usefixtures("in_home")
def test_what_cannot_be_averaged_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for name, change in (("small", {"image_size": 8}), ("even", {"imbalance_factor": 10}), ("other", {"root": "x"})):
        content = torch.load(B, weights_only=True)
        config = yaml.safe_load(content["lt_cb_config"])
        config["data"] |= change
        if name == "other":
            config["data"]["source"] = {"class_path": "lt_cb.data.sources.ImageFolder", "init_args": {}}
        content["hyper_parameters"]["image_size"] = config["data"]["image_size"]
        torch.save({**content, "lt_cb_config": yaml.safe_dump(config)}, f"{name}.ckpt")
    predict = ("predict", "--images=photos", "--ckpt_path", A)
    assert f"--ckpt_path has '{A}' twice" in refused(capsys, *predict, A)
    assert "there is no checkpoint 'missing.ckpt'" in refused(capsys, *predict, "missing.ckpt")
    assert "--sets is calibrated for one network" in refused(capsys, *predict, B, "--sets=0.9")
    assert "--unknown is calibrated for one network" in refused(capsys, *predict, B, "--unknown=true")
    assert "'small.ckpt' was trained on 1 channels of 8 pixels" in refused(capsys, *predict, "small.ckpt")
    test = ("test", "--ckpt_path", A)
    assert "'small.ckpt' has --data.image_size 8, but" in refused(capsys, *test, "small.ckpt")
    assert "'even.ckpt' has --data.imbalance_factor 10" in refused(capsys, *test, "even.ckpt")
    assert "'other.ckpt' was trained on other data" in refused(capsys, *test, "other.ckpt")
    for command in ("fit", "validate", "export"):
        sentence = f"{command} takes one checkpoint, but --ckpt_path has 2: give one. Only predict and test average"
        assert sentence in refused(capsys, command, "--ckpt_path", A, B)
