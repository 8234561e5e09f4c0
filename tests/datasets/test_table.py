"""The generic table: any columns, any scale, CSV or Parquet."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer_batch.datasets import load_dataset, noise_ceiling
from mer_batch.errors import ConfigError, DatasetError
from tests.datasets.releases import PlantedClip, write_csv, write_table

SONGS = [PlantedClip(v, a, f"artist {v}") for v, a in [(-0.5, 0.25), (0.25, -0.75), (0.5, 0.5)]]


@pytest.fixture
def music(tmp_path: Path) -> Path:
    (tmp_path / "music").mkdir()
    for name in ("a.mp3", "b.flac", "c.mp3"):
        (tmp_path / "music" / name).touch()
    return tmp_path


def test_columns_of_any_name_and_scale(music: Path) -> None:
    rows = [["music/a.mp3", "a", 1, 9, 2, "x"], ["music/c.mp3", "c", 5, 7, 4, "y"]]
    write_csv(music / "mine.csv", "file,song,pleasure,energy,doubt,album", rows)
    dataset = load_dataset(
        "mine",
        music / "mine.csv",
        loader="table",
        options={
            "track_id": "song",
            "audio": "file",
            "valence": "pleasure",
            "arousal": "energy",
            "valence_std": "doubt",
            "group": "album",
            "scale": [1, 9],
            "licence": "CC0",
        },
    )
    assert [(c.track_id, c.valence, c.arousal, c.group) for c in dataset.clips] == [
        ("a", -1, 1, "x"),
        ("c", 0, 0.5, "y"),
    ]
    assert [(c.valence_std, c.arousal_std) for c in dataset.clips] == [(0.5, None), (1, None)]
    assert (dataset.scale, dataset.licence, dataset.citation) == ("1 to 9", "CC0", "not stated")


def test_parquet_holds_the_same_as_csv(tmp_path: Path) -> None:
    write_table(tmp_path, SONGS)
    from_csv = load_dataset("table", tmp_path / "labels.csv")
    columns = {
        "track_id": [c.track_id for c in from_csv.clips],
        "audio": [f"audio/{c.audio_path.name}" for c in from_csv.clips],
        "valence": pa.array([s.valence for s in SONGS], pa.float32()),
        "arousal": pa.array([s.arousal for s in SONGS], pa.float32()),
        "group": [s.group for s in SONGS],
        "valence_std": [0.25] * 3,
        "arousal_std": [0.25] * 3,
        "n_raters": [8.0] * 3,
    }
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    assert load_dataset("table", tmp_path / "labels.parquet").clips == from_csv.clips
    assert noise_ceiling(from_csv) is not None


def test_without_audio_and_group_columns_names_and_tracks_stand_in(music: Path) -> None:
    rows = [["a", 0.1, 0.2], ["b", 0.2, 0.3], ["c", 0.3, -0.4]]
    write_csv(music / "labels.csv", "track_id,valence,arousal", rows)
    dataset = load_dataset("table", music, options={"audio_folder": "music"})
    assert [c.audio_path.name for c in dataset.clips] == ["a.mp3", "b.flac", "c.mp3"]
    assert len({c.group for c in dataset.clips}) == 3
    assert dataset.notes == ["all clips have no group, so each of them is a group of its own"]
    assert dataset.grouped_by == "track"


def test_two_files_of_one_name_need_an_audio_column(music: Path) -> None:
    (music / "music" / "a.wav").touch()
    write_csv(music / "labels.csv", "track_id,valence,arousal", [["a", 0.1, 0.2], ["b", 0.2, 0.3]])
    with pytest.raises(DatasetError, match=r"1 tracks in two formats: a\.mp3"):
        load_dataset("table", music, options={"audio_folder": "music"})


def test_a_split_is_read_and_checked(music: Path) -> None:
    header = "track_id,audio,valence,arousal,split"
    rows = [["a", "music/a.mp3", 0.1, 0.2, "train"], ["c", "music/c.mp3", 0.2, 0.3, "test"]]
    write_csv(music / "labels.csv", header, rows)
    assert [c.split for c in load_dataset("table", music).clips] == ["train", "test"]
    write_csv(music / "labels.csv", header, [[*row[:4], "dev"] for row in rows])
    with pytest.raises(DatasetError, match="2 faults: split='dev' must be one of train, valid"):
        load_dataset("table", music)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["", "music/a.mp3", 0.1, 0.2, 3], "track_id must not be empty in the row that begins"),
        (["a", "", 0.1, 0.2, 3], "audio must not be empty in the row that begins with 'a'"),
        (["a", "music/a.mp3", "", 0.2, 3], "valence='' must be a number from -1 to 1"),
        (["a", "music/a.mp3", 0.1, "inf", 3], "arousal='inf' must be a number from -1 to 1"),
        (["a", "music/a.mp3", 0.1, 0.2, "few"], "n_raters='few' must be a whole number"),
        (["a", "music/a.mp3", 0.1, 0.2, 2.5], r"n_raters='2\.5' must be a whole number"),
        (["a", "x" * 300, 0.1, 0.2, 3], "1 of 2 audio files are missing: a"),
    ],
)
def test_a_broken_row_is_named(music: Path, cells: list[object], words: str) -> None:
    rows = [cells, ["c", "music/c.mp3", 0.2, 0.3, 4]]
    write_csv(music / "labels.csv", "track_id,audio,valence,arousal,n_raters", rows)
    with pytest.raises(DatasetError, match=words):
        load_dataset("table", music)


@pytest.mark.parametrize("scale", [[9, 1], [1, 1], "1-9", [1], [0, float("inf")], 5, ["a", "b"]])
def test_a_scale_is_two_numbers(tmp_path: Path, scale: object) -> None:
    write_table(tmp_path, SONGS)
    with pytest.raises(ConfigError, match="must be two numbers, the lower first"):
        load_dataset("table", tmp_path, options={"scale": scale})


def test_columns_that_are_asked_for_must_be_there(tmp_path: Path) -> None:
    write_table(tmp_path, SONGS)
    with pytest.raises(DatasetError, match="it lacks album and has track_id, audio"):
        load_dataset("table", tmp_path, options={"group": "album"})
    with pytest.raises(ConfigError, match="option group=3 must be text"):
        load_dataset("table", tmp_path, options={"group": 3})


def test_a_folder_must_hold_one_table(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="it holds neither; let uri name the table"):
        load_dataset("table", tmp_path)
    write_table(tmp_path, SONGS)
    (tmp_path / "labels.parquet").write_bytes(b"no table")
    with pytest.raises(DatasetError, match=r"labels\.csv and labels\.parquet; let uri name"):
        load_dataset("table", tmp_path)
    with pytest.raises(DatasetError, match=r"labels\.parquet' is not a table"):
        load_dataset("table", tmp_path / "labels.parquet")
