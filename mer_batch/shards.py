"""What extraction makes of a track: rows of ``features/``, one for each segment."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mer_batch import feature_table, schema
from mer_batch.extract import TrackFeatures
from mer_batch.feature_sets import FeatureSet
from mer_batch.task import Dtype, ExtractTask

# A row group is what a writer holds uncompressed, and a reader reads at a time: 64 segments of a
# hundred kilobytes.
GROUP_ROWS = 64

# Plain values under zstd: a byte stream split would save another 9 KiB a track, but not every
# reader knows it for half floats (DuckDB does not). Level 4 is where more effort gains little.
_ZSTD_LEVEL = 4


@dataclass(frozen=True)
class Features:
    """The product of extraction; see ``block.Product``.

    Attributes
    ----------
    feature_set : FeatureSet
    dtype : {"float16", "float32"}
    """

    feature_set: FeatureSet
    dtype: Dtype
    table: str = feature_table.TABLE

    def task(self) -> ExtractTask:
        """Extract features, in decibels."""
        return ExtractTask(self.feature_set, self.dtype)

    def part(self, id_type: pa.DataType) -> FeaturePart:
        """A new part."""
        return FeaturePart(feature_table.features_schema(id_type, self.feature_set, self.dtype))


def open_writer(sink: BinaryIO, part_schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of a part in ``feature_table.features_schema``; give it `GROUP_ROWS` at a time."""
    return pq.ParquetWriter(
        sink,
        part_schema,
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        use_dictionary=[name for name in part_schema.names if name != "mel"],
        write_statistics=[name for name in part_schema.names if name != "mel"],
        write_page_checksum=True,
    )


class FeaturePart:
    """Rows of ``feature_table.features_schema``, compressed as they come."""

    def __init__(self, part_schema: pa.Schema) -> None:
        self._schema = part_schema
        self._buffer = io.BytesIO()
        self._writer = open_writer(self._buffer, part_schema)
        self._rows: list[dict[str, Any]] = []
        self._mels: list[Any] = []
        self.n_rows = 0

    def add(self, track: dict[str, Any], outcome: TrackFeatures) -> None:
        """Add a track's segments; they share a row group, but for a track of very many."""
        shared = {
            **track,
            "n_segments": len(outcome.segments),
            "n_frames": outcome.n_frames,
            "duration_seconds": outcome.duration_seconds,
            "extracted_at": schema.utc_now(),
        }
        if len(self._rows) + len(outcome.segments) > GROUP_ROWS:
            self._flush()
        self._rows += [
            {**shared, "segment": number, "start_seconds": start}
            for number, start in enumerate(outcome.starts_seconds)
        ]
        self._mels.append(outcome.segments)
        self.n_rows += len(outcome.segments)

    def finish(self) -> bytes:
        """The part as a Parquet file."""
        self._flush()
        self._writer.close()
        return self._buffer.getvalue()  # the buffer itself, no copy

    def _flush(self) -> None:
        if not self._rows:
            return
        mel_type = self._schema.field("mel").type
        light = pa.schema([field for field in self._schema if field.name != "mel"])
        rows = pa.Table.from_pylist(self._rows, schema=light)
        values = pa.array(np.concatenate(self._mels).reshape(-1), mel_type.value_type)
        mel = pa.FixedSizeListArray.from_arrays(values, type=mel_type)
        columns = [*rows.columns, mel]
        names = [*light.names, "mel"]
        table = pa.table(columns, names=names).select(self._schema.names).cast(self._schema)
        self._writer.write_table(table, row_group_size=GROUP_ROWS)
        self._rows, self._mels = [], []
