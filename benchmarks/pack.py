"""Pack the images that some long-tailed subsets need into one small archive, for a machine without a network.

    python benchmarks/pack.py CIFAR10 cifar10 --seeds 3 4 5 6 7 8 9 --out data/cifar10.tar.xz
    tar xf data/cifar10.tar.xz -C data

The folder has ``train`` and ``test`` with a folder of images for each class. The archive keeps the names of all
training images, and so their order and the subsets. Images that no subset has are blank. All test images are in it.
"""

import argparse
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from lt_cb.data import LongTailedDataModule
from lt_cb.longtail.subset import long_tailed_subset


def smallest(file: Path) -> bytes:
    """Return the content of an image file, as lossless WebP if it is a PNG: a sixth less."""
    if file.suffix != ".png":
        return file.read_bytes()
    stream = io.BytesIO()
    with Image.open(file) as image:
        image.save(stream, "WEBP", lossless=True, quality=100, method=4)
    return stream.getvalue()


def main() -> None:
    """Write the archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=["CIFAR10", "CIFAR100"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="seeds of the subsets")
    parser.add_argument("--imbalance_factor", type=float, default=100.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = LongTailedDataModule(options.source, str(options.folder), imbalance_factor=options.imbalance_factor)
    listings = data.source.image_folder.listings
    labels, counts = listings["train"].labels, data.class_counts
    subsets = [np.concatenate(long_tailed_subset(labels, counts, seed)) for seed in options.seeds]
    needed = {"train": set(np.concatenate(subsets).tolist()), "test": set(range(len(listings["test"].labels)))}
    blank = io.BytesIO()
    Image.new("RGB", (1, 1)).save(blank, "PNG")  # decoders look at the content, not at the suffix
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(options.out, "w:xz") as archive:
        for split, listing in listings.items():
            for place, path in enumerate(map(bytes.decode, listing.paths.tolist())):
                file = options.folder / path
                content = smallest(file) if place in needed[split] else blank.getvalue()
                entry = tarfile.TarInfo(f"{options.source.lower()}/{path}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    size = options.out.stat().st_size / 2**20
    print(f"{len(needed['train']):,} of {len(labels):,} training images, {size:.1f} MiB in {options.out}")


if __name__ == "__main__":
    main()
