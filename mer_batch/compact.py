"""Many small parts of a table written anew as few large ones, and what is of no use any more.

A night of a few tracks leaves parts of a few kilobytes, and every reader opens each of them. Here
they are read and written by pyarrow, not by delta-rs: it knows no half floats, and would write
``features/`` as single floats, without page checksums and metadata.

A merged part lies under ``<table>/<run_id>/`` like any other one: until a commit names it, it is
the next run's to sweep. What it replaces stays where it is for some days, as readers of an earlier
version may still hold it.
"""

from __future__ import annotations

import datetime
import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mer_batch import feature_table, schema, shards
from mer_batch.feature_table import open_part
from mer_batch.ledger import Part, parts_id
from mer_batch.steps import reach
from mer_batch.storage import Location, Storage

# What is smaller is merged: a scan of parts of this size is bound by their rows, not by how many
# they are. A block of 30-s tracks is a larger part of features than that as it comes.
SMALL_BYTES = 8 * 2**20
# Written in memory, and in one request.
_MERGED_BYTES = 32 * 2**20
_GROUP_ROWS = 65_536
# Parts read at a time.
_READERS = 8
_RUN_FOLDER = re.compile(r"/(\d{8}T\d{6}Z)-[0-9a-f]{6}/")


@dataclass(frozen=True)
class Merged:
    """A part that is written and not committed, and those that it may take the place of."""

    part: Part
    replaced: list[Part]


def small_parts(parts: Iterable[Part]) -> list[Part]:
    """Those that are to be merged, the earlier ones first.

    Not those of whose rows the log says nothing: another tool has written them.
    """
    small = (part for part in parts if part.n_bytes < SMALL_BYTES and part.n_rows)
    return sorted(small, key=lambda part: part.path)


def merge(
    storage: Storage,
    table: Location,
    parts: Sequence[Part],
    run_id: str,
    *,
    columns: pa.Schema | None,
    say: Callable[[str], None],
) -> Iterator[Merged]:
    """Write parts anew as few large ones; one that cannot be read is left alone.

    Parameters
    ----------
    table : Location
        Folder of the table that the parts lie in.
    columns : pa.Schema or None
        What every part is to become. None for features: parts of one kind are merged, and what is
        not of ours is left alone.
    say : callable
        Told which part cannot be read, and why.
    """
    writers: dict[bytes, _Writer] = {}
    number = itertools.count(1)

    def finished(writer: _Writer) -> Iterator[Merged]:
        if len(writer.parts) > 1:
            path = f"{run_id}/merged-{next(number):06d}-{parts_id(p.path for p in writer.parts)}"
            yield _written(storage, table, f"{path}.parquet", writer)

    for part, rows in _read(storage, table, parts, columns):
        if isinstance(rows, str):
            say(f"a part of {table.uri} is left as it is: {rows}")
            continue
        kind = _kind(rows[0].schema)
        if columns is None and feature_table.METADATA_KEY not in (rows[0].schema.metadata or {}):
            continue
        if kind not in writers:
            writers[kind] = _Writer(rows[0].schema, is_features=columns is None)
        writers[kind].add(part, rows)
        if writers[kind].n_bytes >= _MERGED_BYTES:
            yield from finished(writers.pop(kind))
    for writer in writers.values():
        yield from finished(writer)


def _kind(columns: pa.Schema) -> bytes:
    """Schemas compare equal whatever their metadata; of features it says which ones they are."""
    content: bytes = columns.serialize().to_pybytes()
    return content


def _read(
    storage: Storage, table: Location, parts: Sequence[Part], columns: pa.Schema | None
) -> Iterator[tuple[Part, list[pa.Table] | str]]:
    """The row groups of every part, or what is wrong with it."""

    def read(part: Part) -> list[pa.Table] | str:
        location = table.child(part.path)
        try:
            with open_part(storage, location) as file:
                groups = [file.read_row_group(n) for n in range(file.num_row_groups)]
            if columns is not None:
                groups = [_conformed(group, columns) for group in groups]
        except (OSError, pa.ArrowException) as error:
            return f"{location.uri}: {storage.explain(error)}"
        n_rows = sum(map(len, groups))
        if not groups or n_rows != part.n_rows:
            return f"{location.uri}: {n_rows} rows, the log says {part.n_rows}"
        return groups

    with ThreadPoolExecutor(_READERS, thread_name_prefix="compact") as readers:
        for begin in range(0, len(parts), _READERS):
            some = parts[begin : begin + _READERS]
            yield from zip(some, readers.map(read, some), strict=True)


def _conformed(rows: pa.Table, columns: pa.Schema) -> pa.Table:
    """Rows in today's columns; one that came later is null in older parts."""
    arrays = [
        rows[field.name].cast(field.type)
        if field.name in rows.schema.names
        else pa.nulls(len(rows), field.type)
        for field in columns
    ]
    return pa.table(arrays, schema=columns)


class _Writer:
    """A part in the making.

    Parameters
    ----------
    kind : pa.Schema
        Of its rows; of features with the metadata that says what they are.
    """

    def __init__(self, kind: pa.Schema, *, is_features: bool) -> None:
        self.parts: list[Part] = []
        self.n_bytes = 0
        self._group_rows = shards.GROUP_ROWS if is_features else _GROUP_ROWS
        self._buffer = io.BytesIO()
        self._files: list[pq.FileMetaData] = []
        self._writer = (
            shards.open_writer(self._buffer, kind)
            if is_features
            else pq.ParquetWriter(self._buffer, kind, compression="zstd")
        )
        self._waiting: list[pa.Table] = []

    def add(self, part: Part, groups: list[pa.Table]) -> None:
        """Add a part's rows; a row group's stay together."""
        self.parts.append(part)
        self.n_bytes += part.n_bytes
        for group in groups:
            if sum(map(len, self._waiting)) + len(group) > self._group_rows:
                self._flush()
            self._waiting.append(group)

    def finish(self) -> tuple[bytes, dict[str, Any]]:
        """The part as a Parquet file, and what a table's log says of such."""
        self._flush()
        self._writer.close()
        content = self._buffer.getvalue()
        return content, _stats(pq.read_metadata(io.BytesIO(content)))

    def _flush(self) -> None:
        if self._waiting:
            rows = pa.concat_tables(self._waiting)
            self._writer.write_table(rows, row_group_size=self._group_rows)
            self._waiting = []


def _stats(file: pq.FileMetaData) -> dict[str, Any]:
    """Least and greatest value and number of nulls of every column, where Parquet has them."""
    least: dict[str, Any] = {}
    greatest: dict[str, Any] = {}
    n_nulls: dict[str, int] = {}
    groups = [file.row_group(n) for n in range(file.num_row_groups)]
    for at in range(file.num_columns):
        columns = [group.column(at) for group in groups]
        name, found = columns[0].path_in_schema, [column.statistics for column in columns]
        if "." in name or not all(s is not None and s.has_null_count for s in found):
            continue
        n_nulls[name] = sum(s.null_count for s in found)
        bounds = [s for s in found if s.has_min_max and _is_plain(s.min) and _is_plain(s.max)]
        # A group of nothing but nulls has no bounds, and needs none.
        if bounds and len(bounds) == sum(1 for s in found if s.num_values):
            least[name] = _plain(min(s.min for s in bounds))
            greatest[name] = _plain(max(s.max for s in bounds))
    return {"minValues": least, "maxValues": greatest, "nullCount": n_nulls}


def _is_plain(value: Any) -> bool:
    """Whether JSON has a way to write it."""
    return math.isfinite(value) if isinstance(value, float) else not isinstance(value, bytes)


def _plain(value: Any) -> Any:
    """A value as JSON holds it."""
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return value


def _written(storage: Storage, table: Location, path: str, writer: _Writer) -> Merged:
    content, stats = writer.finish()
    n_rows = sum(part.n_rows for part in writer.parts)
    storage.write(table.child(path), content)
    reach("merged_part_written")
    return Merged(Part(path, len(content), n_rows, stats), writer.parts)


def old_runs(
    storage: Storage, output: Location, *, keep_days: int, kept: Iterable[str]
) -> list[Location]:
    """Traces of runs that began longer ago than is to be kept; never those of runs `kept`."""
    latest = f"{schema.utc_now() - datetime.timedelta(days=keep_days):%Y%m%dT%H%M%SZ}"
    kept = frozenset(kept)
    found = []
    for file, _, _ in storage.list_files(output.child("runs")):
        below = file.path[len(output.child("runs").path) :]
        run = _RUN_FOLDER.match(below)
        if run and run[1] < latest and run[0].strip("/") not in kept:
            found.append(file)
    return found
