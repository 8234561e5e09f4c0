"""What becomes of errors on their way from a task to the driver."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mer_batch.block import BlockReport
from mer_batch.child import ChildStartError
from mer_batch.config import RayConfig
from mer_batch.errors import StorageError
from mer_batch.pipelines.cluster import _quiet_stderr
from mer_batch.pipelines.fleet import FleetError, stream

_NOTHING = BlockReport(None, 0, 0, 0, [], [], [])


def reports(work: Callable[..., BlockReport], job: Any, n_blocks: int = 1) -> list[Any]:
    blocks = iter([pa.table({"track_id": [str(n)]}) for n in range(n_blocks)])
    said: list[str] = []
    found = [r for r in stream(work, job, blocks, say=said.append) if r is not None]
    assert not said
    return found


def full_disk(number: int, block: pa.Table, job: Any) -> BlockReport:
    raise StorageError("cannot write 's3://b/part': the disk is full; free some space")


def no_handles(number: int, block: pa.Table, job: Any) -> BlockReport:
    raise OSError(errno.EMFILE, "Too many open files")


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
