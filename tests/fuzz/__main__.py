"""``python -m tests.fuzz [--seed S] [--mutants N]``: broken files through the real job.

Rounds of mutants are tagged by ``mer-batch tag`` as a process of its own, while the memory of its
workers and decoders is watched. It ends with 1, and keeps what it stumbled over, unless every run
ends well, every file has exactly one outcome, every score is one, and memory is bounded.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow as pa
from deltalake import DeltaTable
from pyarrow import dataset as pads

from mer_batch import schema
from tests.fuzz.mutants import corpus_seeds, made_up_seeds, mutant, mutants

ROUND_TRACKS = 4_000
TIMEOUT_SECONDS = 20.0
# A mutant is smaller than a megabyte. What its decoder may take above an idle one's 300 MB or so:
# the mel spectrogram of whatever it claims to be, within what the limits allow.
MAX_CHILD_BYTES = 800 * 1024**2
MAX_WORKER_BYTES = 800 * 1024**2
#: Outcomes that are allowed, but worth a look.
NOTABLE = {"decoder_crash", "timeout", "memory_limit", "storage_error"}


@dataclass
class Findings:
    """What came of all rounds."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    notable: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: Counter[str] = field(default_factory=Counter)


class MemoryWatch:
    """The most that workers and decoders below a process have held, by the kernel's own count."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes: Counter[str] = Counter()
        self._root = psutil.Process(pid)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.5):
            with contextlib.suppress(psutil.Error):
                for process in self._root.children(recursive=True):
                    with contextlib.suppress(psutil.Error, OSError):
                        self._look_at(process)

    def _look_at(self, process: psutil.Process) -> None:
        command = " ".join(process.cmdline())
        kind = "decoder" if "mer_batch.child" in command else "worker"
        if kind == "worker" and not command.startswith("ray::"):
            return
        self.peak_bytes[kind] = max(self.peak_bytes[kind], _peak_bytes(process))


def _peak_bytes(process: psutil.Process) -> int:
    """High-water mark of a process; what it holds now where the kernel keeps none."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (FileNotFoundError, ValueError):
        return int(process.memory_info().rss)


def run_round(folder: Path, n_tracks: int, findings: Findings) -> dict[str, str]:
    """Tag a folder of mutants; returns every file's outcome as it was published."""
    out = folder.parent / "out"
    command = [
        sys.executable, "-m", "mer_batch", "tag", str(folder.parent / "tag.yaml"),
    ]  # fmt: skip
    (folder.parent / "tag.yaml").write_text(
        f"catalog: {{uri: {folder}, format: audio}}\noutput: {{uri: {out}}}\n"
        f"audio: {{timeout_seconds: {TIMEOUT_SECONDS}}}\nmax_reject_rate: 1\n"
    )
    began = time.monotonic()
    with (folder.parent / "log").open("w") as log:
        job = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        with MemoryWatch(job.pid) as watch:
            try:
                code = job.wait(120 + n_tracks / 2)
            except subprocess.TimeoutExpired:
                job.kill()
                code = job.wait()
                findings.faults.append("the run hung")
    findings.seconds += time.monotonic() - began
    for kind, peak in watch.peak_bytes.items():
        findings.peak_bytes[kind] = max(findings.peak_bytes[kind], peak)
    if code != 0:
        last_words = (folder.parent / "log").read_text()[-2_000:]
        findings.faults.append(f"the run ended with {code}: {last_words}")
        return {}
    return check_tables(out, n_tracks, findings)


def check_tables(out: Path, n_tracks: int, findings: Findings) -> dict[str, str]:
    """Hold the tables and the published night against one another."""
    scores = _table(out / "scores")
    rejects = _table(out / "rejects")
    night = pads.dataset(next(out.glob("enriched/run_date=*"))).to_table()
    outcomes = dict(
        zip(*night.select(["track_id", "tag_status"]).to_pydict().values(), strict=True)
    )
    scored = scores["track_id"].to_pylist()
    reasons = dict(zip(*rejects.select(["track_id", "reason"]).to_pydict().values(), strict=True))
    faults = findings.faults
    if len(outcomes) != n_tracks or night.num_rows != n_tracks:
        faults.append(f"{night.num_rows} rows for {n_tracks} files")
    if len(set(scored)) != len(scored) or len(reasons) != rejects.num_rows:
        faults.append("a track has two rows")
    if set(scored) & reasons.keys() or set(scored) | reasons.keys() != outcomes.keys():
        faults.append("a track has both outcomes, or none")
    if dict.fromkeys(scored, schema.SCORED) | reasons != outcomes:
        faults.append("the night does not say what the tables say")
    if not set(reasons.values()) <= schema.REASONS.keys():
        faults.append(f"unknown reasons: {set(reasons.values()) - schema.REASONS.keys()}")
    for row in scores.to_pylist():
        values = [row[target] for target in schema.TARGETS]
        if not all(math.isfinite(value) and -1 <= value <= 1 for value in values):
            faults.append(f"{row['track_id']} has the scores {values}")
        if not 1 <= row["duration_seconds"] <= 3600:
            faults.append(f"{row['track_id']} lasts {row['duration_seconds']} s")
    return outcomes


def _table(folder: Path) -> pa.Table:
    return pads.dataset(DeltaTable(str(folder)).file_uris()).to_table()


def fuzz(seeds: list[bytes], first: int, n_mutants: int, kept: Path) -> Findings:
    """Rounds of mutants; those that are worth a look are written to `kept`."""
    findings = Findings()
    for begin in range(first, first + n_mutants, ROUND_TRACKS):
        n = min(ROUND_TRACKS, first + n_mutants - begin)
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            music = Path(folder) / "music"
            music.mkdir()
            for name, content in mutants(seeds, begin, n):
                (music / name).write_bytes(content)
            outcomes = run_round(music, n, findings)
            findings.outcomes.update(outcomes.values())
            for name in sorted(name for name, how in outcomes.items() if how in NOTABLE):
                kept.mkdir(parents=True, exist_ok=True)
                shutil.copy(music / name, kept / name)
                findings.notable.append((name, outcomes[name]))
        print(f"  {begin + n - first:,} of {n_mutants:,} mutants", flush=True)
    limits = {"decoder": MAX_CHILD_BYTES, "worker": MAX_WORKER_BYTES}
    for kind, limit in limits.items():
        if not 0 < findings.peak_bytes[kind] <= limit:
            peak = findings.peak_bytes[kind]
            findings.faults.append(f"a {kind} held {peak:,} bytes; allowed are {limit:,}")
    return findings


def report(findings: Findings, seeds: list[bytes], kept: Path) -> None:
    """Print what came out."""
    n = findings.outcomes.total()
    print(f"\n| outcome | of {n:,} mutants |\n|---|---|")
    for outcome, count in findings.outcomes.most_common():
        print(f"| `{outcome}` | {count:,} |")
    print(f"\n{n / max(findings.seconds, 1e-9):.0f} mutants/s, start-up included")
    for kind, peak in findings.peak_bytes.items():
        print(f"a {kind} held {peak / 1e6:.0f} MB at most")
    for name, outcome in findings.notable:
        how = mutant(seeds, int(name.split(".")[0]))[1]
        print(f"worth a look: {kept / name}: {outcome} ({how})")
    for fault in findings.faults:
        print(f"FAULT: {fault}")
    print("failed" if findings.faults else "passed")


def main() -> int:
    """Fuzz; 1 where something must not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"))
    asked = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    seeds = made_up_seeds()
    if data := os.environ.get("MER_BATCH_DATA"):
        # Half of the mutants are of our own music: most of a corpus is too short to be scored.
        corpus = corpus_seeds(Path(data) / "mp3_corpus")
        seeds = seeds * max(1, len(corpus) // len(seeds)) + corpus
    print(f"{asked.mutants:,} mutants of {len(set(seeds))} files, from number {asked.seed} on")
    findings = fuzz(seeds, asked.seed, asked.mutants, asked.keep)
    report(findings, seeds, asked.keep)
    return 1 if findings.faults else 0


if __name__ == "__main__":
    sys.exit(main())
