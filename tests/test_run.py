"""A run's traces, and signals that arrive at the wrong moment."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
import yaml

from mer_batch.config import TagConfig, parse_config
from mer_batch.errors import (
    ErrorBudgetExceeded,
    Interrupted,
    LeaseError,
    MerBatchError,
    StorageError,
)
from mer_batch.run import Run, StopSignals, iso_now
from mer_batch.storage import Location, Storage

pytestmark = pytest.mark.usefixtures("terminal_signals")

Place = tuple[Storage, Location]

CONFIG = parse_config(
    TagConfig,
    {"catalog": {"uri": "Björk"}, "output": {"uri": "o"}, "run_date": "2026-11-22"},
    origin="test",
)


def open_run(place: Place) -> Run:
    return Run(*place, CONFIG, lease_seconds=60)


def read_json(place: Place, *names: str) -> dict[str, Any]:
    return dict(json.loads(place[0].read(place[1].child(*names))))


def test_a_run_that_ends_well_leaves_its_traces(place: Place) -> None:
    storage, output = place
    with open_run(place) as run:
        assert storage.exists(output.child("runs", "_open", run.run_id))
        run.manifest["n_pending"] = 7
        run.say("seven tracks, one by Björk")
        with pytest.raises(LeaseError), open_run(place):
            pass
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{6}", run.run_id)
    manifest = read_json(place, "runs", run.run_id, "manifest.json")
    assert (manifest["state"], manifest["exit_code"], manifest["error"]) == ("complete", 0, None)
    assert (manifest["run_id"], manifest["n_pending"]) == (run.run_id, 7)
    assert manifest["started_at"] <= manifest["finished_at"]
    log = storage.read(output.child("runs", run.run_id, "log")).decode()
    assert "seven tracks, one by Björk\n" in log
    kept = yaml.safe_load(storage.read(output.child("runs", run.run_id, "config.yaml")))
    assert parse_config(TagConfig, kept, origin="kept") == CONFIG
    assert not storage.exists(output.child("runs", "_open", run.run_id))
    assert read_json(place, "runs", "_lease.json")["released"]


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (ErrorBudgetExceeded("too many"), 3, "ErrorBudgetExceeded: too many"),
        (Interrupted("stopped by SIGTERM"), 130, "Interrupted: stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "Interrupted: stopped by a signal"),
        (ZeroDivisionError("a bug"), 1, "ZeroDivisionError: a bug"),
    ],
)
def test_a_run_that_stops_says_why_and_keeps_its_mark(
    place: Place, error: BaseException, exit_code: int, message: str
) -> None:
    with pytest.raises(type(error)), open_run(place) as run:
        run.manifest["n_scored"] = 3
        raise error
    manifest = read_json(place, "runs", run.run_id, "manifest.json")
    assert (manifest["state"], manifest["exit_code"]) == ("stopped", exit_code)
    assert (manifest["error"], manifest["n_scored"]) == (message, 3)
    assert message in place[0].read(place[1].child("runs", run.run_id, "log")).decode()
    assert read_json(place, "runs", "_lease.json")["released"]
    with open_run(place) as later:
        assert later.cut_short() == [run.run_id]
        later.forget(run.run_id)
        assert later.cut_short() == []


def test_a_run_that_may_leave_parts_is_looked_after_by_the_next(place: Place) -> None:
    with open_run(place) as run:
        run.may_leave_parts = True
    assert read_json(place, "runs", run.run_id, "manifest.json")["state"] == "complete"
    with open_run(place) as later:
        assert later.cut_short() == [run.run_id]


def test_a_run_that_lost_its_lease_is_looked_after_once_more(place: Place) -> None:
    storage, output = place
    with pytest.raises(LeaseError), open_run(place) as sleeper:
        # As if it had released the lease: another one takes it, and has swept already.
        lease = read_json(place, "runs", "_lease.json")
        content = json.dumps({**lease, "released": True}).encode()
        storage.write(output.child("runs", "_lease.json"), content)
        with open_run(place) as taker:
            assert taker.cut_short() == [sleeper.run_id]
            taker.forget(sleeper.run_id)
        # Its workers have gone on meanwhile, and end with it: one may have just written a part.
        sleeper.lease.confirm()
    with open_run(place) as later:
        assert later.cut_short() == [sleeper.run_id]


def test_runs_that_were_cut_short_are_found_in_their_order(place: Place) -> None:
    storage, output = place
    names = ["20260102T000000Z-bbbbbb", "20260101T000000Z-aaaaaa"]
    for name in [*names, ".hidden", "_other"]:
        storage.write(output.child("runs", "_open", name), b"")
    with open_run(place) as run:
        assert run.cut_short() == sorted(names)


def test_an_output_that_fails_gives_the_lease_back_and_hides_no_error(place: Place) -> None:
    storage, output = place

    class Failing(Storage):
        fails = ""

        def write(self, location: Location, content: bytes) -> None:
            if self.fails and self.fails in location.path:
                raise StorageError("the disk is full")
            super().write(location, content)

    failing = Failing(storage._config)
    failing.fails = "config.yaml"
    with pytest.raises(StorageError, match="full"), open_run((failing, output)):
        raise AssertionError("the run must not begin")
    failing.fails = ""
    # An error of the work is told, not that its traces could not be written.
    with pytest.raises(ZeroDivisionError), open_run((failing, output)):
        failing.fails = "manifest.json"
        raise ZeroDivisionError
    failing.fails = ""
    # Work that went well is not done while its manifest is missing.
    with (
        pytest.raises(MerBatchError, match=r"work is done.*full") as caught,
        open_run((failing, output)),
    ):
        failing.fails = "manifest.json"
    assert caught.value.exit_code == 1, "it was not refused before work"
    open_run(place).__enter__().lease.release()


def test_moments_sort_as_text() -> None:
    earlier, later = iso_now(), iso_now()
    assert earlier <= later
    assert len(earlier) == len("2026-11-22T00:00:00.000000+00:00")


# ------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_becomes_interrupted_and_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(Interrupted, match=f"stopped by {number.name}"), StopSignals():
        os.kill(os.getpid(), number)
        raise AssertionError("the signal must stop this")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_deferred_signal_waits_for_the_end_of_its_stretch() -> None:
    steps = []
    with pytest.raises(Interrupted, match="SIGTERM"), StopSignals() as signals:
        with signals.deferred():
            with signals.deferred():
                os.kill(os.getpid(), signal.SIGTERM)
                steps.append("inner")
            signals.check()
            steps.append("outer")
        steps.append("never")
    assert steps == ["inner", "outer"]


def test_an_error_in_a_deferred_stretch_is_the_error_that_counts() -> None:
    with pytest.raises(ZeroDivisionError), StopSignals() as signals, signals.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        raise ZeroDivisionError


def test_a_second_signal_does_not_disturb_the_cleaning_up() -> None:
    cleaned = False
    with pytest.raises(Interrupted, match="stopped by"), StopSignals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            cleaned = True
    assert cleaned


def test_handlers_that_a_library_replaced_are_put_back_in_place() -> None:
    with pytest.raises(Interrupted, match="SIGTERM"), StopSignals() as signals:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signals.install()
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_IGN


def test_a_graceful_stretch_ends_when_it_looks() -> None:
    steps = []
    with pytest.raises(Interrupted, match="SIGTERM"), StopSignals() as signals:
        with signals.graceful(600):
            assert not signals.was_asked
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append("still at work")
            assert signals.was_asked
            signals.stop()
        steps.append("never")
    assert steps == ["still at work"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_second_signal_ends_a_graceful_stretch_at_once() -> None:
    with (
        pytest.raises(Interrupted, match="SIGINT"),
        StopSignals() as signals,
        signals.graceful(600),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second signal must stop this")


def test_a_graceful_stretch_that_takes_too_long_is_ended() -> None:
    with (
        pytest.raises(Interrupted, match="SIGTERM"),
        StopSignals() as signals,
        signals.graceful(0.01),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            signal.pause()


def test_without_a_signal_nothing_happens() -> None:
    with StopSignals() as signals:
        signals.check()
        with signals.deferred():
            pass


def test_a_thread_other_than_the_main_one_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    inside = []

    def use() -> None:
        with StopSignals() as signals:
            inside.append(signal.getsignal(signal.SIGINT))
            with signals.deferred():
                pass

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert inside == [before]


_WORK = """
import sys, time
from mer_batch.errors import MerBatchError
from mer_batch.run import StopSignals
try:
    with StopSignals() as signals:
        with signals.deferred():
            print("committing", flush=True)
            time.sleep(1)
            print("committed", flush=True)
        print("not reached", flush=True)
except MerBatchError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_stopped_while_it_commits_finishes_the_commit(
    number: signal.Signals,
) -> None:
    command = [sys.executable, "-c", _WORK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "committing\n"
        process.send_signal(number)
        rest = process.stdout.read()
    assert rest == f"committed\nstopped by {number.name}; finished work is committed\n"
    assert process.returncode == 130
