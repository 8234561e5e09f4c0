"""A worker's block: its part, what it reads ahead and what that may cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mer_batch.block import BlockRecord, BlockReport, Job
from mer_batch.errors import AudioError, LeaseError
from mer_batch.lease import Lease, lease_location
from mer_batch.limits import ChildLimits
from mer_batch.reading import READ_AHEAD_BYTES
from mer_batch.schema import SCORE_COLUMNS, Identity
from mer_batch.storage import Location, Storage
from mer_batch.tag import Scores
from tests.big_tracks import block_of, worker_in
from tests.sounds import wav

Place = tuple[Storage, Location]

TIMEOUT_SECONDS = 30.0
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
    assert len(parts(place)) == 2
    assert report.part_path is not None
    assert any(path.endswith(report.part_path) for path in parts(place))


def test_a_worker_that_outlives_its_run_takes_its_part_back(place: Place) -> None:
    take(place, "ours").release()
    with pytest.raises(LeaseError, match="run ours has let the output go"):
        written(place, "ours")
    assert parts(place) == []
    later = take(place, "later")
    with pytest.raises(LeaseError, match="run later has taken the output over"):
        written(place, "ours")
    assert parts(place) == []
    later.release()


def test_a_worker_that_finds_a_damaged_lease_says_so(place: Place) -> None:
    place[0].write(lease_location(place[1]), b"[]")
    with pytest.raises(LeaseError, match=r"cannot be read: .* delete it"):
        written(place, "ours")


def test_a_catalog_of_large_files_does_not_fill_the_memory(tmp_path: Path) -> None:
    """They come to half a gigabyte, of which all but one would be held without a bound."""
    random = np.random.default_rng(0)
    noise = random.integers(-(2**15), 2**15, (96_000 * 30, 8), dtype=np.int16)
    content = wav(noise, 96_000, subtype="PCM_24")
    first = tmp_path / "0.wav"
    first.write_bytes(content)
    for number in range(1, 8):
        os.link(first, tmp_path / f"{number}.wav")
    found = json.loads(
        subprocess.run(
            [sys.executable, "-m", "tests.big_tracks", str(tmp_path)],
            check=True, capture_output=True, text=True, timeout=300,
        ).stdout
    )  # fmt: skip
    assert found["n_done"] == 8, found["reasons"]
    largest = found["largest_bytes"]
    assert largest == len(content) > 60_000_000
    # What fits ahead, the child's two, and what a worker takes without any track.
    assert found["grown_bytes"] < READ_AHEAD_BYTES + 2 * largest + 50_000_000


def test_a_worker_reads_past_what_cannot_be_read(
    tmp_path: Path, short_mp3s: dict[str, bytes]
) -> None:
    names = ["a.mp3", "gone-1.mp3", "gone-2.mp3", "b.mp3", "gone-3.mp3"]
    for name in ("a.mp3", "b.mp3"):
        (tmp_path / name).write_bytes(short_mp3s["calm"])
    worker = worker_in(tmp_path / "out")
    try:
        report = worker.work(0, block_of([tmp_path / name for name in names]))
    finally:
        worker.close()
    assert report.n_done == 2
    assert {row["track_id"]: row["reason"] for row in report.rejects} == {
        name: "not_found" for name in names if "gone" in name
    }
