"""The same promises, held by every loader in the folder."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mer_batch.datasets import dataset_names, load_dataset
from mer_batch.errors import ConfigError, DatasetError
from mer_batch.schema import TARGETS
from tests.datasets.releases import WRITERS, PlantedClip

PLANTED = [
    PlantedClip(-1.0, 1.0, "one"),
    PlantedClip(0.0, 0.5, "two, with a comma"),
    PlantedClip(0.25, -1.0, "two, with a comma"),
]

every_loader = pytest.mark.parametrize("name", dataset_names())


@pytest.fixture
def release(name: str, tmp_path: Path) -> Path:
    WRITERS[name](tmp_path / name, PLANTED)
    return tmp_path / name


@every_loader
def test_labels_arrive_on_one_scale(name: str, release: Path) -> None:
    clips = load_dataset(name, release).clips
    for target in TARGETS:
        planted = [getattr(clip, target) for clip in PLANTED]
        assert [getattr(clip, target) for clip in clips] == pytest.approx(planted)
    assert [clip.group for clip in clips] == [clip.group for clip in PLANTED]


@every_loader
def test_spread_between_raters_is_on_the_same_scale_or_unknown(name: str, release: Path) -> None:
    for clip in load_dataset(name, release).clips:
        for spread in (clip.valence_std, clip.arousal_std):
            assert spread is None or spread == pytest.approx(0.25)  # 0.5 of a scale 4 wide


@every_loader
def test_clips_are_told_apart_and_have_audio(name: str, release: Path) -> None:
    clips = load_dataset(name, release).clips
    assert len({clip.track_id for clip in clips}) == len(PLANTED)
    assert len({clip.audio_path for clip in clips}) == len(PLANTED)
    assert all(clip.audio_path.is_file() for clip in clips)


@every_loader
def test_says_where_it_comes_from(name: str, release: Path) -> None:
    dataset = load_dataset(name, release)
    words = [dataset.music, dataset.licence, dataset.citation, dataset.source, dataset.grouped_by]
    assert all(words)
    assert dataset.source.startswith("https://")


@every_loader
def test_any_missing_file_is_named(name: str, release: Path) -> None:
    for path in [path for path in release.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(DatasetError, match=path.name):
            load_dataset(name, release)
        path.write_bytes(content)


@every_loader
def test_a_missing_column_is_named(name: str, release: Path) -> None:
    for path in release.glob("*.csv"):
        content = path.read_bytes()
        path.write_text("something,else\n1,2\n")
        with pytest.raises(DatasetError, match=rf"{path.name}.* must have the columns"):
            load_dataset(name, release)
        path.write_bytes(content)


@every_loader
def test_a_rating_off_its_scale_is_refused(name: str, tmp_path: Path) -> None:
    for wrong in (3.0, math.nan):
        folder = tmp_path / str(wrong)
        WRITERS[name](folder, [*PLANTED, PlantedClip(0.0, wrong, "three")])
        with pytest.raises(DatasetError, match="must be a number from"):
            load_dataset(name, folder)


def test_a_rated_clip_without_an_album_is_refused(tmp_path: Path) -> None:
    WRITERS["soundtracks"](tmp_path / "soundtracks", PLANTED)
    tracks = tmp_path / "soundtracks" / "set1_tracklist.csv"
    tracks.write_text("".join(tracks.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(DatasetError, match="Nro='003'"):
        load_dataset("soundtracks", tmp_path / "soundtracks")


def test_an_unknown_name_is_answered_with_the_closest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'soundtracks'"):
        load_dataset("soundtrack", tmp_path)


@pytest.mark.parametrize(
    ("name", "n_clips", "n_groups"), [("soundtracks", 360, 46), ("musifeast17", 237, 232)]
)
def test_the_real_release(name: str, n_clips: int, n_groups: int, data_root: Path) -> None:
    clips = load_dataset(name, data_root / name).clips
    assert len({clip.track_id for clip in clips}) == n_clips
    assert len({clip.group for clip in clips}) == n_groups
    for values in ([clip.valence for clip in clips], [clip.arousal for clip in clips]):
        assert -1 <= min(values) < -0.3
        assert 0.7 < max(values) <= 1
