"""Faults of an object store: which ones pass, how long to wait for that, what to do about the rest.

Every request goes through one loop (:class:`Patience`), its body included. botocore's own retries
are left out: they do not read a body again, and a long throttle uses their quota up.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import botocore.exceptions
from botocore.parsers import ResponseParserError

from mer_batch.errors import masked

NOT_FOUND = frozenset({"NoSuchKey", "NoSuchBucket", "404", "NotFound"})
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_UNKNOWN_KEY = frozenset({"InvalidAccessKeyId", "InvalidToken", "InvalidClientTokenId"})
_NOT_ALLOWED = frozenset({"AccessDenied", "403", "Forbidden", "AllAccessDisabled"})
_WRONG_SECRET = frozenset({"SignatureDoesNotMatch"})
DENIED = EXPIRED | _UNKNOWN_KEY | _NOT_ALLOWED | _WRONG_SECRET
LOST_RACE = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409"})
_THROTTLED = frozenset(
    {"SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestLimitExceeded",
     "TooManyRequests", "429", "503", "BandwidthLimitExceeded"}
)  # fmt: skip
_BROKEN = frozenset({"InternalError", "RequestTimeout", "500", "502", "504"})
_WRONG_REGION = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException",
     "TemporaryRedirect"}
)  # fmt: skip
_REDIRECTED = frozenset({"301", "302", "303", "307", "308"})
# What a store says of a request that it does not know, however often it is asked.
_UNKNOWN_REQUEST = frozenset({"NotImplemented", "501"})
_FULL = frozenset({"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "507"})

_REMEDIES = {
    frozenset({"NoSuchBucket"}): "make the bucket, or check its name and the endpoint",
    NOT_FOUND: "check the name and the endpoint",
    EXPIRED: "the credentials have expired: renew them and run again",
    _UNKNOWN_KEY: "check the credentials: this store does not know them",
    _WRONG_SECRET: "check AWS_SECRET_ACCESS_KEY, and this machine's clock",
    _NOT_ALLOWED: "check the credentials and that they allow this here",
    frozenset({"RequestTimeTooSkewed"}): "set this machine's clock",
    _THROTTLED: "the store turns requests away: try again later, or with fewer CPUs",
    _BROKEN: "the store is out of order: try again later",
    _WRONG_REGION: "set storage.region to the bucket's region",
    _REDIRECTED: "the endpoint sends requests elsewhere: check it, and storage.region",
    _UNKNOWN_REQUEST: "the store does not know such requests: use another one",
    _FULL: "the store is full, or this bucket's quota: make room",
}


class DamagedBodyError(OSError):
    """An answer came whole by its own account, and is not what was asked for."""


class ForeignAnswerError(OSError):
    """An answer that lacks what S3's answers hold: another service's, or a page of some portal."""

    def __init__(self) -> None:
        super().__init__("the answer is not S3's; check the endpoint")


# How long a fault is waited for once it has shown: longest where the store is there but short of
# breath; where nobody answers, long enough for a second try of 20 s.
_BUSY_SECONDS = math.inf
_UNREACHABLE_SECONDS = 20.0
_GARBLED_SECONDS = 8.0
# Once a fault has outlasted that, until the store answers again.
_DOWN_SECONDS = 3.0
_FIRST_WAIT_SECONDS = 0.1
_MAX_WAIT_SECONDS = 8.0

_UNREACHABLE = (
    botocore.exceptions.EndpointConnectionError,
    botocore.exceptions.ConnectTimeoutError,
    botocore.exceptions.ProxyConnectionError,
    botocore.exceptions.ReadTimeoutError,
)
_GARBLED = (
    ForeignAnswerError,
    # Half a listing is no XML, and neither is another service's page.
    ResponseParserError,
    botocore.exceptions.SSLError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.MetadataRetrievalError,
)
_BUSY = (
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.FlexibleChecksumError,
    OSError,
)
# What the user has said of profiles and credentials is at fault, not the store.
_SETUP = (
    botocore.exceptions.ProfileNotFound,
    botocore.exceptions.ConfigParseError,
    botocore.exceptions.ConfigNotFound,
    botocore.exceptions.InvalidConfigError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
)

T = TypeVar("T")


def code_of(error: botocore.exceptions.ClientError) -> str:
    """What the store calls its refusal, or else the answer's HTTP status."""
    return str(error.response.get("Error", {}).get("Code") or _status_of(error) or "unknown error")


def _status_of(error: botocore.exceptions.ClientError) -> int:
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status


def seconds_to_wait(error: Exception) -> float:
    """For how long at most a fault is waited for to pass [s]; 0 for one that lasts."""
    if isinstance(error, botocore.exceptions.ClientError):
        if _is_page(error):
            return _UNREACHABLE_SECONDS
        code, status = code_of(error), _status_of(error)
        if code in _UNKNOWN_REQUEST | _FULL:
            return 0.0
        passes = code in _THROTTLED | _BROKEN or status >= 500 or status == 429
        return _BUSY_SECONDS if passes else 0.0
    for kinds, seconds in (
        (_UNREACHABLE, _UNREACHABLE_SECONDS),
        (_GARBLED, _GARBLED_SECONDS),
        (_BUSY, _BUSY_SECONDS),
    ):
        if isinstance(error, kinds):
            return seconds
    return 0.0


def _is_page(error: botocore.exceptions.ClientError) -> bool:
    """Whether the answer is a web page: botocore makes a 500 of one that says 200."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return code_of(error) == "500" and str(headers.get("content-type", "")).startswith("text/html")


class Patience:
    """Asks again while a fault may pass: for a bounded time, at growing, random intervals.

    Time counts from the first fault. Shared by the requests of one client: where a fault has
    outlasted all patience, the following requests have little, until one is answered. A store that
    is gone costs a run one long wait, not one a track.

    Parameters
    ----------
    seconds : float
        The longest wait for any fault [s].
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_down = False

    def ask(self, request: Callable[[], T]) -> T:
        """The request's answer.

        Raises
        ------
        Exception
            What `request` raised last, where it lasts.
        """
        began = time.monotonic()
        for attempt in itertools.count():
            try:
                answer = request()
            except Exception as error:
                if attempt == 0 and not self._is_down:
                    began = time.monotonic()  # a body that was long in coming is no waiting
                seconds = min(seconds_to_wait(error), self._seconds)
                limit = min(seconds, _DOWN_SECONDS) if self._is_down else seconds
                left = limit - (time.monotonic() - began)
                if left <= 0:
                    self._is_down = seconds > 0
                    raise
                # Full jitter: workers that were turned away together do not come back together.
                longest = min(_MAX_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** min(attempt, 10))
                time.sleep(min(left, random.uniform(0, longest)))
            else:
                self._is_down = False
                return answer
        raise AssertionError("unreachable")


def remedy_of(code: str) -> str:
    """What to do about a refusal of the store."""
    for codes, remedy in _REMEDIES.items():
        if code in codes:
            return remedy
    return "check the bucket's name and the endpoint"


def explanation(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """A fault and its remedy on one line, without `secrets`.

    Takes botocore's errors, Arrow's, and those of delta-rs, whose text holds all that the store has
    said: real ones repeat the key id and the session token.
    """
    if isinstance(error, botocore.exceptions.ClientError) and not _is_page(error):
        where = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("location")
        to = f" (to {masked(where)!r})" if where else ""
        return f"{code_of(error)}{to}; {remedy_of(code_of(error))}"
    if isinstance(error, botocore.exceptions.NoCredentialsError):
        return "no credentials; set AWS_ACCESS_KEY_ID or a profile, or attach a role"
    if isinstance(error, ResponseParserError | botocore.exceptions.ClientError):
        return "the answer is not S3's; check the endpoint"
    if isinstance(error, botocore.exceptions.BotoCoreError):
        is_setup = isinstance(error, _SETUP)
        remedy = "AWS_PROFILE and the AWS config" if is_setup else "the endpoint and the network"
        # The words of what lies below it may hold a whole header, the secret in it spelled anew.
        is_foreign = type(error) is botocore.exceptions.HTTPClientError
        words = type(error.kwargs.get("error")).__name__ if is_foreign else str(error)
        told = " ".join(f"{type(error).__name__}: {words}".split())
        return _masked(f"{told}; check {remedy}", secrets)
    said = _said(error)
    if said is not None:
        return f"{said}; {remedy_of(said)}"
    # delta-rs paints its errors, a line for each cause.
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    # With RUST_BACKTRACE set, it numbers the calls that led there.
    plain = re.sub(r"\n +\d+: .*(\n +at .*)?", "", plain)
    plain = re.sub(r"\s*\n\s*↳\s*", ": ", plain).strip()
    if "incorrectly configured region" in plain:
        plain += "; set storage.region to the bucket's region"
    return _masked(" ".join(plain.splitlines()), secrets)


def is_refusal(error: BaseException) -> bool:
    """Whether an error of delta-rs holds the store's word that it will not do this."""
    return _said(error) in DENIED | _WRONG_REGION | {"NoSuchBucket", "RequestTimeTooSkewed"}


def _said(error: BaseException) -> str | None:
    """The store's own code in an error's text."""
    code = re.search(r"<Code>(\w+)</Code>", str(error))
    return code[1] if code else None


def _masked(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text
