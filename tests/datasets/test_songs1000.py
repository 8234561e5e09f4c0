"""1000 Songs: static and continuous labels, and the official split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mer_batch.datasets import check_split, load_dataset
from mer_batch.errors import ConfigError, DatasetError
from tests.datasets.releases import PlantedClip, write_csv, write_songs1000

SONGS = [PlantedClip(v, a, f"artist {v}") for v, a in [(-0.5, 0.2), (0.1, -0.7), (0.6, 0.4)]]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "songs1000"
    write_songs1000(folder, SONGS)
    write_continuous(folder, [[-0.2, 0.0, 0.2]] * 3)
    return folder


def write_continuous(folder: Path, shifts: list[list[float | str]]) -> None:
    for target in ("valence", "arousal"):
        rows = [
            [i, *(s if isinstance(s, str) else s + getattr(song, target) / 2 for s in shift)]
            for i, (song, shift) in enumerate(zip(SONGS, shifts, strict=True), 2)
        ]
        header = "song_id,sample_15000ms,sample_15500ms,sample_16000ms"
        write_csv(folder / "annotations" / f"{target}_cont_average.csv", header, rows)


def test_continuous_labels_are_averaged_over_time(release: Path) -> None:
    dataset = load_dataset("songs1000", release, options={"labels": "continuous"})
    for clip, song in zip(dataset.clips, SONGS, strict=True):
        assert (clip.valence, clip.arousal) == pytest.approx((song.valence / 2, song.arousal / 2))
        assert clip.valence_std is None
    assert dataset.scale == "-1 to 1 (continuous)"


@pytest.mark.parametrize("wrong", [1.5, "", "NaN"])
def test_samples_that_are_no_ratings_are_named(release: Path, wrong: float | str) -> None:
    write_continuous(release, [[wrong, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, wrong]])
    with pytest.raises(DatasetError, match=r"2 faults: .*song_id='2'; .*song_id='4'"):
        load_dataset("songs1000", release, options={"labels": "continuous"})


@pytest.mark.parametrize("name", ["arousal_cont_average.csv", "valence_cont_average.csv"])
def test_a_missing_continuous_file_is_named(release: Path, name: str) -> None:
    (release / "annotations" / name).unlink()
    assert len(load_dataset("songs1000", release).clips) == 3
    with pytest.raises(DatasetError, match=name):
        load_dataset("songs1000", release, options={"labels": "continuous"})


def test_the_official_split_is_taken_and_checked(release: Path) -> None:
    assert [clip.split for clip in load_dataset("songs1000", release).clips] == [
        "train",
        "train",
        "test",
    ]
    infos = release / "annotations" / "songs_info.csv"
    infos.write_text(infos.read_text().replace("evaluation", "holdout"))
    with pytest.raises(DatasetError, match="'holdout' must be one of development, evaluation"):
        load_dataset("songs1000", release)


def test_songs_without_information_are_named(release: Path) -> None:
    infos = release / "annotations" / "songs_info.csv"
    infos.write_text("".join(infos.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(DatasetError, match="2 of 3 are missing: song_id='3', '4'"):
        load_dataset("songs1000", release)


def test_all_files_may_lie_flat(release: Path) -> None:
    for path in (release / "annotations").iterdir():
        path.rename(release / path.name)
    (release / "clips_45seconds").rename(release / "audio")
    assert len(load_dataset("songs1000", release).clips) == 3


def test_another_kind_of_labels_is_refused(release: Path) -> None:
    with pytest.raises(ConfigError, match="labels='dynamic' must be static or continuous"):
        load_dataset("songs1000", release, options={"labels": "dynamic"})


def test_the_real_labels(data_root: Path) -> None:
    folder = data_root / "labels" / "songs1000"
    static, continuous = (
        load_dataset("songs1000", folder, options={"labels": kind}, with_audio=False)
        for kind in ("static", "continuous")
    )
    for dataset in (static, continuous):
        assert Counter(clip.split for clip in dataset.clips) == {"train": 619, "test": 125}
        assert len({clip.group for clip in dataset.clips}) == 411
        assert not any(clip.group != clip.group.strip() for clip in dataset.clips)
        assert len(check_split(dataset.clips)) == 52
    by_id = {clip.track_id: clip for clip in continuous.clips}
    pairs = [(clip, by_id[clip.track_id]) for clip in static.clips]
    for target in ("valence", "arousal"):
        ours, theirs = np.array([[getattr(c, target) for c in pair] for pair in pairs]).T
        assert np.corrcoef(ours, theirs)[0, 1] > 0.94
