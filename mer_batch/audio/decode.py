"""Compressed bytes to mono float32, in blocks, under limits, with truncation found.

One decoder is used throughout (libsndfile with libmpg123, through soundfile), because two
decoders differ by whole samples where a stream has no encoder tag. Its version is part of every
``features_id``. Where the system has libmpg123, MPEG audio goes straight there: the same samples.

Nothing in a header is believed for an allocation: the stream is read to its end in blocks of a
fixed size, under a cap, and what was read is then held against what the headers promise.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from mer_batch.audio import native
from mer_batch.audio.container import MAGICS, Container, inspect_container
from mer_batch.audio.mpeg import MpegStream, after_id3v2, inspect_mpeg, xing_frame
from mer_batch.audio.mpg123 import Mpg123Error, Mpg123File, library
from mer_batch.errors import AudioError

Float32 = npt.NDArray[np.float32]

#: Name and version of the decoder and the resampler: part of every ``features_id``.
DECODER = f"libsndfile-{soundfile.__libsndfile_version__}+soxr-{soxr.__version__}"

# Large blocks, 24 s at 44.1 kHz: decoder and spectrogram throw one another out of the cache, so the
# fewer turns they take, the better. Much larger ones would have to come from memory again.
_BLOCK_SAMPLES = 1_048_576
_MAX_CHANNELS = 8
_SAMPLE_RATES_HZ = range(4_000, 400_000)

#: How much audio may be missing before a track counts as cut [s]. Encoder delay, padding and a
#: catalog that rounds to whole seconds stay below it.
TOLERANCE_SECONDS = 0.5

# Half of the way from the lowest sample to the highest; below -80 dBFS it is silence: a 16-bit
# recording's dither is at -90. The peak would not do: a constant has one, and no sound.
_SILENCE_SWING = 1e-4
_SWING_SAMPLES = 65_536  # looked at one after the other, until there is sound

# Audio in containers that libsndfile does not read: (position, magic, name).
_UNSUPPORTED = (
    (0, b"#!AMR", "AMR"),
    (4, b"ftyp", "MP4/AAC"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "ASF/WMA"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska/WebM"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"MPCK", "Musepack"),
    (0, b"MP+", "Musepack"),
    (0, b"wvpk", "WavPack"),
    (0, b".RMF", "RealMedia"),
    (0, b"DSD ", "DSD"),
    (0, b"FLV", "Flash video"),
    (0, b"MThd", "MIDI"),
    (0, b"ADIF", "AAC"),
    (0, b"\x0b\x77", "AC-3"),
    (0, b"\x7f\xfe\x80\x01", "DTS"),
    (0, b"TTA", "True Audio"),
    (0, b"\0\0\x01\xba", "MPEG program stream"),
    (0, b"nut/multimedia container", "NUT"),
)
# libsndfile's names of what it has opened. It reads more containers; of those we could not tell
# a cut file from a whole one.
_CONTAINER_KINDS = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG"})
_MPEG_KINDS = frozenset({"MP3"})
_TS_PACKET_BYTES = 188  # each begins with a G
_APPLE_DOUBLE = b"\x00\x05\x16\x07"


@dataclass(frozen=True)
class AudioLimits:
    """What a track may cost.

    Attributes
    ----------
    max_bytes : int
        Largest file [bytes].
    min_seconds, max_seconds : float
        Shortest and longest decoded duration [s].
    direct : bool
        Whether MPEG audio may go straight to the system's libmpg123, where there is one. The
        samples are the same, and so are the features.
    """

    max_bytes: int = 256 * 1024 * 1024
    min_seconds: float = 1.0
    max_seconds: float = 3600.0
    direct: bool = True


class _ForwardFile(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file read once from front to back.

    On a seekable file soundfile seeks after every read, which makes libmpg123 decode again, and
    never reads past the length that the header claims.
    """

    def seekable(self) -> bool:
        return False

    def _open(self, file: Any, mode_int: int, closefd: bool) -> Any:
        # The decoder asks for every frame's header and body: that costs a fifth of decoding where
        # Python answers. A subclass of BytesIO is one that wants to be asked.
        if native.library() is None or type(file) is not io.BytesIO or not _HAS_INTERNALS:
            return super()._open(file, mode_int, closefd)
        ffi, functions = soundfile._ffi, native.MemoryFile.functions()
        io_functions = ffi.new(
            "SF_VIRTUAL_IO *",
            {name: ffi.cast(f"sf_vio_{name}", at) for name, at in functions.items()},
        )
        self._memory = native.MemoryFile(file.getvalue())
        address = ffi.cast("void *", ctypes.addressof(self._memory))
        with self._sf_error_lock:  # why it could not be opened is told to whoever asks first
            opened = soundfile._snd.sf_open_virtual(io_functions, mode_int, self._info, address)
            if opened == ffi.NULL:
                raise soundfile.LibsndfileError(soundfile._snd.sf_error(opened))
        return opened


# Other versions of soundfile may lack what is not theirs to promise.
_HAS_INTERNALS = all(hasattr(soundfile, name) for name in ("_ffi", "_snd")) and all(
    hasattr(soundfile.SoundFile, name) for name in ("_open", "_sf_error_lock")
)


def decode_blocks(
    audio_bytes: bytes,
    feed: Callable[[Float32], object],
    *,
    sample_rate: int,
    limits: AudioLimits,
    expected_seconds: float | None = None,
) -> float:
    """Decode a file, hand it on as mono blocks, and check that it is whole.

    Parameters
    ----------
    audio_bytes : bytes
        A whole file: MPEG Layers I to III, WAV, RF64, W64, FLAC, Ogg, AIFF, AU or CAF.
    feed : callable
        Called with float32, shape (n_samples,), the mean of the channels at `sample_rate`;
        peaks may exceed 1. The array is reused: take a copy to keep it.
    sample_rate : int
        Rate of the blocks [Hz]; a file at another rate is converted.
    limits : AudioLimits
    expected_seconds : float, optional
        The duration that the catalog states [s]; one that is not finite counts as none.

    Returns
    -------
    float
        Duration [s].

    Raises
    ------
    AudioError
        With the reason why this track cannot be used. Blocks may have been fed before.
    """
    if not audio_bytes:
        raise AudioError("empty", "the file has 0 bytes")
    if len(audio_bytes) > limits.max_bytes:
        raise AudioError(
            "too_large", f"{len(audio_bytes):,} bytes, more than max_bytes={limits.max_bytes:,}"
        )
    if expected_seconds is not None and not np.isfinite(expected_seconds):
        expected_seconds = None
    stream, container = _inspect(audio_bytes)
    if stream is not None:
        _check_headers(stream, limits, expected_seconds)
    if container is not None:
        _check_container(container)
    file = io.BytesIO(_without_tags(audio_bytes, stream, container))
    try:
        with _open(file, stream, container, direct=limits.direct) as sound:
            rate = int(sound.samplerate)
            n_samples, swing = _read(sound, feed, sample_rate, limits, _end(sound, container))
    except soundfile.LibsndfileError as error:
        raise _refusal(audio_bytes, stream, container, limits, error.error_string) from error
    seconds = n_samples / rate
    claimed = _claimed_seconds(sound, seconds, stream, container)
    _check_whole(seconds, stream, claimed, expected_seconds)
    if seconds < limits.min_seconds:
        raise AudioError(
            "too_short", f"{seconds:.2f} s, less than min_seconds={limits.min_seconds:g}"
        )
    if not np.isfinite(swing):
        raise AudioError("not_finite", "the decoded samples hold NaN or infinite values")
    if swing < _SILENCE_SWING:
        raise AudioError("silent", f"{seconds:.1f} s swing by {swing:.1e} of full scale")
    return seconds


def decode(audio_bytes: bytes, *, sample_rate: int, limits: AudioLimits | None = None) -> Float32:
    """Decode a whole file to one waveform; see :func:`decode_blocks`.

    Returns
    -------
    float32, shape (n_samples,)
    """
    blocks: list[Float32] = []
    decode_blocks(
        audio_bytes,
        lambda block: blocks.append(block.copy()),
        sample_rate=sample_rate,
        limits=limits or AudioLimits(),
    )
    return np.concatenate(blocks)


def decodes_alike(audio_bytes: bytes) -> bool:
    """Whether the system's libmpg123 and libsndfile give the same samples, as they should.

    They are two builds of one library, mostly of different versions.
    """
    rate = 44_100
    ours, theirs = (
        decode(audio_bytes, sample_rate=rate, limits=AudioLimits(min_seconds=0.0, direct=direct))
        for direct in (True, False)
    )
    return np.array_equal(ours, theirs)


def _inspect(audio_bytes: bytes) -> tuple[MpegStream | None, Container | None]:
    """The stream or the container that is found; neither in junk and in free-format streams.

    Both where a container holds a stream: then the stream's places count from where it begins.
    """
    begin = after_id3v2(audio_bytes)
    if not audio_bytes.startswith(MAGICS, begin):
        return inspect_mpeg(audio_bytes), None
    container = inspect_container(audio_bytes, begin)
    held = _held(audio_bytes, container)
    return (inspect_mpeg(held) if container.is_mpeg else None), container


def _held(audio_bytes: bytes, container: Container) -> bytes:
    """The audio alone that a container holds."""
    return audio_bytes[container.begin : container.begin + container.present_bytes]


def _without_tags(
    audio_bytes: bytes, stream: MpegStream | None, container: Container | None
) -> bytes:
    """The audio that was found, without the tags and the junk around it."""
    if container is not None and container.is_mpeg:
        audio_bytes = _held(audio_bytes, container)
    elif container is not None:
        return _bare(audio_bytes, container)
    if stream is None:
        return audio_bytes
    frames = stream.frames(audio_bytes)
    if _misleads(stream):
        frames = frames[stream.tag_bytes :]
        return xing_frame(frames, stream) + frames
    return frames


def _bare(audio_bytes: bytes, container: Container) -> bytes:
    """A container without the tags around it, as libsndfile takes it."""
    end = len(audio_bytes)
    if container.magic == b"riff" and container.claimed_bytes is not None:
        end = container.begin + container.claimed_bytes  # libsndfile reads W64 to the file's end
    if container.unfilled is not None:
        at, length = container.unfilled
        audio_bytes = audio_bytes[:at] + length + audio_bytes[at + len(length) :]
    return audio_bytes[after_id3v2(audio_bytes) : end]


def _misleads(stream: MpegStream) -> bool:
    """Whether the decoder, going by the stream's own header, would stop before its end."""
    if stream.is_tag_audio:
        # It expects frames of the tag's length, and stops early where those of the stream are
        # shorter.
        expected_bytes = stream.tag_bytes * (stream.n_frames + 1)
        return stream.n_bitrates > 1 and expected_bytes > stream.n_bytes
    if stream.promised_samples is None:
        return stream.n_bitrates > 1
    return _is_short_of(stream.promised_samples / stream.sample_rate, stream.seconds)


def _open(
    file: io.BytesIO, stream: MpegStream | None, container: Container | None, *, direct: bool
) -> _ForwardFile | Mpg123File:
    sound: _ForwardFile | Mpg123File | None = None
    if direct and stream is not None and library() is not None:
        with contextlib.suppress(Mpg123Error):
            sound = Mpg123File(file.getvalue())
    if sound is None:
        sound = _by_libsndfile(file, is_mpeg=container is None or container.is_mpeg)
    if sound.channels > _MAX_CHANNELS or sound.samplerate not in _SAMPLE_RATES_HZ:
        found = f"{sound.channels} channels at {sound.samplerate} Hz"
        sound.close()
        raise AudioError("decode_error", f"{found}; up to {_MAX_CHANNELS} at 4 to 400 kHz are read")
    return sound


def _by_libsndfile(file: io.BytesIO, *, is_mpeg: bool) -> _ForwardFile:
    sound = _ForwardFile(file)
    if sound.format not in (_MPEG_KINDS if is_mpeg else _CONTAINER_KINDS):
        kind = sound.format_info
        sound.close()
        raise AudioError("unsupported_codec", f"{kind}: whether such a file is whole is not known")
    return sound


def _end(sound: _ForwardFile | Mpg123File, container: Container | None) -> int:
    """How many samples to read at most: what lies behind those of a FLAC stream is a tag or junk.

    An MPEG stream is read to its end, whatever its tag says.
    """
    is_told = container is not None and container.magic == b"fLaC" and _is_length(sound.frames)
    return int(sound.frames) if is_told else sys.maxsize


def _is_length(n_samples: int) -> bool:
    """Whether libsndfile knows how long a file is."""
    return 0 < n_samples < 2**40


def _refusal(
    audio_bytes: bytes,
    stream: MpegStream | None,
    container: Container | None,
    limits: AudioLimits,
    words: str,
) -> AudioError:
    """Why libsndfile could not open or read these bytes."""
    if stream is not None:
        if stream.seconds < limits.min_seconds:
            return AudioError(
                "too_short",
                f"{stream.seconds:.2f} s in {stream.n_frames} frames, "
                f"less than min_seconds={limits.min_seconds:g}",
            )
        return AudioError("decode_error", f"{stream.n_frames} MPEG frames, but {words}")
    if container is not None:
        return _container_refusal(audio_bytes, container, words)
    for position, magic, name in _UNSUPPORTED:
        if audio_bytes[position : position + len(magic)] == magic:
            return AudioError("unsupported_codec", f"{name}: not a kind that the decoder reads")
    if audio_bytes[0] == 0xFF and len(audio_bytes) > 1 and audio_bytes[1] & 0xF6 == 0xF0:
        return AudioError("unsupported_codec", "AAC (ADTS): not a kind that the decoder reads")
    if audio_bytes[0] == 0x56 and len(audio_bytes) > 1 and audio_bytes[1] & 0xE0 == 0xE0:
        return AudioError("unsupported_codec", "AAC (LATM): not a kind that the decoder reads")
    if audio_bytes[: 4 * _TS_PACKET_BYTES : _TS_PACKET_BYTES] == b"GGGG":
        name = "MPEG transport stream"
        return AudioError("unsupported_codec", f"{name}: not a kind that the decoder reads")
    if audio_bytes.startswith(_APPLE_DOUBLE):
        return AudioError("not_audio", "an AppleDouble file: what macOS keeps beside the real one")
    return AudioError("not_audio", f"no audio stream in {len(audio_bytes):,} bytes ({words})")


def _container_refusal(audio_bytes: bytes, container: Container, words: str) -> AudioError:
    if container.foreign_codec is not None and not container.is_cut:
        name = container.foreign_codec
        return AudioError("unsupported_codec", f"{name}: not a kind that the decoder reads")
    # At a damaged FLAC frame the decoder gives up where it is; at one that is cut, at the end.
    if (
        container.is_cut
        or not container.has_end_mark
        or (container.magic == b"fLaC" and _fails_at_end(_bare(audio_bytes, container)))
    ):
        return AudioError("truncated", f"{container.magic!r} container that ends early: {words}")
    return AudioError("decode_error", f"{container.magic!r} container, but {words}")


class _Source(io.BytesIO):
    """Bytes that remember whether they were read to their end."""

    was_at_end = False

    def readinto(self, buffer: Any, /) -> int:
        n_read = super().readinto(buffer)
        self.was_at_end |= n_read < len(buffer)
        return n_read


def _fails_at_end(audio_bytes: bytes) -> bool:
    """Whether a decoder that gives up had asked for more than there is."""
    file = _Source(audio_bytes)
    with contextlib.suppress(soundfile.LibsndfileError), _ForwardFile(file) as sound:
        block, _ = _room(sound.channels)
        while len(sound.read(out=block)) == _BLOCK_SAMPLES:
            pass
    return file.was_at_end


def _read(
    sound: _ForwardFile | Mpg123File,
    feed: Callable[[Float32], object],
    sample_rate: int,
    limits: AudioLimits,
    end: int,
) -> tuple[int, float]:
    """Read up to `end` samples per channel; returns how many came, and their swing when mixed."""
    n_channels, rate = sound.channels, sound.samplerate
    block, mono = _room(n_channels)
    resampler = (
        soxr.ResampleStream(rate, sample_rate, 1, dtype="float32") if rate != sample_rate else None
    )
    max_samples = int(limits.max_seconds * rate)
    n_samples, swing = 0, _Swing()
    while True:
        n = len(sound.read(out=block[: end - n_samples]))
        n_samples += n
        if n_samples > max_samples:
            raise AudioError("too_long", f"longer than max_seconds={limits.max_seconds:g}")
        samples = native.mean_of_channels(block[:n], mono[:n])
        swing.add(samples)
        last = n < _BLOCK_SAMPLES or n_samples == end
        feed(samples if resampler is None else resampler.resample_chunk(samples, last=last))
        if last:
            return n_samples, swing.value


def _room(n_channels: int) -> tuple[Float32, Float32]:
    """Room for a block and for its mix, the same again and again in a thread.

    Fresh megabytes for every track would be got page by page: a tenth of the time.
    """
    n_values = _BLOCK_SAMPLES * n_channels
    if getattr(_kept, "n_values", 0) < n_values:
        _kept.block, _kept.n_values = np.empty(n_values, np.float32), n_values
        _kept.mono = np.empty(_BLOCK_SAMPLES, np.float32)
    return _kept.block[:n_values].reshape(-1, n_channels), _kept.mono


_kept = threading.local()


class _Swing:
    """Half of the way from the lowest sample to the highest; not finite where a sample is not.

    Attributes
    ----------
    value : float
        Once it is more than silence, only whether all samples are finite is still looked at.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self._lowest, self._highest = np.inf, -np.inf

    def add(self, samples: Float32) -> None:
        """Take the next samples, shape (n_samples,)."""
        while len(samples) and self.value <= _SILENCE_SWING:
            some, samples = samples[:_SWING_SAMPLES], samples[_SWING_SAMPLES:]
            # numpy's max() and min() hand NaN on, abs() would cost another array.
            self._lowest = np.minimum(self._lowest, some.min())
            self._highest = np.maximum(self._highest, some.max())
            self.value = float(self._highest - self._lowest) / 2
        # In a third of the time that min() and max() take. What overflows here would do so in the
        # power spectrum, too.
        self.value += 0 * float(np.dot(samples, samples))


def _claimed_seconds(
    sound: _ForwardFile | Mpg123File,
    seconds: float,
    stream: MpegStream | None,
    container: Container | None,
) -> float | None:
    """Duration that the file claims [s], `seconds` having been read; None where it is unknown."""
    if stream is not None:
        seconds = stream.seconds
        promised = None if _misleads(stream) else stream.promised_seconds
    else:
        promised = sound.frames / sound.samplerate if _is_length(sound.frames) else None
    claims = [] if promised is None else [promised]
    if container is not None and container.claimed_bytes is not None:
        claims.append(seconds * container.claimed_bytes / max(1, container.present_bytes))
    return max(claims, default=None)


def _is_short_of(seconds: float, promised: float | None) -> bool:
    return promised is not None and seconds < promised - TOLERANCE_SECONDS


def _check_whole(
    seconds: float, stream: MpegStream | None, claimed: float | None, expected: float | None
) -> None:
    """Hold what was decoded against what the file and the catalog promise."""
    present = stream.seconds if stream is not None else None
    # A tag may rightly promise less than there is: then the decoder stops where it says.
    if _is_short_of(seconds, present) and (claimed is None or _is_short_of(seconds, claimed)):
        raise AudioError(
            "decode_error", f"the decoder gave {seconds:.2f} s of {present:.2f} s present"
        )
    if _is_short_of(seconds, claimed):
        raise AudioError(
            "truncated", f"{seconds:.2f} s of the {claimed:.2f} s that the file promises"
        )
    if _is_short_of(seconds, expected):
        raise AudioError(
            "truncated", f"{seconds:.2f} s of the {expected:g} s that the catalog promises"
        )


def _check_container(container: Container) -> None:
    """Refuse what a container's headers already show, before anything is decoded."""
    if container.n_streams > 1:
        raise AudioError(
            "decode_error",
            f"{container.n_streams} streams one behind the other, of which one would be read",
        )
    if not container.ends:
        raise AudioError("truncated", "the last page of the stream is cut or missing")
    if container.claimed_bytes and not container.present_bytes:
        raise AudioError(
            "truncated", f"0 of the {container.claimed_bytes:,} bytes that the file promises"
        )


def _check_headers(stream: MpegStream, limits: AudioLimits, expected: float | None) -> None:
    """Refuse what the frame headers already show, before anything is decoded."""
    is_length_told = stream.promised_seconds is not None or expected is not None
    if _is_short_of(stream.seconds, stream.promised_seconds):
        raise AudioError(
            "truncated",
            f"{stream.seconds:.2f} s of the {stream.promised_seconds:.2f} s that the file promises",
        )
    if stream.seconds > limits.max_seconds + TOLERANCE_SECONDS:
        raise AudioError(
            "too_long", f"{stream.seconds:.0f} s, more than max_seconds={limits.max_seconds:g}"
        )
    if stream.other_seconds > TOLERANCE_SECONDS:
        # Such a stream has no single time axis, or no single number of channels.
        raise AudioError(
            "decode_error",
            f"{stream.other_seconds:.2f} s of frames of another rate, layer or number of channels "
            f"than the {stream.seconds:.2f} s at {stream.sample_rate} Hz",
        )
    if stream.stray_seconds > TOLERANCE_SECONDS and not is_length_told:
        raise AudioError(
            "decode_error",
            f"{stream.stray_bytes:,} bytes between the frames are none: {stream.stray_seconds:.2f} "
            "s may be missing, and neither a tag nor the catalog tells",
        )
