"""Decode a block here, and have its features scored elsewhere: by whoever holds the model.

The decoder's process is the one that ``extract`` has, and says what it says in the same frames. The
features go out in batches, a bounded number at a time, and what the model says of them comes back.
The block's part is written here, as ever.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mer_batch.audio.mel import db_to_power
from mer_batch.block import BlockRecord, BlockReport, BlockWorker, Job
from mer_batch.checkpoint import Checkpoint
from mer_batch.errors import AudioError
from mer_batch.extract import TrackFeatures
from mer_batch.score import Ask, Float32, track_score
from mer_batch.steps import reach
from mer_batch.tag import Scores
from mer_batch.task import ExtractTask

# Batches that are being scored while the next one is decoded. More would hold more memory, and a
# pool that is slower than this is too small.
_BATCHES_OUT = 1


@dataclass(frozen=True)
class _Waiting:
    """A track with its features, in the model's unit."""

    track: dict[str, Any]
    version: str
    segments: Float32
    n_frames: int
    seconds: float


class PooledWorker(BlockWorker):
    """Decodes blocks of tracks; keeps its child process from block to block.

    Parameters
    ----------
    job : Job
        Of tagging.
    ask : Ask
        Has features scored.
    batch_segments : int
        So many at a time, or a few more: a track's stay together.
    """

    def __init__(self, job: Job, ask: Ask, batch_segments: int) -> None:
        assert isinstance(job.product, Scores)
        checkpoint = Checkpoint(job.product.card_json, job.product.weights, origin="checkpoint")
        self._feature_set = checkpoint.feature_set
        self._half_widths = checkpoint.half_widths
        # Single floats: half ones would move scores by a thousandth.
        super().__init__(job, ExtractTask(checkpoint.feature_set, "float32"))
        self._ask = ask
        self._batch_segments = batch_segments

    def work(self, number: int, block: pa.Table) -> BlockReport:
        """Do a block; see :meth:`BlockWorker.work`."""
        reach("block_begun")
        record = BlockRecord(self._job, number, block.schema.field("track_id").type)
        batch: list[_Waiting] = []
        out: deque[tuple[list[_Waiting], Callable[[], npt.NDArray[np.float64]]]] = deque()
        outcomes: Any = self._outcomes(block.to_pylist())
        # Closed here and now where the pool fails: the decoder has the next track already.
        with contextlib.closing(outcomes):
            for track, version, outcome in outcomes:
                if isinstance(outcome, AudioError):
                    record.add(track, version, outcome)
                    continue
                batch.append(self._waiting(track, version, outcome))
                if sum(len(waiting.segments) for waiting in batch) >= self._batch_segments:
                    out.append((batch, self._asked(batch)))
                    batch = []
                    if len(out) > _BATCHES_OUT:
                        self._settle(*out.popleft(), record)
        if batch:
            out.append((batch, self._asked(batch)))
        for asked in out:
            self._settle(*asked, record)
        return record.finish(is_confined=self._child.is_confined)

    def _waiting(self, track: dict[str, Any], version: str, outcome: TrackFeatures) -> _Waiting:
        segments = outcome.segments
        if self._feature_set.unit == "power":
            segments = db_to_power(segments, floor_db=self._feature_set.floor_db)
        n_frames = self._feature_set.shown_frames(outcome.n_frames)
        return _Waiting(track, version, segments, n_frames, outcome.duration_seconds)

    def _asked(self, batch: list[_Waiting]) -> Callable[[], npt.NDArray[np.float64]]:
        segments = np.concatenate([waiting.segments for waiting in batch])
        lengths = [len(waiting.segments) for waiting in batch]
        return self._ask(segments, np.repeat([waiting.n_frames for waiting in batch], lengths))

    def _settle(
        self,
        batch: list[_Waiting],
        outputs: Callable[[], npt.NDArray[np.float64]],
        record: BlockRecord,
    ) -> None:
        """Wait for what the model says of a batch, and record it."""
        ends = np.cumsum([len(waiting.segments) for waiting in batch])
        for waiting, values in zip(batch, np.split(outputs(), ends[:-1]), strict=True):
            try:
                score = track_score(values).columns(waiting.seconds, self._half_widths)
            except AudioError as error:
                record.add(waiting.track, waiting.version, error)
                continue
            record.add(waiting.track, waiting.version, score)
