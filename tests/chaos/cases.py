"""What is tried: who dies at which step of what kind of run."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import Literal

from mer_batch.steps import STEPS
from tests.chaos.crash import Point, Victim
from tests.chaos.world import Command

Place = Literal["disk", "store"]
#: What a run has to do: publish only, score from features, decode and score, decode and keep,
#: merge small parts, decode and have a pool score.
Kind = Literal["publish", "rescore", "decode", "extract", "compact", "pool"]

_STORE_ONLY = {"marker_removed", "beside_to_clear", "night_to_sweep"}
_DISK_ONLY = {"night_to_place", "night_placed", "night_cleared", "file_to_place"}
# What must be brought about.
_SPECIAL = {"lease_lost", "part_to_sweep", "table_made"}
_WORKERS = (
    "block_begun", "track_given", "track_done", "part_to_write", "part_written", "block_done",
)  # fmt: skip
_RESCORING = ("rescore_begun", "track_done", "part_to_write", "part_written", "block_done")
_COMMITTING = (
    "report_taken", "rejects_to_commit", "rejects_committed", "parts_to_commit", "parts_committed",
)  # fmt: skip
_COMPACTING = (
    "merged_part_written", "parts_to_replace", "parts_replaced", "log_summed_up",
    "unused_to_delete", "unused_deleted",
)  # fmt: skip
_POOLED = "batch_to_score"
_TWICE = {"fence_to_put", "fence_put", "file_to_place"}
_ON_A_FLEET: tuple[Kind, ...] = ("decode", "extract")
_FLEET_VICTIMS: tuple[Victim, ...] = ("worker", "decoder", "raylet", "driver")


@dataclass(frozen=True)
class Case:
    """A crash in a run that has something to do of a kind; `points` follow on one another."""

    kind: Kind
    points: tuple[Point, ...]

    @property
    def command(self) -> Command:
        return self.kind if self.kind == "extract" or self.kind == "compact" else "tag"


def cases(place: Place, rng: random.Random) -> list[Case]:
    """Every case for a place."""
    absent = (_DISK_ONLY if place == "store" else _STORE_ONLY) | _SPECIAL
    work = {*_WORKERS, *_RESCORING, *_COMMITTING, *_COMPACTING, _POOLED}
    around = [step for step in STEPS if step not in work | absent]
    found: list[Case] = []

    def add(kind: Kind, *points: Point) -> None:
        found.append(Case(kind, points))

    def add_on_a_fleet(*points: Point) -> None:
        add(rng.choice(_ON_A_FLEET), *points)

    for step in around:
        nth = rng.randint(1, 6 if step == "file_to_place" else 2) if step in _TWICE else 1
        add("rescore", Point(step, "driver", nth))
        if step not in ("lease_renewed", "file_to_place"):
            add("publish", Point(step, "driver"))
        if step != "lease_renewed":
            add("publish" if rng.random() < 0.5 else "rescore", Point(step, "holder"))
    for step in (*_RESCORING, *_COMMITTING, "part_to_sweep", "lease_lost"):
        add("rescore", Point(step, "driver"))
    for step in (*_COMMITTING[1:], "rescore_begun", "part_written"):
        add("rescore", Point(step, "holder"))
    for step, victim in product(_WORKERS, _FLEET_VICTIMS):
        if (step, victim) != ("block_begun", "decoder"):  # it is not there yet
            add_on_a_fleet(Point(step, victim, rng.randint(1, 3)))
    for step in _COMMITTING:
        add_on_a_fleet(Point(step, "driver"))
        if rng.random() < 0.5:
            add_on_a_fleet(Point(step, "raylet"))
    for victim in ("worker", "driver", "raylet", "decoder"):
        add("pool", Point(_POOLED, victim, rng.randint(1, 2)))
    for step in ("part_to_write", "part_written"):
        add("pool", Point(step, "worker"))
    for step in _COMPACTING:
        of_each_table = step not in _COMPACTING[:3]
        add("compact", Point(step, "driver", rng.randint(1, 3) if of_each_table else 1))
        add("compact", Point(step, "holder"))
    # Two processes in a row, in one run.
    add_on_a_fleet(Point(rng.choice(_WORKERS), "worker"), Point("parts_to_commit", "driver"))
    add_on_a_fleet(Point(rng.choice(_WORKERS[1:]), "decoder"), Point("rejects_committed", "driver"))
    return found


def chosen(n_points: int, seed: int) -> dict[Place, dict[Kind, list[Case]]]:
    """As many cases as asked for: one for every step and victim first, then more of the same."""
    shuffled: list[tuple[Place, Case]] = []
    for number in range(1 + n_points // 50):
        rng = random.Random(f"{seed}-{number}")
        places: tuple[Place, Place] = ("disk", "store")
        one_round = [(place, case) for place in places for case in cases(place, rng)]
        rng.shuffle(one_round)
        shuffled += one_round
    ranked: list[tuple[int, Place, Case]] = []
    tried: Counter[Point] = Counter()
    for place, case in shuffled:
        last = Point(case.points[-1].step, case.points[-1].victim)
        ranked.append((tried[last], place, case))
        tried[last] += 1
    picked: dict[Place, dict[Kind, list[Case]]] = {"disk": {}, "store": {}}
    for _, place, case in sorted(ranked, key=lambda entry: entry[0]):
        if n_points > 0:
            picked[place].setdefault(case.kind, []).append(case)
            n_points -= len(case.points)
    return picked
