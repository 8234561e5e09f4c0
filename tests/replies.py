"""What a child would say of a track, without a child."""

from __future__ import annotations

from mer_batch.audio.decode import AudioLimits
from mer_batch.task import GivenTrack, Reply, Task


def reply_to(task: Task, given: GivenTrack) -> Reply:
    """The reply to a track that can be used."""
    worker = task.worker(AudioLimits())
    return worker.finish(worker.prepare(given))
