"""Measure what a year of small nights costs a reader, and what is left of that once it is merged.

    python -m tests.benchmarks.nights [--nights 365] [--repeats 3]

Plants nights by the ledger's own commits, without music: every night a few parts of scores and of
features, some rejects, and the fences of its run. Reads as a run does before it works: opens the
tables, compares a catalog with them, looks for features. Writes its chapter of BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from mer_batch import schema
from mer_batch.catalog import read_catalog
from mer_batch.config import CatalogConfig, StorageConfig, TagConfig, parse_config
from mer_batch.extract import TrackFeatures
from mer_batch.ledger import Ledger, Part
from mer_batch.pipelines import compaction
from mer_batch.plan import make_plan, with_features
from mer_batch.schema import Identity, reject_rows, utc_now
from mer_batch.shards import Features
from mer_batch.storage import Location, Storage, parse_uri
from tests.benchmarks.jobs import machine
from tests.benchmarks.report import replace_chapter
from tests.faulty_store import FaultyStore
from tests.feature_parts import SMALL
from tests.s3_server import serving_s3

_PARTS_A_NIGHT = 8
_TRACKS_A_PART = 25
_REJECTS_A_NIGHT = 2
# What a request to a store takes at the least: moto on loopback answers sooner than real ones.
_REQUEST_SECONDS = 0.02
_IDENTITY = Identity("f", "m", "e")
_LIMITS = parse_config(
    TagConfig, {"catalog": {"uri": "none"}, "output": {"uri": "none"}}, origin="benchmark"
).audio.limits()


@dataclass(frozen=True)
class Look:
    """What a reader of an output found, in a process of its own.

    Attributes
    ----------
    n_parts : int
        Of scores and features.
    open_seconds, plan_seconds, features_seconds : float
        To open the tables, to compare a catalog with them, to look for features.
    grown_mib : float
        The process's peak over what it held before it opened anything.
    """

    n_parts: int
    open_seconds: float
    plan_seconds: float
    features_seconds: float
    grown_mib: float


# ------------------------------------------------------------------------------- a year


class Nights:
    """Nights one after the other in an output."""

    def __init__(self, output: Location, *, when: str) -> None:
        self._storage = Storage(StorageConfig())
        self._output = output
        self._config = configuration(output.uri, when=when)
        Ledger(self._storage, output, pa.string(), product="features")  # makes the table
        self._seconds: list[float] = []
        self._n_tracks = 0

    @property
    def compact_seconds(self) -> list[float]:
        """What keeping the tables in order took of every night that did."""
        return [seconds for seconds in self._seconds if seconds > 0.05]

    def go(self, n_nights: int) -> None:
        """So many nights."""
        for _ in range(n_nights):
            with compaction.held(
                self._config, Console(quiet=True), self._storage, pa.string(), product="scores"
            ) as holding:
                self._night(holding.ledger, holding.run.run_id)
                began = time.monotonic()
                compaction.compact_if_due(holding)
                self._seconds.append(time.monotonic() - began)

    def _night(self, ledger: Ledger, run_id: str) -> None:
        first = self._n_tracks
        blocks = []
        for _ in range(_PARTS_A_NIGHT):
            blocks.append([f"t{self._n_tracks + n:07}" for n in range(_TRACKS_A_PART)])
            self._n_tracks += _TRACKS_A_PART
        scores = [self._write("scores", run_id, scores_part(ids, run_id)) for ids in blocks]
        features = [self._write("features", run_id, features_part(ids, run_id)) for ids in blocks]
        now = utc_now()
        rows: list[dict[str, object]] = [
            {
                "track_id": f"x{first + n:07}", "audio_uri": "/a", "audio_version": "v",
                "reason": "silent", "message": "nothing to hear", "attempts": 1,
                "first_run_id": run_id, "last_run_id": run_id, "first_seen": now,
                "last_seen": now, "extraction_id": "e", "product": "scores",
            }
            for n in range(_REJECTS_A_NIGHT)
        ]  # fmt: skip
        ledger.merge_rejects(reject_rows(rows, pa.string()))
        ledger.commit_parts(scores, run_id=run_id, sequence=1)
        ledger.commit_parts(features, run_id=run_id, sequence=2, table="features")

    def _write(self, table: str, run_id: str, content: tuple[bytes, int]) -> Part:
        path = f"{run_id}/part-{time.monotonic_ns()}.parquet"
        self._storage.write(self._output.child(table, path), content[0])
        return Part(path, len(content[0]), content[1])


def scores_part(ids: list[str], run_id: str) -> tuple[bytes, int]:
    """A part of scores, and its rows."""
    now = utc_now()
    rows = [
        {
            "track_id": i, "audio_uri": f"/music/{i}.mp3", "audio_version": "v", "valence": 0.1,
            "arousal": -0.1, "n_segments": 1, "duration_seconds": 30.0, "features_id": "f",
            "model_id": "m", "run_id": run_id, "scored_at": now,
        }
        for i in ids
    ]  # fmt: skip
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=schema.scores_schema(pa.string()))
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue(), len(rows)


def features_part(ids: list[str], run_id: str) -> tuple[bytes, int]:
    """A part of features of a quarter of a second, and its rows."""
    part = Features(SMALL, "float16").part(pa.string())
    mel = np.zeros((1, SMALL.mel.n_mels, SMALL.segment_frames), np.float32)
    for i in ids:
        track = {
            "track_id": i, "audio_uri": f"/music/{i}.mp3", "audio_version": "v",
            "features_id": "f", "run_id": run_id,
        }  # fmt: skip
        part.add(track, TrackFeatures(mel, [0.0], 30.0, SMALL.segment_frames))
    return part.finish(), part.n_rows


def configuration(uri: str, *, when: str, endpoint: str | None = None) -> TagConfig:
    """Of the runs that fill an output, or keep it in order."""
    content: dict[str, Any] = {
        "catalog": {"uri": "none"},
        "output": {"uri": uri},
        "storage": {"endpoint_url": endpoint},
        "compact": {"when": when},
    }
    return parse_config(TagConfig, content, origin="benchmark")


# ------------------------------------------------------------------------------- looking


def look(uri: str, endpoint: str | None, catalog_uri: str) -> Look:
    """Read an output as a run does before it works."""
    storage, output = Storage(StorageConfig(endpoint_url=endpoint)), parse_uri(uri)
    config = CatalogConfig(uri=catalog_uri, version_column="version")
    catalog = read_catalog(config, storage, taken_names=[])
    before = psutil.Process().memory_info().rss / 2**20
    began = time.monotonic()
    ledger = Ledger(storage, output, pa.string())
    opened = time.monotonic()
    plan = make_plan(catalog, ledger, storage, _IDENTITY, detect_changes=True)
    planned = time.monotonic()
    from_features, _, problems = with_features(plan, ledger, "f", _LIMITS.audio)
    found = time.monotonic()
    assert not problems
    assert plan.n_done == len(plan.keys) - len(plan.pending) > 0, "the year is done, today is not"
    assert len(from_features) == 0
    n_parts = sum(len(ledger.parts(name)) for name in ("scores", "features"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return Look(n_parts, opened - began, planned - opened, found - planned, peak - before)


def look_again(uri: str, endpoint: str | None, catalog: Path, n: int) -> Look:
    """The median of some looks, each in a process of its own."""
    looks = []
    for _ in range(n):
        command = [sys.executable, "-m", "tests.benchmarks.nights", "--look", uri, str(catalog)]
        command += [endpoint] if endpoint else []
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        looks.append(json.loads(found.stdout))
    return Look(**{name: statistics.median(look[name] for look in looks) for name in looks[0]})


def write_catalog(path: Path, n_tracks: int) -> None:
    """The tracks of the year, and as many again that are new tonight as a night has."""
    n_new = _PARTS_A_NIGHT * _TRACKS_A_PART
    ids = [f"t{n:07}" for n in range(n_tracks + n_new)]
    uris = [f"/music/{i}.mp3" for i in ids]
    pq.write_table(
        pa.table({"track_id": ids, "audio_uri": uris, "version": ["v"] * len(ids)}), path
    )


def n_entries(folder: Path) -> int:
    """Entries of the logs of all tables."""
    return len(list(folder.glob("*/_delta_log/*.json")))


# ------------------------------------------------------------------------------- the report


def row(
    place: str, state: str, found: Look, n_requests: int | None, n_log_entries: int | None
) -> str:
    cells = [
        place, state, f"{found.n_parts:,}", f"{n_log_entries:,}" if n_log_entries else "",
        f"{found.open_seconds:.2f}", f"{found.plan_seconds:.2f}", f"{found.features_seconds:.2f}",
        f"{found.grown_mib:.0f}", "" if n_requests is None else f"{n_requests:,}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def on_disk(scratch: Path, catalog: Path, n_nights: int, n_repeats: int) -> tuple[list[str], str]:
    """Rows of the table for a local disk; how long keeping in order takes."""
    rows, auto, never = [], scratch / "auto", scratch / "never"
    few = Nights(parse_uri(str(scratch / "few")), when="never")
    few.go(7)
    first = scratch / "few.parquet"
    write_catalog(first, 7 * _PARTS_A_NIGHT * _TRACKS_A_PART)
    found = look_again(str(scratch / "few"), None, first, n_repeats)
    rows.append(row("disk", "7 nights", found, None, n_entries(scratch / "few")))
    for folder, when, state in ((never, "never", "never merged"), (auto, "auto", "when: auto")):
        nights = Nights(parse_uri(str(folder)), when=when)
        nights.go(n_nights)
        found = look_again(str(folder), None, catalog, n_repeats)
        rows.append(row("disk", f"{n_nights} nights, {state}", found, None, n_entries(folder)))
        print(rows[-1], flush=True)
    spent = nights.compact_seconds
    merged = scratch / "merged"
    shutil.copytree(never, merged)
    done = compaction.run(configuration(str(merged), when="auto"), Console(quiet=True))
    found = look_again(str(merged), None, catalog, n_repeats)
    state = f"{n_nights} nights, then `compact`"
    rows.append(row("disk", state, found, None, n_entries(merged)))
    print(rows[-1], flush=True)
    words = (
        f"`when: auto` merged at the end of {len(spent)} of the nights, which took "
        f"{statistics.median(spent):.1f} s (at most {max(spent):.1f} s); `mer-batch compact` took "
        f"{done.seconds:.1f} s for the whole year"
    )
    return rows, words


def in_store(scratch: Path, catalog: Path, n_nights: int) -> tuple[list[str], str]:
    """The same for copies in a store, whose requests are counted and slowed down."""
    rows = []
    with serving_s3() as endpoint, FaultyStore(endpoint) as store:
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        client.create_bucket(Bucket="nights")
        for folder in ("few", "never", "auto"):
            for path in (scratch / folder).rglob("*"):
                if path.is_file() and "runs" not in path.parts:
                    key = str(path.relative_to(scratch))
                    client.put_object(Bucket="nights", Key=key, Body=path.read_bytes())
        store.add("delay", seconds=_REQUEST_SECONDS)

        def measure(name: str, state: str, that: Path) -> None:
            before = store.asked.total()
            found = look_again(f"s3://nights/{name}", store.endpoint, that, 1)
            rows.append(row("store", state, found, store.asked.total() - before, None))
            print(rows[-1], flush=True)

        measure("few", "7 nights", scratch / "few.parquet")
        measure("never", f"{n_nights} nights, never merged", catalog)
        measure("auto", f"{n_nights} nights, when: auto", catalog)
        before = store.asked.total()
        config = configuration("s3://nights/never", when="auto", endpoint=store.endpoint)
        done = compaction.run(config, Console(quiet=True))
        n_asked = store.asked.total() - before
        measure("never", f"{n_nights} nights, then `compact`", catalog)
    return rows, f"in the store {done.seconds:.0f} s and {n_asked:,} requests"


def main() -> None:
    """Measure, print and write the chapter."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--nights", type=int, default=365)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--output", type=Path, default=Path("BENCHMARKS.md"))
    options.add_argument("--look", nargs="+", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.look:
        uri, catalog_uri, *endpoint = chosen.look
        print(json.dumps(asdict(look(uri, endpoint[0] if endpoint else None, catalog_uri))))
        return
    os.environ.update(AWS_ACCESS_KEY_ID="test-key-id", AWS_SECRET_ACCESS_KEY="test-secret-word")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        catalog = scratch / "catalog.parquet"
        write_catalog(catalog, chosen.nights * _PARTS_A_NIGHT * _TRACKS_A_PART)
        rows, words = on_disk(scratch, catalog, chosen.nights, chosen.repeats)
        store_rows, store_words = in_store(scratch, catalog, chosen.nights)
    report = _REPORT.format(
        date=datetime.date.today(), machine=machine(), n_nights=chosen.nights,
        n_parts=_PARTS_A_NIGHT, n_tracks=_PARTS_A_NIGHT * _TRACKS_A_PART,
        n_rejects=_REJECTS_A_NIGHT, ms=1000 * _REQUEST_SECONDS,
        n_repeats=chosen.repeats, rows="\n".join([*rows, *store_rows]),
        words=words, store_words=store_words,
    )  # fmt: skip
    print(report)
    replace_chapter(chosen.output, report)


_REPORT = """# A year of nights

Made by `make bench` on {date} ({machine}).
Planted, without music: every night {n_tracks} new tracks in {n_parts} parts of scores and as many
of features, and {n_rejects} rejects. Looked at as a run does before it works, in a process of its
own: the tables are opened, a catalog with {n_tracks} new tracks more is compared with `scores/` and
`rejects/`, and `features/` is searched for them. On a disk medians of {n_repeats}; the store is
moto on loopback, every request delayed by {ms:.0f} ms and counted.

| where | what | parts | log entries | open, s | plan, s | features, s | memory, MiB | requests |
|---|---|---|---|---|---|---|---|---|
{rows}

{words}, {store_words}. Memory is what the process grew by. Log entries are all there are, as this
year was planted within an hour: those older than 30 days go when a checkpoint is written.
"""


if __name__ == "__main__":
    main()
