"""How a night ended for every track: its score or its reject, found in the ledger."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mer_batch import schema
from mer_batch.budget import Budget, Night
from mer_batch.errors import MerBatchError
from mer_batch.ledger import Ledger
from mer_batch.plan import PENDING, Plan, reject_counts
from mer_batch.schema import Identity
from mer_batch.today import first_of_each
from mer_batch.track_index import Int64

#: Columns of ``enriched/`` that differ from score to score.
SCORE_FIELDS = tuple(
    field
    for field in schema.ENRICHED_FIELDS
    if field.name not in ("tag_status", "features_id", "model_id")
)

_NONE, _SCORED = 0, 1


@dataclass(frozen=True)
class Outcome:
    """How the night ended for every track of the catalog.

    Attributes
    ----------
    identity : Identity
    scores : pa.Table
        ``SCORE_FIELDS`` of scored tracks, in any order.
    at : int32, shape (n_tracks,)
        Row of each track in `scores`, -1 for those without a score.
    status : uint8, shape (n_tracks,)
        What stands in ``tag_status``, as a number in `words`.
    words : tuple of str
    n_scored : int
    n_rejected : dict of str to int
        By reason.
    """

    identity: Identity
    scores: pa.Table
    at: npt.NDArray[np.int32]
    status: npt.NDArray[np.uint8]
    words: tuple[str, ...]
    n_scored: int
    n_rejected: dict[str, int]

    def __len__(self) -> int:
        return len(self.at)

    def rows(self, begin: int, n_rows: int) -> list[pa.Array]:
        """``schema.ENRICHED_FIELDS`` of some tracks, in the catalog's order."""
        at = self.at[begin : begin + n_rows]
        is_missing = at < 0
        rows = pa.array(at, mask=is_missing)
        only = pa.array(np.zeros(len(at), np.int8), mask=is_missing)
        status = pa.array(self.status[begin : begin + n_rows].astype(np.int32))
        same = {
            "tag_status": pa.array(self.words, pa.string()).take(status),
            "features_id": pa.array([self.identity.features_id]).take(only),
            "model_id": pa.array([self.identity.model_id]).take(only),
        }
        return [
            same[field.name]
            if field.name in same
            else self.scores[field.name].take(rows).combine_chunks()
            for field in schema.ENRICHED_FIELDS
        ]

    def spread(self, target: str) -> tuple[float, float] | None:
        """Mean and standard deviation of a target over the tracks; None where none is scored."""
        values = self.scores[target].take(pa.array(self.at[self.at >= 0]))
        mean, std = pc.mean(values).as_py(), pc.stddev(values).as_py()
        return None if mean is None else (mean, std)


def look_up_outcome(plan: Plan, ledger: Ledger, identity: Identity) -> Outcome:
    """Find every catalog row's score or reject in the ledger.

    Raises
    ------
    MerBatchError
        Where a track has neither: the night is not complete.
    """
    scores, at = _scores(plan, ledger, identity)
    rejects = ledger.rejects(identity.extraction_id)
    places, first = first_of_each(plan.today.at(rejects))
    reasons = rejects["reason"].take(pa.array(first)).combine_chunks().dictionary_encode()
    words = ("", schema.SCORED, *reasons.dictionary.to_pylist())
    status = np.full(len(plan), _NONE, np.uint8)
    status[places] = reasons.indices.to_numpy() + _SCORED + 1
    status[at >= 0] = _SCORED
    counts = np.bincount(status, minlength=len(words)).tolist()
    if counts[_NONE]:
        _refuse_missing(plan, np.flatnonzero(status == _NONE))
    n_rejected = dict(zip(words[2:], counts[2:], strict=True))
    return Outcome(
        identity, scores, at, status, words, counts[_SCORED],
        {reason: count for reason, count in sorted(n_rejected.items()) if count},
    )  # fmt: skip


def _refuse_missing(plan: Plan, places: Int64) -> None:
    ids = plan.today.index.ids.take(pa.array(places[:5])).to_pylist()
    raise MerBatchError(
        f"{len(places)} tracks have neither a score nor a reject (first: {ids!r}); "
        "run again to finish them"
    )


def _scores(
    plan: Plan, ledger: Ledger, identity: Identity
) -> tuple[pa.Table, npt.NDArray[np.int32]]:
    """The newest score of every track at today's version: without versions there may be several.

    Rows that stand twice in the ledger come to one place.
    """
    names = [field.name for field in SCORE_FIELDS]
    newest = np.full(len(plan), np.iinfo(np.int64).min, np.int64)
    at = np.full(len(plan), -1, np.int32)
    kept = [pa.schema(SCORE_FIELDS).empty_table()]
    n_kept = 0
    for rows in ledger.scores(
        features_id=identity.features_id,
        model_id=identity.model_id,
        columns=["track_id", "audio_version", *names],
    ):
        places = plan.today.at(rows)
        when = _microseconds(rows["scored_at"])
        used = np.flatnonzero((places >= 0) & (when > newest[places]))
        # Of one track the newest is assigned last; of equal ones the first that was read.
        used = used[np.argsort(-when[used], kind="stable")][::-1]
        newest[places[used]] = when[used]
        at[places[used]] = n_kept + np.arange(len(used))
        kept.append(rows.select(names).take(pa.array(used)))
        n_kept += len(used)
    return pa.concat_tables(kept, promote_options="permissive").combine_chunks(), at


def _microseconds(times: pa.ChunkedArray) -> Int64:
    epoch = datetime.datetime(1, 1, 1, tzinfo=datetime.UTC)
    filled: Int64 = pc.fill_null(times, epoch).cast(pa.int64()).to_numpy()
    return filled


def open_budget(
    plan: Plan,
    ledger: Ledger,
    identity: Identity,
    *,
    latest: dict[str, Any] | None,
    max_reject_rate: float,
) -> Budget:
    """Count what is to be tried, and what runs since the last published night have tried.

    Parameters
    ----------
    latest : dict or None
        Content of the latest marker.
    """
    since = Night.of(latest) if latest else None
    last_run_id = since.run_id if since else ""
    n_scored = _n_scored_since(plan, ledger, identity, last_run_id) if since else plan.n_done
    rejects = ledger.rejects(identity.extraction_id)
    # A reject that the last night had already is nothing new.
    rejects = rejects.filter(pc.greater(rejects["first_run_id"], last_run_id))
    before = reject_counts(plan, rejects, held_only=True)
    n_tried = n_scored + sum(before.values())
    is_pending = plan.state[plan.history.places] == PENDING
    first_run_id = plan.history.rows["first_run_id"].filter(pa.array(is_pending))
    n_known = pc.sum(pc.less_equal(first_run_id, last_run_id)).as_py() or 0
    n_tracks = n_tried + plan.n_pending - n_known
    return Budget(n_tracks, max_reject_rate, n_tried, before, since)


def _n_scored_since(plan: Plan, ledger: Ledger, identity: Identity, run_id: str) -> int:
    is_scored = np.zeros(len(plan), bool)
    for rows in ledger.scores(
        features_id=identity.features_id,
        model_id=identity.model_id,
        columns=["track_id", "audio_version"],
        after_run=run_id,
    ):
        places = plan.today.at(rows)
        is_scored[places[places >= 0]] = True
    return int(is_scored.sum())
