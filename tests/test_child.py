"""The killable child: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mer_batch.audio.decode import AudioLimits
from mer_batch.child import Child, ChildStartError, _checked, _receive
from mer_batch.compose import compose, encode_mp3
from mer_batch.config import AudioConfig
from mer_batch.errors import AudioError
from mer_batch.feature_sets import feature_set
from mer_batch.limits import ChildLimits
from mer_batch.task import ExtractTask, GivenTrack, ScoreTask
from tests.escape import EscapeTask, EscapingChild
from tests.sounds import mp3, wav, without_tag
from tests.test_checkpoint import save


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> ScoreTask:
    folder = save(tmp_path_factory.mktemp("checkpoint"))
    names = ("card.json", "weights.safetensors")
    return ScoreTask(*((folder / name).read_bytes() for name in names))


@pytest.fixture(scope="module")
def endless_mp3(long_mp3: bytes) -> bytes:
    """Audio that takes some seconds to decode: time to send a signal."""
    return without_tag(long_mp3) * 110


@pytest.fixture
def child(checkpoint: ScoreTask) -> Iterator[Child]:
    child = Child(checkpoint, ChildLimits(timeout_seconds=60))
    yield child
    child.close()


@pytest.fixture
def boundless(checkpoint: ScoreTask) -> Iterator[Child]:
    """A child under the largest limits that a configuration may name."""
    numbers = AudioConfig.model_json_schema()["properties"]
    config = AudioConfig(
        **{name: key["maximum"] for name, key in numbers.items() if "maximum" in key}
    )
    child = Child(checkpoint, config.limits())
    yield child
    child.close()


def score_of(child: Child, audio: bytes) -> dict[str, Any]:
    outcome: dict[str, Any] = child.outcome(GivenTrack(audio))
    return outcome


def pid_of(child: Child) -> int:
    assert child._process is not None
    return child._process.pid


def signal_soon(child: Child, number: int, *, seconds: float = 0.4) -> None:
    pid = pid_of(child)
    threading.Timer(seconds, os.kill, (pid, number)).start()


def reason_of(child: Child, audio: bytes) -> str:
    with pytest.raises(AudioError) as caught:
        score_of(child, audio)
    return caught.value.reason


def test_a_child_killed_between_two_tracks_costs_none(child: Child, long_mp3: bytes) -> None:
    first = score_of(child, long_mp3)
    os.kill(pid_of(child), signal.SIGKILL)
    os.waitid(os.P_PID, pid_of(child), os.WEXITED | os.WNOWAIT)
    assert score_of(child, long_mp3) == first


def test_scores_tracks_and_keeps_its_process(child: Child, short_mp3s: dict[str, bytes]) -> None:
    scores = [score_of(child, audio) for audio in short_mp3s.values()]
    pid = pid_of(child)
    assert scores == [score_of(child, audio) for audio in short_mp3s.values()]
    assert pid_of(child) == pid
    for score in scores:
        assert -1 <= score["valence"] <= 1
        assert -1 <= score["arousal"] <= 1
        assert score["n_segments"] == 1
        assert score["duration_seconds"] == pytest.approx(3.0, abs=0.1)
        assert score["valence_std"] is None, "one segment and one member have no spread"


def test_the_largest_limits_are_no_obstacle(boundless: Child, long_mp3: bytes) -> None:
    assert reason_of(boundless, long_mp3) == "too_short"


def test_several_segments_have_a_spread(child: Child, long_mp3: bytes) -> None:
    score = score_of(child, without_tag(long_mp3) * 3)
    assert score["n_segments"] == 3
    assert score["valence_std"] >= 0


def test_a_bad_track_is_a_reject_and_the_next_one_is_scored(
    child: Child, short_mp3s: dict[str, bytes]
) -> None:
    assert reason_of(child, b"no audio") == "not_audio"
    pid = pid_of(child)
    score_of(child, short_mp3s["sad"])
    assert pid_of(child) == pid


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_crash_costs_one_track(
    child: Child, number: signal.Signals, endless_mp3: bytes, short_mp3s: dict[str, bytes]
) -> None:
    before = score_of(child, short_mp3s["calm"])
    signal_soon(child, number)
    with pytest.raises(AudioError, match=number.name) as caught:
        score_of(child, endless_mp3)
    assert caught.value.reason == "decoder_crash"
    assert score_of(child, short_mp3s["calm"]) == before


def test_the_tracks_around_a_crash_are_scored(
    child: Child, endless_mp3: bytes, short_mp3s: dict[str, bytes]
) -> None:
    """The track behind was handed over to the child that died: it is handed over again."""
    good = short_mp3s["calm"]
    expected = score_of(child, good)
    signal_soon(child, signal.SIGSEGV)
    tracks = [good, endless_mp3, good, b"no audio", good]
    outcomes = list(child.outcomes(GivenTrack(audio) for audio in tracks))
    reasons = [outcome.reason if isinstance(outcome, AudioError) else None for outcome in outcomes]
    assert reasons == [None, "decoder_crash", None, "not_audio", None]
    assert outcomes[0] == outcomes[2] == outcomes[4] == expected


def test_a_hang_costs_one_track(
    checkpoint: ScoreTask, endless_mp3: bytes, short_mp3s: dict[str, bytes]
) -> None:
    child = Child(checkpoint, ChildLimits(timeout_seconds=3))
    try:
        before = score_of(child, short_mp3s["calm"])
        pid = pid_of(child)
        os.kill(pid, signal.SIGSTOP)  # hangs before it even reads the track
        assert reason_of(child, endless_mp3) == "timeout"
        assert not psutil.pid_exists(pid)
        assert score_of(child, short_mp3s["calm"]) == before
        signal_soon(child, signal.SIGSTOP)  # hangs in the middle of decoding
        assert reason_of(child, endless_mp3) == "timeout"
        assert score_of(child, short_mp3s["calm"]) == before
    finally:
        child.close()


def test_memory_is_limited(checkpoint: ScoreTask, short_mp3s: dict[str, bytes]) -> None:
    child = Child(checkpoint, ChildLimits(memory_bytes=2_000_000))
    try:
        assert reason_of(child, short_mp3s["calm"] + bytes(50_000_000)) == "memory_limit"
    finally:
        child.close()


def test_a_claim_of_hours_takes_no_memory(checkpoint: ScoreTask) -> None:
    """Twelve hours of samples would be 8 GB; the child may take 50 MB."""
    music = compose("calm", 1, seconds=3)
    info, flac = mp3(music), wav(music, kind="FLAC", subtype="PCM_16")
    pcm = wav(music, subtype="PCM_16")
    lies = {
        info: (b"Info", 8, (1_728_210).to_bytes(4, "big")),
        flac: (b"fLaC", 22, (2**31).to_bytes(4, "big")),
        pcm: (b"data", 4, (2**30).to_bytes(4, "little")),
    }
    child = Child(checkpoint, ChildLimits(memory_bytes=50_000_000))
    try:
        for whole, (name, offset, claim) in lies.items():
            assert score_of(child, whole)["n_segments"] == 1
            at = whole.index(name) + offset
            assert reason_of(child, whole[:at] + claim + whole[at + 4 :]) == "truncated"
    finally:
        child.close()


def test_limits_reach_the_child(checkpoint: ScoreTask, short_mp3s: dict[str, bytes]) -> None:
    child = Child(checkpoint, ChildLimits(AudioLimits(min_seconds=10)))
    try:
        assert reason_of(child, short_mp3s["calm"]) == "too_short"
    finally:
        child.close()


SECRETS = {
    "AWS_ACCESS_KEY_ID": "a-secret-word-1",
    "AWS_SECRET_ACCESS_KEY": "a-secret-word-2",
    "AWS_SESSION_TOKEN": "a-secret-word-3",
    "RAY_AUTH_TOKEN": "a-secret-word-4",
    "HTTPS_PROXY": "http://user:a-secret-word-5@proxy",
    "DATABASE_PASSWORD": "a-secret-word-6",
}


def test_the_child_inherits_no_secret(
    child: Child, short_mp3s: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    score_of(child, short_mp3s["calm"])
    environment = psutil.Process(pid_of(child)).environ()
    assert set(environment) <= {
        "PATH", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS", "LC_CTYPE",
    }  # fmt: skip
    assert "a-secret-word" not in str(environment)


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a means that only Linux has")


@on_linux
def test_a_decoder_that_was_taken_over_cannot_get_out(tmp_path: Path) -> None:
    """Everything that it tries works while the child is set up, and nothing once it decodes."""
    for name in ("secret", "victim"):
        (tmp_path / name).write_text(name)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = EscapingChild(
            EscapeTask(str(tmp_path), listener.getsockname()[1]),  # type: ignore[arg-type]
            ChildLimits(timeout_seconds=60),
        )
        try:
            tried = child.outcome(GivenTrack(b"now"))
        finally:
            child.close()
    assert child.is_confined
    blocked_here = {"open an asynchronous ring"}  # containers often forbid it to everybody
    assert {name for name, error in tried["before"].items() if error} <= blocked_here
    assert len(tried["now"]) >= 17
    assert set(tried["now"].values()) == {"PermissionError"}
    assert set(tried["needed"].values()) == {None}


@on_linux
def test_every_thread_of_the_child_is_confined(child: Child, short_mp3s: dict[str, bytes]) -> None:
    score_of(child, short_mp3s["calm"])
    assert child.is_confined
    threads = list(Path(f"/proc/{pid_of(child)}/task").glob("*/status"))
    assert len(threads) >= 2, "one watches the parent"
    for status in threads:
        assert "\nSeccomp:\t2\n" in status.read_text()
        assert "\nNoNewPrivs:\t1\n" in status.read_text()


@on_linux
def test_the_childs_limits(child: Child, short_mp3s: dict[str, bytes]) -> None:
    score_of(child, short_mp3s["calm"])
    process = psutil.Process(pid_of(child))
    assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert process.rlimit(psutil.RLIMIT_NOFILE) == (64, 64)
    assert process.rlimit(psutil.RLIMIT_FSIZE) == (65_536, 65_536)
    (soft, hard) = process.rlimit(psutil.RLIMIT_AS)
    assert soft == hard < process.memory_info().vms + 2 * ChildLimits().memory_bytes


def test_a_child_outlives_the_thread_that_started_it(
    child: Child, short_mp3s: dict[str, bytes]
) -> None:
    thread = threading.Thread(target=child.start)
    thread.start()
    thread.join()
    pid = pid_of(child)
    score_of(child, short_mp3s["calm"])
    assert pid_of(child) == pid


def test_the_decoders_warnings_stay_out_of_our_output(
    child: Child, short_mp3s: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    audio = short_mp3s["calm"]
    damaged = audio[:8000] + bytes(3000) + audio[11_000:]
    try:
        score_of(child, damaged)
    except AudioError as error:
        assert "\0" not in error.message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("state", ["decoding", pytest.param("stopped", marks=on_linux), "waiting"])
def test_the_child_dies_with_its_parent(tmp_path: Path, checkpoint: ScoreTask, state: str) -> None:
    (tmp_path / "card").write_bytes(checkpoint.card_json)
    (tmp_path / "weights").write_bytes(checkpoint.weights)
    (tmp_path / "long.mp3").write_bytes(
        without_tag(encode_mp3(compose("calm", 1, seconds=30))) * 100
    )
    program = (
        "import sys, time, pathlib\n"
        "from mer_batch.child import Child, ChildLimits\n"
        "from mer_batch.task import GivenTrack, ScoreTask\n"
        "card, weights, audio = (pathlib.Path(p).read_bytes() for p in sys.argv[2:])\n"
        "child = Child(ScoreTask(card, weights), ChildLimits())\n"
        "child.start(); print(child._process.pid, flush=True)\n"
        "time.sleep(60) if sys.argv[1] == 'waiting' else child.outcome(GivenTrack(audio))\n"
    )
    names = [str(tmp_path / name) for name in ("card", "weights", "long.mp3")]
    parent = subprocess.Popen(
        [sys.executable, "-c", program, state, *names], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.3)  # in the middle of decoding
    if state == "stopped":
        os.kill(pid, signal.SIGSTOP)
    assert parent.poll() is None
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail("the child outlived its parent by 10 s")


@pytest.mark.parametrize(
    "reply",
    [
        b"", b"[]", b"nonsense", b'{"valence": 1}', b'{"reason": "because", "message": "x"}',
        b'{"reason": "silent", "message": 1}', b"\xff", b"[" * 60_000, b'{"n_segments":' * 4_000,
        b'{"reason": [], "message": "x"}',
        b'{"valence": [], "arousal": 0, "valence_std": null, "arousal_std": null, '
        b'"n_segments": 1, "duration_seconds": 1}',
    ],
)  # fmt: skip
def test_a_reply_of_another_form_is_not_trusted(reply: bytes) -> None:
    for task in (ScoreTask(b"", b""), ExtractTask(feature_set("log_mel"), "float16")):
        with pytest.raises(ValueError):
            task.n_bytes(_checked(bytearray(reply)))


def test_what_a_reject_says_can_be_written() -> None:
    """A lone surrogate is JSON, but no UTF-8."""
    reply = _checked(bytearray(b'{"reason": "silent", "message": "x \\ud800"}'))
    assert reply == {"reason": "silent", "message": "x ?"}


@pytest.mark.parametrize("reply", [b"[" * 60_000, b'{"reason": [], "message": "x"}', b"{}"])
def test_a_child_that_sends_nonsense_costs_one_track(
    child: Child, reply: bytes, short_mp3s: dict[str, bytes]
) -> None:
    before = score_of(child, short_mp3s["calm"])
    ours, theirs = socket.socketpair()
    child._socket.close()
    child._socket = ours
    with theirs:
        theirs.sendall(struct.pack(">Q", len(reply)) + reply)
        assert reason_of(child, short_mp3s["sad"]) == "decoder_crash"
    assert score_of(child, short_mp3s["calm"]) == before


@pytest.fixture
def extractor() -> Iterator[Child]:
    child = Child(ExtractTask(feature_set("log_mel"), "float16"), ChildLimits(timeout_seconds=60))
    yield child
    child.close()


def test_features_come_back_whole(
    extractor: Child, long_mp3: bytes, short_mp3s: dict[str, bytes]
) -> None:
    """Replies far larger than a socket's buffer, while the next track is on its way."""
    long = without_tag(long_mp3) * 8
    tracks = [long, short_mp3s["calm"], b"no audio", long, long]
    outcomes = list(extractor.outcomes(GivenTrack(audio) for audio in tracks))
    assert isinstance(outcomes[2], AudioError)
    assert outcomes[2].reason == "not_audio"
    work = ExtractTask(feature_set("log_mel"), "float16").worker(AudioLimits())
    for audio, outcome in zip(tracks, outcomes, strict=True):
        if not isinstance(outcome, AudioError):
            header, payload = work(GivenTrack(audio))
            assert outcome.segments.tobytes() == payload
            assert outcome.starts_seconds == header["starts_seconds"]


def test_the_tracks_around_a_crash_have_features(
    extractor: Child, endless_mp3: bytes, long_mp3: bytes
) -> None:
    tracks = [long_mp3, endless_mp3, long_mp3, b"no audio", long_mp3]
    extractor.start()
    first = extractor.outcome(GivenTrack(long_mp3))
    signal_soon(extractor, signal.SIGSEGV)
    outcomes = list(extractor.outcomes(GivenTrack(audio) for audio in tracks))
    reasons = [outcome.reason if isinstance(outcome, AudioError) else None for outcome in outcomes]
    assert reasons == [None, "decoder_crash", None, "not_audio", None]
    for number in (0, 2, 4):
        assert outcomes[number].segments.tobytes() == first.segments.tobytes()


@pytest.mark.parametrize("n_bytes", [0, 10, 2**40])
def test_a_payload_of_another_length_is_not_taken(n_bytes: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(struct.pack(">Q", n_bytes))
        with pytest.raises(ValueError, match="bytes, not 20"):
            _receive(ours, n_bytes=20)


def test_a_track_larger_than_memory_spares_its_neighbours(
    checkpoint: ScoreTask, short_mp3s: dict[str, bytes]
) -> None:
    child = Child(checkpoint, ChildLimits(memory_bytes=100_000_000))
    try:
        good = short_mp3s["calm"]
        tracks = [good, good + bytes(300_000_000), good]
        outcomes = list(child.outcomes(GivenTrack(audio) for audio in tracks))
    finally:
        child.close()
    assert isinstance(outcomes[1], AudioError)
    assert outcomes[1].reason == "memory_limit"
    assert outcomes[0] == outcomes[2]
    assert outcomes[0]["n_segments"] == 1


def test_who_is_interrupted_leaves_no_reply_for_the_next_track(
    child: Child, short_mp3s: dict[str, bytes]
) -> None:
    def tracks() -> Iterator[GivenTrack]:
        yield GivenTrack(short_mp3s["calm"])
        yield GivenTrack(short_mp3s["tense"])
        raise KeyboardInterrupt

    expected = score_of(child, short_mp3s["sad"])
    with pytest.raises(KeyboardInterrupt):
        list(child.outcomes(tracks()))
    assert score_of(child, short_mp3s["sad"]) == expected


def test_tracks_one_after_the_other_have_the_scores_of_each(
    child: Child, short_mp3s: dict[str, bytes], long_mp3: bytes
) -> None:
    """Bit by bit, in order, of whatever length, with rejects among them."""
    long = without_tag(long_mp3)
    tracks = [*short_mp3s.values(), b"no audio", long * 3, b"", *short_mp3s.values(), long]
    expected = [None if len(audio) < 10 else score_of(child, audio) for audio in tracks]
    outcomes = list(child.outcomes(GivenTrack(audio) for audio in tracks))
    found = [None if isinstance(outcome, AudioError) else outcome for outcome in outcomes]
    assert found == expected
    reasons = [outcome.reason for outcome in outcomes if isinstance(outcome, AudioError)]
    assert reasons == ["not_audio", "empty"]


def test_tracks_left_unread_are_nobodys(child: Child, short_mp3s: dict[str, bytes]) -> None:
    tracks = [GivenTrack(short_mp3s["calm"]), GivenTrack(short_mp3s["tense"])]
    outcomes = child.outcomes(iter(tracks))
    first = next(outcomes)
    outcomes.close()  # the second one has been handed over already
    assert score_of(child, short_mp3s["calm"]) == first


def test_a_child_that_cannot_start_is_no_fault_of_a_track(checkpoint: ScoreTask) -> None:
    card = json.loads(checkpoint.card_json)
    card["model"] = "no_such_model"
    task = ScoreTask(json.dumps(card).encode(), checkpoint.weights)
    child = Child(task, ChildLimits())
    with pytest.raises(ChildStartError, match="no_such_model"):
        score_of(child, b"")
