"""Features of one track to its valence and arousal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mer_batch.errors import AudioError
from mer_batch.native_models import Function
from mer_batch.schema import SCORE_COLUMNS, TARGETS

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

#: Has segments scored, see :meth:`Scorer.outputs`; what it gives waits for the answer.
Ask = Callable[[Float32, "npt.NDArray[np.integer]"], Callable[[], Float64]]

HalfWidths = tuple[float | None, float | None]

# More in one go would not stay in the processor's cache: twice as slow a segment at 64.
_BATCH_SEGMENTS = 16


@dataclass(frozen=True)
class TrackScore:
    """Scores of one track, on [-1, 1], in the order of ``schema.TARGETS``.

    Attributes
    ----------
    mean : tuple of float
        Over segments and members of the ensemble, clipped to [-1, 1].
    std : tuple of float, or None
        Population standard deviation over the same values before clipping; None where there is
        only one value, whose spread is unknown.
    n_segments : int
    """

    mean: tuple[float, float]
    std: tuple[float, float] | None
    n_segments: int

    def columns(
        self, duration_seconds: float, half_widths: HalfWidths
    ) -> dict[str, float | int | None]:
        """The same as ``schema.SCORE_COLUMNS``, for a row of ``scores/``.

        Parameters
        ----------
        duration_seconds : float
        half_widths : tuple of float or None
            How far the interval around each score reaches either way; None where it is unknown.
        """
        row: dict[str, float | int | None] = {
            "n_segments": self.n_segments, "duration_seconds": duration_seconds,
        }  # fmt: skip
        spreads = self.std or (None, None)
        for target, mean, std, reach in zip(TARGETS, self.mean, spreads, half_widths, strict=True):
            row[target], row[f"{target}_std"] = mean, std
            row[f"{target}_low"] = None if reach is None else max(-1.0, mean - reach)
            row[f"{target}_high"] = None if reach is None else min(1.0, mean + reach)
        return {name: row[name] for name in SCORE_COLUMNS}


class Scorer:
    """Scores features with a model.

    Parameters
    ----------
    model : Function
        Of features; see ``Checkpoint.function``.
    batch_segments : int
        The model is shown so many at a time.
    """

    def __init__(self, model: Function, *, batch_segments: int = _BATCH_SEGMENTS) -> None:
        self._model = model
        self._batch_segments = batch_segments

    def score(self, segments: Float32) -> TrackScore:
        """Score one track.

        Parameters
        ----------
        segments : float32, shape (n_segments, n_mels, n_frames)

        Raises
        ------
        AudioError
            ``not_finite`` where the model's output is not a number.
        """
        return track_score(self._model(segments))

    def outputs(self, segments: Float32, n_frames: npt.NDArray[np.integer]) -> Float64:
        """What the model says of segments of many tracks, those of equal length together.

        Parameters
        ----------
        segments : float32, shape (n_rows, n_mels, segment_frames)
        n_frames : integers, shape (n_rows,)
            How many frames of each the model is shown.

        Returns
        -------
        float64, shape (n_rows, n_members, 2)
            For :func:`track_score`: the same numbers as those of one track by itself, but for
            rounding. Of no rows, shape (0, 0, 2).
        """
        if len(segments) == 0:
            return np.empty((0, 0, len(TARGETS)))
        found: list[tuple[npt.NDArray[np.intp], Float64]] = []
        for length in np.unique(n_frames).tolist():
            rows = np.flatnonzero(n_frames == length)
            for begin in range(0, len(rows), self._batch_segments):
                batch = rows[begin : begin + self._batch_segments]
                found.append((batch, self._model(_cut(segments, batch, length))))
        outputs = np.empty((len(segments), *found[0][1].shape[1:]))
        for batch, values in found:
            outputs[batch] = values
        return outputs


def compute_in_one_thread() -> Callable[[], None]:
    """Have torch, where a model has loaded it, compute in one thread: others have the other cores.

    Returns
    -------
    callable
        Gives it its threads back.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return lambda: None
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    return lambda: torch.set_num_threads(n_threads)


def _cut(segments: Float32, rows: npt.NDArray[np.intp], length: int) -> Float32:
    """Rows cut to a length, without a copy where they lie together and are whole."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):
        return np.ascontiguousarray(segments[first : last + 1, :, :length])
    return np.ascontiguousarray(segments[rows, :, :length])


def track_score(outputs: Float64) -> TrackScore:
    """Score of a track out of what the model says of its segments.

    Parameters
    ----------
    outputs : float64, shape (n_segments, n_members, 2)

    Raises
    ------
    AudioError
        ``not_finite`` where one is not a number.
    """
    values = outputs.reshape(-1, len(TARGETS))
    if not np.isfinite(values).all():
        raise AudioError("not_finite", "the model's output is not finite for this track")
    valence, arousal = np.clip(values.mean(axis=0), -1, 1).tolist()
    std = None
    if len(values) > 1:
        valence_std, arousal_std = values.std(axis=0).tolist()
        std = (valence_std, arousal_std)
    return TrackScore((valence, arousal), std, len(outputs))
