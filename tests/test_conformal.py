"""Intervals against what they promise, on residuals of known distribution."""

from __future__ import annotations

import numpy as np
import pytest

from mer_batch.conformal import half_widths, measured_coverage


def test_the_half_width_is_the_quantile_with_its_small_sample_correction() -> None:
    # ceil(11 * 0.9) = 10: the largest of ten.
    residuals = np.column_stack([np.arange(1, 11), -np.arange(1, 11) / 10])
    assert half_widths(residuals).tolist() == [10, 1]
    # ceil(20 * 0.9) = 18 of 19.
    assert half_widths(np.arange(1.0, 20)[:, None]).tolist() == [18]


def test_too_few_residuals_promise_nothing() -> None:
    assert np.isinf(half_widths(np.ones((8, 2)))).all()


@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform"])
def test_unseen_residuals_are_covered_whatever_their_distribution(draw: str) -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        seen, unseen = getattr(rng, draw)(size=(50, 1)), getattr(rng, draw)(size=(50, 1))
        covered.append((np.abs(unseen) <= half_widths(seen)).mean())
    # The promise is at least 0.9 and at most 0.9 + 1 / 51.
    assert np.mean(covered) == pytest.approx(0.91, abs=0.012)


def test_coverage_is_measured_on_folds_that_were_not_calibrated_on() -> None:
    residuals = np.random.default_rng(0).normal(size=(1000, 2))
    fold_of = np.arange(1000) % 5
    assert measured_coverage(residuals, fold_of) == pytest.approx([0.9, 0.9], abs=0.02)
    # A fold with errors ten times as large is not covered by what the others promise.
    residuals[fold_of == 0] *= 10
    assert (measured_coverage(residuals, fold_of) < 0.87).all()


def test_one_fold_has_nothing_to_be_measured_with() -> None:
    assert np.isnan(measured_coverage(np.ones((20, 2)), np.zeros(20, np.int64))).all()
