"""Compressed bytes to mono float32, in blocks, under limits, with truncation found.

One decoder is used throughout (libsndfile with libmpg123, through soundfile), because two
decoders differ by whole samples where a stream has no encoder tag. Its version is part of every
``features_id``.

Nothing in a header is believed for an allocation: the stream is read to its end in blocks of a
fixed size, under a cap, and what was read is then held against what the headers promise.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from mer_batch.audio.mpeg import MpegStream, inspect_mpeg, xing_frame
from mer_batch.errors import AudioError

Float32 = npt.NDArray[np.float32]

#: Name and version of the decoder and the resampler: part of every ``features_id``.
DECODER = f"libsndfile-{soundfile.__libsndfile_version__}+soxr-{soxr.__version__}"

# Large blocks: soundfile pays a fixed price per read. 64 Ki samples are 1.5 s at 44.1 kHz.
_BLOCK_SAMPLES = 65_536
_MAX_CHANNELS = 8
_SAMPLE_RATES_HZ = range(4_000, 400_000)

#: How much audio may be missing before a track counts as cut [s]. Encoder delay, padding and a
#: catalog that rounds to whole seconds stay below it.
TOLERANCE_SECONDS = 0.5

# Peaks below -80 dBFS are silence: a 16-bit recording's dither is at -90.
_SILENCE_PEAK = 1e-4

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
)
_APPLE_DOUBLE = b"\x00\x05\x16\x07"
# Containers that libsndfile recognises by their first bytes; all else is looked at as MPEG.
_CONTAINERS = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"FORM", b"caff", b".snd", b"riff")


@dataclass(frozen=True)
class AudioLimits:
    """What a track may cost.

    Attributes
    ----------
    max_bytes : int
        Largest file [bytes].
    min_seconds, max_seconds : float
        Shortest and longest decoded duration [s].
    """

    max_bytes: int = 256 * 1024 * 1024
    min_seconds: float = 1.0
    max_seconds: float = 3600.0


class _ForwardFile(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file read once from front to back.

    On a seekable file soundfile seeks after every read, which makes libmpg123 decode again, and
    never reads past the length that the header claims.
    """

    def seekable(self) -> bool:
        return False


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
        A whole file: MPEG Layers I to III, WAV, FLAC, Ogg, AIFF, whatever libsndfile reads.
    feed : callable
        Called with float32, shape (n_samples,), the mean of the channels at `sample_rate`;
        peaks may exceed 1. The array is reused: take a copy to keep it.
    sample_rate : int
        Rate of the blocks [Hz]; a file at another rate is converted.
    limits : AudioLimits
    expected_seconds : float, optional
        The duration that the catalog states [s].

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
    is_container = audio_bytes.startswith(_CONTAINERS)
    stream = None if is_container else inspect_mpeg(audio_bytes)
    if stream is not None:
        _check_headers(stream, limits)
    try:
        with _open(audio_bytes, stream) as sound:
            rate = int(sound.samplerate)
            n_samples, peak = _read(sound, feed, sample_rate, limits)
    except soundfile.LibsndfileError as error:
        raise _refusal(audio_bytes, stream, limits, error.error_string) from error
    claimed = stream.promised_seconds if stream else _claimed_seconds(sound)
    seconds = n_samples / rate
    _check_whole(seconds, stream, claimed, expected_seconds)
    if seconds < limits.min_seconds:
        raise AudioError(
            "too_short", f"{seconds:.2f} s, less than min_seconds={limits.min_seconds:g}"
        )
    if not np.isfinite(peak):
        raise AudioError("not_finite", "the decoded samples hold NaN or infinite values")
    if peak < _SILENCE_PEAK:
        raise AudioError("silent", f"the peak of {seconds:.1f} s is {peak:.1e} of full scale")
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


def _open(audio_bytes: bytes, stream: MpegStream | None) -> _ForwardFile:
    """Open the stream found, without the tags and the junk around it."""
    if stream is not None:
        audio_bytes = audio_bytes[stream.offset : stream.end]
        if not stream.has_tag and stream.n_bitrates > 1:
            audio_bytes = xing_frame(audio_bytes, stream) + audio_bytes
    sound = _ForwardFile(io.BytesIO(audio_bytes))
    if sound.channels > _MAX_CHANNELS or sound.samplerate not in _SAMPLE_RATES_HZ:
        found = f"{sound.channels} channels at {sound.samplerate} Hz"
        sound.close()
        raise AudioError("decode_error", f"{found}; up to {_MAX_CHANNELS} at 4 to 400 kHz are read")
    return sound


def _refusal(
    audio_bytes: bytes, stream: MpegStream | None, limits: AudioLimits, words: str
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
    if audio_bytes.startswith(_CONTAINERS):
        return AudioError("decode_error", f"{audio_bytes[:4]!r} container, but {words}")
    for position, magic, name in _UNSUPPORTED:
        if audio_bytes[position : position + len(magic)] == magic:
            return AudioError("unsupported_codec", f"{name}: not a kind that the decoder reads")
    if audio_bytes[0] == 0xFF and len(audio_bytes) > 1 and audio_bytes[1] & 0xF6 == 0xF0:
        return AudioError("unsupported_codec", "AAC (ADTS): not a kind that the decoder reads")
    if audio_bytes.startswith(_APPLE_DOUBLE):
        return AudioError("not_audio", "an AppleDouble file: what macOS keeps beside the real one")
    return AudioError("not_audio", f"no audio stream in {len(audio_bytes):,} bytes ({words})")


def _read(
    sound: _ForwardFile,
    feed: Callable[[Float32], object],
    sample_rate: int,
    limits: AudioLimits,
) -> tuple[int, float]:
    """Read to the end; returns the samples per channel read and their peak after the mix."""
    n_channels, rate = sound.channels, sound.samplerate
    block = np.empty((_BLOCK_SAMPLES, n_channels), np.float32)
    mono = np.empty(_BLOCK_SAMPLES, np.float32)
    # Not block.mean(axis=1): numpy reduces a short axis twenty times more slowly than this.
    weights = np.full(n_channels, 1 / n_channels, np.float32)
    resampler = (
        soxr.ResampleStream(rate, sample_rate, 1, dtype="float32") if rate != sample_rate else None
    )
    max_samples = int(limits.max_seconds * rate)
    n_samples, peak = 0, 0.0
    while True:
        n = len(sound.read(out=block))
        n_samples += n
        if n_samples > max_samples:
            raise AudioError("too_long", f"longer than max_seconds={limits.max_seconds:g}")
        samples = block[:n, 0] if n_channels == 1 else np.dot(block[:n], weights, out=mono[:n])
        if n:
            # max() and min() hand NaN on, abs() would cost another array.
            peak = float(np.maximum(peak, np.maximum(samples.max(), -samples.min())))
        last = n < _BLOCK_SAMPLES
        feed(samples if resampler is None else resampler.resample_chunk(samples, last=last))
        if last:
            return n_samples, peak


def _claimed_seconds(sound: _ForwardFile) -> float | None:
    """Duration that a container's header claims [s]; None where it is unknown."""
    return sound.frames / sound.samplerate if 0 < sound.frames < 2**40 else None


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
            "truncated", f"{seconds:.2f} s of the {expected:.2f} s that the catalog promises"
        )


def _check_headers(stream: MpegStream, limits: AudioLimits) -> None:
    """Refuse what the frame headers already show, before anything is decoded."""
    if _is_short_of(stream.seconds, stream.promised_seconds):
        raise AudioError(
            "truncated",
            f"{stream.seconds:.2f} s of the {stream.promised_seconds:.2f} s that the file promises",
        )
    if stream.seconds > limits.max_seconds + TOLERANCE_SECONDS:
        raise AudioError(
            "too_long", f"{stream.seconds:.0f} s, more than max_seconds={limits.max_seconds:g}"
        )
    for rate, n_samples in stream.other_rates.items():
        # Such a stream has no single time axis.
        if n_samples / rate > TOLERANCE_SECONDS:
            raise AudioError(
                "decode_error",
                f"the sample rate changes within the stream: {stream.sample_rate} Hz, then "
                f"{n_samples / rate:.2f} s at {rate} Hz",
            )
