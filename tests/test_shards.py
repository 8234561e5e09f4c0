"""Parts of features, as they are written."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer_batch.extract import TrackFeatures
from mer_batch.feature_sets import feature_set
from mer_batch.shards import Features
from mer_batch.task import Dtype

LOG_MEL = feature_set("log_mel")
TRACK = {
    "track_id": "a", "audio_uri": "/a", "audio_version": "1", "features_id": "f", "run_id": "r",
}  # fmt: skip


def written(n_segments: list[int], dtype: Dtype = "float16") -> pq.ParquetFile:
    part = Features(LOG_MEL, dtype).part(pa.string())
    for number, n in enumerate(n_segments):
        segments = np.full((n, 80, LOG_MEL.segment_frames), number, dtype)
        starts = [float(start) for start in range(n)]
        part.add({**TRACK, "track_id": f"{number:03}"}, TrackFeatures(segments, starts, 9.0, 5))
    assert part.n_rows == sum(n_segments)
    return pq.ParquetFile(pa.BufferReader(part.finish()))


def test_row_groups_are_bounded_and_keep_tracks_whole() -> None:
    file = written([7] * 30 + [100])
    groups = [file.read_row_group(g, columns=["track_id"]) for g in range(file.num_row_groups)]
    assert all(len(group) <= 64 for group in groups)
    seen = [set(group["track_id"].to_pylist()) for group in groups]
    for number, ids in enumerate(seen):
        later = set().union(*seen[number + 1 :])
        assert not ids & later - {"030"}, "only a track of more segments is divided"
    assert file.read(columns=["segment"])["segment"].to_pylist()[-100:] == list(range(100))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_and_type_are_those_given(dtype: Dtype) -> None:
    rows = written([1, 2], dtype).read()
    assert rows.schema.field("mel").type.value_type == {
        "float16": pa.float16(), "float32": pa.float32(),
    }[dtype]  # fmt: skip
    assert rows["track_id"].to_pylist() == ["000", "001", "001"]
    assert rows["start_seconds"].to_pylist() == [0, 0, 1]
    assert set(rows["n_frames"].to_pylist()) == {5}
    assert [mel[0] for mel in rows["mel"].to_pylist()] == [0, 1, 1]


def test_mels_are_plain_values_that_every_reader_knows() -> None:
    metadata = written([1]).metadata
    column = metadata.row_group(0).column(metadata.num_columns - 1)
    assert column.path_in_schema.startswith("mel")
    assert set(column.encodings) == {"PLAIN", "RLE"}
    assert column.compression == "ZSTD"
