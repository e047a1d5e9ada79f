r"""Custom dataset of image files: split and class are in the file names.

PYTHONPATH=examples uv run lt-cb inspect --data.root photos \
    --data.source own_files.NamedFiles
"""

from pathlib import Path

import numpy as np

from lt_cb.data import FileSource
from lt_cb.data.sources.listing import Listing, encode


class NamedFiles(FileSource):
    """Files such as train_cat_001.jpg and test_dog_042.jpg."""

    def __init__(self, root: str):
        found = Path(root).expanduser().glob("*_*_*")
        files = sorted(file.name for file in found)
        names = sorted({file.split("_")[1] for file in files})
        listings = {}
        for split in ("train", "test"):
            paths = [file for file in files if file.startswith(f"{split}_")]
            labels = [names.index(path.split("_")[1]) for path in paths]
            listings[split] = Listing(encode(paths), np.array(labels), names)
        super().__init__(root, listings)
