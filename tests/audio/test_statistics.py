"""Statistics of sounds whose answers are known: physics, librosa and planted rhythms."""

from __future__ import annotations

from collections.abc import Callable

import librosa
import numpy as np
import pytest
import scipy.stats
import torch

from mer_batch.audio import statistics as kernel
from mer_batch.audio import statistics_tables
from mer_batch.audio.mel import mel_spectrogram, power_to_db
from mer_batch.audio.statistics import Statistics
from mer_batch.feature_sets import feature_set

MEL = feature_set("log_mel").mel
RATE = MEL.sample_rate
FRAME_SECONDS = MEL.hop_length / RATE


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    return Statistics(
        n_mels=MEL.n_mels, sample_rate=RATE, hop_length=MEL.hop_length, fmin=MEL.fmin, fmax=MEL.fmax
    )


def log_mel(waveform: np.ndarray) -> torch.Tensor:
    mel = mel_spectrogram(waveform.astype(np.float32), MEL)
    return torch.from_numpy(power_to_db(mel).T.copy())[None]


def noise(seconds: float, *, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))


def tones(pitches_hz: list[float], seconds: float) -> np.ndarray:
    t = np.arange(int(seconds * RATE)) / RATE
    return sum(0.1 * np.sin(2 * np.pi * hz * t) for hz in pitches_hz)


def pulses(interval_seconds: float, seconds: float) -> np.ndarray:
    """Bursts of noise at a steady tempo, each ringing until the next."""
    t = np.arange(int(seconds * RATE)) / RATE
    return noise(seconds) * np.exp(-6 * (t % interval_seconds))


def grouped(
    statistics: Statistics, waveform: np.ndarray, change: Callable[..., torch.Tensor] | None = None
) -> dict[str, np.ndarray]:
    features = log_mel(waveform)
    groups = statistics.groups(change(features) if change else features)
    return {name: values[0].numpy() for name, values in groups.items()}


def test_pitch_grid_lies_where_librosa_has_its_bands() -> None:
    centres = librosa.mel_frequencies(MEL.n_mels + 2, fmin=MEL.fmin, fmax=MEL.fmax)[1:-1]
    # A grid that interpolates over log frequency gives back log frequency itself.
    octaves = statistics_tables.pitch_grid(MEL.n_mels, MEL.fmin, MEL.fmax) @ np.log2(centres)
    expected = np.log2(700) + np.arange(72) / 24
    np.testing.assert_allclose(octaves, expected, atol=1e-5)


def test_cosine_transform_is_orthonormal_beyond_its_first_row(statistics: Statistics) -> None:
    rows = statistics.outlines[1 : statistics_tables.N_CEPSTRA]
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-5, rtol=0)


def test_smoothing_takes_a_slope_away_and_leaves_a_peak(statistics: Statistics) -> None:
    slope = torch.linspace(0, 80, MEL.n_mels)
    inner = (statistics.sharpen @ slope)[4:-4]
    torch.testing.assert_close(inner, torch.zeros_like(inner), atol=1e-4, rtol=0)
    slope[40] += 10
    assert int((statistics.sharpen @ slope)[4:-4].argmax()) == 36


def test_gain_moves_loudness_alone(statistics: Statistics) -> None:
    sound = pulses(0.4, 8)
    loud, soft = grouped(statistics, sound), grouped(statistics, sound, lambda x: x - 12)
    np.testing.assert_allclose(loud["loudness"][:2] - soft["loudness"][:2], 12, atol=1e-3)
    for name in loud:
        first = 2 if name == "loudness" else 0
        np.testing.assert_allclose(loud[name][first:], soft[name][first:], rtol=0.01, atol=0.01)


def test_silence_around_a_sound_changes_little(statistics: Statistics) -> None:
    sound = pulses(0.4, 10)
    padded = np.concatenate([np.zeros(3 * RATE), sound, np.zeros(3 * RATE)])
    bare, framed = grouped(statistics, sound), grouped(statistics, padded)
    np.testing.assert_allclose(framed["spectrum"], bare["spectrum"], atol=1.5)
    np.testing.assert_allclose(framed["loudness"][:3], bare["loudness"][:3], atol=1)


def test_a_second_of_sound_in_half_a_minute_of_silence_sets_the_level(
    statistics: Statistics,
) -> None:
    sound = noise(1)
    lonely = np.concatenate([np.zeros(15 * RATE), sound, np.zeros(14 * RATE)])
    bare, framed = grouped(statistics, sound), grouped(statistics, lonely)
    np.testing.assert_allclose(framed["loudness"][0], bare["loudness"][0], atol=1)


@pytest.mark.parametrize("interval_seconds", [0.3, 0.5, 0.8])
def test_pulse_peaks_at_the_planted_tempo(statistics: Statistics, interval_seconds: float) -> None:
    pulse = grouped(statistics, pulses(interval_seconds, 20))["pulse"][:12]
    edges = 0.1 * 20 ** (np.arange(13) / 12)
    interval = round(interval_seconds / FRAME_SECONDS) * FRAME_SECONDS
    planted = int(np.searchsorted(edges, interval, side="right")) - 1
    # Multiples of the interval come back just as well, shorter lags do not.
    assert pulse[planted] > 0.5
    assert pulse[planted] > 2 * np.abs(pulse[2 : planted - 1]).max(initial=0)


@pytest.mark.parametrize("interval_seconds", [0.3, 0.5, 0.8])
def test_the_beat_is_the_loud_drum_not_the_faint_one(
    statistics: Statistics, interval_seconds: float
) -> None:
    """A strong pulse, and 30 dB below it a faster one."""
    beat = grouped(statistics, pulses(interval_seconds, 20) + 0.03 * pulses(0.17, 20))["beat"]
    edges = 0.1 * 20 ** (np.arange(13) / 12)
    interval = round(interval_seconds / FRAME_SECONDS) * FRAME_SECONDS
    planted = int(np.searchsorted(edges, interval, side="right")) - 1
    assert beat[planted] > 0.5
    assert beat[planted] > 2 * np.abs(beat[2 : planted - 1]).max(initial=0)


def test_noise_has_no_pulse(statistics: Statistics) -> None:
    found = grouped(statistics, noise(20))
    assert np.abs(found["pulse"][:12]).max() < 0.2
    assert np.abs(found["beat"]).max() < 0.2


def test_drums_have_stronger_onsets_than_a_held_chord(statistics: Statistics) -> None:
    drums = grouped(statistics, pulses(0.5, 10))
    chord = grouped(statistics, tones([220, 277, 330], 10))
    assert drums["onsets"][0] > chord["onsets"][0] + 1
    assert drums["decays"][0] > chord["decays"][0] + 1
    assert (drums["flux"] > chord["flux"]).all()


def test_drums_rise_suddenly_and_fall_slowly_reversed_ones_the_other_way(
    statistics: Statistics,
) -> None:
    sound = pulses(0.5, 10)
    forward, backward = grouped(statistics, sound), grouped(statistics, sound[::-1])
    skewness = slice(10, 15)
    assert (forward["onsets"][skewness] > backward["onsets"][skewness] + 1).all()
    assert (forward["decays"][skewness] < backward["decays"][skewness] - 1).all()


@pytest.mark.parametrize("per_second", [1.25, 2.5, 4.0])
def test_rates_count_the_planted_onsets(statistics: Statistics, per_second: float) -> None:
    """Peaks of the rise above 8 dB: one a stroke, of all bands and of each range."""
    rates = grouped(statistics, pulses(1 / per_second, 20) + 1e-4 * noise(20, seed=1))["rates"]
    np.testing.assert_allclose(rates[[0, 5, 10]], per_second, rtol=0.1)


def test_rates_stand_still_where_nothing_begins(statistics: Statistics) -> None:
    assert np.abs(grouped(statistics, tones([440.0, 660.0], 10))["rates"][10:20]).max() < 0.3


def test_more_voices_are_fuller(statistics: Statistics) -> None:
    chords = [tones([220.0 * 2**k for k in range(n)], 5) for n in (1, 3, 6)]
    full = [grouped(statistics, chord)["fullness"][0] for chord in [*chords, noise(5)]]
    assert full == sorted(full)
    assert full[0] < 0.3
    assert full[3] > 0.95


def test_evenness_equals_the_kurtosis_of_scipy(statistics: Statistics) -> None:
    features = log_mel(pulses(0.5, 10))
    ranges = (statistics.by8 @ features)[0].numpy()
    expected = scipy.stats.kurtosis(ranges, axis=1, fisher=False)
    found = statistics.groups(features)["evenness"][0].numpy()
    np.testing.assert_allclose(found, np.log1p(expected), rtol=0.01)


def test_a_range_heard_now_and_then_is_less_even(statistics: Statistics) -> None:
    t = np.arange(10 * RATE) / RATE
    rare = noise(10) * np.where(t % 5 < 0.2, 1.0, 0.01)
    often = noise(10) * np.where(t % 0.4 < 0.2, 1.0, 0.01)
    assert (
        grouped(statistics, rare)["evenness"] > grouped(statistics, often)["evenness"] + 0.5
    ).all()


def test_tones_are_peaked_and_held_noise_is_neither(statistics: Statistics) -> None:
    chord = grouped(statistics, tones([1000, 1500, 2250, 3000], 10))["tones"]
    hiss = grouped(statistics, noise(10))["tones"]
    in_range = slice(2, 5)
    assert (chord[:8] > 2 * hiss[:8])[in_range].all()
    assert (chord[16:] > hiss[16:])[in_range].all()


def test_an_interval_shows_whatever_its_key(statistics: Statistics) -> None:
    for root in (800.0, 950.0, 1100.0):
        fifth = grouped(statistics, tones([root, root * 2 ** (7 / 12)], 5))["intervals"]
        # Lags are quarter tones from one upwards: a fifth is the fourteenth.
        assert abs(int(fifth[6:20].argmax()) + 6 - 13) <= 1


@pytest.mark.parametrize("root_hz", [1000.0, 1500.0, 2000.0])
def test_major_and_minor_triads_are_told_apart(statistics: Statistics, root_hz: float) -> None:
    def difference(steps: tuple[int, ...]) -> float:
        chord = [root_hz * 2 ** (step / 12) for step in steps]
        return float(grouped(statistics, tones(chord, 5))["keys"][2])

    assert difference((0, 4, 7, 12)) > 0.05 > -0.05 > difference((0, 3, 7, 12))


def test_autocorrelation_equals_the_sum() -> None:
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 50)))
    expected = torch.stack(
        [(values[..., : 50 - lag] * values[..., lag:]).sum(dim=2) for lag in range(20)], dim=2
    )
    torch.testing.assert_close(kernel._autocorrelation(values, 20), expected)


def test_moments_of_series_equal_numpy() -> None:
    rng = np.random.default_rng(0)
    parts = {name: rng.standard_normal((2, rows, 30)) ** 2 for name, rows in (("a", 4), ("b", 3))}
    weights = rng.random((2, 1, 30))
    shares = kernel._shares(torch.from_numpy(weights))
    series = kernel._Series({name: torch.from_numpy(v) for name, v in parts.items()}, shares)
    for name, values in parts.items():

        def over_time(each: np.ndarray) -> np.ndarray:
            return (weights * each).sum(axis=2) / weights.sum(axis=2)

        mean = over_time(values)
        deviations = values - mean[..., None]
        variance, third, fourth = (over_time(deviations**power) for power in (2, 3, 4))
        np.testing.assert_allclose(series.mean(name), mean)
        np.testing.assert_allclose(series.std(name), np.sqrt(variance), rtol=1e-5)
        np.testing.assert_allclose(series.skewness(name), third / variance**1.5, rtol=1e-4)
        kurtosis = series.kurtosis(name, least_variance=0.01)
        np.testing.assert_allclose(kurtosis, fourth / variance**2)


def test_quantiles_of_the_last_equal_numpy() -> None:
    ordered = np.sort(np.random.default_rng(0).standard_normal((3, 40)))
    n_last, probabilities = np.array([[40], [17], [1]]), np.array([0.0, 0.3, 0.95, 1.0])
    found = kernel._quantiles_of_last(
        torch.from_numpy(ordered), torch.from_numpy(n_last), torch.from_numpy(probabilities)
    )
    expected = [
        np.quantile(row[40 - n :], probabilities) for row, (n,) in zip(ordered, n_last, strict=True)
    ]
    np.testing.assert_allclose(found, expected)


def test_window_means_equal_numpy() -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 50))
    found = kernel._window_means(torch.from_numpy(values), 9)
    expected = [values[..., begin : begin + 9].mean(axis=2) for begin in range(0, 42, 4)]
    np.testing.assert_allclose(found, np.stack(expected, axis=2))


@pytest.mark.parametrize("n_frames", [1, 2, 11, 12, 13, 22, 46, 646])
def test_any_length_gives_finite_numbers(statistics: Statistics, n_frames: int) -> None:
    torch.manual_seed(0)
    for features in (torch.full((2, 80, n_frames), -100.0), torch.randn(2, 80, n_frames) * 20 - 40):
        values = statistics(features)
        assert values.shape == (2, sum(statistics.sizes().values()))
        assert values.isfinite().all()


def test_a_batch_gives_what_its_items_give(statistics: Statistics) -> None:
    batch = torch.cat([log_mel(pulses(0.5, 6)), log_mel(noise(6)), log_mel(tones([440.0], 6))])
    alone = torch.cat([statistics(batch[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(statistics(batch), alone, rtol=1e-3, atol=1e-3)


def test_nothing_of_it_is_saved(statistics: Statistics) -> None:
    assert not statistics.state_dict()
