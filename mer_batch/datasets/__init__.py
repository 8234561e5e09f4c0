"""Labelled data sets by name: one file each, the file's name is the name used in configs.

A loader reads a release as its authors lay it out and defines::

    LICENCE, CITATION, SOURCE    what a user must know, copied into the card of a model
    MUSIC                        what kind of music it holds, in words
    GROUPED_BY                   what clips of a group share, in words
    load(folder)                 -> list of LabelledClip

Loaders read labels and check that every file is there; they do not open audio.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mer_batch.errors import DatasetError
from mer_batch.registry import load_plugin, plugin_names


@dataclass(frozen=True)
class LabelledClip:
    """A clip with what people said of it.

    Attributes
    ----------
    track_id : str
        Unique within the data set.
    audio_path : Path
    valence, arousal : float
        Mean rating, on [-1, 1].
    group : str
        Clips of a group (an album, an artist) must not be split between training and test.
    valence_std, arousal_std : float or None
        Standard deviation between raters, on the scale of the ratings here; None where the
        release does not say.
    split : {"train", "validation", "test"} or None
        The release's own; None where it has none.
    recording_id : str or None
        Names the recording across data sets that share some, as ``mediaeval/123``.
    """

    track_id: str
    audio_path: Path
    valence: float
    arousal: float
    group: str
    valence_std: float | None = None
    arousal_std: float | None = None
    split: str | None = None
    recording_id: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set as loaded.

    Attributes
    ----------
    name : str
        Of the loader.
    clips : list of LabelledClip
    music, licence, citation, source, grouped_by : str
        The loader's constants.
    """

    name: str
    clips: list[LabelledClip]
    music: str
    licence: str
    citation: str
    source: str
    grouped_by: str


def load_dataset(name: str, folder: Path) -> Dataset:
    """Load a data set.

    Parameters
    ----------
    name : str
        Of a file in this package.
    folder : Path
        Where the release lies.

    Raises
    ------
    ConfigError
        For an unknown name, with the names there are.
    DatasetError
        Naming the file that is missing, or the line that cannot be read.
    """
    loader = load_plugin(__name__, name, kind="data set")
    clips: list[LabelledClip] = loader.load(folder)
    if not clips:
        raise DatasetError(f"data set {name!r} in {str(folder)!r} must hold at least one clip")
    missing = [clip.audio_path for clip in clips if not clip.audio_path.is_file()]
    if missing:
        raise DatasetError(
            f"data set {name!r}: {len(missing)} of {len(clips)} audio files are missing, "
            f"the first is {str(missing[0])!r}; unpack the whole release into {str(folder)!r}"
        )
    return Dataset(
        name=name,
        clips=clips,
        music=loader.MUSIC,
        licence=loader.LICENCE,
        citation=loader.CITATION,
        source=loader.SOURCE,
        grouped_by=loader.GROUPED_BY,
    )


def dataset_names() -> list[str]:
    """Names of all data sets."""
    return plugin_names(__name__)


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file, stripped, without empty ones; a byte-order mark is ignored.

    Raises
    ------
    DatasetError
        Where the file is missing, or lacks one of `columns`.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = names
            rows = [
                {name: (row[name] or "").strip() for name in names}
                for row in reader
                if any(row.values())
            ]
    except OSError as error:
        raise DatasetError(
            f"labels={str(path)!r} cannot be read: {error.strerror}; unpack the release there"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"labels={str(path)!r} is not a table: {error}") from error
    absent = [name for name in columns if name not in names]
    if absent:
        raise DatasetError(
            f"labels={str(path)!r} must have the columns {', '.join(columns)}; "
            f"it lacks {', '.join(absent)} and has {', '.join(names)}"
        )
    return rows


def rating(row: dict[str, str], column: str, *, low: float, high: float, path: Path) -> float:
    """A rating between `low` and `high`, moved to [-1, 1].

    Raises
    ------
    DatasetError
        Where it is not a number in that range.
    """
    return (2 * _number(row, column, low, high, path) - low - high) / (high - low)


def rating_spread(
    row: dict[str, str], column: str, *, low: float, high: float, path: Path
) -> float:
    """A standard deviation of ratings between `low` and `high`, in units of the scale [-1, 1].

    Raises
    ------
    DatasetError
        Where it is not a number from 0 to the width of the scale.
    """
    return 2 * _number(row, column, 0, high - low, path) / (high - low)


def _number(row: dict[str, str], column: str, low: float, high: float, path: Path) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise DatasetError(
            f"labels={str(path)!r}: {column}={row[column]!r} must be a number from {low:g} to "
            f"{high:g}, in the row that begins with {next(iter(row.values()))!r}"
        )
    return value
