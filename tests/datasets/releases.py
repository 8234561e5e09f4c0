"""Small releases of every data set, laid out as their authors do, with audio of our choosing."""

from __future__ import annotations

import csv
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
    _write_csv(folder / "mean_ratings_set1.csv", "number,valence,energy,tension", ratings)
    header = "Nro,Emotion,Album name,Track,Min:Sec"
    _write_csv(folder / "set1_tracklist.csv", header, [*tracks, [""] * 5], encoding="utf-8")


def write_musifeast17(folder: Path, clips: Sequence[PlantedClip]) -> None:
    """Ratings from 1 to 5 with the deviation between raters, here always 0.5."""
    ids = [f"Genre_MED_{number:02d}" for number in range(1, len(clips) + 1)]
    rows = [
        [i, "Genre", c.group, "no", 3 + 2 * c.valence, 0.5, 3 + 2 * c.arousal, 0.5]
        for i, c in zip(ids, clips, strict=True)
    ]
    header = "CLIP_NAME,GENRE,ARTIST,VOCALISATION,valence_M,valence_SD,arousal_M,arousal_SD"
    _write_audio(folder, ids, clips)
    _write_csv(folder / "labels.csv", header, rows, encoding="utf-8")


#: How to write a release of each data set. A new loader needs an entry here.
WRITERS: dict[str, Callable[[Path, Sequence[PlantedClip]], None]] = {
    "soundtracks": write_soundtracks,
    "musifeast17": write_musifeast17,
}


def _write_audio(folder: Path, ids: list[str], clips: Sequence[PlantedClip]) -> None:
    (folder / "audio").mkdir(parents=True)
    for track_id, clip in zip(ids, clips, strict=True):
        (folder / "audio" / f"{track_id}.mp3").write_bytes(clip.audio_bytes)


def _write_csv(
    path: Path, header: str, rows: Sequence[Sequence[object]], *, encoding: str = "utf-8-sig"
) -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
