"""Catalogs: every type comes back as it was, and what is unfit is refused with its first rows."""

from __future__ import annotations

import datetime
import decimal
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow.csv import write_csv

from mer_batch import schema
from mer_batch.catalog import Catalog, read_catalog
from mer_batch.config import CatalogConfig, StorageConfig
from mer_batch.errors import CatalogError, StorageError
from mer_batch.storage import Location, Storage, parse_uri

Place = tuple[Storage, Location]

TAKEN = [field.name for field in schema.ENRICHED_FIELDS]


def open_catalog(
    uri: object,
    storage: Storage | None = None,
    *,
    taken_names: list[str] | None = None,
    held_type: pa.DataType | None = None,
    **config: Any,
) -> Catalog:
    storage = storage or Storage(StorageConfig())
    names = TAKEN if taken_names is None else taken_names
    settings = CatalogConfig(uri=str(uri), **config)
    return read_catalog(settings, storage, taken_names=names, held_type=lambda: held_type)


def refusal(uri: object, **config: Any) -> str:
    with pytest.raises(CatalogError) as caught:
        open_catalog(uri, **config)
    return str(caught.value)


def all_rows(catalog: Catalog) -> pa.Table:
    return pa.Table.from_batches(list(catalog.batches()), schema=catalog.schema)


def tracks(n: int, **columns: Any) -> pa.Table:
    """A table of `n` tracks with more columns."""
    ids, uris = [f"t{i}" for i in range(n)], [f"music/{i}.mp3" for i in range(n)]
    return pa.table({"track_id": ids, "audio_uri": uris, **columns})


def put_table(storage: Storage, location: Location, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write(location, sink.getvalue().to_pybytes())


# ------------------------------------------------------------------ types

MOMENT = datetime.datetime(2026, 11, 22, 3, 4, 5, 678901)

COLUMNS = {
    "int8": pa.array([1, None, -128], pa.int8()),
    "int16": pa.array([1, None, 2], pa.int16()),
    "int32": pa.array([1, None, 2], pa.int32()),
    "int64": pa.array([2**63 - 1, None, 2**53 + 1], pa.int64()),
    "uint8": pa.array([255, None, 0], pa.uint8()),
    "uint64": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "float32": pa.array([0.1, None, float("nan")], pa.float32()),
    "float64": pa.array([0.1, None, float("-inf")], pa.float64()),
    "bool": pa.array([True, None, False]),
    "date": pa.array([datetime.date(1969, 7, 20), None, datetime.date(2026, 1, 1)]),
    "time": pa.array([datetime.time(1, 2, 3, 4), None, datetime.time(0)], pa.time64("us")),
    "timestamp_ms": pa.array([MOMENT, None, MOMENT], pa.timestamp("ms")),
    "timestamp_us_rome": pa.array([MOMENT, None, MOMENT], pa.timestamp("us", tz="Europe/Rome")),
    "timestamp_ns_utc": pa.array([1, None, 2], pa.timestamp("ns", tz="UTC")),
    "duration": pa.array([datetime.timedelta(seconds=1), None, None], pa.duration("ms")),
    "decimal": pa.array([decimal.Decimal("12.30"), None, None], pa.decimal128(9, 2)),
    "decimal256": pa.array([decimal.Decimal("1" * 50), None, None], pa.decimal256(60, 0)),
    "string": pa.array(["007", None, ""]),
    "large_string": pa.array(["Björk", None, "日本"], pa.large_string()),
    "binary": pa.array([b"\xff\x00", None, b""]),
    "fixed_binary": pa.array([b"abcd", None, b"efgh"], pa.binary(4)),
    "list": pa.array([["a", None], None, []]),
    "large_list": pa.array([[1], None, []], pa.large_list(pa.int16())),
    "fixed_list": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
    "struct": pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}]),
    "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32())),
    "dictionary": pa.array(["rock", None, "pop"]).dictionary_encode(),
    "nothing": pa.nulls(3),
    "all_null_string": pa.nulls(3, pa.string()),
}


@pytest.fixture
def wide() -> pa.Table:
    """One column of every type that a catalog is likely to hold, with metadata."""
    table = tracks(3, **COLUMNS)
    fields = [
        field.with_metadata({"comment": f"on {field.name}"}).with_nullable(field.name != "track_id")
        for field in table.schema
    ]
    return table.cast(pa.schema(fields, metadata={"owner": "labels", "pandas": "{}"}))


def assert_same_columns(found: pa.Schema, expected: pa.Schema) -> None:
    # The schemas' own comparison of metadata looks at names inside lists, which Parquet gives.
    assert found.equals(expected)
    assert found.metadata == expected.metadata
    assert [field.metadata for field in found] == [field.metadata for field in expected]
    assert [field.nullable for field in found] == [field.nullable for field in expected]


def test_every_type_of_a_parquet_file_comes_back(tmp_path: Path, wide: pa.Table) -> None:
    pq.write_table(wide, tmp_path / "catalog.parquet")
    catalog = open_catalog(tmp_path / "catalog.parquet")
    assert_same_columns(catalog.schema, wide.schema)
    # As text, because NaN is not equal to itself.
    assert str(all_rows(catalog).to_pylist()) == str(wide.to_pylist())


def test_every_type_of_several_parts_comes_back(place: Place, wide: pa.Table) -> None:
    storage, folder = place
    for i in range(3):
        put_table(storage, folder.child(f"part-{i}.parquet"), wide.slice(i, 1))
    storage.write(folder.child("_SUCCESS"), b"")
    storage.write(folder.child("_temporary", "0", "part-9.parquet"), b"half")
    storage.write(folder.child(".part-0.parquet.crc"), b"crc")
    catalog = open_catalog(folder.uri, storage)
    assert_same_columns(catalog.schema, wide.schema)
    assert str(all_rows(catalog).to_pylist()) == str(wide.to_pylist())
    assert catalog.tracks.table()["track_id"].to_pylist() == ["t0", "t1", "t2"]


def test_a_part_whose_column_lost_its_type_takes_the_others(tmp_path: Path) -> None:
    pq.write_table(tracks(1, year=pa.nulls(1), extra=[1]), tmp_path / "a.parquet")
    other = tracks(2, year=pa.array([1999, 2000], pa.int16())).slice(1)
    pq.write_table(other, tmp_path / "b.parquet")
    catalog = open_catalog(tmp_path)
    assert catalog.schema.field("year").type == pa.int16()
    assert all_rows(catalog).select(["year", "extra"]).to_pylist() == [
        {"year": None, "extra": 1},
        {"year": 2000, "extra": None},
    ]


@pytest.mark.parametrize("is_lacking", [True, False])
@pytest.mark.parametrize("names", ["ab", "ba"])
def test_what_is_never_null_in_some_parts_may_be_null_in_all(
    tmp_path: Path, names: str, is_lacking: bool
) -> None:
    table = tracks(2, label=["ECM", None])
    never_null = pa.field("label", pa.string(), nullable=False)
    first = table.slice(0, 1).cast(table.schema.set(2, never_null))
    second = table.slice(1).select(table.schema.names[: 2 if is_lacking else 3])
    for name, part in zip(names, (first, second), strict=True):
        pq.write_table(part, tmp_path / f"{name}.parquet")
    catalog = open_catalog(tmp_path)
    assert catalog.schema.field("label").nullable
    assert sorted(all_rows(catalog).to_pylist(), key=str) == table.to_pylist()


def test_a_delta_table_with_nulls_where_it_promises_none_is_refused(tmp_path: Path) -> None:
    table = tracks(2, label=["ECM", "ECM"])
    never_null = pa.field("label", pa.string(), nullable=False)
    write_deltalake(tmp_path / "t", table.cast(table.schema.set(2, never_null)))
    (part,) = (tmp_path / "t").glob("*.parquet")
    pq.write_table(tracks(2), part)
    assert "'label' is declared as never null and holds nulls" in refusal(tmp_path / "t")


def test_parts_whose_types_differ_are_refused(tmp_path: Path) -> None:
    pq.write_table(tracks(1, year=["1999"]), tmp_path / "a.parquet")
    pq.write_table(tracks(2, year=[1, 2]).slice(1), tmp_path / "b.parquet")
    assert "year" in refusal(tmp_path)


def test_hive_partitions_are_columns(place: Place) -> None:
    storage, folder = place
    for number, label in enumerate(("Blue Note", "ECM")):
        table = tracks(2).slice(number)
        put_table(
            storage, folder.child(f"label={label}", "year=2026", "p.parquet"), table.slice(0, 1)
        )
    catalog = open_catalog(folder.uri, storage)
    assert all_rows(catalog).to_pylist() == [
        {"track_id": "t0", "audio_uri": "music/0.mp3", "label": "Blue Note", "year": 2026},
        {"track_id": "t1", "audio_uri": "music/1.mp3", "label": "ECM", "year": 2026},
    ]


def test_a_folder_with_an_equals_sign_above_the_catalog_is_no_partition(tmp_path: Path) -> None:
    folder = tmp_path / "run_date=2026-11-22" / "_catalog"
    folder.mkdir(parents=True)
    for i in range(2):
        pq.write_table(tracks(2).slice(i, 1), folder / f"{i}.parquet")
    assert open_catalog(folder).schema.names == ["track_id", "audio_uri"]


def test_many_batches_keep_the_order(tmp_path: Path) -> None:
    n = 150_000
    pq.write_table(
        tracks(n, number=pa.array(range(n))), tmp_path / "c.parquet", row_group_size=40_000
    )
    catalog = open_catalog(tmp_path / "c.parquet")
    rows = all_rows(catalog)
    assert rows["number"].to_pylist() == list(range(n))
    assert rows["track_id"].to_pylist() == catalog.tracks.table()["track_id"].to_pylist()


# ------------------------------------------------------------------ CSV


def test_csv_keeps_as_text_what_a_number_would_change(tmp_path: Path) -> None:
    path = tmp_path / "catalog.csv"
    path.write_text(
        "\ufefftrack_id,audio_uri,isrc,year,gain,title,huge,big,empty,exponent\n"
        '007,a.mp3,0123,1999,-1.5,"Say ""Hi"", then\ngo",1e400,9007199254740993,,1e5\n'
        "08,b.mp3,99,,2,Björk,1,12,,2\n",
        encoding="utf-8",
    )
    catalog = open_catalog(path)
    assert all_rows(catalog).to_pylist() == [
        {
            "track_id": "007", "audio_uri": "a.mp3", "isrc": "0123", "year": 1999, "gain": -1.5,
            "title": 'Say "Hi", then\ngo', "huge": "1e400", "big": 9007199254740993, "empty": "",
            "exponent": 1e5,
        },
        {
            "track_id": "08", "audio_uri": "b.mp3", "isrc": "99", "year": None, "gain": 2.0,
            "title": "Björk", "huge": "1", "big": 12, "empty": "", "exponent": 2.0,
        },
    ]  # fmt: skip


def test_csv_with_more_than_a_block_of_line_breaks_in_quotes(tmp_path: Path) -> None:
    rows = [f'{i},{i}.mp3,"one, two\nthree ""{i}"""' for i in range(40_000)]
    (tmp_path / "c.csv").write_text("track_id,audio_uri,title\n" + "\n".join(rows))
    table = all_rows(open_catalog(tmp_path / "c.csv"))
    assert table.num_rows == 40_000
    assert table["title"][39_999].as_py() == 'one, two\nthree "39999"'


def test_csv_parts_are_of_one_type_together(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("track_id,audio_uri,year\n1,a,\n2,b,\n")
    (tmp_path / "b.csv").write_text("track_id,audio_uri,year,label\n03,c,1999,ECM\n")
    table = all_rows(open_catalog(tmp_path))
    assert table.to_pydict() == {
        "track_id": ["1", "2", "03"],
        "audio_uri": ["a", "b", "c"],
        "year": [None, None, 1999],
        "label": [None, None, "ECM"],
    }


def test_csv_ids_and_versions_are_never_floats(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("track_id,audio_uri,version\n1.1,a,2.50\n1.10,b,\n1e2,c,2.5\n")
    catalog = open_catalog(path, version_column="version")
    assert catalog.tracks.table()["track_id"].to_pylist() == ["1.1", "1.10", "1e2"]
    assert catalog.tracks.table()["stated_version"].to_pylist() == ["2.50", None, "2.5"]


@pytest.mark.parametrize(
    ("held", "ids", "expected"),
    [
        (None, ["0", "7"], [0, 7]),
        (pa.int64(), ["0", "7"], [0, 7]),
        (pa.string(), ["0", "7"], ["0", "7"]),
        (pa.string(), ["007", "A7", "-0", "1e2"], ["007", "A7", "-0", "1e2"]),
    ],
)
def test_csv_ids_are_of_the_type_that_the_output_holds(
    tmp_path: Path, held: pa.DataType | None, ids: list[str], expected: list[Any]
) -> None:
    rows = "".join(f"{i},a,{n}\n" for n, i in enumerate(ids))
    (tmp_path / "c.csv").write_text("track_id,audio_uri,n\n" + rows)
    catalog = open_catalog(tmp_path / "c.csv", held_type=held)
    assert catalog.tracks.table()["track_id"].to_pylist() == expected
    assert all_rows(catalog)["track_id"].to_pylist() == expected
    assert all_rows(catalog)["n"].to_pylist() == list(range(len(ids)))


@pytest.mark.parametrize("strange", ["A7", "007", "-0", "9223372036854775808", "7" * 5_000, "٣"])
def test_csv_ids_that_the_output_cannot_hold_are_refused(tmp_path: Path, strange: str) -> None:
    ids = ["0", "-12", strange, str(2**63 - 1)]
    (tmp_path / "c.csv").write_text("track_id,audio_uri\n" + "".join(f"{i},a\n" for i in ids))
    message = refusal(tmp_path / "c.csv", held_type=pa.int64())
    assert f"1 ids that are not int64 as those of the output, the first at '{strange[:100]}" in (
        message
    )
    assert message.endswith("; mend them, or use another output.uri")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "Empty"),
        (b"track_id,audio_uri\n", "no rows"),
        (b"track_id,audio_uri\n1,a\n2\n", "Expected 2 columns, got 1"),
        ("track_id,audio_uri\n1,é\n".encode("latin-1"), "line 2 is no UTF-8 (byte 0xe9)"),
        (b"track_id,audio_uri,x,x\n1,a,2,3\n", "several columns of one name: 'x'"),
    ],
)
def test_csv_that_is_broken_is_refused(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "c.csv").write_bytes(content)
    assert word in refusal(tmp_path / "c.csv")


# Text that the CSV rules put no limits on, but NUL and a lone carriage return.
cell = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\ufeff"), max_size=12)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(
    values=st.lists(cell | st.integers().map(str) | st.floats().map(str), min_size=1, max_size=5)
)
def test_a_csv_value_reads_as_itself_or_as_an_equal_number(
    tmp_path: Path, values: list[str]
) -> None:
    quoted = ['"' + value.replace('"', '""') + '"' for value in values]
    lines = [f"id{i},u{i},{value}" for i, value in enumerate(quoted)]
    path = tmp_path / "c.csv"
    path.write_text(
        "track_id,audio_uri,x\n" + "\n".join(lines) + "\n", encoding="utf-8", newline=""
    )
    for value, read in zip(values, all_rows(open_catalog(path))["x"].to_pylist(), strict=True):
        if isinstance(read, str):
            assert read == value
        elif read is None:
            assert value == ""
        elif isinstance(read, int):
            assert str(read) == value
        else:
            assert read == float(value)


# ------------------------------------------------------------------ JSON lines


def test_jsonl_keeps_dates_as_text_at_any_depth(tmp_path: Path) -> None:
    rows = [
        {
            "track_id": 1,
            "audio_uri": "a",
            "on": "2024-01-02",
            "deep": {"on": ["2024-01-02 03:04:05"]},
        },
        {"track_id": 2, "audio_uri": "b", "on": None, "deep": {"on": []}},
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert all_rows(open_catalog(path)).to_pylist() == rows


def test_jsonl_may_have_a_mark_long_lines_and_missing_keys(tmp_path: Path) -> None:
    rows = [
        {"track_id": "a", "audio_uri": "x", "text": "y" * 3_000_000},
        {"track_id": "Ω", "audio_uri": "x"},
    ]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "c.ndjson").write_text("\ufeff" + text, encoding="utf-8")
    table = all_rows(open_catalog(tmp_path / "c.ndjson"))
    assert table.to_pylist() == [rows[0], {**rows[1], "text": None}]


@pytest.mark.parametrize(
    "content",
    [
        '{"track_id": 1, "audio_uri": "a"',
        '{"track_id": 1, "audio_uri": "a"}\n{"track_id": "x", "audio_uri": "b"}',
        '{"track_id": 1, "audio_uri": "a", "x": {}}',
        '{"track_id": 9223372036854775808, "audio_uri": "a"}',
        "[]",
        "",
    ],
)
def test_jsonl_that_is_broken_or_cannot_be_published_is_refused(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "c.jsonl").write_text(content)
    refusal(tmp_path / "c.jsonl")


# ------------------------------------------------------------------ folders of audio


def test_a_folder_of_audio_is_a_catalog(place: Place) -> None:
    storage, folder = place
    names = [
        "a.mp3",
        "B.FLAC",
        "deep/two words.wav",
        "...And Justice/01 Blackened.mp3",
        ".x.ogg",
        "100%.mp3",
        "._a.mp3",  # what macOS puts beside a.mp3 on foreign disks: a reject, not a silence
    ]
    for name in [*names, "cover.jpg", "notes"]:
        storage.write(folder.child(name), name.encode())
    catalog = open_catalog(folder.uri, storage)
    keys = catalog.tracks.table().to_pydict()
    assert sorted(keys["track_id"]) == sorted(names)
    for track_id, uri in zip(keys["track_id"], keys["audio_uri"], strict=True):
        assert storage.read_audio(uri, max_bytes=100).content == track_id.encode()
    (note,) = catalog.notes
    assert note.startswith("2 files in ")
    assert all_rows(catalog).schema.names == ["track_id", "audio_uri"]


def test_one_file_of_audio_is_a_catalog_where_that_is_said(place: Place) -> None:
    storage, folder = place
    for name in ("a.mp3", "b.mp3"):
        storage.write(folder.child(name), name.encode())
    catalog = open_catalog(folder.child("b.mp3").uri, storage, format="audio")
    assert catalog.notes == []
    assert catalog.tracks.table()["track_id"].to_pylist() == ["b.mp3"]
    (uri,) = catalog.tracks.table()["audio_uri"].to_pylist()
    assert storage.read_audio(uri, max_bytes=9).content == b"b.mp3"


def test_names_that_are_no_utf8_can_be_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "music"
    folder.mkdir()
    path = os.fsencode(folder) + b"/caf\xe9 100%.mp3"
    with open(path, "wb") as file:
        file.write(b"latin")
    catalog = open_catalog(folder)
    ((track_id,), (uri,)) = (
        catalog.tracks.table()[name].to_pylist() for name in ("track_id", "audio_uri")
    )
    assert track_id == "caf%E9 100%25.mp3"
    assert Storage(StorageConfig()).read_audio(uri, max_bytes=9).content == b"latin"


def test_columns_named_for_another_catalog_do_not_disturb_a_folder_of_audio(music: Path) -> None:
    assert open_catalog(music, id_column="id", audio_column="uri").tracks.table().num_rows == 8


def test_a_mixed_folder_is_audio_unless_columns_are_named(music: Path) -> None:
    pq.write_table(tracks(2), music / "catalog.parquet")
    assert open_catalog(music).tracks.table().num_rows == 8
    assert open_catalog(music, id_column="track_id").tracks.table().num_rows == 2
    assert open_catalog(music, format="parquet").tracks.table().num_rows == 2


def test_names_that_are_no_text_have_ids_that_no_other_name_has(tmp_path: Path) -> None:
    names = [b"\xff.mp3", b"%FF.mp3", b"%25FF.mp3", b"%2525FF.mp3", b"two words\xe9.mp3",
             "é.mp3".encode(), b"%C3%A9.mp3", b"100%.mp3", b"%ff.mp3", b"50%25.mp3"]  # fmt: skip
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(name)
    keys = open_catalog(tmp_path).tracks.table()
    found = {
        Path(parse_uri(uri).path).read_bytes(): track_id
        for track_id, uri in zip(
            keys["track_id"].to_pylist(), keys["audio_uri"].to_pylist(), strict=True
        )
    }
    assert found == {
        b"\xff.mp3": "%FF.mp3",
        b"%FF.mp3": "%25FF.mp3",
        b"%25FF.mp3": "%2525FF.mp3",
        b"%2525FF.mp3": "%252525FF.mp3",
        b"two words\xe9.mp3": "two words%E9.mp3",
        # Nothing that is no text could be taken for these.
        "é.mp3".encode(): "é.mp3",
        b"%C3%A9.mp3": "%C3%A9.mp3",
        b"100%.mp3": "100%.mp3",
        b"%ff.mp3": "%ff.mp3",
        b"50%25.mp3": "50%25.mp3",
    }


def test_keys_of_a_store_are_their_own_ids(s3: Any) -> None:
    storage, folder = Storage(StorageConfig(endpoint_url=s3.endpoint)), Location(s3.bucket, "lib")
    storage.write(folder.child("%FF.mp3"), b"x")
    assert open_catalog(folder.uri, storage).tracks.table()["track_id"].to_pylist() == ["%FF.mp3"]


def test_an_output_inside_the_folder_of_audio_is_no_catalog(music: Path) -> None:
    write_deltalake(music / "out" / "scores", tracks(3))
    assert open_catalog(music).tracks.table().num_rows == 8


@pytest.mark.parametrize(
    ("names", "word"),
    [
        ((), "neither audio nor table"),
        (("readme.txt",), "neither audio nor table"),
        (("a.csv", "b.parquet"), "csv and parquet"),
        (("_hidden.csv",), "neither audio nor table"),
    ],
)
def test_a_folder_of_no_one_kind_is_refused(
    tmp_path: Path, names: tuple[str, ...], word: str
) -> None:
    for name in names:
        (tmp_path / name).write_text("track_id,audio_uri\n1,a\n")
    assert word in refusal(tmp_path)


def test_a_forced_format_without_files_is_refused(music: Path) -> None:
    assert "holds no csv files" in refusal(music, format="csv")
    assert "cannot be read as delta" in refusal(music, format="delta")


# ------------------------------------------------------------------ Delta


def test_a_delta_table_is_read_at_its_latest_version(place: Place) -> None:
    storage, folder = place
    folder = folder.child("two words é")
    options = storage.delta_options(folder)
    write_deltalake(folder.uri, tracks(4), storage_options=options)
    wider = tracks(6, year=pa.array(range(6), pa.int32())).slice(4)
    write_deltalake(folder.uri, wider, mode="append", schema_mode="merge", storage_options=options)
    before = open_catalog(folder.uri, storage)
    assert before.tracks.table().num_rows == 6
    years = dict(all_rows(before).select(["track_id", "year"]).to_pandas().values.tolist())
    assert (years["t4"], years["t5"]) == (4, 5)
    write_deltalake(
        folder.uri, tracks(2), mode="overwrite", schema_mode="overwrite", storage_options=options
    )
    after = open_catalog(folder.uri, storage)
    assert after.tracks.table()["track_id"].to_pylist() == ["t0", "t1"]
    assert after.fingerprint != before.fingerprint


def test_a_partitioned_delta_table_is_refused(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "t", tracks(2, label=["a", "b"]), partition_by=["label"])
    assert "partitioned" in refusal(tmp_path / "t")


def test_a_delta_table_whose_files_hold_deleted_rows_is_refused(tmp_path: Path) -> None:
    configuration = {"delta.enableDeletionVectors": "true"}
    write_deltalake(tmp_path / "t", tracks(2), configuration=configuration)
    log = tmp_path / "t" / "_delta_log" / ("0" * 20 + ".json")
    if "deletionVectors" not in log.read_text():
        pytest.skip("this delta-rs does not write the feature")
    assert "deletionVectors" in refusal(tmp_path / "t")


def name_another_file(storage: Storage, table: Location, path: str) -> None:
    """Have a Delta table's only commit name a file of our choice."""
    log = table.child("_delta_log", "0" * 20 + ".json")
    actions = [json.loads(line) for line in storage.read(log).splitlines()]
    for action in actions:
        if "add" in action:
            action["add"]["path"] = path
    storage.write(log, "\n".join(map(json.dumps, actions)).encode())


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("two words.parquet", "two%20words.parquet"),
        ("100%.parquet", "100%25.parquet"),
        ("a%20b.parquet", "a%2520b.parquet"),
        ("é.parquet", "%C3%A9.parquet"),
        ("deep/x.parquet", "deep%2Fx.parquet"),
    ],
)
def test_names_in_a_delta_tables_log_are_percent_encoded(
    place: Place, name: str, written: str, is_whole: bool
) -> None:
    storage, folder = place
    write_deltalake(folder.uri, tracks(2), storage_options=storage.delta_options(folder))
    put_table(storage, folder.child(name), tracks(3))
    top = folder.uri if folder.is_s3 else f"file://{folder.uri}"
    name_another_file(storage, folder, f"{top}/{written}" if is_whole else written)
    assert all_rows(open_catalog(folder.uri, storage)).to_pydict() == tracks(3).to_pydict()


@pytest.mark.parametrize(
    "path",
    [
        "{uri}/private.parquet",
        "../private.parquet",
        "a/../../p",
        "%2e%2e/private.parquet",
        "..%2Fprivate.parquet",
        "a%2F..%2f%2E.%2Fp",
    ],
)
def test_a_delta_table_publishes_no_files_from_outside_its_folder(place: Place, path: str) -> None:
    storage, folder = place
    table, private = folder.child("t"), folder.child("private.parquet")
    write_deltalake(table.uri, tracks(2), storage_options=storage.delta_options(table))
    put_table(storage, private, tracks(3))
    top = folder.uri if folder.is_s3 else f"file://{folder.uri}"
    name_another_file(storage, table, path.format(uri=top))
    with pytest.raises(CatalogError, match=r"names 1 files that lie outside its folder, the first"):
        open_catalog(table.uri, storage)
    with pytest.raises(CatalogError, match="names 1 files"):
        open_catalog(table.uri, storage, allowed_roots=[f"{folder.uri}/elsewhere"])
    if path.startswith("{"):  # as a shallow clone names them
        clone = open_catalog(table.uri, storage, allowed_roots=[folder.uri])
        assert clone.tracks.table().num_rows == 3


def test_a_delta_table_names_files_of_its_own_kind_of_storage_only(tmp_path: Path, s3: Any) -> None:
    storage, far = Storage(StorageConfig(endpoint_url=s3.endpoint)), Location(s3.bucket, "lib/t")
    near = parse_uri(str(tmp_path / "t"))
    pq.write_table(tracks(1), tmp_path / "x.parquet")
    roots = [str(tmp_path), f"s3://{s3.bucket}"]
    ways = (f"file://{tmp_path}/x.parquet", f"file:{tmp_path}/x.parquet", "s3://other/x.parquet")
    for table, way in [(far, ways[0]), (far, ways[1]), (near, ways[2])]:
        options = storage.delta_options(table)
        write_deltalake(table.uri, tracks(2), storage_options=options, mode="overwrite")
        name_another_file(storage, table, way)
        with pytest.raises(CatalogError, match="names 1 files"):
            open_catalog(table.uri, storage, allowed_roots=[*roots, "s3://other"])
        storage.delete(table.child("_delta_log", "0" * 20 + ".json"))


# ------------------------------------------------------------------ keys


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
)
def test_text_ids_of_any_kind_are_strings(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"track_id": pa.array(["x", "y"]).cast(kind), "audio_uri": ["/a", "/b"]})
    pq.write_table(table, tmp_path / "c.parquet")
    catalog = open_catalog(tmp_path / "c.parquet")
    assert catalog.id_type == pa.string()
    assert catalog.tracks.table()["track_id"].to_pylist() == ["x", "y"]
    assert all_rows(catalog)["track_id"].to_pylist() == ["x", "y"]


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.uint16(), pa.uint64(), pa.int64()])
def test_whole_ids_of_any_kind_are_int64(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"track_id": pa.array([3, 1], kind), "audio_uri": ["/a", "/b"]})
    pq.write_table(table, tmp_path / "c.parquet")
    catalog = open_catalog(tmp_path / "c.parquet")
    assert catalog.id_type == pa.int64()
    assert all_rows(catalog).schema.field("track_id").type == kind


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(
    ids=st.lists(st.none() | st.text(max_size=4), min_size=1, max_size=8)
    | st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8)
)
def test_ids_are_taken_exactly_when_all_are_there_and_differ(
    tmp_path: Path, ids: list[Any]
) -> None:
    present = [i for i in ids if i is not None]
    kind = pa.string() if not present or isinstance(present[0], str) else pa.int64()
    table = pa.table({"track_id": pa.array(ids, kind), "audio_uri": ["/a"] * len(ids)})
    pq.write_table(table, tmp_path / "c.parquet")
    n_missing = sum(i is None or i == "" for i in ids)
    repeated = {i for i in present if present.count(i) > 1}
    if n_missing:
        assert f"{n_missing} null or empty ids" in refusal(tmp_path / "c.parquet")
    elif repeated:
        assert f"{len(repeated)} ids stand in more than one row" in refusal(tmp_path / "c.parquet")
    else:
        assert open_catalog(tmp_path / "c.parquet").tracks.table()["track_id"].to_pylist() == ids


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"track_id": [1, 1, 2, 2, 2, 3], "audio_uri": ["/a"] * 6}, ["2 ids stand", "1, 2;"]),
        (
            {"track_id": ["a", None, "", "b"], "audio_uri": ["/a"] * 4},
            ["2 null or empty ids", "1, 2"],
        ),
        ({"track_id": ["a", "b"], "audio_uri": ["/a", None]}, ["1 null or empty URIs", "'b'"]),
        ({"track_id": ["a", "b"], "audio_uri": ["", "/a"]}, ["1 null or empty URIs", "'a'"]),
        (
            {"track_id": list("abcdefg"), "audio_uri": [*(f"gs://b/{i}" for i in range(6)), "/x"]},
            ["6 URIs whose scheme", "track_id 'a' 'gs://b/0'", "'e' 'gs://b/4', ..."],
        ),
        ({"track_id": [1.5, 2.5], "audio_uri": ["/a", "/b"]}, ["double", "strings or integers"]),
        ({"track_id": [True, False], "audio_uri": ["/a", "/b"]}, ["bool", "strings or integers"]),
        ({"track_id": [[1], [2]], "audio_uri": ["/a", "/b"]}, ["list", "strings or integers"]),
        ({"track_id": [b"a", b"b"], "audio_uri": ["/a", "/b"]}, ["binary", "strings or integers"]),
        ({"track_id": [1, 2], "audio_uri": [1, 2]}, ["int64", "URIs must be strings"]),
        (
            {"track_id": [1, 2], "uri": ["/a", "/b"]},
            ["'audio_uri'", "no such column", "'track_id', 'uri'"],
        ),
        (
            {"id": [1], "uri": ["/a"]},
            ["catalog.id_column='track_id'", "catalog.audio_column='audio_uri'"],
        ),
        (
            {"track_id": [1], "audio_uri": ["/a"], "valence": [0.1], "tag_status": ["x"]},
            ["already has columns named valence, tag_status", "output.prefix"],
        ),
    ],
)
def test_what_is_unfit_is_refused_with_count_and_first_offenders(
    tmp_path: Path, columns: dict[str, list[Any]], words: list[str]
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    message = refusal(tmp_path / "c.parquet")
    for word in words:
        assert word in message


def test_other_unfit_catalogs(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(tracks(3).slice(0, 0), path)
    assert "no rows" in refusal(path)
    pq.write_table(
        pa.table({"track_id": pa.array([2**63], pa.uint64()), "audio_uri": ["/a"]}), path
    )
    assert (
        "1 ids above 2^63 - 1, the first at 9223372036854775808; cast them to strings"
        in refusal(path)
    )
    pq.write_table(tracks(2, seconds=["long", "short"]), path)
    assert "cannot be read as double" in refusal(path, duration_column="seconds")
    assert "catalog.version_column='none'" in refusal(path, version_column="none")
    same = pa.Table.from_arrays([pa.array(["a"])] * 4, names=["track_id", "audio_uri", "x", "x"])
    pq.write_table(same, path)
    assert "duplicate field names" in refusal(path)
    path.write_bytes(b"PAR1 and no more")
    assert "cannot be read as parquet" in refusal(path)
    assert "no such file" in refusal(tmp_path / "none.parquet")
    (tmp_path / "c.xlsx").write_bytes(b"")
    assert "must end in one of .parquet" in refusal(tmp_path / "c.xlsx")
    with pytest.raises(StorageError, match="must be a path"):
        open_catalog("gs://bucket/catalog.parquet")


def test_faults_are_counted_over_all_batches_and_the_first_kind_is_told(tmp_path: Path) -> None:
    ids: list[str | None] = [f"t{n}" for n in range(200_000)]
    uris = [f"{n}.mp3" for n in range(len(ids))]
    uris[3] = uris[150_000] = "gs://bucket/a.mp3"
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"track_id": ids, "audio_uri": uris}), path)
    words = r"2 URIs whose scheme .* at track_id 't3' 'gs://bucket/a.mp3', 't150000' 'gs:"
    with pytest.raises(CatalogError, match=words):
        open_catalog(path)
    ids[199_999] = ids[5]
    pq.write_table(pa.table({"track_id": ids, "audio_uri": uris}), path)
    with pytest.raises(CatalogError, match=r"1 ids stand in more than one row: 't5'; ids must"):
        open_catalog(path)
    ids[70_000] = ids[199_998] = None
    pq.write_table(pa.table({"track_id": ids, "audio_uri": uris}), path)
    with pytest.raises(CatalogError, match=r"2 null or empty ids, the first at row 70000, 199998$"):
        open_catalog(path)


def test_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    buffers = [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    bad = pa.Array.from_buffers(pa.string(), 1, buffers)
    at = {"track_id": "row 0", "audio_uri": "track_id 'a'", "version": "track_id 'a'"}
    for name, first in at.items():
        columns = {"track_id": ["a"], "audio_uri": ["/a"], "version": ["1"], name: bad}
        pq.write_table(pa.table(columns), tmp_path / "c.parquet")
        words = f"column {name!r}: 1 values that are no UTF-8, the first at {first}"
        assert words in refusal(tmp_path / "c.parquet", version_column="version")


def test_versions_and_durations_of_any_type(tmp_path: Path) -> None:
    table = tracks(
        3,
        updated=pa.array([MOMENT, None, MOMENT], pa.timestamp("us")),
        etag=pa.array(["x", "", None]).dictionary_encode(),
        seconds=pa.array([decimal.Decimal("1.5"), None, decimal.Decimal("2")]),
    )
    pq.write_table(table, tmp_path / "c.parquet")
    keys = open_catalog(
        tmp_path / "c.parquet", duration_column="seconds", version_column="etag"
    ).tracks.table()
    assert keys["expected_seconds"].to_pylist() == [1.5, None, 2.0]
    assert keys["stated_version"].to_pylist() == ["x", None, None]
    dated = open_catalog(tmp_path / "c.parquet", version_column="updated").tracks.table()[
        "stated_version"
    ]
    assert dated.to_pylist()[1] is None
    assert dated[0].as_py() == dated[2].as_py() == "2026-11-22 03:04:05.678901"


def test_empty_durations_are_none(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("track_id,audio_uri,seconds\n1,a,\n2,b,\n")
    keys = open_catalog(tmp_path / "c.csv", duration_column="seconds").tracks.table()
    assert keys["expected_seconds"].to_pylist() == [None, None]
    lengths = pa.array(["", "1.5", None]).dictionary_encode()
    pq.write_table(tracks(3, seconds=lengths), tmp_path / "c.parquet")
    keys = open_catalog(tmp_path / "c.parquet", duration_column="seconds").tracks.table()
    assert keys["expected_seconds"].to_pylist() == [None, 1.5, None]


# ------------------------------------------------------------------ URIs


@pytest.mark.parametrize("layout", ["file", "folder", "folder with a slash"])
def test_relative_uris_are_below_the_catalogs_own_folder(place: Place, layout: str) -> None:
    storage, folder = place
    names = ["a.mp3", "deep/100% é.mp3", "two words.mp3"]
    for name in names:
        storage.write(folder.child(name), name.encode())
    table = pa.table({"track_id": [1, 2, 3], "audio_uri": names})
    put_table(storage, folder.child("c.parquet"), table)
    put_table(storage, folder.child("d.parquet"), table.slice(0, 0))
    uris = {
        "file": folder.child("c.parquet").uri,
        "folder": folder.uri,
        "folder with a slash": folder.uri + "/",
    }
    catalog = open_catalog(uris[layout], storage, format="parquet")
    for name, uri in zip(names, catalog.tracks.table()["audio_uri"].to_pylist(), strict=True):
        assert parse_uri(uri) == folder.child(name)
        assert storage.read_audio(uri, max_bytes=99).content == name.encode()
    # The column itself is delivered untouched.
    assert all_rows(catalog)["audio_uri"].to_pylist() == names


@pytest.mark.parametrize("suffix", ["", "/"])
def test_a_catalog_at_the_top_of_a_bucket(s3: Any, suffix: str) -> None:
    storage, bucket = Storage(StorageConfig(endpoint_url=s3.endpoint)), Location(s3.bucket, "")
    for number in range(2):
        table = pa.table({"track_id": [number], "audio_uri": [f"{number}.mp3"]})
        put_table(storage, bucket.child(f"{number}.parquet"), table)
        storage.write(bucket.child(f"{number}.mp3"), b"x")
    catalog = open_catalog(f"s3://{s3.bucket}{suffix}", storage, id_column="track_id")
    assert "" not in storage.audio_versions(catalog.tracks.table()["audio_uri"].to_pylist())
    single = open_catalog(f"s3://{s3.bucket}/0.parquet", storage)
    assert single.tracks.table()["audio_uri"].to_pylist() == [f"s3://{s3.bucket}/0.mp3"]


def test_absolute_uris_stay_as_they_are(tmp_path: Path) -> None:
    uris = ["/a", "file:///b%20c", "FILE:/d", "s3://b/k", "S3A://b/k", "c:d.mp3", "a//b.mp3"]
    table = pa.table({"track_id": range(len(uris)), "audio_uri": uris})
    pq.write_table(table, tmp_path / "c.parquet")
    read = open_catalog(tmp_path / "c.parquet").tracks.table()["audio_uri"].to_pylist()
    assert read[:5] == uris[:5]
    assert read[5:] == [f"{tmp_path}/c:d.mp3", f"{tmp_path}/a//b.mp3"]


def test_relative_uris_that_climb_are_refused(place: Place) -> None:
    storage, folder = place
    uris = ["a.mp3", "../a.mp3", "x/../a.mp3", "x/../../a.mp3", "..", "./a", "a/..b"]
    table = pa.table({"track_id": range(len(uris)), "audio_uri": uris})
    put_table(storage, folder.child("deep", "c.parquet"), table)
    with pytest.raises(CatalogError) as caught:
        open_catalog(folder.child("deep", "c.parquet").uri, storage)
    assert str(caught.value) == (
        "audio column 'audio_uri': 3 relative URIs that lead out of the catalog's folder, the "
        "first at track_id 1 '../a.mp3', 3 'x/../../a.mp3', 4 '..'; give absolute URIs or set "
        "catalog.allowed_roots"
    )
    allowed = open_catalog(
        folder.child("deep", "c.parquet").uri, storage, allowed_roots=[folder.uri]
    ).tracks.table()["audio_uri"]
    deep = folder.child("deep").uri
    assert allowed.to_pylist()[:4] == [
        f"{deep}/a.mp3", f"{folder.uri}/a.mp3", f"{deep}/a.mp3", f"{folder.uri}/a.mp3",
    ]  # fmt: skip


def test_no_relative_uri_leads_out_of_a_bucket(s3: Any) -> None:
    storage, bucket = Storage(StorageConfig(endpoint_url=s3.endpoint)), Location(s3.bucket, "")
    table = pa.table({"track_id": [1, 2], "audio_uri": ["../other/a.mp3", "x/../a.mp3"]})
    put_table(storage, bucket.child("c.parquet"), table)
    with pytest.raises(CatalogError, match=r"1 relative URIs .* track_id 1 '\.\./other/a\.mp3'"):
        open_catalog(bucket.child("c.parquet").uri, storage)


def test_uris_outside_the_allowed_roots_are_refused_with_count_and_first(tmp_path: Path) -> None:
    uris = ["/music/a", "music/a", "s3://b/p/a", "/etc/passwd", "s3://b/q", "file:///music/%2e%2e"]
    table = pa.table({"track_id": list("abcdef"), "audio_uri": uris})
    pq.write_table(table, tmp_path / "c.parquet")
    message = refusal(tmp_path / "c.parquet", allowed_roots=["/music", "s3://b/p"])
    assert message == (
        "audio column 'audio_uri': 4 URIs outside catalog.allowed_roots, the first at track_id "
        "'b' 'music/a', 'd' '/etc/passwd', 'e' 's3://b/q', 'f' 'file:///music/%2e%2e'; mend them, "
        "or add a root"
    )
    roots = ["/", "s3://b"]
    assert open_catalog(tmp_path / "c.parquet", allowed_roots=roots).tracks.table().num_rows == 6


def test_a_catalog_on_s3_names_no_local_files_unless_it_may(s3: Any) -> None:
    storage, bucket = Storage(StorageConfig(endpoint_url=s3.endpoint)), Location(s3.bucket, "lib")
    uris = ["a.mp3", "/etc/passwd", "FILE:///etc/shadow", f"s3://{s3.bucket}/x", "s3a://other/x"]
    table = pa.table({"track_id": range(5), "audio_uri": uris})
    put_table(storage, bucket.child("c.parquet"), table)
    with pytest.raises(CatalogError) as caught:
        open_catalog(bucket.child("c.parquet").uri, storage)
    assert "2 local files, in a catalog on S3, the first at track_id 1 '/etc/passwd', 2" in str(
        caught.value
    )
    roots = ["/etc", f"s3://{s3.bucket}", "s3://other"]
    catalog = open_catalog(bucket.child("c.parquet").uri, storage, allowed_roots=roots)
    assert catalog.tracks.table().num_rows == 5
    assert catalog.folders == ("/etc",)


def test_roots_hold_for_a_folder_of_audio_too(music: Path) -> None:
    assert "8 URIs outside" in refusal(music, allowed_roots=["/elsewhere"])
    assert open_catalog(music, allowed_roots=[str(music)]).tracks.table().num_rows == 8
    assert open_catalog(music).folders is None


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("gs://KEY:SECRET@bucket/a", "SECRET"),
        ("gs://KEY:SEC/RET+@bucket/a", "RET"),
        ("ftp://SECRET@host/a", "SECRET"),
        ("https://host/a?X-Amz-Signature=SECRET", "SECRET"),
        ("gs://KEY:" + "SECRET" * 500 + "@bucket/a", "SECRET"),
    ],
)
def test_what_opens_a_store_is_not_repeated(tmp_path: Path, uri: str, secret: str) -> None:
    pq.write_table(pa.table({"track_id": [1], "audio_uri": [uri]}), tmp_path / "c.parquet")
    message = refusal(tmp_path / "c.parquet")
    assert "***" in message
    assert secret not in message


# ------------------------------------------------------------------ hostile ids


@pytest.mark.parametrize(
    "ids",
    [
        ["\U0001f3b5", "é", "e\u0301", "\U0010ffff", "\u202e", "Ω", "\u2126", "ﬀ", "ff"],
        [" ", "\t", "\n", "\r\n", "\u3000", "\u200b"],
        ["a/b", "../c", "/", "\\", "s3://x/y", "a?b#c"],
        ["a\0", "a", "\0", "\0a"],
        ["'", '"', "`", "''; DROP TABLE scores; --", "${x}", "%s", "{0}"],
        ["a", "A", "1", "01", "1.0", "+1", "null", "NaN"],
        ["x" * 2**20, "x" * (2**20 - 1) + "y"],
    ],
)
def test_ids_that_differ_in_any_byte_are_other_ids(tmp_path: Path, ids: list[str]) -> None:
    table = pa.table({"track_id": ids, "audio_uri": [f"{n}.mp3" for n in range(len(ids))]})
    pq.write_table(table, tmp_path / "c.parquet")
    catalog = open_catalog(tmp_path / "c.parquet")
    assert catalog.tracks.table()["track_id"].to_pylist() == ids
    assert all_rows(catalog)["track_id"].to_pylist() == ids


@pytest.mark.parametrize(
    "column",
    [
        pa.array([decimal.Decimal(1)], pa.decimal128(9, 0)),
        pa.nulls(1),
        pa.array([datetime.date(2026, 1, 1)]),
        pa.array([b"0" * 16], pa.binary(16)),
        pa.array([{"id": 1}]),
    ],
)
def test_ids_of_other_types_are_refused_with_a_remedy(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"track_id": column, "audio_uri": ["a"]}), tmp_path / "c.parquet")
    assert "ids must be strings or integers: cast them" in refusal(tmp_path / "c.parquet")


def test_messages_are_not_as_long_as_ids(tmp_path: Path) -> None:
    ids = ["x" * 2**20] * 2
    pq.write_table(pa.table({"track_id": ids, "audio_uri": ["a", "b"]}), tmp_path / "c.parquet")
    assert len(refusal(tmp_path / "c.parquet")) < 500
    pq.write_table(tracks(1, **{f"c{n}": [n] for n in range(5_000)}), tmp_path / "c.parquet")
    assert len(refusal(tmp_path / "c.parquet", id_column="none")) < 1_000


def test_a_version_must_not_hold_what_divides_it_from_the_id(tmp_path: Path) -> None:
    # Else the first track at version "1\0x" and the second at "1" would be one.
    ids, versions = ["y", "x\0y"], ["1\0x", "1"]
    table = pa.table({"track_id": ids, "audio_uri": ["a", "b"], "etag": versions})
    pq.write_table(table, tmp_path / "c.parquet")
    message = refusal(tmp_path / "c.parquet", version_column="etag")
    assert "version column 'etag': 1 versions with a NUL in them, the first at track_id 'y'" in (
        message
    )


def test_a_column_that_readers_may_take_for_the_nights_date_is_noted(tmp_path: Path) -> None:
    pq.write_table(tracks(1, run_date=["mine"]), tmp_path / "c.parquet")
    (note,) = open_catalog(tmp_path / "c.parquet").notes
    assert "the catalog has a column run_date" in note
    assert open_catalog(tmp_path / "c.parquet", taken_names=[]).notes == []


@pytest.mark.parametrize("name", ["valence", "Valence", "TAG_STATUS"])
def test_a_column_with_one_of_our_names_in_any_case_is_refused(tmp_path: Path, name: str) -> None:
    pq.write_table(tracks(1, **{name: [1]}), tmp_path / "c.parquet")
    assert f"columns named {name}; set output.prefix" in refusal(tmp_path / "c.parquet")
    (tmp_path / f"{name}=1").mkdir()
    pq.write_table(tracks(1), tmp_path / f"{name}=1" / "p.parquet")
    (tmp_path / "c.parquet").unlink()
    assert f"columns named {name}; set output.prefix" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["__filename", "__batch_index"])
@pytest.mark.parametrize("kind", ["parquet", "csv", "delta"])
def test_a_column_whose_name_the_reader_keeps_is_refused(
    tmp_path: Path, name: str, kind: str
) -> None:
    path, table = tmp_path / f"c.{kind}", tracks(1, **{name: [1]})
    write = {
        "parquet": pq.write_table,
        "csv": write_csv,
        "delta": lambda t, p: write_deltalake(p, t),
    }
    write[kind](table, path)
    assert f"the catalog has columns named {name}, which Arrow's reader" in refusal(path)


# ------------------------------------------------------------------ changes


def test_the_fingerprint_changes_with_the_files(place: Place) -> None:
    storage, folder = place
    put_table(storage, folder.child("a.parquet"), tracks(2))
    first = open_catalog(folder.uri, storage).fingerprint
    single = open_catalog(folder.child("a.parquet").uri, storage).fingerprint
    assert open_catalog(folder.uri, storage).fingerprint == first
    put_table(storage, folder.child("a.parquet"), tracks(3))
    assert open_catalog(folder.uri, storage).fingerprint != first
    assert open_catalog(folder.child("a.parquet").uri, storage).fingerprint != single


@pytest.mark.parametrize(
    "change", ["other ids", "other order", "fewer rows", "cut off", "gone", "other titles"]
)
def test_a_catalog_that_changes_while_it_is_read_is_refused(tmp_path: Path, change: str) -> None:
    path, n = tmp_path / "c.parquet", 1000
    # Without compression the new file's rows lie where the old one's did: only ids can tell.
    layout = {"compression": "none", "use_dictionary": False}
    ids = [f"t{i:03}" for i in range(n)]
    titles = ["old"] * n
    columns = {"track_id": ids, "audio_uri": ["/a"] * n, "title": titles}
    pq.write_table(pa.table(columns), path, **layout)
    catalog = open_catalog(path)
    if change == "other ids":
        ids[500] = "new!"
    if change == "other order":
        ids = ids[::-1]
    if change == "fewer rows":
        ids = ids[:10]
    if change == "other titles":
        titles = ["new"] * n
    columns = {"track_id": ids, "audio_uri": ["/a"] * len(ids), "title": titles[: len(ids)]}
    pq.write_table(pa.table(columns), path, **layout)
    if change == "cut off":
        path.write_bytes(path.read_bytes()[:2000])
    if change == "gone":
        path.unlink()
    with pytest.raises(CatalogError, match="changed while the run read it"):
        all_rows(catalog)


class Growing(Storage):
    """A storage in which every file grows a little just after it was read."""

    def read(self, location: Location) -> bytes:
        content = super().read(location)
        self.write(location, content + b"\n")
        return content


@pytest.mark.parametrize("layout", ["file", "folder"])
@pytest.mark.parametrize("name", ["c.csv", "c.jsonl.gz"])
def test_a_text_that_changes_just_while_it_is_read_is_refused(
    place: Place, name: str, layout: str
) -> None:
    storage, folder = place
    rows = {"c.csv": b"track_id,audio_uri\n1,a\n", "c.jsonl.gz": b'{"track_id":1,"audio_uri":"a"}'}
    storage.write(folder.child(name), rows[name])
    uri = folder.child(name).uri if layout == "file" else folder.uri
    catalog = open_catalog(uri, storage)
    with pytest.raises(CatalogError, match="changed while the run read it; run again"):
        open_catalog(uri, Growing(storage._config))
    assert all_rows(catalog).num_rows == 1, "as it was at the start"


def test_a_part_that_is_added_while_the_catalog_is_read_is_for_the_next_run(place: Place) -> None:
    storage, folder = place
    put_table(storage, folder.child("a.parquet"), tracks(2))
    catalog = open_catalog(folder.uri, storage)
    put_table(storage, folder.child("b.parquet"), tracks(3).slice(2))
    assert all_rows(catalog).num_rows == 2
    assert open_catalog(folder.uri, storage).tracks.table().num_rows == 3
    put_table(storage, folder.child("a.parquet"), tracks(2, title=["new"] * 2))
    with pytest.raises(CatalogError, match="changed while the run read it"):
        all_rows(catalog)


def test_a_table_that_is_appended_to_is_read_as_it_was(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "t", tracks(2))
    catalog = open_catalog(tmp_path / "t")
    write_deltalake(tmp_path / "t", tracks(3).slice(2), mode="append")
    assert all_rows(catalog).num_rows == 2
