"""MPEG audio through libmpg123 itself, where the system has it.

libsndfile decodes with the same library, and asks for every frame's header and body by a call of
its own: where Python answers (see ``_ForwardFile``), that costs a fifth of decoding. Here a file is
handed over at once. The samples are the same, bit by bit, because the same things are asked of the
decoder: all channels (its own mix to mono leaves parts of joint stereo out), single floats, and no
more samples than libsndfile takes the file to have.

The library is called through ctypes, so that nothing has to be compiled or installed for those
who do without it.

References
----------
https://www.mpg123.de/api/
libsndfile, src/mpeg_decode.c.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int64, c_long, c_size_t, c_void_p
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mer_batch.errors import MerBatchError

Float32 = npt.NDArray[np.float32]

_LIBRARIES = {"linux": "libmpg123.so.0", "darwin": "libmpg123.0.dylib"}

# From mpg123.h.
_OK, _NEW_FORMAT = 0, -11
_REMOVE_FLAGS, _ADD_FLAGS = 13, 2
_FORCE_FLOAT, _AUTO_RESAMPLE, _NO_FRANKENSTEIN = 0x400, 0x8000, 0x1000000
_FLOAT_32 = 0x200
_MONO, _STEREO = 1, 2

_SIGNATURES = {
    "mpg123_init": (c_int, []),
    "mpg123_new": (c_void_p, [c_char_p, POINTER(c_int)]),
    "mpg123_delete": (None, [c_void_p]),
    "mpg123_param": (c_int, [c_void_p, c_int, c_long, c_double]),
    "mpg123_open_feed": (c_int, [c_void_p]),
    "mpg123_set_filesize": (c_int, [c_void_p, c_int64]),
    "mpg123_feed": (c_int, [c_void_p, c_char_p, c_size_t]),
    "mpg123_read": (c_int, [c_void_p, c_void_p, c_size_t, POINTER(c_size_t)]),
    "mpg123_getformat": (c_int, [c_void_p, POINTER(c_long), POINTER(c_int), POINTER(c_int)]),
    "mpg123_format_none": (c_int, [c_void_p]),
    "mpg123_format": (c_int, [c_void_p, c_long, c_int, c_int]),
    "mpg123_length": (c_int64, [c_void_p]),
}


class Mpg123Error(MerBatchError):
    """The decoder does not take these bytes; libsndfile is to say why."""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The system's libmpg123, None where there is none that we know how to call."""
    name = _LIBRARIES.get(sys.platform)
    if name is None or ctypes.sizeof(c_long) != 8:  # offsets are longs, of 64 bits
        return None
    try:
        found = ctypes.CDLL(name)
        for function, (result, arguments) in _SIGNATURES.items():
            getattr(found, function).restype = result
            getattr(found, function).argtypes = arguments
    except (OSError, AttributeError):
        return None
    return found if found.mpg123_init() == _OK else None


class Mpg123File:
    """A stream read once from front to back, with the part of ``soundfile.SoundFile`` that takes.

    Parameters
    ----------
    audio_bytes : bytes
        MPEG frames, without tags and junk around them.

    Attributes
    ----------
    samplerate : int
        [Hz]
    channels : int
    frames : int
        How many samples a channel libsndfile takes the stream to have.

    Raises
    ------
    Mpg123Error
        Where it does not begin with a frame, or the library is not there.
    """

    def __init__(self, audio_bytes: bytes) -> None:
        self._mpg123 = library()
        if self._mpg123 is None:
            raise Mpg123Error("libmpg123 is not installed")
        self._handle = self._mpg123.mpg123_new(None, None)
        if not self._handle:
            raise MemoryError("libmpg123 has no memory for a decoder")
        try:
            self._open(audio_bytes)
        except BaseException:
            self.close()
            raise
        self._n_read = 0

    def _open(self, audio_bytes: bytes) -> None:
        mpg123, handle = self._mpg123, self._handle
        assert mpg123 is not None
        # As libsndfile has it.
        mpg123.mpg123_param(handle, _REMOVE_FLAGS, _AUTO_RESAMPLE, 1.0)
        mpg123.mpg123_param(handle, _ADD_FLAGS, _FORCE_FLOAT | _NO_FRANKENSTEIN, 0.0)
        mpg123.mpg123_open_feed(handle)
        mpg123.mpg123_set_filesize(handle, len(audio_bytes))
        if mpg123.mpg123_feed(handle, audio_bytes, len(audio_bytes)) != _OK:
            raise Mpg123Error("libmpg123 does not take these bytes")
        rate, channels, encoding = c_long(), c_int(), c_int()
        if mpg123.mpg123_getformat(handle, byref(rate), byref(channels), byref(encoding)) != _OK:
            raise Mpg123Error("libmpg123 finds no frame")
        mpg123.mpg123_format_none(handle)
        mpg123.mpg123_format(handle, rate.value, _MONO | _STEREO, _FLOAT_32)
        self.samplerate, self.channels = rate.value, channels.value
        self.frames = int(mpg123.mpg123_length(handle))

    def read(self, *, out: Float32) -> Float32:
        """Read samples: (n, channels); fewer than there is room for where the stream ends."""
        assert self._mpg123 is not None
        room = out[: self.frames - self._n_read] if self.frames >= 0 else out
        done, n_bytes = c_size_t(), 0
        while n_bytes < room.nbytes:
            address, size = room.ctypes.data + n_bytes, room.nbytes - n_bytes
            status = self._mpg123.mpg123_read(self._handle, address, size, byref(done))
            n_bytes += done.value
            if status != _OK and not (status == _NEW_FORMAT and self._n_read + n_bytes == 0):
                break
        n = n_bytes // (4 * self.channels)
        self._n_read += n
        return room[:n]

    def close(self) -> None:
        """Free the decoder."""
        if self._handle and self._mpg123 is not None:
            self._mpg123.mpg123_delete(self._handle)
        self._handle = None

    def __enter__(self) -> Mpg123File:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
