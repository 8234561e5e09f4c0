"""The chapter of BENCHMARKS.md on tagging, made of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from tests.benchmarks.jobs import JOBS, N_CORES, EngineJob
from tests.benchmarks.music import KINDS
from tests.benchmarks.records import Record, Records
from tests.benchmarks.standing import bars, spread_of


def chapter(records: Records) -> str:
    """The whole chapter."""
    main = records.kinds()[0]
    n_repeats = [len(records.of(main, job, records.n_tracks)) for job in JOBS]
    sections = [_table_of(records, kind, records.n_tracks) for kind in records.kinds()]
    if records.n_many:
        sections.append(_table_of(records, main, records.n_many))
    return _CHAPTER.format(
        date=records.date,
        n_tracks=records.n_tracks,
        n_cores=N_CORES,
        machine=records.machine,
        n_repeats=max(n_repeats),
        sections="\n\n".join(section for section in sections if section),
        missing="".join(
            f"\nNot measured: {JOBS[job].shown}, as {why}.\n"
            for job, why in records.missing.items()
        ),
        standing="\n".join(bar.line() for bar in bars(records)),
        profile="\n\n".join(filter(None, (_profile(records, kind) for kind in records.kinds()))),
    )


# ------------------------------------------------------------------------------- rates


def _table_of(records: Records, kind: str, n_tracks: int) -> str:
    rows = list(_rows(records, kind, n_tracks))
    heading = f"## {KINDS[kind]}: {n_tracks:,} tracks"
    return f"{heading}\n\n{_HEADINGS}\n" + "\n".join(rows) if rows else ""


def _rows(records: Records, kind: str, n_tracks: int) -> Iterator[str]:
    floor = records.of(kind, "decode", n_tracks)
    for name, job in JOBS.items():
        measured = records.of(kind, name, n_tracks)
        if not measured:
            continue
        if isinstance(job, EngineJob):
            whole = name not in ("decode", "kernel")
            yield _row(f"{job.shown}{', whole' if whole else ''}", measured, floor, whole=whole)
        else:
            yield _row(f"{job.shown}, without Ray's start", measured, floor, whole=False)
            yield _row(f"{job.shown}, whole", measured, floor, whole=True)


def _row(name: str, measured: list[Record], floor: list[Record], *, whole: bool) -> str:
    rates = [one.rate(whole=whole) for one in measured]
    pairs = zip(rates, floor, strict=False)
    shares = [rate / base.rate(whole=False) for rate, base in pairs]
    rate, n_tracks = statistics.median(rates), measured[0].n_tracks
    cpu = statistics.median(one.cpu for one in measured)
    errors = [one.error for one in measured if one.error is not None]
    cells = (
        name,
        f"{rate:.1f}",
        f"{rate * measured[0].audio_seconds / n_tracks:,.0f}",
        spread_of(shares) if shares else "",
        f"{cpu:,.0f}",
        f"{1000 * cpu / n_tracks:.1f}",
        _gib(max(one.peak_bytes for one in measured)),
        _gib(max(one.driver_peak_bytes for one in measured)),
        f"{max(errors):.1e}" if errors else "",
    )
    return f"| {' | '.join(cells)} |"


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes else ""


# ------------------------------------------------------------------------------- profile


def _profile(records: Records, kind: str) -> str:
    """Where a track's time goes in `mer-batch tag`: stages of the kernel, then the processes."""
    few = records.of(kind, "tag", records.n_tracks)
    stages = records.stages.get(kind)
    if not few or not stages:
        return ""
    many = records.of(kind, "tag", records.n_many) if records.n_many else []
    rows = [f"| {stage} | {ms:.2f} | | |" for stage, ms in stages.items()]
    rows.append(f"| **our kernel together** | **{sum(stages.values()):.2f}** | | |")
    kinds = list(dict.fromkeys(name for one in few for name in one.cpu_seconds))
    for name in [*kinds, _ALL, _IDLE]:
        rows.append(_process_row(name, few, many))
    return f"### {KINDS[kind]}\n\n{_PROFILE_HEADINGS}\n" + "\n".join(rows)


def _process_row(name: str, few: list[Record], many: list[Record]) -> str:
    """Of one kind of process: of the smaller run, and what the larger one tells apart."""
    n_few, seconds = few[0].n_tracks, statistics.median(_seconds(one, name) for one in few)
    each = fixed = ""
    if many:
        more = statistics.median(_seconds(one, name) for one in many)
        slope = (more - seconds) / (many[0].n_tracks - n_few)
        each, fixed = f"{1000 * slope:.2f}", f"{seconds - slope * n_few:.1f}"
    return f"| {name} | {1000 * seconds / n_few:.2f} | {each} | {fixed} |"


def _seconds(record: Record, name: str) -> float:
    """CPU of a kind of process, of all, or what the cores had left over [s]."""
    if name == _ALL:
        return record.cpu
    if name == _IDLE:
        return N_CORES * record.seconds - record.cpu
    return record.cpu_seconds.get(name, 0.0)


_ALL = "**all processes**"
_IDLE = f"left of {N_CORES} cores: idle, or taken by others"

_HEADINGS = """| job | tracks/s | seconds of audio/s | of decoding | CPU s | CPU ms a track | peak memory | driver's | scores differ by |
|---|---|---|---|---|---|---|---|---|"""  # noqa: E501

_PROFILE_HEADINGS = """| of `mer-batch tag` | ms a track | ms each further track | fixed, s |
|---|---|---|---|"""

_CHAPTER = """# Benchmarks

Made by `make bench` on {date}: {n_tracks:,} files (the clips under distinct names, all at 44.1 kHz)
on {n_cores} cores ({machine}). Medians of
{n_repeats} repeats in which the jobs take turns; a share is taken within each repeat (median, and
from least to most).

{sections}
{missing}
"Decode only" reads each file with soundfile into one buffer that is used again, one process a core,
and throws the samples away. "Our kernel" adds the mix to mono, the mel spectrogram and the built-in
model, in the same plain processes. Both are timed from when every process is ready, `mer-batch tag`
without Ray's start from when Ray is up (the start of the workers and their decoders included) to
the last commit. **Whole** is from the shell's command to its end, all start-up included, with the
output written. Memory is the largest sum over all processes, pages held together counted once
(PSS); the driver's is its largest resident memory. "Scores differ by" is the mean absolute
difference from our kernel's scores, which lie on [-1, 1]: everybody does the same work.

The others are written as a competent user would, for speed: each process imports its libraries
and builds the model once and computes in one thread; paths travel and not audio; nothing is
resampled. multiprocessing: the standard pool, 8 tracks at a time. Daft: a class with a batch
method, one process of it a core, batches of 16. Spark: local mode, `mapInPandas`, 4 partitions a
core, Python workers reused. librosa: `librosa.load` and `melspectrogram` with our parameters, then
our model as torch computes it. Essentia: loader, frames, window, spectrum and mel bands as one
streaming network, then the same. Our kernel's model is the compiled one.
All write Parquet; only `mer-batch tag` isolates the decoder, keeps rejects, commits, and publishes.

## Where it stands

{standing}

Where others decode with librosa, the factor of bare decoding is the most that any program could
reach with these decoders. Where they run our kernel, what is between is the start of Ray, its
workers and their decoders (*fixed*, below), and a process of its own for every decoder.

## Where the time goes

Stages of the kernel: CPU of the innermost function, timed where it is called, one process a core,
each track decoded and scored.
Processes: CPU by kind over the whole run, start-up included, looked at every quarter of a second.
Where a larger run was measured too, the difference of the two tells a further track's cost from
what is paid once.

{profile}
"""
