"""Caches: a damaged cache is made again, whatever the damage."""

import pwd
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lt_cb.data import LongTailedDataModule
from lt_cb.data.cache import cache_folder, read_cache, write_cache


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    for name in ("LT_CB_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    assert cache_folder() == Path(tempfile.gettempdir(), ".cache/lt_cb")


def test_simultaneous_starts_share_a_cache_and_a_deleted_one_is_made_again(folder: Path, own_cache: Path) -> None:
    def start() -> LongTailedDataModule:
        data = LongTailedDataModule("ImageFolder", str(folder))
        data.train_dataloader()
        return data

    def shown(data: LongTailedDataModule) -> torch.Tensor:
        return torch.cat([images for images, _ in data.train_dataloader()])

    together = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda _: together.wait() * 0 or start(), range(4))
    (cache,) = own_cache.iterdir()
    assert read_cache(cache)["images"].shape == (21, 12, 12, 3)
    shutil.rmtree(own_cache)
    whole = shown(first)
    assert all(torch.equal(shown(data), whole) for data in (*others, start()))
    assert list(own_cache.iterdir()) == [cache]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_is_detected(tmp_path: Path, data: st.DataObject) -> None:
    good = _write(tmp_path)
    whole = good.read_bytes()
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        damaged = _flipped(whole, data.draw(st.integers(0, 8 * len(whole) - 1)))
    assert _is_right_or_none(good, damaged)


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_detected(tmp_path: Path) -> None:
    good = _write(tmp_path)
    whole = good.read_bytes()
    assert _is_right_or_none(good, whole)
    assert all(_is_right_or_none(good, _flipped(whole, bit)) for bit in range(0, 8 * len(whole), 3))


@pytest.mark.parametrize("hidden", [1, 2])
def test_a_member_hidden_by_a_wrong_length_is_detected(tmp_path: Path, hidden: int) -> None:
    cache = tmp_path / "c.npz"
    write_cache(cache, "lists", dict.fromkeys(("a", "b", "cd"), LABELS))
    whole = bytearray(cache.read_bytes())
    first = whole.index(b"PK\1\2")
    length = (whole.index(b"PK\1\2", first + 1) - first) * hidden
    whole[first + 30] = length  # the extra field of the first member then swallows the next ones
    cache.write_bytes(whole)
    assert read_cache(cache) is None


IMAGES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
LABELS = np.arange(5)


def _write(folder: Path) -> Path:
    write_cache(folder / "c.npz", "decodes", {"images": IMAGES, "labels": LABELS})
    return folder / "c.npz"


def _flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _is_right_or_none(file: Path, content: bytes) -> bool:
    file.write_bytes(content)
    arrays = read_cache(file)
    return arrays is None or all(
        np.array_equal(arrays[name], kept) and arrays[name].dtype == kept.dtype and arrays[name].shape == kept.shape
        for name, kept in (("images", IMAGES), ("labels", LABELS))
    )
