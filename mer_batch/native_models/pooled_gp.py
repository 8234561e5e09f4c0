"""``mer_batch.models.pooled_gp`` without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mer_batch.audio.native import LANES, library
from mer_batch.audio.native_statistics import NativeStatistics
from mer_batch.audio.statistics_tables import N_STATISTICS, tables

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

#: Of the kernel ``exp(-SHARPNESS * mean squared difference of statistics)``.
SHARPNESS = 0.15


@dataclass(frozen=True)
class _Parameters:
    """Those of the torch module's constructor, and its defaults."""

    n_mels: int = 80
    sample_rate: int = 44_100
    hop_length: int = 2048
    fmin: float = 30.0
    fmax: float = 16_000.0
    n_members: int = 16
    n_landmarks: int = 640

    def __post_init__(self) -> None:
        for name in ("n_members", "n_landmarks"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number, 1 or more")


class Model:
    """Scores features, a track's always alike whatever is scored beside them.

    Parameters
    ----------
    parameters : dict
        Of the torch module's constructor.
    weights : dict of str to array
        Its state.

    Raises
    ------
    ValueError, TypeError
        Where one does not fit the other, or a weight is not a finite number.
    """

    def __init__(self, parameters: dict[str, Any], weights: dict[str, npt.NDArray[Any]]) -> None:
        p = _Parameters(**parameters)
        shapes = {
            **dict.fromkeys(("centre", "scale", "limit"), (N_STATISTICS,)),
            "landmarks": (p.n_landmarks, N_STATISTICS),
            "coefficients": (p.n_landmarks, p.n_members * 2),
            "intercepts": (p.n_members * 2,),
        }
        if (found := {name: array.shape for name, array in weights.items()}) != shapes:
            raise ValueError(f"weights of {found} must be {shapes}")
        single = {name: np.asarray(array, np.float32) for name, array in weights.items()}
        if strange := [name for name, array in single.items() if not np.isfinite(array).all()]:
            raise ValueError(f"{', '.join(strange)} must be finite")
        self._n_members = p.n_members
        self._statistics = NativeStatistics(
            tables(
                n_mels=p.n_mels, sample_rate=p.sample_rate, hop_length=p.hop_length,
                fmin=p.fmin, fmax=p.fmax,
            )
        )  # fmt: skip
        self._centre, self._scale, self._limit = (
            single[name] for name in ("centre", "scale", "limit")
        )
        # Whole vectors: what is behind a row's end is the same everywhere, and counts for nothing.
        self._landmarks = _whole_vectors(single["landmarks"])
        self._coefficients = _whole_vectors(single["coefficients"])
        self._intercepts = _whole_vectors(single["intercepts"][None])
        compiled = library()
        assert compiled is not None
        self._gaussian_process = compiled.gaussian_process

    def __call__(self, features: Float32) -> Float64:
        """(batch, n_mels, n_frames) [dB], any length, to (batch, n_members, 2)."""
        return self.predict(self._statistics(features))

    def predict(self, statistics: Float32) -> Float64:
        """(batch, n_statistics) to (batch, n_members, 2); NaN where one is not a finite number."""
        scaled = (statistics - self._centre) * self._scale
        np.clip(scaled, -self._limit, self._limit, out=scaled)
        x = _whole_vectors(scaled)
        scores = np.repeat(self._intercepts, len(x), axis=0)
        for x_of_one, scores_of_one in zip(x, scores, strict=True):
            self._gaussian_process(
                x_of_one.ctypes.data, x.shape[1],
                self._landmarks.ctypes.data, len(self._landmarks), SHARPNESS / N_STATISTICS,
                self._coefficients.ctypes.data, scores.shape[1], scores_of_one.ctypes.data,
            )  # fmt: skip
        members = scores[:, : 2 * self._n_members].reshape(-1, self._n_members, 2)
        return np.clip(members, -1, 1).astype(np.float64)


def _whole_vectors(rows: Float32) -> Float32:
    """With zeros up to a length that is a whole number of vectors."""
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, -rows.shape[1] % LANES))))
