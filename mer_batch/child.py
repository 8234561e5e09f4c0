"""The killable child process in which a track is decoded, and scored or reduced to features.

A hostile file can crash the decoder, hang it or make it ask for all the memory there is. So
every worker hands its tracks to a child process that may die without taking anything along. It
is started by ``exec``, not by a fork: a Ray worker has threads that a fork would leave with
locks held, descriptors that must not outlive it, and secrets in its environment. The two talk
over a socket pair in length-prefixed frames of JSON and raw bytes, so that nothing which a
compromised child sends is ever unpickled. Before its first track the child gives up the network,
files and other processes.

``python -m mer_batch.child FD PARENT`` is the child's side.
"""

from __future__ import annotations

import fcntl
import gc
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import soundfile

from mer_batch.audio.decode import AudioLimits, decodes_alike
from mer_batch.errors import AudioError, MerBatchError
from mer_batch.limits import ChildLimits
from mer_batch.memory import keep_memory
from mer_batch.sandbox import confine, die_with
from mer_batch.schema import REASONS
from mer_batch.steps import reach
from mer_batch.task import GivenTrack, Reply, Task, task_of

_STARTUP_SECONDS = 120.0
_LAST_WORDS_SECONDS = 5.0
_MAX_REPLY_BYTES = 64 * 1024
_MAX_STDERR_BYTES = 64 * 1024
_DRAIN_BYTES = 64 * 1024
_ONE_PIECE_BYTES = 64 * 1024
_MAX_OPEN_FILES = 64
_MAX_WARM_UP_SECONDS = 60.0
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class ChildStartError(MerBatchError):
    """The child process could not start: a fault of the installation, not of a track."""


class Child:
    """The parent's side: starts the child when first needed, and again after it died.

    Parameters
    ----------
    task : Task
        What is to be done to each track.
    limits : ChildLimits

    Attributes
    ----------
    is_confined : bool or None
        Whether the child could be cut off from the network and from files, once it has started.
    """

    command = (sys.executable, "-P", "-m", "mer_batch.child")

    def __init__(self, task: Task, limits: ChildLimits) -> None:
        self._task = task
        self._limits = limits
        self.is_confined: bool | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_handed_over = False  # whether the child holds the current track already

    def outcome(self, track: GivenTrack) -> Any:
        """Do the task to one track; see :meth:`outcomes`.

        Raises
        ------
        AudioError
            With the reason: also where the child crashed, hung or ran out of memory.
        """
        (outcome,) = self.outcomes([track])
        if isinstance(outcome, AudioError):
            raise outcome
        return outcome

    def outcomes(self, tracks: Iterable[GivenTrack]) -> Iterator[Any]:
        """Do the task to tracks, the next one being handed over while one is decoded.

        Yields
        ------
        The task's outcome or AudioError
            For each track, in order; an error says why the track cannot be used.

        Raises
        ------
        ChildStartError
            Where the child cannot be started at all.
        """
        waiting = iter(tracks)
        current = next(waiting, None)
        try:
            while current is not None:
                following = next(waiting, None)
                try:
                    yield self._exchange(current, following)
                except AudioError as error:
                    yield error
                current = following
        finally:
            if self._is_handed_over:  # left early: the reply to come is nobody's
                self.close()

    def _exchange(self, current: GivenTrack, following: GivenTrack | None) -> Any:
        """Get the outcome of one track, having handed over the next one."""
        self.start()
        timeout = self._limits.timeout_seconds
        try:
            self._socket.settimeout(timeout)
            if not self._is_handed_over:
                _send_track(self._socket, current)
            self._is_handed_over = False
            reach("track_given")
            deadline = time.monotonic() + timeout
            is_broken = False
            try:
                # Blocks until the child takes it: it is the deadline of the current track.
                _send_track(self._socket, following)
                self._is_handed_over = following is not None
            except OSError:
                # The child is gone or hangs; the current track's reply may be there before.
                is_broken = True
            outcome = self._reply(deadline)
            if is_broken:
                self.close()
        except TimeoutError as error:
            self.close()
            raise AudioError(
                "timeout", f"not decoded within timeout_seconds={timeout:g}"
            ) from error
        except ValueError as error:
            self.close()
            raise AudioError("decoder_crash", f"the reply is not valid: {error}") from error
        except (EOFError, ConnectionError) as error:
            last_words = self._bury()
            reason = "memory_limit" if "MemoryError" in last_words else "decoder_crash"
            raise AudioError(reason, last_words) from error
        if isinstance(outcome, AudioError):
            raise outcome
        return outcome

    def _reply(self, deadline: float) -> Any:
        """The child's reply, whose form is as it should be; ValueError where it is not."""
        header = _checked(_receive(self._socket, deadline, max_bytes=_MAX_REPLY_BYTES))
        if "reason" in header:
            return AudioError(header["reason"], header["message"])
        n_bytes = self._task.n_bytes(header)
        payload = _receive(self._socket, deadline, n_bytes=n_bytes) if n_bytes else b""
        return self._task.outcome(header, payload)

    def start(self) -> None:
        """Start the child unless it runs, and wait until it is ready.

        Raises
        ------
        ChildStartError
        """
        running = self._process
        if running is not None and not self._is_handed_over and running.poll() is not None:
            self._bury()  # killed between two tracks: no fault of the next one's
        if self._process is None:
            self._start()

    def close(self) -> None:
        """Kill the child if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._forget()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the child is buried)
        with theirs:
            self._process = subprocess.Popen(
                [*self.command, str(theirs.fileno()), str(_parent_to_die_with())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,  # its end tells the child that the parent is gone
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=_clean_environment(),
            )
        self._socket, self._stderr = ours, stderr
        told, frames = self._task.setup()
        setup = {
            "audio": asdict(self._limits.audio),
            "memory_bytes": self._limits.memory_bytes,
            "n_task_frames": len(frames),
            "task": {"task": self._task.name, **told},
        }
        deadline = time.monotonic() + _STARTUP_SECONDS
        try:
            ours.settimeout(_STARTUP_SECONDS)
            for frame in (json.dumps(setup).encode(), *frames):
                _send(ours, frame)
            self.is_confined = json.loads(_receive(ours, deadline))["is_confined"]
        except (EOFError, OSError) as error:
            raise ChildStartError(f"the decoder process did not start: {self._bury()}") from error

    def _bury(self) -> str:
        """What the dead child died of; frees what it held."""
        assert self._process is not None
        try:
            code = self._process.wait(_LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        died = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        self._stderr.seek(0)
        last_words = self._stderr.read(_MAX_STDERR_BYTES).decode(errors="replace").strip()
        self._forget()
        return f"the decoder process died with {died}" + (
            f": {last_words[-2000:]}" if last_words else ""
        )

    def _forget(self) -> None:
        assert self._process is not None
        self._is_handed_over = False
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._socket.close()
        self._stderr.close()
        self._process = None


def _parent_to_die_with() -> int:
    """This process; 0 where the child would die too early, with the thread that starts it."""
    return os.getpid() if threading.current_thread() is threading.main_thread() else 0


def _clean_environment() -> dict[str, str]:
    """What the child needs to import this package, and nothing else: no credentials."""
    kept = {
        name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ
    }
    search_path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {
        **kept,
        "PYTHONPATH": search_path,
        **dict.fromkeys(_ONE_THREAD, "1"),
    }


def _send(connection: socket.socket, *frames: bytes) -> None:
    """Frames in one piece, as each would wake the other side; the last by itself if it is large."""
    *heads, last = frames
    before = b"".join(struct.pack(">Q", len(head)) + head for head in heads)
    before += struct.pack(">Q", len(last))
    if len(last) <= _ONE_PIECE_BYTES:
        connection.sendall(before + last)
        return
    connection.sendall(before)
    connection.sendall(last)


def _send_track(connection: socket.socket, track: GivenTrack | None) -> None:
    """Hand a track over; None tells the child not to wait for one before it ends its reply."""
    if track is None:
        _send(connection, b"null")
        return
    told = {"expected_seconds": track.expected_seconds, "track_id": track.track_id}
    _send(connection, json.dumps(told).encode(), track.audio_bytes)


def _checked(header: bytearray) -> dict[str, Any]:
    """The JSON of a reply: a reject of a form that is known, or what the task is to check."""
    try:
        content = json.loads(header)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("not an object")
    reason, message = content.get("reason"), content.get("message")
    if isinstance(reason, str) and reason in REASONS and isinstance(message, str):
        # A lone surrogate cannot be written to any table.
        return {"reason": reason, "message": message.encode(errors="replace").decode()}
    if "reason" in content:
        raise ValueError(f"not a reject: {content!r}"[:500])
    return content


def _receive(
    connection: socket.socket,
    deadline: float | None = None,
    *,
    max_bytes: int | None = None,
    n_bytes: int | None = None,
) -> bytearray:
    """One frame; EOFError where the other side is gone, TimeoutError past the deadline.

    ValueError where it has more than `max_bytes` or not exactly `n_bytes`.
    """
    (length,) = struct.unpack(">Q", _receive_exactly(connection, 8, deadline))
    if max_bytes is not None and length > max_bytes:
        raise ValueError(f"{length} bytes, more than {max_bytes}")
    if n_bytes is not None and length != n_bytes:
        raise ValueError(f"{length} bytes, not {n_bytes}")
    return _receive_exactly(connection, length, deadline)


def _receive_exactly(connection: socket.socket, n_bytes: int, deadline: float | None) -> bytearray:
    buffer = bytearray(n_bytes)
    _fill(connection, buffer, deadline)
    return buffer


def _fill(connection: socket.socket, buffer: bytearray, deadline: float | None) -> None:
    view, filled = memoryview(buffer), 0
    while filled < len(buffer):
        if deadline is not None:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
        n = connection.recv_into(view[filled:])
        if n == 0:
            raise EOFError
        filled += n


# ---------------------------------------------------------------------------- the child's side


def _serve(connection: socket.socket) -> None:
    """Do the task to tracks until the parent hangs up."""
    keep_memory()
    setup = json.loads(_receive(connection))
    frames = [bytes(_receive(connection)) for _ in range(setup["n_task_frames"])]
    limits = AudioLimits(**setup["audio"])
    warm_up = _warm_up_track(limits)
    if limits.direct and not decodes_alike(warm_up.audio_bytes):
        limits = replace(limits, direct=False)
    work = task_of(setup["task"], frames).worker(limits)
    # Libraries open files when they are first used; from here on nothing can be opened.
    _reply_to(warm_up, work)
    # What is there by now stays: to look through all of it for garbage takes time, 3 % with torch.
    gc.collect()
    gc.freeze()
    _limit_resources(setup["memory_bytes"])
    _send(connection, json.dumps({"is_confined": confine()}).encode())
    current: GivenTrack | AudioError | None = None
    try:
        while True:
            current = current or _receive_track(connection)
            if current is None:
                continue
            os.ftruncate(2, 0)
            reply, payload = _reply_to(current, work)
            _send(connection, json.dumps(reply).encode())
            # The payload may not fit into the socket's buffer, and the parent reads it only when
            # it has handed over what follows: to send it before would be to wait for one another.
            current = _receive_track(connection)
            if payload:
                _send(connection, payload)
    except EOFError:
        return


def _reply_to(track: GivenTrack | AudioError, work: Callable[[GivenTrack], Reply]) -> Reply:
    """What to say of a track: whatever it does, it is one reply."""
    try:
        if isinstance(track, AudioError):
            raise track
        return work(track)
    except AudioError as error:
        return {"reason": error.reason, "message": _with_decoder_words(error.message)}, b""
    except MemoryError:
        return {"reason": "memory_limit", "message": "decoding ran out of memory_bytes"}, b""
    except Exception as error:  # the one broad catch
        words = f"{type(error).__name__}: {error}"
        is_memory = "can't allocate memory" in words or "not enough memory" in words
        reason = "memory_limit" if is_memory else "decode_error"
        return {"reason": reason, "message": words[:2000]}, b""


def _receive_track(connection: socket.socket) -> GivenTrack | AudioError | None:
    """The next track; an error where it does not fit, None where the parent has none for now."""
    request = json.loads(_receive(connection))
    if request is None:
        return None
    (length,) = struct.unpack(">Q", _receive_exactly(connection, 8, None))
    try:
        buffer = bytearray(length)
    except MemoryError:
        for begin in range(0, length, _DRAIN_BYTES):  # past it, in small pieces
            _receive_exactly(connection, min(_DRAIN_BYTES, length - begin), None)
        return _too_large_for_memory(length)
    _fill(connection, buffer, None)
    try:
        return GivenTrack(bytes(buffer), **request)
    except MemoryError:
        return _too_large_for_memory(length)


def _too_large_for_memory(n_bytes: int) -> AudioError:
    return AudioError("memory_limit", f"{n_bytes:,} bytes of audio do not fit into memory_bytes")


def _with_decoder_words(message: str) -> str:
    """Append what libmpg123 wrote to stderr: the one sign it gives that a stream is damaged."""
    words = os.pread(2, 2000, 0).decode(errors="replace").strip()
    first = words.splitlines()[0].strip() if words else ""
    return f"{message} [decoder: {first[:200]}]" if first else message


def _warm_up_track(limits: AudioLimits) -> GivenTrack:
    """A sound that is just long enough to be used, as an MP3 at a rate that must be converted."""
    rate = 8_000
    seconds = min(limits.min_seconds + 0.5, _MAX_WARM_UP_SECONDS)
    ramp = np.arange(int(seconds * rate)) % 64 / np.float32(128)
    file = io.BytesIO()
    soundfile.write(file, ramp, rate, format="MP3", subtype="MPEG_LAYER_III")
    return GivenTrack(file.getvalue())


def _limit_resources(memory_bytes: int) -> None:
    """Cap what one track may take: memory over what is mapped now, files, no core dump."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_STDERR_BYTES, _MAX_STDERR_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_OPEN_FILES, _MAX_OPEN_FILES))
    mapped = _mapped_bytes()
    if mapped is not None:
        limit = mapped + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _mapped_bytes() -> int | None:
    """Address space in use [bytes]; None off Linux, where RLIMIT_AS is of no use anyway."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def _die_with_parent() -> None:
    """Exit when the parent's end of stdin closes, even while the decoder hangs in C code."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run the child's side on the socket whose descriptor is the first argument.

    The second is the process to die with, or 0: then the end of stdin has to do.
    """
    if (parent := int(sys.argv[2])) != 0:
        die_with(parent)
    _die_with_parent()
    # The parent decides when to stop; Ctrl-C in a terminal reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Before each track stderr is cut back to nothing: writes must follow the end, not an offset.
    fcntl.fcntl(2, fcntl.F_SETFL, fcntl.fcntl(2, fcntl.F_GETFL) | os.O_APPEND)
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        _serve(connection)


if __name__ == "__main__":
    main()
