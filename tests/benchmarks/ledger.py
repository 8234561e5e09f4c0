"""Measure what a night costs besides its tracks: a catalog of millions, all but a few done.

    python -m tests.benchmarks.ledger [--tracks 10000000] [--new 1000] [--scratch FOLDER]

Writes its chapter of BENCHMARKS.md. Catalog and scores are planted; the new tracks are real ones.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import yaml

from mer_batch import schema
from mer_batch.checkpoint import builtin_checkpoint
from mer_batch.compose import MOODS, compose, encode_mp3
from mer_batch.config import AudioConfig, StorageConfig
from mer_batch.ledger import Ledger, Part
from mer_batch.schema import Identity
from mer_batch.storage import Storage, parse_uri
from tests.benchmarks.jobs import N_CORES, machine
from tests.benchmarks.processes import run_watched
from tests.benchmarks.report import replace_chapter

_CATALOG_PART = 1_000_000
_SCORES_PART = 100_000
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_NOW = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Figure:
    """One command: how long it took, and the largest memory of its process family."""

    seconds: float
    peak_bytes: int
    manifest: dict[str, Any]


# ------------------------------------------------------------------ planting


def ids_of(numbers: np.ndarray) -> pa.Array:
    """Ids of twelve characters, in no order."""
    mixed = (numbers.astype(np.uint64) * np.uint64(662_607_015_013)) & np.uint64(2**40 - 1)
    digits = pc.utf8_lpad(pa.array(mixed).cast(pa.string()), 13, "0")
    return pc.binary_join_element_wise("TR", digits, "")


def versions_of(numbers: np.ndarray) -> pa.Array:
    """Etags: 32 hexadecimal digits that follow from the track's number."""
    n = len(numbers)
    state = np.stack([(numbers * k + k).astype(np.uint64) for k in (2_654_435_761, 40_503)], 1)
    state ^= state >> np.uint64(13)
    state *= np.uint64(0x9E3779B97F4A7C15)
    digits = state.view(np.uint8).reshape(n, 16)
    text = np.empty((n, 32), np.uint8)
    text[:, 0::2], text[:, 1::2] = _HEX[digits >> 4], _HEX[digits & 15]
    offsets = pa.py_buffer(np.arange(0, 32 * n + 1, 32, dtype=np.int32))
    return pa.StringArray.from_buffers(n, offsets, pa.py_buffer(text))


def catalog_rows(numbers: np.ndarray, uris: pa.Array | None = None) -> pa.Table:
    """Rows of a catalog of several types."""
    ids = ids_of(numbers)
    rng = np.random.default_rng(int(numbers[0]))
    n = len(numbers)
    artist = pa.array(rng.integers(0, 200_000, n)).cast(pa.string())
    title = pa.array(rng.integers(0, 2**40, n)).cast(pa.string())
    tags = pa.array(np.array(["rock", "jazz", "folk", "techno"])[rng.integers(0, 4, 2 * n)])
    days = rng.integers(0, 20_000, n).astype(np.int32)
    shard = pc.utf8_slice_codeunits(ids, 0, 5)
    return pa.table(
        {
            "track_id": ids,
            "audio_uri": pc.binary_join_element_wise("audio", shard, ids, "/")
            if uris is None
            else uris,
            "etag": versions_of(numbers),
            "title": pc.binary_join_element_wise("Song number", title, " "),
            "artist": pc.binary_join_element_wise("Artist", artist, " "),
            "released": pa.array(days).cast(pa.date32()),
            "seconds": pa.array(rng.uniform(30, 600, n).round(2)),
            "plays": pa.array(rng.integers(0, 10**9, n)),
            "explicit": pa.array(rng.integers(0, 2, n).astype(bool)),
            "tags": pa.ListArray.from_arrays(np.arange(0, 2 * n + 1, 2, dtype=np.int32), tags),
        }
    )


def plant_catalog(folder: Path, n_tracks: int) -> None:
    """Parquet files of a million rows each."""
    folder.mkdir(parents=True)
    for number, begin in enumerate(range(0, n_tracks, _CATALOG_PART)):
        numbers = np.arange(begin, min(begin + _CATALOG_PART, n_tracks))
        path = folder / f"part-{number:04}.parquet"
        pq.write_table(catalog_rows(numbers), path, compression="zstd", row_group_size=131_072)


def plant_scores(output: Path, n_tracks: int) -> None:
    """A score for every track, in no order of the catalog, as Delta parts."""
    checkpoint = builtin_checkpoint()
    features_id, limits = checkpoint.feature_set.features_id, AudioConfig().limits()
    identity = Identity.of(features_id, checkpoint.model_id, limits.content())
    ledger = Ledger(Storage(StorageConfig()), parse_uri(str(output)), pa.string())
    ledger.fence(1)
    columns = schema.scores_schema(pa.string())
    order = np.random.default_rng(0).permutation(n_tracks)
    parts = []
    for begin in range(0, n_tracks, _SCORES_PART):
        numbers = order[begin : begin + _SCORES_PART]
        path = output / "scores" / "planted" / f"part-{begin:09}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(score_rows(numbers, identity, columns), path, compression="zstd")
        parts.append(Part(f"planted/{path.name}", path.stat().st_size, len(numbers)))
    ledger.commit_parts(parts, run_id="20261101T000000Z-000000", sequence=1)


def score_rows(numbers: np.ndarray, identity: Identity, columns: pa.Schema) -> pa.Table:
    """Scores as workers write them."""
    n = len(numbers)
    rng = np.random.default_rng(int(numbers[0]))
    ids = ids_of(numbers)
    same = {
        "features_id": identity.features_id, "model_id": identity.model_id,
        "run_id": "20261101T000000Z-000000", "scored_at": _NOW, "n_segments": 7,
    }  # fmt: skip
    rows = {
        "track_id": ids,
        "audio_uri": pc.binary_join_element_wise("/music", ids, "/"),
        "audio_version": versions_of(numbers),
        "duration_seconds": pa.array(rng.uniform(30, 600, n)),
    }
    rows |= {name: pa.repeat(pa.scalar(same[name], columns.field(name).type), n) for name in same}
    floats = set(columns.names) - set(rows)
    rows |= {name: pa.array(rng.uniform(-1, 1, n).astype(np.float32)) for name in floats}
    return pa.table([rows[name] for name in columns.names], schema=columns)


def plant_new(folder: Path, n_tracks: int, n_new: int) -> None:
    """Some more tracks, whose audio is there."""
    audio = folder / "new"
    audio.mkdir()
    contents = [encode_mp3(compose(mood, 1, seconds=30)) for mood in MOODS]
    numbers = np.arange(n_tracks, n_tracks + n_new)
    for number in range(n_new):
        (audio / f"{number}.mp3").write_bytes(contents[number % len(contents)])
    uris = pa.array([f"new/{number}.mp3" for number in range(n_new)])
    pq.write_table(catalog_rows(numbers, uris), folder / "part-new.parquet")


# ------------------------------------------------------------------ measuring


def measured(command: list[str], output: Path, *, stop_after: float | None = None) -> Figure:
    """Run ``mer-batch`` as a user would, and watch it."""
    before = set(output.glob("runs/2*/manifest.json"))
    usage = run_watched(
        [sys.executable, "-m", "mer_batch", *command],
        output.with_suffix(".log"),
        stop_after=stop_after,
    )
    manifests = set(output.glob("runs/2*/manifest.json")) - before
    manifest = json.loads(manifests.pop().read_text()) if manifests else {}
    figure = Figure(usage.seconds, usage.peak_bytes, manifest)
    print(f"{' '.join(command)}: {figure.seconds:.1f} s, {figure.peak_bytes / 2**30:.2f} GiB")
    return figure


def timed(work: Callable[[], None], what: str) -> None:
    began = time.monotonic()
    work()
    print(f"{what}: {time.monotonic() - began:.1f} s", flush=True)


def check(output: Path, run_date: str, n_rows: int) -> None:
    """Every row is there once, with its score."""
    night = pads.dataset(output / "enriched" / f"run_date={run_date}", format="parquet")
    assert night.count_rows() == n_rows
    assert night.count_rows(filter=pads.field("tag_status") == "scored") == n_rows


def measure(scratch: Path, n_tracks: int, n_new: int) -> list[str]:
    """Rows of the table."""
    catalog, output, config = scratch / "catalog", scratch / "out", scratch / "tag.yaml"
    timed(lambda: plant_catalog(catalog, n_tracks), "catalog planted")
    timed(lambda: plant_scores(output, n_tracks), "scores planted")
    section = {"uri": str(catalog), "format": "parquet", "version_column": "etag"}
    config.write_text(yaml.safe_dump({"catalog": section, "output": {"uri": str(output)}}))

    def run(command: str, *overrides: str, to: Path = output, **options: Any) -> Figure:
        given = [command, str(config), f"output.uri={to}", *overrides]
        return measured(given, to, **options)

    planned = run("plan")
    first = run("tag", "run_date=2026-11-02")
    again = run("tag", "run_date=2026-11-02")
    assert first.manifest["published"]["is_new"] and not again.manifest["published"]["is_new"]
    check(output, "2026-11-02", n_tracks)
    plant_new(catalog, n_tracks, n_new)
    increment = run("tag", "run_date=2026-11-03")
    assert increment.manifest["n_scored"] == n_new
    check(output, "2026-11-03", n_tracks + n_new)
    empty = scratch / "empty"
    empty.mkdir()
    all_new = run("plan", to=empty)
    stopped = run("tag", "max_reject_rate=1", to=empty, stop_after=_STOPPED_AFTER)
    n_tried = sum(stopped.manifest["n_rejected"].values()) + stopped.manifest["n_scored"]
    return [
        _row("`plan`", planned),
        _row("`tag`, nothing new, the night published", first),
        _row("`tag`, nothing new, the night is there", again),
        _row(f"`tag`, {n_new:,} new tracks decoded, the night published", increment),
        _row("`plan`, nothing done yet", all_new),
        _row(f"`tag`, nothing done yet, stopped after {n_tried:,} tracks", stopped),
    ]


_STOPPED_AFTER = 90.0


def _row(what: str, figure: Figure) -> str:
    return f"| {what} | {figure.seconds:.0f} | {figure.peak_bytes / 2**30:.1f} |"


def main() -> None:
    """Plant, measure, print and write the chapter."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tracks", type=int, default=10_000_000)
    options.add_argument("--new", type=int, default=1_000)
    options.add_argument("--scratch", type=Path, help="A folder with 15 GB of room.")
    options.add_argument("--output", type=Path, default=Path("BENCHMARKS.md"))
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.scratch) as name:
        rows = measure(Path(name), chosen.tracks, chosen.new)
    report = _REPORT.format(
        date=datetime.date.today(),
        n_tracks=chosen.tracks,
        n_parts=-(-chosen.tracks // _SCORES_PART),
        n_cores=N_CORES,
        machine=machine(),
        rows="\n".join(rows),
    )
    print(report)
    replace_chapter(chosen.output, report)


_REPORT = """# The ledger at scale

Made by `make bench` on {date}: a catalog of {n_tracks:,} tracks (ten columns of six types, with a
version column) and as many scores in {n_parts:,} parts, on {n_cores} cores ({machine}).

| command | whole process, s | peak memory, GiB |
|---|---|---|
{rows}

From the shell's command to its end. Memory is the sum over the driver, Ray and the workers, pages
that they share counted once. A published night is the whole catalog with its scores, every column,
in Parquet with zstd. Where nothing is done yet the audio is not there: each track becomes a reject,
so blocks come and go as fast as they can.
"""


if __name__ == "__main__":
    main()
