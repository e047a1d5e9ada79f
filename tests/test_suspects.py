"""Suspects and their gallery: order by the balanced posterior, names, thumbnails, and wrong labels that are found."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lt_cb.data import LongTailedDataModule
from lt_cb.heads.answers import write_suspects
from lt_cb.heads.folds import held_out_logits, repeated_folds
from lt_cb.heads.gallery import MAX_SUSPECTS, suspect_gallery
from lt_cb.heads.recipes import SOFTMAX, Candidate
from lt_cb.heads.solve import Basis
from lt_cb.heads.suspects import Suspect, mean_by_image, suspect_table, suspects
from lt_cb.losses import SoftmaxLoss
from lt_cb.losses.prior import balanced_posterior
from lt_cb.metrics import auroc
from lt_cb.runs.folder import RunDir


def test_the_least_probable_labels_come_first() -> None:
    posterior = torch.tensor([[0.1, 0.9], [0.7, 0.3], [0.4, 0.6], [0.2, 0.8]], dtype=torch.float64)
    targets, rows = torch.tensor([0, 0, 0, 1]), torch.tensor([2, 3, 5, 8])
    assert suspects(posterior, targets, rows) == [Suspect(2, 0, 0.1, 1, 0.9), Suspect(5, 0, 0.4, 1, 0.6)]


def test_repeats_are_averaged_by_image() -> None:
    posterior = torch.tensor([[0.2, 0.8], [1.0, 0.0], [0.4, 0.6]])
    mean, rows = mean_by_image(posterior, torch.tensor([7, 3, 7]))
    assert rows.tolist() == [3, 7]
    torch.testing.assert_close(mean, torch.tensor([[1.0, 0.0], [0.3, 0.7]]))


def test_names_that_spreadsheets_would_run_are_quoted() -> None:
    header, row = suspect_table([Suspect(0, 1, 0.25, 0, 0.75)], ["=1.png"], ["+a", "b"])
    assert header == ["file", "class", "probability", "likely_class", "likely_probability"]
    assert row == ["'=1.png", "b", "0.25", "'+a", "0.75"]


def test_flipped_labels_are_found_and_rare_classes_are_spared() -> None:
    """Three Gaussians with a long tail: the plain posterior suspects clean images of the rarest class."""
    counts, rng = [600, 150, 12], np.random.default_rng(0)
    true = np.repeat([0, 1, 2], counts)
    features = rng.normal(size=(len(true), 6)) + 3.2 * np.eye(6)[true]
    flipped = rng.random(len(true)) < 0.1
    labels = torch.from_numpy(np.where(flipped, (true + rng.integers(1, 3, len(true))) % 3, true))
    x = torch.from_numpy(features).float()
    data = Basis.fit(x).project(x, labels, 3)
    logits, _, rows = held_out_logits(data, repeated_folds(labels, 3, 5, 0), Candidate(SOFTMAX, 0.1), [0.1])
    loss = SoftmaxLoss(data.class_counts)
    worst, area = {}, {}
    for name, posterior in (("balanced", balanced_posterior(loss, logits)), ("plain", logits.softmax(1))):
        mean, images = mean_by_image(posterior, rows)
        assert images.tolist() == list(range(len(true)))
        own = mean.gather(1, labels[:, None])[:, 0]
        area[name] = float(auroc(-own[:, None], torch.from_numpy(flipped).long()[:, None]))
        tenth = set(own.argsort()[: len(own) // 10].tolist())
        worst[name] = np.mean([i in tenth for i in np.flatnonzero((true == 2) & ~flipped)])
    assert area["balanced"] > 0.93
    assert worst["balanced"] <= 0.2 < worst["plain"]


def test_suspects_have_their_files_and_thumbnails(tmp_path: Path) -> None:
    for label in range(2):
        for split, count in (("train", 3), ("test", 1)):
            folder = tmp_path / "photos" / split / "ab"[label]
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (30, 20), (200 * label, 80 * i, 0)).save(folder / f"{i}.png")
    data = LongTailedDataModule("image_folder", str(tmp_path / "photos"), image_size=8)
    data.targets("train")
    found = [Suspect(5, 1, 0.1, 0, 0.9), Suspect(1, 0, 0.2, 1, 0.8)]
    write_suspects(RunDir(tmp_path), found, data)
    lines = (tmp_path / "suspects.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [
        str(tmp_path / "photos/train/b/2.png"),
        str(tmp_path / "photos/train/a/1.png"),
    ]
    html = suspect_gallery(found, data)
    assert "b, or a?" in html
    assert "2 held-out training images" in html
    uris = re.findall('base64,([^"]*)', html)
    colours = [Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB").getpixel((48, 48)) for uri in uris]
    assert np.abs(np.array(colours) - [(200, 160, 0), (0, 80, 0)]).max() < 12


def test_a_data_set_without_files_has_positions_and_thumbnails(tmp_path: Path) -> None:
    data = LongTailedDataModule("digits", imbalance_factor=10)
    data.targets("train")
    found = [Suspect(row, 0, 0.1, 1, 0.9) for row in range(30)]
    write_suspects(RunDir(tmp_path), found, data)
    rows = (tmp_path / "suspects.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == data.rows["train"][:30].tolist()
    assert suspect_gallery(found, data).count("<img") == MAX_SUSPECTS
    assert suspect_gallery([], data) == ""
