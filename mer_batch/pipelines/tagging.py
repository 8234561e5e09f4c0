"""Tag a catalog: plan, work, commit, publish."""

from __future__ import annotations

import contextlib
import functools
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pyarrow as pa
import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning
from rich.console import Console

from mer_batch.catalog import Catalog, read_catalog
from mer_batch.checkpoint import CARD_NAME, WEIGHTS_NAME, Checkpoint, builtin_checkpoint
from mer_batch.config import TagConfig
from mer_batch.enrich import (
    Budget,
    Outcome,
    last_published,
    look_up_outcome,
    open_budget,
    publish,
    sweep_unfinished,
)
from mer_batch.errors import ErrorBudgetExceeded, LeaseError
from mer_batch.ledger import Ledger, Part
from mer_batch.pipelines.cluster import connected
from mer_batch.plan import Identity, Plan, make_plan
from mer_batch.progress import TagProgress, describe_rejects
from mer_batch.run import Run, StopSignals, iso_now
from mer_batch.schema import content_id
from mer_batch.storage import Location, Storage, parse_uri
from mer_batch.tag import TagJob, reject_table, tag_block

# A block is what one task does, and what a crash costs: about half a minute of work at most, and
# enough blocks that the last ones keep every core busy.
_MAX_BLOCK_TRACKS = 512
_BLOCKS_PER_CPU = 8
_COMMIT_SECONDS = 5.0
# Ray tries a task again whose worker died. Its default, without end, would hang on a sick node.
_MAX_TASK_RETRIES = 5


@dataclass(frozen=True)
class TagSummary:
    """How a run of ``tag`` ended.

    Attributes
    ----------
    run_id : str
    n_tracks : int
        Rows of the catalog.
    n_decoded : int
        Tracks tried in this run.
    outcome : Outcome
    night_uri : str
        Where the enriched catalog lies.
    was_published : bool
        False where the same night was there already.
    seconds, work_seconds : float
        Of the whole run, and of the work without Ray's start [s].
    """

    run_id: str
    n_tracks: int
    n_decoded: int
    outcome: Outcome
    night_uri: str
    was_published: bool
    seconds: float
    work_seconds: float


def run(config: TagConfig, console: Console) -> TagSummary:
    """Score every pending track of a catalog and publish the night.

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
    storage, output = Storage(config.storage), parse_uri(config.output.uri)
    checkpoint = load_checkpoint(config, storage)
    catalog = read_catalog(config.catalog, storage, taken_names=config.enriched_names())
    storage.check_writable(output)
    with StopSignals() as signals, _held(config, storage, output) as this_run:
        job = _job(config, storage, output, checkpoint, this_run.run_id)
        ledger = _swept_ledger(storage, output, catalog, this_run)
        plan = _planned(config, catalog, ledger, job, this_run, console)
        budget = _budget(config, plan, ledger, job)
        work_seconds = _tag_pending(config, job, plan, ledger, budget, this_run, signals, console)
        with signals.deferred():
            outcome, night, is_new = _published(config, catalog, plan, ledger, job, this_run)
        return TagSummary(
            this_run.run_id, len(plan.keys), len(plan.pending), outcome, night.uri, is_new,
            time.monotonic() - began, work_seconds,
        )  # fmt: skip


def load_checkpoint(config: TagConfig, storage: Storage) -> Checkpoint:
    """The checkpoint that a configuration names, tried once on empty features.

    Raises
    ------
    CheckpointError, StorageError
    """
    if config.model.uri == "builtin":
        checkpoint = builtin_checkpoint()
    else:
        folder = parse_uri(config.model.uri)
        card, weights = (storage.read(folder.child(name)) for name in (CARD_NAME, WEIGHTS_NAME))
        checkpoint = Checkpoint(card, weights, origin=config.model.uri)
    checkpoint.check()
    return checkpoint


def _held(config: TagConfig, storage: Storage, output: Location) -> Run:
    return Run(storage, output, config, lease_seconds=config.output.lease_seconds)


def _job(
    config: TagConfig, storage: Storage, output: Location, checkpoint: Checkpoint, run_id: str
) -> TagJob:
    features_id = checkpoint.feature_set.features_id
    limits = config.audio.limits()
    extraction_id = content_id({"features_id": features_id, **asdict(limits)})
    return TagJob(
        storage=storage,
        output=output,
        run_id=run_id,
        identity=Identity(features_id, checkpoint.model_id, extraction_id),
        card_json=checkpoint.card_json,
        weights=checkpoint.weights,
        limits=limits,
    )


# ------------------------------------------------------------------------------- plan


def _swept_ledger(storage: Storage, output: Location, catalog: Catalog, this_run: Run) -> Ledger:
    """The ledger, with what runs that were cut short have left removed."""
    ledger = Ledger(storage, output, catalog.id_type)
    ledger.fence(this_run.lease.generation)
    for run_id in this_run.cut_short():
        n_swept = ledger.sweep(run_id)
        sweep_unfinished(storage, output, run_id)
        this_run.forget(run_id)
        this_run.say(f"run {run_id} was cut short: {n_swept} uncommitted parts removed")
    return ledger


def _planned(
    config: TagConfig, catalog: Catalog, ledger: Ledger, job: TagJob, this_run: Run, console: Console
) -> Plan:
    """The plan, told to the user and kept in the manifest."""
    detect = config.catalog.changes == "detect"
    plan = make_plan(catalog, ledger, job.storage, job.identity, detect_changes=detect)
    n_tracks, n_pending = len(plan.keys), len(plan.pending)
    this_run.manifest.update(
        catalog={"uri": config.catalog.uri, "n_tracks": n_tracks, "fingerprint": catalog.fingerprint},
        model={"uri": config.model.uri, **asdict(job.identity)},
        n_scored_before=plan.n_scored,
        n_rejected_before=plan.n_rejected,
        n_pending=n_pending,
    )
    lines = [*catalog.notes]
    lines.append(
        f"{n_tracks:,} tracks: {plan.n_scored:,} already scored, {plan.n_rejected:,} already "
        f"rejected, {n_pending:,} to do"
    )
    for line in lines:
        this_run.say(line)
        console.print(line)
    return plan


def _budget(config: TagConfig, plan: Plan, ledger: Ledger, job: TagJob) -> Budget:
    latest = last_published(job.storage, job.output)
    return open_budget(
        plan,
        ledger,
        job.identity,
        last_published=latest["published_at"] if latest else None,
        max_reject_rate=config.max_reject_rate,
    )


# ------------------------------------------------------------------------------- work and commit


def _tag_pending(
    config: TagConfig,
    job: TagJob,
    plan: Plan,
    ledger: Ledger,
    budget: Budget,
    this_run: Run,
    signals: StopSignals,
    console: Console,
) -> float:
    """Score what is pending; returns the seconds of work."""
    n_pending = len(plan.pending)
    if n_pending == 0:
        console.print("nothing to decode: every track has its outcome already")
        _check_budget(budget, 0, n_pending, {})
        return 0.0
    committer = _Committer(ledger, this_run, plan, signals)
    longest_block = _MAX_BLOCK_TRACKS * job.limits.timeout_seconds
    with TagProgress(console, n_pending) as progress, _counted(progress, this_run):
        with connected(config.ray, patience_seconds=longest_block) as n_cpus, committer:
            signals.install()  # over the handlers that Ray has put in place
            progress.begin_work()
            for result in _results(job, plan.pending, n_cpus):
                committer.add(result)
                row = result.to_pylist()[0]
                progress.add(row["n_scored"], [reject["reason"] for reject in row["rejects"]])
                n_rejected = progress.rejects.total()
                _check_budget(budget, n_rejected, n_pending, progress.rejects)
            return progress.seconds


@contextlib.contextmanager
def _counted(progress: TagProgress, this_run: Run) -> Iterator[None]:
    """Keep the counts in the manifest, however the work ends."""
    try:
        yield
    finally:
        this_run.manifest.update(
            n_scored=progress.n_scored,
            n_rejected=dict(progress.rejects),
            work_seconds=round(progress.seconds, 3),
            tracks_per_second=round(progress.n_done / max(progress.seconds, 1e-3), 3),
        )


def _results(job: TagJob, pending: pa.Table, n_cpus: int) -> Iterator[pa.Table]:
    """One streaming execution: blocks of tracks in, one report a block out, in any order."""
    blocks = _blocks(pending, n_cpus)
    with warnings.catch_warnings():
        # max_retries has no named parameter yet, and the way to pass it is to go in Ray 2.64.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        dataset = ray.data.from_arrow(blocks).map_batches(
            functools.partial(tag_block, job=job),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=1,
            max_retries=_MAX_TASK_RETRIES,
        )
    seen: set[int] = set()
    for report in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in range(report.num_rows):
            one = report.slice(row, 1)
            # A task that Ray ran twice reports twice: the second part stays uncommitted.
            block = one["block"][0].as_py()
            if block not in seen:
                seen.add(block)
                yield one


def _blocks(pending: pa.Table, n_cpus: int) -> list[pa.Table]:
    """Cut the work into blocks by its cost, not by its bytes."""
    n_tracks = min(_MAX_BLOCK_TRACKS, math.ceil(len(pending) / (n_cpus * _BLOCKS_PER_CPU)))
    blocks = []
    for number, begin in enumerate(range(0, len(pending), n_tracks)):
        block = pending.slice(begin, n_tracks).combine_chunks()
        blocks.append(block.append_column("block", pa.array([number] * len(block), pa.int64())))
    return blocks


class _Committer:
    """Collects workers' reports and commits them every few seconds; as a context, at the end too."""

    def __init__(self, ledger: Ledger, this_run: Run, plan: Plan, signals: StopSignals) -> None:
        self._ledger = ledger
        self._run = this_run
        self._id_type = plan.pending.schema.field("track_id").type
        self._signals = signals
        self._waiting: list[pa.Table] = []
        self._sequence = 0
        self._last = time.monotonic()

    def __enter__(self) -> _Committer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, LeaseError):
            return  # the output belongs to another run now
        if error is None:
            self._commit()
        else:
            with contextlib.suppress(LeaseError):
                self._commit()

    def add(self, report: pa.Table) -> None:
        """Take one report; commits when it is time."""
        self._waiting.append(report)
        if time.monotonic() - self._last >= _COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        if not self._waiting:
            return
        with self._signals.deferred():
            self._run.lease.check()
            reports = pa.concat_tables(self._waiting)
            # Rejects first: should the run end between the two, a mended track is only tried again.
            self._ledger.merge_rejects(reject_table(reports, self._id_type))
            parts = [
                Part(row["part_path"], row["part_bytes"], row["n_scored"])
                for row in reports.select(["part_path", "part_bytes", "n_scored"]).to_pylist()
                if row["part_path"] is not None
            ]
            if parts:
                self._sequence += 1
                self._ledger.commit_parts(parts, run_id=self._run.run_id, sequence=self._sequence)
            self._waiting.clear()
            self._last = time.monotonic()


def _check_budget(
    budget: Budget, n_rejected: int, n_pending: int, rejects: dict[str, int]
) -> None:
    """Stop as soon as the night cannot be published any more."""
    if budget.allows(n_rejected, n_pending):
        return
    total, tried = budget.n_rejected + n_rejected, budget.n_tried + n_pending
    reasons = f"; this run's rejects: {describe_rejects(rejects)}" if rejects else ""
    raise ErrorBudgetExceeded(
        f"{total:,} of {tried:,} tracks tried since the last published night were rejected, more "
        f"than max_reject_rate={budget.max_reject_rate:g} allows{reasons}. What was scored is kept, "
        "nothing is published. Look at the rejects table, then mend the cause or raise max_reject_rate"
    )


# ------------------------------------------------------------------------------- publish


def _published(
    config: TagConfig, catalog: Catalog, plan: Plan, ledger: Ledger, job: TagJob, this_run: Run
) -> tuple[Outcome, Location, bool]:
    """Publish the night, unless the same one is there already."""
    outcome = look_up_outcome(plan, ledger, job.identity)
    run_date = config.run_date or this_run.started_at.date()
    night = job.output.child("enriched", f"run_date={run_date.isoformat()}")
    content = content_id(
        [catalog.fingerprint, ledger.content_id(), asdict(job.identity), config.output.prefix]
    )
    latest = last_published(job.storage, job.output)
    is_new = latest is None or (latest["content_id"], latest["run_date"]) != (content, run_date.isoformat())
    if is_new:
        this_run.lease.check()
        marker = {
            "run_id": this_run.run_id,
            "run_date": run_date.isoformat(),
            "published_at": iso_now(),
            "content_id": content,
            "n_scored": outcome.n_scored,
            "n_rejected": outcome.n_rejected,
        }
        publish(
            job.storage, night, catalog, outcome,
            prefix=config.output.prefix, run_id=this_run.run_id, marker=marker,
        )  # fmt: skip
    this_run.manifest.update(
        published={"uri": night.uri, "is_new": is_new, "content_id": content},
        totals={"n_scored": outcome.n_scored, "n_rejected": outcome.n_rejected},
    )
    return outcome, night, is_new
