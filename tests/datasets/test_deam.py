"""DEAM: valence and arousal end up where they belong, whichever way the file has them."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from mer_batch.datasets import Dataset, load_dataset, without_repeats
from mer_batch.errors import ConfigError, DatasetError
from tests.datasets.releases import PlantedClip, write_csv, write_deam

SONGS = [PlantedClip(v, a, f"artist {v}") for v, a in [(-0.5, 0.2), (0.1, -0.7), (0.6, 0.4)]]
AVERAGED = "annotations/annotations averaged per song"
STATIC = f"{AVERAGED}/song_level/static_annotations_averaged_songs_1_2000.csv"
LATER = f"{AVERAGED}/song_level/static_annotations_averaged_songs_2000_2058.csv"
HEADER = "song_id, valence_mean, valence_std, arousal_mean, arousal_std"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    write_deam(tmp_path / "deam", SONGS)
    return tmp_path / "deam"


def write_per_second(folder: Path) -> None:
    """What listeners said over time: the truth, with noise that a mean removes, and empty ends."""
    below = folder / AVERAGED / "dynamic (per second annotations)"
    for target in ("valence", "arousal"):
        rows = [
            [number, *(getattr(song, target) + shift for shift in (-0.2, 0.0, 0.2)), ""]
            for number, song in enumerate(SONGS, 2)
        ]
        times = ",".join(f"sample_{ms}ms" for ms in (15000, 15500, 16000, 16500))
        write_csv(below / f"{target}.csv", f"song_id,{times}", rows)


def put_right(folder: Path) -> None:
    rows = list(csv.reader((folder / STATIC).open(encoding="utf-8-sig")))[1:]
    write_csv(folder / STATIC, HEADER, [[i, a, a_std, v, v_std] for i, v, v_std, a, a_std in rows])


def labels(dataset: Dataset) -> list[tuple[float, float]]:
    return [(clip.valence, clip.arousal) for clip in dataset.clips]


TRUE = [pytest.approx((song.valence, song.arousal)) for song in SONGS]
SWAPPED = [pytest.approx((song.arousal, song.valence)) for song in SONGS]


def test_the_release_is_swapped_back_on_the_evidence(release: Path) -> None:
    write_per_second(release)
    dataset = load_dataset("deam", release)
    assert labels(dataset) == TRUE
    assert "3 songs up to 1000 are swapped back" in dataset.notes[0]
    assert "1.00 and 1.00 crossed" in dataset.notes[0]


def test_a_file_that_is_right_is_left_as_it_is(release: Path) -> None:
    put_right(release)
    write_per_second(release)
    dataset = load_dataset("deam", release)
    assert labels(dataset) == TRUE
    assert "left as they are" in dataset.notes[0]


def test_without_evidence_the_file_is_taken_for_the_release(release: Path) -> None:
    assert labels(load_dataset("deam", release)) == TRUE
    put_right(release)
    assert labels(load_dataset("deam", release)) == SWAPPED
    assert labels(load_dataset("deam", release, options={"swapped": False})) == TRUE
    with pytest.raises(ConfigError, match="swapped='perhaps' must be true, false or null"):
        load_dataset("deam", release, options={"swapped": "perhaps"})


def test_later_songs_are_right_and_have_five_raters(release: Path) -> None:
    header = "song_id, valence_mean, valence_std, valence_ max_mean, arousal_mean, arousal_std"
    write_csv(release / LATER, header, [[2001, 9, 1, 9, 5, 2]])
    (release / "MEMD_audio" / "2001.mp3").touch()
    whole_song = load_dataset("deam", release).clips[-1]
    assert (whole_song.valence, whole_song.arousal) == (1, 0)
    # Spreads on half a scale of 8, from five raters, n in the denominator.
    assert whole_song.arousal_std == pytest.approx(0.5 * math.sqrt(5 / 4))
    assert (whole_song.n_raters, whole_song.split) == (5, "test")


def test_either_song_level_file_is_enough_and_one_is_needed(release: Path) -> None:
    (release / STATIC).rename(release / Path(LATER).name)
    assert len(load_dataset("deam", release).clips) == 3
    (release / Path(LATER).name).unlink()
    with pytest.raises(DatasetError, match=r"songs_1_2000\.csv.* is missing, .*2000_2058\.csv"):
        load_dataset("deam", release)


def test_artists_come_from_metadata_with_any_number_of_cells(release: Path) -> None:
    write_csv(
        release / "metadata" / "metadata_2014.csv",
        "Id,Artist,Album,Track,Genre",
        [[4, "Someone else\t", "Album", "Track", "Rock", "a tag", "another tag"]],
    )
    (release / "metadata" / "metadata_2013.csv").unlink()
    dataset = load_dataset("deam", release)
    assert [clip.group for clip in dataset.clips] == ["track 2", "track 3", "Someone else"]
    assert dataset.notes[-1].startswith("2 of 3 clips have no artist")


def test_ids_that_are_no_numbers_are_refused(release: Path) -> None:
    write_csv(release / STATIC, HEADER, [["two", 1, 1, 1, 1], ["3x", 2, 1, 2, 1]])
    with pytest.raises(DatasetError, match=r"2 faults: song_id='two' .*; song_id='3x'"):
        load_dataset("deam", release)


# --- On the real label files


@pytest.fixture(scope="module")
def deam(data_root: Path) -> Dataset:
    return load_dataset("deam", data_root / "labels" / "deam", with_audio=False)


@pytest.fixture(scope="module")
def songs1000(data_root: Path) -> Dataset:
    return load_dataset("songs1000", data_root / "labels" / "songs1000", with_audio=False)


def real_per_second(data_root: Path) -> dict[str, np.ndarray]:
    """Valence and arousal of each song, averaged over time, read by other means."""
    samples = defaultdict(list)
    path = data_root / "labels" / "deam" / "dynamic_annotations_long.csv"
    for song, _, arousal, valence in list(csv.reader(path.open()))[1:]:
        samples[song].append((float(valence), float(arousal)))
    return {song: np.mean(points, axis=0) for song, points in samples.items()}


def correlations(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """2 x 2: rows are valence and arousal of `points`, columns of `others`."""
    return np.corrcoef(points.T, others.T)[:2, 2:]


def test_the_swap_is_proven_by_the_per_second_labels(data_root: Path, deam: Dataset) -> None:
    over_time = real_per_second(data_root)
    for first, last, n_songs, least in ((1, 1000, 744, 0.94), (1001, 2000, 1000, 0.90)):
        clips = [clip for clip in deam.clips if first <= int(clip.track_id) <= last]
        assert len(clips) == n_songs
        ours = np.array([(clip.valence, clip.arousal) for clip in clips])
        found = correlations(ours, np.array([over_time[clip.track_id] for clip in clips]))
        assert found.diagonal().min() > least
        assert found[0, 1] < 0.65 and found[1, 0] < 0.65
    assert any("744 songs up to 1000 are swapped back" in note for note in deam.notes)


def test_the_file_as_released_is_swapped(data_root: Path) -> None:
    folder = data_root / "labels" / "deam"
    raw = load_dataset("deam", folder, options={"swapped": False}, with_audio=False)
    over_time = real_per_second(data_root)
    clips = [clip for clip in raw.clips if int(clip.track_id) <= 1000]
    ours = np.array([(clip.valence, clip.arousal) for clip in clips])
    found = correlations(ours, np.array([over_time[clip.track_id] for clip in clips]))
    assert found.diagonal().max() < 0.6
    assert min(found[0, 1], found[1, 0]) > 0.94


def test_deam_and_1000_songs_hold_the_same_ratings(deam: Dataset, songs1000: Dataset) -> None:
    by_id = {clip.recording_id: clip for clip in deam.clips}
    pairs = [(by_id[clip.recording_id], clip) for clip in songs1000.clips]
    for name in ("valence", "arousal", "valence_std", "arousal_std"):
        ours, theirs = np.array([[getattr(c, name) for c in pair] for pair in pairs]).T
        # DEAM is rounded, and a few songs have lost a rater.
        assert np.median(np.abs(ours - theirs)) < 0.003
        assert np.corrcoef(ours, theirs)[0, 1] > 0.99


def test_every_song_of_the_1000_is_left_out_beside_deam(deam: Dataset, songs1000: Dataset) -> None:
    kept, (note,) = without_repeats([deam, songs1000])
    assert [dataset.name for dataset in kept] == ["deam"]
    assert note.startswith("songs1000: 744 of 744 clips are left out")
    kept, (note,) = without_repeats([songs1000, deam])
    assert [len(dataset.clips) for dataset in kept] == [744, 1000]
    assert note.startswith("deam: 744 of 1,744 clips are left out")
