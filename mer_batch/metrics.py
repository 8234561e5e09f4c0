"""How good scores are: each metric column by column, in numpy alone.

Every function takes labels and predictions of shape ``(n_clips, n_targets)`` and returns shape
``(n_targets,)``. None may be pooled over data sets: scales differ, and knowing which set a clip
comes from would count as skill.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def r2(labels: Float64, predictions: Float64) -> Float64:
    """Coefficient of determination: 1 is perfect, 0 as good as always guessing the mean.

    ``1 - sum((y - p)^2) / sum((y - mean(y))^2)``; NaN where all labels are equal.
    """
    _check_shapes(labels, predictions)
    residual = ((labels - predictions) ** 2).sum(axis=0)
    total = ((labels - labels.mean(axis=0)) ** 2).sum(axis=0)
    return _divide(total - residual, total)


def pearson(labels: Float64, predictions: Float64) -> Float64:
    """Linear correlation; blind to offset and scale. NaN where one side is constant."""
    _check_shapes(labels, predictions)
    y, p = labels - labels.mean(axis=0), predictions - predictions.mean(axis=0)
    return _divide((y * p).sum(axis=0), np.sqrt((y**2).sum(axis=0) * (p**2).sum(axis=0)))


def ccc(labels: Float64, predictions: Float64) -> Float64:
    """Concordance correlation: 1 only where predictions equal labels, not merely follow them.

    ``2 cov(y, p) / (var(y) + var(p) + (mean(y) - mean(p))^2)``; NaN where both are constant.

    References
    ----------
    Lin, L. "A Concordance Correlation Coefficient to Evaluate Reproducibility", Biometrics 45,
    1989.
    """
    _check_shapes(labels, predictions)
    y_mean, p_mean = labels.mean(axis=0), predictions.mean(axis=0)
    covariance = ((labels - y_mean) * (predictions - p_mean)).mean(axis=0)
    spread = labels.var(axis=0) + predictions.var(axis=0) + (y_mean - p_mean) ** 2
    return _divide(2 * covariance, spread)


def spread(labels: Float64, predictions: Float64) -> Float64:
    """Deviation of the predictions as a share of the labels'; NaN where all labels are equal."""
    _check_shapes(labels, predictions)
    return _divide(predictions.std(axis=0), labels.std(axis=0))


def rmse(labels: Float64, predictions: Float64) -> Float64:
    """Root mean square error, in the unit of the labels."""
    _check_shapes(labels, predictions)
    result: Float64 = np.sqrt(((labels - predictions) ** 2).mean(axis=0))
    return result


def bootstrap_interval(
    metric: Callable[[Float64, Float64], Float64],
    labels: Float64,
    predictions: Float64,
    groups: npt.NDArray[np.str_],
    *,
    seed: int,
    n_draws: int = 1000,
) -> tuple[Float64, Float64]:
    """95 % interval of a metric over which groups of clips happened to be measured.

    Groups are drawn, not clips: two clips of an album are less than two clips' worth of evidence.

    Returns
    -------
    low, high : float64, shape (n_targets,)
        The 2.5th and 97.5th percentile over `n_draws` draws with replacement.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == name) for name in np.unique(groups)]
    values = []
    for _ in range(n_draws):
        drawn = rng.integers(len(members), size=len(members))
        rows = np.concatenate([members[index] for index in drawn])
        values.append(metric(labels[rows], predictions[rows]))
    low, high = np.nanpercentile(np.stack(values), [2.5, 97.5], axis=0)
    return low, high


def _divide(numerator: Float64, denominator: Float64) -> Float64:
    undefined = np.full_like(numerator, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)


def _check_shapes(labels: Float64, predictions: Float64) -> None:
    if labels.shape != predictions.shape or labels.ndim != 2:
        raise ValueError(
            f"labels.shape={labels.shape} and predictions.shape={predictions.shape} must be equal, "
            f"(n_clips, n_targets)"
        )
