"""What becomes of errors on their way from a task to the driver."""

from __future__ import annotations

import datetime
import errno
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_batch.block import BlockReport
from mer_batch.child import ChildStartError
from mer_batch.config import RayConfig
from mer_batch.errors import StorageError
from mer_batch.pipelines.cluster import _quiet_stderr
from mer_batch.pipelines.fleet import (
    MAX_BLOCK_TRACKS,
    FleetError,
    _packed,
    cut,
    stream,
)


def blocks_of(tracks: pa.Table) -> Iterator[pa.Table]:
    """As two cores are given them."""
    return cut([tracks], len(tracks), 2)


_TRACK = pa.table({"track_id": ["1"]})
_NOTHING = BlockReport(None, 0, 0, 0, [], [], [])


def reports(work: Callable[..., BlockReport], job: Any, table: pa.Table = _TRACK) -> list[Any]:
    blocks = iter([table])
    said: list[str] = []
    found = [r for r in stream(work, job, blocks, say=said.append) if r is not None]
    assert not said
    return found


def full_disk(number: int, block: pa.Table, job: Any) -> BlockReport:
    raise StorageError("cannot write 's3://b/part': the disk is full; free some space")


def no_handles(number: int, block: pa.Table, job: Any) -> BlockReport:
    raise OSError(errno.EMFILE, "Too many open files")


def says_what_it_was_given(number: int, block: pa.Table, job: Any) -> BlockReport:
    return BlockReport(None, 0, 0, number, [], [block], [block.nbytes])


def test_a_block_arrives_as_it_was_cut(local_ray: None) -> None:
    columns = {"track_id": [1, None], "at": [None, "\0ä"], "seen": [datetime.datetime.min, None]}
    (report,) = reports(says_what_it_was_given, None, table=pa.table(columns))
    assert report.mended_ids[0].equals(pa.table(columns))


def test_the_largest_block_fits_into_a_call() -> None:
    ids = [str(uuid.uuid4()) for _ in range(4 * MAX_BLOCK_TRACKS)]
    uris = [f"s3://bucket/catalog/audio/{name[:2]}/{name}.mp3" for name in ids]
    etags = [uuid.uuid4().hex for _ in ids]
    block = pa.table({"track_id": ids, "audio_uri": uris, "audio_version": etags})
    assert len(_packed(block)) < 100 * 1024


def starts_at_the_second_attempt(number: int, block: pa.Table, job: Any) -> BlockReport:
    tried = Path(job)
    if not tried.exists():
        tried.touch()
        raise ChildStartError("the decoder process did not start")
    return _NOTHING


def bug(number: int, block: pa.Table, job: Any) -> BlockReport:
    raise ZeroDivisionError("a bug")


def test_an_error_of_ours_arrives_as_itself(local_ray: None) -> None:
    with pytest.raises(StorageError) as caught:
        reports(full_disk, None)
    assert str(caught.value) == "cannot write 's3://b/part': the disk is full; free some space"


def test_a_machine_that_has_run_out_of_something_is_told_in_one_line(local_ray: None) -> None:
    with pytest.raises(FleetError, match=r"Too many open files.*run again") as caught:
        reports(no_handles, None)
    assert "\n" not in str(caught.value)


def test_a_decoder_that_did_not_start_is_tried_again(local_ray: None, tmp_path: Path) -> None:
    assert reports(starts_at_the_second_attempt, str(tmp_path / "tried")) == [_NOTHING]


def test_a_bug_keeps_its_trace(local_ray: None) -> None:
    with pytest.raises(ZeroDivisionError, match="in bug"):
        reports(bug, None)


@pytest.mark.parametrize("verbose", [False, True])
def test_what_ray_says_as_it_goes_down_is_no_news(
    capfd: pytest.CaptureFixture[str], verbose: bool
) -> None:
    with _quiet_stderr(RayConfig(verbose=verbose)):
        os.write(2, b"task_manager.cc:1545: Failed to push error to driver\n")
    os.write(2, b"and what comes after is heard\n")
    said = capfd.readouterr().err
    assert ("Failed to push" in said) == verbose
    assert "and what comes after is heard" in said


def pending(seconds: list[float | None]) -> pa.Table:
    columns = {"track_id": list(range(len(seconds))), "expected_seconds": seconds}
    return pa.table(columns, schema=TRACKS)


TRACKS = pa.schema({"track_id": pa.int64(), "expected_seconds": pa.float64()})
LENGTHS = st.none() | st.floats(0, 20_000) | st.sampled_from([float("nan"), float("inf"), -1.0])


@given(
    st.lists(st.lists(LENGTHS, max_size=120), max_size=5), st.integers(1, 9), st.integers(-50, 50)
)
def test_blocks_are_the_tracks_in_order_however_they_come(
    tables: list[list[float | None]], n_cpus: int, mistaken_by: int
) -> None:
    every = [seconds for table in tables for seconds in table]
    n_told = max(0, len(every) + mistaken_by)
    blocks = list(cut(map(pending, tables), n_told, n_cpus, most=40))
    assert all(0 < len(block) <= 40 for block in blocks)
    came = [repr(s) for block in blocks for s in block["expected_seconds"].to_pylist()]
    assert came == [repr(seconds) for seconds in every]  # a NaN is not its own equal


def test_a_block_is_some_seconds_of_work_whatever_its_tracks_are_long() -> None:
    clips, hours = (list(blocks_of(pending([s] * 2000))) for s in (30.0, 3600.0))
    assert {len(block) for block in clips[:3]} == {MAX_BLOCK_TRACKS}
    assert {len(block) for block in hours[:-9]} == {2}
    assert {len(block) for block in blocks_of(pending([None] * 256_000))} >= {256, 16}


def test_the_last_blocks_are_small_and_few_tracks_are_cut_fine() -> None:
    sizes = [len(block) for block in blocks_of(pending([30.0] * 4000))]
    assert sizes[0] == MAX_BLOCK_TRACKS
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-2:] <= [16, 16]
    assert len(sizes) < 40
    assert max(len(block) for block in blocks_of(pending([30.0] * 8))) <= 2


def test_an_absurd_length_does_not_turn_all_others_to_dust() -> None:
    sizes = [len(block) for block in blocks_of(pending([1e300, *[30.0] * 4000]))]
    assert len(sizes) < 60


def test_a_huge_night_has_larger_blocks_unless_they_are_bounded() -> None:
    table, n_tracks = pending([30.0] * 5000), 10 * 256 * 100_000
    assert len(next(cut([table], n_tracks // 5, 1000))) == 2 * MAX_BLOCK_TRACKS
    assert len(next(cut([table], n_tracks, 1000))) == 4 * MAX_BLOCK_TRACKS
    assert len(next(cut([table], n_tracks, 1000, most=128))) == 128


def test_tables_are_taken_as_blocks_are_asked_for() -> None:
    taken = []

    def tables() -> Iterator[pa.Table]:
        for number in range(4):
            taken.append(number)
            yield pending([30.0] * 1000)

    blocks = cut(tables(), 4000, 2)
    assert len(next(blocks)) == MAX_BLOCK_TRACKS
    assert taken == [0]
    assert sum(map(len, blocks)) == 4000 - MAX_BLOCK_TRACKS
