"""What a local disk is asked beyond the everyday: to keep what was written, to exchange folders."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}


def flush(path: Path) -> None:
    """Have a file, or a folder's names, lie on the disk itself when this returns.

    A loss of power otherwise takes what was written half a minute ago, or leaves it empty.
    """
    if not path.is_dir():
        _flush(path)
        return
    # Some network file systems know no flushing of folders; they keep names by themselves.
    with contextlib.suppress(OSError):
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, to last."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        flush(path.parent)


def exchange(one: Path, other: Path) -> bool:
    """Give two folders each other's name, in one step that nothing can cut in two.

    Returns
    -------
    bool
        False where this system or file system cannot; nothing is changed then.

    Raises
    ------
    OSError
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2  # Linux with glibc 2.28
    except AttributeError:
        return False
    paths = _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other)
    if renameat2(*paths, _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
