"""A disk that is full at each write of a run in turn: it ends well, or in a sentence, and what was whole stays."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SWEEP = '''
import contextlib, io, json, os, subprocess, sys
from pathlib import Path
from lt_cb.runs import checkpoint
from lt_cb.__main__ import main
from lt_cb.runs.folder import RunDir

def run(*words):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(list(words))
            code = 0
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            code = repr(error)
    return code, [line for line in err.getvalue().splitlines() if line.startswith("lt-cb: error: ")]

os.mkdir("disk")

def fill(size):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", "disk"], check=True)
    words = ["fit", *sys.argv[2:], "--folder=disk/runs/a", "--trainer.callbacks+=SaveLogits"]
    code, said = run(*words)
    folder = RunDir("disk/runs/a")
    folder.read_metrics()
    last = checkpoint.read(folder.checkpoint)["epoch"] if folder.checkpoint.exists() else None
    report = run("report", "disk/runs", "--save", "disk/rows") if code == 0 else None
    found[size] = [code, said, folder.result.exists(), folder.is_done, last, report]
    subprocess.run(["umount", "disk"], check=True)

def fill_between(low, high):
    """Look at sizes between two, at most 4 KiB apart wherever the outcome changes."""
    if high - low > 4 and found[low] != found[high]:
        middle = (low + high) // 8 * 4
        fill(middle)
        fill_between(low, middle)
        fill_between(middle, high)

found = {}
most = int(sys.argv[1])
fill(4)
fill(most)
fill_between(4, most)
print(json.dumps([[size, *outcome] for size, outcome in found.items()]))
'''


@pytest.mark.slow
def test_a_disk_that_is_full_at_each_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    can_mount = subprocess.run([*namespace, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    if can_mount.returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    words = ["--config", str(ROOT / "configs/quickstart.yaml"), "--model.backbone=plain.flat", "--trainer.max_epochs=2"]
    words += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    command = [*namespace, sys.executable, "-c", SWEEP, "112", *words]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=580).stdout
    reached = set()
    for size, code, said, result, done, last, report in json.loads(out.splitlines()[-1]):
        assert result == done == (code == 0), size  # a result is whole, or is not there
        for exit_code, words in ((code, said), *([report] if report else [])):
            if exit_code != 0:
                assert exit_code == 2, exit_code
                assert re.fullmatch(r"lt-cb: error: [^.]*'\S+' .*\(No space left on device\).*", *words), size
        reached |= {re.search(r"'\S+/(\S+)'", line)[1] for line in said + (report[1] if report else [])}
        assert last in (None, 0, 1)
    assert reached >= {"last.ckpt", "metrics.csv", "logits.npz", "result.json"}
