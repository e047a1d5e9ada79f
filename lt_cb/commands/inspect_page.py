"""The page of ``lt-cb inspect``: a row of thumbnails of each class, duplicates side by side, and unreadable files."""

import html
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from lt_cb.data import LongTailedDataModule
from lt_cb.data.decode import read_whole
from lt_cb.data.images import call_with_each
from lt_cb.data.sources.checks import SIDE, ImageFiles
from lt_cb.lab.report.document import data_uri, document, heading, table
from lt_cb.longtail.subset import Indices, count_labels
from lt_cb.text import printable

THUMBNAIL = 80  # pixels of the longer side
A_CLASS = 8  # images of a class
MAX_CLASSES, MAX_LARGE = 250, 50  # classes shown, and those with the most images among them
MAX_GROUPS, MAX_NAMED = 60, 500  # groups of duplicates shown, and names of unreadable files
STYLE = """
.class { display: grid; grid-template-columns: 14rem 1fr; gap: 0 1rem; padding: .5rem 0; font-size: .9rem;
  border-top: 1px solid color-mix(in srgb, CanvasText 15%, Canvas); }
.bar { height: .5rem; min-width: 2px; background: #0072B2; } .class span, small { opacity: .75; }
.row { display: flex; flex-wrap: wrap; gap: .3rem; align-items: flex-start; } .row img { height: 64px; }
.pairs { display: flex; flex-wrap: wrap; gap: 1rem; } .pairs .row { background: var(--mild); padding: .5rem; }
figure { margin: 0; width: 9rem; } figcaption { font-size: .75rem; line-height: 1.3; }
.tiny { image-rendering: pixelated; }
@media (max-width: 40rem) { .class { grid-template-columns: 1fr; gap: .4rem; } .class img { height: 42px; } }"""


def inspect_page(
    data: LongTailedDataModule,
    finding: Sequence[str],
    facts: Sequence[tuple[str, str]] = (),
    files: ImageFiles | None = None,
) -> str:
    """Return the page. Class names and paths may hold any character. Without image files, read the training images."""
    counts = {"train": data.class_counts}
    title: Callable[[int], str] = "image {}".format
    if files is None:
        images, labels = data.source.load("train")
        positions, picture = np.arange(len(labels)), lambda i: Image.fromarray(images[i].squeeze())
    else:
        positions, picture = files.readable[files.splits[files.readable] == "train"], _reader(files)
        labels, title = files.labels[positions], files.paths.__getitem__
        for split in files.source.splits[1:]:
            counts[split] = count_labels(files.source.labels(split), len(data.class_names))
    order = sorted(range(len(data.class_counts)), key=lambda c: data.class_counts[c])  # the rarest class first
    large = MAX_LARGE if len(order) > MAX_CLASSES else 0
    shown = [*order[: MAX_CLASSES - large], *order[len(order) - large :]] if large else order
    chosen = {c: _sample(positions[labels == c if labels.ndim == 1 else labels[:, c] == 1]) for c in shown}
    made = _thumbnails(picture, [i for rows in chosen.values() for i in rows])
    words = f"Training images, the rarest class first: a sample of {A_CLASS} of each, drawn with seed 0."
    if large:
        words += (
            f" {len(order) - len(shown)} of {len(order)} classes are left out, between the {MAX_CLASSES - large} "
            f"rarest and the {large} with the most images."
        )
    parts = [heading("Classes", words)]
    for c in shown:
        row = "".join(_image(made, i, title(i)) for i in chosen[c])
        width = 100 * data.class_counts[c] / max(data.class_counts)
        numbers = ", ".join(f"{column[c]} {name}" for name, column in counts.items())
        parts.append(
            f'<div class="class"><div><b>{_text(data.class_names[c])}</b><br><span>{numbers}</span>'
            f'<div class="bar" style="width: {width:.1f}%"></div></div><div class="row">{row}</div></div>'
        )
    parts += _of_files(files) if files is not None else []
    if facts:
        parts.append(table("Image files", "All splits together.", ["", "share of the images"], facts))
    return document("Images", finding, "\n".join(parts), STYLE)


def _of_files(files: ImageFiles) -> list[str]:
    """Return the sections on files that show the same or cannot be read."""
    near = [pair for pairs in files.near_duplicates.values() for pair in pairs]
    sections: list[tuple[str, str, list[list[int]]]] = [
        ("Duplicates", "Files with the same pixels: first those in train and another split.", files.duplicates),
        ("Near-duplicates", "A training image, and one of another split that looks like it.", list(map(list, near))),
    ]
    parts = []
    for title, words, groups in sections:
        if not groups:
            continue
        left_out = f" The first {MAX_GROUPS} of {len(groups)} are shown." if len(groups) > MAX_GROUPS else ""
        listed = [group[:4] for group in groups[:MAX_GROUPS]]
        made = _thumbnails(_reader(files), [i for group in listed for i in group])
        figure = "<figure>{}<figcaption><b>{}</b>, {}<br>{}</figcaption></figure>"
        parts += [heading(title, words + left_out), '<div class="pairs">']
        for group in listed:
            about = [(i, files.paths[i], _text(files.classes(i)), files.splits[i]) for i in group]
            row = [figure.format(_image(made, i, path), names, split, _text(path)) for i, path, names, split in about]
            parts.append(f'<div class="row">{"".join(row)}</div>')
        parts.append("</div>")
    broken = {**dict.fromkeys(files.missing.tolist(), "there is no such file"), **files.unreadable}
    if broken:
        words = f"The first {MAX_NAMED} of {len(broken)} are listed." if len(broken) > MAX_NAMED else ""
        rows = [
            [printable(files.paths[i]), str(files.splits[i]), printable(files.classes(i)), printable(why)]
            for i, why in list(broken.items())[:MAX_NAMED]
        ]
        parts.insert(0, table("Files that cannot be read", words, ["file", "split", "class", "why"], rows))
    return parts


def _sample(positions: Indices) -> list[int]:
    """Return some of the positions, always the same."""
    chosen = np.random.default_rng(0).permutation(len(positions))[:A_CLASS]
    return [int(i) for i in positions[np.sort(chosen)]]


def _reader(files: ImageFiles) -> Callable[[int], Image.Image]:
    channels = files.source.view.channels
    return lambda i: read_whole(files.file(i), channels, least=THUMBNAIL)[0]


def _thumbnails(picture: Callable[[int], Image.Image], positions: Sequence[int]) -> dict[int, str]:
    """Return an image element without its end for each position."""
    made: dict[int, str] = {}

    def make(k: int) -> None:
        image = picture(positions[k])
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        tiny = ' class="tiny"' if max(image.size) <= SIDE else ""
        made[positions[k]] = f'{tiny} src="{data_uri(image, "jpeg")}"'

    call_with_each(make, len(positions), "Making thumbnails")
    return made


def _image(made: Mapping[int, str], i: int, title: str) -> str:
    return f'<img{made.get(i, "")} loading="lazy" alt="" title="{_text(title)}">'


def _text(text: str) -> str:
    return html.escape(printable(text))
