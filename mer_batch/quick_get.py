"""Objects asked for without all that boto3 does for a request, most of which is the same each time.

boto3 takes 1 ms of CPU for a GET, a twentieth of what a whole track takes. So it sends the first
one to a bucket, and the following ones go the same way: to the same place, in the same region, over
the same connections, signed by botocore. Refusals that may be due to the way are left to boto3, and
what it finds out is learned anew.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import botocore.exceptions
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.response import StreamingBody
from botocore.utils import percent_encode

_SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/([^/]+)/s3/aws4_request,")
# Names of a reply's fields in boto3's words.
_FIELDS = {
    "ETag": "etag",
    "ContentRange": "content-range",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSECustomerAlgorithm": "x-amz-server-side-encryption-customer-algorithm",
}


@dataclass(frozen=True)
class _Way:
    """To a bucket's objects: what stands before the key, whom to sign for, who asks."""

    before_key: str
    region: str
    user_agent: str


class QuickGets:
    """GETs by the way that a client's own have gone; safe to use in many threads.

    Parameters
    ----------
    client : boto3's S3 client
    credentials : callable
        botocore's, as they are now; None for none.
    """

    def __init__(self, client: Any, credentials: Callable[[], Any]) -> None:
        self._credentials = credentials
        self._ways: dict[str, _Way] = {}
        self._sent = threading.local()
        # No other session has the client's proxies and certificates, and words for what fails.
        self._session = client._endpoint.http_session
        client.meta.events.register_last("before-send.s3.GetObject", self._note)

    def get(self, bucket: str, key: str, wanted: str) -> dict[str, Any] | None:
        """What ``get_object`` gives for a range; None where it is boto3 that should ask.

        Raises
        ------
        botocore.exceptions.ClientError
            Where there is no such object, and where the store is out of breath or order: nobody
            should ask again at once.
        botocore.exceptions.BotoCoreError
        """
        way = self._ways.get(bucket)
        credentials = self._credentials() if way and key else None
        if way is None or credentials is None:
            return None
        headers = {"Range": wanted, "User-Agent": way.user_agent}
        url = way.before_key + _in_url(key)
        request = AWSRequest("GET", url, headers=headers, stream_output=True)
        S3SigV4Auth(credentials, "s3", way.region).add_auth(request)
        reply = self._session.send(request.prepare())
        if reply.status_code in (200, 206):
            return _in_boto3s_words(reply)
        # Read to the end: the connection can be used again.
        refusal = _refusal(reply, StreamingBody(reply.raw, None).read())
        is_plain = refusal.response["Error"]["Code"] == "NoSuchKey"
        if is_plain or reply.status_code >= 500 or reply.status_code == 429:
            raise refusal
        self._ways.pop(bucket, None)
        return None

    def learn(self, bucket: str, key: str) -> None:
        """Take note of the way on which boto3 has just got an object, in this thread."""
        url, headers = vars(self._sent).pop("request", ("", {}))
        scope = _SCOPE.match(_text(headers.get("Authorization", "")))
        path = _in_url(key)
        # Another kind of signature, or none, is left to boto3.
        if scope and url.endswith(f"/{path}") and "?" not in url:
            agent = _text(headers.get("User-Agent", ""))
            self._ways[bucket] = _Way(url.removesuffix(path), scope[1], agent)

    def _note(self, request: Any, **_: object) -> None:
        self._sent.request = request.url, request.headers


def _in_url(key: str) -> str:
    return str(percent_encode(key, safe="/~"))


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _in_boto3s_words(reply: Any) -> dict[str, Any]:
    found = {field: reply.headers[name] for field, name in _FIELDS.items() if name in reply.headers}
    length = reply.headers.get("content-length")
    if length is not None:
        found["ContentLength"] = int(length)
    return {**found, "Body": StreamingBody(reply.raw, length)}


def _refusal(reply: Any, content: bytes) -> botocore.exceptions.ClientError:
    code = re.search(rb"<Code>(\w+)</Code>", content)
    metadata = {
        "HTTPStatusCode": reply.status_code,
        "HTTPHeaders": {name.lower(): value for name, value in reply.headers.items()},
    }
    said = code[1].decode() if code else str(reply.status_code)
    return botocore.exceptions.ClientError(
        {"Error": {"Code": said}, "ResponseMetadata": metadata}, "GetObject"
    )
