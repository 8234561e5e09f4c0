"""Features of one track to its valence and arousal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mer_batch.errors import AudioError


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


class Scorer:
    """Scores features with a model on the CPU, one thread.

    Parameters
    ----------
    model : torch.nn.Module
        See ``mer_batch.models``.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def score(self, segments: npt.NDArray[np.float32]) -> TrackScore:
        """Score one track.

        Parameters
        ----------
        segments : float32, shape (n_segments, n_mels, n_frames)

        Raises
        ------
        AudioError
            ``not_finite`` where the model's output is not a number.
        """
        with torch.inference_mode():
            outputs = self._model(torch.from_numpy(segments)).double().numpy()
        values = outputs.reshape(-1, 2)
        if not np.isfinite(values).all():
            raise AudioError("not_finite", "the model's output is not finite for this track")
        valence, arousal = np.clip(values.mean(axis=0), -1, 1).tolist()
        std = None
        if len(values) > 1:
            valence_std, arousal_std = values.std(axis=0).tolist()
            std = (valence_std, arousal_std)
        return TrackScore((valence, arousal), std, len(segments))
