"""What is to be done: catalog minus ledger. Nothing else decides it.

A resume, a nightly increment, a new model and a changed file are all the same anti-join. What is
kept of it is a byte a track; tracks that are to be done are read from the catalog's copy as they
are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mer_batch import schema
from mer_batch.audio.decode import TOLERANCE_SECONDS, AudioLimits
from mer_batch.catalog import Catalog
from mer_batch.feature_places import COLUMNS, FeaturePlaces, FoundTracks
from mer_batch.ledger import Ledger
from mer_batch.schema import Identity
from mer_batch.storage import Storage
from mer_batch.today import Today, first_of_each
from mer_batch.track_index import Bool, Int64, hashes_of, joined, whole

UInt8 = npt.NDArray[np.uint8]

#: What becomes of a track, in ``Plan.state``.
PENDING, DONE, REJECTED = range(3)

_HISTORY = ("attempts", "n_doubts", "first_run_id", "first_seen")


@dataclass(frozen=True)
class History:
    """Earlier rejects of the catalog's tracks, of each the one that counts, ordered by place.

    Attributes
    ----------
    places : int64
    rows : pa.Table
        ``attempts, n_doubts, first_run_id, first_seen``.
    """

    places: Int64
    rows: pa.Table

    def of(self, places: Int64) -> pa.Table:
        """The history of some tracks: 0 and null where there is none."""
        at = np.minimum(np.searchsorted(self.places, places), max(0, len(self.places) - 1))
        is_there = self.places[at] == places if len(self.places) else np.zeros(len(places), bool)
        found = self.rows.take(pa.array(at, mask=~is_there))
        for name in ("attempts", "n_doubts"):
            number = found.schema.get_field_index(name)
            found = found.set_column(number, name, pc.fill_null(found[name], 0))
        return found


@dataclass(frozen=True)
class Plan:
    """Today's work.

    Attributes
    ----------
    today : Today
    state : uint8, shape (n_tracks,)
        Whether a track is to do, has its scores (or features), or is a reject that holds.
    history : History
    n_replayed : int
        Rejects that are pending because they were asked for.
    n_changed, n_retried : int
        Of what is pending: tracks that were tried at another version of their audio only, and
        rejects that are tried again. The others are new to this model, or to this extraction.
    n_removed : int
        Tracks that the ledger knows and the catalog no longer has.
    """

    today: Today
    state: UInt8
    history: History
    n_replayed: int = 0
    n_changed: int = 0
    n_retried: int = 0
    n_removed: int = 0

    def __len__(self) -> int:
        return len(self.today)

    @property
    def n_pending(self) -> int:
        """Tracks to do."""
        return int((self.state == PENDING).sum())

    @property
    def n_new(self) -> int:
        """Tracks to do that this model, or this extraction, has not seen."""
        return self.n_pending - self.n_changed - self.n_retried

    @property
    def n_done(self) -> int:
        """Catalog rows that are done."""
        return int((self.state == DONE).sum())

    @property
    def n_rejected(self) -> int:
        """Catalog rows that are rejects already."""
        return int((self.state == REJECTED).sum())

    @property
    def pending(self) -> Tracks:
        """Tracks to do."""
        return Tracks(self, self.state == PENDING)

    def tracks_of(self, ids: Sequence[object]) -> Tracks:
        """Tracks by their ids."""
        places = self.today.index.find(pa.array(ids, self.today.index.id_type))
        chosen = np.zeros(len(self), bool)
        chosen[places[places >= 0]] = True
        return Tracks(self, chosen)

    def fingerprint(self) -> str:
        """Changes with the tracks, their order and the versions of their audio."""
        return self.today.fingerprint()


@dataclass(frozen=True)
class Tracks:
    """Some tracks of the catalog, in its order; however many they are, a byte each.

    Attributes
    ----------
    chosen : bool, shape (n_tracks,)
    """

    plan: Plan
    chosen: Bool

    def __len__(self) -> int:
        return int(self.chosen.sum())

    def __or__(self, other: Tracks) -> Tracks:
        return Tracks(self.plan, self.chosen | other.chosen)

    def batches(self) -> Iterator[pa.Table]:
        """The tracks, some thousands at a time.

        Yields
        ------
        pa.Table
            ``track_id, audio_uri, audio_version, expected_seconds, attempts, n_doubts,
            first_run_id, first_seen``, the last four of an earlier reject, or 0 and null.
            `n_doubts` are the attempts at this audio that ended for one of
            ``schema.DOUBTFUL_REASONS``.
        """
        end = 0
        for batch in self.plan.today.tracks.batches(["track_id", "audio_uri", "expected_seconds"]):
            begin, end = end, end + batch.num_rows
            rows = np.flatnonzero(self.chosen[begin:end])
            if len(rows):
                found = batch.take(pa.array(rows))
                columns = dict(zip(batch.schema.names, found.columns, strict=True))
                yield _to_do(self.plan, columns, begin + rows)

    def table(self) -> pa.Table:
        """All at once: for those that are known to be few."""
        empty = _to_do(
            self.plan,
            {
                "track_id": pa.array([], self.plan.today.index.id_type),
                "audio_uri": pa.array([], pa.string()),
                "expected_seconds": pa.array([], pa.float64()),
            },
            np.zeros(0, np.int64),
        )
        return pa.concat_tables([empty, *self.batches()])


def _to_do(plan: Plan, columns: dict[str, pa.Array], places: Int64) -> pa.Table:
    """Tracks at some places, as workers take them."""
    versions = plan.today.versions
    if versions is None:
        version = pa.nulls(len(places), pa.string())
    else:
        version = versions.take(pa.array(places)).cast(pa.string())
    history = plan.history.of(places)
    return pa.table(
        {
            "track_id": columns["track_id"],
            "audio_uri": columns["audio_uri"],
            "audio_version": version,
            "expected_seconds": columns["expected_seconds"],
            **{name: history[name] for name in _HISTORY},
        }
    )


def make_plan(
    catalog: Catalog,
    ledger: Ledger,
    storage: Storage,
    identity: Identity,
    *,
    detect_changes: bool,
    replayed: frozenset[str] = frozenset(),
) -> Plan:
    """Compare the catalog with the scores there are.

    Parameters
    ----------
    replayed : frozenset of str
        Reasons of rejects that are to be tried again, however often they were.

    Raises
    ------
    StorageError
        Where the audio's versions cannot be listed.
    """
    today = Today.of(catalog, storage, detect_changes=detect_changes)
    scored = _Seen(today)
    for rows in ledger.scores(
        features_id=identity.features_id,
        model_id=identity.model_id,
        columns=["track_id", "audio_version"],
    ):
        scored.add(rows)
    return _plan(today, scored, ledger.rejects(), identity, replayed)


def make_extraction_plan(
    catalog: Catalog, ledger: Ledger, storage: Storage, identity: Identity, *, detect_changes: bool
) -> tuple[Plan, list[str]]:
    """Compare the catalog with the features there are, of which no segment must be missing.

    Returns
    -------
    plan : Plan
    problems : list of str
        Parts that cannot be read; their tracks are pending.

    Raises
    ------
    StorageError
        Where the audio's versions cannot be listed.
    """
    today = Today.of(catalog, storage, detect_changes=detect_changes)
    parts = ledger.features(features_id=identity.features_id, columns=COLUMNS)
    places = FeaturePlaces(today, parts)
    extracted = _Seen(today)
    extracted.is_same |= places.is_whole
    return _plan(today, extracted, ledger.rejects(), identity), places.problems


class _Seen:
    """Tracks that rows of a table name: at today's version, at others, and those that are gone."""

    def __init__(self, today: Today) -> None:
        self._today = today
        self.is_same = np.zeros(len(today), bool)
        self.is_other = np.zeros(len(today), bool)
        self._gone: list[npt.NDArray[np.uint64]] = []

    def add(self, rows: pa.Table) -> None:
        places, is_same = self._today.find(rows)
        self.is_same[places[is_same]] = True
        self.is_other[places[(places >= 0) & ~is_same]] = True
        gone = np.flatnonzero(places < 0)
        if len(gone):
            self._gone.append(hashes_of(whole(rows["track_id"]).take(pa.array(gone))))

    def n_gone(self, others: _Seen) -> int:
        """Tracks of either that the catalog does not have."""
        gone = [*self._gone, *others._gone]
        return len(np.unique(np.concatenate(gone))) if gone else 0


def _plan(
    today: Today,
    done: _Seen,
    rejects: pa.Table,
    identity: Identity,
    replayed: frozenset[str] = frozenset(),
) -> Plan:
    state = np.full(len(today), PENDING, np.uint8)
    holding = today.at(permanent(rejects, identity, replayed))
    state[holding[holding >= 0]] = REJECTED
    state[done.is_same] = DONE
    is_pending = state == PENDING
    rejected = _Seen(today)
    rejected.add(rejects)
    asked_for = np.zeros(len(today), bool)
    at = today.at(rejects.filter(_has_reason(rejects, replayed)))
    asked_for[at[at >= 0]] = True
    is_retried = is_pending & rejected.is_same
    is_changed = is_pending & ~rejected.is_same & (done.is_other | rejected.is_other)
    return Plan(
        today,
        state,
        _history(today, rejects, identity),
        n_replayed=int((is_pending & asked_for).sum()),
        n_changed=int(is_changed.sum()),
        n_retried=int(is_retried.sum()),
        n_removed=done.n_gone(rejected),
    )


def permanent(
    rejects: pa.Table, identity: Identity, replayed: frozenset[str] = frozenset()
) -> pa.Table:
    """Rejects that hold today.

    Not of a passing kind, tried under today's extraction, and not asked for by their reason.
    """
    passing = _has_reason(rejects, schema.TRANSIENT_REASONS | replayed)
    doubtful = _is_doubtful(rejects)
    passing = pc.or_(passing, pc.and_(doubtful, pc.less(rejects["attempts"], 2)))
    same = pc.equal(rejects["extraction_id"], identity.extraction_id)
    return rejects.filter(pc.and_(pc.invert(passing), same))


def _has_reason(rejects: pa.Table, reasons: frozenset[str]) -> pa.ChunkedArray:
    return pc.is_in(rejects["reason"], pa.array(sorted(reasons), pa.string()))


def _is_doubtful(rejects: pa.Table) -> pa.ChunkedArray:
    """Whether a reject may be the machine's fault; see ``schema.is_doubtful``."""
    vanished = pc.and_(
        pc.equal(rejects["reason"], schema.VANISHED_REASON),
        pc.not_equal(rejects["audio_version"], ""),
    )
    return pc.or_(_has_reason(rejects, schema.DOUBTFUL_REASONS), vanished)


def _history(today: Today, rejects: pa.Table, identity: Identity) -> History:
    """How often tracks were rejected before, how often in doubt, and since when.

    What this extraction has seen of a track counts, or else the latest that has seen it.
    """
    is_own = pc.equal(rejects["extraction_id"], identity.extraction_id).cast(pa.int8())
    order = [("is_own", "descending"), ("last_seen", "descending")]
    rejects = rejects.append_column("is_own", is_own).sort_by(order)  # the first counts
    places, is_same = today.find(rejects)
    places, first = first_of_each(places)
    rejects = rejects.take(pa.array(first))
    attempts = pc.fill_null(rejects["attempts"], 0)
    # A crash of the decoder is a track's first, however often it was rejected for other reasons.
    is_doubt = pc.and_(pa.array(is_same[first]), pc.fill_null(_is_doubtful(rejects), False))
    rows = rejects.select(["first_run_id", "first_seen"])
    rows = rows.append_column("attempts", attempts)
    rows = rows.append_column("n_doubts", pc.if_else(is_doubt, attempts, 0))
    return History(places, rows)


def reject_counts(plan: Plan, rejects: pa.Table, *, held_only: bool = False) -> dict[str, int]:
    """How many of the catalog's rows are rejects, by reason; of a track the first row counts.

    Parameters
    ----------
    plan : Plan
    rejects : pa.Table
        Of one extraction.
    held_only : bool
        Only rejects that are not to be tried again.
    """
    places, first = first_of_each(plan.today.at(rejects))
    # What is done all the same was done under other limits.
    counts = plan.state[places] == REJECTED if held_only else plan.state[places] != DONE
    found = pc.value_counts(rejects["reason"].take(pa.array(first[counts])))
    return dict(sorted((row["values"], row["counts"]) for row in found.to_pylist()))


# ------------------------------------------------------------------ features


@dataclass(frozen=True)
class FeaturedTracks:
    """Tracks to do whose features are there, in the parts' order."""

    plan: Plan
    parts: list[FoundTracks] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(self.lengths())

    def lengths(self) -> list[int]:
        """How many tracks each part holds."""
        return [len(part.places) for part in self.parts]

    def tracks(self, spans: Iterable[list[tuple[int, int, int]]]) -> Iterator[pa.Table]:
        """Blocks of tracks.

        Parameters
        ----------
        spans : iterable of list of (part, begin, end)
            The blocks, each as stretches of tracks of parts.

        Yields
        ------
        pa.Table
            As ``Tracks.batches``, with `part` and, in it, `rows`; `n_frames`,
            `features_duration_seconds` and `features_version` as they stand there.
        """
        # Parts are in no order of the catalog: here its URIs are held after all.
        columns = {
            name: joined([b.column(0) for b in self.plan.today.tracks.batches([name])], kind)
            for name, kind in (("audio_uri", pa.string()), ("expected_seconds", pa.float64()))
        }
        for stretches in spans:
            tables = [self._table(columns, *stretch) for stretch in stretches]
            yield pa.concat_tables(tables).combine_chunks()

    def _table(self, columns: dict[str, pa.Array], number: int, begin: int, end: int) -> pa.Table:
        part = self.parts[number]
        places = part.places[begin:end]
        at = pa.array(places)
        own = {name: column.take(at) for name, column in columns.items()}
        own["audio_uri"] = own["audio_uri"].cast(pa.string())
        index = self.plan.today.index
        table = _to_do(
            self.plan, {"track_id": index.ids.take(at).cast(index.id_type), **own}, places
        )
        for name, column in part.columns(begin, end).items():
            table = table.append_column(name, column)
        return table


def with_features(
    plan: Plan, ledger: Ledger, features_id: str, limits: AudioLimits
) -> tuple[FeaturedTracks, Tracks, list[str]]:
    """Split what is pending into tracks whose features are there, and tracks to decode.

    A track of another length than `limits` or the catalog allow is left to the decoder, which says
    why it is a reject: its features were extracted when they allowed it.

    Returns
    -------
    from_features : FeaturedTracks
    to_decode : Tracks
    problems : list of str
        Parts of features that cannot be read.
    """
    parts = ledger.features(features_id=features_id, columns=COLUMNS)
    places = FeaturePlaces(plan.today, parts)
    found = places.select(plan.pending.chosen)
    if found:
        tracks = plan.today.tracks.batches(["expected_seconds"])
        expected = np.concatenate([b.column(0).to_numpy(zero_copy_only=False) for b in tracks])
        fitting = [part.only(_fits(part, expected[part.places], limits)) for part in found]
        found = [part for part in fitting if len(part.places)]
    to_decode = plan.pending.chosen.copy()
    for part in found:
        to_decode[part.places] = False
    return FeaturedTracks(plan, found), Tracks(plan, to_decode), places.problems


def _fits(part: FoundTracks, expected: npt.NDArray[np.float64], limits: AudioLimits) -> Bool:
    """Whether the decoder would take tracks of this length today; `expected` is NaN if unknown."""
    seconds = part.seconds
    is_within = (seconds >= limits.min_seconds) & (seconds <= limits.max_seconds)
    fits: Bool = is_within & ~(seconds < expected - TOLERANCE_SECONDS)
    return fits
