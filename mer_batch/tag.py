"""What tagging makes of a track: one row of ``scores/``."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mer_batch import schema
from mer_batch.task import ScoreTask


@dataclass(frozen=True)
class Scores:
    """The product of tagging; see ``block.Product``.

    Attributes
    ----------
    card_json, weights : bytes
        The checkpoint.
    model_id : str
    """

    card_json: bytes
    weights: bytes
    model_id: str
    table: str = "scores"

    def task(self) -> ScoreTask:
        """Score with the checkpoint."""
        return ScoreTask(self.card_json, self.weights)

    def part(self, id_type: pa.DataType) -> ScorePart:
        """A new part."""
        return ScorePart(id_type, self.model_id)


class ScorePart:
    """Rows of ``schema.scores_schema``."""

    def __init__(self, id_type: pa.DataType, model_id: str) -> None:
        self._schema = schema.scores_schema(id_type)
        self._model_id = model_id
        self._rows: list[dict[str, Any]] = []

    @property
    def n_rows(self) -> int:
        """Rows added."""
        return len(self._rows)

    def add(self, track: dict[str, Any], outcome: dict[str, Any]) -> None:
        """Add a track's score, by ``schema.SCORE_COLUMNS``."""
        row = {**track, **outcome, "model_id": self._model_id, "scored_at": schema.utc_now()}
        self._rows.append(row)

    def finish(self) -> bytes:
        """The part as a Parquet file."""
        table = pa.Table.from_pylist(self._rows, schema=self._schema)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        return buffer.getvalue()
