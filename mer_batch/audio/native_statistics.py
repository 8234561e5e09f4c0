"""Statistics of a log-mel spectrogram in compiled code; see :mod:`mer_batch.audio.native`."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_float, c_int32, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from mer_batch.audio.native import aligned, ends_of_rows, library
from mer_batch.audio.statistics_tables import MIN_FRAMES, N_STATISTICS, Tables

Float32 = npt.NDArray[np.float32]


class _Banded(ctypes.Structure):
    """statistics.c's ``struct banded``."""

    _fields_ = (("values", c_void_p), ("ends", c_void_p))


class _Tables(ctypes.Structure):
    """statistics.c's ``struct statistics_tables``."""

    _MATRICES = ("sharpen", "outlines", "by8", "ranges", "chords")
    _fields_ = (
        ("n_mels", c_int32),
        ("held_frames", c_int32),
        ("chord_frames", c_int32),
        ("n_lags", c_int32),
        ("n_tempo_lags", c_int32),
        ("frame_seconds", c_float),
        *((name, _Banded) for name in _MATRICES),
        ("pulse_lags", c_void_p),
    )


class NativeStatistics:
    """Log-mel spectrograms to the statistics of ``statistics.Statistics``, one at a time.

    Parameters
    ----------
    tables : Tables
        Of the spectrograms' parameters.
    """

    def __init__(self, tables: Tables) -> None:
        compiled = library()
        assert compiled is not None
        self._statistics, self._room_of = compiled.statistics, compiled.statistics_room
        self._n_mels = len(tables.sharpen)
        lags = np.ascontiguousarray(tables.pulse_lags, np.int32)
        self._constants: list[npt.NDArray[Any]] = []  # kept as long as their addresses are

        def address(array: npt.NDArray[Any]) -> int:
            self._constants.append(array)
            return array.ctypes.data

        def banded(matrix: Float32) -> _Banded:
            return _Banded(address(matrix), address(ends_of_rows(matrix)))

        self._tables = _Tables(
            n_mels=self._n_mels,
            held_frames=tables.held_frames,
            chord_frames=tables.chord_frames,
            n_lags=tables.n_lags,
            n_tempo_lags=lags.shape[1],
            frame_seconds=tables.frame_seconds,
            pulse_lags=address(lags),
            **{name: banded(getattr(tables, name)) for name in _Tables._MATRICES},
        )

    @staticmethod
    def is_there() -> bool:
        """Whether it was compiled."""
        return library() is not None

    def __call__(self, log_mel: Float32) -> Float32:
        """Statistics of spectrograms.

        Parameters
        ----------
        log_mel : float32, shape (batch, n_mels, n_frames) [dB]
            One frame or more.

        Returns
        -------
        float32, shape (batch, N_STATISTICS)
            NaN where a spectrogram holds what is not finite, or more than 380 dB. (Torch takes
            minus infinity for very quiet; features never hold it.)

        Raises
        ------
        ValueError
            Where there are not so many bands, or no frame.
        """
        if log_mel.ndim != 3 or log_mel.shape[1] != self._n_mels or log_mel.shape[2] == 0:
            raise ValueError(
                f"log_mel.shape={log_mel.shape} must be (batch, {self._n_mels}, n_frames)"
            )
        missing = max(MIN_FRAMES - log_mel.shape[2], 0)
        shown = np.pad(log_mel, ((0, 0), (0, 0), (0, missing)), mode="edge") if missing else log_mel
        shown = np.ascontiguousarray(shown, np.float32)
        n_frames = shown.shape[2]
        # Of this call alone: threads share this object.
        _room, room_address = aligned(4 * self._room_of(byref(self._tables), n_frames))
        found = np.empty((len(shown), N_STATISTICS), np.float32)
        for log_mel_of_one, found_of_one in zip(shown, found, strict=True):
            self._statistics(
                byref(self._tables), log_mel_of_one.ctypes.data, n_frames, room_address,
                found_of_one.ctypes.data,
            )  # fmt: skip
        return found
