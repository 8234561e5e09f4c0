"""Tables of ratings: scales, and words for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_batch.errors import DatasetError
from mer_batch.ratings import (
    Columns,
    Scale,
    few,
    find_file,
    find_folder,
    read_ratings,
    read_table,
    repeated,
)

finite = st.floats(-1e6, 1e6)


@given(low=finite, width=st.floats(1e-3, 1e6), share=st.floats(0, 1))
def test_a_scale_is_mapped_end_to_end(low: float, width: float, share: float) -> None:
    scale = Scale(low, low + width)
    assert scale.to_unit(scale.low) == pytest.approx(-1, abs=1e-6)
    assert scale.to_unit(scale.high) == pytest.approx(1, abs=1e-6)
    assert scale.to_unit(low + share * width) == pytest.approx(2 * share - 1, abs=1e-6)
    # A spread is the distance of two ratings.
    distance = scale.to_unit(low + share * width) - scale.to_unit(low)
    assert scale.spread_to_unit(share * width) == pytest.approx(distance, abs=1e-6)


def test_every_fault_of_a_table_is_counted_and_the_first_are_named() -> None:
    values = [("a", "1"), ("b", "x"), ("c", ""), ("d", "nan"), ("e", "9.01"), ("f", "9")]
    rows = [{"id": i, "valence": v, "arousal": "5"} for i, v in values]
    with pytest.raises(DatasetError) as caught:
        read_ratings(rows, Columns(), Scale(1, 9), path=Path("x.csv"))
    words = str(caught.value)
    assert words.startswith("labels='x.csv': 4 faults: valence='x' must be a number from 1 to 9")
    assert "begins with 'b'" in words and "begins with 'd'" in words and "and 1 more" in words


@pytest.mark.parametrize("std", ["-0.1", "8.1", "?"])
def test_spreads_wider_than_the_scale_are_refused(std: str) -> None:
    rows = [{"id": "a", "valence": "5", "arousal": "5", "doubt": std}]
    with pytest.raises(DatasetError, match=r"doubt=.* must be a number from 0 to 8"):
        columns = Columns(valence_std="doubt")
        read_ratings(rows, columns, Scale(1, 9), path=Path("x.csv"))


def test_a_table_is_read_as_stripped_text(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('\ufeffid, name\n1,"\tA, B\t",more\n,\n2\n', encoding="utf-8")
    assert read_table(path, ["id", "name"]) == [
        {"id": "1", "name": "A, B"},
        {"id": "2", "name": ""},
    ]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"id\n" + b'"' + b"x" * 200_000])
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="is not a table"):
        read_table(path, [])


def test_files_are_found_where_they_lie_or_were_meant_to(tmp_path: Path) -> None:
    assert find_file(tmp_path, "x.csv", ["below"]) == tmp_path / "below" / "x.csv"
    (tmp_path / "x.csv").touch()
    assert find_file(tmp_path, "x.csv", ["below"]) == tmp_path / "x.csv"
    assert find_folder(tmp_path, "chorus", "audio") == tmp_path / "chorus"
    (tmp_path / "audio").mkdir()
    assert find_folder(tmp_path, "chorus", "audio") == tmp_path / "audio"


def test_many_names_are_cut_short() -> None:
    assert few(["a", "b", "c"]) == "a, b, c"
    assert few(str(i) for i in range(1004)) == "0, 1, 2 and 1,001 more"
    assert repeated(["a", "b", "a", "c", "b", "a"]) == ["a", "b"]
