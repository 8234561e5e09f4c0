"""Measure the job beside bare decoding and beside other engines: same files, same cores, one run.

    python -m tests.benchmarks.tagging [--tracks 4000] [--many 16000] [--repeats 3]
        [--jobs decode,tag,...] [--kinds genres,...] [--engines-on genres,...] [--json FILE]

Writes its chapter of BENCHMARKS.md. Figures are medians of repeats in which the jobs take turns, so
that a machine whose speed drifts slows all of them alike. With ``--json`` figures are kept, and
added to: a long run can be made in slices of one day, ``--jobs none`` makes the report alone.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from tests.benchmarks.jobs import JOBS, machine, tag_command
from tests.benchmarks.music import KINDS, Clips, Music, files_of, kinds_there, spread
from tests.benchmarks.processes import run_watched
from tests.benchmarks.records import Record, Records
from tests.benchmarks.report import replace_chapter
from tests.benchmarks.stages import kernel_stages
from tests.benchmarks.standing import ABSOLUTE
from tests.benchmarks.tagging_report import chapter

#: Measured on the larger catalog.
_MANY = ("decode", "tag")
_STAGES_TRACKS = 400


class Run:
    """A run of the benchmark, or a slice of one.

    Parameters
    ----------
    chosen : argparse.Namespace
    scratch : Path
    """

    def __init__(self, chosen: argparse.Namespace, scratch: Path) -> None:
        self._chosen, self._scratch = chosen, scratch
        self.records = Records.read(chosen.json, chosen.tracks, chosen.many)
        self.has_failed = False

    def measure(self) -> None:
        """Measure what was chosen; what is measured is kept at once."""
        jobs = self._possible()
        if not jobs:
            return
        main = kinds_there()[0]
        for kind in [kind for kind in kinds_there() if kind in self._chosen.kinds]:
            files = files_of(kind, self._scratch)
            self._measure_commands(files[0])
            if kind not in self.records.stages:
                paths = spread(files, self._scratch / f"{kind}-stages", _STAGES_TRACKS)
                self.records.stages[kind] = kernel_stages(paths)
            on_this = [job for job in jobs if JOBS[job].is_ours or kind in self._engines_on(main)]
            clips = Clips(kind, files)
            few = clips.music(self._scratch, self._chosen.tracks)
            turns = [(job, few) for job in on_this]
            if kind == main and self._chosen.many:
                many = clips.music(self._scratch, self._chosen.many)
                turns += [(job, many) for job in _MANY if job in on_this]
            self._take_turns(turns)

    def _engines_on(self, main: str) -> list[str]:
        return self._chosen.engines_on or [main]

    def _possible(self) -> list[str]:
        """The jobs that were chosen and can be run; those that cannot are noted."""
        possible = []
        for job in JOBS if self._chosen.jobs is None else self._chosen.jobs:
            self.records.missing.pop(job, None)
            if why := JOBS[job].missing():
                self.records.missing[job] = why
            else:
                possible.append(job)
        return possible

    def _take_turns(self, turns: list[tuple[str, Music]]) -> None:
        for repeat in range(self._chosen.repeats):
            # Each repeat begins with another job: none always follows the same one.
            begin = repeat * len(turns) // self._chosen.repeats
            for job, music in turns[begin:] + turns[:begin]:
                if job not in self.records.missing:
                    self._measure(job, music)

    def _measure(self, job: str, music: Music) -> None:
        try:
            record = Record.of(job, music, JOBS[job].run(music, self._scratch))
        except RuntimeError as error:
            # The other jobs are measured all the same; so long a run is not made twice.
            print(f"{music.kind} {job}: {error}", file=sys.stderr, flush=True)
            self.records.missing[job] = f"it failed on {music.kind}"
            self.has_failed = True
        else:
            self.records.measured.append(record)
            print(record, flush=True)
        self.records.write(self._chosen.json)

    def _measure_commands(self, clip: Path) -> None:
        """Commands whose seconds count by themselves."""
        if self.records.absolute:
            return
        folder, log = self._scratch / "one", self._scratch / "job.log"
        spread([clip], folder, 1)
        helped, tagged = ABSOLUTE
        for repeat in range(self._chosen.repeats):
            output = self._scratch / f"one-{repeat}"
            for what, command in (
                (helped, [sys.executable, "-m", "mer_batch", "--help"]),
                (tagged, tag_command("tag", folder, output)),
            ):
                seconds = run_watched(command, log).seconds
                self.records.absolute.setdefault(what, []).append(seconds)
        print(self.records.absolute, flush=True)


def main() -> None:
    """Measure, print and write the chapter."""
    chosen = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that jobs are ended too
    with tempfile.TemporaryDirectory() as name:
        run = Run(chosen, Path(name))
        print(machine(), flush=True)
        run.measure()
    run.records.write(chosen.json)
    if not run.records.kinds():
        sys.exit("nothing was measured, so there is nothing to report")
    report = chapter(run.records)
    print(report)
    replace_chapter(chosen.output, report)
    sys.exit(1 if run.has_failed else 0)


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tracks", type=int, default=4_000)
    options.add_argument("--many", type=int, default=16_000, help="0: no larger catalog")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--jobs", help=f"of {','.join(JOBS)}; none: the report alone")
    options.add_argument("--kinds", help=f"of {','.join(KINDS)}")
    options.add_argument("--engines-on", help="kinds to measure others on; else the first there is")
    options.add_argument("--json", type=Path, help="keeps the figures, and adds to what it holds")
    options.add_argument("--output", type=Path, default=Path("BENCHMARKS.md"))
    chosen = options.parse_args()
    chosen.jobs = [] if chosen.jobs == "none" else _names(options, chosen.jobs, JOBS)
    chosen.kinds = _names(options, chosen.kinds, KINDS) or list(KINDS)
    chosen.engines_on = _names(options, chosen.engines_on, KINDS)
    return chosen


def _names(
    options: argparse.ArgumentParser, given: str | None, known: Collection[str]
) -> list[str] | None:
    """The names in a list; None where none is given."""
    if given is None:
        return None
    names = given.split(",")
    if unknown := [name for name in names if name not in known]:
        options.error(f"{unknown} must be among {', '.join(known)}")
    return names


if __name__ == "__main__":
    main()
