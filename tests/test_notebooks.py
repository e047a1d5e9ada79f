"""The notebooks, executed on the runs that they name, with fewer epochs."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from lt_cb.__main__ import main
from lt_cb.lab.plan import read_plan
from lt_cb.losses import class_weights

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TINY = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clone with the runs that the notebooks read."""
    work = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "notebooks", work / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (work / "configs").symlink_to(ROOT / "configs")
    grid = yaml.safe_load((ROOT / "configs/grids/beta_gamma.yaml").read_text())
    grid["config"] = [str(ROOT / "configs/grids" / file) for file in grid["config"]]
    grid["seeds"] = [0]
    grid["axes"]["beta"]["model.loss.weighting.beta"] = [0.9, 0.9999]
    grid["axes"]["gamma"]["model.loss.gamma"] = [0.5, 2.0]
    (work / "grid.yaml").write_text(yaml.safe_dump(grid))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setenv("LT_CB_CACHE", str(work / "cache"))
        main_fit = ["fit", "--config", "configs/quickstart.yaml"]
        for name in ("softmax", "cb_focal"):
            main([*main_fit, "--config", f"configs/loss/{name}.yaml", f"--name={name}", *TINY])
        (work / "runs/quickstart").symlink_to("softmax")
        for trained in read_plan(Path("grid.yaml")).runs:  # as lt-cb grid trains them, each in a process of its own
            main(["fit", *trained.args, *TINY, f"--folder={trained.dir.path}"])
    return work


def run(clone: Path, name: str, shorter: tuple[str, str] = ("", "")) -> str:
    """Execute a notebook in its folder, with a text in its cells replaced by another, and return its output."""
    notebook = nbformat.read(clone / f"notebooks/{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace(*shorter) if shorter[0] else cell.source
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(clone / "notebooks")}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    warned = [output.text for output in outputs if output.get("name") == "stderr"]
    assert all("IProgress not found" in text for text in warned)  # of tqdm, where there are no widgets
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def test_effective_number(clone: Path) -> None:
    run(clone, "effective_number")


def test_comparison_of_two_runs(clone: Path) -> None:
    printed = run(clone, "per_class_accuracy")
    results = [json.loads((clone / f"runs/{name}/latest/result.json").read_text()) for name in ("softmax", "cb_focal")]
    first, second = printed.splitlines()[:2]
    assert first == "A: Softmax on Digits IF 50, last checkpoint"
    assert second == "B: CB-Focal, γ 1, β 0.9999 on Digits IF 50, last checkpoint"
    for line, name, count, a, b in zip(
        printed.splitlines()[3:],
        results[0]["class_names"],
        results[0]["class_counts"],
        *[result["per_class_accuracy"] for result in results],
        strict=False,
    ):
        assert line.split() == [name, str(count), f"{100 * a:.1f}", f"{100 * b:.1f}", f"{100 * (b - a):+.1f}"]


def test_surface_of_a_grid(clone: Path) -> None:
    assert "4 runs of focal loss: β in [0.9, 0.9999], γ in [0.5, 2.0], on ['Digits IF 50']" in run(clone, "beta_gamma")


def test_choice_of_beta(clone: Path) -> None:
    printed = run(clone, "choose_beta")
    assert "10 classes of 2 to 134 images, imbalance factor 67" in printed
    assert "β = 0.992537 (1 − 1 / largest class count)" in printed
    weights = class_weights([134, 86, 56, 36, 23, 15, 9, 6, 4, 2], 0.99)
    row = next(line.split() for line in printed.splitlines() if line.split()[:1] == ["0.99"])
    assert float(row[2]) == pytest.approx(float(weights.max() / weights.min()), abs=0.06)


def test_recommendation(clone: Path, folder: Path) -> None:
    (clone / "examples").symlink_to(ROOT / "examples")
    folder.rename(clone / "photos")
    printed = run(
        clone, "recommendation", (" --name", " --folds 2 --lambdas [0.1,1] --betas [0.9] --gammas [1] --name")
    )
    assert "3 classes, 21 training images, imbalance factor 4" in printed
    found = json.loads((clone / "runs/recommended/version_0/recommendation.json").read_text())
    assert f"chosen: {found['chosen']}" in printed
    result = json.loads((clone / "runs/recommended/version_0/result.json").read_text())
    assert f"balanced accuracy {100 * result['metrics']['test/balanced_acc']:.1f} %" in printed


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_are_saved_without_outputs(file: Path) -> None:
    assert all(not cell.get("outputs") for cell in nbformat.read(file, as_version=4).cells)
