"""The work of a run: blocks in, commits out, the error budget watched."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from mer_batch.block import BlockReport, Job
from mer_batch.budget import Budget
from mer_batch.pipelines import fleet
from mer_batch.pipelines.cluster import connected
from mer_batch.pipelines.session import Committer, Session
from mer_batch.progress import TrackProgress
from mer_batch.run import no_refusal

# Asked to stop, a run finishes the blocks in hand for so long: of the 30 s that a pre-empted node
# is given, the last commit and Ray's end take the rest.
_GRACE_SECONDS = 12.0


@dataclass(frozen=True)
class Stage:
    """What a stretch of work has come to.

    Attributes
    ----------
    n_done, n_rejected : int
        Tracks.
    left_ids : list
        Tracks to be done another way.
    seconds : float
    problems : list of str
        Why tracks were left, where a file could not be read.
    """

    n_done: int
    n_rejected: int
    left_ids: list[Any]
    seconds: float
    problems: list[str] = field(default_factory=list)


class Work:
    """Work on what is pending; whatever its end, what was finished is committed.

    As a context, it keeps its counts in the manifest.

    Parameters
    ----------
    session : Session
    job : Job
    budget : Budget

    Attributes
    ----------
    n_done, n_rows, n_bytes : int
        Tracks done, and the rows and bytes they have become.
    rejects : Counter
        By reason.
    seconds : float
        Without Ray's start [s].

    Raises
    ------
    ErrorBudgetExceeded
        Where it is exceeded already.
    """

    def __init__(self, session: Session, job: Job, budget: Budget) -> None:
        self.n_done = self.n_rows = self.n_bytes = 0
        self.rejects: Counter[str] = Counter()
        self._n_unconfined_blocks = 0
        self.seconds = 0.0
        self._session = session
        self._job = job
        self._budget = budget
        self._counted: Counter[str] = Counter()  # the rejects that the budget counts
        self._committer = Committer(session, job)
        self._check_budget()

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *error: object) -> None:
        if self._n_unconfined_blocks:
            self._session.say(
                f"decoders were not confined on {self._n_unconfined_blocks:,} blocks: "
                "their system has no seccomp"
            )
        n_tried = self.n_done + self.rejects.total()
        self._session.run.manifest.update(
            {f"n_{self._session.done}": self.n_done},
            n_rejected=dict(self.rejects),
            n_bytes=self.n_bytes,
            n_unconfined_blocks=self._n_unconfined_blocks,
            work_seconds=round(self.seconds, 3),
            tracks_per_second=round(n_tried / max(self.seconds, 1e-3), 3),
        )

    def in_this_process(
        self,
        work: Callable[[int, pa.Table], BlockReport],
        blocks: Iterable[pa.Table],
        n_tracks: int,
        *,
        doing: str,
    ) -> Stage:
        """Do blocks in threads of the driver, for what is over before a fleet would be there."""
        n_threads = self._session.config.ray.num_cpus or _n_cpus()
        self._session.run.manifest.update(n_cpus=n_threads)
        with (
            self._progress(n_tracks, doing, "in this process") as progress,
            no_refusal(),
            self._committer,
        ):
            pool = ThreadPoolExecutor(n_threads, thread_name_prefix="work")
            try:
                asked = [pool.submit(work, *block) for block in enumerate(blocks)]
                reports = (future.result() for future in as_completed(asked))
                return self._take(reports, progress, n_in_hand=n_threads)
            finally:
                pool.shutdown(cancel_futures=True)

    @contextlib.contextmanager
    def on_a_fleet(
        self, n_tracks: int, *, doing: str, meanwhile: Callable[[], None] = lambda: None
    ) -> Iterator[FleetWork]:
        """A fleet to do blocks; `meanwhile` runs while it starts."""
        with self._progress(n_tracks, doing, "starting Ray") as progress:
            cluster = connected(self._session.config.ray, meanwhile=meanwhile)
            is_begun = self.n_done + self.rejects.total() > 0
            begun = no_refusal() if is_begun else contextlib.nullcontext()
            # Committed before the fleet goes, which takes seconds that a pre-empted node lacks.
            with begun, cluster as n_cpus, no_refusal(), self._committer:
                self._session.signals.install()  # over the handlers that Ray has put in place
                self._session.run.lease.check()  # a machine may have slept while Ray started
                progress.begin_work()
                self._session.run.manifest.update(n_cpus=n_cpus)
                yield FleetWork(self, self._job, progress, n_cpus)

    @contextlib.contextmanager
    def _progress(self, n_tracks: int, doing: str, begins: str) -> Iterator[TrackProgress]:
        progress = TrackProgress(self._session.console, n_tracks, doing=doing, begins=begins)
        with progress:
            try:
                yield progress
            finally:
                self.seconds += progress.seconds

    def _take(
        self,
        reports: Iterable[BlockReport | None],
        progress: TrackProgress,
        *,
        n_in_hand: int,
    ) -> Stage:
        """Commit reports as they come; after a signal those of the blocks in hand only."""
        began, n_done, n_rejected = time.monotonic(), self.n_done, self.rejects.total()
        signals = self._session.signals
        left_ids: list[Any] = []
        problems: list[str] = []
        with signals.graceful(_GRACE_SECONDS):
            try:
                for report in reports:
                    if report is None:
                        self._committer.commit_if_due()
                        continue
                    self._add(report, progress)
                    left_ids += report.left_ids
                    problems += report.problems
                    n_in_hand -= signals.was_asked
                    if n_in_hand == 0:
                        break
            except fleet.FleetError:
                if not signals.was_asked:  # whoever stops us may stop Ray at the same moment
                    raise
            if signals.was_asked:
                signals.stop()
        seconds = time.monotonic() - began
        n_done, n_rejected = self.n_done - n_done, self.rejects.total() - n_rejected
        return Stage(n_done, n_rejected, left_ids, seconds, problems)

    def _add(self, report: BlockReport, progress: TrackProgress) -> None:
        reasons = [row["reason"] for row in report.rejects]
        self.n_done += report.n_done
        self.n_rows += report.n_rows
        self.n_bytes += report.part_bytes
        self._n_unconfined_blocks += report.is_confined is False
        self.rejects.update(reasons)
        self._committer.add(report)
        progress.add(report.n_done, reasons)
        counts = functools.partial(self._budget.counts, run_id=self._session.run.run_id)
        self._counted.update(r["reason"] for r in report.rejects if counts(r["first_run_id"]))
        self._check_budget()

    def _check_budget(self) -> None:
        standing = self._budget.standing(self.n_done, self._counted)
        self._session.run.manifest.update(budget=standing)
        self._budget.check(self.n_done, self._counted)


def _n_cpus() -> int:
    """Processors that this process may use; those of the machine where nobody can say."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


class FleetWork:
    """Work that a fleet is there for."""

    def __init__(self, work: Work, job: Job, progress: TrackProgress, n_cpus: int) -> None:
        self._work = work
        self._job = job
        self._progress = progress
        self.n_cpus = n_cpus
        self._lost_before = fleet.lost_nodes()

    def run(self, work: fleet.Work, blocks: Iterator[pa.Table]) -> Stage:
        """Do blocks as tasks."""
        reports = fleet.stream(work, self._job, blocks, say=self._work._session.say)
        stage = self._work._take(reports, self._progress, n_in_hand=self.n_cpus)
        run = self._work._session.run
        # A long-lived cluster remembers nodes that had gone before this run.
        has_lost_nodes = not fleet.lost_nodes() <= self._lost_before
        run.may_leave_parts = run.may_leave_parts or has_lost_nodes
        return stage
