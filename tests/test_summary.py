"""What a person reads at the end of a run."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from mer_batch.outcome import SCORE_FIELDS, Outcome
from mer_batch.pipelines.tagging import TagSummary
from mer_batch.schema import Identity
from mer_batch.summary import print_tag_summary


@pytest.mark.parametrize(
    ("n_rejected", "said"),
    [
        # They stay what they are until the audio or the limits change, or are tried again anyway.
        ({"not_audio": 9, "silent": 1, "storage_error": 1}, "(a Delta table)"),
        (
            {"not_audio": 9, "timeout": 2, "memory_limit": 1},
            "(a Delta table; to try again: mer-batch replay CONFIG reason=timeout,memory_limit)",
        ),
    ],
)
def test_a_replay_is_named_only_where_it_may_help(n_rejected: dict[str, int], said: str) -> None:
    scores = pa.schema(SCORE_FIELDS).empty_table()
    nothing = np.zeros(0, np.int32), np.zeros(0, np.uint8)
    outcome = Outcome(Identity("f", "m", "e"), scores, *nothing, ("",), 3, n_rejected)
    summary = TagSummary("run", 14, 14, 0, outcome, "out/night", "out/rejects", True, 1.0, 1.0)
    shown = io.StringIO()
    print_tag_summary(Console(file=shown, soft_wrap=True, markup=False), summary)
    assert f"out/rejects  {said}\n" in shown.getvalue()
