"""The command line is read once: however a setting is given, the same run is made."""

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forks import Command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refused

from lt_cb.__main__ import main
from lt_cb.commands.cli import CommandLine

ROOT = Path(__file__).parents[1]
FIT = [
    "fit",
    "--config",
    str(ROOT / "configs/quickstart.yaml"),
    "--model.backbone=resnet20",
    "--trainer.accelerator=cpu",
]
WAYS = ("flags", "file", "home", "url", "inline", "environment", "checkpoint")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of a checkpoint of an epoch on digits."""
    run = tmp_path_factory.mktemp("runs") / "a/b"
    main([*FIT, "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", f"--folder={run}"])
    content: dict[str, Any] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return content


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is also the user's home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Draw options of data, loss and Trainer that differ from the defaults."""
    loss: dict[str, Any] = {"class_path": "lt_cb.losses.FocalLoss", "init_args": {"gamma": draw(st.floats(0, 5))}}
    if draw(st.booleans()):
        beta = draw(st.sampled_from([0.0, 0.9, 0.999]))
        loss["init_args"]["weighting"] = {"class_path": "lt_cb.losses.EffectiveNumber", "init_args": {"beta": beta}}
    return {
        "seed_everything": draw(st.integers(0, 2**32 - 1)),
        "data": {"imbalance_factor": draw(st.floats(1, 100)), "batch_size": draw(st.integers(1, 512))},
        "model": {"loss": loss, "drw_start": draw(st.floats(0, 1))},
        "trainer": {"max_epochs": draw(st.integers(1, 300)), "gradient_clip_val": draw(st.floats(0, 10))},
    }


def flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the options of a configuration as the command line has them."""
    for name, value in config.items():
        if name == "class_path":
            yield prefix.rstrip("."), value
        elif isinstance(value, dict):
            yield from flat(value, prefix if name == "init_args" else f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", repr(value)


def parsed(command: str, config: dict[str, Any], way: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return the resolved options, given in one of the ways."""
    words = [f"--{key}={value}" for key, value in flat(config)]
    text = yaml.safe_dump(config)
    Path("mine.yaml").write_text(text)
    environment = {f"LT_CB_{key.upper().replace('.', '__')}": value for key, value in flat(config)}
    given: list[str] = {
        "flags": words,
        "file": ["--config", "mine.yaml"],
        "home": ["--config=~/mine.yaml"],
        "url": [f"--config=file://{Path('mine.yaml').absolute()}"],
        "inline": ["--config", text],
    }.get(way, [])
    if way == "checkpoint":
        whole = yaml.safe_load(CommandLine("fit", words).config_yaml())
        torch.save({**content, "lt_cb_config": yaml.safe_dump(whole)}, "mine.ckpt")
        given = ["--ckpt_path=mine.ckpt"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items() if way == "environment" else ():
            patch.setenv(name, value)
        resolved: dict[str, Any] = yaml.safe_load(CommandLine(command, given).config_yaml())
    resolved.pop("ckpt_path")
    return resolved


@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=options())
def test_a_setting_means_the_same_however_it_is_given(config: dict[str, Any], checkpoint: dict[str, Any]) -> None:
    expected = parsed("fit", config, "flags", checkpoint)
    assert expected["data"]["imbalance_factor"] == config["data"]["imbalance_factor"]
    assert expected["model"]["loss"]["init_args"]["gamma"] == config["model"]["loss"]["init_args"]["gamma"]
    for way in WAYS:
        assert parsed("fit", config, way, checkpoint) == expected, way


def test_a_checkpoint_is_the_same_however_it_is_named(checkpoint: dict[str, Any], home: Path, capsys: Any) -> None:
    trained = ["--model.loss=FocalLoss", "--model.loss.gamma=2", "--data.imbalance_factor=10"]
    whole = yaml.safe_load(CommandLine("fit", [*FIT[1:], *trained]).config_yaml())
    torch.save({**checkpoint, "lt_cb_config": yaml.safe_dump(whole)}, path := home / "focal.ckpt")
    (home / "mine.yaml").write_text(f"ckpt_path: {path}")
    for words in (
        [f"--ckpt_path={path}"],
        ["--config=mine.yaml"],
        ["--config=~/mine.yaml"],
        ["--config", f"file://{home}/mine.yaml"],
        ["--config", f"{{ckpt_path: {path}}}"],
    ):
        config = CommandLine("test", words).config
        assert (config.ckpt_path, config.model.loss.init_args.gamma) == (str(path), 2)
        assert config.data.imbalance_factor == 10
        # fit resumes the same model in the same data, and not as another
        sentence = refused(capsys, "fit", *words, "--model.loss=SoftmaxLoss", "--trainer.max_epochs=2")
        assert sentence.startswith("the checkpoint was trained with --model.loss lt_cb.losses.FocalLoss")


def test_a_custom_class_is_found_however_it_is_named(home: Path) -> None:
    (home / "mine.yaml").write_text("model_class: lt_cb.sam.SAM\nmodel: {rho: 0.2}")
    for words in (
        ["--model", "lt_cb.sam.SAM", "--model.rho=0.2"],
        ["--model=lt_cb.sam.SAM", "--model.rho=0.2"],
        ["--config=mine.yaml"],
        ["--config=~/mine.yaml"],
        ["--config", "{model_class: lt_cb.sam.SAM, model: {rho: 0.2}}"],
    ):
        cli = CommandLine("fit", [*FIT[1:], *words])
        assert (cli.config.model_class, cli.config.model.rho) == ("lt_cb.sam.SAM", 0.2)
        assert type(cli.make_all(cli.make_data()).model).__name__ == "SAM"


def test_later_settings_override_earlier_ones(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LT_CB_DATA__BATCH_SIZE", "11")
    (home / "a.yaml").write_text("data: {batch_size: 22}")
    for words, size in (
        ([], 11),
        (["--config=a.yaml"], 22),
        (["--config=a.yaml", "--data.batch_size=33"], 33),
        (["--data.batch_size=33", "--config=a.yaml"], 22),
    ):
        assert CommandLine("fit", words).config.data.batch_size == size


@pytest.mark.parametrize("word", ["last", "best", "hpc", "registry"])
def test_a_checkpoint_is_a_file(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("images").mkdir()
    for command in (FIT, ["test"], ["validate"], ["predict", "--images=images"], ["inspect"]):
        sentence = refused(capsys, *command, f"--ckpt_path={word}")
        assert sentence == f"there is no checkpoint '{word}': set --ckpt_path to a run's checkpoints/last.ckpt."


class A:
    def __init__(self, x: int = 1) -> None:
        """Take an option."""


class B(A):
    def __init__(self, x: int = 2) -> None:
        """Take it with another default."""


def test_importing_a_command_leaves_jsonargparse_alone() -> None:
    """A class named after another gets its options here, where the commands are imported, as where they are not."""
    code = """
import jsonargparse, sys
parser = jsonargparse.ArgumentParser()
parser.add_argument("--a", type=A)
x = parser.parse_args([f"--a={A.__module__}.A", "--a.x=7", f"--a={A.__module__}.B"]).a.init_args.x
"""
    exec(code, here := {"A": A})
    classes = "".join(map(inspect.getsource, (A, B)))
    code = f"{classes}{code}print(x, 'lt_cb' in sys.modules)"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"{here['x']} False\n" == there


def test_a_broken_data_module_is_not_taken_for_single_labels(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.syspath_prepend(home)
    (home / "broken.py").write_text(
        "from lt_cb.data import LongTailedDataModule\n"
        "class Broken(LongTailedDataModule):\n"
        "    def __init__(self, **options):\n"
        "        super().__init__(**options)\n"
        "        raise RuntimeError('a bug')\n"
    )
    with pytest.raises(RuntimeError, match="a bug"):
        main([*FIT, "--data=broken.Broken"])


def test_the_data_are_made_once(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.syspath_prepend(home)
    (home / "counted_source.py").write_text(
        "from lt_cb.data.sources import Digits\n"
        "class Counted(Digits):\n"
        "    def __init__(self, root):\n"
        "        super().__init__(root)\n"
        "        open('made', 'a').write('x')\n"
    )
    short = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.limit_train_batches=1"]
    main(
        [
            "fit",
            "--data.source=counted_source.Counted",
            "--model.backbone=resnet20",
            "--trainer.accelerator=cpu",
            *short,
        ]
    )
    assert Path("made").read_text() == "x"


@pytest.mark.slow
def test_fit_tests_what_its_checkpoint_gives_a_new_process(home: Path) -> None:
    """An averaged training: Lightning's callback puts the weights before averaging back after the fit."""
    ema = ["--config", str(ROOT / "configs/recipe/ema.yaml"), "--trainer.callbacks.decay=0.5", "--name=ema"]
    main([*FIT, *ema, "--trainer.max_epochs=3", "--trainer.enable_progress_bar=false"])
    code, out = Command("test", "--ckpt_path=runs/ema/version_0/checkpoints/last.ckpt").wait()
    assert code == 0, out
    fitted, tested = (
        json.loads((home / "runs/ema/version_0" / part / "result.json").read_text()) for part in (".", "test")
    )
    assert fitted["metrics"] == {**fitted["metrics"], **tested["metrics"]}
    assert fitted["per_class_accuracy"] == tested["per_class_accuracy"]
    state = torch.load("runs/ema/version_0/checkpoints/last.ckpt", weights_only=True)
    weights, latest = state["state_dict"], state["current_model_state"]
    assert any(not torch.equal(weights[name], latest[name]) for name in weights)


@pytest.mark.slow
def test_a_file_may_have_a_name_that_lightning_takes_for_another(checkpoint: dict[str, Any], home: Path) -> None:
    tested = []
    for word in ("x.ckpt", "last", "best", "hpc"):
        torch.save(checkpoint, word)
        main(["test", f"--ckpt_path={word}", "--trainer.enable_progress_bar=false", f"--folder=a/{word}"])
        tested.append(json.loads(Path(f"a/{word}/result.json").read_text())["metrics"]["test/loss"])
    assert len(set(tested)) == 1


@pytest.mark.slow
def test_a_report_counts_a_training_once_and_knows_its_earlier_parts(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    last = "checkpoints/last.ckpt"
    for name, loss in (("plain", "SoftmaxLoss"), ("focal", "FocalLoss")):
        main([*FIT, *quiet, "--trainer.max_epochs=1", f"--model.loss={loss}", f"--folder=runs/{name}"])
        retrain = ["--config", str(ROOT / "configs/second_stage/crt.yaml"), "--trainer.max_epochs=1"]
        main(["fit", *retrain, *quiet, f"--ckpt_path=runs/{name}/{last}", f"--folder=runs/{name}_crt"])
    for i, change in enumerate(("--seed_everything=1", "--data.subset_seed=3", "--data.batch_size=32")):
        main(["test", *quiet, f"--ckpt_path=runs/plain/{last}", change, f"--folder=runs/test_{i}"])
    resumed = ["--seed_everything=1", "--trainer.max_epochs=2", "--folder=runs/resumed"]
    main(["fit", *quiet, f"--ckpt_path=runs/plain/{last}", *resumed])
    main([*FIT, *quiet, "--trainer.max_epochs=2", "--model.loss=SoftmaxLoss", "--folder=runs/longer"])
    capsys.readouterr()
    for folder in ("runs", "kept"):
        with pytest.raises(SystemExit, match="0"):
            main(["report", folder])
        page = Path(folder, "report.md").read_text()
        names = [line.split(" | ")[0] for line in page.split("## ")[1].splitlines() if line.startswith("| ")]
        assert names[2:] == [
            "| Softmax, 1 epoch",
            "| Softmax, 2 epochs",
            "| Softmax, resumed from seed_everything 0, 2 epochs",
            "| Softmax, cRT, 1 epoch",
            "| Softmax, first stage loss FocalLoss, cRT, 1 epoch",
            "| CB-Focal, γ 1, β 0.9999, 1 epoch",
        ]
        assert "1 seed each" in page
        assert page.count("tests a checkpoint again") == (3 if folder == "runs" else 0)
        with pytest.raises(SystemExit, match="0"):
            main(["report", "runs", "--save", "kept"])
