"""Damage input at random, and count the outcomes: success, one sentence, traceback, hang or a wrong result.

    python benchmarks/mutations.py configs --count 500

The exit code is 1 if there is any traceback, hang or wrong result. The same --seed repeats all cases, and --only N
repeats case N.
"""

import argparse
import contextlib
import copy
import csv
import io
import json
import logging
import math
import os
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from lt_cb.__main__ import main as lt_cb
from lt_cb.data import images
from lt_cb.data.sources import tree
from lt_cb.data.view import View
from lt_cb.lab import plan, work

ROOT = Path(__file__).resolve().parents[1]
OUTCOMES = ("success", "sentence", "traceback", "hang", "wrong")
SECONDS = 30  # of CPU time, or five times as many by the clock: then a case counts as a hang
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
SHORT = ["--trainer.max_epochs=1", *[f"--trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]]
FIT = ["fit", f"--config={ROOT}/configs/quickstart.yaml", *QUIET, *SHORT, "--model.backbone=resnet20"]
RUNS_CODE = {"class_path": "os.system", "init_args": {"command": "touch ran"}}
ODD = [None, -1, -0.5, 0, 3, 10**18, 1e308, math.nan, math.inf, True, "", "text", "../x", "a\0b", [], [None], [1, 2]]
ODD += [{}, {"a": 1}, {"class_path": "torch.nn.Linear"}, "os.system", RUNS_CODE, [RUNS_CODE]]
BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]\n" for i in range(9))
STARTS_PROCESSES = ("devices", "num_nodes", "num_workers")  # their values start as many processes

armed: list[bool] = []  # not empty while a case runs
Case = Callable[[random.Random], tuple[str, str]]
logging.disable(logging.WARNING)


class Hang(BaseException):
    """Raised on a timeout. No `except Exception` catches it."""


def on_alarm(*_: object) -> None:
    """Stop a case that takes too long."""
    if armed:
        raise Hang


def attempt(*words: str) -> tuple[str, str]:
    """Run a command in this process, and return the outcome and the output."""
    out, err = io.StringIO(), io.StringIO()
    armed.append(True)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(5 * SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lt_cb(words)
        how, said = "success", out.getvalue()
    except SystemExit as stopped:
        said = err.getvalue()
        sentences = said.partition("lt-cb: error: ")[2].splitlines()
        how = "success" if not stopped.code else "sentence" if len(sentences) == 1 else "wrong"
        said = sentences[0] if how == "sentence" else said
    except Hang:
        how, said = "hang", where()
    except BaseException as error:
        how, said = "traceback", f"{type(error).__name__}: {str(error)[:200]} {where()}"
    finally:
        armed.clear()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    if Path("ran").exists():
        how, said = "wrong", "code of the input was run"
    parts = [path for path in Path().rglob("*") if path.suffix == ".tmp"]
    return ("wrong", f"half-written: {parts[0]}") if parts else (how, said)


def where() -> str:
    """Return the last line of lt_cb, and the last line of all, in the traceback of the current error."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [frame for frame in frames if "/lt_cb/" in frame.filename]
    return " ".join(f"{Path(f.filename).name}:{f.lineno}" for f in (*ours[-1:], *frames[-1:]))


def mutated(rng: random.Random, tree: Any) -> Any:
    """Change a value, remove a key or add one, at one or two places in nested dicts and lists."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2))):
        node, key = place(rng, tree)
        if (how := rng.random()) < 0.1 and isinstance(node, dict) and len(node) > 1:
            del node[key]
        elif how < 0.2 and isinstance(node, dict):
            node[f"{key}s"] = node[key]
        elif how < 0.3 and isinstance(node, list):
            node.append(node[key])
        elif isinstance(node[key], torch.Tensor) and how < 0.9:
            node[key] = rng.choice((shorter, to_nan, torch.Tensor.double, torch.Tensor.int, torch.Tensor.cfloat))(
                node[key]
            )
        else:
            value = copy.deepcopy(rng.choice(ODD))
            node[key] = 1 if key in STARTS_PROCESSES and isinstance(value, int | float) else value
    return tree


def place(rng: random.Random, node: Any) -> tuple[Any, Any]:
    """Return a random dict or list of a nested structure and a key. Large and small parts are equally likely."""
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.2:
            return node, key
        node = node[key]


def shorter(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of another shape."""
    return tensor.flatten()[1:]


def to_nan(tensor: torch.Tensor) -> torch.Tensor:
    """Return NaN for a floating-point tensor, and other tensors unchanged."""
    return tensor * math.nan if tensor.is_floating_point() else tensor


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Cut bytes, flip bits, repeat a part, or replace one by random bytes."""
    place, how = rng.randrange(len(content)), rng.randrange(8)
    if how == 0:
        return content[:place]
    if how == 1:
        return content[:place] + content[max(0, place - 40) :]
    if how == 2:
        return content[:place] + rng.randbytes(8) + content[place + 8 :]
    changed = bytearray(content)
    for _ in range(1 if how > 3 else 4):
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def as_yaml(rng: random.Random, tree: Any) -> bytes:
    """Return the YAML of a mutated configuration, or the mutated YAML of a configuration."""
    text, how = yaml.safe_dump(tree, sort_keys=False).encode(), rng.random()
    if how < 0.05:
        return text + BOMB.encode()
    if how < 0.1:
        lines = text.decode().splitlines()
        return "\n".join([*lines, rng.choice(lines)]).encode()  # a key twice, or at another level
    return damaged(rng, text) if how < 0.3 else yaml.safe_dump(mutated(rng, tree), sort_keys=False).encode()


def bits(base: Path) -> Case:
    """Flip a bit in the cache of images, or of unreadable files."""
    for i in range(6):
        file = base / "images" / str(i % 2) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 40 * i, np.uint8)).save(file)
    files, view = tree.find_images(base / "images"), View(4)
    reads: list[tuple[bytes, Path, Callable[[], Any]]] = []
    for read in (lambda: [images.load_images(files, view, "")], lambda: [images.find_unreadable(files, view, "")]):
        before = {*base.glob("cache/*")}
        read()
        (cache,) = {*base.glob("cache/*")} - before
        reads.append((cache.read_bytes(), cache, read))
    right = [[np.asarray(part) for part in read()] for _, _, read in reads]

    def case(rng: random.Random) -> tuple[str, str]:
        which = rng.randrange(2)
        whole, cache, read = reads[which]
        bit = rng.randrange(8 * len(whole))
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        cache.write_bytes(changed)
        try:
            found = [np.asarray(part) for part in read()]
        except Exception as error:
            return "traceback", f"bit {bit} of {which}: {error!r} {where()}"
        same = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(found, right[which], strict=True))
        return "success" if same else "wrong", f"bit {bit} of {which}"

    return case


def configs(base: Path) -> Case:
    """Change values, keys or bytes of the configuration of a training."""
    run = trained(base)
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    short = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    resolved["folder"] = None

    def case(rng: random.Random) -> tuple[str, str]:
        Path("c.yaml").write_bytes(as_yaml(rng, rng.choice((resolved, resolved, short))))
        length = rng.choice((["--trainer.fast_dev_run=1"], SHORT))
        how, said = attempt("fit", "--config=c.yaml", *QUIET, *length)
        left = [path for path in Path().rglob("*") if path.is_file() and path.name != "c.yaml"]
        return ("wrong", f"left {left[0]} after: {said}") if how == "sentence" and left else (how, said)

    return case


def results(base: Path) -> Case:
    """Change values, keys or bytes of the files of a run, or of a grid file."""
    grid = yaml.safe_load((ROOT / "configs/grids/quickstart.yaml").read_text())
    grid |= {"folder": "runs", "config": str(ROOT / "configs/quickstart.yaml"), "seeds": [0]}
    grid["axes"]["loss"] = {"a": {"config": f"{ROOT}/configs/loss/softmax.yaml"}, "b": {"model.loss.gamma": 2}}
    grid["axes"]["rate"] = {"model.optimizer.lr": [0.1, 0.2]}
    whole = [word for word in SHORT + QUIET if "limit_test" not in word]  # a report needs all test images
    grid["set"] = {"model.backbone": "resnet20", **dict(word.removeprefix("--").split("=") for word in whole)}
    grid["set"] = {key: yaml.safe_load(value) for key, value in grid["set"].items()}
    (base / "grid.yaml").write_text(yaml.safe_dump(grid))
    os.chdir(base)
    for run in plan.read_plan(base / "grid.yaml").runs:
        work.prepare(run)
        with contextlib.redirect_stdout(io.StringIO()):
            lt_cb(["fit", *run.args, f"--folder={run.dir.path}"])

    def case(rng: random.Random) -> tuple[str, str]:
        shutil.copytree(base / "runs", "runs")
        shutil.copy(base / "grid.yaml", "grid.yaml")
        name = rng.choice(("result.json", "config.yaml", "metrics.csv", "grid.json", "grid.yaml"))
        file = Path("grid.yaml") if name == "grid.yaml" else rng.choice(sorted(Path("runs").rglob(name)))
        if file.suffix == ".yaml":
            file.write_bytes(as_yaml(rng, yaml.safe_load(file.read_text())))
        elif file.suffix == ".json" and rng.random() < 0.7:
            file.write_text(json.dumps(mutated(rng, json.loads(file.read_text()))))
        else:
            file.write_bytes(damaged(rng, file.read_bytes()))
        if name == "grid.yaml" or rng.random() < 0.3:
            return attempt("grid", "grid.yaml", "--dry-run")
        how, said = attempt("report", "runs")
        if how == "success":
            with Path("runs/report.csv").open() as stream:
                errors = [row["error"] for row in csv.DictReader(stream)]
            if not all(0 <= float(error) <= 100 for error in errors):
                return "wrong", f"errors of {errors} are reported"
        return how, said

    return case


def checkpoints(base: Path) -> Case:
    """Change values, keys or bytes of a checkpoint."""
    file = trained(base) / "checkpoints/last.ckpt"
    whole, content = file.read_bytes(), torch.load(file, weights_only=True)
    assert [name for name in content if "config" in name] == ["lt_cb_config"]
    (base / "photos").mkdir()
    Image.effect_noise((20, 30), 50).save(base / "photos/0.png")

    def case(rng: random.Random) -> tuple[str, str]:
        kind = rng.randrange(4)
        if kind == 0:
            Path("c.ckpt").write_bytes(damaged(rng, whole))
        elif kind == 1:
            config = as_yaml(rng, yaml.safe_load(content["lt_cb_config"])).decode(errors="replace")
            torch.save({**content, "lt_cb_config": config}, "c.ckpt")
        else:
            part = rng.choice(list(content)) if kind == 2 else "state_dict"
            torch.save({**content, **mutated(rng, {part: content[part]})}, "c.ckpt")
        name = rng.choice(("test", "inspect", "predict", "fit"))
        more = {"predict": [f"--images={base}/photos", "--num_workers=0"], "fit": ["--trainer.max_epochs=2"]}
        how, said = attempt(name, "--ckpt_path=c.ckpt", *QUIET, *more.get(name, []))
        if how == "success" and kind == 0 and not same(torch.load("c.ckpt", weights_only=True), content):
            return "wrong", f"{name}: other weights are taken for those of the run"
        written = [path.read_text() for path in Path().rglob("*") if path.name in ("result.json", "predictions.csv")]
        if how == "success" and any("nan" in text.lower() for text in written):
            return "wrong", f"{name}: the result is no number"
        return how, f"{name}: {said}"

    return case


def same(a: Any, b: Any) -> bool:
    """Return whether nested values, including tensors, are equal."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return all(map(same, a, b)) and len(a) == len(b) if isinstance(a, list | tuple) else bool(a == b)


def folders(base: Path) -> Case:
    """Replace an image in a folder by another file, a broken one, or a link."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    for split in ("train", "test"):
        for i, name in enumerate(("ant", "bee", "cat")):
            (base / "images" / split / name).mkdir(parents=True)
            for j in range(6 - i):
                Image.fromarray(noise + np.uint8(40 * i + j)).save(base / "images" / split / name / f"{j}.png")
    whole = (base / "images/train/ant/0.png").read_bytes()
    bomb = bytearray(whole)
    bomb[16:24] = struct.pack(">II", 50_000, 50_000)
    grey = Image.fromarray(noise[..., 0])
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": [grey]}
    saves: list[Callable[[Path], Any]] = [
        *[lambda p, s=s: p.write_bytes(s) for s in (b"", b"text", bytes(bomb), whole[:-30], bytes(len(whole)))],
        lambda p: deep.save(p),
        lambda p: grey.convert("F").save(p.with_suffix(".tiff")),
        lambda p: grey.convert("CMYK").save(p.with_suffix(".jpg")),
        lambda p: grey.convert("P").save(p.with_suffix(".gif"), **frames),
        lambda p: grey.save(p.with_suffix(".webp"), **frames),
        lambda p: grey.convert("1").save(p.with_suffix(".bmp")),
        lambda p: Image.new("RGBA", (1, 1)).save(p),
        lambda p: Image.new("LA", (1, 300)).save(p),
        lambda p: Image.new("RGB", (300, 1)).save(p),
        lambda p: p.mkdir(),
        lambda p: p.symlink_to("nowhere"),
        lambda p: p.symlink_to(p.name),
        lambda p: os.mkfifo(p),
        lambda p: (p.parent / "loop").symlink_to(p.parent.parent, target_is_directory=True),
        lambda p: (p.write_bytes(whole), p.chmod(0)),
        lambda p: Path(os.fsdecode(os.fsencode(p.parent) + b"/\xff\xfe.png")).write_bytes(whole),
        lambda p: p.with_name("a\nb,'\".png").write_bytes(whole),
        lambda p: p.with_name(f"{'x' * 250}.png").write_bytes(whole),
        lambda p: (p.parent / ".hidden.png").write_bytes(b"text"),
        lambda p: (p.parent.parent / "0.png").write_bytes(whole),
        lambda p: (p.parent.parent / "dog").mkdir(),
        lambda p: (p.parent.parent / os.fsdecode(b"\xff")).mkdir(),
        lambda p: (shutil.rmtree(p.parent), p.parent.write_bytes(b"text")),
        lambda p: (shutil.rmtree(p.parent), p.parent.mkdir()),
        lambda p: shutil.rmtree(p.parent),
        lambda p: (shutil.rmtree(p.parent.parent), p.parent.parent.write_bytes(b"text")),
        lambda p: [p.parent.rename(p.parent.with_name(f"{p.parent.name}{end}")) for end in (os.fsdecode(b"\xff"),)],
    ]

    def case(rng: random.Random) -> tuple[str, str]:
        shutil.copytree(base / "images", "images")
        place = rng.choice(sorted(Path("images").rglob("*.png")))
        place.unlink()
        if (how := rng.random()) < 0.2:
            place.write_bytes(damaged(rng, whole))
        else:
            rng.choice(saves)(place)
        size = rng.choice(("16", "16", "null", "12"))
        more = rng.choice(([], ["--data.val_fraction=0"], ["--data.num_workers=0", "--data.crop=resized"]))
        train = Path("images/train")
        unique = {os.path.realpath(p) for p in tree.find_images(train)} if train.is_dir() else set()
        given = ["--data.root=images", f"--data.image_size={size}", "--model.backbone=resnet20", *more]
        how, said = attempt("fit", f"--config={ROOT}/configs/image_folder.yaml", *QUIET, *SHORT, *given)
        if how == "success":
            counts = json.loads(next(Path("runs").rglob("result.json")).read_text())["class_counts"]
            if sum(counts) > len(unique):
                return "wrong", f"{sum(counts)} training images, but there are {len(unique)}"
        return how, said

    return case


def names(base: Path) -> Case:
    """Name classes, files and folders by markup, formulas, terminal escapes, and bytes that are not UTF-8."""
    evil = ["[/x]", "[red]", "[link=x]y", "\x1b[31m", "\x1b]0;t\x07", "a\nb", "=1+1", "@x", "-2+3", "<img src=x>"]
    evil += [
        "`ls`",
        "$(touch ran)",
        "a|b",
        "**b**",
        "{{7*7}}",
        "%s%d",
        "\u202eabc",
        "\u2028",
        os.fsdecode(b"\xff"),
        "水",
    ]
    evil += ["'\"", "null"]
    evil += ["x" * 200, "~", "-", "--help", "a;b", "a,b", " a ", "\\x1b", "1", "nan", "loss"]
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)

    def case(rng: random.Random) -> tuple[str, str]:
        classes, place = rng.sample(evil, 3), Path(rng.choice(evil).replace("/", "_")).absolute()
        rows, root = [["path", "label", "split"]], place
        for split in ("train", "test"):
            for i, name in enumerate(classes):
                folder = place / split / name.replace("/", "_")
                folder.mkdir(parents=True)
                for j in range(4 - i):
                    file = folder / f"{rng.choice(evil)[:100]}{j}.png".replace("/", "_")
                    Image.fromarray(noise + np.uint8(60 * i + j)).save(file)
                    rows.append([str(file.relative_to(place)), name, split])
        config = "image_folder"
        if rng.random() < 0.3 and not any("\udcff" in cell for row in rows for cell in row):
            config, root = "own_table", place / "table.csv"
            with root.open("w", newline="") as stream:
                csv.writer(stream).writerows(rows)
        data = [f"--data.root={root}", "--data.image_size=12", "--data.val_fraction=0"]
        given = ["--config", f"{ROOT}/configs/{config}.yaml", *data]
        steps = [
            ("inspect", *given),
            ("fit", *given, *QUIET, *SHORT[:3], "--model.backbone=resnet20", "--folder=runs/a/b"),
            ("report", "runs"),
            ("predict", "--ckpt_path=runs/a/b/checkpoints/last.ckpt", f"--images={place}/test", "--folder=runs/a/p"),
        ]
        for words in steps:
            how, said = attempt(*words)
            if re.search(r"[^\n\x20-\x7e\xa1-\uffff]|[\u202a-\u202e\ud800-\udfff\u2028]", said):
                return "wrong", f"{words[0]} of {classes!r}: raw characters in {said!r}"
            if how != "success":
                return how, f"{words[0]}: {said}"
        missing = [name for name in ("result.json", "report.md", "predictions.csv") if not [*Path("runs").rglob(name)]]
        return ("wrong", f"no {missing}") if missing else ("success", "")

    return case


def features(base: Path) -> Case:
    """Damage the features that ``recommend`` keeps: bits, rows of zeros, and the end of a file."""
    cache = Path(os.environ["LT_CB_CACHE"])
    words = ["recommend", f"--config={ROOT}/configs/quickstart.yaml", *QUIET, "--model.backbone=resnet20", "--folds=2"]
    words += ["--lambdas=[0.1,0.01]", "--taus=[1]", "--betas=[0.9]", "--gammas=[]"]
    os.chdir(base)
    how, said = attempt(*words, "--folder=runs/a/whole")
    if how != "success":
        raise SystemExit(said)
    right = json.loads(Path("runs/a/whole/recommendation.json").read_text())
    shutil.copytree(cache, base / "kept")

    def case(rng: random.Random) -> tuple[str, str]:
        shutil.rmtree(cache)
        shutil.copytree(base / "kept", cache)
        file = rng.choice([path for path in sorted(cache.rglob("*")) if path.is_file() and path.stat().st_size])
        content, half = file.read_bytes(), file.stat().st_size // 2
        zeros = content[:half] + bytes(len(content) - half)
        file.write_bytes(rng.choice((damaged(rng, content), damaged(rng, content), zeros, bytes(len(content)))))
        how, said = attempt(*words, "--folder=runs/a/b")
        if how == "success" and json.loads(Path("runs/a/b/recommendation.json").read_text()) != right:
            return "wrong", f"another recommendation after damage of {file.name}"
        return how, said if how != "success" else ""

    return case


def trained(base: Path) -> Path:
    """Train for an epoch, and return the folder of the run."""
    os.chdir(base)
    how, said = attempt(*FIT, "--folder=runs/a/b")
    if how != "success":
        raise SystemExit(said)
    return base / "runs/a/b"


KINDS = {kind.__name__: (kind, count) for kind, count in ((bits, 10_000), (configs, 500), (results, 500))}
KINDS |= {kind.__name__: (kind, 200) for kind in (checkpoints, folders, names, features)}


def main() -> int:
    """Damage input of the given kinds, and print how often each outcome came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=KINDS, metavar="KIND", help=f"{', '.join(KINDS)}; default all")
    parser.add_argument("--count", type=int, help="number of cases; the default takes minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run only the case of this number")
    options = parser.parse_args()
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, on_alarm)
    rows = []
    for kind in options.kinds or KINDS:
        make, usual = KINDS[kind]
        numbers = range(options.count or usual) if options.only is None else [options.only]
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LT_CB_CACHE"] = f"{folder}/cache"
            base = Path(folder)
            case, counts, seen = make(base), Counter[str](), Counter[str]()
            for i in numbers:
                (base / "case").mkdir()
                os.chdir(base / "case")
                how, said = case(random.Random(f"{options.seed} {i}"))
                counts[how] += 1
                seen[said] += 1
                if options.only is not None or (how not in ("success", "sentence") and seen[said] == 1):
                    print(f"{kind} {i} {how}: {said[:600]}", flush=True)
                os.chdir(base)
                shutil.rmtree(base / "case")
        rows.append((kind, counts))
    print(f"{'kind':12}{'cases':>10}" + "".join(f"{name:>10}" for name in OUTCOMES))
    for kind, counts in rows:
        print(f"{kind:12}{counts.total():>10}" + "".join(f"{counts[name]:>10}" for name in OUTCOMES))
    return any(counts[name] for _, counts in rows for name in OUTCOMES[2:])


if __name__ == "__main__":
    raise SystemExit(main())
