"""Statistics over time of a log-mel spectrogram, in fourteen groups.

Every statistic but the first two of ``loudness`` is free of gain: turning a recording up or down
changes nothing. Silence, at a track's edges or within, carries no weight. Pure torch, and the
same numbers for one track or a batch of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mer_batch.audio.mel import hz_to_mel, mel_to_hz

# How well each pitch class fits a key, from C: probe-tone ratings.
# Krumhansl, C. L. "Cognitive Foundations of Musical Pitch", Oxford, 1990.
_MAJOR_KEY = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
_MINOR_KEY = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)

_MIN_FRAMES = 12
_ACTIVE_DB = 50.0  # frames further below the loud ones are silence
_RANGE_DB = 90.0  # bands further below the loud frames are noise floor
_MAX_STEP_DB = 30.0
_FULL_DB = 40.0  # bands further below the loud frames add nothing to how full it sounds
_LOUDNESS_EXPONENT = 0.4  # perceived loudness is about a power of intensity
_RATE_DB = (1.0, 2.0, 4.0, 8.0)
_RAMP_DB = 0.5
_N_CEPSTRA = 25
_LOWEST_PITCH_HZ = 700.0  # below it mel bands are wider than a semitone
_OCTAVES = 3
_PITCHES_PER_OCTAVE = 24
_N_INTERVALS = 25
_TEMPO_SECONDS = (0.1, 2.0)
_N_TEMPO_RANGES = 12
_HELD_SECONDS = 0.5
_CHORD_SECONDS = 1.0


@dataclass(frozen=True)
class _Sound:
    """A batch of spectrograms without their gain, and which of their frames count.

    Attributes
    ----------
    db : Tensor, shape (batch, n_mels, n_frames) [dB]
        Relative to the level of the loud frames.
    level : Tensor, shape (batch, 1, n_frames) [dB]
        Of all bands together, relative to the loud frames.
    loud : Tensor, shape (batch, 1) [dB]
        Level of the loud frames.
    active : Tensor, shape (batch, 1, n_frames)
        1 where there is sound, else 0.
    steps : Tensor, shape (batch, 1, n_frames - 1)
        1 where there is sound in a frame and in the next.
    active_shares, steps_shares : Tensor
        The same, adding up to 1: weights of means over time.
    """

    db: Tensor
    level: Tensor
    loud: Tensor
    active: Tensor
    steps: Tensor
    active_shares: Tensor
    steps_shares: Tensor


class Statistics(nn.Module):
    """Log-mel spectrograms to statistics; it has no learned numbers.

    Parameters
    ----------
    n_mels, sample_rate, hop_length, fmin, fmax
        Of the spectrograms; see ``MelParameters``.
    """

    dct: Tensor
    sharpen: Tensor
    by8: Tensor
    by20: Tensor
    ranges: Tensor
    pitches: Tensor
    keys: Tensor

    def __init__(
        self, *, n_mels: int, sample_rate: int, hop_length: int, fmin: float, fmax: float
    ) -> None:
        super().__init__()
        self._frame_seconds = hop_length / sample_rate
        matrices = {
            "dct": _cosines(_N_CEPSTRA, n_mels),
            "sharpen": torch.eye(n_mels) - _smoothing(n_mels),
            "by8": _range_means(8, n_mels),
            "by20": _range_means(20, n_mels),
            # All bands, then four ranges, upwards.
            "ranges": torch.cat([_range_means(1, n_mels), _range_means(4, n_mels)]),
            "pitches": _pitch_grid(n_mels, fmin, fmax),
            "keys": _key_profiles(),
        }
        for name, matrix in matrices.items():
            # Not persistent: a checkpoint holds what was learned, these follow from parameters.
            self.register_buffer(name, matrix, persistent=False)

    def forward(self, log_mel: Tensor) -> Tensor:
        """(batch, n_mels, n_frames) [dB] to (batch, n_statistics)."""
        return torch.cat(list(self.groups(log_mel).values()), dim=1)

    def sizes(self) -> dict[str, int]:
        """Number of statistics in each group, by name."""
        silence = torch.zeros(1, self.dct.shape[1], _MIN_FRAMES)
        return {name: values.shape[1] for name, values in self.groups(silence).items()}

    def groups(self, log_mel: Tensor) -> dict[str, Tensor]:
        """(batch, n_mels, n_frames) [dB] to (batch, size) for each group, by name."""
        missing = _MIN_FRAMES - log_mel.shape[2]
        if missing > 0:
            log_mel = functional.pad(log_mel, (0, missing), mode="replicate")
        sound = _without_gain(log_mel)
        # Peaks across bands: what is left of a frame without its smooth outline. In place, here
        # and below, because fresh memory costs as much as arithmetic.
        peaks = _product(self.sharpen, sound.db).mul_(sound.active)
        steps = sound.db.diff(dim=2).clamp_(-_MAX_STEP_DB, _MAX_STEP_DB)
        rises, falls = self._by_range(steps.clamp_min(0)), self._by_range(-steps.clamp_max_(0))
        strokes = self._strokes(sound)
        pulse = self._pulse(sound, torch.cat([rises[:, [0, 1, 4]], strokes[:, :1]], dim=1))
        intervals, keys = self._harmony(sound, peaks)
        by20 = _product(self.by20, sound.db)
        return {
            "spectrum": _mean(by20, sound.active_shares),
            "movement": _std(_product(self.dct, sound.db), sound.active_shares),
            "flux": _flux(sound, by20),
            "loudness": _loudness(sound),
            "fullness": self._fullness(sound),
            "evenness": self._evenness(sound),
            "onsets": _changes(sound, strokes),
            "decays": _changes(sound, falls),
            "rates": self._rates(sound, rises),
            "pulse": pulse[:, : 3 * _N_TEMPO_RANGES],
            "beat": pulse[:, 3 * _N_TEMPO_RANGES :],
            "tones": self._tones(sound, peaks),
            "intervals": intervals,
            "keys": keys,
        }

    def _fullness(self, sound: _Sound) -> Tensor:
        """How many bands sound at once: mean and deviation of their share, mean in four ranges."""
        share = self._by_range((sound.db > -_FULL_DB).to(sound.db.dtype))
        mean, std = (f(share, sound.active_shares) for f in (_mean, _std))
        return torch.cat([mean[:, :1], std[:, :1], mean[:, 1:]], dim=1)

    def _evenness(self, sound: _Sound) -> Tensor:
        """Whether each of eight ranges sounds all the time or now and then: log kurtosis."""
        ranges = _product(self.by8, sound.db)
        deviations = ranges - _mean(ranges, sound.active_shares)[..., None]
        squares = deviations.square_()
        variance = _mean(squares, sound.active_shares).clamp_min(0.25)
        return (
            (_mean(squares.square_(), sound.active_shares) / variance.square()).clamp(0, 15).log1p()
        )

    def _by_range(self, values: Tensor) -> Tensor:
        """Means of all bands, then of four ranges, upwards: (batch, 5, n_frames - 1)."""
        return _product(self.ranges, values)

    def _strokes(self, sound: _Sound) -> Tensor:
        """Rises of perceived loudness, where a loud drum counts for more than a faint rustle."""
        loudness = (sound.db * (_LOUDNESS_EXPONENT * math.log(10) / 10)).exp_().mul_(10)
        return self._by_range(loudness.diff(dim=2).clamp_min_(0))

    def _rates(self, sound: _Sound, rises: Tensor) -> Tensor:
        """How often something begins: per second, peaks of the rise above 1, 2, 4 and 8 dB.

        And frames above them, of all bands together and of four ranges. Busy music is aroused.
        What is within a quarter of a decibel of a level counts in part: rounding the spectrogram
        must not decide what is counted.
        """
        inner = rises[..., 1:-1]
        is_peak = (inner > rises[..., :-2]) & (inner >= rises[..., 2:])
        levels = torch.tensor(_RATE_DB, device=rises.device)[:, None, None]
        per_second = [
            _mean(((values[:, None] - levels) / _RAMP_DB + 0.5).clamp_(0, 1).flatten(1, 2), shares)
            / self._frame_seconds
            for values, shares in (
                (inner * is_peak, _shares(sound.steps[..., 1:-1])),
                (rises, sound.steps_shares),
            )
        ]
        return torch.cat(per_second, dim=1)

    def _pulse(self, sound: _Sound, rises: Tensor) -> Tensor:
        """How regularly rises return after 0.1 to 2 s: autocorrelation, the peak in 12 ranges.

        A steady fast beat is the plainest sign of arousal.
        """
        centred = (rises - _mean(rises, sound.steps_shares)[..., None]) * sound.steps
        n = centred.shape[2]
        first, last = _TEMPO_SECONDS
        ratios = [(last / first) ** (i / _N_TEMPO_RANGES) for i in range(_N_TEMPO_RANGES + 1)]
        edges = [round(first * ratio / self._frame_seconds) for ratio in ratios]
        correlation = _autocorrelation(centred, edges[-1] + 1)
        # A lag of half the clip has half the terms; below a quarter the estimate is only noise.
        lags = torch.arange(edges[-1] + 1, device=centred.device)
        correlation = correlation * (n / (n - lags).clamp_min(max(n // 4, 1)))
        correlation = correlation / correlation[..., :1].clamp_min(1e-6)
        # One look-up and one maximum, whatever the number of ranges: a small step of torch's takes
        # as long as a large one.
        longest = max(stop - start for start, stop in pairwise(edges))
        steps = torch.arange(max(longest, 1), device=centred.device)
        within = torch.tensor(
            [(start, max(stop - 1, start)) for start, stop in pairwise(edges)],
            device=centred.device,
        )
        at = torch.minimum(within[:, :1] + steps, within[:, 1:])
        return correlation[..., at].amax(dim=3).flatten(1)

    def _tones(self, sound: _Sound, peaks: Tensor) -> Tensor:
        """How tonal the sound is, in eight ranges, and how long its tones are held.

        Mean and deviation of the peaks' height, and the share of it that survives averaging over
        half a second: noise has low peaks that do not last.
        """
        height = _product(self.by8, peaks.abs())
        mean = _mean(height, sound.active_shares)
        weight = _shares(_window_means(sound.active, self._n_frames(_HELD_SECONDS)))
        lasting = _window_means(peaks, self._n_frames(_HELD_SECONDS))
        held = _mean(_product(self.by8, lasting.abs_()), weight) / mean.clamp_min(0.1)
        return torch.cat([mean, _std(height, sound.active_shares), held], dim=1)

    def _harmony(self, sound: _Sound, peaks: Tensor) -> tuple[Tensor, Tensor]:
        """Which intervals sound together, and how major or minor that is, chord by chord.

        The peaks of each second are laid on a grid of quarter tones. Its autocorrelation says
        which intervals there are, up to an octave, whatever the key. The best correlation over
        all shifts with Krumhansl's key profiles says how major and how minor it is, and their
        difference which of the two: mean over the seconds and deviation between them. Bands are
        close to a semitone wide, so this is a hint, not a transcription.
        """
        seconds = _window_means(peaks.clamp_min(0), self._n_frames(_CHORD_SECONDS))
        grid = _product(self.pitches, seconds).transpose(1, 2)  # (batch, n_windows, n_pitches)
        octaves = grid.reshape(*grid.shape[:2], _OCTAVES, _PITCHES_PER_OCTAVE)
        chroma = octaves.mean(dim=2)
        chroma = chroma - chroma.mean(dim=2, keepdim=True)
        norm = chroma.norm(dim=2, keepdim=True).clamp_min(0.03)
        # Seconds with clear chords count for more than seconds of noise.
        weight = norm / norm.sum(dim=1, keepdim=True)

        centred = grid - grid.mean(dim=2, keepdim=True)
        correlation = _autocorrelation(centred, _N_INTERVALS + 1)
        correlation = correlation / centred.square().sum(dim=2, keepdim=True).clamp_min(0.001)
        intervals = (correlation[..., 1:] * weight).sum(dim=1)

        fits = (chroma @ self.keys).reshape(*grid.shape[:2], 2, _PITCHES_PER_OCTAVE)
        fit = fits.amax(dim=3) / norm
        fit = torch.cat([fit, fit[..., :1] - fit[..., 1:]], dim=2)
        keys = torch.cat([(fit * weight).sum(dim=1), fit.std(dim=1, unbiased=False)], dim=1)
        return intervals, keys

    def _n_frames(self, seconds: float) -> int:
        return max(1, int(seconds / self._frame_seconds))


def _without_gain(log_mel: Tensor) -> _Sound:
    """Measure levels against those of the loud frames, and find the silent ones."""
    level = 10 * torch.log10(_power(log_mel).sum(dim=1))
    # The 95th percentile of what is heard at all: a few peaks do not set it, nor much silence.
    heard = level > level.amax(dim=1, keepdim=True) - 60
    loud = _quantiles(level, heard, torch.tensor([0.95], device=level.device))
    active = (level > loud - _ACTIVE_DB).to(log_mel.dtype)[:, None]
    db = log_mel.maximum((loud - _RANGE_DB)[..., None]).sub_(loud[..., None])
    steps = active[..., 1:] * active[..., :-1]
    relative = (level - loud)[:, None]
    return _Sound(db, relative, loud, active, steps, _shares(active), _shares(steps))


def _loudness(sound: _Sound) -> Tensor:
    """How loud, and how much that varies.

    Level of the loud frames and of the mean power [dB]; then relative to the loud frames the
    10th, 25th, 50th and 75th percentile, the deviation, and the mean change between frames.
    """
    level = sound.level.clamp_min(-60)
    mean = sound.loud + 10 * torch.log10(_mean(_power(sound.level), sound.active_shares) + 1e-10)
    probabilities = torch.tensor([0.1, 0.25, 0.5, 0.75], device=level.device)
    quantiles = _quantiles(level[:, 0], sound.active[:, 0] > 0, probabilities)
    change = _mean(level.diff(dim=2).abs_(), sound.steps_shares)
    return torch.cat([sound.loud, mean, quantiles, _std(level, sound.active_shares), change], dim=1)


def _quantiles(values: Tensor, counts: Tensor, probabilities: Tensor) -> Tensor:
    """Quantiles of the values that count, linear in between: (batch, n), same, (k,) to (batch, k).

    What ``nanquantile`` gives, in a third of its time.
    """
    ordered = values.masked_fill(~counts, torch.inf).sort(dim=1).values
    last = counts.sum(dim=1, keepdim=True) - 1
    at = probabilities * last
    below = at.floor().long()
    above = torch.minimum(below + 1, last)
    return ordered.gather(1, below).lerp(ordered.gather(1, above), at - below)


def _changes(sound: _Sound, changes: Tensor) -> Tensor:
    """How strong, how uneven and how sudden rises or falls are.

    Log mean, log deviation and skewness over time. Drums are few and sudden, bowed strings
    neither.
    """
    mean, std = _mean(changes, sound.steps_shares), _std(changes, sound.steps_shares)
    skewness = _mean((changes - mean[..., None]) ** 3, sound.steps_shares) / std**3
    logs = [mean.clamp_min(0.01).log(), std.clamp_min(0.01).log()]
    return torch.cat([*logs, skewness.clamp(-5, 20)], dim=1)


def _flux(sound: _Sound, by20: Tensor) -> Tensor:
    """How much each of 20 ranges changes from frame to frame: log mean |difference|.

    Dense, noisy and busy textures move all the time, held chords do not.
    """
    change = by20.diff(dim=2).abs_()
    return _mean(change, sound.steps_shares).clamp_min(0.01).log()


def _product(matrix: Tensor, values: Tensor) -> Tensor:
    """(rows, n_mels), (batch, n_mels, n) to (batch, rows, n).

    What ``matrix @ values`` gives: but that copies, and takes twice as long.
    """
    return torch.bmm(matrix.expand(len(values), -1, -1), values)


def _power(decibels: Tensor) -> Tensor:
    return (decibels * (math.log(10) / 10)).exp_()


def _shares(weights: Tensor) -> Tensor:
    """Weights that add up to 1 over the last axis; all 0 where there is nothing to weigh."""
    return weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-6)


def _mean(values: Tensor, shares: Tensor) -> Tensor:
    """Weighted mean over time: (batch, rows, n), (batch, 1, n) to (batch, rows)."""
    # A product with a vector, not sum(values * shares): it needs no array of its own. And `bmm`,
    # because `@` takes as long as the product itself to find out that it means just that.
    return torch.bmm(values, shares.mT).squeeze(2)


def _std(values: Tensor, shares: Tensor) -> Tensor:
    """Weighted standard deviation over time, as :func:`_mean`."""
    deviations = values - _mean(values, shares)[..., None]
    return (_mean(deviations.square_(), shares) + 1e-6).sqrt()


def _autocorrelation(values: Tensor, n_lags: int) -> Tensor:
    """Autocorrelation over the last axis at lags 0 to `n_lags` - 1, not normalised."""
    # Enough zeros that lags do not wrap around, and a size that transforms are quick at.
    size = 1 << (values.shape[-1] + n_lags - 1).bit_length()
    parts = torch.view_as_real(torch.fft.rfft(values, size)).square()
    correlation: Tensor = torch.fft.irfft(parts[..., 0] + parts[..., 1], size)
    return correlation[..., :n_lags]


def _window_means(values: Tensor, length: int) -> Tensor:
    """Means over windows of `length` frames that overlap by half: (batch, rows, n_windows)."""
    length = min(length, values.shape[2])
    return functional.avg_pool1d(values, length, max(length // 2, 1))


def _cosines(n_cepstra: int, n_mels: int) -> Tensor:
    """The first rows of a cosine transform, shape (n_cepstra, n_mels)."""
    angles = math.pi / n_mels * torch.outer(torch.arange(n_cepstra), torch.arange(n_mels) + 0.5)
    return torch.cos(angles) * math.sqrt(2 / n_mels)


def _smoothing(n_mels: int) -> Tensor:
    """Running mean over a sixteenth of the bands, edges repeated, shape (n_mels, n_mels)."""
    half = max(3, round(n_mels / 16) | 1) // 2
    matrix = torch.zeros(n_mels, n_mels)
    for row in range(n_mels):
        for band in range(row - half, row + half + 1):
            matrix[row, min(max(band, 0), n_mels - 1)] += 1 / (2 * half + 1)
    return matrix


def _range_means(n_ranges: int, n_mels: int) -> Tensor:
    """Means over equal runs of bands, shape (n_ranges, n_mels)."""
    edges = torch.linspace(0, n_mels, n_ranges + 1).round().long().tolist()
    matrix = torch.zeros(n_ranges, n_mels)
    for row, (start, stop) in enumerate(pairwise(edges)):
        matrix[row, start:stop] = 1 / (stop - start)
    return matrix


def _pitch_grid(n_mels: int, fmin: float, fmax: float) -> Tensor:
    """Linear interpolation, over log frequency, of bands at quarter tones: (n_pitches, n_mels)."""
    mels = np.linspace(hz_to_mel(fmin), hz_to_mel(fmax), n_mels + 2)[1:-1]
    centres = np.log2(mel_to_hz(mels))
    steps = np.arange(_OCTAVES * _PITCHES_PER_OCTAVE) / _PITCHES_PER_OCTAVE
    pitches = math.log2(_LOWEST_PITCH_HZ) + steps
    rows = [np.interp(pitches, centres, unit) for unit in np.eye(n_mels)]
    return torch.from_numpy(np.stack(rows, axis=1)).float()


def _key_profiles() -> Tensor:
    """Unit vectors of the 24 shifts of both keys, shape (24, 48): major first."""
    profiles = torch.tensor([_MAJOR_KEY, _MINOR_KEY])
    profiles = profiles - profiles.mean(dim=1, keepdim=True)
    profiles = profiles.repeat_interleave(_PITCHES_PER_OCTAVE // 12, dim=1)
    profiles = profiles / profiles.norm(dim=1, keepdim=True)
    shifts = [profiles.roll(shift, dims=1) for shift in range(_PITCHES_PER_OCTAVE)]
    return torch.stack(shifts, dim=1).flatten(0, 1).T.contiguous()
