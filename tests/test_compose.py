"""Moods that can be measured: loudness, brightness, tempo."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import soundfile

from mer_batch.compose import MOODS, SAMPLE_RATE, Float32, _add, compose, encode_mp3

SECONDS = 8.0
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def pieces() -> dict[str, list[Float32]]:
    return {mood: [compose(mood, seed, seconds=SECONDS) for seed in SEEDS] for mood in MOODS}


def level_db(waveform: Float32) -> float:
    return float(10 * np.log10(np.mean(waveform.astype(np.float64) ** 2)))


def centroid_hz(waveform: Float32) -> float:
    """Centre of gravity of the power spectrum."""
    power = np.abs(np.fft.rfft(waveform)) ** 2
    return float(np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE) @ power / power.sum())


def onsets_per_second(waveform: Float32) -> float:
    """How often the energy jumps up, in frames of 20 ms."""
    n = SAMPLE_RATE // 50
    frames = waveform[: len(waveform) // n * n].reshape(-1, n).astype(np.float64)
    energy = np.log(np.mean(frames**2, axis=1) + 1e-4 * np.mean(frames**2))
    jumps = np.diff(energy) > 0.5
    return float((jumps[1:] & ~jumps[:-1]).sum() / (len(waveform) / SAMPLE_RATE))


MEASURES = {"loudness": level_db, "brightness": centroid_hz, "tempo": onsets_per_second}


@pytest.mark.parametrize("name", MEASURES)
def test_the_aroused_moods_are_louder_brighter_and_faster(
    pieces: dict[str, list[Float32]], name: str
) -> None:
    values = {mood: [MEASURES[name](piece) for piece in pieces[mood]] for mood in MOODS}
    for aroused in ("tense", "joyful"):
        for quiet in ("sad", "calm"):
            assert np.mean(values[aroused]) > np.mean(values[quiet]) + np.std(values[quiet])


def test_moods_of_the_same_arousal_differ_too(pieces: dict[str, list[Float32]]) -> None:
    tempo = {mood: [onsets_per_second(piece) for piece in pieces[mood]] for mood in MOODS}
    brightness = {mood: [centroid_hz(piece) for piece in pieces[mood]] for mood in MOODS}
    assert min(tempo["tense"]) > max(tempo["joyful"])
    assert min(brightness["calm"]) > max(brightness["sad"])


@pytest.mark.parametrize("mood", MOODS)
def test_a_piece_keeps_its_promises(pieces: dict[str, list[Float32]], mood: str) -> None:
    for piece in pieces[mood]:
        assert piece.shape == (round(SECONDS * SAMPLE_RATE),)
        assert piece.dtype == np.float32
        assert np.abs(piece).max() == pytest.approx(MOODS[mood].peak, rel=1e-5)
        # It fades in and out: no click at either end.
        assert np.abs(piece[[0, -1]]).max() < 1e-3


@pytest.mark.parametrize("mood", MOODS)
def test_overtones_fall_off_as_the_mood_says(mood: str) -> None:
    tone = np.zeros(SAMPLE_RATE, np.float32)
    m = dataclasses.replace(MOODS[mood], hold=1.0)
    _add(tone, 0.0, 1.0, 400.0, 1.0, m)
    spectrum = np.abs(np.fft.rfft(tone))  # one bin is 1 Hz
    n = np.arange(1, m.n_harmonics + 1)
    np.testing.assert_allclose(spectrum[400 * n] / spectrum[400], n**-m.rolloff, rtol=0.05)
    assert spectrum[400 * (m.n_harmonics + 1)] < spectrum[400 * m.n_harmonics] / 5


def test_the_same_seed_gives_the_same_samples_and_another_does_not() -> None:
    once, again = (compose("joyful", 7, seconds=1) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, compose("joyful", 8, seconds=1))
    assert not np.array_equal(once, compose("tense", 7, seconds=1))


@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.3])
def test_very_short_pieces_can_be_composed(seconds: float) -> None:
    piece = compose("tense", 1, seconds=seconds)
    assert piece.shape == (round(seconds * SAMPLE_RATE),)
    assert np.isfinite(piece).all()


@pytest.mark.parametrize("n_channels", [1, 2])
def test_an_mp3_holds_the_piece(n_channels: int) -> None:
    piece = compose("calm", 1, seconds=2)
    content = encode_mp3(np.column_stack([piece] * n_channels), quality=0.1)
    decoded, sample_rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    assert sample_rate == SAMPLE_RATE
    assert decoded.shape[1] == n_channels
    # An encoder shifts what it encodes by a frame or two: look for the best match.
    spectrum = np.fft.rfft(piece, 2**18) * np.conj(np.fft.rfft(decoded[:, 0], 2**18))
    match = np.fft.irfft(spectrum).max() / (np.linalg.norm(piece) * np.linalg.norm(decoded[:, 0]))
    assert match > 0.99


def test_a_lower_quality_takes_fewer_bytes() -> None:
    piece = compose("tense", 1, seconds=2)
    assert len(encode_mp3(piece, quality=0.9)) < len(encode_mp3(piece, quality=0.1))
