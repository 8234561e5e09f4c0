"""Counting the samples of a FLAC stream by its frames."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mer_batch.audio.flac import count_samples
from tests.sounds import sine, wav


@pytest.mark.parametrize("n_samples", [1, 191, 4_095, 4_096, 4_097, 44_100, 700_000])
@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("rate", [44_100, 12_345, 192_000])
def test_counts_what_was_written(n_samples: int, subtype: str, rate: int) -> None:
    whole = wav(0.1 * np.ones(n_samples), rate, kind="FLAC", subtype=subtype)
    for tail in (b"", bytes(5_000), b"\xff\xf8" * 100, whole[4:40]):
        assert count_samples(b"junk" + whole + tail, 4) == n_samples


def test_counts_a_frame_that_is_cut_as_whole() -> None:
    """So that its end is missed."""
    whole = wav(sine(1), kind="FLAC", subtype="PCM_16")
    assert count_samples(whole[:-100], 0) == 44_100
    frames_before = count_samples(whole[: len(whole) // 2], 0)
    assert frames_before is not None and frames_before % 4_096 == 0


@given(st.binary(max_size=200), st.integers(0, 300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_survived(data: bytes, kept: int) -> None:
    for damaged in (b"fLaC" + data, wav(sine(0.01), kind="FLAC", subtype="PCM_16")[:kept] + data):
        count = count_samples(damaged, 0)
        assert count is None or count < 2**46


def test_gives_up_where_all_looks_like_a_frame() -> None:
    whole = wav(sine(1), kind="FLAC", subtype="PCM_16")
    assert count_samples(whole + b"\xff\xf8" * 1_000_000, 0) is None
