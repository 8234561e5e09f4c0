"""What one track may cost before it becomes a reject."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mer_batch.audio.decode import AudioLimits


@dataclass(frozen=True)
class ChildLimits:
    """What one track may cost, in its child process and of it.

    Attributes
    ----------
    audio : AudioLimits
        Bytes and decoded seconds.
    timeout_seconds : float
        Wall-clock time for one track, and again for finishing some together [s].
    memory_bytes : int
        Memory that decoding may add to the child [bytes].
    """

    audio: AudioLimits = field(default_factory=AudioLimits)
    timeout_seconds: float = 60.0
    memory_bytes: int = 1024 * 1024 * 1024

    def content(self) -> dict[str, Any]:
        """What decides whether a track is a reject: which way it is decoded does not."""
        content = asdict(self)
        del content["audio"]["direct"]
        return content
