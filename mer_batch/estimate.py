"""How long a night would take, and how much of a cluster: by the last runs, else by benchmarks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mer_batch.errors import StorageError
from mer_batch.storage import Location, Storage

# Tracks a second and CPU, measured (BENCHMARKS.md): 30-s clips, from MP3 and from features.
_DECODED = 58.0
_RESCORED = 1200.0
# What a run takes besides its tracks [s]: to start, and to read, compare and publish a catalog.
_START_SECONDS = 5.0
_RAY_SECONDS = 4.0
_SECONDS_PER_MILLION = 5.0

_LATEST = 20
_ENOUGH_RUNS = 3
# What so few tracks take tells of the workers' start, not of their rate.
_ENOUGH_TRACKS = 100


@dataclass(frozen=True)
class Rate:
    """Tracks a second and CPU, and where that is known from."""

    tracks_per_second: float
    source: str


@dataclass(frozen=True)
class Estimate:
    """What a night is thought to take.

    Attributes
    ----------
    n_cpus : int
    decoding, rescoring : Rate
    seconds : float
        From the command to the published night [s].
    cpu_hours : float
        All CPUs, for as long as the run goes.
    """

    n_cpus: int
    decoding: Rate
    rescoring: Rate
    seconds: float
    cpu_hours: float


def estimate(
    manifests: Iterable[dict[str, Any]],
    *,
    n_tracks: int,
    n_to_decode: int,
    n_to_rescore: int,
    n_cpus: int | None,
) -> Estimate:
    """Estimate a night.

    Parameters
    ----------
    manifests : iterable of dict
        Of earlier runs, the latest first.
    n_tracks : int
        Rows of the catalog.
    n_to_decode, n_to_rescore : int
    n_cpus : int, optional
        As many as the last run had, or as this machine has, by default.
    """
    runs = list(manifests)
    known = (run["n_cpus"] for run in runs if run.get("n_cpus"))
    n_cpus = n_cpus or next(known, None) or os.cpu_count() or 1
    decoding = _rate(map(_decoded, runs), _DECODED, "BENCHMARKS.md, 30-s clips")
    rescoring = _rate(map(_rescored, runs), _RESCORED, "BENCHMARKS.md, 30-s clips")
    seconds = _START_SECONDS + _SECONDS_PER_MILLION * n_tracks / 1e6
    if n_to_decode:
        seconds += _RAY_SECONDS
    seconds += n_to_decode / decoding.tracks_per_second / n_cpus
    seconds += n_to_rescore / rescoring.tracks_per_second / n_cpus
    return Estimate(n_cpus, decoding, rescoring, seconds, seconds * n_cpus / 3600)


def _decoded(run: dict[str, Any]) -> tuple[int, float]:
    """Tracks that a run has decoded, and the CPU seconds of that."""
    n_tracks = run.get("n_scored", 0) + sum(run.get("n_rejected", {}).values())
    seconds = run.get("work_seconds", 0.0) - run.get("rescore_seconds", 0.0)
    return n_tracks - run.get("n_rescored", 0), seconds * run.get("n_cpus", 0)


def _rescored(run: dict[str, Any]) -> tuple[int, float]:
    return run.get("n_rescored", 0), run.get("rescore_seconds", 0.0) * run.get("n_cpus", 0)


def _rate(runs: Iterable[tuple[int, float]], default: float, source: str) -> Rate:
    telling = [(n, seconds) for n, seconds in runs if n >= _ENOUGH_TRACKS and seconds > 0]
    if not telling:
        return Rate(default, source)
    n_tracks, seconds = map(sum, zip(*telling[:_ENOUGH_RUNS], strict=True))
    n_runs = len(telling[:_ENOUGH_RUNS])
    last = "the last run" if n_runs == 1 else f"the last {n_runs} runs"
    return Rate(n_tracks / seconds, f"{last}, {n_tracks:,} tracks")


def latest_manifests(storage: Storage, output: Location) -> list[dict[str, Any]]:
    """What the latest runs on an output say of themselves, the latest first.

    Raises
    ------
    StorageError
    """
    runs = output.child("runs")
    if not storage.is_folder(runs):
        return []
    found = [f for f, _, _ in storage.list_files(runs) if f.path.endswith("/manifest.json")]
    found.sort(key=lambda manifest: manifest.path, reverse=True)
    return [content for f in found[:_LATEST] if (content := _content(storage, f))]


def _content(storage: Storage, manifest: Location) -> dict[str, Any] | None:
    try:
        content = json.loads(storage.read(manifest))
    except (StorageError, ValueError):  # of a run that is just ending, or of somebody else
        return None
    return content if isinstance(content, dict) else None
