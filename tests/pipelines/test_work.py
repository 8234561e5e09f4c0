"""What a run's work takes of the machine."""

from __future__ import annotations

import os

import pytest

from mer_batch.pipelines.work import _n_cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors cannot be bound here")
def test_only_the_processors_that_are_ours_count() -> None:
    ours = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(ours)})
        assert _n_cpus() == 1
    finally:
        os.sched_setaffinity(0, ours)
    assert _n_cpus() == len(ours)
