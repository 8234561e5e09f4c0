"""PMEmo: the official files, and the copy on another scale."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mer_batch.datasets import load_dataset, noise_ceiling
from mer_batch.errors import DatasetError
from tests.datasets.releases import PlantedClip, write_csv, write_pmemo

SONGS = [PlantedClip(v, a, f"artist {v}") for v, a in [(-0.5, 0.2), (0.1, -0.7), (0.6, 0.4)]]


def test_the_rescaled_copy_is_told_by_its_columns(tmp_path: Path) -> None:
    write_pmemo(tmp_path, SONGS)
    official = load_dataset("pmemo", tmp_path)
    std = math.sqrt(9 / 10) / 8
    rows = [[i, 5 + 4 * s.valence, std, 5 + 4 * s.arousal, std] for i, s in enumerate(SONGS, 1)]
    header = "song_id,valence_mean,valence_std,arousal_mean,arousal_std"
    (tmp_path / "annotations" / "static_annotations_std.csv").unlink()
    write_csv(tmp_path / "annotations" / "static_annotations.csv", header, rows)
    copy = load_dataset("pmemo", tmp_path)
    for ours, theirs in zip(copy.clips, official.clips, strict=True):
        assert (ours.valence, ours.arousal) == pytest.approx((theirs.valence, theirs.arousal))
        assert ours.valence_std == pytest.approx(theirs.valence_std)
        assert ours.arousal_std == pytest.approx(theirs.arousal_std)
    assert (official.scale, copy.scale) == ("0 to 1", "1 to 9")


def test_all_files_may_lie_flat(tmp_path: Path) -> None:
    write_pmemo(tmp_path, SONGS)
    for path in (tmp_path / "annotations").iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / "chorus").rename(tmp_path / "audio")
    assert len(load_dataset("pmemo", tmp_path).clips) == 3


def test_a_song_without_a_spread_is_named(tmp_path: Path) -> None:
    write_pmemo(tmp_path, SONGS)
    path = tmp_path / "annotations" / "static_annotations_std.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DatasetError, match=r"_std\.csv.* 1 of 3 are missing: musicId='3'"):
        load_dataset("pmemo", tmp_path)


def test_a_song_with_two_spreads_is_refused(tmp_path: Path) -> None:
    write_pmemo(tmp_path, SONGS)
    path = tmp_path / "annotations" / "static_annotations_std.csv"
    path.write_text(path.read_text() + "2,0.1,0.1\n")
    with pytest.raises(DatasetError, match="more than once: musicId=2"):
        load_dataset("pmemo", tmp_path)


def test_the_real_labels(data_root: Path) -> None:
    dataset = load_dataset("pmemo", data_root / "labels" / "pmemo", with_audio=False)
    assert len(dataset.clips) == 767
    # Ten raters in steps of an eighth: the first song's mean and spread come from whole numbers.
    first = dataset.clips[0]
    total = 10 * 4 * (first.valence + 1)
    squares = (first.valence_std * 4) ** 2 * 9 + total**2 / 10
    assert total == pytest.approx(round(total), abs=1e-4)
    assert squares == pytest.approx(round(squares), abs=1e-4)
    valence, arousal = noise_ceiling(dataset)
    # Above the best that models have reached (0.547 and 0.794), below 1.
    assert 0.8 < valence < arousal < 0.95
