"""A machine that runs out of something: one clear line, what is finished kept, and a next run."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipelines.conftest import table
from tests.pipelines.test_crash import committed, wait_for, written
from tests.pipelines.test_crash import start as start_run

Run = Callable[..., Any]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: file systems of its own")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def config(music: Path, disk: Path) -> Path:
    """Eight short tracks, scored onto the small disk."""
    path = disk.parent / "tag.yaml"
    content = {"catalog": {"uri": str(music)}, "output": {"uri": str(disk / "out")}}
    path.write_text(yaml.safe_dump({**content, "ray": {"num_cpus": 2}}))
    return path


def fill(disk: Path, *, leave_bytes: int = 0) -> Path:
    """Leave so much space and no more."""
    ballast = disk / "ballast"
    free = os.statvfs(disk)
    ballast.write_bytes(b"\0" * max(0, free.f_bavail * free.f_frsize - leave_bytes))
    return ballast


def check_refusal(done: Any, *, exit_code: int, words: str) -> None:
    assert done.returncode == exit_code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("mer-batch: ") for line in done.stderr.splitlines()) == 1


def check_whole(output: Path, n_tracks: int) -> None:
    """One published night, every track once, nothing left over."""
    ids = table(output / "scores")["track_id"].to_pylist()
    assert len(ids) == len(set(ids)) == n_tracks
    (marker,) = output.glob("enriched/run_date=*/_SUCCESS")
    assert json.loads(marker.read_text())["n_rows"] == n_tracks
    assert written(output) == committed(output)


def test_an_output_that_is_full_or_read_only_is_refused_before_work(
    disk: Path, config: Path, run_cli: Run
) -> None:
    ballast = fill(disk)
    check_refusal(run_cli("tag", config), exit_code=2, words="free some space")
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    check_refusal(run_cli("tag", config), exit_code=2, words="Read-only file system")
    assert not list(disk.glob("out/enriched/*"))


def test_a_disk_that_fills_up_meanwhile_costs_what_is_not_finished(
    disk: Path, config: Path, run_cli: Run, long_mp3: bytes
) -> None:
    content = yaml.safe_load(config.read_text())
    n_tracks = 240
    for number in range(n_tracks - 8):
        (Path(content["catalog"]["uri"]) / f"{number:03}.mp3").write_bytes(long_mp3)
    output = disk / "out"
    with start_run(config) as run:
        assert wait_for(lambda: committed(output), run)
        ballast = fill(disk)
        assert run.wait(timeout=240) == 1
    kept = committed(output)
    assert kept
    assert not list(output.glob("enriched/run_date=*"))
    ballast.unlink()
    done = run_cli("tag", config)
    assert done.returncode == 0, done.stderr
    assert kept <= committed(output)
    check_whole(output, n_tracks)


def test_a_temporary_folder_without_space_is_told_of(
    disk: Path, config: Path, music: Path, tmp_path: Path, run_cli: Run
) -> None:
    ballast = fill(disk)
    output = tmp_path / "elsewhere"
    elsewhere = ["tag", config, f"output.uri={output}"]
    environment = {**os.environ, "TMPDIR": str(disk), "RAY_TMPDIR": str(disk)}
    began = time.monotonic()
    done = run_cli(*elsewhere, env=environment)
    check_refusal(done, exit_code=2, words="Ray cannot be started on this machine")
    assert time.monotonic() - began < 200
    ballast.unlink()
    assert run_cli(*elsewhere).returncode == 0
    check_whole(output, 8)


def test_few_file_handles_are_enough_or_told_of(config: Path, tmp_path: Path, run_cli: Run) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    output = tmp_path / "elsewhere"
    done = run_cli("tag", config, f"output.uri={output}", preexec_fn=few)
    if done.returncode != 0:
        check_refusal(done, exit_code=2, words="ulimit -n")
        assert run_cli("tag", config, f"output.uri={output}").returncode == 0
    check_whole(output, 8)
