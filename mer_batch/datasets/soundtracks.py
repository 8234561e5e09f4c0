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

from mer_batch.datasets import LabelledClip, Labels
from mer_batch.ratings import Columns, Scale, partners, read_ratings, read_table

MUSIC = "film music"
LICENCE = "Shared for academic research; the excerpts are of commercial recordings."
CITATION = (
    "Eerola, T. and Vuoskoski, J. K. 'A comparison of the discrete and dimensional models of "
    "emotion in music', Psychology of Music 39(1), 18-49, 2011."
)
SOURCE = "https://osf.io/p6vkg/"
GROUPED_BY = "album"
# An estimate. For 110 excerpts there are means of later raters too, in the authors' set 2: the
# squared correlation with those is 0.75 for valence and 0.81 for arousal.
CEILING = (0.77, 0.82)

_SCALE = Scale(1, 7)
_COLUMNS = Columns(arousal="energy")


def load(folder: Path) -> Labels:
    """Load the clips; see :func:`mer_batch.datasets.load_dataset`."""
    ratings_path, tracks_path = folder / "mean_ratings_set1.csv", folder / "set1_tracklist.csv"
    rows = read_table(ratings_path, ["number", *_COLUMNS.names()])
    tracks = read_table(tracks_path, ["Nro", "Album name"])
    albums = partners(rows, "number", tracks, "Nro", path=tracks_path, by=ratings_path)
    ratings = read_ratings(rows, _COLUMNS, _SCALE, path=ratings_path)
    clips = [
        LabelledClip(
            track_id=row["number"],
            audio_path=folder / "audio" / f"{row['number']}.mp3",
            group=album["Album name"],
            n_raters=12,
            **rated,
        )
        for row, album, rated in zip(rows, albums, ratings, strict=True)
    ]
    return Labels(clips, str(_SCALE))
