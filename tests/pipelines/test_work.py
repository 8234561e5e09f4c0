"""What a run's work takes of the machine."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from mer_batch.block import BlockReport, Job
from mer_batch.budget import Budget
from mer_batch.catalog import read_catalog
from mer_batch.config import CatalogConfig, OutputConfig, StorageConfig, TagConfig
from mer_batch.limits import ChildLimits
from mer_batch.pipelines.session import opened
from mer_batch.pipelines.work import Work, _n_cpus
from mer_batch.schema import Identity
from mer_batch.storage import Storage
from mer_batch.tag import Scores
from tests.big_tracks import block_of, worker_in


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors cannot be bound here")
def test_only_the_processors_that_are_ours_count() -> None:
    ours = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(ours)})
        assert _n_cpus() == 1
    finally:
        os.sched_setaffinity(0, ours)
    assert _n_cpus() == len(ours)


def confined(number: int, block: pa.Table) -> BlockReport:
    """What a worker reports: from the second block on its system cannot confine a decoder."""
    return BlockReport(None, 0, 0, len(block), [], [], [], is_confined=number == 0)


@pytest.mark.parametrize("n_blocks, n_unconfined", [(1, 0), (3, 2)])
def test_a_run_says_that_its_decoders_are_not_confined(
    music: Path, tmp_path: Path, n_blocks: int, n_unconfined: int
) -> None:
    config = TagConfig(
        catalog=CatalogConfig(uri=str(music)), output=OutputConfig(uri=str(tmp_path / "out"))
    )
    said, storage = io.StringIO(), Storage(StorageConfig())
    console = Console(file=said, width=200)
    catalog = read_catalog(config.catalog, storage, taken_names=[])
    with opened(config, console, storage, catalog, product="scores") as session:
        job = Job(
            storage, session.output, session.run.run_id, Identity("f", "m", "e"),
            Scores(b"", b"", "m"), ChildLimits(),
        )  # fmt: skip
        block = pa.table({"track_id": ["a"]})
        with Work(session, job, Budget(n_blocks, 0.1)) as work:
            work.in_this_process(confined, [block] * n_blocks, n_blocks, doing="testing")
    (folder,) = (tmp_path / "out" / "runs").glob("[0-9]*")
    assert json.loads((folder / "manifest.json").read_text())["n_unconfined_blocks"] == n_unconfined
    line = f"decoders were not confined on {n_unconfined} blocks: their system has no seccomp"
    for told in (said.getvalue(), (folder / "log").read_text()):
        assert told.count("not confined") == told.count(line) == (n_unconfined > 0)


@pytest.mark.skipif(sys.platform != "linux", reason="a means that only Linux has")
def test_a_worker_reports_that_its_decoder_is_confined(music: Path, tmp_path: Path) -> None:
    worker = worker_in(tmp_path / "out")
    try:
        assert worker.work(0, block_of(sorted(music.iterdir())[:1])).is_confined is True
    finally:
        worker.close()
