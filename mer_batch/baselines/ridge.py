"""Ridge regression; its penalty is chosen by leaving training clips out, for each target."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


def build(seed: int) -> Pipeline:
    """See :mod:`mer_batch.baselines`."""
    ridge = RidgeCV(alphas=np.logspace(-1, 4, 16), alpha_per_target=True)
    return make_pipeline(StandardScaler(), ridge)
