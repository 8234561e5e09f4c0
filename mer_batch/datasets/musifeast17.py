"""MUSIFEAST-17: instrumental 30-second clips of 17 genres, rated by about 700 people.

Layout::

    audio/<CLIP_NAME>.mp3
    labels.csv    CLIP_NAME, GENRE, ARTIST, ..., valence_M, valence_SD, arousal_M, arousal_SD

Ratings run from 1 to 5; ``_SD`` is the standard deviation between raters. Artists are kept whole
in every split.
"""

from __future__ import annotations

from pathlib import Path

from mer_batch.datasets import LabelledClip, rating, rating_spread, read_table

MUSIC = "general music of 17 genres"
LICENCE = "Labels CC0; the clips are of commercial recordings, for research only."
CITATION = (
    "van der Walle, H. A., Wu, W., Margulis, E. H. and Jakubowski, K. 'MUSIFEAST-17: MUsic "
    "Stimuli for Imagination, Familiarity, Emotion, and Aesthetic STudies across 17 genres', "
    "Behavior Research Methods, 2025."
)
SOURCE = "https://doi.org/10.3758/s13428-025-02724-0"
GROUPED_BY = "artist"


def load(folder: Path) -> list[LabelledClip]:
    """Load the clips; see :func:`mer_batch.datasets.load_dataset`."""
    path = folder / "labels.csv"
    spreads = ["valence_SD", "arousal_SD"]
    rows = read_table(path, ["CLIP_NAME", "ARTIST", "valence_M", "arousal_M", *spreads])
    return [
        LabelledClip(
            track_id=row["CLIP_NAME"],
            audio_path=folder / "audio" / f"{row['CLIP_NAME']}.mp3",
            valence=rating(row, "valence_M", low=1, high=5, path=path),
            arousal=rating(row, "arousal_M", low=1, high=5, path=path),
            group=row["ARTIST"],
            valence_std=rating_spread(row, "valence_SD", low=1, high=5, path=path),
            arousal_std=rating_spread(row, "arousal_SD", low=1, high=5, path=path),
        )
        for row in rows
    ]
