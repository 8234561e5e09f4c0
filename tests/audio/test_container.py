"""Reading containers' headers: planted chunks and pages."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mer_batch.audio.container import MAGICS, inspect_container
from tests.sounds import sine, wav

FIRST, LAST = 2, 4


def page(serial: bytes, flags: int = 0, packet: bytes = b"\x01vorbis") -> bytes:
    head = b"OggS\x00" + bytes([flags]) + bytes(8) + serial + bytes(8)
    return head + b"\x01" + bytes([len(packet)]) + packet


ONE, OTHER = b"aaaa", b"bbbb"


@pytest.mark.parametrize(
    "pages, n_streams, ends",
    [
        ([page(ONE, FIRST), page(ONE), page(ONE, LAST)], 1, True),
        ([page(ONE, FIRST | LAST)], 1, True),
        ([page(ONE, FIRST), page(ONE)], 1, True),
        ([page(ONE, FIRST), page(ONE, packet=bytes(255))], 1, False),
        ([page(ONE, FIRST), page(ONE, packet=bytes(255)), page(ONE)], 1, True),
        ([page(ONE, FIRST), page(ONE)[:-1]], 1, False),
        ([page(ONE, FIRST), page(ONE)[:20]], 1, False),
        ([page(ONE, FIRST), page(ONE)[:3]], 1, False),
        ([page(ONE, FIRST), b"stray", page(ONE), b"Oggs", page(ONE, LAST)], 1, True),
        ([page(ONE, FIRST), b"stray", page(ONE, LAST)[:-1]], 1, False),
        ([page(ONE, FIRST), page(OTHER, FIRST), page(OTHER, LAST), page(ONE, LAST)], 1, True),
        ([page(ONE, FIRST), page(OTHER, FIRST), page(OTHER, LAST), page(ONE)], 1, True),
        ([page(ONE, FIRST), page(ONE, LAST), page(OTHER, FIRST), page(OTHER, LAST)], 2, True),
        ([page(ONE, FIRST), page(ONE, LAST), page(ONE, FIRST), page(ONE)], 2, True),
        ([page(ONE, FIRST), page(ONE, LAST)[:-1]], 1, False),
        ([page(ONE, FIRST), page(ONE, LAST), b"TAG" + bytes(125)], 1, True),
    ],
)
def test_ogg_streams_are_counted_and_end(pages: list[bytes], n_streams: int, ends: bool) -> None:
    found = inspect_container(b"".join(pages))
    assert (found.n_streams, found.ends) == (n_streams, ends)


def test_ogg_without_its_end_mark_is_told_apart() -> None:
    assert inspect_container(page(ONE, FIRST) + page(ONE, LAST)).has_end_mark
    assert not inspect_container(page(ONE, FIRST) + page(ONE)).has_end_mark


def test_ogg_names_what_it_holds() -> None:
    assert inspect_container(page(ONE, FIRST | LAST)).foreign_codec is None
    theora = inspect_container(page(ONE, FIRST | LAST, b"\x80theora"))
    assert theora.foreign_codec == "Theora video"


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF"])
def test_what_is_claimed_is_what_was_written(kind: str) -> None:
    whole = wav(sine(1), subtype="PCM_16", kind=kind)
    found = inspect_container(bytes(33) + whole, 33)
    assert found.claimed_bytes == found.present_bytes
    assert not found.is_cut
    assert abs(found.present_bytes - 88_200) <= 8, "a chunk of AIFF has eight bytes more"
    cut = inspect_container(whole[:-1_000])
    assert cut.is_cut
    assert cut.claimed_bytes == found.claimed_bytes
    assert cut.present_bytes == pytest.approx(found.present_bytes - 1_000, abs=1)


@pytest.mark.parametrize("size", [0x7FFF_F000, 0x8000_0000, 0xFFFF_FFFF])
def test_a_length_that_nobody_has_filled_in_promises_nothing(size: int) -> None:
    whole = wav(sine(1), subtype="PCM_16")
    at = whole.index(b"data") + 4
    found = inspect_container(whole[:at] + struct.pack("<I", size) + whole[at + 4 :])
    assert found.claimed_bytes is None
    assert not found.is_cut


@pytest.mark.parametrize(
    "kind, name, at, unknown",
    [
        ("WAV", b"data", 4, bytes(4)),
        ("AU", b".snd", 8, bytes(4)),
        ("CAF", b"data", 4, bytes(8)),
        ("CAF", b"data", 4, b"\xff" * 8),
        ("RF64", b"ds64", 16, bytes(8)),
    ],
)
def test_a_length_before_audio_was_never_filled_in(
    kind: str, name: bytes, at: int, unknown: bytes
) -> None:
    whole = wav(sine(1), subtype="PCM_16", kind=kind)
    field = whole.index(name) + at
    length = whole[field : field + len(unknown)]
    found = inspect_container(whole[:field] + unknown + whole[field + len(unknown) :])
    assert found.claimed_bytes is None
    assert found.present_bytes == pytest.approx(88_200, abs=4)
    assert (found.unfilled, found.is_cut) == ((field, length), False)


def test_no_audio_is_not_audio_of_unknown_length() -> None:
    whole = wav(sine(1), subtype="PCM_16")
    field = whole.index(b"data") + 4
    for behind in (b"", b"LIST\x04\0\0\0INFO", b"id3 \x03\0\0\0abc\0"):
        found = inspect_container(whole[:field] + bytes(4) + behind)
        assert (found.claimed_bytes, found.present_bytes, found.unfilled) == (0, 0, None)


@given(st.sampled_from(MAGICS), st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_survived(magic: bytes, data: bytes) -> None:
    found = inspect_container(magic + data)
    assert 0 <= found.present_bytes <= len(magic + data)
    assert found.claimed_bytes is None or found.claimed_bytes >= 0
    assert found.n_streams >= 1
