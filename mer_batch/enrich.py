"""Publish a night: the whole catalog, its columns untouched, with its scores."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mer_batch import schema
from mer_batch.catalog import Catalog
from mer_batch.disk import exchange, flush, make_folder
from mer_batch.errors import LeaseError, MerBatchError, StorageError
from mer_batch.faults import explanation
from mer_batch.lease import Lease
from mer_batch.outcome import Outcome
from mer_batch.steps import reach
from mer_batch.storage import Location, Storage

MARKER = "_SUCCESS"
_PART = re.compile(r"/run_date=[^/]+/part-[^/]+\.parquet$")
# A part's rows are held until it is written: so many bytes at most, and one part a writer.
_ROWS_PER_PART = 1_000_000
_BYTES_PER_PART = 64 << 20
_ROWS_PER_GROUP = 65_536
_WRITERS = 2


def last_published(storage: Storage, output: Location) -> dict[str, Any] | None:
    """The content of the latest night's marker, None before the first."""
    markers = [
        found
        for found, _, _ in _list(storage, output.child("enriched"))
        if found.path.endswith(f"/{MARKER}")
    ]
    if not markers:
        return None
    latest = sorted(markers, key=lambda marker: marker.path)[-3:]
    nights = [night for marker in latest if (night := _read_marker(storage, marker))]
    return max(nights, key=lambda night: str(night["published_at"]), default=None)


def is_published(storage: Storage, night: Location, content_id: str) -> bool:
    """Whether a night of this content is there: its marker, and every part that it names."""
    present = read_marker(storage, night)
    if present is None or present["content_id"] != content_id:
        return False
    return all(storage.exists(night.child(part["name"])) for part in present.get("parts", ()))


def read_marker(storage: Storage, night: Location) -> dict[str, Any] | None:
    """The marker of one night, None where that night is not published."""
    return _read_marker(storage, night.child(MARKER))


def _read_marker(storage: Storage, marker: Location) -> dict[str, Any] | None:
    present = storage.read_with_token(marker)
    return _marker_content(present[0]) if present else None


def _marker_content(text: bytes) -> dict[str, Any] | None:
    """What a marker says; None for one that is not of this package's writing."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    named = {"run_id", "run_date", "published_at", "content_id"}
    return content if isinstance(content, dict) and named <= set(content) else None


def _list(storage: Storage, folder: Location) -> list[tuple[Location, int, str]]:
    if not folder.is_s3 and not os.path.isdir(folder.path):
        return []
    return list(storage.list_files(folder))


@dataclass(frozen=True)
class Publication:
    """A night as it is to be published.

    Attributes
    ----------
    storage : Storage
    folder : Location
        ``enriched/run_date=...``.
    catalog : Catalog
    outcome : Outcome
    prefix : str
        Put before the names of the added columns.
    marker : dict
        Becomes the marker's content, with the parts' names and rows; names the run.
    lease : Lease
        Asked before every step that a reader could see.
    """

    storage: Storage
    folder: Location
    catalog: Catalog
    outcome: Outcome
    prefix: str
    marker: dict[str, Any]
    lease: Lease

    @property
    def run_id(self) -> str:
        """Of the run that publishes; in the name of each part."""
        return str(self.marker["run_id"])

    def locations(self, parts: Iterable[dict[str, Any]]) -> set[Location]:
        """Where the parts of this night lie that a marker names."""
        return {self.folder.child(part["name"]) for part in parts}

    def marker_bytes(self, parts: list[dict[str, Any]]) -> bytes:
        n_rows = sum(part["n_rows"] for part in parts)
        return json.dumps({**self.marker, "n_rows": n_rows, "parts": parts}, indent=2).encode()


def publish(night: Publication) -> None:
    """Write ``enriched/run_date=.../part-*.parquet`` and, last, ``_SUCCESS``.

    A night published before is replaced. On a local disk the new folder and the old one exchange
    their names; on an object store the marker goes first and comes back last. A reader that waits
    for the marker never sees half a night.

    Raises
    ------
    LeaseError
        Where the output is no longer ours.
    StorageError
    MerBatchError
        Where the catalog has changed meanwhile, or cannot be written.
    """
    reach("publish_to_begin")
    pa.default_memory_pool().release_unused()  # what looking the outcome up has left behind
    try:
        (_publish_objects if night.folder.is_s3 else _publish_on_disk)(night)
    except OSError as error:
        night.lease.check()  # who has taken over has swept what we were writing
        raise StorageError(
            f"cannot publish {night.folder.uri!r}: {error}; free some space, run again"
        ) from error
    except pa.ArrowException as error:
        raise MerBatchError(
            f"cannot publish {night.folder.uri!r}: the catalog cannot be written as Parquet: "
            f"{explanation(error)}"
        ) from error


def _publish_on_disk(night: Publication) -> None:
    """Publish a night that is written aside, and takes its place as a whole."""
    new = _aside(night.folder, f"_unfinished-{night.run_id}")
    parts: list[dict[str, Any]] = []
    try:
        _write_parts(night, Location(None, str(new)), parts)
        night.lease.check()
        reach("marker_to_write")
        night.storage.write(Location(None, str(new / MARKER)), night.marker_bytes(parts))
        reach("marker_written")
        night.lease.check()
        reach("night_to_place")
        old = _aside(night.folder, f"_replaced-{night.run_id}")
        _put_in_place(new, Path(night.folder.path), old)
        reach("night_cleared")
    finally:
        # By ourselves: who has taken over believes it swept already.
        shutil.rmtree(new.parent, ignore_errors=True)


def _publish_objects(night: Publication) -> None:
    """Publish where nothing can be renamed: the marker goes first and comes back last."""
    replaced = read_marker(night.storage, night.folder) or {}
    night.lease.confirm()
    night.storage.delete(night.folder.child(MARKER))
    reach("marker_removed")
    parts: list[dict[str, Any]] = []
    try:
        _write_parts(night, night.folder, parts)
        _clear_beside(night, parts, replaced.get("parts", ()))
    except BaseException:
        _take_back(night, parts)
        raise
    reach("marker_to_write")
    try:
        _put_marker(night, night.marker_bytes(parts))
    except LeaseError:
        _take_back(night, parts)
        raise
    reach("marker_written")


def _clear_beside(
    night: Publication, parts: list[dict[str, Any]], replaced: Iterable[dict[str, Any]]
) -> None:
    """Remove all parts but ours, until the store lists just these: that is what readers will see.

    A listing may be stale. One that shows what was written just now shows what an earlier try has
    left, too; what the night before has named goes in any case. Only what was listed before the
    lease was confirmed is removed: none of it is of a run that has taken over.

    Raises
    ------
    LeaseError
    StorageError
        Where the listing stays stale.
    """
    ours, named = night.locations(parts), night.locations(replaced)
    began = time.monotonic()
    for attempt in itertools.count():
        listed = set(_listed_parts(night.storage, night.folder))
        reach("beside_to_clear")
        night.lease.confirm()
        for found in sorted((listed | named) - ours, key=lambda found: found.path):
            night.storage.delete(found)
        if listed == ours:
            return
        if time.monotonic() - began > night.storage.patience_seconds:
            raise StorageError(
                f"the store's listing of {night.folder.uri!r} is stale: it does not show just the "
                "parts that were written; run again when the store has caught up"
            )
        named = set()
        time.sleep(min(2.0, 0.1 * 2**attempt))


def _put_marker(night: Publication, content: bytes) -> None:
    """Put the marker where there is none, or in the place of one that came late.

    A run that had lost its lease may have put its own, of parts that were swept since.
    """
    marker, token = night.folder.child(MARKER), None
    while True:
        night.lease.confirm()
        if night.storage.write_if(marker, content, token=token) is not None:
            return
        present = night.storage.read_with_token(marker)
        token = present[1] if present else None


def _take_back(night: Publication, parts: list[dict[str, Any]]) -> None:
    """Remove our parts: who has taken over publishes beside them, and rows would be there twice."""
    for part in night.locations(parts):
        with contextlib.suppress(MerBatchError):  # then the next run sweeps
            night.storage.delete(part)


def _put_in_place(
    new: Path, night: Path, old: Path, *, swap: Callable[[Path, Path], bool] = exchange
) -> None:
    """Let a whole night take its place on a local disk, and remove the one that was there."""
    if not night.is_dir():
        os.rename(new, night)
    elif not swap(new, night):
        # For a moment the night is gone: should we die here, the next run puts the old one back.
        old.parent.mkdir()
        os.rename(night, old)
        try:
            os.rename(new, night)
        except OSError:
            os.rename(old, night)
            raise
    flush(night.parent)
    reach("night_placed")
    for folder in (new.parent, old.parent):
        shutil.rmtree(folder, ignore_errors=True)


def _aside(night: Location, folder: str) -> Path:
    """Where a night lies while it is not the published one, under its own name.

    The leading underscore hides it from every reader of partitioned Parquet.
    """
    return Path(night.path).parent / folder / Path(night.path).name


def sweep_unfinished(storage: Storage, output: Location, run_id: str, lease: Lease) -> list[str]:
    """Remove what a publish that was cut short has left, and put back a night that it moved.

    Returns
    -------
    list of str
        Dates of the nights whose marker is gone: what was left of them is removed.

    Raises
    ------
    LeaseError
    StorageError
    """
    enriched = output.child("enriched")
    if enriched.is_s3:
        return _sweep_objects(storage, enriched, run_id, lease)
    for moved in Path(enriched.path, f"_replaced-{run_id}").glob("*"):
        if not os.path.isdir(Path(enriched.path, moved.name)):
            os.rename(moved, Path(enriched.path, moved.name))
    for name in (f"_unfinished-{run_id}", f"_replaced-{run_id}"):
        shutil.rmtree(Path(enriched.path, name), ignore_errors=True)
    return []


def _sweep_objects(storage: Storage, enriched: Location, run_id: str, lease: Lease) -> list[str]:
    """Remove the parts of nights that have no marker, and what a run has left beside a later one.

    Markers are asked for by name: a stale listing may not show one. All is looked at before the
    lease is confirmed: who takes over later has his own parts there, and no marker yet.
    """
    left: list[Location] = []
    hidden: list[str] = []
    files = _listed_parts(storage, enriched)
    for folder, parts in itertools.groupby(files, key=lambda found: found.path.rpartition("/")[0]):
        present = storage.read_with_token(Location(enriched.bucket, folder).child(MARKER))
        if present is None:
            left += parts
            hidden.append(folder.rpartition("/run_date=")[2])
        elif content := _marker_content(present[0]):
            named = {f"{folder}/{part['name']}" for part in content.get("parts", ())}
            left += (p for p in parts if p.path not in named and _is_part_of(p, run_id))
    begun: list[tuple[Location, str]] = []
    with contextlib.suppress(StorageError):  # not every store tells, or lets everybody ask
        begun = [
            (p, upload) for p, upload in storage.list_begun(enriched) if _is_part_of(p, run_id)
        ]
    reach("night_to_sweep")
    lease.confirm()
    for part in left:
        storage.delete(part)
    for part, upload in begun:
        storage.drop_begun(part, upload)
    return hidden


def _listed_parts(storage: Storage, folder: Location) -> list[Location]:
    """Parts of nights as listed below a folder: what others have put beside them is theirs."""
    return [found for found, _, _ in _list(storage, folder) if _PART.search(found.path)]


def _is_part_of(part: Location, run_id: str) -> bool:
    return _PART.search(part.path) is not None and part.path.endswith(f"-{run_id}.parquet")


def _write_parts(night: Publication, folder: Location, parts: list[dict[str, Any]]) -> None:
    """Write a night's parts; `parts` takes the name and rows of each as it is begun."""
    added = [field.with_name(night.prefix + field.name) for field in schema.ENRICHED_FIELDS]
    catalog, outcome = night.catalog, night.outcome
    columns = pa.schema([*catalog.schema, *added], metadata=catalog.schema.metadata)
    if not folder.is_s3:
        make_folder(Path(folder.path))
    in_hand: deque[Future[None]] = deque()
    # Arrow writes a file in one thread: two of them keep two cores busy.
    with ThreadPoolExecutor(_WRITERS, thread_name_prefix="publish") as writers:
        for batches in _divided(_joined(catalog, outcome, columns)):
            if len(in_hand) == _WRITERS:
                in_hand.popleft().result()
                reach("night_part_written")
            night.lease.check()
            name = f"part-{len(parts):05d}-{night.run_id}.parquet"
            parts.append({"name": name, "n_rows": sum(batch.num_rows for batch in batches)})
            in_hand.append(writers.submit(_write_part, night, folder.child(name), columns, batches))
        for written in in_hand:
            written.result()
            reach("night_part_written")
    n_rows = sum(part["n_rows"] for part in parts)
    if n_rows != len(outcome):
        raise MerBatchError(
            f"the catalog had {len(outcome)} rows when the run began and {n_rows} now; "
            "it changed meanwhile: run again"
        )


def _write_part(
    night: Publication, part: Location, columns: pa.Schema, batches: list[pa.RecordBatch]
) -> None:
    filesystem = night.storage.filesystem(part)
    with pq.ParquetWriter(
        part.fs_path, columns, filesystem=filesystem, compression="zstd"
    ) as writer:
        for batch in batches:
            writer.write_batch(batch, row_group_size=_ROWS_PER_GROUP)
    batches.clear()  # whoever waits for this part's end needs no rows of it
    if not part.is_s3:
        flush(Path(part.path))


def _divided(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """The batches of one part after another."""
    held: list[pa.RecordBatch] = []
    n_rows = n_bytes = 0
    for batch in batches:
        held.append(batch)
        n_rows += batch.num_rows
        n_bytes += batch.nbytes
        if n_rows >= _ROWS_PER_PART or n_bytes >= _BYTES_PER_PART:
            yield held
            held, n_rows, n_bytes = [], 0, 0
    if held:
        yield held


def _joined(catalog: Catalog, outcome: Outcome, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The catalog's batches with our columns behind theirs."""
    begin = 0
    for batch in catalog.batches():
        if batch.num_rows == 0:
            continue
        arrays = [*batch.columns, *outcome.rows(begin, batch.num_rows)]
        begin += batch.num_rows
        yield pa.RecordBatch.from_arrays(arrays, schema=columns)
