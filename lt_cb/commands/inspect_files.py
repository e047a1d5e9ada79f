"""Report on image files: sizes and formats, unreadable files, duplicates and near-duplicates."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from lt_cb.data.sources.checks import ImageFiles
from lt_cb.text import printable

MAX_LISTED = 5  # images or groups in a sentence
MOST = 4  # sizes, modes or formats, in a cell


def share(number: int, total: int) -> str:
    """Return a number as a share in percent."""
    return f"{100 * number / max(total, 1):.1f} %"


def shares(counts: Iterable[tuple[str, int]], counted: bool = False) -> str:
    """Return names with their shares, and with their numbers if asked for; the first of them."""
    known = list(counts)
    total = sum(n for _, n in known)
    listed = [f"{name} {n} ({share(n, total)})" if counted else f"{name} ({share(n, total)})" for name, n in known]
    return ", ".join(listed[:MOST]) + (f" and {len(known) - MOST} more" if len(known) > MOST else "")


def facts(files: ImageFiles, side: int) -> list[tuple[str, str]]:
    """Return names and values of what the readable files are; ``side`` is the size they are scaled to."""
    rows = files.rows[files.readable]
    if not len(rows):
        return []
    sizes, numbers = np.unique(np.stack([rows["width"], rows["height"]], 1), axis=0, return_counts=True)
    names = [f"{width} x {height}" for width, height in sizes.tolist()]
    area = sizes.astype(np.int64).prod(1)
    small = int((np.minimum(rows["width"], rows["height"]) < side).sum())
    splits = ((split, int((files.splits == split).sum())) for split in files.source.splits)
    found = [
        ("splits", shares(splits, counted=True)),
        ("sizes", shares(Counter(dict(zip(names, numbers.tolist(), strict=True))).most_common())),
    ]
    if len(names) > 1:
        found += [("smallest", names[area.argmin()]), ("largest", names[area.argmax()])]
    for name, column in (("modes", "mode"), ("formats", "format")):
        found.append((name, shares(Counter(text.decode() for text in rows[column].tolist()).most_common())))
    groups = {split: files.source.groups(split) for split in files.source.splits}
    numbered = [(split, len(np.unique(ids))) for split, ids in groups.items() if ids is not None]
    if numbered:
        found.insert(1, ("groups", shares(numbered, counted=True)))
    return [*found, (f"below {side} pixels, enlarged", share(small, len(rows)))]


def findings(files: ImageFiles) -> list[tuple[str, str]]:
    """Return the problems of the files, the worst first: a number, and examples or an empty text."""
    found = []
    if len(files.missing):
        found.append((f"missing files: {len(files.missing)}", _listed(map(files.name, files.missing.tolist()))))
    if files.unreadable:
        reasons = (f"{files.name(i)}: {why}" for i, why in files.unreadable.items())
        found.append((f"unreadable files: {len(files.unreadable)}", _listed(reasons)))
    groups = files.duplicates
    for what, some in (
        ("duplicates between train and other splits", [group for group in groups if files.across(group)]),
        ("duplicates with different labels", [group for group in groups if files.differ(group)]),
        ("other duplicates", [group for group in groups if not files.across(group) and not files.differ(group)]),
    ):
        if some:
            found.append((f"{what}: {len(some)}", _groups(files, some, " = ")))
    for split, pairs in files.near_duplicates.items():
        if pairs:
            unlike = sum(map(files.differ, pairs))
            numbers = f"{len(pairs)} pair{'s' * (len(pairs) > 1)}, {unlike} with different labels"
            found.append((f"near-duplicates between train and {split}: {numbers}", _groups(files, pairs, " and ")))
    if not groups and not any(files.near_duplicates.values()):
        found.append(("duplicates, and near-duplicates between train and other splits: none", ""))
    return [(what, printable(examples)) for what, examples in found]


def _groups(files: ImageFiles, groups: Sequence[Sequence[int]], sign: str) -> str:
    """Return the images of some groups."""
    return "such as " + _listed(sign.join(map(files.name, group[:3])) for group in groups)


def _listed(texts: Iterable[str]) -> str:
    """Return the first of some texts."""
    known = list(texts)
    more = f"; and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    return "; ".join(known[:MAX_LISTED]) + more
