"""Compose short pieces in four moods, for the demo and the tests: no recorded music is needed.

The means are those that listeners are known to go by: tempo, mode, register, loudness,
articulation and timbre.

References
----------
Juslin, P. N. and Lindstrom, E. "Musical expression of emotions: modelling listeners' judgements
of composed and performed features", Music Analysis 29, 2010.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soundfile

Float32 = npt.NDArray[np.float32]

SAMPLE_RATE = 44_100

_MAJOR = (0, 2, 4, 5, 7, 9, 11)
_MINOR = (0, 2, 3, 5, 7, 8, 10)
_OCTATONIC = (0, 1, 3, 4, 6, 7, 9)  # half and whole steps in turn, less one: no resting point


@dataclass(frozen=True)
class Mood:
    """How a mood sounds.

    Attributes
    ----------
    scale : tuple of int
        Seven steps of the scale [semitones above the tonic].
    chords : tuple of int
        Progression, as degrees of the scale from 0.
    beats_per_minute : float
    tonic : int
        MIDI note of the bass.
    melody_octaves : int
        Register of the melody above the bass.
    n_harmonics : int
        Of each tone: brightness.
    rolloff : float
        Harmonic k has amplitude k ** -rolloff.
    attack_seconds, hold : float
        Attack [s], and the part of a note's time that it sounds.
    notes_per_beat : int
        Of the melody.
    drums : float
        Level of the percussion.
    peak : float
        Loudness of the piece, of full scale.
    """

    scale: tuple[int, ...]
    chords: tuple[int, ...]
    beats_per_minute: float
    tonic: int
    melody_octaves: int
    n_harmonics: int
    rolloff: float
    attack_seconds: float
    hold: float
    notes_per_beat: int
    drums: float
    peak: float


#: The four corners of the valence-arousal plane.
MOODS = {
    "tense": Mood(_OCTATONIC, (0, 1, 0, 4), 148, 33, 2, 24, 0.6, 0.003, 0.9, 4, 0.8, 0.95),
    "joyful": Mood(_MAJOR, (0, 3, 4, 0), 132, 48, 2, 10, 1.1, 0.004, 0.6, 2, 0.7, 0.9),
    "sad": Mood(_MINOR, (0, 5, 3, 4), 56, 40, 1, 3, 2.2, 0.12, 1.0, 1, 0.0, 0.25),
    "calm": Mood(_MAJOR, (0, 3, 0, 4), 66, 45, 2, 4, 2.0, 0.06, 1.0, 1, 0.0, 0.3),
}


def compose(mood: str, seed: int, *, seconds: float = 15.0) -> Float32:
    """Compose a piece: chords, a bass, a wandering melody, percussion where the mood has it.

    Parameters
    ----------
    mood : str
        A key of ``MOODS``.
    seed : int
        Chooses key, tempo and melody; the same seed gives the same piece.
    seconds : float
        [s]

    Returns
    -------
    float32, shape (n_samples,)
        Mono at 44.1 kHz.
    """
    m = MOODS[mood]
    random = np.random.default_rng([seed, sorted(MOODS).index(mood)])
    beat = 60 / (m.beats_per_minute * random.uniform(0.94, 1.06))
    tonic = m.tonic + int(random.integers(0, 5))
    waveform = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    degree = 0
    for number in range(int(np.ceil(seconds / beat))):
        begin = number * beat
        root = m.chords[number // 4 % len(m.chords)]
        if number % 4 == 0:
            for step in (0, 2, 4):
                _add(waveform, begin, 4 * beat, _note(m, tonic + 12, root + step), 0.25, m)
        _add(waveform, begin, beat, _note(m, tonic, root), 0.5, m)
        for part in range(m.notes_per_beat):
            degree = int(np.clip(degree + random.integers(-2, 3), -4, 7))
            length = beat / m.notes_per_beat
            note = _note(m, tonic + 12 * m.melody_octaves, root + degree)
            _add(waveform, begin + part * length, length, note, 0.45, m)
        if m.drums:
            _hit(waveform, begin, random, m.drums * (1.0 if number % 2 else 0.6))
            _hit(waveform, begin + beat / 2, random, m.drums * 0.3)
    fade = np.linspace(0, 1, min(SAMPLE_RATE // 20, len(waveform) // 2), dtype=np.float32)
    waveform[: len(fade)] *= fade
    waveform[len(waveform) - len(fade) :] *= fade[::-1]
    loudest = float(np.abs(waveform).max())
    return waveform * np.float32(m.peak / loudest)


def _note(mood: Mood, tonic: int, degree: int) -> float:
    """Frequency of a degree of the scale [Hz]."""
    octave, step = divmod(degree, len(mood.scale))
    return float(440 * 2 ** ((tonic + 12 * octave + mood.scale[step] - 69) / 12))


def _add(
    waveform: Float32, begin: float, length: float, hz: float, level: float, mood: Mood
) -> None:
    """Add a tone with harmonics below the Nyquist frequency."""
    first = round(begin * SAMPLE_RATE)
    n = min(round(length * mood.hold * SAMPLE_RATE), len(waveform) - first)
    if n <= 0:
        return
    t = np.arange(n) / SAMPLE_RATE
    harmonics = range(1, 1 + min(mood.n_harmonics, int(0.45 * SAMPLE_RATE / hz)))
    tone = sum((np.sin(2 * np.pi * k * hz * t) * k**-mood.rolloff for k in harmonics), np.zeros(n))
    envelope = np.minimum(1, t / mood.attack_seconds) * np.exp(-1.5 * t / (length * mood.hold))
    envelope *= np.minimum(1, (n - np.arange(n)) / (0.01 * SAMPLE_RATE))
    waveform[first : first + n] += (level * tone * envelope).astype(np.float32)


def _hit(waveform: Float32, begin: float, random: np.random.Generator, level: float) -> None:
    """Add a short burst of noise."""
    first = round(begin * SAMPLE_RATE)
    n = min(SAMPLE_RATE // 10, len(waveform) - first)
    if n > 0:
        decay = np.exp(-np.arange(n) / (0.02 * SAMPLE_RATE))
        waveform[first : first + n] += (level * random.normal(0, 0.5, n) * decay).astype(np.float32)


def encode_mp3(waveform: Float32, *, sample_rate: int = SAMPLE_RATE, quality: float = 0.5) -> bytes:
    """Encode a waveform, shape (n_samples,) or (n_samples, n_channels), as an MP3 file.

    Parameters
    ----------
    quality : float
        0 is the highest bitrate, 1 the lowest.
    """
    buffer = io.BytesIO()
    soundfile.write(
        buffer, waveform, sample_rate, format="MP3", subtype="MPEG_LAYER_III",
        compression_level=quality,
    )  # fmt: skip
    return buffer.getvalue()
