"""The same promises, held by every loader in the folder."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mer_batch.datasets import (
    Dataset,
    LabelledClip,
    check_split,
    dataset_names,
    load_dataset,
    noise_ceiling,
    without_repeats,
)
from mer_batch.errors import ConfigError, DatasetError
from mer_batch.schema import TARGETS
from tests.datasets.releases import OPTIONAL, WRITERS, PlantedClip

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
    assert dataset.scale
    assert dataset.source.startswith("https://") or name == "table"


@every_loader
def test_any_missing_file_is_named(name: str, release: Path) -> None:
    for path in [path for path in release.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        path.unlink()
        if path.name in OPTIONAL:
            assert len(load_dataset(name, release).clips) == len(PLANTED)
        else:
            with pytest.raises(DatasetError, match=path.name):
                load_dataset(name, release)
        path.write_bytes(content)


@every_loader
def test_a_missing_column_is_named(name: str, release: Path) -> None:
    for path in release.rglob("*.csv"):
        if path.name in OPTIONAL:
            continue
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


@every_loader
def test_all_ratings_off_the_scale_are_counted(name: str, tmp_path: Path) -> None:
    # Enough clips that every file of a release in several has some.
    wrong = [PlantedClip(9.0, -9.0, f"group {number}") for number in range(12)]
    WRITERS[name](tmp_path / name, [*PLANTED, *wrong])
    with pytest.raises(DatasetError, match=r"\d faults: .* and \d+ more; correct or remove"):
        load_dataset(name, tmp_path / name)


@every_loader
def test_a_constant_target_is_refused(name: str, tmp_path: Path) -> None:
    same = [PlantedClip(clip.valence, 0.5, clip.group) for clip in PLANTED]
    WRITERS[name](tmp_path / name, same)
    with pytest.raises(DatasetError, match=r"arousal must vary, but it is 0\.5 .* all 3 clips"):
        load_dataset(name, tmp_path / name)


@every_loader
def test_labels_without_audio_are_counted_and_named(name: str, release: Path) -> None:
    first, second, third = [clip.audio_path for clip in load_dataset(name, release).clips]
    first.unlink()
    third.unlink()
    with pytest.raises(DatasetError) as caught:
        load_dataset(name, release)
    assert "2 of 3 audio files are missing" in str(caught.value)
    assert first.name in str(caught.value) and third.name in str(caught.value)
    assert second.name not in str(caught.value)
    assert len(load_dataset(name, release, with_audio=False).clips) == len(PLANTED)


@every_loader
def test_audio_without_labels_is_a_note(name: str, release: Path) -> None:
    dataset = load_dataset(name, release)
    (dataset.clips[0].audio_path.parent / "unrated.mp3").touch()
    (added,) = set(load_dataset(name, release).notes) - set(dataset.notes)
    assert added == "1 audio without labels: unrated.mp3"


@every_loader
def test_audio_that_is_named_otherwise_is_told_from_none(name: str, release: Path) -> None:
    for clip in load_dataset(name, release).clips:
        clip.audio_path.rename(clip.audio_path.with_stem(f"x{clip.audio_path.stem}"))
    with pytest.raises(DatasetError, match=r"3 of 3 audio files .* 3 audio without labels: x"):
        load_dataset(name, release)


@every_loader
def test_an_unknown_option_is_answered_with_those_there_are(name: str, release: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be one of|the loader has none"):
        load_dataset(name, release, options={"no_such_option": 1})


def test_options_are_named_when_one_is_misspelt(tmp_path: Path) -> None:
    WRITERS["songs1000"](tmp_path / "songs", PLANTED)
    with pytest.raises(ConfigError, match=r"data set 'mine'.* did you mean 'labels'"):
        load_dataset("mine", tmp_path / "songs", loader="songs1000", options={"label": "static"})


def test_a_data_set_may_be_called_otherwise_than_its_loader(tmp_path: Path) -> None:
    WRITERS["deezer"](tmp_path / "songs", PLANTED)
    dataset = load_dataset("mine", tmp_path / "songs", loader="deezer")
    assert dataset.name == "mine"
    assert dataset.source == "https://github.com/deezer/deezer_mood_detection_dataset"
    with pytest.raises(ConfigError, match=r"loader='deeze'.* did you mean 'deezer'"):
        load_dataset("mine", tmp_path / "songs", loader="deeze")


def test_track_ids_that_stand_twice_are_refused(tmp_path: Path) -> None:
    WRITERS["deezer"](tmp_path / "deezer", PLANTED)
    train = (tmp_path / "deezer" / "train.csv").read_text().splitlines()
    with (tmp_path / "deezer" / "test.csv").open("a") as file:
        file.write(train[-1] + "\n")
    with pytest.raises(DatasetError, match="1 stand in more than one row: '7001'"):
        load_dataset("deezer", tmp_path / "deezer")


def test_an_empty_release_is_refused(tmp_path: Path) -> None:
    WRITERS["musifeast17"](tmp_path / "musifeast17", [])
    with pytest.raises(DatasetError, match="must hold at least one clip"):
        load_dataset("musifeast17", tmp_path / "musifeast17")


def clip(track_id: str, **values: object) -> LabelledClip:
    defaults = {"valence": 0.0, "arousal": 0.0, "group": "one"}
    audio = values.pop("audio_path", Path(f"{next(_FILES)}.mp3"))
    return LabelledClip(track_id, audio, **defaults | values)  # type: ignore[arg-type]


_FILES = itertools.count()


def dataset_of(name: str, clips: list[LabelledClip]) -> Dataset:
    return Dataset(name, clips, "", "", "", "", "artist")


def test_groups_on_two_sides_of_the_official_split_are_found() -> None:
    clips = [
        clip("1", group="both", split="train"),
        clip("2", group="both", split="test"),
        clip("3", group="one side", split="train"),
        clip("4", group="one side", split="train"),
        clip("5", group="also both", split="validation"),
        clip("6", group="also both", split="train"),
        clip("7", group="one side"),
    ]
    assert check_split(clips) == ["also both", "both"]


def test_one_file_in_two_sets_is_one_recording() -> None:
    first = dataset_of("first", [clip("1", audio_path=Path("a.mp3")), clip("2")])
    second = dataset_of("second", [clip("x", audio_path=Path("b/../a.mp3")), clip("y")])
    kept, notes = without_repeats([first, second])
    assert [c.track_id for c in kept[1].clips] == ["y"]
    assert notes == ["second: 1 of 2 clips are left out, as first holds them: x"]


def test_recordings_of_an_earlier_set_are_left_out_of_the_later() -> None:
    first = dataset_of("first", [clip("1", recording_id="x/1"), clip("2", recording_id="x/2")])
    second = dataset_of("second", [clip("2", recording_id="x/2"), clip("3"), clip("4")])
    third = dataset_of("third", [clip("b", recording_id="x/1")])
    kept, notes = without_repeats([first, second, third])
    assert [[c.track_id for c in d.clips] for d in kept] == [["1", "2"], ["3", "4"]]
    assert [d.name for d in kept] == ["first", "second"]
    assert notes == [
        "second: 1 of 3 clips are left out, as first holds them: 2",
        "third: 1 of 1 clips are left out, as first holds them: b",
    ]
    # Clips of one name, but neither of one recording nor one file, are not taken for one another.
    assert without_repeats([second, dataset_of("other", [clip("3"), clip("4")])])[1] == []


def test_the_noise_ceiling_is_what_a_model_that_knows_the_truth_reaches() -> None:
    # Truth and raters are drawn; the squared correlation of truth and mean rating is the oracle.
    rng = np.random.default_rng(5)
    n_clips, n_raters = 4000, 6
    truths, clips = {}, []
    stds, means = {}, {}
    for target, noise in (("valence", 0.6), ("arousal", 0.2)):
        truths[target] = rng.normal(0, 0.3, n_clips)
        ratings = truths[target][:, None] + rng.normal(0, noise, (n_clips, n_raters))
        means[target], stds[target] = ratings.mean(axis=1), ratings.std(axis=1, ddof=1)
    clips = [
        clip(
            str(i),
            valence=means["valence"][i],
            arousal=means["arousal"][i],
            valence_std=stds["valence"][i],
            arousal_std=stds["arousal"][i],
            n_raters=n_raters,
        )
        for i in range(n_clips)
    ]
    expected = [np.corrcoef(truths[t], means[t])[0, 1] ** 2 for t in TARGETS]
    assert noise_ceiling(dataset_of("drawn", clips)) == pytest.approx(expected, abs=0.02)
    assert expected[0] < 0.7 < 0.9 < expected[1]


def test_the_noise_ceiling_is_unknown_without_spread_or_raters(tmp_path: Path) -> None:
    known = [
        clip(str(i), valence=i / 4, arousal=-i / 4, valence_std=0.1, arousal_std=0.1, n_raters=4)
        for i in range(4)
    ]
    assert noise_ceiling(dataset_of("known", known)) is not None
    assert dataset_of("known", known).n_raters == 4
    for change in ({"n_raters": None}, {"valence_std": None}):
        partly = [*known[:-1], replace(known[-1], **change)]
        assert noise_ceiling(dataset_of("partly", partly)) is None
    assert dataset_of("partly", [*known, clip("x")]).n_raters is None
    WRITERS["soundtracks"](tmp_path / "soundtracks", PLANTED)
    assert noise_ceiling(load_dataset("soundtracks", tmp_path / "soundtracks")) == (0.77, 0.82)


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
