"""What the benchmark's report says of planted figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.records import Record, Records
from tests.benchmarks.standing import Bar, bars
from tests.benchmarks.tagging_report import chapter

KIND = "composed"


def record(job: str, n_tracks: int, seconds: float, work_seconds: float | None) -> Record:
    return Record(
        KIND, job, n_tracks, 30.0 * n_tracks, seconds, work_seconds,
        {"driver": seconds, "decoders": seconds / 2}, 2**30, 2**28, None,
    )  # fmt: skip


@pytest.fixture
def records() -> Records:
    """`tag` works at 0.8 of decoding, and is whole at 0.5: of 100 tracks, in two repeats."""
    found = Records(machine="a machine", n_tracks=100, n_many=400)
    for speed in (1.0, 2.0):  # a machine that is slower later
        found.measured += [
            record("decode", 100, 5 * speed, 4 * speed),
            record("tag", 100, 8 * speed, 5 * speed),
            record("librosa", 100, 24 * speed, None),
        ]
    found.missing["tag-direct"] = "this version has none"
    found.stages[KIND] = {"decoding": 3.0, "model": 1.0}
    return found


def bar(records: Records, words: str) -> Bar:
    (found,) = [one for one in bars(records) if words in one.what]
    return found


def test_bars_hold_repeats_against_one_another(records: Records) -> None:
    assert bar(records, "libsndfile without Ray's start").values == pytest.approx([0.8, 0.8])
    assert bar(records, "libsndfile without Ray's start").is_reached
    assert bar(records, "whole `tag` of 100 tracks").values == pytest.approx([0.5, 0.5])
    assert bar(records, "whole `tag` of 100 tracks").is_reached is False
    assert bar(records, "times multiprocessing + librosa").values == pytest.approx([3.0, 3.0])


def test_what_was_not_measured_is_said_to_be(records: Records) -> None:
    for words in (
        "Daft + librosa",
        "`tag` through libmpg123",
        "`mer-batch --help`",
        "of 400 tracks, of",
    ):
        assert bar(records, words).line().startswith("- **not measured**")
    assert "Not measured: mer-batch tag, libmpg123, as this version has none." in chapter(records)


def test_a_bound_from_above() -> None:
    assert Bar("memory", 1.1, [1.0, 1.05, 1.2], at_most=True).is_reached
    assert Bar("memory", 1.1, [1.0, 1.15, 1.2], at_most=True).is_reached is False


def test_the_report_tells_kernel_and_processes_apart(records: Records) -> None:
    lines = chapter(records).splitlines()
    assert "| **our kernel together** | **4.00** | | |" in lines
    assert "| decoders | 60.00 |  |  |" in lines  # median of 4 and 8 s over 100 tracks
    assert any(
        line.startswith("| mer-batch tag, libsndfile, whole | 9.4 | 281 | 0.50") for line in lines
    )


def test_slices_of_one_run_add_up(records: Records, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    records.machine = Records().machine
    records.write(path)
    assert Records.read(path, n_tracks=100, n_many=400) == records
    with pytest.raises(ValueError, match="n_tracks=100, this run 200"):
        Records.read(path, n_tracks=200, n_many=400)
