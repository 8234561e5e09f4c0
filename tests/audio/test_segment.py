"""Where segments lie."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mer_batch.audio.segment import random_starts, segment_starts


def test_planted_answers() -> None:
    assert segment_starts(500, 1292, max_segments=7) == [0]
    assert segment_starts(1292, 1292, max_segments=7) == [0]
    assert segment_starts(1300, 1292, max_segments=7) == [0]
    assert segment_starts(2 * 1292, 1292, max_segments=7) == [0, 1292]
    assert segment_starts(20 * 1292, 1292, max_segments=7)[-1] == 19 * 1292


@given(st.integers(1, 200_000), st.integers(1, 2_000), st.integers(1, 9))
def test_segments_stay_inside_and_are_even(n_frames: int, length: int, most: int) -> None:
    starts = segment_starts(n_frames, length, max_segments=most)
    assert 1 <= len(starts) <= most
    assert starts[0] == 0
    assert starts[-1] + length <= max(n_frames, length)
    if len(starts) > 1:
        assert starts[-1] + length == n_frames
        steps = [b - a for a, b in itertools.pairwise(starts)]
        assert max(steps) - min(steps) <= 1
        assert min(steps) > 0
    # Every whole segment that fits is used, up to the limit.
    assert len(starts) >= min(most, n_frames // length)


def test_random_places_follow_from_the_id() -> None:
    places = random_starts(10_000, 646, max_segments=7, track_id="a")
    assert places == random_starts(10_000, 646, max_segments=7, track_id="a")
    assert places != random_starts(10_000, 646, max_segments=7, track_id="b")
    assert len(set(places)) == 7
    assert places == sorted(places)


@given(st.integers(1, 3000), st.integers(1, 1000), st.integers(1, 9), st.text(max_size=5))
def test_random_segments_lie_within_the_track(
    n_frames: int, segment_frames: int, max_segments: int, track_id: str
) -> None:
    starts = random_starts(n_frames, segment_frames, max_segments=max_segments, track_id=track_id)
    room = max(0, n_frames - segment_frames)
    assert len(set(starts)) == min(max_segments, room + 1)
    assert all(0 <= start <= room for start in starts)


def test_random_places_are_spread_over_the_track() -> None:
    starts = [
        start
        for n in range(300)
        for start in random_starts(1000, 1, max_segments=7, track_id=str(n))
    ]
    counts, _ = np.histogram(starts, bins=10, range=(0, 1000))
    assert counts.min() > 0.8 * len(starts) / 10
