"""Kill -9 at exact steps, run again: every track exactly once, no half night ever to be seen.

``python -m tests.chaos`` does the same at hundreds of points.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from mer_batch.schema import DOUBTFUL_REASONS
from tests.chaos.breakpoints import Breakpoints
from tests.chaos.crash import Point, crash, end, finish, pause, wait_for
from tests.chaos.world import BROKEN, Command, World

pytestmark = pytest.mark.usefixtures("terminal_signals")


@pytest.fixture(scope="module")
def one_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An output with features and a night, though its first run was killed."""
    world = World(tmp_path_factory.mktemp("crash") / "world", random.Random(1))
    with world.watched():
        assert crash(world, "tag", Point("table_made", "driver")) == -9
        finish(world, "extract")
        finish(world, "tag")
    return world


@pytest.fixture
def world(one_world: World) -> Iterator[World]:
    """The same output for all tests here: each goes on from where another one has come."""
    with one_world.watched():
        yield one_world
    one_world.check_between()


def new_scores(world: World) -> None:
    """Have everything scored again, from features: without a fleet."""
    if not world.has_features:
        finish(world, "extract")
    world.new_model()


# ------------------------------------------------------------------ the driver


@pytest.mark.parametrize(
    "steps",
    [
        ["lease_taken", "part_to_write", "parts_to_commit", "part_to_sweep"],
        ["run_marked", "part_written", "rejects_committed", "night_part_written"],
        ["fence_put", "parts_committed", "night_to_place", "night_swept"],
        ["marker_written", "mark_forgotten", "night_placed", "traces_written"],
    ],
)
def test_drivers_killed_one_after_the_other(world: World, steps: list[str]) -> None:
    """Each goes on from what the one before has left, and clears it up."""
    for step in steps:
        new_scores(world)
        assert crash(world, "tag", Point(step, "driver")) == -9, step
        world.check_between()
    finish(world, "tag")


def test_drivers_killed_at_moments_that_nobody_has_named(world: World) -> None:
    moments = random.Random(3)
    new_scores(world)
    for _ in range(2):
        driver = world.start("tag", {})
        time.sleep(moments.uniform(0.5, 3))
        end(driver)
        world.check_between()
    finish(world, "tag")


def test_drivers_killed_in_a_store(s3: Any, one_world: World) -> None:
    folder, uri = one_world.folder.parent / "store", f"s3://{s3.bucket}/out"
    world = World(folder, random.Random(2), output_uri=uri, endpoint=s3.endpoint)
    with world.watched():
        finish(world, "tag")
        world.retitle()
        for step in ("marker_removed", "night_part_written", "marker_written"):
            assert crash(world, "tag", Point(step, "driver")) == -9, step
            world.check_between()
        finish(world, "tag")
        world.retitle()
        assert crash(world, "tag", Point("marker_removed", "driver")) == -9
        world.run_date = "2026-11-23"
        finish(world, "tag")
        assert "a run with run_date=2026-11-22 publishes it again" in world.last_log()
        for step in ("beside_to_clear", "marker_to_write"):
            world.retitle()
            assert pause(world, "tag", step, until="marker_to_write") == 4


# ------------------------------------------------------------------ the lease


@pytest.mark.parametrize(
    ("step", "until"), [("fence_put", "parts_to_commit"), ("marker_to_write", None)]
)
def test_a_holder_that_sleeps_past_its_lease_commits_nothing_more(
    world: World, step: str, until: str | None
) -> None:
    """Nor does it take for orphans what another run, that is at work, has not committed yet."""
    new_scores(world)
    assert pause(world, "tag", step, until=until) == 4


def test_of_two_runs_at_once_one_works(world: World) -> None:
    world.retitle()
    with Breakpoints() as breakpoints:
        breakpoints.hold("lease_taken")
        first = world.start("tag", breakpoints.environment)
        try:
            held = wait_for(breakpoints, first)
            assert held is not None
            second = world.start("tag", {})
            assert second.wait(120) == 4
            assert f"process {first.pid}" in world.last_log()
            held.let_go()
            assert first.wait(120) == 0
        finally:
            end(first)
    world.check_complete("tag")


# ------------------------------------------------------------------ merging small parts


def some_parts(world: World) -> None:
    """Have tables of more than one part."""
    for _ in range(2):
        new_scores(world)
        finish(world, "tag")


def test_killed_while_it_merges_it_loses_and_doubles_nothing(world: World) -> None:
    """Neither what it has written nor what it has replaced is in anybody's way."""
    some_parts(world)
    rows = world.rows("scores")
    for step in ("merged_part_written", "parts_to_replace"):
        assert crash(world, "compact", Point(step, "driver")) == -9, step
        world.check_between()
    finish(world, "tag")
    world.check_complete("tag")
    for step in ("parts_replaced", "log_summed_up", "unused_to_delete", "unused_deleted"):
        assert crash(world, "compact", Point(step, "driver")) == -9, step
        world.check_between()
        new_scores(world)
        finish(world, "tag")
    finish(world, "compact")
    left = world.rows("scores").join(rows, rows.schema.names, join_type="inner")
    assert len(left) == len(rows)
    world.retitle()
    finish(world, "tag")


@pytest.mark.parametrize("step", ["merged_part_written", "unused_to_delete"])
def test_who_sleeps_while_it_merges_changes_nothing_more(world: World, step: str) -> None:
    some_parts(world)
    assert pause(world, "compact", step) == 4


def test_asked_to_stop_while_it_merges_it_stops(world: World) -> None:
    some_parts(world)
    stopped_by(world, signal.SIGTERM, "compact", "merged_part_written")
    finish(world, "compact")


# ------------------------------------------------------------------ asked to stop


def test_asked_to_stop_it_commits_what_is_finished(world: World) -> None:
    """In the driver; what came back before is committed, and nothing is published."""
    new_scores(world)
    before = len(world.rows("scores"))
    assert stopped_by(world, signal.SIGINT)["publish_to_begin"] == 0
    assert len(world.rows("scores")) > before
    finish(world, "tag")


def stopped_by(
    world: World, number: signal.Signals, command: Command = "tag", step: str = "report_taken"
) -> Counter[str]:
    """Send a run a signal at a step, by default with the first report; the steps it came to."""
    with Breakpoints() as breakpoints:
        breakpoints.hold(step)
        driver = world.start(command, breakpoints.environment)
        try:
            held = wait_for(breakpoints, driver)
            assert held is not None
            driver.send_signal(number)
            held.let_go()
            assert driver.wait(120) == 130
        finally:
            end(driver)
    world.check_between()
    return breakpoints.seen


# ------------------------------------------------------------------ the fleet


def test_a_block_whose_workers_always_die_is_given_up(world: World) -> None:
    finish(world, "tag")
    world.add_track("joyful")
    assert crash(world, "tag", Point("block_begun", "worker"), times=6) == 1
    assert "mer-batch: " in world.last_log()
    assert "Traceback" not in world.last_log()


def test_a_worker_is_replaced_and_a_decoder_costs_one_track(world: World, long_mp3: bytes) -> None:
    world.new_audio()
    music = {path: path.read_bytes() for path in (world.folder / "music").iterdir()}
    for path in music:
        if world.tracks[path.stem] not in BROKEN:
            path.write_bytes(long_mp3 * 40)  # or it would be decoded before its decoder is killed
    both = Point("part_written", "worker"), Point("track_given", "decoder")
    assert crash(world, "tag", *both) == 0
    for path, content in music.items():
        path.write_bytes(content)
    world.check_between()
    rejects = world.rows("rejects").to_pylist()
    crashed = [row for row in rejects if row["reason"] in DOUBTFUL_REASONS]
    assert [(row["reason"], row["attempts"]) for row in crashed] == [("decoder_crash", 1)]


def test_a_raylet_killed_ends_the_run_in_words_if_at_all(world: World) -> None:
    world.new_audio()
    code = crash(world, "tag", Point("part_to_write", "raylet", nth=2))
    # Its workers live on for a while, and may do all there is to do.
    assert code == 0 or (code == 1 and "mer-batch: " in world.last_log()), world.last_log()
    assert "Traceback" not in world.last_log()
    finish(world, "tag")


def test_a_driver_takes_its_fleet_along_and_the_next_run_does_all(world: World) -> None:
    world.new_audio()
    assert crash(world, "tag", Point("parts_to_commit", "driver")) == -9
    world.check_between()
    finish(world, "tag")


def test_asked_to_stop_a_fleet_finishes_what_it_has_in_hand(world: World) -> None:
    finish(world, "tag")
    for _ in range(3):
        world.new_audio()
    before = len(world.rows("scores"))
    assert stopped_by(world, signal.SIGTERM)["publish_to_begin"] == 0
    stopped = len(world.rows("scores"))
    finish(world, "tag")
    assert before < stopped < len(world.rows("scores"))
