"""Any labelled table of yours, CSV or Parquet, with a row for each clip.

Layout, by default::

    labels.csv    track_id, audio, valence, arousal; on [-1, 1]
                  and where you have them: group, split, valence_std, arousal_std, n_raters

``audio`` is a path, relative ones below `audio_folder`, which is relative to the table's folder
and is that folder by default. Without such a column the file is looked for that is named like the
track. ``split`` holds train, validation or test. Every column may have another name::

    data:
      mine:
        uri: labels.parquet
        loader: table
        options: {track_id: song, valence: pleasure, group: album, scale: [1, 9]}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mer_batch.datasets import AUDIO_SUFFIXES, LabelledClip, Labels
from mer_batch.errors import ConfigError, DatasetError
from mer_batch.ratings import Columns, Row, Scale, few, read_ratings, read_table, refuse

MUSIC = "not stated"
LICENCE = "not stated"
CITATION = "not stated"
SOURCE = "not stated"
GROUPED_BY = "group"

_NAMES = ("labels.csv", "labels.parquet")
_SPLITS = ("train", "validation", "test")


def load(
    folder: Path,
    *,
    track_id: str = "track_id",
    audio: str | None = None,
    valence: str = "valence",
    arousal: str = "arousal",
    group: str | None = None,
    split: str | None = None,
    valence_std: str | None = None,
    arousal_std: str | None = None,
    n_raters: str | None = None,
    scale: Any = (-1, 1),
    audio_folder: str = "",
    music: str = MUSIC,
    licence: str = LICENCE,
    citation: str = CITATION,
    source: str = SOURCE,
) -> Labels:
    """Load the clips; see :func:`mer_batch.datasets.load_dataset`.

    Parameters
    ----------
    folder : Path
        The table, or a folder with ``labels.csv`` or ``labels.parquet``.
    track_id, audio, valence, arousal, group, split, valence_std, arousal_std, n_raters : str
        Columns. Those with no default are used under their own name where the table has them.
    scale : list of two numbers
        Ends of the scale that ratings, and spreads, are on.
    audio_folder : str
        Where relative paths begin.
    music, licence, citation, source : str
        What is to stand in the card of a model.
    """
    path = _table(folder)
    about = {"music": music, "licence": licence, "citation": citation, "source": source}
    needed = {"track_id": track_id, "valence": valence, "arousal": arousal}
    optional = {
        "audio": audio,
        "group": group,
        "split": split,
        "valence_std": valence_std,
        "arousal_std": arousal_std,
        "n_raters": n_raters,
    }
    texts = about | needed | {k: v for k, v in optional.items() if v is not None}
    for name, value in {**texts, "audio_folder": audio_folder}.items():
        if not isinstance(value, str):
            raise ConfigError(f"option {name}={value!r} must be text")
    given = [column for column in optional.values() if column is not None]
    rows = read_table(path, [*needed.values(), *given])
    there = set(rows[0]) if rows else set()
    columns = {k: v or (k if k in there else None) for k, v in optional.items()}
    ends = _scale(scale)
    rated_in = Columns(valence, arousal, columns["valence_std"], columns["arousal_std"])
    ratings = read_ratings(rows, rated_in, ends, path=path)
    refuse([f for row in rows if (f := _fault(row, track_id, columns))], path)
    below = path.parent / Path(audio_folder).expanduser()
    by_stem = {} if columns["audio"] else _by_stem(below)
    clips = [
        LabelledClip(
            track_id=row[track_id],
            audio_path=(
                below / Path(row[columns["audio"]]).expanduser()
                if columns["audio"]
                else by_stem.get(row[track_id], below / f"{row[track_id]}.mp3")
            ),
            group=_cell(row, columns["group"]),
            split=_cell(row, columns["split"]) or None,
            n_raters=int(_cell(row, columns["n_raters"]) or 0) or None,
            **rated,
        )
        for row, rated in zip(rows, ratings, strict=True)
    ]
    return Labels(clips, str(ends), about=about)


def _table(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in _NAMES if (path / name).is_file()]
    if len(found) != 1:
        has = " and ".join(file.name for file in found) or "neither"
        raise DatasetError(
            f"labels={str(path)!r} is a folder that must hold either {' or '.join(_NAMES)}, and it "
            f"holds {has}; let uri name the table"
        )
    return found[0]


def _scale(ends: Any) -> Scale:
    try:
        low, high = map(float, ends)
        if low < high and high - low < float("inf"):
            return Scale(low, high)
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"option scale={ends!r} must be two numbers, the lower first, as [1, 9]")


def _fault(row: Row, track_id: str, columns: dict[str, str | None]) -> str:
    """What is wrong with a row, beside its ratings."""
    where = f"in the row that begins with {next(iter(row.values()))!r}"
    split, n_raters = _cell(row, columns["split"]), _cell(row, columns["n_raters"])
    if not row[track_id]:
        return f"{track_id} must not be empty {where}"
    if columns["audio"] and not row[columns["audio"]]:
        return f"{columns['audio']} must not be empty {where}"
    if split and split not in _SPLITS:
        return f"{columns['split']}={split!r} must be one of {', '.join(_SPLITS)} {where}"
    if n_raters and not n_raters.isdecimal():
        return f"{columns['n_raters']}={n_raters!r} must be a whole number {where}"
    return ""


def _by_stem(folder: Path) -> dict[str, Path]:
    """Audio files of a folder by their names without what follows the dot."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [file for file in files if file.suffix.lower() in AUDIO_SUFFIXES]
    by_stem = {file.stem: file for file in files}
    if len(by_stem) < len(files):
        twins = [file.name for file in files if by_stem[file.stem] is not file]
        raise DatasetError(
            f"{str(folder)!r} has {len(twins)} tracks in two formats: {few(twins)}; name the file "
            f"in a column 'audio'"
        )
    return by_stem


def _cell(row: Row, column: str | None) -> str:
    return row[column] if column else ""
