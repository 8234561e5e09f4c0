"""Take from this process what a decoder does not need: the network, files, other processes.

On Linux a filter in the kernel (seccomp) is put over every thread, and over what they start.
It is a list of the system calls that decoding and scoring make: reading and writing what is open
already, memory, clocks, locks between threads. All others fail with EPERM, as opening a file,
connecting, starting a program or sending a signal do. It cannot be taken off again.

The filter is written here because what would write it for us, libseccomp, is a C library that
must be installed beside Python.

References
----------
Linux: Documentation/userspace-api/seccomp_filter.rst, seccomp(2), prctl(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
from dataclasses import dataclass

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SECCOMP_SET_MODE_FILTER = 1
# For all threads at once; and without the guard against speculation, which slows decoding on
# kernels before 5.16 and protects programs that run foreign code from one another.
_FLAGS = 1 << 0 | 1 << 2
_ALLOW, _FAIL = 0x7FFF_0000, 0x0005_0000
_CLONE_THREAD = 0x0001_0000

# The number of each call, on x86-64 and on ARM.
_ALLOWED = {
    # What is open: the parent's socket, stderr.
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66),
    "pread64": (17, 67), "recvfrom": (45, 207), "sendto": (44, 206), "lseek": (8, 62),
    "ftruncate": (77, 46), "fstat": (5, 80), "close": (3, 57), "ppoll": (271, 73),
    "pselect6": (270, 72),
    # Memory.
    "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226),
    "madvise": (28, 233), "brk": (12, 214), "mbind": (237, 235), "get_mempolicy": (239, 236),
    # Threads and signals of its own.
    "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293), "membarrier": (324, 283),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "restart_syscall": (219, 128), "exit": (60, 93),
    "exit_group": (231, 94),
    # Clocks, and what says something of this process only.
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101), "gettimeofday": (96, 169), "getrandom": (318, 278),
    "getpid": (39, 172), "gettid": (186, 178), "getrusage": (98, 165), "uname": (63, 160),
    "sysinfo": (99, 179),
}  # fmt: skip


@dataclass(frozen=True)
class _Machine:
    """Where a processor's column is in ``_ALLOWED``, and what it calls the calls named here."""

    column: int
    audit_arch: int
    seccomp: int
    clone: int
    tgkill: int
    clone3: int = 435


_MACHINES = {
    "x86_64": _Machine(0, 0xC000_003E, seccomp=317, clone=56, tgkill=234),
    "aarch64": _Machine(1, 0xC000_00B7, seccomp=277, clone=220, tgkill=131),
}


def confine() -> bool:
    """Take network, files and processes from this process, for good.

    Returns
    -------
    bool
        False where the system has no such means: not Linux, another processor, a kernel without
        seccomp.
    """
    machine = _MACHINES.get(platform.machine()) if sys.maxsize > 2**32 else None
    if sys.platform != "linux" or machine is None:
        return False
    program = _program(machine, os.getpid())
    kept = ctypes.create_string_buffer(program, len(program))
    whole = struct.pack("@HP", len(program) // _STEP.size, ctypes.addressof(kept))
    libc = ctypes.CDLL(None)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))) != 0:
        return False
    numbers = map(ctypes.c_long, (machine.seccomp, _SECCOMP_SET_MODE_FILTER, _FLAGS))
    return bool(libc.syscall(*numbers, whole) == 0)


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; Linux only.

    Even a process that is stopped is killed. One whose parent is gone already ends here.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent_pid:
        os._exit(0)


# One step of the filter: operation, steps to skip if true and if false, operand.
_STEP = struct.Struct("=HBBI")
_LOAD, _EQUALS, _HAS_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
# Where a filter finds the call's number, the machine's, and the lower half of the first argument.
_AT_NUMBER, _AT_ARCH, _AT_FIRST_ARGUMENT = 0, 4, 16


def _program(machine: _Machine, pid: int) -> bytes:
    """The filter: what is not allowed fails with EPERM."""
    steps: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _AT_ARCH),
        (_EQUALS, 1, 0, machine.audit_arch),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
        (_LOAD, 0, 0, _AT_NUMBER),
    ]
    for numbers in _ALLOWED.values():
        steps += [(_EQUALS, 0, 1, numbers[machine.column]), (_RETURN, 0, 0, _ALLOW)]
    steps += [
        # Its arguments lie in memory, where no filter can look; without it, libraries use clone.
        (_EQUALS, 0, 1, machine.clone3),
        (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
        # A thread, but no process.
        (_EQUALS, 0, 3, machine.clone),
        (_LOAD, 0, 0, _AT_FIRST_ARGUMENT),
        (_HAS_BIT, 4, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
        # abort() signals its own process, and so it may.
        (_EQUALS, 0, 3, machine.tgkill),
        (_LOAD, 0, 0, _AT_FIRST_ARGUMENT),
        (_EQUALS, 0, 1, pid),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
    ]
    return b"".join(_STEP.pack(*step) for step in steps)
