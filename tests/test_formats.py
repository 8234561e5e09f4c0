"""Files of every make: what can be read is, and what cannot is named by file and line."""

from __future__ import annotations

import base64
import codecs
import gzip
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from tests.test_catalog import all_rows, open_catalog, refusal, tracks

HEADER = b"track_id,audio_uri\n"
LINE = b'{"track_id": 1, "audio_uri": "a"}\n'


def gzipped(content: bytes, level: int = 9) -> bytes:
    """Compressed without a time stamp: the names of tests must not change with it."""
    return gzip.compress(content, level, mtime=0)


# ------------------------------------------------------------------ CSV


@pytest.mark.parametrize(
    "content",
    [
        HEADER + b"1,a\n2,b\n",
        codecs.BOM_UTF8 + HEADER + b"1,a\n2,b\n",
        HEADER.replace(b"\n", b"\r\n") + b"1,a\r\n2,b\r\n",
        HEADER + b'"1","a"\n\n"2","b"',
        codecs.BOM_UTF8 + b'"track_id","audio_uri"\n1,a\n2,b\n',
        gzipped(HEADER + b"1,a\n2,b\n"),
        gzipped(codecs.BOM_UTF8 + HEADER + b"1,a\n") + gzipped(b"2,b\n"),
    ],
)
@pytest.mark.parametrize("name", ["c.csv", "C.CSV.GZ"])
def test_csv_of_every_make(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert all_rows(open_catalog(tmp_path / name)).to_pydict() == {
        "track_id": [1, 2],
        "audio_uri": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *(
            (
                (HEADER + b"1,a\n").decode().encode(f"utf-{n}{end}"),
                f"it is UTF-{n}; save it as UTF-8",
            )
            for n in (16, 32)
            for end in ("", "-le", "-be")
        ),
        (codecs.BOM_UTF32_BE + HEADER.decode().encode("utf-32-be"), "it is UTF-32"),
        (b"track_id,audio_uri,,\n1,a,,\n", "several columns of one name: ''; rename all but one"),
        (HEADER + b'1,a\n2,"b\nb",c\n', 'Expected 2 columns, got 3: 2,"b b",c'),
        (HEADER + b"1,a\n2,b,c\n", "Row #3: Expected 2 columns, got 3: 2,b,c"),
        (HEADER + b"1,a\n2\n", "Row #3: Expected 2 columns, got 1: 2"),
        (b"\n\n", "Empty CSV file"),
        (HEADER + b'1,a\n2,"b\n3,c\n', "a quote that opens in line 3 is never closed"),
        (HEADER + b'1,a\n2,"b', "a quote that opens in line 3 is never closed"),
        (HEADER + b'1,"\n', "a quote that opens in line 2 is never closed"),
        (b"track_id;audio_uri\n1;a\n", "'track_id;audio_uri'; values must be separated by commas"),
        (b"track_id\taudio_uri\n1\ta\n", "values must be separated by commas"),
        (b"track_id, audio_uri\n1,a\n", "no such column (did you mean ' audio_uri'?)"),
        (b"Track_ID,audio_uri\n1,a\n", "no such column (did you mean 'Track_ID'?)"),
        (gzipped(HEADER + b"1,a\n" * 99)[:-9], "is a damaged gzip file"),
        (gzipped(HEADER + b"1,a\n" * 99)[:-8] + b"12345678", "is a damaged gzip file"),
        (b"\x1f\x8b and no more", "is a damaged gzip file"),
        (
            HEADER + b"1,a\n2," + b"b" * 4_000_000 + b"\n3,c\n",
            "line 3 is too long: a row must have",
        ),
        (
            HEADER + b'1,a\n2,"' + b"bbbb\n" * 1_000_000 + b'"\n',
            "a row of several lines, in quotes",
        ),
    ],
)
def test_csv_that_is_broken_is_refused_by_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "c.csv").write_bytes(content)
    message = refusal(tmp_path / "c.csv")
    assert words in message
    assert "\n" not in message


def zeros(n_mib: int) -> bytes:
    """A row of so many MiB, gzipped to a thousandth of it."""
    packer = zlib.compressobj(6, wbits=31)
    mib = b"0" * (1 << 20)
    packed = [packer.compress(HEADER + b"1,"), *(packer.compress(mib) for _ in range(n_mib))]
    return b"".join([*packed, packer.flush()])


def test_a_small_file_that_unpacks_to_a_huge_one_is_refused_in_little_memory(
    tmp_path: Path,
) -> None:
    (tmp_path / "c.csv.gz").write_bytes(zeros(600))
    program = (
        "import resource, sys; from tests.test_catalog import refusal\n"
        "limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + (400 << 20)\n"
        "print(refusal(sys.argv[1]))\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < limit\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "c.csv.gz")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "c.csv.gz' of 6" in done.stdout
    assert "bytes unpacks to more than 67,108,864" in done.stdout
    assert "unpack it yourself if that is meant, or write it as Parquet" in done.stdout


def test_rows_that_are_much_alike_are_unpacked(tmp_path: Path) -> None:
    rows = "".join(f"{i},s3://bucket/library/masters/{i:09}.mp3\n" for i in range(100_000))
    (tmp_path / "c.csv.gz").write_bytes(gzipped(HEADER + rows.encode(), 9))
    (tmp_path / "d.csv.gz").write_bytes(gzipped(HEADER + b"-1,a\n" + b"\n" * (20 << 20)))
    assert open_catalog(tmp_path).tracks.table().num_rows == 100_001


@pytest.mark.parametrize("value", ['12" mix', 'say "hi', '"', '""', "", 'x"'])
def test_quotes_inside_a_value_are_no_open_quote(tmp_path: Path, value: str) -> None:
    quoted = f'"{value.replace(chr(34), chr(34) * 2)}"'
    for text in (quoted, value) if not value.startswith('"') else (quoted,):
        for end in ("", "\n"):
            (tmp_path / "c.csv").write_text(f"track_id,audio_uri,title\n1,a,{text}{end}")
            assert all_rows(open_catalog(tmp_path / "c.csv"))["title"].to_pylist() == [value]


# ------------------------------------------------------------------ JSON lines


@pytest.mark.parametrize(
    "content",
    [
        LINE + b"\n  \n" + LINE.replace(b"1", b"2"),
        codecs.BOM_UTF8 + LINE.replace(b"\n", b"\r\n") + LINE.replace(b"1", b"2").strip(),
        gzipped(LINE + LINE.replace(b"1", b"2")),
    ],
)
@pytest.mark.parametrize("name", ["c.jsonl", "c.ndjson.gz"])
def test_json_lines_of_every_make(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert all_rows(open_catalog(tmp_path / name))["track_id"].to_pylist() == [1, 2]


@pytest.mark.parametrize("value", [[1], {"a": [1.5]}, [{"a": "b"}], "b", 1.5, [["2024-01-02"]]])
@pytest.mark.parametrize("null", [None, {"late": None}, []])
def test_a_value_may_come_late_in_json_lines(tmp_path: Path, value: Any, null: Any) -> None:
    if null == []:
        value = [value]
    elif null is not None:
        value = {"late": value}
    rows = [{"track_id": i, "audio_uri": "a" * 50, "x": null} for i in range(60_000)]
    rows[-1]["x"] = value
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = all_rows(open_catalog(tmp_path / "c.jsonl"))
    assert table["x"][0].as_py() == null
    assert table["x"][-1].as_py() == value


def nested(depth: int) -> bytes:
    return b'{"track_id": 1, "audio_uri": "a", "x": ' + b"[" * depth + b"]" * depth + b"}\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[{"track_id": 1, "audio_uri": "a"}]', "line 1 must be one whole JSON object"),
        (b'[\n {"track_id": 1, "audio_uri": "a"}\n]', "line 1 must be one whole JSON object"),
        (b'{\n"track_id": 1,\n"audio_uri": "a"\n}\n', "write one line a track, as `jq -c` does"),
        (LINE + b'{"track_id": 2, "aud', "line 2 must be one whole JSON object"),
        (LINE + b"\n7\n", "line 3 must be one whole JSON object, and begins with b'7'"),
        (b'{"track_id": 1, "track_id": 2, "audio_uri": "a"}\n', "was specified twice"),
        (LINE + b'{"track_id": "x", "audio_uri": "a"}\n', "changed from number to string in row 1"),
        (b'{"track_id": "\\ud800", "audio_uri": "a"}\n', "surrogate"),
        (LINE + '{"track_id": 2, "audio_uri": "é"}\n'.encode("latin-1"), "line 2 is no UTF-8"),
        (LINE.decode().encode("utf-16"), "it is UTF-16; save it as UTF-8"),
        (b"", "Empty JSON file"),
        (LINE + b'{"track_id": 2}\n', "1 null or empty URIs, the first at track_id 2"),
        (LINE + b'{"audio_uri": "b"}\n', "1 null or empty ids, the first at row 1"),
        (LINE + nested(101), "line 2 nests values more than 100 deep"),
        (nested(3_000), "nests values more than 100 deep"),
    ],
)
def test_json_lines_that_are_broken_are_refused_by_line(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "c.jsonl").write_bytes(content)
    assert words in refusal(tmp_path / "c.jsonl")


def test_brackets_in_text_are_no_depth(tmp_path: Path) -> None:
    row = {"track_id": 1, "audio_uri": "a", "title": "[{" * 500 + '\\"[[' * 50, "x": [[1]] * 200}
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    assert all_rows(open_catalog(tmp_path / "c.jsonl")).to_pylist() == [row]


def test_a_line_made_to_overflow_the_parsers_stack_is_refused(tmp_path: Path) -> None:
    for number, content in enumerate((nested(200_000), b'{"a":\n' * 200_000)):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(content)
        program = (
            "import sys; from tests.test_catalog import refusal; print(refusal(sys.argv[1])[:200])"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "line 1" in done.stdout


# ------------------------------------------------------------------ parts


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(500))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def bad_footer(path: Path) -> None:
    path.write_bytes(b"PAR1" + bytes(30) + b"\x08\0\0\0PAR1")


def cut_off(path: Path) -> None:
    pq.write_table(tracks(100), path)
    path.write_bytes(path.read_bytes()[:-100])


def other_type(path: Path) -> None:
    pq.write_table(pa.table({"track_id": [1], "audio_uri": ["a"]}), path)


def without_ids(path: Path) -> None:
    pq.write_table(pa.table({"id": ["x"], "audio_uri": ["a"]}), path)


def with_a_damaged_page(path: Path, column: str) -> None:
    n = 5_000
    table = tracks(n, title=[os.urandom(8).hex() for _ in range(n)])
    pq.write_table(table.set_column(0, "track_id", pa.array([f"x{i}" for i in range(n)])), path)
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunks = [group.column(i) for i in range(group.num_columns)]
    (begin,) = (c.data_page_offset for c in chunks if c.path_in_schema == column)
    content = bytearray(path.read_bytes())
    for at in range(begin + 40, begin + 600):
        content[at] ^= 0x5A
    path.write_bytes(content)


def damaged_ids(path: Path) -> None:
    with_a_damaged_page(path, "track_id")


def damaged_titles(path: Path) -> None:
    with_a_damaged_page(path, "title")


def encrypted(path: Path) -> None:
    class Keys(pe.KmsClient):
        def wrap_key(self, key: bytes, name: str) -> bytes:
            return base64.b64encode(key)

        def unwrap_key(self, wrapped: bytes, name: str) -> bytes:
            return base64.b64decode(wrapped)

    table = tracks(1)
    properties = pe.CryptoFactory(lambda _: Keys()).file_encryption_properties(
        pe.KmsConnectionConfig(),
        pe.EncryptionConfiguration("footer", column_keys={"ids": table.schema.names}),
    )
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (garbage, "not a parquet file"),
        (empty, "file size is 0 bytes"),
        (bad_footer, "deserialize thrift"),
        (cut_off, ""),
        (other_type, "does not fit the parts before it"),
        (without_ids, "has no column 'track_id', which other parts have"),
        (damaged_ids, "is damaged"),
        (damaged_titles, "is damaged"),
        (encrypted, "encrypted"),
    ],
)
def test_a_bad_part_among_good_ones_is_named(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("a", "c"):
        pq.write_table(tracks(3), folder / f"{name}.parquet")
    make(folder / "b.parquet")
    message = refusal(folder)
    assert "b.parquet" in message
    assert "c.parquet" not in message
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (HEADER + b"1\n", "Expected 2 columns"),
        (b"", "Empty CSV file"),
        (b"id,audio_uri\n1,a\n", "has no column 'track_id', which other parts have"),
        (b"track_id,audio_uri\n1,\xff\n", "line 2 is no UTF-8"),
    ],
)
def test_a_bad_csv_part_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.csv").write_bytes(HEADER + b"7,a\n")
    (tmp_path / "b.csv").write_bytes(content)
    message = refusal(tmp_path)
    assert "b.csv" in message
    assert words in message


def test_a_part_without_rows_takes_nothing_away(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(HEADER + b"7,a\n")
    (tmp_path / "b.csv").write_bytes(HEADER)
    (tmp_path / "c.csv.gz").write_bytes(gzipped(HEADER + b"8,b\n"))
    assert open_catalog(tmp_path).tracks.table()["track_id"].to_pylist() == [7, 8]


def test_a_damaged_page_of_a_column_that_is_not_published_is_no_matter(tmp_path: Path) -> None:
    damaged_titles(tmp_path / "c.parquet")
    assert open_catalog(tmp_path / "c.parquet", taken_names=[]).tracks.table().num_rows == 5_000
