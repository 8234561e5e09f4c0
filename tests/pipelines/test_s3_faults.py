"""Whole runs against a store that misbehaves: a proxy before the S3 server, real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest
import yaml

from mer_batch.cli import run_command
from mer_batch.config import StorageConfig
from mer_batch.ledger import Ledger
from mer_batch.storage import Location, Storage, parse_uri
from tests.faulty_store import FaultyStore

Run = Callable[..., Any]

_SECRETS = ("test-key-id", "test-secret-word", "test-session-token")


@pytest.fixture
def config(s3: Any, faulty: FaultyStore, short_mp3s: dict[str, bytes], tmp_path: Path) -> Path:
    """Twelve tracks and the output in S3, all of it behind the proxy."""
    for mood, content in short_mp3s.items():
        for number in range(3):
            s3.put_object(Bucket=s3.bucket, Key=f"music/{mood}-{number}.mp3", Body=content)
    content = {
        "catalog": {"uri": f"s3://{s3.bucket}/music"},
        "output": {"uri": f"s3://{s3.bucket}/out"},
        "storage": {"endpoint_url": faulty.endpoint, "region": "us-east-1"},
        "ray": {"num_cpus": 2},
        "run_date": "2026-11-22",
    }
    path = tmp_path / "tag.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


class Truth:
    """What really lies in the store, seen past the proxy."""

    def __init__(self, s3: Any) -> None:
        self.storage = Storage(StorageConfig(endpoint_url=s3.endpoint))
        self.output = parse_uri(f"s3://{s3.bucket}/out")

    def check(self, n_tracks: int) -> None:
        """Every track once, in scores and in the published night, and nothing left lying about."""
        ledger = Ledger(self.storage, self.output, pa.string())
        ids = [
            track_id
            for rows in ledger._stream("scores", ["track_id"], None)
            for track_id in rows["track_id"].to_pylist()
        ]
        assert len(ids) == len(set(ids)) == n_tracks
        night = self.output.child("enriched", "run_date=2026-11-22")
        names = {found.path.rpartition("/")[2] for found in self.files("enriched")}
        marker = json.loads(self.storage.read(night.child("_SUCCESS")))
        assert names == {"_SUCCESS", *(part["name"] for part in marker["parts"])}
        parts = [night.child(part["name"]).fs_path for part in marker["parts"]]
        rows = pads.dataset(parts, filesystem=self.storage.filesystem(night)).to_table()
        assert set(rows["tag_status"].to_pylist()) == {"scored"}
        assert sorted(rows["track_id"].to_pylist()) == sorted(ids)
        named = {part.path for part in ledger._parts("scores")}
        written = {f.path for f in self.files("scores") if "/_delta_log/" not in f.path}
        assert written == named, "no part that the table does not name"
        assert self.files("runs/_open") == []

    def files(self, folder: str) -> list[Location]:
        return [found for found, _, _ in self.storage.list_files(self.output.child(folder))]

    def traces(self) -> str:
        """All that runs have written of themselves."""
        return "\n".join(self.storage.read(found).decode() for found in self.files("runs"))


@pytest.fixture
def truth(s3: Any) -> Truth:
    return Truth(s3)


def assert_no_secret(*texts: str) -> None:
    for secret in _SECRETS:
        assert not any(secret in text for text in texts), secret


# ------------------------------------------------------------------ faults that pass


def test_passing_faults_cost_retries_and_nothing_else(
    config: Path, faulty: FaultyStore, truth: Truth, run_cli: Run
) -> None:
    for fault in ("reset", "lose_answer", "cut", "cut_quietly"):
        faulty.add(fault, share=0.02)
    faulty.add("InternalError", share=0.02)
    faulty.add("SlowDown", share=0.15)
    faulty.add("SlowDown", above=40)
    faulty.add("delay", seconds=0.02)
    faulty.add("stale", seconds=1.0)
    first = run_cli("tag", config)
    assert first.returncode == 0, first.stderr
    truth.check(12)
    again = run_cli("tag", config)
    assert again.returncode == 0, again.stderr
    assert "12 already scored, 0 already rejected, 0 to do" in again.stdout
    truth.check(12)
    assert faulty.suffered["SlowDown"] >= 20
    assert faulty.suffered["stale"] >= 10
    assert len(faulty.suffered) == 8, faulty.suffered
    assert_no_secret(first.stdout, first.stderr, truth.traces())


def test_credentials_that_expire_on_the_way_are_told_and_nothing_is_lost_or_doubled(
    s3: Any,
    config: Path,
    faulty: FaultyStore,
    truth: Truth,
    run_cli: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "test-session-token")
    # Half of the night goes well; then neither audio nor commits are let through.
    faulty.add("ExpiredToken", key="music/(joyful|tense)")
    faulty.add("ExpiredToken", methods="PUT", key="out/rejects/_delta_log/0+[2-9].json")
    expired = run_cli("tag", config, "max_reject_rate=1")
    assert expired.returncode == 1, expired.stderr
    assert "ExpiredToken; the credentials have expired: renew them" in expired.stderr
    assert "Traceback" not in expired.stderr
    assert_no_secret(expired.stdout, expired.stderr, truth.traces())
    faulty.clear()
    mended = run_cli("tag", config)
    assert mended.returncode == 0, mended.stderr
    truth.check(12)


def test_audio_that_is_gone_for_a_moment_is_tried_again_by_the_next_run(
    config: Path, faulty: FaultyStore, truth: Truth, run_cli: Run
) -> None:
    faulty.add("NoSuchKey", methods="GET", key="music/(calm-0|sad-1).mp3")
    first = run_cli("tag", config, "max_reject_rate=1")
    assert first.returncode == 0, first.stderr
    assert "not_found  2" in first.stdout
    faulty.clear()
    again = run_cli("tag", config)
    assert "10 already scored, 0 already rejected, 2 to do" in again.stdout
    assert again.returncode == 0, again.stderr
    truth.check(12)


# ------------------------------------------------------------------ faults that last


@pytest.mark.parametrize("name", ["AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"])
def test_a_credential_with_a_newline_is_named_and_not_shown(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    # As out of a file that ends with one.
    monkeypatch.setenv(name, "WORDOFSECRET\n")
    assert run_command(["tag", str(config)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert f"{name}, or what the profile or role gives for it, holds white space" in said.err
    assert_no_secret(said.out, said.err)
    assert "WORDOFSECRET" not in said.err + said.out


def test_a_bucket_that_is_not_there_is_told_with_a_track_that_names_it(
    s3: Any, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = f"a,s3://{s3.bucket}/music/calm-0.mp3\nb,s3://no-such-bucket/b.mp3\n"
    (tmp_path / "catalog.csv").write_text("track_id,audio_uri\n" + rows)
    assert run_command(["tag", str(config), f"catalog.uri={tmp_path / 'catalog.csv'}"]) == 2
    said = capsys.readouterr().err
    assert "1 of the catalog's URIs lie there, one of them 's3://no-such-bucket/b.mp3'" in said


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([{"fault": "ExpiredToken"}], ["/music", "ExpiredToken", "renew them"]),
        ([{"fault": "InvalidAccessKeyId"}], ["/music", "does not know them"]),
        ([{"fault": "SignatureDoesNotMatch"}], ["/music", "AWS_SECRET_ACCESS_KEY"]),
        ([{"fault": "NoSuchBucket"}], ["/music", "make the bucket"]),
        ([{"fault": "AuthorizationHeaderMalformed"}], ["/music", "storage.region"]),
        ([{"fault": "SlowDown"}], ["/music", "SlowDown", "try again later"]),
        ([{"fault": "html"}], ["/music", "not S3's", "check the endpoint"]),
        ([{"fault": "reset"}], ["/music", "check the endpoint and the network"]),
        ([{"fault": "redirect"}], ["/music", "307 (to 'http://", "sends requests elsewhere"]),
        ([{"fault": "no_etag", "methods": "PUT"}], ["/out", "not S3's", "check the endpoint"]),
        (
            [{"fault": "NotImplemented", "methods": "PUT", "conditional": True}],
            ["/out", "no conditional writes", "it answers NotImplemented"],
        ),
        (
            [{"fault": "PreconditionFailed", "methods": "PUT", "conditional": True}],
            ["/out", "no conditional writes", "it refuses what it should take"],
        ),
        (
            [{"fault": "unconditional", "methods": "PUT"}],
            ["/out", "no conditional writes", "it takes no heed of them"],
        ),
        ([{"fault": "AccessDenied", "methods": "PUT", "key": "/out"}], ["/out/", "AccessDenied"]),
        ([{"fault": "AccessDenied", "key": "/out"}], ["/out/", "credentials", "allow this here"]),
        ([{"fault": "AccessDenied", "methods": "DELETE"}], ["/out/", "allow this here"]),
        (
            [{"fault": "AccessDenied", "methods": "PUT", "key": "/out/enriched"}],
            ["/out/enriched", "AccessDenied"],
        ),
    ],
)
def test_a_lasting_fault_ends_the_run_before_any_work(
    s3: Any,
    config: Path,
    faulty: FaultyStore,
    truth: Truth,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rules: list[dict[str, Any]],
    words: list[str],
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "test-session-token")
    for rule in rules:
        faulty.add(**rule)
    assert run_command(["tag", str(config), "storage.patience_seconds=2"]) == 2
    said = capsys.readouterr()
    for word in (f"s3://{s3.bucket}", *words):
        assert word in said.err
    assert said.err.count("\n") == 1
    assert not any(path.path.endswith(".parquet") for path in truth.files(""))
    assert_no_secret(said.out, said.err, truth.traces())


@pytest.mark.parametrize(
    "override", ["catalog.uri", "output.uri", "model.uri", "storage.endpoint_url"]
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(
    config: Path, truth: Truth, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    scheme = "http" if "endpoint" in override else "s3"
    secret = "wJalrXUtnFEMI/K7MDENG+EXAMPLEKEY"
    uri = f"{scheme}://AKIAEXAMPLE:{secret}@bucket/x"
    assert run_command(["tag", str(config), f"{override}={uri}"]) == 2
    said = capsys.readouterr()
    assert f"{override}='{scheme}://***@bucket/x': must not hold credentials" in said.err
    assert not any(word in said.err + said.out for word in ("AKIA", "wJalr", "K7MD"))
    assert truth.files("") == []


def test_credentials_in_a_catalogs_uris_are_refused_and_not_repeated(
    config: Path, tmp_path: Path, truth: Truth, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "a,s3://bucket/a.mp3\nb,s3://AKIAEXAMPLE:wJalr/K7MDENG@bucket/b.mp3\n"
    (tmp_path / "catalog.csv").write_text("track_id,audio_uri\n" + rows)
    assert run_command(["tag", str(config), f"catalog.uri={tmp_path / 'catalog.csv'}"]) == 2
    said = capsys.readouterr().err
    assert "1 URIs with credentials in them, the first at track_id 'b'" in said
    assert not any(word in said for word in ("AKIA", "wJalr", "K7MD"))
    assert truth.files("") == []


# ------------------------------------------------------------------ two runs, one output


class Started:
    """Runs of the command line that go on beside the test; ended with it."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []

    def __call__(self, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mer_batch", *map(str, arguments)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
def start() -> Iterator[Started]:
    started = Started()
    yield started
    started.close()


def test_of_runs_that_race_for_an_output_one_works(
    config: Path,
    faulty: FaultyStore,
    truth: Truth,
    run_cli: Run,
    start: Started,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_cli("tag", config).returncode == 0
    # Whoever holds the output takes its time, so that the others come upon it.
    faulty.add("delay", key="_delta_log", seconds=0.5)
    for number in range(2):
        racers = [start("tag", config) for _ in range(3)]
        ends = [(racer.communicate(timeout=120), racer.returncode) for racer in racers]
        codes = sorted(code for _, code in ends)
        assert codes == [0, 4, 4], (number, ends)
        for (_, told), code in ends:
            assert code == 0 or "lease" in told
    # A holder on another machine has died: its lease is waited for, and taken when it has expired.
    faulty.clear()
    plant_lease(truth, expires_at=time.time() + 600)
    assert run_command(["tag", str(config)]) == 4
    assert "run planted on elsewhere" in capsys.readouterr().err
    plant_lease(truth, expires_at=time.time() - 1)
    assert run_command(["tag", str(config)]) == 0
    truth.check(12)


def plant_lease(truth: Truth, *, expires_at: float) -> None:
    holder = {
        "run_id": "planted", "generation": 2**40, "host": "elsewhere", "machine": "another",
        "pid": 1, "process_started": 0.0, "expires_at": expires_at,
    }  # fmt: skip
    lease = truth.output.child("runs", "_lease.json")
    truth.storage.write(lease, json.dumps(holder).encode())


# After the two listings: one worker reads while the other may still start, or both are at work.
@pytest.mark.parametrize("n_requests", [3, 6])
def test_a_holder_that_slept_past_its_lease_commits_nothing_more(
    config: Path, faulty: FaultyStore, truth: Truth, run_cli: Run, start: Started, n_requests: int
) -> None:
    slow = faulty.add("delay", methods="GET", key="music/", seconds=1.0)
    sleeper = start("tag", config, "output.lease_seconds=3")
    wait_for(lambda: slow.n_suffered >= n_requests, sleeper)
    # The driver alone sleeps, as in a container that is frozen.
    os.kill(sleeper.pid, signal.SIGSTOP)
    try:
        faulty.clear()
        wait_for_expiry(truth)
        taker = run_cli("tag", config)
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
    assert taker.returncode == 0, taker.stderr
    _, told = sleeper.communicate(timeout=120)
    assert sleeper.returncode == 4, told
    assert "nothing more is" in told
    assert "Traceback" not in told
    again = run_cli("tag", config)
    assert again.returncode == 0, again.stderr
    truth.check(12)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a process brings about; two minutes are for ever."""
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def wait_for_expiry(truth: Truth) -> None:
    lease = truth.output.child("runs", "_lease.json")
    while json.loads(truth.storage.read(lease))["expires_at"] > time.time():
        time.sleep(0.1)
