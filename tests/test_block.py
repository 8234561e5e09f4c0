"""A block's part, and a worker that comes too late with it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from mer_batch.block import BlockRecord, BlockReport, Job
from mer_batch.errors import AudioError, LeaseError
from mer_batch.lease import Lease, lease_location
from mer_batch.limits import ChildLimits
from mer_batch.schema import SCORE_COLUMNS, Identity
from mer_batch.storage import Location, Storage
from mer_batch.tag import Scores

Place = tuple[Storage, Location]

TRACK: dict[str, Any] = {
    "track_id": "a", "audio_uri": "/a", "audio_version": "1", "attempts": 5, "n_doubts": 1,
    "first_run_id": "r0", "first_seen": None,
}  # fmt: skip


def record_of(place: Place, run_id: str) -> BlockRecord:
    product = Scores(b"", b"", "m")
    job = Job(*place, run_id, Identity("f", "m", "e"), product, ChildLimits())
    return BlockRecord(job, 0, pa.string())


def written(place: Place, run_id: str) -> BlockReport:
    """The report of a block of one track."""
    record = record_of(place, run_id)
    record.add(TRACK, "1", dict.fromkeys(SCORE_COLUMNS, 0.25) | {"n_segments": 1})
    return record.finish()


@pytest.mark.parametrize(("reason", "attempts"), [("silent", 6), ("decoder_crash", 2)])
def test_doubts_are_counted_by_themselves(place: Place, reason: str, attempts: int) -> None:
    record = record_of(place, "ours")
    record.add(TRACK, "1", AudioError(reason, "as told"))
    (row,) = record.finish().rejects
    assert (row["attempts"], row["first_run_id"], row["last_run_id"]) == (attempts, "r0", "ours")


def parts(place: Place) -> list[str]:
    storage, output = place
    folder = output.child("scores")
    return [f.path for f, _, _ in storage.list_files(folder)] if storage.is_folder(folder) else []


def take(place: Place, run_id: str) -> Lease:
    return Lease(place[0], lease_location(place[1]), run_id, seconds=60)


def test_a_run_that_holds_the_output_keeps_its_parts(place: Place) -> None:
    assert written(place, "alone").n_rows == 1
    lease = take(place, "ours")
    report = written(place, "ours")
    lease.release()
    # Nobody has taken it since.
    written(place, "ours")
    assert len(parts(place)) == 3
    assert report.part_path is not None
    assert any(path.endswith(report.part_path) for path in parts(place))


def test_a_worker_that_outlives_its_run_takes_its_part_back(place: Place) -> None:
    take(place, "ours").release()
    later = take(place, "later")
    with pytest.raises(LeaseError, match="run later has taken the output over"):
        written(place, "ours")
    assert parts(place) == []
    later.release()
