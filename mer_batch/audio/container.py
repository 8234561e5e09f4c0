"""Read how long a WAV, AIFF, AU, CAF, FLAC or Ogg file says it is, without decoding it.

libsndfile takes the length of such a file from its size: one that was cut decodes without an
error. Its headers still say how many bytes of audio there were.

References
----------
IBM and Microsoft, "Multimedia Programming Interface and Data Specifications 1.0" (RIFF);
EBU Tech 3306 (RF64); Apple's AIFF-C and CAF specifications; RFC 3533 (Ogg).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from mer_batch.audio.flac import count_samples

#: What the files that libsndfile recognises by their first bytes begin with; all else is looked
#: at as MPEG.
MAGICS = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"FORM", b"caff", b".snd", b"riff")

# A header that nobody has come back to: programs that write to a pipe leave such lengths.
_UNKNOWN_FROM = {4: 0x7FFF_0000, 8: 0x7FFF_FFFF_FFFF_0000}
_MAX_CHUNKS = 10_000

# What is decoded of WAV: PCM, ADPCM, float, A- and mu-law, GSM, G.721, MPEG Layers I to III.
_WAV_MPEG = {0x50, 0x55}
_WAV_FORMATS = {0x01, 0x02, 0x03, 0x06, 0x07, 0x11, 0x31, 0x40, 0xFFFE} | _WAV_MPEG
_CAF_FORMATS = {b"lpcm", b"alaw", b"ulaw"}
_OGG_PAGE = b"OggS\0"
_PAGE_BEGINS = [_OGG_PAGE[:n] for n in range(1, len(_OGG_PAGE))]
_OGG_FIRST_PAGE, _OGG_LAST_PAGE = 2, 4
# What a FLAC stream begins with: its marker, and the head of the block that describes it.
_FLAC_BEGIN = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_FLAC_LENGTH, _FLAC_LENGTH_MASK = 21, 2**36 - 1
_OGG_CODECS = {
    b"\x7fFLAC": "FLAC in Ogg",
    b"Speex   ": "Speex",
    b"\x80theora": "Theora video",
    b"fishead\0": "Ogg Skeleton",
    b"BBCD\0": "Dirac video",
}


@dataclass(frozen=True)
class Container:
    """What a container's headers say.

    Attributes
    ----------
    magic : bytes
        Its first four bytes.
    claimed_bytes : int or None
        Audio that the header promises [bytes]; None where it does not say.
    present_bytes : int
        How much of it is there [bytes].
    begin : int
        Where the audio begins [bytes]; 0 where that is not looked for.
    unfilled : tuple of (int, bytes) or None
        Where the length of the audio should stand that nobody has come back to fill in, and what
        should: libsndfile keeps to a zero, and does not read a CAF of unknown length. So for a
        FLAC that holds more than it claims.
    is_mpeg : bool
        Whether the audio is an MPEG stream, as in a WAV file of that format.
    ends : bool
        False where the file itself shows that its end is missing, but not how much of it.
    has_end_mark : bool
        False where the mark is missing that the format puts at the end. Recorders of streams
        leave it out.
    n_streams : int
        How many streams follow one another; a decoder reads the first.
    foreign_codec : str or None
        Name of what it holds where the decoder is known not to read that.
    """

    magic: bytes
    claimed_bytes: int | None = None
    present_bytes: int = 0
    begin: int = 0
    unfilled: tuple[int, bytes] | None = None
    is_mpeg: bool = False
    ends: bool = True
    has_end_mark: bool = True
    n_streams: int = 1
    foreign_codec: str | None = None

    @property
    def is_cut(self) -> bool:
        """Whether anything is missing."""
        claimed = self.claimed_bytes
        return not self.ends or (claimed is not None and self.present_bytes < claimed)


def inspect_container(data: bytes, offset: int = 0) -> Container:
    """Read the headers of a container that begins at `offset`."""
    magic = data[offset : offset + 4]
    if magic == b"OggS":
        return _ogg(data, offset)
    if magic == b".snd":
        return _au(data, offset)
    if magic == b"fLaC":
        return _flac(data, offset)
    layout = _LAYOUTS.get(magic)
    return Container(magic) if layout is None else _chunked(data, offset, layout)


@dataclass(frozen=True)
class _Layout:
    """How a container keeps its chunks."""

    begin: int  # of the first chunk
    head: struct.Struct  # name and size
    audio: bytes  # name of the chunk that holds it
    align: int
    size_has_head: bool = False


_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_LITTLE_LONG = struct.Struct("<Q")
_LITTLE, _BIG = struct.Struct("<4sI"), struct.Struct(">4sI")
_LAYOUTS = {
    b"RIFF": _Layout(12, _LITTLE, b"data", 2),
    b"RIFX": _Layout(12, _BIG, b"data", 2),
    b"RF64": _Layout(12, _LITTLE, b"data", 2),
    b"FORM": _Layout(12, _BIG, b"SSND", 2),
    b"caff": _Layout(8, struct.Struct(">4sq"), b"data", 1),
    b"riff": _Layout(40, struct.Struct("<16sQ"), _W64_DATA, 8, size_has_head=True),
}


def _chunked(data: bytes, offset: int, layout: _Layout) -> Container:
    """Walk the chunks up to the one that holds the audio."""
    magic, form = data[offset : offset + 4], data[offset + 8 : offset + 12]
    is_mpeg, foreign, long_size = form == b"RMP3", None, None
    if form == b"AVI ":
        return Container(magic, foreign_codec="AVI")
    field = struct.Struct(layout.head.format[0] + layout.head.format[-1])
    for name, position, size in _chunks(data, offset + layout.begin, layout):
        if name == b"ds64" and len(data) >= position + 16:
            long_at = position + 8
            (long_size,) = _LITTLE_LONG.unpack_from(data, long_at)
        if name == b"fmt " and len(data) >= position + 2:
            (code,) = struct.unpack_from(layout.head.format[0] + "H", data, position)
            is_mpeg = code in _WAV_MPEG
            foreign = None if code in _WAV_FORMATS else f"WAV of format {code:#06x}"
        if name == b"desc" and (codec := data[position + 8 : position + 12]) not in _CAF_FORMATS:
            foreign = f"CAF of format {codec!r}"
        if name == layout.audio:
            at, present_bytes = position - field.size, len(data) - position
            if size == 0xFFFF_FFFF and long_size is not None:
                size, at, field = long_size, long_at, _LITTLE_LONG
            is_open = size == -1 or (
                size == 0 and layout.audio == b"data" and _is_audio(data, position, layout)
            )
            unknown_from = _UNKNOWN_FROM[field.size]
            return Container(
                magic,
                claimed_bytes=size if 0 <= size < unknown_from and not is_open else None,
                present_bytes=max(0, present_bytes if is_open else min(size, present_bytes)),
                begin=position,
                unfilled=(at, field.pack(min(present_bytes, unknown_from))) if is_open else None,
                is_mpeg=is_mpeg,
                foreign_codec=foreign,
            )
    return Container(magic, foreign_codec=foreign)


def _chunks(data: bytes, position: int, layout: _Layout) -> Iterator[tuple[bytes, int, int]]:
    """Name, position of the content and its claimed size, of each chunk from `position` on."""
    head = layout.head
    for _ in range(_MAX_CHUNKS):
        if position + head.size > len(data):
            return
        name, size = head.unpack_from(data, position)
        size -= head.size if layout.size_has_head else 0
        position += head.size
        yield name, position, size
        if size < 0:
            return
        position += size + -size % layout.align


def _is_audio(data: bytes, position: int, layout: _Layout) -> bool:
    """Whether something other than further chunks lies here."""
    end = position
    for name, begin, size in _chunks(data, position, layout):
        if not name.strip().isalnum():
            return True
        end = begin + size
    return end not in (len(data), len(data) - 1)  # one byte may fill a chunk up


def _flac(data: bytes, offset: int) -> Container:
    n_streams = len(_FLAC_BEGIN.findall(data, offset))
    unfilled = None
    n_samples, at = count_samples(data, offset), offset + _FLAC_LENGTH
    # Half of the first byte belongs to another field.
    claimed = int.from_bytes(data[at : at + 5], "big") & _FLAC_LENGTH_MASK
    if n_samples is not None and claimed < n_samples <= _FLAC_LENGTH_MASK:
        other = data[at] & 0xF0
        unfilled = at, (other << 32 | n_samples).to_bytes(5, "big")
    return Container(b"fLaC", unfilled=unfilled, n_streams=max(1, n_streams))


def _au(data: bytes, offset: int) -> Container:
    if len(data) < offset + 12:
        return Container(b".snd")
    begin, size = struct.unpack_from(">II", data, offset + 4)
    behind = max(0, len(data) - offset - begin)
    if size == 0 and behind:
        return Container(
            b".snd",
            present_bytes=behind,
            unfilled=(offset + 8, struct.pack(">I", min(behind, _UNKNOWN_FROM[4]))),
        )
    claimed = size if size < _UNKNOWN_FROM[4] else None
    return Container(b".snd", claimed, min(size, behind))


def _ogg(data: bytes, offset: int) -> Container:
    """Walk the pages: a stream ends with a page that says so, and another may follow it."""
    open_streams: set[bytes] = set()
    halved: set[bytes] = set()  # streams whose last packet goes on in a page to come
    n_streams, was_first_page = 0, False
    position, following = offset, offset
    while (following := data.find(_OGG_PAGE, position)) >= 0 and following + 27 <= len(data):
        position = following  # bytes between two pages belong to none
        flags, serial = data[position + 5], data[position + 14 : position + 18]
        lacing = data[position + 27 : position + 27 + data[position + 26]]
        if flags & _OGG_FIRST_PAGE:
            n_streams += not was_first_page  # streams that begin together play together
            open_streams.add(serial)
        was_first_page = bool(flags & _OGG_FIRST_PAGE)
        if flags & _OGG_LAST_PAGE:
            open_streams.discard(serial)
        if lacing:
            (halved.add if lacing[-1] == 255 else halved.discard)(serial)
        position += 27 + data[position + 26] + sum(lacing)
    is_cut = following >= 0 or position > len(data) or data[position:] in _PAGE_BEGINS
    return Container(
        b"OggS",
        ends=not is_cut and not halved & open_streams,
        has_end_mark=not open_streams,
        n_streams=max(1, n_streams),
        foreign_codec=_foreign_codec(data[offset + 28 : offset + 36]),
    )


def _foreign_codec(packet: bytes) -> str | None:
    """Name of an Ogg stream's codec by its first packet; None where the decoder may read it."""
    return next((name for magic, name in _OGG_CODECS.items() if packet.startswith(magic)), None)
