"""The mutators, and a handful of mutants through a real child."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mer_batch import schema
from mer_batch.checkpoint import builtin_checkpoint
from mer_batch.child import Child
from mer_batch.errors import AudioError
from mer_batch.limits import ChildLimits
from mer_batch.task import GivenTrack, ScoreTask
from tests.fuzz.mutants import MUTATORS, made_up_seeds, mutant, mutants, read_back

SEEDS = made_up_seeds()


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    checkpoint = builtin_checkpoint()
    child = Child(
        ScoreTask(checkpoint.card_json, checkpoint.weights), ChildLimits(timeout_seconds=20)
    )
    yield child
    child.close()


def test_the_seeds_are_whole(child: Child) -> None:
    outcomes = list(child.outcomes(GivenTrack(seed) for seed in SEEDS))
    for seed, outcome in zip(SEEDS, outcomes, strict=True):
        assert not isinstance(outcome, AudioError), outcome
        assert outcome["duration_seconds"] == pytest.approx(read_back(seed), abs=0.15)


def test_a_mutant_is_known_by_its_number() -> None:
    assert [mutant(SEEDS, n) for n in range(50)] == [mutant(SEEDS, n) for n in range(50)]
    used = {name for n in range(300) for name in mutant(SEEDS, n)[1].split("+")}
    assert used == {mutate.__name__ for mutate in MUTATORS}
    contents = [content for _, content in mutants(SEEDS, 0, 300)]
    assert len(set(contents)) > 250
    assert len(set(contents) & set(SEEDS)) < 60, "most differ from what they were made of"


@given(st.integers(0, 2**40))
@settings(max_examples=120, deadline=None)
def test_every_mutant_is_a_score_or_a_reason(child: Child, number: int) -> None:
    content, _ = mutant(SEEDS, number)
    (outcome,) = child.outcomes([GivenTrack(content)])
    if isinstance(outcome, AudioError):
        assert outcome.reason in schema.REASONS.keys() - {"timeout", "decoder_crash"}
    else:
        assert all(-1 <= outcome[target] <= 1 for target in schema.TARGETS)
        assert math.isfinite(outcome["duration_seconds"])
        assert outcome["duration_seconds"] >= 1
