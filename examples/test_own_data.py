import numpy as np
import pytest
from own_files import NamedFiles
from own_source import Stripes
from PIL import Image

from lt_cb.data import LongTailedDataModule


@pytest.fixture(params=["memory", "files"])
def source(request, tmp_path):
    if request.param == "memory":
        return Stripes("unused")
    for name in ("train_cat_1", "train_cat_2", "train_dog_1", "test_cat_1"):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    return NamedFiles(str(tmp_path))


def test_images_and_labels_are_as_announced(source):
    for split in ("train", "test"):
        images, labels = source.load(split)
        shape = source.image_size, source.image_size, source.channels
        assert images.dtype == np.uint8
        assert images.shape == (len(labels), *shape)
        assert set(labels) <= set(range(len(source.class_names)))
    counts = np.bincount(source.load("train")[1]).tolist()
    assert counts == source.counts


def test_a_long_tail_is_cut_from_it():
    data = LongTailedDataModule("own_source.Stripes", imbalance_factor=50)
    assert data.class_counts[0] == 200
    assert data.class_counts[-1] == 200 / 50
