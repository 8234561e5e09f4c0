"""Objects that boto3 does not ask for itself: asked for as it would, with the same outcomes."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Any

import pytest

from mer_batch.config import StorageConfig
from mer_batch.errors import AudioError
from mer_batch.storage import Storage
from tests.canned_store import CannedStore
from tests.faulty_store import FaultyStore

SECRET = "test-secret-word"
CONTENT = bytes(range(256)) * 40

Read = Callable[[str], bytes]


@pytest.fixture
def read(s3: Any, faulty: FaultyStore) -> Read:
    """Reads an object by its key; boto3 has shown the way."""
    storage = Storage(StorageConfig(endpoint_url=faulty.endpoint, patience_seconds=20))

    def get(key: str) -> bytes:
        return storage.read_audio(f"s3://{s3.bucket}/{key}", max_bytes=10**6).content

    s3.put_object(Bucket=s3.bucket, Key="first", Body=CONTENT)
    assert get("first") == CONTENT
    assert storage._objects._quick_gets._ways.keys() == {s3.bucket}
    return get


@pytest.mark.parametrize("key", ["a b/c+d=é.mp3", "~_-.!*'()&$@,:;?#[]%41", "a//b", "a/../b/./c"])
def test_any_key_is_found_by_its_name(s3: Any, read: Read, key: str) -> None:
    s3.put_object(Bucket=s3.bucket, Key=key, Body=key.encode())
    assert read(key) == key.encode()


@pytest.mark.parametrize(
    "fault", ["SlowDown", "InternalError", "reset", "lose_answer", "cut", "cut_quietly"]
)
def test_a_fault_that_passes_is_waited_for(read: Read, faulty: FaultyStore, fault: str) -> None:
    faulty.add(fault, n=2)
    before = faulty.asked["GET"]
    assert read("first") == CONTENT
    assert faulty.asked["GET"] == before + 3
    assert faulty.suffered[fault] == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("AccessDenied", "access_denied"), ("ExpiredToken", "access_denied"),
     ("NoSuchKey", "not_found"), ("NotImplemented", "storage_error"),
     ("redirect", "storage_error"), ("html", "storage_error")],
)  # fmt: skip
def test_a_fault_that_lasts_is_told_as_if_boto3_had_asked(
    s3: Any, faulty: FaultyStore, read: Read, fault: str, reason: str
) -> None:
    storage = Storage(StorageConfig(endpoint_url=faulty.endpoint, patience_seconds=1))
    other = Storage(StorageConfig(endpoint_url=faulty.endpoint, patience_seconds=1))
    uri = f"s3://{s3.bucket}/first"
    storage.read_audio(uri, max_bytes=10**6)
    told = []
    faulty.add(fault)
    for asked in (storage, other):  # by the quick way, and by boto3's
        with pytest.raises(AudioError) as caught:
            asked.read_audio(uri, max_bytes=10**6)
        told.append((caught.value.reason, caught.value.message))
    assert told[0] == told[1]
    assert told[0][0] == reason


def test_objects_that_are_empty_or_gone_are_no_fault_of_the_others(s3: Any, read: Read) -> None:
    s3.put_object(Bucket=s3.bucket, Key="empty", Body=b"")
    for _ in range(2):
        assert read("empty") == b""
        with pytest.raises(AudioError, match="NoSuchKey"):
            read("gone")
        assert read("first") == CONTENT


# ------------------------------------------------------------------ what a store is sent


_AUDIO = (
    b'HTTP/1.1 206 Partial Content\r\nConnection: close\r\nETag: "e"\r\n'
    b"Content-Range: bytes 0-4/5\r\nContent-Length: 5\r\n\r\naudio"
)


def signature_of(method: str, target: str, headers: dict[str, str]) -> str:
    """What Signature Version 4 makes of a request, reckoned by its definition."""
    found = re.search(
        r"Credential=[^/]+/(\d+)/([\w-]+)/(\w+)/aws4_request, SignedHeaders=([\w;-]+),",
        headers["authorization"],
    )
    assert found
    day, region, service, signed = found.groups()
    lines = [f"{name}:{headers[name]}" for name in signed.split(";")]
    canonical = [method, target, "", *lines, "", signed, headers["x-amz-content-sha256"]]
    hashed = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    scope = f"{day}/{region}/{service}/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", headers["x-amz-date"], scope, hashed])
    key = f"AWS4{SECRET}".encode()
    for part in (day, region, service, "aws4_request", text):
        key = hmac.digest(key, part.encode(), "sha256")
    return key.hex()


def test_requests_are_signed_and_hold_what_those_of_boto3_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "test-token")
    store = CannedStore(lambda: _AUDIO)
    with store as endpoint:
        storage = Storage(StorageConfig(endpoint_url=endpoint, region="eu-north-1"))
        for _ in range(2):
            assert storage.read_audio("s3://music/a b.mp3", max_bytes=9).content == b"audio"
    requests = []
    for head in store.heads:
        line, *lines = head.strip().split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (text.partition(":") for text in lines)}
        method, target, _ = line.split()
        assert headers["authorization"].endswith(signature_of(method, target, headers))
        requests.append((method, target, headers))
    (*boto3s, theirs), (*quick, ours) = requests
    assert quick == boto3s == ["GET", "/music/a%20b.mp3"]
    for headers in (theirs, ours):
        assert "/eu-north-1/s3/aws4_request" in headers["authorization"]
        assert headers["x-amz-security-token"] == "test-token"
        assert headers["range"] == "bytes=0-"
    assert ours["user-agent"] == theirs["user-agent"]
    # Those that only boto3 sends say how often it has asked.
    assert theirs.keys() - ours.keys() <= {"amz-sdk-invocation-id", "amz-sdk-request"}
