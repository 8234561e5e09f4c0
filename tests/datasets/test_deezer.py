"""Deezer's mood set: its split, and what it holds."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from mer_batch.datasets import check_split, load_dataset


def test_the_real_labels(data_root: Path) -> None:
    folder = data_root / "labels" / "deezer"
    dataset = load_dataset("deezer", folder, with_audio=False)
    assert Counter(clip.split for clip in dataset.clips) == {
        "train": 11267,
        "validation": 3863,
        "test": 3514,
    }
    assert len({(clip.valence, clip.arousal) for clip in dataset.clips}) == 2720
    artists = {
        split: {clip.group for clip in dataset.clips if clip.split == split}
        for split in ("train", "validation", "test")
    }
    assert len(artists["train"] & artists["test"]) == 8
    assert artists["train"] & artists["test"] <= set(check_split(dataset.clips))
    # The map is reversible: three times a label is the release's number.
    row = next(csv.DictReader((folder / "train.csv").open()))
    clip = next(clip for clip in dataset.clips if clip.track_id == row["dzr_sng_id"])
    assert 3 * clip.valence == pytest.approx(float(row["valence"]))
    assert 3 * clip.arousal == pytest.approx(float(row["arousal"]))
