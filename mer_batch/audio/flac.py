"""Count the samples of a FLAC stream by its frames, without decoding them.

Its header says how many there are, unless it was written to a pipe; then the decoder takes what
follows the last frame, a tag or a newline, for damage. Every frame begins with its own number.

References
----------
RFC 9639 (FLAC), sections 8.2 and 9.1.
"""

from __future__ import annotations

from dataclasses import dataclass

# How many places may look like a frame and be none before the search is given up.
_MAX_FALSE_STARTS = 10_000

_SHORT_SIZE, _LONG_SIZE = 6, 7  # codes of sizes that stand in the header itself
_N_SIZE_BYTES = {_SHORT_SIZE: 1, _LONG_SIZE: 2}
_N_RATE_BYTES = {12: 1, 13: 2, 14: 2}


@dataclass(frozen=True)
class _Frame:
    number: int
    n_samples: int


def count_samples(data: bytes, begin: int) -> int | None:
    """Samples per channel from the first frame to the last, None where no frames are found.

    Parameters
    ----------
    data : bytes
    begin : int
        Where the marker ``fLaC`` stands.
    """
    position = begin + 4
    is_last = False
    while not is_last:
        if position + 4 > len(data):
            return None
        is_last = data[position] >= 0x80
        position += 4 + int.from_bytes(data[position + 1 : position + 4], "big")
    first = _frame(data, position)
    if first is None:
        return None
    marker, kind = data[position : position + 2], _kind(data, position)
    at = len(data)
    for _ in range(_MAX_FALSE_STARTS):
        at = data.rfind(marker, position, at)
        last = _frame(data, at) if _kind(data, at) == kind else None
        if last is not None:
            # Frames of one size are numbered; of many, each gives the number of its first sample.
            unit = 1 if marker[1] & 1 else first.n_samples
            return (last.number - first.number) * unit + last.n_samples
    return None


def _kind(data: bytes, at: int) -> tuple[int, ...]:
    """The codes for sample rate and sample size: they stay the same."""
    return tuple(byte & 0x0F for byte in data[at + 2 : at + 4])


def _frame(data: bytes, at: int) -> _Frame | None:
    """Read a frame's header; None where there is no whole one."""
    if len(data) < at + 5 or data[at] != 0xFF or data[at + 1] & 0xFE != 0xF8:
        return None
    size_code, rate_code = data[at + 2] >> 4, data[at + 2] & 0x0F
    # The number is coded like a character of UTF-8: as many ones in front as it has bytes.
    n_ones = 8 - (data[at + 4] ^ 0xFF).bit_length()
    size_at = at + 4 + max(1, n_ones)
    rate_at = size_at + _N_SIZE_BYTES.get(size_code, 0)
    end = rate_at + _N_RATE_BYTES.get(rate_code, 0) + 1
    if not size_code or n_ones in (1, 8) or end > len(data) or _crc8(data[at:end]):
        return None
    number = data[at + 4] & 0x7F >> n_ones
    for byte in data[at + 5 : size_at]:
        number = number << 6 | byte & 0x3F
    if size_code in _N_SIZE_BYTES:
        n_samples = int.from_bytes(data[size_at:rate_at], "big") + 1
    elif size_code < _SHORT_SIZE:
        n_samples = 192 if size_code == 1 else 576 << size_code - 2
    else:
        n_samples = 256 << size_code - 8
    return _Frame(number, n_samples)


def _crc8(header: bytes) -> int:
    """Checksum of a header together with its own: zero where they agree."""
    value = 0
    for byte in header:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ (0x07 if value & 0x80 else 0)) & 0xFF
    return value
