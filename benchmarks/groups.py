"""Scores on held-out images with near-copies of them in training, and scores on new images, with and without groups.

    python benchmarks/groups.py  # a minute

Digits are cut to a long tail of 178. Each is copied five times with small shifts and noise: these copies are a group.
`draw_test` holds out 20 % of them, and 1,000 other digits are new images.
"""

import numpy as np
from scipy.ndimage import shift
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from lt_cb.data.sources.listing import Listing, draw_test

COUNTS = (40, 32, 26, 20, 16, 13, 10, 8, 7, 6)
NUM_COPIES, NUM_NEW, NUM_DRAWS = 5, 1000, 10
Scores = dict[tuple[str, bool], list[tuple[float, float]]]


def measure(draw: int, scores: Scores) -> None:
    """Add the balanced accuracy on held-out and on new images, with and without groups."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(draw)
    order = rng.permutation(len(images))
    new, pool = order[:NUM_NEW], order[NUM_NEW:]

    def photograph(digit: int) -> np.ndarray:
        moved = shift(images[digit].reshape(8, 8) / 16, rng.uniform(-0.5, 0.5, 2), order=1)
        return np.clip(moved + rng.normal(0, 12 / 255, (8, 8)), 0, 1).ravel()

    chosen = [digit for label, count in enumerate(COUNTS) for digit in pool[labels[pool] == label][:count]]
    groups = np.repeat(chosen, NUM_COPIES)
    pixels = np.array([photograph(digit) for digit in groups])
    new_pixels = np.array([photograph(digit) for digit in new])
    paths = np.array([str(row).encode() for row in range(len(groups))])
    for with_groups in (False, True):
        listing = Listing(paths, labels[groups], list("0123456789"), groups if with_groups else None)
        train, test = ([int(path) for path in part.paths] for part in draw_test(listing, 0.2))
        for model in (KNeighborsClassifier(1), LogisticRegression(max_iter=300, C=100)):
            model.fit(pixels[train], labels[groups[train]])
            pairs = ((pixels[test], labels[groups[test]]), (new_pixels, labels[new]))
            held_out, unseen = (balanced_accuracy_score(targets, model.predict(values)) for values, targets in pairs)
            scores.setdefault((type(model).__name__, with_groups), []).append((held_out, unseen))


if __name__ == "__main__":
    scores: Scores = {}
    for draw in range(NUM_DRAWS):
        measure(draw, scores)
    for (model, with_groups), values in scores.items():
        held_out, unseen = 100 * np.mean(values, axis=0)
        print(f"{model}, {'with' if with_groups else 'without'} groups: held out {held_out:.1f}, new {unseen:.1f}")
