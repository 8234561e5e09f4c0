"""Extremely randomised trees, 300 of them.

References
----------
Geurts, P., Ernst, D. and Wehenkel, L. "Extremely randomized trees", Machine Learning 63, 2006.
"""

from __future__ import annotations

from sklearn.ensemble import ExtraTreesRegressor


def build(seed: int) -> ExtraTreesRegressor:
    """See :mod:`mer_batch.baselines`."""
    # One thread: several add the trees up in any order, and the last bits differ.
    return ExtraTreesRegressor(
        n_estimators=300, min_samples_leaf=3, max_features=0.3, random_state=seed
    )
