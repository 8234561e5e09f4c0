"""DEAM, the MediaEval Database for Emotional Analysis in Music: 1,802 songs, ten raters each.

Layout; every file is also found in the folder itself::

    MEMD_audio/<song_id>.mp3                 or audio/
    annotations/annotations averaged per song/
        song_level/static_annotations_averaged_songs_1_2000.csv       from 1 to 9
        song_level/static_annotations_averaged_songs_2000_2058.csv
        dynamic (per second annotations)/arousal.csv, valence.csv     twice a second
    metadata/metadata_2013.csv, metadata_2014.csv, metadata_2015.csv  artists

Of the two song-level files one is enough; the others may be missing.

**Valence and arousal of the songs up to 1000 are swapped in the song-level file as it is
released**: there the column of valences follows the per-second arousals (r = 0.96) and not the
per-second valences (0.58), and it is the arousal column of the 1000 Songs release. Songs above 1000
are right. So the per-second labels decide, file by file: what agrees better with them crossed is
swapped back. Where there are none, the file is taken to be the one that was released; the option
``swapped: false`` is for one that somebody has put right.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from mer_batch.datasets import LabelledClip, Labels
from mer_batch.errors import ConfigError, DatasetError
from mer_batch.ratings import (
    Columns,
    Ratings,
    Row,
    Scale,
    find_file,
    find_folder,
    read_ratings,
    read_samples,
    read_table,
    refuse,
    to_number,
    unbiased,
)

MUSIC = "general music of many genres, mostly by independent artists"
LICENCE = "CC BY-NC, for research; the songs are under Creative Commons licences, each its own."
CITATION = (
    "Aljanaki, A., Yang, Y.-H. and Soleymani, M. 'Developing a benchmark for emotional analysis "
    "of music', PLOS ONE 12(3), e0173392, 2017."
)
SOURCE = "https://cvml.unige.ch/databases/DEAM/"
GROUPED_BY = "artist"

_SCALE = Scale(1, 9)
_COLUMNS = Columns("valence_mean", "arousal_mean", "valence_std", "arousal_std")
_STATIC = [f"static_annotations_averaged_songs_{part}.csv" for part in ("1_2000", "2000_2058")]
_AVERAGED = "annotations/annotations averaged per song"
# Songs of the development set of 2013, and up to the evaluation set of 2014.
_LAST_OF_2013, _LAST_OF_2014 = 1000, 2000
# Metadata have more cells in some rows than in the header; the artist is in a fixed place.
_ARTIST = {"metadata_2013.csv": 2, "metadata_2014.csv": 1, "metadata_2015.csv": 3}

Point = tuple[float, float]


def load(folder: Path, *, swapped: bool | None = None) -> Labels:
    """Load the clips; see :func:`mer_batch.datasets.load_dataset`.

    Parameters
    ----------
    folder : Path
    swapped : bool, optional
        Whether valence and arousal are swapped for the songs up to 1000; decided by the per-second
        labels by default.
    """
    if swapped not in (None, True, False):
        raise ConfigError(f"option swapped={swapped!r} must be true, false or null")
    paths = [find_file(folder, name, _below("song_level")) for name in _STATIC]
    there = [path for path in paths if path.is_file()]
    if not there:
        raise DatasetError(f"labels={str(paths[0])!r} is missing, and so is {paths[1].name}")
    per_second = _per_second(folder)
    artists = _artists(folder)
    audio = find_folder(folder, "MEMD_audio", "audio")
    clips, notes = [], []
    for path in there:
        rows, ratings, found = _song_level(path, per_second, swapped)
        notes += found
        clips += [
            _clip(row, rated, audio, artists) for row, rated in zip(rows, ratings, strict=True)
        ]
    return Labels(clips, str(_SCALE), notes)


def _song_level(
    path: Path, per_second: dict[str, Point], swapped: bool | None
) -> tuple[list[Row], list[Ratings], list[str]]:
    """Rows, ratings and notes of one file, put right."""
    rows = read_table(path, ["song_id", *_COLUMNS.names()])
    ids = [row["song_id"] for row in rows]
    refuse([f"song_id={i!r} must be a number" for i in ids if not i.isdecimal()], path)
    ratings = read_ratings(rows, _COLUMNS, _SCALE, path=path)
    early = [int(song_id) <= _LAST_OF_2013 for song_id in ids]
    suspects = {i: rated for i, rated, old in zip(ids, ratings, early, strict=True) if old}
    if not suspects:
        return rows, ratings, []
    if swapped is None:
        swapped, why = _is_swapped(suspects, per_second)
    else:
        why = f"the option swapped={swapped} says so"
    if not swapped:
        return rows, ratings, [f"valence and arousal are left as they are: {why}"]
    ratings = [_crossed(r) if old else r for r, old in zip(ratings, early, strict=True)]
    note = f"valence and arousal of {len(suspects):,} songs up to 1000 are swapped back: {why}"
    return rows, ratings, [note]


def _is_swapped(songs: dict[str, Ratings], per_second: dict[str, Point]) -> tuple[bool, str]:
    """Whether the song-level ratings agree better with the per-second ones crossed, and why."""
    shared = [song for song in songs if song in per_second]
    ours = list(zip(*((songs[s]["valence"], songs[s]["arousal"]) for s in shared), strict=True))
    theirs = list(zip(*(per_second[song] for song in shared), strict=True))
    try:
        straight = [statistics.correlation(ours[i], theirs[i]) for i in (0, 1)]
        crossed = [statistics.correlation(ours[i], theirs[1 - i]) for i in (0, 1)]
    except (statistics.StatisticsError, IndexError):
        return True, "the release is known for it, and there are no per-second labels to ask"
    words = (
        f"with the per-second labels they correlate {straight[0]:.2f} and {straight[1]:.2f} "
        f"as they stand, {crossed[0]:.2f} and {crossed[1]:.2f} crossed"
    )
    return sum(crossed) > sum(straight), words


def _crossed(rated: Ratings) -> Ratings:
    return {
        "valence": rated["arousal"],
        "arousal": rated["valence"],
        "valence_std": rated["arousal_std"],
        "arousal_std": rated["valence_std"],
    }


def _clip(row: Row, rated: Ratings, audio: Path, artists: dict[str, str]) -> LabelledClip:
    song_id = row["song_id"]
    # The last 58 are whole songs with five raters.
    n_raters = 10 if int(song_id) <= _LAST_OF_2014 else 5
    return LabelledClip(
        track_id=song_id,
        audio_path=audio / f"{song_id}.mp3",
        group=artists.get(song_id, ""),
        split="train" if int(song_id) <= _LAST_OF_2013 else "test",
        recording_id=f"mediaeval/{song_id}",
        n_raters=n_raters,
        # DEAM divides by n where 1000 Songs, from the same ratings, divides by n - 1.
        **unbiased(rated, n_raters),
    )


def _per_second(folder: Path) -> dict[str, Point]:
    """Mean over time of the per-second labels, valence first; empty where there are none."""
    places = _below("dynamic (per second annotations)")
    paths = [find_file(folder, f"{name}.csv", places) for name in ("valence", "arousal")]
    if all(path.is_file() for path in paths):
        valence, arousal = (
            {row["song_id"]: _mean(read_samples(row)) for row in read_table(path, ["song_id"])}
            for path in paths
        )
        means = {song: (valence[song], arousal[song]) for song in valence if song in arousal}
    else:
        means = _per_second_long(folder / "dynamic_annotations_long.csv")
    return {song: point for song, point in means.items() if all(map(math.isfinite, point))}


def _per_second_long(path: Path) -> dict[str, Point]:
    """The same from a table with a row for every half second."""
    if not path.is_file():
        return {}
    columns = ["Valence(mean)", "Arousal(mean)"]
    samples: dict[str, list[list[float]]] = {}
    for row in read_table(path, ["musicId", *columns]):
        for values, name in zip(samples.setdefault(row["musicId"], [[], []]), columns, strict=True):
            values.append(to_number(row[name]))
    return {song: (_mean(valence), _mean(arousal)) for song, (valence, arousal) in samples.items()}


def _mean(samples: Sequence[float]) -> float:
    # Shorter songs have empty cells at the end.
    known = [sample for sample in samples if math.isfinite(sample)]
    return math.fsum(known) / len(known) if known else math.nan


def _artists(folder: Path) -> dict[str, str]:
    """Artists by song, from the metadata files that are there."""
    artists = {}
    for name, place in _ARTIST.items():
        path = find_file(folder, name, ["metadata"])
        if not path.is_file():
            continue
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            for cells in csv.reader(file):
                if len(cells) > place and cells[0].strip().isdecimal():
                    artists[cells[0].strip()] = cells[place].strip().strip('"').strip()
    return artists


def _below(name: str) -> list[str]:
    """Where the archives put a file, unpacked in the folder or in one of their own."""
    return [f"DEAM_Annotations/{_AVERAGED}/{name}", f"{_AVERAGED}/{name}"]
