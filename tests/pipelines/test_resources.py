"""A machine that runs out of something: one clear line, what is finished kept, and a next run."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.pipelines.conftest import table
from tests.pipelines.outputs import committed, wait_for, written

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


def enlarge(config: Path, long_mp3: bytes) -> int:
    """Add tracks that take some seconds; returns how many there are now."""
    folder = Path(yaml.safe_load(config.read_text())["catalog"]["uri"])
    for number in range(152):
        (folder / f"{number:03}.mp3").write_bytes(long_mp3)
    return 160


def start(config: Path) -> subprocess.Popen[Any]:
    return subprocess.Popen(
        [sys.executable, "-m", "mer_batch", "tag", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


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
    n_tracks = enlarge(config, long_mp3)
    output = disk / "out"
    with start(config) as run:
        assert wait_for(lambda: committed(output), run)
        ballast = fill(disk)
        _, said = run.communicate(timeout=240)
    assert run.returncode == 1, said
    (line,) = [line for line in said.splitlines() if line.startswith("mer-batch: ")]
    assert str(output) in line
    assert "free some space" in line or "No space left" in line
    assert "Traceback" not in said
    kept = committed(output)
    assert kept
    assert not list(output.glob("enriched/run_date=*"))
    ballast.unlink()
    done = run_cli("tag", config)
    assert done.returncode == 0, done.stderr
    assert kept <= committed(output)
    check_whole(output, n_tracks)


def test_asked_to_stop_while_decoders_hang_it_gives_them_up(
    disk: Path, config: Path, run_cli: Run, long_mp3: bytes
) -> None:
    n_tracks = enlarge(config, long_mp3)
    output = disk / "out"
    with start(config) as run:
        assert wait_for(lambda: committed(output), run)
        hanging = [
            process
            for process in psutil.Process(run.pid).children(recursive=True)
            if "mer_batch.child" in process.cmdline()
        ]
        for process in hanging:
            process.suspend()
        run.terminate()
        # 30 s are what a pre-empted machine is given; this one may be busy.
        _, said = run.communicate(timeout=90)
    assert run.returncode == 130, said
    assert said == "mer-batch: stopped by SIGTERM; finished work is committed\n"
    assert hanging
    assert not psutil.wait_procs(hanging, timeout=20)[1], "decoders outlived the run"
    kept = committed(output)
    assert run_cli("tag", config).returncode == 0
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
