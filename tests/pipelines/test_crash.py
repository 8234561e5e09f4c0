"""Kill -9 at exact steps, run again: every track exactly once, no half night ever to be seen.

``python -m tests.chaos`` does the same at hundreds of points.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator

import pytest

from mer_batch.schema import DOUBTFUL_REASONS
from tests.chaos.breakpoints import Breakpoints
from tests.chaos.crash import Point, crash, end, finish, pause, wait_for
from tests.chaos.world import World


@pytest.fixture(scope="module")
def one_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An output with its features and a night, though its first runs were killed."""
    world = World(tmp_path_factory.mktemp("crash") / "world", random.Random(1))
    with world.watched():
        assert crash(world, "tag", Point("table_made", "driver")) == -9
        assert crash(world, "extract", Point("report_taken", "driver", nth=2)) == -9
        finish(world, "extract")
        finish(world, "tag")
    return world


@pytest.fixture
def world(one_world: World) -> Iterator[World]:
    """The same output for all tests here: each goes on from where another one has come."""
    with one_world.watched():
        yield one_world
    one_world.check_between()


# ------------------------------------------------------------------ the driver


@pytest.mark.parametrize(
    "step",
    [
        "lease_taken", "run_marked", "fence_put", "part_to_write", "part_written",
        "rejects_committed", "parts_to_commit", "parts_committed", "night_part_written",
        "night_to_place", "night_placed", "traces_written",
    ],
)  # fmt: skip
def test_a_driver_killed_at_a_step(world: World, step: str) -> None:
    world.new_model()
    assert crash(world, "tag", Point(step, "driver")) == -9
    world.check_between()
    finish(world, "tag")


def test_drivers_killed_one_after_the_other(world: World) -> None:
    """Each goes on from what the one before has left, and clears it up."""
    for step in ("parts_to_commit", "part_to_sweep", "parts_swept", "night_to_place"):
        world.new_model()
        assert crash(world, "tag", Point(step, "driver")) == -9, step
        world.check_between()
    world.retitle()
    for step in ("night_swept", "mark_forgotten", "marker_written", "lease_released"):
        assert crash(world, "tag", Point(step, "driver")) == -9, step
        world.check_between()
    finish(world, "tag")


def test_drivers_killed_in_a_store(s3: object, one_world: World) -> None:
    folder = one_world.folder.parent / "store"
    uri = f"s3://{s3.bucket}/out"  # type: ignore[attr-defined]
    world = World(folder, random.Random(2), output_uri=uri, endpoint=s3.endpoint)  # type: ignore[attr-defined]
    with world.watched():
        for step in ("parts_to_commit", "marker_removed", "marker_to_write"):
            assert crash(world, "tag", Point(step, "driver")) == -9, step
            world.check_between()
        finish(world, "tag")
        world.retitle()
        assert crash(world, "tag", Point("night_part_written", "driver")) == -9
        finish(world, "tag")


def test_killed_at_moments_that_nobody_has_named(world: World) -> None:
    moments = random.Random(3)
    world.new_audio()
    for _ in range(2):
        driver = world.start("tag", {})
        time.sleep(moments.uniform(1, 8))
        end(driver)
        world.check_between()
    finish(world, "tag")


# ------------------------------------------------------------------ the fleet


def test_a_worker_killed_is_replaced_and_its_part_is_not_counted(world: World) -> None:
    world.new_audio()
    assert crash(world, "tag", Point("part_written", "worker")) == 0
    world.check_complete("tag")


def test_a_decoder_killed_costs_one_track_until_the_next_run(world: World) -> None:
    world.new_audio()
    assert crash(world, "tag", Point("track_given", "decoder")) == 0
    world.check_between()
    rejects = world.rows("rejects").to_pylist()
    crashed = [row for row in rejects if row["reason"] in DOUBTFUL_REASONS]
    assert [(row["reason"], row["attempts"]) for row in crashed] == [("decoder_crash", 1)]
    finish(world, "tag")


def test_a_raylet_killed_ends_the_run_in_words_and_the_next_one_goes_on(world: World) -> None:
    world.new_audio()
    assert crash(world, "tag", Point("part_to_write", "raylet", nth=2)) == 1
    assert "mer-batch: " in world.last_log()
    assert "Traceback" not in world.last_log()
    world.check_between()
    # Another victim in each of two processes, in one run.
    both = Point("block_begun", "worker"), Point("parts_to_commit", "driver")
    assert crash(world, "tag", *both) == -9
    world.check_between()
    finish(world, "tag")


def test_a_block_whose_workers_always_die_is_given_up(world: World) -> None:
    world.add_track("joyful")
    assert crash(world, "extract", Point("block_begun", "worker"), times=6) == 1
    assert "mer-batch: " in world.last_log()
    assert "Traceback" not in world.last_log()
    finish(world, "extract")
    finish(world, "tag")


# ------------------------------------------------------------------ the lease


@pytest.mark.parametrize(
    ("step", "until"),
    [("fence_put", "parts_to_commit"), ("parts_to_commit", None), ("marker_to_write", None)],
)
def test_a_holder_that_sleeps_past_its_lease_commits_nothing_more(
    world: World, step: str, until: str | None
) -> None:
    """Nor does it take for orphans what another run, that is at work, has not committed yet."""
    world.new_model()
    assert pause(world, "tag", step, until=until) == 4


def test_of_two_runs_at_once_one_works(world: World) -> None:
    world.new_model()
    with Breakpoints() as breakpoints:
        breakpoints.hold("lease_taken")
        first = world.start("tag", breakpoints.environment)
        try:
            held = wait_for(breakpoints, first)
            assert held is not None
            second = world.start("tag", {})
            assert second.wait(60) == 4
            assert f"process {first.pid}" in world.last_log()
            held.let_go()
            assert first.wait(120) == 0
        finally:
            end(first)
    world.check_complete("tag")


# ------------------------------------------------------------------ asked to stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_commits_what_is_finished(world: World, number: signal.Signals) -> None:
    before = len(world.rows("features"))
    for _ in range(3):
        world.new_audio()
    with Breakpoints() as breakpoints:
        breakpoints.hold("report_taken")
        driver = world.start("extract", breakpoints.environment)
        try:
            held = wait_for(breakpoints, driver)
            assert held is not None
            driver.send_signal(number)
            held.let_go()
            assert driver.wait(60) == 130
        finally:
            end(driver)
    world.check_between()
    stopped = len(world.rows("features"))
    finish(world, "extract")
    assert before < stopped < len(world.rows("features"))
