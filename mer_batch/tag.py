"""One block of tracks to one finished part: what a worker does."""

from __future__ import annotations

import io
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mer_batch import schema
from mer_batch.child import Child
from mer_batch.errors import AudioError
from mer_batch.limits import ChildLimits
from mer_batch.schema import Identity
from mer_batch.storage import AudioObject, Location, Storage

# Tracks fetched while one is being decoded: hides a store's latency, costs their bytes in memory.
_READ_AHEAD = 4


@dataclass(frozen=True)
class TagJob:
    """What every worker needs to know.

    Attributes
    ----------
    storage : Storage
    output : Location
    run_id : str
    identity : Identity
    card_json, weights : bytes
        The checkpoint.
    limits : ChildLimits
    """

    storage: Storage
    output: Location
    run_id: str
    identity: Identity
    card_json: bytes
    weights: bytes
    limits: ChildLimits


@dataclass(frozen=True)
class BlockReport:
    """What a worker says of a block it has done. Scores themselves never leave the worker.

    Attributes
    ----------
    part_path : str or None
        Of the finished part, below ``scores/``; None where no track was scored.
    part_bytes, n_scored : int
        Its size and rows.
    rejects : list of dict
        Rows of ``schema.rejects_schema``.
    mended_ids : list
        Tracks now scored that had a reject.
    """

    part_path: str | None
    part_bytes: int
    n_scored: int
    rejects: list[dict[str, Any]]
    mended_ids: list[Any]


_Outcome = tuple[dict[str, Any], str, dict[str, Any] | AudioError]


class Tagger:
    """Scores blocks of tracks in one worker; keeps its child process from block to block.

    Parameters
    ----------
    job : TagJob
    """

    def __init__(self, job: TagJob) -> None:
        self._job = job
        self._child = Child(job.card_json, job.weights, job.limits)

    def close(self) -> None:
        """End the child process."""
        self._child.close()

    def tag(self, number: int, block: pa.Table) -> BlockReport:
        """Score a block, write its part, report its name and its rejects.

        Parameters
        ----------
        number : int
            Of the block, for the part's name.
        block : pa.Table
            Rows of ``Plan.pending``.
        """
        scores: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        mended_ids: list[Any] = []
        for track, version, outcome in self._outcomes(block.to_pylist()):
            if isinstance(outcome, AudioError):
                rejects.append(self._reject(track, version, outcome))
                continue
            scores.append(self._score(track, version, outcome))
            if track["attempts"]:
                mended_ids.append(track["track_id"])
        path, n_bytes = self._write(scores, block.schema.field("track_id").type, number)
        return BlockReport(path, n_bytes, len(scores), rejects, mended_ids)

    def _outcomes(self, tracks: list[dict[str, Any]]) -> Iterator[_Outcome]:
        """Every track with the version that was read and its score, or why it has none."""
        given: deque[tuple[dict[str, Any], str]] = deque()
        unread: list[_Outcome] = []

        def readable() -> Iterator[tuple[bytes, float | None]]:
            for track, fetch in self._read_ahead(tracks):
                try:
                    audio = fetch.result()
                except AudioError as error:
                    unread.append((track, "", error))
                    continue
                given.append((track, audio.version))
                yield audio.content, track["expected_seconds"]

        for outcome in self._child.scores(readable()):
            yield (*given.popleft(), outcome)
        yield from unread

    def _read_ahead(
        self, tracks: list[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], Future[AudioObject]]]:
        """The tracks in order, the next ones being fetched meanwhile."""
        max_bytes = self._job.limits.audio.max_bytes
        with ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="read") as readers:
            waiting: deque[tuple[dict[str, Any], Future[AudioObject]]] = deque()
            for track in tracks:
                fetch = readers.submit(
                    self._job.storage.read_audio, track["audio_uri"], max_bytes=max_bytes
                )
                waiting.append((track, fetch))
                if len(waiting) > _READ_AHEAD:
                    yield waiting.popleft()
            yield from waiting

    def _score(self, track: dict[str, Any], version: str, score: dict[str, Any]) -> dict[str, Any]:
        return {
            **score,
            "track_id": track["track_id"],
            "audio_uri": track["audio_uri"],
            "audio_version": _version(track, version),
            "features_id": self._job.identity.features_id,
            "model_id": self._job.identity.model_id,
            "run_id": self._job.run_id,
            "scored_at": schema.utc_now(),
        }

    def _reject(self, track: dict[str, Any], version: str, error: AudioError) -> dict[str, Any]:
        now = schema.utc_now()
        return {
            "track_id": track["track_id"],
            "audio_uri": track["audio_uri"],
            "audio_version": _version(track, version),
            "reason": error.reason,
            "message": error.message,
            "attempts": track["attempts"] + 1,
            "first_run_id": track["first_run_id"] or self._job.run_id,
            "last_run_id": self._job.run_id,
            "first_seen": track["first_seen"] or now,
            "last_seen": now,
            "extraction_id": self._job.identity.extraction_id,
        }

    def _write(
        self, scores: list[dict[str, Any]], id_type: pa.DataType, number: int
    ) -> tuple[str | None, int]:
        """Write the part; returns its path below ``scores/`` and its size [bytes]."""
        if not scores:
            return None, 0
        table = pa.Table.from_pylist(scores, schema=schema.scores_schema(id_type))
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        # The name is unique: a block that is tried again after its worker died leaves an orphan.
        path = f"{self._job.run_id}/part-{number:06d}-{uuid.uuid4().hex[:12]}.parquet"
        self._job.storage.write(self._job.output.child("scores", path), buffer.getvalue())
        return path, buffer.tell()


_taggers: dict[str, Tagger] = {}


def tag_block(number: int, block: pa.Table, job: TagJob) -> BlockReport:
    """Score a block with this process's tagger; see :meth:`Tagger.tag`.

    A fleet reuses its worker processes: the tagger and its child stay from block to block, and
    make way for those of the next run.
    """
    if job.run_id not in _taggers:
        for stale in _taggers.values():
            stale.close()
        _taggers.clear()
        _taggers[job.run_id] = Tagger(job)
    return _taggers[job.run_id].tag(number, block)


def _version(track: dict[str, Any], read: str) -> str:
    """The version planned with; where none was looked up, the one that was read.

    A file that changed in between is recorded under the old version: the next run finds the new
    one in the catalog and scores it again.
    """
    planned = track["audio_version"]
    return read if planned is None else planned


def reject_table(reports: Iterable[BlockReport], id_type: pa.DataType) -> pa.Table:
    """Rows for ``Ledger.merge_rejects`` out of workers' reports: new rejects, and mended tracks."""
    rows: list[dict[str, Any]] = []
    for report in reports:
        rows += report.rejects
        rows += [
            {"track_id": mended, "audio_version": "", "extraction_id": ""}
            for mended in report.mended_ids
        ]
    return schema.reject_rows(rows, id_type)
