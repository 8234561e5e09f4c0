"""Measure what the pipeline itself costs: a night of very many tracks that take 1 ms to decode.

    python -m tests.benchmarks.simulation [--tracks 1000000] [--audio-bytes 1000]

Real Ray, blocks, parts, commits and a published night; only the decoder waits instead of working
(``fake_decoder``), and the catalog's rows share a few small files. So the processor's time, of
all processes, is overhead. Writes its chapter of BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.benchmarks.jobs import N_CORES, machine
from tests.benchmarks.processes import Usage, run_watched
from tests.benchmarks.report import replace_chapter

_N_FILES = 64


def make_catalog(folder: Path, n_tracks: int, audio_bytes: int) -> Path:
    """A catalog of many tracks and few files; it states the versions."""
    paths = []
    for number in range(_N_FILES):
        path = folder / f"{number:02}.mp3"
        path.write_bytes(os.urandom(audio_bytes))
        paths.append(str(path))
    numbers = range(n_tracks)
    table = pa.table(
        {
            "track_id": [f"track-{number:09}" for number in numbers],
            "audio_uri": [paths[number % _N_FILES] for number in numbers],
            "etag": ["1"] * n_tracks,
            "title": [f"Title {number}" for number in numbers],
        }
    )
    pq.write_table(table, folder / "catalog.parquet")
    return folder / "catalog.parquet"


def simulate(folder: Path, n_tracks: int, audio_bytes: int) -> tuple[Usage, dict[str, float]]:
    """Tag such a catalog; returns what it took and what it has written."""
    catalog = make_catalog(folder, n_tracks, audio_bytes)
    config = folder / "tag.yaml"
    content = {
        "catalog": {"uri": str(catalog), "id_column": "track_id", "audio_column": "audio_uri"},
        "output": {"uri": str(folder / "out")},
    }
    content["catalog"]["version_column"] = "etag"
    config.write_text(yaml.safe_dump(content))
    usage = run_watched(
        [sys.executable, "-m", "tests.benchmarks.simulation", "--drive", str(config)],
        folder / "job.log",
    )
    (manifest,) = folder.glob("out/runs/2*/manifest.json")
    said = json.loads(manifest.read_text())
    assert said["totals"]["n_scored"] == n_tracks
    return usage, {
        "rate": said["tracks_per_second"],
        "part_bytes": said["n_bytes"] / n_tracks,
        "n_parts": len(list(folder.glob("out/scores/2*/*.parquet"))),
        "log_bytes": sum(file.stat().st_size for file in folder.glob("out/scores/_delta_log/*")),
    }


def drive(config: str) -> int:
    """In the process that is watched: ``mer-batch tag`` with the decoder that only waits."""
    from mer_batch.cli import run_command
    from mer_batch.pipelines import tagging
    from tests.benchmarks import fake_decoder

    tagging.work_block = fake_decoder.work_block
    return run_command(["tag", config])


def describe(usage: Usage, written: dict[str, float], n_tracks: int) -> str:
    """The chapter's tables."""
    total = sum(usage.cpu_seconds.values())
    rows = [
        f"| {kind} | {seconds:,.0f} | {1000 * seconds / n_tracks:.3f} |"
        for kind, seconds in sorted(usage.cpu_seconds.items(), key=lambda pair: -pair[1])
    ]
    rows.append(f"| all | {total:,.0f} | {1000 * total / n_tracks:.3f} |")
    samples = usage.driver_bytes
    picked = [samples[(len(samples) - 1) * tenth // 10] for tenth in range(1, 11)]
    memory = [f"| {at:,.0f} | {n_bytes / 2**20:,.0f} |" for at, n_bytes in picked]
    return _REPORT.format(
        date=datetime.date.today(),
        n_tracks=n_tracks,
        n_cores=N_CORES,
        machine=machine(),
        seconds=usage.seconds,
        **written,
        rows="\n".join(rows),
        memory="\n".join(memory),
        peak=usage.peak_bytes / 2**30,
    )


_REPORT = """# The pipeline's own cost

Made on {date} by `python -m tests.benchmarks.simulation`: {n_tracks:,} tracks whose decoder waits
for a millisecond and computes nothing, on {n_cores} cores ({machine}). The whole
process took {seconds:,.0f} s, {rate:,.0f} tracks/s while it worked, and wrote {n_parts:,} parts of
{part_bytes:.0f} bytes a track and a log of {log_bytes:,} bytes. All processor time is overhead:

| processes | CPU s | CPU ms a track |
|---|---|---|
{rows}

The driver's own memory (PSS) as the run went on; all processes together took at most {peak:.1f}
GiB:

| after, s | driver, MiB |
|---|---|
{memory}
"""


def main() -> None:
    """Measure, print and write the chapter."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tracks", type=int, default=1_000_000)
    options.add_argument("--audio-bytes", type=int, default=1_000)
    options.add_argument("--output", type=Path, default=Path("BENCHMARKS.md"))
    options.add_argument("--drive", metavar="CONFIG", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.drive:
        sys.exit(drive(chosen.drive))
    with tempfile.TemporaryDirectory() as name:
        usage, written = simulate(Path(name), chosen.tracks, chosen.audio_bytes)
    report = describe(usage, written, chosen.tracks)
    print(report)
    replace_chapter(chosen.output, report)


if __name__ == "__main__":
    main()
