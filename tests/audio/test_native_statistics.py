"""Statistics in compiled code beside those of torch, the other road to the same numbers."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mer_batch.audio import native
from mer_batch.audio.decode import AudioLimits
from mer_batch.audio.native_statistics import NativeStatistics
from mer_batch.audio.statistics import Statistics
from mer_batch.audio.statistics_tables import N_STATISTICS, tables
from mer_batch.compose import MOODS, compose, encode_mp3
from mer_batch.extract import Extractor
from mer_batch.feature_sets import feature_set

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C compiler was there")

PARAMETERS: dict[str, Any] = {
    "n_mels": 80, "sample_rate": 44_100, "hop_length": 2048, "fmin": 30.0, "fmax": 16_000.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled() -> NativeStatistics:
    return NativeStatistics(tables(**PARAMETERS))


@pytest.fixture(scope="module")
def by_torch() -> Statistics:
    return Statistics(**PARAMETERS)


def assert_alike(compiled: NativeStatistics, by_torch: Statistics, log_mel: np.ndarray) -> None:
    found = compiled(log_mel)
    expected = by_torch(torch.from_numpy(log_mel)).numpy()
    names = np.repeat(list(by_torch.sizes()), list(by_torch.sizes().values()))
    # Sums in another order; what is rounded twice may decide on which side of 0.01 dB a rise lies.
    off = np.abs(found - expected) > 2e-3 + 1e-3 * np.abs(expected)
    assert not off.any(), {
        str(names[i]): (found[b, i], expected[b, i]) for b, i in np.argwhere(off)
    }


@settings(max_examples=300, deadline=None)
@given(
    n_frames=st.integers(1, 700),
    seed=st.integers(0, 2**32 - 1),
    loudness=st.floats(-90, 40),
    spread=st.floats(0.1, 40),
    silent_share=st.floats(0, 1),
)
def test_numbers_are_those_of_torch(
    compiled: NativeStatistics,
    by_torch: Statistics,
    n_frames: int,
    seed: int,
    loudness: float,
    spread: float,
    silent_share: float,
) -> None:
    rng = np.random.default_rng(seed)
    log_mel = rng.normal(loudness, spread, (2, 80, n_frames))
    log_mel += rng.normal(0, spread, (2, 1, n_frames))
    log_mel[:, :, rng.random(n_frames) < silent_share] = -100
    assert_alike(compiled, by_torch, np.maximum(log_mel, -100).astype(np.float32))


@pytest.mark.parametrize("mood", MOODS)
def test_numbers_of_music_are_those_of_torch(
    compiled: NativeStatistics, by_torch: Statistics, mood: str
) -> None:
    audio = encode_mp3(compose(mood, 3, seconds=20))
    segments = Extractor(feature_set("log_mel"), AudioLimits()).extract(audio).segments
    assert_alike(compiled, by_torch, segments)


@pytest.mark.parametrize("value", [-100.0, 0.0, 37.5])
@pytest.mark.parametrize("n_frames", [1, 11, 12, 64, 65, 646])
def test_what_never_changes_is_no_exception(
    compiled: NativeStatistics, by_torch: Statistics, value: float, n_frames: int
) -> None:
    assert_alike(compiled, by_torch, np.full((1, 80, n_frames), value, np.float32))


@pytest.mark.parametrize(
    "change",
    [
        {"n_mels": 40},
        {"n_mels": 43, "hop_length": 1024, "sample_rate": 22_050, "fmax": 8000.0},
        {"n_mels": 128, "hop_length": 256},
        {"hop_length": 44_100},
    ],
)
def test_spectrograms_of_other_parameters(change: dict[str, Any]) -> None:
    parameters = {**PARAMETERS, **change}
    compiled, by_torch = NativeStatistics(tables(**parameters)), Statistics(**parameters)
    rng = np.random.default_rng(0)
    for n_frames in (5, 12, 100, 1000):
        log_mel = rng.normal(-40, 15, (1, parameters["n_mels"], n_frames)).astype(np.float32)
        assert_alike(compiled, by_torch, log_mel)


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf, 1e38, 400.0])
@pytest.mark.parametrize("place", [(0, 0), (41, 63), (79, 99)])
def test_what_is_no_number_gives_none(
    compiled: NativeStatistics, strange: float, place: tuple[int, int]
) -> None:
    log_mel = np.random.default_rng(0).normal(-40, 15, (2, 80, 100)).astype(np.float32)
    expected = compiled(log_mel)[1]
    log_mel[0][place] = strange
    found = compiled(log_mel)
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1], expected)


@pytest.mark.parametrize("shape", [(80, 100), (1, 79, 100), (1, 80, 0)])
def test_another_shape_is_refused(compiled: NativeStatistics, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"log_mel.shape=\("):
        compiled(np.zeros(shape, np.float32))


def test_features_that_do_not_lie_together(compiled: NativeStatistics) -> None:
    features = np.random.default_rng(0).normal(-40, 15, (2, 646, 80))
    turned = features.transpose(0, 2, 1)
    np.testing.assert_array_equal(compiled(turned), compiled(turned.astype(np.float32).copy()))


def test_a_track_has_its_numbers_whatever_lies_beside_it(compiled: NativeStatistics) -> None:
    """Bit by bit: in a batch, after a longer one, and in several threads at once."""
    rng = np.random.default_rng(0)
    batches = [rng.normal(-40, 15, (4, 80, n)).astype(np.float32) for n in (646, 30, 300, 645)]
    expected = [np.concatenate([compiled(one[None]) for one in batch]) for batch in batches]
    found: list[bool] = []

    def compute() -> None:
        for _ in range(30):
            for batch, numbers in zip(batches, expected, strict=True):
                found.append(np.array_equal(compiled(batch), numbers))

    threads = [threading.Thread(target=compute) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 480 and all(found)


def test_there_are_as_many_as_are_said(by_torch: Statistics) -> None:
    assert sum(by_torch.sizes().values()) == N_STATISTICS
