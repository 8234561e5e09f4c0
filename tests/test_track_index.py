"""Places of ids: exact whatever their hashes, and the same however the ids are cut into chunks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mer_batch.track_index import TrackIndex, digest_of, hashes_of

IDS = st.lists(st.text(max_size=20), unique=True, max_size=40)


def index_of(ids: list[str], n_chunks: int = 1, **options: int) -> TrackIndex:
    chunks = [pa.array(list(part), pa.string()) for part in np.array_split(ids, n_chunks)]
    return TrackIndex(chunks, pa.string(), **options)


@settings(deadline=None, max_examples=60)
@given(ids=IDS, others=IDS, hash_bits=st.sampled_from([0, 1, 3, 64]))
def test_every_id_is_found_at_its_place_whatever_ids_share_a_hash(
    ids: list[str], others: list[str], hash_bits: int
) -> None:
    index = TrackIndex([pa.array(ids, pa.string())], pa.string(), hash_bits=hash_bits)
    asked = [*others, *ids, *others]
    expected = [ids.index(one) if one in ids else -1 for one in asked]
    assert index.find(pa.array(asked, pa.string())).tolist() == expected
    assert index.repeated == []


@settings(deadline=None, max_examples=40)
@given(ids=st.lists(st.text(max_size=30)), cut=st.integers(0, 5))
def test_a_hash_depends_on_the_text_alone(ids: list[str], cut: int) -> None:
    whole = hashes_of(pa.array(["before", *ids], pa.string()).slice(1))
    assert np.array_equal(whole, hashes_of(pa.array(ids, pa.large_string())))
    assert np.array_equal(whole[cut:], hashes_of(pa.array(ids, pa.string()).slice(cut)))
    assert len(set(whole.tolist())) == len(set(ids))


@pytest.mark.parametrize("hash_bits", [1, 64])
def test_ids_that_stand_twice_are_told_in_the_order_of_their_first_rows(hash_bits: int) -> None:
    index = index_of(["b", "a", "b", "c", "a", "d"], 3, hash_bits=hash_bits)
    assert index.repeated == ["b", "a"]


def test_numbers_are_found_as_they_are() -> None:
    numbers = [0, -1, 2**63 - 1, -(2**63), 7]
    index = TrackIndex([pa.array(numbers, pa.int64())], pa.int64())
    assert index.find(pa.array([7, 8, -(2**63), 0], pa.int64())).tolist() == [4, -1, 3, 0]


def test_long_ids_and_none_at_all() -> None:
    ids = ["x" * 10_000, "x" * 10_000 + "y", ""]
    assert index_of(ids).find(pa.array([*reversed(ids), "x"])).tolist() == [2, 1, 0, -1]
    assert index_of([]).find(pa.array(["a"])).tolist() == [-1]
    assert index_of(["a"]).find(pa.array([], pa.string())).tolist() == []


def test_a_digest_changes_with_values_and_their_limits_and_not_with_chunks() -> None:
    text = pa.chunked_array([["a", "bc"], ["", "d"]])
    same = digest_of([text])
    assert digest_of([text.combine_chunks()]) == same
    assert digest_of([pa.array(["before", "a", "bc", "", "d"]).slice(1)]) == same
    assert digest_of([text.cast(pa.large_string())]) == same
    others = [["ab", "c", "", "d"], ["a", "bc", "d", ""], ["a", "bc", "", "d", ""]]
    numbers = digest_of([pa.array([1, 2])])
    digests = {digest_of([pa.array(values)]) for values in others} | {same, numbers}
    assert len(digests) == 5
    assert digest_of([pa.array([0, 1, 2]).slice(1)]) == numbers
