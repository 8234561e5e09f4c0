"""``mer-batch``, ``python -m mer_batch`` and the jobs begin here.

They can be stopped from the first moment: what takes time to import is imported after that.
"""

import os
import signal
import sys
from types import FrameType


def main(*command: str) -> None:
    """Run the command line, or a command with the command line's arguments."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    from mer_batch.cli import run_command

    sys.exit(run_command([*command, *sys.argv[1:]]))


def _stop(number: int, frame: FrameType | None) -> None:
    """Nothing is held yet, or no longer. A run that holds an output has its own `StopSignals`."""
    os.write(2, f"mer-batch: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(130)


if __name__ == "__main__":
    main()
