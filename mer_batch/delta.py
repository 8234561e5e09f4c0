"""Delta tables: open one, follow it, and list the files that it names.

Both look into the store's listing for the latest version. Of some stores a listing is stale for a
while, and an old version would be taken for today's: work would be done twice, and committed parts
swept. So the next entry of the log is asked for by its name.
"""

from __future__ import annotations

import itertools
import json
import random
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from mer_batch.disk import flush
from mer_batch.errors import StorageError
from mer_batch.storage import Location, Storage

# Single requests are tried again below: what fails here came whole, and was not what it should be.
_MAX_DAMAGED = 10
_MAX_WAIT_SECONDS = 4.0

T = TypeVar("T")


def table_uri(location: Location) -> str:
    """A location as delta-rs takes it: in a URL, what follows ``#`` or ``?`` is no path."""
    if not location.is_s3:
        return location.uri
    return f"s3://{location.bucket}/{urllib.parse.quote(location.path)}"


def open_table(storage: Storage, location: Location) -> DeltaTable | None:
    """The table at a location in its latest version, None where there is none.

    Raises
    ------
    StorageError
    """

    def look() -> DeltaTable | None:
        try:
            return DeltaTable(table_uri(location), storage_options=storage.delta_options(location))
        except TableNotFoundError:
            return None

    return _latest(storage, location, look)


def refresh(storage: Storage, location: Location, table: DeltaTable) -> None:
    """Bring a table that was opened earlier to its latest version.

    Raises
    ------
    StorageError
    """

    def look() -> DeltaTable:
        table.update_incremental()
        return table

    _latest(storage, location, look)


def transaction_version(
    storage: Storage, location: Location, table: DeltaTable, app_id: str
) -> int | None:
    """The latest version that an application has committed, None before its first.

    Raises
    ------
    StorageError
    """
    return _whole(storage, location, lambda: table.transaction_version(app_id))


def part_paths(storage: Storage, location: Location, table: DeltaTable) -> list[str]:
    """The table's files, relative to its folder.

    Not ``file_uris()``: those are percent-encoded, and lie behind any symbolic link.

    Raises
    ------
    StorageError
    """
    return [str(path) for path in add_actions(storage, location, table)["path"].to_pylist()]


def add_actions(storage: Storage, location: Location, table: DeltaTable) -> pa.Table:
    """What the log says of each of the table's files: ``path``, ``size_bytes``, ``num_records``.

    Raises
    ------
    StorageError
    """
    return _whole(storage, location, lambda: pa.table(table.get_add_actions(flatten=True)))


def unused_paths(
    storage: Storage, location: Location, table: DeltaTable, *, hours: int, strays: bool
) -> list[str]:
    """Files below a table's folder, relative to it, that no version of late names.

    Parameters
    ----------
    hours : int
        Replaced, or written, longer ago than this [h].
    strays : bool
        Whether files count that no commit has ever named. Whoever is at work on the table has
        such files, too.

    Raises
    ------
    StorageError
    """
    return _whole(
        storage,
        location,
        lambda: table.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=strays),
    )


def _latest(
    storage: Storage, location: Location, look: Callable[[], DeltaTable | None]
) -> DeltaTable | None:
    """Look until what is found is the latest version."""
    began = time.monotonic()
    for attempt in itertools.count():
        table = _whole(storage, location, look)
        newer = _newer(storage, location, table) if location.is_s3 else None
        if newer is None:
            return table
        if time.monotonic() - began > storage.patience_seconds:
            raise StorageError(
                f"the store's listing of {location.uri!r} is stale: {newer} is there and not "
                "listed; run again when the store has caught up"
            )
        _wait(attempt)
    raise AssertionError("unreachable")


def _whole(storage: Storage, location: Location, look: Callable[[], T]) -> T:
    """Look again where the log came damaged."""
    for attempt in itertools.count():
        try:
            return look()
        except (DeltaError, OSError) as error:
            lasts = not location.is_s3 or attempt + 1 == _MAX_DAMAGED or storage.refuses(error)
            if lasts:
                raise StorageError(
                    f"cannot open the table {location.uri!r}: {storage.explain(error)}"
                ) from error
        _wait(attempt)
    raise AssertionError("unreachable")


def _wait(attempt: int) -> None:
    time.sleep(random.uniform(0.2, 1) * min(_MAX_WAIT_SECONDS, 0.2 * 2**attempt))


def _newer(storage: Storage, location: Location, table: DeltaTable | None) -> str | None:
    """An entry of the log that is newer than what was found."""
    names = ["_last_checkpoint"] if table is None else []
    names.append(f"{0 if table is None else table.version() + 1:020}.json")
    return next(
        (name for name in names if storage.exists(location.child("_delta_log", name))), None
    )


def flush_commit(location: Location, version: int) -> None:
    """Have a commit on a local disk, and what it adds, outlast a loss of power.

    delta-rs leaves that to the system, which takes up to half a minute.

    Raises
    ------
    StorageError
    """
    folder = Path(location.path)
    commit = folder / "_delta_log" / f"{version:020}.json"
    try:
        actions = [json.loads(line) for line in commit.read_text().splitlines()]
        parts = [folder / urllib.parse.unquote(a["add"]["path"]) for a in actions if "add" in a]
        for path in (*parts, folder, commit, commit.parent):
            flush(path)
    except OSError as error:
        raise StorageError(f"cannot flush {location.uri!r} to its disk: {error}") from error
