"""Blocks of tracks to Ray tasks and back: reports only, never audio, features or scores."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mer_batch.block import BlockReport, Job
from mer_batch.child import ChildStartError
from mer_batch.errors import MerBatchError
from mer_batch.pipelines.cluster import cluster_cpus, first_line
from mer_batch.plan import Tracks

# A block is what one task does, and what a crash costs: some five seconds of work at most. Work is
# counted in seconds of audio, of which a core decodes some thousand in one.
MAX_BLOCK_TRACKS = 256
_MAX_BLOCK_SECONDS = 256 * 35.0
# Blocks get smaller towards the end, so that the last ones keep every core busy: each is a share
# of what is left, down to half a second of work; a night of few tracks is cut finer at once.
_SHARES_PER_CPU = 2
_MIN_BLOCK_SECONDS = 16 * 35.0
# A table's log grows with its parts, and every commit with the log: beyond so many parts a night's
# blocks are larger, up to so many times: they must not outgrow a task's call.
_MANY_PARTS = 100_000
_MAX_SCALE = 4.0
_BLOCKS_PER_CPU = 8
# What opening a track costs, as audio; what is taken for a length that no catalog states, and for
# the longest: a mistaken one must not turn all others to dust [s].
_TRACK_SECONDS = 5.0
_USUAL_SECONDS = 30.0
_LONGEST_SECONDS = 4 * 3600.0
_WINDOW_PER_CPU = 2
# How long to wait for a report before the driver looks at its clock.
TICK_SECONDS = 5.0
# Ray tries a task again whose worker died. Its default, without end, would hang on a sick node.
_MAX_TASK_RETRIES = 5
# How often to say that nobody is there to work.
_IDLE_LINE_SECONDS = 60.0

# How often to ask how large the cluster is, a request each.
_SIZE_SECONDS = 1.0

Work = Callable[[int, pa.Table, Job], BlockReport]
Float64 = npt.NDArray[np.float64]


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
    def block_work(number: int, packed: bytes) -> BlockReport:
        return work(number, pa.ipc.open_stream(packed).read_all(), job)

    # A decoder that does not start on one machine may start on another.
    tries_again: Any = [ChildStartError]  # Ray's own annotation knows no lists
    options = {"num_cpus": 1, "max_retries": _MAX_TASK_RETRIES, "retry_exceptions": tries_again}
    task = ray.remote(**options)(block_work)
    numbered = enumerate(blocks)
    in_flight: list[ray.ObjectRef[BlockReport]] = []
    heard, asked, n_cpus = time.monotonic(), -math.inf, 0
    while True:
        if time.monotonic() - asked >= _SIZE_SECONDS:
            asked, n_cpus = time.monotonic(), cluster_cpus()
        free = _WINDOW_PER_CPU * max(1, n_cpus) - len(in_flight)
        for number, block in itertools.islice(numbered, max(0, free)):
            in_flight.append(task.remote(number, _packed(block)))
        if not in_flight:
            return
        done, in_flight = ray.wait(in_flight, num_returns=1, timeout=TICK_SECONDS)
        if n_cpus or done:
            heard = time.monotonic()
        elif time.monotonic() - heard > _IDLE_LINE_SECONDS:
            say("no node of the cluster has CPUs: waiting for one, as long as it takes")
            heard = time.monotonic()
        yield from fetched(done) if done else [None]


def _packed(block: pa.Table) -> bytes:
    """A block as small as it gets: more than 100 kB go through the object store, as a job must not.

    And a window of blocks for a thousand cores lies in the driver's memory.
    """
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, block.schema, options=options) as stream:
        stream.write_table(block)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def fetched(done: list[ray.ObjectRef[BlockReport]]) -> list[BlockReport]:
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


def even_blocks(pending: Tracks, n_cpus: int, *, most: int | None = None) -> Iterator[pa.Table]:
    """Cut the work into blocks by its cost, not by its bytes; see :func:`cut`."""
    return cut(pending.batches(), len(pending), n_cpus, most=most)


def cut(
    tables: Iterable[pa.Table], n_tracks: int, n_cpus: int, *, most: int | None = None
) -> Iterator[pa.Table]:
    """Cut tables of pending tracks into blocks, the tables being taken as blocks are asked for.

    Parameters
    ----------
    tables : iterable of pa.Table
        With ``expected_seconds``.
    n_tracks : int
        How many tracks they hold: tells how near the end is.
    n_cpus : int
    most : int, optional
        Tracks of a block; by default as many as keep a night's parts in bounds.
    """
    scale = min(_MAX_SCALE, max(1.0, n_tracks / (MAX_BLOCK_TRACKS * _MANY_PARTS)))
    most = most or int(MAX_BLOCK_TRACKS * scale)
    held, finest, coarsest = None, _MIN_BLOCK_SECONDS, _MAX_BLOCK_SECONDS * scale
    for table in tables:
        held = pa.concat_tables([held, table]) if held is not None else table
        ends = np.cumsum(_work_seconds(held))
        mean = float(ends[-1]) / len(held) if len(held) else 0.0
        finest = min(finest, mean * n_tracks / (n_cpus * _BLOCKS_PER_CPU))
        begin = 0
        while begin < len(held):
            share = mean * n_tracks / (n_cpus * _SHARES_PER_CPU)
            end = _end(ends, begin, min(coarsest, max(finest, share)), most)
            if end == len(held) and n_tracks > end - begin:
                break  # the next table goes on with it
            yield held.slice(begin, end - begin).combine_chunks()
            n_tracks, begin = n_tracks - (end - begin), end
        held = held.slice(begin)
    if held is not None and len(held):
        yield held.combine_chunks()


def _end(ends: Float64, begin: int, seconds: float, most: int) -> int:
    """Where a block of so much work ends; it has one track at least."""
    before = float(ends[begin - 1]) if begin else 0.0
    end = int(np.searchsorted(ends, before + seconds * (1 + 1e-9), side="right"))
    return min(max(end, begin + 1), begin + most)


def _work_seconds(tracks: pa.Table) -> Float64:
    """What each track costs, as seconds of audio."""
    stated = pc.fill_null(tracks["expected_seconds"].cast(pa.float64()), _USUAL_SECONDS)
    seconds: Float64 = np.nan_to_num(stated.to_numpy(), nan=_USUAL_SECONDS)
    return np.clip(seconds, 0.0, _LONGEST_SECONDS) + _TRACK_SECONDS
