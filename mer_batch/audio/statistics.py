"""Statistics over time of a log-mel spectrogram, in fourteen groups.

Every statistic but the first two of ``loudness`` is free of gain: turning a recording up or down
changes nothing. Silence, at a track's edges or within, carries no weight. Pure torch, and the
same numbers for one track or a batch of them. :mod:`mer_batch.audio.native_statistics`
is the same in compiled code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mer_batch.audio.mel import blocks
from mer_batch.audio.statistics_tables import (
    CHORD_ROWS,
    MIN_FRAMES,
    N_CEPSTRA,
    N_TEMPO_RANGES,
    PITCHES_PER_OCTAVE,
    tables,
)

_ACTIVE_DB = 50.0  # frames further below the loud ones are silence
_LOUD_QUANTILE = 0.95  # a few peaks do not set the level, nor much silence
_RANGE_DB = 90.0  # bands further below the loud frames are noise floor
_MAX_STEP_DB = 30.0
_FULL_DB = 40.0  # bands further below the loud frames add nothing to how full it sounds
_LOUDNESS_QUANTILES = (0.1, 0.25, 0.5, 0.75)
_LOUDNESS_EXPONENT = 0.4  # perceived loudness is about a power of intensity
_RATE_DB = (1.0, 2.0, 4.0, 8.0)
_RAMP_DB = 0.5
_ROWS_AT_A_TIME = 20
_N_INTERVALS = 25


@dataclass(frozen=True)
class _Sound:
    """A batch of spectrograms without their gain, and which of their frames count.

    Attributes
    ----------
    db : Tensor, shape (batch, n_mels, n_frames) [dB]
        Relative to the level of the loud frames.
    level : Tensor, shape (batch, 1, n_frames) [dB]
        Of all bands together, relative to the loud frames.
    ordered : Tensor, shape (batch, n_frames) [dB]
        The same, upwards.
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
    ordered: Tensor
    loud: Tensor
    active: Tensor
    steps: Tensor
    active_shares: Tensor
    steps_shares: Tensor


class _Series:
    """Series over time under the same weights, and their moments.

    All are averaged together: a small step of torch's takes as long as a large one.

    Parameters
    ----------
    parts : dict of str to Tensor, each of shape (batch, rows, n)
    shares : Tensor, shape (batch, 1, n)
        Weights that add up to 1.
    """

    def __init__(self, parts: dict[str, Tensor], shares: Tensor) -> None:
        self._shares = shares
        self._rows: dict[str, slice] = {}
        for name, part in parts.items():
            begin = sum(rows.stop - rows.start for rows in self._rows.values())
            self._rows[name] = slice(begin, begin + part.shape[1])
        values = torch.cat(list(parts.values()), dim=1)
        self._mean = _mean(values, shares)
        self.deviations = values.sub_(self._mean[..., None])
        self._variance = _mean(self.deviations.square(), shares)
        self._std = (self._variance + 1e-6).sqrt()

    def mean(self, name: str) -> Tensor:
        """Of a part: (batch, rows)."""
        return self._mean[:, self._rows[name]]

    def std(self, name: str) -> Tensor:
        """Standard deviation of a part: (batch, rows)."""
        return self._std[:, self._rows[name]]

    def kurtosis(self, name: str, *, least_variance: float) -> Tensor:
        """Fourth moment over the square of the variance: (batch, rows)."""
        rows = self._rows[name]
        fourth = _mean(self.deviations[:, rows].square().square_(), self._shares)
        return fourth / self._variance[:, rows].clamp_min(least_variance).square()

    def skewness(self, name: str) -> Tensor:
        """Third moment over the cube of the deviation: (batch, rows)."""
        rows = self._rows[name]
        return _mean(self.deviations[:, rows] ** 3, self._shares) / self._std[:, rows] ** 3


class Statistics(nn.Module):
    """Log-mel spectrograms to statistics; it has no learned numbers.

    Parameters
    ----------
    n_mels, sample_rate, hop_length, fmin, fmax
        Of the spectrograms; see ``MelParameters``.
    """

    sharpen: Tensor
    outlines: Tensor
    by8: Tensor
    ranges: Tensor
    chords: Tensor
    rate_offsets: Tensor
    pulse_rows: Tensor
    pulse_lags: Tensor
    quantiles: Tensor

    def __init__(
        self, *, n_mels: int, sample_rate: int, hop_length: int, fmin: float, fmax: float
    ) -> None:
        super().__init__()
        self._tables = tables(
            n_mels=n_mels, sample_rate=sample_rate, hop_length=hop_length, fmin=fmin, fmax=fmax
        )
        names = ("sharpen", "outlines", "by8", "ranges", "chords", "pulse_lags")
        constants = {
            **{name: torch.from_numpy(getattr(self._tables, name)) for name in names},
            "rate_offsets": 0.5 - torch.tensor(_RATE_DB)[:, None, None] / _RAMP_DB,
            # Among the changes: rises of all bands, the lowest and the highest; strokes of all.
            "pulse_rows": torch.tensor([0, 1, 4, 5]),
            "quantiles": torch.tensor([*_LOUDNESS_QUANTILES, _LOUD_QUANTILE]),
        }
        self._sharpen_by = blocks(self._tables.sharpen, _ROWS_AT_A_TIME)
        self._n_lags = self._tables.n_lags
        for name, constant in constants.items():
            # Not persistent: a checkpoint holds what was learned, these follow from parameters.
            self.register_buffer(name, constant, persistent=False)

    def forward(self, log_mel: Tensor) -> Tensor:
        """(batch, n_mels, n_frames) [dB] to (batch, n_statistics)."""
        return torch.cat(list(self.groups(log_mel).values()), dim=1)

    def sizes(self) -> dict[str, int]:
        """Number of statistics in each group, by name."""
        silence = torch.zeros(1, self.sharpen.shape[1], MIN_FRAMES)
        return {name: values.shape[1] for name, values in self.groups(silence).items()}

    def groups(self, log_mel: Tensor) -> dict[str, Tensor]:
        """(batch, n_mels, n_frames) [dB] to (batch, size) for each group, by name."""
        missing = MIN_FRAMES - log_mel.shape[2]
        if missing > 0:
            log_mel = functional.pad(log_mel, (0, missing), mode="replicate")
        sound = self._without_gain(log_mel)
        # Peaks across bands: what is left of a frame without its smooth outline. In place, here
        # and below, because fresh memory costs as much as arithmetic.
        peaks = self._sharpened(sound.db).mul_(sound.active)
        outlines = _product(self.outlines, sound.db)
        cepstra, by20, by8 = torch.split(outlines, [N_CEPSTRA, 20, 8], dim=1)
        states = _Series(
            {
                "cepstra": cepstra,
                "by20": by20,
                "by8": by8,
                "fullness": self._by_range(_above(sound.db, -_FULL_DB)),
                "peaks": _product(self.by8, peaks.abs()),
                "level": sound.level,
            },
            sound.active_shares,
        )
        steps = sound.db.diff(dim=2).clamp_(-_MAX_STEP_DB, _MAX_STEP_DB)
        rises = self._by_range(steps.clamp_min(0))
        changes = _Series(
            {
                "rises": rises,
                "strokes": self._strokes(sound),
                "falls": self._by_range(steps.clamp_max_(0).neg_()),
                "by20": by20.diff(dim=2).abs_(),
                "level": sound.level.diff(dim=2).abs_(),
            },
            sound.steps_shares,
        )
        pulse = self._pulse(sound, changes)
        intervals, keys = self._harmony(peaks)
        return {
            "spectrum": states.mean("by20"),
            "movement": states.std("cepstra"),
            "flux": _flux(changes),
            "loudness": self._loudness(sound, states, changes),
            "fullness": _fullness(states),
            "evenness": _evenness(states),
            "onsets": _suddenness(changes, "strokes"),
            "decays": _suddenness(changes, "falls"),
            "rates": self._rates(sound, rises),
            "pulse": pulse[:, : 3 * N_TEMPO_RANGES],
            "beat": pulse[:, 3 * N_TEMPO_RANGES :],
            "tones": self._tones(sound, states, peaks),
            "intervals": intervals,
            "keys": keys,
        }

    def _without_gain(self, log_mel: Tensor) -> _Sound:
        """Measure levels against those of the loud frames, and find the silent ones."""
        level = _power(log_mel).sum(dim=1).log10_().mul_(10)
        ordered = level.sort(dim=1).values
        n_heard = (ordered > ordered[:, -1:] - 60).sum(dim=1, keepdim=True)
        loud = _quantiles_of_last(ordered, n_heard, self.quantiles[-1:])
        db = log_mel.maximum((loud - _RANGE_DB)[..., None]).sub_(loud[..., None])
        level, ordered = (level - loud)[:, None], ordered - loud
        active = _above(level, -_ACTIVE_DB)
        steps = active[..., 1:] * active[..., :-1]
        return _Sound(db, level, ordered, loud, active, steps, _shares(active), _shares(steps))

    def _sharpened(self, db: Tensor) -> Tensor:
        """Product with ``sharpen``, whose rows are zero but for a few bands: in half the time."""
        return torch.cat(
            [_product(self.sharpen[rows, bands], db[:, bands]) for rows, bands in self._sharpen_by],
            dim=1,
        )

    def _by_range(self, values: Tensor) -> Tensor:
        """Means of all bands, then of four ranges, upwards: (batch, 5, n)."""
        return _product(self.ranges, values)

    def _strokes(self, sound: _Sound) -> Tensor:
        """Rises of perceived loudness, where a loud drum counts for more than a faint rustle."""
        loudness = (sound.db * (_LOUDNESS_EXPONENT * math.log(10) / 10)).exp_()
        return self._by_range(loudness.diff(dim=2).clamp_min_(0)).mul_(10)

    def _loudness(self, sound: _Sound, states: _Series, changes: _Series) -> Tensor:
        """How loud, and how much that varies.

        Level of the loud frames and of the mean power [dB]; then relative to the loud frames the
        10th, 25th, 50th and 75th percentile, the deviation, and the mean change between frames.
        """
        power = _mean(_power(sound.level), sound.active_shares)
        mean = sound.loud + (power + 1e-10).log10_().mul_(10)
        n_active = sound.active.sum(dim=2).long()
        quantiles = _quantiles_of_last(sound.ordered, n_active, self.quantiles[:-1])
        varies = states.std("level"), changes.mean("level")
        return torch.cat([sound.loud, mean, quantiles, *varies], dim=1)

    def _rates(self, sound: _Sound, rises: Tensor) -> Tensor:
        """How often something begins: per second, peaks of the rise above 1, 2, 4 and 8 dB.

        And frames above them, of all bands together and of four ranges. Busy music is aroused.
        What is within a quarter of a decibel of a level counts in part: rounding the spectrogram
        must not decide what is counted.
        """
        inner = rises[..., 1:-1]
        is_peak = (inner > rises[..., :-2]) & (inner >= rises[..., 2:])
        shares = []
        for values, weights in (
            (inner * is_peak, _shares(sound.steps[..., 1:-1])),
            (rises, sound.steps_shares),
        ):
            above = torch.add(self.rate_offsets, values[:, None], alpha=1 / _RAMP_DB).clamp_(0, 1)
            shares.append(_mean(above.flatten(1, 2), weights))
        return torch.cat(shares, dim=1) / self._tables.frame_seconds

    def _pulse(self, sound: _Sound, changes: _Series) -> Tensor:
        """How regularly rises return after 0.1 to 2 s: autocorrelation, the peak in 12 ranges.

        A steady fast beat is the plainest sign of arousal.
        """
        centred = changes.deviations.index_select(1, self.pulse_rows) * sound.steps
        n = centred.shape[2]
        correlation = _autocorrelation(centred, self._n_lags)
        # A lag of half the clip has half the terms; below a quarter the estimate is only noise.
        lags = torch.arange(self._n_lags, device=centred.device)
        correlation = correlation * (n / (n - lags).clamp_min_(max(n // 4, 1)))
        correlation = correlation / correlation[..., :1].clamp_min(1e-6)
        return correlation[..., self.pulse_lags].amax(dim=3).flatten(1)

    def _tones(self, sound: _Sound, states: _Series, peaks: Tensor) -> Tensor:
        """How tonal the sound is, in eight ranges, and how long its tones are held.

        Mean and deviation of the peaks' height, and the share of it that survives averaging over
        half a second: noise has low peaks that do not last.
        """
        mean = states.mean("peaks")
        n_frames = self._tables.held_frames
        weight = _shares(_window_means(sound.active, n_frames))
        lasting = _mean(_window_means(peaks, n_frames).abs_(), weight)
        held = _product(self.by8, lasting[..., None]).squeeze(2) / mean.clamp_min(0.1)
        return torch.cat([mean, states.std("peaks"), held], dim=1)

    def _harmony(self, peaks: Tensor) -> tuple[Tensor, Tensor]:
        """Which intervals sound together, and how major or minor that is, chord by chord.

        The peaks of each second are laid on a grid of quarter tones. Its autocorrelation says
        which intervals there are, up to an octave, whatever the key. The best correlation over
        all shifts with Krumhansl's key profiles says how major and how minor it is, and their
        difference which of the two: mean over the seconds and deviation between them. Bands are
        close to a semitone wide, so this is a hint, not a transcription.
        """
        seconds = _window_means(peaks.clamp_min(0), self._tables.chord_frames)
        chords = _product(self.chords, seconds)  # each (batch, rows, n_windows)
        grid, chroma, fits = torch.split(chords, list(CHORD_ROWS), dim=1)
        norm = chroma.norm(dim=1, keepdim=True).clamp_min_(0.03)
        # Seconds with clear chords count for more than seconds of noise.
        weight = norm / norm.sum(dim=2, keepdim=True)

        correlation = _autocorrelation(grid.mT, _N_INTERVALS + 1).mT
        correlation = correlation[:, 1:] / correlation[:, :1].clamp_min(0.001)
        intervals = _mean(correlation, weight)

        fit = fits.reshape(len(fits), 2, PITCHES_PER_OCTAVE, -1).amax(dim=2) / norm
        fit = torch.cat([fit, fit[:, :1] - fit[:, 1:]], dim=1)
        return intervals, torch.cat([_mean(fit, weight), fit.std(dim=2, unbiased=False)], dim=1)


def _flux(changes: _Series) -> Tensor:
    """How much each of 20 ranges changes from frame to frame: log mean |difference|.

    Dense, noisy and busy textures move all the time, held chords do not.
    """
    return changes.mean("by20").clamp_min(0.01).log()


def _fullness(states: _Series) -> Tensor:
    """How many bands sound at once: mean and deviation of their share, mean in four ranges."""
    mean, std = states.mean("fullness"), states.std("fullness")
    return torch.cat([mean[:, :1], std[:, :1], mean[:, 1:]], dim=1)


def _evenness(states: _Series) -> Tensor:
    """Whether each of eight ranges sounds all the time or now and then: log kurtosis."""
    return states.kurtosis("by8", least_variance=0.25).clamp_(0, 15).log1p()


def _suddenness(changes: _Series, name: str) -> Tensor:
    """How strong, how uneven and how sudden rises or falls are.

    Log mean, log deviation and skewness over time. Drums are few and sudden, bowed strings
    neither.
    """
    logs = torch.cat([changes.mean(name), changes.std(name)], dim=1).clamp_min(0.01).log()
    return torch.cat([logs, changes.skewness(name).clamp(-5, 20)], dim=1)


def _quantiles_of_last(ordered: Tensor, n_last: Tensor, probabilities: Tensor) -> Tensor:
    """Quantiles of the last values of a row, linear in between.

    (batch, n) upwards, (batch, 1), (k,) to (batch, k).
    """
    at = probabilities * (n_last - 1)
    below = at.floor()
    first = below.long().add_(ordered.shape[1] - n_last)
    following = (first + 1).clamp_max_(ordered.shape[1] - 1)
    return ordered.gather(1, first).lerp(ordered.gather(1, following), at.sub_(below))


def _above(values: Tensor, level: float) -> Tensor:
    """1 where a value is above a level, else 0."""
    # Not `(values > level).to(...)`: to convert a mask takes seven times as long.
    return torch.gt(values, level, out=torch.empty_like(values))


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
    # What ``avg_pool1d`` gives, in half of its time.
    return values.unfold(2, length, max(length // 2, 1)).mean(dim=3)
