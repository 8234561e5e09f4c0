"""Mel spectrograms against librosa, and against what must hold of any spectrogram."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mer_batch.audio import native
from mer_batch.audio.mel import (
    MelParameters,
    MelStream,
    hz_to_mel,
    mel_filterbank,
    mel_spectrogram,
    mel_to_hz,
    power_to_db,
)
from mer_batch.feature_sets import feature_set, feature_set_names

PAPER = feature_set("paper").mel


# What compiled code and torch compute; a caller gets the first where there is one.
ROADS = [
    pytest.param(
        True,
        id="native",
        marks=pytest.mark.skipif(native.library() is None, reason="no C compiler was there"),
    ),
    pytest.param(False, id="torch"),
]


def spectrogram(waveform: np.ndarray, parameters: MelParameters, *, native: bool) -> np.ndarray:
    stream = MelStream(parameters, native=native)
    stream.feed(waveform)
    return stream.finish()


def noise(n_samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(n_samples)).astype(np.float32)


def by_librosa(waveform: np.ndarray, p: MelParameters) -> np.ndarray:
    return librosa.feature.melspectrogram(
        y=waveform, sr=p.sample_rate, n_fft=p.n_fft, hop_length=p.hop_length, n_mels=p.n_mels,
        fmin=p.fmin, fmax=p.fmax,
    ).T  # fmt: skip


@pytest.mark.parametrize("native", ROADS)
@pytest.mark.parametrize("name", feature_set_names())
@pytest.mark.parametrize("n_samples", [1, 1023, 1024, 44_100, 30 * 44_100, 2_000_001])
def test_equals_librosa(name: str, n_samples: int, native: bool) -> None:
    parameters = feature_set(name).mel
    waveform = noise(n_samples)
    expected = by_librosa(waveform, parameters)
    mel = spectrogram(waveform, parameters, native=native)
    assert mel.shape == expected.shape
    assert np.abs(mel - expected).max() <= 1e-6 * expected.max()


@pytest.mark.parametrize("native", ROADS)
@pytest.mark.parametrize("hop_length", [256, 512, 1000])
def test_equals_librosa_with_overlap(hop_length: int, native: bool) -> None:
    parameters = MelParameters(22_050, 1024, hop_length, 64, 30.0, 11_025.0)
    waveform = noise(5 * 22_050)
    expected = by_librosa(waveform, parameters)
    mel = spectrogram(waveform, parameters, native=native)
    assert np.abs(mel - expected).max() <= 1e-6 * expected.max()


@pytest.mark.parametrize("native", ROADS)
@pytest.mark.parametrize("n_fft", [16, 32, 64, 128, 256, 400, 512, 4096, 8192])
def test_equals_librosa_at_any_length_of_frames(n_fft: int, native: bool) -> None:
    """Each power of two needs other passes of the compiled transform; the others need torch."""
    parameters = MelParameters(16_000, n_fft, n_fft, 5, 0.0, 8_000.0)
    waveform = noise(20_001)
    expected = by_librosa(waveform, parameters)
    mel = spectrogram(waveform, parameters, native=native)
    np.testing.assert_allclose(mel, expected, rtol=2e-5, atol=1e-6 * expected.max())


@pytest.mark.skipif(native.library() is None, reason="no C compiler was there")
def test_a_frame_that_is_not_finite_leaves_those_beside_it_alone() -> None:
    waveform = noise(20 * 1024)
    expected = mel_spectrogram(waveform, PAPER)
    waveform[5 * 1024] = np.nan
    mel = mel_spectrogram(waveform, PAPER)
    assert np.flatnonzero(~np.isfinite(mel).all(axis=1)).tolist() == [5]
    assert np.array_equal(np.delete(mel, 5, axis=0), np.delete(expected, 5, axis=0))


def test_real_music_equals_librosa(data_root) -> None:
    clip = sorted((data_root / "musifeast17" / "audio").glob("*.mp3"))[0]
    waveform, rate = librosa.load(clip, sr=None, mono=True)
    assert rate == PAPER.sample_rate
    expected = by_librosa(waveform, PAPER)
    assert np.abs(mel_spectrogram(waveform, PAPER) - expected).max() <= 1e-5 * expected.max()


@pytest.mark.parametrize("native", ROADS)
@given(sizes=st.lists(st.integers(0, 200_000), max_size=12))
@settings(max_examples=30, deadline=None)
def test_blocks_do_not_matter(sizes: list[int], native: bool) -> None:
    waveform = noise(sum(sizes))
    stream = MelStream(PAPER, native=native)
    begin = 0
    for size in sizes:
        stream.feed(waveform[begin : begin + size])
        begin += size
    assert np.array_equal(stream.finish(), spectrogram(waveform, PAPER, native=native))


def test_a_discarded_track_leaves_no_trace() -> None:
    stream = MelStream(PAPER)
    stream.feed(noise(100_000, seed=1))
    stream.discard()
    stream.feed(noise(50_000, seed=2))
    assert np.array_equal(stream.finish(), mel_spectrogram(noise(50_000, seed=2), PAPER))


def test_energy_is_quadratic_and_a_tone_lies_in_its_band() -> None:
    t = np.arange(44_100) / 44_100
    tone = np.sin(2 * np.pi * 1000 * t).astype(np.float32)
    once, twice = mel_spectrogram(tone, PAPER), mel_spectrogram(2 * tone, PAPER)
    np.testing.assert_allclose(twice, 4 * once, rtol=1e-5, atol=1e-6)
    corners = mel_to_hz(np.linspace(hz_to_mel(0), hz_to_mel(22_050), 42))
    band = int(once[10].argmax())
    assert corners[band] <= 1000 <= corners[band + 2]


def test_filterbank_equals_librosa() -> None:
    expected = librosa.filters.mel(sr=44_100, n_fft=1024, n_mels=40)
    np.testing.assert_allclose(mel_filterbank(PAPER), expected, atol=1e-8)


@given(st.floats(0, 30_000))
def test_mel_scale_is_inverted(hz: float) -> None:
    assert mel_to_hz(hz_to_mel(hz)) == pytest.approx(hz, abs=1e-6)


def test_decibels_have_a_floor_and_no_reference() -> None:
    power = np.array([0.0, 1e-12, 1e-3, 1.0, 100.0], np.float32)
    np.testing.assert_allclose(power_to_db(power), [-100, -100, -30, 0, 20], atol=1e-4)
