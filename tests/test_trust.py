"""A checkpoint of a stranger: no command that takes it may import, call, delete or overwrite anything."""

import copy
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from refusals import alias_bomb

from lt_cb.__main__ import main
from lt_cb.commands.restored import check_named, plain_settings
from lt_cb.errors import InputError

ROOT = Path(__file__).parents[1]
FIT = ["fit", "--config", str(ROOT / "configs/quickstart.yaml"), "--trainer.accelerator=cpu"]
TINY = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--model.backbone=resnet20"]
SHORT = [f"--trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]
TOUCH = {"command": "touch PWNED"}
SYSTEM = {"class_path": "os.system", "init_args": TOUCH}
LAMBDA = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "hubconf.m"}}
DELETES = {
    "class_path": "lightning.pytorch.callbacks.OnExceptionCheckpoint",
    "init_args": {"dirpath": "mine", "filename": "last"},
}
WRITES = {
    "class_path": "lightning.pytorch.loggers.CSVLogger",
    "init_args": {"save_dir": "mine", "name": "", "version": ""},
}
PROFILER = {"class_path": "lightning.pytorch.profilers.SimpleProfiler", "init_args": {"dirpath": "mine"}}
REFUSED: dict[str, dict[str, Any]] = {  # changes of the configuration that a command must refuse
    "a function as source": {"data": {"source": "os.system", "root": "touch PWNED"}},
    "a function as source, as a class": {"data": {"source": SYSTEM}},
    "optimizer": {"model": {"optimizer": SYSTEM}},
    "optimizer, as a text": {"model": {"optimizer": "{class_path: os.system, init_args: {command: touch PWNED}}"}},
    "scheduler": {"model": {"lr_scheduler": SYSTEM}},
    "metrics": {"model": {"metrics": [SYSTEM]}},
    "a metric that takes a file": {
        "model": {"metrics": [{"class_path": "torchmetrics.text.BERTScore", "init_args": {"model_name_or_path": "x"}}]}
    },
    "a transform that takes a function": {
        "model": {"mix": {"class_path": "torchvision.transforms.v2.Lambda", "init_args": {"lambd": "hubconf.m"}}}
    },
    "by way of torch": {"model": {"optimizer": {"class_path": "torch.serialization.os.system", "init_args": TOUCH}}},
    "torch.hub": {
        "model": {"backbone": "torch.hub.load", "backbone_args": {"repo_or_dir": ".", "model": "m", "source": "local"}}
    },
    "torch.load": {"model": {"optimizer": {"class_path": "torch.load", "init_args": {"f": "evil.pt"}}}},
    "another's module": {"model": {"backbone": "hubconf.m"}},
    "a class among the backbone's options": {"model": {"backbone_args": {"x": {"class_path": "hubconf.m"}}}},
    "model class": {"model_class": "hubconf.Model"},
    "data class": {"data_class": "hubconf.Data"},
    "a loss of the wrong kind": {"model": {"loss": {"class_path": "torch.nn.Linear"}}},
    "a loss by a file": {"model": {"loss": "hub.yaml"}},
    "a loss by a file of home": {"model": {"loss": "~/hub.yaml"}},
    "a loss by a URL": {"model": {"loss": "file:///proc/self/cwd/hub.yaml"}},
    "metrics by a URL": {"model": {"metrics": "file:///proc/self/cwd/hub.yaml"}},
    "a weighting by a URL": {
        "model": {
            "loss": {
                "class_path": "lt_cb.losses.SoftmaxLoss",
                "init_args": {"weighting": "file:///proc/self/cwd/hub.yaml"},
            }
        }
    },
    "an optimizer in a file": {"model": {"optimizer": "hub.yaml"}},
    "a network named as one of timm": {"model": {"backbone": "resnet18.m"}},
    "a list of schedulers in a file": {
        "model": {"lr_scheduler": {"class_path": "SequentialLR", "init_args": {"schedulers": "ddp", "milestones": [1]}}}
    },
    "options of a loss as a list": {"model": {"loss": {"class_path": "lt_cb.losses.SoftmaxLoss", "init_args": [1]}}},
}
IGNORED: dict[str, dict[str, Any]] = {  # changes that have no effect
    "callable argument": {"trainer": {"callbacks": [LAMBDA]}},
    "callback": {"trainer": {"callbacks": [{"class_path": "subprocess.Popen", "init_args": {"args": "touch PWNED"}}]}},
    "appended callback": {"trainer": {"callbacks+": "hubconf.m"}},
    "appended metric": {"model": {"metrics+": ["hubconf.m"]}},
    "dotted keys": {
        "trainer": {
            "logger.class_path": "lightning.pytorch.loggers.CSVLogger",
            "logger.init_args.save_dir": "mine",
            "profiler.class_path": "SimpleProfiler",
            "profiler.init_args.dirpath": "mine",
            "profiler.init_args.filename": "last",
            "plugins.class_path": "hubconf.m",
        },
        "model": {
            "loss.class_path": "hubconf.m",
            "optimizer.class_path": "hubconf.m",
            "metrics.class_path": "hubconf.m",
        },
        "data": {"source.class_path": "hubconf.m"},
    },
    "callbacks by a file of home": {"trainer": {"callbacks": "~/callbacks.yaml"}},
    "callbacks by a URL": {"trainer": {"callbacks": "file:///proc/self/cwd/callbacks.yaml"}},
    "plugins and strategy by URLs": {
        "trainer": dict.fromkeys(("plugins", "strategy", "accelerator", "precision"), "file:///proc/self/cwd/hub.yaml")
    },
    "a strategy in a file named as one": {"trainer": {"strategy": "ddp"}},
    "a callback that deletes": {"trainer": {"callbacks": [DELETES]}},
    "a logger that overwrites": {"trainer": {"logger": [WRITES]}},
    "a profiler that writes": {"trainer": {"profiler": PROFILER}},
    "a logger that sends": {"trainer": {"logger": [{"class_path": "lt_cb.loggers.WandB", "init_args": {}}]}},
    "a name that leaves the folder": {"name": "../../mine", "folder": "../mine/x"},
    "a root that leaves the folder": {"trainer": {"default_root_dir": "../mine"}},
    "files of the weights": {
        "model": {"backbone_args": {"checkpoint_path": "mine/last.ckpt", "pretrained_cfg": {"file": "mine/last.ckpt"}}}
    },
    "other options": {"ckpt_path": "mine/last.ckpt", "test_best": True, "trust_checkpoint": True},
}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a module that leaves a trace when it is imported, and files that must stay."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    Path("hubconf.py").write_text("open('PWNED', 'w')\ndef m(*args, **kwargs): ...\n")
    Path("resnet18.py").write_text(Path("hubconf.py").read_text())
    Path("hub.yaml").write_text("class_path: hubconf.m\n")
    Path("ddp").write_text("class_path: hubconf.m\n")
    Path("callbacks.yaml").write_text(yaml.safe_dump([LAMBDA]))
    Path("mine/folder").mkdir(parents=True)
    for name in ("last", "last.ckpt", "metrics.csv", "hparams.yaml", "folder/file"):
        Path("mine", name).write_text("mine")
    Path("images").mkdir()
    torch.save(torch.zeros(3), "images/x.pt")  # no image


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of an honest checkpoint."""
    folder = tmp_path_factory.mktemp("honest")
    main([*FIT, *TINY, *SHORT, f"--folder={folder / 'a/b/c'}"])
    content: dict[str, Any] = torch.load(folder / "a/b/c/checkpoints/last.ckpt", weights_only=True)
    return content


def merged(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    for key, value in change.items():
        inner = isinstance(value, dict) and isinstance(config.get(key), dict) and "class_path" not in value
        config[key] = merged(config[key], value) if inner else value
    return config


def evil(checkpoint: dict[str, Any], change: dict[str, Any]) -> str:
    """Write the checkpoint with a changed configuration, and return its path."""
    content = copy.deepcopy(checkpoint)
    content["lt_cb_config"] = yaml.safe_dump(merged(yaml.safe_load(content["lt_cb_config"]), change))
    Path("stranger/checkpoints").mkdir(parents=True)
    torch.save(content, "stranger/checkpoints/evil.ckpt")
    return "stranger/checkpoints/evil.ckpt"


def files() -> dict[str, str]:
    """Return the digests of all files that no run has written."""
    theirs = [p for p in Path().rglob("*") if p.is_file() and p.parts[0] not in ("runs", "cache", "__pycache__")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in theirs}


def stopped(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Return the sentence that a command ends with; nothing may have been written."""
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 2
    assert not Path("PWNED").exists()
    assert not Path("runs").exists()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lt-cb: error: ")]
    return line


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_every_command_refuses_an_unknown_class(
    name: str, checkpoint: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = evil(checkpoint, REFUSED[name])
    Path("more.yaml").write_text(f"ckpt_path: {path}\n")
    before = files()
    of_data, of_model = ("data" in next(iter(REFUSED[name]))), ("model" in next(iter(REFUSED[name])))
    commands = [
        ["test", f"--ckpt_path={path}"],
        ["validate", "--config=~/more.yaml"],
        ["fit", f"--ckpt_path={path}", "--trainer.max_epochs=2"],
        ["recommend", f"--ckpt_path={path}"],
        ["heads", f"--ckpt_path={path}"],
    ]
    commands += [["inspect", "--ckpt_path", path]] if of_data else []
    commands += [["predict", f"--ckpt_path={path}", "--images=images"]] if of_model else []
    commands += [["export", f"--ckpt_path={path}", "--to=x.pt2"]] if of_model else []
    for command in commands:
        assert "the checkpoint names " in stopped(capsys, *command), command
    assert files() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", IGNORED)
def test_a_checkpoint_brings_no_behaviour(name: str, checkpoint: dict[str, Any]) -> None:
    path = evil(checkpoint, IGNORED[name])
    before = files()
    main(["test", f"--ckpt_path={path}", *SHORT])
    assert files() == before
    (result,) = Path().rglob("result.json")
    assert result.match("runs/*/test/result.json")
    main(["validate", f"--ckpt_path={path}", *SHORT])
    main(["inspect", f"--ckpt_path={path}"])
    main(["fit", f"--ckpt_path={path}", "--trainer.max_epochs=2", "--trainer.callbacks=[]", *SHORT])
    shutil.rmtree("runs")
    assert files() == before


@pytest.mark.slow
def test_the_state_of_a_callback_deletes_no_foreign_file(checkpoint: dict[str, Any]) -> None:
    content = copy.deepcopy(checkpoint)
    (key,) = [key for key in content["callbacks"] if key.startswith("LastCheckpoint")]
    mine = Path("mine").absolute()
    for foreign in (f"local://{mine}", f"file://{mine}/folder", f"{mine}/last.ckpt", "mine/last", "../mine/last.ckpt"):
        paths = ("best_model_path", "last_model_path", "kth_best_model_path", "dirpath")
        content["callbacks"][key] |= dict.fromkeys(paths, foreign) | {"best_k_models": {foreign: torch.tensor(1.0)}}
        torch.save(content, "evil.ckpt")
        before = files()
        for plugins in ("null", "lightning.pytorch.plugins.io.TorchCheckpointIO"):
            main(["fit", "--ckpt_path=evil.ckpt", "--trainer.max_epochs=3", f"--trainer.plugins={plugins}", *SHORT])
            assert files() == before


def test_a_pickle_is_not_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
            return open, ("PWNED", "w")

    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6", "x": Payload()}, "evil.ckpt")
    Path("evil.yaml").write_text("ckpt_path: evil.ckpt\ntrust_checkpoint: true\n")
    assert "'evil.ckpt' is not a checkpoint" in stopped(capsys, *FIT, "--config=evil.yaml")


def test_the_weights_behind_an_adapter_are_named_by_the_user() -> None:
    options = {"depth": 2, "pretrained_cfg_overlay": {"file": "weights.pth"}}
    model = {"backbone": "test_vit", "adapter": "lora", "backbone_args": options}
    settings, refused = plain_settings({"model": model}, trusted=False)
    assert settings["model"]["backbone_args"] == {"depth": 2}
    check_named(refused, {"model": {"backbone_args": {"pretrained_cfg_overlay": {"file": "elsewhere.pth"}}}})
    with pytest.raises(InputError, match=r"for model.backbone_args.pretrained_cfg_overlay, which is a file: name it"):
        check_named(refused, settings)
    assert plain_settings({"model": {**model, "adapter": None}}, trusted=False)[1] == {}  # the checkpoint has them


def test_custom_classes_are_loaded_if_the_user_names_them() -> None:
    loss = {"class_path": "hubconf.Loss", "init_args": {"t": 1}}
    settings, refused = plain_settings({"model": {"loss": loss, "backbone": "hubconf.m", "fast": "off"}}, trusted=False)
    assert settings["model"] == {"fast": "off"}
    assert refused == {"model.loss": "hubconf.Loss", "model.backbone": "hubconf.m"}
    check_named(refused, {"model": {"loss": loss, "backbone": "hubconf.m"}})
    with pytest.raises(InputError, match=r"names 'hubconf.m' for model.backbone.*--trust_checkpoint true"):
        check_named(refused, {"model": {"loss": loss, "backbone": "resnet32"}})
    assert plain_settings({"model": {"loss": loss}}, trusted=True) == (
        {"trainer": {}, "data": {}, "model": {"loss": loss}},
        {},
    )


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
    python = {name: value for name, value in checkpoint.items() if name != "lt_cb_config"}
    for content, what in (
        ({**checkpoint, "lt_cb_config": alias_bomb()}, "the configuration in the checkpoint expands to more than"),
        ({**python, "hyper_parameters": {"loss": loss}}, "the configuration in the checkpoint contains itself"),
    ):
        torch.save(content, "evil.ckpt")
        assert what in stopped(capsys, "test", "--ckpt_path=evil.ckpt")


def test_shipped_configurations_pass() -> None:
    for file in (ROOT / "configs").rglob("*.yaml"):
        if file.parent.name not in ("grids", "sweeps"):
            config = yaml.safe_load(file.read_text())
            _, refused = plain_settings(config, trusted=False)
            assert not refused, file
