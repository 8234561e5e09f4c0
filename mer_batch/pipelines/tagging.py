"""Tag a catalog: plan, work, commit, publish."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pyarrow as pa
import ray
from rich.console import Console

from mer_batch.catalog import Catalog, read_catalog
from mer_batch.checkpoint import Checkpoint, read_checkpoint
from mer_batch.config import TagConfig
from mer_batch.enrich import (
    Budget,
    Outcome,
    last_published,
    look_up_outcome,
    open_budget,
    publish,
    read_marker,
    sweep_unfinished,
)
from mer_batch.errors import ErrorBudgetExceeded, LeaseError, MerBatchError, RefusedError
from mer_batch.ledger import Ledger, Part
from mer_batch.pipelines.cluster import cluster_cpus, connected
from mer_batch.plan import Plan, make_plan
from mer_batch.progress import TagProgress, describe_rejects
from mer_batch.run import Run, StopSignals, iso_now
from mer_batch.schema import Identity, content_id
from mer_batch.storage import Location, Storage, parse_uri
from mer_batch.tag import BlockReport, TagJob, reject_table, tag_block

# A block is what one task does, and what a crash costs: some ten seconds of work at most, and
# enough blocks that the last ones keep every core busy.
_MAX_BLOCK_TRACKS = 256
_BLOCKS_PER_CPU = 8
_WINDOW_PER_CPU = 2
_COMMIT_SECONDS = 5.0
# Asked to stop, a run finishes the blocks in hand, for as long as a pre-empted node is given.
_GRACE_SECONDS = 15.0
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
    n_tried : int
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
    n_tried: int
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
    checkpoint = read_checkpoint(config.model.uri, storage)
    catalog = read_catalog(config.catalog, storage, taken_names=config.enriched_names())
    storage.check_writable(output)
    held = Run(storage, output, config, lease_seconds=config.output.lease_seconds)
    with StopSignals() as signals, held as this_run:
        night = _Night(config, console, catalog, checkpoint, this_run, signals, storage, output)
        night.sweep()
        plan = night.plan()
        work_seconds = night.work(plan)
        with signals.deferred(), _no_refusal():
            outcome, folder, is_new = night.publish(plan)
        return TagSummary(
            this_run.run_id, len(plan.keys), len(plan.pending), outcome, folder.uri, is_new,
            time.monotonic() - began, work_seconds,
        )  # fmt: skip


class _Night:
    """One night's work on one output; its methods are the steps of :func:`run`, in order."""

    def __init__(
        self,
        config: TagConfig,
        console: Console,
        catalog: Catalog,
        checkpoint: Checkpoint,
        this_run: Run,
        signals: StopSignals,
        storage: Storage,
        output: Location,
    ) -> None:
        self._config = config
        self._console = console
        self._catalog = catalog
        self._checkpoint = checkpoint
        self._run = this_run
        self._signals = signals
        self._storage = storage
        self._output = output
        self._job = _job(config, storage, output, checkpoint, this_run.run_id)
        self._ledger = Ledger(storage, output, catalog.id_type)
        self._ledger.fence(this_run.lease.generation)

    def sweep(self) -> None:
        """Remove what runs that were cut short have left."""
        for run_id in self._run.cut_short():
            n_swept = self._ledger.sweep(run_id)
            sweep_unfinished(self._storage, self._output, run_id)
            self._run.forget(run_id)
            self._run.say(f"run {run_id} was cut short: {n_swept} uncommitted parts removed")

    def plan(self) -> Plan:
        """The plan, told to the user and kept in the manifest."""
        plan = make_plan(
            self._catalog,
            self._ledger,
            self._storage,
            self._job.identity,
            detect_changes=self._config.catalog.changes == "detect",
        )
        n_tracks, n_pending = len(plan.keys), len(plan.pending)
        self._run.manifest.update(
            catalog={
                "uri": self._config.catalog.uri,
                "n_tracks": n_tracks,
                "fingerprint": self._catalog.fingerprint,
            },
            model={"uri": self._config.model.uri, **asdict(self._job.identity)},
            n_scored_before=plan.n_scored,
            n_rejected_before=plan.n_rejected,
            n_pending=n_pending,
        )
        counts = (
            f"{n_tracks:,} tracks: {plan.n_scored:,} already scored, {plan.n_rejected:,} already "
            f"rejected, {n_pending:,} to do"
        )
        for line in (*self._catalog.notes, counts):
            self._run.say(line)
            self._console.print(line)
        return plan

    def work(self, plan: Plan) -> float:
        """Score what is pending and commit it; returns the seconds of work."""
        budget = self._budget(plan)
        n_pending = len(plan.pending)
        _check_budget(budget, 0, n_pending, {})
        if n_pending == 0:
            self._console.print("nothing to decode: every track has its outcome already")
            return 0.0
        committer = _Committer(self._ledger, self._run, self._signals, self._catalog.id_type)
        with TagProgress(self._console, n_pending) as progress, self._counted(progress):
            cluster = connected(self._config.ray, meanwhile=self._checkpoint.check)
            with cluster as n_cpus, _no_refusal(), committer:
                self._signals.install()  # over the handlers that Ray has put in place
                progress.begin_work()
                for report in self._reports(plan, n_cpus, committer):
                    committer.add(report)
                    progress.add(report.n_scored, [row["reason"] for row in report.rejects])
                    _check_budget(budget, progress.rejects.total(), n_pending, progress.rejects)
                return progress.seconds

    def publish(self, plan: Plan) -> tuple[Outcome, Location, bool]:
        """Publish the night, unless the same one is there already."""
        # A block that was done twice, its first worker lost, has left a part behind.
        self._ledger.sweep(self._run.run_id)
        outcome = look_up_outcome(plan, self._ledger, self._job.identity)
        run_date = (self._config.run_date or self._run.started_at.date()).isoformat()
        folder = self._output.child("enriched", f"run_date={run_date}")
        prefix = self._config.output.prefix
        content = content_id(
            [
                self._catalog.fingerprint,
                plan.fingerprint(),
                self._ledger.content_id(),
                asdict(self._job.identity),
                prefix,
            ]
        )
        present = read_marker(self._storage, folder)
        is_new = present is None or present["content_id"] != content
        if is_new:
            marker = {
                "run_id": self._run.run_id,
                "run_date": run_date,
                "published_at": iso_now(),
                "content_id": content,
                "n_scored": outcome.n_scored,
                "n_rejected": outcome.n_rejected,
            }
            publish(
                self._storage, folder, self._catalog, outcome,
                prefix=prefix, run_id=self._run.run_id, marker=marker, check=self._run.lease.check,
            )  # fmt: skip
        self._run.manifest.update(
            published={"uri": folder.uri, "is_new": is_new, "content_id": content},
            totals={"n_scored": outcome.n_scored, "n_rejected": outcome.n_rejected},
        )
        return outcome, folder, is_new

    def _budget(self, plan: Plan) -> Budget:
        latest = last_published(self._storage, self._output)
        return open_budget(
            plan,
            self._ledger,
            self._job.identity,
            last_published=latest["published_at"] if latest else None,
            max_reject_rate=self._config.max_reject_rate,
        )

    def _reports(self, plan: Plan, n_cpus: int, committer: _Committer) -> Iterator[BlockReport]:
        """Workers' reports as they come; after a signal those of the blocks in hand only."""
        n_in_hand = n_cpus
        with self._signals.graceful(_GRACE_SECONDS):
            for report in _stream(self._job, plan.pending, n_cpus):
                if report is None:
                    committer.commit_if_due()
                    continue
                yield report
                n_in_hand -= self._signals.was_asked
                if n_in_hand == 0:
                    break
            if self._signals.was_asked:
                self._signals.stop()

    @contextlib.contextmanager
    def _counted(self, progress: TagProgress) -> Iterator[None]:
        """Keep the counts in the manifest, however the work ends."""
        try:
            yield
        finally:
            seconds = max(progress.seconds, 1e-3)
            self._run.manifest.update(
                n_scored=progress.n_scored,
                n_rejected=dict(progress.rejects),
                work_seconds=round(seconds, 3),
                tracks_per_second=round(progress.n_done / seconds, 3),
            )


@contextlib.contextmanager
def _no_refusal() -> Iterator[None]:
    """Past this point work has begun: a fault of the store no longer means `refused`."""
    try:
        yield
    except RefusedError as error:
        raise MerBatchError(str(error)) from error


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


# ------------------------------------------------------------------------------- work


def _stream(job: TagJob, pending: pa.Table, n_cpus: int) -> Iterator[BlockReport | None]:
    """Blocks of tracks in, one report a block out, in any order; None where time passed without.

    A window of tasks is kept in flight: a worker that is done finds its next block waiting, and
    the driver holds no more than the window, however long the night. It grows with the cluster.
    """
    task = ray.remote(num_cpus=1, max_retries=_MAX_TASK_RETRIES)(tag_block)
    shared = ray.put(job)
    blocks = enumerate(_blocks(pending, n_cpus))
    in_flight: list[ray.ObjectRef[BlockReport]] = []
    while True:
        free = _WINDOW_PER_CPU * cluster_cpus() - len(in_flight)
        for number, block in itertools.islice(blocks, max(0, free)):
            in_flight.append(task.remote(number, block, shared))
        if not in_flight:
            return
        done, in_flight = ray.wait(in_flight, num_returns=1, timeout=_COMMIT_SECONDS)
        yield from ray.get(done) if done else [None]


def _blocks(pending: pa.Table, n_cpus: int) -> Iterator[pa.Table]:
    """Cut the work into blocks by its cost, not by its bytes."""
    n_tracks = min(_MAX_BLOCK_TRACKS, math.ceil(len(pending) / (n_cpus * _BLOCKS_PER_CPU)))
    for begin in range(0, len(pending), n_tracks):
        yield pending.slice(begin, n_tracks).combine_chunks()


def _check_budget(budget: Budget, n_rejected: int, n_pending: int, rejects: dict[str, int]) -> None:
    """Stop as soon as the night cannot be published any more."""
    if budget.allows(n_rejected, n_pending):
        return
    total, tried = budget.n_rejected + n_rejected, budget.n_tried + n_pending
    reasons = f"; this run's rejects: {describe_rejects(rejects)}" if rejects else ""
    raise ErrorBudgetExceeded(
        f"{total:,} of {tried:,} tracks tried since the last published night were rejected, more "
        f"than max_reject_rate={budget.max_reject_rate:g} allows{reasons}. What was scored is "
        "kept, nothing is published. Look at the rejects table, then mend the cause or raise "
        "max_reject_rate"
    )


# ------------------------------------------------------------------------------- commit


class _Committer:
    """Collects reports and commits them every few seconds; as a context, at the end too."""

    def __init__(
        self, ledger: Ledger, this_run: Run, signals: StopSignals, id_type: pa.DataType
    ) -> None:
        self._ledger = ledger
        self._run = this_run
        self._signals = signals
        self._id_type = id_type
        self._waiting: list[BlockReport] = []
        self._sequence = 0
        self._last = time.monotonic()

    def __enter__(self) -> _Committer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, LeaseError):
            return  # the output belongs to another run now
        # Under another error, that one counts: a lease lost as well only means nothing is kept.
        with contextlib.suppress(LeaseError) if error else contextlib.nullcontext():
            self._commit()

    def add(self, report: BlockReport) -> None:
        """Take one report; commits when it is time."""
        self._waiting.append(report)
        self.commit_if_due()

    def commit_if_due(self) -> None:
        """Commit what waits if the last commit is some seconds ago."""
        if time.monotonic() - self._last >= _COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        if not self._waiting:
            return
        with self._signals.deferred():
            self._run.lease.check()
            self._ledger.renew()
            # Rejects first: should the run end between the two, a mended track is only tried again.
            self._ledger.merge_rejects(reject_table(self._waiting, self._id_type))
            parts = [
                Part(report.part_path, report.part_bytes, report.n_scored)
                for report in self._waiting
                if report.part_path is not None
            ]
            if parts:
                sequence = self._sequence + 1
                self._ledger.commit_parts(parts, run_id=self._run.run_id, sequence=sequence)
                self._sequence = sequence
            self._waiting.clear()
            self._last = time.monotonic()
