"""Values for messages: short, on one line, and without what opens a store or a cluster."""

from __future__ import annotations

import reprlib

from mer_batch.errors import masked

_MAX_SHOWN = 300


def shown(value: object) -> str:
    """What `repr` says of a value, which is never written out whole: that might have no end."""
    return _cut(_SHORTENED.repr(value))


def shown_text(text: str) -> str:
    """A text without its quotes; credentials are taken out before it is cut."""
    hidden = masked(text)
    # An address of Ray's needs no scheme.
    before, at, after = hidden.rpartition("@")
    if at and ":" in before and "://" not in hidden:
        hidden = f"***@{after}"
    return _cut(hidden)


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


class _Shortened(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxother = _MAX_SHOWN

    def repr_str(self, x: str, level: int) -> str:
        return repr(shown_text(x))

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(shown_text(x.decode(errors="replace")))  # as it would be taken for a text


_SHORTENED = _Shortened()
