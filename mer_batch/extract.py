"""One track's bytes to the features that a model is shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mer_batch.audio.decode import AudioLimits, decode_blocks
from mer_batch.audio.mel import MelStream
from mer_batch.errors import AudioError
from mer_batch.feature_sets import FeatureSet

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TrackFeatures:
    """Features of one track.

    Attributes
    ----------
    segments : float32, shape (n_segments, n_mels, n_frames)
        In the feature set's unit.
    starts_seconds : list of float
        Where each segment begins [s].
    duration_seconds : float
        Of the whole track [s].
    n_frames : int
        Frames of a segment that are the track's own; fewer than there are where a short track was
        filled up to a whole segment.
    """

    segments: Float32
    starts_seconds: list[float]
    duration_seconds: float
    n_frames: int


class Extractor:
    """Decodes tracks and extracts their features, reusing its buffers.

    Decoding and the mel spectrogram run block by block in one pass: no track's waveform is ever
    held whole.

    Parameters
    ----------
    feature_set : FeatureSet
    limits : AudioLimits
    """

    def __init__(self, feature_set: FeatureSet, limits: AudioLimits) -> None:
        self._feature_set = feature_set
        self._limits = limits
        self._mel = MelStream(feature_set.mel)

    def extract(
        self, audio_bytes: bytes, *, expected_seconds: float | None = None, track_id: str = ""
    ) -> TrackFeatures:
        """Extract the features of one track.

        Parameters
        ----------
        audio_bytes : bytes
        expected_seconds : float, optional
            As the catalog states it [s].
        track_id : str
            Decides where segments lie that are placed at random.

        Raises
        ------
        AudioError
            With the reason why the track cannot be used.
        """
        try:
            seconds = decode_blocks(
                audio_bytes,
                self._mel.feed,
                sample_rate=self._feature_set.mel.sample_rate,
                limits=self._limits,
                expected_seconds=expected_seconds,
            )
            mel = self._mel.finish()
        finally:
            self._mel.discard()
        if not np.isfinite(mel).all():
            raise AudioError("not_finite", "the mel spectrogram holds NaN or infinite values")
        segments, starts = self._feature_set.segments(mel, track_id=track_id)
        n_frames = min(len(mel), self._feature_set.segment_frames)
        return TrackFeatures(segments, starts, seconds, n_frames)
