"""One run on one output: what every job that fills a table shares."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
from rich.console import Console

from mer_batch.block import BlockReport, Job, reject_table
from mer_batch.catalog import Catalog
from mer_batch.config import ExtractConfig, TagConfig
from mer_batch.enrich import sweep_unfinished
from mer_batch.errors import LeaseError
from mer_batch.ledger import Ledger, Part
from mer_batch.plan import Plan
from mer_batch.run import Run, StopSignals
from mer_batch.steps import reach
from mer_batch.storage import Location, Storage, parse_uri

Product = Literal["scores", "features"]

_COMMIT_SECONDS = 5.0
# What a crash costs at most, besides the blocks in hand, where commits take so long that they are
# made less often: a table's log, and the rejects that a commit is merged with, grow with a night.
_MAX_COMMIT_SECONDS = 60.0
# Of the driver's time, commits take no more than one part in so many.
_COMMIT_SHARE = 10
_DONE = {"scores": "scored", "features": "extracted"}
_WRITTEN = {"scores": ("scores", "enriched"), "features": ("features",)}


@dataclass(frozen=True)
class Holding:
    """A run that holds its output, whatever it is to do there.

    Attributes
    ----------
    config : TagConfig or ExtractConfig
    console : Console
    storage : Storage
    output : Location
    ledger : Ledger
    run : Run
    signals : StopSignals
    """

    config: TagConfig | ExtractConfig
    console: Console
    storage: Storage
    output: Location
    ledger: Ledger
    run: Run
    signals: StopSignals

    def say(self, line: str) -> None:
        """Tell the user, and the run's log."""
        self.run.say(line)
        self.console.print(line)

    def sweep(self) -> None:
        """Remove what runs that were cut short have left."""
        for run_id in self.run.cut_short():
            reach("sweep_to_begin")
            # Who has taken over meanwhile has a mark of its own there, and parts not yet committed.
            self.run.lease.check()
            n_swept = self.ledger.sweep(run_id)
            reach("parts_swept")
            hidden = sweep_unfinished(self.storage, self.output, run_id, self.run.lease)
            reach("night_swept")
            self.run.forget(run_id)
            reach("mark_forgotten")
            self.run.say(f"run {run_id} was cut short: {n_swept} uncommitted parts removed")
            for date in hidden:
                self.say(
                    f"the night {date} is not published, as run {run_id} was cut short; a run with "
                    f"run_date={date} publishes it again"
                )

    def sweep_own(self) -> None:
        """Remove parts of blocks that were done twice, their first worker lost."""
        self.ledger.sweep(self.run.run_id)
        reach("own_parts_swept")


@dataclass(frozen=True)
class Session(Holding):
    """A run that holds its output and goes by a catalog.

    Attributes
    ----------
    catalog : Catalog
    done : str
        What becomes of a track, in one word.
    """

    catalog: Catalog
    done: str

    @property
    def detects_changes(self) -> bool:
        """Whether audio that changed is looked at again."""
        return self.config.catalog.changes == "detect"

    def announce(self, plan: Plan) -> None:
        """Tell what is to be done, and keep it in the manifest."""
        n_tracks, n_pending = len(plan), plan.n_pending
        self.run.manifest.update(
            catalog={
                "uri": self.config.catalog.uri,
                "n_tracks": n_tracks,
                "fingerprint": self.catalog.fingerprint,
            },
            **{f"n_{self.done}_before": plan.n_done},
            n_rejected_before=plan.n_rejected,
            n_pending=n_pending,
        )
        for note in self.catalog.notes:
            self.say(note)
        self.say(
            f"{n_tracks:,} tracks: {plan.n_done:,} already {self.done}, "
            f"{plan.n_rejected:,} already rejected, {n_pending:,} to do"
        )


@contextlib.contextmanager
def opened(
    config: TagConfig | ExtractConfig,
    console: Console,
    storage: Storage,
    catalog: Catalog,
    *,
    product: Product,
) -> Iterator[Session]:
    """Take the output for one run by a catalog; see :func:`held`."""
    with held(config, console, storage, catalog.id_type, product=product) as holding:
        yield Session(**vars(holding), catalog=catalog, done=_DONE[product])


@contextlib.contextmanager
def held(
    config: TagConfig | ExtractConfig,
    console: Console,
    storage: Storage,
    id_type: pa.DataType,
    *,
    product: Product,
) -> Iterator[Holding]:
    """Take the output for one run, shut earlier holders out, and let it go in the end.

    Raises
    ------
    LeaseError
        Another run holds the output.
    StorageError
        It cannot be written.
    """
    output = parse_uri(config.output.uri)
    storage.check_writable(output, below=[*_WRITTEN[product], "runs", "rejects"])
    the_run = Run(
        storage, output, config, lease_seconds=config.output.lease_seconds, tell=console.print
    )
    with StopSignals() as signals, the_run as this_run:
        ledger = Ledger(storage, output, id_type, product=product)
        this_run.lease.rise_above(ledger.generation())
        ledger.fence(this_run.lease.generation)
        yield Holding(config, console, storage, output, ledger, this_run, signals)


class Committer:
    """Collects reports and commits them every few seconds; as a context, at the end too.

    Parameters
    ----------
    session : Session
    job : Job
    """

    def __init__(self, session: Session, job: Job) -> None:
        self._session = session
        self._job = job
        self._waiting: list[BlockReport] = []
        self._sequence = 0
        self._last = time.monotonic()
        self._pause_seconds = _COMMIT_SECONDS

    def __enter__(self) -> Committer:
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
        reach("report_taken")
        self.commit_if_due()

    def commit_if_due(self) -> None:
        """Commit what waits if the last commit is some seconds ago.

        Raises
        ------
        LeaseError
            Where the lease is lost, even if nothing waits: a run must not go on for nothing.
        """
        self._session.run.lease.check()
        if time.monotonic() - self._last >= self._pause_seconds:
            self._commit()

    def _commit(self) -> None:
        if not self._waiting:
            return
        ledger, run = self._session.ledger, self._session.run
        began = time.monotonic()
        with self._session.signals.deferred():
            run.lease.check()
            ledger.renew()
            # Rejects first: should the run end between the two, a mended track is only tried again.
            id_type = self._session.catalog.id_type
            reach("rejects_to_commit")
            ledger.merge_rejects(reject_table(self._waiting, id_type, self._job))
            reach("rejects_committed")
            parts = [
                Part(report.part_path, report.part_bytes, report.n_rows)
                for report in self._waiting
                if report.part_path is not None
            ]
            if parts:
                sequence = self._sequence + 1
                reach("parts_to_commit")
                ledger.commit_parts(parts, run_id=run.run_id, sequence=sequence)
                reach("parts_committed")
                self._sequence = sequence
            self._waiting.clear()
            self._last = time.monotonic()
        self._pause_seconds = pause_seconds(self._last - began)


def pause_seconds(commit_seconds: float) -> float:
    """How long to wait after a commit that took so long [s]."""
    return min(_MAX_COMMIT_SECONDS, max(_COMMIT_SECONDS, (_COMMIT_SHARE - 1) * commit_seconds))
