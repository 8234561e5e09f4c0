"""Measure the job beside bare decoding: the same files, the same cores, the same run.

    python -m tests.benchmarks.tagging [--tracks 2000] [--repeats 3]

Writes its chapter of BENCHMARKS.md. Figures are medians of repeats that take turns, so that a
machine whose speed drifts slows all of them alike. What counts is the ratio to decoding.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import soundfile
import yaml

from mer_batch.compose import MOODS, compose, encode_mp3
from tests.benchmarks.report import replace_chapter

N_CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class Figure:
    """One timed repeat: wall-clock and CPU seconds, largest memory of the process family."""

    seconds: float
    work_seconds: float
    cpu_seconds: float
    peak_bytes: int


def decode_only(paths: list[str]) -> float:
    """Seconds of audio decoded into one reused buffer: the floor for any job of this kind."""
    buffer = np.empty((65_536, 2), np.float32)
    decoded = 0.0
    for path in paths:
        with soundfile.SoundFile(io.BytesIO(Path(path).read_bytes())) as sound:
            block = buffer.reshape(-1)[: 65_536 * sound.channels].reshape(-1, sound.channels)
            n_frames = 0
            while n := len(sound.read(out=block)):
                n_frames += n
            decoded += n_frames / sound.samplerate
    return decoded


def kernel_only(paths: list[str]) -> float:
    """The same with the mix to mono, the mel spectrogram and the built-in model."""
    import torch

    from mer_batch.audio.decode import AudioLimits
    from mer_batch.checkpoint import builtin_checkpoint
    from mer_batch.extract import Extractor
    from mer_batch.score import Scorer

    torch.set_num_threads(1)
    checkpoint = builtin_checkpoint()
    extractor = Extractor(checkpoint.feature_set, AudioLimits())
    scorer = Scorer(checkpoint.build())
    seconds = 0.0
    for path in paths:
        track = extractor.extract(Path(path).read_bytes())
        scorer.score(track.segments)
        seconds += track.duration_seconds
    return seconds


def on_all_cores(work: Callable[[list[str]], float], paths: list[str]) -> Figure:
    """Run a plain function on all cores, one process each, without any framework."""
    context = multiprocessing.get_context("spawn")
    began, cpu = time.monotonic(), _children_cpu()
    with context.Pool(N_CORES) as pool:
        pool.map(work, [paths[core::N_CORES][:1] for core in range(N_CORES)])  # start-up apart
        ready = time.monotonic()
        pool.map(work, [paths[core::N_CORES] for core in range(N_CORES)], chunksize=1)
        worked = time.monotonic() - ready
        pool.close()
        pool.join()
    return Figure(time.monotonic() - began, worked, _children_cpu() - cpu, 0)


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system


def start_job(command: str, folder: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start ``mer-batch COMMAND`` on a folder of audio, as a user would."""
    config = output.with_suffix(".yaml")
    config.write_text(
        yaml.safe_dump({"catalog": {"uri": str(folder)}, "output": {"uri": str(output)}})
    )
    return subprocess.Popen(
        [sys.executable, "-m", "mer_batch", command, str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def tag(folder: Path, scratch: Path) -> Figure:
    """``mer-batch tag`` as a user runs it, from the start of the process to the published night."""
    output = scratch / "out"
    shutil.rmtree(output, ignore_errors=True)
    began = time.monotonic()
    driver = start_job("tag", folder, output)
    watched, cpu, peak = psutil.Process(driver.pid), {}, 0
    while driver.poll() is None:
        try:
            family = [watched, *watched.children(recursive=True)]
            memory = 0
            for process in family:
                try:
                    times = process.cpu_times()
                    cpu[process.pid] = times.user + times.system
                    memory += process.memory_info().rss
                except psutil.Error:
                    continue
            peak = max(peak, memory)
        except psutil.Error:
            pass
        time.sleep(0.5)
    seconds = time.monotonic() - began
    assert driver.returncode == 0, "mer-batch tag failed"
    (manifest,) = output.glob("runs/2*/manifest.json")
    content = json.loads(manifest.read_text())
    assert content["totals"]["n_scored"] == content["n_pending"]
    return Figure(seconds, content["work_seconds"], sum(cpu.values()), peak)


def machine() -> str:
    """What the figures were measured on."""
    packages = ("ray", "torch", "soundfile", "pyarrow", "deltalake", "numpy")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{platform.machine()}, Python {platform.python_version()}, {versions}"


def kinds_of_files(scratch: Path) -> dict[str, list[Path]]:
    """Files to measure with: real music where there is some, and composed stereo pieces."""
    kinds: dict[str, list[Path]] = {}
    data = os.environ.get("MER_BATCH_DATA")
    if data:
        for folder, described in (
            ("musifeast17", "30-s clips of 17 genres, mono, 80 kbit/s"),
            ("soundtracks", "film music, 10 to 37 s, stereo, 192 kbit/s"),
        ):
            kinds[described] = sorted(Path(data, folder, "audio").glob("*.mp3"))
    composed = []
    for mood in MOODS:
        for seed in range(6):
            left, right = (compose(mood, 2 * seed + side, seconds=30) for side in (0, 1))
            path = scratch / f"{mood}-{seed}.mp3"
            path.write_bytes(encode_mp3(np.stack([left, right], axis=1), quality=0.6))
            composed.append(path)
    kinds["composed 30-s pieces, stereo"] = composed
    return {described: clips for described, clips in kinds.items() if clips}


def spread(clips: list[Path], folder: Path, n_tracks: int) -> list[str]:
    """The same clips again and again under distinct names."""
    folder.mkdir()
    for number in range(n_tracks):
        (folder / f"{number:06}.mp3").symlink_to(clips[number % len(clips)])
    return [str(path) for path in sorted(folder.iterdir())]


def measure(clips: list[Path], folder: Path, n_tracks: int, n_repeats: int) -> list[str]:
    """Rows of the table for one kind of files."""
    paths = spread(clips, folder, n_tracks)
    sample = paths[: len(clips)]
    audio_seconds = decode_only(sample) / len(sample) * n_tracks
    jobs: dict[str, Callable[[], Figure]] = {
        "decode only": lambda: on_all_cores(decode_only, paths),
        "our kernel": lambda: on_all_cores(kernel_only, paths),
        "mer-batch tag": lambda: tag(folder, folder.parent),
    }
    figures: dict[str, list[Figure]] = {job: [] for job in jobs}
    for repeat in range(n_repeats):
        for job, run in jobs.items():
            figures[job].append(run())
            print(f"{repeat + 1}/{n_repeats} {job}: {figures[job][-1]}", flush=True)
    return describe(figures, n_tracks, audio_seconds)


def describe(figures: dict[str, list[Figure]], n_tracks: int, audio_seconds: float) -> list[str]:
    """Medians, and every rate as a share of decoding in the same repeat."""
    floor = figures["decode only"]
    timed = [(job, job, "work_seconds") for job in figures]
    timed.append(("mer-batch tag, whole process", "mer-batch tag", "seconds"))
    rows = []
    for name, job, attribute in timed:
        measured = figures[job]
        seconds = [getattr(figure, attribute) for figure in measured]
        ratios = [base.work_seconds / s for base, s in zip(floor, seconds, strict=True)]
        middle = statistics.median(seconds)
        cpu = statistics.median(figure.cpu_seconds for figure in measured)
        peak = max(figure.peak_bytes for figure in measured)
        memory = f"{peak / 2**30:.1f} GiB" if peak else ""
        rows.append(
            f"| {name} | {n_tracks / middle:.1f} | {audio_seconds / middle:,.0f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
            f"{1000 * cpu / n_tracks:.0f} | {memory} |"
        )
    return rows


def main() -> None:
    """Measure, print and write BENCHMARKS.md."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tracks", type=int, default=2000)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--output", type=Path, default=Path("BENCHMARKS.md"))
    chosen = options.parse_args()
    sections = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for number, (described, clips) in enumerate(kinds_of_files(scratch).items()):
            rows = measure(clips, scratch / f"music-{number}", chosen.tracks, chosen.repeats)
            sections.append(f"## {described}\n\n{_HEADINGS}\n" + "\n".join(rows))
    report = _REPORT.format(
        date=datetime.date.today(),
        n_tracks=chosen.tracks,
        n_repeats=chosen.repeats,
        n_cores=N_CORES,
        machine=machine(),
        sections="\n\n".join(sections),
    )
    print(report)
    replace_chapter(chosen.output, report)


_HEADINGS = """| job | tracks/s | seconds of audio/s | of decoding | CPU ms a track | peak memory |
|---|---|---|---|---|---|"""

_REPORT = """# Benchmarks

Made by `make bench` on {date}: {n_tracks:,} files (the clips under distinct names, all at 44.1 kHz)
on {n_cores} cores ({machine}). Medians of {n_repeats} repeats in which the jobs take
turns; the machine was shared, so the share of decoding, taken within each repeat, is what counts
(median, and from least to most).

{sections}

"Decode only" reads each file with soundfile into one reused buffer, one process a core, and
throws the samples away: no job that decodes with it can be faster. "Our kernel" adds the mix to
mono, the mel spectrogram and the built-in model, in plain processes. `mer-batch tag` is timed from
when Ray is up, the start of the workers and their decoders included, to the last commit; as a whole
process, from the shell's command to its end, with the night published. Its memory is the sum over
the driver, Ray and the workers, pages that they share counted once for each.
"""


if __name__ == "__main__":
    main()
