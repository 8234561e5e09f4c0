"""``python -m tests.fuzz.soak [--decodes N]``: one child decodes and scores without end.

The child is never started again. Memory of the parent and of the child is read while they work;
it ends with 1 where either has grown by 5 % or more since it was warm.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import psutil

from mer_batch.checkpoint import builtin_checkpoint
from mer_batch.child import Child
from mer_batch.compose import MOODS, compose
from mer_batch.errors import AudioError
from mer_batch.limits import ChildLimits
from mer_batch.task import GivenTrack, ScoreTask
from tests.fuzz.mutants import mutants
from tests.sounds import mp3

MAX_GROWTH = 0.05
WARM_AFTER = 0.04  # of the decodes
N_LOOKS = 25


def tracks(n: int, *, broken_every: int = 10) -> Iterator[GivenTrack]:
    """Short pieces in turn; every tenth is a mutant, as errors leave things behind as well."""
    whole = [mp3(compose(mood, 3, seconds=1.1)) for mood in MOODS]
    broken = [content for _, content in mutants(whole, 0, 200)]
    for number in range(n):
        pool = broken if number % broken_every == broken_every - 1 else whole
        yield GivenTrack(pool[number // broken_every % len(pool)])


def soak(n: int) -> int:
    """Decode `n` tracks in one child; returns the exit status."""
    checkpoint = builtin_checkpoint()
    child = Child(ScoreTask(checkpoint.card_json, checkpoint.weights), ChildLimits())
    child.start()
    assert child._process is not None
    processes = {"parent": psutil.Process(), "child": psutil.Process(child._process.pid)}
    looks: list[dict[str, int]] = []
    began, n_scored = time.monotonic(), 0
    print("decodes    parent     child  [MB]")
    for number, outcome in enumerate(child.outcomes(tracks(n)), start=1):
        n_scored += not isinstance(outcome, AudioError)
        if number == int(WARM_AFTER * n) or number % max(1, n // N_LOOKS) == 0:
            looks.append({name: p.memory_info().rss for name, p in processes.items()})
            held = "  ".join(f"{looks[-1][name] / 1e6:8.1f}" for name in processes)
            print(f"{number:7,}  {held}", flush=True)
    seconds = time.monotonic() - began
    is_same_child = child._process is not None and child._process.pid == processes["child"].pid
    child.close()
    print(f"{n:,} decodes, {n_scored:,} scored, {n / seconds:.0f} a second")
    growth = {name: max(look[name] for look in looks) / looks[0][name] - 1 for name in processes}
    for name, grown in growth.items():
        print(f"{name}: {100 * grown:+.2f} % since it was warm; allowed are {100 * MAX_GROWTH:g} %")
    print("the same child to the end" if is_same_child else "FAULT: the child was started again")
    return int(not is_same_child or n_scored < n / 2 or max(growth.values()) >= MAX_GROWTH)


def main() -> int:
    """Soak."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.soak", description=__doc__)
    parser.add_argument("--decodes", type=int, default=50_000)
    return soak(parser.parse_args().decodes)


if __name__ == "__main__":
    sys.exit(main())
