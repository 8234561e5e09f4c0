"""What is done to every sample or frame of a track in compiled code, where there is some.

``native.c``, ``statistics.c`` and what models have of their own are built when the package is
installed, if there is a C compiler, and called through ctypes. Mel power takes a quarter of torch's
time there and statistics a fifth; where nothing was compiled, torch computes the same to float32's
rounding. Nobody has to choose: scores differ as between processors.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
import sys
from array import array
from ctypes import byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

# Of all our C files (native.c says when it changes): what was compiled of another is not used.
_INTERFACE = 2
_ALIGNMENT_BYTES = 64
LANES = 8
_N_FFTS = frozenset(1 << exponent for exponent in range(4, 17))
_FRAMES_AT_A_TIME = 4096

# By their names in libsndfile's SF_VIRTUAL_IO.
_MEMORY_FILE_FUNCTIONS = {
    "get_filelen": "memory_file_length",
    "seek": "memory_file_seek",
    "read": "memory_file_read",
    "write": "memory_file_write",
    "tell": "memory_file_tell",
}


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled code, None where none of this version was compiled for this system."""
    # Beside this file, or installed: Ray sends sources to a cluster without what is compiled, and
    # puts them before what is installed there.
    installed = [os.path.join(folder, "mer_batch", "audio") for folder in sys.path]
    for folder in (os.path.dirname(__file__), *installed):
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = os.path.join(folder, f"_native{suffix}")
            if os.path.exists(path) and (found := _loaded(path)) is not None:
                return found
    return None


def _loaded(path: str) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(path)
        if library.native_interface() != _INTERFACE:
            return None
        mel_power, run_of_frames = library.mel_power, library.run_of_frames
        statistics, statistics_room = library.statistics, library.statistics_room
        gaussian_process, singles = library.gaussian_process, library.singles
        mean_of_two = library.mean_of_two
        for name in _MEMORY_FILE_FUNCTIONS.values():
            getattr(library, name)
    except (OSError, AttributeError):
        return None
    pointer, size = c_void_p, c_size_t
    mel_power.argtypes = [
        *(pointer, size, size, c_int),  # samples, n_frames, hop_length, n_fft
        *(pointer, pointer, c_int, pointer),  # window, roots, n_mels, filters
        *(pointer, pointer, pointer),  # bins, room, mel
    ]
    mel_power.restype = None
    # data, n_bytes, position, lengths, positions, room
    run_of_frames.argtypes = [c_char_p, size, pointer, pointer, pointer, size]
    run_of_frames.restype = size
    # tables, log_mel, n_frames, room, found
    statistics.argtypes = [pointer, pointer, size, pointer, pointer]
    statistics.restype = None
    statistics_room.argtypes = [pointer, size]
    statistics_room.restype = size
    # x, n, landmarks, n_landmarks, sharpness, coefficients, n_scores, scores
    gaussian_process.argtypes = [pointer, size, pointer, size, c_float, pointer, size, pointer]
    gaussian_process.restype = None
    mean_of_two.argtypes = [pointer, size, pointer]  # stereo, n_samples, mono
    mean_of_two.restype = None
    singles.argtypes = [pointer, size, pointer]  # halves, n, found
    singles.restype = None
    return library


def aligned(n_bytes: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Memory, and the address in it from which there are `n_bytes` as vectors want them."""
    room = np.empty(n_bytes + _ALIGNMENT_BYTES, np.uint8)
    return room, room.ctypes.data + -room.ctypes.data % _ALIGNMENT_BYTES


def ends_of_rows(matrix: Float32) -> npt.NDArray[np.int32]:
    """From where to where each row is not zero: int32, shape (n_rows, 2)."""
    used = matrix != 0
    begins = used.argmax(axis=1)
    ends = np.where(used.any(axis=1), used.shape[1] - used[:, ::-1].argmax(axis=1), begins)
    return np.column_stack([begins, ends]).astype(np.int32, order="C")


class NativeMelPower:
    """Mel power of frames that lie in a waveform.

    Parameters
    ----------
    window : float32, shape (n_fft,)
    filterbank : float32, shape (n_mels, 1 + n_fft // 2)
    hop_length : int
        From one frame to the next [samples].
    """

    def __init__(self, window: Float32, filterbank: Float32, hop_length: int) -> None:
        compiled = library()
        assert compiled is not None
        self._mel_power = compiled.mel_power
        self._n_fft, self._hop_length, self._n_mels = len(window), hop_length, len(filterbank)
        angles = -2 * np.pi * np.arange(self._n_fft) / self._n_fft
        self._constants = (
            np.array(window, np.float32),
            np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32, order="C"),
            np.array(filterbank, np.float32, order="C"),
            ends_of_rows(filterbank),
        )
        n_bytes = 4 * LANES * (2 * self._n_fft + self._n_mels)
        self._room, self._room_address = aligned(n_bytes)
        at_window, at_roots, at_filters, at_bins = (each.ctypes.data for each in self._constants)
        self._given = self._n_fft, at_window, at_roots, self._n_mels, at_filters, at_bins
        self.restart()

    @staticmethod
    def takes(n_fft: int) -> bool:
        """Whether it was compiled, and transforms frames of this length."""
        return n_fft in _N_FFTS and library() is not None

    def restart(self) -> None:
        """Forget the frames that were put."""
        self._parts: list[Float32] = []

    def put(self, samples: Float32, n_frames: int) -> None:
        """Take the frames that begin at 0, `hop_length`, and so on.

        Parameters
        ----------
        samples : float32, shape (n_samples,)
        n_frames : int

        Raises
        ------
        ValueError
            Where the frames are not all in the samples.
        """
        if len(samples) < (n_frames - 1) * self._hop_length + self._n_fft:
            raise ValueError(f"{n_frames} frames do not lie in {len(samples)} samples")
        samples = np.ascontiguousarray(samples, np.float32)
        mel = np.empty((n_frames, self._n_mels), np.float32)
        self._mel_power(
            samples.ctypes.data, n_frames, self._hop_length, *self._given, self._room_address,
            mel.ctypes.data,
        )  # fmt: skip
        self._parts.append(mel)

    def finish(self) -> Float32:
        """Mel power of all frames put: float32, shape (n_frames, n_mels) [power]."""
        return np.concatenate(self._parts)


def mean_of_channels(block: Float32, out: Float32) -> Float32:
    """Mix a block to mono.

    Parameters
    ----------
    block : float32, shape (n_samples, n_channels)
    out : float32, shape (n_samples,)

    Returns
    -------
    float32, shape (n_samples,)
        ``out``, or the block itself where that is mono.
    """
    n_samples, n_channels = block.shape
    if n_channels == 1:
        return block[:, 0]
    compiled = library()
    if n_channels == 2 and compiled is not None and block.flags.c_contiguous:
        compiled.mean_of_two(block.ctypes.data, n_samples, out.ctypes.data)
        return out
    # Not block.mean(axis=1): numpy reduces a short axis twenty times more slowly than this.
    weights = np.full(n_channels, 1 / n_channels, np.float32)
    mono: Float32 = np.dot(block, weights, out=out)
    return mono


def singles(halves: npt.NDArray[np.float16]) -> Float32:
    """Half floats as single ones, which NumPy takes twenty times as long for.

    Parameters
    ----------
    halves : float16, shape (n,)

    Returns
    -------
    float32, shape (n,)
    """
    compiled = library()
    if compiled is None:
        return halves.astype(np.float32)
    halves = np.ascontiguousarray(halves)
    found = np.empty(len(halves), np.float32)
    compiled.singles(halves.ctypes.data, len(halves), found.ctypes.data)
    return found


def run_of_frames(
    data: bytes, position: int, lengths: npt.NDArray[np.int32], positions: array[int]
) -> int:
    """Walk MPEG frames of which one begins where the last one ends.

    Parameters
    ----------
    data : bytes
    position : int
        Of the first one's header.
    lengths : int32, shape (65536,)
        Of a frame by bytes 1 and 2 of its header [bytes]; 0 where they are none.
    positions : array of int64
        Those of the frames are appended.

    Returns
    -------
    int
        Where the last one ends.
    """
    compiled = library()
    assert compiled is not None
    found = np.empty(_FRAMES_AT_A_TIME, np.int64)
    at = c_size_t(position)
    while True:
        n = compiled.run_of_frames(
            data, len(data), byref(at), lengths.ctypes.data, found.ctypes.data, len(found)
        )
        positions.frombytes(found[:n].tobytes())
        if n < len(found):
            return at.value


class MemoryFile(ctypes.Structure):
    """Bytes as a file that libsndfile reads without calling Python.

    Parameters
    ----------
    content : bytes
    """

    _fields_ = (("data", c_char_p), ("n_bytes", c_int64), ("position", c_int64))

    def __init__(self, content: bytes) -> None:
        super().__init__(content, len(content), 0)

    @staticmethod
    @lru_cache(maxsize=1)
    def functions() -> dict[str, int]:
        """Addresses of the functions that read such a file, by field of SF_VIRTUAL_IO."""
        compiled = library()
        assert compiled is not None
        return {
            field: ctypes.cast(getattr(compiled, name), c_void_p).value or 0
            for field, name in _MEMORY_FILE_FUNCTIONS.items()
        }
