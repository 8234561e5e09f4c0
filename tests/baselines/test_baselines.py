"""The same promises, held by every baseline in the folder."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
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


def test_band_statistics_are_those_of_scipy() -> None:
    log_mel = np.random.default_rng(1).gamma(2.0, 10.0, size=(3, 5, 40))
    found = band_statistics(torch.from_numpy(log_mel)).numpy()
    expected = [
        log_mel.mean(axis=2),
        log_mel.std(axis=2),
        scipy.stats.skew(log_mel, axis=2),
        np.diff(log_mel, axis=2).std(axis=2),
    ]
    assert found == pytest.approx(np.concatenate(expected, axis=1), rel=1e-5)


def test_a_band_that_never_changes_has_finite_statistics() -> None:
    for n_frames in (1, 10):
        assert torch.isfinite(band_statistics(torch.full((1, 4, n_frames), -100.0))).all()
