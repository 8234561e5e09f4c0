"""How long a night would take: by what the last runs have measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mer_batch.config import StorageConfig
from mer_batch.estimate import estimate, latest_manifests
from mer_batch.storage import Storage, parse_uri

RUN = {"n_cpus": 4, "n_scored": 900, "n_rejected": {"silent": 100}, "work_seconds": 10.0}


def estimated(*runs: dict[str, Any], **options: Any) -> Any:
    return estimate(
        runs, **{"n_tracks": 0, "n_to_decode": 10_000, "n_to_rescore": 0, "n_cpus": 2, **options}
    )


def test_the_rate_is_that_of_the_last_runs_a_cpu() -> None:
    found = estimated(RUN, n_cpus=None)
    assert (found.n_cpus, found.decoding.tracks_per_second) == (4, 25.0)
    assert found.decoding.source == "the last run, 1,000 tracks"
    slower = {**RUN, "work_seconds": 30.0}
    assert estimated(RUN, slower).decoding.tracks_per_second == 2_000 / 160
    assert "BENCHMARKS.md" in found.rescoring.source


def test_what_was_scored_from_features_tells_nothing_of_decoding() -> None:
    both = {**RUN, "n_rescored": 500, "rescore_seconds": 0.5, "work_seconds": 5.5}
    found = estimated(both)
    assert found.decoding.tracks_per_second == 500 / 20
    assert found.rescoring.tracks_per_second == 500 / 2


@pytest.mark.parametrize(
    "untold",
    [{}, {**RUN, "n_scored": 3, "n_rejected": {}}, {**RUN, "n_cpus": 0}, {"n_extracted": 900}],
)
def test_where_no_run_tells_the_benchmarks_do(untold: dict[str, Any]) -> None:
    assert estimated(untold).decoding.source == "BENCHMARKS.md, 30-s clips"
    assert estimated(untold, RUN).decoding.source == "the last run, 1,000 tracks"


def test_time_grows_with_the_work_and_shrinks_with_cpus() -> None:
    few, many = estimated(RUN, n_cpus=2), estimated(RUN, n_cpus=20)
    assert few.seconds - many.seconds == pytest.approx(10_000 / 25 / 2 - 10_000 / 25 / 20)
    assert few.cpu_hours == pytest.approx(few.seconds * 2 / 3600)
    nothing = estimated(RUN, n_to_decode=0)
    assert nothing.seconds < few.seconds
    assert estimated(RUN, n_tracks=10**7).seconds > few.seconds


def test_manifests_are_read_the_latest_first_and_damaged_ones_passed_over(tmp_path: Path) -> None:
    storage, output = Storage(StorageConfig()), parse_uri(str(tmp_path))
    assert latest_manifests(storage, output) == []
    for name, content in (("1", b'{"n": 1}'), ("3", b'{"n": 3}'), ("2", b"{"), ("4", b"[]")):
        storage.write(output.child("runs", name, "manifest.json"), content)
    storage.write(output.child("runs", "5", "log"), b"{}")
    assert latest_manifests(storage, output) == [{"n": 3}, {"n": 1}]
