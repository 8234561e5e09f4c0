"""What a reader of an output may see at any moment, and a process that looks all the time.

    python -m tests.chaos.watch OUTPUT [ENDPOINT]

A night that can be seen is whole, and on a disk stays to be seen; no version of a table holds a
track twice, and what ``scores/`` and ``features/`` once held they hold for ever. The process looks
until its standard input ends, and then says what it has seen, as JSON.
"""

from __future__ import annotations

import json
import os
import select
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from mer_batch.config import StorageConfig
from mer_batch.delta import open_table, part_paths
from mer_batch.enrich import MARKER
from mer_batch.errors import StorageError
from mer_batch.storage import Location, Storage, parse_uri

# Between two looks at the nights; tables are looked at once in a while.
_DISK_SECONDS, _STORE_SECONDS = 0.01, 0.2
_TABLES_SECONDS = 0.5

_KEYS = {
    "scores": ("track_id", "audio_version", "features_id", "model_id"),
    "features": ("track_id", "audio_version", "features_id", "segment"),
    "rejects": ("track_id", "product", "extraction_id"),
}
_UNREADABLE = (OSError, KeyError, ValueError, pa.ArrowException, StorageError)


class Watch:
    """Looks at an output, and remembers what it has seen.

    Parameters
    ----------
    storage : Storage
    output : Location

    Attributes
    ----------
    faults : list of str
        What must never be seen.
    seen : Counter
        Looks, nights read as a whole, versions of tables read.
    """

    def __init__(self, storage: Storage, output: Location) -> None:
        self.faults: list[str] = []
        self.seen: Counter[str] = Counter()
        self._storage = storage
        self._output = output
        self._nights: dict[str, object] = {}
        self._tables: dict[str, DeltaTable] = {}
        self._versions: dict[str, int] = {}
        self._parts: dict[str, dict[str, list[tuple[Any, ...]]]] = {name: {} for name in _KEYS}

    def look(self) -> None:
        """Look once at everything."""
        self.look_at_nights()
        for name in _KEYS:
            self._look_at_table(name)

    # ------------------------------------------------------------------ nights

    def look_at_nights(self) -> None:
        """Look once at what is published."""
        self.seen["looks"] += 1
        if self._output.is_s3:
            self._look_at_nights_in_store()
        else:
            self._look_at_nights_on_disk()

    def _look_at_nights_on_disk(self) -> None:
        folder = self._output.child("enriched").path
        there = set(_names_in(folder)) if os.path.isdir(folder) else set()
        there |= {name for name in self._nights if os.path.isdir(os.path.join(folder, name))}
        for name in self._nights.keys() - there:
            self._fault(f"{name} was published and is gone")
        for name in sorted(there):
            if name.startswith("run_date="):
                self._look_at_folder(name, os.path.join(folder, name))

    def _look_at_folder(self, name: str, path: str) -> None:
        # Through a descriptor: another folder of this name may take its place meanwhile.
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return self._fault(f"{name} was seen and is gone")
        try:
            found = os.fstat(folder)
            if self._nights.get(name) == found.st_ino:
                return None
            try:
                fault = _fault_of_night(_names_in(folder), lambda file: _read_in(folder, file))
            except _UNREADABLE as error:
                fault = repr(error)
            if os.path.isdir(path) and os.stat(path).st_ino != found.st_ino:
                return None  # replaced while it was read: what is there now counts
            self._nights[name] = found.st_ino
            self.seen["nights"] += 1
            if fault:
                self._fault(f"{name} is there and not whole: {fault}")
        finally:
            os.close(folder)
        return None

    def _look_at_nights_in_store(self) -> None:
        for night, files in self._listed_nights().items():
            etag = files[MARKER]
            if self._nights.get(night) == (etag, frozenset(files)):
                continue
            folder = self._output.child("enriched", night)
            try:
                fault = _fault_of_night(
                    sorted(files),
                    lambda file, folder=folder: self._storage.read(folder.child(file)),
                )
            except _UNREADABLE as error:
                fault = repr(error)
            # While the marker is the same, so must be what it stands for.
            if self._listed_nights().get(night, {}).get(MARKER) != etag:
                continue
            self._nights[night] = etag, frozenset(files)
            self.seen["nights"] += 1
            if fault:
                self._fault(f"{night} is marked and not whole: {fault}")

    def _listed_nights(self) -> dict[str, dict[str, str]]:
        """Names and etags of the files of every night that has a marker."""
        nights: dict[str, dict[str, str]] = {}
        for found, _, etag in self._storage.list_files(self._output.child("enriched")):
            night, _, name = found.path.rpartition("/")
            nights.setdefault(night.rpartition("/")[2], {})[name] = etag
        return {night: files for night, files in nights.items() if MARKER in files}

    # ------------------------------------------------------------------ tables

    def _look_at_table(self, name: str) -> None:
        location = self._output.child(name)
        try:
            if name not in self._tables:
                table = open_table(self._storage, location)
                if table is None:
                    return
                self._tables[name] = table
            latest = self._tables[name]
            latest.update_incremental()
            for version in range(self._versions.get(name, -1) + 1, latest.version() + 1):
                table = DeltaTable(
                    latest.table_uri,
                    version=version,
                    storage_options=self._storage.delta_options(location),
                )
                parts = part_paths(self._storage, location, table)
                self._look_at_version(name, set(parts))
                self._versions[name] = version
                self.seen["versions"] += 1
        except (*_UNREADABLE, DeltaError) as error:
            self._fault(f"{name} cannot be read: {error!r}")

    def _look_at_version(self, name: str, parts: set[str]) -> None:
        # Parts are merged into others, and then hold the same rows.
        known = self._parts[name] if name != "rejects" else {}
        rows = {part: known.get(part) or self._keys_in(name, part) for part in sorted(parts)}
        counts = Counter(key for keys in rows.values() for key in keys)
        for key, count in counts.items():
            if count > 1:
                self._fault(f"{name} holds {key} twice")
        lost = {key for keys in known.values() for key in keys} - counts.keys()
        if lost:
            self._fault(f"{name} has lost {sorted(lost, key=str)[:5]}")
        self._parts[name] = rows

    def _keys_in(self, name: str, part: str) -> list[tuple[Any, ...]]:
        file = pa.BufferReader(self._storage.read(self._output.child(name, part)))
        table = pq.read_table(file, columns=list(_KEYS[name]))
        return list(zip(*table.to_pydict().values(), strict=True))

    def _fault(self, text: str) -> None:
        self.faults.append(text)


def _names_in(folder: int | str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def _read_in(folder: int, name: str) -> bytes:
    descriptor = os.open(name, os.O_RDONLY, dir_fd=folder)
    with open(descriptor, "rb") as file:
        return file.read()


def _fault_of_night(names: list[str], read: Callable[[str], bytes]) -> str | None:
    """Why a night is not what its marker says, None where it is."""
    if MARKER not in names:
        return "no marker"
    marker = json.loads(read(MARKER))
    parts = {part["name"]: part["n_rows"] for part in marker["parts"]}
    if sorted([*parts, MARKER]) != names:
        return f"{names}, but its marker names {sorted(parts)}"
    ids: list[object] = []
    for name, n_rows in parts.items():
        table = pq.read_table(pa.BufferReader(read(name)), columns=["track_id", "tag_status"])
        if len(table) != n_rows or table["tag_status"].null_count:
            return f"{name} has {len(table)} rows, {table['tag_status'].null_count} without status"
        ids += table["track_id"].to_pylist()
    if len(ids) != marker["n_rows"] or len(ids) != len(set(ids)):
        return f"{len(ids)} rows of {len(set(ids))} tracks, the marker says {marker['n_rows']}"
    return None


def main() -> None:
    """Look until standard input ends."""
    uri, *endpoint = sys.argv[1:]
    output = parse_uri(uri)
    watch = Watch(Storage(StorageConfig(endpoint_url=endpoint[0] if endpoint else None)), output)
    seconds = _STORE_SECONDS if output.is_s3 else _DISK_SECONDS
    assert not stat.S_ISREG(os.fstat(0).st_mode), "standard input must be a pipe"
    next_tables = 0.0
    while not select.select([0], [], [], seconds)[0]:
        watch.look_at_nights()
        if time.monotonic() > next_tables:
            watch.look()
            next_tables = time.monotonic() + _TABLES_SECONDS
    watch.look()
    print(json.dumps({"faults": watch.faults, "seen": watch.seen}), flush=True)
    # An Arrow thread that lets go of Python's bytes while the interpreter ends aborts the process.
    os._exit(0)


if __name__ == "__main__":
    main()
