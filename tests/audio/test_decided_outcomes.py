"""What becomes of every odd kind of file: decided, and held here case by case."""

from __future__ import annotations

import io
import math
import random
import struct
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mer_batch.audio.decode import TOLERANCE_SECONDS, AudioLimits
from mer_batch.audio.mpeg import inspect_mpeg
from mer_batch.compose import compose
from mer_batch.errors import AudioError
from mer_batch.extract import Extractor
from mer_batch.feature_sets import feature_set
from tests.sounds import mp3, sine, wav, without_tag

EXTRACTOR = Extractor(feature_set("log_mel"), AudioLimits())
MUSIC = compose("joyful", 5, seconds=4)
STEREO = np.stack([MUSIC, 0.5 * MUSIC], axis=1)


def outcome_of(audio_bytes: bytes, *, expected_seconds: float | None = None) -> float | str:
    """Duration of a track that can be scored [s], or the reason why it cannot."""
    try:
        track = EXTRACTOR.extract(audio_bytes, expected_seconds=expected_seconds)
    except AudioError as error:
        return error.reason
    assert np.isfinite(track.segments).all()
    return track.duration_seconds


def frames_of(audio_bytes: bytes) -> list[bytes]:
    """The frames of an MP3 stream whose frames are all of one length."""
    stream = inspect_mpeg(audio_bytes)
    assert stream is not None
    length = (stream.end - stream.offset) // (stream.n_frames + stream.has_tag)
    assert (stream.end - stream.offset) % length == 0
    return [audio_bytes[at : at + length] for at in range(stream.offset, stream.end, length)]


def free_format(waveform: np.ndarray) -> bytes:
    """A constant bitrate that no header names: all frames of one length, index 0."""
    whole = frames_of(mp3(waveform, 48_000))[1:]
    return b"".join(frame[:2] + bytes([frame[2] & 0x0F]) + frame[3:] for frame in whole)


def tagged(stream: bytes, n_empty: int, tag: bytes) -> bytes:
    """A stereo stream at 44.1 kHz behind a tag in a frame of 320 kbit/s."""
    head = stream[:2] + bytes([0xE0 | stream[2] & 0x0C, stream[3]])
    return (head + bytes(n_empty) + tag).ljust(1_044, b"\0") + stream


def vbri(stream: bytes) -> bytes:
    """The tag of the Fraunhofer encoder, which libmpg123 does not know."""
    found = inspect_mpeg(stream)
    assert found is not None
    return tagged(stream, 32, b"VBRI" + bytes(10) + struct.pack(">I", found.n_frames))


def xing(stream: bytes, n_empty: int = 32) -> bytes:
    found = inspect_mpeg(stream)
    assert found is not None
    return tagged(stream, n_empty, b"Xing" + struct.pack(">II", 1, found.n_frames))


def xing_of_bytes(stream: bytes) -> bytes:
    """A tag that counts bytes, but no frames."""
    return tagged(stream, 32, b"Xing" + struct.pack(">II", 2, 1_044 + len(stream)))


def layer_one(seconds: float) -> bytes:
    """MPEG-1 Layer I, mono, 44.1 kHz, 128 kbit/s: noise in four of the bands."""
    rng = random.Random(0)
    frames = []
    for _ in range(math.ceil(seconds * 44_100 / 384)):
        bits = "".join("0111" if band < 4 else "0000" for band in range(32))  # 8 bits a sample
        bits += "".join(f"{10:06b}" for _ in range(4))  # scale factors
        bits += "".join(f"{rng.randrange(255):08b}" for _ in range(4 * 12))
        body = int(bits.ljust(8 * ((len(bits) + 7) // 8), "0"), 2).to_bytes((len(bits) + 7) // 8)
        length = 12 * 128_000 // 44_100 * 4
        frames.append((b"\xff\xff\x40\xc0" + body).ljust(length, b"\0"))
    return b"".join(frames)


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def riff(code: int, n_channels: int, rate: int, bits: int, data: bytes, more: bytes = b"") -> bytes:
    """A WAV file with this format chunk."""
    block = max(1, n_channels * bits // 8)
    fmt = struct.pack("<HHIIHH", code, n_channels, rate, rate * block, block, bits) + more
    body = b"WAVE" + chunk(b"fmt ", fmt) + chunk(b"data", data)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def claim(audio_bytes: bytes, name: bytes, offset: int, value: int, form: str = ">I") -> bytes:
    """The same file with another number at `offset` behind the first `name`."""
    at = audio_bytes.index(name) + offset
    packed = struct.pack(form, value)
    return audio_bytes[:at] + packed + audio_bytes[at + len(packed) :]


def id3(size: int, content: bytes = b"") -> bytes:
    packed = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x04\x00\x00" + packed + content


def ogg_of(first_packet: bytes) -> bytes:
    """One Ogg page that begins and ends a stream."""
    head = b"OggS\x00\x06" + bytes(8) + b"abcd" + bytes(8) + b"\x01" + bytes([len(first_packet)])
    return head + first_packet


def pages_of(ogg: bytes) -> list[int]:
    """Where the pages of an Ogg file begin, and where the last one ends."""
    places = [0]
    while places[-1] < len(ogg):
        at = places[-1]
        lacing = ogg[at + 27 : at + 27 + ogg[at + 26]]
        places.append(at + 27 + len(lacing) + sum(lacing))
    return places


def with_checksum(page: bytes) -> bytes:
    """An Ogg page with the checksum that it should have (RFC 3533)."""
    blank, value = page[:22] + bytes(4) + page[26:], 0
    for byte in blank:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C1_1DB7 if value >> 31 else 0)) & 0xFFFF_FFFF
    return blank[:22] + struct.pack("<I", value) + blank[26:]


def endless(ogg: bytes) -> bytes:
    """The same Ogg stream, its last page not marked as that."""
    at = pages_of(ogg)[-2]
    last = ogg[at:]
    assert with_checksum(last) == last and last[5] == 4
    return ogg[:at] + with_checksum(last[:5] + b"\0" + last[6:])


def between(ogg: bytes) -> bytes:
    """The same Ogg stream with bytes before its last page that are none of its own."""
    at = pages_of(ogg)[-2]
    return ogg[:at] + b"stray" + ogg[at:]


def wav_of_mp3(stream: bytes, code: int = 0x55) -> bytes:
    more = struct.pack("<HHIHHH", 12, 1, 2, 417, 1, 1393)
    return riff(code, 1, 44_100, 8, stream, more)


def with_value(value: float, subtype: str = "FLOAT") -> bytes:
    broken = MUSIC.astype(np.float64)
    broken[1_000] = value
    return wav(broken, subtype=subtype)


PCM = wav(MUSIC, subtype="PCM_16")
RF64, CAF = (wav(MUSIC, kind=kind, subtype="PCM_16") for kind in ("RF64", "CAF"))
ALAC = wav(MUSIC, kind="CAF", subtype="ALAC_16")
FLAC = wav(MUSIC, kind="FLAC", subtype="PCM_16")
PIPED = claim(FLAC, b"fLaC", 22, 0)
INFO = mp3(MUSIC)
MONO, BOTH = without_tag(mp3(MUSIC)), without_tag(mp3(STEREO))
SOFT = without_tag(mp3(STEREO, mode="VARIABLE", quality=0.9))
FRAMES = frames_of(mp3(MUSIC, 48_000))
HALVES = b"".join(FRAMES[:70]), b"".join(FRAMES[70:])
JUNK = random.Random(3).randbytes(40 * len(FRAMES[0]))
TWO_CHANNELS = b"".join(frames_of(mp3(STEREO, 48_000))[20:32])
APE = b"APETAGEX" + struct.pack("<4I8x", 2_000, 32, 0, 2**31)
LOUD_THEN_SOFT = without_tag(mp3(MUSIC, quality=0.0)) + without_tag(mp3(MUSIC, quality=0.99))
OPUS = wav(MUSIC, 48_000, kind="OGG", subtype="OPUS")
ID3V1 = b"TAG" + bytes(125)
TAILS = {
    "APE": bytes(2_000) + APE,
    "APE and ID3v1": bytes(2_000) + APE + ID3V1,
    "Lyrics3": b"LYRICSBEGIN" + bytes(50) + b"000061LYRICS200" + ID3V1,
    "zeros": bytes(5_000),
    "a newline": b"\n",
    "junk": random.Random(2).randbytes(3_000),
}

# What, its bytes, and what becomes of it: a reason, or the duration that is scored.
DECIDED: list[tuple[str, Callable[[], bytes], str | float]] = [
    # Silence, constants, what is no number, loudness.
    ("digital silence", lambda: mp3(0 * MUSIC), "silent"),
    ("a constant", lambda: wav(np.full(99_999, 0.5, np.float32)), "silent"),
    ("a constant with dither", lambda: wav(0.5 + 5e-5 * sine(2)), "silent"),
    ("music on a constant", lambda: wav(0.3 + 0.5 * MUSIC), 4.0),
    ("opposed channels", lambda: wav(np.stack([MUSIC, -MUSIC], axis=1)), "silent"),
    ("one NaN", lambda: with_value(np.nan), "not_finite"),
    ("one infinity", lambda: with_value(-np.inf), "not_finite"),
    ("NaN in double", lambda: with_value(np.nan, "DOUBLE"), "not_finite"),
    ("too large for single", lambda: with_value(1e300, "DOUBLE"), "not_finite"),
    ("power past single", lambda: wav(MUSIC * np.float32(1e25)), "not_finite"),
    ("clipped", lambda: wav(np.clip(20 * MUSIC, -1, 1), subtype="PCM_16"), 4.0),
    ("far over full scale", lambda: wav(100 * MUSIC), 4.0),
    # Rates and channels.
    ("8 kHz mono", lambda: mp3(MUSIC[:16_000], 8_000), 2.0),
    ("MPEG-2.5", lambda: mp3(MUSIC[:24_000], 12_000), 2.0),
    ("MPEG-2", lambda: mp3(MUSIC[:48_000], 24_000), 2.0),
    ("96 kHz", lambda: wav(np.repeat(MUSIC, 2), 96_000), 3.67),
    ("192 kHz", lambda: wav(np.repeat(MUSIC, 4), 192_000, kind="FLAC", subtype="PCM_24"), 3.67),
    ("655 kHz", lambda: riff(1, 1, 655_350, 16, PCM[44:] * 4), "decode_error"),
    ("1 Hz", lambda: riff(1, 1, 1, 16, PCM[44:1_044]), "decode_error"),
    ("0 channels", lambda: riff(1, 0, 44_100, 16, PCM[44:]), "decode_error"),
    ("8 channels", lambda: wav(np.tile(MUSIC[:, None], 8)), 4.0),
    ("32 channels", lambda: wav(np.tile(MUSIC[:, None], 32)), "decode_error"),
    ("0 Hz", lambda: riff(1, 1, 0, 16, PCM[44:]), "decode_error"),
    # Kinds of MPEG audio.
    ("Layer I", lambda: layer_one(3), 3.0),
    ("free format", lambda: free_format(MUSIC), 3.67),
    ("variable bitrate", lambda: mp3(MUSIC, mode="VARIABLE"), 4.0),
    ("bitrate changes, no tag", lambda: MONO + without_tag(mp3(MUSIC, quality=0.9)), 8.0),
    ("rate changes", lambda: MONO + without_tag(mp3(MUSIC, 48_000)), "decode_error"),
    ("mono, then stereo", lambda: MONO + BOTH, "decode_error"),
    ("stereo, then mono", lambda: BOTH + MONO, "decode_error"),
    ("Layer III, then I", lambda: MONO + layer_one(3), "decode_error"),
    ("junk within, all frames there", lambda: HALVES[0] + JUNK + HALVES[1], 3.67),
    ("junk within, no tag", lambda: HALVES[0][len(FRAMES[0]) :] + JUNK + HALVES[1], "decode_error"),
    ("a second overwritten", lambda: HALVES[0] + JUNK + HALVES[1][len(JUNK) :], "truncated"),
    ("0.2 s of another rate", lambda: HALVES[0] + MONO[:4_000] + HALVES[1], 3.67),
    ("0.3 s of other channels", lambda: HALVES[0] + TWO_CHANNELS + HALVES[1], 3.67),
    ("two files in one", lambda: INFO + INFO, 8.05),
    ("one frame", lambda: frames_of(mp3(MUSIC, 48_000))[5], "too_short"),
    ("a tag frame alone", lambda: mp3(MUSIC, 48_000)[: len(frames_of(mp3(MUSIC, 48_000))[0])],
     "truncated"),
    # What headers claim.
    ("45,145 s in a tag", lambda: claim(INFO, b"Info", 8, 1_728_210), "truncated"),
    ("no frames in a tag", lambda: claim(INFO, b"Info", 8, 0), 4.05),
    ("few frames in a tag", lambda: claim(INFO, b"Info", 8, 40), 4.05),
    ("a tag without a count", lambda: claim(INFO, b"Info", 4, 0), 4.05),
    ("a VBRI tag", lambda: vbri(SOFT), 4.0),
    ("a VBRI tag before constant bitrate", lambda: vbri(BOTH), 4.0),
    ("a VBRI tag, cut", lambda: vbri(SOFT)[: len(SOFT) * 3 // 4], "truncated"),
    ("a tag behind a checksum", lambda: xing(SOFT, 34), 4.0),
    ("a tag behind a checksum, cut", lambda: xing(SOFT, 34)[: len(SOFT) * 3 // 4], "truncated"),
    ("a tag that counts bytes", lambda: xing_of_bytes(SOFT), 4.0),
    ("a tag that counts bytes, cut", lambda: xing_of_bytes(SOFT)[: len(SOFT) * 3 // 4],
     "truncated"),
    ("a tag that is not alone", lambda: xing(SOFT).replace(bytes(32) + b"Xing",
                                                           bytes(31) + b"xXing"), 4.0),
    ("WAV: more than there is", lambda: claim(PCM, b"data", 4, 2**30, "<I"), "truncated"),
    ("WAV: written to a pipe", lambda: claim(PCM, b"data", 4, 2**32 - 1, "<I"), 4.0),
    ("WAV: never finished", lambda: claim(PCM, b"data", 4, 0, "<I"), 4.0),
    ("AU: never finished", lambda: claim(wav(MUSIC, kind="AU", subtype="PCM_16"), b".snd", 8, 0),
     4.0),
    ("RF64: never finished", lambda: claim(RF64, b"ds64", 16, 0, "<Q"), 4.0),
    ("CAF: written to a pipe", lambda: claim(CAF, b"data", 4, -1, ">q"), 4.0),
    ("CAF: never finished", lambda: claim(CAF, b"data", 4, 0, ">q"), 4.0),
    ("WAV: empty", lambda: claim(PCM, b"data", 4, 0, "<I")[:44], "too_short"),
    ("WAV: tags alone", lambda: claim(PCM, b"data", 4, 0, "<I")[:44] + chunk(b"id3 ", PCM[44:]),
     "too_short"),
    ("WAV: no data chunk", lambda: PCM[:36], "decode_error"),
    ("WAV: a header alone", lambda: PCM[:44], "truncated"),
    ("FLAC: more than there is", lambda: claim(FLAC, b"fLaC", 22, 2**31), "truncated"),
    ("FLAC: less than there is", lambda: claim(FLAC, b"fLaC", 22, 60_000), 4.0),
    ("FLAC: less than there is, cut", lambda: claim(FLAC, b"fLaC", 22, 9)[:-999], "truncated"),
    ("FLAC: written to a pipe", lambda: PIPED, 4.0),
    ("FLAC: written to a pipe, cut", lambda: PIPED[: len(PIPED) // 2], "truncated"),
    # Tags and junk around the stream.
    ("ID3v2 in front", lambda: id3(2_000, b"\xff\xfb\x90\x00" * 500) + INFO, 4.0),
    ("ID3v2 of 256 MiB", lambda: id3(2**28 - 1) + INFO, 4.0),
    ("ID3v2, 20,000 times", lambda: id3(0) * 20_000 + INFO, 4.0),
    ("APE and ID3v1 behind", lambda: INFO + bytes(2_000) + APE + b"TAG" + bytes(125), 4.0),
    ("Lyrics3 behind", lambda: INFO + b"LYRICSBEGIN" + bytes(50) + b"000061LYRICS200", 4.0),
    ("junk in front", lambda: random.Random(1).randbytes(200_000) + INFO, 4.0),
    ("ID3v2 before FLAC", lambda: id3(20, bytes(20)) + FLAC, 4.0),
    ("ID3v1 behind FLAC", lambda: FLAC + ID3V1, 4.0),
    ("ID3v2 before WAV", lambda: id3(20, bytes(20)) + PCM, 4.0),
    # Containers.
    ("WAV, extensible", lambda: wav(MUSIC, kind="WAVEX", subtype="PCM_24"), 4.0),
    ("WAV, ADPCM", lambda: wav(MUSIC, subtype="IMA_ADPCM"), 4.0),
    ("WAV, double", lambda: wav(MUSIC, subtype="DOUBLE"), 4.0),
    ("WAV, mu-law", lambda: wav(MUSIC, subtype="ULAW"), 4.0),
    ("WAV, MP3 inside", lambda: wav_of_mp3(mp3(MUSIC)), 4.0),
    ("WAV, MP3 without a tag inside", lambda: wav_of_mp3(LOUD_THEN_SOFT), 8.0),
    ("WAV, free format inside", lambda: wav_of_mp3(free_format(MUSIC)), 3.67),
    ("WAV, cut MP3 inside", lambda: wav_of_mp3(LOUD_THEN_SOFT)[:-30_000], "truncated"),
    ("WAV, Layer I inside", lambda: wav_of_mp3(layer_one(3), 0x50), 3.0),
    ("RIFF of an MP3", lambda: b"RIFF\0\0\0\0RMP3" + chunk(b"data", INFO), 4.0),
    ("CAF, ALAC", lambda: ALAC, 4.0),
    ("CAF, cut ALAC", lambda: ALAC[: len(ALAC) // 2], "truncated"),
    ("CAF, AAC inside", lambda: CAF.replace(b"lpcm", b"aac "), "unsupported_codec"),
    ("WAV, AAC inside", lambda: riff(0xFF, 1, 44_100, 16, bytes(9_999)), "unsupported_codec"),
    ("Ogg, Opus", lambda: wav(MUSIC, 48_000, kind="OGG", subtype="OPUS"), 3.67),
    ("Ogg, Speex", lambda: ogg_of(b"Speex   1.2"), "unsupported_codec"),
    ("Ogg without an end mark", lambda: endless(wav(MUSIC, kind="OGG", subtype="VORBIS")), 4.0),
    ("Opus without its last page", lambda: OPUS[: pages_of(OPUS)[-2]], 3.53),
    ("Ogg, bytes between pages", lambda: between(wav(MUSIC, kind="OGG", subtype="VORBIS")), 4.0),
    ("Ogg, one behind another", lambda: 2 * wav(MUSIC, kind="OGG", subtype="VORBIS"),
     "decode_error"),
    ("FLAC, one behind another", lambda: 2 * FLAC, "decode_error"),
    # No audio.
    ("all 0xFF", lambda: b"\xff" * 1_000_000, "not_audio"),
    ("all zero", lambda: bytes(1_000_000), "not_audio"),
    ("false frame headers", lambda: b"\xff\xfb\x90\x00" * 600_000, "decode_error"),
    ("MP4", lambda: bytes(4) + b"ftypM4A " + bytes(999), "unsupported_codec"),
    ("an AppleDouble file", lambda: b"\x00\x05\x16\x07" + bytes(4_000), "not_audio"),
    ("nothing", bytes, "empty"),
]  # fmt: skip


@pytest.mark.parametrize("made, decided", [pytest.param(m, d, id=name) for name, m, d in DECIDED])
def test_decided(made: Callable[[], bytes], decided: str | float) -> None:
    outcome = outcome_of(made())
    if isinstance(decided, str):
        assert outcome == decided
    else:
        # Without an encoder's tag its delay and padding count as well: a twentieth of a second.
        assert outcome == pytest.approx(decided, abs=0.15)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {  # from where it strikes on
    "the mark of a frame": lambda rest: b"\0" + rest[1:],
    "a sector": lambda rest: rest[:100] + bytes(512) + rest[612:],
    "another mode": lambda rest: rest[:3] + bytes([rest[3] ^ 0xC0]) + rest[4:],
    "another rate": lambda rest: rest[:2] + bytes([rest[2] ^ 0x04]) + rest[3:],
    "another layer": lambda rest: rest[:1] + bytes([rest[1] ^ 0x06]) + rest[2:],
    "another bitrate": lambda rest: rest[:2] + bytes([rest[2] ^ 0x10]) + rest[3:],
    "junk put in": lambda rest: random.Random(4).randbytes(400) + rest,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("n_skipped", [0, 1])
def test_a_damaged_frame_costs_that_frame_alone(damage: str, n_skipped: int) -> None:
    """Wherever it is, with the encoder's tag and without."""
    for at in range(8, len(FRAMES) - 8, 15):
        spoilt = DAMAGES[damage](b"".join(FRAMES[at:]))
        outcome = outcome_of(b"".join(FRAMES[n_skipped:at]) + spoilt)
        assert outcome == pytest.approx(3.67, abs=0.15), at


WITH_A_LENGTH = {
    "MP3 with a tag": mp3(MUSIC),
    "MP3, variable": mp3(STEREO, mode="VARIABLE"),
    **{
        f"{kind} {subtype}": wav(
            MUSIC, 48_000 if subtype == "OPUS" else 44_100, kind=kind, subtype=subtype
        )
        for kind, subtype in (
            ("WAV", "PCM_16"), ("WAV", "IMA_ADPCM"), ("WAV", "ALAW"), ("WAVEX", "PCM_24"),
            ("RF64", "PCM_16"), ("W64", "FLOAT"), ("AIFF", "PCM_16"), ("AU", "PCM_16"),
            ("CAF", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_A_LENGTH)
@given(kept=st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_no_cut_file_is_scored(name: str, kept: float) -> None:
    """Cut at any byte: whatever is scored lacks no more than half a second."""
    whole = WITH_A_LENGTH[name]
    outcome = outcome_of(whole[: int(kept * len(whole))])
    seconds = soundfile.info(io.BytesIO(whole)).duration
    if not isinstance(outcome, str):
        assert outcome >= seconds - TOLERANCE_SECONDS - 0.01


@pytest.mark.parametrize("name", WITH_A_LENGTH)
def test_a_file_cut_in_the_middle_is_truncated(name: str) -> None:
    whole = WITH_A_LENGTH[name]
    assert outcome_of(whole) == pytest.approx(soundfile.info(io.BytesIO(whole)).duration, abs=0.06)
    assert outcome_of(whole[: len(whole) // 2]) == "truncated"


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("name", [*WITH_A_LENGTH, "FLAC from a pipe"])
def test_what_lies_behind_a_whole_file_does_not_matter(name: str, tail: str) -> None:
    whole = WITH_A_LENGTH.get(name, PIPED)
    seconds = 4.0 if whole is PIPED else soundfile.info(io.BytesIO(whole)).duration
    assert outcome_of(whole + TAILS[tail]) == pytest.approx(seconds, abs=0.06)


def test_a_cut_and_a_damaged_flac_are_told_apart() -> None:
    """Where it is cut within a frame of 24 bits in stereo, the decoder steps back from the end."""
    noise = np.random.default_rng(0).normal(0, 0.1, (4 * 44_100, 2))
    whole = wav(noise, kind="FLAC", subtype="PCM_24")
    for kept in np.linspace(0.02, 0.99, 30):
        assert outcome_of(whole[: int(kept * len(whole))]) == "truncated"
    at = len(whole) // 2
    assert outcome_of(whole[:at] + bytes(50) + whole[at + 50 :]) == "decode_error"


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_cut_between_two_pages_is_known_by_the_catalog_alone(subtype: str) -> None:
    """It looks like what a recorder of streams leaves."""
    whole = wav(MUSIC, 48_000, kind="OGG", subtype=subtype)
    at = pages_of(whole)[-2]
    seconds = outcome_of(whole[:at])
    assert isinstance(seconds, float) and 1 < seconds < 3.6
    assert outcome_of(whole[:at], expected_seconds=3.67 + 0.5) == "truncated"
    assert outcome_of(whole[: at + 4]) == outcome_of(whole[: at - 1]) == "truncated"


@pytest.mark.parametrize(
    "kind, subtype",
    [("NIST", "PCM_16"), ("VOC", "PCM_16"), ("PAF", "PCM_16"), ("IRCAM", "PCM_16"),
     ("MAT4", "PCM_16"), ("MAT5", "PCM_16"), ("SVX", "PCM_16"), ("HTK", "PCM_16"),
     ("AVR", "PCM_16"), ("SDS", "PCM_16"), ("PVF", "PCM_16"), ("XI", "DPCM_16"),
     ("MPC2K", "PCM_16"), ("WVE", "ALAW")],
)  # fmt: skip
def test_containers_whose_cuts_nobody_sees_are_refused(kind: str, subtype: str) -> None:
    whole = wav(MUSIC, kind=kind, subtype=subtype)
    assert outcome_of(whole) == "unsupported_codec"
    assert outcome_of(whole[: len(whole) * 2 // 3]) in ("unsupported_codec", "not_audio")


@pytest.mark.parametrize("made", [lambda: MONO, lambda: free_format(MUSIC), lambda: layer_one(4)])
def test_the_catalog_tells_of_a_cut_that_the_file_hides(made: Callable[[], bytes]) -> None:
    whole = made()
    cut = whole[: len(whole) // 2]
    seconds = outcome_of(cut)
    assert isinstance(seconds, float)
    assert outcome_of(cut, expected_seconds=2 * seconds) == "truncated"
    assert outcome_of(whole, expected_seconds=2 * seconds) == pytest.approx(2 * seconds, abs=0.1)


@pytest.mark.parametrize(
    "pattern, reason",
    [
        (b"\xff", "not_audio"),
        (b"\xff\xfb\x90\x00", "decode_error"),  # a header at every fourth byte, and no stream
        (b"\xff\xfb", "not_audio"),
        (b"ID3\x04\0\0\0\0\0\0", "not_audio"),
        (b"OggS\0\0" + bytes(21), "decode_error"),
        (b"junk\0\0\0\0", "not_audio"),
    ],
)
def test_a_file_made_to_waste_time_is_seen_through(pattern: bytes, reason: str) -> None:
    """To try every byte of it would take half a minute and more."""
    assert outcome_of(pattern * (64 * 1024 * 1024 // len(pattern))) == reason
