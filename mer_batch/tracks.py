"""What a catalog says of its tracks, checked batch by batch: ids, URIs, versions, durations.

However many batches there are, a message counts all rows that are at fault in the first way.
"""

from __future__ import annotations

import difflib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mer_batch.config import CatalogConfig
from mer_batch.errors import CatalogError, masked
from mer_batch.roots import Roots, resolved
from mer_batch.spill import Spill
from mer_batch.storage import SCHEME_PATTERN, SCHEMES, Location
from mer_batch.track_index import TrackIndex

_N_OFFENDERS = 5
_MAX_SHOWN = 200
# Batches are checked in threads, as Arrow lets go of the interpreter.
_CHECKERS = 2
_IN_HAND = 4
# Between the ranks of what is wrong with a row of ids, and with a row of anything else.
_REPEATED = 100

Columns = dict[str, pa.ChunkedArray | None]


@dataclass(frozen=True)
class Tracks:
    """A catalog's tracks, found in order; see ``catalog.Catalog``."""

    tracks: Spill
    index: TrackIndex
    n_unstated: int


class _RefusedRows(Exception):
    """Rows that are at fault; of several faults that of the lowest rank counts."""

    def __init__(self, rank: int, problem: str, where: str, count: int, shown: list[str], of: str):
        self.rank, self.problem, self.where = rank, problem, where
        self.count, self.shown, self.of = count, shown, of

    def error(self, others: Iterable[_RefusedRows]) -> CatalogError:
        """In words, with the rows of other batches that are at fault in the same way."""
        same = [other for other in others if other.rank == self.rank]
        count = sum(other.count for other in same)
        rows = [row for other in same for row in other.shown][:_N_OFFENDERS]
        what, _, remedy = self.problem.partition("; ")
        return CatalogError(
            f"{self.where}: {count} {what}, the first at {self.of}{', '.join(rows)}"
            + (", ..." if count > len(rows) else "")
            + (f"; {remedy}" if remedy else "")
        )


@dataclass
class _Checked:
    """A batch, as far as it was in order."""

    ids: pa.Array | None = None
    rows: pa.RecordBatch | None = None
    refused: _RefusedRows | None = None
    error: tuple[int, CatalogError] | None = None


class Check:
    """How the tracks of a catalog are checked.

    Raises
    ------
    CatalogError
        Where a column is not there.
    """

    def __init__(
        self,
        schema: pa.Schema,
        config: CatalogConfig,
        folder: Location,
        roots: Roots | None,
        held_type: pa.DataType | None,
    ) -> None:
        named = {
            "catalog.id_column": config.id_column,
            "catalog.audio_column": config.audio_column,
            "catalog.version_column": config.version_column,
            "catalog.duration_column": config.duration_column,
        }
        wanted = {key: name for key, name in named.items() if name is not None}
        _check_columns(schema, wanted)
        self.columns = list(dict.fromkeys(wanted.values()))
        self.config = config
        self.folder = folder
        self.roots = roots
        self.held_type = held_type

    def all_of(self, batches: Iterable[pa.RecordBatch]) -> Tracks:
        """Check all batches.

        Raises
        ------
        CatalogError
            With the number of rows at fault and the first few of them.
        """
        faults: list[_Checked] = []
        ids: list[pa.Array] = []
        tracks: Spill | None = None
        n_unstated = 0
        for checked in _in_order(self._checked, _numbered(batches)):
            if checked.ids is not None:
                ids.append(checked.ids)
            if checked.rows is None:
                faults.append(checked)
                continue
            tracks = tracks or Spill(checked.rows.schema)
            tracks.append(checked.rows)
            n_unstated += checked.rows["stated_version"].null_count
        _raise_first(faults, _REPEATED - 1)
        if not ids:
            raise CatalogError("the catalog has no rows")
        index = TrackIndex(ids, ids[0].type)
        self._refuse_repeated(index)
        _raise_first(faults)
        assert tracks is not None
        return Tracks(tracks.finish(), index, n_unstated)

    def _refuse_repeated(self, index: TrackIndex) -> None:
        if index.repeated:
            raise CatalogError(
                f"id column {self.config.id_column!r}: {len(index.repeated)} ids stand in more "
                f"than one row: {_first(index.repeated)}; ids must be unique"
            )

    def _checked(self, begin: int, batch: pa.RecordBatch) -> _Checked:
        rows = _Rows(self, begin, batch)
        checked = _Checked()
        try:
            ids = rows.ids()
            checked.ids = ids.combine_chunks()
            rows.rank = _REPEATED
            checked.rows = rows.tracks(ids)
        except _RefusedRows as refused:
            checked.refused = refused
        except CatalogError as error:
            checked.error = (rows.rank + 1, error)
        return checked


def _numbered(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches that have rows, each with the number of its first row."""
    begin = 0
    for batch in batches:
        if batch.num_rows:
            yield begin, batch
        begin += batch.num_rows


def _in_order(
    check: Callable[[int, pa.RecordBatch], _Checked], batches: Iterable[tuple[int, pa.RecordBatch]]
) -> Iterator[_Checked]:
    """Check batches in threads, a few at a time."""
    in_hand: deque[Future[_Checked]] = deque()
    with ThreadPoolExecutor(_CHECKERS, thread_name_prefix="check") as checkers:
        for batch in batches:
            in_hand.append(checkers.submit(check, *batch))
            if len(in_hand) >= _IN_HAND:
                yield in_hand.popleft().result()
        while in_hand:
            yield in_hand.popleft().result()


def _raise_first(faults: list[_Checked], up_to: int | None = None) -> None:
    """Raise the fault that comes first in the order of the checks."""
    refused = [fault.refused for fault in faults if fault.refused is not None]
    errors = [fault.error for fault in faults if fault.error is not None]
    first = min(refused, key=lambda rows: rows.rank, default=None)
    rank, error = min(errors, key=lambda found: found[0], default=(None, None))
    if first is not None and (rank is None or first.rank <= rank):
        rank, error = first.rank, first.error(refused)
    if error is not None and rank is not None and (up_to is None or rank <= up_to):
        raise error


class _Rows:
    """The rows of one batch, under check."""

    def __init__(self, check: Check, begin: int, batch: pa.RecordBatch) -> None:
        self._check = check
        self._begin = begin
        self._batch = batch
        self.rank = 0

    def _column(self, name: str) -> pa.ChunkedArray:
        return pa.chunked_array([self._batch[name]])

    def tracks(self, ids: pa.ChunkedArray) -> pa.RecordBatch:
        """The same in the columns of ``Catalog.tracks``."""
        config, n = self._check.config, self._batch.num_rows
        self._check_held_type(ids)
        uris = self._uris(config.audio_column, ids)
        version: pa.ChunkedArray | pa.Array = pa.nulls(n, pa.string())
        if config.version_column is not None:
            version = self._versions(config.version_column, ids)
        seconds: pa.ChunkedArray | pa.Array = pa.nulls(n, pa.float64())
        if config.duration_column is not None:
            seconds = _seconds(self._column(config.duration_column), config.duration_column)
        table = pa.table(
            {
                "track_id": ids,
                "audio_uri": uris,
                "stated_version": version,
                "expected_seconds": seconds,
            }
        )
        return table.combine_chunks().to_batches()[0]

    def ids(self) -> pa.ChunkedArray:
        """Ids as string or int64; refused where null, empty or of another type."""
        name = self._check.config.id_column
        where = f"id column {name!r}"
        column = plain(self._column(name))
        if _is_text(column.type):
            ids = self._text(column, where, {"row": None})
            missing = pc.or_kleene(pc.is_null(ids), pc.equal(ids, ""))
        elif pa.types.is_integer(column.type):
            if column.type == pa.uint64():
                huge = pc.greater(column, pa.scalar(2**63 - 1, pa.uint64()))
                self._refuse(huge, "ids above 2^63 - 1; cast them to strings", where, {"": column})
            ids = column.cast(pa.int64())
            missing = pc.is_null(ids)
        else:
            raise CatalogError(
                f"{where} has type {column.type}; ids must be strings or integers: cast them"
            )
        self._refuse(missing, "null or empty ids", where, {"row": None})
        return ids

    def _check_held_type(self, ids: pa.ChunkedArray) -> None:
        """Refuse text that the output cannot hold, as its ids are numbers."""
        if ids.type == pa.string() and self._check.held_type == pa.int64():
            is_strange = pa.chunked_array([[not _is_int64(value) for value in ids.to_pylist()]])
            remedy = "mend them, or use another output.uri"
            problem = f"ids that are not int64 as those of the output; {remedy}"
            where = f"id column {self._check.config.id_column!r}"
            self._refuse(is_strange, problem, where, {"": ids})

    def _uris(self, name: str, ids: pa.ChunkedArray) -> pa.ChunkedArray:
        """Absolute URIs, none of which leads where the catalog may not lead."""
        where = f"audio column {name!r}"
        folder, roots = self._check.folder, self._check.roots
        column = plain(self._column(name))
        if not _is_text(column.type):
            raise CatalogError(f"{where} has type {column.type}; URIs must be strings")
        given = self._text(column, where, {"track_id": ids})
        missing = pc.or_kleene(pc.is_null(given), pc.equal(given, ""))
        self._refuse(missing, "null or empty URIs", where, {"track_id": ids})
        has_scheme = pc.match_substring_regex(given, SCHEME_PATTERN)
        known = pc.match_substring_regex(given, rf"^(?i:({'|'.join(SCHEMES)})://|file:/)")
        tracks = {"track_id": ids, "": given}
        schemes = ", ".join(SCHEMES)
        self._refuse(
            pc.and_not(has_scheme, known),
            f"URIs whose scheme is not one of {schemes}",
            where,
            tracks,
        )
        secret = pc.match_substring_regex(given, r"^(?i:s3a?)://[^/]*[@:]")
        secret = pc.and_not(secret, pc.match_substring_regex(given, r"^(?i:s3a?)://arn:"))
        self._refuse(secret, "URIs with credentials in them", where, {"track_id": ids})
        is_relative = pc.invert(pc.or_(has_scheme, pc.starts_with(given, "/")))
        below, stays = resolved(given, folder, only=is_relative)
        uris = pc.if_else(is_relative, below, given)
        if roots is not None:
            outside = pc.invert(roots.admitted(uris))
            problem = "URIs outside catalog.allowed_roots; mend them, or add a root"
            self._refuse(outside, problem, where, tracks)
            return uris
        remedy = "give absolute URIs or set catalog.allowed_roots"
        problem = f"relative URIs that lead out of the catalog's folder; {remedy}"
        self._refuse(pc.and_not(is_relative, stays), problem, where, tracks)
        if folder.is_s3:
            is_local = pc.and_not(
                pc.invert(is_relative), pc.match_substring_regex(given, r"^(?i:s3)")
            )
            problem = "local files, in a catalog on S3; set catalog.allowed_roots if they are meant"
            self._refuse(is_local, problem, where, tracks)
        return uris

    def _versions(self, name: str, ids: pa.ChunkedArray) -> pa.ChunkedArray:
        """Versions as string; an empty one is none."""
        where, tracks = f"version column {name!r}", {"track_id": ids}
        version = self._text(_cast(self._column(name), pa.string(), name), where, tracks)
        # Not all readers of tables get beyond a NUL.
        has_nul = pc.fill_null(pc.match_substring(version, "\0"), False)
        self._refuse(has_nul, "versions with a NUL in them", where, tracks)
        return _without_empty(version)

    def _text(self, column: pa.ChunkedArray, where: str, columns: Columns) -> pa.ChunkedArray:
        """The same as string; Parquet may hold bytes that are no UTF-8.

        `columns` are shown of rows that are refused, as in `_refuse`.
        """
        text = column.cast(pa.string())
        self.rank += 1
        try:
            text.validate(full=True)
        except pa.ArrowInvalid:
            values = text.cast(pa.binary()).to_pylist()
            is_bad = pa.chunked_array([[not _is_utf8(value) for value in values]])
            self.rank -= 1
            self._refuse(is_bad, "values that are no UTF-8", where, columns)
        return text

    def _refuse(self, mask: pa.ChunkedArray, problem: str, where: str, columns: Columns) -> None:
        """Raise where a mask is true, with the number of rows and the first ones' values.

        `problem` says what is wrong and, behind a semicolon, what to do; `columns` are shown by
        name, None as the row's number.
        """
        self.rank += 1
        count = pc.sum(mask).as_py() or 0
        if not count:
            return
        at = pc.indices_nonzero(mask)[:_N_OFFENDERS]
        numbers = [self._begin + number for number in at.to_pylist()]
        found = [numbers if c is None else c.take(at).to_pylist() for c in columns.values()]
        rows = [" ".join(map(_shown, values)) for values in zip(*found, strict=True)]
        names = "".join(f"{name} " for name in columns if name)
        raise _RefusedRows(self.rank, problem, where, count, rows, names)


def _check_columns(schema: pa.Schema, wanted: dict[str, str]) -> None:
    faults = [
        f"{key}={name!r}: the catalog has no such column{_close(name, schema.names)}"
        for key, name in wanted.items()
        if name not in schema.names
    ]
    if not faults:
        return
    hint = ""
    if len(schema.names) == 1 and re.search(r"[;\t|]", schema.names[0]):
        hint = "; values must be separated by commas"
    raise CatalogError("; ".join(faults) + f"; its columns are {_first(schema.names, n=50)}{hint}")


def _close(name: str, names: list[str]) -> str:
    """The name that may have been meant, however it is written."""
    by_core = {other.strip().casefold(): other for other in names if len(names) > 1}
    close = difflib.get_close_matches(name.casefold(), by_core, n=1)
    return f" (did you mean {by_core[close[0]]!r}?)" if close else ""


def _cast(column: pa.ChunkedArray, to: pa.DataType, name: str) -> pa.ChunkedArray:
    try:
        return column.cast(to)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise CatalogError(
            f"column {name!r} of type {column.type} cannot be read as {to}"
        ) from error


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary column as its values."""
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_int64(text: str) -> bool:
    """Whether a text is just what a whole number is written as."""
    return re.fullmatch(r"-?\d{1,19}", text) is not None and (
        str(int(text)) == text and -(2**63) <= int(text) < 2**63
    )


def _seconds(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Durations as float64; an empty one is none, as in a CSV that knows of no track's."""
    column = plain(column)
    return _cast(_without_empty(column) if _is_text(column.type) else column, pa.float64(), name)


def _without_empty(text: pa.ChunkedArray) -> pa.ChunkedArray:
    text = text.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _first(values: pa.Array | pa.ChunkedArray | list[Any], *, n: int = _N_OFFENDERS) -> str:
    first = values[:n]
    shown = ", ".join(map(_shown, first if isinstance(first, list) else first.to_pylist()))
    return shown + (", ..." if len(values) > n else "")


def _shown(value: object) -> str:
    """A value for a message: not endless, and without what opens a store."""
    shown = masked(repr(value))
    return shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "..."
