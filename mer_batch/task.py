"""What a child process makes of a track: its score, or its features.

A task is told to the child as JSON and raw bytes, and comes back the same way. What comes back is
checked by the task as well: a decoder that was taken over could send anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from mer_batch.audio.decode import AudioLimits
from mer_batch.audio.mel import MelParameters
from mer_batch.extract import Extractor, TrackFeatures
from mer_batch.feature_sets import FeatureSet
from mer_batch.schema import INTERVAL_FIELDS, SCORE_COLUMNS, TARGETS

#: Decibels are kept in steps of this size: exact in half floats, at most 1/32 dB off, and a sixth
#: less to store. Single floats are kept as they are.
STEP_DB = 1 / 16

Dtype = Literal["float16", "float32"]

_MAX_INT32 = 2**31 - 1
# More than any track's length [s] or any spread, and far from where a single float ends.
_MAX_FLOAT = 1e9

# What the values of a score may be; a spread or an interval may be unknown.
_SCORE_RANGES = {
    **dict.fromkeys((*TARGETS, *(field.name for field in INTERVAL_FIELDS)), (-1.0, 1.0)),
    **dict.fromkeys((f"{target}_std" for target in TARGETS), (0.0, _MAX_FLOAT)),
    "duration_seconds": (0.0, _MAX_FLOAT),
}
_NEVER_UNKNOWN = {*TARGETS, "n_segments", "duration_seconds"}


@dataclass(frozen=True)
class GivenTrack:
    """What a child is given of a track.

    Attributes
    ----------
    audio_bytes : bytes
    expected_seconds : float, optional
        As the catalog states it [s].
    track_id : str
        Decides where segments lie that are placed at random.
    """

    audio_bytes: bytes
    expected_seconds: float | None = None
    track_id: str = ""


#: A reply's JSON, and the raw bytes behind it; no bytes, no frame.
Reply = tuple[dict[str, Any], bytes]


class Task(Protocol):
    """The parent's side makes it and checks replies; the child's side works."""

    name: ClassVar[str]

    def setup(self) -> tuple[dict[str, Any], list[bytes]]:
        """What the child is told, for the `from_setup` of the same class."""

    def n_bytes(self, header: dict[str, Any]) -> int:
        """Raw bytes that must follow a reply; ValueError where its form is not as it should be."""

    def outcome(self, header: dict[str, Any], payload: bytes | bytearray) -> Any:
        """The outcome out of a reply that `n_bytes` has passed; ValueError as there."""

    def worker(self, limits: AudioLimits) -> Callable[[GivenTrack], Reply]:
        """In the child: what is done to a track. It may raise AudioError."""


@dataclass(frozen=True)
class ScoreTask:
    """Decode a track and score it.

    Attributes
    ----------
    card_json, weights : bytes
        The checkpoint.
    """

    name: ClassVar[str] = "score"
    card_json: bytes
    weights: bytes

    def setup(self) -> tuple[dict[str, Any], list[bytes]]:
        """The checkpoint's two files."""
        return {}, [self.card_json, self.weights]

    @classmethod
    def from_setup(cls, told: dict[str, Any], frames: list[bytes]) -> ScoreTask:
        """The same task again."""
        return cls(*frames)

    def n_bytes(self, header: dict[str, Any]) -> int:
        """No bytes: a score is all in the header."""
        if (
            header.keys() != set(SCORE_COLUMNS)
            or any(header[name] is None for name in _NEVER_UNKNOWN)
            or not _is_count(header["n_segments"], _MAX_INT32)
            or not all(
                header[name] is None or _is_float(header[name], *range_)
                for name, range_ in _SCORE_RANGES.items()
            )
        ):
            raise ValueError(f"unexpected keys or values under {sorted(header)!r}"[:500])
        return 0

    def outcome(self, header: dict[str, Any], payload: bytes | bytearray) -> dict[str, Any]:
        """The score, by ``schema.SCORE_COLUMNS``."""
        return header

    def worker(self, limits: AudioLimits) -> Callable[[GivenTrack], Reply]:
        """Extract and score."""
        # Imported here: the parent never needs them.
        from mer_batch.checkpoint import Checkpoint
        from mer_batch.score import Scorer

        checkpoint = Checkpoint(self.card_json, self.weights, origin="checkpoint")
        extractor = Extractor(checkpoint.feature_set, limits)
        scorer = Scorer(checkpoint.function())

        def score(given: GivenTrack) -> Reply:
            track = extractor.extract(given.audio_bytes, expected_seconds=given.expected_seconds)
            scored = scorer.score(track.segments)
            return scored.columns(track.duration_seconds, checkpoint.half_widths), b""

        return score


@dataclass(frozen=True)
class ExtractTask:
    """Decode a track and give its features as they are kept: decibels, whole segments.

    Attributes
    ----------
    feature_set : FeatureSet
    dtype : {"float16", "float32"}
    """

    name: ClassVar[str] = "extract"
    feature_set: FeatureSet
    dtype: Dtype

    def setup(self) -> tuple[dict[str, Any], list[bytes]]:
        """The feature set's fields."""
        return {"feature_set": asdict(self.feature_set), "dtype": self.dtype}, []

    @classmethod
    def from_setup(cls, told: dict[str, Any], frames: list[bytes]) -> ExtractTask:
        """The same task again."""
        fields = told["feature_set"]
        return cls(FeatureSet(**{**fields, "mel": MelParameters(**fields["mel"])}), told["dtype"])

    def n_bytes(self, header: dict[str, Any]) -> int:
        """Bytes of the segments, of which there may be no more than the feature set allows."""
        starts = header.get("starts_seconds")
        if (
            header.keys() != {"starts_seconds", "n_frames", "duration_seconds"}
            or not isinstance(starts, list)
            or not 1 <= len(starts) <= self.feature_set.max_segments
            or not all(_is_float(v, 0.0, _MAX_FLOAT) for v in (*starts, header["duration_seconds"]))
            or not _is_count(header["n_frames"], self.feature_set.segment_frames)
        ):
            raise ValueError(f"unexpected keys or values under {sorted(header)!r}"[:500])
        return len(starts) * self._n_values() * np.dtype(self.dtype).itemsize

    def outcome(self, header: dict[str, Any], payload: bytes | bytearray) -> TrackFeatures:
        """Features in decibels, of this task's type."""
        shape = (-1, self.feature_set.mel.n_mels, self.feature_set.segment_frames)
        segments = np.frombuffer(payload, self.dtype).reshape(shape)
        if not np.isfinite(segments).all():
            raise ValueError("features that are NaN or infinite")
        return TrackFeatures(segments=segments, **header)

    def worker(self, limits: AudioLimits) -> Callable[[GivenTrack], Reply]:
        """Extract, and round to what is kept."""
        # Whatever a model is shown: power spans more than half floats hold, and rows of one
        # length make a table.
        kept = replace(self.feature_set, unit="dB", fixed_length=True)
        extractor = Extractor(kept, limits)

        def extract(given: GivenTrack) -> Reply:
            track = extractor.extract(
                given.audio_bytes,
                expected_seconds=given.expected_seconds,
                track_id=given.track_id,
            )
            segments = track.segments
            if self.dtype == "float16":
                segments = np.round(segments / np.float32(STEP_DB)) * np.float32(STEP_DB)
            header = {
                "starts_seconds": track.starts_seconds,
                "n_frames": track.n_frames,
                "duration_seconds": track.duration_seconds,
            }
            return header, segments.astype(self.dtype).tobytes()

        return extract

    def _n_values(self) -> int:
        return self.feature_set.mel.n_mels * self.feature_set.segment_frames


def _is_count(value: object, most: int) -> bool:
    """Whether a reply's value is a whole number from 1 to `most`; True is none."""
    return type(value) is int and 1 <= value <= most


def _is_float(value: object, lowest: float, highest: float) -> bool:
    """Whether a reply's value is a float within bounds, which NaN is never."""
    return type(value) is float and lowest <= value <= highest


_TASKS = {kind.name: kind for kind in (ScoreTask, ExtractTask)}


def task_of(told: dict[str, Any], frames: list[bytes]) -> Task:
    """In the child: the task that the parent has told of."""
    task: Task = _TASKS[told["task"]].from_setup(told, frames)
    return task
