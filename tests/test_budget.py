"""How many rejects a job may end with."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_batch.budget import Budget
from mer_batch.errors import ErrorBudgetExceeded


@pytest.mark.parametrize(
    ("rate", "n_tried", "n_allowed"),
    [
        (0, 10, 0),
        (1, 10, 10),
        (0.1, 1, 1),
        (0.1, 10, 1),
        (0.1, 11, 2),
        (0.1, 70, 7),
        (0.07, 100, 7),
    ],
)
def test_the_allowance_is_rounded_up_to_a_whole_track(
    rate: float, n_tried: int, n_allowed: int
) -> None:
    budget = Budget(0, 0, rate)
    assert budget.allows(n_allowed, n_tried)
    assert not budget.allows(n_allowed + 1, n_tried)


@given(st.integers(0, 10**8), st.integers(0, 10**6), st.decimals(0, 1, places=4))
def test_the_allowance_is_that_of_decimal_arithmetic(
    n_tried: int, n_before: int, rate: Decimal
) -> None:
    allowed = math.ceil((n_tried + n_before) * rate)
    budget = Budget(n_before, 0, float(rate))
    assert budget.allows(allowed, n_tried)
    assert not budget.allows(allowed + 1, n_tried)


def test_rejects_of_earlier_runs_count_too() -> None:
    budget = Budget(n_tried=90, n_rejected=9, max_reject_rate=0.1)
    assert budget.allows(1, 10)
    assert not budget.allows(2, 10)


def test_what_exceeds_it_is_named() -> None:
    budget = Budget(8, 1, 0.2, scope="tracks of the catalog", consequence="All is kept")
    budget.check(2, {"silent": 1})
    words = (
        r"3 of 10 tracks of the catalog were rejected, more than max_reject_rate=0.2 allows; this "
        r"run's rejects: 2 \(silent 2\). All is kept. Look"
    )
    with pytest.raises(ErrorBudgetExceeded, match=words):
        budget.check(2, {"silent": 2})
