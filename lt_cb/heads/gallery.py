"""Gallery of thumbnails on an HTML page that loads nothing."""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from lt_cb.data import LongTailedDataModule
from lt_cb.data.decode import decode
from lt_cb.data.sources.base import FileSource
from lt_cb.data.sources.listing import Split, as_paths
from lt_cb.data.view import View
from lt_cb.lab.report.document import heading

PIXELS = 96  # height and width of a thumbnail
STYLE = """<style>.gallery { display: flex; flex-wrap: wrap; gap: 1rem; }
.gallery figure { margin: 0; width: 8.5rem; font-size: .85rem; }
.gallery img { width: 6rem; border-radius: 4px; }</style>"""


def image_names(data: LongTailedDataModule, split: Split) -> list[str]:
    """Return the file of each image of a split, or its position in a data set without image files."""
    rows, source = data.rows[split], data.source
    if not isinstance(source, FileSource):
        return [str(row) for row in rows.tolist()]
    return [str(path) for path in as_paths(source.files(data.origin(split))[0][rows])]


def thumbnails(data: LongTailedDataModule, split: Split, positions: Sequence[int]) -> list[str]:
    """Return images at positions of a split as data URIs, scaled and cropped to 96 pixels."""
    rows, origin, source = data.rows[split][list(positions)], data.origin(split), data.source
    if isinstance(source, FileSource):
        view = View(PIXELS, channels=source.channels)
        images = [decode(path, view) for path in as_paths(source.files(origin)[0][rows])]
    else:
        images = list(source.load(origin)[0][rows])
    uris = []
    for pixels in images:
        stream = io.BytesIO()
        Image.fromarray(pixels.squeeze()).resize((PIXELS, PIXELS)).save(stream, "webp")
        uris.append(f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}")
    return uris


def gallery(title: str, words: str, uris: Sequence[str], captions: Sequence[str]) -> str:
    """Return a heading, words, and a figure for each image, as HTML."""
    figures = (
        f'<figure><img src="{uri}" alt=""><figcaption>{html.escape(caption)}</figcaption></figure>'
        for uri, caption in zip(uris, captions, strict=True)
    )
    return f'{STYLE}\n{heading(title, words)}\n<div class="gallery">{"".join(figures)}</div>'
