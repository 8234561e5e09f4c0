"""Reading MPEG headers: planted streams, and what the decoder itself finds."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mer_batch.audio.mpeg import inspect_mpeg, xing_frame

# MPEG-1 Layer III, 128 kbit/s, 44.1 kHz, stereo: 417 bytes and 1152 samples a frame.
FRAME = b"\xff\xfb\x90\x00" + bytes(413)
SLOWER = b"\xff\xfb\x94\x00" + bytes(380)  # the same at 48 kHz: 384 bytes
MONO = b"\xff\xfb\x90\xc0" + bytes(413)
LAYER_2 = b"\xff\xfd\x80\x00" + bytes(413)
ID3 = b"ID3\x04\x00\x00" + bytes([0, 0, 2, 0]) + b"\xff\xfb\x90\x00" * 64  # 256 bytes of decoys


def with_xing(n_frames: int, *, delay: int = 576, padding: int = 1000) -> bytes:
    """A LAME tag frame that promises `n_frames` frames."""
    tag = b"Xing" + struct.pack(">II", 1, n_frames) + b"LAME3.100" + bytes(12)
    tag += ((delay << 12) | padding).to_bytes(3, "big")
    return (FRAME[:4] + bytes(32) + tag).ljust(417, b"\0")


def test_counts_frames_behind_tags_and_junk() -> None:
    stream = inspect_mpeg(ID3 + b"junk\xff\xfb" + 40 * FRAME + b"TAG" + bytes(125))
    assert stream is not None
    assert (stream.offset, stream.n_frames, stream.n_samples) == (len(ID3) + 6, 40, 40 * 1152)
    assert stream.end == stream.offset + 40 * 417
    assert (stream.sample_rate, stream.n_bitrates, stream.stray_bytes) == (44_100, 1, 0)
    assert stream.spans == ((stream.offset, stream.end),)
    assert not stream.has_tag
    assert stream.promised_samples is None


def test_reads_what_a_tag_promises() -> None:
    stream = inspect_mpeg(with_xing(1000) + 40 * FRAME)
    assert stream is not None
    assert stream.has_tag
    assert stream.promised_samples == 1000 * 1152 - 1576
    assert stream.n_samples == 40 * 1152


def test_reads_what_a_vbri_tag_promises() -> None:
    vbri = (FRAME[:36] + b"VBRI" + bytes(10) + struct.pack(">I", 500)).ljust(417, b"\0")
    stream = inspect_mpeg(vbri + 10 * FRAME)
    assert stream is not None
    assert stream.promised_samples == 500 * 1152


def test_finds_the_stream_again_after_damage() -> None:
    data = 10 * FRAME + b"\x00" * 999 + 10 * FRAME
    stream = inspect_mpeg(data)
    assert stream is not None
    assert (stream.n_frames, stream.stray_bytes) == (20, 999)
    assert stream.spans == ((0, 4_170), (5_169, 9_339))
    assert stream.frames(data) == 20 * FRAME
    assert stream.stray_seconds == pytest.approx(999 / 417 * 1152 / 44_100)


def test_a_cut_last_frame_does_not_count() -> None:
    stream = inspect_mpeg(10 * FRAME + FRAME[:200])
    assert stream is not None
    assert stream.n_frames == 10


def test_sees_the_sample_rate_change() -> None:
    stream = inspect_mpeg(50 * FRAME + 60 * SLOWER)
    assert stream is not None
    assert stream.n_samples == 50 * 1152
    assert stream.other_seconds == pytest.approx(60 * 1152 / 48_000)


@pytest.mark.parametrize("odd, at", [(MONO, 0), (MONO, 7), (SLOWER, 7), (SLOWER, 20), (LAYER_2, 7)])
def test_leaves_frames_of_another_kind_out(odd: bytes, at: int) -> None:
    data = at * FRAME + odd + (20 - at) * FRAME
    stream = inspect_mpeg(data)
    assert stream is not None
    assert (stream.n_frames, stream.stray_bytes, stream.n_samples) == (20, 0, 20 * 1152)
    assert 0.02 < stream.other_seconds < 0.03
    assert stream.frames(data) == 20 * FRAME


def test_joint_stereo_is_stereo() -> None:
    modes = [FRAME[:3] + bytes([mode]) + FRAME[4:] for mode in (0x00, 0x40, 0x64, 0x80)]
    stream = inspect_mpeg(5 * b"".join(modes))
    assert stream is not None
    assert (stream.n_frames, stream.other_seconds, len(stream.spans)) == (20, 0, 1)


def test_a_tag_frame_belongs_to_the_stream_whatever_its_mode() -> None:
    data = with_xing(20) + 20 * MONO
    stream = inspect_mpeg(data)
    assert stream is not None
    assert (stream.tag_bytes, stream.n_frames, stream.frames(data)) == (417, 20, data)


@pytest.mark.parametrize("data", [b"", b"\xff", bytes(5000), b"\xff" * 5000, ID3, b"RIFF" * 100])
def test_finds_nothing_where_there_is_nothing(data: bytes) -> None:
    assert inspect_mpeg(data) is None


@pytest.mark.parametrize(
    "header", [b"\xff\xfb\x90\x00", b"\xff\xfb\x90\xc0", b"\xff\xf3\x80\xc4", b"\xff\xe3\x18\x64"]
)
def test_the_tag_frame_made_is_read_back(header: bytes) -> None:
    length = {0xFB: 417, 0xF3: 208, 0xE3: 72}[header[1]]
    frames = 30 * (header + bytes(length - 4))
    stream = inspect_mpeg(frames)
    assert stream is not None
    assert stream.n_frames == 30
    again = inspect_mpeg(xing_frame(frames, stream) + frames)
    assert again is not None
    assert again.has_tag
    assert again.promised_samples == stream.n_samples == again.n_samples


@given(st.binary(max_size=3000))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_survived(data: bytes) -> None:
    stream = inspect_mpeg(data + 3 * FRAME)
    assert stream is not None
    assert 0 <= stream.offset < stream.end <= len(data) + 3 * 417
