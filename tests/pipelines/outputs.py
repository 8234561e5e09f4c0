"""What tests of whole processes look at: their families, their parts, and the end."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset as pads
from deltalake import DeltaTable

from tests.chaos.crash import check_gone
from tests.pipelines.conftest import table

#: Tracks of the catalogs that `check_exactly_once` knows; a fifth of them is broken.
N_TRACKS = 400


def kill(driver: subprocess.Popen[bytes]) -> None:
    """Kill the driver; its workers and their decoders must die with it."""
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    check_gone(family)


def wait_for(what: Callable[[], object], driver: subprocess.Popen[bytes]) -> bool:
    """Wait until something holds; False where the driver ended before."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if what():
            return True
        if driver.poll() is not None:
            return False
        time.sleep(0.005)
    raise AssertionError("nothing happened for two minutes")


def written(output: Path) -> set[str]:
    return {str(path) for path in output.glob("scores/2*/part-*.parquet")}


def committed(output: Path) -> set[str]:
    if not (output / "scores" / "_delta_log" / "00000000000000000000.json").exists():
        return set()
    return set(DeltaTable(str(output / "scores")).file_uris())


def check_exactly_once(output: Path) -> None:
    """Every id in exactly one outcome, no part that no commit names, one whole night."""
    scores, rejects = table(output / "scores"), table(output / "rejects")
    scored, rejected = scores["track_id"].to_pylist(), rejects["track_id"].to_pylist()
    assert len(scored) == len(set(scored)) == N_TRACKS * 4 // 5
    assert len(rejected) == len(set(rejected)) == N_TRACKS // 5
    assert sorted(scored + rejected) == [f"{n:03}.mp3" for n in range(N_TRACKS)]
    assert len(set(scores["valence"].to_pylist())) == 1, "the same audio, the same score"
    assert written(output) == committed(output)
    (night,) = [p for p in (output / "enriched").iterdir() if p.name.startswith("run_date=")]
    assert [p.name for p in (output / "enriched").iterdir()] == [night.name]
    marker = json.loads((night / "_SUCCESS").read_text())
    enriched = pads.dataset(night, format="parquet").to_table()
    assert enriched.num_rows == marker["n_rows"] == N_TRACKS
    assert sorted(enriched["track_id"].to_pylist()) == sorted(scored + rejected)
    statuses = pa.table({"s": enriched["tag_status"]}).group_by("s").aggregate([("s", "count")])
    assert {r["s"]: r["s_count"] for r in statuses.to_pylist()}["scored"] == len(scored)
