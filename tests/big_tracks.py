"""A worker of its own that does a block of large tracks: what does it hold?

``python -m tests.big_tracks FOLDER`` prints the memory it has taken above its start, the outcomes,
and the largest file, as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa

from mer_batch.block import BlockWorker, Job
from mer_batch.checkpoint import builtin_checkpoint
from mer_batch.config import StorageConfig
from mer_batch.limits import ChildLimits
from mer_batch.schema import Identity
from mer_batch.storage import Storage, parse_uri
from mer_batch.tag import Scores


def block_of(files: list[Path]) -> pa.Table:
    """Rows as a plan has them."""
    return pa.table(
        {
            "track_id": [file.name for file in files],
            "audio_uri": [str(file) for file in files],
            "audio_version": pa.nulls(len(files), pa.string()),
            "expected_seconds": pa.nulls(len(files), pa.float64()),
            "attempts": pa.array([0] * len(files), pa.int32()),
            "first_run_id": pa.nulls(len(files), pa.string()),
            "first_seen": pa.nulls(len(files), pa.timestamp("us", tz="UTC")),
        }
    )


def worker_in(output: Path) -> BlockWorker:
    """A worker that scores with the built-in model."""
    checkpoint = builtin_checkpoint()
    product = Scores(checkpoint.card_json, checkpoint.weights, "model")
    identity = Identity.of("features", "model", {})
    storage = Storage(StorageConfig())
    return BlockWorker(
        Job(storage, parse_uri(str(output)), "run", identity, product, ChildLimits())
    )


class PeakMemory:
    """Watches what this process holds [bytes], without what it maps of files."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._is_over.is_set():
            memory = process.memory_info()
            self.peak_bytes = max(self.peak_bytes, memory.rss - memory.shared)
            time.sleep(0.002)


def main() -> None:
    folder = Path(sys.argv[1])
    files = sorted(folder.glob("*.wav"))
    worker = worker_in(folder / "out")
    memory = psutil.Process().memory_info()
    try:
        with PeakMemory() as watch:
            report = worker.work(0, block_of(files))
    finally:
        worker.close()
    found = {
        "grown_bytes": watch.peak_bytes - (memory.rss - memory.shared),
        "n_done": report.n_done,
        "reasons": [row["reason"] for row in report.rejects],
        "largest_bytes": max(file.stat().st_size for file in files),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
