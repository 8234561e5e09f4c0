"""How many rejects a job may end with."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_batch.budget import Budget, Night
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
    budget = Budget(n_tried, rate)
    assert budget.allows(n_allowed)
    assert not budget.allows(n_allowed + 1)


@given(st.integers(0, 10**8), st.integers(0, 10**6), st.decimals(0, 1, places=4))
def test_the_allowance_is_that_of_decimal_arithmetic(
    n_tried: int, n_before: int, rate: Decimal
) -> None:
    allowed = math.ceil((n_tried + n_before) * rate)
    budget = Budget(n_before + n_tried, float(rate), n_before)
    assert budget.allows(allowed)
    assert not budget.allows(allowed + 1)


def test_rejects_of_earlier_runs_count_too() -> None:
    budget = Budget(100, 0.1, 90, {"silent": 8, "empty": 1})
    assert budget.allows(1)
    assert not budget.allows(2)


def test_what_exceeds_it_is_named() -> None:
    budget = Budget(
        10, 0.2, 4, {"silent": 1}, scope="tracks of the catalog", consequence="All is kept"
    )
    budget.check(2, {"silent": 1})
    words = (
        "3 of 10 tracks of the catalog were rejected, more than max_reject_rate=0.2 allows; this "
        "run's rejects: 2 (silent 1, timeout 1). Of 7 tracks tried so far: silent 28.6%, timeout "
        "14.3%. All is kept. Look"
    )
    with pytest.raises(ErrorBudgetExceeded, match=re.escape(words)):
        budget.check(1, {"silent": 1, "timeout": 1})


MARKER: dict[str, Any] = {
    "run_id": "20261121T010000Z-a1b2c3",
    "run_date": "2026-11-21",
    "published_at": "2026-11-21T02:00:00.000000+00:00",
    "content_id": "c",
    "n_scored": 960,
    "n_rejected": {"silent": 30, "not_found": 8, "timeout": 2},
}


def test_reasons_that_grew_since_the_last_night_are_named_the_most_grown_first() -> None:
    budget = Budget(100, 0.1, 14, {"storage_error": 2}, since=Night.of(MARKER))
    rejects = {"timeout": 19, "not_found": 4, "silent": 1}
    words = (
        "Grew since the night of 2026-11-21: timeout 47.5% of tracks tried (0.2% then), not_found "
        "10.0% of tracks tried (0.8% then), storage_error 5.0% of tracks tried (0.0% then). What "
    )
    with pytest.raises(ErrorBudgetExceeded, match=re.escape(words)):
        budget.check(2, rejects)
    standing = budget.standing(2, rejects)
    assert (standing["since"], standing["n_tried"], standing["n_rejected"]) == (
        "2026-11-21",
        40,
        26,
    )
    assert list(standing["reasons"]) == ["timeout", "not_found", "storage_error", "silent"]
    assert standing["reasons"]["silent"] == {"n_rejected": 1, "share": 0.025, "share_then": 0.03}


def test_rejects_of_the_last_night_do_not_count_again() -> None:
    budget = Budget(0, 0.1, since=Night.of(MARKER))
    ours = "20261123T010000Z-0a0b0c"
    assert not budget.counts("20261120T010000Z-ffffff", run_id=ours)
    assert not budget.counts(MARKER["run_id"], run_id=ours)
    assert budget.counts("20261122T010000Z-000000", run_id=ours)
    assert Budget(0, 0.1).counts(MARKER["run_id"], run_id=ours), "before the first night all count"
    assert budget.standing(5, {})["n_tried"] == 0


def test_what_this_run_finds_counts_after_a_night_of_a_clock_that_was_ahead() -> None:
    since = Night.of({**MARKER, "run_id": "20271121T010000Z-a1b2c3"})
    ours = "20261122T010000Z-0a0b0c"
    assert Budget(10, 0.1, since=since).counts(ours, run_id=ours)
