"""Rows on the local disk: the same as in memory, read by several, and gone with the process."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pytest

from mer_batch.errors import StorageError
from mer_batch.spill import Spill

SCHEMA = pa.schema({"track_id": pa.string(), "seconds": pa.float64()})


def filled(n_batches: int, **options: int) -> Spill:
    spill = Spill(SCHEMA, **options)
    for number in range(n_batches):
        rows = {"track_id": [f"{number}-{n}" for n in range(3)], "seconds": [1.0, None, number]}
        spill.append(pa.RecordBatch.from_pydict(rows, SCHEMA))
    return spill.finish()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of this test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("memory_bytes", [0, 200, 1 << 20])
def test_rows_are_the_same_in_memory_and_on_disk(scratch: Path, memory_bytes: int) -> None:
    spill = filled(9, memory_bytes=memory_bytes)
    assert spill.table().equals(filled(9).table())
    assert spill.num_rows == 27
    assert [batch.schema.names for batch in spill.batches(["seconds"])] == [["seconds"]] * 9
    assert not list(scratch.iterdir()), "files have no names: they go with the process"


def test_several_read_at_the_same_time(scratch: Path) -> None:
    spill = filled(5, memory_bytes=0)
    both = zip(spill.batches(), spill.batches(["track_id"]), strict=True)
    assert all(one["track_id"].equals(other["track_id"]) for one, other in both)


def test_no_room_is_told_with_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match=r"temporary file in .*gone.*TMPDIR"):
        filled(1, memory_bytes=0)
