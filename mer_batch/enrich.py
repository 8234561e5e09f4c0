"""Publish a night: the whole catalog, its columns untouched, with its scores."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mer_batch import schema
from mer_batch.budget import Budget, Night
from mer_batch.catalog import Catalog
from mer_batch.disk import exchange, flush, make_folder
from mer_batch.errors import LeaseError, MerBatchError, StorageError
from mer_batch.ledger import Ledger, track_keys
from mer_batch.plan import Plan
from mer_batch.schema import Identity
from mer_batch.steps import reach
from mer_batch.storage import Location, Storage

MARKER = "_SUCCESS"
_ROWS_PER_PART = 1_000_000
_ROWS_PER_GROUP = 65_536


@dataclass(frozen=True)
class Outcome:
    """How the night ended for every track of the catalog.

    Attributes
    ----------
    columns : pa.Table
        ``schema.ENRICHED_FIELDS``, one row per catalog row, in its order.
    n_scored : int
    n_rejected : dict of str to int
        By reason.
    """

    columns: pa.Table
    n_scored: int
    n_rejected: dict[str, int]


def look_up_outcome(plan: Plan, ledger: Ledger, identity: Identity) -> Outcome:
    """Find every catalog row's score or reject in the ledger.

    Raises
    ------
    MerBatchError
        Where a track has neither: the night is not complete.
    """
    names = [f.name for f in schema.ENRICHED_FIELDS if f.name != "tag_status"]
    scores = ledger.scores(
        features_id=identity.features_id,
        model_id=identity.model_id,
        columns=["track_id", "audio_version", *names],
    ).sort_by([("scored_at", "descending")])  # without versions, the newest score counts
    rejects = ledger.rejects(identity.extraction_id)
    at_score = _find(plan, scores)
    at_reject = _find(plan, rejects)

    status = pc.if_else(
        pc.is_valid(at_score), schema.SCORED, rejects["reason"].take(at_reject).combine_chunks()
    )
    n_missing = status.null_count
    if n_missing:
        keys = plan.keys.filter(pc.is_null(status)).slice(0, 5).to_pylist()
        ids = [key.partition("\x00")[2] if plan.with_versions else key for key in keys]
        raise MerBatchError(
            f"{n_missing} tracks have neither a score nor a reject (first: {ids!r}); "
            "run again to finish them"
        )
    found = scores.take(at_score)
    arrays = [status if f.name == "tag_status" else found[f.name] for f in schema.ENRICHED_FIELDS]
    columns = pa.table(arrays, schema=pa.schema(schema.ENRICHED_FIELDS))
    counts = {row["values"]: row["counts"] for row in pc.value_counts(status).to_pylist()}
    return Outcome(columns, counts.pop(schema.SCORED, 0), dict(sorted(counts.items())))


def _find(plan: Plan, rows: pa.Table) -> pa.Array:
    """For every catalog row the index of its row in `rows`, or null."""
    versions = rows["audio_version"] if plan.with_versions else None
    keys = track_keys(rows["track_id"], versions)
    return pc.index_in(plan.keys, keys.combine_chunks()).combine_chunks()


def open_budget(
    plan: Plan,
    ledger: Ledger,
    identity: Identity,
    *,
    latest: dict[str, Any] | None,
    max_reject_rate: float,
) -> Budget:
    """Count what is to be tried, and what runs since the last published night have tried.

    Parameters
    ----------
    latest : dict or None
        Content of the latest marker.
    """
    since = Night.of(latest) if latest else None
    last_run_id = since.run_id if since else ""
    scores = ledger.scores(
        features_id=identity.features_id,
        model_id=identity.model_id,
        columns=["track_id", "audio_version", "run_id"],
    )
    scores = scores.filter(pc.greater(scores["run_id"], last_run_id))
    n_scored = pc.sum(pc.is_valid(_find(plan, scores))).as_py() or 0
    rejects = ledger.rejects(identity.extraction_id)
    # A reject that the last night had already is nothing new.
    rejects = rejects.filter(pc.greater(rejects["first_run_id"], last_run_id))
    at = _find(plan, rejects).filter(plan.is_rejected.combine_chunks())
    counts = pc.value_counts(rejects["reason"].take(at.drop_null())).to_pylist()
    before = {row["values"]: row["counts"] for row in counts}
    n_tried = n_scored + sum(before.values())
    first_run_id = plan.pending["first_run_id"]
    n_known = pc.sum(pc.less_equal(first_run_id, last_run_id)).as_py() or 0
    n_tracks = n_tried + len(plan.pending) - n_known
    return Budget(n_tracks, max_reject_rate, n_tried, before, since)


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


def publish(
    storage: Storage,
    night: Location,
    catalog: Catalog,
    outcome: Outcome,
    *,
    prefix: str,
    run_id: str,
    marker: dict[str, Any],
    check: Callable[[], None],
) -> None:
    """Write ``enriched/run_date=.../part-*.parquet`` and, last, ``_SUCCESS``.

    A night published before is replaced. On a local disk the new folder and the old one exchange
    their names; on an object store the marker goes first and comes back last. A reader that waits
    for the marker never sees half a night.

    Parameters
    ----------
    night : Location
        The folder of the night.
    prefix : str
        Put before the names of the added columns.
    marker : dict
        Becomes the marker's content, with the parts' names and rows.
    check : callable
        Called before every step that a reader could see; raises where the output is no longer ours.
    """
    new = _aside(night, f"_unfinished-{run_id}")
    reach("publish_to_begin")
    try:
        if night.is_s3:
            _publish_objects(
                storage, night, catalog, outcome,
                prefix=prefix, run_id=run_id, marker=marker, check=check,
            )  # fmt: skip
            return
        folder, parts = Location(None, str(new)), list[dict[str, Any]]()
        _write_parts(
            storage, folder, catalog, outcome, parts, prefix=prefix, run_id=run_id, check=check
        )
        check()
        reach("marker_to_write")
        storage.write(folder.child(MARKER), _marker_bytes(marker, parts))
        reach("marker_written")
        check()
        reach("night_to_place")
        _put_in_place(new, Path(night.path), _aside(night, f"_replaced-{run_id}"))
        reach("night_cleared")
    except OSError as error:
        check()  # who has taken over has swept what we were writing
        raise StorageError(
            f"cannot publish {night.uri!r}: {error}; free some space, run again"
        ) from error
    finally:
        # By ourselves: who has taken over believes it swept already.
        if not night.is_s3:
            shutil.rmtree(new.parent, ignore_errors=True)


def _publish_objects(
    storage: Storage,
    night: Location,
    catalog: Catalog,
    outcome: Outcome,
    *,
    prefix: str,
    run_id: str,
    marker: dict[str, Any],
    check: Callable[[], None],
) -> None:
    """Publish where nothing can be renamed: the marker goes first and comes back last."""
    check()
    present = read_marker(storage, night)
    storage.delete(night.child(MARKER))
    reach("marker_removed")
    # A listing may be stale: what the marker has named goes as well.
    named = [night.child(part["name"]) for part in (present or {}).get("parts", ())]
    for found in dict.fromkeys([*(found for found, _, _ in _list(storage, night)), *named]):
        storage.delete(found)
    parts: list[dict[str, Any]] = []
    try:
        _write_parts(
            storage, night, catalog, outcome, parts, prefix=prefix, run_id=run_id, check=check
        )
        _await_listing(storage, night, {night.child(part["name"]) for part in parts})
        check()
    except BaseException:
        _take_back(storage, night, parts)
        raise
    reach("marker_to_write")
    content = _marker_bytes(marker, parts)
    if storage.write_if(night.child(MARKER), content, token=None) is None:
        _take_back(storage, night, parts)
        raise LeaseError(f"{night.uri}: another run has published this night meanwhile")
    reach("marker_written")


def _await_listing(storage: Storage, night: Location, parts: set[Location]) -> None:
    """Wait until the store lists a night's parts and nothing else: that is what readers will see.

    A listing that shows what was written just now shows what an earlier try has left, too.

    Raises
    ------
    StorageError
        Where that takes too long.
    """
    began = time.monotonic()
    for attempt in itertools.count():
        listed = {found for found, _, _ in _list(storage, night)}
        for found in sorted(listed - parts, key=lambda found: found.path):
            storage.delete(found)
        if listed == parts:
            return
        if time.monotonic() - began > storage.patience_seconds:
            raise StorageError(
                f"the store's listing of {night.uri!r} is stale: it does not show just the parts "
                "that were written; run again when the store has caught up"
            )
        time.sleep(min(2.0, 0.1 * 2**attempt))


def _take_back(storage: Storage, night: Location, parts: list[dict[str, Any]]) -> None:
    """Remove our parts: who has taken over publishes beside them, and rows would be there twice."""
    for part in parts:
        with contextlib.suppress(MerBatchError):  # then the next run sweeps
            storage.delete(night.child(part["name"]))


def _marker_bytes(marker: dict[str, Any], parts: list[dict[str, Any]]) -> bytes:
    n_rows = sum(part["n_rows"] for part in parts)
    return json.dumps({**marker, "n_rows": n_rows, "parts": parts}, indent=2).encode()


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


def sweep_unfinished(storage: Storage, output: Location, run_id: str) -> None:
    """Remove what a publish that was cut short has left, and put back a night that it moved."""
    enriched = output.child("enriched")
    if enriched.is_s3:
        _sweep_objects(storage, enriched, run_id)
        return
    for moved in Path(enriched.path, f"_replaced-{run_id}").glob("*"):
        if not os.path.isdir(Path(enriched.path, moved.name)):
            os.rename(moved, Path(enriched.path, moved.name))
    for name in (f"_unfinished-{run_id}", f"_replaced-{run_id}"):
        shutil.rmtree(Path(enriched.path, name), ignore_errors=True)


def _sweep_objects(storage: Storage, enriched: Location, run_id: str) -> None:
    """Remove the parts of nights that have no marker, and what a run has left beside a later one.

    Markers are asked for by name: a stale listing may not show one.
    """
    # Of our own names only: what others have put beside the nights is theirs.
    ours = re.compile(r"/run_date=[^/]+/part-[^/]+\.parquet$")
    files = [found for found, _, _ in _list(storage, enriched) if ours.search(found.path)]
    by_night = itertools.groupby(files, key=lambda found: found.path.rpartition("/")[0])
    for folder, parts in by_night:
        present = storage.read_with_token(Location(enriched.bucket, folder).child(MARKER))
        content = _marker_content(present[0]) if present else None
        named = {part["name"] for part in (content or {}).get("parts", ())}
        for part in parts:
            name = part.path.rpartition("/")[2]
            is_left = content and name.endswith(f"-{run_id}.parquet") and name not in named
            if present is None or is_left:
                storage.delete(part)


def _write_parts(
    storage: Storage,
    folder: Location,
    catalog: Catalog,
    outcome: Outcome,
    parts: list[dict[str, Any]],
    *,
    prefix: str,
    run_id: str,
    check: Callable[[], None],
) -> None:
    """Write a night's parts; `parts` takes the name and rows of each as it is begun."""
    added = [field.with_name(prefix + field.name) for field in schema.ENRICHED_FIELDS]
    columns = pa.schema([*catalog.schema, *added], metadata=catalog.schema.metadata)
    filesystem = storage.filesystem(folder)
    if not folder.is_s3:
        make_folder(Path(folder.path))
    writer: pq.ParquetWriter | None = None
    try:
        for batch in _joined(catalog, outcome, columns):
            if writer is None or parts[-1]["n_rows"] >= _ROWS_PER_PART:
                check()
                if writer is not None:
                    writer.close()
                    reach("night_part_written")
                parts.append({"name": f"part-{len(parts):05d}-{run_id}.parquet", "n_rows": 0})
                path = folder.child(parts[-1]["name"]).fs_path
                writer = pq.ParquetWriter(path, columns, filesystem=filesystem, compression="zstd")
            writer.write_batch(batch, row_group_size=_ROWS_PER_GROUP)
            parts[-1]["n_rows"] += batch.num_rows
    finally:
        if writer is not None:
            writer.close()
    reach("night_part_written")
    if not folder.is_s3:
        for part in parts:
            flush(Path(folder.path, part["name"]))
    n_rows = sum(part["n_rows"] for part in parts)
    if n_rows != len(outcome.columns):
        raise MerBatchError(
            f"the catalog had {len(outcome.columns)} rows when the run began and {n_rows} now; "
            "it changed meanwhile: run again"
        )


def _joined(catalog: Catalog, outcome: Outcome, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The catalog's batches with our columns behind theirs."""
    begin = 0
    for batch in catalog.batches():
        if batch.num_rows == 0:
            continue
        ours = outcome.columns.slice(begin, batch.num_rows).combine_chunks()
        begin += batch.num_rows
        arrays = [*batch.columns, *(c.combine_chunks() for c in ours.columns)]
        yield pa.RecordBatch.from_arrays(arrays, schema=columns)
