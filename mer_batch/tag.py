"""One block of tracks to one finished part: what a worker does."""

from __future__ import annotations

import io
import uuid
from collections import deque
from collections.abc import Iterator
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


def result_schema(id_type: pa.DataType) -> pa.Schema:
    """What a worker reports of a block: one row."""
    reject = pa.struct(list(schema.rejects_schema(id_type)))
    return pa.schema(
        [
            pa.field("block", pa.int64()),
            pa.field("part_path", pa.string()),
            pa.field("part_bytes", pa.int64()),
            pa.field("n_scored", pa.int64()),
            pa.field("audio_seconds", pa.float64()),
            pa.field("rejects", pa.list_(reject)),
            pa.field("mended_ids", pa.list_(id_type)),
        ]
    )


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

    def tag(self, block: pa.Table) -> pa.Table:
        """Score a block, write its part, report its name and its rejects.

        Parameters
        ----------
        block : pa.Table
            Rows of ``Plan.pending`` with a constant column ``block``.

        Returns
        -------
        pa.Table
            One row of :func:`result_schema`. Scores themselves never leave the worker.
        """
        id_type = block.schema.field("track_id").type
        scores: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        mended: list[object] = []
        for track, version, outcome in self._outcomes(block.to_pylist()):
            if isinstance(outcome, AudioError):
                rejects.append(self._reject(track, version, outcome))
                continue
            scores.append(self._score(track, version, outcome))
            if track["attempts"]:
                mended.append(track["track_id"])
        path, n_bytes = self._write(scores, id_type, block["block"][0].as_py())
        report = {
            "block": block["block"][0].as_py(),
            "part_path": path,
            "part_bytes": n_bytes,
            "n_scored": len(scores),
            "audio_seconds": sum(row["duration_seconds"] for row in scores),
            "rejects": rejects,
            "mended_ids": mended,
        }
        return pa.Table.from_pylist([report], schema=result_schema(id_type))

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
        self, scores: list[dict[str, Any]], id_type: pa.DataType, block: int
    ) -> tuple[str | None, int]:
        """Write the part; returns its path below ``scores/`` and its size [bytes]."""
        if not scores:
            return None, 0
        table = pa.Table.from_pylist(scores, schema=schema.scores_schema(id_type))
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        # The name is unique: a block that is tried again after its worker died leaves an orphan.
        path = f"{self._job.run_id}/part-{block:06d}-{uuid.uuid4().hex[:12]}.parquet"
        self._job.storage.write(self._job.output.child("scores", path), buffer.getvalue())
        return path, buffer.tell()


_taggers: dict[str, Tagger] = {}


def tag_block(block: pa.Table, job: TagJob) -> pa.Table:
    """Score a block with this process's tagger; see :meth:`Tagger.tag`.

    A fleet reuses its worker processes: the tagger and its child stay from block to block, and
    make way for those of the next run.
    """
    if job.run_id not in _taggers:
        for stale in _taggers.values():
            stale.close()
        _taggers.clear()
        _taggers[job.run_id] = Tagger(job)
    return _taggers[job.run_id].tag(block)


def _version(track: dict[str, Any], read: str) -> str:
    """The version planned with; where none was looked up, the one that was read.

    A file that changed in between is recorded under the old version: the next run finds the new
    one in the catalog and scores it again.
    """
    planned = track["audio_version"]
    return read if planned is None else planned


def reject_table(results: pa.Table, id_type: pa.DataType) -> pa.Table:
    """Rows for ``Ledger.merge_rejects`` out of workers' reports: new rejects, and mended tracks."""
    rows = [row for rejects in results["rejects"].to_pylist() for row in rejects]
    for ids in results["mended_ids"].to_pylist():
        rows += [{"track_id": i, "audio_version": "", "extraction_id": ""} for i in ids]
    return schema.reject_rows(rows, id_type)
