"""Blocks of tracks to Ray tasks and back: reports only, never audio, features or scores."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray

from mer_batch.block import BlockReport, Job
from mer_batch.child import ChildStartError
from mer_batch.errors import MerBatchError
from mer_batch.pipelines.cluster import cluster_cpus, first_line
from mer_batch.plan import Tracks

# A block is what one task does, and what a crash costs: some ten seconds of work at most, and
# enough blocks that the last ones keep every core busy.
MAX_BLOCK_TRACKS = 256
_BLOCKS_PER_CPU = 8
_WINDOW_PER_CPU = 2
# How long to wait for a report before the driver looks at its clock.
TICK_SECONDS = 5.0
# Ray tries a task again whose worker died. Its default, without end, would hang on a sick node.
_MAX_TASK_RETRIES = 5
# How often to say that nobody is there to work.
_IDLE_LINE_SECONDS = 60.0

Work = Callable[[int, pa.Table, Job], BlockReport]


class FleetError(MerBatchError):
    """The fleet cannot go on; what was finished is committed, and a next run goes on."""


def stream(
    work: Work, job: Job, blocks: Iterator[pa.Table], *, say: Callable[[str], None]
) -> Iterator[BlockReport | None]:
    """Blocks of tracks in, one report a block out, in any order; None where time passed without.

    A window of tasks is kept in flight: a worker that is done finds its next block waiting, and
    the driver holds no more than the window, however long the night. It grows with the cluster.
    A cluster that has lost all its CPUs is waited for: it may be given others.

    Raises
    ------
    FleetError
        Where Ray or a worker's machine cannot go on.
    MerBatchError
        What a task has raised of ours.
    """

    # With the job in it, not beside it: it then goes through the cluster's table of functions. What
    # lies in the object store and is lost with its raylet has Ray end the driver, without a word.
    def block_work(number: int, block: pa.Table) -> BlockReport:
        return work(number, block, job)

    # A decoder that does not start on one machine may start on another.
    tries_again: Any = [ChildStartError]  # Ray's own annotation knows no lists
    options = {"num_cpus": 1, "max_retries": _MAX_TASK_RETRIES, "retry_exceptions": tries_again}
    task = ray.remote(**options)(block_work)
    numbered = enumerate(blocks)
    in_flight: list[ray.ObjectRef[BlockReport]] = []
    heard = time.monotonic()
    while True:
        n_cpus = cluster_cpus()
        free = _WINDOW_PER_CPU * max(1, n_cpus) - len(in_flight)
        for number, block in itertools.islice(numbered, max(0, free)):
            in_flight.append(task.remote(number, block))
        if not in_flight:
            return
        done, in_flight = ray.wait(in_flight, num_returns=1, timeout=TICK_SECONDS)
        if n_cpus or done:
            heard = time.monotonic()
        elif time.monotonic() - heard > _IDLE_LINE_SECONDS:
            say("no node of the cluster has CPUs: waiting for one, as long as it takes")
            heard = time.monotonic()
        yield from _fetched(done) if done else [None]


def _fetched(done: list[ray.ObjectRef[BlockReport]]) -> list[BlockReport]:
    """The reports of tasks that are done; what they have raised comes without Ray's traces."""
    try:
        reports: list[BlockReport] = ray.get(done)
        return reports
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, MerBatchError):
            raise cause from None
        if isinstance(cause, OSError | MemoryError):
            raise FleetError(
                f"a worker could not go on: {type(cause).__name__}: {cause}; see to its machine, "
                "then run again"
            ) from error
        raise
    except ray.exceptions.RayError as error:
        raise FleetError(
            f"Ray could not go on: {first_line(error)}; see to the machines (memory, disk), then "
            "run again"
        ) from error


def lost_nodes() -> frozenset[str]:
    """Nodes that the cluster has given up: one that only slept may still write a part."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return frozenset(node["NodeID"] for node in nodes if not node["Alive"])


def even_blocks(
    pending: Tracks, n_cpus: int, *, most: int = MAX_BLOCK_TRACKS
) -> Iterator[pa.Table]:
    """Cut the work into blocks by its cost, not by its bytes, as they are asked for."""
    n_tracks = min(most, max(1, math.ceil(len(pending) / (n_cpus * _BLOCKS_PER_CPU))))
    left: list[pa.Table] = []
    for table in pending.batches():
        whole = pa.concat_tables([*left, table])
        end = len(whole) - len(whole) % n_tracks
        for begin in range(0, end, n_tracks):
            yield whole.slice(begin, n_tracks).combine_chunks()
        left = [whole.slice(end)]
    if left and len(left[0]):
        yield left[0].combine_chunks()
