"""Tag a catalog: plan, work, commit, publish."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from rich.console import Console

from mer_batch.block import Job, work_block
from mer_batch.budget import Budget
from mer_batch.catalog import Catalog, read_catalog
from mer_batch.checkpoint import Checkpoint, read_checkpoint
from mer_batch.config import TagConfig
from mer_batch.enrich import (
    Publication,
    is_published,
    last_published,
    publish,
)
from mer_batch.errors import ConfigError
from mer_batch.ledger import Ledger, held_id_type, reject_reasons
from mer_batch.outcome import Outcome, look_up_outcome, open_budget
from mer_batch.pipelines.compaction import compact_if_due
from mer_batch.pipelines.fleet import MAX_BLOCK_TRACKS, even_blocks
from mer_batch.pipelines.scoring import pooled
from mer_batch.pipelines.session import Session, opened
from mer_batch.pipelines.work import Stage, Work
from mer_batch.plan import FeaturedTracks, Plan, Tracks, make_plan, with_features
from mer_batch.rescore import Rescorer, rescore_block
from mer_batch.run import iso_now, no_refusal
from mer_batch.schema import Identity, content_id
from mer_batch.storage import Location, Storage, parse_uri
from mer_batch.tag import Scores

# Re-scoring so many takes the driver as long as Ray and its workers take to start.
_MAX_WITHOUT_RAY = 5_000
# Blocks to re-score take some hundredths of a second: enough of them to keep every core busy.
_MIN_BLOCK_TRACKS = 32
_BLOCKS = 64


@dataclass(frozen=True)
class TagSummary:
    """How a run of ``tag`` ended.

    Attributes
    ----------
    run_id : str
    n_tracks : int
        Rows of the catalog.
    n_tried, n_rescored : int
        Tracks decoded in this run, with or without success; tracks scored from their features.
    outcome : Outcome
    night_uri : str
        Where the enriched catalog lies.
    rejects_uri : str
        Where the table of rejects lies.
    was_published : bool
        False where the same night was there already.
    seconds, work_seconds : float
        Of the whole run, and of decoding without Ray's start [s].
    """

    run_id: str
    n_tracks: int
    n_tried: int
    n_rescored: int
    outcome: Outcome
    night_uri: str
    rejects_uri: str
    was_published: bool
    seconds: float
    work_seconds: float


def replay(config: TagConfig, console: Console, reasons: frozenset[str]) -> TagSummary:
    """Try rejects of some reasons again, and all that is pending, and publish the night.

    Raises
    ------
    ConfigError
        Where no reason is named: with those that the output's rejects have.
    MerBatchError
        As :func:`run`.
    """
    if not reasons:
        counts = reject_reasons(Storage(config.storage), parse_uri(config.output.uri))
        there = ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
        raise ConfigError(
            "reason is missing: say which rejects to try again, as reason=REASON[,REASON...] or "
            f"reason=all; {config.output.uri} holds {there or 'no rejects'}"
        )
    return run(config, console, replayed=reasons)


def run(
    config: TagConfig, console: Console, *, replayed: frozenset[str] = frozenset()
) -> TagSummary:
    """Score every pending track of a catalog and publish the night.

    Parameters
    ----------
    config : TagConfig
    console : Console
    replayed : frozenset of str
        Reasons of rejects that are tried again, however often they were.

    Raises
    ------
    RefusedError
        Before any work: configuration, catalog, checkpoint or storage.
    LeaseError
        Another run holds the output.
    ErrorBudgetExceeded
        Nothing was published; what was scored is committed.
    Interrupted
        By SIGINT or SIGTERM; what was finished is committed.
    """
    began = time.monotonic()
    storage = Storage(config.storage)
    checkpoint = read_checkpoint(config.model.uri, storage)
    catalog = catalog_of(config, storage)
    with opened(config, console, storage, catalog, product="scores") as session:
        job = _job(config, session, checkpoint)
        session.sweep()
        plan = _plan(config, session, job, replayed)
        rescored, decoded = _work(config, session, job, plan, checkpoint)
        with session.signals.deferred(), no_refusal():
            outcome, folder, is_new = _publish(config, session, job, plan)
        compact_if_due(session)
        return TagSummary(
            session.run.run_id, len(plan), decoded.n_done + decoded.n_rejected,
            rescored.n_done, outcome, folder.uri, session.output.child("rejects").uri, is_new,
            time.monotonic() - began, decoded.seconds,
        )  # fmt: skip


def catalog_of(config: TagConfig, storage: Storage) -> Catalog:
    """The configuration's catalog, checked for a night."""
    return read_catalog(
        config.catalog,
        storage,
        taken_names=config.enriched_names(),
        held_type=lambda: held_id_type(storage, parse_uri(config.output.uri)),
    )


def identity_of(config: TagConfig, checkpoint: Checkpoint) -> Identity:
    """What scores of this configuration are filed under."""
    features_id, limits = checkpoint.feature_set.features_id, config.audio.limits()
    return Identity.of(features_id, checkpoint.model_id, limits.content())


def _job(config: TagConfig, session: Session, checkpoint: Checkpoint) -> Job:
    return Job(
        storage=session.storage,
        output=session.output,
        run_id=session.run.run_id,
        identity=identity_of(config, checkpoint),
        product=Scores(checkpoint.card_json, checkpoint.weights, checkpoint.model_id),
        limits=config.audio.limits(),
        folders=session.catalog.folders,
    )


def _plan(config: TagConfig, session: Session, job: Job, replayed: frozenset[str]) -> Plan:
    plan = make_plan(
        session.catalog,
        session.ledger,
        session.storage,
        job.identity,
        detect_changes=session.detects_changes,
        replayed=replayed,
    )
    session.run.manifest.update(model={"uri": config.model.uri, **asdict(job.identity)})
    session.announce(plan)
    if replayed:
        reasons = sorted(replayed)
        session.run.manifest.update(replayed={"reasons": reasons, "n_tracks": plan.n_replayed})
        session.say(f"{plan.n_replayed:,} rejects to replay ({', '.join(reasons)})")
    return plan


# ------------------------------------------------------------------------------- work


def _work(
    config: TagConfig, session: Session, job: Job, plan: Plan, checkpoint: Checkpoint
) -> tuple[Stage, Stage]:
    """Score what is pending and commit it: from features where they are there, else from audio."""
    rescored = decoded = Stage(0, 0, [], 0.0)
    work = Work(session, job, _budget(config, session, job, plan))
    if plan.n_pending == 0:
        session.console.print("nothing to decode: every track has its outcome already")
        return rescored, decoded
    from_features, to_decode = _divided(session, job, plan)
    with work:
        is_light = len(from_features) <= _MAX_WITHOUT_RAY and not config.scoring.wants_pool
        if len(to_decode) == 0 and is_light:
            rescored = _rescore_here(work, job, from_features, checkpoint)
            to_decode = _damaged(session, plan, rescored)
            from_features = FeaturedTracks(plan)
        if n_tracks := len(to_decode) + len(from_features):
            trial = _trial(config, checkpoint)
            with (
                work.on_a_fleet(n_tracks, doing="tagging", meanwhile=trial) as fleet,
                pooled(config.scoring, job, fleet.n_cpus) as pool,
            ):
                if len(from_features):
                    rescore = pool.rescore_block if pool else rescore_block
                    rescored = fleet.run(rescore, _blocks_by_part(from_features))
                    to_decode |= _damaged(session, plan, rescored)
                decode = pool.decode_block if pool else work_block
                decoded = fleet.run(decode, even_blocks(to_decode, fleet.n_cpus))
    _tell_rescored(session, rescored)
    return rescored, decoded


def _trial(config: TagConfig, checkpoint: Checkpoint) -> Callable[[], None]:
    """What finds out whether the model works before any track is decoded.

    The built-in one does, its hash says so: to build it here as well as in the decoders would take
    from Ray's start what it saves.
    """
    return (lambda: None) if config.model.uri == "builtin" else checkpoint.check


def _divided(session: Session, job: Job, plan: Plan) -> tuple[FeaturedTracks, Tracks]:
    """What is pending: tracks that have features, and tracks to decode."""
    from_features, to_decode, problems = with_features(
        plan, session.ledger, job.identity.features_id, job.limits.audio
    )
    for problem in problems:
        session.say(f"a part of features cannot be read, its tracks are decoded: {problem}")
    return from_features, to_decode


def _tell_rescored(session: Session, rescored: Stage) -> None:
    if rescored.n_done:
        rate = rescored.n_done / max(rescored.seconds, 1e-3)
        session.say(
            f"{rescored.n_done:,} tracks re-scored from features in {rescored.seconds:.1f} s "
            f"({rate:,.0f} tracks/s)"
        )
    session.run.manifest.update(
        n_rescored=rescored.n_done, rescore_seconds=round(rescored.seconds, 3)
    )


def _rescore_here(
    work: Work, job: Job, from_features: FeaturedTracks, checkpoint: Checkpoint
) -> Stage:
    """Re-score in this process: it is done before Ray would be up."""
    checkpoint.check()
    blocks = _blocks_by_part(from_features)
    with contextlib.closing(Rescorer(job)) as rescorer:
        return work.in_this_process(rescorer.work, blocks, len(from_features), doing="re-scoring")


def _blocks_by_part(from_features: FeaturedTracks) -> Iterator[pa.Table]:
    """Blocks that hold whole parts, several where they are small; a huge one is divided."""
    return from_features.tracks(_spans(from_features.lengths()))


def _spans(lengths: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
    """The blocks for parts of some lengths, each as stretches (part, begin, end)."""
    n_tracks = min(MAX_BLOCK_TRACKS, max(_MIN_BLOCK_TRACKS, sum(lengths) // _BLOCKS))
    held: list[tuple[int, int, int]] = []
    for part, length in enumerate(lengths):
        held.append((part, 0, length))
        n_held = sum(end for _, _, end in held)
        if n_held >= n_tracks or part == len(lengths) - 1:
            n_blocks = max(1, n_held // MAX_BLOCK_TRACKS)
            cuts = np.linspace(0, n_held, n_blocks + 1).astype(int).tolist()
            yield from (_stretches(held, *cut) for cut in pairwise(cuts))
            held = []


def _stretches(
    parts: Sequence[tuple[int, int, int]], first: int, last: int
) -> list[tuple[int, int, int]]:
    """What lies between two places in a row of parts."""
    found, begin = [], 0
    for part, _, length in parts:
        within = max(0, first - begin), min(length, last - begin)
        if within[0] < within[1]:
            found.append((part, *within))
        begin += length
    return found


def _damaged(session: Session, plan: Plan, rescored: Stage) -> Tracks:
    """The tracks whose features turned out to be of no use."""
    for problem in rescored.problems:
        session.say(f"a part of features cannot be read, its tracks are decoded: {problem}")
    if rescored.left_ids:
        n_left = len(rescored.left_ids)
        session.say(f"{n_left:,} tracks have features that cannot be used; decoding them")
    return plan.tracks_of(rescored.left_ids)


def _budget(config: TagConfig, session: Session, job: Job, plan: Plan) -> Budget:
    return open_budget(
        plan,
        session.ledger,
        job.identity,
        latest=last_published(session.storage, session.output),
        max_reject_rate=config.max_reject_rate,
    )


# ------------------------------------------------------------------------------- publish


def _publish(
    config: TagConfig, session: Session, job: Job, plan: Plan
) -> tuple[Outcome, Location, bool]:
    """Publish the night, unless the same one is there already."""
    session.sweep_own()
    run = session.run
    outcome = look_up_outcome(plan, session.ledger, job.identity)
    night = _night(config, session, job, plan, outcome)
    content = night.marker["content_id"]
    is_new = not is_published(session.storage, night.folder, content)
    run.lease.check()  # who slept past it is told so, even where another run has published
    if is_new:
        publish(night)
    run.manifest.update(
        published={"uri": night.folder.uri, "is_new": is_new, "content_id": content},
        totals={"n_scored": outcome.n_scored, "n_rejected": outcome.n_rejected},
    )
    return outcome, night.folder, is_new


def _night(
    config: TagConfig, session: Session, job: Job, plan: Plan, outcome: Outcome
) -> Publication:
    run, catalog, prefix = session.run, session.catalog, config.output.prefix
    folder = night_folder(config, session.output, run.started_at)
    marker = {
        "run_id": run.run_id,
        "run_date": folder.path.rpartition("run_date=")[2],
        "published_at": iso_now(),
        "content_id": night_content_id(config, catalog, plan, session.ledger, job.identity),
        "n_scored": outcome.n_scored,
        "n_rejected": outcome.n_rejected,
    }
    return Publication(session.storage, folder, catalog, outcome, prefix, marker, run.lease)


def night_folder(config: TagConfig, output: Location, now: datetime.datetime) -> Location:
    """Where the night of this configuration lies, or of this day."""
    run_date = config.run_date or now.date()
    return output.child("enriched", f"run_date={run_date.isoformat()}")


def night_content_id(
    config: TagConfig, catalog: Catalog, plan: Plan, ledger: Ledger, identity: Identity
) -> str:
    """Names what a night is made of: the catalog, its audio, scores and rejects, the model."""
    rejects_id = ledger.content_id(identity.extraction_id)
    prefix = config.output.prefix
    return content_id(
        [catalog.fingerprint, plan.fingerprint(), rejects_id, asdict(identity), prefix]
    )
