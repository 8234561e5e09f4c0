"""The jobs that are measured side by side, each a command that a user could type."""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import yaml

from mer_batch.audio.mpg123 import library
from tests.benchmarks.music import Music
from tests.benchmarks.processes import Usage, run_watched

N_CORES = os.cpu_count() or 1

#: What has the job decode as the floor does, whatever the system offers.
THROUGH_LIBSNDFILE = "audio.decoder=libsndfile"

#: Of the libraries that the engines' jobs use: one process a core, so one thread a process.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

# Another decoder may begin some hundred samples earlier; the scores of another piece of music
# would be a few tenths off.
_MAX_ERROR = 0.02


@dataclass(frozen=True)
class Measured:
    """What one job took once.

    Attributes
    ----------
    usage : Usage
    work_seconds : float or None
        Without start-up, where the job says it.
    error : float or None
        Mean absolute difference of its scores from our kernel's; None where it gives none.
    """

    usage: Usage
    work_seconds: float | None
    error: float | None


@dataclass(frozen=True)
class EngineJob:
    """A program of ``engines/``.

    Attributes
    ----------
    shown : str
        What the report calls it.
    program, tagger : str
    needs : tuple of str
        Modules, and programs written as ``$name``.
    """

    shown: str
    program: str
    tagger: str
    needs: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether it needs nothing but this package."""
        return not self.needs

    def missing(self) -> str | None:
        """Why it cannot be run here."""
        for need in self.needs:
            is_there = shutil.which(need[1:]) if need.startswith("$") else find_spec(need)
            if not is_there:
                return f"{need.lstrip('$')} is not installed here"
        return None

    def run(self, music: Music, scratch: Path) -> Measured:
        """Run it on a list of tracks."""
        output = _emptied(scratch / "engine-out")
        module = f"tests.benchmarks.engines.{self.program}"
        usage = run_watched(
            [sys.executable, "-m", module, str(music.listing), str(output),
             "--tagger", self.tagger, "--n-cores", str(N_CORES)],
            scratch / "job.log",
            ONE_THREAD,
        )  # fmt: skip
        work_seconds = None
        if self.program == "pool_job":
            work_seconds = json.loads(usage.stdout.splitlines()[-1])["work_seconds"]
        error = None if self.tagger == "decode" else _error(output, "", music)
        return Measured(usage, work_seconds, error)


@dataclass(frozen=True)
class TagJob:
    """``mer-batch tag`` as a user runs it, with more settings where there are any."""

    shown: str
    settings: tuple[str, ...] = ()
    is_direct: bool = False
    is_ours = True

    def missing(self) -> str | None:
        """Why it cannot be run here."""
        is_there = not self.is_direct or library() is not None
        return None if is_there else "libmpg123 is not installed here"

    def run(self, music: Music, scratch: Path) -> Measured:
        """Run it on a folder of audio, from the process's start to the published night."""
        output = _emptied(scratch / "out")
        command = tag_command("tag", music.folder, output, self.settings)
        usage = run_watched(command, scratch / "job.log")
        (manifest,) = output.glob("runs/2*/manifest.json")
        content = json.loads(manifest.read_text())
        (night,) = output.glob("enriched/run_date=*")
        return Measured(usage, content["work_seconds"], _error(night, "tag_status", music))


Job = EngineJob | TagJob

_SPARK, _DAFT = ("pyspark", "$java"), ("daft",)

#: By their names on the command line, in the order in which they take turns.
JOBS: dict[str, Job] = {
    "decode": EngineJob("decode only", "pool_job", "decode"),
    "kernel": EngineJob("our kernel, one process a core", "pool_job", "kernel"),
    "tag": TagJob("mer-batch tag, libsndfile", (THROUGH_LIBSNDFILE,)),
    "tag-direct": TagJob("mer-batch tag, libmpg123", is_direct=True),
    "librosa": EngineJob("multiprocessing + librosa", "pool_job", "librosa", ("librosa",)),
    "essentia": EngineJob("multiprocessing + Essentia", "pool_job", "essentia", ("essentia",)),
    "daft-kernel": EngineJob("Daft + our kernel", "daft_job", "kernel", _DAFT),
    "daft-librosa": EngineJob("Daft + librosa", "daft_job", "librosa", (*_DAFT, "librosa")),
    "spark-kernel": EngineJob("Spark + our kernel", "spark_job", "kernel", _SPARK),
    "spark-librosa": EngineJob("Spark + librosa", "spark_job", "librosa", (*_SPARK, "librosa")),
}


def tag_command(
    command: str, folder: Path, output: Path, settings: tuple[str, ...] = ()
) -> list[str]:
    """``mer-batch COMMAND CONFIG [key=value ...]`` on a folder of audio."""
    config = output.with_suffix(".yaml")
    config.write_text(
        yaml.safe_dump({"catalog": {"uri": str(folder)}, "output": {"uri": str(output)}})
    )
    return [sys.executable, "-m", "mer_batch", command, str(config), *settings]


def start_job(command: str, folder: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start ``mer-batch COMMAND`` on a folder of audio, as a user would."""
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(tag_command(command, folder, output), stdout=nowhere, stderr=nowhere)


@functools.cache
def machine() -> str:
    """What the figures are measured on."""
    packages = (
        "ray", "torch", "soundfile", "pyarrow", "deltalake", "numpy",
        "librosa", "daft", "pyspark", "essentia",
    )  # fmt: skip
    versions = ""
    for package in packages:
        try:
            versions += f", {package} {version(package)}"
        except PackageNotFoundError:
            versions += f", no {package}"
    return f"{_processor()}, Python {platform.python_version()}{versions}"


def _processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _error(folder: Path, status: str, music: Music) -> float:
    """How far a job's scores are from our kernel's; every track must be there once.

    Raises
    ------
    RuntimeError
        Where it has not done the same work.
    """
    names = ["track_id", "valence", "arousal", *([status] if status else [])]
    files = [str(path) for path in folder.rglob("*.parquet")]
    table = pads.dataset(files, format="parquet").to_table(columns=names)
    ids = [Path(name).stem for name in table["track_id"].to_pylist()]
    if sorted(ids) != [f"{number:06}" for number in range(music.n_tracks)]:
        raise RuntimeError(f"{len(ids)} rows in {folder}, not each of {music.n_tracks} tracks once")
    scores = np.column_stack([table["valence"].to_numpy(), table["arousal"].to_numpy()])
    error = float(np.abs(scores[np.argsort(ids)] - music.scores).mean())
    if not error <= _MAX_ERROR:
        raise RuntimeError(f"scores in {folder} are {error} off, more than {_MAX_ERROR}")
    return error
