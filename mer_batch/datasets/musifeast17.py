"""MUSIFEAST-17: instrumental 30-second clips of 17 genres, rated by about 700 people.

Layout::

    audio/<CLIP_NAME>.mp3
    labels.csv    CLIP_NAME, GENRE, ARTIST, ..., valence_M, valence_SD, arousal_M, arousal_SD

Ratings run from 1 to 5; ``_SD`` is the standard deviation between raters. Artists are kept whole
in every split.
"""

from __future__ import annotations

from pathlib import Path

from mer_batch.datasets import LabelledClip, Labels
from mer_batch.ratings import Columns, Scale, read_ratings, read_table

MUSIC = "general music of 17 genres"
LICENCE = "Labels CC0; the clips are of commercial recordings, for research only."
CITATION = (
    "van der Walle, H. A., Wu, W., Margulis, E. H. and Jakubowski, K. 'MUSIFEAST-17: MUsic "
    "Stimuli for Imagination, Familiarity, Emotion, and Aesthetic STudies across 17 genres', "
    "Behavior Research Methods, 2025."
)
SOURCE = "https://doi.org/10.3758/s13428-025-02724-0"
GROUPED_BY = "artist"
# Reliability of the mean ratings, as published with the set.
CEILING = (0.83, 0.96)

_SCALE = Scale(1, 5)
_COLUMNS = Columns("valence_M", "arousal_M", "valence_SD", "arousal_SD")


def load(folder: Path) -> Labels:
    """Load the clips; see :func:`mer_batch.datasets.load_dataset`."""
    path = folder / "labels.csv"
    rows = read_table(path, ["CLIP_NAME", "ARTIST", *_COLUMNS.names()])
    ratings = read_ratings(rows, _COLUMNS, _SCALE, path=path)
    clips = [
        LabelledClip(
            track_id=row["CLIP_NAME"],
            audio_path=folder / "audio" / f"{row['CLIP_NAME']}.mp3",
            group=row["ARTIST"],
            **rated,
        )
        for row, rated in zip(rows, ratings, strict=True)
    ]
    return Labels(clips, str(_SCALE))
