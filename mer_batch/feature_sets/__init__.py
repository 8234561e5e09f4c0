"""Feature sets by name: one file each, the file's name is the name used in cards and configs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mer_batch.audio.decode import DECODER
from mer_batch.audio.mel import MelParameters, power_to_db
from mer_batch.audio.segment import random_starts, segment_starts
from mer_batch.errors import ConfigError
from mer_batch.registry import load_plugin, plugin_names
from mer_batch.schema import content_id

Float32 = npt.NDArray[np.float32]

# Raise it when the kernels' numbers change for the same parameters.
_KERNEL_VERSION = 3


@dataclass(frozen=True)
class FeatureSet:
    """What a model is shown of a track.

    Attributes
    ----------
    name : str
        The file's name in this folder.
    mel : MelParameters
    unit : {"power", "dB"}
        Of the values handed to the model.
    segment_seconds : float
        Length of one segment [s].
    max_segments : int
        At most this many segments are cut from a track.
    fixed_length : bool
        True: a shorter track is filled up with silence to one whole segment, for models with a
        dense layer over time. False: it keeps its own length.
    floor_db : float
        Lowest value where `unit` is "dB".
    placement : {"even", "random"}
        Segments spread evenly over a track, as tracks are scored, or at random places that follow
        from the track's id alone.
    """

    name: str
    mel: MelParameters
    unit: Literal["power", "dB"]
    segment_seconds: float = 30.0
    max_segments: int = 7
    fixed_length: bool = False
    floor_db: float = -100.0
    placement: Literal["even", "random"] = "even"

    @property
    def segment_frames(self) -> int:
        """Frames of a whole segment."""
        return self.mel.n_frames(int(self.segment_seconds * self.mel.sample_rate))

    @property
    def features_id(self) -> str:
        """Short hash of the configuration, the kernels and the decoder's version."""
        content = {**asdict(self), "decoder": DECODER, "kernel": _KERNEL_VERSION}
        if self.placement == "even":
            del content["placement"]  # the ids that were given before there was a choice
        return content_id(content)

    def shown_frames(self, n_frames: int) -> int:
        """How much of a whole segment a model is shown, `n_frames` of which are the track's own."""
        return self.segment_frames if self.fixed_length else n_frames

    def segments(self, mel: Float32, *, track_id: str = "") -> tuple[Float32, list[float]]:
        """Cut a track's mel spectrogram into the segments that a model is shown.

        Parameters
        ----------
        mel : float32, shape (n_frames, n_mels) [power]
            Of the whole track: a segment's edges see the music around them, not padding.
        track_id : str
            Decides where the segments lie if they are placed at random.

        Returns
        -------
        segments : float32, shape (n_segments, n_mels, segment_frames or fewer)
            In `unit`. Fewer frames only in a track shorter than a segment where the length is
            not fixed.
        starts_seconds : list of float
            Where each segment begins [s].
        """
        starts = self._starts(len(mel), track_id)
        length = min(len(mel), self.segment_frames)
        stacked = np.stack([mel[start : start + length] for start in starts])
        if self.fixed_length and length < self.segment_frames:
            # No power is silence: nothing is looped or stretched to fill a short clip.
            stacked = np.pad(stacked, ((0, 0), (0, self.segment_frames - length), (0, 0)))
        values = power_to_db(stacked, floor_db=self.floor_db) if self.unit == "dB" else stacked
        hop_seconds = self.mel.hop_length / self.mel.sample_rate
        segments = np.ascontiguousarray(values.transpose(0, 2, 1))
        return segments, [start * hop_seconds for start in starts]

    def _starts(self, n_frames: int, track_id: str) -> list[int]:
        length, most = self.segment_frames, self.max_segments
        if self.placement == "random":
            return random_starts(n_frames, length, max_segments=most, track_id=track_id)
        return segment_starts(n_frames, length, max_segments=most)


def feature_set(name: str) -> FeatureSet:
    """Look a feature set up by name.

    Raises
    ------
    ConfigError
        Naming the feature sets there are.
    """
    found = load_plugin(__name__, name, kind="feature set").FEATURE_SET
    if not isinstance(found, FeatureSet) or found.name != name:
        raise ConfigError(f"feature_sets/{name}.py must define FEATURE_SET with name={name!r}")
    if found.mel.hop_length > found.mel.n_fft or not math.isfinite(found.mel.fmax):
        raise ConfigError(f"feature_sets/{name}.py: hop_length must not exceed n_fft")
    return found


def feature_set_names() -> list[str]:
    """Names of all feature sets."""
    return plugin_names(__name__)
