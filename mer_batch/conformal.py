"""Intervals that hold what they promise: split-conformal prediction.

Residuals of clips that the model has not seen tell how far it may be off. The promise holds on
average over music like that which it was calibrated on, and for no other.

References
----------
Vovk, V., Gammerman, A. and Shafer, G. "Algorithmic Learning in a Random World", 2005.
Lei, J. et al. "Distribution-Free Predictive Inference for Regression", JASA 113, 2018.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

LEVEL = 0.9


def half_widths(residuals: Float64, *, level: float = LEVEL) -> Float64:
    """How far either way an interval must reach.

    Parameters
    ----------
    residuals : float64, shape (n_clips, n_targets)
        Label minus score, out of fold.
    level : float
        Share of unseen clips that the interval is to cover.

    Returns
    -------
    float64, shape (n_targets,)
        The ``ceil((n + 1) * level)``-th smallest absolute residual; infinite where there are too
        few to promise anything.
    """
    n = len(residuals)
    rank = math.ceil((n + 1) * level)
    if rank > n:
        return np.full(residuals.shape[1], np.inf)
    widths: Float64 = np.sort(np.abs(residuals), axis=0)[rank - 1]
    return widths


def measured_coverage(residuals: Float64, fold_of: Int64, *, level: float = LEVEL) -> Float64:
    """Share of clips that intervals cover which were calibrated on the other folds.

    Parameters
    ----------
    residuals : float64, shape (n_clips, n_targets)
        Out of fold.
    fold_of : int64, shape (n_clips,)

    Returns
    -------
    float64, shape (n_targets,)
        NaN where there is one fold only, and nothing to calibrate on.
    """
    numbers = np.unique(fold_of)
    if len(numbers) < 2:
        return np.full(residuals.shape[1], np.nan)
    is_covered = np.empty(residuals.shape, bool)
    for number in numbers:
        here = fold_of == number
        is_covered[here] = np.abs(residuals[here]) <= half_widths(residuals[~here], level=level)
    coverage: Float64 = is_covered.mean(axis=0)
    return coverage
