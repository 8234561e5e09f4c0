"""Extract the features of a catalog: plan, work, commit."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console

from mer_batch.block import Job, Product, work_block
from mer_batch.budget import Budget
from mer_batch.catalog import read_catalog
from mer_batch.config import ExtractConfig
from mer_batch.ledger import held_id_type
from mer_batch.pipelines.compaction import compact_if_due
from mer_batch.pipelines.fleet import even_blocks
from mer_batch.pipelines.session import Session, opened
from mer_batch.pipelines.work import Work
from mer_batch.plan import Plan, make_extraction_plan, permanent, reject_counts
from mer_batch.run import no_refusal
from mer_batch.schema import Identity
from mer_batch.shards import Features
from mer_batch.storage import Storage, parse_uri

# A part of features is built in memory: up to a hundred kilobytes a segment in half floats.
_MAX_BLOCK_TRACKS = 128
_MAX_BLOCK_SEGMENTS = 128 * 7


@dataclass(frozen=True)
class ExtractSummary:
    """How a run of ``extract`` ended.

    Attributes
    ----------
    run_id : str
    features_id : str
    features_uri : str
        Where the table lies.
    n_tracks, n_with_features : int
        Rows of the catalog, and those whose features are there now.
    n_rejected : dict of str to int
        The others, by reason.
    n_tried, n_extracted, n_segments, n_bytes : int
        Of this run: tracks tried, tracks, segments and bytes written.
    seconds, work_seconds : float
        Of the whole run, and of the work without Ray's start [s].
    """

    run_id: str
    features_id: str
    features_uri: str
    n_tracks: int
    n_with_features: int
    n_rejected: dict[str, int]
    n_tried: int
    n_extracted: int
    n_segments: int
    n_bytes: int
    seconds: float
    work_seconds: float


def run(config: ExtractConfig, console: Console) -> ExtractSummary:
    """Extract the features of every track that has none.

    Where all are there already, neither Ray nor torch is started. ``Console(quiet=True)`` says
    nothing.

    Raises
    ------
    RefusedError
        Before any work: configuration, catalog or storage.
    LeaseError
        Another run holds the output.
    ErrorBudgetExceeded
        Too many tracks of the catalog are rejects; what was extracted is committed.
    Interrupted
        By SIGINT or SIGTERM; what was finished is committed.
    """
    began = time.monotonic()
    storage = Storage(config.storage)
    product = Features(config.features.feature_set(), config.features.dtype)
    catalog = read_catalog(
        config.catalog,
        storage,
        taken_names=[],
        held_type=lambda: held_id_type(storage, parse_uri(config.output.uri)),
    )
    with opened(config, console, storage, catalog, product="features") as session:
        job = _job(config, session, product)
        session.sweep()
        plan = _plan(session, job)
        work = _work(config, session, job, plan)
        with no_refusal():
            session.sweep_own()
        compact_if_due(session)
        return _summary(session, job, plan, work, began)


def _job(config: ExtractConfig, session: Session, product: Features) -> Job:
    limits = config.audio.limits()
    return Job(
        storage=session.storage,
        output=session.output,
        run_id=session.run.run_id,
        identity=Identity.of(product.feature_set.features_id, "", limits.content()),
        product=product,
        limits=limits,
        folders=session.catalog.folders,
    )


def _plan(session: Session, job: Job) -> Plan:
    plan, problems = make_extraction_plan(
        session.catalog,
        session.ledger,
        session.storage,
        job.identity,
        detect_changes=session.detects_changes,
    )
    session.run.manifest.update(
        features_id=job.identity.features_id, extraction_id=job.identity.extraction_id
    )
    for problem in problems:
        session.say(f"a part of features cannot be read, its tracks are to do again: {problem}")
    session.announce(plan)
    return plan


def _work(config: ExtractConfig, session: Session, job: Job, plan: Plan) -> Work:
    """Extract what is pending and commit it."""
    # Over the whole catalog: running a sick one twice does not get round it.
    budget = Budget(
        len(plan),
        config.max_reject_rate,
        plan.n_done + plan.n_rejected,
        reject_counts(plan, permanent(session.ledger.rejects(), job.identity)),
        scope="tracks of the catalog",
        consequence="What was extracted is kept",
    )
    n_pending = plan.n_pending
    work = Work(session, job, budget)
    if n_pending == 0:
        session.console.print("nothing to decode: every track has its features already")
        return work
    with work, work.on_a_fleet(n_pending, doing="extracting") as fleet:
        blocks = even_blocks(plan.pending, fleet.n_cpus, most=_most_tracks(job.product))
        fleet.run(work_block, blocks)
    return work


def _most_tracks(product: Product) -> int:
    """Tracks of a block whose part fits into a worker's memory."""
    assert isinstance(product, Features)
    n_segments = _MAX_BLOCK_SEGMENTS // (2 if product.dtype == "float32" else 1)
    return max(1, min(_MAX_BLOCK_TRACKS, n_segments // product.feature_set.max_segments))


def _summary(session: Session, job: Job, plan: Plan, work: Work, began: float) -> ExtractSummary:
    with no_refusal():
        n_rejected = reject_counts(plan, session.ledger.rejects(job.identity.extraction_id))
    return ExtractSummary(
        run_id=session.run.run_id,
        features_id=job.identity.features_id,
        features_uri=session.output.child(job.product.table).uri,
        n_tracks=len(plan),
        n_with_features=plan.n_done + work.n_done,
        n_rejected=n_rejected,
        n_tried=plan.n_pending,
        n_extracted=work.n_done,
        n_segments=work.n_rows,
        n_bytes=work.n_bytes,
        seconds=time.monotonic() - began,
        work_seconds=work.seconds,
    )
