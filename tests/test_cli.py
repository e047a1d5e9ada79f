"""The commands a user types, on tiny runs."""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from refusals import alias_bomb, refused

import lt_cb
from lt_cb.__main__ import main
from lt_cb.commands.cli import CommandLine
from lt_cb.commands.help import SHORT_HELP
from lt_cb.commands.train import Session
from lt_cb.loggers import RunFolder
from lt_cb.module import LongTailedClassifier
from lt_cb.runs.record import LOSS_FACTS
from lt_cb.text import spreadsheet_safe

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    file for file in (ROOT / "configs").rglob("*.yaml") if file.parent.name not in ("second_stage", "grids", "sweeps")
)
TINY = [
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--model.backbone=resnet20",
]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def fit(*args: str) -> Path:
    """Train the quickstart for an epoch and return the newest run folder."""
    main(["fit", "--config", str(ROOT / "configs/quickstart.yaml"), *TINY, *args])
    return max(Path("runs").glob("*/version_*"), key=lambda folder: folder.stat().st_mtime_ns)


def test_a_run_from_fit_to_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(
        "--config", str(ROOT / "configs/loss/cb_focal.yaml"), "--model.loss.weighting.beta=0.99", "--seed_everything=7"
    )
    table = capsys.readouterr().out
    assert "training images" in table
    assert "134" in table
    assert {file.name for file in run.iterdir()} >= {"config.yaml", "metrics.csv", "result.json", "checkpoints"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["loss"]["init_args"]["weighting"]["init_args"] == {
        "beta": 0.99,
        "normalization": "classes",
    }
    result = json.loads((run / "result.json").read_text())
    assert result["class_counts"] == [134, 86, 56, 36, 23, 15, 9, 6, 4, 2]
    assert result["test_counts"] == [40] * 10
    assert result["skipped_images"] == {}
    assert [sum(line) for line in result["confusion"]] == [40] * 10
    assert [line[c] for c, line in enumerate(result["confusion"])] == result["correct"]
    assert result["seeds"] == {"seed_everything": 7, "subset_seed": 0}
    mean = sum(result["per_class_accuracy"]) / 10
    assert result["metrics"]["test/balanced_acc"] == pytest.approx(mean)
    with (run / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert float(rows[-1]["test/balanced_acc"]) == pytest.approx(mean)

    # the checkpoint alone is enough to test; the command line goes over what it says
    checkpoint = tmp_path / "moved.ckpt"
    checkpoint.write_bytes((run / "checkpoints/last.ckpt").read_bytes())
    main(["test", "--ckpt_path", str(checkpoint), "--model.few_shot=40"])
    tested = json.loads((run.with_name("test") / "result.json").read_text())
    assert tested["epochs"] == result["epochs"] == 1
    assert tested["per_class_accuracy"] == result["per_class_accuracy"]
    assert tested["metrics"]["test/loss"] == pytest.approx(result["metrics"]["test/loss"])
    few = result["per_class_accuracy"][3:]
    assert tested["metrics"]["test/acc/few"] == pytest.approx(sum(few) / len(few))

    model = LongTailedClassifier.load_from_checkpoint(checkpoint, weights_only=True, map_location="cpu").eval()
    assert model.loss.weighting is not None
    assert vars(model.loss.weighting) == {"beta": 0.99, "normalization": "classes"}

    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        Image.effect_noise((20 + i, 30), 50).save(photos / f"{i}.png")
    main(["predict", f"--ckpt_path={checkpoint}", "--images", str(photos)])
    with (run.with_name("predictions") / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    assert {row["class"] for row in rows} <= set("0123456789")
    assert all(0 <= float(row["probability"]) <= 1 for row in rows)

    assert refused(capsys, "predict", f"--ckpt_path={checkpoint}").startswith("predict needs images")
    sentence = refused(capsys, "predict", f"--ckpt_path={checkpoint}", "--images=/nowhere")
    assert sentence.startswith("there is no file or folder '/nowhere'")
    (photos / "1.png").write_bytes(b"no image")
    sentence = refused(capsys, "predict", f"--ckpt_path={checkpoint}", f"--images={photos}")
    assert "1.png' cannot be read as an image" in sentence
    assert sentence.endswith("or skip such files by --data.on_unreadable skip (predict: --on_unreadable skip).")
    with pytest.warns(UserWarning, match=r"1 images cannot be read and are skipped: '\S+1\.png'\."):
        main(["predict", f"--ckpt_path={checkpoint}", "--images", str(photos), "--on_unreadable=skip"])
    with (run.with_name("predictions_2") / "predictions.csv").open() as stream:
        assert list(csv.DictReader(stream)) == [row for row in rows if "1.png" not in row["file"]]
    sentence = refused(capsys, "test", f"--ckpt_path={checkpoint}", "--data.source=cifar100")
    assert sentence.startswith("the checkpoint has 10 classes, but the data have 100")
    sentence = refused(capsys, "test", f"--ckpt_path={checkpoint}", "--data.source=cifar10")
    assert sentence.startswith("the checkpoint's classes are not those of the data")
    sentence = refused(capsys, "fit", f"--ckpt_path={checkpoint}", "--data.source=cifar100")
    assert sentence.startswith("the checkpoint has 10 classes")


def test_resume_goes_on_in_the_same_configuration() -> None:
    run = fit("--model.loss=SigmoidLoss")
    before = json.loads((run / "result.json").read_text())["wall_time_s"]["fit"]
    main(["fit", "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--trainer.max_epochs=2"])
    resumed = run.with_name("version_1")
    result = json.loads((resumed / "result.json").read_text())
    assert result["epochs"] == 2
    main(["test", "--ckpt_path", str(resumed / "checkpoints/last.ckpt")])
    tested = json.loads((resumed / "test/result.json").read_text())
    assert tested["epochs"] == 2
    assert tested["wall_time_s"]["fit"] == pytest.approx(result["wall_time_s"]["fit"], abs=0.001)
    last = torch.load(resumed / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["ResultFile"]["fit"]
    first = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["ResultFile"]["fit"]
    assert 0 < first < before + 0.001
    assert first < last < result["wall_time_s"]["fit"] + 0.001  # of both parts
    with (resumed / "metrics.csv").open() as stream:
        assert [row["epoch"] for row in csv.DictReader(stream) if row["train/loss"]] == ["1"]
    config = yaml.safe_load((resumed / "config.yaml").read_text())
    assert config["model"]["loss"]["class_path"] == "lt_cb.losses.SigmoidLoss"


def test_going_on_with_another_loss_is_refused_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(fit() / "checkpoints/last.ckpt")
    go_on = ("fit", f"--ckpt_path={checkpoint}", "--trainer.max_epochs=2")
    for args, key, before, now in (
        (["--model.loss.weighting.beta=0.9"], "model.loss.weighting.beta", "0.9999", "0.9"),
        (["--model.loss.gamma=2"], "model.loss.gamma", "1.0", "2.0"),
        (["--model.loss.weighting=null"], "model.loss.weighting", "lt_cb.losses.EffectiveNumber", "null"),
        (["--model.loss=SoftmaxLoss"], "model.loss", "lt_cb.losses.FocalLoss", "lt_cb.losses.SoftmaxLoss"),
    ):
        sentence = refused(capsys, *go_on, *args)
        assert sentence.startswith(f"the checkpoint was trained with --{key} {before}, but it is {now} now")
    # an option that the configuration does not write, as it was not set
    plain = str(fit("--model.loss=BalancedSoftmaxLoss", "--name=plain") / "checkpoints/last.ckpt")
    for args, now in ((["--model.loss.weighting=EffectiveNumber"], "null"), (["--model.loss.reduction=sum"], "mean")):
        sentence = refused(capsys, "fit", f"--ckpt_path={plain}", "--trainer.max_epochs=2", *args)
        assert sentence.startswith(f"the checkpoint was trained with {args[0].partition('=')[0]} {now}, but it is ")
    sentence = refused(capsys, *go_on, "--model.loss=SoftmaxLoss", "--change_loss=true")  # its last bias decays
    assert sentence.startswith("the checkpoint was trained with another loss, second stage or weight decay")

    main([*go_on, "--model.loss.weighting.beta=0.9", "--change_loss=true"])
    changed = LongTailedClassifier.load_from_checkpoint("runs/quickstart/version_1/checkpoints/last.ckpt")
    expected = torch.tensor([(1 - 0.9) / (1 - 0.9**n) for n in changed.loss.class_counts])
    weights = changed.loss.class_weights.cpu()
    torch.testing.assert_close(weights / weights.sum(), expected / expected.sum())


def test_another_loss_starts_from_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    def resolved(*args: str) -> dict:
        with pytest.raises(SystemExit, match="0"):
            main([*FIT, *args, "--print_config"])
        return yaml.safe_load(capsys.readouterr().out)["model"]

    assert resolved("--model.loss=SoftmaxLoss")["loss"]["init_args"]["weighting"] is None
    Path("softmax.yaml").write_text("model: {loss: {class_path: lt_cb.losses.SoftmaxLoss}}")
    assert resolved("--config=softmax.yaml") == resolved("--model.loss=lt_cb.losses.SoftmaxLoss")
    # the same class is no other, by whatever name; its options stay
    for name in ("FocalLoss", "lt_cb.losses.FocalLoss"):
        options = resolved("--model.loss.gamma=3", f"--model.loss={name}")["loss"]["init_args"]
        assert options["gamma"] == 3
        assert options["weighting"]["init_args"]["beta"] == 0.9999
    assert resolved("--model.loss.weighting.normalization=samples", "--model.loss.weighting=InverseFrequency")["loss"][
        "init_args"
    ]["weighting"]["init_args"] == {"normalization": "classes"}
    assert resolved("--model.optimizer=AdamW")["optimizer"]["init_args"]["lr"] == 0.001


@pytest.mark.slow
def test_a_checkpoint_of_pretrained_weights_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    make, asked = timm.create_model, []

    def create(model_name: str, pretrained: bool = False, **options) -> torch.nn.Module:
        asked.append(pretrained)
        return make(model_name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", create)
    run = fit("--model.backbone=resnet10t", "--model.backbone_args={pretrained: true}")
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["backbone_args"] == {"pretrained": True}
    assert asked == [True, False]  # for the training, and for its test
    checkpoint = run / "checkpoints/last.ckpt"
    LongTailedClassifier.load_from_checkpoint(checkpoint)
    main(["test", f"--ckpt_path={checkpoint}"])
    main(["fit", f"--ckpt_path={checkpoint}", "--trainer.max_epochs=2"])
    assert asked == [True, *[False] * 5]


def session(*args: str) -> Session:
    """Return data, model and Trainer of a fit of the quickstart, without training."""
    options = ["--trainer.callbacks=[]", *FIT[1:], *TINY, *args]
    return Session(CommandLine("fit", options))


def test_options_without_effect_or_with_a_double_one_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    made = session
    sampler = "--data.sampler=ClassBalancedSampler"
    with pytest.warns(UserWarning, match="both favour rare classes, and compound"):
        made(sampler)
    with pytest.warns(UserWarning, match="drs_start is set, but the data have no sampler: nothing is deferred"):
        made("--data.drs_start=0.5")
    with pytest.warns(UserWarning, match="drw_start is set, but the loss has no weighting: nothing is deferred"):
        made("--model.drw_start=0.5", "--model.loss.weighting=null")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(compound|deferred).*")
        made(sampler, "--model.loss.weighting=null", "--data.drs_start=0.5")
        made("--model.drw_start=0.5")
    constant = ["--model.lr_scheduler=torch.optim.lr_scheduler.ConstantLR", "--model.lr_scheduler.factor=1"]
    for args in ([], [*constant, "--model.drw_start=0.5"], [*constant, sampler]):
        sentence = refused(capsys, *FIT, *TINY, *args, "--trainer.max_epochs=-1")
        assert sentence.endswith("it has no end: set --trainer.max_epochs.")


def test_a_prediction_is_never_a_formula() -> None:
    for text in ("=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\tx"):
        assert spreadsheet_safe(text) == f"'{text}"
    for text in ("cat", "photos/=1.png", "-1", "+2.5", ""):
        assert spreadsheet_safe(text) == text


def test_the_folder_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit() == Path("runs/quickstart/version_0")
    assert fit("--name=mine", "--trainer.default_root_dir=elsewhere") is not None
    assert Path("elsewhere/mine/version_0/result.json").is_file()
    fit("--name=mine", "--trainer.logger=false")
    assert Path("runs/mine/version_0/result.json").is_file()
    fit("--folder=runs/g/a/seed_0", "--trainer.logger=lt_cb.loggers.TensorBoard")
    assert {f.name for f in Path("runs/g/a/seed_0").iterdir()} >= {"config.yaml", "metrics.csv", "result.json"}
    assert list(Path("runs/g/a/seed_0").glob("events.out.tfevents.*"))  # beside the folder's own files
    sentence = refused(capsys, *FIT, *TINY, "--folder=runs/g/a/seed_0")
    assert sentence.startswith("'runs/g/a/seed_0' has a run already: set --folder to another, or resume it")
    checkpoint = "runs/g/a/seed_0/checkpoints/last.ckpt"
    main(["fit", f"--ckpt_path={checkpoint}", "--folder=runs/g/a/seed_0", "--trainer.max_epochs=2"])
    with Path("runs/g/a/seed_0/metrics.csv").open() as stream:
        assert [row["epoch"] for row in csv.DictReader(stream) if row["train/loss"]] == ["0", "1"]
    main(["test", f"--ckpt_path={checkpoint}"])
    assert Path("runs/g/a/seed_0/test/result.json").is_file()


def epochs_of(run: Path) -> list[str]:
    with (run / "metrics.csv").open() as stream:
        return [row["epoch"] for row in csv.DictReader(stream) if row.get("train/loss")]


def test_a_runs_history_is_whole_after_a_kill(capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("runs/g/a/seed_0")
    main([*FIT, *TINY, f"--folder={run}", "--trainer.max_epochs=2"])
    go_on = ("fit", f"--ckpt_path={run}/checkpoints/last.ckpt", f"--folder={run}")
    whole = (run / "metrics.csv").read_text()
    with (run / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    # the kill came between the checkpoint and the row of its epoch, or in the middle of that row
    lines = whole.splitlines(keepends=True)
    last = max(i for i, row in enumerate(rows, 1) if row["train/loss"])
    for text in ("".join(lines[:last]), "".join(lines[:last]) + lines[last][:3]):
        (run / "metrics.csv").write_text(text)
        main([*go_on, "--trainer.max_epochs=2"])
        assert epochs_of(run) == ["0", "1"]
        with (run / "metrics.csv").open() as stream:
            again = [row for row in csv.DictReader(stream) if row["train/loss"]]
        assert [(row["step"], float(row["train/loss"])) for row in again] == [
            (row["step"], pytest.approx(float(row["train/loss"]))) for row in rows if row["train/loss"]
        ]
    (run / "metrics.csv").write_bytes(b"epoch,step\n\xff")
    with pytest.warns(UserWarning, match="is damaged"):
        main([*go_on, "--trainer.max_epochs=3"])
    assert epochs_of(run) == ["1", "2"]  # that of the checkpoint, and the next
    assert (run / "metrics.damaged.csv").is_file()

    last = run / "checkpoints/last.ckpt"
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    last.write_bytes(last.read_bytes()[:-1000])
    assert refused(capsys, *go_on).endswith(f"The one before it is '{run}/checkpoints/last.before.ckpt'.")
    main(["fit", f"--ckpt_path={run}/checkpoints/last.before.ckpt", f"--folder={run}", "--trainer.max_epochs=3"])
    assert json.loads((run / "result.json").read_text())["metrics"] == metrics
    assert epochs_of(run) == ["1", "2"]


def test_a_kill_under_a_new_header_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunFolder(str(tmp_path), "a", "b").experiment
    for epoch in range(3):
        writer.log_metrics({"epoch": epoch, "train/loss": 0.5}, epoch)
        writer.save()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    writer.log_metrics({"epoch": 3, "test/acc": 0.5}, 3)
    with monkeypatch.context() as patch:
        patch.setattr("csv.DictWriter.writerows", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.save()
    assert epochs_of(tmp_path / "a/b") == ["0", "1", "2"]
    writer.save()
    assert len((tmp_path / "a/b/metrics.csv").read_text().splitlines()) == 5


@pytest.mark.slow
def test_a_pipe_whose_reader_has_ended_is_no_error() -> None:
    end, other = os.pipe()
    os.close(end)
    command = [sys.executable, "-m", "lt_cb", "--help"]
    done = subprocess.run(command, stdout=other, stderr=subprocess.PIPE, text=True, check=False)
    os.close(other)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_and_version_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from lt_cb.__main__ import main\n"
        "main([]); main(['--help']); main(['--version']); print('torch' in sys.modules, 'yaml' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("\nFalse False\n")
    for command in ("fit", "validate", "test", "predict", "export", "inspect", "grid", "report"):
        assert out.count(f"\n  {command} ") == 2
    assert f"\nlt_cb {lt_cb.__version__}\n" in out


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "fti").startswith("there is no command 'fti': choose fit, validate")
    assert refused(capsys, "fti").endswith(" Did you mean 'fit'?")


def test_validate_uses_the_held_out_images(capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("--data.val_fraction=0.3", "--data.imbalance_factor=2")
    main(["validate", f"--ckpt_path={run / 'checkpoints/last.ckpt'}"])
    assert "val/balanced_acc" in capsys.readouterr().out


WHOLE = [config for config in CONFIGS if config.parent.name not in ("loss", "sampler")]


@pytest.mark.slow
@pytest.mark.parametrize("config", WHOLE, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_every_config_trains(config: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Overlays four batches of digits; other configs images made for the test where they need a download."""
    base = ["--config", str(ROOT / "configs/image_folder.yaml")] if config.parent.name == "recipe" else []
    made = ["--data.source=image_folder", f"--data.root={folder}", "--data.imbalance_factor=null"]
    data = [] if "digits" in config.read_text() else made
    if "crop: resized" in config.read_text():  # of images, and for machines, that are not here
        data = [*made, "--data.global_batch_size=null"]
        data += ["--model.backbone=resnet10t", "--model.backbone_args=null"]
    main(
        ["fit", *base, "--config", str(config), *data, *TINY, "--data.image_size=12", "--trainer.limit_train_batches=4"]
    )
    assert re.search("Test (accuracy|average precision) by class", capsys.readouterr().out)


FIT = ["fit", "--config", str(ROOT / "configs/quickstart.yaml")]
OVERLAYS = sorted([*(ROOT / "configs/loss").glob("*.yaml"), *(ROOT / "configs/sampler").glob("*.yaml")])


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_is_what_it_names(overlay: Path) -> None:
    """It makes the loss or sampler of its file, with no option of the loss before, and a step can be taken with it."""
    made = session("--model.loss.gamma=7", f"--config={overlay}")
    named = yaml.safe_load(overlay.read_text())
    if "model" in named and "loss" in named["model"]:
        asked = named["model"]["loss"]
        assert f"lt_cb.losses.{type(made.model.loss).__name__}" == asked["class_path"]
        own = asked.get("init_args") or {}
        of_data = {k: getattr(made.model.loss, k) for k in LOSS_FACTS if hasattr(made.model.loss, k)}
        defaults = type(made.model.loss)(**of_data, **{k: v for k, v in own.items() if k != "weighting"})
        for option, value in vars(defaults).items():
            if isinstance(value, float | int | str | None) and option not in ("training", "weighting"):
                assert getattr(made.model.loss, option) == value, option
        weighting = (own.get("weighting") or {}).get("class_path")
        assert weighting == (made.model.loss.weighting and f"lt_cb.losses.{type(made.model.loss.weighting).__name__}")
    else:
        sampler = named["data"]["sampler"]
        path = sampler if isinstance(sampler, str) else sampler["class_path"]
        assert path == f"lt_cb.data.{type(made.data.sampler).__name__}"
    loss = made.model.training_step(next(iter(made.data.train_dataloader())), 0)
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--trainer.accumulate_grad_batches=0"], "--trainer.accumulate_grad_batches is 0, but must be at least 1"),
        (["--trainer.gradient_clip_val=.nan"], "--trainer.gradient_clip_val is nan, but must be at least 0"),
        (["--name=a\0b"], "a path has a null byte"),
        (["--model.loss=FocalLoss", "--model.loss.gamma=null"], "gamma is None, but must be at least 0"),
        (["--folder=/proc/x"], "cannot use '/proc/x'"),
        (["--model.backbone_args={num_classes: 3}"], "--model.backbone_args has num_classes"),
        (
            ["--model.mix=torchvision.transforms.v2.MixUp", "--model.mix.alpha=-1"],
            "what is configured cannot be made (Expected parameter concentration",
        ),
        (
            ["--model.optimizer=SparseAdam"],
            "the optimiser or its schedule cannot be made (SparseAdam does not support dense gradients",
        ),
        (["--model.loss.weighting.beta=1"], "beta is 1.0, but must be in [0, 1)"),
        (["--model.loss.weighting.beta=much"], "--model.loss.weighting.beta is much, but must be a number."),
        (["--model.loss.gamma=-1"], "gamma is -1.0, but must be at least 0"),
        (["--data.imbalance_factor=0.5"], "imbalance_factor is 0.5, but must be at least 1"),
        (["--data.n_max=1000"], "1000 training images of class '0' are asked for, but there are 138"),
        (["--data.imbalance_type=exp"], "--data.imbalance_type is exp, but must be exponential or step."),
        (["--data.source=digit"], "there is no data source 'digit': choose Digits"),
        (["--data.source=image_folder", "--data.root=/nowhere"], "there is no folder '/nowhere': set --data.root"),
        (
            ["--model.loss=FocalLos"],
            "there is no loss 'FocalLos': choose AsymmetricLoss, BalancedSoftmaxLoss, ",
        ),
        (
            ["--model.loss=no.such.Loss"],
            "--model.loss is no.such.Loss, but there is no module 'no': set PYTHONPATH to the folder that has it.",
        ),
        (
            ["--model.loss.weighting=null", "--model.loss.weighting.beta=0.9"],
            "--model.loss.weighting has options, but names no class: set --model.loss.weighting first, to Effective",
        ),
        (["--model.backbone=nowhere.net"], "--model.backbone is 'nowhere.net', but 'nowhere' cannot be imported"),
        (["--model.backbone=resnet33"], "there is no model 'resnet33': choose resnet20"),
        (["--model.backbone_args={width: 3}"], "model 'resnet32' does not take these options"),
        (["--model.optimizer.lr=-1"], "the optimiser or its schedule cannot be made (Invalid learning rate: -1.0)"),
        (["--seed_everything=-1"], "--seed_everything is -1, but must be at least 0 and below 2**32."),
        (["--trainer.accelerator=none"], "the Trainer cannot be made (You selected an invalid accelerator name"),
        (["--model.optimizer=SGDD"], "there is no optimizer 'SGDD'"),
        (["--data.batch_size=big"], "--data.batch_size is big, but must be a whole number."),
        (["--data.mean=[1,x]"], "--data.mean is x, but must be a number."),
        (["--model.los.gamma=1"], "there is no option --model.los.gamma"),
        (["--model.loss.gama=1"], "there is no option --model.loss.gama: see lt-cb fit --help."),
        (["--trainer.max_epoch=1"], "there is no option --trainer.max_epoch: see lt-cb fit --help. Did you mean"),
        (["--config=missing.yaml"], "there is no configuration file 'missing.yaml'"),
        (["--model_class=.x"], "--model is '.x', which cannot be imported"),
        (["--ckpt_path=missing.ckpt"], "there is no checkpoint 'missing.ckpt'"),
        ([f"--ckpt_path={__file__}"], f"'{__file__}' is not a checkpoint of a run"),
    ],
)
def test_wrong_input_gets_one_sentence(args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *FIT, *args).startswith(sentence)


CLASS_NAMES = ("model_class", "data_class")
VALUES = ("[1]", "{a: 1}", "true")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model: {optimizer: null}", "--model.optimizer is null, but must be a class"),
        ("model: {lr_scheduler: null}", "--model.lr_scheduler is null, but must be a class"),
        ("name: {a: 1}", "--name: Expected a <class 'str'>"),
        *(
            (text, " in a configuration file, but must be a mapping")
            for text in ("data:", "trainer: [1]", "model: null")
        ),
        *((f"ckpt_path: {value}", "must be the path of a checkpoint, or a list of paths.") for value in VALUES),
        *((f"{name}: {value}", "must be a text or null.") for name in CLASS_NAMES for value in VALUES),
        ("model:\n  loss: x\n backbone: y", "'odd.yaml' is not YAML: while parsing"),
    ],
)
def test_a_wrong_configuration_file_gets_one_sentence(
    text: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("odd.yaml").write_text(text)
    assert sentence in refused(capsys, *FIT, "--config=odd.yaml")


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    sentence = refused(capsys, *FIT, f"--trainer.default_root_dir={tmp_path}/file")
    assert sentence.startswith(f"cannot use '{tmp_path}/file")


def test_nearest_names_are_offered(capsys: pytest.CaptureFixture[str]) -> None:
    for args, name in (
        (["--model.loss=FocalLos"], "FocalLoss"),
        (["--model.loss=sofmaxloss"], "SoftmaxLoss"),
        (["--model.loss.weighting=EffectiveNumbr"], "EffectiveNumber"),
        (["--data.source=fashionmnits"], "FashionMNIST"),
        (["--model.backbone=resnet-32"], "resnet32"),
        (["--data.imbalanse_factor=3"], "--data.imbalance_factor"),
        (["--model.loss=FocalLoss", "--model.loss.gama=3"], "--model.loss.gamma"),
        ([f"--config={ROOT}/configs/quickstrat.yaml"], f"{ROOT}/configs/quickstart.yaml"),
    ):
        assert refused(capsys, *FIT, *args).endswith(f" Did you mean '{name}'?")


def test_a_checkpoint_and_what_it_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = [f"--trainer.limit_{part}_batches=1" for part in ("train", "test")]
    run = fit(*short)
    moved = (run / "checkpoints/last.ckpt").rename(tmp_path / "moved.ckpt")
    main(["fit", f"--ckpt_path={moved}"])  # nothing is left to train
    results = [json.loads((run.with_name(f"version_{i}") / "result.json").read_text()) for i in range(2)]
    assert results[0]["per_class_accuracy"] == results[1]["per_class_accuracy"]
    assert results[1]["checkpoint"] == str(moved)

    go_on = ["fit", f"--ckpt_path={moved}", "--trainer.max_epochs=2"]
    sentence = refused(capsys, *go_on, "--model.optimizer=torch.optim.AdamW")
    assert sentence.startswith(
        "the checkpoint was trained with --model.optimizer torch.optim.SGD, but it is torch.optim.Ad"
    )
    step = ["--model.lr_scheduler=torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size=1"]
    sentence = refused(capsys, *go_on, *step)
    assert sentence.startswith(
        "the checkpoint was trained with --model.lr_scheduler lt_cb.schedule.WarmupLinear, but it"
    )

    content = torch.load(moved, weights_only=True)
    for (group, key), value, words, said in (
        (("model", "second_stage"), 5, ["inspect"], "is not that of a run"),
        (("model", "backbone_args"), [1], ["test"], "is not that of a run"),
        (("data", "crop"), "round", ["predict", "--images=."], "crop is 'round', but must be padded or"),
        (
            ("data", "interpolation"),
            [1],
            ["predict", "--images=."],
            "interpolation is [1], but must be bilinear or",
        ),
    ):
        config = yaml.safe_load(content["lt_cb_config"])
        config[group][key] = value
        torch.save({**content, "lt_cb_config": yaml.safe_dump(config)}, "odd.ckpt")
        assert said in refused(capsys, *words, "--ckpt_path=odd.ckpt")

    (state,) = content["optimizer_states"]
    for odd in (
        {"loops": {**content["loops"], "fit_loop": {"epoch_progress": 5}}},
        {"lr_schedulers": [5]},
        {"callbacks": dict.fromkeys(content["callbacks"], 5)},
        {"optimizer_states": [{**state, "state": []}]},
    ):
        torch.save({**content, **odd}, "odd.ckpt")
        with pytest.raises(SystemExit, match="2"):
            main(["fit", "--ckpt_path=odd.ckpt", "--trainer.max_epochs=2"])
        assert "the checkpoint cannot be restored" in capsys.readouterr().err

    state = {name: v * math.nan if v.is_floating_point() else v for name, v in content["state_dict"].items()}
    torch.save({**content, "state_dict": state}, "odd.ckpt")
    Image.effect_noise((20, 30), 50).save("0.png")
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "--images=.", "--ckpt_path=odd.ckpt"])
    assert "lt-cb: error: the probabilities are nan" in capsys.readouterr().err
    assert not list(Path("runs").rglob("predictions.csv"))


def test_an_untrained_model_is_not_tested(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("validate", "test", "predict"):
        assert refused(capsys, command).startswith(f"{command} needs a trained model: set --ckpt_path")


def test_a_config_that_is_no_yaml_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_bytes(b"model: \xff")
    assert refused(capsys, *FIT, "--config", "bad.yaml").startswith("'bad.yaml' is not YAML: 'utf-8' codec")
    for text in ("model: &own\n  loss: *own", alias_bomb()):
        Path("bad.yaml").write_text(text)
        sentence = "'bad.yaml' expands to more than 100,000 values by its aliases: write the values out."
        assert refused(capsys, *FIT, "--config", "bad.yaml") == refused(capsys, "grid", "bad.yaml") == sentence


def test_shipped_configurations_have_names(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for words in (
        ["--config", "lt_cb:quickstart", "--config=lt_cb:loss/cb_focal"],
        ["-c", "lt_cb:quickstart", "-c=lt_cb:loss/cb_focal.yaml"],
        [f"--config={ROOT}/configs/quickstart.yaml", f"--config={ROOT}/configs/loss/cb_focal.yaml"],
    ):
        with pytest.raises(SystemExit, match="0"):
            main(["fit", *words, "--print_config"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    for words in (("fit", "--config=lt_cb:quikstart"), ("grid", "lt_cb:quikstart")):
        sentence = refused(capsys, *words)
        assert sentence.startswith("there is no configuration 'lt_cb:quikstart': choose lt_cb:augment/")
        assert sentence.endswith("Did you mean 'lt_cb:quickstart'?")
    Path("grid.yaml").write_text("config: [lt_cb:quickstart, lt_cb:loss/softmax]")
    for file, said in (("lt_cb:grids/digits", "distinct runs in runs/digits"), ("grid.yaml", "1 distinct runs")):
        with pytest.raises(SystemExit, match="0"):
            main(["grid", file, "--dry-run"])
        assert said in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv builds the wheel")
def test_the_wheel_has_the_configurations(tmp_path: Path) -> None:
    subprocess.run(["uv", "build", "--quiet", "--wheel", "--out-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {f"lt_cb/{file.relative_to(ROOT)}" for file in CONFIGS} <= set(archive.namelist())


@pytest.mark.parametrize("damage", ["truncated image", "empty class", "other classes", "stray image"])
def test_a_bad_folder_leaves_no_run(folder: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    if damage == "truncated image":
        file = folder / "test/dog/02.jpg"
        file.write_bytes(file.read_bytes()[:200])
    elif damage == "empty class":
        for file in (folder / "train/dog").iterdir():
            file.unlink()
    elif damage == "stray image":
        (folder / "train/dog/02.jpg").rename(folder / "train/02.jpg")
    else:
        (folder / "test/dog").rename(folder / "test/wolf")
    config = str(ROOT / "configs/image_folder.yaml")
    sentence = refused(capsys, "fit", "--config", config, f"--data.root={folder}", *TINY)
    expected = {
        "truncated image": "02.jpg",
        "empty class": "'dog'",
        "other classes": "test' has images of 'wolf', but",
        "stray image": "1 images lie in",
    }
    assert expected[damage] in sentence


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    with pytest.raises(SystemExit, match="0"):
        main(list(words))
    return capsys.readouterr().out.splitlines()


def test_the_help_of_a_command_is_short_and_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    short, full = help_of(capsys, "fit", "--help"), help_of(capsys, "fit", "--help_all")
    assert len(short) <= 150
    assert max(map(len, short)) <= 80
    assert len(full) > 1000
    there = {word.rstrip(",") for line in full for word in line.split() if word.startswith("--")}
    keys = {f"--{group}.{name}" for group, names in SHORT_HELP.items() for name in names.split() if group != "run"}
    assert keys | {"--config", "--ckpt_path", "--name", "--folder", "--seed_everything", "--change_loss"} <= there
    shown = [line.split() for line in short if line.startswith("  --")]
    assert keys <= {line[0] for line in shown}
    assert ["--data.batch_size", "128", "images", "a", "batch", "on", "each", "device"] in shown
    assert "before classes" in " ".join(" ".join(short).split())
    assert ["--model.loss", "SoftmaxLoss"] in [line[:2] for line in shown]
    monkeypatch.setenv("COLUMNS", "120")
    assert len(help_of(capsys, "fit", "--help")) <= 100
    assert any(line.startswith("  --folds 5 ") for line in help_of(capsys, "recommend", "--help"))
    of_checkpoint = help_of(capsys, "finetune", "--help")
    assert "trainer, as in the training, or defaults:" in of_checkpoint
    assert ["--trainer.max_epochs", "5"] in [line.split()[:2] for line in of_checkpoint]
    text = "\n".join(help_of(capsys, "fit", "--model.loss.help", "FocalLoss"))
    assert "Help for --model.loss.help=lt_cb.losses.FocalLoss" in text
    assert "--model.loss.gamma" in text


BEST = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss", "--test_best=true"]


@pytest.mark.slow
def test_what_ended_a_training_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def ending(*args: str) -> list[str]:
        short = [f"--trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]
        fit(*short, "--trainer.max_epochs=4", "--trainer.check_val_every_n_epoch=1", *args)
        return [
            line for line in capsys.readouterr().out.splitlines() if re.match(r"Trained |val/|There was|Tested", line)
        ]

    ended, scored = ending("--trainer.check_val_every_n_epoch=2")
    assert ended == "Trained 4 epochs, 4 steps: --trainer.max_epochs is reached."
    number = r"0\.\d+|\d\.\d+"
    scores = rf"best ({number}) after [24] epochs, last ({number}) after 4\."
    assert re.fullmatch(rf"val/balanced_acc on the test images: {scores} Tested: last\.ckpt\.", scored)
    stopper = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    stopper += ["--trainer.callbacks.min_delta=100", "--trainer.callbacks.patience=2"]
    ended, scored = ending(*stopper)
    assert re.fullmatch(
        rf"Trained 3 epochs, 3 steps: stopped early, as val/loss was no better than ({number}) 2 times in a row\.",
        ended,
    )
    assert scored.startswith("val/loss on the test images: best ")
    assert ending("--trainer.max_steps=2")[0] == "Trained 2 epochs, 2 steps: --trainer.max_steps is reached."
    ended, _ = ending("--trainer.max_time=00:00:00:02", "--trainer.max_epochs=10000")
    assert ended.endswith("steps: the time of --trainer.max_time or the Timer is over.")
    with pytest.warns(UserWarning, match="check_val_every_n_epoch is 5, but --trainer.max_epochs 4: nothing is valid"):
        _, scored = ending("--trainer.check_val_every_n_epoch=5")
    assert scored == "There was no validation. Tested: last.ckpt."

    _, scored = ending(*BEST, "--trainer.callbacks.mode=max")  # the loss falls: the first epoch is its best
    best, epoch = re.findall(r"best (\S+) after (\d)", scored)[0]
    assert scored.endswith(f"Tested: epoch={int(epoch) - 1}-step={epoch}.ckpt.")
    run = max(Path("runs/quickstart").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    result = json.loads((run / "result.json").read_text())
    assert Path(result["checkpoint"]).name == f"epoch={int(epoch) - 1}-step={epoch}.ckpt"
    assert result["metrics"]["test/loss"] == pytest.approx(float(best), rel=1e-3)  # it validates on the test images
    main(["test", f"--ckpt_path={result['checkpoint']}"])


def test_a_line_stands_for_the_summary_of_the_model(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    short = [f"--trainer.limit_{part}_batches=1" for part in ("train", "test")]
    for asked, table, line in (([], False, True), (["true"], True, False), (["false"], False, False)):
        with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
            fit(*short, *[f"--trainer.enable_model_summary={value}" for value in asked])
        assert ("FLOPs" in capsys.readouterr().out) is table
        said = "resnet20: 0.269 M parameters; FocalLoss with EffectiveNumber; 10 classes, 371 training images, imbal"
        assert (said in caplog.text) is line
        caplog.clear()


def test_the_best_checkpoint_needs_something_to_tell_it(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refused(capsys, *FIT, *TINY, "--test_best=true")
    assert sentence.startswith("--test_best needs a callback that keeps the best checkpoint: add --trainer.callbacks+=")
    sentence = refused(capsys, *FIT, *TINY, *BEST)
    assert sentence.startswith("--trainer.check_val_every_n_epoch is 10, but --trainer.max_epochs 1: nothing is valid")


def test_console_script_and_module_exit_alike() -> None:
    for command in ([str(Path(sys.executable).with_name("lt-cb"))], [sys.executable, "-m", "lt_cb"]):
        done = subprocess.run([*command, "tset"], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("lt-cb: error: there is no command 'tset'")
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_three_processes_count_every_image_once(tmp_path: Path) -> None:
    """400 test images over 3 processes, which have 2, 1 and 1 batches of at most 133."""
    run = fit("--data.batch_size=133", "--trainer.callbacks+=SaveLogits")
    one = json.loads((run / "result.json").read_text())
    words = ["--trainer.devices=3", "--trainer.strategy=ddp_fork", "--trainer.callbacks+=SaveLogits"]
    main(["test", "--ckpt_path", str(run / "checkpoints/last.ckpt"), *words])
    three = json.loads((run / "test/result.json").read_text())
    assert three["test_counts"] == one["test_counts"] == [40] * 10
    assert three["per_class_accuracy"] == one["per_class_accuracy"]
    assert three["confusion"] == one["confusion"]
    assert three["metrics"] == pytest.approx(one["metrics"], rel=1e-5)
    with np.load(run / "logits.npz") as here, np.load(run / "test/logits.npz") as there:
        assert np.array_equal(here["targets"], there["targets"])
        np.testing.assert_allclose(here["logits"], there["logits"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(here["confidence"], there["confidence"], rtol=1e-4, atol=1e-4)
        correct = (there["logits"].argmax(1) == there["targets"]).mean()
        assert correct == pytest.approx(three["metrics"]["test/acc"])
        assert there["confidence"].shape == (400,)


@pytest.mark.slow
def test_two_processes_with_uneven_batches_train_as_one() -> None:
    """371 images are a step of 256 and one of 115: 58 in one process and 57 in the other."""
    words = [*FIT, *TINY, "--trainer.max_epochs=3", "--model.backbone=plain.flat", "--model.fast=off"]
    words += ["--trainer.check_val_every_n_epoch=1"]
    main([*words, "--data.batch_size=256"])
    command = [sys.executable, "-m", "lt_cb", *words, "--data.batch_size=128"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=300)
    one, two = Path("runs/quickstart/version_0"), Path("runs/quickstart/version_1")
    result = json.loads((two / "result.json").read_text())
    assert (sum(result["class_counts"]), result["test_images"], result["processes"]) == (371, 400, 2)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    for last in (one, two):
        assert torch.load(last / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return [float(row[name]) for name in ("train/loss", "val/loss") for row in rows if row[name]]
