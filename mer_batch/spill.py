"""Rows that are read again and again, kept in memory while they are few, else on the local disk.

What is on the disk is read by plain reads, not mapped: mapped pages count as a process's memory.
The file has no name: it goes with the process, however that ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from mer_batch.errors import StorageError

_MEMORY_BYTES = 32 << 20


class Spill:
    """Record batches, appended and then read in their order, as often as one likes.

    Parameters
    ----------
    schema : pa.Schema
    memory_bytes : int
        So much stays in memory.

    Attributes
    ----------
    num_rows : int
    """

    def __init__(self, schema: pa.Schema, *, memory_bytes: int = _MEMORY_BYTES) -> None:
        self.schema = schema
        self.num_rows = 0
        self._memory_bytes = memory_bytes
        self._n_bytes = 0
        self._held: list[pa.RecordBatch] = []
        self._file: IO[bytes] | None = None
        self._writer: pa.ipc.RecordBatchFileWriter | None = None

    def append(self, batch: pa.RecordBatch) -> None:
        """Add rows behind those that are there.

        Raises
        ------
        StorageError
            Where there is no room for temporary files.
        """
        self.num_rows += batch.num_rows
        try:
            if self._writer is not None:
                self._writer.write_batch(batch)
                return
            self._held.append(batch)
            self._n_bytes += batch.nbytes
            if self._n_bytes > self._memory_bytes:
                self._move_to_disk()
        except OSError as error:
            raise _no_room(error) from error

    def _move_to_disk(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="mer_batch-")  # noqa: SIM115  # goes with us
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writer = pa.ipc.new_file(self._file, self.schema, options=options)
        for batch in self._held:
            self._writer.write_batch(batch)
        self._held.clear()

    def finish(self) -> Spill:
        """Nothing more is appended."""
        try:
            if self._writer is not None and self._file is not None:
                self._writer.close()
                self._file.flush()
        except OSError as error:
            raise _no_room(error) from error
        return self

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows, or some of their columns, batch by batch."""
        names = columns or self.schema.names
        if self._file is None:
            yield from (batch.select(names) for batch in self._held)
            return
        wanted = [self.schema.get_field_index(name) for name in names]
        options = pa.ipc.IpcReadOptions(included_fields=sorted(wanted))
        descriptor = os.dup(self._file.fileno())
        try:
            # Reads by position: several readers do not disturb one another.
            with pa.OSFile(f"/dev/fd/{descriptor}") as source:
                reader = pa.ipc.open_file(source, options=options)
                for number in range(reader.num_record_batches):
                    yield reader.get_batch(number).select(names)
        finally:
            os.close(descriptor)

    def table(self) -> pa.Table:
        """All rows at once: for those that are known to be few."""
        return pa.Table.from_batches(self.batches(), self.schema)


def _no_room(error: OSError) -> StorageError:
    return StorageError(
        f"cannot write a temporary file in {tempfile.gettempdir()!r}: {error.strerror or error}; "
        "make room there, or let TMPDIR name another folder"
    )
