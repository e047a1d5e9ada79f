"""Sharpness-aware minimisation, and the recipe that uses it."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lt_cb.__main__ import main
from lt_cb.losses import SoftmaxLoss
from lt_cb.sam import SAM

ROOT = Path(__file__).parents[1]
FIT = ["fit", f"--config={ROOT}/configs/quickstart.yaml", f"--config={ROOT}/configs/loss/softmax.yaml"]
TINY = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_step_follows_the_gradient_at_the_worst_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests")
    rho, rate = 0.3, 0.05
    options = {"optimizer": lambda params: torch.optim.SGD(params, lr=rate), "in_channels": 1, "mean": [0.0]}
    constant = {"lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)}
    model = SAM(rho, loss=SoftmaxLoss([5, 3, 1]), backbone="plain.flat", std=[1.0], **options, **constant)
    images, targets = torch.rand(6, 1, 16, 16), torch.tensor([0, 1, 2, 0, 1, 0])
    linear = model.backbone[1]
    weight, bias = (p.detach().double().clone() for p in (linear.weight, linear.bias))
    x, one_hot = images.flatten(1).double(), torch.eye(3, dtype=torch.float64)[targets]

    def gradients(w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slope = ((x @ w.T + b).softmax(1) - one_hot) / len(x)
        return slope.T @ x, slope.sum(0)

    gw, gb = gradients(weight, bias)
    norm = (gw.square().sum() + gb.square().sum()).sqrt()
    gw, gb = gradients(weight + rho * gw / norm, bias + rho * gb / norm)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(model, DataLoader([(images[i], targets[i]) for i in range(6)], batch_size=6))
    torch.testing.assert_close(linear.weight.double(), weight - rate * gw, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(linear.bias.double(), bias - rate * gb, atol=1e-7, rtol=1e-5)


@pytest.mark.slow
def test_the_strong_recipe_is_one_config(capsys: pytest.CaptureFixture[str]) -> None:
    main([*FIT, f"--config={ROOT}/configs/recipe/strong.yaml", *TINY])
    run = Path("runs/quickstart/version_0")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["model_class"], config["model"]["rho"]) == ("lt_cb.sam.SAM", 0.1)
    assert config["model"]["optimizer"]["init_args"]["weight_decay"] == 1e-4
    assert [part["class_path"].rpartition(".")[2] for part in config["data"]["augment"]] == [
        "RandAugment",
        "RandomErasing",
    ]
    with (run / "metrics.csv").open() as stream:
        assert any(float(row["train/loss"]) > 0 for row in csv.DictReader(stream) if row["train/loss"])
    main(["test", f"--ckpt_path={run}/checkpoints/last.ckpt"])  # a class of lt_cb needs no trust
    results = [json.loads((folder / "result.json").read_text())["metrics"] for folder in (run, run / "test")]
    assert results[0] == pytest.approx(results[1])
    for words, reason in (
        (["--model.rho=0"], "rho is 0.0, but must be above 0"),
        (["--trainer.accumulate_grad_batches=2"], "but SAM needs 1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*FIT, "--model=lt_cb.sam.SAM", *TINY, *words])
        assert reason in capsys.readouterr().err
