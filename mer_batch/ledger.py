"""What is done: the ``scores/`` and ``rejects/`` tables, and the only code that commits to them.

Workers write whole Parquet parts under ``scores/<run_id>/`` and hand back their names. The one
driver that holds the lease adds finished parts to the Delta table, many in one transaction.
A part that no commit names does not exist for any reader, and is swept by the next run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction

from mer_batch import schema
from mer_batch.errors import CatalogError, LeaseError, StorageError
from mer_batch.schema import content_id
from mer_batch.storage import Location, Storage

_LEASE_APP = "mer_batch_lease"
_CREDENTIALS_SECONDS = 300.0
_FENCE_ATTEMPTS = 20


@dataclass(frozen=True)
class Part:
    """A finished file of scores: its path below ``scores/``, its size and rows."""

    path: str
    n_bytes: int
    n_rows: int


class Ledger:
    """The two tables of one output.

    Parameters
    ----------
    storage : Storage
    output : Location
    id_type : pa.DataType
        Type of the catalog's ids, string or int64.

    Raises
    ------
    CatalogError
        Where the output was written for ids of another type.
    StorageError
    """

    def __init__(self, storage: Storage, output: Location, id_type: pa.DataType) -> None:
        self._storage = storage
        self._output = output
        self._id_type = id_type
        self._generation = 0
        self._open_both()

    def _open_both(self) -> None:
        self._opened = time.monotonic()
        self._scores = self._open("scores", schema.scores_schema(self._id_type))
        self._rejects = self._open("rejects", schema.rejects_schema(self._id_type))

    def renew(self) -> None:
        """Open the tables with today's credentials: temporary ones expire in a long night."""
        if self._output.is_s3 and time.monotonic() - self._opened > _CREDENTIALS_SECONDS:
            self._open_both()

    def _open(self, name: str, columns: pa.Schema) -> DeltaTable:
        location = self._output.child(name)
        options = self._storage.delta_options(location)
        try:
            try:
                table = DeltaTable(location.uri, storage_options=options)
            except TableNotFoundError:
                DeltaTable.create(
                    location.uri,
                    schema=Schema.from_arrow(columns),
                    mode="ignore",
                    storage_options=options,
                )
                table = DeltaTable(location.uri, storage_options=options)
        except (DeltaError, OSError) as error:
            raise StorageError(f"cannot open the table {location.uri!r}: {error}") from error
        found = pa.schema(table.schema().to_arrow()).field("track_id").type
        if found != self._id_type:
            raise CatalogError(
                f"{location.uri} holds ids of type {found}, this catalog's are {self._id_type}; "
                "use another output.uri"
            )
        return table

    # ------------------------------------------------------------------ reading

    def scores(self, *, features_id: str, model_id: str, columns: Sequence[str]) -> pa.Table:
        """Rows scored by one model on one feature set, any audio version."""
        return self._read(
            self._scores,
            schema.scores_schema(self._id_type),
            columns,
            (pads.field("features_id") == features_id) & (pads.field("model_id") == model_id),
        )

    def rejects(self) -> pa.Table:
        """All rejects, one row per track."""
        columns = schema.rejects_schema(self._id_type)
        return self._read(self._rejects, columns, columns.names, None)

    def _read(
        self,
        table: DeltaTable,
        columns_schema: pa.Schema,
        columns: Sequence[str],
        rows: pads.Expression | None,
    ) -> pa.Table:
        # Not DeltaTable.to_pyarrow_table(): it may abort the interpreter at exit.
        self._refresh(table)
        parts = self._parts(table)
        if not parts:
            return columns_schema.empty_table().select(list(columns))
        dataset = pads.dataset(
            [part.fs_path for part in parts],
            filesystem=self._storage.filesystem(self._output),
            format="parquet",
            schema=columns_schema,
        )
        return dataset.to_table(columns=list(columns), filter=rows)

    def _refresh(self, table: DeltaTable) -> None:
        try:
            table.update_incremental()
        except (DeltaError, OSError) as error:
            raise StorageError(f"cannot read {table.table_uri}: {error}") from error

    def _parts(self, table: DeltaTable) -> list[Location]:
        """The files that the table names, below our own name of its folder.

        Not ``file_uris()``: those are percent-encoded, and lie behind any symbolic link.
        """
        folder = self._output.child("scores" if table is self._scores else "rejects")
        return [folder.child(path) for path in _paths(table)]

    def content_id(self) -> str:
        """Names what both tables hold: changes with every row added, changed or removed."""
        files = []
        for table in (self._scores, self._rejects):
            self._refresh(table)
            files.append(sorted(_paths(table)))
        return content_id(files)

    # ------------------------------------------------------------------ writing

    def fence(self, generation: int) -> None:
        """Shut earlier holders of the lease out: their commits carry a smaller generation.

        Raises
        ------
        LeaseError
            Where a later holder was here already.
        StorageError
            Where the fence could not be put up.
        """
        self._generation = generation
        for table in (self._scores, self._rejects):
            for attempt in range(1, _FENCE_ATTEMPTS + 1):
                try:
                    self._add(table, [], [])
                    break
                except StorageError:
                    # The holder to be shut out may be committing this very moment.
                    if attempt == _FENCE_ATTEMPTS:
                        raise

    def commit_parts(self, parts: Sequence[Part], *, run_id: str, sequence: int) -> None:
        """Add finished parts to ``scores`` in one transaction.

        Raises
        ------
        LeaseError
            Where a later holder of the lease has taken over.
        StorageError
            Where the commit failed and is known not to have happened.
        """
        now_ms = int(time.time() * 1000)
        actions = [
            AddAction(
                part.path, part.n_bytes, {}, now_ms, True, json.dumps({"numRecords": part.n_rows})
            )
            for part in parts
        ]
        self._add(self._scores, actions, [Transaction(run_id, sequence)])

    def _add(
        self, table: DeltaTable, actions: list[AddAction], transactions: list[Transaction]
    ) -> None:
        self._check_generation(table)
        try:
            table.create_write_transaction(
                actions,  # type: ignore[arg-type]
                mode="append",
                schema=table.schema(),
                partition_by=[],
                commit_properties=self._commit_properties(transactions),
            )
        except (DeltaError, OSError) as error:
            # The answer may be lost and the commit done: the table knows.
            self._check_generation(table)
            done = [Transaction(_LEASE_APP, self._generation), *transactions]
            if not all(table.transaction_version(t.app_id) == t.version for t in done):
                raise StorageError(f"cannot commit to {table.table_uri}: {error}") from error

    def merge_rejects(self, rows: pa.Table) -> None:
        """Insert or update reject rows by track_id; a row without a reason deletes the track's.

        Parameters
        ----------
        rows : pa.Table
            In ``schema.rejects_schema``; at most one row per track.
        """
        if rows.num_rows == 0:
            return
        self._check_generation(self._rejects)
        try:
            (
                self._rejects.merge(
                    rows,
                    predicate="target.track_id = source.track_id",
                    source_alias="source",
                    target_alias="target",
                    commit_properties=self._commit_properties([]),
                )
                .when_matched_delete(predicate="source.reason IS NULL")
                .when_matched_update_all()
                .when_not_matched_insert_all(predicate="source.reason IS NOT NULL")
                .execute()
            )
        except (DeltaError, OSError) as error:
            self._check_generation(self._rejects)
            raise StorageError(f"cannot commit to {self._rejects.table_uri}: {error}") from error

    def _commit_properties(self, transactions: list[Transaction]) -> CommitProperties:
        # Two transactions that carry the same application id conflict: that is the fence.
        lease = Transaction(_LEASE_APP, self._generation)
        return CommitProperties(app_transactions=[lease, *transactions])

    def _check_generation(self, table: DeltaTable) -> None:
        self._refresh(table)
        latest = table.transaction_version(_LEASE_APP) or 0
        if latest > self._generation:
            raise LeaseError(
                f"{table.table_uri}: a later run (lease generation {latest}, ours "
                f"{self._generation}) has taken over; nothing more is committed"
            )

    # ------------------------------------------------------------------ sweeping

    def sweep(self, run_id: str) -> int:
        """Delete the parts of a run that no commit names; returns how many.

        Only safe for a run that has ended, by the holder of the lease.
        """
        folder = self._output.child("scores", run_id)
        if not folder.is_s3 and not self._storage.is_folder(folder):
            return 0
        self._refresh(self._scores)
        named = {part.uri for part in self._parts(self._scores)}
        n_swept = 0
        for found, _, _ in list(self._storage.list_files(folder)):
            if found.uri not in named:
                self._storage.delete(found)
                n_swept += 1
        return n_swept


def _paths(table: DeltaTable) -> list[str]:
    """The table's files, relative to its folder."""
    actions = pa.table(table.get_add_actions(flatten=True))
    return [str(path) for path in actions["path"].to_pylist()]


def track_keys(
    ids: pa.ChunkedArray, versions: pa.ChunkedArray | pa.Array | None
) -> pa.ChunkedArray:
    """One string per row that names a track, or a track at a version of its audio."""
    # Large strings: the keys of some ten million tracks are more than 32-bit offsets can address.
    text = ids.cast(pa.large_string())
    if versions is None:
        return text
    separator = pa.scalar("\x00", pa.large_string())
    return pc.binary_join_element_wise(versions.cast(pa.large_string()), text, separator)
