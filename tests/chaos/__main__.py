"""Kill -9 at every step of the protocol, again and again, and see that nothing is lost or doubled.

    python -m tests.chaos [--points 220] [--seed 1]

Outputs on a local disk and on an S3 server go through chains of runs: every run goes on from what
the one before has left, and is killed in its turn. A reader in a process of its own looks all the
while. Prints which process was killed at which step how often, and ends with 1 where a promise was
broken. Nothing is written outside a temporary folder, which stays where something was found.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import boto3
from rich.console import Console
from rich.table import Table

from mer_batch.steps import STEPS
from tests.chaos.cases import Case, Kind, Place, chosen
from tests.chaos.crash import VICTIMS, Point, crash, finish, pause
from tests.chaos.world import Command, World
from tests.s3_server import serving_s3

# A complete check after so many crashes at most.
_LONGEST_CHAIN = 5
# With so many points no step may be left out.
_THOROUGH = 200

# Steps that only a run comes to which finds one that was cut short.
_SWEEPING = {"sweep_to_begin", "parts_swept", "night_to_sweep", "night_swept", "mark_forgotten"}
# How far the run has come that takes over from a sleeping one, when that wakes up: past its fence,
# which is the line between the two. What is committed before is there when it plans.
_TAKEN_OVER = (None, None, "sweep_to_begin", "parts_to_commit", "marker_to_write")
#: Past these a run has nothing left to commit, and before the first file it holds nothing: it may
#: end well, however late it wakes up.
_OPEN_ENDED = {
    "file_to_place", "marker_written", "night_placed", "night_cleared", "traces_to_write",
    "traces_written", "mark_removed", "lease_released", "unused_deleted",
}  # fmt: skip


@dataclass
class Survived:
    """What has been gone through."""

    by_step: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


# ------------------------------------------------------------------------------- going through it


class Chain:
    """Runs on one output, each going on from what the one before has left.

    Parameters
    ----------
    place : {"disk", "store"}
    world : World
    rng : random.Random
    survived : Survived
    """

    def __init__(self, place: Place, world: World, rng: random.Random, survived: Survived) -> None:
        self._place = place
        self._world = world
        self._rng = rng
        self._survived = survived
        self._unchecked: list[Command] = []

    def go(self, by_kind: dict[Kind, list[Case]]) -> None:
        """Go through all cases, with an output that is new at first."""
        with self._world.watched():
            self._first_runs()
            for case in by_kind.get("extract", []):
                self._case(case)
            self._complete("extract")
            mixed = [*by_kind.get("rescore", []), *by_kind.get("publish", [])]
            self._rng.shuffle(mixed)
            for case in mixed:
                self._case(case)
            self._complete("tag")
            for kind in ("decode", "pool", "compact"):
                for case in by_kind.get(kind, []):
                    self._case(case)
            self._complete("tag")
            self._complete("compact")

    def _first_runs(self) -> None:
        """While the tables are being made."""
        for nth in (2, 1):  # of the first run; of the second, what the first has not made
            self._crash("extract" if nth == 2 else "tag", Point("table_made", "driver", nth))

    def _case(self, case: Case) -> None:
        # Whom nobody met at the step, as the dice fell, is given a second run.
        if not self._try(case) and not self._try(case):
            with self._survived.lock:
                self._survived.missed.append(f"{self._place} {case.command} {case.points}")
        is_long = len(self._unchecked) >= self._rng.randint(2, _LONGEST_CHAIN)
        # A decoder's death is held against a track when it comes twice: by no means the next run's.
        if is_long or "decoder" in {point.victim for point in case.points}:
            self._complete(case.command)

    def _try(self, case: Case) -> bool:
        """Whether a run has come to the points of a case, and what must hold has held."""
        last = case.points[-1]
        self._world.n_actors = 1 if case.kind == "pool" else 0
        self._stir(case.kind)
        if last.step == "part_to_sweep":
            self._crash(case.command, Point("parts_to_commit", "driver"))
        elif last.step in _SWEEPING and not self._world.has_cut_short_runs():
            self._crash(case.command, Point("run_open", "driver"))
        if last.victim == "holder" or last.step == "lease_lost":
            return self._pause(case)
        return self._crash(case.command, *case.points)

    def _stir(self, kind: Kind) -> None:
        """Give the next run something to do."""
        if kind == "rescore":
            if not self._world.has_features:
                self._complete("extract")
            self._world.new_model()
        elif kind == "compact":
            self._complete("tag")
            self._stir("rescore")
            self._complete("tag")
        elif kind == "publish":
            self._world.retitle()
            if self._rng.random() < 0.2:
                self._world.next_night()
        else:
            self._world.new_audio()
            if kind in ("decode", "pool"):
                self._world.has_features = False

    def _crash(self, command: Command, *points: Point) -> bool:
        """Whether the run has come to the points."""
        renews = points[-1].step == "lease_renewed"
        with self._judged(command, *points):
            code = crash(self._world, command, *points, renews=renews)
            if code is None:
                return False
            allowed = {"driver": {-9}, "raylet": {0, 1}}.get(points[-1].victim, {0})
            assert code in allowed, (code, self._world.last_log())
            assert code != 1 or "mer-batch: " in self._world.last_log(), "no word of why it ended"
            self._world.check_between()
            self._unchecked.append(command)
            self._count(points)
        return True

    def _pause(self, case: Case) -> bool:
        """The same, the whole check being made while the holder sleeps."""
        (point,) = case.points
        dies = point.step == "lease_lost"
        with self._judged(case.command, point):
            step = "report_taken" if dies else point.step
            # Another one that merges is past its fence wherever it is held.
            others = (None, "parts_to_replace") if case.kind == "compact" else _TAKEN_OVER
            until = self._rng.choice(others)
            code = pause(self._world, case.command, step, until=until, dies=dies)
            if code is None:
                return False
            allowed = {0, 4} if point.step in _OPEN_ENDED else {-9} if dies else {4}
            assert code in allowed, (code, self._world.last_log())
            self._world.check_between()
            self._unchecked = []
            self._count(case.points)
        return True

    def _complete(self, command: Command) -> None:
        """Run to the end both what was cut short and what is asked for."""
        for name in sorted({*self._unchecked, command}):  # features first
            with self._judged(name):
                finish(self._world, name)
        self._unchecked = []

    def _count(self, points: tuple[Point, ...]) -> None:
        with self._survived.lock:
            for point in points:
                self._survived.by_step[self._place, point.step, point.victim] += 1

    def _judged(self, command: str, *points: Point) -> _Judged:
        return _Judged(self._place, command, points, self._survived)


class _Judged:
    """Says what was tried, and keeps what went wrong."""

    def __init__(
        self, place: str, command: str, points: tuple[Point, ...], survived: Survived
    ) -> None:
        what = " then ".join(f"{p.victim} at {p.step} ({p.nth})" for p in points) or "to the end"
        self._what = f"{place:5} {command:7} {what}"
        self._survived = survived

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        seconds = time.monotonic() - self._began
        print(f"{seconds:6.1f} s  {self._what}{'  BROKEN' if error else ''}", flush=True)
        if error is not None:
            print(f"{type(error).__name__}: {error}", flush=True)
            with self._survived.lock:
                self._survived.faults.append(self._what)


# ------------------------------------------------------------------------------- the command


def run_chain(
    place: Place,
    folder: Path,
    endpoint: str,
    by_kind: dict[Kind, list[Case]],
    seed: int,
    survived: Survived,
) -> None:
    """One output from its first run to its last."""
    rng = random.Random(f"{seed}-{place}")
    output_uri = None
    if place == "store":
        bucket = f"chaos-{seed}"
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(
            Bucket=bucket
        )
        output_uri = f"s3://{bucket}/out"
    world = World(
        folder / place, rng, output_uri=output_uri, endpoint=endpoint if output_uri else None
    )
    try:
        Chain(place, world, rng, survived).go(by_kind)
    except Exception:
        with survived.lock:
            survived.faults.append(f"{place}: {traceback.format_exc()}")
    with survived.lock:
        survived.seen.update(world.watch.seen)


def report(survived: Survived, seconds: float, n_points: int, seed: int) -> bool:
    """Print the table; whether all is well."""
    table = Table("step", *VICTIMS, title="crash points survived: on a disk + on an S3 server")
    totals = Counter((step, victim) for _, step, victim in survived.by_step.elements())
    for step in STEPS:
        cells = []
        for victim in VICTIMS:
            on_disk, in_store = (survived.by_step[p, step, victim] for p in ("disk", "store"))
            cells.append(f"{on_disk} + {in_store}" if on_disk + in_store else "")
        table.add_row(step, *cells)
    console = Console(width=110)
    console.print(table)
    n = sum(totals.values())
    console.print(f"{n} crash points survived in {seconds / 60:.1f} minutes, seed {seed}")
    for missed in survived.missed:
        console.print(f"never came there: {missed}")
    for fault in survived.faults:
        console.print(f"BROKEN: {fault}", markup=False)
    never = [s for s in STEPS if not any(totals[s, victim] for victim in VICTIMS)]
    console.print(f"steps never hit: {', '.join(never) or 'none'}")
    looks = ", ".join(f"{n} {what}" for what, n in sorted(survived.seen.items()))
    console.print(f"between crashes: {looks}")
    is_thorough = n >= n_points and (n_points < _THOROUGH or not never)
    return is_thorough and not survived.faults


def main() -> int:
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--points", type=int, default=220, help="crash points at least")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        os.environ.pop(name, None)
    os.environ.update(AWS_ACCESS_KEY_ID="test-key-id", AWS_SECRET_ACCESS_KEY="test-secret-word")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    survived = Survived()
    began = time.monotonic()
    with serving_s3() as endpoint, ThreadPoolExecutor(2) as chains:
        for place, by_kind in chosen(options.points, options.seed).items():
            chains.submit(run_chain, place, folder, endpoint, by_kind, options.seed, survived)
    is_well = report(survived, time.monotonic() - began, options.points, options.seed)
    if is_well:
        shutil.rmtree(folder)
    else:
        print(f"outputs and logs are kept in {folder}", file=sys.stderr)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
