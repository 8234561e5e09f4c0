"""Score tracks again out of ``features/``, decoding nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mer_batch.block import BlockRecord, BlockReport, Job, of_this_process
from mer_batch.checkpoint import Checkpoint
from mer_batch.errors import AudioError, FeaturesError
from mer_batch.feature_table import mels, open_part
from mer_batch.memory import keep_memory
from mer_batch.score import Ask, Float32, Scorer, compute_in_one_thread, track_score
from mer_batch.steps import reach
from mer_batch.storage import parse_uri
from mer_batch.tag import Scores

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# Rows unpacked to single floats at a time: few enough that the memory is the same again and again.
_RUN_ROWS = 16
# Runs that are being scored while the next one is read.
_RUNS_OUT = 1


class Rescorer:
    """Scores blocks of tracks whose features are there.

    A track whose features turn out to be damaged, or cannot be had of the store, is left to be
    decoded: that is no fault of the track.

    Parameters
    ----------
    job : Job
        Of tagging.
    ask : Ask, optional
        Has features scored elsewhere; by default they are scored here.
    run_rows : int
        Read and scored at a time.
    """

    def __init__(self, job: Job, ask: Ask | None = None, run_rows: int = _RUN_ROWS) -> None:
        assert isinstance(job.product, Scores)
        keep_memory()
        checkpoint = Checkpoint(job.product.card_json, job.product.weights, origin="checkpoint")
        self._job = job
        self._feature_set = checkpoint.feature_set
        self._half_widths = checkpoint.half_widths
        self._ask = ask or _asked_here(Scorer(checkpoint.function()))
        self._give_threads_back = compute_in_one_thread()
        self._run_rows = run_rows

    def close(self) -> None:
        """Give torch its threads back."""
        self._give_threads_back()

    def work(self, number: int, block: pa.Table) -> BlockReport:
        """Score a block, write its part, report it.

        Parameters
        ----------
        number : int
            Of the block, for the part's name.
        block : pa.Table
            Tracks of ``plan.with_features``, those of one part of features together.
        """
        reach("rescore_begun")
        record = BlockRecord(self._job, number, block.schema.field("track_id").type)
        for part, tracks in groupby(block.to_pylist(), key=lambda track: str(track["part"])):
            self._score(part, list(tracks), record)
        return record.finish()

    def _score(self, part: str, tracks: list[dict[str, Any]], record: BlockRecord) -> None:
        outputs = self._outputs(part, tracks, record)
        for track in tracks:
            try:
                score = track_score(np.stack([outputs[row] for row in track["rows"]]))
            except (KeyError, AudioError):  # its rows were not read, or hold no numbers
                record.leave(track)
                continue
            columns = score.columns(track["features_duration_seconds"], self._half_widths)
            record.add(track, track["features_version"], columns)

    def _outputs(
        self, part: str, tracks: list[dict[str, Any]], record: BlockRecord
    ) -> dict[int, Float64]:
        """What the model says of each of the tracks' rows that can be read, by row."""
        shown = self._feature_set.shown_frames
        lengths = {row: shown(track["n_frames"]) for track in tracks for row in track["rows"]}
        wanted = np.sort(np.fromiter(lengths, np.int64, len(lengths)))
        outputs: dict[int, Float64] = {}
        out: deque[tuple[list[int], Callable[[], Float64]]] = deque()
        try:
            for begin, batch in self._batches(part, wanted):
                rows = _between(wanted, begin, begin + len(batch))
                segments = mels(batch, self._feature_set)
                if len(rows) < len(segments):
                    segments = segments[rows - begin]
                n_frames = np.array([lengths[row] for row in rows.tolist()])
                out.append((rows.tolist(), self._ask(segments, n_frames)))
                if len(out) > _RUNS_OUT:
                    _settle(*out.popleft(), outputs)
        except (OSError, pa.ArrowException, FeaturesError) as error:
            # The rows from here on are missing: their tracks are left.
            record.tell(f"{part}: {self._job.storage.explain(error)}")
        for asked in out:
            _settle(*asked, outputs)
        return outputs

    def _batches(self, part: str, wanted: Int64) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Runs of rows that hold wanted ones, and the row that each begins with.

        However large the part's row groups are (compacting a table makes huge ones), only a run
        of rows is held unpacked at a time.
        """
        end = 0
        with open_part(self._job.storage, parse_uri(part)) as file:
            for group in range(file.num_row_groups):
                begin, end = end, end + file.metadata.row_group(group).num_rows
                last = _between(wanted, begin, end)[-1:]
                if not len(last):
                    continue
                for batch in file.iter_batches(
                    self._run_rows, row_groups=[group], columns=["mel"], use_threads=False
                ):
                    if len(_between(wanted, begin, begin + len(batch))):
                        yield begin, batch
                    begin += len(batch)
                    if begin > last[0]:
                        break


def _asked_here(scorer: Scorer) -> Ask:
    """Scored at once, before anybody waits for it."""

    def ask(segments: Float32, n_frames: npt.NDArray[np.integer]) -> Callable[[], Float64]:
        outputs = scorer.outputs(segments, n_frames)
        return lambda: outputs

    return ask


def _settle(rows: list[int], answer: Callable[[], Float64], outputs: dict[int, Float64]) -> None:
    outputs.update(zip(rows, answer(), strict=True))


def _between(rows: Int64, begin: int, end: int) -> Int64:
    return rows[np.searchsorted(rows, begin) : np.searchsorted(rows, end)]


def rescore_block(number: int, block: pa.Table, job: Job) -> BlockReport:
    """Score a block with this process's scorer; see :meth:`Rescorer.work`."""
    return of_this_process(Rescorer, job).work(number, block)
