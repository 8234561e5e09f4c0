"""What decoding makes of a file, to compare one way of it with another."""

from __future__ import annotations

from pathlib import Path

from mer_batch.audio.decode import AudioLimits, decode_blocks
from mer_batch.errors import AudioError


def outcome(audio_bytes: bytes, *, direct: bool) -> tuple[object, bytes]:
    """Duration and samples, or the reject's reason and message."""
    blocks: list[bytes] = []
    limits = AudioLimits(min_seconds=0.1, direct=direct)
    try:
        seconds = decode_blocks(
            audio_bytes, lambda b: blocks.append(b.tobytes()), sample_rate=44_100, limits=limits
        )
    except AudioError as error:
        return error.reason, error.message.encode()
    return seconds, b"".join(blocks)


def real_paths(data_root: Path) -> list[Path]:
    """Real and hostile MPEG files of the research data."""
    folders = ("mp3_conformance", "mp3_corpus", "pmemo_samples")
    return sorted(p for name in folders for p in (data_root / name).rglob("*") if p.is_file())
