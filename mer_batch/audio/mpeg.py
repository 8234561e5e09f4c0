"""Read the frame headers of an MPEG audio stream without decoding it.

The decoder alone cannot tell a whole file from a cut one: a stream that ends early decodes
without an error. It also believes an estimate of the length when a variable-bitrate stream has
no Xing header, and then stops early. Walking the frame headers answers both: where the audio
begins, how many samples are really there, and how many the file's own header promises.

References
----------
ISO/IEC 11172-3 (MPEG-1 audio) section 2.4.1.3, ISO/IEC 13818-3 (MPEG-2 low sampling rates);
the Xing/Info and VBRI tags as documented by Gabriel Bouvigne (mp3-tech.org).
"""

from __future__ import annotations

import re
import struct
from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mer_batch.audio import native
from mer_batch.errors import AudioError

_BITRATES_KBPS = {  # (is MPEG-1, layer) -> bitrate index 1..14
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLE_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}

# How many frames in a row must follow one another before bytes count as a stream: a chance match
# of one header is common in cover art, of three that chain exactly it is not.
_MIN_CHAIN = 3

# How many headers may turn out to begin no chain, and how many tags may stand at the front. Junk
# of the largest size looks like a header 50,000 times; a file made to waste time, at every byte.
_MAX_FALSE_STARTS = 500_000
_MAX_ID3_TAGS = 1_000


def _tables() -> tuple[list[int], list[int], list[int]]:
    """Frame length [bytes], samples and sample rate [Hz] by header bytes 1 and 2; 0 if invalid."""
    lengths, samples, rates = [0] * 65536, [0] * 65536, [0] * 65536
    for key in range(0xE000, 0x10000):
        version, layer = (key >> 11) & 3, 4 - ((key >> 9) & 3)
        bitrate_index, rate_index, padding = (key >> 4) & 15, (key >> 2) & 3, (key >> 1) & 1
        if version == 1 or layer == 4 or rate_index == 3 or bitrate_index in (0, 15):
            continue
        bitrate = _BITRATES_KBPS[version == 3, layer][bitrate_index - 1] * 1000
        rate = _SAMPLE_RATES_HZ[version][rate_index]
        n_samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
        slot_bytes = 4 if layer == 1 else 1
        n_slots = n_samples // 8 // slot_bytes * bitrate // rate + padding
        lengths[key], samples[key], rates[key] = n_slots * slot_bytes, n_samples, rate
    return lengths, samples, rates


_LENGTHS, _SAMPLES, _RATES = _tables()
_LENGTH_OF = np.array(_LENGTHS, np.int32)
_SECONDS_OF = np.array(_SAMPLES) / np.maximum(1, _RATES)


def _sync_pattern() -> re.Pattern[bytes]:
    """What every valid header begins with; a search in C, as most bytes begin none."""
    valid = [key for key, length in enumerate(_LENGTHS) if length]
    first, second = ({key >> shift & 0xFF for key in valid} for shift in (8, 0))
    classes = (b"".join(b"\\x%02x" % byte for byte in sorted(c)) for c in (first, second))
    return re.compile(b"\xff(?=[%b][%b].)" % tuple(classes), re.DOTALL)


_SYNC = _sync_pattern()
# Version, layer and sample rate stay the same through a stream: the mask that compares them.
_SAME_STREAM = 0b1111_1110_0000_1100
_SAME_LAYER = 0b1111_1110_0000_0000
_MONO = 0xC0  # the lowest byte 3 of a header of that mode; all other modes have two channels


@dataclass(frozen=True)
class MpegStream:
    """What the frame headers of one MPEG audio stream say.

    Attributes
    ----------
    offset : int
        Byte position of the first frame, after tags and leading junk.
    end : int
        Byte position behind the last whole frame: what follows is tags or junk.
    spans : tuple of (int, int)
        Where the frames of one version, layer, rate and number of channels lie: begin and end of
        each run that nothing interrupts [bytes].
    sample_rate : int
        Of these frames [Hz].
    n_frames : int
        How many they are, the tag frame left out.
    n_samples : int
        Samples per channel in them.
    promised_samples : int or None
        Samples that a Xing, Info or VBRI tag claims, encoder delay and padding taken off.
    promised_bytes : int or None
        Length that a Xing or Info tag claims which counts no frames, the tag frame counted in.
    tag_bytes : int
        Length of the first frame where it is such a tag; 0 where it is audio.
    is_tag_audio : bool
        Whether it is a tag that libmpg123 does not know: then it decodes that frame as audio.
    n_bitrates : int
        How many different bitrates the frames have that are decoded; more than one means
        variable bitrate.
    stray_bytes : int
        What lies between the frames and is none: damage, or junk.
    other_seconds : float
        Duration of the frames of any other kind [s].
    """

    offset: int
    end: int
    spans: tuple[tuple[int, int], ...]
    sample_rate: int
    n_frames: int
    n_samples: int
    promised_samples: int | None
    promised_bytes: int | None
    tag_bytes: int
    is_tag_audio: bool
    n_bitrates: int
    stray_bytes: int
    other_seconds: float

    @property
    def has_tag(self) -> bool:
        """Whether the first frame is a tag."""
        return self.tag_bytes > 0

    @property
    def seconds(self) -> float:
        """Duration of the frames found [s]."""
        return self.n_samples / self.sample_rate

    @property
    def promised_seconds(self) -> float | None:
        """Duration that the file's own tag claims [s], None without a tag that says."""
        if self.promised_samples is not None:
            return self.promised_samples / self.sample_rate
        if self.promised_bytes is not None:
            return self.promised_bytes * self.seconds / self.n_bytes
        return None

    @property
    def n_bytes(self) -> int:
        """Length of the frames found, the tag frame counted in."""
        return sum(end - begin for begin, end in self.spans)

    @property
    def stray_seconds(self) -> float:
        """How much audio the bytes between the frames may have held [s]."""
        return self.stray_bytes * self.seconds / self.n_bytes

    def frames(self, data: bytes) -> bytes:
        """The frames alone, of the `data` in which they were found.

        What lies between them is left out: libmpg123 looks for the next header itself, and takes
        any bytes that look like one for it.
        """
        return b"".join(data[begin:end] for begin, end in self.spans)


def inspect_mpeg(data: bytes) -> MpegStream | None:
    """Walk the frame headers of an MPEG audio stream (Layers I, II, III).

    Parameters
    ----------
    data : bytes
        A whole file, tags and junk included.

    Returns
    -------
    MpegStream or None
        None where no chain of frames is found. Free-format streams (bitrate index 0) have no
        computable frame length and are not found either.

    Raises
    ------
    AudioError
        ``decode_error`` for a file that is full of headers which begin no stream.
    """
    search = _Search(data)
    offset = search.first_frame(after_id3v2(data))
    if offset is None:
        return None
    positions, end = _walk(data, offset, search)
    return _describe(data, np.frombuffer(positions, np.int64), end)


def _walk(data: bytes, offset: int, search: _Search) -> tuple[array[int], int]:
    """Positions of all frames from `offset` on, and where the last one ends."""
    first_key = data[offset + 1] << 8 | data[offset + 2]
    positions, position = array("q"), offset
    is_native = native.library() is not None
    while True:
        if is_native:
            position = native.run_of_frames(data, position, _LENGTH_OF, positions)
        else:
            position = _run_of_frames(data, position, positions)
        following = search.first_frame(position + 1, like=first_key)
        if following is None:
            return positions, position
        position = following


def _run_of_frames(data: bytes, position: int, positions: array[int]) -> int:
    """What :func:`mer_batch.audio.native.run_of_frames` does: one table look-up a frame."""
    lengths, append = _LENGTHS, positions.append
    end, last = len(data), len(data) - 4
    while position <= last and data[position] == 0xFF:
        length = lengths[data[position + 1] << 8 | data[position + 2]]
        if not length or position + length > end:
            break
        append(position)
        position += length
    return position


def _describe(data: bytes, positions: npt.NDArray[np.int64], end: int) -> MpegStream:
    """Tell the frames of the stream from those of other kinds."""
    content = np.frombuffer(data, np.uint8)
    keys = content[positions + 1].astype(np.uint16) << 8 | content[positions + 2]
    ends = positions + _LENGTH_OF[keys]
    offset, first_key = int(positions[0]), int(keys[0])
    tag = _read_tag(data, offset, _SAMPLES[first_key])
    is_tag_audio = tag is not None and not tag.is_known

    # Of one kind with the first, as the search has seen to; but for its mode, which most decide.
    is_ours = (keys ^ first_key) & _SAME_STREAM == 0
    is_mono = content[positions + 3] >= _MONO
    is_ours &= is_mono == (2 * np.count_nonzero(is_ours & is_mono) > np.count_nonzero(is_ours))
    is_ours[0] |= tag is not None
    n_frames = int(np.count_nonzero(is_ours)) - (tag is not None)
    decoded = keys[is_ours][0 if tag is None or is_tag_audio else 1 :]
    return MpegStream(
        offset=offset,
        end=end,
        spans=_spans(positions[is_ours], ends[is_ours]),
        sample_rate=_RATES[first_key],
        n_frames=n_frames,
        n_samples=n_frames * _SAMPLES[first_key],
        promised_samples=None if tag is None else tag.promised_samples,
        promised_bytes=None if tag is None else tag.promised_bytes,
        tag_bytes=0 if tag is None else _LENGTHS[first_key],
        is_tag_audio=is_tag_audio,
        n_bitrates=int(np.count_nonzero(np.bincount(decoded >> 4 & 15))),
        stray_bytes=end - offset - int((ends - positions).sum()),
        other_seconds=float(_SECONDS_OF[keys[~is_ours]].sum()),
    )


def _spans(
    begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> tuple[tuple[int, int], ...]:
    """Begin and end of each run of frames of which one begins where the last one ends."""
    is_break = begins[1:] != ends[:-1]
    firsts, lasts = np.append(True, is_break), np.append(is_break, True)
    return tuple(zip(begins[firsts].tolist(), ends[lasts].tolist(), strict=True))


def xing_frame(frames: bytes, stream: MpegStream) -> bytes:
    """Build the Xing tag frame that a variable-bitrate stream lacks.

    Without one, libmpg123 estimates the length from the first frames' bitrate and libsndfile
    stops reading there: a stream that begins louder than it goes on would lose its end.

    Parameters
    ----------
    frames : bytes
        ``data[stream.offset : stream.end]``.
    stream : MpegStream

    Returns
    -------
    bytes
        One frame to put before `frames`, of the stream's own version and rate.
    """
    header = bytearray(frames[:4])
    version, mono = (header[1] >> 3) & 3, header[3] >> 6 == 3
    header[1] |= 1  # no checksum
    # The lowest bitrate whose frame has room for the tag behind its (empty) side information.
    side_bytes = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    for bitrate_index in range(1, 15):
        header[2] = bitrate_index << 4 | (header[2] & 0b1100)
        length = _LENGTHS[header[1] << 8 | header[2]]
        if length >= 4 + side_bytes + 16:
            break
    n_bytes = len(frames) + length
    tag = b"Xing" + struct.pack(">III", 3, stream.n_frames, n_bytes)
    return (bytes(header) + bytes(side_bytes) + tag).ljust(length, b"\0")


def after_id3v2(data: bytes) -> int:
    """Position behind any ID3v2 tags at the front; a tag that claims too much is stepped into."""
    position = 0
    for _ in range(_MAX_ID3_TAGS):
        if data[position : position + 3] != b"ID3" or len(data) < position + 10:
            break
        size = 0
        for byte in data[position + 6 : position + 10]:
            size = size << 7 | byte & 0x7F
        footer = 10 if data[position + 5] & 0x10 else 0
        behind = position + 10 + size + footer
        if behind >= len(data):
            return position + 10
        position = behind
    return position


class _Search:
    """Looks for streams in a file, in time that grows with its length at the very most."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._n_left = _MAX_FALSE_STARTS

    def first_frame(self, start: int, like: int | None = None) -> int | None:
        """Position of the first header at or after `start` that begins a chain of frames."""
        data = self._data
        for match in _SYNC.finditer(data, start):
            position = match.start()
            key = data[position + 1] << 8 | data[position + 2]
            is_like = like is None or not (key ^ like) & _SAME_LAYER
            if is_like and _chains(data, position, key):
                return position
            self._n_left -= 1
            if not self._n_left:
                raise AudioError(
                    "decode_error", f"{_MAX_FALSE_STARTS:,} frame headers that begin no stream"
                )
        return None


def _chains(data: bytes, position: int, key: int) -> bool:
    """Whether ``_MIN_CHAIN`` frames follow one another here, or whole frames fill the rest."""
    first = key
    for _ in range(_MIN_CHAIN):
        position += _LENGTHS[key]
        if position == len(data) or data[position : position + 3] == b"TAG":
            return True
        if position + 4 > len(data) or data[position] != 0xFF:
            return False
        key = data[position + 1] << 8 | data[position + 2]
        if not _LENGTHS[key] or (key ^ first) & _SAME_STREAM:
            return False
    return True


@dataclass(frozen=True)
class _Tag:
    """A first frame that holds a description of the stream in place of audio."""

    promised_samples: int | None
    promised_bytes: int | None
    is_known: bool  # to libmpg123


def _read_tag(data: bytes, offset: int, samples_per_frame: int) -> _Tag | None:
    """The first frame's Xing, Info or VBRI tag; None where it is audio."""
    version, layer = (data[offset + 1] >> 3) & 3, 4 - ((data[offset + 1] >> 1) & 3)
    if layer != 3:
        return None
    mono = data[offset + 3] >> 6 == 3
    side_bytes = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    if data[offset + 36 : offset + 40] == b"VBRI" and len(data) >= offset + 54:
        (n_frames,) = struct.unpack_from(">I", data, offset + 36 + 14)
        return _Tag(n_frames * samples_per_frame, None, is_known=False)
    # Some write it two bytes further on, behind a checksum: there libmpg123 does not look for it,
    # nor where the side information that it stands in for is not empty.
    place = offset + 4 + side_bytes
    for tag in (place, place + 2):
        if data[tag : tag + 4] in (b"Xing", b"Info") and len(data) >= tag + 8:
            is_known = tag == place and not any(data[offset + 6 : tag])
            promised_samples = _xing_samples(data, tag, samples_per_frame)
            return _Tag(promised_samples, _xing_bytes(data, tag), is_known)
    return None


def _xing_samples(data: bytes, tag: int, samples_per_frame: int) -> int | None:
    (flags,) = struct.unpack_from(">I", data, tag + 4)
    if not flags & 1 or len(data) < tag + 12:
        return None
    n_frames = int(struct.unpack_from(">I", data, tag + 8)[0])
    lame = tag + 8 + 4 * bool(flags & 1) + 4 * bool(flags & 2) + 100 * bool(flags & 4)
    lame += 4 * bool(flags & 8)
    trimmed = 0
    if data[lame : lame + 4] in (b"LAME", b"Lavc", b"Lavf") and len(data) >= lame + 24:
        packed = int.from_bytes(data[lame + 21 : lame + 24], "big")
        trimmed = (packed >> 12) + (packed & 0xFFF)
    return max(0, n_frames * samples_per_frame - trimmed)


def _xing_bytes(data: bytes, tag: int) -> int | None:
    """The length where that stands in place of the number of frames."""
    (flags,) = struct.unpack_from(">I", data, tag + 4)
    if flags & 3 != 2 or len(data) < tag + 12:
        return None
    return int(struct.unpack_from(">I", data, tag + 8)[0])
