"""Small parts as one: the same rows, types and metadata, and nothing that cannot be read."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer_batch import schema, shards
from mer_batch.compact import SMALL_BYTES, Merged, merge, old_runs, small_parts
from mer_batch.config import StorageConfig
from mer_batch.feature_table import METADATA_KEY, mels, open_part
from mer_batch.ledger import Part, parts_id
from mer_batch.storage import Location, Storage, parse_uri
from tests.feature_parts import LONG, SMALL, write_parts

NOW = datetime.datetime(2026, 11, 22, 1, 2, 3, 456789, tzinfo=datetime.UTC)
STORAGE = Storage(StorageConfig())


def described(path: Path, table: Path) -> Part:
    found = pq.read_metadata(path)
    return Part(str(path.relative_to(table)), path.stat().st_size, found.num_rows)


def merged(table: Path, parts: list[Part], columns: pa.Schema | None) -> tuple[list[Merged], str]:
    said: list[str] = []
    found = merge(
        STORAGE, parse_uri(str(table)), parts, "run", columns=columns, say=said.append
    )  # fmt: skip
    return list(found), "\n".join(said)


def row(track_id: object, **columns: object) -> dict[str, object]:
    return {
        "track_id": track_id, "audio_uri": "/a", "audio_version": "v1", "valence": 0.5,
        "arousal": -0.25, "n_segments": 3, "duration_seconds": 2.0, "features_id": "f",
        "model_id": "m", "run_id": "r", "scored_at": NOW, **columns,
    }  # fmt: skip


def write_scores(table: Path, name: str, rows: list[dict[str, object]], columns: pa.Schema) -> Part:
    path = table / "r" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=columns), path)
    return described(path, table)


# ------------------------------------------------------------------ scores


@pytest.mark.parametrize("id_type", [pa.string(), pa.int64()])
def test_rows_and_types_are_the_same_and_the_log_is_told_their_bounds(
    tmp_path: Path, id_type: pa.DataType
) -> None:
    columns = schema.scores_schema(id_type)
    ids = ["a", "b", "c"] if id_type == pa.string() else [2**53 + 1, -1, 7]
    parts = [
        write_scores(tmp_path, f"p{n}", [row(i, valence_low=None, valence=n / 4)], columns)
        for n, i in enumerate(ids)
    ]
    (one,), said = merged(tmp_path, parts, columns)
    assert (one.replaced, said) == (parts, "")
    found = pq.read_table(tmp_path / one.part.path)
    expected = [row(i, valence_low=None, valence=n / 4) for n, i in enumerate(ids)]
    assert found.schema == columns
    assert found.to_pylist() == pa.Table.from_pylist(expected, schema=columns).to_pylist()
    assert one.part.n_rows == 3
    assert one.part.n_bytes == (tmp_path / one.part.path).stat().st_size
    stats = json.loads(json.dumps(one.part.stats, allow_nan=False))
    assert (stats["minValues"]["track_id"], stats["maxValues"]["track_id"]) == (min(ids), max(ids))
    assert (stats["minValues"]["valence"], stats["maxValues"]["valence"]) == (0.0, 0.5)
    assert stats["maxValues"]["scored_at"] == "2026-11-22T01:02:03.456789Z"
    assert stats["nullCount"]["valence_low"] == 3
    assert "valence_low" not in stats["minValues"]


def test_a_column_that_came_later_is_null_in_what_was_there_before(tmp_path: Path) -> None:
    columns = schema.scores_schema(pa.large_string())
    new = {field.name for field in schema.INTERVAL_FIELDS}
    old = pa.schema([field for field in columns if field.name not in new])
    parts = [
        write_scores(tmp_path, "p0", [row("a")], old),
        write_scores(tmp_path, "p1", [row("b", valence_low=-0.5)], columns),
    ]
    todays = schema.scores_schema(pa.string())
    (one,), _ = merged(tmp_path, parts, todays)
    found = pq.read_table(tmp_path / one.part.path)
    assert found.schema == todays
    assert found["valence_low"].to_pylist() == [None, -0.5]


def test_values_that_json_has_no_word_for_are_no_bounds(tmp_path: Path) -> None:
    columns = schema.scores_schema(pa.string())
    parts = [
        write_scores(tmp_path, f"p{n}", [row("a", valence=value, arousal=value)], columns)
        for n, value in enumerate([0.25, float("inf"), float("nan")])
    ]
    (one,), _ = merged(tmp_path, parts, columns)
    assert "valence" not in json.loads(json.dumps(one.part.stats, allow_nan=False))["maxValues"]


def test_what_cannot_be_read_is_left_and_told(tmp_path: Path) -> None:
    columns = schema.scores_schema(pa.string())
    parts = [write_scores(tmp_path, f"p{n}", [row(f"t{n}")], columns) for n in range(5)]
    (tmp_path / parts[1].path).write_bytes(b"no Parquet")
    (tmp_path / parts[2].path).unlink()
    parts[3] = Part(parts[3].path, parts[3].n_bytes, 2)
    (one,), said = merged(tmp_path, parts, columns)
    assert one.replaced == [parts[0], parts[4]]
    assert pq.read_table(tmp_path / one.part.path)["track_id"].to_pylist() == ["t0", "t4"]
    assert all(part.path in said for part in parts[1:4])
    assert "1 rows, the log says 2" in said
    alone, _ = merged(tmp_path, parts[:2], columns)
    assert alone == [], "one part is not written anew as one"


def test_a_part_that_does_not_fit_the_table_is_left(tmp_path: Path) -> None:
    columns = schema.scores_schema(pa.string())
    odd = columns.set(columns.get_field_index("valence"), pa.field("valence", pa.string()))
    parts = [write_scores(tmp_path, f"p{n}", [row(f"t{n}")], columns) for n in range(2)]
    parts.append(write_scores(tmp_path, "p2", [row("t2", valence="loud")], odd))
    (one,), said = merged(tmp_path, parts, columns)
    assert one.replaced == parts[:2]
    assert parts[2].path in said


def test_only_small_parts_are_merged_the_earlier_ones_first() -> None:
    parts = [
        Part("b/2", 10, 1), Part("a/1", SMALL_BYTES - 1, 1), Part("a/3", SMALL_BYTES, 1),
        Part("a/2", 10, 0),
    ]  # fmt: skip
    assert small_parts(parts) == [parts[1], parts[0]]


def test_the_name_of_what_parts_hold_is_the_same_however_they_are_merged(tmp_path: Path) -> None:
    columns = schema.scores_schema(pa.string())
    parts = [write_scores(tmp_path, f"p{n}", [row(f"t{n}")], columns) for n in range(4)]
    before = parts_id(part.path for part in parts)
    (one,), _ = merged(tmp_path, parts[:2], columns)
    once = [one.part, *parts[2:]]
    assert parts_id(part.path for part in once) == before
    (all_of_them,), _ = merged(tmp_path, once, columns)
    assert parts_id([all_of_them.part.path]) == before
    assert parts_id(part.path for part in parts[1:]) != before


# ------------------------------------------------------------------ features


def test_features_keep_every_bit_their_metadata_and_their_checksums(tmp_path: Path) -> None:
    uris, _ = write_parts(tmp_path / "r", 30, n_parts=6, n_segments=2)
    before = pa.concat_tables([pq.read_table(uri) for uri in uris])
    parts = [described(Path(uri), tmp_path) for uri in uris]
    (one,), said = merged(tmp_path, parts, None)
    assert said == ""
    path = tmp_path / one.part.path
    found = pq.read_table(path)
    assert found.schema.equals(before.schema, check_metadata=True)
    assert found.schema.field("mel").type.value_type == pa.float16()
    assert found.equals(before)
    groups = [pq.read_metadata(path).row_group(n).num_rows for n in range(1)]
    assert max(groups) <= shards.GROUP_ROWS
    (shape,) = {mels(found, SMALL).shape[1:]}
    assert shape == (SMALL.mel.n_mels, SMALL.segment_frames)
    query = f"SELECT sum(len(mel::FLOAT[])) FROM '{path}'"
    assert duckdb.sql(query).fetchall() == [(60 * np.prod(shape),)]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with open_part(STORAGE, Location(None, str(path))) as file, pytest.raises(OSError):
        file.read()


def test_features_of_several_kinds_are_kept_apart_and_foreign_ones_left(tmp_path: Path) -> None:
    kinds = [
        write_parts(tmp_path / "a", 4, n_parts=2)[0],
        write_parts(tmp_path / "b", 4, n_parts=2, dtype="float32")[0],
        write_parts(tmp_path / "c", 4, n_parts=2, feature_set=LONG)[0],
    ]
    for uri in write_parts(tmp_path / "d", 4, n_parts=2)[0]:
        pq.write_table(pq.read_table(uri).replace_schema_metadata(), uri)
    paths = sorted(tmp_path.rglob("*.parquet"))
    found, _ = merged(tmp_path, [described(path, tmp_path) for path in paths], None)
    replaced = [{str(tmp_path / part.path) for part in one.replaced} for one in found]
    assert sorted(map(sorted, replaced)) == sorted(map(sorted, kinds))
    for one in found:
        metadata = [
            pq.read_schema(tmp_path / part.path).metadata[METADATA_KEY]
            for part in (one.part, *one.replaced)
        ]
        assert len(set(metadata)) == 1


# ------------------------------------------------------------------ traces


def test_traces_are_old_by_the_time_in_the_runs_id(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    ids = ["20200101T000000Z-aaaaaa", "20200102T000000Z-bbbbbb", "29990101T000000Z-cccccc"]
    for folder in (*ids, "mine", "_open"):
        (runs / folder).mkdir(parents=True)
        (runs / folder / "log").write_text("")
    (runs / "_open" / ids[0]).write_text("")
    (runs / "_lease.json").write_text("")
    output = parse_uri(str(tmp_path))
    found = old_runs(STORAGE, output, keep_days=30, kept=[ids[0]])
    assert [file.path for file in found] == [str(runs / ids[1] / "log")]
