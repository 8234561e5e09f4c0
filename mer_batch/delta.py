"""Delta tables: open one, and list the files that it names."""

from __future__ import annotations

import urllib.parse

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

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
