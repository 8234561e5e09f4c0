"""Sounds to test with, made here."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from mer_batch.audio.mpeg import inspect_mpeg


def sine(seconds: float, hz: float = 440.0, rate: int = 44_100) -> np.ndarray:
    """A tone at half of full scale."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def wav(
    waveform: np.ndarray, rate: int = 44_100, *, subtype: str = "FLOAT", kind: str = "WAV"
) -> bytes:
    """Encode as WAV, FLAC, OGG or AIFF."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def mp3(
    waveform: np.ndarray, rate: int = 44_100, *, quality: float = 0.5, mode: str = "CONSTANT"
) -> bytes:
    """Encode as MP3, at a constant or variable bitrate."""
    buffer = io.BytesIO()
    soundfile.write(
        buffer, waveform, rate, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode=mode,
        compression_level=quality,
    )  # fmt: skip
    return buffer.getvalue()


def without_tag(audio_bytes: bytes) -> bytes:
    """An MP3 stream without its Xing or Info frame, as streaming encoders write it."""
    stream = inspect_mpeg(audio_bytes)
    assert stream is not None
    if not stream.has_tag:
        return audio_bytes
    return audio_bytes[audio_bytes.index(b"\xff\xfb", stream.offset + 100) :]
