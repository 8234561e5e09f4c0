"""The same promises, held by every baseline in the folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mer_batch.baselines import band_statistics, baseline_names, build_baseline
from mer_batch.errors import ConfigError
from mer_batch.metrics import r2

rng = np.random.default_rng(0)
INPUTS = rng.normal(size=(400, 20))
LABELS = np.tanh(INPUTS[:, :2] + 0.1 * rng.normal(size=(400, 2)))


@pytest.mark.parametrize("name", baseline_names())
def test_learns_a_planted_rule_unless_it_only_knows_the_mean(name: str) -> None:
    estimator = build_baseline(name, seed=0).fit(INPUTS[:300], LABELS[:300])
    predicted = estimator.predict(INPUTS[300:])
    assert predicted.shape == (100, 2)
    skill = r2(LABELS[300:], predicted)
    if name == "mean":
        assert predicted == pytest.approx(np.tile(LABELS[:300].mean(axis=0), (100, 1)))
        assert (skill <= 0).all()
    else:
        assert (skill > 0.6).all()


@pytest.mark.parametrize("name", baseline_names())
def test_the_seed_decides_alone(name: str) -> None:
    first, again = (
        build_baseline(name, seed=1).fit(INPUTS, LABELS).predict(INPUTS) for _ in range(2)
    )
    assert (first == again).all()


def test_an_unknown_baseline_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"baseline='rigde'.*did you mean 'ridge'"):
        build_baseline("rigde", seed=0)


def test_band_statistics_are_mean_and_deviation_of_each_band() -> None:
    log_mel = torch.tensor([[[1.0, 3.0], [5.0, 5.0]]])
    assert band_statistics(log_mel).tolist() == [[2, 5, 1, 0]]
