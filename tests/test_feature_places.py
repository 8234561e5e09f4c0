"""Which features count, against a look-up in one table that holds them all."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mer_batch.catalog import read_catalog
from mer_batch.config import CatalogConfig, StorageConfig
from mer_batch.feature_places import COLUMNS, FeaturePlaces
from mer_batch.feature_table import newest_whole
from mer_batch.schema import features_schema
from mer_batch.storage import Storage, parse_uri
from mer_batch.today import Today

N_TRACKS = 3
NOW = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)

SEGMENT = st.fixed_dictionaries(
    {
        "track_id": st.sampled_from([*(f"t{n}" for n in range(N_TRACKS)), "gone"]),
        "audio_version": st.sampled_from(["1", "1", "1", "0"]),
        "segment": st.integers(0, 1),
        "hour": st.integers(0, 1),
        "part": st.integers(0, 1),
    }
)


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Today:
    path = tmp_path_factory.mktemp("catalog") / "c.parquet"
    ids = [f"t{n}" for n in range(N_TRACKS)]
    pq.write_table(pa.table({"track_id": ids, "audio_uri": ids, "v": ["1"] * N_TRACKS}), path)
    storage = Storage(StorageConfig())
    catalog = read_catalog(
        CatalogConfig(uri=str(path), version_column="v"), storage, taken_names=[]
    )
    return Today.of(catalog, storage, detect_changes=True)


def rows_of(segments: list[dict[str, Any]]) -> pa.Table:
    """All segments, with `part` and `row`; every extraction has two."""
    rows = [
        {
            **{name: s[name] for name in ("track_id", "audio_version", "segment", "part")},
            "n_segments": 2, "n_frames": 5, "duration_seconds": 3.0,
            "extracted_at": NOW + datetime.timedelta(hours=s["hour"]),
            "row": sum(other["part"] == s["part"] for other in segments[:n]),
        }
        for n, s in enumerate(segments)
    ]  # fmt: skip
    own = features_schema(pa.string())
    fields = [own.field(name) for name in COLUMNS]
    place = [pa.field("part", pa.int64()), pa.field("row", pa.int64())]
    return pa.Table.from_pylist(rows, pa.schema([*fields, *place]))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200
)
@given(segments=st.lists(SEGMENT, max_size=14))
def test_the_newest_whole_extraction_of_todays_audio_counts(
    today: Today, segments: list[dict[str, Any]]
) -> None:
    rows = rows_of(segments)
    parts = [
        (parse_uri(f"/features/{n}"), rows.filter(pa.compute.field("part") == n)) for n in (0, 1)
    ]
    places = FeaturePlaces(today, ((part, found) for part, found in parts))

    todays = pa.compute.field("audio_version") == "1"
    todays = todays & (pa.compute.field("track_id") != "gone")
    expected: dict[str, dict[int, list[tuple[int, int]]]] = {}
    for row in newest_whole(rows).filter(todays).to_pylist():
        by_part = expected.setdefault(row["track_id"], {})
        by_part.setdefault(row["part"], []).append((row["segment"], row["row"]))
    assert {f"t{n}" for n in np.flatnonzero(places.is_whole)} == set(expected)

    found = {}
    for part in places.select(np.ones(N_TRACKS, bool)):
        columns = part.columns(0, len(part.places))
        for place, uri, at in zip(
            part.places, columns["part"].to_pylist(), columns["rows"].to_pylist(), strict=True
        ):
            found[f"t{place}"] = (int(uri[-1]), at)
    # To be scored, all segments must lie in one part, each once.
    usable = {
        track_id: [
            (part, [row for _, row in at])
            for part, at in by_part.items()
            if [segment for segment, _ in at] == [0, 1]
        ]
        for track_id, by_part in expected.items()
    }
    assert set(found) == {track_id for track_id, parts in usable.items() if parts}
    assert all(at in usable[track_id] for track_id, at in found.items())


def test_parts_that_cannot_be_read_are_told(tmp_path: Path, today: Today) -> None:
    places = FeaturePlaces(today, [(parse_uri(str(tmp_path)), "part 1: damaged")])
    assert places.problems == ["part 1: damaged"]
    assert not places.is_whole.any()
