"""Reading tables of ratings: every fault of a table is found before any is reported."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from mer_batch.errors import DatasetError

Row = dict[str, str]

_SAMPLE = "sample_"
_N_NAMED = 3


@dataclass(frozen=True)
class Scale:
    """What a release rates on.

    Attributes
    ----------
    low, high : float
        Its ends.
    """

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def to_unit(self, value: float) -> float:
        """A rating, moved to [-1, 1]."""
        return (2 * value - self.low - self.high) / (self.high - self.low)

    def spread_to_unit(self, value: float) -> float:
        """A standard deviation, in units of the scale [-1, 1]."""
        return 2 * value / (self.high - self.low)


class Ratings(TypedDict):
    """What was said of one clip, on [-1, 1]; spreads are None where they are not known."""

    valence: float
    arousal: float
    valence_std: float | None
    arousal_std: float | None


@dataclass(frozen=True)
class Columns:
    """Columns that the ratings stand in; None where there is none."""

    valence: str = "valence"
    arousal: str = "arousal"
    valence_std: str | None = None
    arousal_std: str | None = None

    def names(self) -> list[str]:
        """Those there are."""
        found = (self.valence, self.arousal, self.valence_std, self.arousal_std)
        return [name for name in found if name is not None]


def read_ratings(
    rows: Sequence[Row],
    columns: Columns,
    scale: Scale,
    *,
    path: Path,
    spread_scale: Scale | None = None,
) -> list[Ratings]:
    """Ratings of every row.

    Parameters
    ----------
    rows : sequence of dict
        As :func:`read_table` gives them.
    columns : Columns
    scale : Scale
        Of the ratings.
    path : Path
        Of the table, for messages.
    spread_scale : Scale, optional
        Of the spreads, where the release gives them on another scale than the ratings.

    Raises
    ------
    DatasetError
        Naming all ratings that are missing, not a number or off the scale, and all spreads that are
        negative or wider than the scale.
    """
    spread_scale = spread_scale or scale
    spreads = Scale(0, spread_scale.high - spread_scale.low)
    faults: list[str] = []

    def rating(row: Row, column: str) -> float:
        return scale.to_unit(_number(row, column, scale, faults))

    def spread(row: Row, column: str | None) -> float | None:
        if column is None:
            return None
        return spread_scale.spread_to_unit(_number(row, column, spreads, faults))

    found: list[Ratings] = [
        {
            "valence": rating(row, columns.valence),
            "arousal": rating(row, columns.arousal),
            "valence_std": spread(row, columns.valence_std),
            "arousal_std": spread(row, columns.arousal_std),
        }
        for row in rows
    ]
    refuse(faults, path)
    return found


def unbiased(ratings: Ratings, n_raters: int) -> Ratings:
    """The same, its spreads with n - 1 in the denominator where they had n."""
    factor = math.sqrt(n_raters / (n_raters - 1))
    valence, arousal = ratings["valence_std"], ratings["arousal_std"]
    return {
        **ratings,
        "valence_std": None if valence is None else valence * factor,
        "arousal_std": None if arousal is None else arousal * factor,
    }


def _number(row: Row, column: str, allowed: Scale, faults: list[str]) -> float:
    value = to_number(row[column])
    if not allowed.low <= value <= allowed.high:
        faults.append(
            f"{column}={row[column]!r} must be a number from {allowed} in the row that begins "
            f"with {next(iter(row.values()))!r}"
        )
    return value


def refuse(faults: Sequence[str], path: Path) -> None:
    """Raise a DatasetError about a table where there are faults."""
    if faults:
        count = f"{len(faults)} faults: " if len(faults) > 1 else ""
        remedy = "correct or remove these rows" if len(faults) > 1 else "correct or remove it"
        raise DatasetError(f"labels={str(path)!r}: {count}{few(faults, '; ')}; {remedy}")


def read_samples(row: Row) -> list[float]:
    """The ratings over time of a row, in columns named ``sample_15000ms`` and so on."""
    return [to_number(text) for column, text in row.items() if column.startswith(_SAMPLE)]


def to_number(text: str) -> float:
    """A number, NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def read_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """Rows of a CSV or Parquet file as stripped text, without empty ones.

    A byte-order mark, spaces around column names and cells beyond the last column are ignored.

    Raises
    ------
    DatasetError
        Where the file is missing, cannot be read, or lacks one of `columns`.
    """
    try:
        names, rows = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except OSError as error:
        raise DatasetError(
            f"labels={str(path)!r} cannot be read: {error.strerror or error}; unpack the release "
            f"there"
        ) from error
    except (ValueError, csv.Error) as error:
        raise DatasetError(f"labels={str(path)!r} is not a table: {error}") from error
    absent = [name for name in columns if name not in names]
    if absent:
        raise DatasetError(
            f"labels={str(path)!r} must have the columns {', '.join(columns)}; "
            f"it lacks {', '.join(absent)} and has {', '.join(names)}"
        )
    return rows


def _read_csv(path: Path) -> tuple[list[str], list[Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        names = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = names
        return names, _as_text(names, reader)


def _read_parquet(path: Path) -> tuple[list[str], list[Row]]:
    # Most releases are CSV, and listing data sets must not wait for pyarrow.
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    return table.column_names, _as_text(table.column_names, table.to_pylist())


def _as_text(names: list[str], rows: Iterable[dict[Any, Any]]) -> list[Row]:
    texts = (
        {name: "" if row[name] is None else str(row[name]).strip() for name in names}
        for row in rows
    )
    return [row for row in texts if any(row.values())]


def partners(
    rows: Sequence[Row], key: str, others: Sequence[Row], other_key: str, *, path: Path, by: Path
) -> list[Row]:
    """For each row the one of another table that is about the same clip.

    Parameters
    ----------
    rows, key : sequence of dict, str
        The clips, and the column that names them.
    others, other_key : sequence of dict, str
        The other table, read from `path`, and its column.
    by : Path
        Of the first table, for messages.

    Raises
    ------
    DatasetError
        Naming the clips that the other table lacks, or has more than once.
    """
    found = {row[other_key]: row for row in others}
    repeats = repeated([row[other_key] for row in others])
    if repeats:
        raise DatasetError(
            f"labels={str(path)!r} must have one row for each clip; {len(repeats)} stand there "
            f"more than once: {other_key}={few(repeats)}"
        )
    absent = [row[key] for row in rows if row[key] not in found]
    if absent:
        raise DatasetError(
            f"labels={str(path)!r} must have a row for every clip that {by.name} rates; "
            f"{len(absent)} of {len(rows)} are missing: {other_key}={few(map(repr, absent))}"
        )
    return [found[row[key]] for row in rows]


def find_file(folder: Path, name: str, places: Sequence[str] = ()) -> Path:
    """A file of a release, in its folder or in one of `places` below.

    Returns the path in the last of the places where there is no such file, so that the message
    about it names the place that the authors chose.
    """
    candidates = [folder / name, *(folder / place / name for place in places)]
    return next((path for path in candidates if path.is_file()), candidates[-1])


def find_folder(folder: Path, *names: str) -> Path:
    """The first of some folders that exists, else the first."""
    candidates = [folder / name for name in names]
    return next((path for path in candidates if path.is_dir()), candidates[0])


def repeated(names: Iterable[str]) -> list[str]:
    """Names that stand there more than once, each once, in order."""
    return [name for name, count in Counter(names).items() if count > 1]


def few(names: Iterable[str], separator: str = ", ") -> str:
    """The first few of some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _N_NAMED:,} more" if len(names) > _N_NAMED else ""
    return separator.join(names[:_N_NAMED]) + more
