"""The standard library's pool: one process a core, a few tracks at a time, Parquet at the end.

Says how long the work took from when every process was ready: what is left without start-up.
"""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.engines.taggers import Tagger, arguments, tagger

_TRACKS_AT_A_TIME = 8
_READY_SECONDS = 300  # a process that fails to get ready is started again and again

_tagger: Tagger  # of a process of the pool


def get_ready(name: str, first: str, ready: threading.Barrier) -> None:
    """Make the tagger, and have its libraries do once what they do the first time."""
    global _tagger
    _tagger = tagger(name)
    _tagger(first)
    ready.wait(_READY_SECONDS)


def tag(path: str) -> tuple[float, float]:
    """One track."""
    return _tagger(path)


def main() -> None:
    """Tag a list of tracks."""
    chosen = arguments()
    tracks = pq.read_table(chosen.tracks)
    paths = tracks["path"].to_pylist()
    ready = multiprocessing.Barrier(chosen.n_cores + 1)
    with multiprocessing.Pool(chosen.n_cores, get_ready, (chosen.tagger, paths[0], ready)) as pool:
        ready.wait(_READY_SECONDS)
        began = time.monotonic()
        scores = pool.map(tag, paths, chunksize=_TRACKS_AT_A_TIME)
        worked = time.monotonic() - began
    valence, arousal = (pa.array(column, pa.float64()) for column in zip(*scores, strict=True))
    output = Path(chosen.output)
    output.mkdir()
    pq.write_table(
        pa.table({"track_id": tracks["track_id"], "valence": valence, "arousal": arousal}),
        output / "scores.parquet",
    )
    print(json.dumps({"work_seconds": worked}))


if __name__ == "__main__":
    main()
