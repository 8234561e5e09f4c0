"""The decoder against reference samples, and every way in which a file can be bad."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mer_batch.audio.decode import AudioLimits, decode, decode_blocks
from mer_batch.audio.mpeg import inspect_mpeg
from mer_batch.compose import compose, encode_mp3
from mer_batch.errors import AudioError
from mer_batch.schema import REASONS
from tests.sounds import mp3, sine, wav, without_tag


def reason_of(audio_bytes: bytes, **options: object) -> str:
    with pytest.raises(AudioError) as caught:
        decode_blocks(
            audio_bytes,
            lambda block: None,
            sample_rate=44_100,
            **{"limits": AudioLimits(), **options},
        )
    assert caught.value.reason in REASONS
    assert caught.value.message
    return caught.value.reason


# ------------------------------------------------------------------- what is decoded


def test_conformance_streams_decode_to_their_reference(data_root: Path) -> None:
    """Within 0.2 steps of 16 bits (RMS), at the very sample, for every stream."""
    streams = sorted((data_root / "mp3_conformance").glob("*.bit"))
    assert len(streams) >= 13
    for stream in streams:
        audio_bytes = stream.read_bytes()
        channels, rate = soundfile.read(io.BytesIO(audio_bytes), dtype="float32", always_2d=True)
        n_channels = channels.shape[1]
        reference = np.fromfile(stream.with_suffix(".pcm"), "<i2").astype(np.float64)
        reference = reference.reshape(-1, n_channels)
        assert rms(to_16_bits(channels), reference) <= 0.2, stream.name

        mono = decode(audio_bytes, sample_rate=rate, limits=AudioLimits(min_seconds=0.01))
        found = inspect_mpeg(audio_bytes)
        assert found is not None
        # With the tag frame that we put before a variable-bitrate stream, the decoder takes its
        # own delay off the front.
        begin = 529 if found.n_bitrates > 1 else 0
        if n_channels == 1:
            assert rms(to_16_bits(mono), reference[begin:, 0]) <= 0.2, stream.name
        else:
            # The mean of two rounded channels is itself 0.29 / sqrt(2) = 0.204 steps off.
            assert rms(32_768.0 * mono, reference[begin:].mean(axis=1)) <= 0.21, stream.name


def to_16_bits(waveform: np.ndarray) -> np.ndarray:
    return np.clip(np.round(32_768.0 * waveform.astype(np.float64)), -32_768, 32_767)


def rms(one: np.ndarray, other: np.ndarray) -> float:
    n = min(len(one), len(other))
    # Some references end a frame early; our tag frame takes the decoder's delay off.
    assert max(len(one), len(other)) - n <= 1152 + 529
    return float(np.sqrt(np.mean((one[:n] - other[:n]) ** 2)))


def test_stereo_is_mixed_as_the_mean() -> None:
    left, right = sine(2, 440), sine(2, 660)
    mixed = decode(wav(np.stack([left, right], axis=1)), sample_rate=44_100)
    np.testing.assert_allclose(mixed, (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize(
    "kind, subtype", [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("AIFF", "PCM_24")]
)
def test_other_containers_are_read(kind: str, subtype: str) -> None:
    waveform = decode(wav(sine(2), subtype=subtype, kind=kind), sample_rate=44_100)
    assert np.corrcoef(waveform[:80_000], sine(2)[:80_000])[0, 1] > 0.99


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000, 96_000])
def test_sample_rates_are_converted(rate: int) -> None:
    waveform = decode(wav(sine(2, rate=rate), rate), sample_rate=44_100)
    assert abs(len(waveform) - 2 * 44_100) <= 2
    middle = slice(20_000, 60_000)
    np.testing.assert_allclose(waveform[middle], sine(2)[middle], atol=2e-3)


def test_peaks_above_full_scale_are_not_clipped() -> None:
    assert decode(wav(3 * sine(2)), sample_rate=44_100).max() == pytest.approx(1.5, abs=1e-3)


def test_blocks_make_up_the_whole() -> None:
    waveform = compose("joyful", 3, seconds=4)
    whole, _ = soundfile.read(io.BytesIO(encode_mp3(waveform)), dtype="float32")
    np.testing.assert_array_equal(decode(encode_mp3(waveform), sample_rate=44_100), whole)


def test_tags_and_junk_around_the_stream_do_not_matter() -> None:
    clean = encode_mp3(compose("calm", 1, seconds=3))
    art = b"ID3\x03\x00\x00\x00\x00\x07\x76" + os.urandom(1014)
    for dirty in (
        bytes(500) + clean,
        art + clean,
        b"\xde\xad" * 50_000 + clean,
        clean + os.urandom(100_000),
    ):
        assert abs(len(decode(dirty, sample_rate=44_100)) - 3 * 44_100) < 3_000


def test_a_variable_bitrate_stream_without_a_header_is_decoded_to_its_end() -> None:
    """libsndfile alone stops where the first frames' bitrate makes it guess the end."""
    random = np.random.default_rng(0)
    loud, soft = (
        without_tag(
            mp3((0.1 * random.standard_normal(441_000)).astype(np.float32), quality=quality)
        )
        for quality in (0.0, 0.99)
    )
    both = loud + soft
    naive, _ = soundfile.read(io.BytesIO(both))
    assert len(naive) < 15 * 44_100, "the trap is gone: the work-around can go too"
    assert abs(len(decode(both, sample_rate=44_100)) - 20 * 44_100) < 4_000


# ------------------------------------------------------------------- what is refused


def test_empty() -> None:
    assert reason_of(b"") == "empty"


@pytest.mark.parametrize(
    "data", [b"hello", bytes(1000), b"<html>" * 100, b"\x00\x05\x16\x07" + bytes(4000)]
)
def test_not_audio(data: bytes) -> None:
    assert reason_of(data) == "not_audio"


@pytest.mark.parametrize(
    "data",
    [
        b"#!AMR\n" + bytes(99),
        bytes(4) + b"ftypM4A " + bytes(99),
        b"\xff\xf1\x50\x80" + bytes(99),
        b"wvpk" + bytes(99),
        b"\x0b\x77" + bytes(99),
        b"\x7f\xfe\x80\x01" + bytes(99),
        b"TTA1" + bytes(99),
        b"\0\0\x01\xba" + bytes(99),
        b"nut/multimedia container\0" + bytes(99),
        b"\x56\xe1" + bytes(99),
        5 * (b"G" + bytes(187)),
        b"RIFF\xff\0\0\0AVI LIST" + bytes(99),
    ],
)
def test_unsupported_codec(data: bytes) -> None:
    assert reason_of(data) == "unsupported_codec"


def test_size_and_duration_limits() -> None:
    audio = encode_mp3(compose("calm", 1, seconds=4))
    assert reason_of(audio, limits=AudioLimits(max_bytes=1000)) == "too_large"
    assert reason_of(audio, limits=AudioLimits(max_seconds=2)) == "too_long"
    assert reason_of(audio, limits=AudioLimits(min_seconds=5)) == "too_short"
    assert reason_of(wav(sine(4)), limits=AudioLimits(max_seconds=2)) == "too_long"


def test_silence_and_near_silence() -> None:
    assert reason_of(wav(np.zeros(99_999, np.float32))) == "silent"
    assert reason_of(wav(1e-5 * sine(2))) == "silent"
    assert reason_of(mp3(np.zeros(99_999, np.float32))) == "silent"
    opposed = np.stack([sine(2), -sine(2)], axis=1)
    assert reason_of(wav(opposed)) == "silent"


def test_not_finite() -> None:
    broken = sine(2)
    broken[1000] = np.nan
    assert reason_of(wav(broken)) == "not_finite"
    broken[1000] = np.inf
    assert reason_of(wav(broken)) == "not_finite"


@pytest.mark.parametrize("kept", [0.03, 0.3, 0.9])
def test_a_cut_file_is_truncated(kept: float) -> None:
    whole = mp3(compose("joyful", 1, seconds=10), mode="VARIABLE")
    stream = inspect_mpeg(whole)
    assert stream is not None and stream.promised_samples is not None, "the encoder wrote no header"
    cut = whole[: stream.offset + int(kept * (stream.end - stream.offset))]
    assert reason_of(cut) == "truncated"


def test_a_cut_file_without_a_header_is_truncated_by_the_catalog() -> None:
    whole = without_tag(mp3(sine(10)))
    cut = whole[: len(whole) // 2]
    assert reason_of(cut, expected_seconds=10.0) == "truncated"
    assert (
        decode_blocks(
            cut, lambda b: None, sample_rate=44_100, limits=AudioLimits(), expected_seconds=5.4
        )
        > 4.5
    )


@pytest.mark.parametrize("expected", [float("nan"), float("inf"), float("-inf"), 0.0, -5.0])
def test_a_duration_that_says_nothing_cuts_nothing(expected: float) -> None:
    limits = AudioLimits()
    seconds = decode_blocks(
        MUSIC, lambda b: None, sample_rate=44_100, limits=limits, expected_seconds=expected
    )
    assert seconds == pytest.approx(2, abs=0.1)


def test_an_absurd_duration_is_told_in_few_words() -> None:
    with pytest.raises(AudioError, match=r"of the 1e\+308 s that the catalog") as caught:
        decode_blocks(
            MUSIC, lambda b: None, sample_rate=44_100, limits=AudioLimits(), expected_seconds=1e308
        )
    assert len(caught.value.message) < 100


def test_a_header_that_lies_allocates_nothing() -> None:
    whole = mp3(sine(3), mode="VARIABLE")
    at = whole.index(b"Xing") if b"Xing" in whole else whole.index(b"Info")
    lying = whole[: at + 8] + (2**31).to_bytes(4, "big") + whole[at + 12 :]
    assert reason_of(lying) == "truncated"


def test_a_sample_rate_that_changes_is_refused() -> None:
    assert reason_of(mp3(sine(3)) + mp3(sine(3, rate=48_000), 48_000)) == "decode_error"


def test_too_many_channels() -> None:
    assert reason_of(wav(np.zeros((50_000, 12), np.float32))) == "decode_error"


MUSIC = encode_mp3(compose("tense", 1, seconds=2))


@given(
    st.lists(st.tuples(st.integers(0, len(MUSIC) - 1), st.integers(0, 255)), max_size=30),
    st.integers(0, len(MUSIC)),
)
@settings(max_examples=150, deadline=None)
def test_mutants_end_in_a_duration_or_a_reason(changes: list[tuple[int, int]], end: int) -> None:
    mutant = bytearray(MUSIC)
    for position, value in changes:
        mutant[position] = value
    try:
        seconds = decode_blocks(
            bytes(mutant[:end]), lambda b: None, sample_rate=44_100, limits=AudioLimits()
        )
    except AudioError as error:
        assert error.reason in REASONS
    else:
        assert 1 <= seconds < 4


def test_every_corpus_file_ends_in_a_duration_or_a_reason(data_root: Path) -> None:
    files = [
        p for p in (data_root / "mp3_corpus").rglob("*") if p.suffix in (".mp3", ".mp2", ".mp1")
    ]
    assert len(files) >= 230
    for path in files:
        try:
            decode_blocks(
                path.read_bytes(), lambda b: None, sample_rate=44_100, limits=AudioLimits()
            )
        except AudioError as error:
            assert error.reason in REASONS, path
