import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from forks import processes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refused
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from lt_cb.__main__ import main
from lt_cb.callbacks import BestEpoch
from lt_cb.commands.cli import CommandLine
from lt_cb.commands.pretrained import of_pretrained
from lt_cb.commands.train import FIT
from lt_cb.divergence import Watch
from lt_cb.errors import InputError
from lt_cb.heads.finetune import adapt
from lt_cb.losses import BalancedSoftmaxLoss, SeesawLoss, SigmoidLoss, SoftmaxLoss
from lt_cb.module import LongTailedClassifier
from lt_cb.paired import accuracy_difference, precision_difference
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.runs.folder import RunDir

COUNTS = {"train": (20, 10, 6, 1), "test": (3, 3, 3, 3)}
NETWORK = """
import torch
from torch import nn
def network(num_classes: int, in_channels: int = 3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(in_channels, 16, 5, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, num_classes))
network.pretrained_cfg = {"input_size": (3, 12, 12), "mean": (0.5,) * 3, "std": (0.25,) * 3}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with noisy images of four classes, a network with pretrained weights, and a run of ``recommend``."""
    place = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for split, counts in COUNTS.items():
        for label, count in enumerate(counts):
            folder = place / "photos" / split / "abcd"[label]
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 160, (12, 12, 3), dtype=np.uint8)
                pixels[..., label % 3] += 40 + 20 * (label == 3)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    (place / "pretrained_net.py").write_text(NETWORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        patch.chdir(place)
        patch.setenv("LT_CB_CACHE", str(place / "cache"))
        words = ["--data.source=image_folder", "--data.root=photos", "--model.backbone=pretrained_net.network"]
        main(["recommend", *words, "--lambdas=[0.1]", "--taus=[1]", "--betas=[]", "--name=recommended"])
    return place


Run = Callable[..., tuple[RunDir, str]]
QUIET = ("--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.enable_progress_bar=false")


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in the place, and return the folder of its run and its output."""
    monkeypatch.syspath_prepend(place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("LT_CB_CACHE", str(place / "cache"))

    def written() -> set[Path]:
        files = (file for name in ("config.yaml", "predictions.csv") for file in Path("runs").rglob(name))
        return {file.parent for file in files if "latest" not in file.parts}

    def start(*words: str) -> tuple[RunDir, str]:
        before = written()
        main([*words, *QUIET])
        (made,) = written() - before
        return RunDir(made), capsys.readouterr().out

    return start


RECOMMENDED = ("--ckpt_path=runs/recommended/version_0/checkpoints/last.ckpt", "--trust_checkpoint=true")
TUNED = ("--trainer.max_epochs=2", "--model.optimizer.lr=0.003")


def content_of(file: Path) -> dict[str, Any]:
    return checkpoints.read(file)


@pytest.fixture(scope="module")
def finetuned(place: Path) -> list[Any]:
    """Holds the run that the first test makes, for the others."""
    return []


@pytest.fixture
def tuned(run: Run, finetuned: list[Any]) -> tuple[RunDir, str]:
    if not finetuned:
        finetuned.append(run("finetune", *RECOMMENDED, *TUNED, "--data.batch_size=8", "--name=tuned"))
    return finetuned[0]


def test_finetune_of_a_recommended_head_keeps_the_best_by_held_out_images(
    tuned: tuple[RunDir, str], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tuned
    assert "About " in out or "epoch" in out
    (verdict,) = [line for line in out.splitlines() if line.startswith("Fine-tuning ")]
    best, last = (content_of(folder.checkpoint.with_name(name)) for name in ("best.ckpt", "last.ckpt"))
    state = next(value for key, value in last["callbacks"].items() if key.startswith("BestEpoch"))
    assert ("optimizer_states" in best, "optimizer_states" in last) == (False, True)
    targets, start, answers = (state[name].numpy() for name in ("targets", "start", "kept"))
    assert np.bincount(targets).tolist() == [4, 2, 1]  # a fifth of 20, 10 and 6; the class of one image is not held out
    assert state["start_score"] == pytest.approx(balanced_accuracy_score(targets, start))
    scores = [float(row["val/balanced_acc"]) for row in folder.read_metrics() if row["val/balanced_acc"]]
    assert len(scores) == 2
    candidates, kept = [state["start_score"], *scores], state["kept_epoch"]
    assert balanced_accuracy_score(targets, answers) == pytest.approx(candidates[kept])
    assert all(score < candidates[kept] for score in candidates[kept + 1 :])  # else the newer one replaces it
    assert f"% balanced accuracy on {len(targets)} held-out images" in verdict
    assert best["epoch"] == max(kept - 1, 0)
    assert ("does not pay" in verdict) == (kept == 0)
    assert folder.read_result().checkpoint.endswith("best.ckpt")
    assert len(best[checkpoints.SET_SCORES]) == 4
    assert len(last[checkpoints.TRAINED_ON]) == 37 - len(targets)  # digests, without the held-out images
    assert checkpoints.head(last) is None
    *_, last_but_one, end = out.splitlines()
    pays = verdict.startswith("Fine-tuning pays")
    assert end.startswith("Or: ") == (not pays)  # the head
    command = shlex.split((end if pays else last_but_one).removeprefix("Next: "))
    predictions = run(*command[command.index("predict") :], "--sets=0.9")[0].predictions
    assert len(predictions.read_text().splitlines()) == 1 + 12


def test_a_report_has_the_head_and_the_network_in_one_column(
    tuned: tuple[RunDir, str], place: Path, tmp_path: Path
) -> None:
    head = RunDir(place / "runs/recommended/version_0")
    assert (head.read_result().l2_strength, tuned[0].read_result().l2_strength) == (0.1, None)
    for part in (head.path, place / tuned[0].path):
        shutil.copytree(part, tmp_path / part.parent.name)
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(tmp_path)])
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "2 methods on photos (4 classes), 1 seed each." in lines
    assert any(line.startswith("All runs but heads: ") and "AdamW, lr 0.003" in line for line in lines)
    assert sum("head on the frozen network, λ 0.1" in line for line in lines[:14]) == 1


def test_the_start_is_the_head_of_scikit_learn_on_the_training_part(tuned: tuple[RunDir, str], run: Run) -> None:
    # no step at all: the network of best.ckpt is the start
    folder, out = run("finetune", *RECOMMENDED, "--trainer.max_epochs=1", "--model.optimizer.lr=0", "--name=still")
    assert "Fine-tuning is not shown to pay: epoch 1 is 0.0 points better than the start" in out
    assert out.splitlines()[-1].startswith("Or: ")  # the head
    state = content_of(folder.checkpoint.with_name("best.ckpt"))["state_dict"]
    network = LongTailedClassifier.load_from_checkpoint(folder.checkpoint.with_name("best.ckpt"), weights_only=True)
    recommended = content_of(Path(RECOMMENDED[0].partition("=")[2]))
    for name, value in network.backbone.state_dict().items():
        if not name.startswith("5."):  # the classifier
            assert torch.equal(value, recommended["state_dict"][f"backbone.{name}"]), name
    rows, labels = [], []
    for label, count in enumerate(COUNTS["train"][:4]):
        names = sorted(Path("photos/train", "abcd"[label]).glob("*.png"))
        order = np.random.default_rng([0, label]).permutation([names.index(n) for n in names])
        quota = np.ceil(np.arange(count) * 0.2)
        kept = order[np.diff(quota, prepend=0.0) == 0]  # as `hold_out`
        rows += [names[i] for i in kept]
        labels += [label] * len(kept)
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(row))).permute(2, 0, 1) for row in rows])
    network.eval()
    with torch.no_grad():
        features = network.backbone[:5]((pixels - network.mean) / network.std).double().numpy()
    scaled = (features - features.mean(0)) / np.where(features.std(0) > 0, features.std(0), 1)
    theirs = LogisticRegression(C=1 / (0.1 * len(labels)), tol=1e-10, max_iter=10_000).fit(scaled, labels)
    counts = np.bincount(labels)
    expected = theirs.decision_function(scaled) - np.log(counts / counts.sum())
    temperature = recommended[checkpoints.HEAD]["temperature"]
    ours = features @ state["backbone.5.weight"].double().numpy().T + state["backbone.5.bias"].double().numpy()
    centred = [values - values.mean(1, keepdims=True) for values in (ours * temperature, expected)]
    np.testing.assert_allclose(*centred, atol=0.05)


def digests(folder: RunDir) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()}


def test_a_resumed_finetuning_equals_an_uninterrupted_one(tuned: tuple[RunDir, str], run: Run) -> None:
    folder, out = tuned
    before = digests(folder)
    resumed, again = run("fit", f"--ckpt_path={folder.checkpoint_before}", "--trust_checkpoint=true")
    one, other = (content_of(each.checkpoint) for each in (folder, resumed))
    assert one["epoch"] == other["epoch"] == 1
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    verdicts = [re.findall("^Fine-tuning .*", text, re.M) for text in (out, again)]
    assert verdicts[0] == verdicts[1]
    assert resumed.read_result().metrics == folder.read_result().metrics
    assert digests(folder) == before


def test_a_resumed_finetuning_has_the_kept_network_in_its_own_folder(tuned: tuple[RunDir, str], run: Run) -> None:
    folder, out = tuned
    before, resume = digests(folder), ("fit", "--trust_checkpoint=true", f"--ckpt_path={folder.checkpoint}")
    done, again = run(*resume)  # no epoch is left
    best = done.checkpoint.with_name("best.ckpt")
    assert Path(done.read_result().checkpoint).resolve() == best.resolve()
    assert best.read_bytes() == folder.checkpoint.with_name("best.ckpt").read_bytes()
    assert re.findall("^Fine-tuning .*", out, re.M) == re.findall("^Fine-tuning .*", again, re.M)
    content = content_of(folder.checkpoint)
    BestEpoch.state_in(content).update(kept_epoch=0, kept_step=0)
    Path("alone").mkdir()
    torch.save(content, "alone/last.ckpt")
    with pytest.warns(UserWarning, match="of epoch 0, is not in a best.ckpt .* the network of epoch 2 is kept instead"):
        alone = run("fit", "--trust_checkpoint=true", "--ckpt_path=alone/last.ckpt")[0]
    assert content_of(alone.checkpoint.with_name("best.ckpt"))["epoch"] == 1
    assert digests(folder) == before


@pytest.mark.slow
def test_two_processes_equal_one(tuned: tuple[RunDir, str]) -> None:
    folder, out = tuned
    two = ("--data.batch_size=4", "--trainer.devices=2", "--trainer.strategy=ddp", "--folder=runs/tuned/two")
    results = processes(2, "finetune", *RECOMMENDED, *TUNED, *two, *QUIET)
    assert [code for code, _ in results] == [0, 0], results
    verdicts = [re.findall("^Fine-tuning .*", text, re.M) for text in (out, results[0][1])]
    assert verdicts[0] == verdicts[1]
    assert not re.search("^(Fine-tuning|Next:) ", results[1][1], re.M)
    for name in ("best.ckpt", "last.ckpt"):
        one, other = (content_of(each / "checkpoints" / name) for each in (folder.path, Path("runs/tuned/two")))
        assert (one["epoch"], one["global_step"]) == (other["epoch"], other["global_step"])
        for key, values in one["state_dict"].items():
            torch.testing.assert_close(other["state_dict"][key], values, rtol=1e-4, atol=1e-5)
    kept = [next(v for k, v in each["callbacks"].items() if k.startswith("BestEpoch")) for each in (one, other)]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in ("targets", "start", "kept"))
    assert kept[0]["kept_epoch"] == kept[1]["kept_epoch"]
    torch.testing.assert_close(other[checkpoints.SET_SCORES], one[checkpoints.SET_SCORES], rtol=1e-4, atol=1e-5)


def test_only_the_trained_part_changes_and_batch_norm_stays(tuned: tuple[RunDir, str]) -> None:
    before = content_of(Path(RECOMMENDED[0].partition("=")[2]))["state_dict"]
    after = content_of(tuned[0].checkpoint)["state_dict"]
    assert not torch.equal(before["backbone.0.weight"], after["backbone.0.weight"])
    assert torch.equal(before["backbone.1.running_mean"], after["backbone.1.running_mean"])


def test_a_network_is_compared_only_on_images_it_has_not_seen(run: Run) -> None:
    words = ("--data.source=image_folder", "--data.root=photos", "--trainer.max_epochs=1", "--model.backbone=resnet20")
    for fraction, sentence in ((0.2, "Fine-tuning "), (0.0, "The network has seen the held-out images before")):
        trained = run("fit", *words, f"--data.val_fraction={fraction}", f"--name=scratch_{fraction}")[0]
        again = ("--trainer.max_epochs=1", f"--name=again_{fraction}")
        folder, out = run("finetune", f"--ckpt_path={trained.checkpoint}", *again)
        assert any(line.startswith(sentence) for line in out.splitlines())
        assert folder.read_result().checkpoint.endswith("best.ckpt")
        assert folder.read_config()["data"]["val_fraction"] == 0.2


def test_all_images_can_be_trained_on(run: Run) -> None:
    words = ("--data.val_fraction=0", "--trainer.max_epochs=1", "--trainer.callbacks+=EMAWeightAveraging", "--name=all")
    folder, out = run("finetune", *RECOMMENDED, *words)
    assert "No image was held out, so that nothing is compared: the last epoch is kept." in out
    assert folder.read_result().class_counts == sorted(COUNTS["train"], reverse=True)
    averaged = content_of(folder.checkpoint)
    assert not torch.equal(*(averaged[name]["backbone.0.weight"] for name in ("state_dict", "current_model_state")))


def test_wrong_input_is_one_sentence(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "finetune", "--data.root=photos").startswith("finetune needs a trained model")


def test_a_rate_that_destroys_a_trained_network_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model.optimizer.lr=3", "--model.lr_scheduler.warmup=0", "--name=destroyed")
    with pytest.raises(SystemExit):
        run("finetune", *RECOMMENDED, *words)
    assert re.search(
        r"the training has diverged: train/loss is .* set --model.optimizer.lr 0[.]\d+", capsys.readouterr().err
    )


def test_defaults_depend_on_what_is_trained(place: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.syspath_prepend(place)

    def settings_of(*words: str) -> tuple[str, float, float | None]:
        words = ("--model.loss=SoftmaxLoss", *words)
        config = CommandLine("fit", words, FIT, defaults=of_pretrained).config
        optimizer = config.model.optimizer
        return optimizer.class_path.rpartition(".")[2], optimizer.init_args.lr, config.trainer.gradient_clip_val

    pretrained = "--model.backbone=pretrained_net.network"
    sgd = "model: {optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.5}}}"
    assert settings_of("--model.optimizer=SGD", "--model.optimizer.lr=0.1") == ("SGD", 0.1, None)
    assert settings_of(pretrained) == ("AdamW", 1e-4, 1.0)
    assert settings_of(pretrained, "--model.optimizer.lr=0.01") == ("AdamW", 0.01, 1.0)
    assert settings_of(pretrained, "--config", sgd) == ("SGD", 0.5, 1.0)
    assert settings_of(pretrained, "--trainer.gradient_clip_val=0.5") == ("AdamW", 1e-4, 0.5)
    with pytest.raises(SystemExit, match="0"):
        settings_of(pretrained, "--print_config")
    printed = capsys.readouterr().out
    assert settings_of("--config", printed) == settings_of(pretrained)
    assert yaml.safe_load(printed)["model"]["optimizer"]["class_path"] == "torch.optim.AdamW"
    monkeypatch.chdir(place)
    for words, rate in ((), 1e-4), (("--model.adapter=lora",), 5e-4), (("--config", "model: {adapter: lora}"), 5e-4):
        tuned = CommandLine("finetune", [*RECOMMENDED, *words], {}, adapts=adapt).config
        assert (tuned.model.optimizer.init_args.lr, tuned.model.freeze_norm, tuned.data.val_fraction) == (
            rate,
            True,
            0.2,
        )


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_difference_is_that_of_the_balanced_accuracies(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(len(counts)), counts)
    new, old = (np.where(rng.random(len(targets)) < 0.7, targets, -1) for _ in range(2))
    found = accuracy_difference(*(torch.from_numpy(values) for values in (new, old, targets)))
    rates = [np.mean([(answers == targets)[targets == c].mean() for c in range(len(counts))]) for answers in (new, old)]
    assert found.mean == pytest.approx(rates[0] - rates[1], abs=1e-9)
    assert found.low <= found.mean <= found.high


def test_interval_of_accuracies_agrees_with_a_stratified_bootstrap() -> None:
    rng = np.random.default_rng(0)
    counts, gains = (120, 80, 40), (0.1, 0.2, 0.3)
    targets = np.repeat(np.arange(3), counts)
    old = np.where(rng.random(240) < 0.6, targets, -1)
    new = np.where(rng.random(240) < np.array(gains)[targets], targets, old)
    found = accuracy_difference(*(torch.from_numpy(values) for values in (new, old, targets)))
    draws = []
    for _ in range(2000):
        rows = np.concatenate([rng.choice(np.flatnonzero(targets == c), n) for c, n in enumerate(counts)])
        change = (new[rows] == targets[rows]).astype(float) - (old[rows] == targets[rows])
        draws.append(np.mean([change[targets[rows] == c].mean() for c in range(3)]))
    low, high = np.quantile(draws, (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)


def test_interval_of_rare_classes_covers_the_truth() -> None:
    """A bootstrap of these counts covers the truth in 78 % of the draws."""
    rng = np.random.default_rng(0)
    targets = torch.repeat_interleave(torch.arange(10), torch.tensor([100, 60, 36, 21, 13, 8, 5, 3, 2, 1]))
    covered = []
    for _ in range(400):
        draw = torch.from_numpy(rng.random(len(targets)))
        new, old = torch.where(draw < 0.10, -1, targets), torch.where((draw >= 0.10) & (draw < 0.25), -1, targets)
        found = accuracy_difference(new, old, targets)
        covered.append(found.low <= 0.05 <= found.high)
    assert 0.92 < np.mean(covered) < 0.99


def test_interval_of_precisions_agrees_with_a_bootstrap_of_images() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((400, 2)) < (0.4, 0.15)).astype(np.int8)
    old = targets + rng.normal(0, 1.2, targets.shape)
    new = targets + 0.4 * (old - targets) + rng.normal(0, 0.6, targets.shape)
    found = precision_difference(*(torch.from_numpy(values) for values in (new, old, targets)))

    def difference(rows: np.ndarray) -> float:
        return float(np.subtract(*(average_precision_score(targets[rows], scores[rows]) for scores in (new, old))))

    assert found.mean == pytest.approx(difference(np.arange(400)), abs=1e-5)
    spread = np.std([difference(rng.integers(0, 400, 400)) for _ in range(150)])
    assert found.high - found.mean == pytest.approx(1.96 * spread, rel=0.35)


@pytest.mark.parametrize("loss", [SoftmaxLoss([50, 5]), BalancedSoftmaxLoss([50, 5]), SeesawLoss([50, 5])])
def test_a_loss_above_start_and_equal_logits_is_refused(loss: Any) -> None:
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    targets = torch.tensor([0] * 10 + [1])
    watch = Watch(0.1, [(0, 0.01, torch.tensor(0.1)), (1, 0.1, torch.tensor(9.0))], [targets])
    Watch(6.0, watch.steps, watch.targets).check_learns(5.0, 0, loss)  # below its start
    Watch(None, watch.steps, watch.targets).check_learns(5.0, 0, loss)  # resumed
    watch.check_learns(0.2, 0, loss)  # below equal logits
    with pytest.raises(InputError, match=r"set --model.optimizer.lr 0.01\."):
        watch.check_learns(5.0, 0, loss)
    assert all(torch.equal(value, loss.state_dict()[name]) for name, value in state.items())


def test_equal_logits_of_several_labels() -> None:
    watch = Watch(0.1, [(0, 0.1, torch.tensor(0.1))], [torch.tensor([[1, 0], [0, -1]], dtype=torch.int8)])
    watch.check_learns(1.1, 0, SigmoidLoss([1, 1]))
    with pytest.raises(InputError, match="of equal logits"):
        watch.check_learns(5.0, 0, SigmoidLoss([1, 1]))
