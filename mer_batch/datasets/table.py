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
from mer_batch.ratings import Columns, Row, Scale, few, read_ratings, read_table, refuse, to_number

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
    _check_text(about | needed | {"audio_folder": audio_folder} | _given(optional))
    ends = _scale(scale)
    path = _table(folder)
    rows = read_table(path, [*needed.values(), *_given(optional).values()])
    columns = _found(optional, rows)
    rated_in = Columns(valence, arousal, columns.get("valence_std"), columns.get("arousal_std"))
    ratings = read_ratings(rows, rated_in, ends, path=path)
    columns["track_id"] = track_id
    refuse([fault for row in rows if (fault := _fault(row, columns))], path)
    audio_paths = _audio_paths(rows, columns, path.parent / audio_folder)
    clips = [
        LabelledClip(
            track_id=row[track_id],
            audio_path=audio_path,
            group=_cell(row, columns, "group"),
            split=_cell(row, columns, "split") or None,
            n_raters=int(float(_cell(row, columns, "n_raters") or 0)) or None,
            **rated,
        )
        for row, audio_path, rated in zip(rows, audio_paths, ratings, strict=True)
    ]
    return Labels(clips, str(ends), about=about)


def _given(columns: dict[str, str | None]) -> dict[str, str]:
    return {name: column for name, column in columns.items() if column is not None}


def _found(columns: dict[str, str | None], rows: list[Row]) -> dict[str, str]:
    """Those that were named, and those that are there under their own name."""
    there = set(rows[0]) if rows else set()
    return {name: name for name in columns if name in there} | _given(columns)


def _check_text(options: dict[str, str]) -> None:
    for name, value in options.items():
        if not isinstance(value, str):
            raise ConfigError(f"option {name}={value!r} must be text")


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


def _fault(row: Row, columns: dict[str, str]) -> str:
    """What is wrong with a row, beside its ratings."""
    where = f"in the row that begins with {next(iter(row.values()))!r}"
    for name in ("track_id", "audio"):
        if name in columns and not row[columns[name]]:
            return f"{columns[name]} must not be empty {where}"
    split, n_raters = (_cell(row, columns, name) for name in ("split", "n_raters"))
    if split and split not in _SPLITS:
        return f"{columns['split']}={split!r} must be one of {', '.join(_SPLITS)} {where}"
    count = to_number(n_raters or "1")
    if not (count >= 1 and count.is_integer()):
        return f"{columns['n_raters']}={n_raters!r} must be a whole number {where}"
    return ""


def _audio_paths(rows: list[Row], columns: dict[str, str], folder: Path) -> list[Path]:
    """As the table says, else the file in the folder that is named like the track."""
    if "audio" in columns:
        return [folder / row[columns["audio"]] for row in rows]
    by_stem = _by_stem(folder)
    ids = [row[columns["track_id"]] for row in rows]
    return [by_stem.get(track_id, folder / f"{track_id}.mp3") for track_id in ids]


def _by_stem(folder: Path) -> dict[str, Path]:
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


def _cell(row: Row, columns: dict[str, str], name: str) -> str:
    return row[columns[name]] if name in columns else ""
