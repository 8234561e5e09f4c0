"""Blocks of tracks to Ray tasks and back: reports only, never audio, features or scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pyarrow as pa
import ray
import ray.exceptions

from mer_batch.block import BlockReport, Job
from mer_batch.errors import MerBatchError
from mer_batch.pipelines.cluster import cluster_cpus

# A block is what one task does, and what a crash costs: some ten seconds of work at most, and
# enough blocks that the last ones keep every core busy.
MAX_BLOCK_TRACKS = 256
_BLOCKS_PER_CPU = 8
_WINDOW_PER_CPU = 2
# How long to wait for a report before the driver looks at its clock.
TICK_SECONDS = 5.0
# Ray tries a task again whose worker died. Its default, without end, would hang on a sick node.
_MAX_TASK_RETRIES = 5

Work = Callable[[int, pa.Table, Job], BlockReport]


def stream(work: Work, job: Job, blocks: Iterator[pa.Table]) -> Iterator[BlockReport | None]:
    """Blocks of tracks in, one report a block out, in any order; None where time passed without.

    A window of tasks is kept in flight: a worker that is done finds its next block waiting, and
    the driver holds no more than the window, however long the night. It grows with the cluster.

    Raises
    ------
    MerBatchError
        Where a block's workers died again and again, or this machine's part of the fleet has.
    """
    try:
        yield from _reports(work, job, blocks)
    except ray.exceptions.RayTaskError:
        raise  # raised in a worker, by us
    except ray.exceptions.RayError as error:
        words = str(error).strip().partition("\n")[0]
        raise MerBatchError(
            f"the fleet has failed, after {_MAX_TASK_RETRIES} retries of a block at most: {words} "
            "What was finished is committed; look at the nodes' memory and at Ray's logs, run again"
        ) from error


def _reports(work: Work, job: Job, blocks: Iterator[pa.Table]) -> Iterator[BlockReport | None]:
    task = ray.remote(num_cpus=1, max_retries=_MAX_TASK_RETRIES)(work)
    shared = ray.put(job)
    numbered = enumerate(blocks)
    in_flight: list[ray.ObjectRef[BlockReport]] = []
    while True:
        free = _WINDOW_PER_CPU * cluster_cpus() - len(in_flight)
        for number, block in itertools.islice(numbered, max(0, free)):
            in_flight.append(task.remote(number, block, shared))
        if not in_flight:
            return
        done, in_flight = ray.wait(in_flight, num_returns=1, timeout=TICK_SECONDS)
        yield from _reports_in(done) if done else [None]


def _reports_in(done: list[ray.ObjectRef[BlockReport]]) -> list[BlockReport]:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        # In its own words: those of Ray are the worker's whole traceback.
        if isinstance(error.cause, MerBatchError):
            raise error.cause from None
        raise


def even_blocks(
    pending: pa.Table, n_cpus: int, *, most: int = MAX_BLOCK_TRACKS
) -> Iterator[pa.Table]:
    """Cut the work into blocks by its cost, not by its bytes."""
    n_tracks = min(most, max(1, math.ceil(len(pending) / (n_cpus * _BLOCKS_PER_CPU))))
    for begin in range(0, len(pending), n_tracks):
        yield pending.slice(begin, n_tracks).combine_chunks()
