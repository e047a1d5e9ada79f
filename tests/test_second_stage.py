"""cRT, LWS and the tau-normalised classifier (Kang et al. 2020), from a checkpoint."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from lt_cb.__main__ import main
from lt_cb.losses import LDAMLoss, SigmoidLoss, SoftmaxLoss
from lt_cb.models import (
    ClassifierRetraining,
    LearnableWeightScaling,
    TauNormalization,
    draw_classifier,
    last_linear,
    normalize_classifier,
)
from lt_cb.module import LongTailedClassifier

ROOT = Path(__file__).parents[1]
COUNTS = [50, 20, 5]
STAGES = ROOT / "configs/second_stage"
TINY = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()


def test_tau_normalisation_divides_by_powers_of_the_norms() -> None:
    plain, features = network(), torch.randn(5, 6)
    for tau in (0.0, 0.5, 1.0):
        changed = network()
        TauNormalization(tau).attach(changed, 3)
        changed.load_state_dict(plain.state_dict())
        norms = [sum(w**2 for w in row) ** 0.5 for row in plain[2].weight.tolist()]
        torch.testing.assert_close(changed(features), plain(features) / torch.tensor([n**tau for n in norms]))
        if tau == 0:
            torch.testing.assert_close(changed(features), plain(features))


def test_weight_scaling_trains_only_a_factor_a_class() -> None:
    plain, scaled = network(), network()
    LearnableWeightScaling().attach(scaled, 3)
    assert [name for name, p in scaled.named_parameters() if p.requires_grad] == ["2.scale"]
    scaled.load_state_dict(plain.state_dict(), strict=False)
    features = torch.randn(5, 6)
    torch.testing.assert_close(scaled(features), plain(features))
    nn.init.constant_(scaled[2].scale, 3.0)
    torch.testing.assert_close(scaled(features), 3 * plain(features))


def test_retraining_starts_a_new_classifier_on_frozen_features() -> None:
    backbone = network()
    before = backbone[2].weight.clone()
    ClassifierRetraining().attach(backbone, 3)
    assert [name for name, p in backbone.named_parameters() if p.requires_grad] == ["2.weight", "2.bias"]
    assert not torch.equal(backbone[2].weight, before)


def test_classifiers_that_cannot_be_changed_are_refused() -> None:
    with pytest.raises(ValueError, match="tau is -1, but must be at least 0"):
        TauNormalization(-1)
    with pytest.raises(ValueError, match=r"the backbone is a bare nn.Linear, which cannot be replaced"):
        TauNormalization().attach(nn.Linear(4, 3), 3)
    for stage in (TauNormalization(), LearnableWeightScaling()):
        with pytest.raises(ValueError, match=r"the loss normalises them \(LDAM, GCL\)"):
            LongTailedClassifier(LDAMLoss(COUNTS), "resnet20", second_stage=stage)


def convolutional() -> nn.Sequential:
    """Return a network with a hidden linear layer and a convolution as its classifier."""
    proj, unflatten = nn.Linear(6, 4), nn.Unflatten(1, (4, 1, 1))
    return nn.Sequential(proj, unflatten, nn.Conv2d(4, 3, 1), nn.Flatten())


def test_a_hidden_layer_is_not_the_classifier() -> None:
    changes = [s.attach for s in (TauNormalization(), LearnableWeightScaling(), ClassifierRetraining())]
    for change in (*changes, normalize_classifier, lambda backbone, n: draw_classifier(backbone, n, 0.01)):
        backbone = convolutional()
        before = {name: value.clone() for name, value in backbone.state_dict().items()}
        with pytest.raises(ValueError, match="the backbone has no linear layer of 3 outputs, one a class"):
            change(backbone, 3)
        assert [type(module) for module in backbone] == [type(module) for module in convolutional()]
        assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert last_linear(convolutional(), 3) is None
    behind = nn.Sequential(nn.Linear(6, 3), nn.Linear(6, 4))  # the classifier is not registered last
    assert last_linear(behind, 3) is behind[0]


def test_a_frozen_backbone_stays_in_evaluation_mode() -> None:
    model = LongTailedClassifier(SoftmaxLoss(COUNTS), "resnet20", second_stage=ClassifierRetraining()).train()
    images = torch.randn(8, 3, 8, 8)
    state = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.loss(model(images), torch.zeros(8, dtype=torch.int64)).backward()
    assert all(torch.equal(value, state[name]) for name, value in model.backbone.state_dict().items())
    assert {name for name, p in model.backbone.named_parameters() if p.grad is not None} == {"fc.weight", "fc.bias"}


def test_a_second_stage_starts_from_a_checkpoint() -> None:
    trained = LongTailedClassifier(SigmoidLoss(COUNTS), "resnet20")
    checkpoint = {"state_dict": trained.state_dict(), "hyper_parameters": {}}
    for stage in (ClassifierRetraining(), LearnableWeightScaling()):
        model = LongTailedClassifier(SoftmaxLoss(COUNTS), "resnet20", second_stage=stage)
        model.start_from(checkpoint)
        ours, theirs = model.backbone.state_dict(), trained.backbone.state_dict()
        differ = {name for name in theirs if not torch.equal(ours[name], theirs[name])}
        assert differ == ({"fc.weight", "fc.bias"} if isinstance(stage, ClassifierRetraining) else set())
    other = LongTailedClassifier(SoftmaxLoss(COUNTS), "resnet32", second_stage=ClassifierRetraining())
    with pytest.raises(ValueError, match=r"of another network: 'blocks.3.conv1.weight' is \[32, 16, 3, 3\] there"):
        other.start_from(checkpoint)


@pytest.mark.slow
def test_from_fit_to_second_stages(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/quickstart"
    quickstart = ["--config", str(ROOT / "configs/quickstart.yaml"), "--model.backbone=resnet20"]
    main(["fit", *quickstart, "--config", str(ROOT / "configs/loss/cb_softmax.yaml"), *TINY, "--trainer.max_epochs=2"])
    first = run / "version_0/checkpoints/last.ckpt"

    def weights(version: int) -> dict[str, torch.Tensor]:
        return torch.load(run / f"version_{version}/checkpoints/last.ckpt", weights_only=True)["state_dict"]

    def result(version: int, part: str = ".") -> dict:
        return json.loads((run / f"version_{version}" / part / "result.json").read_text())

    main(["fit", f"--ckpt_path={first}", "--config", str(STAGES / "crt.yaml"), *TINY, "--trainer.max_epochs=1"])
    assert result(1)["epochs"] == 1  # not 3: epochs count anew
    config = yaml.safe_load((run / "version_1/config.yaml").read_text())
    assert config["model"]["loss"]["init_args"]["weighting"] is None
    assert config["data"]["imbalance_factor"] == 50
    before, after = weights(0), weights(1)
    names = {name for name in before if name.startswith("backbone.")}
    assert {n for n in names if not torch.equal(before[n], after[n])} == {"backbone.fc.weight", "backbone.fc.bias"}

    # the checkpoint of a second stage can be resumed and tested
    second = run / "version_1/checkpoints/last.ckpt"
    main(["fit", f"--ckpt_path={second}", "--trainer.max_epochs=2"])
    assert result(2)["epochs"] == 2
    main(["test", f"--ckpt_path={second}"])
    assert result(1, "test")["per_class_accuracy"] == result(1)["per_class_accuracy"]

    main(["fit", f"--ckpt_path={first}", "--config", str(STAGES / "lws.yaml"), *TINY, "--trainer.max_epochs=1"])
    after = weights(3)
    assert after.keys() - before.keys() == {"backbone.fc.scale"}
    assert all(torch.equal(before[n], after[n]) for n in names)
    assert not torch.equal(after["backbone.fc.scale"], torch.ones(10))

    main(["test", f"--ckpt_path={first}", "--config", str(STAGES / "tau_norm.yaml"), "--model.second_stage.tau=0"])
    assert result(0, "test")["per_class_accuracy"] == result(0)["per_class_accuracy"]

    capsys.readouterr()
    for args, sentence in (
        (["fit", *quickstart, "--config", str(STAGES / "crt.yaml")], "a second stage starts from a trained network"),
        (["test", f"--ckpt_path={first}", f"--config={STAGES / 'crt.yaml'}"], "from this checkpoint by lt-cb fit."),
        (["fit", f"--ckpt_path={first}", f"--config={STAGES / 'tau_norm.yaml'}"], "checkpoint by lt-cb test."),
        (["fit", f"--ckpt_path={first}", "--trainer.max_epochs=1"], "has been trained for 2 epochs, but"),
        (["test", f"--ckpt_path={first}", "--model.backbone=resnet32"], "the checkpoint is of another network"),
        (
            ["test", f"--ckpt_path={run / 'version_3/checkpoints/last.ckpt'}", f"--config={STAGES / 'tau_norm.yaml'}"],
            "the checkpoint is of another network: 'fc.scale' is [10] there and missing here",
        ),
    ):
        before = sorted(run.iterdir())
        with pytest.raises(SystemExit, match="2"):
            main(args)
        assert sorted(run.iterdir()) == before
        assert sentence in capsys.readouterr().err

    again = LongTailedClassifier.load_from_checkpoint(run / "version_3/checkpoints/last.ckpt", map_location="cpu")
    assert isinstance(again.second_stage, LearnableWeightScaling)
    assert last_linear(again.backbone, 10).scale.tolist() == after["backbone.fc.scale"].tolist()
