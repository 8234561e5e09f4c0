"""Small releases of every data set, laid out as their authors do, with audio of our choosing."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PlantedClip:
    """A clip to be written: ratings on [-1, 1], an artist or album, and the audio's bytes."""

    valence: float
    arousal: float
    group: str
    audio_bytes: bytes = b"not opened"


def write_soundtracks(folder: Path, clips: Sequence[PlantedClip]) -> None:
    """Set 1: ratings from 1 to 7, a byte-order mark, an empty row at the end of the track list."""
    ids = [f"{number:03d}" for number in range(1, len(clips) + 1)]
    ratings = [
        [i, 4 + 3 * c.valence, 4 + 3 * c.arousal, 1] for i, c in zip(ids, clips, strict=True)
    ]
    tracks = [[i, "Happy", c.group, 1, "0:10-0:20"] for i, c in zip(ids, clips, strict=True)]
    _write_audio(folder, ids, clips)
    write_csv(folder / "mean_ratings_set1.csv", "number,valence,energy,tension", ratings)
    header = "Nro,Emotion,Album name,Track,Min:Sec"
    write_csv(folder / "set1_tracklist.csv", header, [*tracks, [""] * 5], encoding="utf-8")


def write_musifeast17(folder: Path, clips: Sequence[PlantedClip]) -> None:
    """Ratings from 1 to 5 with the deviation between raters, here always 0.5."""
    ids = [f"Genre_MED_{number:02d}" for number in range(1, len(clips) + 1)]
    rows = [
        [i, "Genre", c.group, "no", 3 + 2 * c.valence, 0.5, 3 + 2 * c.arousal, 0.5]
        for i, c in zip(ids, clips, strict=True)
    ]
    header = "CLIP_NAME,GENRE,ARTIST,VOCALISATION,valence_M,valence_SD,arousal_M,arousal_SD"
    _write_audio(folder, ids, clips)
    write_csv(folder / "labels.csv", header, rows, encoding="utf-8")


def write_songs1000(folder: Path, clips: Sequence[PlantedClip]) -> None:
    """Static ratings from 1 to 9, tabs inside the quotes, every third song for evaluation."""
    ids = [str(number) for number in range(2, len(clips) + 2)]
    ratings = [
        [i, 5 + 4 * c.arousal, 1.0, 5 + 4 * c.valence, 1.0] for i, c in zip(ids, clips, strict=True)
    ]
    infos = [
        [i, f"\t{i}.mp3", f"{c.group}\t", "\tSong\t", 0.48, 1.33, "\tBlues\t",
         "evaluation" if int(i) % 3 == 1 else "development"]
        for i, c in zip(ids, clips, strict=True)
    ]  # fmt: skip
    _write_audio(folder, ids, clips, into="clips_45seconds")
    header = "song_id,mean_arousal,std_arousal,mean_valence,std_valence"
    write_csv(folder / "annotations" / "static_annotations.csv", header, ratings)
    header = "song_id,file_name,Artist,Song title,start,end,Genre,Mediaeval 2013 set"
    write_csv(folder / "annotations" / "songs_info.csv", header, infos)


def write_deam(folder: Path, clips: Sequence[PlantedClip]) -> None:
    """Ratings from 1 to 9 as they were released: swapped, blanks in the header, n below the spread.

    The spread of 1 with n - 1 in the denominator, of ten raters, is that of 0.949 with n.
    """
    ids = [str(number) for number in range(2, len(clips) + 2)]
    std = math.sqrt(9 / 10)
    ratings = [
        [i, 5 + 4 * c.arousal, std, 5 + 4 * c.valence, std] for i, c in zip(ids, clips, strict=True)
    ]
    songs = [[i, f"{i}.mp3\t", f"\t{c.group}"] for i, c in zip(ids, clips, strict=True)]
    averaged = folder / "annotations" / "annotations averaged per song" / "song_level"
    header = "song_id, valence_mean, valence_std, arousal_mean, arousal_std"
    _write_audio(folder, ids, clips, into="MEMD_audio")
    write_csv(averaged / "static_annotations_averaged_songs_1_2000.csv", header, ratings)
    write_csv(folder / "metadata" / "metadata_2013.csv", "song_id,file_name,Artist", songs)


def write_pmemo(folder: Path, clips: Sequence[PlantedClip]) -> None:
    """Ratings from 0 to 1, their spread in a file of its own, with n in the denominator."""
    ids = [str(number) for number in range(1, len(clips) + 1)]
    std = math.sqrt(9 / 10) / 8
    means = [[i, 0.5 + c.arousal / 2, 0.5 + c.valence / 2] for i, c in zip(ids, clips, strict=True)]
    songs = [[i, f"{i}.mp3", "Song", c.group] for i, c in zip(ids, clips, strict=True)]
    below = folder / "annotations"
    _write_audio(folder, ids, clips, into="chorus")
    write_csv(below / "static_annotations.csv", "musicId,Arousal(mean),Valence(mean)", means)
    header = "musicId,Arousal(std),Valence(std)"
    write_csv(below / "static_annotations_std.csv", header, [[i, std, std] for i in ids])
    write_csv(folder / "metadata.csv", "musicId,fileName,title,artist", [*songs, [0, "", "", ""]])


def write_deezer(folder: Path, clips: Sequence[PlantedClip]) -> None:
    """Standard deviations, a third of the clips in each part of the split."""
    ids = [str(number) for number in range(7001, 7001 + len(clips))]
    rows = [
        [i, "SO", "TR", 3 * c.valence, 3 * c.arousal, c.group, "Song"]
        for i, c in zip(ids, clips, strict=True)
    ]
    header = "dzr_sng_id,MSD_sng_id,MSD_track_id,valence,arousal,artist_name,track_name"
    _write_audio(folder, ids, clips)
    for part, split in enumerate(("train", "validation", "test")):
        chosen = rows[len(rows) * part // 3 : len(rows) * (part + 1) // 3]
        write_csv(folder / f"{split}.csv", header, chosen, encoding="utf-8")


def write_table(folder: Path, clips: Sequence[PlantedClip]) -> None:
    """A table with every column's default name."""
    ids = [f"clip {number}" for number in range(1, len(clips) + 1)]
    rows = [
        [i, f"audio/{i}.mp3", c.valence, c.arousal, c.group, 0.25, 0.25, 8]
        for i, c in zip(ids, clips, strict=True)
    ]
    header = "track_id,audio,valence,arousal,group,valence_std,arousal_std,n_raters"
    _write_audio(folder, ids, clips)
    write_csv(folder / "labels.csv", header, rows, encoding="utf-8")


#: How to write a release of each data set. A new loader needs an entry here.
WRITERS: dict[str, Callable[[Path, Sequence[PlantedClip]], None]] = {
    "soundtracks": write_soundtracks,
    "musifeast17": write_musifeast17,
    "songs1000": write_songs1000,
    "deam": write_deam,
    "pmemo": write_pmemo,
    "deezer": write_deezer,
    "table": write_table,
}

#: Files that a release may lack.
OPTIONAL = {"metadata_2013.csv"}


def _write_audio(
    folder: Path, ids: list[str], clips: Sequence[PlantedClip], *, into: str = "audio"
) -> None:
    (folder / into).mkdir(parents=True)
    for track_id, clip in zip(ids, clips, strict=True):
        (folder / into / f"{track_id}.mp3").write_bytes(clip.audio_bytes)


def write_csv(
    path: Path, header: str, rows: Sequence[Sequence[object]], *, encoding: str = "utf-8-sig"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
