"""Scores out of parts of features, whichever rows of them are wanted."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mer_batch.block import BlockReport, Job
from mer_batch.checkpoint import Checkpoint, builtin_checkpoint
from mer_batch.config import StorageConfig
from mer_batch.feature_sets import feature_set
from mer_batch.feature_table import mels
from mer_batch.limits import ChildLimits
from mer_batch.rescore import Rescorer
from mer_batch.schema import Identity
from mer_batch.score import Scorer
from mer_batch.storage import Storage, parse_uri
from mer_batch.tag import Scores
from tests.faulty_store import FaultyStore
from tests.feature_parts import write_parts

LOG_MEL = feature_set("log_mel")
N_TRACKS, N_SEGMENTS = 10, 7


@cache
def checkpoint() -> Checkpoint:
    return builtin_checkpoint()


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seventy rows, in groups of 63 and 7, as an extraction writes them."""
    (path,), _ = write_parts(
        tmp_path_factory.mktemp("parts"), N_TRACKS, n_parts=1, n_segments=N_SEGMENTS,
        feature_set=LOG_MEL, row_group_size=63,
    )  # fmt: skip
    assert pq.ParquetFile(path).metadata.row_group(1).num_rows == 7
    return Path(path)


@pytest.fixture(scope="module")
def expected(part: Path) -> dict[str, float]:
    """Valence of each track by itself."""
    scorer = Scorer(checkpoint().function())
    segments = mels(pq.read_table(part, columns=["mel"]), LOG_MEL)
    tracks = np.split(segments, N_TRACKS)
    return {
        f"track-{n:05}": scorer.score(np.ascontiguousarray(rows)).mean[0]
        for n, rows in enumerate(tracks)
    }


def pending(part: Path | str, tracks: list[int]) -> pa.Table:
    """As ``plan.with_features`` gives them."""
    return pa.Table.from_pylist(
        [
            {
                "track_id": f"track-{n:05}", "audio_uri": f"{n}.mp3", "audio_version": "1",
                "expected_seconds": None, "attempts": 0, "first_run_id": None, "first_seen": None,
                "part": str(part), "rows": list(range(n * N_SEGMENTS, (n + 1) * N_SEGMENTS)),
                "n_frames": LOG_MEL.segment_frames, "features_duration_seconds": 210.0,
                "features_version": "1",
            }
            for n in tracks
        ]
    )  # fmt: skip


def rescored(folder: Path, block: pa.Table, **store: Any) -> tuple[BlockReport, dict[str, Any]]:
    model = checkpoint()
    identity = Identity.of(LOG_MEL.features_id, model.model_id, {})
    product = Scores(model.card_json, model.weights, model.model_id)
    output = parse_uri(str(folder))
    job = Job(Storage(StorageConfig(**store)), output, "run", identity, product, ChildLimits())
    report = Rescorer(job).work(0, block)
    if report.part_path is None:
        return report, {}
    rows = pq.read_table(folder / "scores" / report.part_path).to_pylist()
    return report, {row["track_id"]: row["valence"] for row in rows}


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=12
)
@given(wanted=st.sets(st.integers(0, N_TRACKS - 1), min_size=1))
def test_any_tracks_of_a_part_are_scored(
    tmp_path: Path, part: Path, expected: dict[str, float], wanted: set[int]
) -> None:
    report, found = rescored(tmp_path, pending(part, sorted(wanted)))
    assert report.left_ids == []
    assert found.keys() == {f"track-{n:05}" for n in wanted}
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-5)


def test_a_run_of_rows_ends_with_its_group(
    tmp_path: Path, part: Path, expected: dict[str, float]
) -> None:
    """The first group's last run holds no wanted row, the next group's first one does."""
    report, found = rescored(tmp_path, pending(part, [0, 9]))
    assert (report.n_done, report.left_ids) == (2, [])
    assert found["track-00009"] == pytest.approx(expected["track-00009"], abs=1e-5)


@pytest.mark.parametrize("row_group_size", [1, 16, 70])
def test_groups_of_any_size_score_the_same(
    tmp_path: Path, part: Path, expected: dict[str, float], row_group_size: int
) -> None:
    """Single floats in lists of no fixed size, as compacting a Delta table leaves them."""
    table = pq.read_table(part)
    at = table.schema.get_field_index("mel")
    compacted = tmp_path / "compacted.parquet"
    loose = table["mel"].cast(pa.list_(pa.float32()))
    pq.write_table(table.set_column(at, "mel", loose), compacted, row_group_size=row_group_size)
    _, found = rescored(tmp_path, pending(compacted, [1, 4, 8]))
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-5)
    assert len(found) == 3


@pytest.mark.parametrize("fault", ["AccessDenied", "SlowDown"])
def test_a_store_that_does_not_give_features_is_not_taken_for_damage(
    tmp_path: Path, part: Path, s3: Any, faulty: FaultyStore, fault: str
) -> None:
    s3.put_object(Bucket=s3.bucket, Key="part.parquet", Body=part.read_bytes())
    uri = f"s3://{s3.bucket}/part.parquet"
    store = {"endpoint_url": faulty.endpoint, "patience_seconds": 1}
    assert rescored(tmp_path, pending(uri, [0, 9]), **store)[0].problems == []
    with faulty.suffering(fault):
        report, _ = rescored(tmp_path, pending(uri, [0, 9]), **store)
    assert (report.n_done, report.left_ids) == (0, ["track-00000", "track-00009"])
    (problem,) = report.problems
    assert problem.startswith(f"{uri}: ")
    assert f"{fault}; " in problem
