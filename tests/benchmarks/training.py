"""Measure training on Ray Train beside the plain loop: the same clips, the same cores, one run.

    python -m tests.benchmarks.training [--clips 384] [--epochs 3] [--repeats 3]

Writes its section of BENCHMARKS.md, between two marks. Figures are medians over repeats that take
turns; what counts is the ratio to the plain loop within a repeat.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import re
import statistics
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from mer_batch.batches import ShardBatches, find_spans
from mer_batch.config import RayConfig, StorageConfig, TrainingConfig, WorkersConfig
from mer_batch.feature_sets import feature_set
from mer_batch.feature_table import features_schema
from mer_batch.fit import FitSettings, fit
from mer_batch.models import build_model
from mer_batch.schema import utc_now
from mer_batch.storage import Storage
from mer_batch.train import TrainingJob, train

N_CORES = os.cpu_count() or 1
FEATURES = feature_set("log_mel")
BATCH_SIZE = 32
Labels = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Speed:
    """Clips a second by the clock, and seconds of CPU a clip, which stand a shared machine."""

    clips_per_second: float
    cpu_seconds: float


def speed(marks: list[tuple[float, float]], n_clips: int) -> Speed:
    """Between the first and the last mark of (clock, CPU)."""
    (began, cpu_before), (ended, cpu_after) = marks[0], marks[-1]
    return Speed(n_clips / (ended - began), (cpu_after - cpu_before) / n_clips)


def family_cpu() -> float:
    """CPU seconds of this process and all below it that live: Ray's servers and workers too."""
    seconds = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def write_clips(folder: Path, n_clips: int) -> tuple[list[str], Labels]:
    """Parts of 30-s clips as extraction writes them: noise takes as long as music."""
    rng = np.random.default_rng(0)
    schema = features_schema(pa.string(), FEATURES)
    width = FEATURES.mel.n_mels * FEATURES.segment_frames
    labels: Labels = {}
    parts = []
    for begin in range(0, n_clips, 128):
        ids = [f"clip {number}" for number in range(begin, min(begin + 128, n_clips))]
        labels |= {name: tuple(rng.uniform(-1, 1, 2)) for name in ids}  # type: ignore[misc]
        values = (rng.standard_normal(len(ids) * width, np.float32) * 12 - 40).astype(np.float16)
        columns = {
            "track_id": ids, "audio_version": ["1"] * len(ids),
            "features_id": [FEATURES.features_id] * len(ids), "segment": [0] * len(ids),
            "n_segments": [1] * len(ids), "n_frames": [FEATURES.segment_frames] * len(ids),
            "extracted_at": [utc_now()] * len(ids),
        }  # fmt: skip
        mel = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
        path = folder / f"part-{begin:06}.parquet"
        arrays = [
            pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(len(ids), f.type)
            for f in schema
        ]
        arrays[schema.get_field_index("mel")] = mel.cast(schema.field("mel").type)
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, row_group_size=64)
        parts.append(str(path))
    return parts, labels


def on_this_machine(
    parts: list[str], labels: Labels, n_workers: int, n_epochs: int, folder: Path
) -> Speed:
    """Speed of whole epochs after the first, which starts the workers."""
    from mer_batch.pipelines.ray_training import train_network

    marks: list[tuple[float, float]] = []
    if n_workers == 0:
        torch.set_num_threads(N_CORES)
    train_network(
        parts=parts, feature_set=FEATURES, labels=labels, validation_labels={},
        model_name="log_mel_cnn", model_parameters={},
        settings=TrainingConfig(epochs=1 + n_epochs, batch_size=BATCH_SIZE, standardise=False),
        workers=WorkersConfig(n_workers=n_workers), seed=0, storage_folder=folder,
        say=lambda line: marks.append((time.monotonic(), family_cpu())),
    )  # fmt: skip
    return speed(marks, n_epochs * len(labels))


def in_processes(parts: list[str], labels: Labels, n_epochs: int, folder: Path) -> Speed:
    """The same loop in one plain process a core, gradients averaged by gloo, without Ray."""
    context = torch.multiprocessing.get_context("spawn")
    folder.mkdir()
    told = context.SimpleQueue()
    arguments = (parts, labels, n_epochs, f"file://{folder}/meeting", told)
    processes = [context.Process(target=one_process, args=(r, *arguments)) for r in range(N_CORES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0, "a plain process failed"
    speeds: list[Speed] = [told.get() for _ in processes]
    return Speed(speeds[0].clips_per_second, sum(speed.cpu_seconds for speed in speeds))


def one_process(
    rank: int, parts: list[str], labels: Labels, n_epochs: int, meeting: str, told: Any
) -> None:
    """One of :func:`in_processes`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=N_CORES)
    storage = Storage(StorageConfig())
    spans = find_spans(parts, labels, FEATURES.features_id, storage)
    settings = TrainingConfig(epochs=1 + n_epochs, batch_size=BATCH_SIZE, standardise=False)
    job = TrainingJob(
        parts, FEATURES, labels, {}, spans, [], "log_mel_cnn", {}, settings, 0, storage
    )
    marks: list[tuple[float, float]] = []
    train(
        job, device=torch.device("cpu"), rank=rank, world_size=N_CORES,
        on_epoch=lambda *_: marks.append((time.monotonic(), time.process_time())),
        process_group=dist.group.WORLD,
    )  # fmt: skip
    told.put(speed(marks, n_epochs * len(labels)))
    dist.destroy_process_group()


def on_gpu(parts: list[str], labels: Labels, n_epochs: int, *, mixed: bool) -> float:
    """Clips a second of the loop alone, its batches waiting in the computer's memory."""
    device = torch.device("cuda")
    batches = list(ShardBatches(parts, FEATURES, labels, batch_size=BATCH_SIZE, seed=0)(0))
    times: list[float] = []

    def on_epoch(*_: object) -> None:
        torch.cuda.synchronize()
        times.append(time.monotonic())

    settings = FitSettings(epochs=1 + n_epochs, mixed_precision=mixed)
    fit(build_model("log_mel_cnn", {}), lambda epoch: batches, None, settings, device=device,
        seed=0, on_epoch=on_epoch)  # fmt: skip
    return n_epochs * len(labels) / (times[-1] - times[0])


def measure(n_clips: int, n_epochs: int, n_repeats: int) -> list[str]:
    """Rows of the tables."""
    from mer_batch.pipelines import cluster

    one, many = "plain loop, one process", f"plain loop, {N_CORES} processes"
    # Each way of Ray Train is compared with the plain loop in as many processes.
    bases = {
        one: one,
        "Ray Train, 1 worker": one,
        many: many,
        f"Ray Train, {N_CORES} workers": many,
    }
    speeds: dict[str, list[Speed]] = {way: [] for way in bases}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        parts, labels = write_clips(scratch, n_clips)
        with cluster.connected(RayConfig(), meanwhile=lambda: None):
            for repeat in range(n_repeats):
                for way in bases:
                    folder = scratch / f"{repeat} {way}"
                    if way == many:
                        measured = in_processes(parts, labels, n_epochs, folder)
                    else:
                        n_workers = {one: 0, "Ray Train, 1 worker": 1}.get(way, N_CORES)
                        measured = on_this_machine(parts, labels, n_workers, n_epochs, folder)
                    speeds[way].append(measured)
                    print(f"{repeat + 1}/{n_repeats} {way}: {measured}", flush=True)
        gpu = gpu_rows(parts, labels) if torch.cuda.is_available() else []
    rows = []
    for way, timed in speeds.items():
        pairs = list(zip(timed, speeds[bases[way]], strict=True))
        clock = [mine.clips_per_second / base.clips_per_second for mine, base in pairs]
        cpu = [base.cpu_seconds / mine.cpu_seconds for mine, base in pairs]
        rate = statistics.median(one.clips_per_second for one in timed)
        cost = 1000 * statistics.median(one.cpu_seconds for one in timed)
        rows.append(f"| {way} | {rate:.1f} | {_spread(clock)} | {cost:.0f} | {_spread(cpu)} |")
    return rows + (
        gpu or ["", "There was no GPU on this machine: the loop was not measured on one."]
    )


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def gpu_rows(parts: list[str], labels: Labels) -> list[str]:
    """The loop in both precisions, taking turns."""
    rates: dict[str, list[float]] = {"float32": [], "mixed": []}
    for _ in range(5):
        for precision, measured in rates.items():
            measured.append(on_gpu(parts, labels, 5, mixed=precision == "mixed"))
    name = torch.cuda.get_device_name()
    rows = ["", f"| on one {name} | clips/s | of float32 |", "|---|---|---|"]
    base = statistics.median(rates["float32"])
    for precision, measured in rates.items():
        middle = statistics.median(measured)
        rows.append(f"| plain loop, {precision} | {middle:,.0f} | {middle / base:.2f} |")
    return rows


def replace_section(text: str, section: str) -> str:
    """A report with this section in place of the one before, or at its end."""
    marked = f"{_BEGIN}\n{section.strip()}\n{_END}\n"
    pattern = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}\n", re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: marked, text)
    return f"{text.rstrip()}\n\n{marked}"


def main() -> None:
    """Measure, print and write the section."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clips", type=int, default=384)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--output", type=Path, default=Path("BENCHMARKS.md"))
    chosen = options.parse_args()
    # Ray's workers are nicer than other processes by default: on a shared machine they would be
    # measured under another load than the plain loop.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    rows = measure(chosen.clips, chosen.epochs, chosen.repeats)
    section = _SECTION.format(
        date=datetime.date.today(),
        n_clips=chosen.clips,
        n_epochs=chosen.epochs,
        n_repeats=chosen.repeats,
        n_cores=N_CORES,
        batch_size=BATCH_SIZE,
        machine=f"{platform.machine()}, Python {platform.python_version()}",
        versions=", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "pyarrow")),
        rows="\n".join(rows),
    )
    print(section)
    before = chosen.output.read_text(encoding="utf-8") if chosen.output.exists() else ""
    chosen.output.write_text(replace_section(before, section), encoding="utf-8")


_BEGIN, _END = "<!-- training: begin -->", "<!-- training: end -->"

_SECTION = """## Training

Made by `python -m tests.benchmarks.training` on {date}: `log_mel_cnn` on {n_clips:,} clips of 30 s
(80 bands, float16 on disk), {batch_size} clips a batch over all workers, on {n_cores} cores
({machine}, {versions}). Whole epochs, reading included, after a first one that starts the workers:
medians of {n_repeats} repeats of {n_epochs} epochs in which the ways take turns. The share is of
the plain loop in as many processes within the same repeat (median, and from least to most): the
same code over the same batches, read with pyarrow, without Ray. The machine was shared, which
seconds of CPU (of all processes, Ray's own included) suffer less from than the clock.

| way | clips/s | of the plain loop | CPU ms a clip | of the plain loop, by CPU |
|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    main()
