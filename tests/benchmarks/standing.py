"""What the job is meant to reach, each held against the figures."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.benchmarks.jobs import JOBS
from tests.benchmarks.music import KINDS
from tests.benchmarks.records import Records


@dataclass(frozen=True)
class Bar:
    """A bound, and the figures of the repeats.

    Attributes
    ----------
    what : str
    bound : float
    values : list of float
        Empty where it was not measured.
    at_most : bool
        True: the figure is to stay below the bound.
    unit : str
    limits : list of float
        What decoding alone would reach, nothing being computed; empty where that says nothing.
    """

    what: str
    bound: float
    values: list[float]
    at_most: bool = False
    unit: str = ""
    limits: list[float] = field(default_factory=list)

    @property
    def is_reached(self) -> bool | None:
        """None where it was not measured."""
        if not self.values:
            return None
        middle = statistics.median(self.values)
        return middle <= self.bound if self.at_most else middle >= self.bound

    def line(self) -> str:
        """One line of the report."""
        bound = f"{'at most' if self.at_most else 'at least'} {self.bound:g}{self.unit}"
        if not self.values:
            return f"- **not measured**: {self.what}: {bound}"
        verdict = "reached" if self.is_reached else "not reached"
        limit = f"; bare decoding alone: {spread_of(self.limits)}" if self.limits else ""
        measured = f"measured {spread_of(self.values)}{self.unit}{limit}"
        return f"- **{verdict}**: {self.what}: {bound}; {measured}"


def spread_of(values: list[float]) -> str:
    """Median, and from least to most."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def bars(records: Records) -> Iterator[Bar]:
    """All bounds, in the order of the report."""
    main, n_tracks, n_many = records.kinds()[0], records.n_tracks, records.n_many

    def against(
        job: str, base: str, kind: str = main, n: int = n_tracks,
        *, whole: bool = True, base_whole: bool = True,
    ) -> list[float]:  # fmt: skip
        """How many times as fast as `base` a job is, repeat by repeat."""
        pairs = zip(records.of(kind, job, n), records.of(kind, base, n), strict=False)
        return [one.rate(whole=whole) / two.rate(whole=base_whole) for one, two in pairs]

    for kind in records.kinds():
        of = KINDS[kind]
        work = against("tag", "decode", kind, whole=False, base_whole=False)
        yield Bar(f"`tag` through libsndfile without Ray's start, of decoding; {of}", 0.75, work)
        if "tag-direct" not in records.missing:
            direct = against("tag-direct", "decode", kind, whole=False, base_whole=False)
            yield Bar(f"the same through libmpg123; {of}", 0.9, direct)
        whole = against("tag", "decode", kind, base_whole=False)
        yield Bar(f"whole `tag` of {n_tracks:,} tracks, of decoding; {of}", 0.62, whole)
    if "tag-direct" in records.missing:
        yield Bar("`tag` through libmpg123 without Ray's start, of decoding", 0.9, [])
    if n_many:
        yield from _bars_of_many(records, against("tag", "decode", n=n_many, base_whole=False))
    for kind in records.kinds():
        for job, times in _TIMES.items():
            # Engines that run our kernel have whichever decoder it finds.
            is_same = job.endswith("-kernel") and "tag-direct" not in records.missing
            ours = "tag-direct" if is_same else "tag"
            values = against(ours, job, kind)
            if values or kind == main:
                what = f"whole `{JOBS[ours].shown}`, times {JOBS[job].shown}; {KINDS[kind]}"
                yield Bar(what, times, values, limits=against("decode", job, kind, whole=False))
    for what, bound in ABSOLUTE.items():
        yield Bar(what, bound, records.absolute.get(what, []), at_most=True, unit=" s")


def _bars_of_many(records: Records, whole: list[float]) -> Iterator[Bar]:
    main, n_tracks, n_many = records.kinds()[0], records.n_tracks, records.n_many
    yield Bar(f"whole `tag` of {n_many:,} tracks, of decoding", 0.7, whole)
    pairs = list(
        zip(records.of(main, "tag", n_many), records.of(main, "tag", n_tracks), strict=False)
    )
    sizes = f"of {n_many:,} tracks to that of {n_tracks:,}"
    rates = [many.rate(whole=False) / few.rate(whole=False) for many, few in pairs]
    yield Bar(f"`tag`'s rate without Ray's start, {sizes}", 0.95, rates)
    memory = [many.driver_peak_bytes / few.driver_peak_bytes for many, few in pairs]
    yield Bar(f"largest memory of the driver, {sizes}", 1.1, memory, at_most=True)


# How many times as fast as others, at least.
_TIMES = {
    "librosa": 2.0, "daft-librosa": 2.0, "spark-librosa": 3.0,
    "daft-kernel": 1.0, "spark-kernel": 1.0,
}  # fmt: skip

#: Commands that are measured by themselves, and how long they may take [s].
ABSOLUTE = {"`mer-batch --help`": 0.5, "`tag` of one track, from a cold start": 15.0}
