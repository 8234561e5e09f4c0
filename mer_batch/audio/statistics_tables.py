"""Matrices over bands, and lags, that statistics of a spectrogram follow from.

What is computed in torch and in compiled code alike: both take these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mer_batch.audio.mel import hz_to_mel, mel_to_hz

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

MIN_FRAMES = 12
N_CEPSTRA = 25
PITCHES_PER_OCTAVE = 24
N_TEMPO_RANGES = 12

#: How many statistics there are, whatever the spectrogram's parameters.
N_STATISTICS = 260

# How well each pitch class fits a key, from C: probe-tone ratings.
# Krumhansl, C. L. "Cognitive Foundations of Musical Pitch", Oxford, 1990.
_MAJOR_KEY = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
_MINOR_KEY = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)

_MOST, _MOST_MELS = 1_000_000, 10_000
_LOWEST_PITCH_HZ = 700.0  # below it mel bands are wider than a semitone
_OCTAVES = 3
_TEMPO_SECONDS = (0.1, 2.0)
_HELD_SECONDS = 0.5
_CHORD_SECONDS = 1.0

#: Rows of ``Tables.chords``: the grid of pitches, its mean octave, and how well that fits each key.
CHORD_ROWS = (_OCTAVES * PITCHES_PER_OCTAVE, PITCHES_PER_OCTAVE, 2 * PITCHES_PER_OCTAVE)


@dataclass(frozen=True)
class Tables:
    """What follows from a spectrogram's parameters; see :func:`tables`.

    Attributes
    ----------
    sharpen : float32, shape (n_mels, n_mels)
        From a frame to what is left of it without its smooth outline.
    outlines : float32, shape (N_CEPSTRA + 20 + 8, n_mels)
        The cosine transform, means of 20 ranges and of 8.
    by8 : float32, shape (8, n_mels)
        Means of 8 ranges.
    ranges : float32, shape (5, n_mels)
        Mean of all bands, then of four ranges, upwards.
    chords : float32, shape (sum(CHORD_ROWS), n_mels)
    pulse_lags : int64, shape (N_TEMPO_RANGES, longest)
        The lags of each range of tempo [frames], the last one repeated to make a table.
    held_frames, chord_frames : int
        How long tones are to be held, and a chord lasts [frames].
    frame_seconds : float
    """

    sharpen: Float32
    outlines: Float32
    by8: Float32
    ranges: Float32
    chords: Float32
    pulse_lags: npt.NDArray[np.int64]
    held_frames: int
    chord_frames: int
    frame_seconds: float

    @property
    def n_lags(self) -> int:
        """Lags that are to be computed, from 0 on."""
        return int(self.pulse_lags.max()) + 1


@lru_cache(maxsize=8)
def tables(*, n_mels: int, sample_rate: int, hop_length: int, fmin: float, fmax: float) -> Tables:
    """The tables for spectrograms of these parameters; see ``MelParameters``.

    Raises
    ------
    ValueError
        Where a count is none.
    """
    counts = {"n_mels": n_mels, "sample_rate": sample_rate, "hop_length": hop_length}
    for name, value in counts.items():
        if type(value) is not int or not 1 <= value <= _MOST:
            raise ValueError(f"{name}={value!r} must be a whole number from 1 to {_MOST:,}")
    if n_mels > _MOST_MELS:
        raise ValueError(f"n_mels={n_mels} must be at most {_MOST_MELS:,}")
    frame_seconds = hop_length / sample_rate
    by8 = range_means(8, n_mels)
    outlines = [cosines(N_CEPSTRA, n_mels), range_means(20, n_mels), by8]
    ranges = [range_means(1, n_mels), range_means(4, n_mels)]
    return Tables(
        sharpen=_single(np.eye(n_mels) - smoothing(n_mels)),
        outlines=_single(np.concatenate(outlines)),
        by8=_single(by8),
        ranges=_single(np.concatenate(ranges)),
        chords=_single(_chords(n_mels, fmin, fmax)),
        pulse_lags=_tempo_lags(frame_seconds),
        held_frames=max(1, int(_HELD_SECONDS / frame_seconds)),
        chord_frames=max(1, int(_CHORD_SECONDS / frame_seconds)),
        frame_seconds=frame_seconds,
    )


def _single(matrix: Float64) -> Float32:
    return np.ascontiguousarray(matrix, np.float32)


def cosines(n_cepstra: int, n_mels: int) -> Float64:
    """The first rows of a cosine transform, shape (n_cepstra, n_mels)."""
    angles = math.pi / n_mels * np.outer(np.arange(n_cepstra), np.arange(n_mels) + 0.5)
    found: Float64 = np.cos(angles) * math.sqrt(2 / n_mels)
    return found


def smoothing(n_mels: int) -> Float64:
    """Running mean over a sixteenth of the bands, edges repeated, shape (n_mels, n_mels)."""
    half = max(3, round(n_mels / 16) | 1) // 2
    matrix = np.zeros((n_mels, n_mels))
    for row in range(n_mels):
        for band in range(row - half, row + half + 1):
            matrix[row, min(max(band, 0), n_mels - 1)] += 1 / (2 * half + 1)
    return matrix


def range_means(n_ranges: int, n_mels: int) -> Float64:
    """Means over equal runs of bands, shape (n_ranges, n_mels)."""
    # In single precision, as torch has it: two sizes would be cut elsewhere in double.
    edges = np.linspace(0, n_mels, n_ranges + 1, dtype=np.float32).round().astype(int).tolist()
    matrix = np.zeros((n_ranges, n_mels))
    for row, (start, stop) in enumerate(pairwise(edges)):
        matrix[row, start:stop] = 1 / max(stop - start, 1)
    return matrix


def pitch_grid(n_mels: int, fmin: float, fmax: float) -> Float64:
    """Linear interpolation, over log frequency, of bands at quarter tones: (n_pitches, n_mels)."""
    mels = np.linspace(hz_to_mel(fmin), hz_to_mel(fmax), n_mels + 2)[1:-1]
    centres = np.log2(mel_to_hz(mels))
    steps = np.arange(_OCTAVES * PITCHES_PER_OCTAVE) / PITCHES_PER_OCTAVE
    pitches = math.log2(_LOWEST_PITCH_HZ) + steps
    return np.stack([np.interp(pitches, centres, unit) for unit in np.eye(n_mels)], axis=1)


def _chords(n_mels: int, fmin: float, fmax: float) -> Float64:
    """From bands to a grid of pitches, to its mean octave, and to how well that fits each key.

    Grid and octave are centred, so one matrix does it all: shape (sum(CHORD_ROWS), n_mels).
    """
    grid = pitch_grid(n_mels, fmin, fmax)
    chroma = grid.reshape(_OCTAVES, PITCHES_PER_OCTAVE, n_mels).mean(axis=0)
    chroma = chroma - chroma.mean(axis=0)
    return np.concatenate([grid - grid.mean(axis=0), chroma, _key_profiles() @ chroma])


def _key_profiles() -> Float64:
    """Unit vectors of the 24 shifts of both keys, shape (48, 24): major first."""
    profiles = np.array([_MAJOR_KEY, _MINOR_KEY])
    profiles = profiles - profiles.mean(axis=1, keepdims=True)
    profiles = profiles.repeat(PITCHES_PER_OCTAVE // 12, axis=1)
    profiles = profiles / np.linalg.norm(profiles, axis=1, keepdims=True)
    shifts = [np.roll(profiles, shift, axis=1) for shift in range(PITCHES_PER_OCTAVE)]
    return np.stack(shifts, axis=1).reshape(2 * PITCHES_PER_OCTAVE, PITCHES_PER_OCTAVE)


def _tempo_lags(frame_seconds: float) -> npt.NDArray[np.int64]:
    first, last = _TEMPO_SECONDS
    ratios = [(last / first) ** (i / N_TEMPO_RANGES) for i in range(N_TEMPO_RANGES + 1)]
    edges = [round(first * ratio / frame_seconds) for ratio in ratios]
    longest = max(stop - start for start, stop in pairwise(edges))
    lags = [
        [min(start + step, max(stop - 1, start)) for step in range(max(longest, 1))]
        for start, stop in pairwise(edges)
    ]
    return np.array(lags)
