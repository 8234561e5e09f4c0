"""Always the mean of the training clips: R^2 is zero at best."""

from __future__ import annotations

from sklearn.dummy import DummyRegressor


def build(seed: int) -> DummyRegressor:
    """See :mod:`mer_batch.baselines`."""
    return DummyRegressor(strategy="mean")
