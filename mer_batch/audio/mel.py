"""Mel spectrograms of waveforms that arrive in blocks.

The numbers equal ``librosa.feature.melspectrogram`` (centred frames, zero padding, Slaney mel
scale and normalisation) to about 2e-7 of the maximum. The road differs: frames are transformed
where they lie, in our own compiled code (see :mod:`mer_batch.audio.native`) or in torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mer_batch.audio.native import NativeMelPower

if TYPE_CHECKING:
    import torch

Float32 = npt.NDArray[np.float32]

# Samples that torch transforms at a time. Fewer would stay in a nearer cache, but each of ten small
# steps takes a while to begin.
_CHUNK_SAMPLES = 262_144

# Bands multiplied at a time. Neighbouring filters are zero outside a few bins: 16 of them need a
# third of the spectrum or less, and the product costs a quarter of that with the whole filterbank.
_BANDS_AT_A_TIME = 16


@dataclass(frozen=True)
class MelParameters:
    """Parameters of a mel spectrogram, named as in librosa.

    Attributes
    ----------
    sample_rate : int
        [Hz]
    n_fft, hop_length : int
        Window and step [samples].
    n_mels : int
        Bands.
    fmin, fmax : float
        Lowest and highest frequency of the filterbank [Hz].
    """

    sample_rate: int
    n_fft: int
    hop_length: int
    n_mels: int
    fmin: float
    fmax: float

    def n_frames(self, n_samples: int) -> int:
        """Frames that a centred transform gives for `n_samples` samples."""
        return 1 + n_samples // self.hop_length


def hz_to_mel(hz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Slaney's mel scale: linear below 1 kHz, logarithmic above.

    References
    ----------
    Slaney, M. "Auditory Toolbox", technical report 1998-010, Interval Research, 1998.
    """
    hz = np.asarray(hz, dtype=np.float64)
    return np.where(
        hz < 1000.0, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1e-9) / 1000) / np.log(6.4)
    )


def mel_to_hz(mel: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Inverse of :func:`hz_to_mel`."""
    mel = np.asarray(mel, dtype=np.float64)
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


@lru_cache(maxsize=8)
def mel_filterbank(parameters: MelParameters) -> Float32:
    """Triangular filters of equal area on Slaney's mel scale.

    Returns
    -------
    float32, shape (n_mels, 1 + n_fft // 2)
        As ``librosa.filters.mel(norm="slaney", htk=False)``; read only, shared between calls.
    """
    p = parameters
    bins_hz = np.linspace(0, p.sample_rate / 2, 1 + p.n_fft // 2)
    corners_hz = mel_to_hz(np.linspace(hz_to_mel(p.fmin), hz_to_mel(p.fmax), p.n_mels + 2))
    widths_hz = np.diff(corners_hz)
    ramps = corners_hz[:, None] - bins_hz[None, :]
    rising = -ramps[:-2] / widths_hz[:-1, None]
    falling = ramps[2:] / widths_hz[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    triangles *= (2 / (corners_hz[2:] - corners_hz[:-2]))[:, None]
    filterbank: Float32 = triangles.astype(np.float32)
    filterbank.setflags(write=False)
    return filterbank


class MelStream:
    """A mel spectrogram of a waveform that arrives in blocks.

    One object serves one track after another; its buffers are allocated once.

    Parameters
    ----------
    parameters : MelParameters
    native : bool
        Whether to use compiled code where there is some, or torch in any case.

    Examples
    --------
    >>> stream = MelStream(MelParameters(44100, 1024, 1024, 40, 0.0, 22050.0))
    >>> stream.feed(np.zeros(44100, np.float32))
    >>> stream.finish().shape
    (44, 40)
    """

    def __init__(self, parameters: MelParameters, *, native: bool = True) -> None:
        p = self._parameters = parameters
        is_native = native and NativeMelPower.takes(p.n_fft)
        mel_power = NativeMelPower if is_native else _TorchMelPower
        self._mel_power = mel_power(_hann_window(p.n_fft), mel_filterbank(p), p.hop_length)
        # What has arrived of the frames that are not whole yet, from the next frame's start.
        self._rest = np.zeros(p.n_fft, np.float32)
        self._restart()

    def _restart(self) -> None:
        self._mel_power.restart()
        # Centred frames: frame i is centred on sample i * hop_length, zeros before the first.
        self._n_rest = self._parameters.n_fft // 2
        self._rest[: self._n_rest] = 0
        self._n_samples = 0
        self._n_frames = 0

    def feed(self, samples: Float32) -> None:
        """Take the next samples of the track: float32, shape (n_samples,)."""
        self._n_samples += len(samples)
        self._take(samples)

    def finish(self) -> Float32:
        """End the track.

        Returns
        -------
        float32, shape (n_frames, n_mels) [power]
            ``n_frames = 1 + n_samples // hop_length``. The object is ready for the next track.
        """
        p = self._parameters
        missing = p.n_frames(self._n_samples) - self._n_frames
        if missing > 0:
            self._take(np.zeros((missing - 1) * p.hop_length + p.n_fft - self._n_rest, np.float32))
        mel = self._mel_power.finish()
        self._restart()
        return mel

    def discard(self) -> None:
        """Forget the track begun, for instance because its decoding failed."""
        self._restart()

    def _take(self, samples: Float32) -> None:
        """Transform the frames that are whole now, and keep what is left of the samples."""
        p, n_rest = self._parameters, self._n_rest
        n_frames = max(0, 1 + (n_rest + len(samples) - p.n_fft) // p.hop_length)
        n_across = min(n_frames, -(-n_rest // p.hop_length))  # frames that begin in the rest
        if n_across:
            n_needed = (n_across - 1) * p.hop_length + p.n_fft - n_rest
            self._put(np.concatenate([self._rest[:n_rest], samples[:n_needed]]), n_across)
        begin = n_frames * p.hop_length - n_rest
        if n_frames > n_across:
            self._put(samples[n_across * p.hop_length - n_rest :], n_frames - n_across)
        if begin >= 0:
            left = samples[begin:]
            self._rest[: len(left)] = left
            self._n_rest = len(left)
        else:  # too little came to get past what was there
            kept = np.concatenate([self._rest[n_rest + begin : n_rest], samples])
            self._rest[: len(kept)] = kept
            self._n_rest = len(kept)

    def _put(self, samples: Float32, n_frames: int) -> None:
        """Transform frames, the first of which begins with the samples."""
        self._mel_power.put(samples, n_frames)
        self._n_frames += n_frames


def _hann_window(n_fft: int) -> Float32:
    """A periodic Hann window, as ``scipy.signal.get_window("hann")`` and librosa use."""
    window: Float32 = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)
    return window


class _TorchMelPower:
    """What :class:`NativeMelPower` computes, by torch, for any length of frames.

    Its buffers are used again, because fresh memory costs as much as arithmetic here. Frames are
    transformed so many at a time, however they came: a product is rounded as its size is.
    """

    def __init__(self, window: Float32, filterbank: Float32, hop_length: int) -> None:
        # Imported here: a night is planned with the parameters alone, and torch takes a second.
        import torch

        self._window, self._hop_length = window, hop_length
        n_fft, self._chunk_frames = len(window), max(1, _CHUNK_SAMPLES // len(window))
        self._windowed = np.empty((self._chunk_frames, n_fft), np.float32)
        self._power = torch.empty((self._chunk_frames, 1 + n_fft // 2))
        self._filters = _banded(filterbank)
        self.restart()

    def restart(self) -> None:
        self._n_windowed = 0
        self._parts: list[Float32] = []

    def put(self, samples: Float32, n_frames: int) -> None:
        step = samples.strides[0]
        # Frames overlap in memory: no copy. `as_strided` does the same in five times the time.
        shape, strides = (n_frames, len(self._window)), (self._hop_length * step, step)
        frames: Float32 = np.ndarray(shape, np.float32, samples, strides=strides)
        done = 0
        while done < n_frames:
            n = min(n_frames - done, self._chunk_frames - self._n_windowed)
            rows = self._windowed[self._n_windowed : self._n_windowed + n]
            np.multiply(frames[done : done + n], self._window, out=rows)
            self._n_windowed += n
            done += n
            if self._n_windowed == self._chunk_frames:
                self._transform()

    def finish(self) -> Float32:
        if self._n_windowed:
            self._transform()
        return np.concatenate(self._parts)

    def _transform(self) -> None:
        """Transform the frames that are windowed."""
        import torch

        n = self._n_windowed
        # Without `out`, which takes longer than fresh memory does.
        spectrum = torch.fft.rfft(torch.from_numpy(self._windowed[:n]))
        squares = torch.view_as_real(spectrum).square_()
        # Not torch.sum(dim=2): reducing an axis of two costs five times as much.
        power = torch.add(squares[..., 0], squares[..., 1], out=self._power[:n])
        bands = [torch.mm(power[:, bins], filters) for bins, filters in self._filters]
        self._parts.append(torch.cat(bands, dim=1).numpy())
        self._n_windowed = 0


def _banded(filterbank: Float32) -> list[tuple[slice, torch.Tensor]]:
    """Groups of a filterbank's bands, each with only the bins in which it is not zero."""
    import torch

    return [
        (bins, torch.from_numpy(filterbank[bands, bins].T.copy()))
        for bands, bins in blocks(filterbank, _BANDS_AT_A_TIME)
    ]


def blocks(matrix: Float32, n_rows: int) -> list[tuple[slice, slice]]:
    """Rows of a banded matrix, `n_rows` at a time, and the columns in which they are not zero."""
    found = []
    for begin in range(0, len(matrix), n_rows):
        rows = slice(begin, begin + n_rows)
        used = np.flatnonzero(matrix[rows].any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
        found.append((rows, columns))
    return found


def mel_spectrogram(waveform: Float32, parameters: MelParameters) -> Float32:
    """Mel power spectrogram of a whole waveform.

    Parameters
    ----------
    waveform : float32, shape (n_samples,)
    parameters : MelParameters

    Returns
    -------
    float32, shape (n_frames, n_mels) [power]
        The transpose of ``librosa.feature.melspectrogram(y=waveform, ...)``.
    """
    stream = MelStream(parameters)
    stream.feed(waveform)
    return stream.finish()


def power_to_db(power: Float32, *, floor_db: float = -100.0) -> Float32:
    """Power to decibels, ``10 log10(power)``, nothing below `floor_db`.

    There is no per-clip reference level: how loud a recording is carries arousal.
    """
    tiny = 10.0 ** (floor_db / 10)
    decibels: Float32 = (10 * np.log10(np.maximum(power, tiny))).astype(np.float32)
    return decibels


def db_to_power(decibels: Float32, *, floor_db: float = -100.0) -> Float32:
    """Decibels to power, ``10 ** (decibels / 10)``; nothing where they are at the floor."""
    power: Float32 = np.power(np.float32(10), decibels * np.float32(0.1), dtype=np.float32)
    power[decibels <= floor_db] = 0
    return power
