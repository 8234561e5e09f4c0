"""The features table, as we and others read it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder

from mer_batch.config import StorageConfig
from mer_batch.errors import FeaturesError
from mer_batch.extract import TrackFeatures
from mer_batch.feature_sets import FeatureSet, feature_set
from mer_batch.feature_table import (
    METADATA_KEY,
    features_schema,
    index,
    mels,
    newest_whole,
    read_features,
)
from mer_batch.ledger import Ledger, Part
from mer_batch.shards import Features
from mer_batch.storage import Storage, parse_uri

LOG_MEL = feature_set("log_mel")
LATER = datetime.timedelta(hours=1)


def decibels(seed: int, n_segments: int, features: FeatureSet = LOG_MEL) -> np.ndarray:
    """Planted features on the grid that is kept exactly."""
    shape = (n_segments, features.mel.n_mels, features.segment_frames)
    steps = np.random.default_rng(seed).integers(-1600, 500, shape)
    return (steps / 16).astype(np.float16)


class Shelf:
    """An output to plant features in."""

    def __init__(self, folder: Path) -> None:
        self.storage = Storage(StorageConfig())
        self.output = parse_uri(str(folder / "out"))
        self.ledger = Ledger(self.storage, self.output, pa.string(), product="features")
        self.ledger.fence(1)
        self.n_commits = 0

    def put(
        self,
        tracks: Iterable[tuple[str, str, np.ndarray]],
        features: FeatureSet = LOG_MEL,
        *,
        without: int | None = None,
    ) -> str:
        """Commit a part of (track_id, audio_version, segments); returns its path."""
        part = Features(features, "float16").part(pa.string())
        for track_id, version, segments in tracks:
            starts = [float(n) for n in range(len(segments))]
            part.add(
                {
                    "track_id": track_id, "audio_uri": f"/{track_id}", "audio_version": version,
                    "features_id": features.features_id, "run_id": "r",
                },
                TrackFeatures(segments, starts, 45.5, features.segment_frames),
            )  # fmt: skip
        content = part.finish()
        if without is not None:  # as if a row had been lost
            table = pq.read_table(pa.BufferReader(content))
            rows = [row for row in range(len(table)) if row != without]
            sink = pa.BufferOutputStream()
            pq.write_table(table.take(rows), sink)
            content = sink.getvalue().to_pybytes()
        self.n_commits += 1
        path = f"r/{self.n_commits}.parquet"
        self.storage.write(self.output.child("features", path), content)
        self.ledger.commit_parts(
            [Part(path, len(content), part.n_rows)], run_id="r", sequence=self.n_commits
        )
        return f"{self.output.path}/features/{path}"


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_a_part_says_what_it_holds(shelf: Shelf) -> None:
    path = shelf.put([("a", "1", decibels(1, 2))])
    found = pq.read_schema(path)
    assert found.equals(features_schema(pa.string(), LOG_MEL))
    assert found.names == [
        "track_id", "segment", "start_seconds", "n_segments", "n_frames", "duration_seconds",
        "audio_uri", "audio_version", "features_id", "run_id", "extracted_at", "mel",
    ]  # fmt: skip
    assert found.field("mel").type.value_type == pa.float16()
    assert found.field("mel").type.list_size == 80 * 646
    content = json.loads(found.metadata[METADATA_KEY])
    assert content["features_id"] == LOG_MEL.features_id
    assert content["axes"] == ["n_mels", "segment_frames"]
    assert content["shape"] == [80, 646]
    assert (content["unit"], content["floor_db"], content["step_db"]) == ("dB", -100, 0.0625)
    assert {
        name: content[name] for name in ("sample_rate", "n_fft", "hop_length", "fmin", "fmax")
    } == {"sample_rate": 44_100, "n_fft": 2048, "hop_length": 2048, "fmin": 30, "fmax": 16_000}
    assert "libsndfile" in content["decoder"]


def test_other_readers_find_the_same_numbers(shelf: Shelf) -> None:
    planted = decibels(1, 2)
    path = shelf.put([("a", "1", planted)])
    flat = planted.reshape(2, -1).astype(np.float32)

    rows = duckdb.sql(
        f"SELECT track_id, segment, mel::FLOAT[] FROM '{path}' ORDER BY segment"
    ).fetchall()
    assert [row[:2] for row in rows] == [("a", 0), ("a", 1)]
    np.testing.assert_array_equal(np.array([row[2] for row in rows], np.float32), flat)

    frame = pandas.read_parquet(path)
    np.testing.assert_array_equal(np.stack(frame["mel"]).astype(np.float32), flat)

    table = DeltaTable(f"{shelf.output.path}/features")
    found = pa.table(QueryBuilder().register("f", table).execute("SELECT mel FROM f").read_all())
    np.testing.assert_array_equal(np.array(found["mel"].to_pylist(), np.float32), flat)


def test_pyarrow_alone_finds_shape_and_numbers(shelf: Shelf) -> None:
    """As the metadata says it, in a process that does not know this package."""
    path = shelf.put([("a", "1", decibels(3, 2))])
    program = (
        "import json, sys; import numpy as np; import pyarrow.parquet as pq\n"
        "table = pq.read_table(sys.argv[1])\n"
        "content = json.loads(table.schema.metadata[b'mer_batch.features'])\n"
        "mel = table['mel'].combine_chunks().flatten().to_numpy(zero_copy_only=False)\n"
        "mel = mel.reshape(-1, *content['shape'])\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'mer_batch']\n"
        "print(mel.shape, float(mel[1, 7, 11]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"(2, 80, 646) {float(decibels(3, 2)[1, 7, 11])}"


def test_mels_are_given_in_the_feature_sets_unit(shelf: Shelf) -> None:
    paper = feature_set("paper")
    planted = decibels(2, 2, paper)
    planted[:, :, 1000:] = -100
    shelf.put([("a", "1", planted)], paper)
    (batch,) = read_features(shelf.storage, shelf.output, paper)
    power = mels(batch, paper)
    assert power.shape == (2, 40, 1292)
    assert power.dtype == np.float32
    assert power.flags.c_contiguous
    expected = 10 ** (planted[:, :, :1000].astype(float) / 10)
    heard = planted[:, :, :1000] > -100
    np.testing.assert_allclose(power[:, :, :1000][heard], expected[heard], rtol=1e-5)
    assert (power[:, :, 1000:] == 0).all()
    np.testing.assert_array_equal(mels(batch.slice(1, 1), paper), power[1:])
    with pytest.raises(FeaturesError, match="read them with the feature set they were made with"):
        mels(batch, dataclasses.replace(paper, segment_seconds=15.0))


def test_parts_are_streamed_in_bounded_batches(shelf: Shelf) -> None:
    shelf.put((f"t{n:03}", "1", decibels(n, 1)) for n in range(150))
    shelf.put((f"u{n:03}", "1", decibels(n, 2)) for n in range(5))
    n_rows, ids = 0, []
    for batch in read_features(shelf.storage, shelf.output, LOG_MEL):
        assert batch.num_rows <= 64
        n_rows += batch.num_rows
        ids += batch["track_id"].to_pylist()
        for row in (0, batch.num_rows - 1):
            seed, segment = int(ids[row - batch.num_rows][1:]), batch["segment"][row].as_py()
            n_segments = batch["n_segments"][row].as_py()
            found = mels(batch.slice(row, 1), LOG_MEL)[0]
            np.testing.assert_array_equal(found, decibels(seed, n_segments)[segment])
    assert n_rows == 160
    assert len(set(ids)) == 155
    light = list(read_features(shelf.storage, shelf.output, LOG_MEL, columns=["track_id"]))
    assert {batch.schema.names[0] for batch in light} == {"track_id"}


def test_the_index_has_every_audio_version_and_the_newest_extraction(shelf: Shelf) -> None:
    shelf.put([("a", "1", decibels(1, 2)), ("b", "1", decibels(2, 1))])
    second = shelf.put([("a", "2", decibels(3, 1)), ("b", "1", decibels(4, 1))])
    found = index(shelf.storage, shelf.output, LOG_MEL)
    assert found.select(["track_id", "audio_version", "segment"]).to_pylist() == [
        {"track_id": "a", "audio_version": "1", "segment": 0},
        {"track_id": "a", "audio_version": "1", "segment": 1},
        {"track_id": "a", "audio_version": "2", "segment": 0},
        {"track_id": "b", "audio_version": "1", "segment": 0},
    ]
    (b,) = found.filter(pa.compute.field("track_id") == "b").to_pylist()
    assert b["part"] == second
    assert b["row"] == 1
    assert b["duration_seconds"] == 45.5
    batches = list(read_features(shelf.storage, shelf.output, LOG_MEL))
    assert sum(batch.num_rows for batch in batches) == 4


def test_a_track_of_which_a_segment_is_missing_is_not_there(shelf: Shelf) -> None:
    shelf.put([("whole", "1", decibels(1, 3)), ("part", "1", decibels(2, 3))], without=4)
    assert set(index(shelf.storage, shelf.output, LOG_MEL)["track_id"].to_pylist()) == {"whole"}


def test_features_of_another_id_are_refused_by_name(shelf: Shelf) -> None:
    with pytest.raises(FeaturesError, match="run mer-batch extract first"):
        index(shelf.storage, shelf.output.child("elsewhere"), LOG_MEL)
    assert index(shelf.storage, shelf.output, LOG_MEL).num_rows == 0
    random = dataclasses.replace(LOG_MEL, placement="random")
    shelf.put([("a", "1", decibels(1, 1))], random)
    words = (
        f"shards of another features_id: '{random.features_id}', needed '{LOG_MEL.features_id}'; "
        "run mer-batch extract again with features.name=log_mel"
    )
    with pytest.raises(FeaturesError, match=words):
        list(read_features(shelf.storage, shelf.output, LOG_MEL))
    assert index(shelf.storage, shelf.output, random).num_rows == 1


def test_a_part_that_cannot_be_read_is_left_out(shelf: Shelf) -> None:
    bad = shelf.put([("a", "1", decibels(1, 1))])
    shelf.put([("b", "1", decibels(2, 1))])
    Path(bad).write_bytes(Path(bad).read_bytes()[:1000])
    assert index(shelf.storage, shelf.output, LOG_MEL)["track_id"].to_pylist() == ["b"]
    found = shelf.ledger.features(features_id=LOG_MEL.features_id)
    (problem,) = (rows for _, rows in found if isinstance(rows, str))
    assert bad in problem


def test_compacted_and_vacuumed_features_are_read_the_same(shelf: Shelf) -> None:
    planted = {f"t{n}": decibels(n, 2) for n in range(3)}
    for track_id, segments in planted.items():
        shelf.put([(track_id, "1", segments)])
    table = DeltaTable(f"{shelf.output.path}/features")
    table.optimize.compact()
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert len(DeltaTable(f"{shelf.output.path}/features").file_uris()) == 1
    (batch,) = read_features(shelf.storage, shelf.output, LOG_MEL)
    found = mels(batch, LOG_MEL)
    for row, track_id in enumerate(batch["track_id"].to_pylist()):
        segment = batch["segment"][row].as_py()
        np.testing.assert_array_equal(found[row], planted[track_id][segment])


def test_the_newest_whole_extraction_counts() -> None:
    now = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)

    def rows(when: datetime.datetime, segments: list[int], part: str) -> list[dict[str, Any]]:
        return [
            {
                "track_id": "a", "audio_version": "1", "extracted_at": when, "segment": segment,
                "n_segments": 2, "part": part,
            }
            for segment in segments
        ]  # fmt: skip

    table = pa.Table.from_pylist(
        [
            *rows(now, [0, 1], "old"),
            *rows(now + LATER, [1, 0], "new"),
            *rows(now + 2 * LATER, [1], "half"),
        ]
    )
    found = newest_whole(table)
    assert found.schema == table.schema
    assert found.select(["segment", "part"]).to_pylist() == [
        {"segment": 0, "part": "new"},
        {"segment": 1, "part": "new"},
    ]
