"""Measure scoring from features beside scoring from MP3: the same tracks, the same run.

    python -m tests.benchmarks.rescoring [--tracks 1000] [--repeats 3] [--many 100000]

Writes its chapter of BENCHMARKS.md. The many are the first kind's tracks under new ids, their
features planted: to extract them would take half an hour, and rows are read the same.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from rich.console import Console

from mer_batch.block import Job
from mer_batch.catalog import read_catalog
from mer_batch.checkpoint import builtin_checkpoint
from mer_batch.config import CatalogConfig, ExtractConfig, StorageConfig, parse_config
from mer_batch.ledger import Ledger, Part
from mer_batch.limits import ChildLimits
from mer_batch.pipelines.session import held
from mer_batch.plan import make_plan, with_features
from mer_batch.rescore import Rescorer
from mer_batch.schema import Identity
from mer_batch.shards import GROUP_ROWS, open_writer
from mer_batch.storage import Storage, parse_uri
from mer_batch.tag import Scores
from tests.benchmarks.engines.taggers import tagger
from tests.benchmarks.jobs import N_CORES, ONE_THREAD, machine, start_job
from tests.benchmarks.music import KINDS, files_of, kinds_there, spread
from tests.benchmarks.report import replace_chapter

_CPU_TRACKS = 200


@dataclass(frozen=True)
class Repeat:
    """Seconds of work and of the whole process, for each job."""

    extract: tuple[float, float]
    from_mp3: tuple[float, float]
    from_features: tuple[float, float]


def job(command: str, folder: Path, output: Path) -> tuple[float, dict[str, Any]]:
    """Run a command; its seconds from start to end, and its manifest."""
    before = set(output.glob("runs/2*/manifest.json"))
    began = time.monotonic()
    assert start_job(command, folder, output).wait() == 0, f"mer-batch {command} failed"
    seconds = time.monotonic() - began
    (manifest,) = set(output.glob("runs/2*/manifest.json")) - before
    return seconds, json.loads(manifest.read_text())


def measure_once(folder: Path, scratch: Path, n_tracks: int) -> Repeat:
    """Extract, score from MP3 into another output, score from the features."""
    from_mp3, kept = scratch / "from-mp3", scratch / "kept"
    for output in (from_mp3, kept):
        shutil.rmtree(output, ignore_errors=True)
    seconds, extracted = job("extract", folder, kept)
    mp3_seconds, decoded = job("tag", folder, from_mp3)
    features_seconds, rescored = job("tag", folder, kept)
    assert extracted["n_extracted"] == decoded["n_scored"] == n_tracks
    assert rescored["n_rescored"] == n_tracks
    return Repeat(
        (extracted["work_seconds"], seconds),
        (decoded["work_seconds"], mp3_seconds),
        (rescored["rescore_seconds"], features_seconds),
    )


def plant(output: Path, many: Path, n_few: int, n_many: int) -> None:
    """Features of many tracks, out of those of the few whose files they are."""
    content = {"catalog": {"uri": str(many)}, "output": {"uri": str(output)}}
    config = parse_config(ExtractConfig, content, origin="benchmark")
    storage, quiet = Storage(StorageConfig()), Console(quiet=True)
    parts = sorted(output.glob("features/2*/*.parquet"))
    with held(config, quiet, storage, pa.string(), product="features") as holding:
        folder = output / "features" / holding.run.run_id
        folder.mkdir()
        planted = [
            planted_part(part, folder / f"part-{first:06}-{part.name}", many, first)
            for first in range(n_few, n_many, n_few)
            for part in parts
        ]
        holding.ledger.commit_parts(planted, run_id=holding.run.run_id, sequence=1)


def planted_part(part: Path, path: Path, many: Path, first: int) -> Part:
    """A part again, its tracks numbered from `first` on; more of them than there are do no harm."""
    rows = pq.read_table(part)
    numbers = [int(Path(name).stem) for name in rows["track_id"].to_pylist()]
    names = [f"{number + first:06}.mp3" for number in numbers]
    for column, values in (
        ("track_id", names),
        ("audio_uri", [str(many / name) for name in names]),
    ):
        field = rows.schema.field(column)
        rows = rows.set_column(rows.schema.get_field_index(column), field, [values])
    with path.open("wb") as sink:
        writer = open_writer(sink, rows.schema)
        writer.write_table(rows, row_group_size=GROUP_ROWS)
        writer.close()
    return Part(f"{path.parent.name}/{path.name}", path.stat().st_size, len(rows))


def in_one_thread(function: Callable[..., Any], *given: Any) -> Any:
    """Call a function in a process of its own, where numpy's products do not take all cores."""
    before = dict(os.environ)
    os.environ.update(ONE_THREAD)
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(function, given)
    finally:
        os.environ.clear()
        os.environ.update(before)


def cpu_ms_a_track(paths: list[str], folder: Path, output: Path) -> tuple[float, float]:
    """CPU time of a track from MP3 and from features, in one process and thread [ms].

    Of the work alone, without processes to start and to talk to: a machine that is shared changes
    it little.
    """
    tag = tagger("kernel")
    began = time.process_time()
    for path in paths[:_CPU_TRACKS]:
        tag(path)
    from_mp3 = time.process_time() - began

    storage, catalog = Storage(StorageConfig()), CatalogConfig(uri=str(folder))
    tracks = read_catalog(catalog, storage, taken_names=[])
    place, checkpoint = parse_uri(str(output)), builtin_checkpoint()
    identity = Identity.of(checkpoint.feature_set.features_id, "another model", {})
    ledger = Ledger(storage, place, tracks.id_type)
    plan = make_plan(tracks, ledger, storage, identity, detect_changes=True)
    limits = ChildLimits()
    from_features, _, _ = with_features(plan, ledger, identity.features_id, limits.audio)
    product = Scores(checkpoint.card_json, checkpoint.weights, "another model")
    # Into an output of its own: this one's holder has let it go, and would have parts taken back.
    elsewhere = parse_uri(str(output.with_name("cpu")))
    rescorer = Rescorer(Job(storage, elsewhere, "cpu", identity, product, limits))
    spans = [(part, 0, n) for part, n in enumerate(from_features.lengths())]
    (tracks,) = from_features.tracks([spans])
    block = tracks.slice(0, _CPU_TRACKS).combine_chunks()
    rescorer.work(0, block.slice(0, 64))  # what is made once
    began = time.process_time()
    assert rescorer.work(1, block).n_done == len(block)
    from_features_seconds = time.process_time() - began
    return 1000 * from_mp3 / len(paths[:_CPU_TRACKS]), 1000 * from_features_seconds / len(block)


def kib_per_30_seconds(output: Path) -> float:
    """Size of the features on disk for each 30 s that they hold [KiB]."""
    parts = list(output.glob("features/2*/*.parquet"))
    columns = ["segment", "n_segments", "duration_seconds"]
    rows = pads.dataset([str(part) for part in parts]).to_table(columns=columns).to_pandas()
    first = rows[rows["segment"] == 0]
    held = (np.minimum(first["duration_seconds"], 30) * first["n_segments"]).sum()
    return sum(part.stat().st_size for part in parts) / held * 30 / 1024


def describe(
    name: str, repeats: list[Repeat], n_tracks: int, kib: float, cpu: tuple[float, float]
) -> list[str]:
    """Rows of the table for one kind of files."""
    rows = []
    for shown, attribute, cpu_ms in (
        ("extract", "extract", ""),
        ("tag from MP3", "from_mp3", f"{cpu[0]:.1f}"),
        ("tag from features", "from_features", f"{cpu[1]:.2f} ({cpu[0] / cpu[1]:.0f} times less)"),
    ):
        work, whole = zip(*(getattr(repeat, attribute) for repeat in repeats), strict=True)
        gains = [r.from_mp3[0] / getattr(r, attribute)[0] for r in repeats]
        rows.append(
            f"| {name} | {shown} | {n_tracks / statistics.median(work):,.0f} | "
            f"{statistics.median(gains):.1f} ({min(gains):.1f} to {max(gains):.1f}) | "
            f"{statistics.median(whole):.1f} | {cpu_ms} | {kib:.1f} |"
        )
    return rows


def describe_many(name: str, clips: list[Path], scratch: Path, n_tracks: int, n_many: int) -> str:
    """Measure a catalog of many tracks, and tell of it in a paragraph."""
    n_tracks -= n_tracks % len(clips)  # so that a track's namesakes are the same file
    few, many, kept = scratch / "few", scratch / "many", scratch / "kept-many"
    spread(clips, few, n_tracks)
    job("extract", few, kept)
    _, decoded = job("tag", few, scratch / "from-mp3-many")
    spread(clips, many, n_many)
    plant(kept, many, n_tracks, n_many)
    seconds, rescored = job("tag", many, kept)
    assert rescored["n_rescored"] == n_many
    from_mp3 = n_tracks / decoded["work_seconds"]
    from_features = n_many / rescored["rescore_seconds"]
    return _MANY.format(
        name=name,
        n_many=n_many,
        n_few=n_tracks,
        from_mp3=from_mp3,
        from_features=from_features,
        gain=from_features / from_mp3,
        whole=seconds,
    )


def main() -> None:
    """Measure, print and write the chapter."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tracks", type=int, default=1000)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--many", type=int, default=100_000, help="0: no larger catalog")
    options.add_argument("--few", type=int, default=4_000, help="of which the many are made")
    options.add_argument("--output", type=Path, default=Path("BENCHMARKS.md"))
    chosen = options.parse_args()
    rows, large = [], ""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for kind in kinds_there():
            described, folder = KINDS[kind], scratch / f"music-{kind}"
            clips = files_of(kind, scratch)
            paths = spread(clips, folder, chosen.tracks)
            repeats = []
            for _ in range(chosen.repeats):
                repeats.append(measure_once(folder, scratch, chosen.tracks))
                print(described, repeats[-1], flush=True)
            kib = kib_per_30_seconds(scratch / "kept")
            cpu = in_one_thread(cpu_ms_a_track, paths, folder, scratch / "kept")
            rows += describe(described, repeats, chosen.tracks, kib, cpu)
            if chosen.many and kind == kinds_there()[0]:
                large = describe_many(described, clips, scratch, chosen.few, chosen.many)
                print(large, flush=True)
    report = _REPORT.format(
        date=datetime.date.today(),
        n_tracks=chosen.tracks,
        n_cores=N_CORES,
        machine=machine(),
        n_repeats=chosen.repeats,
        rows="\n".join(rows),
    )
    report += large
    print(report)
    replace_chapter(chosen.output, report)


_REPORT = """# Scoring from features

Made by `make bench` on {date}: {n_tracks:,} files on {n_cores} cores ({machine}). Medians of
{n_repeats} repeats in which the jobs take turns on a shared machine; what counts is how many times
the rate from MP3 a job reaches within a repeat (median, and from least to most).

| files | job | tracks/s | times MP3 | whole process, s | CPU ms a track | KiB per 30 s |
|---|---|---|---|---|---|---|
{rows}

Rates are those of the work: from MP3 from when Ray is up, from features from when the model
is. The whole process is that of the shell's command, start-up, planning and publishing
included. CPU is that of the kernels in one thread, decoding and model on one side, reading, model
and writing on the other, which a shared machine changes least. Bytes are those of `features/` on
disk, all its columns.
"""

_MANY = """
{n_many:,} tracks ({name}, their features planted from those of {n_few:,}) were scored from
features at {from_features:,.0f} tracks/s, {gain:.1f} times the {from_mp3:.0f} tracks/s at which
the {n_few:,} were from MP3 (once). The whole process took {whole:.0f} s, the night published.
"""


if __name__ == "__main__":
    main()
