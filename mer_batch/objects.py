"""Objects in S3 by bucket and key. Every request is asked until its answer is whole and right.

Credentials come from the usual chain (environment, profile, instance role).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import boto3
import botocore.config
import botocore.exceptions

from mer_batch.config import StorageConfig
from mer_batch.errors import StorageError, masked
from mer_batch.faults import (
    DENIED,
    LOST_RACE,
    NOT_FOUND,
    DamagedBodyError,
    ForeignAnswerError,
    Patience,
    code_of,
    explanation,
)
from mer_batch.quick_get import QuickGets

_CLIENT_LOCK = threading.Lock()
_CONNECT_SECONDS = 5
_READ_SECONDS = 20
_NO_SUCH_RANGE = frozenset({"InvalidRange", "416"})
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")

T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """Bytes of an object, where they begin in it, its whole size and its etag (with its quotes)."""

    content: bytes
    begin: int
    n_total: int
    etag: str


class Objects:
    """The client of one process, safe to use in many threads.

    What cannot be had is raised as botocore's own error, or as OSError.

    Parameters
    ----------
    config : StorageConfig
    """

    def __init__(self, config: StorageConfig) -> None:
        self._config = config
        self._patience = Patience(config.patience_seconds)

    # ------------------------------------------------------------------ where and who

    @property
    def endpoint(self) -> str | None:
        """The store's URL, None for AWS."""
        if self._config.endpoint_url:
            return self._config.endpoint_url
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            url = os.environ.get(name)
            if not url:
                continue
            if not url.startswith(("http://", "https://")):
                raise StorageError(f"{name}={masked(url)!r} must begin with http:// or https://")
            if "@" in urllib.parse.urlsplit(url).netloc or masked(url) != url:
                raise StorageError(
                    f"{name}={masked(url)!r} must not hold credentials; set AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY, or a profile"
                )
            return url
        return None

    @property
    def region(self) -> str:
        """As configured; us-east-1 where nobody says.

        Raises
        ------
        StorageError
            Where the AWS profile that could say is not there.
        """
        with _setup_errors():
            return self._region

    @property
    def _region(self) -> str:
        named = (
            self._config.region
            or os.environ.get("AWS_REGION")
            or os.environ.get("AWS_DEFAULT_REGION")
        )
        return named or boto3.Session().region_name or "us-east-1"

    @functools.cached_property
    def _session(self) -> boto3.Session:
        return boto3.Session(region_name=self._region)

    @property
    def credentials(self) -> tuple[str, str, str]:
        """Key id, secret and token as they are now, "" for what there is not.

        Raises
        ------
        StorageError
            Where what should give them (a profile, its program, a role) does not.
        """
        with _setup_errors():
            return self._patience.ask(self._credentials)

    def _credentials(self) -> tuple[str, str, str]:
        found = self._session.get_credentials()
        if found is None:
            return "", "", ""
        frozen = found.get_frozen_credentials()
        all_three = frozen.access_key or "", frozen.secret_key or "", frozen.token or ""
        for name, value in zip(_CREDENTIALS, all_three, strict=True):
            # In a header it would be refused, in words that repeat it.
            if not value.isprintable() or value != value.strip() or not value.isascii():
                raise StorageError(
                    f"{name}, or what the profile or role gives for it, holds white space at an "
                    "end or characters that a header cannot; a file's last newline, perhaps: take "
                    "it out"
                )
        return all_three

    @property
    def client(self) -> Any:
        """boto3's, pooled."""
        # Making a client is not safe in several threads at once, using one is.
        with _CLIENT_LOCK:
            return self._client

    @functools.cached_property
    def _client(self) -> Any:
        self._credentials()
        client = self._session.client(
            "s3",
            endpoint_url=self.endpoint,
            config=botocore.config.Config(
                max_pool_connections=32,
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                retries={"mode": "standard", "total_max_attempts": 1},
                # Bodies are compared with their length and etag below; a range has no checksum.
                response_checksum_validation="when_required",
            ),
        )
        client.meta.events.register_first("needs-retry.s3.HeadBucket", _refuse_redirect)
        return client

    @property
    def _quick_gets(self) -> QuickGets:
        with _CLIENT_LOCK:
            return self._quick

    @functools.cached_property
    def _quick(self) -> QuickGets:
        return QuickGets(self._client, self._frozen_credentials)

    def _frozen_credentials(self) -> Any:
        found = self._session.get_credentials()
        return found and found.get_frozen_credentials()

    # ------------------------------------------------------------------ reading

    def get(
        self, bucket: str, key: str, *, check_size: Callable[[int], None] = lambda n_bytes: None
    ) -> Piece:
        """A whole object; `check_size` may raise before its body is read."""
        differing: list[bytes] = []

        def request() -> Piece:
            found, is_md5 = self._get(bucket, key, "bytes=0-", check_size)
            if len(found.content) != found.n_total:
                raise DamagedBodyError(f"{len(found.content)} of {found.n_total} bytes came")
            digest = hashlib.md5(found.content, usedforsecurity=False).hexdigest()
            if is_md5 and digest != found.etag.strip('"') and found.content not in differing:
                # Of some stores the etag only looks like an MD5: then the next answer is the same.
                differing[:] = [found.content]
                raise DamagedBodyError("the bytes are not those that the etag names")
            return found

        return self._patience.ask(request)

    def get_tail(self, bucket: str, key: str, n_bytes: int) -> Piece:
        """The last bytes of an object, all of a smaller one."""

        def request() -> Piece:
            found, _ = self._get(bucket, key, f"bytes=-{n_bytes}")
            if len(found.content) != min(n_bytes, found.n_total):
                raise DamagedBodyError(f"{len(found.content)} of {n_bytes} bytes came")
            return found

        return self._patience.ask(request)

    def get_range(self, bucket: str, key: str, begin: int, end: int, etag: str) -> bytes:
        """Bytes `begin` to `end` of an object, of the version `etag` only."""

        def request() -> bytes:
            found, _ = self._get(bucket, key, f"bytes={begin}-{end - 1}", IfMatch=etag)
            if len(found.content) != end - begin:
                raise DamagedBodyError(f"{len(found.content)} of {end - begin} bytes came")
            return found.content

        return self._patience.ask(request)

    def _get(
        self,
        bucket: str,
        key: str,
        wanted: str,
        check_size: Callable[[int], None] = lambda n_bytes: None,
        **condition: str,
    ) -> tuple[Piece, bool]:
        """One try; also whether the etag is the MD5 of the content.

        A range is asked for even where all is wanted: its answer tells the object's size apart from
        the body's, and so a body that was cut short on the way.
        """
        reply = None if condition else self._quick_gets.get(bucket, key, wanted)
        if reply is None:
            reply = self._ask_boto3(bucket, key, wanted, condition)
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", reply.get("ContentRange", ""))
        begin, n_total = (
            (int(place[1]), int(place[2])) if place else (0, _in(reply, "ContentLength"))
        )
        etag, body = _in(reply, "ETag"), reply["Body"]
        try:
            check_size(n_total)
            # Not `with body`: that gives the stream below, whose errors are urllib3's.
            content = bytes(body.read())
        finally:
            body.close()
        is_md5 = (
            re.fullmatch(r'"[0-9a-f]{32}"', etag) is not None
            and not str(reply.get("ServerSideEncryption", "")).startswith("aws:kms")
            and "SSECustomerAlgorithm" not in reply
        )
        return Piece(content, begin, n_total, etag), is_md5

    def _ask_boto3(
        self, bucket: str, key: str, wanted: str, condition: dict[str, str]
    ) -> dict[str, Any]:
        asked = {"Bucket": bucket, "Key": key, **condition}
        try:
            reply: dict[str, Any] = self.client.get_object(**asked, Range=wanted)
        except botocore.exceptions.ClientError as error:
            if code_of(error) not in _NO_SUCH_RANGE:
                raise
            return dict(self.client.get_object(**asked))  # an empty object has no ranges
        self._quick_gets.learn(bucket, key)
        return reply

    def head(self, bucket: str, key: str) -> tuple[int, str] | None:
        """Size and etag of an object, None where there is none."""
        try:
            reply = self._patience.ask(lambda: self.client.head_object(Bucket=bucket, Key=key))
        except botocore.exceptions.ClientError as error:
            if code_of(error) in NOT_FOUND:
                return None
            raise
        return _in(reply, "ContentLength"), _in(reply, "ETag")

    def list_keys(self, bucket: str, prefix: str) -> Iterator[tuple[str, int, str]]:
        """Key, size and etag of every object whose key begins with `prefix`."""
        following: dict[str, str] = {}
        while True:
            page = self._patience.ask(
                lambda: self.client.list_objects_v2(Bucket=bucket, Prefix=prefix, **following)  # noqa: B023  # asked at once
            )
            if "Name" not in page and "IsTruncated" not in page:
                raise ForeignAnswerError
            for entry in page.get("Contents", ()):
                yield _in(entry, "Key"), _in(entry, "Size"), _in(entry, "ETag")
            if not page.get("IsTruncated"):
                return
            following = {"ContinuationToken": _in(page, "NextContinuationToken")}

    # ------------------------------------------------------------------ writing

    def put(self, bucket: str, key: str, content: bytes, **condition: str) -> str:
        """Write an object; its etag. `condition` is IfMatch or IfNoneMatch."""

        def request() -> str:
            asked = {"Bucket": bucket, "Key": key, "Body": content, **condition}
            return str(_in(self.client.put_object(**asked), "ETag"))

        return self._patience.ask(request)

    def put_if(self, bucket: str, key: str, content: bytes, *, etag: str | None) -> str | None:
        """Write an object only if it has this etag (None: if it is not there); None if not."""
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        try:
            return self.put(bucket, key, content, **condition)
        except botocore.exceptions.ClientError as error:
            if code_of(error) not in LOST_RACE | NOT_FOUND - {"NoSuchBucket"}:
                raise
        # The put may be ours: done, its answer lost, and asked for again.
        present = self.get_if_there(bucket, key)
        return present.etag if present and present.content == content else None

    def check_conditions(self, bucket: str, key: str) -> None:
        """Make sure that the store heeds the conditions of :meth:`put_if`; `key` is of no object.

        Raises
        ------
        StorageError
            Where it does not: several runs could then write to one output at once.
        """
        try:
            first = self.put_if(bucket, key, b"1", etag=None)
            again = self.put_if(bucket, key, b"2", etag=None)
            second = self.put_if(bucket, key, b"3", etag=first) if first else None
            stale = self.put_if(bucket, key, b"4", etag=first) if second else None
        except botocore.exceptions.ClientError as error:
            if code_of(error) in DENIED | NOT_FOUND:
                raise
            words = f"it answers {code_of(error)}"
        else:
            if first and second and not again and not stale:
                return
            words = "it refuses what it should take" if not second else "it takes no heed of them"
        raise StorageError(
            f"the store of 's3://{bucket}/{key}' has no conditional writes (If-None-Match, "
            f"If-Match), which keep two runs apart: {words}; use AWS S3 or another store that has"
        )

    def get_if_there(self, bucket: str, key: str) -> Piece | None:
        """A whole object, None where there is none."""
        try:
            return self.get(bucket, key)
        except botocore.exceptions.ClientError as error:
            if code_of(error) in NOT_FOUND - {"NoSuchBucket"}:
                return None
            raise

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object if it is there."""
        self._patience.ask(lambda: self.client.delete_object(Bucket=bucket, Key=key))

    def begin_parts(self, bucket: str, key: str) -> str:
        """Begin an object that is written in parts; names the upload."""
        reply = self._patience.ask(
            lambda: self.client.create_multipart_upload(Bucket=bucket, Key=key)
        )
        return str(reply["UploadId"])

    def put_part(self, bucket: str, key: str, upload: str, number: int, content: bytes) -> str:
        """Write one part (numbered from 1) of at least 5 MiB, unless it is the last; its etag."""
        reply = self._patience.ask(
            lambda: self.client.upload_part(
                Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=content
            )
        )
        return str(reply["ETag"])

    def end_parts(self, bucket: str, key: str, upload: str, etags: list[str]) -> None:
        """Make the object of its parts."""
        parts = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, 1)]
        try:
            self._patience.ask(
                lambda: self.client.complete_multipart_upload(
                    Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
                )
            )
        except botocore.exceptions.ClientError as error:
            # Done, its answer lost, and asked for again.
            if code_of(error) != "NoSuchUpload" or self.head(bucket, key) is None:
                raise

    def drop_parts(self, bucket: str, key: str, upload: str) -> None:
        """Give up an object that was begun."""
        self._patience.ask(
            lambda: self.client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
        )

    def list_begun(self, bucket: str, prefix: str) -> Iterator[tuple[str, str]]:
        """Key and upload of every object below `prefix` that was begun in parts and not ended."""
        following: dict[str, str] = {}
        while True:
            page = self._patience.ask(
                lambda: self.client.list_multipart_uploads(
                    Bucket=bucket,
                    Prefix=prefix,
                    **following,  # noqa: B023  # asked at once
                )
            )
            for entry in page.get("Uploads", ()):
                yield entry["Key"], entry["UploadId"]
            if not page.get("IsTruncated"):
                return
            following = {
                "KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]
            }  # fmt: skip


def _in(reply: dict[str, Any], name: str) -> Any:
    """A field that every answer of S3's has."""
    try:
        return reply[name]
    except KeyError:
        raise ForeignAnswerError from None


def _refuse_redirect(response: tuple[Any, dict[str, Any]] | None, **_: object) -> None:
    """End botocore's question for a bucket's region where the answer is to ask elsewhere.

    It would ask for the region of that answer's bucket, and so on without end. Where the answer's
    headers name the region, botocore finds it in the error.
    """
    if response is not None and 300 <= response[0].status_code < 400:
        raise botocore.exceptions.ClientError(response[1], "HeadBucket")


@contextlib.contextmanager
def _setup_errors() -> Iterator[None]:
    """botocore's errors of profiles and credentials as ours, for those that ask no store."""
    try:
        yield
    except botocore.exceptions.BotoCoreError as error:
        raise StorageError(explanation(error)) from error
