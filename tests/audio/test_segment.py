"""Where segments lie."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mer_batch.audio.segment import segment_starts


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
