from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import r2_score, root_mean_squared_error

from mer_batch.metrics import bootstrap_interval, ccc, pearson, r2, rmse, spread


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(200, 2))


@pytest.fixture
def predictions(labels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(1).normal(size=labels.shape)
    return 0.6 * labels + [0.3, 1.0] * noise + [0.0, 0.5]


def test_r2_and_rmse_equal_scikit_learn(labels: np.ndarray, predictions: np.ndarray) -> None:
    np.testing.assert_allclose(
        r2(labels, predictions), r2_score(labels, predictions, multioutput="raw_values")
    )
    np.testing.assert_allclose(
        rmse(labels, predictions),
        root_mean_squared_error(labels, predictions, multioutput="raw_values"),
    )


def test_pearson_equals_numpy(labels: np.ndarray, predictions: np.ndarray) -> None:
    expected = [np.corrcoef(labels[:, i], predictions[:, i])[0, 1] for i in range(2)]
    np.testing.assert_allclose(pearson(labels, predictions), expected)


def test_known_answers(labels: np.ndarray) -> None:
    mean = np.broadcast_to(labels.mean(axis=0), labels.shape)
    np.testing.assert_allclose(r2(labels, labels), 1)
    np.testing.assert_allclose(r2(labels, mean), 0, atol=1e-12)
    np.testing.assert_allclose(pearson(labels, 5 - 2 * labels), -1)
    np.testing.assert_allclose(rmse(labels, labels + np.array([3, -4])), [3, 4])


def test_what_is_not_defined_is_nan(labels: np.ndarray) -> None:
    constant = np.full_like(labels, 0.5)
    assert np.isnan(r2(constant, labels)).all()
    assert np.isnan(pearson(labels, constant)).all()


def test_concordance_punishes_offset_and_scale_that_correlation_forgives() -> None:
    labels = np.random.default_rng(4).normal(size=(50, 1))
    assert ccc(labels, labels) == pytest.approx([1])
    mean, variance = labels.mean(), labels.var()
    # Worked out by hand from Lin's definition.
    assert ccc(labels, labels + 0.5) == pytest.approx([2 * variance / (2 * variance + 0.25)])
    halved = mean + 0.5 * (labels - mean)
    assert ccc(labels, halved) == pytest.approx([0.8])
    assert pearson(labels, halved) == pytest.approx([1])
    assert ccc(labels, -labels + 2 * mean) == pytest.approx([-1])


def test_spread_is_how_far_predictions_reach_beside_labels() -> None:
    labels = np.random.default_rng(5).normal(size=(50, 1))
    assert spread(labels, 3 + 0.25 * labels) == pytest.approx([0.25])
    assert np.isnan(spread(np.ones((50, 1)), labels)).all()


def test_shapes_that_would_broadcast_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be equal"):
        r2(labels, labels[:1])
    with pytest.raises(ValueError, match="must be equal"):
        r2(labels[:, 0], labels[:, 0])


def test_interval_of_independent_clips_follows_theory() -> None:
    # The mean of n values with unit variance is known to 1.96 / sqrt(n) either way.
    values = np.random.default_rng(2).normal(size=(400, 1))
    groups = np.arange(400).astype(str)
    low, high = bootstrap_interval(
        lambda y, p: y.mean(axis=0), values, values, groups, seed=0, n_draws=2000
    )
    assert (high - low)[0] == pytest.approx(2 * 1.96 / np.sqrt(400), rel=0.1)


def test_interval_knows_that_clips_of_a_group_are_alike() -> None:
    # Forty groups of ten equal values are forty values' worth of evidence, not four hundred.
    values = np.random.default_rng(3).normal(size=(40, 1)).repeat(10, axis=0)
    groups = np.arange(40).repeat(10).astype(str)
    low, high = bootstrap_interval(
        lambda y, p: y.mean(axis=0), values, values, groups, seed=0, n_draws=2000
    )
    assert (high - low)[0] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(40), rel=0.15)
