"""Deezer mood detection set: 18,644 songs, with valence and arousal made from listeners' tags.

Layout::

    audio/<dzr_sng_id>.mp3
    train.csv, validation.csv, test.csv    dzr_sng_id, ..., valence, arousal, artist_name, ...

The release has no audio; previews come from Deezer. Nobody rated these songs: their tags were
looked up in a list of rated words and the values standardised, so there are only 2,720 distinct
pairs, no spread between raters and no end of the scale. They lie between -2.4 and 2.8 standard
deviations; -3 to 3 is mapped to [-1, 1] (a label times 3 is the release's number), and what lies
outside is refused. Some artists stand in two parts of the official split.
"""

from __future__ import annotations

from pathlib import Path

from mer_batch.datasets import LabelledClip, Labels
from mer_batch.ratings import Columns, Scale, read_ratings, read_table

MUSIC = "commercial music of many genres"
LICENCE = "None stated by the authors; audio is to be had from Deezer under its own terms."
CITATION = (
    "Delbouys, R., Hennequin, R., Piccoli, F., Royo-Letelier, J. and Moussallam, M. 'Music mood "
    "detection based on audio and lyrics with deep neural net', Proc. ISMIR, 370-375, 2018."
)
SOURCE = "https://github.com/deezer/deezer_mood_detection_dataset"
GROUPED_BY = "artist"

_SCALE = Scale(-3, 3)


def load(folder: Path) -> Labels:
    """Load the clips; see :func:`mer_batch.datasets.load_dataset`."""
    clips = []
    for split in ("train", "validation", "test"):
        path = folder / f"{split}.csv"
        rows = read_table(path, ["dzr_sng_id", "valence", "arousal", "artist_name"])
        ratings = read_ratings(rows, Columns(), _SCALE, path=path)
        clips += [
            LabelledClip(
                track_id=row["dzr_sng_id"],
                audio_path=folder / "audio" / f"{row['dzr_sng_id']}.mp3",
                group=row["artist_name"],
                split=split,
                **rated,
            )
            for row, rated in zip(rows, ratings, strict=True)
        ]
    return Labels(clips, f"{_SCALE} standard deviations")
