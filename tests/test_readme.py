"""The commands and code of README and pages, as a newcomer types them in a clone, on fewer and smaller images."""

import inspect
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from lt_cb import losses
from lt_cb.__main__ import main
from lt_cb.lab.plan import read_plan

ROOT = Path(__file__).parents[1]
PAGES = {page.stem: page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
LOSSES, CONTRIBUTING = PAGES["losses"], (ROOT / "CONTRIBUTING.md").read_text()
QUICKSTART = ["fit", "--config", "configs/quickstart.yaml"]
CUSTOM = ("own_loss", "own_data", "own_backbone", "own_metric", "own_recipe")  # run by test_examples
TINY = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
FEW_HEADS = ["--folds=2", "--lambdas=[0.1,1]", "--betas=[0.9]", "--gammas=[1]", "--taus=[1]"]
FEW_BATCHES = [f"--trainer.limit_{part}_batches=4" for part in ("train", "val", "test")]


def blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """Return the arguments of every lt-cb command, in the order of the page."""
    text = "\n".join(block for block in blocks("bash", page) if "SBATCH" not in block)
    lines = text.replace("\\\n", "").splitlines()
    return [shlex.split(line) for _, found, line in (line.partition("uv run lt-cb") for line in lines) if found]


def run(page: list[list[str]]) -> None:
    for args in page:
        if args[0] == "grid":
            with pytest.raises(SystemExit, match="0"):
                main(["grid", args[1], "--dry-run"])  # test_grid trains one
        elif re.search("cifar|inat", " ".join(args)):  # of images that are not here: is parsed only
            with pytest.raises(SystemExit, match="0"):
                main([*args, "--print_config"])
        elif args[0] == "report":
            with pytest.raises(SystemExit, match="0"):
                main(["report", "runs"])
        elif args[0] == "fit":
            second = "--ckpt_path" in args and "second_stage" not in "".join(args)
            fewer = FEW_BATCHES if "configs/several_labels.yaml" in args else []
            main([*args, *TINY, *fewer, *(["--trainer.max_epochs=2"] if second else [])])
        elif args[0] == "recommend":
            main([*args, *FEW_HEADS, "--data.image_size=64"])
        elif args[0] == "heads":
            main([*args, *FEW_HEADS])
        elif args[0] == "finetune":
            main([*args, "--trainer.max_epochs=1"])
        else:
            main(args)


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone with the folders that the README speaks of."""
    work = tmp_path / "clone"
    work.mkdir()
    (work / "configs").symlink_to(ROOT / "configs")
    folder.rename(work / "photos")
    files = [file.relative_to(work / "photos") for file in sorted((work / "photos").rglob("*.*"))]
    rows = [f"{file},{file.parent.name},{file.parts[0]}" for file in files]
    (work / "photos/table.csv").write_text("\n".join(["path,label,split", *rows]))
    several = [[str(file), ("cat;dog", "dog", "")[i % 3], file.parts[0]] for i, file in enumerate(files)]
    (work / "photos/labels.csv").write_text("\n".join(map(",".join, [["path", "labels", "split"], *several])))
    scenes = [[f"photos/{path}", labels.replace(";", "|"), split] for path, labels, split in several]
    (work / "scenes.csv").write_text("\n".join(map(",".join, [["path", "label", "split"], *scenes])))
    chest = [[path, "57", str(int("cat" in labels)), "" if "cat" in labels else "1", s] for path, labels, s in scenes]
    header = ["path", "age", "Edema", "Hernia", "split"]
    (work / "chest.csv").write_text("\n".join(map(",".join, [header, *chest])))
    (work / "shares.csv").write_text("class,share\ncat,1\ndog,1\neel,8\n")
    shutil.copytree(work / "photos/test", work / "hospital_B")
    (work / "new_photos").mkdir()
    Image.effect_noise((40, 30), 50).save(work / "new_photos/new.png")
    monkeypatch.chdir(work)
    monkeypatch.setenv("WANDB_MODE", "offline")  # whatever account there is
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, page in PAGES.items() if commands(page) and name not in CUSTOM])
def test_commands_run_in_their_order(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    listed = commands(PAGES[page])
    before = [QUICKSTART] if QUICKSTART not in listed and "quickstart" in str(listed) else []
    run([*before, *listed])
    out = capsys.readouterr().out
    trained = [
        args
        for args in listed
        if args[0] in ("fit", "finetune", "test", "recommend") and not re.search("cifar|inat", " ".join(args))
    ]
    tables = re.findall("Test (?:accuracy|average precision) by class", out)
    assert len(tables) == len(trained) + len(before)
    assert out.count("Predictions of 1 images") == sum(args[0] == "predict" for args in listed)


@pytest.mark.slow
def test_python_runs() -> None:
    main([*QUICKSTART, *TINY])
    few = "limit_train_batches=4, limit_val_batches=4, limit_test_batches=4"
    for name, page in PAGES.items():
        elsewhere = {"trainers": "", "own_images": "new_photos"}.get(name, "no block")  # in test_trainers, test_export
        for block in (block for block in blocks("python", page) if elsewhere not in block):
            exec(compile(block.replace("max_epochs=1", f"max_epochs=1, {few}"), "page", "exec"), {"__name__": "page"})


@pytest.mark.parametrize(("page", "number"), [("grids", 4 * 3 * 3), ("own_loss", 3 * 3)])
def test_the_grid_of_the_page_is_one(page: str, number: int) -> None:
    (text,) = blocks("yaml", PAGES[page])
    Path("grid.yaml").write_text(text)
    assert len(read_plan(Path("grid.yaml")).runs) == number


def test_files_are_there() -> None:
    pages = "".join(PAGES.values()) + CONTRIBUTING
    for file in re.findall(r"(?<![\w/])(?:lt_cb|configs|docs|benchmarks|notebooks|examples|tests)/[\w/]+\.\w+", pages):
        assert (ROOT / file).is_file() or "NAME" in file, file
    for folder in re.findall(r"`([\w/]+)/`", CONTRIBUTING):
        assert (ROOT / folder).is_dir(), folder
    for overlay in re.findall(r"`((?:sampler|second_stage|loss)/\w+)`", LOSSES):
        assert (ROOT / f"configs/{overlay}.yaml").is_file(), overlay


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_lines_of_code_fit_a_phone_or_a_half_screen() -> None:
    for name, page in PAGES.items():
        assert all(len(line) < 80 for block in blocks(r"[^\n]*", page) for line in block.splitlines()), name


def test_the_page_of_losses_has_what_there_is() -> None:
    named = {}
    for section in re.split("^##+ ", LOSSES, flags=re.MULTILINE):
        for name, written in re.findall(r"\[`(\w+)`\]\(#lt_cb\.losses\.\1\)`\((.*?)\)`", section, re.DOTALL):
            named[name] = set(re.findall(r"`loss/(\w+)`", section))
            parameters = inspect.signature(getattr(losses, name)).parameters.values()
            listed = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
            common = {"options", "weighting=None", "weight_of=sample", "reduction=mean", "num_unlabelled=0"}
            assert [word for word in listed if word not in common] == written.replace("\n", " ").split(", "), name
    classes = [getattr(losses, name) for name in losses.__all__]
    kinds = {cls for cls in classes if isinstance(cls, type) and issubclass(cls, losses.Loss)} - {losses.Loss}
    overlays: dict[str, set[str]] = {cls.__name__: set() for cls in kinds}
    for file in (ROOT / "configs/loss").glob("*.yaml"):
        path = yaml.safe_load(file.read_text())["model"]["loss"]["class_path"]
        overlays[path.rpartition(".")[2]].add(file.stem)
    assert named == overlays


def test_the_tests_of_the_promises_exist() -> None:
    named = re.findall(r"`(test_\w+)(\.py)?`", (ROOT / "docs/reliability.md").read_text())
    content = ""
    for name, is_file in named:
        if is_file:
            content = (ROOT / f"tests/{name}.py").read_text()
        else:
            assert f"def {name}(" in content
    assert len(named) > 80
