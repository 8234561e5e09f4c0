"""Delta tables: open one, and list the files that it names."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from mer_batch.disk import flush
from mer_batch.errors import StorageError
from mer_batch.storage import Location, Storage


def table_uri(location: Location) -> str:
    """A location as delta-rs takes it: in a URL, what follows ``#`` or ``?`` is no path."""
    if not location.is_s3:
        return location.uri
    return f"s3://{location.bucket}/{urllib.parse.quote(location.path)}"


def open_table(storage: Storage, location: Location) -> DeltaTable | None:
    """The table at a location, None where there is none.

    Raises
    ------
    StorageError
    """
    try:
        return DeltaTable(table_uri(location), storage_options=storage.delta_options(location))
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        raise StorageError(f"cannot open the table {location.uri!r}: {error}") from error


def part_paths(table: DeltaTable) -> list[str]:
    """The table's files, relative to its folder.

    Not ``file_uris()``: those are percent-encoded, and lie behind any symbolic link.
    """
    actions = pa.table(table.get_add_actions(flatten=True))
    return [str(path) for path in actions["path"].to_pylist()]


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
