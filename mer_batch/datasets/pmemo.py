"""PMEmo (2019): choruses of 794 pop songs, 767 of them rated by ten listeners each.

Layout; every file is also found in the folder itself::

    chorus/<musicId>.mp3                          or audio/
    metadata.csv                                  musicId, fileName, title, artist, ...
    annotations/static_annotations.csv            musicId, Arousal(mean), Valence(mean); 0 to 1
    annotations/static_annotations_std.csv        musicId, Arousal(std), Valence(std)

A copy is about whose means were moved to 1 to 9 (``song_id, valence_mean, valence_std, ...``, one
file) while its spreads were not: means such as 5.6 of ten whole ratings cannot have a spread of
0.16. It is told by its columns, and its spreads are read as what they are.
"""

from __future__ import annotations

from pathlib import Path

from mer_batch.datasets import LabelledClip, Labels
from mer_batch.ratings import (
    Columns,
    Ratings,
    Row,
    Scale,
    find_file,
    find_folder,
    partners,
    read_ratings,
    read_table,
    unbiased,
)

MUSIC = "pop music, choruses of chart songs"
LICENCE = "MIT licence; the choruses are of commercial recordings, for research only."
CITATION = (
    "Zhang, K., Zhang, H., Li, S., Yang, C. and Sun, L. 'The PMEmo dataset for music emotion "
    "recognition', Proc. ICMR, 135-142, 2018."
)
SOURCE = "https://github.com/HuiZhangDB/PMEmo"
GROUPED_BY = "artist"

_SCALE, _COPY_SCALE = Scale(0, 1), Scale(1, 9)
_OFFICIAL = Columns("Valence(mean)", "Arousal(mean)", "Valence(std)", "Arousal(std)")
_COPY = Columns("valence_mean", "arousal_mean", "valence_std", "arousal_std")
# "At least ten"; means and deviations fit ten ratings in steps of 1/8 in 97 % of the rows, the
# deviations with n in the denominator.
_N_RATERS = 10


def load(folder: Path) -> Labels:
    """Load the clips; see :func:`mer_batch.datasets.load_dataset`."""
    path = find_file(folder, "static_annotations.csv", ["annotations"])
    is_copy = "song_id" in (read_table(path, []) or [{}])[0]
    key, scale = ("song_id", _COPY_SCALE) if is_copy else ("musicId", _SCALE)
    rows, ratings = (_read_copy if is_copy else _read_official)(folder, path)
    songs_path = folder / "metadata.csv"
    songs = read_table(songs_path, ["musicId", "artist"])
    songs = partners(rows, key, songs, "musicId", path=songs_path, by=path)
    audio = find_folder(folder, "chorus", "audio")
    clips = [
        LabelledClip(
            track_id=row[key],
            audio_path=audio / f"{row[key]}.mp3",
            group=song["artist"],
            n_raters=_N_RATERS,
            **unbiased(rated, _N_RATERS),
        )
        for row, song, rated in zip(rows, songs, ratings, strict=True)
    ]
    notes = ["a copy rescaled to 1 to 9, its spreads still on 0 to 1"] if is_copy else []
    return Labels(clips, str(scale), notes)


def _read_official(folder: Path, path: Path) -> tuple[list[Row], list[Ratings]]:
    std_path = find_file(folder, "static_annotations_std.csv", ["annotations"])
    means = read_table(path, ["musicId", *_OFFICIAL.names()[:2]])
    stds = read_table(std_path, ["musicId", *_OFFICIAL.names()[2:]])
    stds = partners(means, "musicId", stds, "musicId", path=std_path, by=path)
    rows = [mean | std for mean, std in zip(means, stds, strict=True)]
    return rows, read_ratings(rows, _OFFICIAL, _SCALE, path=path)


def _read_copy(_: Path, path: Path) -> tuple[list[Row], list[Ratings]]:
    rows = read_table(path, ["song_id", *_COPY.names()])
    return rows, read_ratings(rows, _COPY, _COPY_SCALE, path=path, spread_scale=_SCALE)
