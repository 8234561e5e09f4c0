"""What is done: ``scores/``, ``features/``, ``rejects/``, and the only code that commits to them.

Workers write whole Parquet parts under ``<table>/<run_id>/`` and hand back their names. The one
driver that holds the lease adds finished parts to the Delta tables, many in one transaction.
A part that no commit names does not exist for any reader, and is swept by the next run.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from deltalake import CommitProperties, DeltaTable, Field, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from mer_batch import feature_table, schema
from mer_batch.delta import (
    add_actions,
    flush_commit,
    open_table,
    part_paths,
    refresh,
    table_uri,
    transaction_version,
    unused_paths,
)
from mer_batch.errors import CatalogError, LeaseError, StorageError
from mer_batch.schema import content_id
from mer_batch.steps import reach
from mer_batch.storage import Location, Storage
from mer_batch.track_index import digest_of

_LEASE_APP = "mer_batch_lease"
_COMMIT_APP = "mer_batch_commit"
_CREDENTIALS_SECONDS = 300.0
_MAX_RACES = 20
_MAX_WAIT_SECONDS = 4.0
_MERGED_PART = re.compile(r"/merged-\d+-([0-9a-f]{24})\.parquet$")
_RETENTION = "delta.deletedFileRetentionDuration"
# Of a table that says nothing: Delta's own.
_RETENTION_DAYS = 7
_STREAM_ROWS = 1 << 18
_READ_AHEAD = {"batch_readahead": 4, "fragment_readahead": 4}


@dataclass(frozen=True)
class Part:
    """A finished file: its path below its table's folder, its size and rows.

    Attributes
    ----------
    stats : dict
        What else its table's log is to say of it, as Delta has it: ``minValues`` and the like.
    """

    path: str
    n_bytes: int
    n_rows: int
    stats: dict[str, Any] = field(default_factory=dict)


class Ledger:
    """The tables of one output.

    Parameters
    ----------
    storage : Storage
    output : Location
    id_type : pa.DataType
        Type of the catalog's ids, string or int64.
    product : {"scores", "features"}, optional
        The table that parts are added to. It and the rejects are made where they are not there;
        the other one is read if it is. None: to read only, nothing is made.

    Raises
    ------
    CatalogError
        Where the output was written for ids of another type.
    StorageError
    """

    def __init__(
        self,
        storage: Storage,
        output: Location,
        id_type: pa.DataType,
        *,
        product: Literal["scores", "features"] | None = "scores",
    ) -> None:
        self._storage = storage
        self._output = output
        self._id_type = id_type
        self._product = product
        self._generation = 0
        self._open_all()

    def _open_all(self) -> None:
        self._opened = time.monotonic()
        found = {name: self._open(name) for name in schema.SCHEMAS}
        self._tables = {name: table for name, table in found.items() if table is not None}

    def renew(self) -> None:
        """Open the tables with today's credentials: temporary ones expire in a long night."""
        if self._output.is_s3 and time.monotonic() - self._opened > _CREDENTIALS_SECONDS:
            self._open_all()

    def _open(self, name: str) -> DeltaTable | None:
        location = self._output.child(name)
        table = open_table(self._storage, location)
        if table is None and self._product and name in (self._product, "rejects"):
            self._make(name, location)
            if not location.is_s3:
                flush_commit(location, 0)
            reach("table_made")
            table = open_table(self._storage, location)
        if table is None:
            return None
        found = _id_type(table)
        if found != self._id_type:
            raise CatalogError(
                f"{location.uri} holds ids of type {found}, this catalog's are {self._id_type}; "
                "use another output.uri"
            )
        return table

    def _make(self, name: str, location: Location) -> None:
        """Make a table, once: somebody else may be faster, or the answer be lost."""
        began, n_failed = time.monotonic(), 0
        while True:
            try:
                DeltaTable.create(
                    table_uri(location),
                    schema=Schema.from_arrow(schema.SCHEMAS[name](self._id_type)),
                    mode="ignore",
                    storage_options=self._storage.delta_options(location),
                )
                return
            except (DeltaError, OSError) as error:
                n_failed += 1
                if location.is_s3 and open_table(self._storage, location) is not None:
                    return
                if not self._may_pass(error, n_failed, time.monotonic() - began):
                    raise StorageError(
                        f"cannot open the table {location.uri!r}: {self._storage.explain(error)}"
                    ) from error
            self._wait(n_failed)

    # ------------------------------------------------------------------ reading

    def scores(
        self, *, features_id: str, model_id: str, columns: Sequence[str], after_run: str = ""
    ) -> Iterator[pa.Table]:
        """Rows scored by one model on one feature set, any audio version, some at a time.

        Parameters
        ----------
        after_run : str
            Only of runs whose ids come after this one.
        """
        wanted = (pads.field("features_id") == features_id) & (pads.field("model_id") == model_id)
        if after_run:
            wanted &= pads.field("run_id") > after_run
        return self._stream("scores", columns, wanted)

    def rejects(self, extraction_id: str | None = None) -> pa.Table:
        """Rejects, the latest first: those of one extraction, or by default of all."""
        rows = None if extraction_id is None else pads.field("extraction_id") == extraction_id
        names = schema.SCHEMAS["rejects"](self._id_type).names
        empty = schema.SCHEMAS["rejects"](self._id_type).empty_table()
        found = pa.concat_tables([empty, *self._stream("rejects", names, rows)])
        return found.sort_by([("last_seen", "descending")])

    def features(
        self, *, features_id: str, columns: Sequence[str] = feature_table.INDEX_COLUMNS
    ) -> Iterator[tuple[Location, pa.Table | str]]:
        """Segments of one feature set, any audio version, part by part.

        Yields
        ------
        part : Location
        rows : pa.Table or str
            `columns` and `row`, where each lies in the part; or why it cannot be read.
        """
        if "features" in self._tables:
            self._refresh("features")
        for part, rows in feature_table.rows_by_part(
            self._storage, self._parts("features"), columns
        ):
            if not isinstance(rows, str):
                rows = rows.filter(pads.field("features_id") == features_id)
                rows = rows.select([*columns, "row"])
            if isinstance(rows, str) or rows.num_rows:
                yield part, rows

    def feature_parts(self, features_id: str) -> list[Location]:
        """The parts that hold segments of one feature set."""
        found = self.features(features_id=features_id, columns=["features_id"])
        return [part for part, rows in found if not isinstance(rows, str)]

    def _stream(
        self, name: str, columns: Sequence[str], rows: pads.Expression | None
    ) -> Iterator[pa.Table]:
        """Rows of a table, as it is when the first are asked for."""
        if name not in self._tables:
            return
        self._refresh(name)
        parts = self._parts(name)
        if parts:
            columns_schema = schema.SCHEMAS[name](self._id_type)
            yield from _read_parts(
                self._storage, self._output.child(name), parts, columns, columns_schema, rows
            )

    def _refresh(self, name: str) -> None:
        refresh(self._storage, self._output.child(name), self._tables[name])

    def _parts(self, name: str) -> list[Location]:
        """The files that a table names, below our own name of its folder."""
        if name not in self._tables:
            return []
        return [self._output.child(name, path) for path in self._part_paths(name)]

    def _part_paths(self, name: str) -> list[str]:
        return part_paths(self._storage, self._output.child(name), self._tables[name])

    def content_id(self, extraction_id: str) -> str:
        """Names what a night is made of: changes with every score and every reject of its own.

        Rejects of other extractions, as ``extract`` has them, are not in it. Small parts that are
        merged change nothing.
        """
        scores = []
        if "scores" in self._tables:
            self._refresh("scores")
            scores = [parts_id(self._part_paths("scores"))]
        names = ["track_id", "last_run_id", "audio_version", "reason"]
        rejects = self.rejects(extraction_id).select(names)
        rejects = rejects.sort_by([(name, "ascending") for name in names])
        columns = (pc.fill_null(rejects[name], "") for name in names[1:])
        return content_id([scores, digest_of([rejects["track_id"], *columns])])

    # ------------------------------------------------------------------ writing

    def generation(self) -> int:
        """The latest holder of the lease that has committed, 0 before the first.

        Raises
        ------
        StorageError
        """
        return max((self._latest_generation(name) for name in self._tables), default=0)

    def fence(self, generation: int) -> None:
        """Shut earlier holders of the lease out: their commits carry a smaller generation.

        Brings tables of an earlier release up to today's columns as well.

        Raises
        ------
        LeaseError
            Where a later holder was here already.
        StorageError
            Where the fence could not be put up.
        """
        self._generation = generation
        for name in self._tables:
            reach("fence_to_put")
            self._add(name, [], [])
            reach("fence_put")
        for name in self._tables:
            self._add_missing_columns(name)

    def _add_missing_columns(self, name: str) -> None:
        """Columns that came later are added to the table: in older rows they are null."""
        self._check_generation(name)
        table = self._tables[name]
        there = set(pa.schema(table.schema().to_arrow()).names)
        missing = [
            field for field in schema.SCHEMAS[name](self._id_type) if field.name not in there
        ]
        if not missing:
            return
        fields: list[Field] = Schema.from_arrow(pa.schema(missing)).fields
        self._commit(name, lambda with_: table.alter.add_columns(fields, commit_properties=with_))
        self._refresh(name)

    def commit_parts(
        self, parts: Sequence[Part], *, run_id: str, sequence: int, table: str | None = None
    ) -> None:
        """Add finished parts to a table, the product's by default, in one transaction.

        Raises
        ------
        LeaseError
            Where a later holder of the lease has taken over.
        StorageError
            Where the commit failed and is known not to have happened.
        """
        name = table or self._product
        assert name is not None, "a ledger that only reads commits nothing"
        actions = [_addition(part, is_new=True) for part in parts]
        self._add(name, actions, [Transaction(run_id, sequence)])

    def replace_parts(self, name: str, replaced: Sequence[Part], merged: Part) -> None:
        """Let one part take the place of several with the same rows, in one transaction.

        Raises
        ------
        LeaseError, StorageError
            As :meth:`commit_parts`.
        """
        now_ms = int(time.time() * 1000)
        removals = [RemoveAction(part.path, False, now_ms, part.n_bytes, {}) for part in replaced]
        self._add(name, [_addition(merged, is_new=False), *removals], [])

    def _add(
        self,
        name: str,
        actions: Sequence[AddAction | RemoveAction],
        transactions: list[Transaction],
    ) -> None:
        table = self._tables[name]
        self._commit(
            name,
            lambda with_: table.create_write_transaction(
                list(actions),
                mode="append",
                schema=table.schema(),
                partition_by=[],
                commit_properties=with_,
            ),
            transactions,
        )

    def merge_rejects(self, rows: pa.Table) -> None:
        """Insert or update a product's rows by track_id; one without a reason deletes the track's.

        ``features`` of several kinds may lie in one output: their rows are told apart by
        extraction_id as well.

        Parameters
        ----------
        rows : pa.Table
            In ``schema.rejects_schema``, of one job; at most one row per track.
        """
        if rows.num_rows == 0:
            return
        rejects = self._tables["rejects"]

        def merge(properties: CommitProperties) -> None:
            (
                rejects.merge(
                    rows,
                    # In tables of earlier releases the product is null.
                    predicate=(
                        "target.track_id = source.track_id "
                        "AND coalesce(target.product, 'scores') = source.product "
                        "AND (source.product = 'scores' "
                        "OR target.extraction_id = source.extraction_id)"
                    ),
                    source_alias="source",
                    target_alias="target",
                    commit_properties=properties,
                )
                .when_matched_delete(predicate="source.reason IS NULL")
                .when_matched_update_all()
                .when_not_matched_insert_all(predicate="source.reason IS NOT NULL")
                .execute()
            )

        self._commit("rejects", merge)

    def _commit(
        self,
        name: str,
        commit: Callable[[CommitProperties], object],
        transactions: Sequence[Transaction] = (),
    ) -> None:
        """Commit to a table, once: where it fails, the table knows whether it has happened."""
        # Two transactions that carry the same application id conflict: that is the fence.
        mark = Transaction(_COMMIT_APP, random.getrandbits(62))
        lease = Transaction(_LEASE_APP, self._generation)
        properties = CommitProperties(app_transactions=[lease, mark, *transactions])
        began, n_failed = time.monotonic(), 0
        self._check_generation(name)
        while True:
            try:
                commit(properties)
                break
            except (DeltaError, OSError) as error:
                n_failed += 1
                seconds = time.monotonic() - began
                # The answer may be lost and the commit done.
                self._check_generation(name)
                if self._transaction_version(name, _COMMIT_APP) == mark.version:
                    break
                if not self._may_pass(error, n_failed, seconds):
                    raise StorageError(
                        f"cannot commit to {self._output.child(name).uri!r}: "
                        f"{self._storage.explain(error)}"
                    ) from error
            self._wait(n_failed)
        self._keep(name)

    def _wait(self, n_failed: int) -> None:
        if self._output.is_s3:
            time.sleep(random.uniform(0, min(_MAX_WAIT_SECONDS, 0.1 * 2**n_failed)))

    def _may_pass(self, error: Exception, n_failed: int, seconds: float) -> bool:
        """Whether a commit that failed is worth another try."""
        if self._output.is_s3:
            return seconds < self._storage.patience_seconds and not self._storage.refuses(error)
        # The holder to be shut out may have committed this very moment.
        return isinstance(error, CommitFailedError) and n_failed < _MAX_RACES

    def _keep(self, name: str) -> None:
        """Have the latest commit outlast a loss of power."""
        if not self._output.is_s3:
            self._refresh(name)
            flush_commit(self._output.child(name), self._tables[name].version())

    def _check_generation(self, name: str) -> None:
        latest = self._latest_generation(name)
        if latest > self._generation:
            raise LeaseError(
                f"{self._output.child(name).uri}: a later run (lease generation {latest}, ours "
                f"{self._generation}) has taken over; nothing more is committed"
            )

    def _latest_generation(self, name: str) -> int:
        self._refresh(name)
        return self._transaction_version(name, _LEASE_APP) or 0

    def _transaction_version(self, name: str, app_id: str) -> int | None:
        location = self._output.child(name)
        return transaction_version(self._storage, location, self._tables[name], app_id)

    # ------------------------------------------------------------------ keeping in order

    @property
    def id_type(self) -> pa.DataType:
        """Type of the ids, string or int64."""
        return self._id_type

    @property
    def tables(self) -> list[str]:
        """Names of the tables there are."""
        return list(self._tables)

    def parts(self, name: str) -> list[Part]:
        """Every part of a table's latest version, with the rows and bytes that its log says."""
        self._refresh(name)
        location, table = self._output.child(name), self._tables[name]
        return [
            Part(row["path"], row["size_bytes"], row["num_records"] or 0)
            for row in add_actions(self._storage, location, table).to_pylist()
        ]

    def keep_replaced(self, name: str, days: int) -> None:
        """Have a table's log remember for so long what was replaced, so that nobody deletes it."""
        said = self._tables[name].metadata().configuration.get(_RETENTION)
        interval = f"interval {days} days"
        if said == interval or (said is None and days == _RETENTION_DAYS):
            return
        alter = self._tables[name].alter
        self._commit(
            name,
            lambda with_: alter.set_table_properties(
                {_RETENTION: interval}, commit_properties=with_
            ),
        )

    def checkpoint(self, name: str) -> None:
        """Sum a table's log up, and delete entries of it that are older than it is to keep."""
        self._check_generation(name)
        table, began, n_failed = self._tables[name], time.monotonic(), 0
        while True:
            try:
                table.create_checkpoint()
                table.cleanup_metadata()
                return
            except (DeltaError, OSError) as error:
                n_failed += 1
                if not self._may_pass(error, n_failed, time.monotonic() - began):
                    raise StorageError(
                        f"cannot sum up the log of {self._output.child(name).uri!r}: "
                        f"{self._storage.explain(error)}"
                    ) from error
            self._wait(n_failed)

    def unused(self, name: str, days: int) -> list[Location]:
        """Parts that no version of the last days names: replaced, or never committed by anybody.

        Whatever else lies below the table's folder is somebody else's.
        """
        self._check_generation(name)
        found = self._unused(name, hours=24 * days, strays=True)
        return [file for file in found if ".parquet" in file.path.rpartition("/")[2]]

    def _unused(self, name: str, *, hours: int, strays: bool) -> list[Location]:
        location, table = self._output.child(name), self._tables[name]
        paths = unused_paths(self._storage, location, table, hours=hours, strays=strays)
        return [location.child(path) for path in paths]

    # ------------------------------------------------------------------ sweeping

    def sweep(self, run_id: str) -> int:
        """Delete the parts of a run that no commit names; returns how many.

        Only safe for a run that has ended, by the holder of the lease.
        """
        return sum(self._sweep(name, run_id) for name in ("scores", "features"))

    def _sweep(self, name: str, run_id: str) -> int:
        folder = self._output.child(name, run_id)
        if name not in self._tables or not (folder.is_s3 or self._storage.is_folder(folder)):
            return 0
        listed = [found for found, _, _ in self._storage.list_files(folder)]
        self._check_generation(name)
        named = {part.uri for part in self._parts(name)}
        if not {found.uri for found in listed} <= named:
            # What was merged is still of use to readers of earlier versions.
            named |= {part.uri for part in self._unused(name, hours=0, strays=False)}
        n_swept = 0
        for found in listed:
            if found.uri not in named:
                reach("part_to_sweep")
                self._storage.delete(found)
                n_swept += 1
        return n_swept


def _addition(part: Part, *, is_new: bool) -> AddAction:
    """A part as a commit names it; `is_new` where its rows were not there before."""
    stats = {"numRecords": part.n_rows, **part.stats}
    now_ms = int(time.time() * 1000)
    return AddAction(part.path, part.n_bytes, {}, now_ms, is_new, json.dumps(stats))


def parts_id(paths: Iterable[str]) -> str:
    """Names what parts hold: the same before and after some of them are merged.

    A sum of hashes, in any order. A merged part has that of the parts it was made of in its name.
    """
    return f"{sum(map(_part_hash, paths)) % 2**96:024x}"


def _part_hash(path: str) -> int:
    merged = _MERGED_PART.search(path)
    return int(merged[1] if merged else hashlib.sha256(path.encode()).hexdigest()[:24], 16)


def held_id_type(storage: Storage, output: Location) -> pa.DataType | None:
    """Type of the ids that an output was written for, None before its first run.

    Raises
    ------
    StorageError
        Where one of its tables cannot be read.
    """
    for name in schema.SCHEMAS:
        location = output.child(name)
        # A store that does not answer is given up sooner, and in better words, than by delta-rs.
        if storage.is_folder(location.child("_delta_log")):
            table = open_table(storage, location)
            if table is not None:
                return _id_type(table)
    return None


def _id_type(table: DeltaTable) -> pa.DataType:
    return pa.schema(table.schema().to_arrow()).field("track_id").type


def reject_reasons(storage: Storage, output: Location) -> dict[str, int]:
    """How many tracks an output holds as rejects, by reason, the most frequent first.

    Raises
    ------
    StorageError
        Where its table cannot be read.
    """
    location = output.child("rejects")
    table = open_table(storage, location)
    paths = part_paths(storage, location, table) if table is not None else []
    if not paths:
        return {}
    parts = [location.child(path) for path in paths]
    found_rows = _read_parts(storage, location, parts, ["track_id", "reason"])
    rows = pa.concat_tables(found_rows)
    counts = rows.group_by("reason").aggregate([("track_id", "count_distinct")])
    found = zip(*counts.to_pydict().values(), strict=True)
    return dict(sorted(found, key=lambda pair: (-pair[1], pair[0])))


def _read_parts(
    storage: Storage,
    table: Location,
    parts: Sequence[Location],
    columns: Sequence[str],
    columns_schema: pa.Schema | None = None,
    rows: pads.Expression | None = None,
) -> Iterator[pa.Table]:
    """Columns of a table's parts, some hundred thousand rows at a time."""
    try:
        # Not DeltaTable.to_pyarrow_table(): it may abort the interpreter at exit.
        dataset = pads.dataset(
            [part.fs_path for part in parts],
            filesystem=storage.filesystem(table),
            format="parquet",
            schema=columns_schema,
        )
        batches = dataset.to_batches(columns=list(columns), filter=rows, **_READ_AHEAD)
        held: list[pa.RecordBatch] = []
        n_held = 0
        for batch in batches:
            held.append(batch)
            n_held += batch.num_rows
            # Most parts are small: what is done with them costs by the piece.
            if n_held >= _STREAM_ROWS:
                yield pa.Table.from_batches(held)
                held, n_held = [], 0
        if held:
            yield pa.Table.from_batches(held)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"cannot read the table {table.uri!r}: {storage.explain(error)}"
        ) from error
