"""Kill the driver with -9 at seeded moments, run again: every track exactly once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import DeltaTable

from tests.pipelines.conftest import table

N_TRACKS = 240


@pytest.fixture
def config(tmp_path: Path, long_mp3: bytes) -> Path:
    """A catalog that takes some seconds of work; a fifth of it is broken."""
    folder = tmp_path / "music"
    folder.mkdir()
    (folder / "one.mp3").write_bytes(long_mp3)
    for number in range(N_TRACKS):
        name = folder / f"{number:03}.mp3"
        if number % 5:
            os.link(folder / "one.mp3", name)
        else:
            name.write_bytes(b"broken" * number)
    (folder / "one.mp3").unlink()
    path = tmp_path / "tag.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "catalog": {"uri": str(folder)},
                "output": {"uri": str(tmp_path / "out")},
                "max_reject_rate": 0.5,
                "ray": {"num_cpus": 2},
            }
        )
    )
    return path


def start(config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "mer_batch", "tag", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill(driver: subprocess.Popen[bytes]) -> None:
    """Kill the driver; its workers and their decoders must die with it."""
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    _, left = psutil.wait_procs(family, timeout=3)
    _, busy = psutil.wait_procs([p for p in left if not is_idle_agent(p)], timeout=20)
    # Asked again: one that was just starting has its name only now.
    assert not [p for p in busy if not is_idle_agent(p)], "workers outlived the driver"
    for agent in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            agent.kill()


def is_idle_agent(process: psutil.Process) -> bool:
    """Ray's agents do no work of ours; they end by themselves too, but take a minute."""
    try:
        return "Agent" in process.name()
    except psutil.NoSuchProcess:
        return False


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


def run_to_the_end(config: Path) -> None:
    again = subprocess.run(
        [sys.executable, "-m", "mer_batch", "tag", str(config)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert again.returncode == 0, again.stderr


def test_killed_between_a_parts_write_and_its_commit(config: Path) -> None:
    output = config.parent / "out"
    driver = start(config)
    assert wait_for(lambda: written(output) - committed(output), driver)
    kill(driver)
    orphans = written(output) - committed(output)
    assert orphans, "the moment was missed"
    run_to_the_end(config)
    assert not orphans & written(output), "what no commit named is swept"
    check_exactly_once(output)


def test_killed_after_a_commit(config: Path) -> None:
    output = config.parent / "out"
    driver = start(config)
    assert wait_for(lambda: committed(output), driver)
    kill(driver)
    kept = committed(output)
    assert kept
    run_to_the_end(config)
    assert kept <= committed(output), "committed work is not done again"
    check_exactly_once(output)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_twice_at_a_seeded_moment(config: Path, seed: int) -> None:
    output = config.parent / "out"
    moments = random.Random(seed)
    for _ in range(2):
        driver = start(config)
        begun = time.monotonic()
        moment = moments.uniform(0.5, 14)
        wait_for(lambda begun=begun, moment=moment: time.monotonic() - begun > moment, driver)
        if driver.poll() is None:
            kill(driver)
    run_to_the_end(config)
    check_exactly_once(output)


def test_killed_while_publishing(config: Path) -> None:
    output = config.parent / "out"
    # A heavy column makes the publishing long enough to be hit.
    names = [f"{number:03}.mp3" for number in range(N_TRACKS)]
    catalog = {
        "track_id": names,
        "audio_uri": [f"music/{name}" for name in names],
        "artwork": [os.urandom(200_000) for _ in names],
    }
    pq.write_table(pa.table(catalog), config.parent / "catalog.parquet")
    content = yaml.safe_load(config.read_text())
    content["catalog"]["uri"] = str(config.parent / "catalog.parquet")
    config.write_text(yaml.safe_dump(content))

    driver = start(config)
    assert wait_for(lambda: list(output.glob("enriched/_unfinished-*/*/part-*")), driver)
    kill(driver)
    assert not list(output.glob("enriched/run_date=*")), "a reader sees no part of the night"
    run_to_the_end(config)
    check_exactly_once(output)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_commits_what_is_finished(config: Path, number: signal.Signals) -> None:
    output = config.parent / "out"
    driver = start(config)
    assert wait_for(lambda: written(output), driver)
    driver.send_signal(number)
    assert driver.wait(timeout=30) == 130
    finished = table(output / "scores")["track_id"].to_pylist()
    assert 0 < len(finished) < N_TRACKS * 4 // 5
    assert not list(output.glob("enriched/run_date=*"))
    (manifest,) = output.glob("runs/2*/manifest.json")
    assert json.loads(manifest.read_text())["exit_code"] == 130
    run_to_the_end(config)
    check_exactly_once(output)


def test_of_two_runs_at_once_one_works(config: Path) -> None:
    output = config.parent / "out"
    driver = start(config)
    assert wait_for((output / "runs" / "_lease.json").exists, driver)
    began = time.monotonic()
    second = subprocess.run(
        [sys.executable, "-m", "mer_batch", "tag", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 4
    assert f"process {driver.pid}" in second.stderr
    assert time.monotonic() - began < 30
    assert driver.wait(timeout=120) == 0
    check_exactly_once(output)
