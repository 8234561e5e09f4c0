"""Film Soundtracks, set 1: 360 excerpts of film music, rated by twelve experts.

Layout::

    audio/001.mp3 ... 360.mp3
    mean_ratings_set1.csv     number, valence, energy, tension, ...; from 1 to 7
    set1_tracklist.csv        Nro, Emotion, Album name, Track, Min:Sec

Up to four excerpts come from one track and many from one album, so albums are kept whole in
every split. ``energy`` is what others call arousal. The release gives no spread between raters.
"""

from __future__ import annotations

from pathlib import Path

from mer_batch.datasets import LabelledClip, rating, read_table
from mer_batch.errors import DatasetError

MUSIC = "film music"
LICENCE = "Shared for academic research; the excerpts are of commercial recordings."
CITATION = (
    "Eerola, T. and Vuoskoski, J. K. 'A comparison of the discrete and dimensional models of "
    "emotion in music', Psychology of Music 39(1), 18-49, 2011."
)
SOURCE = "https://osf.io/p6vkg/"
GROUPED_BY = "album"


def load(folder: Path) -> list[LabelledClip]:
    """Load the clips; see :func:`mer_batch.datasets.load_dataset`."""
    ratings_path, tracks_path = folder / "mean_ratings_set1.csv", folder / "set1_tracklist.csv"
    tracks = read_table(tracks_path, ["Nro", "Album name"])
    albums = {row["Nro"]: row["Album name"] for row in tracks}
    clips = []
    for row in read_table(ratings_path, ["number", "valence", "energy"]):
        track_id = row["number"]
        if track_id not in albums:
            raise DatasetError(
                f"labels={str(tracks_path)!r} must have a row with Nro={track_id!r}, which "
                f"{ratings_path.name} rates"
            )
        clips.append(
            LabelledClip(
                track_id=track_id,
                audio_path=folder / "audio" / f"{track_id}.mp3",
                valence=rating(row, "valence", low=1, high=7, path=ratings_path),
                arousal=rating(row, "energy", low=1, high=7, path=ratings_path),
                group=albums[track_id],
            )
        )
    return clips
