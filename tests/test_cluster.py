"""A Ray cluster: a grid and features on two nodes of this machine, one of them lost."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from overlapping import overlapping

import lt_cb.lab.cluster
from lt_cb.__main__ import main
from lt_cb.data import LongTailedDataModule
from lt_cb.errors import InputError
from lt_cb.features import BLOCK, NUM_COMPARED, frozen_features
from lt_cb.heads.folds import cross_validate, held_out_logits, repeated_folds
from lt_cb.heads.recipes import Candidate, make_recipes
from lt_cb.heads.solve import Basis
from lt_cb.lab.cluster import SETTINGS, Cluster, pack, unpack
from lt_cb.lab.grid import main as grid
from lt_cb.lab.plan import read_plan
from lt_cb.losses import SoftmaxLoss
from lt_cb.module import LongTailedClassifier
from lt_cb.runs.folder import RunDir

GRID = {
    "config": "lt_cb:quickstart",
    "set": {"trainer.max_epochs": 14, "model.backbone": "resnet20", "data.image_size": 8, "data.imbalance_factor": 20},
}
STARTS = 3  # Ray's parts have 15 s each to start, which a busy machine can exceed


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head and another node, of one core each."""
    os.environ.update(SETTINGS)
    pytest.importorskip("ray", reason="needs lt_cb[ray]")
    from ray.cluster_utils import Cluster as Nodes

    for attempt in range(STARTS):
        try:
            started = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
            started.add_node(num_cpus=1, node_ip_address="127.0.0.2")
            break
        except Exception:  # Ray raises many kinds
            if attempt == STARTS - 1:
                raise
    yield started
    started.shutdown()


def workers(task: str) -> list[int]:
    """Return the processes of Ray that work on a task."""
    found = subprocess.run(["pgrep", "-f", f"^ray::{task}$"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.ray
@pytest.mark.slow
def test_lost_workers_and_nodes_cost_nothing(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One test, since a start of Ray takes long."""
    monkeypatch.setattr("lt_cb.lab.cluster.SEND_S", 0.2)
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(lt_cb.lab.cluster)  # with this time
    a_grid_survives_a_killed_worker(nodes, tmp_path, capsys)
    cloudpickle.unregister_pickle_by_value(lt_cb.lab.cluster)
    heads_leave_no_connection(nodes, tmp_path)
    cluster = Cluster(nodes.address)
    try:
        features_are_those_of_one_machine(cluster, tmp_path, monkeypatch)
        folds_are_those_of_one_machine(cluster)
        a_lost_node_costs_nothing(cluster, nodes)
    finally:
        cluster.close()


def a_grid_survives_a_killed_worker(nodes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({**GRID, "folder": str(tmp_path / "there")}))
    (run,) = read_plan(tmp_path / "grid.yaml").runs

    def kill_once() -> None:
        while not run.dir.checkpoint.is_file():  # it has come back
            time.sleep(0.1)
        os.kill(workers("train_parcel")[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_once, daemon=True)
    killer.start()
    assert grid([str(tmp_path / "grid.yaml"), "--on", nodes.address]) == 0
    killer.join()
    printed = capsys.readouterr().out
    assert printed.count("started ") == 2
    assert "1 of 1 runs done, 0 failed." in printed
    other = RunDir(tmp_path / "here")
    main(["fit", *run.args, f"--folder={other.path}"])
    assert run.dir.read_result().metrics == other.read_result().metrics
    assert run.dir.read_metrics() == other.read_metrics()
    there, here = (torch.load(place.checkpoint, weights_only=True)["state_dict"] for place in (run.dir, other))
    assert all(torch.equal(there[name], value) for name, value in here.items())


def heads_leave_no_connection(nodes: Any, tmp_path: Path) -> None:
    import ray

    data = ["--data.source=digits", "--data.imbalance_factor=50", "--data.image_size=8", "--model.backbone=resnet20"]
    main(["heads", *data, "--lambdas=[1.0]", f"--folder={tmp_path / 'heads'}", "--on", nodes.address])
    assert not ray.is_initialized()  # a notebook can start the next command


def features_are_those_of_one_machine(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = LongTailedDataModule("digits", subset_counts=[30] * 10, image_size=16, batch_size=64)  # of two tasks
    model = LongTailedClassifier(SoftmaxLoss(data.class_counts), "resnet20", image_size=16, in_channels=1).eval()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    here = frozen_features(model, data, "train", trainer)[0].copy()
    monkeypatch.setenv("LT_CB_CACHE", str(tmp_path / "other"))
    seen_here: list[int] = []
    model.backbone.register_forward_hook(lambda module, inputs, output: seen_here.append(len(output)))
    there = frozen_features(model, data, "train", trainer, cluster)[0]
    assert 0 < sum(seen_here) <= NUM_COMPARED  # the others were computed by the tasks
    assert len(here) == 300 > BLOCK
    assert np.array_equal(here, there)


def folds_are_those_of_one_machine(cluster: Cluster) -> None:
    tasks: list[Any] = []

    class Recorded:
        def map(self, function: Any, items: Any, *shared: Any) -> Any:
            tasks.extend(items)
            return cluster.map(function, items, *shared)

    features, targets = overlapping()
    data, folds = Basis.fit(features).project(features, targets, 3), repeated_folds(targets, 3, 3, seed=0)
    recipes, l2_strengths = make_recipes([0.99], [], [1.0], multi_label=False), [0.3, 0.1]
    chosen = Candidate(recipes[0], 0.1)
    here, there = (cross_validate(data, folds, recipes, l2_strengths, where) for where in (None, Recorded()))
    assert here.scores() == there.scores()
    logits = [held_out_logits(data, folds, chosen, l2_strengths, where).logits for where in (None, Recorded())]
    assert torch.equal(*logits)
    assert len(tasks) == 2 * 3 * 3  # three repeats of three folds, twice


def a_lost_node_costs_nothing(cluster: Cluster, nodes: Any) -> None:
    def slow_square(number: int, factor: int) -> int:
        time.sleep(0.5)
        return factor * number**2

    results = cluster.map(slow_square, range(12), 3)
    first = [next(results) for _ in range(3)]
    (other,) = nodes.worker_nodes
    nodes.remove_node(other, allow_graceful=False)
    assert first + list(results) == [3 * i**2 for i in range(12)]


names = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..", "lock", ".lock")
)


@given(files=st.dictionaries(names, st.binary(max_size=50), max_size=4), before=st.sets(names, max_size=3))
def test_a_folder_travels_whole(files: dict[str, bytes], before: set[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        start, end = Path(place, "start"), Path(place, "end")
        for folder, content in ((start, files), (end, dict.fromkeys(before, b"old"))):
            (folder / "sub").mkdir(parents=True)
            for name, value in content.items():
                (folder / "sub" / name).write_bytes(value)
        (end / "lock").touch()
        unpack(pack(start), end)
        assert pack(end) == {f"sub/{name}": value for name, value in files.items()}
        assert (end / "lock").exists()


def test_without_ray_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'lt_cb\[ray\]'"):
        Cluster("local")
