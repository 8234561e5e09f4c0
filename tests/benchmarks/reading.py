"""Measure a worker on a store that is far away beside the same worker on local files.

    python -m tests.benchmarks.reading [--tracks 256] [--repeats 5]

Writes its chapter of BENCHMARKS.md. The worker and its decoder share one core, as they do in a
fleet; the store has the other one.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from mer_batch.block import BlockWorker, Job
from mer_batch.checkpoint import builtin_checkpoint
from mer_batch.compose import compose, encode_mp3
from mer_batch.config import StorageConfig
from mer_batch.limits import ChildLimits
from mer_batch.schema import Identity
from mer_batch.storage import Storage, parse_uri
from mer_batch.tag import Scores
from tests.benchmarks.jobs import N_CORES, machine
from tests.benchmarks.music import KINDS, files_of, kinds_there, spread
from tests.benchmarks.report import replace_chapter
from tests.benchmarks.slow_store import BUCKET
from tests.sounds import wav

_STORE_CORE, _WORKER_CORE = 0, N_CORES - 1
_LATENCY_SECONDS = 0.06
_GBIT = 1.0
_STALLS = 0.01
_N_LARGE = 16


@dataclass(frozen=True)
class Case:
    """Files, blocks of how many of them, and what is special about the store."""

    described: str
    clips: list[Path]
    n_tracks: int
    stalls: float = 0.0
    writes_there: bool = False


@dataclass(frozen=True)
class Figure:
    """Of one repeat: wall-clock seconds, CPU seconds of the worker, of its decoder, requests."""

    seconds: float
    worker_seconds: float
    decoder_seconds: float
    n_requests: int


@contextlib.contextmanager
def slow_store(folder: Path, *, stalls: float) -> Iterator[str]:
    """The store, in a process of its own; gives its URL."""
    command = [
        sys.executable, "-m", "tests.benchmarks.slow_store", str(folder), "--core",
        str(_STORE_CORE), "--latency", str(_LATENCY_SECONDS), "--gbit", str(_GBIT),
        "--stalls", str(stalls),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def n_requests(url: str) -> int:
    """What the store was asked so far."""
    with urllib.request.urlopen(url) as page:
        asked = json.load(page)
    return sum(asked.get(method, 0) for method in ("GET", "HEAD", "PUT")) - 1  # this one


def block_of(uris: list[str]) -> pa.Table:
    """Rows as a plan has them."""
    n_tracks = len(uris)
    return pa.table(
        {
            "track_id": [str(number) for number in range(n_tracks)],
            "audio_uri": uris,
            "audio_version": pa.array([""] * n_tracks, pa.string()),
            "expected_seconds": pa.nulls(n_tracks, pa.float64()),
            "attempts": pa.array([0] * n_tracks, pa.int32()),
            "first_run_id": pa.nulls(n_tracks, pa.string()),
            "first_seen": pa.nulls(n_tracks, pa.timestamp("us", tz="UTC")),
        }
    )


def worker_at(endpoint: str | None, output: str) -> BlockWorker:
    """A worker that scores with the built-in model."""
    checkpoint = builtin_checkpoint()
    product = Scores(checkpoint.card_json, checkpoint.weights, "model")
    identity = Identity.of("features", "model", {})
    storage = Storage(StorageConfig(endpoint_url=endpoint))
    return BlockWorker(Job(storage, parse_uri(output), "run", identity, product, ChildLimits()))


def once(worker: BlockWorker, block: pa.Table, url: str) -> Figure:
    """Do a block."""
    asked, before = n_requests(url), _cpu_seconds()
    began = time.monotonic()
    report = worker.work(0, block)
    seconds = time.monotonic() - began
    assert report.n_done == len(block), report.rejects[:3]
    ours, theirs = (after - at for after, at in zip(_cpu_seconds(), before, strict=True))
    return Figure(seconds, ours, theirs, n_requests(url) - asked)


def _cpu_seconds() -> tuple[float, float]:
    """Of this process, and of its children that live."""
    theirs = 0.0
    for child in psutil.Process().children():
        times = child.cpu_times()
        theirs += times.user + times.system
    return time.process_time(), theirs


def measure(case: Case, scratch: Path, n_repeats: int) -> list[tuple[Figure, Figure]]:
    """Repeats in which local files and the store take turns."""
    folder = scratch / case.described.replace(" ", "-").replace("/", "")
    paths = spread(case.clips, folder, case.n_tracks)
    with slow_store(folder, stalls=case.stalls) as url:
        uris = [f"s3://{BUCKET}/{Path(path).name}" for path in paths]
        output = f"s3://{BUCKET}/out" if case.writes_there else str(scratch / "out")
        sides = [
            (worker_at(None, str(scratch / "out")), block_of(paths)),
            (worker_at(url, output), block_of(uris)),
        ]
        figures = []
        try:
            for worker, block in sides:
                once(worker, block.slice(0, 8), url)  # starts the decoder
            for _ in range(n_repeats):
                local, far = (once(worker, block, url) for worker, block in sides)
                figures.append((local, far))
                print(case.described, local, far, flush=True)
        finally:
            for worker, _ in sides:
                worker.close()
    return figures


def describe(case: Case, figures: list[tuple[Figure, Figure]]) -> str:
    """A row of the table."""
    n_tracks = case.n_tracks
    size = statistics.mean(
        case.clips[n % len(case.clips)].stat().st_size for n in range(case.n_tracks)
    )
    rates = [
        n_tracks / statistics.median(f.seconds for f in side) for side in zip(*figures, strict=True)
    ]
    ratios = [local.seconds / far.seconds for local, far in figures]
    cpu = [
        f"{1000 * statistics.median(f.worker_seconds for f in side) / n_tracks:.1f} + "
        f"{1000 * statistics.median(f.decoder_seconds for f in side) / n_tracks:.1f}"
        for side in zip(*figures, strict=True)
    ]
    asked = statistics.median(far.n_requests for _, far in figures) / n_tracks
    megabits = 8 * rates[1] * size / 1e6
    return (
        f"| {case.described} | {size / 1000:,.0f} | {rates[0]:.1f} | {rates[1]:.1f} | "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
        f"{megabits:.0f} | {cpu[0]} | {cpu[1]} | {asked:.2f} |"
    )


def large_files(scratch: Path) -> dict[str, list[Path]]:
    """Pieces of some 10 MB, as MP3 (5 minutes) and as WAV (1 minute)."""
    piece = np.stack([compose("joyful", seed, seconds=30) for seed in (1, 2)], axis=1)
    mp3, wave = scratch / "large.mp3", scratch / "large.wav"
    mp3.write_bytes(encode_mp3(np.tile(piece, (10, 1)), quality=0.0))
    as_integers = (np.clip(piece, -1, 1) * 32767).astype(np.int16)
    wave.write_bytes(wav(np.tile(as_integers, (2, 1)), 44_100))
    return {"5 minutes as MP3": [mp3], "1 minute as WAV": [wave]}


def cases(scratch: Path, n_tracks: int) -> list[Case]:
    """What is measured."""
    small = [Case(KINDS[kind], files_of(kind, scratch), n_tracks) for kind in kinds_there()]
    large = [Case(described, clips, _N_LARGE) for described, clips in large_files(scratch).items()]
    usual = small[0]
    special = [
        replace(usual, described=f"{usual.described}; 1 of 100 is 2 s late", stalls=_STALLS),
        replace(usual, described=f"{usual.described}; parts go there, too", writes_there=True),
    ]
    return [*small, *special, *large]


def main() -> None:
    """Measure, print and write the chapter."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tracks", type=int, default=256)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--only", default="", help="a pattern in a case's description")
    options.add_argument("--output", type=Path, default=Path("BENCHMARKS.md"))
    chosen = options.parse_args()
    os.sched_setaffinity(0, {_WORKER_CORE})
    os.environ |= {"AWS_ACCESS_KEY_ID": "key-id", "AWS_SECRET_ACCESS_KEY": "secret"}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for case in cases(Path(name), chosen.tracks):
            if re.search(chosen.only, case.described):
                figures = measure(case, Path(name), chosen.repeats)
                rows.append(describe(case, figures))
                print(rows[-1], flush=True)
    report = _REPORT.format(
        date=datetime.date.today(),
        machine=machine(),
        n_tracks=chosen.tracks,
        n_large=_N_LARGE,
        n_repeats=chosen.repeats,
        headings=_HEADINGS,
        rows="\n".join(rows),
    )
    print(report)
    if not chosen.only:
        replace_chapter(chosen.output, report)


_HEADINGS = (
    "| files | KB a track | local, tracks/s | store, tracks/s | of the local rate | Mbit/s | "
    "CPU ms a track, local | CPU ms a track, store | requests a track |\n" + "|---" * 9 + "|"
)

_REPORT = """# Reading from a store

Made by `make bench` on {date}: one worker and its decoder on one core ({machine}),
the store on another one. The store answers 60 ms after it was asked, opens a connection in as much
again, and sends 1 Gbit/s over all connections together. Medians of {n_repeats} repeats of a block
in which local files and the store take turns on a shared machine; what counts is the share of the
local rate within a repeat (median, and from least to most).

{headings}
{rows}

A block is of {n_tracks} tracks, of {n_large} large ones, and begins with nothing fetched. Its part
is written to a local disk but where the table says otherwise. CPU is that of the worker and that of
its decoder, whose caches suffer from every byte that the worker takes in.
WAV of this size is more than the link can carry: then its share of the 1,000 Mbit/s is what counts.
"""


if __name__ == "__main__":
    main()
