"""Fixtures: music of our own making, the research data where there is some, a real S3 server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from mer_batch.compose import MOODS, compose, encode_mp3
from mer_batch.config import StorageConfig
from mer_batch.storage import Location, Storage, parse_uri
from tests.faulty_store import FaultyStore
from tests.s3_server import serving_s3

# Every process that the tests start must find the same Ray settings.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of research data; tests that need it are skipped without it."""
    value = os.environ.get("MER_BATCH_DATA")
    if not value:
        pytest.skip("MER_BATCH_DATA is not set: needs the research data")
    path = Path(value).resolve()
    if not path.is_dir():
        pytest.skip(f"MER_BATCH_DATA={value!r} is no folder: needs the research data")
    return path


@pytest.fixture
def terminal_signals() -> Iterator[None]:
    """Signals as in a terminal: behind `nohup`, or in the background, some are ignored."""
    ignored = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_IGN]
    for number in ignored:
        is_int = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_int else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def short_mp3s() -> dict[str, bytes]:
    """One short piece in each mood, as MP3."""
    return {mood: encode_mp3(compose(mood, 1, seconds=3)) for mood in MOODS}


@pytest.fixture(scope="session")
def long_mp3() -> bytes:
    """Half a minute of music, as MP3."""
    return encode_mp3(compose("joyful", 2, seconds=30), quality=0.3)


@pytest.fixture
def music(tmp_path: Path, short_mp3s: dict[str, bytes]) -> Path:
    """A folder of eight short MP3s."""
    folder = tmp_path / "music"
    folder.mkdir()
    for mood, content in short_mp3s.items():
        for number in (1, 2):
            (folder / f"{mood}-{number}.mp3").write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``mer-batch`` as a process of its own, as a user would."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mer_batch", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload,no-any-return]

    return run


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real S3 server on loopback, in a process of its own."""
    with serving_s3() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> object:
    """A client of the S3 server; ``s3.bucket`` is an empty bucket of this test's own."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret-word")
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    client.bucket = f"bucket-{abs(hash(request.node.nodeid)):x}"
    client.endpoint = s3_endpoint
    client.create_bucket(Bucket=client.bucket)
    return client


@pytest.fixture
def faulty(s3: Any) -> Iterator[FaultyStore]:
    """A proxy before the S3 server that misbehaves by the rules which a test gives it."""
    with FaultyStore(s3.endpoint) as store:
        yield store


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Storage, Location]:
    """An empty place to write to, on a local disk or on S3, and the storage that reaches it."""
    if request.param == "local":
        return Storage(StorageConfig()), parse_uri(str(tmp_path / "place"))
    s3 = request.getfixturevalue("s3")
    return Storage(StorageConfig(endpoint_url=s3.endpoint)), parse_uri(f"s3://{s3.bucket}/place")
