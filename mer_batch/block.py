"""One block of tracks to one finished part: what a worker does, whatever it makes of a track."""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from mer_batch import schema
from mer_batch.child import Child
from mer_batch.errors import AudioError, LeaseError
from mer_batch.lease import holder_of
from mer_batch.limits import ChildLimits
from mer_batch.reading import READ_AHEAD_BYTES, Reader, Room
from mer_batch.schema import Identity
from mer_batch.steps import reach
from mer_batch.storage import AudioObject, Location, Storage
from mer_batch.task import GivenTrack, Task


class PartWriter(Protocol):
    """Collects the rows of a part."""

    @property
    def n_rows(self) -> int:
        """Rows added."""

    def add(self, track: dict[str, Any], outcome: Any) -> None:
        """Add what the task has made of a track; `track` holds the columns all tables share."""

    def finish(self) -> bytes:
        """The part as a Parquet file."""


class Product(Protocol):
    """What a job makes of a catalog: a table, row by row. Goes to workers by pickling."""

    @property
    def table(self) -> str:
        """Name of the table, and of its folder below the output."""

    def task(self) -> Task:
        """What the child is to do to each track."""

    def part(self, id_type: pa.DataType) -> PartWriter:
        """A new part."""


@dataclass(frozen=True)
class Job:
    """What every worker needs to know.

    Attributes
    ----------
    storage : Storage
    output : Location
    run_id : str
    identity : Identity
    product : Product
    limits : ChildLimits
    folders : tuple of str, optional
        What local audio must lie below, links followed; anywhere by default.
    """

    storage: Storage
    output: Location
    run_id: str
    identity: Identity
    product: Product
    limits: ChildLimits
    folders: tuple[str, ...] | None = None


@dataclass(frozen=True)
class BlockReport:
    """What a worker says of a block it has done. What it made never leaves the worker.

    Attributes
    ----------
    part_path : str or None
        Of the finished part, below its table's folder; None where no track got so far.
    part_bytes, n_rows, n_done : int
        The part's size, its rows and its tracks.
    rejects : list of dict
        Rows of ``schema.rejects_schema``.
    mended_ids : list
        Tracks now done that had a reject.
    left_ids : list
        Tracks that could not be done this way and are no rejects.
    is_confined : bool or None
        Whether the decoder could be cut off from the network and files; None where none was needed.
    problems : list of str
        Why, where a file could not be read.
    """

    part_path: str | None
    part_bytes: int
    n_rows: int
    n_done: int
    rejects: list[dict[str, Any]]
    mended_ids: list[Any]
    left_ids: list[Any]
    is_confined: bool | None = None
    problems: list[str] = field(default_factory=list)


class BlockRecord:
    """Outcomes of a block's tracks, on their way into a part and a report.

    Parameters
    ----------
    job : Job
    number : int
        Of the block, for the part's name.
    id_type : pa.DataType
    """

    def __init__(self, job: Job, number: int, id_type: pa.DataType) -> None:
        self._job = job
        self._number = number
        self._part = job.product.part(id_type)
        self._n_done = 0
        self._rejects: list[dict[str, Any]] = []
        self._mended_ids: list[Any] = []
        self._left_ids: list[Any] = []
        self._problems: list[str] = []

    def add(self, track: dict[str, Any], version: str, outcome: Any) -> None:
        """Record what became of a track, at the version of its audio that was read."""
        reach("track_done")
        if isinstance(outcome, AudioError):
            self._rejects.append(self._reject(track, version, outcome))
            return
        self._part.add(
            {
                "track_id": track["track_id"],
                "audio_uri": track["audio_uri"],
                "audio_version": _version(track, version),
                "features_id": self._job.identity.features_id,
                "run_id": self._job.run_id,
            },
            outcome,
        )
        self._n_done += 1
        if track["attempts"]:
            self._mended_ids.append(track["track_id"])

    def leave(self, track: dict[str, Any]) -> None:
        """Record that a track is to be done another way."""
        self._left_ids.append(track["track_id"])

    def tell(self, problem: str) -> None:
        """Record why tracks are left: what could not be read, and the cause."""
        self._problems.append(problem)

    def finish(self, *, is_confined: bool | None = None) -> BlockReport:
        """Write the part and report, also whether the decoder was confined."""
        path, n_bytes = self._write()
        reach("block_done")
        return BlockReport(
            path, n_bytes, self._part.n_rows, self._n_done,
            self._rejects, self._mended_ids, self._left_ids, is_confined, self._problems,
        )  # fmt: skip

    def _reject(self, track: dict[str, Any], version: str, error: AudioError) -> dict[str, Any]:
        now = schema.utc_now()
        version = _version(track, version)
        before = "n_doubts" if schema.is_doubtful(error.reason, version) else "attempts"
        return {
            "track_id": track["track_id"],
            "audio_uri": track["audio_uri"],
            "audio_version": version,
            "reason": error.reason,
            "message": error.message,
            "attempts": track[before] + 1,
            "first_run_id": track["first_run_id"] or self._job.run_id,
            "last_run_id": self._job.run_id,
            "first_seen": track["first_seen"] or now,
            "last_seen": now,
            "extraction_id": self._job.identity.extraction_id,
            "product": self._job.product.table,
        }

    def _write(self) -> tuple[str | None, int]:
        """Write the part; returns its path below its table's folder and its size [bytes]."""
        if not self._part.n_rows:
            return None, 0
        content = self._part.finish()
        # The name is unique: a block that is tried again after its worker died leaves an orphan.
        path = f"{self._job.run_id}/part-{self._number:06d}-{uuid.uuid4().hex[:12]}.parquet"
        part = self._job.output.child(self._job.product.table, path)
        reach("part_to_write")
        self._job.storage.write(part, content)
        reach("part_written")
        self._take_back_if_late(part)
        return path, len(content)

    def _take_back_if_late(self, part: Location) -> None:
        """A worker may outlive its run: the sweeps of that run and of the next are over.

        The run sweeps before it lets the lease go, the next one after it took it. So a part that
        the sweeps have missed was written after the lease was let go, or had changed hands.
        """
        held = holder_of(self._job.storage, self._job.output)
        if held is None or held == (self._job.run_id, False):
            return
        holder, _ = held
        self._job.storage.delete(part)
        is_ours = holder == self._job.run_id
        what = "has let the output go" if is_ours else "has taken the output over"
        raise LeaseError(f"run {holder} {what}; nothing more is written")


class BlockWorker:
    """Decodes blocks of tracks in one worker; keeps its child process from block to block.

    Parameters
    ----------
    job : Job
    task : Task, optional
        What the child does to each track; by default what the job's product asks for.
    """

    def __init__(self, job: Job, task: Task | None = None) -> None:
        self._job = job
        self._child = Child(task or job.product.task(), job.limits)
        self._reader = Reader(
            functools.partial(
                job.storage.read_audio,
                max_bytes=job.limits.audio.max_bytes,
                folders=job.folders,
            )
        )

    def close(self) -> None:
        """End the child process."""
        self._child.close()
        self._reader.close()

    def work(self, number: int, block: pa.Table) -> BlockReport:
        """Do a block, write its part, report its name and its rejects.

        Parameters
        ----------
        number : int
            Of the block, for the part's name.
        block : pa.Table
            Rows of ``Plan.pending``.
        """
        reach("block_begun")
        record = BlockRecord(self._job, number, block.schema.field("track_id").type)
        for track, version, outcome in self._outcomes(block.to_pylist()):
            record.add(track, version, outcome)
        return record.finish(is_confined=self._child.is_confined)

    def _outcomes(
        self, tracks: list[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], str, Any | AudioError]]:
        """Every track with the version that was read and its outcome, or why it has none."""
        given: deque[tuple[int, dict[str, Any], str]] = deque()
        unread: list[tuple[dict[str, Any], str, AudioError]] = []
        room = Room(READ_AHEAD_BYTES)

        def readable(
            reads: Iterator[tuple[int, AudioObject | AudioError]],
        ) -> Iterator[GivenTrack]:
            for number, audio in reads:
                track = tracks[number]
                if isinstance(audio, AudioError):
                    unread.append((track, "", audio))
                    room.give_back(number)
                    continue
                given.append((number, track, audio.version))
                seconds, track_id = track["expected_seconds"], str(track["track_id"])
                yield GivenTrack(audio.content, seconds, track_id)

        uris = [track["audio_uri"] for track in tracks]
        with contextlib.closing(self._reader.read(uris, room)) as reads:
            for outcome in self._child.outcomes(readable(reads)):
                number, track, version = given.popleft()
                room.give_back(number)
                yield track, version, outcome
        yield from unread


class Closable(Protocol):
    """Something that a process keeps for one job."""

    def close(self) -> None:
        """Make way for the next job's."""


Worker = TypeVar("Worker", bound=Closable)
_workers: dict[tuple[str, str], Any] = {}


def of_this_process(make: Callable[[Job], Worker], job: Job) -> Worker:
    """This process's worker for a job, made when it is first asked for.

    A fleet reuses its worker processes: a worker and its child stay from block to block, and make
    way for those of the next run.
    """
    for run_id, name in list(_workers):
        if run_id != job.run_id:
            _workers.pop((run_id, name)).close()
    key = job.run_id, make.__name__
    if key not in _workers:
        _workers[key] = make(job)
    worker: Worker = _workers[key]
    return worker


def work_block(number: int, block: pa.Table, job: Job) -> BlockReport:
    """Decode a block with this process's worker; see :meth:`BlockWorker.work`."""
    return of_this_process(BlockWorker, job).work(number, block)


def _version(track: dict[str, Any], read: str) -> str:
    """The version planned with; where none was looked up, the one that was read.

    A file that changed in between is recorded under the old version: the next run finds the new
    one in the catalog and does it again.
    """
    planned = track["audio_version"]
    return read if planned is None else planned


def reject_table(reports: Iterable[BlockReport], id_type: pa.DataType, job: Job) -> pa.Table:
    """Rows for ``Ledger.merge_rejects`` out of workers' reports: new rejects, and mended tracks."""
    rows: list[dict[str, Any]] = []
    for report in reports:
        rows += report.rejects
        rows += [
            {
                "track_id": mended,
                "audio_version": "",
                "extraction_id": job.identity.extraction_id,
                "product": job.product.table,
            }
            for mended in report.mended_ids
        ]
    return schema.reject_rows(rows, id_type)
