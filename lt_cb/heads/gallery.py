"""Thumbnails on an HTML page that loads nothing."""

import html
from collections.abc import Sequence

from PIL import Image

from lt_cb.data import LongTailedDataModule
from lt_cb.data.decode import decode
from lt_cb.data.sources.base import FileSource
from lt_cb.data.sources.listing import Split
from lt_cb.data.view import View
from lt_cb.heads.suspects import Suspect
from lt_cb.lab.report.document import data_uri, heading

PIXELS = 96  # height and width of a thumbnail
MAX_SUSPECTS = 24  # in the gallery
MAX_CLASSES, A_CLASS = 30, 3  # the rarest classes with confusions, and the most images of each
STYLE = """<style>.gallery { display: flex; flex-wrap: wrap; gap: .6rem; }
.gallery figure { margin: 0; width: 6.6rem; font-size: .8rem; line-height: 1.3; }
.gallery img { width: 6rem; border-radius: 4px; }</style>"""


def image_names(data: LongTailedDataModule, split: Split) -> list[str]:
    """Return the file of each image of a split, or its position in a data set without image files."""
    rows, source = data.rows[split], data.source
    if not isinstance(source, FileSource):
        return [str(row) for row in rows.tolist()]
    return [str(path) for path in source.files_at(data.origin(split), rows)]


def thumbnails(data: LongTailedDataModule, split: Split, positions: Sequence[int]) -> list[str]:
    """Return images at positions of a split as data URIs, scaled and cropped to 96 pixels."""
    rows, origin, source = data.rows[split][list(positions)], data.origin(split), data.source
    if isinstance(source, FileSource):
        view = View(PIXELS, channels=source.channels)
        images = [decode(path, view) for path in source.files_at(origin, rows)]
    else:
        images = list(source.load(origin)[0][rows])
    return [data_uri(Image.fromarray(pixels.squeeze()).resize((PIXELS, PIXELS)), "webp") for pixels in images]


def figures(uris: Sequence[str], captions: Sequence[str]) -> str:
    """Return images with captions as HTML."""
    each = (
        f'<figure><img src="{uri}" alt=""><figcaption>{html.escape(caption)}</figcaption></figure>'
        for uri, caption in zip(uris, captions, strict=True)
    )
    return f'<div class="gallery">{"".join(each)}</div>'


def suspect_gallery(found: Sequence[Suspect], data: LongTailedDataModule) -> str:
    """Return the first suspects as thumbnails, as HTML; nothing without suspects."""
    if not found:
        return ""
    first, names = found[:MAX_SUSPECTS], data.class_names
    words = (
        f"For {len(found)} held-out training images another class is more probable than their label. The least "
        "probable labels come first; suspects.csv has all. Many are right, and only hard to recognise."
    )
    captions = [f"{names[image.label]}, or {names[image.likely]}?" for image in first]
    uris = thumbnails(data, "train", [image.row for image in first])
    return f"{heading('Labels to check', words)}\n{figures(uris, captions)}"


def confusion_figures(confusions: Sequence[Suspect], data: LongTailedDataModule) -> dict[int, str]:
    """Return the first confusions of each of the rarest classes as thumbnails, as HTML by class index."""
    rarest = sorted(range(len(data.class_counts)), key=data.class_counts.__getitem__)[:MAX_CLASSES]
    first = {label: [image for image in confusions if image.label == label][:A_CLASS] for label in rarest}
    rows = [image.row for images in first.values() for image in images]
    uris = dict(zip(rows, thumbnails(data, "train", rows), strict=True)) if rows else {}
    made = {}
    for label, images in first.items():
        captions = [f"taken for {data.class_names[image.likely]} ({image.likely_posterior:.0%})" for image in images]
        if images:
            made[label] = figures([uris[image.row] for image in images], captions)
    return made
