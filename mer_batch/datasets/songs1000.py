"""MediaEval 1000 Songs (2013): 744 excerpts of 45 s from the Free Music Archive, ten raters each.

Layout; what lies in ``annotations/`` is also found in the folder itself::

    clips_45seconds/<song_id>.mp3            or audio/
    annotations/songs_info.csv               song_id, Artist, ..., Mediaeval 2013 set
    annotations/static_annotations.csv       song_id, mean_arousal, std_arousal, ...; from 1 to 9
    annotations/arousal_cont_average.csv     song_id, sample_15000ms, ...; 2 Hz, from -1 to 1
    annotations/valence_cont_average.csv

``labels: static`` takes what was said of the whole excerpt, ``labels: continuous`` the mean over
time of what was said while listening, from 15 s on. Some artists stand on both sides of the
official split. All songs are in DEAM too, under the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from mer_batch.datasets import LabelledClip, Labels
from mer_batch.errors import ConfigError
from mer_batch.ratings import (
    Columns,
    Ratings,
    Row,
    Scale,
    find_file,
    find_folder,
    partners,
    read_ratings,
    read_samples,
    read_table,
    refuse,
)

MUSIC = "general music of eight genres, mostly by independent artists"
LICENCE = "For research; the songs are under Creative Commons licences, each its own."
CITATION = (
    "Soleymani, M., Caro, M. N., Schmidt, E. M., Sha, C.-Y. and Yang, Y.-H. '1000 songs for "
    "emotional analysis of music', Proc. ACM CrowdMM, 2013."
)
SOURCE = "https://cvml.unige.ch/databases/emoMusic/"
GROUPED_BY = "artist"

_STATIC, _CONTINUOUS = Scale(1, 9), Scale(-1, 1)
_COLUMNS = Columns("mean_valence", "mean_arousal", "std_valence", "std_arousal")
_SPLITS = {"development": "train", "evaluation": "test"}
# Means and deviations fit ten whole ratings in 99 % of the rows; the paper says ten as well.
_N_RATERS = 10


def load(folder: Path, *, labels: str = "static") -> Labels:
    """Load the clips; see :func:`mer_batch.datasets.load_dataset`.

    Parameters
    ----------
    folder : Path
    labels : {"static", "continuous"}
        The rating of the whole excerpt, or the mean of those over time.
    """
    if labels == "static":
        rows, path, ratings, scale = *_static(folder), _STATIC
    elif labels == "continuous":
        rows, path, ratings, scale = *_continuous(folder), _CONTINUOUS
    else:
        raise ConfigError(f"option labels={labels!r} must be static or continuous")
    info_path = find_file(folder, "songs_info.csv", ["annotations"])
    infos = read_table(info_path, ["song_id", "Artist", "Mediaeval 2013 set"])
    infos = partners(rows, "song_id", infos, "song_id", path=info_path, by=path)
    refuse([fault for info in infos if (fault := _split_fault(info))], info_path)
    audio = find_folder(folder, "clips_45seconds", "audio")
    clips = [
        LabelledClip(
            track_id=row["song_id"],
            audio_path=audio / f"{row['song_id']}.mp3",
            group=info["Artist"],
            split=_SPLITS[info["Mediaeval 2013 set"]],
            recording_id=f"mediaeval/{row['song_id']}",
            n_raters=_N_RATERS,
            **rated,
        )
        for row, info, rated in zip(rows, infos, ratings, strict=True)
    ]
    return Labels(clips, f"{scale} ({labels})")


def _static(folder: Path) -> tuple[list[Row], Path, list[Ratings]]:
    path = find_file(folder, "static_annotations.csv", ["annotations"])
    rows = read_table(path, ["song_id", *_COLUMNS.names()])
    return rows, path, read_ratings(rows, _COLUMNS, _STATIC, path=path)


def _continuous(folder: Path) -> tuple[list[Row], Path, list[Ratings]]:
    arousal_path, valence_path = (
        find_file(folder, f"{target}_cont_average.csv", ["annotations"])
        for target in ("arousal", "valence")
    )
    rows = read_table(arousal_path, ["song_id"])
    others = read_table(valence_path, ["song_id"])
    others = partners(rows, "song_id", others, "song_id", path=valence_path, by=arousal_path)
    arousals, valences = _means(rows, arousal_path), _means(others, valence_path)
    # The spread between raters of a mean over time cannot be had from that of every half second.
    ratings: list[Ratings] = [
        {"valence": valence, "arousal": arousal, "valence_std": None, "arousal_std": None}
        for valence, arousal in zip(valences, arousals, strict=True)
    ]
    return rows, arousal_path, ratings


def _means(rows: Sequence[Row], path: Path) -> list[float]:
    """Mean over time of each row."""
    samples = [read_samples(row) for row in rows]
    faults = [
        f"every sample must be a number from {_CONTINUOUS} in the row of song_id={row['song_id']!r}"
        for row, values in zip(rows, samples, strict=True)
        if not values or not all(_CONTINUOUS.low <= value <= _CONTINUOUS.high for value in values)
    ]
    refuse(faults, path)
    return [math.fsum(values) / len(values) for values in samples]


def _split_fault(info: Row) -> str:
    split = info["Mediaeval 2013 set"]
    if split in _SPLITS:
        return ""
    return f"'Mediaeval 2013 set'={split!r} must be one of {', '.join(_SPLITS)}"
