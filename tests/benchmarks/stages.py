"""Where our kernel spends a track's CPU: its stages timed where they are called."""

from __future__ import annotations

import functools
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from tests.benchmarks.jobs import N_CORES, ONE_THREAD

_TRACKS_A_CORE = 150
_WARM_UP = 5


class _Stopwatch:
    """CPU of the innermost function that is running, by stage."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._last = 0.0

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The same function, its own CPU counted for a stage."""

        @functools.wraps(function)
        def run(*given: Any, **named: Any) -> Any:
            self._book()
            self._running.append(stage)
            try:
                return function(*given, **named)
            finally:
                self._book()
                self._running.pop()

        return run

    def _book(self) -> None:
        now = time.thread_time()
        if self._running:
            self.seconds[self._running[-1]] += now - self._last
        self._last = now


def kernel_stages(paths: list[str]) -> dict[str, float]:
    """CPU of each stage [ms a track], in one process a core at a time, as jobs run it."""
    shares = [paths[core::N_CORES][:_TRACKS_A_CORE] for core in range(N_CORES)]
    os.environ.update(ONE_THREAD)  # of the processes to come
    with multiprocessing.get_context("spawn").Pool(N_CORES) as pool:
        found = pool.map(_stages, shares, chunksize=1)
    n_tracks = sum(len(share) for share in shares)
    return {stage: 1000 * sum(seconds[stage] for seconds in found) / n_tracks for stage in found[0]}


def _stages(paths: list[str]) -> dict[str, float]:
    from mer_batch import extract
    from mer_batch.audio import decode
    from mer_batch.audio.mel import MelStream
    from mer_batch.audio.native_statistics import NativeStatistics
    from mer_batch.feature_sets import FeatureSet
    from mer_batch.score import Scorer
    from tests.benchmarks.engines.taggers import tagger

    watch = _Stopwatch()
    stages: tuple[tuple[Any, str, str], ...] = (
        (decode._ForwardFile, "__init__", "decoding (libmpg123 through soundfile)"),
        (decode._ForwardFile, "read", "decoding (libmpg123 through soundfile)"),
        (decode.Mpg123File, "__init__", "decoding (libmpg123)"),
        (decode.Mpg123File, "read", "decoding (libmpg123)"),
        (decode, "inspect_mpeg", "walking the headers"),
        (extract, "decode_blocks", "mix to mono, lowest and highest sample"),
        (MelStream, "feed", "mel spectrogram"),
        (MelStream, "finish", "mel spectrogram"),
        (FeatureSet, "segments", "decibels, segments"),
        (NativeStatistics, "__call__", "statistics"),
        (Scorer, "score", "model"),
    )
    for owner, name, stage in stages:
        setattr(owner, name, watch.timed(getattr(owner, name), stage))
    tag = watch.timed(tagger("kernel"), "reading the file, and the rest")
    for path in paths[:_WARM_UP]:
        tag(path)
    watch.seconds.clear()
    for path in paths:
        tag(path)
    return dict(watch.seconds)
