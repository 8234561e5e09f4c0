"""Objects as files for pyarrow, on a real S3 server that may misbehave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from mer_batch.config import StorageConfig
from mer_batch.storage import Location, Storage
from tests.faulty_store import FaultyStore


@pytest.fixture
def files(s3: Any, faulty: FaultyStore) -> pafs.FileSystem:
    storage = Storage(StorageConfig(endpoint_url=faulty.endpoint, patience_seconds=20))
    return storage.filesystem(Location(s3.bucket, ""))


def noise(n_rows: int) -> pa.Table:
    """Rows that do not compress."""
    numbers = np.random.default_rng(0).random((3, n_rows))
    return pa.table(dict(zip("abc", numbers, strict=True)))


@pytest.mark.parametrize("n_rows", [0, 10, 100_000])
def test_a_table_is_read_as_it_was_written(s3: Any, files: pafs.FileSystem, n_rows: int) -> None:
    pq.write_table(noise(n_rows), f"{s3.bucket}/t.parquet", filesystem=files)
    assert pq.read_table(f"{s3.bucket}/t.parquet", filesystem=files).equals(noise(n_rows))
    read = pads.dataset([f"{s3.bucket}/t.parquet"], filesystem=files, format="parquet")
    assert read.to_table(columns=["b"]).equals(noise(n_rows).select(["b"]))


def test_a_small_file_costs_one_request(
    s3: Any, files: pafs.FileSystem, faulty: FaultyStore
) -> None:
    pq.write_table(noise(100), f"{s3.bucket}/t.parquet", filesystem=files)
    faulty.log.clear()
    pq.ParquetFile(f"{s3.bucket}/t.parquet", filesystem=files).read()
    assert len(faulty.log) == 1


def test_a_large_file_is_written_in_parts_and_read_in_ranges_through_faults(
    s3: Any, files: pafs.FileSystem, faulty: FaultyStore
) -> None:
    rows = noise(1_500_000)  # 36 MB
    faults = {"SlowDown": "PUT POST", "reset": "PUT POST", "lose_answer": "PUT POST",
              "cut": "GET", "cut_quietly": "GET"}  # fmt: skip
    for fault, methods in faults.items():
        faulty.add(fault, methods=methods, n=2)
    with pq.ParquetWriter(f"{s3.bucket}/t.parquet", rows.schema, filesystem=files) as writer:
        for begin in range(0, len(rows), 250_000):
            writer.write_table(rows.slice(begin, 250_000))
    with pq.ParquetFile(f"{s3.bucket}/t.parquet", filesystem=files) as file:
        assert file.read().equals(rows)
    assert s3.head_object(Bucket=s3.bucket, Key="t.parquet")["ETag"].endswith('-3"')
    assert faulty.suffered == dict.fromkeys(faults, 2)


def test_an_answer_that_was_lost_at_the_end_of_an_upload_is_not_missed(
    s3: Any, files: pafs.FileSystem, faulty: FaultyStore
) -> None:
    faulty.add("lose_answer", methods="POST", n=2)
    with files.open_output_stream(f"{s3.bucket}/x") as file:
        for _ in range(5):
            file.write(bytes(5 * 1024 * 1024))
    assert faulty.suffered["lose_answer"] == 2
    assert s3.head_object(Bucket=s3.bucket, Key="x")["ContentLength"] == 25 * 1024 * 1024


def test_what_cannot_be_finished_is_not_there(
    s3: Any, files: pafs.FileSystem, faulty: FaultyStore
) -> None:
    file = files.open_output_stream(f"{s3.bucket}/x")
    file.write(bytes(17 * 1024 * 1024))
    faulty.add("AccessDenied", methods="PUT POST")
    with pytest.raises(OSError, match="AccessDenied"):
        file.write(bytes(17 * 1024 * 1024))
    faulty.clear()
    assert "Contents" not in s3.list_objects_v2(Bucket=s3.bucket)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=s3.bucket)


def test_a_file_that_is_replaced_while_it_is_read_is_not_mixed(
    s3: Any, files: pafs.FileSystem
) -> None:
    s3.put_object(Bucket=s3.bucket, Key="x", Body=b"1" * 1_000_000)
    with files.open_input_file(f"{s3.bucket}/x") as file:
        assert file.read(10) == b"1" * 10
        s3.put_object(Bucket=s3.bucket, Key="x", Body=b"2" * 1_000_000)
        with pytest.raises(OSError, match="PreconditionFailed"):
            file.read(10)


def test_what_is_not_there_is_no_file(s3: Any, files: pafs.FileSystem) -> None:
    s3.put_object(Bucket=s3.bucket, Key="a/b/c", Body=b"123")
    with pytest.raises(FileNotFoundError, match=f"s3://{s3.bucket}/none"):
        files.open_input_file(f"{s3.bucket}/none")
    kinds = [files.get_file_info(f"{s3.bucket}/{name}").type for name in ("a/b/c", "a/b", "a/x")]
    assert kinds == [pafs.FileType.File, pafs.FileType.Directory, pafs.FileType.NotFound]


@pytest.mark.parametrize(("recursive", "names"), [(True, ["b", "b/c", "d"]), (False, ["b", "d"])])
def test_a_folder_is_listed(
    s3: Any, files: pafs.FileSystem, recursive: bool, names: list[str]
) -> None:
    for key in ("a/b/c", "a/d", "ab"):
        s3.put_object(Bucket=s3.bucket, Key=key, Body=b"123")
    found = files.get_file_info(pafs.FileSelector(f"{s3.bucket}/a", recursive=recursive))
    assert sorted(entry.path for entry in found) == [f"{s3.bucket}/a/{name}" for name in names]
