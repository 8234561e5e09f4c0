"""Have this process keep the memory that it frees."""

from __future__ import annotations

import ctypes
import sys

_KEPT_BYTES = 32 * 1024 * 1024
# From malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_memory() -> None:
    """Keep up to 32 MiB that are free, for the next arrays of some megabytes.

    Where these come and go with every track, the GNU C library gives their memory back to the
    system each time, and gets it page by page: up to a third of the time. Other C libraries are
    left as they are.

    References
    ----------
    mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
