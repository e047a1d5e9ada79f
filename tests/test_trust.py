"""What a stranger's checkpoint, or a config file, may name: nothing that is called may be other than what belongs."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from refusals import alias_bomb

from lt_cb.__main__ import main
from lt_cb.errors import InputError
from lt_cb.trust import check_checkpoint

ROOT = Path(__file__).parents[1]
FIT = ["fit", "--config", str(ROOT / "configs/quickstart.yaml"), "--trainer.accelerator=cpu"]
TINY = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--model.backbone=resnet20"]
TOUCH = {"command": "touch PWNED"}
EVIL: dict[str, Any] = {
    "a function as source": {"data": {"source": "os.system", "root": "touch PWNED"}},
    "a function as source, as a class": {"data": {"source": {"class_path": "os.system", "init_args": TOUCH}}},
    "by a dotted key": {"data.source": "os.system", "data.root": "touch PWNED"},
    "optimizer": {"model": {"optimizer": {"class_path": "os.system", "init_args": TOUCH}}},
    "optimizer, as a text": {"model": {"optimizer": "{class_path: os.system, init_args: {command: touch PWNED}}"}},
    "scheduler": {"model": {"lr_scheduler": {"class_path": "os.system", "init_args": TOUCH}}},
    "metrics": {"model": {"metrics": [{"class_path": "os.system", "init_args": TOUCH}]}},
    "by way of torch": {"model": {"optimizer": {"class_path": "torch.serialization.os.system", "init_args": TOUCH}}},
    "torch.hub": {
        "model": {"backbone": "torch.hub.load", "backbone_args": {"repo_or_dir": ".", "model": "m", "source": "local"}}
    },
    "torch.load": {"model": {"optimizer": {"class_path": "torch.load", "init_args": {"f": "evil.pt"}}}},
    "another's module": {"model": {"backbone": "hubconf.m"}},
    "callable argument": {
        "trainer": {
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "hubconf.m"}}
            ]
        }
    },
    "callback": {"trainer": {"callbacks": [{"class_path": "subprocess.Popen", "init_args": {"args": "touch PWNED"}}]}},
    "appended callback": {"trainer": {"callbacks+": "hubconf.m"}},
    "model class": {"model_class": "hubconf.Model"},
    "a file": {"model": {"optimizer": "hub.yaml"}},
    "a loss of the wrong kind": {"model": {"loss": {"class_path": "torch.nn.Linear"}}},
}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a module that leaves a trace when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("hubconf.py").write_text("open('PWNED', 'w')\ndef m(*args, **kwargs): ...\n")
    Path("hub.yaml").write_text("optimizer: {class_path: os.system, init_args: {command: touch PWNED}}\n")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of an honest checkpoint."""
    folder = tmp_path_factory.mktemp("honest")
    main([*FIT, *TINY, f"--folder={folder / 'a/b/c'}"])
    content: dict[str, Any] = torch.load(folder / "a/b/c/checkpoints/last.ckpt", weights_only=True)
    return content


def merged(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    for key, value in change.items():
        inner = isinstance(value, dict) and isinstance(config.get(key), dict) and "class_path" not in value
        config[key] = merged(config[key], value) if inner else value
    return config


def stopped(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Return the sentence a command ends with; nothing may have run."""
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 2
    assert not Path("PWNED").exists()
    assert not Path("runs").exists()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lt-cb: error: ")]
    return line


@pytest.mark.slow
@pytest.mark.parametrize("name", EVIL)
def test_a_strangers_checkpoint_runs_nothing(
    name: str, checkpoint: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    evil = copy.deepcopy(checkpoint)
    evil["lt_cb_config"] = yaml.safe_dump(merged(yaml.safe_load(evil["lt_cb_config"]), EVIL[name]))
    torch.save(evil, "evil.ckpt")
    Path("more.yaml").write_text("ckpt_path: evil.ckpt\n")
    Path("images").mkdir()
    for command in (
        ["test", "--ckpt_path=evil.ckpt"],
        ["validate", "--config=more.yaml"],
        ["inspect", "--ckpt_path", "evil.ckpt"],
        ["fit", "--ckpt_path=evil.ckpt", "--trainer.max_epochs=2"],
        ["predict", "--ckpt_path=evil.ckpt", "--images=images"],
    ):
        assert "the checkpoint names '" in stopped(capsys, *command)


@pytest.mark.parametrize(
    ("key", "config"),
    [
        ("data.source", {"data": {"source": {"class_path": "os.system", "init_args": TOUCH}}}),
        ("model.optimizer", {"model": {"optimizer": {"class_path": "os.system", "init_args": TOUCH}}}),
        ("model.lr_scheduler", {"model": {"lr_scheduler": {"class_path": "os.system", "init_args": TOUCH}}}),
        ("data.source", {"data": {"source": "os.system", "root": "touch PWNED"}}),
    ],
)
def test_what_is_no_class_of_its_kind_is_not_called(
    key: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("evil.yaml").write_text(yaml.safe_dump(config))
    sentence = f"--{key} is os.system, but must be a class that derives from"
    assert sentence in stopped(capsys, *FIT, *TINY, "--config=evil.yaml")


def test_a_pickle_is_not_loaded_by_way_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
            return open, ("PWNED", "w")

    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6", "x": Payload()}, "evil.ckpt")
    Path("evil.yaml").write_text("ckpt_path: evil.ckpt\nweights_only: false\n")
    assert "'evil.ckpt' is not a checkpoint" in stopped(capsys, *FIT, "--config=evil.yaml")
    assert "weights_only is false" in stopped(capsys, *FIT, "--weights_only=false")


def test_what_the_user_names_is_trusted() -> None:
    own = {"model": {"loss": {"class_path": "hubconf.Loss"}, "backbone": "hubconf.m"}}
    with pytest.raises(InputError, match=r"names 'hubconf.Loss' for model.loss.*--trust_checkpoint true"):
        check_checkpoint(own, ["--ckpt_path", "hubconf.Loss", "--data.root=hubconf.Loss"])  # no class is named here
    Path("own.yaml").write_text(yaml.safe_dump({"model": {"loss": {"class_path": "hubconf.Loss"}}}))
    check_checkpoint(own, ["--config=own.yaml", "--model.backbone", "hubconf.m"])
    with pytest.raises(InputError, match=r"'hubconf.m' for model.backbone"):
        check_checkpoint(own, ["--config", "own.yaml"])


def test_a_checkpoint_without_a_configuration_is_damaged(
    checkpoint: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("model: hub.yaml", "[", "3", "model: {loss: {}}\ndata: 3", None):
        torch.save({**checkpoint, "lt_cb_config": text}, "evil.ckpt")
        assert "the configuration in the checkpoint is not " in stopped(capsys, "test", "--ckpt_path=evil.ckpt")


def test_a_checkpoint_with_a_bomb_of_aliases_is_refused(
    checkpoint: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    loss: dict[str, Any] = {"class_path": "lt_cb.losses.SoftmaxLoss", "init_args": {}}
    loss["init_args"]["weighting"] = loss
    config = yaml.safe_dump({"model": {"loss": alias_bomb()}, "data": {}, "trainer": {}})
    python = {name: value for name, value in checkpoint.items() if name != "lt_cb_config"}
    for content, what in (
        ({**checkpoint, "lt_cb_config": alias_bomb()}, "the configuration in the checkpoint stands for more than"),
        ({**checkpoint, "lt_cb_config": config}, "model.loss in the checkpoint stands for more than 100,000 values"),
        ({**python, "hyper_parameters": {"loss": loss}}, "the configuration in the checkpoint contains itself"),
    ):
        torch.save(content, "evil.ckpt")
        assert what in stopped(capsys, "test", "--ckpt_path=evil.ckpt")


def test_shipped_configs_are_known() -> None:
    for file in (ROOT / "configs").rglob("*.yaml"):
        if file.parent.name not in ("grids", "sweeps"):
            check_checkpoint(yaml.safe_load(file.read_text()), [])
