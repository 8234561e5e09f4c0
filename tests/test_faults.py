"""Faults of a store: which pass, how long they are waited for, what is said of the rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import botocore.exceptions
import pytest

from mer_batch.errors import holds_credentials, masked
from mer_batch.faults import Patience, explanation, is_refusal, seconds_to_wait
from mer_batch.storage import parse_uri


def refusal(code: str, status: int = 400) -> botocore.exceptions.ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(answer, "GetObject")


def failing(n: int, error: Exception) -> Callable[[], int]:
    """A request that fails so many times; it gives the number of tries."""
    tries = []

    def request() -> int:
        tries.append(1)
        if len(tries) <= n:
            raise error
        return len(tries)

    return request


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (refusal("SlowDown", 503), True),
        (refusal("InternalError", 500), True),
        (refusal("TooManyRequests", 429), True),
        (refusal("Unheard-of", 507), True),
        (refusal("RequestTimeout"), True),
        (ConnectionResetError(), True),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"), True),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"), True),
        (botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), True),
        (refusal("AccessDenied", 403), False),
        (refusal("ExpiredToken"), False),
        (refusal("NoSuchKey", 404), False),
        (refusal("PreconditionFailed", 412), False),
        (refusal("NotImplemented", 501), False),
        (refusal("", 507), False),
        (botocore.exceptions.NoCredentialsError(), False),
        (botocore.exceptions.ParamValidationError(report="bucket"), False),
        (ValueError(), False),
    ],
)
def test_what_passes_is_asked_again_and_what_lasts_is_not(error: Exception, passes: bool) -> None:
    assert (seconds_to_wait(error) > 0) == passes
    patience = Patience(60)
    if passes:
        assert patience.ask(failing(2, error)) == 3
        return
    request = failing(1, error)
    with pytest.raises(type(error)):
        patience.ask(request)
    assert request() == 2  # it was asked once


def test_a_store_that_is_gone_is_waited_for_once() -> None:
    patience = Patience(6)
    waits = []
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(ConnectionResetError):
            patience.ask(failing(10**6, ConnectionResetError()))
        waits.append(time.monotonic() - began)
    assert waits[0] >= 6
    assert waits[1] < waits[0]
    # One answer, and there is patience again.
    assert patience.ask(lambda: 1) == 1
    assert patience.ask(failing(5, ConnectionResetError())) == 6


def test_an_answer_that_was_long_in_coming_is_asked_for_again() -> None:
    """A body may take longer than all patience before it breaks off."""
    broken = failing(1, ConnectionResetError())

    def request() -> int:
        time.sleep(1.2)
        return broken()

    assert Patience(1).ask(request) == 2


_DELTA_ERROR = """Kernel error -> Generic S3 error
          \x1b[31m↳\x1b[0m Error performing GET http://127.0.0.1/b/k in 1ms
           \x1b[31m↳\x1b[0m 400 Bad Request"""


def test_an_error_of_many_painted_lines_becomes_one() -> None:
    told = explanation(OSError(_DELTA_ERROR))
    assert told == (
        "Kernel error -> Generic S3 error: Error performing GET http://127.0.0.1/b/k in 1ms: "
        "400 Bad Request"
    )


def test_an_error_that_repeats_the_credentials_is_told_without_them() -> None:
    body = "<Error><Code>ExpiredToken</Code><Token-0>the token</Token-0></Error>"
    error = OSError(f"{_DELTA_ERROR}\n   ↳ {body}")
    assert explanation(error).startswith("ExpiredToken; the credentials have expired: renew them")
    assert "the token" not in explanation(error)
    assert is_refusal(error)
    assert not is_refusal(OSError("<Code>SlowDown</Code>"))
    garbled = OSError("some other text with the token and key-1 in it")
    assert explanation(garbled, ["key-1", "", "the token"]) == (
        "some other text with *** and *** in it"
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("NoSuchBucket", "make the bucket"),
        ("ExpiredToken", "renew them"),
        ("InvalidAccessKeyId", "does not know them"),
        ("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        ("AccessDenied", "allow this"),
        ("PermanentRedirect", "storage.region"),
        ("AuthorizationHeaderMalformed", "storage.region"),
        ("RequestTimeTooSkewed", "clock"),
        ("SlowDown", "try again later"),
    ],
)
def test_every_refusal_has_its_remedy(code: str, words: str) -> None:
    assert explanation(refusal(code)).startswith(f"{code}; ")
    assert words in explanation(refusal(code))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://KEY:SECRET@bucket/x", "s3://***@bucket/x"),
        ("s3://KEY:SEC/RET+@bucket/x", "s3://***@bucket/x"),
        ("S3A://KEY@bucket/x", "S3A://***@bucket/x"),
        ("s3://KEY:SECRET", "s3://***"),
        ("http://user:pa/ss@host:9000/x", "http://***@host:9000/x"),
        ("https://bucket.host/x?X-Amz-Signature=abc&y", "https://bucket.host/x?***"),
        ("ray://user:pass@host:10001", "ray://***@host:10001"),
        ("catalog: s3://K:S@b/x, 'ftp://u:p@h'", "catalog: s3://***@b/x, 'ftp://***@h'"),
    ],
)
def test_credentials_in_a_uri_are_not_shown(uri: str, shown: str) -> None:
    assert masked(uri) == shown
    assert holds_credentials(uri)


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket/a@b:c?d", "http://host:9000", "http://[::1]:9000/x", "/music/a@b", "file:///a@b",
     "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint:name/key", "ray://host:10001"],
)  # fmt: skip
def test_a_uri_without_credentials_is_shown_as_it_is(uri: str) -> None:
    assert masked(uri) == uri
    assert not holds_credentials(uri)


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket/crawl/http://u@h/x.mp3", "s3://bucket/it's http://u:p@h/x", "s3://b/a ftp://b:c"],
)
def test_a_key_may_look_like_a_uri_with_credentials(uri: str) -> None:
    assert not holds_credentials(uri)
    assert parse_uri(uri).path == uri.split("/", 3)[3]
    assert "u:p" not in masked(uri)


def test_a_refusal_without_a_name_goes_by_its_status() -> None:
    assert explanation(refusal("", 404)) == "404; check the name and the endpoint"


def test_what_the_network_library_says_is_not_repeated() -> None:
    cause = ValueError("Invalid header value b'TOKEN\\n'")
    said = explanation(botocore.exceptions.HTTPClientError(error=cause))
    assert said == "HTTPClientError: ValueError; check the endpoint and the network"


def test_a_long_word_is_searched_in_one_pass() -> None:
    word = "x" * 2**20  # from each of its letters to its end would take hours
    assert masked(word) == word
    assert masked(f"{word}s3://KEY:SECRET@bucket/x") == f"{word}s3://***@bucket/x"
