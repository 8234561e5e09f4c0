"""``mer-batch``, ``python -m mer_batch`` and the jobs begin here.

They can be stopped from the first moment: what takes time to import is imported after that.
"""

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def main(*command: str) -> None:
    """Run the command line, or a command with the command line's arguments."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    # Read as Arrow is imported. Its own allocators keep some MiB for each thread that has ever
    # allocated: half as much again as a driver needs, which has fifty threads.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from mer_batch.cli import run_command

    _leave(run_command([*command, *sys.argv[1:]]))


def _leave(code: int) -> NoReturn:
    """Exit at once: all is closed, and to clear away what torch and Ray have loaded takes long."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever was to read it has gone
            stream.flush()
    os._exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    """Nothing is held yet, or no longer. A run that holds an output has its own `StopSignals`."""
    os.write(2, f"mer-batch: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(130)


if __name__ == "__main__":
    main()
