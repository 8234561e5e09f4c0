"""Extremely randomised trees, 200 of them for each target.

References
----------
Geurts, P., Ernst, D. and Wehenkel, L. "Extremely randomized trees", Machine Learning 63, 2006.
"""

from __future__ import annotations

from sklearn.ensemble import ExtraTreesRegressor
from sklearn.multioutput import MultiOutputRegressor


def build(seed: int) -> MultiOutputRegressor:
    """See :mod:`mer_batch.baselines`."""
    # One thread: several add the trees up in any order, and the last bits differ. Trees of their
    # own for each target: a split that serves both serves valence less.
    trees = ExtraTreesRegressor(
        n_estimators=200, min_samples_leaf=3, max_features=0.3, random_state=seed
    )
    return MultiOutputRegressor(trees)
