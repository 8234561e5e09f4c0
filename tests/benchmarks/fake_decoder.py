"""A decoder's process that decodes nothing: the real child, which waits where it would work.

Its task takes one millisecond of a track's time and none of the processor's, so that what all
processes spend is what the pipeline itself costs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pyarrow as pa

from mer_batch import block, child
from mer_batch.audio.decode import AudioLimits
from mer_batch.block import BlockReport, Job
from mer_batch.schema import INTERVAL_FIELDS, TARGETS
from mer_batch.task import GivenTrack, Reply

DECODE_SECONDS = 0.001
_SCORE = {
    **dict.fromkeys((*TARGETS, *(field.name for field in INTERVAL_FIELDS)), 0.25),
    **dict.fromkeys((f"{target}_std" for target in TARGETS), 0.125),
    "n_segments": 1,
    "duration_seconds": 30.0,
}


def work_block(number: int, tracks: pa.Table, job: Job) -> BlockReport:
    """``block.work_block`` with this decoder."""
    child.Child.command = (sys.executable, "-P", "-m", "tests.benchmarks.fake_decoder")
    return block.work_block(number, tracks, job)


class _Waiting:
    """Stands for a task: every track is the same after a millisecond."""

    def worker(self, limits: AudioLimits) -> Callable[[GivenTrack], Reply]:
        def wait(given: GivenTrack) -> Reply:
            time.sleep(DECODE_SECONDS)
            return _SCORE, b""

        return wait


if __name__ == "__main__":
    child.task_of = lambda told, frames: _Waiting()  # type: ignore[assignment]
    child.main()
