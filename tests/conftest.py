import gc
import os
from pathlib import Path

# a process of the tests for each core, some of which start others: threads take the cores from them, and more so where
# they wait by spinning; OpenMP reads it when torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch
from PIL import Image


def pytest_configure() -> None:
    """Collect no garbage while all is imported."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Leave all that was imported out of garbage collections, which are many and take a share of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


def pytest_sessionfinish() -> None:
    """Let the interpreter free everything at its end."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep decoded images of a test out of the user's cache."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("LT_CB_CACHE", str(cache))
    return cache


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test that fails is one that fails again."""
    torch.manual_seed(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An imbalanced folder of images: 12, 6 and 3 for training, 4 of each for testing, as PNG, JPEG and WebP."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for split, counts in (("train", (12, 6, 3)), ("test", (4, 4, 4))):
        for name, count, ending in zip(("cat", "dog", "eel"), counts, ("png", "jpg", "webp"), strict=True):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:02}.{ending}", lossless=True)
    return root
