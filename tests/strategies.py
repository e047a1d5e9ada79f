"""Test inputs shared by several files."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

COUNTS = [500, 60, 7, 1, 0]  # a long tail, with a class without images


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Class counts, logits of shape (B, C) from small to extreme, and class indices of shape (B,)."""
    counts = draw(st.lists(st.integers(0, 10**6), min_size=2, max_size=12))
    batch = draw(st.integers(1, 6))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0, 30.0, 100.0, 1e4]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return counts, rng.uniform(-scale, scale, (batch, len(counts))), rng.integers(0, len(counts), batch)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each node of nested dicts and lists with each of its keys, so that a test can replace the value."""
    for key, child in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(child, dict | list):
            yield from places(child)
