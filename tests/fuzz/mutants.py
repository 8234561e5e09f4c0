"""Broken audio files out of whole ones, by seeded random."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from mer_batch.audio.mpeg import inspect_mpeg
from mer_batch.compose import MOODS, compose
from tests.sounds import mp3, wav, without_tag

#: A part of a corpus file that is larger than this is left out: mutants are to be quick.
MAX_SEED_BYTES = 60_000
_HEADER_BYTES = 400


def made_up_seeds() -> list[bytes]:
    """Music of our own in the forms that the decoder reads."""
    seconds = 2.5
    pieces = {mood: compose(mood, 7, seconds=seconds) for mood in MOODS}
    joyful, tense, calm, sad = (pieces[mood] for mood in ("joyful", "tense", "calm", "sad"))
    stereo = np.stack([tense, 0.5 * joyful], axis=1)
    seeds = [
        mp3(joyful),
        mp3(stereo, quality=0.2),
        mp3(tense, mode="VARIABLE"),
        mp3(stereo, mode="VARIABLE", quality=0.8),
        without_tag(mp3(calm)),
        mp3(sad, quality=0.99),
    ]
    for rate in (8_000, 11_025, 16_000, 24_000, 32_000, 48_000):
        seeds.append(mp3(calm[: int(2 * rate)], rate))
    short = joyful[: int(1.3 * 44_100)]
    for kind, subtype in (
        ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("WAV", "ULAW"),
        ("WAVEX", "PCM_24"), ("RF64", "PCM_16"), ("W64", "PCM_16"), ("AIFF", "PCM_16"),
        ("AU", "PCM_16"), ("CAF", "PCM_16"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"), ("OGG", "OPUS"),
    ):  # fmt: skip
        rate = 48_000 if subtype == "OPUS" else 44_100
        seeds.append(wav(short, rate, subtype=subtype, kind=kind))
    return seeds


def corpus_seeds(folder: Path) -> list[bytes]:
    """The small files of a corpus."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".mp3", ".mp2", ".mp1"))
    return [path.read_bytes() for path in files if 0 < path.stat().st_size <= MAX_SEED_BYTES]


Mutator = Callable[[random.Random, bytearray, list[bytes]], bytearray]


def _somewhere(rng: random.Random, data: bytearray) -> int:
    """A position; every other time in the headers, where little does much."""
    end = len(data) if rng.random() < 0.5 else min(len(data), _HEADER_BYTES)
    return rng.randrange(max(1, end))


def flip_bits(rng: random.Random, data: bytearray, seeds: list[bytes]) -> bytearray:
    for _ in range(rng.choice((1, 3, 20, 200))):
        if data:
            data[_somewhere(rng, data)] ^= 1 << rng.randrange(8)
    return data


def overwrite(rng: random.Random, data: bytearray, seeds: list[bytes]) -> bytearray:
    at, n = _somewhere(rng, data), rng.choice((1, 4, 64, 1_000, 10_000))
    n = max(0, min(n, len(data) - at))
    fill = rng.choice((b"\x00", b"\xff", b"\x7f\xff", b"\xff\xfb\x90\x00", rng.randbytes(n or 1)))
    data[at : at + n] = (fill * (n // len(fill) + 1))[:n]
    return data


def cut(rng: random.Random, data: bytearray, seeds: list[bytes]) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


def behead(rng: random.Random, data: bytearray, seeds: list[bytes]) -> bytearray:
    return data[rng.randrange(len(data) + 1) :]


def take_out(rng: random.Random, data: bytearray, seeds: list[bytes]) -> bytearray:
    at = _somewhere(rng, data)
    del data[at : at + rng.choice((1, 3, 100, 5_000))]
    return data


def put_in(rng: random.Random, data: bytearray, seeds: list[bytes]) -> bytearray:
    at = _somewhere(rng, data)
    data[at:at] = rng.choice((bytes, rng.randbytes))(rng.choice((1, 2, 417, 4_000)))
    return data


def splice(rng: random.Random, data: bytearray, seeds: list[bytes]) -> bytearray:
    other = rng.choice(seeds)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


def join(rng: random.Random, data: bytearray, seeds: list[bytes]) -> bytearray:
    return data + rng.choice(seeds)


def repeat_a_part(rng: random.Random, data: bytearray, seeds: list[bytes]) -> bytearray:
    begin = _somewhere(rng, data)
    part = data[begin : begin + rng.choice((36, 417, 2_000))]
    data[begin:begin] = part * rng.choice((1, 2, 20))
    return data


def swap_frames(rng: random.Random, data: bytearray, seeds: list[bytes]) -> bytearray:
    half = len(data) // 2
    return data[half:] + data[:half]


def change_frame_headers(rng: random.Random, data: bytearray, seeds: list[bytes]) -> bytearray:
    """Other versions, layers, bitrates, sample rates and modes, in one frame or in all."""
    stream = inspect_mpeg(bytes(data))
    if stream is None:
        return flip_bits(rng, data, seeds)
    frames = [i for i in range(stream.offset, stream.end - 4) if data[i : i + 2] == b"\xff\xfb"]
    mask = bytes((rng.choice((0, 0, 0x18, 0x06, 0x01)), rng.choice((0xF0, 0x0C, 0x02)), 0xC0))
    value = rng.randbytes(3)
    for at in rng.choice((frames[:1], frames[-1:], frames, frames[len(frames) // 2 :])):
        for k in range(3):
            data[at + 1 + k] = data[at + 1 + k] & ~mask[k] & 0xFF | value[k] & mask[k]
    return data


_LENGTHS = (
    (b"Xing", 8), (b"Xing", 12), (b"Info", 8), (b"Info", 12), (b"Info", 4), (b"VBRI", 10),
    (b"VBRI", 14), (b"RIFF", 4), (b"data", 4), (b"fmt ", 4), (b"fmt ", 8), (b"fmt ", 12),
    (b"fact", 8), (b"COMM", 8), (b"SSND", 4), (b"FORM", 4), (b"desc", 4), (b".snd", 4),
    (b".snd", 8), (b"ds64", 8), (b"ds64", 16), (b"fLaC", 4), (b"fLaC", 18), (b"fLaC", 22),
    (b"OggS", 6), (b"OggS", 10), (b"OggS", 26), (b"vorbis", 6), (b"OpusHead", 8), (b"LAME", 20),
)  # fmt: skip
_CLAIMS = (0, 1, 2, 0x7F, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1_728_210)


def lie_about_lengths(rng: random.Random, data: bytearray, seeds: list[bytes]) -> bytearray:
    """Any claim where a header keeps a length, a count, a rate or a number of channels."""
    there = [(name, offset) for name, offset in _LENGTHS if name in data]
    if not there:
        return flip_bits(rng, data, seeds)
    for name, offset in rng.choices(there, k=rng.choice((1, 1, 3))):
        at, claim = data.find(name) + offset, rng.choice((*_CLAIMS, rng.randrange(2**32)))
        field = struct.pack(rng.choice("<>") + "I", claim)[: rng.choice((1, 2, 4, 4, 4))]
        if at + len(field) <= len(data):
            data[at : at + len(field)] = field
    return data


def put_tags_round_it(rng: random.Random, data: bytearray, seeds: list[bytes]) -> bytearray:
    """ID3v2 of any claimed size, APE, Lyrics3, ID3v1; art that holds frames."""
    art = rng.choice((b"", rng.randbytes(2_000), rng.choice(seeds)[:5_000], b"\xff" * 3_000))
    size = rng.choice((len(art), len(art) // 2, len(art) + 100_000, 2**28 - 1, 0))
    packed = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    front = b"ID3" + bytes((rng.choice((2, 3, 4, 255)), 0, rng.choice((0, 0x10, 0xFF)))) + packed
    ape = b"APETAGEX" + struct.pack("<4I8x", 2_000, rng.choice((32, 2**32 - 1)), 1, 2**31)
    behind = (b"TAG" + bytes(125), ape, b"LYRICSBEGIN" + bytes(50) + b"000061LYRICS200", b"")
    return bytearray(front + art) * rng.choice((1, 1, 3)) + data + rng.choice(behind)


def put_in_a_wrong_box(rng: random.Random, data: bytearray, seeds: list[bytes]) -> bytearray:
    """One format with the beginning of another."""
    heads = [seed[: rng.choice((4, 12, 44, 200))] for seed in rng.choices(seeds, k=2)]
    foreign = (b"\x00\x00\x00\x20ftypM4A ", b"#!AMR\n", b"wvpk", b"\xff\xf1\x50\x80", b"<html>")
    return bytearray(rng.choice((*heads, *foreign))) + data[rng.choice((0, 4, 44)) :]


MUTATORS: tuple[Mutator, ...] = (
    flip_bits, overwrite, cut, behead, take_out, put_in, splice, join, repeat_a_part, swap_frames,
    change_frame_headers, lie_about_lengths, lie_about_lengths, put_tags_round_it,
    put_in_a_wrong_box,
)  # fmt: skip


def mutant(seeds: list[bytes], seed: int) -> tuple[bytes, str]:
    """The mutant of this number, and how it was made; always the same for the same seeds."""
    rng = random.Random(seed)
    data = bytearray(rng.choice(seeds))
    names = []
    for mutate in rng.choices(MUTATORS, k=rng.choice((1, 1, 1, 2, 4))):
        data = mutate(rng, data, seeds) if data else data
        names.append(mutate.__name__)
    return bytes(data), "+".join(names)


def mutants(seeds: list[bytes], begin: int, n: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of `n` mutants from number `begin` on."""
    for number in range(begin, begin + n):
        yield f"{number:08d}.mp3", mutant(seeds, number)[0]


def read_back(data: bytes) -> float:
    """Duration of a seed by plain soundfile [s]: the seeds are whole."""
    waveform, rate = soundfile.read(io.BytesIO(data))
    return len(waveform) / rate
