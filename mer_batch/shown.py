"""Values for messages: short, on one line, and without what opens a store or a cluster."""

from __future__ import annotations

import re
import reprlib

from mer_batch.errors import masked

_MAX_SHOWN = 300

# An address of Ray's needs no scheme. The key of an override is no part of it.
_USER = re.compile(r"\A([\w.]*=)?(?:(?!://).)*@", re.DOTALL)


def shown(value: object) -> str:
    """What `repr` says of a value, which is never written out whole: that might have no end."""
    return _cut(_SHORTENED.repr(value))


def shown_text(text: str) -> str:
    """A text without quotes, cut once the credentials in its URIs are taken out."""
    return _cut(masked(text))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


class _Shortened(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxother = _MAX_SHOWN

    def repr_str(self, x: str, level: int) -> str:
        return repr(_cut(_USER.sub(r"\1***@", masked(x))))

    def repr_bytes(self, x: bytes, level: int) -> str:
        return self.repr_str(x.decode(errors="replace"), level)  # what it would be taken for


_SHORTENED = _Shortened()
