"""What was measured, kept in a file, so that a long run can be made in slices."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.jobs import Measured, machine
from tests.benchmarks.music import KINDS, Music


@dataclass(frozen=True)
class Record:
    """One job, run once on one kind of files."""

    kind: str
    job: str
    n_tracks: int
    audio_seconds: float
    seconds: float
    work_seconds: float | None
    cpu_seconds: dict[str, float]
    peak_bytes: int
    driver_peak_bytes: int
    error: float | None

    @classmethod
    def of(cls, job: str, music: Music, measured: Measured) -> Record:
        """Out of what a job has come to."""
        usage = measured.usage
        return cls(
            music.kind, job, music.n_tracks, music.audio_seconds, usage.seconds,
            measured.work_seconds, usage.cpu_seconds, usage.peak_bytes, usage.driver_peak_bytes,
            measured.error,
        )  # fmt: skip

    @property
    def cpu(self) -> float:
        """CPU of all processes together [s]."""
        return sum(self.cpu_seconds.values())

    def rate(self, *, whole: bool) -> float:
        """Tracks a second: of the whole process, or without its start-up."""
        seconds = self.seconds if whole else self.work_seconds
        assert seconds is not None, f"{self.job} does not say how long its work took"
        return self.n_tracks / seconds


@dataclass
class Records:
    """All figures of one day on one machine.

    Attributes
    ----------
    date, machine : str
    n_tracks, n_many : int
        Sizes of the two catalogs.
    measured : list of Record
        Of one kind, job and size in the order of the repeats.
    missing : dict
        Jobs that were not measured, and why.
    stages : dict
        By kind of files: CPU of our kernel's stages [ms a track].
    absolute : dict
        Seconds of commands that are measured by themselves, repeat by repeat.
    """

    date: str = field(default_factory=lambda: datetime.date.today().isoformat())
    machine: str = field(default_factory=machine)
    n_tracks: int = 0
    n_many: int = 0
    measured: list[Record] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    absolute: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None, n_tracks: int, n_many: int) -> Records:
        """What earlier slices have measured; nothing yet where there is no file.

        Raises
        ------
        ValueError
            Where they were made on another day, of another size or by other versions.
        """
        new = cls(n_tracks=n_tracks, n_many=n_many)
        if path is None or not path.exists():
            return new
        content: dict[str, Any] = json.loads(path.read_text())
        content["measured"] = [Record(**record) for record in content["measured"]]
        found = cls(**content)
        for name in ("date", "machine", "n_tracks", "n_many"):
            there, here = getattr(found, name), getattr(new, name)
            if there != here:
                raise ValueError(
                    f"{path} has {name}={there!r}, this run {here!r}: figures of one comparison "
                    "must be of one day and one set-up; begin another file"
                )
        return found

    def write(self, path: Path | None) -> None:
        """Keep it all, whole at any time."""
        if path is not None:
            part = path.with_suffix(".part")
            part.write_text(json.dumps(asdict(self), indent=1))
            part.replace(path)

    def of(self, kind: str, job: str, n_tracks: int) -> list[Record]:
        """The repeats of one job."""
        wanted = (kind, job, n_tracks)
        return [one for one in self.measured if (one.kind, one.job, one.n_tracks) == wanted]

    def kinds(self) -> list[str]:
        """Kinds of files with figures; engines are compared on the first."""
        return [kind for kind in KINDS if any(one.kind == kind for one in self.measured)]
